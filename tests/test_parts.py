"""The exercise, part by part: `python -m pytest tests/test_parts.py` prints which parts work, and their points."""

import ast
import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
from data import ImageDataset, ImageSource, nearest_color, to_gray
from models import predict
from training import evaluation, loop
from training.loop import Trainer, TrainingConfig
from utils.checkpoint import load_network, new_network, pretrained_path

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
    net, _ = new_network(None, model="RegressionCNN", num_filters=4)
    return net, ImageDataset(crops(count), None, torch.device("cpu"))


def check_stages(model):
    """Compare the stages of new networks with the shipped weights, and the sizes of their outputs with SIZES."""
    saved = torch.load(pretrained_path(model=model), weights_only=True)["state_dict"]
    network, _ = models.NETWORKS[model]
    net = network(3, 32, 24)
    expected = {name: tuple(weights.shape) for name, weights in saved.items()}
    for name in sorted(expected.keys() ^ net.state_dict().keys()):
        stage = name.split(".")[0]
        assert hasattr(net, stage), f"{model} has no stage {stage}"
        assert stage in SIZES, f"{model} should not have a stage {stage}"
        pytest.fail(f"{model}'s {stage} consists of other layers than RegressionCNN's")
    check_shapes(net, f"{model}(3, 32, 24)", expected)
    ours = not any(type(module) is nn.Conv2d for module in net.modules())
    assert ours, f"{model} should be built with MyConv2d, not nn.Conv2d"
    net = network(5, 16, 12)  # half the maps, but a gray image and a skip from it stay one map
    halves = {k: (*(n // 2 + n % 2 for n in shape[:2]), *(5 for _ in shape[2:])) for k, shape in expected.items()}
    check_shapes(net, f"{model}(5, 16, 12)", halves)
    for (name, size), before in zip(SIZES.items(), [32, *SIZES.values()]):
        maps = halves.get(f"{name}.0.weight", halves.get(f"{name}.weight"))[1]
        after = getattr(net, name)(torch.zeros(2, maps, before, before)).shape[-1]
        change = f"{before}x{before} into {after}x{after}"
        assert after == size, f"{model}'s {name} turns {change} with a 5x5 kernel, but {size}x{size} is expected"


def check_shapes(net, description, expected):
    """Compare the shapes of a network's weights with those expected, {name: shape}."""
    for name, weights in net.state_dict().items():
        found = tuple(weights.shape)
        assert found == expected[name], f"{description}: {name} has shape {found}, but {expected[name]} is expected"


def check_forward(model, monkeypatch):
    """Pass an image through a network whose stages only remember what they get; compare that with INPUTS."""
    network, _ = models.NETWORKS[model]
    net, sent, received = nn.Module.__new__(network), {"the image": torch.rand(2, 1, 32, 32)}, {}
    nn.Module.__init__(net)
    for name, size in SIZES.items():
        sent[name] = torch.rand(2, 4, size, size)

        def stage(*inputs, name=name):
            assert len(inputs) == 1, f"{name} takes one tensor, but gets {len(inputs)}"
            (received[name],) = inputs
            return sent[name]

        setattr(net, name, stage)
    checked = []
    monkeypatch.setattr(models.Network, "check_size", lambda net, x: checked.append(x))
    out = net(sent["the image"])
    assert len(checked) == 1, "check_size should be called once, with the image"
    for name, sources in INPUTS[model].items():
        assert name in received, f"{name} is never called"
        expected, shape = torch.cat([sent[source] for source in sources], 1), tuple(received[name].shape)
        assert shape == expected.shape, f"{name} receives {shape}, but {tuple(expected.shape)} is expected"
        same = torch.equal(received[name], expected)
        assert same, f"{name} should receive the output of {', then '.join(sources)}"
    same = out is sent["finalconv"]
    assert same, "finalconv's output should be returned unchanged"


def test_convolution():
    """1.1 MyConv2d.forward, 2 points"""
    conv, x = models.MyConv2d(3, 4, 3), torch.rand(2, 3, 8, 8)
    out = conv(x)
    assert out.shape == (2, 4, 8, 8), f"8x8 pixels become {out.shape[2]}x{out.shape[3]}; padding should keep the size"
    same = torch.allclose(out, F.conv2d(x, conv.weight, conv.bias, padding=1), atol=1e-6)
    assert same, "the result differs from that of F.conv2d with this weight, bias and padding"
    conv = models.MyConv2d(3, 4, 3, padding=0)
    assert conv(x).shape == (2, 4, 6, 6), "self.padding should be the number of zeros on every side"


def test_quantizer():
    """1.2 nearest_color, 2 points"""
    palette = np.array([[0.1, 0.2, 0.3], [0.9, 0.8, 0.4], [0.5, 0.1, 0.6]])
    labels, distances = nearest_color(np.array([[0.1, 0.2, 0.3], [0.6, 0.3, 0.4]]), palette)
    assert labels.tolist() == [0, 2], "a color's label should be the index of the nearest palette color"
    assert np.allclose(distances, [0, 0.3]), "the distance should be Euclidean"
    assert labels.dtype == np.uint8, f"labels should be uint8, not {labels.dtype}"


def test_evaluation():
    """1.3 evaluate, 2 points"""
    net, dataset = small_dataset(7)
    images, seen = dataset.images, []
    expected = F.mse_loss(predict(net, to_gray(images)), dataset.targets(images)).item()
    for size in (None, 3):
        found = evaluation.evaluate(net, dataset, size, lambda images, targets, outputs: seen.append(len(images)))[
            "loss"
        ]
        hint = f"with batch_size={size}, the loss of 7 images is {found:.6f}, but {expected:.6f} is expected"
        assert abs(found - expected) < 1e-6, hint
    assert seen == [7, 3, 3, 1], "on_batch should be called once with every batch's images, targets and outputs"


def test_step(monkeypatch):
    """1.4 Trainer.step, 2 points"""
    trainer, augmented = Trainer(*small_dataset(8), TrainingConfig(batch_size=8, augment=("mirror",))), []
    images = trainer.dataset.images
    monkeypatch.setattr(loop, "augment", lambda images, names: augmented.append((images, names)) or images)
    changing = {"the weights of the middle convolutions": trainer.raw_model.rfconv[0].weight}
    changing |= {"the other parameters": trainer.raw_model.finalconv.weight}
    changing |= {"averaged_model's weights": trainer.averaged_model.finalconv.weight}
    before = {name: weight.clone() for name, weight in changing.items()}
    assert trainer.step(images, 0.0) > 0, "the loss should be returned"
    once = len(augmented) == 1 and augmented[0][0] is images and augmented[0][1] == ("mirror",)
    assert once, "the images should be augmented once, by config.augment, before they have targets"
    unchanged = torch.equal(changing["the other parameters"], before["the other parameters"])
    assert unchanged, "no weight should change where the learning rate is 0"
    assert trainer.average.steps == 1, "the average should be updated once in every step"
    gradients = []
    for _ in range(2):
        trainer.step(images, 0.0)
        gradients.append(trainer.raw_model.finalconv.weight.grad.clone())
    same = torch.allclose(*gradients, rtol=1e-3, atol=1e-6)
    assert same, "the same images should give the same gradients twice; those of earlier steps should be forgotten"
    losses = [trainer.step(images, 0.01).item() for _ in range(10)]
    for name, weight in changing.items():
        same = torch.equal(weight, before[name])
        assert not same, f"{name} do not change in ten steps"
    assert losses[-1] < losses[0], "ten steps on the same images should lower the loss"


def test_cnn_stages():
    """2.1 CNN.__init__, 2 points"""
    check_stages("CNN")


def test_cnn_forward(monkeypatch):
    """2.2 CNN.forward, 2 points"""
    check_forward("CNN", monkeypatch)


def test_unet_stages():
    """3.1 UNet.__init__, 6 points"""
    check_stages("UNet")
    probe = type("Probe", (models.UNet,), {"bottleneck": type("Bottleneck", (models.MyConv2d,), {})})
    assert type(probe(3, 2, 2).rfconv[0]) is probe.bottleneck, "rfconv's convolution should be self.bottleneck"


def test_unet_forward(monkeypatch):
    """3.2 UNet.forward, 6 points"""
    check_forward("UNet", monkeypatch)


def test_dilation(monkeypatch):
    """7.1 MyDilatedConv2d.forward, 4 points"""
    own = "the filters should be spread by slicing and assignment, without PyTorch's own dilation"
    tree = ast.parse(inspect.getsource(models))
    (node,) = [node for node in tree.body if getattr(node, "name", None) == "MyDilatedConv2d"]
    words = {word.arg for call in ast.walk(node) if isinstance(call, ast.Call) for word in call.keywords}
    assert "dilation" not in words, own
    conv2d = F.conv2d

    def watched(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        assert dilation in (1, (1, 1)), own
        return conv2d(x, weight, bias, stride, padding, dilation, groups)

    monkeypatch.setattr(F, "conv2d", watched)
    for size, dilation in ((3, 0), (3, 1), (3, 3), (5, 1)):
        conv, x = models.MyDilatedConv2d(2, 3, size, dilation=dilation), torch.rand(2, 2, 19, 22)
        case = f"a {size}x{size} filter with dilation {dilation}"
        out = conv(x)
        assert out.shape == (2, 3, 19, 22), f"{case}: 19x22 pixels become {out.shape[2]}x{out.shape[3]}"
        assert conv.weight.shape == (3, 2, size, size), f"{case} should keep its {size}x{size} weights"
        impulse, kernel = torch.zeros(1, 2, 21, 21), torch.zeros(3, 21, 21)
        impulse[0, 0, 10, 10] = 1
        for row, column in np.ndindex(size, size):  # an impulse shows the filter, mirrored
            place = [10 - (tap - size // 2) * (dilation + 1) for tap in (row, column)]
            kernel[:, place[0], place[1]] = conv.weight[:, 0, row, column].detach()
        same = torch.allclose(conv(impulse)[0] - conv.bias.view(3, 1, 1), kernel, atol=1e-6)
        assert same, f"{case}: the taps are not {dilation + 1} pixels apart, or are in another order"
        expected = conv2d(x, conv.weight, conv.bias, 1, (size - 1) * (dilation + 1) // 2, dilation + 1)
        assert torch.allclose(out, expected, atol=1e-5), f"{case}: all input maps, and the bias once, should be summed"
        mine, theirs = (torch.autograd.grad(result.square().sum(), conv.weight)[0] for result in (out, expected))
        assert torch.allclose(mine, theirs, rtol=1e-3), f"{case}: gradients should reach self.weight through the taps"


def test_shipped_weights():
    """7.2 The losses of the shipped weights, 6 points"""
    images = crops(20)
    colors = images.permute(0, 2, 3, 1).flatten(0, 2).double() / 256
    wrong = []
    for model, expected in LOSSES.items():
        try:
            check_stages(model)
            net, checkpoint = load_network(pretrained_path(model=model))
            labels = torch.cdist(colors, torch.from_numpy(checkpoint.palette)).argmin(1).view(-1, 32, 32)
            loss = F.cross_entropy(predict(net, to_gray(images)), labels).item()
        except NotImplementedError as error:
            wrong.append(f"the {model} cannot be used yet ({error})")
        else:
            if not abs(loss - expected) < 0.002:
                wrong.append(f"the {model}'s loss is {loss:.3f}, but {expected} is expected")
    assert not wrong, "; ".join(wrong)
