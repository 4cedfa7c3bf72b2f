"""Measure which working size colors photographs best.

    python benchmarks/working_size.py

On six photographs that come with scikit-learn and scikit-image, with the shipped
UNet and the smooth decoding. Nothing to download.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data as photographs
from sklearn.datasets import load_sample_images

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models import load_network, pretrained_path
from pictures.colorize import colorize_full_size, predict_chroma
from pictures.metrics import measure
from utils.console import print_table

SIZES = (32, 64, 96, 128, 192, 256, 400)


def as_tensor(image):
    """Return an RGB image as (1, 3, H, W) in 0..1."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 256


def main():
    chosen = [getattr(photographs, name)() for name in ("astronaut", "coffee", "chelsea", "rocket")]
    images = [Image.fromarray(photo) for photo in [*load_sample_images().images, *chosen]]
    net, checkpoint = load_network(pretrained_path())
    table = []
    for size in SIZES:
        rows = []
        for image in images:
            truth = as_tensor(image)
            chroma = predict_chroma(net, checkpoint.palette, image, size)
            pictures = {
                "gray": truth.mean(1, keepdim=True).expand_as(truth),
                "colored": as_tensor(colorize_full_size(chroma, image)),
            }
            gray, colored = measure(pictures, truth, perceptual=True).values()
            gain = colored["psnr"]["mean"] - gray["psnr"]["mean"]
            rows.append([gain, colored["ciede2000"]["mean"], colored["auc"]["mean"]])
        table.append([size, *("{:.2f} {:.2f} {:.4f}".format(*np.mean(rows, 0)).split())])
    print_table(["working size", "PSNR over the gray copy, dB", "CIEDE2000", "AuC"], table)


if __name__ == "__main__":
    main()
