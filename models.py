"""The networks of the exercise: small encoder-decoders from a gray image to colors.

All take gray images (N, 1, H, W) in [0, 1) and return maps of the same size. This file needs nothing but PyTorch.

    python models.py UNet       print the stages of a network, and a sketch of their sizes
"""

import argparse
import copy
import math
import signal
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MyConv2d(nn.Module):
    """A 2-D convolution written without nn.Conv2d: (N, in, H, W) -> (N, out, H', W').

    `padding` is the number of zero pixels on every side; None keeps the size ("same", for odd kernels).
    Weights and biases are initialized uniformly in ±1/sqrt(fan_in).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, padding: int | None = None):
        super().__init__()
        self.out_channels = out_channels
        self.padding = (kernel_size - 1) // 2 if padding is None else padding
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels))
        bound = 1 / math.sqrt(in_channels * kernel_size**2)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=self.padding)


class MyDilatedConv2d(MyConv2d):
    """A dilated convolution, whose filters skip `dilation` pixels between neighboring taps.

    Dilation 1 here is dilation 2 in PyTorch, and in Yu and Koltun (2016, section 2).
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, padding: int | None = None, dilation: int = 1
    ):
        spread_size = kernel_size + (kernel_size - 1) * dilation  # pixels that a filter covers along one side
        super().__init__(in_channels, out_channels, kernel_size, (spread_size - 1) // 2 if padding is None else padding)
        self.dilation, self.spread_size = dilation, spread_size

    def forward(self, x: Tensor) -> Tensor:
        filters = self.weight.new_zeros(*self.weight.shape[:2], self.spread_size, self.spread_size)
        step = self.dilation + 1  # from one tap to the next; zeros stay between them
        filters[:, :, ::step, ::step] = self.weight  # gradients flow back through the assignment
        return F.conv2d(x, filters, self.bias, padding=self.padding)


def down_block(conv: MyConv2d | nn.Conv2d) -> nn.Sequential:
    """A stage that halves the size: convolution, max-pooling, batch norm, ReLU."""
    return nn.Sequential(conv, nn.MaxPool2d(2), nn.BatchNorm2d(conv.out_channels), nn.ReLU())


def conv_block(conv: MyConv2d | nn.Conv2d) -> nn.Sequential:
    """A stage that keeps the size: convolution, batch norm, ReLU."""
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU())


def up_block(conv: MyConv2d | nn.Conv2d) -> nn.Sequential:
    """A stage that doubles the size: convolution, batch norm, ReLU, nearest upsampling.

    The handout upsamples before batch norm, with the same result (repeated pixels have the same mean and variance)
    for four times the work.
    """
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(), nn.Upsample(scale_factor=2))


class Network(nn.Module):
    """What all networks have in common: they halve the size of an image a few times, and double it as often."""

    training_size = 32  # height and width of the images to train on

    @property
    def size_multiple(self) -> int:
        """The number that height and width must be multiples of: 2 for each down_block(), which alone halves them."""
        return 2 ** sum(isinstance(layer, nn.MaxPool2d) for layer in self.modules())

    def check_size(self, x: Tensor) -> None:
        """Raise ValueError unless height and width of images can be halved evenly."""
        (height, width), multiple = x.shape[-2:], self.size_multiple
        if height % multiple or width % multiple or not height or not width:
            raise ValueError(f"the image is {height}x{width}: height and width must be multiples of {multiple}")


class RegressionCNN(Network):
    """The regression baseline, a plain encoder-decoder: gray (N, 1, H, W) -> red, green, blue (N, 3, H, W)."""

    def __init__(self, kernel: int, num_filters: int, num_colors: int = 3):
        super().__init__()
        f = num_filters
        self.downconv1 = down_block(nn.Conv2d(1, f, kernel, padding="same"))
        self.downconv2 = down_block(nn.Conv2d(f, 2 * f, kernel, padding="same"))
        self.rfconv = conv_block(nn.Conv2d(2 * f, 2 * f, kernel, padding="same"))
        self.upconv1 = up_block(nn.Conv2d(2 * f, f, kernel, padding="same"))
        self.upconv2 = up_block(nn.Conv2d(f, num_colors, kernel, padding="same"))
        self.finalconv = nn.Conv2d(num_colors, num_colors, kernel, padding="same")

    def forward(self, x: Tensor) -> Tensor:  # (N, 1, 32, 32)
        self.check_size(x)
        x = self.downconv1(x)  # (N, f, 16, 16)
        x = self.downconv2(x)  # (N, 2f, 8, 8)
        x = self.rfconv(x)  # (N, 2f, 8, 8)
        x = self.upconv1(x)  # (N, f, 16, 16)
        x = self.upconv2(x)  # (N, 3, 32, 32)
        return self.finalconv(x)  # (N, 3, 32, 32)


class CNN(Network):
    """RegressionCNN as a classifier, built with MyConv2d: gray (N, 1, H, W) -> logits (N, num_colors, H, W)."""

    def __init__(self, kernel: int, num_filters: int, num_colors: int):
        super().__init__()
        f = num_filters
        self.downconv1 = down_block(MyConv2d(1, f, kernel))
        self.downconv2 = down_block(MyConv2d(f, 2 * f, kernel))
        self.rfconv = conv_block(MyConv2d(2 * f, 2 * f, kernel))
        self.upconv1 = up_block(MyConv2d(2 * f, f, kernel))
        self.upconv2 = up_block(MyConv2d(f, num_colors, kernel))
        self.finalconv = MyConv2d(num_colors, num_colors, kernel)

    def forward(self, x: Tensor) -> Tensor:  # (N, 1, 32, 32)
        self.check_size(x)
        x = self.downconv1(x)  # (N, f, 16, 16)
        x = self.downconv2(x)  # (N, 2f, 8, 8)
        x = self.rfconv(x)  # (N, 2f, 8, 8)
        x = self.upconv1(x)  # (N, f, 16, 16)
        x = self.upconv2(x)  # (N, K, 32, 32)
        return self.finalconv(x)  # (N, K, 32, 32)


class UNet(Network):
    """CNN with skip connections (Ronneberger et al. 2015): gray (N, 1, H, W) -> logits (N, num_colors, H, W).

    Each decoder stage also receives the encoder's feature maps of the same size.
    """

    bottleneck: type[MyConv2d] = MyConv2d

    def __init__(self, kernel: int, num_filters: int, num_colors: int):
        super().__init__()
        f = num_filters
        self.downconv1 = down_block(MyConv2d(1, f, kernel))
        self.downconv2 = down_block(MyConv2d(f, 2 * f, kernel))
        self.rfconv = conv_block(self.bottleneck(2 * f, 2 * f, kernel))
        self.upconv1 = up_block(MyConv2d(2 * f + 2 * f, f, kernel))
        self.upconv2 = up_block(MyConv2d(f + f, num_colors, kernel))
        self.finalconv = MyConv2d(num_colors + 1, num_colors, kernel)

    def forward(self, x: Tensor) -> Tensor:  # (N, 1, 32, 32)
        self.check_size(x)
        down1 = self.downconv1(x)  # (N, f, 16, 16)
        down2 = self.downconv2(down1)  # (N, 2f, 8, 8)
        middle = self.rfconv(down2)  # (N, 2f, 8, 8)
        up1 = self.upconv1(torch.cat([middle, down2], dim=1))  # (N, f, 16, 16)
        up2 = self.upconv2(torch.cat([up1, down1], dim=1))  # (N, K, 32, 32)
        return self.finalconv(torch.cat([up2, x], dim=1))  # (N, K, 32, 32)


class DilatedUNet(UNet):
    """UNet with a dilated convolution in the bottleneck."""

    bottleneck = MyDilatedConv2d


class DeepUNet(Network):
    """A UNet that halves the size four times: gray (N, 1, H, W) -> logits (N, num_colors, H, W).

    Its receptive field, 126 or 142 pixels, covers a whole crop of 64x64, so that context can inform the colors.
    Dropout of a fifth of the maps (Tompson et al. 2015, section 3.2) reduces overfitting.
    """

    training_size = 64

    def __init__(self, kernel: int, num_filters: int, num_colors: int):
        super().__init__()
        f = num_filters
        self.downconv1 = down_block(MyConv2d(1, f, kernel))
        self.downconv2 = down_block(MyConv2d(f, 2 * f, kernel))
        self.downconv3 = down_block(MyConv2d(2 * f, 4 * f, kernel))
        self.downconv4 = down_block(MyConv2d(4 * f, 8 * f, kernel))
        self.rfconv = conv_block(MyConv2d(8 * f, 8 * f, kernel))
        self.upconv1 = up_block(MyConv2d(8 * f + 8 * f, 4 * f, kernel))
        self.upconv2 = up_block(MyConv2d(4 * f + 4 * f, 2 * f, kernel))
        self.upconv3 = up_block(MyConv2d(2 * f + 2 * f, f, kernel))
        self.upconv4 = up_block(MyConv2d(f + f, f, kernel))
        self.finalconv = MyConv2d(f + 1, num_colors, kernel)

    def forward(self, x: Tensor) -> Tensor:  # (N, 1, 64, 64)
        self.check_size(x)
        down1 = self.downconv1(x)  # (N, f, 32, 32)
        down2 = self.downconv2(down1)  # (N, 2f, 16, 16)
        down3 = self.downconv3(down2)  # (N, 4f, 8, 8)
        down4 = self.downconv4(down3)  # (N, 8f, 4, 4)
        middle = self.rfconv(down4)  # (N, 8f, 4, 4)
        up1 = self.upconv1(F.dropout2d(torch.cat([middle, down4], dim=1), 0.2, self.training))  # (N, 4f, 8, 8)
        up2 = self.upconv2(F.dropout2d(torch.cat([up1, down3], dim=1), 0.2, self.training))  # (N, 2f, 16, 16)
        up3 = self.upconv3(torch.cat([up2, down2], dim=1))  # (N, f, 32, 32)
        up4 = self.upconv4(torch.cat([up3, down1], dim=1))  # (N, f, 64, 64)
        return self.finalconv(torch.cat([up4, x], dim=1))  # (N, K, 64, 64)


NETWORKS: dict[str, type[Network]] = {
    "RegressionCNN": RegressionCNN,
    "CNN": CNN,
    "UNet": UNet,
    "DUNet": DilatedUNet,
    "DeepUNet": DeepUNet,
}
CLASSIFIERS = [name for name in NETWORKS if name != "RegressionCNN"]  # those that predict palette colors


def create_model(model: str, kernel: int = 3, num_filters: int = 32, num_colors: int = 3) -> Network:
    """Return a new network, `model` being a key of NETWORKS; one that predicts RGB has 3 colors."""
    net = NETWORKS[model](kernel, num_filters, num_colors)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # same results, faster convolutions
    return net


def device_of(net: nn.Module) -> torch.device:
    """Return the device of a network's parameters."""
    return next(net.parameters()).device


def predict(net: nn.Module, gray: Tensor) -> Tensor:
    """Return a network's outputs for gray images (N, 1, H, W), in evaluation mode and without gradients."""
    was_training = net.training
    net.eval()
    try:
        with torch.no_grad():
            return net(gray.to(device_of(net)))
    finally:
        net.train(was_training)


def stage_outputs(net: nn.Module, gray: Tensor) -> dict[str, Tensor]:
    """Return the output of every stage of a network for gray images: name -> (N, C, H', W'), in order."""
    outputs, net = {}, copy.deepcopy(net)  # a copy, which may keep the hooks
    for name, stage in net.named_children():
        stage.register_forward_hook(lambda stage, inputs, output, name=name: outputs.update({name: output}))
    predict(net, gray)
    return outputs


def describe_stages(net: Network) -> str:
    """Return a table of a network's stages for an image to train on, and a bar as long as each output is wide."""
    size = net.training_size
    outputs = stage_outputs(net, torch.zeros(1, 1, size, size))
    lines, bars = [], [f"{'gray image':<10} {'#' * size} 1 map of {size}x{size}"]
    for name, stage in net.named_children():
        layers: list = list(stage) if isinstance(stage, nn.Sequential) else [stage]
        kinds = ", ".join(type(layer).__name__ for layer in layers)
        weight = getattr(layers[0], "weight", None)
        filters = "" if weight is None else "{} of {}x{}x{}".format(*weight.shape)  # number, input maps, height, width
        _, maps, height, width = outputs[name].shape
        count = sum(parameter.numel() for parameter in stage.parameters())
        lines.append(f"{name:<10} {kinds:<45} {filters:<16} {f'{maps}x{height}x{width}':>9} {count:>10,}")
        bars.append(f"{name:<10} {('#' * width).center(size)} {maps} maps of {height}x{width}")
    head = f"{'stage':<10} {'layers':<45} {'filters':<16} {'output':>9} {'parameters':>10}"
    total = f"{sum(parameter.numel() for parameter in net.parameters()):,} parameters"
    return "\n".join([head, *lines, total, "", *bars])


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Print the stages of a network, and a sketch of their sizes.")
    parser.add_argument("model", choices=NETWORKS)
    model = parser.parse_args(argv).model
    print(describe_stages(create_model(model, num_colors=24 if model in CLASSIFIERS else 3)))


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end quietly when the reader of our output, such as head, does
    main(sys.argv[1:])
