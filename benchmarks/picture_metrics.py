"""Metrics of a network's pictures, of every image and on average: PSNR, SSIM, CIEDE2000, colorfulness and AuC.

python benchmarks/picture_metrics.py --model UNet                          the shipped network, 1,000 test horses
python benchmarks/picture_metrics.py --checkpoint FILE --holdout 500       a network of yours, 500 held-out horses

`--json FILE` writes the metrics of every image. Takes some seconds per thousand images.
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import structural_similarity
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data import ImageSource, palette_file, palette_for
from models import NETWORKS
from pictures.decoding import TEMPERATURE, apply_chroma, with_inputs_gray
from pictures.metrics import colorfulness, psnr
from sources.cifar10 import CLASSES
from training.evaluation import evaluate_pictures
from utils import flags
from utils.checkpoint import load_network, pretrained_path
from utils.console import print_table, run_script
from utils.files import atomic_write, check_targets

NAMES = {"psnr": "PSNR (dB)", "ssim": "SSIM", "ciede2000": "CIEDE2000", "colorfulness": "colorfulness"}
NAMES |= {"auc": "AuC", "balanced_auc": "balanced AuC"}
WIDEST_DISTANCE = 150  # in ab, the largest distance of the curve in Zhang et al. 2016
BIN = 10  # width of a color bin in ab


def measure(panels, truth):
    """Return metrics of labeled pictures (N, 3, H, W) in 0..1, {label: {metric: {"mean": number, "per_image": […]}}}.

    The mean PSNR is computed from the mean squared error over all pixels; the other means are over images.
    SSIM has 7x7 windows and is averaged over channels, CIEDE2000 over pixels. AuC is the area under the curve of the
    share of pixels within a distance in ab, for distances from 0 to 150, unweighted and ("balanced") with more weight
    on rare colors (Zhang et al. 2016, section 3.1); the balanced mean is over all pixels.
    """
    true_lab = lab(truth)
    weights = rarity_weights(true_lab)
    result = {}
    for label, pictures in panels.items():
        pairs = zip(pictures.numpy(), truth.numpy())
        ssim = [structural_similarity(*pair, channel_axis=0, data_range=1) for pair in pairs]
        distances = np.linalg.norm(lab(pictures)[..., 1:] - true_lab[..., 1:], axis=-1)
        nearness = (1 - distances / WIDEST_DISTANCE).clip(0)  # (N, H, W): share of distances it lies within
        metrics = {
            "psnr": -10 * (pictures - truth).square().mean((1, 2, 3)).log10().numpy(),
            "ssim": np.array(ssim),
            "ciede2000": deltaE_ciede2000(lab(pictures), true_lab).mean((1, 2)),
            "colorfulness": colorfulness(pictures).numpy(),
            "auc": nearness.mean((1, 2)),
            "balanced_auc": (weights * nearness).sum((1, 2)) / weights.sum((1, 2)),
        }
        means = {name: values.mean() for name, values in metrics.items()}
        means["psnr"] = psnr(pictures, truth)
        means["balanced_auc"] = np.average(nearness, weights=weights)
        result[label] = {name: {"mean": finite(means[name]), "per_image": finite(metrics[name])} for name in NAMES}
    return result


def finite(values):
    """Return a number or an array as JSON has it, rounded to six decimals; values that are not finite become None."""
    values = np.asarray(values, np.float64).round(6)
    return np.where(np.isfinite(values), values.astype(object), np.array(None)).tolist()


def lab(pictures: Tensor) -> np.ndarray:
    """Return pictures in CIE Lab, an array (N, H, W, 3)."""
    return rgb2lab(pictures.permute(0, 2, 3, 1).numpy())


def rarity_weights(true_lab):
    """Return a weight for every pixel, (N, H, W), larger where its true color is rarer in ab.

    The inverse of its bin's frequency, smoothed by a Gaussian of 5 units (Zhang et al. 2016, equation 4, λ = 0).
    """
    from scipy.ndimage import gaussian_filter

    bins = np.floor(true_lab[..., 1:] / BIN).astype(int) + 15  # ab reaches from -128 to 127
    counts = np.zeros((30, 30))
    np.add.at(counts, (bins[..., 0], bins[..., 1]), 1)
    shares = gaussian_filter(counts / counts.sum(), 5 / BIN)
    return 1 / shares[bins[..., 0], bins[..., 1]]


def compared_panels(panels, source, palette):
    """Return rows of pictures, with the trivial answers and the best that the palette allows, and the truth."""
    truth = panels.pop("ground truth")
    mean = source.training_images().mean((0, 2, 3), dtype=torch.float32).view(1, 3, 1, 1) / 256
    panels["dataset mean, with the input's gray"] = apply_chroma(mean, panels["grayscale input"][:, :1])
    return with_inputs_gray(panels, palette) | {"ground truth": truth}, truth


def main(argv):
    parser = flags.Parser(__doc__)
    flags.add_network_flags(parser, "file of the network (default: the shipped weights)", NETWORKS)
    group = flags.add_image_flags(parser, asdict(ImageSource()), CLASSES)
    text = "measure on N images of each class that training with this flag has left out"
    flags.add_number(group, "--holdout", default=0, low=0, high=10**6, help=text)
    text = "of the softmax in annealed-mean decoding"
    flags.add_number(
        parser, "--temperature", default=TEMPERATURE, low=0.01, high=100, kind=float, help=text, metavar="T"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the metrics of every image")
    args = parser.parse_args(argv)

    source, architecture = ImageSource(args.data, args.category, args.holdout), flags.architecture_of(args)
    palette = palette_for(args.colors, source) if args.colors else None
    path = args.checkpoint or pretrained_path(photographs=source.is_album, **architecture)
    check_targets([args.json] if args.json else [], [path, source.path, palette_file(args.colors, source)])
    net, checkpoint = load_network(path, palette, **architecture)
    source = replace(source, working_size=checkpoint.working_size, crop_size=net.training_size)
    dataset = source.validation_set(checkpoint.palette, torch.device("cpu"))
    metrics, panels = evaluate_pictures(net, dataset, args.temperature or TEMPERATURE)
    measured = measure(*compared_panels(panels, source, checkpoint.palette))
    means = {label: [row[name]["mean"] for name in NAMES] for label, row in measured.items()}
    rows = [[label, *("" if mean is None else f"{mean:#.4g}" for mean in row)] for label, row in means.items()]
    print_table([f"{checkpoint.model}, {source}", *NAMES.values()], rows)
    if args.json:
        with atomic_write(args.json, "x") as file:
            json.dump({"model": checkpoint.model, "data": str(source), **metrics, "pictures": measured}, file, indent=1)
        print(f"saved {args.json}")


if __name__ == "__main__":
    run_script(main)
