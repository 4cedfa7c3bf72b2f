"""The files of a training run: what is written after every epoch, and how an interrupted run is resumed."""

import csv
import json
import math
import os
import platform
import reprlib
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from data import ImageDataset, ImageSource
from pictures.plots import save_curve
from training.evaluation import METRICS, format_metrics
from utils import distributed
from utils.checkpoint import Checkpoint, file_name, save_checkpoint
from utils.console import UserError
from utils.files import PROJECT, atomic_write, check_targets, file_identity, report_read_errors
from utils.torch_files import read_torch_file, write_torch_file

STATE_FORMAT = "colorization training state 5"
EPOCH_METRICS = ("epoch", "train_loss", *(f"valid_{name}" for name in METRICS), "learning_rate", "seconds")
SUFFIXES = (".csv", ".json", ".state", "_curve.png", "_images.png")  # of a run's files in its output folder


class RunLog:
    """Writes a run's files after every epoch; `history` is the list of the epochs' metrics.

    Files: the weights of the last and the best epoch, the history (.csv), what it takes to repeat the run (.json) and
    to resume it (.state). The weights go to `path`; None means a file in `out_dir` named after the network. `settings`
    are those that a resumed run must share. Raises UserError if a file cannot be written, or would replace another or
    one of `inputs`.
    """

    def __init__(
        self, checkpoint: Checkpoint, settings: dict, out_dir: Path, path: Path | None, inputs: Iterable[Path | None]
    ):
        self.checkpoint, self.settings, self.out_dir = checkpoint, settings, out_dir
        self.path = path or out_dir / file_name(checkpoint.model, checkpoint.kernel, checkpoint.num_filters)
        self.best_path = self.path.parent / f"{self.path.stem}_best.pkl"
        self.history: list[dict] = []
        if file_identity(Path(os.path.realpath(self.path)).parent) == file_identity(PROJECT / "weights"):
            advice = "training does not write to weights/, which has the shipped files; name another file"
            raise UserError(f"{self.path}: {advice}")
        check_targets((self.path, self.best_path, *map(self.path_for, SUFFIXES)), inputs)

    def path_for(self, suffix: str) -> Path:
        """Return the path of the run's file with this suffix."""
        return self.out_dir / f"{self.path.stem}{suffix}"

    def write(self, epoch_metrics: dict, weights: dict[str, Tensor], trainer_state: dict) -> None:
        """Write the files after an epoch, record it and print its line."""
        history = [*self.history, epoch_metrics]
        self.write_files(history, weights, trainer_state)
        self.history = history  # the epoch is complete only now
        line = f"epoch {epoch_metrics['epoch']:3}/{self.settings['epochs']}"
        line += f"   training loss {epoch_metrics['train_loss']:.5f}   {self.last_metrics()}"
        print(f"{line}   {epoch_metrics['seconds']:.1f} s", flush=True)

    def write_files(self, history: list[dict], weights: dict[str, Tensor], trainer_state: dict) -> None:
        """Write the files of a run with this history; processes other than the first write nothing."""
        if distributed.rank():
            return
        metrics = history[-1]
        checkpoint = replace(self.checkpoint, epoch=metrics["epoch"], metrics=metrics, state_dict=weights)
        save_checkpoint(self.path, checkpoint)
        if metrics["valid_loss"] == min(row["valid_loss"] for row in history):
            save_checkpoint(self.best_path, checkpoint)
        with atomic_write(self.path_for(".csv"), "x") as file:
            writer = csv.DictWriter(file, metrics, lineterminator="\n")
            writer.writeheader()
            writer.writerows(history)
        progress = {"epochs_done": metrics["epoch"], "seconds": sum(row["seconds"] for row in history)}
        with atomic_write(self.path_for(".json"), "x") as file:
            json.dump(self.settings | environment(weights) | progress, file, indent=1)
        state = {"format": STATE_FORMAT, "settings": self.settings, "history": history, "trainer": trainer_state}
        write_torch_file(self.path_for(".state"), state)

    def lacks_files(self) -> bool:
        """Return whether the last weights, the history or the settings have been deleted."""
        return not all(path.exists() for path in (self.path, self.path_for(".csv"), self.path_for(".json")))

    def last_metrics(self) -> str:
        """Return the last epoch's validation metrics as a line of text."""
        return format_metrics(self.history[-1]["valid_loss"], self.history[-1].get("valid_accuracy"))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Own the run's files in the block; if Ctrl-C or a loss that is not finite stops it, say what is saved.

        Raises UserError if another process owns them.
        """
        files = [self.path_for(".csv"), self.best_path, self.path] if distributed.rank() == 0 else []
        files = [Path(os.path.realpath(file)) for file in files]
        owned = {file.with_name(f".{file.stem}.lock"): file for file in files}  # the last one of a stem is named
        try:
            with ExitStack() as locks:  # which the operating system releases when a process dies
                for path, file in sorted(owned.items()):  # in this order, so that one of two runs gets them all
                    try:
                        path.parent.mkdir(parents=True, exist_ok=True)
                        locks.enter_context(FileLock(path, timeout=0))
                    except Timeout:
                        advice = "another run is writing it; wait, or name another --checkpoint or --out-dir"
                        raise UserError(f"{file}: {advice}") from None
                    except OSError as error:
                        raise UserError(f"{path}: cannot be locked ({error.strerror or error}); delete it") from error
                yield
        except KeyboardInterrupt:
            stopped = "stopped before the first epoch was complete"
            if self.history:
                stopped = f"stopped; epoch {len(self.history)} of {self.settings['epochs']} is saved"
                stopped += "; to continue, repeat the command with --resume"
            raise KeyboardInterrupt(stopped) from None
        except FloatingPointError as error:
            epoch = len(self.history)
            saved = f"{self.path} has the weights of epoch {epoch}" if epoch else "no checkpoint was saved"
            advice = f"train again with a --learn-rate below {self.settings['learning_rate']:g}"
            raise UserError(f"{error}; {saved}: {advice}") from error

    def finish(self) -> None:
        """Draw the curve of the complete run, and say where its files are."""
        title = f"{self.checkpoint.model}, {self.checkpoint.data}, epoch {len(self.history)}"
        save_curve(self.path_for("_curve.png"), title, self.history)
        weights = [str(path) for path in (self.path, self.best_path) if path.exists()]  # the best may be deleted
        print(f"saved {', '.join(weights)}; {', '.join(str(self.path_for(ending)) for ending in SUFFIXES)}")

    def resume(self, load_trainer: Callable[[dict], None]) -> None:
        """Read the history of the earlier run, and have its trainer's state loaded.

        Raises UserError if the file is missing or damaged, or other settings were used.
        """
        path = self.path_for(".state")
        content = read_torch_file(path, "training state", "check --out-dir, or train without --resume")
        with report_read_errors(path, "training state", "train without --resume"):
            if not isinstance(content, dict) or content.get("format") != STATE_FORMAT:
                raise ValueError("it is not of this version")
            for name, value in self.settings.items():
                earlier = content["settings"].get(name)
                if earlier != value:
                    words = f"{name.replace('_', ' ')} was {reprlib.repr(earlier)} and is now {value!r}"
                    words = {"palette": "another palette"}.get(name, "other images" if "sha256" in name else words)
                    raise UserError(f"{path}: cannot resume with other settings: {words}")
            history = content["history"]
            names = [name for name in EPOCH_METRICS if self.checkpoint.is_classifier or name != "valid_accuracy"]
            kinds = [(name, int if name == "epoch" else float) for name in names]
            for epoch, metrics in enumerate(history, 1):
                found = [(name, type(value)) for name, value in metrics.items()]
                if found != kinds or metrics["epoch"] != epoch or not all(map(math.isfinite, metrics.values())):
                    raise ValueError(f"the metrics of epoch {epoch} are not those that it should have, or not finite")
            if not 0 < len(history) <= self.settings["epochs"]:
                raise ValueError("it has no epochs, or too many")
            self.history = history
            load_trainer(content["trainer"])


def run_settings(checkpoint: Checkpoint, source: ImageSource, start_from: Path | None, valid_set: ImageDataset) -> dict:
    """Return what a run starts from: its network, its palette, where its images come from, and those to validate on."""
    settings = {name: getattr(checkpoint, name) for name in ("model", "kernel", "num_filters")}
    settings |= {"data": str(source), "holdout": source.holdout, "start_from": start_from and str(start_from)}
    if source.is_album:
        settings["working_size"] = source.working_size
    settings["valid_sha256"] = valid_set.sha256()
    return settings | {"palette": checkpoint.palette.tolist() if checkpoint.palette is not None else None}


def environment(weights: dict[str, Tensor]) -> dict:
    """Return the command, and what it runs on."""
    device = next(iter(weights.values())).device
    return {
        "command": shlex.join(sys.argv),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
    }
