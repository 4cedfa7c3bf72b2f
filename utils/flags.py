"""Command-line flags shared by several scripts, which pass the defaults and the choices."""

import argparse
from pathlib import Path

from utils.checkpoint import COLORS, KERNEL, MODEL, NUM_FILTERS
from utils.console import UserError

TRAINING_FLAGS = ("epochs", "batch_size", "learning_rate", "augment", "precision", "plot", "resume", "start_from")
TRAINING_FLAGS += ("rebalance", "picture_weight")  # of the classifiers


def add_number(group, *names, low, high, text, default=None, metavar="N", **more):
    """Add a flag that takes a number from `low` to `high`, of the default's type; without a default, an integer."""

    def number(word):  # argparse calls it by this name
        value = int(word) if default is None else type(default)(word)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{word!r} is not a number from {low} to {high}")
        return value

    text += "" if default is None else " (default: %(default)s)"
    group.add_argument(*names, type=number, default=default, metavar=metavar, help=text, **more)


def reject_flags(parser, args, mode, useless):
    """End with an error if a flag named in `useless`, which has no effect in this mode, differs from its default."""
    for name in useless:
        if getattr(args, name, None) != parser.get_default(name):  # both None for another script's flag
            flag = name.replace("learning", "learn").replace("_", "-")
            raise UserError(f"--{flag} has no effect with {mode}; remove it")


def add_action_flags(parser, default="train"):
    """Add the flags that choose an action other than the default one; return their group."""
    group = parser.add_argument_group(f"action (default: {default})")
    group.add_argument("--valid", action="store_true", help="evaluate a checkpoint and draw samples; no training")
    group.add_argument("--resume", action="store_true", help="continue an interrupted run: repeat its command with it")
    text = "start training from this checkpoint: its weights and, if it has one, its palette"
    group.add_argument("--start-from", type=Path, metavar="FILE", help=text)
    return group


def add_network_flags(parser, checkpoint_help, models=None):
    """Add the flags that describe a network; --model and --colors only for scripts with a choice of networks."""
    group = parser.add_argument_group("network (a checkpoint records these settings; they need not be repeated)")
    if models:
        group.add_argument("-m", "--model", choices=models, help=f"network (default: {MODEL})")
        text = f"number of colors, or a palette file (default: {COLORS})"
        group.add_argument("-c", "--colors", metavar="K|FILE", help=text)
    odd = range(1, 16, 2)
    text = f"filter size, odd (default: {KERNEL})"
    group.add_argument("-k", "--kernel", type=int, choices=odd, metavar="N", help=text)
    text = f"filters of the first stage (default: {NUM_FILTERS})"
    add_number(group, "-f", "--num-filters", "--num_filters", low=1, high=1024, text=text)
    group.add_argument("--checkpoint", type=Path, metavar="FILE", help=checkpoint_help)


def add_image_flags(parser, source, classes):
    """Add the flags that choose the images; return their group."""
    group = parser.add_argument_group("images")
    kinds = "cifar10, sample (two photographs), a folder (images or CIFAR-10) or an .npy file (default: %(default)s)"
    group.add_argument("--data", default=source.name, metavar="NAME|PATH", help=kinds)
    text = "class of CIFAR-10, or all classes (default: %(default)s)"
    group.add_argument("--category", choices=[*classes, "all"], default=source.category, help=text)
    return group


def add_output_flags(parser):
    """Add the flags for the output and the device; return the output group."""
    group = parser.add_argument_group("output")
    text = "folder for the output files (default: %(default)s)"
    group.add_argument("--out-dir", type=Path, default=Path("outputs"), metavar="DIR", help=text)
    text = "cpu, cuda or cuda:N (default: cuda if available)"
    parser.add_argument_group("device").add_argument("--device", metavar="NAME", help=text)
    return group


def add_training_flags(parser, config, source, classes, transforms):
    """Add the flags of training and validation, with the defaults of a TrainingConfig and an ImageSource."""
    group = add_image_flags(parser, source, classes)
    text = "leave N images of each class out of training and validate on them; 0: on the test images"
    add_number(group, "--holdout", default=source.holdout, low=0, high=10**6, text=text)

    group = parser.add_argument_group("training")
    text = "passes over the training images" + ("" if config.epochs else "; without this flag, validate only")
    add_number(group, "-e", "--epochs", default=config.epochs, low=1, high=10_000, text=text)
    add_number(group, "-b", "--batch-size", default=config.batch_size, low=2, high=100_000, text="images per step")
    rate = {"default": config.learning_rate, "low": 1e-8, "high": 10, "text": "peak learning rate"}
    add_number(group, "-l", "--learn-rate", **rate, metavar="RATE", dest="learning_rate")
    add_number(group, "-s", "--seed", default=config.seed, low=0, high=2**32 - 1, text="random seed")
    text = f"random transforms of training images; without names: none (default: {' '.join(config.augment)})"
    group.add_argument("--augment", nargs="*", choices=transforms, default=config.augment, help=text)
    text = "arithmetic of training; auto: bf16 if the hardware supports it, else fp32 (default: %(default)s)"
    group.add_argument("--precision", choices=("auto", "fp32", "bf16"), default=config.precision, help=text)

    group = add_output_flags(parser)
    group.add_argument("--plot", action="store_true", help="also draw samples after every epoch")
    text = "when validating: also compute SSIM, CIEDE2000 and AuC; write all metrics of every image"
    group.add_argument("--json", type=Path, metavar="FILE", help=text)
