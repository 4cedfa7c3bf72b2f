"""color_regression.py from its command line."""

import re

import pytest
from helpers import SMALL, is_picture, rows_of

import color_regression
import data


def test_regression(cifar, capsys):
    color_regression.main([*SMALL, "--checkpoint", "r.pkl"])
    trained = capsys.readouterr().out
    assert is_picture("outputs/r_curve.png")
    assert is_picture("outputs/r_images.png")
    color_regression.main(["--checkpoint", "r.pkl"])
    validated = capsys.readouterr().out
    line = re.search(r"images of CIFAR-10 horse: (validation mean squared error (\d.\d+))", validated)
    assert line[1] in trained
    assert float(line[2]) == pytest.approx(float(rows_of("outputs/r.csv")[-1]["valid_loss"]), abs=1e-6)
    copied = re.search(r"copying the gray input to R, G and B: (\d.\d+)", validated)
    assert copied[0] in trained
    images = data.ImageSource().validation_images().numpy() / 256
    assert float(copied[1]) == pytest.approx(((images - images.mean(1, keepdims=True)) ** 2).mean(), abs=1e-6)
    assert is_picture("outputs/regression_cnn_valid.png")
