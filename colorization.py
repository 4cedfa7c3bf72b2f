"""Train, evaluate and use the networks that classify every pixel as one of 24 colors.

python colorization.py --data sample -e 3       a first run, nothing to download
python colorization.py --model UNet -e 25       train on CIFAR-10's horses
python colorization.py --model UNet --valid     evaluate the shipped weights
python colorization.py --colorize photo.jpg     color your own photographs
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from data import ImageSource, palette_file, palette_for
from models import CLASSIFIERS, load_network, new_network, pretrained_path
from pictures.colorize import colorize_files
from sources.cifar10 import CLASSES
from training.augmentation import AUGMENTATIONS
from training.loop import TrainingConfig
from training.run import run_training, run_validation
from utils import distributed, flags
from utils.checkpoint import COLORS, WORKING_SIZE
from utils.console import UserError, run
from utils.files import check_writable


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    text = "color these image files, and all images in these folders; write the results to --out-dir"
    flags.add_action_flags(parser).add_argument("--colorize", nargs="+", type=Path, metavar="PATH", help=text)
    weights = "file to save; with --valid or --colorize: file to load (default: the shipped weights)"
    flags.add_network_flags(parser, weights, CLASSIFIERS)
    config = TrainingConfig()
    flags.add_training_flags(parser, config, ImageSource(), CLASSES, AUGMENTATIONS)

    group = parser.add_argument_group("loss")
    group.add_argument("--rebalance", action="store_true", help="give rare colors more weight (Zhang et al. 2016)")
    text = "add W times the squared error of the mean color's chroma to the loss"
    flags.add_number(group, "--picture-weight", default=config.picture_weight, low=0, high=1e6, text=text, metavar="W")

    group = parser.add_argument_group("smooth prediction (the mean color under sharpened probabilities)")
    text = f"longer side of the copies of a photograph that the network sees, approximately ({WORKING_SIZE} pixels)"
    flags.add_number(group, "--working-size", low=4, high=512, text=text)
    text = "temperature of the softmax: lower values give bolder colors, higher values paler ones"
    flags.add_number(group, "--temperature", default=config.temperature, low=0.01, high=100, text=text, metavar="T")
    args = parser.parse_args(argv)
    if args.colorize or args.valid:
        mode, useless = ("--colorize", ["valid", "json"]) if args.colorize else ("--valid", [])
        flags.reject_flags(parser, args, mode, [*flags.TRAINING_FLAGS, *useless])
        if not (args.colors or "").isdecimal():
            useless = ["data", "category", "holdout", "seed"] if args.colorize else ["seed"]
            flags.reject_flags(parser, args, f"{mode} without --colors K", useless)
    else:
        flags.reject_flags(parser, args, "training", ["json"])
    return args


def main(argv):
    args = parse(argv)
    trains = not args.colorize and not args.valid
    device = distributed.setup(args.device, several=trains)
    source = ImageSource(args.data, args.category, args.holdout)
    photographs = bool(args.colorize) or source.is_album
    if args.working_size and not photographs:
        raise UserError(f"--working-size has no effect with --data {args.data}; remove it")
    network = {"model": args.model, "kernel": args.kernel, "num_filters": args.num_filters}
    named = args.start_from if trains else args.checkpoint
    file = named if trains or named else pretrained_path(**network, photographs=photographs)
    is_new = trains and not file
    colors = args.colors or (str(COLORS) if is_new else None)
    network["palette"] = palette_for(colors, source, args.seed) if colors else None
    net, checkpoint = new_network(**network, seed=args.seed) if is_new else load_network(file, **network)
    if checkpoint.palette is None:
        raise UserError(f"{file}: a {checkpoint.model} predicts RGB, not palette colors; use color_regression.py")
    working_size = args.working_size or checkpoint.working_size
    checkpoint, source = replace(checkpoint, working_size=working_size), replace(source, working_size=working_size)
    net.to(device)
    inputs = file, palette_file(colors, source) if colors else None
    if trains:
        config = TrainingConfig(**{name: getattr(args, name) for name in asdict(TrainingConfig())})
        files = {"path": args.checkpoint, "start_from": args.start_from, "inputs": inputs}
        run_training(net, checkpoint, source, config, args.out_dir, **files, resume=args.resume, plot=args.plot)
    elif args.valid:
        run_validation(net, checkpoint, source, args.out_dir, args.temperature, args.json, inputs)
    else:
        check_writable(args.out_dir / "before_and_after.png")
        print(checkpoint)
        colorize_files(args.colorize, args.out_dir, net, checkpoint.palette, working_size, args.temperature)
    distributed.cleanup()


if __name__ == "__main__":
    run(main)
