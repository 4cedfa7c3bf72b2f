"""Measure how well a network colors photographs, by working size, and draw eight of them.

python benchmarks/working_size.py                                   six photographs that come with the libraries
python benchmarks/working_size.py --photographs FOLDER --held-out   those that training on this folder validates on

Photographs are scaled down to 480 pixels on the longer side. The gain is that of the PSNR of the mean squared error,
averaged over the photographs, over that of the gray alone; colorfulness is the mean as a share of the truth's. The
dataset-mean baseline is the mean color of all photographs, added to the gray; "better" is the share of photographs that
are closer to the truth than that. The last column is how much of the chroma changes, on average, when noise with a
standard deviation of 5 (of 255) is added to the gray.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data as photographs
from sklearn.datasets import load_sample_images

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.picture_metrics import measure
from data import to_rgb
from pictures.colorize import colorize_full_size, predict_chroma, thumbnail
from pictures.decoding import apply_chroma
from pictures.plots import save_image_grid
from sources.image_files import list_image_files, read_image, split_files, to_tensor
from utils.checkpoint import load_network, pretrained_path
from utils.console import UserError, print_table, run_script
from utils.files import check_writable

SIZES = (64, 96, 128, 160, 192, 224)
LONGER_SIDE = 480
DRAWN, COLUMNS = 8, 4


def shrink(image, longer_side=LONGER_SIDE):
    """Return an image in RGB, scaled down."""
    image = image.convert("RGB")
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
    """Return what colored images have each: {"mse", "gray", "ciede2000", "auc", "colorfulness", "truth", …: (N,)}.

    "gray" is the mean squared error of the gray alone, "truth" the true colorfulness, and "changed" the change of the
    chroma when noise is added to the gray.
    """
    columns = {name: [] for name in ("mse", "gray", "ciede2000", "auc", "colorfulness", "truth", "changed")}
    for image in images:
        truth = as_tensor(image)
        gray = truth.mean(1, keepdim=True)
        colored = colorize(image, gray)
        metrics = measure({"colored": colored, "ground truth": truth}, truth)
        for name in ("ciede2000", "auc", "colorfulness"):
            columns[name].append(metrics["colored"][name]["mean"])
        columns["truth"].append(metrics["ground truth"]["colorfulness"]["mean"])
        columns["mse"].append((colored - truth).square().mean().item())
        columns["gray"].append((gray - truth).square().mean().item())
        noisy = add_noise(image)
        columns["changed"].append(change_of_chroma(colored, colorize(noisy, as_tensor(noisy).mean(1, keepdim=True))))
    return {name: np.array(values) for name, values in columns.items()}


def add_noise(image):
    """Return an RGB image with Gaussian noise in its gray, of a standard deviation of 5."""
    noise = 5 * np.random.default_rng(0).standard_normal((image.height, image.width, 1))
    return Image.fromarray((np.asarray(image) + noise).round().clip(0, 255).astype(np.uint8))


def change_of_chroma(before, after):
    """Return the mean absolute change of the chroma of colors (1, 3, H, W), as a share of its mean absolute value."""
    before, after = (colors - colors.mean(1, keepdim=True) for colors in (before, after))
    return (after - before).abs().mean().item() / max(before.abs().mean().item(), 1e-6)


def described(row, baseline):
    """Return a table's columns for what compare() returned."""
    mean = {name: values.mean() for name, values in row.items()}
    gain = 10 * np.log10(mean["gray"] / mean["mse"])
    better = f"{(row['mse'] < baseline['mse']).mean():.0%}" if row is not baseline else ""
    share, changed = mean["colorfulness"] / mean["truth"], f"{mean['changed']:.0%}"
    return f"{gain:.2f}", f"{share:.2f}", f"{mean['ciede2000']:.2f}", f"{mean['auc']:.4f}", better, changed


def draw(images, colored, out_dir):
    """Draw eight of the photographs: their gray, the colored picture and the truth."""
    chosen = np.linspace(0, len(images) - 1, min(DRAWN, len(images))).astype(int)
    for start in range(0, len(chosen), COLUMNS):
        pairs = [(images[number], colored(images[number])) for number in chosen[start : start + COLUMNS]]
        truth, after = (list(map(thumbnail, column)) for column in zip(*pairs))
        rows = {"gray": [picture.mean(0, keepdim=True) for picture in truth], "colored": after, "ground truth": truth}
        path = out_dir / f"photographs_{start // COLUMNS + 1}.png"
        save_image_grid(path, "", rows)
        print(f"saved {path}")


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, metavar="FOLDER", help="color photographs (six of the libraries)")
    parser.add_argument("--held-out", action="store_true", help="only the tenth that training validates on")
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
        images = [shrink(read_image(file)) for file in files]
        everything = [shrink(read_image(file, 64), 64) for file in all_files]
    else:
        images = everything = [shrink(image) for image in library_photographs()]
    tint = torch.cat([as_tensor(image).mean((2, 3), keepdim=True) for image in everything]).mean(0, keepdim=True)
    net, checkpoint = load_network(args.checkpoint or pretrained_path(photographs=True))

    def color(image, size=checkpoint.working_size):
        return colorize_full_size(*predict_chroma((net, replace(checkpoint, working_size=size)), image), image)

    print(f"{checkpoint}, working size {checkpoint.working_size}; {len(images)} photographs")
    baseline = compare(images, lambda image, gray: apply_chroma(tint, gray))
    rows = {"grayscale baseline": compare(images, lambda image, gray: gray.expand(-1, 3, -1, -1))}
    rows["dataset-mean baseline"] = baseline
    for size in sorted({*SIZES, checkpoint.working_size}):
        rows[f"working size {size}"] = compare(images, lambda image, gray, n=size: as_tensor(color(image, n)))
    names = ["", "PSNR gain, dB", "colorfulness", "CIEDE2000", "AuC", "better", "changed by noise"]
    print_table(names, [[label, *described(row, baseline)] for label, row in rows.items()])
    draw(images, color, args.out_dir)


if __name__ == "__main__":
    run_script(main)
