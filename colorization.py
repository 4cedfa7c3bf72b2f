"""Train, validate and use the networks that choose one of 24 colors for every pixel.

python colorization.py --data sample -e 3       a first run, nothing to download
python colorization.py --model UNet -e 25       train on CIFAR-10's horses
python colorization.py --model UNet --valid     measure the shipped weights
"""

import argparse
from functools import partial

from checkpoint import CLASSIFIERS, Checkpoint, build, describe, load_from_flags
from cli import UserError, choose_device, run, seed_everything
from data import describe_data, network_input, palette_for, quantize
from flags import add_training_flags
from plots import save_rows
from runs import run_training
from training import evaluate, figures_in_words, predict, validation_examples


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", choices=CLASSIFIERS, help="the network (UNet; with --valid the checkpoint's)")
    parser.add_argument(
        "-c",
        "--colors",
        metavar="K|FILE",
        help="number of colors, or a palette file (24; with --valid the checkpoint's)",
    )
    add_training_flags(parser, epochs=25)
    return parser.parse_args(argv)


def draw(path, title, net, valid, palette):
    """Draw the first ten images: gray input, true and predicted palette colors, original."""
    images, labels = valid.images[:10], valid.targets[:10]
    predicted = predict(net, images).argmax(1)  # (10, H, W)
    rows = {
        "gray input": network_input(images)[:, 0].cpu(),
        "truth in\npalette colors": palette[labels.cpu()],
        "prediction": palette[predicted.cpu()],
        "original": images.permute(0, 2, 3, 1).cpu() / 256,
    }
    save_rows(path, title, rows)


def train(args, device):
    """Train a new network; write its checkpoint, figures and pictures."""
    model, kernel, num_filters = args.model or "UNet", args.kernel or 3, args.num_filters or 32
    palette = palette_for(args)
    seed_everything(args.seed)
    net = build(model, kernel, num_filters, len(palette)).to(device)
    checkpoint = Checkpoint(net, model, kernel, num_filters, palette, describe_data(args))
    run_training(args, checkpoint, partial(quantize, palette=palette), partial(draw, palette=palette))


def validate(args, device):
    """Measure a checkpoint, and draw its pictures."""
    checkpoint = load_from_flags(args, args.model)
    if checkpoint.palette is None:
        raise UserError(f"{args.checkpoint}: of a {checkpoint.model}, which chooses no colors; see color_regression.py")
    net, palette = checkpoint.net.to(device), checkpoint.palette
    valid = validation_examples(args, partial(quantize, palette=palette), device)
    figures = figures_in_words(*evaluate(net, *valid))
    print(f"{describe(checkpoint)}\n{len(valid.images):,} images of {describe_data(args)}: {figures}")
    path = args.out_dir / f"{checkpoint.model.lower()}_valid.png"
    draw(path, f"{checkpoint.model}: {figures}", net, valid, palette)
    print(f"saved {path}")


def main(argv):
    args = parse(argv)
    device = choose_device(args.device)
    (validate if args.valid else train)(args, device)


if __name__ == "__main__":
    run(main)
