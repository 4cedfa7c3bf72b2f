"""Measure which working size, and which enlarging, colors photographs best.

    python benchmarks/working_size.py

On six photographs that come with scikit-learn and scikit-image, with the shipped
UNet and the smooth decoding. Nothing to download.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import uniform_filter
from skimage import data as photographs
from sklearn.datasets import load_sample_images

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.checkpoint import load_checkpoint, pretrained_path
from pictures.colorize import colorize_full_size, predict_chroma
from pictures.decoding import TEMPERATURE, apply_chroma
from pictures.metrics import measure

SIZES = (32, 64, 96, 128, 192, 256, 400)


def as_tensor(image):
    """Return an RGB image as (1, 3, H, W) in 0..1."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 256


def guided(differences, small_gray, gray, window=3, epsilon=1e-3):
    """Enlarge color differences along the edges of the gray (fast guided filter, He and Sun 2015)."""

    def mean(x):
        return uniform_filter(x, window)

    def enlarged(x):
        return np.array(Image.fromarray(x).resize(gray.shape[::-1], Image.Resampling.BICUBIC))

    planes = []
    for plane in differences:
        slope = mean(plane * small_gray) - mean(plane) * mean(small_gray)
        slope /= mean(small_gray**2) - mean(small_gray) ** 2 + epsilon
        planes.append(enlarged(mean(slope)) * gray + enlarged(mean(mean(plane) - slope * mean(small_gray))))
    return torch.from_numpy(np.stack(planes))[None]


def main():
    chosen = [getattr(photographs, name)() for name in ("astronaut", "coffee", "chelsea", "rocket")]
    images = [Image.fromarray(photo) for photo in [*load_sample_images().images, *chosen]]
    checkpoint = load_checkpoint(pretrained_path("UNet", 3, 32))

    print(f"{'size':>6} {'PSNR over gray':>15} {'CIEDE2000':>10} {'AuC':>7}")
    for size in SIZES:
        rows = []
        for image in images:
            truth = as_tensor(image)
            differences = predict_chroma(checkpoint.net, checkpoint.palette, image, size, "smooth", TEMPERATURE)
            pictures = {
                "gray": truth.mean(1, keepdim=True).expand_as(truth),
                "colored": as_tensor(colorize_full_size(differences, image)),
            }
            gray, colored = measure(pictures, truth, thorough=True).values()
            names = ("ciede2000", "auc")
            rows.append([colored["psnr"]["mean"] - gray["psnr"]["mean"], *(colored[name]["mean"] for name in names)])
        print("{:>6} {:>15.2f} {:>10.2f} {:>7.4f}".format(size, *np.mean(rows, 0)), flush=True)

    print("\nthe true color differences at 128 pixels, enlarged: PSNR, dB")
    rows = []
    for image in images:
        truth = as_tensor(image)
        gray = truth.mean(1, keepdim=True)
        scale = 128 / max(image.size)
        small = as_tensor(image.resize([round(side * scale) for side in image.size], Image.Resampling.BOX))[0]
        differences = small - small.mean(0)
        pictures = {
            "bicubic": as_tensor(colorize_full_size(differences[None], image)),
            "guided": apply_chroma(guided(differences.numpy(), small.mean(0).numpy(), gray[0, 0].numpy()), gray),
        }
        rows.append([row["psnr"]["mean"] for row in measure(pictures, truth).values()])
    print("bicubic {:.1f}, guided by the gray {:.1f}".format(*np.mean(rows, 0)))


if __name__ == "__main__":
    main()
