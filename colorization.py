"""Train, evaluate and use the networks that classify every pixel as one of 24 colors.

python colorization.py --data sample -e 3       a first run, nothing to download
python colorization.py --model UNet -e 25       train on CIFAR-10's horses
python colorization.py --model UNet --valid     evaluate the shipped weights
python colorization.py --colorize photo.jpg     color your own photographs
"""

import argparse
import sys
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # which python -I leaves out

from data import ImageSource, palette_file, palette_for
from models import CLASSIFIERS, Network
from pictures.colorize import PHOTOGRAPH_TEMPERATURE, colorize_files
from pictures.decoding import TEMPERATURE
from sources.cifar10 import CLASSES
from training.augmentation import AUGMENTATIONS
from training.evaluation import run_validation
from training.loop import TrainingConfig, prepare_training, run_training
from utils import distributed, flags
from utils.checkpoint import COLORS, WORKING_SIZE, Checkpoint, load_network, new_network, pretrained_path
from utils.console import UserError, run_script
from utils.files import check_writable


def parse(argv: list[str]) -> argparse.Namespace:
    parser = flags.Parser(__doc__)
    text = "color these image files, and all images in these folders; write the results to --out-dir"
    flags.add_action_flags(parser).add_argument("--colorize", nargs="+", type=Path, metavar="PATH", help=text)
    weights = "file to save (default: in --out-dir); with --valid or --colorize: to load (default: the shipped weights)"
    flags.add_network_flags(parser, weights, CLASSIFIERS)
    defaults = asdict(ImageSource()) | asdict(TrainingConfig())
    flags.add_training_flags(parser, defaults, CLASSES, AUGMENTATIONS)

    group = parser.add_argument_group("loss")
    text = "add W times the squared error of the annealed mean's chroma to the loss"
    weight = {"default": defaults["picture_weight"], "metavar": "W"}
    flags.add_number(group, "--picture-weight", low=0, high=1e6, kind=float, help=text, **weight)

    group = parser.add_argument_group("annealed-mean decoding (the mean color under sharpened probabilities)")
    text = "longer side of a photograph's copies that are colored, in pixels (0.5 to 1.5 times this); training crops "
    text += f"are from copies up to 1.5 times this (default: that of the checkpoint, {WORKING_SIZE} for a new network)"
    flags.add_number(group, "--working-size", low=4, high=512, help=text)
    text = "temperature of the softmax: lower values give bolder colors, higher values paler ones"
    text += f" (default: {TEMPERATURE}; with --colorize: {PHOTOGRAPH_TEMPERATURE})"
    flags.add_number(group, "--temperature", kind=float, low=0.01, high=100, help=text, metavar="T")
    text = "with --colorize: multiply the chroma by S; 0 is gray"
    flags.add_number(group, "--saturation", default=1.0, low=0, high=5, kind=float, help=text, metavar="S")
    args = parser.parse_args(argv)
    mode = "--colorize" if args.colorize else "--valid" if args.valid else "training"
    flags.reject_unused_flags(parser, args, mode)
    if mode != "training" and not (args.colors or "").isdecimal():
        flags.reject_unused_flags(parser, args, f"{mode} without --colors K")
    return args


def main(argv: list[str]) -> None:
    args = parse(argv)
    source = ImageSource(args.data, args.category, args.holdout)
    if args.colorize:
        colorize(args, source)
    elif args.working_size and not source.is_album:
        raise UserError(f"--working-size has no effect with --data {args.data}; remove it")
    elif args.valid:
        validate(args, source)
    else:
        train(args, source)


def train(args: argparse.Namespace, source: ImageSource) -> None:
    device = distributed.setup(args.device)
    colors = args.colors
    if args.start_from:
        net, checkpoint = load(args, args.start_from, source)
    else:
        colors = colors or str(COLORS)
        palette = palette_for(colors, source, args.seed)
        net, checkpoint = new_network(palette, args.seed, **flags.architecture_of(args))
        checkpoint = replace(checkpoint, working_size=args.working_size or checkpoint.working_size)
    file = palette_file(colors, source)
    trainer, valid_set, log = prepare_training(args, net.to(device), checkpoint, source, file)
    run_training(trainer, valid_set, log, args.resume, args.plot)


def validate(args: argparse.Namespace, source: ImageSource) -> None:
    device = distributed.setup(args.device, several=False)
    path = args.checkpoint or pretrained_path(photographs=source.is_album, **flags.architecture_of(args))
    net, checkpoint = load(args, path, source)
    source = replace(source, working_size=checkpoint.working_size, crop_size=net.training_size)
    inputs = path, palette_file(args.colors, source)
    run_validation(net.to(device), checkpoint, source, args.out_dir, args.temperature or TEMPERATURE, inputs)


def colorize(args: argparse.Namespace, source: ImageSource) -> None:
    device = distributed.setup(args.device, several=False)
    check_writable(args.out_dir / "before_and_after.png")
    path = args.checkpoint or pretrained_path(photographs=True, **flags.architecture_of(args))
    net, checkpoint = load(args, path, source)
    print(checkpoint)
    settings = args.saturation, args.temperature or PHOTOGRAPH_TEMPERATURE
    try:
        colorize_files(args.colorize, args.out_dir, (net.to(device), checkpoint), *settings)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; to color the others, repeat the command") from None


def load(args: argparse.Namespace, path: Path, source: ImageSource) -> tuple[Network, Checkpoint]:
    """Return the network of a file, and its Checkpoint with the working size of the flags, if they name one.

    The source is that of the images which a palette of --colors K is fitted to, at the default working size.
    Raises UserError unless the file fits the flags and its network is a classifier.
    """
    palette = palette_for(args.colors, source, args.seed) if args.colors else None
    net, checkpoint = load_network(path, palette, **flags.architecture_of(args))
    if not checkpoint.is_classifier:
        advice = "name another network, or use color_regression.py"
        raise UserError(f"{path}: a {checkpoint.model} predicts RGB, not palette colors; {advice}")
    return net, replace(checkpoint, working_size=args.working_size or checkpoint.working_size)


if __name__ == "__main__":
    run_script(main)
