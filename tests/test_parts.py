"""The exercise, part by part: `python -m pytest tests/test_parts.py` prints which parts work, and their points."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
from data import ImageDataset, ImageSource, nearest_color, to_gray
from models import load_network, new_network, predict, pretrained_path
from training import evaluation
from training.loop import Trainer, TrainingConfig
from utils.checkpoint import load_checkpoint

SIZES = {"downconv1": 16, "downconv2": 8, "rfconv": 8, "upconv1": 16, "upconv2": 32, "finalconv": 32}
LOSSES = {"CNN": 1.224, "UNet": 1.055, "DUNet": 0.981}  # of the shipped weights, on crops of two photographs
PALETTE = np.array([[0.1, 0.2, 0.3], [0.9, 0.8, 0.4], [0.5, 0.1, 0.6]])


@pytest.fixture(autouse=True)
def part(request, record_property):
    """Give the test's docstring to the table that conftest.py prints."""
    record_property("part", request.function.__doc__)


def crops(count):
    """Return crops of the sample photographs, uint8 (count, 3, 32, 32)."""
    return ImageSource("sample").validation_images()[:count]


def check_weights(model):
    """Compare the names and shapes of a new network's weights with those of the shipped file."""
    expected = {name: tuple(value.shape) for name, value in load_checkpoint(pretrained_path(model)).state_dict.items()}
    found = {name: tuple(x.shape) for name, x in models.NETWORKS[model](3, 32, 24).state_dict().items()}
    assert not expected.keys() - found.keys(), f"{model} lacks {sorted(expected.keys() - found.keys())[0]}"
    assert not found.keys() - expected.keys(), f"{model} should not have {sorted(found.keys() - expected.keys())[0]}"
    for name, shape in expected.items():
        assert found[name] == shape, f"{model}'s {name} has shape {found[name]}; expected is {shape}"


class Stage(nn.Module):
    """Stands in for a stage: remembers its inputs, returns a random output of the right size."""

    def __init__(self, size):
        super().__init__()
        self.size, self.inputs, self.output = size, None, None

    def forward(self, *inputs):
        self.inputs, self.output = torch.cat(inputs, 1), torch.rand(2, 4, self.size, self.size)
        return self.output


def run_stages(network):
    """Pass an image through a network of such stages; return the image and the stages."""
    net = network.__new__(network)
    nn.Module.__init__(net)
    for name, size in SIZES.items():
        setattr(net, name, Stage(size))
    image = torch.rand(2, 1, 32, 32)
    out = net(image)
    for name, stage in net.named_children():
        assert stage.inputs is not None, f"{name} is never called"
    assert out is net.finalconv.output, "what is returned is not finalconv's output"
    return image, net


def check_input(net, name, *expected):
    """Compare what a stage received with what it should have received, concatenated along the channels."""
    inputs, words = getattr(net, name).inputs, " and then ".join(name for name, _ in expected)
    wanted = torch.cat([tensor for _, tensor in expected], 1)
    assert inputs.shape == wanted.shape, f"{name} received {tuple(inputs.shape)}, expected is {tuple(wanted.shape)}"
    assert torch.equal(inputs, wanted), f"{name} should receive {words}"


def test_convolution():
    """1.1 MyConv2d.forward, 2 points"""
    conv, x = models.MyConv2d(3, 4, 3), torch.rand(2, 3, 8, 8)
    same = torch.allclose(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1), atol=1e-6)
    assert same, "the result is not that of F.conv2d with this weight, bias and padding"


def test_quantizer():
    """1.2 nearest_color, 2 points"""
    labels, distances = nearest_color(np.array([[0.1, 0.2, 0.3], [0.5, 0.1, 0.5]]), PALETTE)
    assert labels.tolist() == [0, 2], "a color's label should be the index of the palette color with the least distance"
    assert np.allclose(distances, [0, 0.1]), "the distance should be Euclidean"


def test_evaluation():
    """1.3 evaluate, 2 points"""
    net, dataset = new_network(None, "RegressionCNN", 3, 2)[0], ImageDataset(crops(7), None, torch.device("cpu"))
    whole, parts = (evaluation.evaluate(net, dataset, size)["loss"] for size in (7, 3))
    assert abs(whole - parts) < 1e-6, "the metrics should not depend on the batch size: the last batch is smaller"


def test_step():
    """1.4 Trainer.step, 2 points"""
    net, dataset = new_network(None, "RegressionCNN", 3, 4)[0], ImageDataset(crops(8), None, torch.device("cpu"))
    trainer = Trainer(net, dataset, TrainingConfig(augment=()))
    trainer.learning_rate.fill_(0.01)
    losses = [trainer.step(trainer.dataset.pixels).item() for _ in range(10)]
    assert losses[-1] < losses[0], "ten steps on the same images should lower the loss"


def test_cnn_stages():
    """2.1 CNN.__init__, 4 points"""
    check_weights("CNN")


def test_cnn_forward():
    """2.2 CNN.forward, 4 points"""
    image, net = run_stages(models.CNN)
    last = "the image", image
    for name in SIZES:
        check_input(net, name, last)
        last = f"{name}'s output", getattr(net, name).output


def test_unet_stages():
    """3.1 UNet.__init__, 6 points"""
    check_weights("UNet")


def test_unet_forward():
    """3.2 UNet.forward, 6 points"""
    image, net = run_stages(models.UNet)
    outputs = {name: (f"{name}'s output", stage.output) for name, stage in net.named_children()}
    check_input(net, "upconv1", outputs["rfconv"], outputs["downconv2"])
    check_input(net, "upconv2", outputs["upconv1"], outputs["downconv1"])
    check_input(net, "finalconv", outputs["upconv2"], ("the image", image))


@pytest.mark.parametrize("dilation", [1, 3])
def test_dilation(dilation):
    """4.1 MyDilatedConv2d.__init__, 4 points"""
    conv, x = models.MyDilatedConv2d(1, 1, 3, dilation=dilation), torch.zeros(1, 1, 21, 21)
    x[0, 0, 10, 10] = 1
    out = conv(x)
    assert out.shape == x.shape, f"dilation {dilation}: the size changes from 21x21 to {out.shape[2]}x{out.shape[3]}"
    for row, column in np.ndindex(3, 3):  # an impulse shows the filter, mirrored
        down, right = (10 - (tap - 1) * (dilation + 1) for tap in (row, column))
        found, wanted = (out[0, 0, down, right] - conv.bias).item(), conv.weight[0, 0, row, column].item()
        assert abs(found - wanted) < 1e-5, f"dilation {dilation}: tap ({row}, {column}) is not where it should be"
    (gradient,) = torch.autograd.grad(conv(torch.ones_like(x)).sum(), conv.weight)
    assert gradient[0, 0, 1, 1] == 21 * 21, f"dilation {dilation}: the middle tap should see every pixel once"


@pytest.mark.parametrize("model", LOSSES)
def test_shipped_weights(model):
    """5.1 The loss of the shipped weights, 2 points"""
    images = crops(20)
    try:
        net, checkpoint = load_network(pretrained_path(model))
        logits = predict(net, to_gray(images))
    except Exception as error:
        pytest.fail(f"Part 5.1: the {model} cannot be used yet ({error})")
    colors = images.permute(0, 2, 3, 1).flatten(0, 2).double() / 256
    labels = torch.cdist(colors, torch.from_numpy(checkpoint.palette)).argmin(1).view(-1, 32, 32)
    loss = F.cross_entropy(logits, labels).item()
    assert abs(loss - LOSSES[model]) < 0.002, f"the {model}'s loss is {loss:.3f}; expected is {LOSSES[model]}"
