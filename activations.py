"""Draw what every stage of a network makes of one image.

python activations.py 3                                             feature maps of test image 3
python activations.py photo.jpg                                     of the middle of a picture, at 32x32
python activations.py 3 --model CNN --checkpoint weights/cnn_k3_f32.pkl
"""

import argparse
from pathlib import Path

import torch

from checkpoint import FILE_STEMS, describe, load_from_flags
from cli import UserError, choose_device, run
from data import SIZE, Quantizer, add_data_flags, load_images, to_gray
from decoding import decode_annealed_mean, decode_argmax, labels_to_rgb
from flags import add_network_flags
from photos import load_square
from plots import save_feature_maps, save_image_grid

STAGES = ("downconv1", "downconv2", "rfconv", "upconv1", "upconv2", "finalconv")


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", metavar="N|FILE", help="which test image, counted from 0; or a picture file")
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


def chosen_image(args):
    """Return the image that the flags ask for, uint8 (1, 3, 32, 32), and its name."""
    if not args.image.removeprefix("-").isdecimal():
        return load_square(args.image, SIZE)[None], Path(args.image).stem
    images, number = load_images(args, train=False), int(args.image)
    if not 0 <= number < len(images):
        raise UserError(f"there is no test image {number}: they are counted from 0 to {len(images) - 1}")
    return images[number, None], number


def main(argv):
    args = parse(argv)
    device = choose_device(args.device)
    checkpoint = load_from_flags(args, args.checkpoint, args.model)
    image, name = chosen_image(args)
    gray = to_gray(image)
    maps = feature_maps(checkpoint.net.to(device), gray.to(device))

    folder = args.out_dir / f"activations_{FILE_STEMS[checkpoint.model]}_{name}"
    rows = {"gray input": gray}
    logits = maps["finalconv"][None]
    if checkpoint.palette is None:
        rows["output"] = logits
    else:
        rows["truth in palette colors"] = labels_to_rgb(Quantizer(image, checkpoint.palette)(image), checkpoint.palette)
        rows["output"] = decode_argmax(logits, checkpoint.palette)
        rows["output, smooth"] = decode_annealed_mean(logits, checkpoint.palette, gray)
    rows["truth"] = image / 256
    save_image_grid(folder / "0_image.png", f"image {name}", rows)
    for place, (stage, values) in enumerate(maps.items(), 1):
        size = f"{len(values)} maps of {values.shape[1]}x{values.shape[2]}"
        title = f"{checkpoint.model}, {stage}: {size}, each on its own scale (its least and greatest value above it)"
        save_feature_maps(folder / f"{place}_{stage}.png", title, values)
    print(f"{describe(checkpoint)}\nsaved {len(maps) + 1} pictures in {folder}")


if __name__ == "__main__":
    run(main)
