"""Steps that are compiled, recorded or in another number format give what plain ones give."""

import re

import pytest
import torch
from test_training import random_examples
from torch import nn

import colorization
import training
from checkpoint import create_model
from cli import seed_everything
from data import to_gray
from speed import GraphedStep, choose_precision
from training import Trainer, train

CPU = torch.device("cpu")
SMALL = ["-e", "2", "-f", "2", "-b", "8"]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def trained(device=CPU, **settings):
    """Train a small network for three epochs of four batches, the last one smaller; return it and the figures."""
    seed_everything(0)
    examples, rows = random_examples(15), []
    examples = examples._replace(images=examples.images.to(device))
    net = create_model("UNet", 3, 4, 5).to(device)
    settings = {"augment": ["mirror", "shift-x"], "log": lambda row, state: rows.append(row)} | settings
    train(net, examples, examples, epochs=3, batch_size=4, learning_rate=0.01, **settings)
    return net, rows


def same(first, second, **tolerance):
    """Check that two networks have the same weights and statistics."""
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, **tolerance)


def test_precision_is_chosen_for_the_device():
    assert choose_precision("auto", CPU) == choose_precision("fp32", CPU) == torch.float32
    assert choose_precision("bf16", CPU) == torch.bfloat16


def test_bfloat16_learns_alike_and_keeps_weights_in_float32():
    (net, rows), (half, half_rows) = trained(), trained(precision=torch.bfloat16)
    assert half_rows[-1]["train_loss"] == pytest.approx(rows[-1]["train_loss"], rel=0.02)
    assert half_rows[-1]["train_loss"] != rows[-1]["train_loss"]
    assert all(value.dtype == torch.float32 for value in half.parameters())
    assert {value.dtype for value in half.state_dict().values()} == {value.dtype for value in net.state_dict().values()}


@pytest.mark.parametrize("fails", ["compile", "step", "after backward"])
def test_what_does_not_compile_falls_back_with_a_line_and_the_same_result(fails, monkeypatch, capsys):
    plain, _ = trained()

    def broken(*_):
        raise RuntimeError("no compiler\nfound anywhere")

    def compile(module, **_):
        if fails == "compile":
            broken()
        if fails == "step":
            module._compiled_call_impl = broken  # as a compiler that fails only when it is called
        else:
            monkeypatch.setattr(training.Adam, "step", lambda *_: monkeypatch.undo() or broken())  # once

    monkeypatch.setattr(nn.Module, "compile", compile)
    net, _ = trained(compile="on")
    assert capsys.readouterr().out.splitlines() == [
        "--compile: compiling the network fails (no compiler); training goes on without"
    ]
    same(plain, net, rtol=0, atol=0)


def test_the_compiled_network_is_the_one_that_learns(monkeypatch):
    calls = []

    def compile(module, **_):
        module._compiled_call_impl = lambda *inputs: calls.append(len(inputs[0])) or module._call_impl(*inputs)

    monkeypatch.setattr(nn.Module, "compile", compile)
    net, _ = trained(compile="on")
    assert calls == [4, 4, 4, 3] * 3
    monkeypatch.undo()
    same(trained()[0], net, rtol=0, atol=0)


def test_a_mistake_of_ours_is_not_taken_for_the_compilers(monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(nn.Module, "compile", lambda module, **_: None)
    with pytest.raises(ZeroDivisionError):
        trained(compile="on", loss_fn=broken)


def test_recorded_steps_get_every_batch_and_rate(monkeypatch, capsys):
    """What CUDA would do, by a stand-in that repeats the step from the recorded inputs."""
    plain, rows = trained()
    recorded = []

    def capture_step(self, *batch):
        self.inputs = [tensor.clone() for tensor in batch]
        self.graph = type("Graph", (), {"replay": lambda _: self.figures.copy_(self.trainer.step(*self.inputs))})()
        self.figures = torch.zeros(2)
        recorded.append(len(batch[0]))
        return self.replay(*batch)

    monkeypatch.setattr(GraphedStep, "capture_step", capture_step)
    monkeypatch.setattr(GraphedStep, "warmup_step", lambda self, *batch: self.trainer.step(*batch))
    monkeypatch.setattr(training, "GraphedStep", lambda trainer, compile, capture: GraphedStep(trainer, compile, True))
    net, again = trained(compile="auto")
    assert recorded == [4]
    same(plain, net, rtol=0, atol=0)
    assert [row["train_loss"] for row in again] == [row["train_loss"] for row in rows]
    trained(compile="off")
    assert recorded == [4]


def test_flags_reach_training(cifar, small_palette, capsys):
    flags = [*SMALL, "-c", str(small_palette)]
    for precision in ("auto", "fp32", "bf16"):
        colorization.main([*flags, "--precision", precision, "--compile", "off", "--out-dir", precision])
    out = capsys.readouterr().out
    auto, fp32, bf16 = re.findall(r"^epoch   2/2 .*(training loss \S+)", out, re.MULTILINE)
    assert bf16 != fp32
    assert auto == fp32 or torch.cuda.is_available()


@needs_cuda
@pytest.mark.parametrize("compile", ["auto", "on"])
def test_a_recorded_step_is_the_plain_one_on_cuda(compile, capsys):
    device = torch.device("cuda")
    plain, rows = trained(device, compile="off")
    net, again = trained(device, compile=compile)
    assert "fails" not in capsys.readouterr().out
    same(plain, net, rtol=1e-3, atol=1e-4)
    assert again[-1]["train_loss"] == pytest.approx(rows[-1]["train_loss"], rel=1e-3)


@needs_cuda
def test_nothing_waits_for_the_gpu_within_an_epoch():
    device = torch.device("cuda")
    examples = random_examples(15)
    examples = examples._replace(images=examples.images.to(device))
    trainer = Trainer(create_model("UNet", 3, 4, 5).to(device), examples, ["mirror", "shift-x"])
    rates = torch.tensor([0.01, 0.5, 1.0], device=device)
    trainer.step(examples.images[:4], rates)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.step(examples.images[:4], rates)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
def test_images_may_stay_on_the_cpu():
    net = create_model("UNet", 3, 4, 5).cuda()
    examples = random_examples(15)
    rows = []
    settings = {"epochs": 2, "batch_size": 4, "learning_rate": 0.01, "augment": ["mirror"]}
    train(net, examples, examples, log=lambda row, state: rows.append(row), **settings)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert net(to_gray(examples.images.cuda())).shape == (15, 5, 8, 8)
