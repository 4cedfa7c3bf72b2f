"""Measure how the temperature and the chroma gain of annealed-mean decoding trade likeness for color.

python benchmarks/temperature.py [CHECKPOINT]

Uses the 500 horses that --holdout 500 leaves out of CIFAR-10's training set, and a checkpoint trained with that flag
(otherwise the numbers are too good). COLORIZATION_DATA may name CIFAR-10's folder.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data import ImageSource, to_gray, to_rgb
from models import predict
from pictures.decoding import annealed_mean, apply_chroma, decode_annealed_mean
from pictures.metrics import colorfulness, psnr
from utils.checkpoint import load_network, pretrained_path
from utils.console import print_table, run_script

TEMPERATURES = (0.2, 0.38, 0.6, 1.0)
GAINS = (1.0, 1.1, 1.2)


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    text = "file of the network (default: the shipped UNet)"
    parser.add_argument("checkpoint", type=Path, nargs="?", default=pretrained_path(), metavar="CHECKPOINT", help=text)
    net, checkpoint = load_network(parser.parse_args(argv).checkpoint)
    images = ImageSource(holdout=500).validation_images()
    gray, truth = to_gray(images), to_rgb(images)
    logits = predict(net, gray)

    def described(picture):
        share = colorfulness(picture).mean() / colorfulness(truth).mean()
        return f"{psnr(picture, truth) - psnr(gray, truth):.2f} dB, {share:.2f}"

    rows = []
    for temperature in TEMPERATURES:
        settings = [(logits, checkpoint.palette, gray, temperature, gain) for gain in GAINS]
        rows.append([temperature, *(described(decode_annealed_mean(*each)) for each in settings)])
    plain = apply_chroma(annealed_mean(logits, checkpoint.palette, 0.38).permute(0, 3, 1, 2), gray)
    print("PSNR over the grayscale baseline, colorfulness as a share of the truth's\n")
    print(f"As Zhang et al., temperature 0.38 alone: {described(plain)}\n")
    print_table(["temperature", *(f"gain {gain}" for gain in GAINS)], rows)


if __name__ == "__main__":
    run_script(main)
