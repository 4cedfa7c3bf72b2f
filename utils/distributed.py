"""The device of this process, and the processes that train one network together.

torchrun starts the processes and passes each its rank in the environment. Only rank 0 prints and writes.
"""

import atexit
import os
import re
import sys
from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist

from utils.console import UserError

TIMEOUT = timedelta(minutes=10)  # the run ends after this long without a reply from another process


def choose_device(name: str | None) -> torch.device:
    """Return the torch device called `name`; None means CUDA if there is a GPU, else the CPU. Raises UserError."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:[1-9]?[0-9])?", name):
        raise UserError(f"--device {name}: no such device; use cpu, cuda, cuda:N or mps")
    device = torch.device(name)
    number = {"cpu": 1, "mps": int(torch.backends.mps.is_available()), "cuda": torch.cuda.device_count()}[device.type]
    if (device.index or 0) >= number:
        raise UserError(f"--device {name}: no such GPU on this machine; leave the flag out or start fewer processes")
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # that of tensors without a number
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # unless --precision allows less
    return device


def setup(device_name: str | None, several: bool = True) -> torch.device:
    """Return this process's device, on CUDA its own GPU; join the group if torchrun started it. Raises UserError."""
    device = choose_device(device_name)
    if not dist.is_torchelastic_launched():
        return device
    if not several:
        raise UserError("only training runs in several processes; start this with python, not torchrun")
    if device.type == "cuda":
        device = choose_device(f"cuda:{os.environ['LOCAL_RANK']}")
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    if backend == "gloo":  # whose threads abort Python if they outlive it; NCCL's end might wait for a lost process
        atexit.register(dist.destroy_process_group)
    if rank():  # rank 0 prints for all
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, stays open as long as the process runs
    return device


def rank() -> int:
    """Return this process's rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum all processes' tensors, which must have the same shape, in place; return the sum."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def broadcast(tensors: Iterable[torch.Tensor]) -> None:
    """Replace tensors by those of rank 0."""
    for tensor in tensors if world_size() > 1 else ():
        dist.broadcast(tensor, 0)


def average_gradients(model: torch.nn.Module) -> None:
    """Replace the gradients of a model's parameters by their means over all processes."""
    for parameter in model.parameters() if world_size() > 1 else ():
        if parameter.grad is not None:
            all_reduce_sum(parameter.grad).div_(world_size())
