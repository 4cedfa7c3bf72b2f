"""The training loop."""

import contextlib
import copy
import ctypes
import math
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from data import subsample, to_gray
from models import device_of
from pictures.decoding import TEMPERATURE, chroma_error, palette_tensor
from training.augmentation import augment
from training.cuda_graph import GraphedStep
from training.evaluation import cross_entropy, evaluate
from training.optim import Adam, Muon, averaging_weight, flatten, middle_weights, one_cycle
from utils import distributed

MUON_RATE = 2.5  # Muon's learning rate as a multiple of Adam's


@dataclass(frozen=True)
class TrainingConfig:
    """Training settings; their defaults are written only here."""

    epochs: int = 25
    batch_size: int = 25
    learning_rate: float = 0.04  # the peak of the one-cycle schedule
    augment: tuple = ("mirror", "shift-x", "shift-y")
    seed: int = 0
    precision: str = "auto"
    rebalance: bool = False  # give rare colors more weight in the loss
    picture_weight: float = 0.0  # weight of the decoded colors' squared error in the loss
    temperature: float = TEMPERATURE  # of the softmax that decodes them


class Trainer:
    """A network in training: the optimizer updates `model`; `averaged_model` is the average of its weights over steps.

    Several processes average their gradients. Batch norm uses the whole batch's statistics on CUDA, each one's on CPUs.
    """

    def __init__(self, net, dataset, config):
        self.averaged_model, self.dataset, self.config = net, dataset, config
        self.device = device_of(net)
        self.dtype = choose_precision(config.precision, self.device)
        self.palette = None if dataset.palette is None else palette_tensor(dataset.palette, self.device)
        self.class_weights = class_weights(dataset).to(self.device) if config.rebalance else None
        self.model = copy.deepcopy(net)
        several = distributed.world_size() > 1
        if several and self.device.type == "cuda":
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        middle, others = middle_weights(self.model)
        self.muon, self.adam = Muon(middle), Adam(others)
        latest = [self.muon.vector, self.adam.vector, flatten(statistics(self.model))]
        averages = [*map(flatten, middle_weights(net)), flatten(statistics(net))]
        self.averages = [pair for pair in zip(averages, latest) if len(pair[0])]
        self.forward = nn.parallel.DistributedDataParallel(self.model) if several else self.model
        self.learning_rate = torch.zeros((), device=self.device)  # a tensor: a CUDA graph reads its current value

    def step(self, pixels, scale=1):
        """Take an optimizer step on some of the dataset's pixels (N, C, H, W); return the loss, a 0-d tensor.

        `scale` multiplies the loss, for a process that has a part of a batch. Nothing here waits for the device.
        """
        images, targets = self.dataset.split(augment(pixels, self.config.augment))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            outputs = self.forward(to_gray(images))
        loss = self.loss(outputs.float(), targets, images)
        (loss * scale).backward()
        self.muon.step(MUON_RATE * self.learning_rate)
        self.adam.step(self.learning_rate)
        weight = averaging_weight(self.adam.steps)
        for average, latest in self.averages:
            average.lerp_(latest, weight)
        return loss.detach()

    def loss(self, outputs, targets, images):
        """Return the loss of a batch: the mean squared error of RGB, or the cross-entropy of palette labels."""
        if self.palette is None:
            return F.mse_loss(outputs, targets)
        loss = cross_entropy(outputs, targets, self.class_weights)
        if self.config.picture_weight:
            error = chroma_error(outputs, self.palette, images, self.config.temperature)
            loss = loss + self.config.picture_weight * error
        return loss

    def state_dict(self):
        """Return everything that training changes, as plain containers of tensors."""
        return {name: getattr(self, name).state_dict() for name in ("averaged_model", "model", "muon", "adam")}

    def load_state_dict(self, state_dict):
        """Restore what state_dict() returned. Raises some exception if it does not fit or is not finite."""
        for name, mine in self.state_dict().items():
            for key, tensor in mine.items():
                saved = state_dict[name][key]
                if saved.shape != tensor.shape or not saved.isfinite().all():
                    raise ValueError(f"{key} has another shape, or is not finite")
                if key.endswith(("running_var", "exp_avg_sq", "steps")) and (saved < 0).any():
                    raise ValueError(f"{key} is negative")
                tensor.copy_(saved)


def train(trainer, valid, new_images=None, epochs_done=0):
    """Train from epoch `epochs_done` + 1 on; after each epoch, yield its row of metrics, a dict.

    `new_images`, if given, returns an epoch's images for its seed. Validation uses `trainer.averaged_model`. Each
    process trains on its part of every batch. Raises FloatingPointError if loss or weights are not finite.
    """
    tune_malloc()
    config = trainer.config
    rank, world_size = distributed.rank(), distributed.world_size()
    step = choose_step(trainer)
    steps_per_epoch = math.ceil(len(trainer.dataset) / config.batch_size)
    for epoch in range(epochs_done + 1, config.epochs + 1):
        start = time.perf_counter()
        if new_images:
            trainer.dataset.replace(new_images(derive_seed(config.seed, epoch, 0)))
        pixels = trainer.dataset.pixels
        trainer.model.train()
        torch.manual_seed(derive_seed(config.seed, epoch, 1 + rank))  # for augmentation
        generator = torch.Generator().manual_seed(derive_seed(config.seed, epoch, 0))
        order = torch.randperm(len(pixels), generator=generator).to(pixels.device)
        losses = torch.zeros(steps_per_epoch, device=trainer.device)
        for number in tqdm(range(steps_per_epoch), leave=False, disable=True if rank else None, unit="step"):
            batch = order[number * config.batch_size : (number + 1) * config.batch_size]
            progress = epoch - 1 + number / steps_per_epoch
            trainer.learning_rate.fill_(config.learning_rate * one_cycle(progress / config.epochs))
            mine = batch[rank::world_size]
            count = len(mine)
            mine = mine if count else batch[:1]  # fewer images than processes: a step with weight 0
            losses[number] = count * step(pixels[mine].to(trainer.device), count * world_size / len(batch))
        train_loss = epoch_mean(losses, epoch, len(pixels))
        for buffer in trainer.averaged_model.buffers() if world_size > 1 else ():
            torch.distributed.broadcast(buffer, 0)
        valid_metrics = evaluate(trainer.averaged_model, valid)
        if not math.isfinite(valid_metrics["loss"]) or not is_finite(trainer.averaged_model):
            raise FloatingPointError(f"the weights are no longer finite after epoch {epoch}")
        yield {
            "epoch": epoch,
            "train_loss": train_loss,
            **{f"valid_{name}": value for name, value in valid_metrics.items()},
            "learning_rate": config.learning_rate * one_cycle(epoch / config.epochs),
            "seconds": time.perf_counter() - start,
        }


def statistics(net):
    """Return the running means and variances of a network's batch norms."""
    return [buffer for buffer in net.buffers() if buffer.is_floating_point()]


def is_finite(net):
    """Return whether all weights and statistics of a network are finite."""
    return all(value.isfinite().all() for value in net.state_dict().values())


def choose_step(trainer):
    """Return the function that takes a training step: a CUDA graph's replay on a single GPU, else trainer.step."""
    return GraphedStep(trainer) if trainer.device.type == "cuda" and distributed.world_size() == 1 else trainer.step


def epoch_mean(losses, epoch, num_images):
    """Average losses over images, given each step's sum, (steps,). Raises FloatingPointError if one is not finite."""
    losses = distributed.all_reduce_sum(losses.double()).cpu()
    finite = losses.isfinite()
    if not finite.all():
        raise FloatingPointError(f"the loss is no longer finite in step {finite.int().argmin() + 1} of epoch {epoch}")
    return (losses.sum() / num_images).item()


def class_weights(dataset, uniform=0.5):
    """Return a weight for every palette color, (K,), larger for rarer ones, with mean 1 over the dataset's pixels.

    The inverse of the frequency mixed with the uniform distribution (Zhang et al. 2016, equation 4, λ = `uniform`).
    """
    num_colors = len(dataset.palette)
    parts = subsample(dataset.pixels).split(1000)
    counts = sum(torch.bincount(dataset.split(part)[1].flatten(), minlength=num_colors) for part in parts)
    shares = counts / counts.sum()
    weights = 1 / ((1 - uniform) * shares + uniform / num_colors)
    return weights / (shares * weights).sum()


def choose_precision(name, device):
    """Return the torch.dtype for training: of "auto", "fp32" or "bf16".

    bf16 runs the forward pass in bfloat16 by torch.autocast and keeps weights and sums in float32. auto means
    bf16 where the hardware has it, else float32 with TF32 convolutions on GPUs. fp32 is float32 throughout.
    """
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.conv.fp32_precision = "ieee" if name == "fp32" else "tf32"
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch 2.11 lacks it
        has_bf16 = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if name == "bf16" or (name == "auto" and has_bf16) else torch.float32


def derive_seed(*parts):
    """Combine integers, as many at every call, into one seed."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def tune_malloc():
    """Make glibc keep freed memory for the next tensors.

    By default it maps large blocks again at every step, a seventh of the time at batch size 100. Elsewhere no effect.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        if not mallopt(-3, 1 << 30):  # M_MMAP_THRESHOLD
            mallopt(-3, 32 << 20)  # the most that glibc allows up to version 2.34
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
