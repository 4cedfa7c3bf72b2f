"""The baseline: a network that gives red, green and blue of every pixel by regression.

python color_regression.py                      measure the shipped weights, draw pictures
python color_regression.py -e 80                train it
python color_regression.py --data sample -e 3   train it on two photographs, offline
"""

import argparse

import torch.nn.functional as F

import distributed
from checkpoint import Checkpoint, create_model, describe, load_from_flags
from cli import run, seed_everything
from data import describe_data, to_gray
from flags import add_training_flags
from metrics import report
from plots import save_image_grid
from runs import run_training
from training import device_of, evaluate, evaluate_rows, predict, validation_examples

MODEL = "RegressionCNN"


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_flags(parser, epochs=None)
    return parser.parse_args(argv)


def rows_of(images, targets, outputs):
    """Return labeled rows of pictures (N, 3, H, W) in 0..1: what was given, what was made of it, the truth."""
    gray = to_gray(images).expand(-1, 3, -1, -1)
    return {"gray input": gray, "prediction": outputs.clamp(0, 1), "truth": images.float() / 256}


def save_samples(path, title, net, valid):
    """Draw the first ten images."""
    images = valid.images[:10].to(device_of(net))
    save_image_grid(path, title, rows_of(images, images, predict(net, images)))


def learning(images):
    """Return what makes targets of images: those are to become themselves."""
    return lambda images: images


def gray_copy_error(images):
    """Return the mean squared error of the trivial answer: the gray input as R, G and B."""
    parts = images.split(1000)
    errors = [F.mse_loss(to_gray(part).expand(-1, 3, -1, -1), part.float() / 256) for part in parts]
    return sum(len(part) * error.item() for part, error in zip(parts, errors)) / len(images)


def train(args, device):
    """Train a new network; write its checkpoint, figures and pictures."""
    seed_everything(args.seed)
    if args.start_from:
        checkpoint = load_from_flags(args, args.start_from, MODEL)
        checkpoint.data = describe_data(args)
    else:
        kernel, num_filters = args.kernel or 3, args.num_filters or 32
        net = create_model(MODEL, kernel, num_filters, 3)
        checkpoint = Checkpoint(net, MODEL, kernel, num_filters, data=describe_data(args))
    checkpoint.net.to(device)
    valid = run_training(args, checkpoint, learning, save_samples)
    error, _ = evaluate(checkpoint.net, valid)
    print_errors(error, valid.images, describe_data(args))


def validate(args, device):
    """Measure a checkpoint, and draw its pictures."""
    checkpoint = load_from_flags(args, args.checkpoint, MODEL)
    net = checkpoint.net.to(device)
    valid = validation_examples(args, learning, device)
    print(describe(checkpoint))
    (error, _), rows = evaluate_rows(net, valid, rows_of)
    print_errors(error, valid.images, describe_data(args))
    path = args.out_dir / "regressioncnn_valid.png"
    save_image_grid(path, f"{MODEL}: mean squared error {error:.6f}", {label: row[:10] for label, row in rows.items()})
    print(f"saved {path}")
    report(args, rows, {"model": MODEL, "data": describe_data(args)})


def print_errors(error, images, data):
    """Print the network's mean squared error, beside that of the trivial answer."""
    print(
        f"{len(images):,} images of {data}: mean squared error {error:.6f} (RGB in [0, 1)); "
        f"copying the gray input to R, G and B gives {gray_copy_error(images):.6f}"
    )


def main(argv):
    args = parse(argv)
    device = distributed.setup(args.device)
    if args.valid or args.epochs is None:
        distributed.require_single_process("--valid")
        validate(args, device)
    else:
        train(args, device)
    distributed.cleanup()


if __name__ == "__main__":
    run(main)
