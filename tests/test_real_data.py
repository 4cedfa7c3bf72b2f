"""Figures on real CIFAR-10 horses; skipped unless COLORIZATION_DATA and COLORIZATION_HANDOUT say where they are.

The handout's figures were computed independently of this package, on CIFAR-10's official pixels.
"""

import os
import re
from pathlib import Path

import pytest
import torch

import color_regression
import colorization
from data import ImageSource, fit_palette, load_palette, nearest_color, palette_path
from pictures.metrics import colorfulness, psnr
from sources.cifar10 import CLASSES, load_cifar10
from training.evaluation import evaluate_pictures
from utils.checkpoint import load_network, pretrained_path

DATA = os.environ.get("COLORIZATION_DATA")
HANDOUT = Path(os.environ.get("COLORIZATION_HANDOUT", "nowhere"))
pytestmark = pytest.mark.skipif(not (DATA and HANDOUT.is_dir()), reason="no real data named")


def handout_file(name):
    """The path of one of the handout's files, wherever it is in that folder (the course has color/ and weights/)."""
    path = next(HANDOUT.rglob(name), None)
    if not path:
        pytest.skip(f"no {name} in {HANDOUT}")
    return path


def printed(capsys, script, *argv):
    """Run a script and return the numbers in its lines on validation: percentages as shares."""
    script.main([str(word) for word in argv])
    starts = ("1,000 images", "mean squared error")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(starts)]
    return [float(n[:-1]) / 100 if n.endswith("%") else float(n) for n in re.findall(r"\d+\.\d+%?", " ".join(lines))]


@pytest.mark.parametrize(
    ("name", "model", "filters", "loss", "accuracy"),
    [
        ("cnn", "CNN", 32, 1.5811, 0.4123),
        ("unet", "UNet", 32, 1.3787, 0.4821),
        ("dunet", "DUNet", 32, 1.5181, 0.4257),
        ("cnn", "CNN", 16, 1.6316, 0.4027),
        ("unet", "UNet", 16, 1.3437, 0.4871),
        ("dunet", "DUNet", 16, 1.4587, 0.4548),
    ],
)
def test_the_handouts_classifiers(capsys, tmp_path, name, model, filters, loss, accuracy):
    weights = handout_file(f"{name}_k3_f{filters}.pkl")
    flags = [
        "--model",
        model,
        "-f",
        filters,
        "-c",
        handout_file("color_kmeans24_cat7.npy"),
        "--checkpoint",
        weights,
        "--out-dir",
        tmp_path,
    ]
    got = printed(capsys, colorization, "--valid", *flags)
    assert got == [pytest.approx(loss, abs=0.001), pytest.approx(accuracy, abs=0.0005)]


@pytest.mark.parametrize(("filters", "error"), [(32, 0.006270), (16, 0.007110)])
def test_the_handouts_regression(capsys, tmp_path, filters, error):
    weights = handout_file(f"regression_cnn_k3_f{filters}.pkl")
    got = printed(capsys, color_regression, "--checkpoint", weights, "-f", filters, "--out-dir", tmp_path)
    assert got == [pytest.approx(error, abs=1e-6), pytest.approx(0.005321, abs=1e-6)]


def mean_distance(images, palette):
    pixels = images.permute(0, 2, 3, 1).reshape(-1, 3).numpy() / 256
    return nearest_color(pixels, palette)[1].mean()


def test_palettes():
    horses, _ = load_cifar10(DATA, ["horse"], train=True)
    assert mean_distance(horses, load_palette(handout_file("color_kmeans24_cat7.npy"))) == pytest.approx(
        0.07282, abs=1e-5
    )
    assert mean_distance(horses, load_palette(palette_path(24, "horse"))) == pytest.approx(0.07281, abs=5e-6)
    palette, distance = fit_palette(horses, 24)
    assert distance == pytest.approx(mean_distance(horses, palette), abs=1e-6)
    assert distance <= 0.0731  # single starts end between 0.0727 and this


def test_every_class_is_there():
    assert len(load_cifar10(DATA, ["horse"], train=True)[0]) == 5000
    assert len(load_cifar10(DATA, CLASSES, train=False)[0]) == 10_000


def shipped_figures():
    """Return the rows (file, figures) of the table in weights/README.md."""
    text = (Path(colorization.__file__).parent / "weights" / "README.md").read_text()
    return re.findall(r"^\| `(\w+)\.pkl` \| ([\d.]+)(?: \| ([\d.]+) %)?", text, re.MULTILINE)


def test_shipped_weights_give_the_figures_that_stand_beside_them(capsys, tmp_path):
    rows = shipped_figures()
    assert [row[0] for row in rows] == ["cnn_k3_f32", "unet_k3_f32", "dunet_k3_f32", "regression_cnn_k3_f32"]
    models = ["CNN", "UNet", "DUNet"]
    for model, (_, loss, accuracy) in zip(models, rows):
        got = printed(capsys, colorization, "--model", model, "--valid", "--out-dir", tmp_path)
        assert got == [pytest.approx(float(loss), abs=0.0002), pytest.approx(float(accuracy) / 100, abs=0.0002)]
    error, gray_copy = printed(capsys, color_regression, "--out-dir", tmp_path)
    assert error == pytest.approx(float(rows[3][1]), abs=2e-6)
    assert error < 0.00525 < gray_copy
    assert gray_copy == pytest.approx(0.005321, abs=1e-6)


def test_the_shipped_unets_smooth_pictures():
    net, checkpoint = load_network(pretrained_path())
    _, panels = evaluate_pictures(net, ImageSource().validation_set(checkpoint.palette, torch.device("cpu")))
    smooth, gray, truth = (panels[name] for name in ("annealed-mean decoding", "grayscale input", "ground truth"))
    assert psnr(smooth, truth) - psnr(gray, truth) == pytest.approx(2.38, abs=0.01)
    assert colorfulness(smooth).mean() / colorfulness(truth).mean() == pytest.approx(0.699, abs=0.005)


def test_one_epoch_of_training(capsys, tmp_path):
    colorization.main(["-e", "1", "--out-dir", str(tmp_path)])
    loss, share = re.search(r"validation loss ([\d.]+), accuracy ([\d.]+)%", capsys.readouterr().out).groups()
    assert float(loss) < 1.7
    assert float(share) > 35
