"""Several processes that train one network together, as torchrun starts them; or one alone.

Their number and each one's rank are in the environment. The first process, rank 0, is
the one that prints and writes.
"""

import os
import sys
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from cli import UserError, choose_device

TIMEOUT = timedelta(minutes=10)  # of another process, that ends the run


def setup(device_name):
    """Meet the other processes, where torchrun started some, and return this one's device.

    With CUDA each takes a GPU of its own. Raises UserError where they are too few.
    """
    device = choose_device(device_name)
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return device
    if device.type == "cuda":
        if torch.cuda.device_count() < int(os.environ["LOCAL_WORLD_SIZE"]):
            raise UserError(
                f"there are only {torch.cuda.device_count()} GPUs: ask for as many processes, or --device cpu"
            )
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    if rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, open as long as the process is
    return device


def require_single_process(flag):
    """Raise UserError where what `flag` asks for is started in several processes."""
    if world_size() > 1:
        raise UserError(f"{flag} takes one process, which is enough; start it with python, not with torchrun")


def cleanup():
    """Part from the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank():
    """Return this process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce_sum(tensor):
    """Return the sum of all processes' tensors of this shape."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def broadcast_from_rank0(tensor):
    """Return the first process's tensor; the others give one of the same shape and type."""
    if world_size() > 1:
        dist.broadcast(tensor, 0)
    return tensor


@contextmanager
def local_rank0_first():
    """Let the first process of each machine through the block before the others, such as for a download."""
    ahead = int(os.environ.get("LOCAL_RANK", 0)) == 0
    if world_size() > 1 and not ahead:
        dist.barrier()
    yield
    if world_size() > 1 and ahead:
        dist.barrier()
