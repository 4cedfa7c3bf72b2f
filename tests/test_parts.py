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

SIZES = {"downconv1": 16, "downconv2": 8, "rfconv": 8, "upconv1": 16, "upconv2": 32, "finalconv": 32}
INPUTS = {"CNN": {name: [source] for name, source in zip(SIZES, ["the image", *SIZES])}}
INPUTS["UNet"] = INPUTS["CNN"] | {"upconv1": ["rfconv", "downconv2"], "upconv2": ["upconv1", "downconv1"]}
INPUTS["UNet"]["finalconv"] = ["upconv2", "the image"]
LOSSES = {"CNN": 1.224, "UNet": 1.055, "DUNet": 0.981}  # of the shipped weights, on crops of two photographs


def crops(count):
    """Return crops of the sample photographs, uint8 (count, 3, 32, 32)."""
    return ImageSource("sample").validation_images()[:count]


def small_dataset(count):
    """Return (a small new network, some crops as a data set)."""
    return new_network(None, "RegressionCNN", 3, 4)[0], ImageDataset(crops(count), None, torch.device("cpu"))


def check_stages(model):
    """Compare the stages of a new network with the shipped weights, and the sizes of their outputs with SIZES."""
    saved = torch.load(pretrained_path(model), weights_only=True)["state_dict"]
    net = models.NETWORKS[model](3, 32, 24)
    expected, found = ({k: tuple(v.shape) for k, v in weights.items()} for weights in (saved, net.state_dict()))
    for name in sorted(expected.keys() ^ found.keys()):
        stage = name.split(".")[0]
        assert hasattr(net, stage), f"{model} has no stage {stage}"
        assert stage in SIZES, f"{model} should not have a stage {stage}"
        pytest.fail(f"{model}'s {stage} consists of other layers than RegressionCNN's")
    for name, shape in expected.items():
        assert found[name] == shape, f"{model}'s {name} has shape {found[name]}, but {shape} is expected"
    for (name, size), before in zip(SIZES.items(), [32, *SIZES.values()]):
        maps = expected.get(f"{name}.0.weight", expected.get(f"{name}.weight"))[1]
        after = getattr(net, name)(torch.zeros(2, maps, before, before)).shape[-1]
        assert after == size, f"{name} turns {before}x{before} into {after}x{after}, but {size}x{size} is expected"


def check_forward(model):
    """Pass an image through a network whose stages only remember what they get; compare that with INPUTS."""
    net, sent, received = nn.Module.__new__(models.NETWORKS[model]), {"the image": torch.rand(2, 1, 32, 32)}, {}
    nn.Module.__init__(net)
    for name, size in SIZES.items():
        sent[name] = torch.rand(2, 4, size, size)

        def stage(*inputs, name=name):
            assert len(inputs) == 1 or name == "finalconv", f"{name} takes one tensor, but gets {len(inputs)}"
            received[name] = torch.cat(inputs, 1)
            return sent[name]

        setattr(net, name, stage)
    out = net(sent["the image"])
    for name, sources in INPUTS[model].items():
        assert name in received, f"{name} is never called"
        expected, shape = torch.cat([sent[source] for source in sources], 1), tuple(received[name].shape)
        assert shape == expected.shape, f"{name} receives {shape}, but {tuple(expected.shape)} is expected"
        assert torch.equal(received[name], expected), f"{name} should receive the output of {', then '.join(sources)}"
    assert out is sent["finalconv"], "finalconv's output should be returned unchanged"


def test_convolution():
    """1.1 MyConv2d.forward, 2 points"""
    conv, x = models.MyConv2d(3, 4, 3), torch.rand(2, 3, 8, 8)
    same = torch.allclose(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1), atol=1e-6)
    assert same, "the result differs from that of F.conv2d with this weight, bias and padding"


def test_quantizer():
    """1.2 nearest_color, 2 points"""
    palette = np.array([[0.1, 0.2, 0.3], [0.9, 0.8, 0.4], [0.5, 0.1, 0.6]])
    labels, distances = nearest_color(np.array([[0.1, 0.2, 0.3], [0.5, 0.1, 0.5]]), palette)
    assert labels.tolist() == [0, 2], "a color's label should be the index of the nearest palette color"
    assert np.allclose(distances, [0, 0.1]), "the distance should be Euclidean"


def test_evaluation():
    """1.3 evaluate, 2 points"""
    whole, parts = (evaluation.evaluate(*small_dataset(7), size)["loss"] for size in (7, 3))
    assert abs(whole - parts) < 1e-6, "the metrics should not depend on the batch size: the last batch is smaller"


def test_step():
    """1.4 Trainer.step, 2 points"""
    trainer = Trainer(*small_dataset(8), TrainingConfig(augment=()))
    trainer.learning_rate.fill_(0.01)
    losses = [trainer.step(trainer.dataset.pixels).item() for _ in range(10)]
    assert losses[-1] < losses[0], "ten steps on the same images should lower the loss"


def test_cnn_stages():
    """2.1 CNN.__init__, 2 points"""
    check_stages("CNN")


def test_cnn_forward():
    """2.2 CNN.forward, 2 points"""
    check_forward("CNN")


def test_unet_stages():
    """3.1 UNet.__init__, 6 points"""
    check_stages("UNet")
    probe = type("Probe", (models.UNet,), {"bottleneck": type("Bottleneck", (models.MyConv2d,), {})})
    assert type(probe(3, 2, 2).rfconv[0]) is probe.bottleneck, "rfconv's convolution should be self.bottleneck"


def test_unet_forward():
    """3.2 UNet.forward, 6 points"""
    check_forward("UNet")


def test_dilation():
    """4.1 MyDilatedConv2d.__init__, 4 points"""
    for size, dilation in ((3, 1), (3, 3), (5, 1)):
        conv, x = models.MyDilatedConv2d(1, 1, size, dilation=dilation), torch.zeros(1, 1, 21, 21)
        case = f"a {size}x{size} filter with dilation {dilation}"
        assert conv.weight.shape == (1, 1, size, size), f"{case} should keep its {size}x{size} weights"
        x[0, 0, 10, 10] = 1
        out = conv(x)
        assert out.shape == x.shape, f"{case}: 21x21 pixels become {out.shape[2]}x{out.shape[3]}"
        for tap in np.ndindex(size, size):  # an impulse shows the filter, mirrored
            row, column = (10 - (place - size // 2) * (dilation + 1) for place in tap)
            value = out[0, 0, row, column] - conv.bias
            assert torch.isclose(value, conv.weight[0, 0][tap]), f"{case}: tap {tap} is at another place"
        (gradient,) = torch.autograd.grad(conv(torch.ones_like(x)).sum(), conv.weight)
        assert gradient[0, 0, size // 2, size // 2] == 21 * 21, f"{case}: the middle tap should cover every pixel once"


def test_shipped_weights():
    """5.1 The losses of the shipped weights, 6 points"""
    images = crops(20)
    colors = images.permute(0, 2, 3, 1).flatten(0, 2).double() / 256
    for model, expected in LOSSES.items():
        net, checkpoint = load_network(pretrained_path(model))
        labels = torch.cdist(colors, torch.from_numpy(checkpoint.palette)).argmin(1).view(-1, 32, 32)
        loss = F.cross_entropy(predict(net, to_gray(images)), labels).item()
        assert abs(loss - expected) < 0.002, f"the {model}'s loss is {loss:.3f}, but {expected} is expected"
