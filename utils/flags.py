"""Command-line flags shared by several scripts, which pass the defaults and the choices."""

import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from models import NETWORKS
from utils.checkpoint import COLORS, DEFAULTS
from utils.console import UserError

COMMON = {"model", "colors", "kernel", "num_filters", "checkpoint", "out_dir", "device"}
IMAGES = {"data", "category", "holdout"}
DECODING = {"working_size", "temperature"}
TRAINING = {"epochs", "batch_size", "learning_rate", "augment", "precision", "plot", "resume", "start_from"}
TRAINING |= {"picture_weight", "seed"}
USED_FLAGS = {  # by what a script does: the flags that have an effect
    "training": COMMON | IMAGES | DECODING | TRAINING,
    "--valid": COMMON | IMAGES | DECODING | {"valid", "seed"},
    "--valid without --colors K": COMMON | IMAGES | DECODING | {"valid"},
    "--colorize": COMMON | IMAGES | DECODING | {"colorize", "saturation", "seed"},
    "--colorize without --colors K": COMMON | DECODING | {"colorize", "saturation"},
    "validation (training needs --epochs)": COMMON | IMAGES | {"valid"},
    "an image file": COMMON | {"image"},
}

NOT_DOWNSIZED = "is not needed: images are used at their own size; remove it"
OLD_FLAGS = {"-n": "is -f here (--num-filters)", "-d": NOT_DOWNSIZED, "--downsize-input": NOT_DOWNSIZED}


class Parser(ArgumentParser):
    """A parser that reports an error as one line, and understands the flags of the original course."""

    def __init__(self, description: str | None):
        super().__init__(description=description, formatter_class=RawDescriptionHelpFormatter)

    def parse_args(self, argv: Sequence[str]) -> Namespace:  # type: ignore[override]
        """Return the flags. Raises UserError."""
        words = [re.sub("^--[^=]+", lambda flag: flag[0].replace("_", "-"), word) for word in argv]
        for word in words:
            name, equals, value = word.partition("=")
            name = "-n" if re.fullmatch(r"-n\d+", name) else name
            if name in OLD_FLAGS:
                self.error(f"{name} {OLD_FLAGS[name]}")
            if not word or (name.startswith("--") and equals and not value):
                self.error(f"{name or 'an argument'} is empty")
        return super().parse_args([word for word in words if word not in ("-g", "--gpu")])  # a GPU is used anyway

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message:.300}; --help shows all flags")


def network_name(word: str) -> str:
    """Return the key of NETWORKS that is meant, also by another case or by its class's name; else the word itself."""
    names = {alias.lower(): name for name, network in NETWORKS.items() for alias in (name, network.__name__)}
    return names.get(word.lower(), word)


def add_number(group: Any, *names: str, low: float, high: float, kind: type = int, **settings: Any) -> None:
    """Add a flag that takes a number from `low` to `high`; its help ends with the default, if it has one."""

    def number(word: str) -> float:
        value = kind(word)
        if not low <= value <= high:
            raise ArgumentTypeError(f"{word!r} is not a number from {low} to {high}")
        return value

    number.__name__ = "whole number" if kind is int else "number"  # as which argparse names it
    if "default" in settings:
        settings["help"] += " (default: %(default)s)"
    group.add_argument(*names, type=number, **{"metavar": "N"} | settings)


def reject_unused_flags(parser: ArgumentParser, args: Namespace, mode: str) -> None:
    """Raise UserError if a flag that has no effect in this mode of USED_FLAGS differs from its default."""
    for name, value in vars(args).items():
        if name not in USED_FLAGS[mode] and value != parser.get_default(name):
            flag = name.replace("learning", "learn").replace("_", "-")
            raise UserError(f"--{flag} has no effect with {mode}; remove it")


def architecture_of(args: Namespace) -> dict[str, Any]:
    """Return the flags that name a network, of those that were given."""
    return {name: value for name, value in vars(args).items() if name in DEFAULTS and value is not None}


def add_action_flags(parser: ArgumentParser, default: str = "train") -> Any:
    """Add the flags that choose an action other than the default one; return their group."""
    group = parser.add_argument_group(f"action (default: {default})")
    group.add_argument("--valid", action="store_true", help="evaluate a checkpoint and draw samples; no training")
    text = "continue an interrupted run: rerun its command with this flag"
    group.add_argument("--resume", action="store_true", help=text)
    text = "start training from this checkpoint: its weights and, if it has one, its palette"
    group.add_argument("--start-from", type=Path, metavar="FILE", help=text)
    return group


def add_network_flags(parser: ArgumentParser, checkpoint_help: str, models: Iterable[str] | None = None) -> None:
    """Add the flags that describe a network; --model and --colors only for scripts with a choice of networks."""
    group = parser.add_argument_group("network (a checkpoint records these settings; they need not be repeated)")
    if models:
        text = f"network (default: {DEFAULTS['model']})"
        group.add_argument("-m", "--model", type=network_name, choices=models, help=text)
        text = f"number of colors, or a palette file (default: {COLORS})"
        group.add_argument("-c", "--colors", "--colours", metavar="K|FILE", help=text)
    text = f"filter size, odd (default: {DEFAULTS['kernel']})"
    group.add_argument("-k", "--kernel", type=int, choices=range(1, 16, 2), metavar="N", help=text)
    text = f"filters of the first stage (default: {DEFAULTS['num_filters']})"
    add_number(group, "-f", "--num-filters", low=1, high=1024, help=text)
    group.add_argument("--checkpoint", type=Path, metavar="FILE", help=checkpoint_help)


def add_image_flags(parser: ArgumentParser, defaults: dict, classes: list[str]) -> Any:
    """Add the flags that choose the images; return their group. `defaults` are those of an ImageSource."""
    group = parser.add_argument_group("images")
    kinds = "cifar10, sample (two photographs) or a folder (of images or of CIFAR-10) (default: %(default)s)"
    group.add_argument("--data", default=defaults["location"], metavar="NAME|PATH", help=kinds)
    text = "class of CIFAR-10, or all classes (default: %(default)s)"
    group.add_argument("--category", choices=[*classes, "all"], default=defaults["category"], help=text)
    return group


def add_output_flags(parser: ArgumentParser) -> Any:
    """Add the flags for the output and the device; return the output group."""
    group = parser.add_argument_group("output")
    text = "folder for the output files (default: %(default)s)"
    group.add_argument("--out-dir", type=Path, default=Path("outputs"), metavar="DIR", help=text)
    text = "cpu, cuda, cuda:N or mps (default: cuda if available)"
    parser.add_argument_group("device").add_argument("--device", metavar="NAME", help=text)
    return group


def add_training_flags(parser: ArgumentParser, defaults: dict, classes: list[str], transforms: Iterable[str]) -> None:
    """Add the flags of training and validation, with the defaults of an ImageSource and a TrainingConfig."""
    group = add_image_flags(parser, defaults, classes)
    text = "leave N images of each class out of training and validate on them; 0: on the test images"
    add_number(group, "--holdout", default=defaults["holdout"], low=0, high=10**6, help=text)

    group = parser.add_argument_group("training")
    text = "passes over the training images" + ("" if defaults["epochs"] else "; without this flag, validate only")
    add_number(group, "-e", "--epochs", default=defaults["epochs"], low=1, high=10_000, help=text)
    add_number(group, "-b", "--batch-size", default=defaults["batch_size"], low=2, high=100_000, help="images per step")
    rate = {"default": defaults["learning_rate"], "dest": "learning_rate", "metavar": "RATE"}
    add_number(group, "-l", "--learn-rate", low=1e-8, high=10, kind=float, help="peak learning rate", **rate)
    add_number(group, "-s", "--seed", default=defaults["seed"], low=0, high=2**32 - 1, help="random seed")
    text = f"random transforms of training images; without names: none (default: {' '.join(defaults['augment'])})"
    group.add_argument("--augment", nargs="*", choices=transforms, default=defaults["augment"], help=text)
    text = "arithmetic of training; auto: bf16 if the hardware supports it, else fp32 (default: %(default)s)"
    group.add_argument("--precision", choices=("auto", "fp32", "bf16"), default=defaults["precision"], help=text)

    group = add_output_flags(parser)
    group.add_argument("--plot", action="store_true", help="also draw samples after every epoch")
