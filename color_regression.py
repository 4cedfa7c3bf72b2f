"""The baseline: a network that predicts red, green and blue of every pixel by regression.

python color_regression.py                      evaluate the shipped weights, draw samples
python color_regression.py -e 80                train it
python color_regression.py --data sample -e 3   train it on two photographs, offline
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # which python -I leaves out

from data import ImageSource, to_rgb
from sources.cifar10 import CLASSES
from training.augmentation import AUGMENTATIONS
from training.evaluation import run_validation
from training.loop import TrainingConfig, prepare_training, run_training
from utils import distributed, flags
from utils.checkpoint import load_network, new_network, pretrained_path
from utils.console import run_script


def parse(argv: list[str]) -> argparse.Namespace:
    parser = flags.Parser(__doc__)
    flags.add_action_flags(parser, default="validate; with -e: train")
    weights = "file to save (default: in --out-dir); without -e: to load (default: the shipped weights)"
    flags.add_network_flags(parser, weights)
    defaults = asdict(ImageSource()) | asdict(TrainingConfig(epochs=0))
    flags.add_training_flags(parser, defaults, CLASSES, AUGMENTATIONS)
    parser.set_defaults(model="RegressionCNN")
    args = parser.parse_args(argv)
    mode = "--valid" if args.valid else "training" if args.epochs else "validation (training needs --epochs)"
    flags.reject_unused_flags(parser, args, mode)
    if args.valid:
        flags.reject_unused_flags(parser, args, "validation (training needs --epochs)")  # neither has a seed
    return args


def main(argv: list[str]) -> None:
    args = parse(argv)
    source = ImageSource(args.data, args.category, args.holdout)
    if args.epochs:
        train(args, source)
    else:
        validate(args, source)
    error = to_rgb(source.validation_images()).var(1, correction=0).mean()  # since the gray is their mean
    print(f"mean squared error of copying the gray input to R, G and B: {error:.6f}")


def train(args: argparse.Namespace, source: ImageSource) -> None:
    device = distributed.setup(args.device)
    if args.start_from:
        net, checkpoint = load_network(args.start_from, **flags.architecture_of(args))
    else:
        net, checkpoint = new_network(None, args.seed, **flags.architecture_of(args))
    trainer, valid_set, log = prepare_training(args, net.to(device), checkpoint, source)
    run_training(trainer, valid_set, log, args.resume, args.plot)


def validate(args: argparse.Namespace, source: ImageSource) -> None:
    device = distributed.setup(args.device, several=False)
    path = args.checkpoint or pretrained_path(**flags.architecture_of(args))
    net, checkpoint = load_network(path, **flags.architecture_of(args))
    run_validation(net.to(device), checkpoint, source, args.out_dir, inputs=[path])


if __name__ == "__main__":
    run_script(main)
