"""Number formats, and training on a GPU."""

import re

import pytest
import torch
from test_training import CPU, PALETTE, history_of_training, random_images

import colorization
from data import ImageDataset
from models import create_model
from training.evaluation import evaluate
from training.loop import Trainer, TrainingConfig, choose_precision

FAST = ["-e", "2", "-f", "2", "-b", "8"]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def trained_network(device=CPU, precision="fp32"):
    """Train a small network for three epochs of four batches, the last one smaller; return it and the metrics."""
    torch.manual_seed(0)
    net = create_model("UNet", 3, 4, 5).to(device)
    return net, history_of_training(net, random_images(15), epochs=3, precision=precision)


def test_precision_is_chosen_for_the_device():
    assert choose_precision("fp32", CPU) == torch.float32
    assert choose_precision("bf16", CPU) == torch.bfloat16


def test_bfloat16_learns_alike_and_keeps_weights_in_float32():
    (net, rows), (half, half_rows) = trained_network(), trained_network(precision="bf16")
    assert half_rows[-1]["train_loss"] == pytest.approx(rows[-1]["train_loss"], rel=0.02)
    assert half_rows[-1]["train_loss"] != rows[-1]["train_loss"]
    assert all(value.dtype == torch.float32 for value in half.parameters())
    assert {value.dtype for value in half.state_dict().values()} == {value.dtype for value in net.state_dict().values()}


def test_flags_reach_training(cifar, small_palette, capsys):
    flags = [*FAST, "-c", str(small_palette)]
    for precision in ("auto", "fp32", "bf16"):
        colorization.main([*flags, "--precision", precision, "--out-dir", precision])
    out = capsys.readouterr().out
    auto, fp32, bf16 = re.findall(r"^epoch   2/2 .*(training loss \S+)", out, re.MULTILINE)
    assert bf16 != fp32
    assert auto == (fp32 if choose_precision("auto", CPU) == torch.float32 else bf16) or torch.cuda.is_available()


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)],
)
def test_bfloat16_is_chosen_where_the_processor_has_it(monkeypatch, capabilities, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_precision("auto", CPU) == precision
    assert choose_precision("fp32", CPU) == torch.float32
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in older versions of PyTorch
    assert choose_precision("auto", CPU) == torch.float32


@needs_cuda
def test_nothing_waits_for_the_gpu_within_an_epoch():
    device = torch.device("cuda")
    dataset = ImageDataset(random_images(15), PALETTE, device)
    trainer = Trainer(create_model("UNet", 3, 4, 5).to(device), dataset, TrainingConfig(batch_size=4))
    trainer.step(dataset.images[:4], 0.01)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.step(dataset.images[:4], 0.01)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
def test_images_may_stay_on_the_cpu():
    net, dataset = create_model("UNet", 3, 4, 5).cuda(), ImageDataset(random_images(15), PALETTE, torch.device("cuda"))
    dataset.images = dataset.images.cpu()
    trainer = Trainer(net, dataset, TrainingConfig(epochs=2, batch_size=4, learning_rate=0.01))
    assert trainer.train_epoch(2) < trainer.train_epoch(1)
    assert evaluate(net, dataset)["loss"] > 0
