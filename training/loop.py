"""Training: the settings, one epoch of steps, and the loop over epochs."""

import copy
import math
import time
from argparse import Namespace
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from data import ImageDataset, ImageSource, to_gray
from models import Network, device_of
from pictures.decoding import TEMPERATURE, chroma_error, palette_tensor
from pictures.plots import preload_matplotlib
from training.augmentation import augment
from training.evaluation import cross_entropy, draw_samples, evaluate
from training.log import RunLog, run_settings
from training.optim import MuonAdam, WeightAverage, one_cycle, split_parameters
from utils import distributed
from utils.checkpoint import Checkpoint, check_values
from utils.console import UserError


@dataclass(frozen=True)
class TrainingConfig:
    """Training settings; their defaults are written only here."""

    epochs: int = 25
    batch_size: int = 25
    learning_rate: float = 0.04  # the peak of the one-cycle schedule
    augment: tuple[str, ...] = ("mirror", "shift-x", "shift-y")
    seed: int = 0
    precision: str = "auto"
    picture_weight: float = 0.0  # weight of the squared error of the mean color's chroma in the loss
    temperature: float = TEMPERATURE  # of the softmax that gives this mean color


def prepare_training(
    args: Namespace, net: Network, checkpoint: Checkpoint, source: ImageSource, palette_file: Path | None = None
) -> tuple["Trainer", ImageDataset, RunLog]:
    """Return what run_training() takes, for a network on its device, the source of its images and a script's flags.

    Settings that the script has no flag for keep their defaults. Raises UserError, also if an output of the run would
    replace what it starts from, such as `palette_file`.
    """
    source = replace(source, working_size=checkpoint.working_size, crop_size=net.training_size)
    train_set = source.training_set(checkpoint.palette, device_of(net))
    valid_set = source.validation_set(checkpoint.palette, device_of(net))
    names = {field.name for field in fields(TrainingConfig)}
    settings = {name: value for name, value in vars(args).items() if name in names and value is not None}
    trainer = Trainer(net, train_set, TrainingConfig(**settings))
    checkpoint = replace(checkpoint, data=str(source))
    settings = run_settings(checkpoint, source, args.start_from, valid_set) | trainer.settings()
    inputs = args.start_from, source.path, palette_file
    return trainer, valid_set, RunLog(checkpoint, settings, args.out_dir, args.checkpoint, inputs)


def run_training(
    trainer: "Trainer", valid_set: ImageDataset, log: RunLog, resume: bool = False, plot: bool = False
) -> None:
    """Train; after every epoch, evaluate the averaged weights and write the run's files.

    `resume` continues the interrupted run of the same files, or restores missing ones of a complete run; `plot` draws
    samples after every epoch. Raises UserError.
    """
    config, net, name = trainer.config, trainer.averaged_model, f"{log.checkpoint.model}, {log.checkpoint.data}"
    counts = f"{len(trainer.dataset):,} training and {len(valid_set):,} validation images"
    preload_matplotlib()
    with log.running():
        if resume:
            log.resume(trainer.load_state_dict)
            if len(log.history) == config.epochs and log.lacks_files():
                log.write_files(log.history, net.state_dict(), trainer.state_dict())
        print(f"{log.checkpoint}\n{counts} of {log.checkpoint.data}, on {trainer}", flush=True)
        for epoch in range(len(log.history) + 1, config.epochs + 1):
            start = time.perf_counter()
            metrics = {"epoch": epoch, "train_loss": trainer.train_epoch(epoch)}
            metrics |= {f"valid_{metric}": value for metric, value in evaluate(net, valid_set).items()}
            metrics["learning_rate"] = config.learning_rate * one_cycle(epoch / config.epochs)
            metrics["seconds"] = time.perf_counter() - start
            if not all(math.isfinite(value) for value in metrics.values()):
                raise FloatingPointError(f"the loss is no longer finite after epoch {epoch}")
            log.write(metrics, net.state_dict(), trainer.state_dict())
            if plot and distributed.rank() == 0:
                path, title = log.path_for(f"_epoch{epoch:03}.png"), f"{name}, epoch {epoch}"
                draw_samples(path, title, net, valid_set, config.temperature)
        if distributed.rank() == 0:
            title = f"{name}, epoch {config.epochs}: {log.last_metrics()}"
            draw_samples(log.path_for("_images.png"), title, net, valid_set, config.temperature)
            log.finish()


class Trainer:
    """The training of a network: steps update `model`, a copy; the network, `averaged_model`, holds the mean weights.

    Several processes average their gradients, and batch norm uses each one's part of a batch. Raises UserError if the
    batch size does not fit the number of images or of processes.
    """

    def __init__(self, net: Network, dataset: ImageDataset, config: TrainingConfig):
        processes = distributed.world_size()
        if config.batch_size > len(dataset):
            raise UserError(f"--batch-size {config.batch_size}: there are only {len(dataset):,} training images")
        if config.batch_size % processes:
            nearest = max(1, config.batch_size // processes) * processes
            raise UserError(f"--batch-size {config.batch_size}: not a multiple of {processes} processes; use {nearest}")
        self.averaged_model, self.dataset, self.config = net, dataset, config
        self.device = device_of(net)
        self.dtype = choose_precision(config.precision, self.device)
        self.precision = str(self.dtype).removeprefix("torch.")
        self.palette = palette_tensor(dataset.palette, self.device) if dataset.is_classification else None
        self.model = copy.deepcopy(net)
        distributed.broadcast(self.model.state_dict().values())
        self.optimizer = MuonAdam(*split_parameters(self.model))
        self.average = WeightAverage(self.averaged_model, self.model)

    def train_epoch(self, epoch: int) -> float:
        """Take a step with every batch of an epoch, counted from 1; return the mean loss over its images.

        Raises FloatingPointError if a loss or a weight is not finite.
        """
        config, rank, processes = self.config, distributed.rank(), distributed.world_size()
        self.dataset.start_epoch(derive_seed(config.seed, epoch, 0))
        torch.manual_seed(derive_seed(config.seed, epoch, 1 + rank))  # for augmentation
        generator = torch.Generator().manual_seed(derive_seed(config.seed, epoch, 0))
        order = torch.randperm(len(self.dataset), generator=generator).to(self.dataset.images.device)
        count = len(order) // processes * processes  # so that all processes get as many
        batches = order[:count].split(config.batch_size)
        losses = torch.zeros(len(batches), device=self.device)
        self.model.train()
        quiet = True if rank else None  # None: no progress bar unless on a terminal
        for number, batch in enumerate(tqdm(batches, leave=False, disable=quiet, unit="step")):
            progress = (epoch - 1 + number / len(batches)) / config.epochs
            images = self.dataset.images[batch[rank::processes]]
            loss = self.step(images, config.learning_rate * one_cycle(progress))
            losses[number] = len(images) * loss
        distributed.broadcast(self.averaged_model.buffers())
        losses = distributed.all_reduce_sum(losses)
        finite = losses.isfinite()
        if not finite.all():
            step = finite.int().argmin() + 1
            raise FloatingPointError(f"the loss is no longer finite in step {step} of epoch {epoch}")
        if not all(value.isfinite().all() for value in self.averaged_model.state_dict().values()):
            raise FloatingPointError(f"the weights are no longer finite after epoch {epoch}")
        return (losses.sum() / sum(map(len, batches))).item()

    def step(self, images: Tensor, learning_rate: float) -> Tensor:
        """Take a training step with some of the dataset's images, uint8 (N, 3, H, W); return the loss, 0-d.

        Nothing here waits for the device.
        """
        images = augment(images, self.config.augment)
        targets = self.dataset.targets(images)
        # a copy in the network's dtype and memory format, so that torch.cat need not convert its maps
        gray = to_gray(images).to(self.dtype, memory_format=torch.channels_last, copy=True)  # (N, 1, H, W)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            outputs = self.model(gray)
        loss = self.loss(outputs.float(), targets, images)
        self.optimizer.zero_grad()
        loss.backward()
        distributed.average_gradients(self.model)
        self.optimizer.step(learning_rate)
        self.average.update()
        return loss.detach()

    def loss(self, outputs: Tensor, targets: Tensor, images: Tensor) -> Tensor:
        """Return the loss of a batch: the mean squared error of RGB, or the cross-entropy of palette labels.

        To the latter, it adds `picture_weight` times the squared error of the mean color's chroma.
        """
        if self.palette is None:
            return F.mse_loss(outputs, targets)
        loss = cross_entropy(outputs, targets)
        if self.config.picture_weight:
            error = chroma_error(outputs, self.palette, images, self.config.temperature)
            loss = loss + self.config.picture_weight * error
        return loss

    def settings(self) -> dict:
        """Return all that the steps depend on, which a resumed run must share, as plain containers."""
        settings = asdict(self.config) | {"augment": list(self.config.augment), "precision": self.precision}
        if not self.config.picture_weight:
            del settings["temperature"]  # which has no effect on the steps then
        return settings | {"data_sha256": self.dataset.sha256()}

    def state_dict(self) -> dict[str, dict]:
        """Return everything that training changes, as plain containers of tensors."""
        models = {"averaged_model": self.averaged_model.state_dict(), "model": self.model.state_dict()}
        steps = {"steps": torch.tensor(self.average.steps)}
        return models | {"optimizer": self.optimizer.state_dict(), "average": steps}

    def load_state_dict(self, state_dict: dict[str, dict]) -> None:
        """Restore what state_dict() returned. Raises KeyError, ValueError or RuntimeError if it does not fit."""
        for part, own in self.state_dict().items():
            saved = {name: state_dict[part][name] for name in own}
            for name, value in own.items():
                if saved[name].shape != value.shape or saved[name].dtype != value.dtype:
                    raise ValueError(f"{name} has another shape or type")
            check_values(saved)
        self.averaged_model.load_state_dict(state_dict["averaged_model"])
        self.model.load_state_dict(state_dict["model"])
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.average.steps = int(state_dict["average"]["steps"])

    def __str__(self) -> str:
        several = f" in {distributed.world_size()} processes" if distributed.world_size() > 1 else ""
        return f"{self.device} in {self.precision}{several}"


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the torch.dtype for training: of "auto", "fp32" or "bf16".

    bf16 runs the forward pass in bfloat16 by torch.autocast and keeps weights and sums in float32. auto means
    bf16 where the hardware has it, else float32 with TF32 convolutions on GPUs. fp32 is float32 throughout.
    """
    if device.type == "cuda":
        if name != "fp32":
            torch.backends.cudnn.conv.fp32_precision = "tf32"  # type: ignore[attr-defined]
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities: dict = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch 2.11 lacks it
        has_bf16 = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if name == "bf16" or (name == "auto" and has_bf16) else torch.float32


def derive_seed(*parts: int) -> int:
    """Return one seed for several integers; always pass the same number of them."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
