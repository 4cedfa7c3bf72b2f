"""The device, and what a process of torchrun does first."""

import atexit

import pytest
import torch

import colorization
from utils import distributed
from utils.console import UserError


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


def test_a_device_is_named_exactly(fails):
    for name in ("cudax", "cuda:100", "cuda:01", "cuda:٣", "cpu:0"):
        assert f"--device {name}: no such device" in fails(colorization.main, "--valid", "--device", name)


def test_a_gpu_is_used_if_there_is_one_and_repeats_its_results(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    assert distributed.choose_device(None).type == "cuda"
    assert distributed.choose_device("cuda:1").index == 1
    assert torch.backends.cudnn.deterministic and torch.backends.cudnn.conv.fp32_precision == "ieee"
    with pytest.raises(UserError, match="no such GPU"):
        distributed.choose_device("cuda:2")


@pytest.mark.parametrize(("name", "device", "backend"), [("cuda", "cuda:1", "nccl"), ("cpu", "cpu", "gloo")])
def test_a_process_of_torchrun_takes_its_own_gpu_and_joins_the_others(monkeypatch, name, device, backend):
    chosen, joined, ends = [], [], []
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)  # so that it is put back
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *how, **more: joined.append((*how, more)))
    monkeypatch.setattr(atexit, "register", ends.append)
    for key, value in {"RANK": "3", "LOCAL_RANK": "1"}.items():  # the last of two machines with two GPUs each
        monkeypatch.setenv(key, value)
    assert distributed.setup(name) == torch.device(device)
    assert joined == [(backend, {"timeout": distributed.TIMEOUT})]
    assert chosen == ([0, 1] if name == "cuda" else [])
    assert ends == ([torch.distributed.destroy_process_group] if name == "cpu" else [])
