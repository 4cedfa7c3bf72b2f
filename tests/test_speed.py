"""Steps that are recorded or in another number format give what plain ones give."""

import re

import pytest
import torch
from test_training import CPU, PALETTE, random_images
from training.cuda_graph import GraphedStep

import colorization
from data import ImageDataset, to_gray
from models import create_model
from training import loop
from training.loop import Trainer, TrainingConfig, choose_precision, train

SMALL = ["-e", "2", "-f", "2", "-b", "8"]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def trained(device=CPU, precision="fp32"):
    """Train a small network for three epochs of four batches, the last one smaller; return it and the rows."""
    torch.manual_seed(0)
    dataset = ImageDataset(random_images(15), PALETTE, device)
    net = create_model("UNet", 3, 4, 5).to(device)
    config = TrainingConfig(epochs=3, batch_size=4, learning_rate=0.01, precision=precision)
    return net, list(train(Trainer(net, dataset, config), dataset))


def same(first, second, **tolerance):
    """Check that two networks have the same weights and statistics."""
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, **tolerance)


def test_precision_is_chosen_for_the_device():
    assert choose_precision("fp32", CPU) == torch.float32
    assert choose_precision("bf16", CPU) == torch.bfloat16


def test_bfloat16_learns_alike_and_keeps_weights_in_float32():
    (net, rows), (half, half_rows) = trained(), trained(precision="bf16")
    assert half_rows[-1]["train_loss"] == pytest.approx(rows[-1]["train_loss"], rel=0.02)
    assert half_rows[-1]["train_loss"] != rows[-1]["train_loss"]
    assert all(value.dtype == torch.float32 for value in half.parameters())
    assert {value.dtype for value in half.state_dict().values()} == {value.dtype for value in net.state_dict().values()}


class GraphOnCPU:
    """What a CUDA graph does, on the CPU: steps from the recorded inputs alone."""

    def __init__(self, graphed):
        self.graphed = graphed

    def replay(self):
        self.graphed.static_loss = self.graphed.trainer.step(self.graphed.static_pixels)


@pytest.fixture
def graphed_on_cpu(monkeypatch):
    """Have training on the CPU go through GraphedStep; returns the sizes of the recorded batches."""
    recorded = []

    def capture(self, images):
        recorded.append(len(images))
        self.static_pixels, self.graph = images.clone(), GraphOnCPU(self)
        return True

    class Graphed(GraphedStep):
        def __init__(self, trainer):
            super().__init__(trainer)
            self.warmup_step = trainer.step

    monkeypatch.setattr(GraphedStep, "capture", capture)
    monkeypatch.setattr(loop, "choose_step", Graphed)
    return recorded


def test_a_recorded_step_gets_every_batch_and_learning_rate(request):
    plain, rows = trained()
    recorded = request.getfixturevalue("graphed_on_cpu")
    net, again = trained()
    assert recorded == [4]
    same(plain, net, rtol=0, atol=0)
    assert [row["train_loss"] for row in again] == [row["train_loss"] for row in rows]


def broken_graph(error):
    """Return a stand-in for torch.cuda.graph whose recording fails after the step ran."""

    class Broken:
        def __init__(self, graph):
            pass

        def __enter__(self):
            pass

        def __exit__(self, *_):
            raise error

    return Broken


def test_a_recording_that_fails_says_so_and_training_runs_on(graphed_on_cpu, monkeypatch, capsys):
    monkeypatch.undo()
    current = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "the stream before")
    monkeypatch.setattr(torch.cuda, "set_stream", current.append)
    trainer = Trainer(create_model("UNet", 3, 4, 5), ImageDataset(random_images(8), PALETTE, CPU), TrainingConfig())
    step = GraphedStep(trainer)
    step.warmup_step = trainer.step
    step.WARMUP_STEPS = 0
    monkeypatch.setattr(torch.cuda, "graph", broken_graph(RuntimeError("operation not permitted\nwhen capturing")))
    for optimizer in (trainer.adam, trainer.muon):  # a recorded step does not run
        monkeypatch.setattr(optimizer, "step", lambda rate, optimizer=optimizer: optimizer.gradient.zero_())
    assert step(trainer.dataset.pixels).isfinite().all()
    assert capsys.readouterr().out == (
        "CUDA graph capture failed (operation not permitted); training continues without it\n"
    )
    assert current == ["the stream before"]
    step(trainer.dataset.pixels)
    assert capsys.readouterr().out == ""
    step = GraphedStep(trainer)
    step.WARMUP_STEPS = 0
    monkeypatch.setattr(torch.cuda, "graph", broken_graph(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):  # a mistake of ours is not taken for CUDA's
        step(trainer.dataset.pixels)


def test_flags_reach_training(cifar, small_palette, capsys):
    flags = [*SMALL, "-c", str(small_palette)]
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
def test_a_recorded_step_is_the_plain_one_on_cuda(monkeypatch, capsys):
    device = torch.device("cuda")
    net, again = trained(device)
    assert "failed" not in capsys.readouterr().out
    monkeypatch.setattr(loop, "choose_step", lambda trainer: trainer.step)
    plain, rows = trained(device)
    same(plain, net, rtol=1e-3, atol=1e-4)
    assert again[-1]["train_loss"] == pytest.approx(rows[-1]["train_loss"], rel=1e-3)


@needs_cuda
def test_nothing_waits_for_the_gpu_within_an_epoch():
    device = torch.device("cuda")
    dataset = ImageDataset(random_images(15), PALETTE, device)
    trainer = Trainer(create_model("UNet", 3, 4, 5).to(device), dataset, TrainingConfig())
    trainer.step(dataset.pixels[:4])
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.learning_rate.fill_(0.01)
        trainer.step(dataset.pixels[:4])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
def test_images_may_stay_on_the_cpu():
    net, dataset = create_model("UNet", 3, 4, 5).cuda(), ImageDataset(random_images(15), PALETTE, CPU)
    config = TrainingConfig(epochs=2, batch_size=4, learning_rate=0.01)
    rows = list(train(Trainer(net, dataset, config), dataset))
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert net(to_gray(dataset.images.cuda())).shape == (15, 5, 8, 8)
