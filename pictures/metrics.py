"""Metrics of colored pictures against the truth. Pictures are RGB (N, 3, H, W), float32 in 0..1."""

import torch
from torch import Tensor

from utils.console import print_table


def psnr(pictures: Tensor, truth: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB, from the mean squared error over all pixels."""
    return -10 * (pictures - truth).square().mean().log10().item()  # the peak is 1


def colorfulness(pictures: Tensor) -> Tensor:
    """Return the colorfulness M of each picture, (N,), for values in 0..255 (Hasler and Süsstrunk 2003, section 7)."""
    red, green, blue = (255 * pictures).flatten(2).unbind(1)  # (N, H·W) each
    opponents = torch.stack([red - green, (red + green) / 2 - blue])  # signed
    spread, mean = opponents.std(2, correction=0), opponents.mean(2)
    return spread.norm(dim=0) + 0.3 * mean.norm(dim=0)


def print_metrics(panels: dict[str, Tensor], truth: Tensor) -> None:
    """Print a table of the metrics of labeled pictures, and of the truth."""
    rows = [(label, f"{psnr(each, truth):.2f}", f"{colorfulness(each).mean():.1f}") for label, each in panels.items()]
    print_table(["", "PSNR (dB)", "colorfulness"], [*rows, ("ground truth", "", f"{colorfulness(truth).mean():.1f}")])
