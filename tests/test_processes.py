"""Two processes that train one network on the CPU, as torchrun starts them."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import batch_bytes, smooth_images
from helpers import random_dataset

import colorization
from models import create_model
from sources import cifar10
from training.loop import Trainer, TrainingConfig
from utils import distributed

PROJECT = Path(colorization.__file__).parent
DATA = ["--holdout", "13", "-c", "palette.npy", "-f", "4"]
FLAGS = [*DATA, "-b", "10", "-l", "0.02", "--augment"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def cifar10_folder(tmp_path_factory):
    """CIFAR-10's training files, as large as they are, with 26 horses in each."""
    folder = tmp_path_factory.mktemp("data") / cifar10.FOLDER
    folder.mkdir()
    for seed, name in enumerate(cifar10.TRAIN_FILES):
        images = np.zeros((cifar10.ROWS, 3072), np.uint8)
        images[:26] = smooth_images(26, seed).reshape(26, -1)
        (folder / name).write_bytes(batch_bytes(images, [7] * 26 + [0] * (cifar10.ROWS - 26)))
    return folder.parent


@pytest.fixture
def folder(cifar10_folder, tmp_path, small_palette, monkeypatch):
    """A folder with a palette, to work in. There are 117 images to train on and 13 to validate on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLORIZATION_DATA", str(cifar10_folder))
    return tmp_path


def start(*argv):
    """Start colorization.py in two processes."""
    command = [*TORCHRUN, PROJECT / "colorization.py", *FLAGS, *argv]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def rows_of(path):
    """Return the figures of a run's epochs."""
    with open(path) as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_two_processes_learn_what_one_does(folder, capsys):
    process = start("-e", "3", "--out-dir", "two")
    colorization.main([*FLAGS, "-e", "3", "--out-dir", "one"])
    out, error = process.communicate(timeout=100)
    assert process.returncode == 0, error
    assert "in 2 processes" in out and out.count("epoch   1/3") == 1  # the first process alone prints
    assert "saved two/unet_k3_f4.pkl" in out

    one, two = rows_of("one/unet_k3_f4.csv"), rows_of("two/unet_k3_f4.csv")
    assert len(two) == 3
    # batches are the same images, in the same order; batch norm sees halves of them
    assert two[-1]["train_loss"] == pytest.approx(one[-1]["train_loss"], rel=0.1)
    assert two[-1]["train_loss"] < 0.9 * two[0]["train_loss"]

    checkpoint = ["--valid", "--checkpoint", "two/unet_k3_f4.pkl"]
    capsys.readouterr()
    colorization.main([*DATA, *checkpoint])
    figures = f"validation loss {two[-1]['valid_loss']:.5f}, accuracy {two[-1]['valid_accuracy']:.2%}"
    assert figures in out and figures in capsys.readouterr().out  # 7 and 6 images, as all 13

    state = torch.load("two/unet_k3_f4.state", weights_only=True)
    state["settings"]["epochs"], state["history"] = 3, state["history"][:2]
    torch.save(state, "two/unet_k3_f4.state")
    colorization.main([*FLAGS, "-e", "3", "--out-dir", "two", "--resume"])  # one process goes on with it
    assert len(rows_of("two/unet_k3_f4.csv")) == 3


def test_a_killed_process_ends_the_run(folder):
    process = start("-e", "10000", "--out-dir", "killed")
    for line in process.stdout:
        if line.startswith("epoch"):
            break
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("needs /proc to find the processes")
    second = max(map(int, children.read_text().split()))
    os.kill(second, 9)
    _, error = process.communicate(timeout=60)  # no hang
    assert process.returncode != 0 and "exitcode  : -9" in error
    assert (folder / "killed" / "unet_k3_f4.pkl").exists()


def test_a_batch_that_does_not_divide_by_the_processes(folder, monkeypatch, fails):
    for processes in (3, 11):
        monkeypatch.setattr("utils.distributed.world_size", lambda processes=processes: processes)
        said = f"--batch-size 10: not a multiple of {processes} processes; use {9 if processes == 3 else 11}"
        assert said in fails(colorization.main, *FLAGS, "-e", "1")
    monkeypatch.setattr("torch.distributed.is_torchelastic_launched", lambda: True)
    assert "only training runs in several processes" in fails(colorization.main, *DATA, "--valid")


def test_all_processes_begin_with_the_weights_of_the_first(monkeypatch):
    """Here, those of the first process are all 0.5."""

    def replace(tensors):
        for tensor in tensors:
            tensor.fill_(0.5)

    monkeypatch.setattr(distributed, "broadcast", replace)
    trainer = Trainer(create_model("UNet", 3, 2, 5), random_dataset(4), TrainingConfig(batch_size=4))
    assert all((value == 0.5).all() for value in trainer.model.state_dict().values() if value.is_floating_point())


def test_gradients_are_averaged(monkeypatch):
    """Each process's gradient becomes the mean; here, all four together have eight times this one's."""
    model = torch.nn.Linear(2, 1)
    model(torch.tensor([[1.0, 2.0]])).sum().backward()
    distributed.average_gradients(model)
    assert model.weight.grad.tolist() == [[1, 2]]  # one process has them already
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda tensor: tensor.mul_(8))
    distributed.average_gradients(model)
    assert model.weight.grad.tolist() == [[2, 4]] and model.bias.grad.tolist() == [2]


def test_frozen_parameters_have_no_gradients_to_average(monkeypatch):
    model = torch.nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    model(torch.ones(1, 2)).sum().backward()
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda tensor: tensor)
    distributed.average_gradients(model)
    assert model.bias.grad is None


def test_all_processes_get_the_values_of_the_first(monkeypatch):
    sources = []
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, source: sources.append(source))
    distributed.broadcast([torch.ones(1)])
    assert sources == []  # one process has them
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    distributed.broadcast([torch.ones(1), torch.zeros(2)])
    assert sources == [0, 0]
