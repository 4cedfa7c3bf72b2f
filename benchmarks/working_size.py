"""Measure how well a network colors photographs, by working size, and draw ten of them.

python benchmarks/working_size.py                                   six photographs that come with the libraries
python benchmarks/working_size.py --photographs FOLDER --held-out   those that training on this folder validates on

Photographs are scaled down to 480 pixels on the longer side. PSNR is that of each photograph minus that of its gray,
averaged over the photographs; colorfulness is the mean as a share of the truth's. The dataset-mean baseline is the
mean color of all photographs, added to the gray.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data as photographs
from sklearn.datasets import load_sample_images

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data import to_rgb
from pictures.colorize import colorize_full_size, predict_chroma
from pictures.decoding import apply_chroma
from pictures.metrics import measure
from pictures.plots import save_image_grid
from sources.image_files import list_image_files, read_image, split_files, to_tensor
from utils.checkpoint import load_network, pretrained_path
from utils.console import UserError, print_table, run_script
from utils.files import check_writable

SIZES = (32, 48, 64, 80, 96, 128)
LONGER_SIDE = 480
DRAWN, COLUMNS, THUMBNAIL = 10, 5, 180


def shrink(image, longer_side=LONGER_SIDE):
    """Scale an image down in place, and return it."""
    image.thumbnail((longer_side, longer_side), Image.Resampling.LANCZOS)
    return image


def library_photographs():
    """Return six photographs that come with scikit-learn and scikit-image."""
    chosen = [getattr(photographs, name)() for name in ("astronaut", "coffee", "chelsea", "rocket")]
    return [Image.fromarray(photo) for photo in [*load_sample_images().images, *chosen]]


def as_tensor(image):
    """Return an RGB image as (1, 3, H, W) in [0, 1)."""
    return to_rgb(to_tensor(image))


def compare(images, colorize):
    """Return (PSNR over the gray's, CIEDE2000, AuC, colorfulness as a share of the truth's) of colored images."""
    rows = []
    for image in images:
        truth = as_tensor(image)
        gray = truth.mean(1, keepdim=True)
        pictures = {"gray": gray.expand_as(truth), "colored": colorize(image, gray), "ground truth": truth}
        metrics = measure(pictures, truth, perceptual=True)
        values = [metrics["colored"][name]["mean"] for name in ("psnr", "ciede2000", "auc", "colorfulness")]
        values[0] -= metrics["gray"]["psnr"]["mean"]
        rows.append([*values, metrics["ground truth"]["colorfulness"]["mean"]])
    psnr, ciede2000, auc, colorfulness, true_colorfulness = np.mean(rows, 0)
    return f"{psnr:.2f}", f"{ciede2000:.2f}", f"{auc:.4f}", f"{colorfulness / true_colorfulness:.2f}"


def draw(images, colored, out_dir):
    """Draw ten of the photographs: their gray, the colored picture and the truth."""
    chosen = np.linspace(0, len(images) - 1, min(DRAWN, len(images))).astype(int)
    for start in range(0, len(chosen), COLUMNS):
        pairs = [(images[number].copy(), colored(images[number])) for number in chosen[start : start + COLUMNS]]
        for image in (image for pair in pairs for image in pair):
            image.thumbnail((THUMBNAIL, THUMBNAIL))
        truth, after = ([as_tensor(image)[0] for image in column] for column in zip(*pairs))
        rows = {"gray": [picture.mean(0, keepdim=True) for picture in truth], "colored": after, "ground truth": truth}
        path = out_dir / f"photographs_{start // COLUMNS + 1}.png"
        save_image_grid(path, "", rows)
        print(f"saved {path}")


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, metavar="FOLDER", help="color photographs (six of the libraries)")
    parser.add_argument("--held-out", action="store_true", help="only the fifth that training validates on")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights (the shipped ones for photographs)")
    parser.add_argument("--out-dir", type=Path, default=Path("outputs"), metavar="DIR", help="for the drawn pictures")
    args = parser.parse_args(argv)
    if args.held_out and not args.photographs:
        parser.error("--held-out needs --photographs FOLDER")
    check_writable(args.out_dir / "photographs_1.png")
    if args.photographs:
        all_files = list_image_files(args.photographs)
        files = split_files(all_files, train=False) if args.held_out else all_files
        if not files:
            raise UserError(f"{args.photographs}: too few photographs")
        images = [shrink(read_image(file)[0]) for file in files]
        everything = [shrink(read_image(file, 64)[0], 64) for file in all_files]
    else:
        images = everything = [shrink(image) for image in library_photographs()]
    tint = torch.cat([as_tensor(image).mean((2, 3), keepdim=True) for image in everything]).mean(0, keepdim=True)
    net, checkpoint = load_network(args.checkpoint or pretrained_path(photographs=True))

    def color(image, size=checkpoint.working_size):
        return colorize_full_size(*predict_chroma(net, checkpoint.palette, image, size), image)

    print(f"{checkpoint}, working size {checkpoint.working_size}; {len(images)} photographs")
    table = [["grayscale baseline", *compare(images, lambda image, gray: gray.expand(-1, 3, -1, -1))]]
    table.append(["dataset-mean baseline", *compare(images, lambda image, gray: apply_chroma(tint, gray))])
    for size in sorted({*SIZES, checkpoint.working_size}):
        table.append([f"working size {size}", *compare(images, lambda image, gray, n=size: as_tensor(color(image, n)))])
    print_table(["", "PSNR over the grayscale baseline, dB", "CIEDE2000", "AuC", "colorfulness"], table)
    draw(images, color, args.out_dir)


if __name__ == "__main__":
    run_script(main)
