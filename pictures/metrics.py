"""Metrics of colored pictures against the truth. Pictures are RGB (N, 3, H, W), float32 in 0..1."""

import numpy as np
import torch
from torch import Tensor

from utils.console import print_table

NAMES = {"psnr": "PSNR (dB)", "ssim": "SSIM", "ciede2000": "CIEDE2000", "auc": "AuC", "balanced_auc": "balanced AuC"}
WIDEST_DISTANCE = 150  # in ab, the largest distance of the curve in Zhang et al. 2016
BIN = 10  # width of a color bin in ab


def colorfulness(pictures: Tensor) -> Tensor:
    """Return the colorfulness M of each picture, (N,), for values in 0..255 (Hasler and Süsstrunk 2003, section 7)."""
    red, green, blue = (255 * pictures).flatten(2).unbind(1)  # (N, H·W) each
    opponents = torch.stack([red - green, (red + green) / 2 - blue])  # signed
    spread, mean = opponents.std(2, correction=0), opponents.mean(2)
    return spread.norm(dim=0) + 0.3 * mean.norm(dim=0)


def measure(pictures: dict[str, Tensor], truth: Tensor, perceptual: bool = False) -> dict[str, dict]:
    """Return metrics of labeled pictures, {label: {metric: {"mean": number, "per_image": [number]}}}.

    The mean PSNR is computed from the mean squared error over all pixels; the other means are over
    images. `perceptual` adds, at some seconds per thousand small pictures: SSIM (7x7 windows, mean over
    channels), the mean CIEDE2000 color difference, and AuC: the area under the curve of the fraction of
    pixels within a distance in ab, for distances from 0 to 150, unweighted and ("balanced") with more
    weight on rare colors (Zhang et al. 2016, section 3.1); the balanced mean is over all pixels.
    """
    result = {}
    true_lab = lab(truth) if perceptual else np.empty(0)
    weights = rarity_weights(true_lab) if perceptual else np.empty(0)
    for label, picture in pictures.items():
        error = ((picture - truth) ** 2).mean((1, 2, 3))  # (N,)
        metrics = {
            "psnr": {"mean": -10 * error.mean().log10(), "per_image": -10 * error.log10()},  # the peak is 1
            "colorfulness": mean_and_per_image(colorfulness(picture)),
        }
        if perceptual:
            metrics |= perceptual_metrics(picture, lab(picture), truth, true_lab, weights)
        result[label] = {name: {part: to_json(value) for part, value in both.items()} for name, both in metrics.items()}
    return result


def mean_and_per_image(values: Tensor | np.ndarray) -> dict:
    """Return the mean of an array's or tensor's values, and the values."""
    return {"mean": values.mean(), "per_image": values}


def to_json(values: Tensor | np.ndarray) -> float | list | None:
    """Return values as a number or a list, rounded to six decimals; values that are not finite become None."""
    values = np.asarray(values, np.float64).round(6)
    return np.where(np.isfinite(values), values.astype(object), np.array(None)).tolist()


def lab(pictures: Tensor) -> np.ndarray:
    """Return pictures in CIE Lab, an array (N, H, W, 3)."""
    from skimage.color import rgb2lab  # scikit-image takes a second to import

    return rgb2lab(pictures.permute(0, 2, 3, 1).cpu().numpy())


def perceptual_metrics(
    picture: Tensor, picture_lab: np.ndarray, truth: Tensor, true_lab: np.ndarray, weights: np.ndarray
) -> dict[str, dict]:
    """Return the metrics that need scikit-image, of one row of pictures."""
    from skimage.color import deltaE_ciede2000
    from skimage.metrics import structural_similarity

    pairs = zip(picture.cpu().numpy(), truth.cpu().numpy())
    ssim = np.array([structural_similarity(*pair, channel_axis=0, data_range=1) for pair in pairs])
    nearness = 1 - np.linalg.norm(picture_lab[..., 1:] - true_lab[..., 1:], axis=-1) / WIDEST_DISTANCE
    nearness = nearness.clip(0)  # (N, H, W): the fraction of distances within which a pixel lies
    balanced = (weights * nearness).sum((1, 2)) / weights.sum((1, 2))
    return {
        "ssim": mean_and_per_image(ssim),
        "ciede2000": mean_and_per_image(deltaE_ciede2000(picture_lab, true_lab).mean((1, 2))),
        "auc": mean_and_per_image(nearness.mean((1, 2))),
        "balanced_auc": {"mean": np.average(nearness, weights=weights), "per_image": balanced},
    }


def rarity_weights(true_lab: np.ndarray) -> np.ndarray:
    """Return a weight for every pixel, (N, H, W), larger where its true color is rarer in ab.

    The inverse of its bin's frequency, smoothed by a Gaussian of 5 units (Zhang et al. 2016, equation 4, λ = 0).
    """
    from scipy.ndimage import gaussian_filter

    bins = np.floor(true_lab[..., 1:] / BIN).astype(int) + 15  # ab reaches from -128 to 127
    counts = np.zeros((30, 30))
    np.add.at(counts, (bins[..., 0], bins[..., 1]), 1)
    shares = gaussian_filter(counts / counts.sum(), 5 / BIN)
    return 1 / shares[bins[..., 0], bins[..., 1]]


def print_metrics(metrics: dict[str, dict]) -> None:
    """Print the means of what measure() returned as a table, a row for each label."""
    values = {label: [both["mean"] for both in row.values()] for label, row in metrics.items()}
    rows = [[label, *("" if value is None else f"{value:#.4g}" for value in row)] for label, row in values.items()]
    print_table(["", *(NAMES.get(name, name) for name in next(iter(metrics.values())))], rows)
