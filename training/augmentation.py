"""Data augmentation: random transforms of training images."""

import torch

AUGMENTATIONS = ("mirror", "upside-down", "shift-x", "shift-y")


def augment(images, transforms):
    """Apply the named transforms of AUGMENTATIONS to each of the images (N, C, H, W) at random.

    "mirror" and "upside-down" flip an image with probability 1/2; "shift-x" and "shift-y" shift it
    by -1, 0 or 1 pixel, with reflection padding.
    """
    count, channels, height, width = images.shape
    device = images.device

    def source_indices(size, shift, flip):
        """Return the source row or column of each pixel, (N, size)."""
        indices = torch.arange(size, device=device)
        if shift in transforms:
            indices = (indices + torch.randint(-1, 2, (count, 1), device=device)).abs()
            indices = size - 1 - (size - 1 - indices).abs()  # reflected at both ends
        if flip in transforms:
            indices = torch.where(torch.rand(count, 1, device=device) < 0.5, size - 1 - indices, indices)
        return indices.expand(count, size)

    rows, columns = source_indices(height, "shift-y", "upside-down"), source_indices(width, "shift-x", "mirror")
    places = (rows[:, :, None] * width + columns[:, None]).view(count, 1, -1)  # (N, 1, H·W)
    return images.flatten(2).gather(2, places.expand(-1, channels, -1)).view_as(images)
