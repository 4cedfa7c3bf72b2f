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


def add_number(group, *names, kind, default, text, metavar="N"):
    """Add a flag for a number, an argparse type `kind`, whose help ends with its default."""
    group.add_argument(*names, type=kind, default=default, metavar=metavar, help=f"{text} (%(default)s)")


def odd_kernel(text):
    """Argparse type of --kernel: an odd number from 1 to 15."""
    value = number(int, 1, 15, "an odd number")(text)
    if value % 2 == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is even; a filter needs a middle pixel: use 3 or 5")
    return value


def add_action_flags(parser):
    """Add the flags that say what to do instead of training, or from where; return their group."""
    group = parser.add_argument_group("action (default: train)")
    group.add_argument("--valid", action="store_true", help="measure a checkpoint and draw its pictures")
    group.add_argument("--resume", action="store_true", help="continue the interrupted run of the same command")
    text = "train from the weights and palette of this file"
    group.add_argument("--start-from", type=Path, metavar="FILE", help=text)
    return group


def add_network_flags(parser, checkpoint_help, models=None, model=None, colors=None):
    """Add the flags that name a network; its model and palette only if there are several."""
    group = parser.add_argument_group("network (defaults: what the checkpoint says)")
    if models:
        group.add_argument("-m", "--model", choices=models, help=f"({model})")
        group.add_argument("-c", "--colors", metavar="K|FILE", help=f"number of colors, or a palette file ({colors})")
    count = number(int, 1, 1024, "a number of filters")
    names = "-f", "--num-filters", "--num_filters"
    group.add_argument("-k", "--kernel", type=odd_kernel, metavar="N", help=f"filter size, odd ({KERNEL})")
    group.add_argument(*names, type=count, metavar="N", help=f"filters of the first stage ({NUM_FILTERS})")
    group.add_argument("--checkpoint", type=Path, metavar="FILE", help=checkpoint_help)


def add_image_flags(parser, source, classes):
    """Add the flags that say which images to use; return their group."""
    group = parser.add_argument_group("images")
    kinds = "cifar10, sample (two photographs), a folder of images or of CIFAR-10, or an .npy file (%(default)s)"
    group.add_argument("--data", default=source.name, metavar="NAME|PATH", help=kinds)
    category, text = source.category, "class of CIFAR-10 (%(default)s)"
    group.add_argument("--category", choices=[*classes, "all"], default=category, help=text)
    return group


def add_output_flags(parser):
    """Add the flags of what is written and of the device; return the group of the former."""
    group = parser.add_argument_group("output")
    group.add_argument("--out-dir", type=Path, default=Path("outputs"), metavar="DIR", help="(%(default)s)")
    parser.add_argument_group("device").add_argument("--device", metavar="NAME", help="cpu or cuda (cuda if present)")
    return group


def add_training_flags(parser, config, source, classes, transforms):
    """Add the flags of training and validation, with the defaults of a TrainingConfig and an ImageSource."""
    group = add_image_flags(parser, source, classes)
    images, text = number(int, 0, 10**6, "a number of images"), "validate on N training images of each class"
    add_number(group, "--holdout", kind=images, default=source.holdout, text=text)

    group = parser.add_argument_group("training")
    epochs, size = number(int, 1, 10_000, "a number of epochs"), number(int, 2, 100_000, "a batch size")
    rate, seed = number(float, 1e-8, 10, "a learning rate"), number(int, 0, 2**32 - 1, "a seed")
    add_number(group, "-e", "--epochs", kind=epochs, default=config.epochs, text="passes over the training images")
    add_number(group, "-b", "--batch-size", kind=size, default=config.batch_size, text="images per step")
    text = "peak of the learning rate"
    add_number(group, "-l", "--learn-rate", kind=rate, default=config.learning_rate, text=text, metavar="RATE")
    add_number(group, "-s", "--seed", kind=seed, default=config.seed, text="seed of everything random")
    text = f"random changes of images; none named: none ({' '.join(config.augment)})"
    group.add_argument("--augment", nargs="*", choices=transforms, default=config.augment, help=text)
    text = "bf16 on GPUs that support it (%(default)s)"
    group.add_argument("--precision", choices=("auto", "fp32", "bf16"), default=config.precision, help=text)

    group = add_output_flags(parser)
    group.add_argument("--plot", action="store_true", help="draw sample pictures after every epoch")
    group.add_argument("--json", type=Path, metavar="FILE", help="with --valid: write every metric of every image")
