"""colorization.py from its command line, on small data."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SMALL, is_picture, rows_of
from PIL import Image

import colorization
import data
from utils.checkpoint import FORMAT, file_stem, load_checkpoint, load_network, pretrained_path
from utils.files import PROJECT


def test_training_on_a_folder_of_pictures(photo_folder, capsys, fails):
    flags = ["--data", str(photo_folder), "-c", "4", "-f", "4"]
    colorization.main([*flags, "-e", "1", "-b", "8"])
    said = capsys.readouterr()
    assert "100 training and 10 validation images" in said.out
    assert (said.out + said.err).count("broken.jpg: ") == 1
    colorization.main([*flags[:2], "--valid", "--checkpoint", "outputs/unet_k3_f4.pkl"])
    assert "validation loss" in capsys.readouterr().out
    assert "--holdout has no effect" in fails(colorization.main, *flags, "-e", "1", "--holdout", "3")


def test_a_network_taught_an_album_colors_photographs(photo_folder, capsys):
    """The advised way: start from the shipped network for photographs, then color with what came out."""
    flags = ["--start-from", str(pretrained_path(photographs=True)), "--data", str(photo_folder), "-l", "0.004"]
    colorization.main([*flags, "-e", "1", "-b", "20", "--working-size", "48"])
    weights = Path("outputs/deep_unet_k3_f32.pkl")
    assert load_network(weights)[1].working_size == 48
    colorization.main(["--colorize", str(photo_folder / "0.png"), "--checkpoint", str(weights), "--out-dir", "out"])
    with Image.open("out/0_colored.png") as colored, Image.open(photo_folder / "0.png") as source:
        assert colored.size == source.size
        grays = [np.asarray(image.convert("RGB")).mean(2) for image in (colored, source)]
        assert abs(grays[0] - grays[1]).max() <= 1
        assert np.ptp(np.asarray(colored).astype(int), axis=2).max() > 10


def test_another_loss_changes_what_is_learned(cifar, small_palette):
    weights = []
    for more in ([], ["--picture-weight", "100"]):
        colorization.main(["-e", "1", "-b", "10", "-f", "4", "-c", str(small_palette), *more])
        weights.append(torch.load("outputs/unet_k3_f4.pkl", weights_only=True)["state_dict"]["finalconv.weight"])
    assert not torch.equal(*weights)


def test_training_starts_from_a_checkpoint(cifar, small_palette, fails, capsys):
    colorization.main(["-e", "2", "-b", "10", "-f", "4", "-c", str(small_palette), "--out-dir", "first"])
    first = torch.load("first/unet_k3_f4.pkl", weights_only=True)["state_dict"]["finalconv.weight"]
    flags = ["-e", "1", "-b", "10", "-l", "1e-8", "--start-from", "first/unet_k3_f4.pkl"]
    colorization.main(flags)
    second = torch.load("outputs/unet_k3_f4.pkl", weights_only=True)
    assert torch.allclose(second["state_dict"]["finalconv.weight"], first, atol=1e-5)
    assert np.array_equal(second["palette"].numpy(), np.load(small_palette)) and second["epoch"] == 1
    assert "its model is UNet, not CNN" in fails(colorization.main, *flags, "--model", "CNN")
    assert "missing.pkl: cannot read" in fails(colorization.main, "--start-from", "missing.pkl")


@pytest.mark.parametrize("model", ["CNN", "UNet", "DUNet"])
def test_train_then_validate(cifar, small_palette, capsys, model):
    name = f"{model.lower()}_k3_f4"
    colorization.main([*SMALL, "--model", model, "-c", str(small_palette), "--plot"])
    trained = capsys.readouterr().out
    assert "20 training and 4 validation images of CIFAR-10 horse" in trained
    outputs = Path("outputs")
    for picture in ("images", "curve", "epoch001", "epoch002"):
        assert is_picture(outputs / f"{name}_{picture}.png")
    rows = rows_of(outputs / f"{name}.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]

    content = torch.load(outputs / f"{name}.pkl", weights_only=True)
    assert {key: content[key] for key in ("format", "model", "kernel", "num_filters", "data", "epoch")} == {
        "format": FORMAT,
        "model": model,
        "kernel": 3,
        "num_filters": 4,
        "data": "CIFAR-10 horse",
        "epoch": 2,
    }
    assert np.array_equal(content["palette"].numpy(), np.load(small_palette))
    assert content["metrics"]["valid_loss"] == float(rows[-1]["valid_loss"])

    colorization.main(["--valid", "--checkpoint", str(outputs / f"{name}.pkl")])  # says itself what it is
    validated = capsys.readouterr().out
    figures = f"validation loss {float(rows[-1]['valid_loss']):.5f}, accuracy {float(rows[-1]['valid_accuracy']):.2%}"
    assert figures in trained
    assert figures in validated
    assert is_picture(outputs / f"{file_stem(model)}_valid.png")


def test_two_runs_of_one_command_give_the_same_figures(cifar, small_palette):
    for folder in ("one", "two", "other"):
        seed = "5" if folder == "other" else "4"
        colorization.main([*SMALL, "-c", str(small_palette), "--out-dir", folder, "--seed", seed])
    one, two, other = (
        [dict(row, seconds="") for row in rows_of(f"{d}/unet_k3_f4.csv")] for d in ("one", "two", "other")
    )
    assert one == two != other
    states = [load_checkpoint(f"{folder}/unet_k3_f4.pkl").state_dict for folder in ("one", "two")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_held_out_training_images_validate(cifar, small_palette, capsys):
    colorization.main([*SMALL, "-c", str(small_palette), "--holdout", "6"])
    assert "14 training and 6 validation images" in capsys.readouterr().out
    colorization.main(["--valid", "--checkpoint", "outputs/unet_k3_f4.pkl", "--holdout", "6"])
    assert f"{float(rows_of('outputs/unet_k3_f4.csv')[-1]['valid_loss']):.5f}" in capsys.readouterr().out


def test_training_on_all_classes_then_on_one_holds_out_the_same_images(cifar, small_palette, capsys):
    flags = ["-c", str(small_palette), "-b", "8", "--holdout", "6"]
    colorization.main([*SMALL, *flags, "--category", "all", "--out-dir", "first"])
    assert "140 training and 60 validation images of CIFAR-10 all" in capsys.readouterr().out
    colorization.main([*flags, "-e", "1", "-l", "1e-8", "--start-from", "first/unet_k3_f4.pkl"])
    assert "14 training and 6 validation images of CIFAR-10 horse" in capsys.readouterr().out
    content = load_checkpoint("outputs/unet_k3_f4.pkl")
    assert content.data == "CIFAR-10 horse" and content.epoch == 1
    every, horses = (data.ImageSource(category=name, holdout=6).validation_images() for name in ("all", "horse"))
    held = {image.numpy().tobytes() for image in horses}
    assert len(held) == 6 and held < {image.numpy().tobytes() for image in every}
    learned = data.ImageSource(category="all", holdout=6).training_images()
    assert not held & {image.numpy().tobytes() for image in learned}


def test_a_category_without_a_shipped_palette_gets_its_own(cifar, capsys):
    colorization.main([*SMALL, "--category", "cat", "-c", "3"])
    out = capsys.readouterr().out
    assert "fitting a palette of 3 colors" in out
    assert "CIFAR-10 cat" in out
    assert load_checkpoint("outputs/unet_k3_f4.pkl").palette.shape == (3, 3)


def test_the_sample_photographs_need_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "MIN_CROPS", 60)
    monkeypatch.setenv("COLORIZATION_DATA", "nowhere")
    colorization.main([*SMALL, "--data", "sample", "-e", "1", "-c", "4"])
    assert "sample photographs" in capsys.readouterr().out
    assert is_picture("outputs/unet_k3_f4_images.png")


def test_a_fitted_palette_is_that_of_the_seed(cifar, fails):
    flags = ["-c", "3", "--category", "cat", "-s", "1"]
    colorization.main([*SMALL, *flags, "--checkpoint", "cat.pkl"])
    colorization.main(["--valid", *flags, "--checkpoint", "cat.pkl"])
    assert "--colors" in fails(colorization.main, "--valid", *flags, "-c", "4", "--checkpoint", "cat.pkl")


def test_from_the_shell():
    """Exit codes and lines as a user sees them, and no work at import."""

    def shell(*argv):
        return subprocess.run([sys.executable, *argv], capture_output=True, text=True, cwd=PROJECT, env=os.environ)

    failed = shell("colorization.py", "--valid", "--checkpoint", "nowhere.pkl")
    assert failed.returncode == 2
    line = "nowhere.pkl: cannot read the checkpoint (No such file or directory); name another file, or train it again"
    assert failed.stderr == f"colorization.py: {line}\n"
    helped = shell("colorization.py", "--help")
    assert helped.returncode == 0
    for flag in (
        "--model",
        "--checkpoint",
        "--valid",
        "--colors",
        "--kernel",
        "--num-filters",
        "--learn-rate",
        "--plot",
    ):
        assert flag in helped.stdout


def test_a_checkpoints_working_size_is_kept(photo_folder, small_palette):
    flags = ["--data", str(photo_folder), "-b", "50", "-e", "1"]
    colorization.main(
        [*flags, "-c", str(small_palette), "-f", "2", "--working-size", "48", "--checkpoint", "first.pkl"]
    )
    colorization.main([*flags, "--start-from", "first.pkl"])
    assert json.loads(Path("outputs/unet_k3_f2.json").read_text())["working_size"] == 48


def test_the_working_size_reaches_validation(photo_folder, small_palette, capsys):
    flags = ["--data", str(photo_folder), "-c", str(small_palette), "-f", "2", "--checkpoint", "u.pkl"]
    colorization.main([*flags, "-b", "50", "-e", "1"])
    losses = []
    for more in ([], ["--working-size", "64"], ["--working-size", "16"]):
        capsys.readouterr()
        colorization.main(["--valid", *flags, *more])
        losses.append(re.search(r"validation loss (\S+),", capsys.readouterr().out)[1])
    assert losses[0] == losses[1] != losses[2]


def test_a_palette_fitted_to_an_album_is_found_again_at_any_working_size(photo_folder):
    flags = ["--data", str(photo_folder), "-c", "3", "--checkpoint", "u.pkl"]
    colorization.main([*flags, "-f", "2", "-b", "50", "-e", "1", "--working-size", "32"])
    colorization.main(["--valid", *flags])
    colorization.main(["--colorize", str(photo_folder / "0.png"), *flags])
    colorization.main(["--colorize", str(photo_folder / "0.png"), *flags, "--working-size", "48"])


def test_an_album_is_validated_by_the_network_for_photographs(photo_folder, capsys):
    colorization.main(["--valid", "--data", str(photo_folder)])
    assert "DeepUNet, kernel 3, 32 filters" in capsys.readouterr().out


def test_colorize_fits_its_palette_to_the_images_that_the_flags_name(monkeypatch, fails, tmp_path):
    seen = []

    def palette_for(colors, source, seed):
        seen.append((colors, source, seed))
        raise colorization.UserError("enough")

    monkeypatch.setattr(colorization, "palette_for", palette_for)
    flags = ["-c", "5", "-s", "3", "--holdout", "2", "--category", "cat", "--out-dir", tmp_path]
    fails(colorization.main, "--colorize", "a.png", *flags)
    assert seen == [("5", data.ImageSource(category="cat", holdout=2), 3)]
