"""Evaluation: exact for any batch size, in evaluation mode, without gradients."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from data import ImageDataset, ImageSource, to_gray
from models import Network, device_of, predict
from pictures.decoding import TEMPERATURE, comparison_rows, with_inputs_gray
from pictures.metrics import colorfulness, psnr
from pictures.plots import preload_matplotlib, save_image_grid
from utils import distributed
from utils.checkpoint import Checkpoint, file_stem
from utils.console import print_table
from utils.files import check_targets

METRICS = ("loss", "accuracy")  # a regression has no accuracy
NUM_SAMPLES = 10  # images in a sample picture


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats per pixel of logits (N, K, H, W) and labels (N, H, W)."""
    logits = logits.permute(0, 2, 3, 1).flatten(0, 2)  # (N·H·W, K), without a copy for channels-last
    return F.cross_entropy(logits, labels.flatten().long())


def batch_metrics(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return a batch's metrics as one tensor: (loss, accuracy) for labels, (mean squared error,) for RGB."""
    if targets.is_floating_point():
        return F.mse_loss(outputs, targets)[None]
    accuracy = (outputs.argmax(1) == targets).float().mean()  # the share of pixels whose most probable color is right
    return torch.stack([cross_entropy(outputs, targets), accuracy])


def evaluate(
    net: Network,
    dataset: ImageDataset,
    batch_size: int = 100,  # what fits into a CPU's cache
    on_batch: Callable[[Tensor, Tensor, Tensor], object] | None = None,
) -> dict[str, float]:
    """Return the metrics of a network over a whole dataset, {"loss": …, "accuracy": …}.

    Calls `on_batch` with every batch's images, targets and outputs. Each of several processes evaluates its shard.
    """
    sums = torch.zeros(2 if dataset.is_classification else 1, device=device_of(net))
    shard = dataset.images[distributed.rank() :: distributed.world_size()]
    for images in shard.split(batch_size) if len(shard) else ():
        targets, outputs = dataset.targets(images), predict(net, to_gray(images))
        sums += len(images) * batch_metrics(outputs, targets)
        if on_batch:
            on_batch(images, targets, outputs)
    return dict(zip(METRICS, (distributed.all_reduce_sum(sums) / len(dataset)).tolist()))


def format_metrics(loss: float, accuracy: float | None = None) -> str:
    """Return validation metrics as a line of text; a regression has no accuracy."""
    if accuracy is None:
        return f"validation mean squared error {loss:.6f} (RGB in [0, 1))"
    return f"validation loss {loss:.5f}, accuracy {accuracy:.2%}"


def run_validation(
    net: Network,
    checkpoint: Checkpoint,
    source: ImageSource,
    out_dir: Path,
    temperature: float = TEMPERATURE,
    inputs: Iterable[Path | None] = (),
) -> None:
    """Evaluate a network: print its metrics and those of its pictures, and draw the first ten.

    `inputs` are the files that the network and its palette came from. Raises UserError.
    """
    path = out_dir / f"{file_stem(checkpoint.model)}_valid.png"
    check_targets([path], (source.path, *inputs))
    preload_matplotlib()
    valid_set = source.validation_set(checkpoint.palette, device_of(net))
    metrics, panels = evaluate_pictures(net, valid_set, temperature)
    print(f"{checkpoint}\n{len(valid_set):,} images of {source}: {format_metrics(**metrics)}")
    title = f"{checkpoint.model}, {source}: {format_metrics(**metrics)}"
    save_image_grid(path, title, {label: panel[:NUM_SAMPLES] for label, panel in panels.items()})
    print(f"saved {path}")
    truth = panels.pop("ground truth")
    panels = with_inputs_gray(panels, checkpoint.palette)
    rows = [(label, f"{psnr(each, truth):.2f}", f"{colorfulness(each).mean():.1f}") for label, each in panels.items()]
    print_table(["", "PSNR (dB)", "colorfulness"], [*rows, ("ground truth", "", f"{colorfulness(truth).mean():.1f}")])


def evaluate_pictures(
    net: Network, dataset: ImageDataset, temperature: float = TEMPERATURE
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return the metrics of a network over a whole dataset, and the labeled rows of its pictures, on the CPU."""
    batches: list[dict[str, Tensor]] = []
    colors = dataset.palette, temperature
    metrics = evaluate(net, dataset, on_batch=lambda x, y, out: batches.append(comparison_rows(x, y, out, *colors)))
    return metrics, {label: torch.cat([batch[label] for batch in batches]).cpu() for label in batches[0]}


def draw_samples(path: Path, title: str, net: Network, dataset: ImageDataset, temperature: float = TEMPERATURE) -> None:
    """Draw the first ten images of a dataset, a network's predictions for them, and the truth."""
    images = dataset.images[:NUM_SAMPLES]
    outputs = predict(net, to_gray(images))
    rows = comparison_rows(images, dataset.targets(images), outputs, dataset.palette, temperature)
    save_image_grid(path, title, rows)
