"""The device."""

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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(cifar, fails):
    assert "--device cuda: no such GPU on this machine; leave" in fails(colorization.main, "--device", "cuda")
