"""Metrics of colored pictures against the truth. Pictures are RGB (N, 3, H, W), float32 in 0..1."""

import torch
from torch import Tensor


def psnr(pictures: Tensor, truth: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB, from the mean squared error over all pixels."""
    return -10 * (pictures - truth).square().mean().log10().item()  # the peak is 1


def colorfulness(pictures: Tensor) -> Tensor:
    """Return the colorfulness M of each picture, (N,), for values in 0..255 (Hasler and Süsstrunk 2003, section 7)."""
    red, green, blue = (255 * pictures).flatten(2).unbind(1)  # (N, H·W) each
    opponents = torch.stack([red - green, (red + green) / 2 - blue])  # signed
    spread, mean = opponents.std(2, correction=0), opponents.mean(2)
    return spread.norm(dim=0) + 0.3 * mean.norm(dim=0)
