"""Metrics of pictures against scikit-image and by hand."""

import math

import numpy as np
import pytest
import torch
from helpers import some_pictures
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from benchmarks.picture_metrics import measure, rarity_weights
from pictures import metrics


def test_colorfulness_by_hand():
    # one red and one blue pixel: rg = 255 and 0, yb = 127.5 and -255
    picture = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]).view(1, 3, 1, 2)
    spread, mean = math.hypot(127.5, 191.25), math.hypot(127.5, -63.75)
    assert metrics.colorfulness(picture).item() == pytest.approx(spread + 0.3 * mean, rel=1e-6)
    assert metrics.colorfulness(some_pictures()[:, :1].expand(-1, 3, -1, -1)).abs().max() < 1e-3


def test_psnr_is_scikit_images():
    truth, picture = some_pictures(seed=1), (some_pictures(seed=1) + 0.1 * some_pictures(seed=2)).clamp(0, 1)
    expected = peak_signal_noise_ratio(truth.numpy(), picture.numpy(), data_range=1)
    assert metrics.psnr(picture, truth) == pytest.approx(expected, abs=1e-4)


def test_measures_are_scikit_images():
    truth, picture = some_pictures(seed=1), (some_pictures(seed=1) + 0.1 * some_pictures(seed=2)).clamp(0, 1)
    figures = measure({"it": picture, "ground truth": truth}, truth)["it"]
    one = [x.permute(0, 2, 3, 1).numpy() for x in (picture, truth)]
    assert figures["psnr"]["mean"] == pytest.approx(peak_signal_noise_ratio(*one, data_range=1), abs=1e-4)
    for number, (made, true) in enumerate(zip(*one)):
        each = {name: both["per_image"][number] for name, both in figures.items()}
        assert each["psnr"] == pytest.approx(peak_signal_noise_ratio(made, true, data_range=1), abs=1e-4)
        assert each["ssim"] == pytest.approx(structural_similarity(made, true, data_range=1, channel_axis=2), abs=1e-5)
        assert each["ciede2000"] == pytest.approx(deltaE_ciede2000(rgb2lab(made), rgb2lab(true)).mean(), abs=1e-4)
    assert figures["ssim"]["mean"] == pytest.approx(np.mean(figures["ssim"]["per_image"]), abs=1e-6)


def test_the_truth_itself_measures_as_perfect():
    truth = some_pictures()
    figures = measure({"ground truth": truth}, truth)["ground truth"]
    assert figures["psnr"]["mean"] is None and figures["psnr"]["per_image"] == [None] * 3
    assert [figures[name]["mean"] for name in ("ssim", "auc", "balanced_auc", "ciede2000")] == pytest.approx(
        [1, 1, 1, 0]
    )


def test_auc_is_the_area_under_the_curve_and_balance_weighs_rare_colors_up():
    truth = torch.tensor([0.5, 0.5, 0.5]).view(1, 3, 1, 1).repeat(1, 1, 8, 8)
    truth[0, :, 0, 0] = torch.tensor([1.0, 0.0, 0.0])
    gray = truth.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    figures = measure({"gray": gray}, truth)["gray"]
    far = np.linalg.norm((rgb2lab([1.0, 0, 0]) - rgb2lab([1 / 3] * 3))[1:])
    curve = [np.mean(np.array([0.0] * 63 + [far]) <= threshold) for threshold in np.linspace(0, 150, 15001)]
    assert figures["auc"]["mean"] == pytest.approx(np.mean(curve), abs=1e-4)
    assert figures["balanced_auc"]["mean"] == pytest.approx(1 - far / 150 / 2, abs=0.01)  # two colors, a half each
    per_image = measure({"gray": gray.repeat(2, 1, 1, 1)}, torch.cat([truth, truth[:, :, 1:2, 1:2].expand_as(truth)]))
    # twice as much gray as before: the one red pixel weighs as much as all 127 others, 63 of them beside it
    expected = [(1 * (1 - far / 150) + 63 / 127) / (1 + 63 / 127), 1]
    assert per_image["gray"]["balanced_auc"]["per_image"] == pytest.approx(expected, abs=0.02)


def test_rarity_is_smoothed_over_five_units_of_ab():
    """Two colors in neighboring bins: each bin also gets what the Gaussian brings from the other."""
    lab = np.zeros((1, 1, 10, 3))
    lab[0, 0, :9, 1], lab[0, 0, 9, 1] = 5, 15  # bins of ten
    weights = rarity_weights(lab)[0, 0]
    near = math.exp(-0.5 * (10 / 5) ** 2)  # to the next bin, before the sum is made 1
    assert weights[9] / weights[0] == pytest.approx((0.9 + 0.1 * near) / (0.1 + 0.9 * near), rel=1e-3)
