"""A training or validation run: what it computes, prints and writes, and how it is resumed."""

import csv
import hashlib
import math
import platform
import reprlib
import shlex
import sys
from dataclasses import asdict, replace

import numpy as np
import torch

from data import ImageDataset, subsample, to_gray
from models import device_of, file_name, predict
from pictures.decoding import TEMPERATURE, apply_chroma, comparison_rows
from pictures.metrics import measure, print_metrics
from pictures.plots import save_curve, save_image_grid
from training.evaluation import evaluate, format_metrics
from training.loop import Trainer, train
from utils import distributed
from utils.checkpoint import read_torch_file, save_checkpoint, write_torch_file
from utils.console import UserError
from utils.files import PROJECT, atomic_write, check_targets, write_json

STATE_FORMAT = "colorization training state 3"
SUFFIXES = (".csv", ".json", ".state", "_curve.png", "_images.png")  # of a run's files in its output folder
NUM_SAMPLES = 10  # images in a sample picture


class RunLog:
    """Writes a run's files after every epoch; `history` is the list of the epochs' metrics.

    Files: the weights of the last and best epoch, the history (.csv), what it takes to repeat (.json), resume (.state).
    """

    def __init__(self, checkpoint, path, out_dir, inputs):
        self.checkpoint, self.path, self.out_dir = checkpoint, path, out_dir
        self.best_path, self.history = path.parent / f"{path.stem}_best.pkl", []
        if path.resolve().parent == PROJECT / "weights":
            raise UserError(
                f"{path}: training does not write to weights/, which has the shipped files; name another file"
            )
        check_targets((path, self.best_path, *map(self.path_for, SUFFIXES)), inputs)

    def path_for(self, suffix):
        """Return the path of the run's file with this suffix."""
        return self.out_dir / f"{self.path.stem}{suffix}"

    def write(self, row, trainer):
        """Write the files after an epoch, and print its line."""
        history = [*self.history, row]
        if distributed.rank() == 0:
            state_dict = trainer.averaged_model.state_dict()
            checkpoint = replace(self.checkpoint, epoch=row["epoch"], metrics=row, state_dict=state_dict)
            save_checkpoint(self.path, checkpoint)
            if row["valid_loss"] == min(earlier["valid_loss"] for earlier in history):
                save_checkpoint(self.best_path, checkpoint)
            with atomic_write(self.path_for(".csv"), "x") as file:
                writer = csv.DictWriter(file, row, lineterminator="\n")
                writer.writeheader()
                writer.writerows(history)
            progress = {"epochs_done": row["epoch"], "seconds": sum(row["seconds"] for row in history)}
            write_json(self.path_for(".json"), self.settings | environment(trainer.device) | progress)
            state = {"format": STATE_FORMAT, "settings": self.settings, "history": history}
            write_torch_file(self.path_for(".state"), state | {"trainer": trainer.state_dict()})
        self.history = history  # the epoch is complete only now
        line = f"epoch {row['epoch']:3}/{self.settings['epochs']}   training loss {row['train_loss']:.5f}"
        metrics = format_metrics(row["valid_loss"], row.get("valid_accuracy"))
        print(f"{line}   {metrics}   {row['seconds']:.1f} s", flush=True)

    def load_state(self):
        """Return a run's (history, trainer's state). Raises UserError if none fits, some exception if it is damaged."""
        path = self.path_for(".state")
        content = read_torch_file(path, "training state", "check --out-dir, or train without --resume")
        if not isinstance(content, dict) or content.get("format") != STATE_FORMAT:
            raise UserError(f"{path}: not a training state of this version; train without --resume")
        for name, value in self.settings.items():
            earlier = content["settings"].get(name)
            if earlier != value:
                difference = f"{name.replace('_', ' ')} was {reprlib.repr(earlier)} and is now {value!r}"
                difference = {"palette": "another palette", "data_sha256": "other images"}.get(name, difference)
                raise UserError(f"{path}: cannot resume with other settings: {difference}")
        history = content["history"]
        names = {*history[0], "train_loss", "valid_loss", "seconds"}
        for epoch, row in enumerate(history, 1):
            if row["epoch"] != epoch or row.keys() != names or not all(map(math.isfinite, row.values())):
                raise ValueError("an epoch is missing or incomplete")
        if len(history) > self.settings["epochs"]:
            raise ValueError("too many epochs")
        return history, content["trainer"]


def run_training(net, checkpoint, source, config, out_dir, path, start_from, resume, plot, inputs=()):
    """Train a network, and write its weights, metrics and pictures.

    The weights go to `path`; None means a file in `out_dir` named after the network. `start_from` is the
    file that the network's weights came from, if any; `inputs` are other files that were read. `resume`
    continues the interrupted run with the same arguments; `plot` draws samples after every epoch. Raises UserError.
    """
    device, is_first = device_of(net), distributed.rank() == 0
    path = path or out_dir / file_name(checkpoint.model, checkpoint.kernel, checkpoint.num_filters)
    log = RunLog(replace(checkpoint, data=str(source)), path, out_dir, (start_from, source.path, *inputs))
    dataset = ImageDataset(source.training_images(), checkpoint.palette, device)
    valid = ImageDataset(source.validation_images(), checkpoint.palette, device)
    if config.batch_size > len(dataset):
        raise UserError(f"--batch-size {config.batch_size}: there are only {len(dataset):,} training images")
    if config.batch_size < distributed.world_size():
        raise UserError(f"--batch-size {config.batch_size}: fewer images than the {distributed.world_size()} processes")
    trainer = Trainer(net, dataset, config)
    precision = str(trainer.dtype).removeprefix("torch.")
    log.settings = run_settings(checkpoint, source, config, start_from, dataset) | {"precision": precision}
    if resume:
        resume_training(trainer, log)
    several = f" in {distributed.world_size()} processes" if distributed.world_size() > 1 else ""
    counts = f"{len(dataset):,} training and {len(valid):,} validation images"
    print(f"{checkpoint}\n{counts} of {source}, on {device} in {precision}{several}", flush=True)
    try:
        new_images = source.training_crops if source.is_album else None
        for row in train(trainer, valid, new_images, epochs_done=len(log.history)):
            log.write(row, trainer)
            if plot and is_first:
                title, ending = f"{checkpoint.model} after epoch {row['epoch']}", f"_epoch{row['epoch']:03}.png"
                save_samples(log.path_for(ending), title, net, valid, config.temperature)
    except KeyboardInterrupt:
        done = f"epoch {len(log.history)} of {config.epochs} is saved; to continue, repeat the command with --resume"
        nothing = "no epoch was complete, so nothing is saved"
        raise KeyboardInterrupt(f"stopped; {done if log.history else nothing}") from None
    except FloatingPointError as error:
        saved = f"{path} has the weights of epoch {len(log.history)}" if log.history else "no checkpoint was saved"
        advice = f"train again with a --learn-rate below {config.learning_rate:g}"
        raise UserError(f"{error}; {saved}: {advice}") from error
    if is_first:
        title, row = f"{checkpoint.model}, {source}, epoch {config.epochs}", log.history[-1]
        save_curve(log.path_for("_curve.png"), title, log.history)
        title += f": {format_metrics(row['valid_loss'], row.get('valid_accuracy'))}"
        save_samples(log.path_for("_images.png"), title, net, valid, config.temperature)
        print(f"saved {log.path}, {log.best_path}; {', '.join(str(log.path_for(ending)) for ending in SUFFIXES)}")


def run_validation(net, checkpoint, source, out_dir, temperature=TEMPERATURE, json_path=None, inputs=()):
    """Evaluate a network: print its metrics and those of its pictures, and draw the first ten.

    With `json_path`, also compute the slower metrics and write those of every image to that file. `inputs`
    are the files that the network and its palette came from. Raises UserError.
    """
    path = out_dir / f"{checkpoint.model.lower()}_valid.png"
    check_targets([path, json_path] if json_path else [path], (source.path, *inputs))
    valid = ImageDataset(source.validation_images(), checkpoint.palette, device_of(net))
    batches, settings = [], (checkpoint.palette, temperature)
    metrics = evaluate(net, valid, look=lambda *batch: batches.append(comparison_rows(*batch, *settings)))
    rows = {label: torch.cat([batch[label] for batch in batches]).cpu() for label in batches[0]}
    print(f"{checkpoint}\n{len(valid):,} images of {source}: {format_metrics(**metrics)}")
    samples = {label: row[:NUM_SAMPLES] for label, row in rows.items()}
    save_image_grid(path, f"{checkpoint.model}, {source}: {format_metrics(**metrics)}", samples)
    print(f"saved {path}")

    gray = rows["gray input"][:, :1]
    if checkpoint.palette is None:
        rows["prediction, over the gray"] = apply_chroma(rows["prediction"], gray)
    else:
        rows["truth in palette colors, over the gray"] = apply_chroma(rows["truth in palette colors"], gray)
    if json_path:
        mean = subsample(source.training_images()).mean((0, 2, 3), dtype=torch.float32) / 256
        rows["mean training color, over the gray"] = apply_chroma(mean.view(1, 3, 1, 1), gray)
    rows["truth"] = rows.pop("truth")  # last
    pictures = measure(rows, rows["truth"], perceptual=bool(json_path))
    print_metrics(pictures)
    if json_path:
        described = {"model": checkpoint.model, "data": str(source), **metrics, "temperature": temperature}
        write_json(json_path, described | {"pictures": pictures})
        print(f"saved {json_path}")


def save_samples(path, title, net, dataset, temperature):
    """Draw the first ten images of a dataset, a network's predictions for them, and the truth."""
    images, targets = dataset.split(dataset.pixels[:NUM_SAMPLES].to(device_of(net)))
    outputs = predict(net, to_gray(images))
    save_image_grid(path, title, comparison_rows(images, targets, outputs, dataset.palette, temperature))


def resume_training(trainer, log):
    """Continue where an interrupted run ended; rank 0 reads its state for all. Raises UserError."""
    try:
        content = log.load_state() if distributed.rank() == 0 else None
    except Exception as error:  # a damaged file's entries may be anything
        content = error
    content = distributed.broadcast_object_from_rank0(content)
    if isinstance(content, UserError):
        raise content
    try:
        log.history, state = content
        trainer.load_state_dict(state)
    except Exception as error:
        raise UserError(f"{log.path_for('.state')}: a damaged training state; train without --resume") from error


def run_settings(checkpoint, source, config, start_from, dataset):
    """Return the settings that a resumed run must share with the interrupted one."""
    network = {name: getattr(checkpoint, name) for name in ("model", "kernel", "num_filters")}
    palette = None if checkpoint.palette is None else checkpoint.palette.tolist()
    settings = network | asdict(config) | {"data": str(source), "holdout": source.holdout}
    if source.is_album:
        settings["working_size"] = source.working_size
    if not config.picture_weight:
        del settings["temperature"]  # of the pictures alone
    sha256 = hashlib.sha256(subsample(dataset.images).cpu().contiguous().numpy()).hexdigest()
    settings["augment"] = list(config.augment)  # as --augment gives it
    return settings | {"palette": palette, "start_from": start_from and str(start_from), "data_sha256": sha256}


def environment(device):
    """Return the command and what it ran on."""
    return {
        "command": shlex.join(sys.argv),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
    }
