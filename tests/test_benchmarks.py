"""The benchmarks' own functions."""

import json
from pathlib import Path

import pytest

import colorization
from benchmarks import picture_metrics
from data import ImageSource
from pictures.decoding import apply_chroma
from pictures.metrics import psnr
from utils.files import PROJECT


def test_the_metrics_of_every_image_are_written(trained, tmp_path, capsys):
    picture_metrics.main(["--checkpoint", str(trained), "--json", "metrics.json"])
    printed, written = capsys.readouterr().out, json.loads(Path("metrics.json").read_text())
    rows = {"grayscale input", "dataset mean, with the input's gray", "argmax decoding", "annealed-mean decoding"}
    rows |= {"quantized ground truth", "quantized ground truth, with the input's gray", "ground truth"}
    assert written["pictures"].keys() == rows and written["loss"] > 0
    for label, row in written["pictures"].items():
        assert label in printed and row.keys() == picture_metrics.NAMES.keys()
        assert all(len(both["per_image"]) == 4 for both in row.values())  # horses among 40 images
    assert written["pictures"]["grayscale input"]["colorfulness"]["mean"] == 0
    mean = ImageSource().training_images().float().mean((0, 2, 3), keepdim=True) / 256
    images = ImageSource().validation_images().float() / 256
    expected = psnr(apply_chroma(mean, images.mean(1, keepdim=True)), images)
    found = written["pictures"]["dataset mean, with the input's gray"]
    assert found["psnr"]["mean"] == pytest.approx(expected, abs=1e-4)


def test_metrics_are_of_the_crops_that_validation_takes(photo_folder, capsys):
    """Of the network for photographs, whose crops have 64 pixels."""
    colorization.main(["--valid", "--data", str(photo_folder)])
    printed = [line.split(" | ")[1].strip() for line in capsys.readouterr().out.splitlines() if "annealed" in line]
    picture_metrics.main(["--data", str(photo_folder)])
    measured = [line.split(" | ")[1].strip() for line in capsys.readouterr().out.splitlines() if "annealed" in line]
    assert printed and [f"{float(value):.1f}" for value in printed] == [f"{float(value):.1f}" for value in measured]


def test_metrics_do_not_replace_the_checkpoint(trained, fails):
    flags = ["--checkpoint", trained]
    assert "would replace u.pkl" in fails(picture_metrics.main, *flags, "--json", "u.pkl")
    palette = ["--model", "UNet", "--colors", "palette.npy"]
    assert "would replace palette.npy" in fails(picture_metrics.main, *palette, "--json", "palette.npy")
    assert "--temperature" in fails(picture_metrics.main, *flags, "--temperature", "0")
    assert "--holdout" in fails(picture_metrics.main, *flags, "--holdout", "-5")


def test_no_data_is_one_line(monkeypatch, tmp_path, fails):
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")
    import bench_training

    assert "not a folder that contains CIFAR-10" in fails(bench_training.main, "--data", tmp_path)
    assert "--rounds" in fails(bench_training.main, "--rounds", "many")
