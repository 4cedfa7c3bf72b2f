"""Print the tables and draw the pictures of docs/answers.md; print the optimizers' table of docs/training.md.

python docs/make_answers.py --list       list the missing runs, and how long they take
python docs/make_answers.py --jobs 2     train the missing runs, two at a time; can be interrupted and repeated
python docs/make_answers.py              train them one by one; in both cases, print the tables and draw the pictures
python docs/make_answers.py --shipped    only what needs no training: the palette and the shipped weights

Runs are saved in outputs/answers/, pictures in docs/answers/. They are evaluated on 500 held-out training horses; the
test horses are used for the shipped weights, the table of 3.2 (trained anew each time) and the shares of zeros.
"""

import argparse
import csv
import itertools
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.patches import Rectangle
from torch.nn.functional import pad
from tqdm import tqdm

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import colorization
from data import ImageDataset, ImageSource, fit_palette, load_palette, nearest_color, palette_path, to_gray, to_rgb
from models import CNN, MyConv2d, MyDilatedConv2d, RegressionCNN, predict, stage_outputs
from pictures.decoding import annealed_mean, comparison_rows, decode_annealed_mean, labels_to_rgb
from pictures.metrics import colorfulness
from pictures.plots import new_figure, save, save_image_grid
from training.augmentation import augment
from training.evaluation import cross_entropy, evaluate
from training.loop import Trainer, TrainingConfig, prepare_training, run_training
from training.optim import MuonAdam
from utils.checkpoint import file_name, load_checkpoint, load_network, new_network, pretrained_path
from utils.console import print_table, run_script

RUNS = PROJECT / "outputs" / "answers"
PICTURES = PROJECT / "docs" / "answers"
SEEDS = (0, 1, 2)
SECONDS_PER_EPOCH = 4  # of 4,500 horses, on one core of the machine of docs/training.md

ALL_CLASSES = ["--category", "all", "-c", PROJECT / "color" / "color_kmeans24_cat7.npy"]
AUGMENTATIONS = {
    "none": [["--augment"]],
    "(a) upside down": [["--augment", "upside-down"]],
    "(b) left-right": [["--augment", "mirror"]],
    "(c) one pixel left or right": [["--augment", "shift-x"]],
    "(d) one pixel up or down": [["--augment", "shift-y"]],
    "(e) first all classes, same number of steps": [
        ["--augment", *ALL_CLASSES, "-e", 1],
        ["--augment", "-e", 15, "-l", 0.012],  # from the weights of the first
    ],
    "(b), (c) and (d), the default": [[]],
    "(a), (b), (c) and (d)": [["--augment", "upside-down", "mirror", "shift-x", "shift-y"]],
}
EXERCISE = ("CNN", "UNet", "DUNet")  # its classifiers
NETWORKS = {model: [["--model", model]] for model in EXERCISE}
WIDE_CNN = {"CNN of 37 filters": [["--model", "CNN", "-f", 37]]}  # about as many weights as the UNet
SKIPS = {"upconv1": "downconv2 to upconv1 (8x8)", "upconv2": "downconv1 to upconv2 (16x16)"}
SKIPS |= {"finalconv": "gray image to finalconv (32x32)"}
SKIPS["upconv1+upconv2"] = "both of them"
CUTS = {"no skips (CNN)": [["--model", "CNN", "-e", 10]], "all skips": [["-e", 10]]} | {
    name: [["--without", stage, "-e", 10]] for stage, name in SKIPS.items()
}
REGRESSIONS = {
    "3 maps of 16x16 before the last doubling": [["--without", "labels", "-e", 20]],
    "24 maps of 16x16 before the last doubling": [["--without", "labels+narrow end", "-e", 20]],
}
OPTIMIZERS = {"Muon and Adam": [[]]}
OPTIMIZERS |= {f"Adam alone, peak {rate}": [["--without", "muon", "-l", rate]] for rate in (0.02, 0.04, 0.08)}
SWEEP = list(itertools.product((0.02, 0.04, 0.08, 0.16), (12, 25, 50, 100)))  # peak learning rate, batch size


def runs():
    """Return all trainings, {folder: the flags of one or several commands, each going on from the one before}."""
    conditions = AUGMENTATIONS | NETWORKS | WIDE_CNN | CUTS | REGRESSIONS | OPTIMIZERS
    result = {
        f"{short(name)}_{seed}": [[*flags, "-s", seed] for flags in commands]
        for name, commands in conditions.items()
        for seed in SEEDS
    }
    sweep = itertools.product(SWEEP, SEEDS)
    return result | {f"sweep_{r}_{b}_{seed}": [["-e", 5, "-l", r, "-b", b, "-s", seed]] for (r, b), seed in sweep}


def short(name):
    """Return a condition's name as a folder's; the UNet with the defaults has several names."""
    is_default = name.startswith(("(b), (c) and (d)", "Muon"))
    return "unet" if is_default else "".join(c for c in name.lower() if c.isalnum())[:20]


def epochs_of(commands):
    """Return how many epochs on horses take as long as a training."""
    epochs = 0
    for flags in commands:
        values = dict(itertools.pairwise(flags))
        epochs += values.get("-e", 25) * (10 if "all" in flags else 1)
    return epochs


def finished(name):
    """Return whether a training's last command has drawn its last picture."""
    return any((RUNS / name).glob("*_images.png"))


def script(*command, **environment):
    """Run a script of the package silently; end with its error if it fails."""
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, cwd=PROJECT, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")


def train(name, commands, data_flags, environment):
    """Run the commands of a training, or resume them; the files of the last one are in the training's folder."""
    start_from = []
    for number, flags in enumerate(commands, 1):
        folder = RUNS / name / ("" if number == len(commands) else f"part{number}")
        resume = ["--resume"] if any(folder.glob("*.state")) else []
        if not any(folder.glob("*_images.png")):
            flags = ["--holdout", 500, *flags, "--out-dir", folder, *data_flags, *start_from, *resume]
            script("docs/make_answers.py" if "--without" in flags else "colorization.py", *flags, **environment)
        start_from = ["--start-from", folder / file_name("UNet", 3, 32)]


def train_all(missing, data_flags, jobs):
    """Train the missing runs, `jobs` at a time."""
    environment = {"OMP_NUM_THREADS": "1"} if jobs > 1 else {}
    pool = ThreadPoolExecutor(jobs)
    each = [pool.submit(train, name, commands, data_flags, environment) for name, commands in missing.items()]
    try:
        for job in tqdm(as_completed(each), total=len(each), unit="run", disable=None):
            job.result()  # the first failure ends all
    finally:
        pool.shutdown(cancel_futures=True)


def history(name):
    """Return a run's metrics, a dict for every epoch."""
    (path,) = (RUNS / name).glob("*.csv")
    with open(path) as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def spread(values, digits):
    """Return mean ± standard deviation as text."""
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def table(title, columns, rows):
    """Print a table under a title, in Markdown."""
    print(f"\n### {title}\n")
    print_table(columns, rows)


def over_seeds(title, conditions):
    """Print the last epoch's metrics of conditions over the seeds, and their differences from the first condition."""
    base, rows = None, []
    for name in conditions:
        last = [history(f"{short(name)}_{seed}")[-1] for seed in SEEDS]
        losses = [row["valid_loss"] for row in last]
        base = base or losses
        differences = [a - b for a, b in zip(losses, base)]
        against = "" if losses is base else f"{spread(differences, 3)}"
        accuracies = [100 * row["valid_accuracy"] for row in last]
        train_losses = [row["train_loss"] for row in last]
        rows.append([name, spread(losses, 3), against, f"{spread(accuracies, 1)} %", spread(train_losses, 3)])
    table(title, ["", "held-out loss", "against the first", "accuracy", "training loss"], rows)


def rgb_and_sight(palette, source):
    """Print pairs of palette colors at equal distances in RGB, and the nearest colors of a meadow by two distances."""
    from skimage.color import deltaE_ciede2000, rgb2lab

    pairs = list(itertools.combinations(range(len(palette)), 2))
    lab = rgb2lab(palette)
    far = np.array([np.linalg.norm(palette[a] - palette[b]) for a, b in pairs])
    seen = np.array([deltaE_ciede2000(lab[a], lab[b]) for a, b in pairs])
    rows = []
    for distance in (0.2, 0.3, 0.4):
        near = np.flatnonzero(abs(far - distance) < 0.02)
        for pick in (near[seen[near].argmin()], near[seen[near].argmax()]):
            colors = " and ".join(str(tuple((256 * palette[c]).round().astype(int).tolist())) for c in pairs[pick])
            rows.append([colors, f"{far[pick]:.3f}", f"{seen[pick]:.1f}"])
    table("Pairs of palette colors", ["R, G, B", "distance in RGB", "CIEDE2000"], rows)
    meadow = to_rgb(source.validation_images()[6:7, :, 16:])[0].flatten(1).T.double().numpy()  # of the seventh horse
    in_rgb = nearest_color(meadow, palette)[0]
    in_lab = deltaE_ciede2000(rgb2lab(meadow)[:, None], lab[None]).argmin(1)
    tan, is_green = np.bincount(in_rgb).argmax(), palette[:, 1] > palette[:, [0, 2]].max(1) + 0.03
    for distance, labels in (("RGB", in_rgb), ("CIEDE2000", in_lab)):
        shares = f"tan {(labels == tan).mean():.0%}, green {is_green[labels].mean():.0%}"
        print(f"nearest in {distance} to the pixels of the seventh meadow: {shares}")


def shipped_pictures(data_flags):
    """Print the metrics of the shipped networks' pictures of the test horses."""
    rows = []
    for model in ("RegressionCNN", *EXERCISE):
        path = RUNS / "shipped" / f"{model}.json"
        script("benchmarks/picture_metrics.py", "--model", model, "--json", path, *data_flags)
        for label, row in json.loads(path.read_text())["pictures"].items():
            if "prediction" in label or "decoding" in label or model == "UNet":
                values = [row[name]["mean"] for name in ("psnr", "ssim", "ciede2000", "colorfulness", "balanced_auc")]
                name = f"{model}, {label}" if "prediction" in label or "decoding" in label else label
                rows.append([name, *(f"{value:.4g}" if value is not None else "" for value in values)])
    names = ["", "PSNR, dB", "SSIM", "CIEDE2000", "colorfulness", "balanced AuC"]
    table("Pictures of the shipped networks, test horses", names, rows)


def side_by_side(source):
    """Draw the first ten test horses as each shipped network colors them; for the README, in fewer rows."""
    images, rows = source.validation_images()[:10], {}
    for model in ("RegressionCNN", *EXERCISE):
        net, checkpoint = load_network(pretrained_path(model=model))
        targets = ImageDataset(images, checkpoint.palette, torch.device("cpu")).targets(images)
        each = comparison_rows(images, targets, predict(net, to_gray(images)), checkpoint.palette)
        for label in ("prediction", "argmax decoding", "annealed-mean decoding"):
            if label in each:
                rows[f"{model}, {label}".removesuffix(", prediction")] = each[label]
    rows = {"grayscale input": each["grayscale input"], **rows, "ground truth": each["ground truth"]}
    save_image_grid(PICTURES / "networks.png", "The first ten test horses", rows)
    few = {"grayscale input": "grayscale input", "RegressionCNN": "RegressionCNN", "CNN": "CNN, annealed-mean decoding"}
    few |= {"UNet": "UNet, annealed-mean decoding", "ground truth": "ground truth"}
    few = {label: rows[name] for label, name in few.items()}
    save_image_grid(PICTURES / "horses.png", "", few)


def palette_picture(palette):
    """Draw the palette's colors, each with its red, green and blue."""
    figure = new_figure(figsize=(10, 2.2), layout="constrained")
    ax = figure.subplots()
    ax.imshow(palette.reshape(2, -1, 3), aspect="auto")
    for number, color in enumerate((256 * palette).round().astype(int)):
        row, column = divmod(number, len(palette) // 2)
        words = f"{number}\n{color[0]} {color[1]} {color[2]}"
        ink = "white" if color.sum() < 384 else "#111111"
        ax.text(column, row, words, ha="center", va="center", fontsize=7, color=ink)
    ax.axis("off")
    save(figure, PICTURES / "palette.png")


def one_pixel(source):
    """Draw the probabilities of one pixel of the first hundred test horses: whose mean is farthest from its mode."""
    net, checkpoint = load_network(pretrained_path(model="UNet"))
    images, palette = source.validation_images()[:100], torch.from_numpy(checkpoint.palette).float()
    probabilities = predict(net, to_gray(images)).softmax(1).permute(0, 2, 3, 1).flatten(0, 2)  # (N·32·32, 24)
    mean, mode = probabilities @ palette, palette[probabilities.argmax(1)]
    pixel = (mean - mode).norm(dim=1).argmax().item()
    image, (row, column) = pixel // 1024, divmod(pixel % 1024, 32)
    truth = to_rgb(images).permute(0, 2, 3, 1).flatten(0, 2)[pixel]
    figure = new_figure(figsize=(10, 3), layout="constrained")
    bars, swatches = figure.subplots(1, 2, width_ratios=(3, 1))
    bars.bar(range(len(palette)), probabilities[pixel], color=palette.numpy(), edgecolor="gray")
    bars.set(xlabel="palette color", ylabel="probability", title=f"Test horse {image}, row {row}, column {column}")
    colors = {"mode": mode[pixel], "mean": mean[pixel], "ground truth": truth}
    swatches.imshow(torch.stack(list(colors.values())).view(-1, 1, 3))
    swatches.set_yticks(range(3), [f"{name} {tuple((256 * c).round().int().tolist())}" for name, c in colors.items()])
    swatches.set_xticks([])
    save(figure, PICTURES / "one_pixel.png")


def decodings(source):
    """Print what the decoding alone changes: one network, no gray added; and how much of the variance is gray."""
    net, checkpoint = load_network(pretrained_path(model="UNet"))
    images = source.validation_images()
    truth, logits = to_rgb(images), predict(net, to_gray(images))
    decoded = {
        f"mean, T = {t}": annealed_mean(logits, checkpoint.palette, t).permute(0, 3, 1, 2) for t in (1, 0.6, 0.38)
    }
    decoded |= {"most probable": labels_to_rgb(logits.argmax(1), checkpoint.palette), "ground truth": truth}
    rows = []
    for name, picture in decoded.items():
        rows.append([name, f"{(picture - truth).square().mean():.6f}", f"{colorfulness(picture).mean():.1f}"])
    table("Decoding of the shipped UNet, test horses", ["", "mean squared error", "colorfulness"], rows)
    gray = truth.mean(1, keepdim=True)
    share = (gray - gray.mean()).square().mean() / (truth - truth.mean((0, 2, 3), keepdim=True)).square().mean()
    print(f"\nShare of the variance of the test horses' RGB that is in their gray: {share:.1%}")
    palette = checkpoint.palette
    share = palette.mean(1).var() / (palette - palette.mean(0)).var()
    print(f"Share of the variance of the palette that is in its gray: {share:.1%}")


def hues(source):
    """Print how often the hue of clearly colored pixels is predicted within 30 degrees."""
    from skimage.color import rgb2lab

    def chroma_of(pictures):  # a + b i of CIE Lab
        lab = rgb2lab(pictures.permute(0, 2, 3, 1).numpy())
        return lab[..., 1] + 1j * lab[..., 2]

    images, rows = source.validation_images(), []
    gray, truth = to_gray(images), chroma_of(to_rgb(images))
    for model in EXERCISE:
        net, checkpoint = load_network(pretrained_path(model=model))
        logits = predict(net, gray)
        argmax, annealed = labels_to_rgb(logits.argmax(1), checkpoint.palette), (logits, checkpoint.palette, gray)
        errors = [np.angle(chroma_of(x) * truth.conj(), deg=True) for x in (argmax, decode_annealed_mean(*annealed))]
        rows.append([model, *(f"{(abs(error[abs(truth) > 10]) < 30).mean():.1%}" for error in errors)])
    table("Hue within 30 degrees, of pixels with a true chroma above 10", ["", "argmax", "annealed mean"], rows)


def speckles(source):
    """Print how many pixels of argmax decoding differ from all four neighbors, and how many of those are wrong."""
    images = source.validation_images()
    rows = []
    for model in EXERCISE:
        net, checkpoint = load_network(pretrained_path(model=model))
        labels = ImageDataset(images, checkpoint.palette, torch.device("cpu")).targets(images).long()
        predicted = predict(net, to_gray(images)).argmax(1)
        pictures = {model: predicted} | ({"ground truth": labels} if model == "UNet" else {})
        for name, picture in pictures.items():
            padded = torch.nn.functional.pad(picture, (1, 1, 1, 1), value=-1)
            sides = padded[:, 1:-1, :-2], padded[:, 1:-1, 2:], padded[:, :-2, 1:-1], padded[:, 2:, 1:-1]
            alone = torch.stack([picture != side for side in sides]).all(0)
            rows.append([name, f"{alone.float().mean():.1%}", f"{(alone & (picture != labels)).float().mean():.1%}"])
    table("Pixels unlike all four neighbors, argmax decoding, test horses", ["", "of all", "and wrong"], rows)


def wide_end():
    """Return a RegressionCNN with 24 maps before the last convolution, in place of three."""
    net = CNN(3, 32, 24)
    net.finalconv = MyConv2d(24, 3, 3)
    return net


def gray_of_regression(predicted, images):
    """Return the squared error of a prediction's gray, and the squared differences of neighbors in it, truth: 1."""
    gray, truth = predicted.mean(1, keepdim=True), to_gray(images)
    own, true = (x.diff(dim=2).square().mean() + x.diff(dim=3).square().mean() for x in (gray, truth))
    return (gray - truth).square().mean().item(), (own / true).item()


def shipped_regression(source):
    """Print how much of the shipped regression's squared error is in its gray, and how sharp that is."""
    net, _ = load_network(pretrained_path(model="RegressionCNN"))
    images = source.validation_images()
    predicted = predict(net, to_gray(images))
    in_gray, sharpness = gray_of_regression(predicted, images)
    share = in_gray / (predicted - to_rgb(images)).square().mean().item()
    columns = ["share of the squared error in the gray", "squared differences of neighbors in it, truth: 1"]
    table("RegressionCNN, test horses", columns, [[f"{share:.3f}", f"{sharpness:.3f}"]])


def regressions(source):
    """Print the errors of the regressions, that of their gray alone, and how sharp their gray is."""
    images, rows = replace(source, holdout=500).validation_images(), []
    for name, make in zip(REGRESSIONS, (lambda: RegressionCNN(3, 32), wide_end)):
        last = [history(f"{short(name)}_{seed}")[-1] for seed in SEEDS]
        columns = [[row["valid_loss"] for row in last], [row["train_loss"] for row in last], [], []]
        for seed in SEEDS:
            path, net = RUNS / f"{short(name)}_{seed}" / file_name("RegressionCNN", 3, 32), make()
            net.load_state_dict(load_checkpoint(path).state_dict)
            for column, value in zip(columns[2:], gray_of_regression(predict(net, to_gray(images)), images)):
                column.append(value)
        rows.append([name, *(spread(column, digits) for column, digits in zip(columns, (5, 5, 5, 2)))])
    names = ["", "held-out mean squared error", "training", "of their gray", "squared differences of neighbors"]
    table("Regression, 20 epochs", names, rows)


def train_without(part, argv):
    """Train a UNet whose skip connection into a stage carries zeros, or without Muon; `argv` are colorization.py's."""
    args = colorization.parse(argv)
    source = ImageSource(args.data, holdout=args.holdout)
    regression = part.startswith("labels")
    palette = None if regression else load_palette(palette_path(24, "horse"))
    net, checkpoint = new_network(palette, args.seed, model="RegressionCNN" if regression else "UNet")
    net = wide_end() if part == "labels+narrow end" else net
    for stage in part.split("+") if part in SKIPS else ():
        own = {"upconv1": 64, "upconv2": 32, "finalconv": 24}[stage]  # channels of the decoder; the skip's follow

        def zero_skip(module, inputs, own=own):
            (joined,) = inputs
            return joined * (torch.arange(joined.shape[1]) < own).view(1, -1, 1, 1)

        getattr(net, stage).register_forward_pre_hook(zero_skip)
    trainer, *prepared = prepare_training(args, net, checkpoint, source)
    if part == "muon":
        trainer.optimizer = MuonAdam([], list(trainer.model.parameters()))
    run_training(trainer, *prepared, args.resume)


def dilated_filters():
    """Draw which pixels a 3x3 filter takes with no dilation, 1 and 3, as the module itself does: Figure 1."""
    figure = new_figure(figsize=(9, 3.2), layout="constrained")
    for ax, dilation in zip(figure.subplots(1, 3), (0, 1, 3)):
        conv, image = MyDilatedConv2d(1, 1, 3, dilation=dilation), torch.zeros(1, 1, 15, 15, requires_grad=True)
        torch.nn.init.ones_(conv.weight)
        conv(image)[0, 0, 7, 7].backward()  # the gradient of the middle output pixel is the spread filter
        covered, corner = conv.spread_size, 6.5 - conv.spread_size // 2
        ax.imshow(image.grad[0, 0], cmap="Blues", vmin=0, vmax=1.6)
        ax.add_patch(Rectangle((corner, corner), covered, covered, fill=False, color="C1", lw=2))
        ax.set(xticks=np.arange(0.5, 14), yticks=np.arange(0.5, 14), xticklabels=[], yticklabels=[])
        ax.tick_params(length=0)
        ax.grid(color="lightgray", linewidth=0.5)
        ax.set_title(f"{f'dilation {dilation}' if dilation else 'no dilation'}: 9 weights in {covered}x{covered}")
    save(figure, PICTURES / "dilated_filters.png")


def receptive_field(net, gray):
    """Return the mean absolute gradient of the middle output pixel of gray images (N, 1, 64, 64), (64, 64)."""
    gray = gray.clone().requires_grad_()
    net.eval()(gray)[:, :, 32, 32].abs().sum().backward()
    return gray.grad.abs().mean((0, 1))


def computed_field(dilation=0, pixel=32):
    """Return the receptive field of the middle output pixel of CNN or UNet, stage by stage from the last one."""
    first, last = pixel - 1, pixel + 1  # finalconv
    for _ in ("upconv2", "upconv1"):
        first, last = first // 2 - 1, last // 2 + 1  # what was doubled, and its convolution
    first, last = first - 1 - dilation, last + 1 + dilation  # rfconv
    for _ in ("downconv2", "downconv1"):
        first, last = 2 * first - 1, 2 * last + 2  # the two pixels that were pooled, and their convolution
    return f"{last - first + 1}x{last - first + 1}"


def extent(field):
    """Return the height and width of the nonzero part, in pixels."""
    return "x".join(str(int(line.max() - line.min() + 1)) for line in (field > 0).nonzero().T)


def half_of(field):
    """Return the radius of the smallest square around the middle that contains half of a field's sum, and its share."""
    for radius in range(32):
        inner = slice(32 - radius, 33 + radius)
        share = (field[inner, inner].sum() / field.sum()).item()
        if share >= 0.5:
            return radius, share


def receptive_fields(source):
    """Print and draw the receptive fields of single filters and of the networks, on the test horses."""
    rows, horses = [], pad(to_gray(source.validation_images()), (16, 16, 16, 16), mode="reflect")
    for name, layer, span in (
        ("3x3", MyConv2d(1, 1, 3), 3),
        ("5x5", MyConv2d(1, 1, 5), 5),
        ("3x3, dilation 1", MyDilatedConv2d(1, 1, 3, dilation=1), 5),
    ):
        rows.append([name, layer.weight.numel(), f"{span}x{span}", extent(receptive_field(layer, horses))])
    table("One filter of one map", ["filter", "weights", "receptive field, computed", "measured"], rows)
    rows, fields = [], {}
    for model in EXERCISE:
        fields[model] = receptive_field(load_network(pretrained_path(model=model))[0], horses)
        rows.append([model, computed_field(dilation=int(model == "DUNet")), extent(fields[model])])
    table("One output pixel of the networks", ["network", "receptive field, computed", "measured"], rows)
    figure = new_figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    for ax, (model, field) in zip(axes, fields.items()):
        image = ax.imshow(field / field.max(), cmap="magma", norm="log", vmin=1e-5, vmax=1)
        ax.add_patch(Rectangle((15.5, 15.5), 32, 32, fill=False, color="gray"))  # an image of CIFAR-10 around the pixel
        radius, share = half_of(field)
        ax.add_patch(
            Rectangle((31.5 - radius, 31.5 - radius), 2 * radius + 1, 2 * radius + 1, fill=False, color="cyan")
        )
        ax.set_title(f"{model}: {extent(field)}\n{share:.0%} of the gradient in {2 * radius + 1}x{2 * radius + 1}")
        ax.set(xlim=(8.5, 54.5), ylim=(54.5, 8.5))
        ax.axis("off")
    figure.colorbar(image, ax=axes, label="gradient, as a share of the largest")
    save(figure, PICTURES / "receptive_fields.png")


def curves(models):
    """Draw the training curves of networks at the same budget, all seeds."""
    figure = new_figure(figsize=(10, 3.8), layout="constrained")
    for ax, (metric, label) in zip(
        figure.subplots(1, 2), (("loss", "loss, nats per pixel"), ("accuracy", "accuracy, %"))
    ):
        for color, model in enumerate(models):
            runs_of = [history(f"{short(model)}_{seed}") for seed in SEEDS]
            for part, style, words in (("train", ":", "training"), ("valid", "-", "held out")):
                if f"{part}_{metric}" in runs_of[0][0]:  # training has no accuracy
                    values = np.array([[row[f"{part}_{metric}"] for row in rows] for rows in runs_of])
                    values *= 100 if metric == "accuracy" else 1
                    epochs = np.arange(1, values.shape[1] + 1)
                    ax.plot(epochs, values.mean(0), style, color=f"C{color}", label=f"{model}, {words}")
                    ax.fill_between(epochs, values.min(0), values.max(0), color=f"C{color}", alpha=0.3, linewidth=0)
        ax.set_xlabel("epoch")
        ax.set_ylabel(label)
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
    save(figure, PICTURES / "curves.png")


def zeros(source):
    """Print the share of each stage's values that are zero, over the test horses."""
    gray, rows = to_gray(source.validation_images()), []
    stages = ("downconv1", "downconv2", "rfconv", "upconv1", "upconv2")
    for model in ("CNN", "UNet"):
        trained_alike = [RUNS / f"{short(model)}_{seed}" / file_name(model, 3, 32) for seed in SEEDS]
        for path in (pretrained_path(model=model), *filter(Path.exists, trained_alike)):
            outputs = stage_outputs(load_network(path)[0], gray)
            rows.append([f"{model}, {path.parent.name}", *(f"{(outputs[s] == 0).float().mean():.0%}" for s in stages)])
    table("Zeros in the feature maps, test horses", ["", *stages], rows)


def activation_sheets(source):
    """Draw the eight most varied feature maps of three stages of CNN and UNet, with their numbers and ranges."""
    for number in (3, 7):
        image = source.validation_images()[number, None]
        figure = new_figure(figsize=(9, 9), layout="constrained")
        axes = figure.subplots(7, 9)
        for ax in axes.flat:
            ax.axis("off")
        axes[0, 1].imshow(to_rgb(image)[0].permute(1, 2, 0))
        axes[0, 1].set_title(f"test image {number}", fontsize=6)
        axes[0, 2].imshow(to_gray(image)[0, 0], cmap="gray", vmin=0, vmax=1)
        axes[0, 2].set_title("as the networks see it", fontsize=6)
        stages = itertools.product(("CNN", "UNet"), ("downconv1", "rfconv", "upconv2"))
        for row, (model, stage) in zip(axes[1:], stages):
            (maps,) = stage_outputs(load_network(pretrained_path(model=model))[0], to_gray(image))[stage]  # (C, H, W)
            row[0].text(0.5, 0.5, f"{model},\n{stage}", fontsize=7, ha="center", va="center")
            for ax, channel in zip(row[1:], maps.std((1, 2)).topk(8).indices.sort().values):
                values = maps[channel]
                ax.imshow(values, cmap="viridis", interpolation="nearest")
                ax.set_title(f"{channel}: {values.min():.1f} … {values.max():.1f}", fontsize=6)
        save(figure, PICTURES / f"activations_{number}.png")


def training_gap(source):
    """Print by which steps the training loss of 3.2's curve turns into the loss on the test horses."""
    palette, device = load_palette(palette_path(24, "horse")), torch.device("cpu")
    train_set, test_set = (make(palette, device) for make in (source.training_set, source.validation_set))
    net, _ = new_network(palette, model="UNet")
    config = TrainingConfig(epochs=5, batch_size=10)
    trainer = Trainer(net, train_set, config)
    rows = [["mean over the last epoch", [trainer.train_epoch(epoch) for epoch in range(1, 6)][-1]]]

    @torch.no_grad()
    def mean_loss(augmentation):  # of the last weights, with batch norm as in training; this changes its averages
        losses = []
        for images in train_set.images[torch.randperm(len(train_set))].split(config.batch_size):
            images = augment(images, augmentation)
            losses.append(cross_entropy(trainer.model(to_gray(images)), train_set.targets(images)))
        return torch.stack(losses).mean().item()

    last = evaluate(trainer.model, train_set)["loss"]
    rows += [["at its end", mean_loss(config.augment)], ["without augmentation", mean_loss(())]]
    rows += [["with batch norm's averages", last], ["averaged weights", evaluate(net, train_set)["loss"]]]
    rows += [["test horses", evaluate(net, test_set)["loss"]]]
    table("UNet, -b 10 -e 5: from training to test loss", ["", "loss"], [[name, f"{x:.3f}"] for name, x in rows])


def dilation_on_photographs(folder, size=128, epochs=8, seeds=(0, 1)):
    """Print the losses of UNet and DUNet trained on crops of photographs, of 32x32 pixels and of `size`."""
    rows, device = [], torch.device("cpu")
    for crop in (32, size):
        source = ImageSource(str(folder), working_size=2 * crop, crop_size=crop)
        palette, _ = fit_palette(source.training_images(), 24)
        train_set, valid_set = (make(palette, device) for make in (source.training_set, source.validation_set))
        for model in ("UNet", "DUNet"):
            losses = []
            for seed in seeds:
                net, _ = new_network(palette, seed, model=model)
                trainer = Trainer(net, train_set, TrainingConfig(epochs=epochs, seed=seed))
                for epoch in range(1, epochs + 1):
                    trainer.train_epoch(epoch)
                losses.append(list(evaluate(net, valid_set).values()))
            loss, accuracy = zip(*losses)
            shown = " ".join(f"{value:.4f}" for value in loss), " ".join(f"{value:.2%}" for value in accuracy)
            rows.append([f"{crop}x{crop}", model, *shown])
            print(rows[-1], flush=True)
    table("UNet and DUNet on photographs", ["crops", "", "held-out loss", "accuracy"], rows)


def of_the_shipped(source, data_flags):
    """Print and draw what needs no training."""
    PICTURES.mkdir(exist_ok=True)
    palette = load_palette(palette_path(24, "horse"))
    palette_picture(palette)
    rgb_and_sight(palette, source)
    one_pixel(source)
    shipped_regression(source)
    decodings(source)
    hues(source)
    speckles(source)
    shipped_pictures(data_flags)
    side_by_side(source)
    dilated_filters()
    receptive_fields(source)
    zeros(source)
    activation_sheets(source)


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="list the missing runs")
    parser.add_argument("--shipped", action="store_true", help="only what needs no training")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="number of runs at a time")
    parser.add_argument("--data", default="cifar10", help="cifar10, or the folder that contains it")
    text = "train a UNet without the skip connection into this stage, or without Muon; or a regression; flags as usual"
    parser.add_argument("--photographs", type=Path, metavar="FOLDER", help="compare UNet and DUNet on crops of these")
    parser.add_argument("--without", choices=[*SKIPS, "muon", "labels", "labels+narrow end"], help=text)
    args, more = parser.parse_known_args(argv)
    if args.without:
        return train_without(args.without, [*more, "--data", args.data])  # colorization.py's flags
    if args.photographs:
        return dilation_on_photographs(args.photographs)
    if more:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    source = ImageSource(args.data)
    if not source.cifar10_folder:
        raise SystemExit(f"--data {args.data}: not a folder that contains CIFAR-10")
    data_flags = ["--data", source.cifar10_folder.resolve()]

    if args.shipped:
        return of_the_shipped(source, data_flags)
    missing = {name: flags for name, flags in runs().items() if not finished(name)}
    minutes = sum(map(epochs_of, missing.values())) * SECONDS_PER_EPOCH / 60
    print(f"{len(missing)} of {len(runs())} runs are missing: about {minutes / args.jobs:.0f} minutes", flush=True)
    if args.list:
        for name, commands in missing.items():
            print(f"{name}: {', then '.join(' '.join(map(str, flags)) for flags in commands)}")
        return
    source.validation_images()  # downloads CIFAR-10 if needed, once for all commands
    train_all(missing, data_flags, args.jobs)

    of_the_shipped(source, data_flags)
    curves(["CNN", "UNet"])
    over_seeds("CNN and UNet", ["CNN", *WIDE_CNN, "UNet"])
    training_gap(source)
    regressions(source)
    over_seeds("UNet trained without a skip connection, 10 epochs", ["all skips", *SKIPS.values(), "no skips (CNN)"])
    over_seeds("Optimizers, UNet", OPTIMIZERS)
    over_seeds("Augmentation, UNet", AUGMENTATIONS)
    rates, batches = (sorted({pair[axis] for pair in SWEEP}) for axis in (0, 1))
    rows = []
    for rate in rates:
        runs_of = {batch: [f"sweep_{rate}_{batch}_{seed}" for seed in SEEDS] for batch in batches}
        rows.append([rate, *(spread([history(n)[-1]["valid_loss"] for n in names], 3) for names in runs_of.values())])
    table("Five epochs, held-out loss", ["peak learning rate", *(f"batches of {batch}" for batch in batches)], rows)
    over_seeds("UNet and dilated UNet", ["UNet", "DUNet"])


if __name__ == "__main__":
    run_script(main)
