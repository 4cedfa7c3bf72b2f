"""The convolutions against PyTorch's, the networks against a plain reference."""

import ast
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import smooth_images
from helpers import PALETTE
from PIL import Image
from torch import nn

import colorization
import models
import utils.checkpoint
from models import CNN, DilatedUNet, MyConv2d, MyDilatedConv2d, Network, UNet, create_model, down_block, up_block
from utils.checkpoint import convert_weights, load_network, new_network, save_checkpoint
from utils.files import PROJECT

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def outputs_and_gradients(function, x, weight, bias):
    """Return function(x, weight, bias) and the gradients of a weighted sum of it."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    out = function(*leaves)
    factors = torch.arange(out.numel(), dtype=out.dtype, device=out.device).view(out.shape).sin()
    return [out.detach(), *torch.autograd.grad((out * factors).sum(), leaves)]


def assert_same(module, x, **reference):
    """The module's output and gradients are those of F.conv2d, in float64, to 1e-10."""

    def mine(x, weight, bias):
        return torch.func.functional_call(module, {"weight": weight, "bias": bias}, (x,))

    def theirs(x, weight, bias):
        return F.conv2d(x, weight, bias, **reference)

    pairs = zip(*(outputs_and_gradients(f, x, module.weight, module.bias) for f in (mine, theirs)))
    for got, expected in pairs:
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_convolution_is_pytorchs(kernel, batch, device):
    x = torch.randn(batch, 3, 12, 9, dtype=torch.float64, device=device)
    assert_same(MyConv2d(3, 4, kernel).double().to(device), x, padding=kernel // 2)
    if kernel < 5:
        assert_same(MyConv2d(3, 4, kernel, padding=2).double().to(device), x, padding=2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dilation", [0, 1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_dilation_counts_the_empty_pixels(kernel, dilation, batch, device):
    for size in ((20, 20), (23, 17)):
        x = torch.randn(batch, 2, *size, dtype=torch.float64, device=device)
        conv = MyDilatedConv2d(2, 3, kernel, dilation=dilation).double().to(device)
        assert conv(x).shape == (batch, 3, *size)
        assert_same(conv, x, padding=(kernel - 1) * (dilation + 1) // 2, dilation=dilation + 1)
        assert_same(MyDilatedConv2d(2, 3, kernel, 1, dilation).double().to(device), x, padding=1, dilation=dilation + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_spread_filters_take_any_number_format(dtype):
    conv = MyDilatedConv2d(2, 3, 3, dilation=2).to(dtype)
    out = conv(torch.randn(1, 2, 9, 9, dtype=dtype))
    out.sum().backward()
    assert out.dtype == conv.weight.grad.dtype == dtype
    assert conv.weight.shape == (3, 2, 3, 3) and conv.weight.is_leaf


def test_pytorchs_own_dilation_is_not_used():
    """The exercise gives no credit for the dilation parameter of F.conv2d."""
    for path in [*PROJECT.glob("*.py"), *PROJECT.glob("*/*.py")]:
        if path.parent.name not in ("tests", "docs", "benchmarks"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                words = [keyword.arg for keyword in node.keywords] if isinstance(node, ast.Call) else []
                assert "dilation" not in words, f"{path}:{node.lineno}"


def test_models_alone_run_in_an_empty_folder(tmp_path):
    """With nothing but PyTorch and the standard library."""
    shutil.copy(models.__file__, tmp_path)
    command = [sys.executable, "models.py", "UNet"]
    done = subprocess.run(command, cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert done.returncode == 0 and "parameters" in done.stdout, done.stderr
    imported = [node for node in ast.walk(ast.parse(Path(models.__file__).read_text(encoding="utf-8")))]
    names = {alias.name for node in imported if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in imported if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} - sys.stdlib_module_names == {"torch"}


class ThriceHalved(Network):
    """Halves three times: a network as a reader adds it."""

    def __init__(self, kernel, num_filters, num_colors):
        super().__init__()
        self.downconv1, self.downconv2 = (down_block(MyConv2d(n, num_filters, kernel)) for n in (1, num_filters))
        self.downconv3 = down_block(MyConv2d(num_filters, num_filters, kernel))
        self.upconv1, self.upconv2 = (up_block(MyConv2d(num_filters, num_filters, kernel)) for _ in range(2))
        self.upconv3 = up_block(MyConv2d(num_filters, num_colors, kernel))

    def forward(self, x):
        self.check_size(x)
        for stage in self.children():
            x = stage(x)
        return x


def test_the_multiple_of_a_size_belongs_to_the_network():
    net = ThriceHalved(3, 2, 5).eval()
    assert net.size_multiple == 8 and UNet(3, 2, 5).size_multiple == 4
    assert net(torch.rand(1, 1, 16, 8)).shape == (1, 5, 16, 8)
    with pytest.raises(ValueError, match="multiples of 8"):
        net(torch.rand(1, 1, 12, 12))
    with pytest.raises(ValueError, match="multiples of 4"):
        UNet(3, 2, 5)(torch.rand(1, 1, 10, 12))
    with pytest.raises(ValueError, match="the image is 0x8"):
        UNet(3, 2, 5)(torch.rand(1, 1, 0, 8))


def test_a_network_is_added_in_one_place(cifar, monkeypatch):
    """A row of NETWORKS: then it trains, is saved under its name, and colors a photograph of any size."""
    monkeypatch.setitem(models.NETWORKS, "Deep", ThriceHalved)
    models.CLASSIFIERS.append("Deep")
    try:
        colorization.main(["--model", "Deep", "-e", "1", "-b", "9", "-f", "2", "-c", "3"])
        Image.fromarray(smooth_images(1)[0].transpose(1, 2, 0)).resize((101, 67)).save("odd.png")
        colorization.main(["--colorize", "odd.png", "--checkpoint", "outputs/deep_k3_f2.pkl"])
    finally:
        models.CLASSIFIERS.remove("Deep")
    with Image.open("outputs/odd_colored.png") as colored:
        assert colored.size == (101, 67)


class OnceHalved(Network):
    """One level, whose decoder has a convolution where the handout's has batch norm, and a layer without weights."""

    def __init__(self, kernel, num_filters, num_colors):
        super().__init__()
        self.downconv1 = down_block(MyConv2d(1, num_filters, kernel))
        self.drop = nn.Dropout2d(0.2)
        self.upconv1 = up_block(MyConv2d(num_filters, num_filters, kernel))
        self.upconv1.insert(2, MyConv2d(num_filters, num_filters, kernel))
        self.finalconv = MyConv2d(num_filters, num_colors, kernel)

    def forward(self, x):
        self.check_size(x)
        return self.finalconv(self.upconv1(self.drop(self.downconv1(x))))


@pytest.mark.parametrize("model", models.NETWORKS)
@pytest.mark.parametrize("kernel", [1, 5])
def test_all_filters_have_the_size_that_was_asked_for(model, kernel):
    weights = [value for value in create_model(model, kernel, 2, 5).parameters() if value.ndim == 4]
    assert len(weights) == (10 if model == "DeepUNet" else 6)
    assert all(weight.shape[2:] == (kernel, kernel) for weight in weights)


def test_any_network_can_be_loaded_and_described(tmp_path, monkeypatch):
    monkeypatch.setitem(models.NETWORKS, "Flat", OnceHalved)
    monkeypatch.setattr(models, "CLASSIFIERS", [*models.CLASSIFIERS, "Flat"])
    monkeypatch.setattr(utils.checkpoint, "CLASSIFIERS", models.CLASSIFIERS)
    net, checkpoint = new_network(PALETTE, model="Flat", num_filters=16)
    save_checkpoint(tmp_path / "flat.pkl", checkpoint)
    loaded, _ = load_network(tmp_path / "flat.pkl")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in net.state_dict().items())
    table = models.describe_stages(net)
    assert "drop       Dropout2d" in table and "16 of 16x3x3" in table


def test_a_dilated_filter_covers_what_the_exercise_says():
    for dilation, span in ((0, 3), (1, 5), (3, 9)):
        image = torch.zeros(1, 1, 21, 21)
        image[0, 0, 10, 10] = 1
        conv = MyDilatedConv2d(1, 1, 3, dilation=dilation)
        with torch.no_grad():
            conv.weight.fill_(1)
            conv.bias.zero_()
            touched = conv(image)[0, 0].nonzero()
        assert len(touched) == 9
        assert (touched.max(0).values - touched.min(0).values + 1).tolist() == [span, span]


def test_initialization_is_uniform_within_the_bound():
    conv = MyConv2d(16, 64, 3)
    bound = 1 / math.sqrt(16 * 9)
    for values in (conv.weight, conv.bias):
        assert values.abs().max() <= bound
        assert values.abs().max() > 0.9 * bound
    assert abs(conv.weight.std().item() - bound / math.sqrt(3)) < 0.03 * bound


def test_own_convolutions_where_the_exercise_asks_for_them():
    for net in (CNN(3, 4, 5), UNet(3, 4, 5), DilatedUNet(3, 4, 5)):
        assert not any(isinstance(module, nn.Conv2d) for module in net.modules())
    assert isinstance(DilatedUNet(3, 4, 5).rfconv[0], MyDilatedConv2d)
    assert DilatedUNet(3, 4, 5).rfconv[0].dilation == 1


def reference(model, net, x):
    """The networks as the exercise's table has them, in plain functions and in its order."""
    state = net.state_dict()

    def conv(name, x, dilation=1):
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2 * dilation, dilation=dilation)

    def norm(name, x):
        entries = [state[f"{name}.{entry}"].clone() for entry in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(x, *entries, training=net.training))

    def upsampled(x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    skips = model in ("UNet", "DUNet")
    down1 = norm("downconv1.2", F.max_pool2d(conv("downconv1.0", x), 2))
    down2 = norm("downconv2.2", F.max_pool2d(conv("downconv2.0", down1), 2))
    middle = norm("rfconv.1", conv("rfconv.0", down2, dilation=2 if model == "DUNet" else 1))
    up1 = norm("upconv1.1", upsampled(conv("upconv1.0", torch.cat([middle, down2], 1) if skips else middle)))
    up2 = norm("upconv2.1", upsampled(conv("upconv2.0", torch.cat([up1, down1], 1) if skips else up1)))
    return conv("finalconv", torch.cat([up2, x], 1) if skips else up2)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("model", ["CNN", "UNet", "DUNet", "RegressionCNN"])
def test_networks_are_the_reference(model, kernel, training):
    torch.manual_seed(0)
    num_colors = 3 if model == "RegressionCNN" else 6
    net = create_model(model, kernel, 4, num_colors).double().train()
    net(torch.rand(8, 1, 16, 16).double())  # batch statistics away from their start
    net.train(training)
    x = torch.rand(3, 1, 20, 12).double()
    expected = reference(model, net, x)
    out = net(x)
    assert out.shape == (3, num_colors, 20, 12)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("network", [UNet, DilatedUNet])
def test_skip_connections_carry_the_encoders_tensors(network):
    """With the path through the middle cut, a change of the encoder's tensor still comes through."""
    torch.manual_seed(0)
    net = network(3, 4, 5).eval()
    x = torch.rand(1, 1, 16, 16)
    for skipped, cut in (("downconv2", "rfconv"), ("downconv1", "upconv1"), (None, "upconv2")):
        kept = {}
        getattr(net, cut).register_forward_hook(
            lambda module, inputs, output, kept=kept: kept.setdefault("first", output.detach())
        )
        before = net(x)
        if skipped:
            hook = getattr(net, skipped).register_forward_hook(lambda module, inputs, output: output + 1)
            after = net(x)
            hook.remove()
        else:
            after = net(x + 0.1)
        assert (after - before).abs().max() > 1e-3, f"{skipped or 'the gray image'} is not seen past {cut}"
        getattr(net, cut)._forward_hooks.clear()


@pytest.mark.parametrize("size", [(30, 32), (32, 33), (2, 4)])
@pytest.mark.parametrize("model", ["CNN", "UNet", "DUNet", "RegressionCNN"])
def test_sizes_that_cannot_be_halved_twice_are_refused(model, size):
    with pytest.raises(ValueError, match="multiples of 4"):
        create_model(model, 3, 4, 5)(torch.rand(1, 1, *size))


class HandoutUNet(UNet):
    """The UNet as the handout has it: upsampling is layer 1 of a decoder's stage, before batch norm."""

    def __init__(self, *settings):
        super().__init__(*settings)
        for name in ("upconv1", "upconv2"):
            conv, norm, relu, upsample = getattr(self, name)
            setattr(self, name, nn.Sequential(conv, upsample, norm, relu))


@pytest.mark.parametrize("counters", [True, False])
def test_the_handouts_weights_load(counters):
    torch.manual_seed(0)
    theirs, ours = HandoutUNet(3, 4, 5), UNet(3, 4, 5)
    theirs(torch.rand(8, 1, 16, 16))  # batch statistics away from their start
    state_dict = theirs.state_dict()
    assert "upconv1.2.running_mean" in state_dict
    if not counters:  # files of old versions of PyTorch have none
        state_dict = {name: value for name, value in state_dict.items() if "num_batches" not in name}
    ours.load_state_dict(convert_weights(state_dict))
    x = torch.rand(3, 1, 16, 16)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=0, atol=1e-6)
    del state_dict["rfconv.1.weight"]
    with pytest.raises(RuntimeError, match=r"rfconv\.1\.weight"):
        ours.load_state_dict(convert_weights(state_dict))


def test_a_networks_table_counts_every_weight(capsys):
    models.main(["UNet"])
    said = capsys.readouterr().out
    assert re.search(r"finalconv .* 24 of 25x3x3 +24x32x32 +5,424$", said, re.MULTILINE)
    stages = re.findall(r"^\w+ +\w*Conv2d.* ([\d,]+)$", said, re.MULTILINE)
    assert sum(int(count.replace(",", "")) for count in stages) == 112_344 and "112,344 parameters" in said
    assert "downconv2              ########             64 maps of 8x8" in said


def test_a_network_keeps_no_hooks_of_its_stages():
    from models import stage_outputs

    net = create_model("CNN", 3, 2, 5)
    assert stage_outputs(net, torch.zeros(1, 1, 8, 8)).keys() == {name for name, _ in net.named_children()}
    assert not any(stage._forward_hooks for stage in net.children())


def test_the_deep_unet_is_the_unets_idea_four_times(capsys, monkeypatch):
    """Each stage halves or doubles the size; every decoder stage also takes the encoder's maps of its size."""
    torch.manual_seed(0)
    net = models.DeepUNet(3, 2, 5)
    shapes = {name: tuple(maps.shape[1:]) for name, maps in models.stage_outputs(net, torch.rand(1, 1, 64, 64)).items()}
    down = {f"downconv{n}": (2**n, 64 >> n, 64 >> n) for n in (1, 2, 3, 4)}
    up = {"upconv1": (8, 8, 8), "upconv2": (4, 16, 16), "upconv3": (2, 32, 32), "upconv4": (2, 64, 64)}
    assert shapes == down | {"rfconv": (16, 4, 4)} | up | {"finalconv": (5, 64, 64)}
    assert net.size_multiple == 16
    net.eval()
    x = torch.rand(2, 1, 48, 80)
    stages = dict(net.named_children())
    downs = [x]
    for n in (1, 2, 3, 4):
        downs.append(stages[f"downconv{n}"](downs[-1]))
    maps = stages["rfconv"](downs[4])
    for n in (1, 2, 3, 4):
        maps = stages[f"upconv{n}"](torch.cat([maps, downs[5 - n]], 1))
    assert torch.equal(net(x), stages["finalconv"](torch.cat([maps, x], 1)))
    dropped = []
    monkeypatch.setattr(models.F, "dropout2d", lambda maps, *settings: dropped.append(settings) or maps)
    net(x)
    net.train()(x)
    assert dropped == 2 * [(0.2, False)] + 2 * [(0.2, True)]
    models.main(["DeepUNet"])
    assert "finalconv  MyConv2d" in capsys.readouterr().out


def test_crops_are_as_large_as_the_network_is_trained_on(photo_folder, small_palette):
    argv = ["--model", "DeepUNet", "--data", str(photo_folder), "-c", str(small_palette), "-e", "1", "-f", "2"]
    shapes = []
    step = models.DeepUNet.forward
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(models.DeepUNet, "forward", lambda net, x: shapes.append(tuple(x.shape[2:])) or step(net, x))
        colorization.main(argv)
        colorization.main(["--valid", "--data", str(photo_folder), "--checkpoint", "outputs/deep_unet_k3_f2.pkl"])
    assert set(shapes) == {(64, 64)}
