"""Data augmentation: random transforms of training images, uint8 (N, 3, H, W), drawn for each image independently.

They may move pixels, but not make new colors: only those that occur in the images have labels (data.py).
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def augment(images: Tensor, names: Iterable[str]) -> Tensor:
    """Apply the named transforms of AUGMENTATIONS, one after the other."""
    for name in names:
        images = AUGMENTATIONS[name](images)
    return images


def flip(images: Tensor, dim: int) -> Tensor:
    """Flip each image along a dimension, with probability 1/2."""
    chosen = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(chosen, images.flip(dim), images)


def shift(images: Tensor, dim: int) -> Tensor:
    """Shift each image along a dimension by -1, 0 or 1 pixel, equally often, with reflection padding."""
    size = images.shape[dim]
    padded = torch.cat([images.narrow(dim, 1, 1), images, images.narrow(dim, size - 2, 1)], dim)
    step = torch.randint(-1, 2, (len(images), 1, 1, 1), device=images.device)
    shifted = torch.where(step == 1, padded.narrow(dim, 0, size), padded.narrow(dim, 2, size))
    return torch.where(step == 0, images, shifted)


AUGMENTATIONS = {
    "mirror": lambda images: flip(images, 3),
    "upside-down": lambda images: flip(images, 2),
    "shift-x": lambda images: shift(images, 3),
    "shift-y": lambda images: shift(images, 2),
}
