"""Each random transform: what it does, and how often."""

import math

import pytest
import torch

import colorization
from training.augmentation import AUGMENTATIONS, augment


def test_augmentation_mirrors_and_moves_all_channels_alike():
    torch.manual_seed(0)
    images = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(500, 3, 8, 8)
    moved = augment(images, ["mirror", "shift-x", "shift-y"])
    assert torch.equal(moved[:, 1], moved[:, 0])
    seen = {tuple(image.flatten().tolist()) for image in moved[:, 0]}
    assert len(seen) == 2 * 3 * 3
    assert tuple(images[0, 0].flatten().tolist()) in seen
    assert tuple(images[0, 0].flip(1).flatten().tolist()) in seen
    down = torch.cat([images[0, 0, 1:2], images[0, 0, :-1]])  # one pixel lower, the border mirrored
    assert tuple(down.flatten().tolist()) in seen


@pytest.mark.parametrize("way, count", [("mirror", 2), ("upside-down", 2), ("shift-x", 3), ("shift-y", 3)])
def test_each_way_of_augmentation_alone(way, count):
    image = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    images = augment(image.expand(100, 3, 8, 8), [way])
    seen = {tuple(image.flatten().tolist()) for image in images[:, 0]}
    assert len(seen) == count
    changed = {
        "mirror": image.flip(3),
        "upside-down": image.flip(2),
        "shift-x": torch.cat([image[..., 1:2], image[..., :-1]], 3),
        "shift-y": torch.cat([image[:, :, 1:2], image[:, :, :-1]], 2),
    }
    assert {tuple(image.flatten().tolist()), tuple(changed[way].flatten().tolist())} <= seen
    assert torch.equal(augment(image, []), image)


def test_each_augmentation_is_as_likely_as_promised():
    """A flip with probability 1/2; shifts by -1, 0 and 1 a third each. 6,000 images: four standard deviations."""
    torch.manual_seed(0)
    image = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    for way in AUGMENTATIONS:
        moved = augment(image.expand(6000, 3, 8, 8), [way])[:, 0].flatten(1)
        counts = torch.unique(moved, dim=0, return_counts=True)[1]
        expected = 6000 / len(counts)
        assert (counts - expected).abs().max() < 4 * math.sqrt(expected * (1 - 1 / len(counts)))


def test_an_augmentation_is_added_in_one_place(monkeypatch):
    monkeypatch.setitem(AUGMENTATIONS, "quarter-turn", lambda images: images.rot90(1, (2, 3)))
    image = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
    assert torch.equal(augment(image, ["quarter-turn"]), image.rot90(1, (2, 3)))
    assert "quarter-turn" in colorization.parse(["--augment", "quarter-turn"]).augment


def test_colors_without_a_label_are_not_learned(cifar, small_palette, monkeypatch):
    monkeypatch.setitem(AUGMENTATIONS, "darker", lambda images: images // 2)
    flags = ["-f", "2", "-c", str(small_palette), "--augment", "darker", "--device", "cpu"]
    with pytest.raises(IndexError, match="Target 255 is out of bounds"):
        colorization.main(["-e", "1", "-b", "8", *flags])


def test_a_shift_reflects_both_edges():
    image = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    torch.manual_seed(0)
    for way, dim in (("shift-x", 3), ("shift-y", 2)):
        seen = {tuple(image.flatten().tolist()) for image in augment(image.expand(100, 3, 8, 8), [way])[:, 0]}
        back = torch.cat([image.narrow(dim, 1, 7), image.narrow(dim, 6, 1)], dim)
        assert tuple(back.flatten().tolist()) in seen
