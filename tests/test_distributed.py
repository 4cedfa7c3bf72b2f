"""The device, and what several processes agree on."""

import pytest
import torch

import colorization
from utils import distributed


def test_the_gpu_that_is_named_is_the_current_one(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    distributed.setup("cuda:1")
    distributed.setup("cuda")
    distributed.setup("cpu")
    assert chosen == [1, 0]


def test_the_other_processes_wait_long_for_a_download(monkeypatch):
    """Longer than for any other word of rank 0, which ends the run after ten minutes."""
    waits = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "new_group", lambda backend, timeout: waits.append(timeout))
    monkeypatch.setattr(distributed.dist, "barrier", lambda group: pytest.fail("no group to wait in"))
    with distributed.local_rank0_first():
        assert waits[0] > 60 * distributed.TIMEOUT


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(cifar, fails):
    assert "--device cuda: no such GPU on this machine; leave" in fails(colorization.main, "--device", "cuda")
