"""The device a process computes on, and the processes that train one network together.

torchrun starts the processes and tells each its rank in the environment. Rank 0
prints and writes for all of them.
"""

import os
import sys
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from utils.console import UserError

TIMEOUT = timedelta(minutes=10)  # without a word from another process, the run ends


def choose_device(name):
    """Return the torch device called `name`; None means CUDA if there is a GPU, else the CPU."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: no such device; use cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: only cpu and cuda are supported")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: no such GPU on this machine; leave the flag out for the CPU")
    return device


def setup(device_name):
    """Join the other processes, if torchrun started any, and return this process's device.

    With CUDA each process takes a GPU of its own. Raises UserError if there are too few.
    """
    device = choose_device(device_name)
    if not dist.is_torchelastic_launched():
        return device
    if device.type == "cuda":
        if torch.cuda.device_count() < int(os.environ["LOCAL_WORLD_SIZE"]):
            raise UserError(f"only {torch.cuda.device_count()} GPUs: start as many processes, or use --device cpu")
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    if rank():  # rank 0 prints for all
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, open as long as the process is
    return device


def require_single_process(flag):
    """Raise UserError if `flag`, which needs one process, is given to several."""
    if world_size() > 1:
        raise UserError(f"{flag} takes one process; start it with python instead of torchrun")


def cleanup():
    """Leave the group of processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank():
    """Return this process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce_sum(tensor):
    """Return the sum of all processes' tensors, which have one shape."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def broadcast_from_rank0(tensor):
    """Return rank 0's tensor; the other ranks pass one of the same shape and type to be overwritten."""
    if world_size() > 1:
        dist.broadcast(tensor, 0)
    return tensor


@contextmanager
def local_rank0_first():
    """Let the first process of each machine run the block before the others, for instance to download."""
    is_first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    if world_size() > 1 and not is_first:
        dist.barrier()
    yield
    if world_size() > 1 and is_first:
        dist.barrier()
