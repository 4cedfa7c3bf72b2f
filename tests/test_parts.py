"""The exercise, part by part: `python -m pytest tests/test_parts.py` prints which parts work, and their points."""

import ast
import copy
import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

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
LOSSES = {"CNN": 1.225, "UNet": 1.039, "DUNet": 1.013}  # of the shipped weights, on crops of two photographs


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
    network = models.NETWORKS[model]
    net = network(3, 32, 24)
    expected = {name: tuple(weights.shape) for name, weights in saved.items()}
    for name in sorted(expected.keys() ^ net.state_dict().keys()):
        stage = name.split(".")[0]
        assert hasattr(net, stage), f"{model} has no stage {stage}"
        assert stage in SIZES, f"{model} should not have a stage {stage}"
        pytest.fail(f"{model}'s {stage} consists of other layers than RegressionCNN's")
    check_shapes(net, f"{model}(3, 32, 24)", expected)
    ours = not any(isinstance(module, nn.Conv2d) for module in net.modules())
    assert ours, f"{model} should be built with MyConv2d, not nn.Conv2d"
    given = models.RegressionCNN(3, 4)
    for name in SIZES:
        kinds, expected_kinds = layers(getattr(net, name)), layers(getattr(given, name))
        if model == "DUNet" and name == "rfconv":
            expected_kinds[0] = "MyDilatedConv2d"
        same = kinds == expected_kinds
        assert same, f"{model}'s {name} consists of {', '.join(kinds)}; expected: {', '.join(expected_kinds)}"
    net = network(5, 16, 12)  # half the maps, but a gray image and a skip from it stay one map
    halves = {k: (*(n // 2 + n % 2 for n in shape[:2]), *(5 for _ in shape[2:])) for k, shape in expected.items()}
    check_shapes(net, f"{model}(5, 16, 12)", halves)
    for (name, size), before in zip(SIZES.items(), [32, *SIZES.values()]):
        maps = halves.get(f"{name}.0.weight", halves.get(f"{name}.weight"))[1]
        after = getattr(net, name)(torch.zeros(2, maps, before, before)).shape[-1]
        change = f"{before}x{before} into {after}x{after}"
        assert after == size, f"{model}'s {name} turns {change} with a 5x5 kernel, but {size}x{size} is expected"


def layers(stage):
    """Return the names of a stage's layers, Conv2d as MyConv2d."""
    modules = list(stage) if isinstance(stage, nn.Sequential) else [stage]
    return ["MyConv2d" if type(module) is nn.Conv2d else type(module).__name__ for module in modules]


class Stage(nn.Module):
    """Remembers what it gets in `received`, and returns what it was made with."""

    def __init__(self, name, output, received):
        super().__init__()
        self.name, self.output, self.received = name, output, received

    def forward(self, x):
        assert torch.is_tensor(x), f"{self.name} takes one tensor, but gets a {type(x).__name__}"
        self.received[self.name] = x
        return self.output


def check_shapes(net, description, expected):
    """Compare the shapes of a network's weights with those expected, {name: shape}."""
    for name, weights in net.state_dict().items():
        found = tuple(weights.shape)
        assert found == expected[name], f"{description}: {name} has shape {found}, but {expected[name]} is expected"


def check_forward(model, monkeypatch):
    """Pass an image through a network whose stages only remember what they get; compare that with INPUTS."""
    network = models.NETWORKS[model]
    net, sent, received = nn.Module.__new__(network), {"the image": torch.rand(2, 1, 32, 32)}, {}
    nn.Module.__init__(net)
    for name, size in SIZES.items():
        sent[name] = torch.rand(2, 4, size, size, requires_grad=True)
        setattr(net, name, Stage(name, sent[name], received))
    checked = []
    monkeypatch.setattr(models.Network, "check_size", lambda net, x: checked.append(x))
    out = net(sent["the image"])
    assert checked and checked[0] is sent["the image"], "check_size should be called with the image"
    for name, sources in INPUTS[model].items():
        assert name in received, f"{name} is never called"
        expected, shape = torch.cat([sent[source] for source in sources], 1), tuple(received[name].shape)
        origin = f"the output of {', then '.join(sources)}"
        assert shape == expected.shape, f"{name} receives {shape}, but {tuple(expected.shape)}, {origin}, is expected"
        same = torch.equal(received[name], expected) and received[name].requires_grad == expected.requires_grad
        assert same, f"{name} should receive {origin}, with its gradients"
    same = out is sent["finalconv"]
    assert same, "finalconv's output should be returned unchanged"


def test_convolution():
    """1.1 MyConv2d.forward, 2 points"""
    conv, x = models.MyConv2d(3, 4, 3), torch.rand(2, 3, 8, 8)
    out = conv(x)
    assert out.shape == (2, 4, 8, 8), f"8x8 pixels become {out.shape[2]}x{out.shape[3]}; padding should keep the size"
    same = torch.allclose(out, F.conv2d(x, conv.weight, conv.bias, padding=1), atol=1e-6)
    assert same, "the result differs from that of F.conv2d with this weight, bias and padding"
    out.sum().backward()
    assert conv.weight.grad is not None, "gradients should reach self.weight"
    assert conv.bias.grad is not None, "gradients should reach self.bias"
    for padding, size in ((0, 6), (2, 10)):
        conv = models.MyConv2d(3, 4, 3, padding=padding)
        assert conv(x).shape == (2, 4, size, size), "self.padding should be the number of zeros on every side"


def test_quantizer():
    """1.2 nearest_color, 2 points"""
    palette = np.array([[0.1, 0.2, 0.3], [0.9, 0.8, 0.4], [0.5, 0.1, 0.6]])
    labels, distances = nearest_color(np.array([[0.1, 0.2, 0.3], [0.6, 0.3, 0.4]]), palette)
    assert labels.tolist() == [0, 2], "a color's label should be the index of the nearest palette color"
    assert np.allclose(distances, [0, 0.3]), "the distance should be Euclidean"
    assert labels.dtype == np.uint8, f"labels should be uint8, not {labels.dtype}"
    labels, _ = nearest_color(np.array([[0.25] * 3]), np.array([[0.5] * 3, [0.0] * 3, [0.5] * 3]))
    assert labels.tolist() == [0], "where several palette colors are equally near, the first should be the label"
    close = np.array([[0.5, 0.5, 0.5 + 2e-9], [0.5, 0.5, 0.5 + 1e-9]])
    labels, _ = nearest_color(np.array([[0.5] * 3]), close)
    assert labels.tolist() == [1], "distances should be computed exactly, in float64"


def test_evaluation():
    """1.3 evaluate, 2 points"""
    net, dataset = small_dataset(7)
    images, seen = dataset.images, []
    outputs, targets = predict(net, to_gray(images)), dataset.targets(images)
    expected = F.mse_loss(outputs, targets).item()
    for size in (100, 3):
        found = evaluation.evaluate(net.train(), dataset, size, lambda *batch: seen.append(batch))["loss"]
        hint = f"with batch_size={size}, the loss of 7 images is {found:.6f}, but {expected:.6f} is expected"
        assert abs(found - expected) < 1e-6, hint
        assert net.training, "a network in training mode should be in training mode again afterwards"
    assert [len(batch[0]) for batch in seen] == [7, 3, 3, 1], "on_batch should be called once with every batch"
    same = all(torch.allclose(one, other, atol=1e-6) for one, other in zip(seen[0], (images, targets, outputs)))
    assert same, "on_batch should be called with a batch's images, targets and outputs, in this order"

    palette = np.array([[0.2, 0.2, 0.2], [0.5, 0.5, 0.4], [0.8, 0.8, 0.9]])
    net, _ = new_network(palette, model="RegressionCNN", num_filters=4)  # for three colors
    dataset, sizes = ImageDataset(crops(130), palette, torch.device("cpu")), []
    found = evaluation.evaluate(net, dataset, on_batch=lambda images, *_: sizes.append(len(images)))
    assert sizes == [100, 30], "without a batch size, a batch should have 100 images"
    logits, labels = predict(net, to_gray(dataset.images)), dataset.targets(dataset.images).long()
    share = (logits.argmax(1) == labels).float().mean().item()
    assert found == pytest.approx({"loss": F.cross_entropy(logits, labels).item(), "accuracy": share}, abs=1e-5)
    assert evaluation.evaluate(net, dataset) == pytest.approx(found), "on_batch may be left out"


def test_step(monkeypatch):
    """1.4 Trainer.step, 2 points"""
    regression = Trainer(*small_dataset(8), TrainingConfig(batch_size=8, augment=(), precision="fp32"))
    images, net = regression.dataset.images, copy.deepcopy(regression.model)
    expected = F.mse_loss(net.train()(to_gray(images)), images / 256).item()
    assert abs(regression.step(images, 0.01).item() - expected) < 1e-4, "of RGB targets, the loss is the squared error"

    palette = np.array([[0.2, 0.2, 0.2], [0.5, 0.5, 0.4], [0.8, 0.8, 0.9]])
    net, _ = new_network(palette, model="RegressionCNN", num_filters=4)
    dataset = ImageDataset(crops(8), palette, torch.device("cpu"))
    trainer = Trainer(net, dataset, TrainingConfig(batch_size=8, augment=("shift-y",), precision="fp32"))
    images, augmented, taken = dataset.images, [], []
    monkeypatch.setattr(loop, "augment", lambda images, names: augmented.append((images, *names)) or images.flip(3))
    step = trainer.optimizer.step
    monkeypatch.setattr(trainer.optimizer, "step", lambda rate: taken.append(rate) or step(rate))
    logits = copy.deepcopy(trainer.model).train()(to_gray(images.flip(3)))
    expected = F.cross_entropy(logits, dataset.targets(images.flip(3)).long()).item()

    loss = trainer.step(images, 0.0)
    once = len(augmented) == 1 and torch.equal(augmented[0][0], images) and augmented[0][1:] == ("shift-y",)
    assert once, "the images should be augmented once, by config.augment"
    assert torch.is_tensor(loss) and not loss.requires_grad, "the loss should be returned as a tensor, detached"
    hint = f"the loss is {loss.item():.4f}, but {expected:.4f} is expected: self.loss of the augmented images' targets"
    assert abs(loss.item() - expected) < 1e-4, hint
    assert taken == [0.0], "optimizer.step should be called once, with the learning rate"
    assert trainer.average.steps == 1, "the average should be updated once in every step"
    gradients = [parameter.grad for parameter in trainer.model.parameters()]
    assert all(gradient is not None for gradient in gradients), "backward should leave every parameter its gradient"
    first = [gradient.clone() for gradient in gradients]
    trainer.step(images, 0.0)
    again = [parameter.grad for parameter in trainer.model.parameters()]
    same = all(torch.allclose(one, other, rtol=1e-3, atol=1e-6) for one, other in zip(first, again))
    assert same, "the same images should give the same gradients twice; those of earlier steps should be forgotten"

    trainer.average.steps, before = 0, trainer.model.finalconv.weight.detach().clone()
    trainer.step(images, 0.01)
    after = trainer.model.finalconv.weight
    assert not torch.equal(after, before), "a step should change the weights"
    assert torch.equal(trainer.averaged_model.finalconv.weight, after), "the average should include the new weights"
    losses = [trainer.step(images, 0.01).item() for _ in range(10)]
    assert losses[-1] < losses[0], "ten steps on the same images should lower the loss"

    trainer, seen = Trainer(net, dataset, TrainingConfig(batch_size=8, augment=(), precision="bf16")), []
    trainer.model.finalconv.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    trainer.step(images, 0.01)
    assert seen == [torch.bfloat16], "the forward pass should run once, in self.dtype, by torch.autocast"


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
    for size, dilation in ((3, 1), (3, 3), (5, 1), (3, 0)):
        conv, x = models.MyDilatedConv2d(2, 3, size, dilation=dilation), torch.rand(2, 2, 19, 22)
        case = f"a {size}x{size} filter with dilation {dilation}"
        with Convolutions() as convolutions:
            out = conv(x)
        assert all(each[1] == [1, 1] for each in convolutions.seen), own
        covered = conv.spread_size
        one = [each[0] for each in convolutions.seen] == [(covered, covered)]
        assert one, f"{case} should become one filter of {covered}x{covered}, and be convolved once"
        assert out.shape == (2, 3, 19, 22), f"{case}: 19x22 pixels become {out.shape[2]}x{out.shape[3]}"
        assert conv.weight.shape == (3, 2, size, size), f"{case} should keep its {size}x{size} weights"
        impulse, kernel = torch.zeros(1, 2, 21, 21), torch.zeros(3, 21, 21)
        impulse[0, 0, 10, 10] = 1
        for row, column in np.ndindex(size, size):  # an impulse shows the filter, mirrored
            place = [10 - (tap - size // 2) * (dilation + 1) for tap in (row, column)]
            kernel[:, place[0], place[1]] = conv.weight[:, 0, row, column].detach()
        same = torch.allclose((conv(impulse) - conv(torch.zeros_like(impulse)))[0], kernel, atol=1e-6)
        assert same, f"{case}: the taps are not {dilation + 1} pixels apart, or are in another order"
        x.requires_grad_()
        leaves = x, conv.weight, conv.bias
        for padding in (conv.padding, 1):
            conv.padding = padding
            out, expected = conv(x), F.conv2d(x, conv.weight, conv.bias, 1, padding, dilation + 1)
            same = out.shape == expected.shape and torch.allclose(out, expected, atol=1e-5)
            assert same, f"{case}: all input maps and the bias, once, should be summed, with self.padding zeros around"
            for name, mine, theirs in zip(
                ("x", "self.weight", "self.bias"),
                *(torch.autograd.grad(each.square().sum(), leaves, allow_unused=True) for each in (out, expected)),
            ):
                same = mine is not None and torch.allclose(mine, theirs, rtol=1e-3, atol=1e-4)
                assert same, f"{case}: the right gradients should reach {name}"
        with torch.no_grad():
            conv.weight.mul_(2)
        same = torch.allclose(conv(x) - out, out - conv.bias.view(3, 1, 1), atol=1e-4)
        assert same, f"{case}: the filters should be spread in every call, since training changes the weights"


class Convolutions(TorchDispatchMode):
    """Records the filter size and PyTorch's dilation of every convolution; unfolding counts as dilated."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if str(operation.overloadpacket) == "aten.convolution":
            self.seen.append((tuple(args[1].shape[2:]), list(args[5])))
        if str(operation.overloadpacket) == "aten.im2col":
            self.seen.append((None, None))
        return operation(*args, **(kwargs or {}))


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
                wrong.append(f"the {model}'s loss is {loss:.3f}, but {expected} is expected; look at its parts first")
    assert not wrong, "; ".join(wrong)
