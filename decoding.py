"""From scores of palette colors to a picture."""

import torch

TEMPERATURE = 0.38  # Zhang et al. 2016, section 2.3
CHROMA_GAIN = 1.03  # times the truth's color differences is what training for pictures asks for


def decode_argmax(logits, palette):
    """Return each pixel's most probable color: (N, K, H, W) and (K, 3) -> (N, 3, H, W) float32 in 0..1."""
    return labels_to_rgb(logits.argmax(1), palette)


def labels_to_rgb(labels, palette):
    """Return palette colors as a picture: labels (N, H, W) and (K, 3) -> (N, 3, H, W) float32 in 0..1."""
    return torch.as_tensor(palette, dtype=torch.float32, device=labels.device)[labels.int()].permute(0, 3, 1, 2)


def decode_annealed_mean(logits, palette, gray, temperature=TEMPERATURE):
    """Return the palette's mean under sharpened probabilities, laid over the gray that was given.

    That is the annealed mean (Zhang et al. 2016, equation 5): a temperature toward 0
    approaches the most probable color, 1 is the expectation. (N, K, H, W), (K, 3) and
    (N, 1, H, W) -> (N, 3, H, W), float32 in 0..1.
    """
    return apply_chroma(annealed_mean(logits, palette, temperature).permute(0, 3, 1, 2), gray)


def annealed_mean(logits, palette, temperature):
    """Return the annealed mean itself: (N, K, H, W) and (K, 3) -> (N, H, W, 3) float32 in 0..1."""
    probabilities = (logits.permute(0, 2, 3, 1) / temperature).softmax(3)  # (N, H, W, K), no copy for channels-last
    return probabilities @ torch.as_tensor(palette, dtype=torch.float32, device=logits.device)


def chroma_error(logits, palette, images, temperature):
    """Return the mean squared error of the smooth picture's color differences, over RGB in [0, 1).

    It is that of decode_annealed_mean() where all differences fit, from a truth a little more
    vivid than it is, since the least error alone is pale: (N, K, H, W), (K, 3) and
    uint8 images (N, 3, H, W) -> (). The gray is given, and adds nothing.
    """
    predicted = annealed_mean(logits, palette, temperature)
    wanted = images.permute(0, 2, 3, 1).float() / 256
    errors = predicted - predicted.mean(3, keepdim=True) - CHROMA_GAIN * (wanted - wanted.mean(3, keepdim=True))
    return errors.square().mean()


def apply_chroma(colors, gray):
    """Give gray (N, 1, H, W) in 0..1 the colors of (N, 3, H, W): their differences from their own mean.

    The mean of R, G, B is then the gray. Where a difference does not fit into 0..1
    all three shrink alike, which keeps gray and hue.
    """
    differences = colors - colors.mean(1, keepdim=True)
    room = torch.where(differences > 0, 1 - gray, gray)
    fits = (room / differences.abs().clamp_min(1e-6)).amin(1, keepdim=True).clamp_max(1)
    return gray + fits * differences
