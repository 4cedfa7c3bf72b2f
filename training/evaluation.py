"""Evaluation: exact for any batch size, in evaluation mode, without gradients."""

import torch
import torch.nn.functional as F

from data import to_gray
from models import device_of, predict
from utils import distributed

METRICS = ("loss", "accuracy")  # a regression has no accuracy


def cross_entropy(logits, labels, class_weights=None):
    """Return the mean cross-entropy in nats per pixel of logits (N, K, H, W) and labels (N, H, W).

    Class weights (K,) multiply each pixel's loss; the mean is over pixels, so parts of a batch add up to the whole.
    """
    logits = logits.permute(0, 2, 3, 1).flatten(0, 2)  # (N·H·W, K), without a copy for channels-last
    return F.cross_entropy(logits, labels.flatten().long(), class_weights, reduction="sum") / len(logits)


def accuracy(logits, labels):
    """Return the share of pixels whose most probable color is their label."""
    logits = logits.detach().permute(0, 2, 3, 1).flatten(0, 2)  # (N·H·W, K), without a copy for channels-last
    return (logits.argmax(1) == labels.flatten()).float().mean()


def batch_metrics(outputs, targets):
    """Return a batch's metrics as one tensor: (loss, accuracy) for labels, (mean squared error,) for RGB."""
    if targets.is_floating_point():
        return F.mse_loss(outputs, targets)[None]
    return torch.stack([cross_entropy(outputs, targets), accuracy(outputs, targets)])


def evaluate(net, dataset, batch_size=None, look=lambda *batch: None):
    """Return the metrics of a network over a whole dataset, {"loss": …, "accuracy": …}.

    Calls `look` with every batch's (images, targets, outputs). Each of several processes evaluates its part.
    """
    device = device_of(net)
    batch_size = batch_size or (250 if device.type == "cuda" else 100)  # what fits into a CPU's cache
    sums = torch.zeros(1 if dataset.palette is None else 2, dtype=torch.float64, device=device)
    mine = dataset.pixels[distributed.rank() :: distributed.world_size()]
    for pixels in mine.split(batch_size) if len(mine) else ():
        images, targets = dataset.split(pixels.to(device))
        outputs = predict(net, to_gray(images))
        sums += len(images) * batch_metrics(outputs, targets)
        look(images, targets, outputs)
    return dict(zip(METRICS, (distributed.all_reduce_sum(sums) / len(dataset)).tolist()))


def format_metrics(loss, accuracy=None):
    """Return validation metrics as a line of text; a regression has no accuracy."""
    if accuracy is None:
        return f"validation mean squared error {loss:.6f} (RGB in [0, 1))"
    return f"validation loss {loss:.5f}, accuracy {accuracy:.2%}"
