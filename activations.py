"""Draw what every stage of a network makes of one test image.

python activations.py 3                                             feature maps of test image 3
python activations.py 3 --model CNN --checkpoint weights/cnn_k3_f32.pkl
"""

import argparse
from pathlib import Path

import torch

from checkpoint import FILE_STEMS, describe, load_from_flags
from cli import UserError, choose_device, run
from data import add_data_flags, load_images, network_input, quantize
from flags import add_network_flags
from plots import save_feature_maps, save_rows

STAGES = ("downconv1", "downconv2", "rfconv", "upconv1", "upconv2", "finalconv")


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("number", type=int, metavar="N", help="which test image, counted from 0")
    parser.add_argument("-m", "--model", choices=FILE_STEMS, help="the network (the checkpoint's, or UNet)")
    parser.add_argument(
        "-c", "--colors", metavar="K|FILE", help="number of colors, or a palette file (the checkpoint's)"
    )
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="the weights to use (the shipped ones)")
    add_network_flags(parser)
    add_data_flags(parser)
    return parser.parse_args(argv)


@torch.no_grad()
def feature_maps(net, gray):
    """Return what every stage makes of one gray image (1, 1, H, W): name -> (C, H', W')."""
    maps = {}

    def keep(name):
        return lambda module, inputs, output: maps.update({name: output[0].cpu()})

    hooks = [getattr(net, name).register_forward_hook(keep(name)) for name in STAGES]
    net.eval()
    net(gray)
    for hook in hooks:
        hook.remove()
    return maps


def main(argv):
    args = parse(argv)
    device = choose_device(args.device)
    checkpoint = load_from_flags(args, args.model)
    images = load_images(args, train=False)
    if not 0 <= args.number < len(images):
        raise UserError(f"there is no test image {args.number}: they are counted from 0 to {len(images) - 1}")
    image = images[args.number, None]  # (1, 3, H, W)
    gray = network_input(image)
    maps = feature_maps(checkpoint.net.to(device), gray.to(device))

    folder = args.out_dir / f"activations_{FILE_STEMS[checkpoint.model]}_{args.number}"
    rows = {"gray input": gray[0]}
    if checkpoint.palette is None:
        rows["output"] = maps["finalconv"].permute(1, 2, 0)[None]
    else:
        rows["truth in\npalette colors"] = checkpoint.palette[quantize(image, checkpoint.palette)]
        rows["output"] = checkpoint.palette[maps["finalconv"].argmax(0)][None]
    rows["original"] = image.permute(0, 2, 3, 1) / 256
    save_rows(folder / "0_image.png", f"test image {args.number}", rows)
    for place, (name, values) in enumerate(maps.items(), 1):
        size = f"{len(values)} maps of {values.shape[1]}x{values.shape[2]}"
        title = f"{checkpoint.model}, {name}: {size}, each on its own scale (its least and greatest value above it)"
        save_feature_maps(folder / f"{place}_{name}.png", title, values)
    print(f"{describe(checkpoint)}\nsaved {len(maps) + 1} pictures in {folder}")


if __name__ == "__main__":
    run(main)
