"""From logits of palette colors to pictures: RGB (N, 3, H, W), float32 in 0..1."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from data import to_gray, to_rgb

TEMPERATURE = 0.6
CHROMA_GAIN = 1.1  # the mean of probable colors is paler than the truth
Palette = np.ndarray | Tensor | None  # colors (K, 3) in 0..1; None only in networks that predict RGB


def palette_tensor(palette: Palette, device: torch.device) -> Tensor:
    """Return a palette (K, 3) as float32 on a device."""
    return torch.as_tensor(palette, dtype=torch.float32, device=device)


def has_only_chromas(palette: np.ndarray) -> bool:
    """Return whether the gray of all colors is about 1/2, as data.py --chroma fits a palette."""
    return bool(abs(palette.mean(1) - 0.5).max() < 0.05)


def labels_to_rgb(labels: Tensor, palette: Palette) -> Tensor:
    """Turn labels (N, H, W) into pictures (N, 3, H, W) of the colors of a palette (K, 3)."""
    return palette_tensor(palette, labels.device)[labels.int()].permute(0, 3, 1, 2)


def annealed_mean(logits: Tensor, palette: Palette, temperature: float) -> Tensor:
    """Return the mean palette color under sharpened probabilities (Zhang et al. 2016, equation 5).

    As the temperature goes to 0 it approaches the most probable color; at 1 it is the expectation.
    (N, K, H, W) and (K, 3) -> (N, H, W, 3).
    """
    probabilities = (logits.permute(0, 2, 3, 1) / temperature).softmax(3)  # (N, H, W, K), no copy for channels-last
    return probabilities @ palette_tensor(palette, logits.device)


def decode_annealed_mean(
    logits: Tensor, palette: Palette, gray: Tensor, temperature: float = TEMPERATURE, gain: float = CHROMA_GAIN
) -> Tensor:
    """Add the annealed mean's chroma to gray (N, 1, H, W): (N, K, H, W), (K, 3) -> (N, 3, H, W).

    The chroma is averaged over 3x3 pixels with weights 1-2-1 in each direction, since the network chooses every pixel's
    color for itself, and multiplied by `gain`. Zhang et al. use a temperature of 0.38 alone, which is
    further from the truth at the same colorfulness (docs/pictures.md).
    """
    colors = pad(annealed_mean(logits, palette, temperature).permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate")
    colors = avg_pool2d(avg_pool2d(colors, 2, stride=1), 2, stride=1)  # (N, 3, H, W)
    return apply_chroma(colors, gray, gain)


def apply_chroma(colors: Tensor, gray: Tensor, gain: float = 1.0) -> Tensor:
    """Add `gain` times the chroma of colors (N, 3, H, W), their difference from their own mean, to gray (N, 1, H, W).

    All values are in 0..1, and the mean of R, G and B remains the gray. Where a value would leave 0..1, all three
    differences are scaled down equally, which keeps gray and hue.
    """
    chroma = gain * (colors - colors.mean(1, keepdim=True))
    room = torch.where(chroma > 0, 1 - gray, gray)
    scale = (room / chroma.abs().clamp_min(1e-6)).amin(1, keepdim=True).clamp_max(1)
    return gray + scale * chroma


def chroma_error(logits: Tensor, palette: Tensor, images: Tensor, temperature: float) -> Tensor:
    """Return the mean squared error of the annealed mean's chroma, over RGB in [0, 1), as a loss.

    (N, K, H, W), (K, 3) and uint8 images (N, 3, H, W) -> (). The chroma is taken before decode_annealed_mean() averages
    it and makes it more vivid, so that it can be the mean that the cross-entropy also asks for.
    """
    errors = annealed_mean(logits, palette, temperature) - to_rgb(images.permute(0, 2, 3, 1))
    return (errors - errors.mean(3, keepdim=True)).square().mean()


def comparison_rows(
    images: Tensor, targets: Tensor, outputs: Tensor, palette: np.ndarray | None, temperature: float = TEMPERATURE
) -> dict[str, Tensor]:
    """Return labeled rows of pictures of uint8 images: the network's input, its prediction, the truth.

    `targets` are labels (N, H, W) and `outputs` logits (N, K, H, W); without a palette both are RGB (N, 3, H, W). The
    colors of a palette of chromas are combined with the gray.
    """
    gray, truth = to_gray(images), to_rgb(images)
    rows = {"grayscale input": gray.expand(-1, 3, -1, -1)}
    if palette is None:
        rows["prediction"] = outputs.clamp(0, 1)
    else:
        rows["argmax decoding"] = labels_to_rgb(outputs.argmax(1), palette)
        rows["annealed-mean decoding"] = decode_annealed_mean(outputs, palette, gray, temperature)
        rows["quantized ground truth"] = labels_to_rgb(targets, palette)
        if has_only_chromas(palette):
            rows = {label: apply_chroma(picture, gray) for label, picture in rows.items()}
    return rows | {"ground truth": truth}


def with_inputs_gray(panels: dict[str, Tensor], palette: np.ndarray | None) -> dict[str, Tensor]:
    """Return comparison_rows() and the palette's best colors, or the prediction of RGB, with the gray of the input.

    Pictures of a palette of chromas have it already.
    """
    if palette is not None and has_only_chromas(palette):
        return panels
    label = "prediction" if palette is None else "quantized ground truth"
    return panels | {f"{label}, with the input's gray": apply_chroma(panels[label], panels["grayscale input"][:, :1])}
