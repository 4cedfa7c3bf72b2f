"""The command-line flags that several scripts share; those about the images are in data.py."""

import argparse
from pathlib import Path

from cli import number
from data import add_data_flags
from training import AUGMENTATIONS


def odd_kernel(text):
    """Argparse type of --kernel: an odd number from 1 to 15."""
    value = number(int, 1, 15, "an odd number")(text)
    if value % 2 == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is even; a filter needs a middle pixel: use 3 or 5")
    return value


def add_network_flags(parser):
    """Give an argument parser the flags of every script that uses a network."""
    parser.add_argument("-k", "--kernel", type=odd_kernel, metavar="N", help="filter size, an odd number (3)")
    parser.add_argument(
        "-f",
        "--num-filters",
        "--num_filters",
        type=number(int, 1, 1024, "a number of filters"),
        metavar="N",
        help="filters of the first stage (32)",
    )
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda (cuda where there is one)")
    parser.add_argument(
        "--out-dir",
        type=Path,
        default=Path("outputs"),
        metavar="DIR",
        help="folder for pictures and figures (%(default)s)",
    )


def add_training_flags(parser, epochs):
    """Give an argument parser the flags of training and validation."""
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="where to save the weights (in --out-dir); with --valid the weights to use (the shipped ones)",
    )
    parser.add_argument("--valid", action="store_true", help="do not train: measure a checkpoint and draw its pictures")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="with --valid: also measure what takes seconds (SSIM, CIEDE2000, AuC), and write every image's figures",
    )
    parser.add_argument(
        "-e",
        "--epochs",
        type=number(int, 1, 10_000, "a number of epochs"),
        default=epochs,
        metavar="N",
        help=f"passes over the training images ({epochs or 'without it: do not train'})",
    )
    parser.add_argument(
        "--pretrain",
        type=number(int, 0, 10_000, "a number of epochs"),
        default=0,
        metavar="N",
        help="before them, N epochs on all classes of CIFAR-10 (%(default)s)",
    )
    parser.add_argument(
        "-b",
        "--batch-size",
        type=number(int, 2, 100_000, "a batch size"),
        default=25,
        metavar="N",
        help="images per step (%(default)s)",
    )
    parser.add_argument(
        "-l",
        "--learn-rate",
        dest="learning_rate",
        type=number(float, 1e-8, 10, "a learning rate"),
        default=0.04,
        metavar="RATE",
        help="peak of the learning rate (%(default)s)",
    )
    parser.add_argument(
        "-s",
        "--seed",
        type=number(int, 0, 2**32 - 1, "a seed"),
        default=0,
        metavar="N",
        help="seed of everything random (%(default)s)",
    )
    parser.add_argument(
        "--augment",
        nargs="*",
        choices=AUGMENTATIONS,
        default=["mirror", "shift-x", "shift-y"],
        metavar="WAY",
        help="change training images at random: "
        f"{', '.join(AUGMENTATIONS)} (by a pixel); without a name: none (mirror shift-x shift-y)",
    )
    parser.add_argument(
        "--holdout",
        type=number(int, 0, 10**6, "a number of images"),
        default=0,
        metavar="N",
        help="validate on N training images, left out of training, instead of the test images",
    )
    parser.add_argument(
        "--start-from",
        type=Path,
        metavar="FILE",
        help="go on from this checkpoint's weights and palette under a new schedule; a lower --learn-rate suits that",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the stopped run of the same command")
    parser.add_argument(
        "--keep",
        choices=("last", "best"),
        default="last",
        help="which epoch's weights the checkpoint receives (%(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="of the network's arithmetic in training; auto: bf16 on GPUs that have it, else fp32 (%(default)s)",
    )
    parser.add_argument(
        "--compile",
        choices=("auto", "on", "off"),
        default="auto",
        help="auto: on CUDA repeat a recorded step (CUDA graph); on: also have PyTorch's compiler rewrite the network, "
        "on any device, which takes a minute or two (%(default)s)",
    )
    parser.add_argument("--plot", action="store_true", help="draw sample pictures after every epoch, too")
    add_network_flags(parser)
    add_data_flags(parser)
