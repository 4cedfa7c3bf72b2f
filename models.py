"""The networks of the exercise: small encoder-decoders from a gray image to colors.

All of them take gray images (N, 1, H, W) in [0, 1), with H and W multiples of 4, and return maps of the same size.

    python models.py UNet       prints a table of its stages and a sketch
"""

import argparse
import copy
import math
import re

import torch
import torch.nn.functional as F
from torch import nn

from utils.checkpoint import COLORS, KERNEL, MODEL, NUM_FILTERS, Checkpoint, load_checkpoint
from utils.console import UserError, print_table, run
from utils.files import PROJECT, reading

STRIDE = 4  # pixels of the image for one of the bottleneck; sizes must be multiples of it


class MyConv2d(nn.Module):
    """A 2-D convolution written without nn.Conv2d: (N, in, H, W) -> (N, out, H', W').

    `padding` is the number of zero pixels on every side; None keeps the size ("same"; odd
    kernels only). Weights and biases are initialized uniformly in ±1/sqrt(fan_in).
    """

    spacing = 1  # pixels from one tap of the filter to the next

    def __init__(self, in_channels, out_channels, kernel_size, padding=None):
        super().__init__()
        self.out_channels = out_channels
        self.padding = (kernel_size - 1) // 2 if padding is None else padding
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels))
        bound = 1 / math.sqrt(in_channels * kernel_size**2)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x, extra=None):
        """Convolve x, or x and `extra` concatenated along the channels.

        Two convolutions instead of torch.cat make a UNet's step 7 % faster on CPUs.
        """
        settings = {"padding": self.padding, "dilation": self.spacing}
        if extra is None:
            return F.conv2d(x, self.weight, self.bias, **settings)
        for_x, for_extra = self.weight.split([x.shape[1], extra.shape[1]], 1)
        return F.conv2d(x, for_x, self.bias, **settings) + F.conv2d(extra, for_extra, **settings)


class MyDilatedConv2d(MyConv2d):
    """A dilated convolution, which skips `dilation` pixels between neighboring taps.

    Dilation 1 here is dilation 2 in PyTorch, and in Yu and Koltun (2016, section 2).
    """

    def __init__(self, in_channels, out_channels, kernel_size, padding=None, dilation=1):
        effective_size = kernel_size + (kernel_size - 1) * dilation  # pixels that the filter covers along one side
        padding = (effective_size - 1) // 2 if padding is None else padding
        super().__init__(in_channels, out_channels, kernel_size, padding)
        self.spacing = dilation + 1


def down_block(conv):
    """A stage that halves the size: convolution, max-pooling, batch norm, ReLU."""
    return nn.Sequential(conv, nn.MaxPool2d(2), nn.BatchNorm2d(conv.out_channels), nn.ReLU())


def conv_block(conv):
    """A stage that keeps the size: convolution, batch norm, ReLU."""
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU())


def up_block(conv):
    """A stage that doubles the size: convolution, batch norm, ReLU, nearest upsampling.

    The handout upsamples before batch norm, for four times the work: repeated pixels have the same mean and variance.
    """
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(), nn.Upsample(scale_factor=2))


def check_size(x):
    """Raise ValueError unless height and width can be halved twice."""
    height, width = x.shape[-2:]
    if height % STRIDE or width % STRIDE or not height or not width:
        raise ValueError(f"the image is {height}x{width}: height and width must be multiples of {STRIDE}")


class CNN(nn.Module):
    """A plain encoder-decoder: gray (N, 1, H, W) -> logits (N, num_colors, H, W)."""

    conv = MyConv2d

    def __init__(self, kernel, num_filters, num_colors):
        super().__init__()
        conv, f = self.conv, num_filters
        self.downconv1 = down_block(conv(1, f, kernel, padding=kernel // 2))
        self.downconv2 = down_block(conv(f, 2 * f, kernel, padding=kernel // 2))
        self.rfconv = conv_block(conv(2 * f, 2 * f, kernel, padding=kernel // 2))
        self.upconv1 = up_block(conv(2 * f, f, kernel, padding=kernel // 2))
        self.upconv2 = up_block(conv(f, num_colors, kernel, padding=kernel // 2))
        self.finalconv = conv(num_colors, num_colors, kernel, padding=kernel // 2)

    def forward(self, x):  # (N, 1, 32, 32)
        check_size(x)
        x = self.downconv1(x)  # (N, f, 16, 16)
        x = self.downconv2(x)  # (N, 2f, 8, 8)
        x = self.rfconv(x)  # (N, 2f, 8, 8)
        x = self.upconv1(x)  # (N, f, 16, 16)
        x = self.upconv2(x)  # (N, K, 32, 32)
        return self.finalconv(x)  # (N, K, 32, 32)


class RegressionCNN(CNN):
    """The regression baseline: gray (N, 1, H, W) -> red, green, blue (N, 3, H, W)."""

    conv = nn.Conv2d


class UNet(nn.Module):
    """CNN with skip connections (Ronneberger et al. 2015): logits (N, num_colors, H, W).

    Each decoder stage also receives the encoder's feature maps of the same size.
    """

    bottleneck = MyConv2d

    def __init__(self, kernel, num_filters, num_colors):
        super().__init__()
        f = num_filters
        self.downconv1 = down_block(MyConv2d(1, f, kernel))
        self.downconv2 = down_block(MyConv2d(f, 2 * f, kernel))
        self.rfconv = conv_block(self.bottleneck(2 * f, 2 * f, kernel))
        self.upconv1 = up_block(MyConv2d(2 * f + 2 * f, f, kernel))
        self.upconv2 = up_block(MyConv2d(f + f, num_colors, kernel))
        self.finalconv = MyConv2d(num_colors + 1, num_colors, kernel)

    def forward(self, x):  # (N, 1, 32, 32)
        check_size(x)
        down1 = self.downconv1(x)  # (N, f, 16, 16)
        down2 = self.downconv2(down1)  # (N, 2f, 8, 8)
        middle = self.rfconv(down2)  # (N, 2f, 8, 8)
        up1 = self.upconv1(torch.cat([middle, down2], 1))  # (N, f, 16, 16)
        up2 = self.upconv2(torch.cat([up1, down1], 1))  # (N, K, 32, 32)
        return self.finalconv(up2, x)  # (N, K, 32, 32)


class DilatedUNet(UNet):
    """UNet with a dilated convolution in the bottleneck."""

    bottleneck = MyDilatedConv2d


NETWORKS = {"RegressionCNN": RegressionCNN, "CNN": CNN, "UNet": UNet, "DUNet": DilatedUNet}
CLASSIFIERS = ("CNN", "UNet", "DUNet")  # those that take a palette
PHOTOGRAPHS = "photograph_dunet_k3_f64.pkl"  # the shipped weights for photographs
FILE_STEMS = {"RegressionCNN": "regression_cnn", "CNN": "cnn", "UNet": "unet", "DUNet": "dunet"}


def create_model(model, kernel, num_filters, num_colors=3):
    """Return a new network, `model` being a key of NETWORKS; one that predicts RGB has 3 colors."""
    net = NETWORKS[model](kernel, num_filters, num_colors)
    return net.to(memory_format=torch.channels_last)  # same results, faster convolutions


def new_network(palette, model=None, kernel=None, num_filters=None, seed=0):
    """Return (a new network, its Checkpoint). None selects a default; without a palette it predicts RGB."""
    torch.manual_seed(seed)
    model, kernel, num_filters = model or MODEL, kernel or KERNEL, num_filters or NUM_FILTERS
    net = create_model(model, kernel, num_filters, 3 if palette is None else len(palette))
    return net, Checkpoint(model, kernel, num_filters, palette, net.state_dict())


def load_network(path, model=None, kernel=None, num_filters=None, palette=None):
    """Return (a network with the weights of a file, its Checkpoint).

    The arguments are load_checkpoint()'s; pretrained_path() returns the path of shipped weights. Raises UserError.
    """
    checkpoint = load_checkpoint(path, model, kernel, num_filters, palette)
    if checkpoint.model not in NETWORKS:
        raise UserError(f"{path}: unknown network {checkpoint.model!r:.50}; the known ones are {', '.join(NETWORKS)}")
    if (checkpoint.palette is not None) != (checkpoint.model in CLASSIFIERS):
        needs = "needs its palette; give it" if checkpoint.palette is None else "has no palette; do not give one"
        raise UserError(f"{path}: a {checkpoint.model} {needs} with --colors")
    num_colors = 3 if checkpoint.palette is None else len(checkpoint.palette)
    with torch.device("meta"):  # takes no memory, whatever the file claims to be
        net = create_model(checkpoint.model, checkpoint.kernel, checkpoint.num_filters, num_colors)
    with reading(path, f"file of weights of {checkpoint.architecture}", "name another one"):
        state_dict = convert_weights(net, checkpoint.state_dict)
        net.to_empty(device="cpu").load_state_dict(state_dict)
    return net, checkpoint


def convert_weights(net, state_dict):
    """Return a state dict, ours or the handout's, as one that fits a network. Raises some exception if it does not.

    The handout's decoder upsamples before batch norm, so batch norm is layer 2 of its stages, not layer 1.
    """
    state_dict = {re.sub(r"^(upconv\d)\.2\.", r"\1.1.", name): value for name, value in state_dict.items()}
    for name in net.state_dict():
        if name.endswith("num_batches_tracked"):
            state_dict.setdefault(name, torch.tensor(0, device="cpu"))  # the handout's files are older than these
    net.load_state_dict({name: value.to("meta") for name, value in state_dict.items()})  # compares names and shapes
    for name, value in state_dict.items():
        if value.untyped_storage().nbytes() < value.nbytes:
            raise ValueError(f"{name} claims to be larger than it is")
        if not value.float().isfinite().all() or (name.endswith("running_var") and (value < 0).any()):
            raise ValueError(f"{name} is not finite, or a negative variance: its training diverged")
    return state_dict


def file_name(model, kernel, num_filters):
    """Return the default file name of such a network's checkpoint."""
    return f"{FILE_STEMS[model]}_k{kernel}_f{num_filters}.pkl"


def pretrained_path(model=None, kernel=None, num_filters=None, photographs=False):
    """Return the path of a network's shipped weights; None selects a default. Raises UserError if there are none.

    With `photographs`, and nothing else named, it is the network that was trained on photographs.
    """
    name = file_name(model or MODEL, kernel or KERNEL, num_filters or NUM_FILTERS)
    if photographs and not (model or kernel or num_filters):
        name = PHOTOGRAPHS
    path = PROJECT / "weights" / name
    if not path.exists():
        raise UserError(f"{path}: no weights are shipped for this network; train it, or name a file with --checkpoint")
    return path


def device_of(net):
    """Return the device of a network."""
    return next(net.parameters()).device


def predict(net, gray):
    """Return a network's outputs for gray images (N, 1, H, W), in evaluation mode and without gradients."""
    was_training = net.training
    net.eval()
    try:
        with torch.no_grad():
            return net(gray.to(device_of(net)))
    finally:
        net.train(was_training)


def stage_outputs(net, gray):
    """Return the output of every stage of a network for gray images: name -> (N, C, H', W'), in order."""
    outputs, net = {}, copy.deepcopy(net)  # a copy, which may keep the hooks
    for name, stage in net.named_children():
        stage.register_forward_hook(lambda stage, inputs, output, name=name: outputs.update({name: output}))
    predict(net, gray)
    return outputs


def print_stages(net, size=32):
    """Print a table of a network's stages for a size x size image, and a bar as long as each output is wide."""
    outputs, rows = stage_outputs(net, torch.zeros(1, 1, size, size)), []
    for name, stage in net.named_children():
        layers = list(stage) if isinstance(stage, nn.Sequential) else [stage]
        filters = "{} of {}x{}x{}".format(*layers[0].weight.shape)  # number, input maps, height, width
        kinds = ", ".join(type(layer).__name__ for layer in layers)
        count = sum(p.numel() for p in stage.parameters())
        rows.append([name, kinds, filters, "x".join(map(str, outputs[name].shape[1:])), f"{count:,}"])
    print_table(["stage", "layers", "filters", "output", "parameters"], rows)
    print(f"{sum(p.numel() for p in net.parameters()):,} parameters\n")
    print(f"{'gray image':<10} {'█' * size} 1 map of {size}x{size}")
    for name, output in outputs.items():
        _, maps, height, width = output.shape
        print(f"{name:<10} {('█' * width).center(size)} {maps} maps of {height}x{width}")


def main(argv):
    parser = argparse.ArgumentParser(description="Print a table of a network's stages and a sketch of their sizes.")
    parser.add_argument("model", choices=NETWORKS)
    model = parser.parse_args(argv).model
    print_stages(create_model(model, KERNEL, NUM_FILTERS, COLORS if model in CLASSIFIERS else 3))


if __name__ == "__main__":
    run(main)
