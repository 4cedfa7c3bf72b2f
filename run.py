"""A run of training or of validation: the files it reads and writes, its lines, and how to continue it."""

import csv
import hashlib
import platform
import shlex
import sys
import time
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np
import torch

import distributed
from checkpoint import read_torch_file, save_checkpoint, write_torch_file
from console import UserError
from data import ImageDataset, subsample, to_gray
from decoding import apply_chroma, comparison_rows
from evaluation import METRICS, batch_metrics, format_metrics, predictions
from files import atomic_write, check_writable, write_json
from loop import Trainer, choose_precision, train
from metrics import measure, print_metrics
from models import device_of, file_name, predict
from plots import save_curve, save_image_grid

STATE_FORMAT = "colorization training state 2"
SAMPLES = 10  # images in a picture of samples


class RunPaths(NamedTuple):
    """The files that a run of training writes."""

    checkpoint: object  # the weights after the last epoch
    best: object  # the weights after the epoch with the lowest validation loss
    history: object  # the metrics of every epoch, CSV
    curve: object
    samples: object
    metadata: object  # what it takes to repeat the run, JSON
    state: object  # what it takes to resume it

    @classmethod
    def of(cls, checkpoint, out_dir):
        """Return the paths of a run that saves its weights at `checkpoint` and everything else in `out_dir`."""
        best = checkpoint.with_name(f"{checkpoint.stem}_best.pkl")
        endings = (".csv", "_curve.png", "_images.png", ".json", ".state")
        return cls(checkpoint, best, *(out_dir / f"{checkpoint.stem}{ending}" for ending in endings))


class RunLog:
    """Writes what a run leaves after every epoch; `history` are the epochs' rows of metrics."""

    def __init__(self, paths, checkpoint, settings, metadata, history, epochs):
        self.paths, self.checkpoint, self.settings, self.metadata = paths, checkpoint, settings, metadata
        self.history, self.epochs = history, epochs
        self.start = time.perf_counter()

    def write(self, row, trainer):
        """Write the checkpoints, the metrics and the state of training after an epoch, and print its line."""
        history = [*self.history, row]
        if distributed.rank() == 0:
            state_dict = trainer.averaged_model.state_dict()
            self.checkpoint = replace(self.checkpoint, epoch=row["epoch"], metrics=row, state_dict=state_dict)
            save_checkpoint(self.paths.checkpoint, self.checkpoint)
            if row["valid_loss"] == min(row["valid_loss"] for row in history):
                save_checkpoint(self.paths.best, self.checkpoint)
            write_history(self.paths.history, history)
            ended = {"epochs": row["epoch"], "seconds": time.perf_counter() - self.start}
            write_json(self.paths.metadata, self.metadata | ended)
            state = {"format": STATE_FORMAT, "settings": self.settings, "history": history}
            write_torch_file(self.paths.state, state | {"trainer": trainer.state_dict()})
        self.history = history  # only now is the epoch complete
        line = f"epoch {row['epoch']:3}/{self.epochs}   training loss {row['train_loss']:.5f}"
        print(f"{line}   {format_metrics(validation_metrics(row))}   {row['seconds']:.1f} s", flush=True)

    def interrupted(self):
        """Return what to say when the run is interrupted."""
        if not self.history:
            return "stopped before the first epoch was complete: nothing is saved"
        return (
            f"stopped; epoch {len(self.history)} of {self.epochs} is saved, and the same command with --resume goes on"
        )


def run_training(net, checkpoint, source, config, out_dir, path=None, start_from=None, resume=False, plot=False):
    """Train a network, and write its weights, metrics and pictures; return the metrics of every epoch.

    The weights go to `path`, by default a file in `out_dir` named after the network. `start_from`
    is the file that the network's weights came from, if any. `resume` continues the stopped run of
    the same arguments; `plot` draws samples after every epoch. Raises UserError.
    """
    device, palette = device_of(net), checkpoint.palette
    default_name = file_name(checkpoint.model, checkpoint.kernel, checkpoint.num_filters)
    paths = RunPaths.of(path or out_dir / default_name, out_dir)
    for target in paths:
        check_writable(target)
    dataset = ImageDataset(source.training_images(), palette, device)
    valid = ImageDataset(source.validation_images(), palette, device)
    check_batch_size(config.batch_size, len(dataset))
    settings = run_settings(checkpoint, source, config, start_from)
    history, state = load_state(paths.state, settings, config.epochs) if resume else ([], None)
    several = f" in {distributed.world_size()} processes" if distributed.world_size() > 1 else ""
    counts = f"{len(dataset):,} training and {len(valid):,} validation images"
    print(f"{checkpoint}\n{counts} of {source}, on {device}{several}", flush=True)

    precision, loss_terms = choose_precision(config.precision, device), (config.rebalance, config.picture_weight)
    trainer = Trainer(net, dataset, config.augment, precision, *loss_terms, config.temperature)
    if state:
        trainer.load_state_dict(state)
    metadata = run_metadata(settings, dataset)
    log = RunLog(paths, replace(checkpoint, data=str(source)), settings, metadata, history, config.epochs)
    try:
        for row in train(trainer, valid, config, done=len(history)):
            log.write(row, trainer)
            if plot and distributed.rank() == 0:
                sample_path = out_dir / f"{paths.checkpoint.stem}_epoch{row['epoch']:03}.png"
                save_samples(
                    sample_path, f"{checkpoint.model} after epoch {row['epoch']}", net, valid, config.temperature
                )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(log.interrupted()) from None
    if distributed.rank() == 0:
        title = f"{checkpoint.model}, {source}, {config.epochs} epochs"
        save_curve(paths.curve, title, log.history)
        metrics = validation_metrics(log.history[-1])
        save_samples(paths.samples, f"{title}: {format_metrics(metrics)}", net, valid, config.temperature)
        print(f"saved {', '.join(map(str, paths[:5]))}")
    return log.history


def run_validation(net, checkpoint, source, out_dir, temperature, json_path=None):
    """Measure a network, print its metrics and those of its pictures, and draw ten of them.

    With `json_path` also the metrics that take seconds, and those of every image in that file. Raises UserError.
    """
    valid = ImageDataset(source.validation_images(), checkpoint.palette, device_of(net))
    sums, batches = 0, []
    for images, targets, outputs in predictions(net, valid):
        sums = sums + len(images) * batch_metrics(outputs, targets).double()
        batches.append(comparison_rows(images, targets, outputs, checkpoint.palette, temperature))
    rows = {label: torch.cat([batch[label] for batch in batches]).cpu() for label in batches[0]}
    metrics = dict(zip(METRICS, (sums / len(valid)).tolist()))
    print(f"{checkpoint}\n{len(valid):,} images of {source}: {format_metrics(metrics)}")
    path = out_dir / f"{checkpoint.model.lower()}_valid.png"
    samples = {label: row[:SAMPLES] for label, row in rows.items()}
    save_image_grid(path, f"{checkpoint.model}: {format_metrics(metrics)}", samples)
    print(f"saved {path}")

    gray = rows["gray input"][:, :1]
    if checkpoint.palette is not None:
        rows["truth in palette colors, smooth"] = apply_chroma(rows["truth in palette colors"], gray)
    if json_path:
        mean = subsample(source.training_images()).mean((0, 2, 3), dtype=torch.float32) / 256
        rows["mean training color"] = apply_chroma(mean.view(1, 3, 1, 1), gray)
    pictures = measure(rows, rows["truth"], perceptual=bool(json_path))
    print_metrics(pictures)
    if json_path:
        described = {"model": checkpoint.model, "data": str(source), **metrics, "temperature": temperature}
        write_json(json_path, described | {"pictures": pictures})
        print(f"saved {json_path}")


def save_samples(path, title, net, dataset, temperature):
    """Draw the first ten images of a dataset, what a network predicts for them, and the truth."""
    images = dataset.images[:SAMPLES].to(device_of(net))
    outputs = predict(net, to_gray(images))
    save_image_grid(
        path, title, comparison_rows(images, dataset.targets(images), outputs, dataset.palette, temperature)
    )


def check_batch_size(batch_size, num_images):
    """Raise UserError unless a batch has an image for every process, and no more than there are."""
    if batch_size > num_images:
        raise UserError(f"--batch-size {batch_size}: there are only {num_images:,} training images")
    if batch_size < distributed.world_size():
        raise UserError(f"--batch-size {batch_size}: fewer images than the {distributed.world_size()} processes")


def validation_metrics(row):
    """Return the validation metrics in an epoch's row, as evaluate() names them."""
    return {name: row[f"valid_{name}"] for name in METRICS if f"valid_{name}" in row}


def run_settings(checkpoint, source, config, start_from):
    """Return what a resumed run must have in common with the stopped one."""
    network = {name: getattr(checkpoint, name) for name in ("model", "kernel", "num_filters")}
    palette = None if checkpoint.palette is None else checkpoint.palette.tolist()
    images = {"data": str(source), "holdout": source.holdout}
    return network | asdict(config) | images | {"palette": palette, "start_from": start_from and str(start_from)}


def load_state(path, settings, epochs):
    """Return a stopped run's (history, state of its trainer).

    Raises UserError if there is none, if it is complete, or if its settings differ.
    """
    content = read_torch_file(path, "training state")
    parts = {"format", "settings", "history", "trainer"}
    if not isinstance(content, dict) or content.keys() != parts or content["format"] != STATE_FORMAT:
        raise UserError(f"{path}: not a training state of this version; train without --resume")
    for name, value in settings.items():
        earlier = content["settings"].get(name)
        if earlier != value:
            difference = "differs" if name == "palette" else f"was {earlier}, not {value}"
            raise UserError(f"{path}: cannot resume with other settings: {name.replace('_', ' ')} {difference}")
    history = content["history"]
    if len(history) >= epochs:
        raise UserError(f"{path}: this run is finished, all {epochs} epochs; train without --resume to start anew")
    return history, content["trainer"]


def write_history(path, history):
    """Write the metrics of all epochs to a CSV file, atomically."""
    with atomic_write(path, "w") as file:
        writer = csv.DictWriter(file, history[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)


def run_metadata(settings, dataset):
    """Return what it takes to repeat a run."""
    device = dataset.images.device
    return {
        "command": shlex.join(sys.argv),
        **settings,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
        "data_sha256": hashlib.sha256(subsample(dataset.images).cpu().contiguous().numpy()).hexdigest(),
    }
