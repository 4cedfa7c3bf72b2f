"""Train, validate and use the networks that choose one of 24 colors for every pixel.

python colorization.py --data sample -e 3       a first run, nothing to download
python colorization.py --model UNet -e 25       train on CIFAR-10's horses
python colorization.py --model UNet --valid     measure the shipped weights
python colorization.py --colorize photo.jpg     color your own pictures
"""

import argparse
from functools import partial
from pathlib import Path

import torch

import distributed
from checkpoint import CLASSIFIERS, Checkpoint, create_model, describe, load_from_flags
from cli import UserError, check_writable, number, run, seed_everything
from colorize import colorize_files
from data import Quantizer, describe_data, palette_for, to_gray
from decoding import TEMPERATURE, apply_chroma, chroma_error, decode_annealed_mean, decode_argmax, labels_to_rgb
from flags import add_training_flags
from metrics import report
from plots import save_image_grid
from runs import run_training
from training import (
    class_weights,
    device_of,
    evaluate_rows,
    format_metrics,
    loss_and_accuracy,
    predict,
    validation_examples,
)


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", choices=CLASSIFIERS, help="the network (UNet; with --valid the checkpoint's)")
    parser.add_argument(
        "-c",
        "--colors",
        metavar="K|FILE",
        help="number of colors, or a palette file (24; with --valid the checkpoint's)",
    )
    parser.add_argument(
        "--colorize",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="color these pictures, and those in these folders, at their full size, into --out-dir",
    )
    parser.add_argument(
        "--decode",
        choices=("smooth", "palette"),
        default="smooth",
        help="for --colorize: every pixel's mean color, or its most probable palette color (%(default)s)",
    )
    parser.add_argument(
        "--working-size",
        type=number(int, 4, 2048, "a number of pixels"),
        default=96,
        metavar="N",
        help="for --colorize: the longer side of the copy that the network sees (%(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=number(float, 0.01, 100, "a temperature"),
        default=TEMPERATURE,
        metavar="T",
        help="of the smooth prediction: toward 0 bolder colors, toward 1 and above calmer ones (%(default)s)",
    )
    parser.add_argument(
        "--picture-weight",
        type=number(float, 0, 1e6, "a weight"),
        default=0,
        metavar="W",
        help="add W times the squared error of the smooth prediction's colors to the loss: truer pictures, fewer "
        "pixels right (%(default)s)",
    )
    parser.add_argument(
        "--rebalance",
        action="store_true",
        help="weigh rare colors up in the loss: bolder pictures, fewer pixels right (Zhang et al. 2016)",
    )
    add_training_flags(parser, epochs=25)
    return parser.parse_args(argv)


def rows_of(images, labels, logits, palette, temperature=TEMPERATURE):
    """Return labeled rows of pictures (N, 3, H, W) in 0..1: what was given, what was made of it, the truth."""
    gray = to_gray(images)
    return {
        "gray input": gray.expand(-1, 3, -1, -1),
        "prediction in palette colors": decode_argmax(logits, palette),
        "smooth prediction": decode_annealed_mean(logits, palette, gray, temperature),
        "truth in palette colors": labels_to_rgb(labels, palette),
        "truth": images.float() / 256,
    }


def save_samples(path, title, net, valid, palette, temperature):
    """Draw the first ten images."""
    images = valid.images[:10].to(device_of(net))
    save_image_grid(path, title, rows_of(images, valid.targets_of(images), predict(net, images), palette, temperature))


def make_loss_fn(examples, device, args, palette):
    """Return what training learns from, for Trainer."""
    weights = class_weights(examples, len(palette)).to(device) if args.rebalance else None
    colors = torch.as_tensor(palette, dtype=torch.float32, device=device)

    def loss_fn(logits, labels, images):
        loss, accuracy = loss_and_accuracy(logits, labels, weights)
        if args.picture_weight:
            loss = loss + args.picture_weight * chroma_error(logits, colors, images, args.temperature)
        return loss, accuracy

    return loss_fn


def train(args, device):
    """Train a new network; write its checkpoint, figures and pictures."""
    if args.start_from:
        checkpoint = load_classifier(args, args.start_from)
        checkpoint.data = describe_data(args)
        palette = checkpoint.palette
        seed_everything(args.seed)
    else:
        model, kernel, num_filters = args.model or "UNet", args.kernel or 3, args.num_filters or 32
        palette = palette_for(args)
        seed_everything(args.seed)
        net = create_model(model, kernel, num_filters, len(palette))
        checkpoint = Checkpoint(net, model, kernel, num_filters, palette, describe_data(args))
    checkpoint.net.to(device)
    run_training(
        args,
        checkpoint,
        partial(Quantizer, palette=palette),
        partial(save_samples, palette=palette, temperature=args.temperature),
        partial(make_loss_fn, args=args, palette=palette),
    )


def validate(args, device):
    """Measure a checkpoint, and draw its pictures."""
    checkpoint = load_classifier(args, args.checkpoint)
    net, palette = checkpoint.net.to(device), checkpoint.palette
    valid = validation_examples(args, partial(Quantizer, palette=palette), device)
    (loss, accuracy), rows = evaluate_rows(net, valid, partial(rows_of, palette=palette, temperature=args.temperature))
    figures = format_metrics(loss, accuracy)
    print(f"{describe(checkpoint)}\n{len(valid.images):,} images of {describe_data(args)}: {figures}")
    path = args.out_dir / f"{checkpoint.model.lower()}_valid.png"
    save_image_grid(path, f"{checkpoint.model}: {figures}", {label: row[:10] for label, row in rows.items()})
    print(f"saved {path}")
    smooth_truth = {
        "truth in palette colors, smooth": apply_chroma(rows["truth in palette colors"], rows["gray input"])
    }
    about = {"model": checkpoint.model, "data": describe_data(args), "loss": loss, "accuracy": accuracy}
    report(args, rows | smooth_truth, about | {"temperature": args.temperature})


def colorize(args, device):
    """Color the user's own pictures."""
    checkpoint = load_classifier(args, args.checkpoint)
    check_writable(args.out_dir / "before_and_after.png")
    print(describe(checkpoint))
    colorize_files(
        args.colorize,
        args.out_dir,
        checkpoint.net.to(device),
        checkpoint.palette,
        args.working_size,
        args.decode,
        args.temperature,
    )


def load_classifier(args, path):
    """Return the checkpoint at `path`, None for the shipped one. Raises UserError if it has no palette."""
    checkpoint = load_from_flags(args, path, args.model)
    if checkpoint.palette is None:
        raise UserError(f"{path}: of a {checkpoint.model}, which chooses no colors; see color_regression.py")
    return checkpoint


def main(argv):
    args = parse(argv)
    device = distributed.setup(args.device)
    if args.colorize or args.valid:
        distributed.require_single_process("--colorize" if args.colorize else "--valid")
    if args.colorize:
        colorize(args, device)
    elif args.valid:
        validate(args, device)
    else:
        train(args, device)
    distributed.cleanup()


if __name__ == "__main__":
    run(main)
