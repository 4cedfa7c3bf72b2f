"""From logits to pictures, by hand."""

import numpy as np
import pytest
import torch
from helpers import THREE_COLORS, random_images, some_pictures

from data import to_gray, to_rgb
from pictures.decoding import (
    CHROMA_GAIN,
    annealed_mean,
    apply_chroma,
    chroma_error,
    comparison_rows,
    decode_annealed_mean,
    labels_to_rgb,
)


def test_decoding_by_hand():
    logits = torch.tensor([0.0, 1.0, 0.5]).view(1, 3, 1, 1)
    assert torch.allclose(labels_to_rgb(logits.argmax(1), THREE_COLORS).flatten(), torch.tensor([0.9, 0.3, 0.3]))
    gray = torch.full((1, 1, 1, 1), 0.4)
    odds = np.exp(np.array([0, 1, 0.5]) / 0.6)
    mean = odds @ THREE_COLORS / odds.sum()
    expected = 1.1 * (mean - mean.mean()) + 0.4
    assert torch.allclose(
        decode_annealed_mean(logits, THREE_COLORS, gray).flatten(), torch.tensor(expected).float(), atol=1e-6
    )
    most_probable = labels_to_rgb(logits.argmax(1), THREE_COLORS)
    cold = decode_annealed_mean(logits, THREE_COLORS, gray, 0.01)
    assert torch.allclose(cold, apply_chroma(most_probable, gray, CHROMA_GAIN), atol=1e-6)


def test_the_smooth_prediction_averages_the_chroma_of_neighbors():
    logits = torch.full((1, 3, 5, 5), -1000.0)
    logits[:, 0] = 0
    logits[:, :, 2, 2] = torch.tensor([-1000.0, 0.0, -1000.0])  # one pixel of another color
    gray = torch.full((1, 1, 5, 5), 0.5)
    base, other = (torch.tensor(color - color.mean()).float() for color in THREE_COLORS[:2])
    kernel = torch.tensor([1.0, 2, 1]) / 4
    share = torch.zeros(5, 5)
    share[1:4, 1:4] = kernel[:, None] * kernel
    chroma = base.view(3, 1, 1) + share * (other - base).view(3, 1, 1)
    assert torch.allclose(decode_annealed_mean(logits, THREE_COLORS, gray)[0], 0.5 + CHROMA_GAIN * chroma, atol=1e-6)


def test_color_error_is_that_of_the_mean_color():
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(110, 146, (2, 3, 8, 8), generator=generator, dtype=torch.uint8)  # any difference fits
    logits = torch.randn(2, 3, 8, 8, generator=generator)
    gray = images.float().mean(1, keepdim=True) / 256
    picture = apply_chroma(annealed_mean(logits, THREE_COLORS, 0.7).permute(0, 3, 1, 2), gray)
    expected = (picture - images.float() / 256).square().mean().item()
    assert chroma_error(logits, THREE_COLORS, images, 0.7).item() == pytest.approx(expected, rel=1e-5)
    shifted = images + 20  # the gray does not matter
    assert chroma_error(logits, THREE_COLORS, shifted, 0.7).item() == pytest.approx(expected, rel=1e-5)


def test_the_gray_given_is_kept_and_every_value_possible():
    gray = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    gray[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    laid = apply_chroma(some_pictures(2), gray)
    assert torch.allclose(laid.mean(1, keepdim=True), gray, atol=1e-6)
    assert laid.min() >= -1e-6 and laid.max() <= 1 + 1e-6


def test_rows_of_pictures():
    images, generator = random_images(2), torch.Generator().manual_seed(0)
    logits, labels = torch.randn(2, 3, 8, 8, generator=generator), torch.randint(3, (2, 8, 8), generator=generator)
    rows = comparison_rows(images, labels, logits, THREE_COLORS, 0.2)
    assert torch.equal(rows["annealed-mean decoding"], decode_annealed_mean(logits, THREE_COLORS, to_gray(images), 0.2))
    assert torch.equal(rows["argmax decoding"], labels_to_rgb(logits.argmax(1), THREE_COLORS))
    assert torch.equal(rows["quantized ground truth"], labels_to_rgb(labels, THREE_COLORS))
    assert torch.equal(rows["ground truth"], to_rgb(images))
    assert comparison_rows(images, images, logits, None)["prediction"].aminmax() == (0, 1)


def test_only_a_palette_of_chromas_is_drawn_with_the_gray():
    colors = np.array([[0.4, 0.4, 0.4], [0.5, 0.4, 0.3]])
    images, labels = torch.randint(64, 192, (2, 3, 4, 4), dtype=torch.uint8), torch.randint(2, (2, 4, 4))
    rows = comparison_rows(images, labels, torch.randn(2, 2, 4, 4), colors)
    assert torch.equal(rows["quantized ground truth"], labels_to_rgb(labels, colors))


def test_a_palette_of_chromas_is_drawn_with_the_gray():
    """Also one with a saturated chroma, which is clipped to 0..1, so that its mean is a little less than 1/2."""
    images = torch.randint(64, 192, (2, 3, 4, 4), dtype=torch.uint8)
    palette = np.array([[0.6, 0.45, 0.45], [0.4, 0.5, 0.6], [0.224, 0.224, 1]])
    labels, gray = torch.randint(2, (2, 4, 4)), to_gray(images)
    rows = comparison_rows(images, labels, torch.randn(2, 3, 4, 4), palette)
    for picture in rows.values():
        assert torch.allclose(picture.mean(1, keepdim=True), gray, atol=1e-5)
    expected = torch.from_numpy(palette - 0.5).float()[labels].permute(0, 3, 1, 2) + gray
    assert torch.allclose(rows["quantized ground truth"], expected, atol=1e-5)
