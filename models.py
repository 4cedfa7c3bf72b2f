"""The networks of the exercise: small encoder-decoders from a gray image to colors.

All of them take gray images (N, 1, H, W) in [0, 1), with H and W multiples of 4,
and keep that size. The handout's parameter names are kept, so its files load.

    python models.py UNet       prints a table of its stages, and draws them
"""

import argparse
import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from cli import run


class MyConv2d(nn.Module):
    """A 2-D convolution with parameters of its own: (N, in, H, W) -> (N, out, H', W').

    `padding` counts zero pixels on every side; None keeps the size ("same", odd
    kernels). Weight and bias start uniform within 1/sqrt(fan_in) of zero.
    """

    def __init__(self, in_channels, out_channels, kernel_size, padding=None):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.padding = (self.effective_size() - 1) // 2 if padding is None else padding
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels))
        bound = 1 / math.sqrt(in_channels * kernel_size**2)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def effective_size(self):
        """Return how many pixels the filter covers along one side."""
        return self.kernel_size

    def filters(self):
        """Return the filters as they are laid over the image: (out, in, span, span)."""
        return self.weight

    def forward(self, x, extra=None):
        """Convolve x, or x and `extra` as if `extra` followed x's channels.

        The filters of joined channels add up, so each part may have its own
        convolution: processors are far slower at 25 channels than at 24 and 1.
        """
        filters = self.filters()
        if extra is None:
            return F.conv2d(x, filters, self.bias, padding=self.padding)
        of_x, of_extra = filters.split([x.shape[1], extra.shape[1]], 1)
        return F.conv2d(x, of_x, self.bias, padding=self.padding) + F.conv2d(extra, of_extra, padding=self.padding)

    def extra_repr(self):
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"


class MyDilatedConv2d(MyConv2d):
    """A convolution whose taps stand `dilation` empty pixels apart.

    A 3x3 filter with dilation 1 covers 5x5 pixels, with dilation 3 it covers 9x9:
    PyTorch calls these dilation 2 and 4 (Yu and Koltun 2016, section 2, too).
    """

    def __init__(self, in_channels, out_channels, kernel_size, padding=None, dilation=1):
        self.dilation = dilation
        super().__init__(in_channels, out_channels, kernel_size, padding)

    def effective_size(self):
        return self.kernel_size + (self.kernel_size - 1) * self.dilation

    def filters(self):
        spread = self.weight.new_zeros(
            self.out_channels, self.in_channels, self.effective_size(), self.effective_size()
        )
        spread[:, :, :: self.dilation + 1, :: self.dilation + 1] = self.weight
        return spread

    def extra_repr(self):
        return f"{super().extra_repr()}, dilation={self.dilation}"


def down_block(conv):
    """A stage that halves the size: convolution, max-pooling, batch norm, ReLU."""
    return nn.Sequential(conv, nn.MaxPool2d(2), nn.BatchNorm2d(conv.out_channels), nn.ReLU())


def conv_block(conv):
    """A stage that keeps the size: convolution, batch norm, ReLU."""
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU())


def up_block(conv):
    """A stage that doubles the size: convolution, upsampling, batch norm, ReLU.

    The upsampling runs last, where it costs a quarter: nearest upsampling repeats
    each pixel four times, which changes neither a batch's mean nor its variance.
    The handout's numbering (upsampling 1, batch norm 2) stays.
    """
    return nn.Sequential(
        OrderedDict(
            {
                "0": conv,
                "2": nn.BatchNorm2d(conv.out_channels),
                "3": nn.ReLU(),
                "1": nn.Upsample(scale_factor=2),
            }
        )
    )


def check_size(x):
    """Raise ValueError unless height and width can be halved twice."""
    height, width = x.shape[-2:]
    if height % 4 or width % 4 or not height or not width:
        raise ValueError(f"the image is {height}x{width}: height and width must be multiples of 4")


class CNN(nn.Module):
    """Encoder and decoder in one line: gray (N, 1, H, W) -> logits (N, num_colors, H, W)."""

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

    def __init__(self, kernel, num_filters):
        super().__init__(kernel, num_filters, num_colors=3)


class UNet(nn.Module):
    """CNN with skip connections (Ronneberger et al. 2015): logits (N, num_colors, H, W).

    Each stage of the decoder also sees what the encoder had at its size.
    """

    def __init__(self, kernel, num_filters, num_colors):
        super().__init__()
        f = num_filters
        self.downconv1 = down_block(MyConv2d(1, f, kernel))
        self.downconv2 = down_block(MyConv2d(f, 2 * f, kernel))
        self.rfconv = conv_block(self.bottleneck(2 * f, 2 * f, kernel))
        self.upconv1 = up_block(MyConv2d(2 * f + 2 * f, f, kernel))
        self.upconv2 = up_block(MyConv2d(f + f, num_colors, kernel))
        self.finalconv = MyConv2d(num_colors + 1, num_colors, kernel)

    bottleneck = MyConv2d

    def forward(self, x):  # (N, 1, 32, 32)
        check_size(x)
        down1 = self.downconv1(x)  # (N, f, 16, 16)
        down2 = self.downconv2(down1)  # (N, 2f, 8, 8)
        middle = self.rfconv(down2)  # (N, 2f, 8, 8)
        up1 = self.upconv1(torch.cat([middle, down2], 1))  # (N, f, 16, 16)
        up2 = self.upconv2(torch.cat([up1, down1], 1))  # (N, K, 32, 32)
        return self.finalconv(up2, x)  # (N, K, 32, 32)


class DilatedUNet(UNet):
    """UNet whose middle convolution is dilated: it sees 5x5 with the weights of 3x3."""

    bottleneck = MyDilatedConv2d


NETWORKS = {"RegressionCNN": RegressionCNN, "CNN": CNN, "UNet": UNet, "DUNet": DilatedUNet}


def print_stages(net, size=32):
    """Print a table of a network's stages for an image of size x size, and draw each as long as its output is wide."""
    shapes = {}

    def note(name):
        return lambda stage, inputs, output: shapes.update({name: output.shape[1:]})

    for name, stage in net.named_children():
        stage.register_forward_hook(note(name))
    net.eval()(torch.zeros(1, 1, size, size))
    line = "{:<10} {:<54} {:<16} {:<10} {:>8}".format
    print(line("stage", "layers", "filters", "output", "weights"))
    for name, stage in net.named_children():
        layers = list(stage) if isinstance(stage, nn.Sequential) else [stage]
        filters = "{} of {}x{}x{}".format(*layers[0].weight.shape)  # number, maps that go in, height, width
        weights = sum(p.numel() for p in stage.parameters())
        kinds = ", ".join(type(layer).__name__ for layer in layers)
        print(line(name, kinds, filters, "x".join(map(str, shapes[name])), f"{weights:,}"))
    print(f"{sum(p.numel() for p in net.parameters()):,} weights\n")
    print(f"{'gray image':<10} {'█' * size} 1 map of {size}x{size}")
    for name, (maps, height, width) in shapes.items():
        print(f"{name:<10} {('█' * width).center(size)} {maps} maps of {height}x{width}")


def main(argv):
    parser = argparse.ArgumentParser(description="Print a table of a network's stages, and draw them.")
    parser.add_argument("model", choices=NETWORKS)
    model = NETWORKS[parser.parse_args(argv).model]
    print_stages(model(3, 32) if model is RegressionCNN else model(3, 32, 24))


if __name__ == "__main__":
    run(main)
