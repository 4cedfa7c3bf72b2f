"""Data augmentation: random transforms of training images."""

import torch

AUGMENTATIONS = ("mirror", "upside-down", "shift-x", "shift-y")


def augment(images, transforms):
    """Apply the named transforms of AUGMENTATIONS to each of the images (N, C, H, W) at random.

    "mirror" and "upside-down" flip an image with probability 1/2; "shift-x" and "shift-y" shift it
    by -1, 0 or 1 pixel, with reflection padding.
    """
    count, _, height, width = images.shape
    device = images.device

    def source_indices(size, shift, flip):
        """Return the source row or column of each pixel, (N, size)."""
        offset = torch.randint(-1, 2, (count, 1), device=device) if shift in transforms else 0
        indices = (torch.arange(size, device=device) + offset).abs().expand(count, size)
        indices = torch.where(indices < size, indices, 2 * (size - 1) - indices)
        if flip in transforms:
            indices = torch.where(torch.rand(count, 1, device=device) < 0.5, indices.flip(1), indices)
        return indices

    rows, columns = source_indices(height, "shift-y", "upside-down"), source_indices(width, "shift-x", "mirror")
    images = images.gather(2, rows.view(count, 1, height, 1).expand_as(images))
    return images.gather(3, columns.view(count, 1, 1, width).expand_as(images))
