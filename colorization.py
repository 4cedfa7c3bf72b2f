"""Train, evaluate and use the networks that classify every pixel as one of 24 colors.

python colorization.py --data sample -e 3       a first run, nothing to download
python colorization.py --model UNet -e 25       train on CIFAR-10's horses
python colorization.py --model UNet --valid     evaluate the shipped weights
python colorization.py --colorize photo.jpg     color your own photographs
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from data import ImageSource, palette_file, palette_for
from models import CLASSIFIERS, load_network, new_network, pretrained_path
from pictures.colorize import WORKING_SIZE, colorize_files
from sources.cifar10 import CLASSES
from training.augmentation import AUGMENTATIONS
from training.loop import TrainingConfig, seed_everything
from training.run import run_training, run_validation
from utils import distributed
from utils.checkpoint import COLORS
from utils.console import UserError, run
from utils.files import check_writable
from utils.flags import (
    TRAINING_FLAGS,
    add_action_flags,
    add_network_flags,
    add_number,
    add_training_flags,
    reject_flags,
)


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    text = "color these image files, and the images in these folders, into --out-dir"
    add_action_flags(parser).add_argument("--colorize", nargs="+", type=Path, metavar="FILE", help=text)
    weights = "file to save the weights to; with --valid or --colorize: to load (the shipped ones)"
    add_network_flags(parser, weights, CLASSIFIERS)
    config = TrainingConfig()
    add_training_flags(parser, config, ImageSource(), CLASSES, AUGMENTATIONS)

    group = parser.add_argument_group("loss")
    group.add_argument("--rebalance", action="store_true", help="give rare colors more weight (Zhang et al. 2016)")
    text = "add W times the squared error of the smooth prediction's chroma"
    add_number(group, "--picture-weight", default=config.picture_weight, low=0, high=1e6, text=text, metavar="W")

    group = parser.add_argument_group("smooth prediction (the mean color under sharpened probabilities)")
    text = "longer side of the copy that --colorize shows the network"
    add_number(group, "--working-size", default=WORKING_SIZE, low=4, high=2048, text=text)
    text = "of the softmax: lower gives bolder colors, higher gives paler ones"
    add_number(group, "--temperature", default=config.temperature, low=0.01, high=100, text=text, metavar="T")
    args = parser.parse_args(argv)
    fits_palette = args.colors and args.colors.isdecimal()
    training_flags = (*TRAINING_FLAGS, "epochs", "rebalance", "picture_weight")
    if args.colorize:
        reject_flags(parser, vars(args), "--colorize", (*training_flags, "valid", "json"))
        if not fits_palette:
            reject_flags(parser, vars(args), "--colorize without --colors K", ("data", "category", "holdout", "seed"))
    elif args.valid:
        reject_flags(parser, vars(args), "--valid", (*training_flags, "working_size"))
        if not fits_palette:
            reject_flags(parser, vars(args), "--valid without --colors K", ("seed",))
    else:
        reject_flags(parser, vars(args), "training", ("json", "working_size"))
    return args


def load_classifier(path, colors, source, seed, **network):
    """Return (the network stored in a file, its Checkpoint); None means the shipped file. Raises UserError."""
    palette = palette_for(colors, source, seed) if colors else None
    net, checkpoint = load_network(path, palette=palette, **network)
    if checkpoint.palette is None:
        raise UserError(f"{path}: a {checkpoint.model} predicts RGB, not palette colors; use color_regression.py")
    return net, checkpoint


def main(argv):
    args = parse(argv)
    device = distributed.setup(args.device)
    source = ImageSource(args.data, args.category, args.holdout)
    network = {"model": args.model, "kernel": args.kernel, "num_filters": args.num_filters}
    palette_input = palette_file(args.colors, source) if args.colors else None
    if args.colorize or args.valid:
        distributed.require_single_process("--colorize" if args.colorize else "--valid")
        path = args.checkpoint or pretrained_path(**network)
        net, checkpoint = load_classifier(path, args.colors, source, args.seed, **network)
        net.to(device)
        if args.colorize:
            check_writable(args.out_dir / "before_and_after.png")
            print(checkpoint)
            settings = {"working_size": args.working_size, "temperature": args.temperature}
            colorize_files(args.colorize, args.out_dir, net, checkpoint.palette, **settings)
        else:
            inputs = path, palette_input
            run_validation(net, checkpoint, source, args.out_dir, args.temperature, args.json, inputs)
    else:
        config = TrainingConfig(**{name: getattr(args, name) for name in asdict(TrainingConfig())})
        seed_everything(config.seed)
        if args.start_from:
            net, checkpoint = load_classifier(args.start_from, args.colors, source, args.seed, **network)
        else:
            net, checkpoint = new_network(palette_for(args.colors or str(COLORS), source, config.seed), **network)
        files = {"out_dir": args.out_dir, "path": args.checkpoint, "start_from": args.start_from}
        files["inputs"] = [palette_input]
        run_training(net.to(device), checkpoint, source, config, **files, resume=args.resume, plot=args.plot)
    distributed.cleanup()


if __name__ == "__main__":
    run(main)
