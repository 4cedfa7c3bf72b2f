"""The baseline: a network that predicts red, green and blue of every pixel by regression.

python color_regression.py                      evaluate the shipped weights, draw samples
python color_regression.py -e 80                train it
python color_regression.py --data sample -e 3   train it on two photographs, offline
"""

import argparse
from dataclasses import asdict

from data import ImageSource, to_gray, to_rgb
from models import load_network, new_network, pretrained_path
from sources.cifar10 import CLASSES
from training.augmentation import AUGMENTATIONS
from training.loop import TrainingConfig
from training.run import run_training, run_validation
from utils import distributed
from utils.console import run
from utils.flags import TRAINING_FLAGS, add_action_flags, add_network_flags, add_training_flags, reject_flags

MODEL = "RegressionCNN"


def gray_copy_error(images):
    """Return the mean squared error of the trivial prediction: the gray input copied to R, G and B."""
    errors = ((to_rgb(part) - to_gray(part)).square().sum().item() for part in images.split(1000))
    return sum(errors) / images.numel()


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_action_flags(parser, default="validate; with -e: train")
    add_network_flags(parser, "file to save; without -e: file to load (default: the shipped weights)")
    add_training_flags(parser, TrainingConfig(epochs=0), ImageSource(), CLASSES, AUGMENTATIONS)
    args = parser.parse_args(argv)
    trains = args.epochs and not args.valid
    mode = "training" if trains else "--valid" if args.valid else "validation (training needs --epochs)"
    reject_flags(parser, args, mode, ["json"] if trains else [*TRAINING_FLAGS, "seed"])

    device = distributed.setup(args.device, several=trains)
    source = ImageSource(args.data, args.category, args.holdout)
    network = {"model": MODEL, "kernel": args.kernel, "num_filters": args.num_filters}
    file = args.start_from if trains else args.checkpoint or pretrained_path(**network)
    is_new = trains and not file
    net, checkpoint = new_network(None, **network, seed=args.seed) if is_new else load_network(file, **network)
    net.to(device)
    if trains:
        config = TrainingConfig(**{name: vars(args)[name] for name in asdict(TrainingConfig()) if name in args})
        files = {"path": args.checkpoint, "start_from": args.start_from}
        run_training(net, checkpoint, source, config, args.out_dir, **files, resume=args.resume, plot=args.plot)
    else:
        run_validation(net, checkpoint, source, args.out_dir, json_path=args.json, inputs=[file])
    print(
        f"mean squared error of copying the gray input to R, G and B: {gray_copy_error(source.validation_images()):.6f}"
    )
    distributed.cleanup()


if __name__ == "__main__":
    run(main)
