"""The command-line flags that several scripts share. Scripts pass the defaults and the choices."""

import argparse
from pathlib import Path

from utils.checkpoint import KERNEL, NUM_FILTERS


def number(kind, low, high, what):
    """Return an argparse type: a `kind` (int or float) from `low` to `high`."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} from {low} to {high}")
        return value

    return parse


def odd_kernel(text):
    """Argparse type of --kernel: an odd number from 1 to 15."""
    value = number(int, 1, 15, "an odd number")(text)
    if value % 2 == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is even; a filter needs a middle pixel: use 3 or 5")
    return value


def add_network_flags(parser, checkpoint_help, models=None, default=None, colors=None):
    """Add the flags that name a network; those of the model and its palette only where there are several."""
    group = parser.add_argument_group("network (defaults: what the checkpoint says)")
    if models:
        group.add_argument("-m", "--model", choices=models, help=f"({default})")
        group.add_argument("-c", "--colors", metavar="K|FILE", help=f"number of colors, or a palette file ({colors})")
    filters = number(int, 1, 1024, "a number of filters")
    group.add_argument("-k", "--kernel", type=odd_kernel, metavar="N", help=f"filter size, odd ({KERNEL})")
    group.add_argument(
        "-f", "--num-filters", "--num_filters", type=filters, metavar="N", help=f"filters of stage 1 ({NUM_FILTERS})"
    )
    group.add_argument("--checkpoint", type=Path, metavar="FILE", help=checkpoint_help)


def add_image_flags(parser, source, classes):
    """Add the flags that say which images to use; return their group."""
    group = parser.add_argument_group("images")
    group.add_argument(
        "--data",
        default=source.name,
        metavar="NAME|PATH",
        help="cifar10, sample (two photographs, offline), a folder of images or of CIFAR-10, or an .npy file "
        "of uint8 (N, 3, 32, 32) (%(default)s)",
    )
    group.add_argument(
        "--category", choices=[*classes, "all"], default=source.category, help="class of CIFAR-10 (%(default)s)"
    )
    return group


def add_output_flags(parser):
    """Add the flags for pictures and the device; return the group of the former."""
    group = parser.add_argument_group("output")
    group.add_argument("--out-dir", type=Path, default=Path("outputs"), metavar="DIR", help="(%(default)s)")
    parser.add_argument_group("device").add_argument("--device", metavar="NAME", help="cpu or cuda (cuda if present)")
    return group


def add_training_flags(parser, config, source, classes, transforms):
    """Add the flags of training and validation."""
    action = parser.add_argument_group("action (default: train)")
    action.add_argument("--valid", action="store_true", help="measure a checkpoint and draw its pictures")
    action.add_argument("--resume", action="store_true", help="continue the stopped run of the same command")
    images = add_image_flags(parser, source, classes)
    count = number(int, 0, 10**6, "a number of images")
    images.add_argument(
        "--holdout",
        type=count,
        default=source.holdout,
        metavar="N",
        help="validate on N training images of each class, left out of training (0: on the test images)",
    )

    group = parser.add_argument_group("training")
    epochs, batch_size = number(int, 1, 10_000, "a number of epochs"), number(int, 2, 100_000, "a batch size")
    rate, seed = number(float, 1e-8, 10, "a learning rate"), number(int, 0, 2**32 - 1, "a seed")
    for names, kind, default, metavar, text in (
        (("-e", "--epochs"), epochs, config.epochs, "N", "passes over the training images"),
        (("-b", "--batch-size"), batch_size, config.batch_size, "N", "images per step"),
        (("-l", "--learn-rate"), rate, config.learning_rate, "RATE", "peak of the learning rate"),
        (("-s", "--seed"), seed, config.seed, "N", "of everything random"),
    ):
        group.add_argument(*names, type=kind, default=default, metavar=metavar, help=f"{text} (%(default)s)")
    group.add_argument(
        "--augment",
        nargs="*",
        choices=transforms,
        default=config.augment,
        help="random changes of training images; none named: no change (%(default)s)",
    )
    group.add_argument("--start-from", type=Path, metavar="FILE", help="weights and palette to begin with (new ones)")
    group.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default=config.precision, help="bf16 on GPUs (%(default)s)"
    )
    output = add_output_flags(parser)
    output.add_argument("--plot", action="store_true", help="draw sample pictures after every epoch")
    output.add_argument(
        "--json", type=Path, metavar="FILE", help="with --valid: every image's metrics, and more of them"
    )
