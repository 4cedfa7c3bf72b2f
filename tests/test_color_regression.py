"""color_regression.py from its command line."""

import re
from pathlib import Path

import pytest
import torch
from helpers import SMALL, is_picture, rows_of

import color_regression
import data
from utils.checkpoint import load_checkpoint, new_network, save_checkpoint


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


def test_training_starts_from_a_checkpoint(cifar):
    content = new_network(None, seed=7, model="RegressionCNN", kernel=5, num_filters=2)[1]
    save_checkpoint(Path("r.pkl"), content)
    color_regression.main(["-e", "1", "-b", "10", "-l", "1e-8", "--start-from", "r.pkl"])
    trained = load_checkpoint("outputs/regression_cnn_k5_f2.pkl").state_dict
    assert torch.allclose(trained["finalconv.weight"], content.state_dict["finalconv.weight"], atol=1e-5)
