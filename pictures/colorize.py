"""Colorize photographs of any size: the network colors small copies; their chroma is added to the full-size gray.

A guided filter (He et al. 2013) enlarges the chroma along the edges of the gray.
"""

import contextlib
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad
from tqdm import tqdm

from data import to_gray, to_rgb
from models import Network, predict
from pictures.decoding import TEMPERATURE, apply_chroma, decode_annealed_mean
from pictures.plots import save_image_grid
from sources.image_files import list_image_files, read_image, to_tensor
from utils.checkpoint import Checkpoint
from utils.console import UserError
from utils.files import atomic_write, new_file

CHROMA_GAIN = 1.15  # a little more than for small pictures: enlarging takes some of the color
COPY_SCALES = (0.75, 1.25)  # longer side of the copies that the network sees, as multiples of the working size
RADIUS = 4  # of the guided filter, in pixels of the largest copy
EPSILON = 1e-3  # variance of the gray above which the guided filter takes a difference for an edge
STRIP = 1 << 20  # pixels colored at a time
SHEET = 6  # images on before_and_after.png
THUMBNAIL = 320  # longer side of each of them, in pixels


def small_gray(image: Image.Image, longer_side: float, multiple: int) -> Tensor:
    """Return the gray of a copy of an RGB image, (1, 1, h, w), whose sides are multiples of a number."""
    scale = min(1, longer_side / max(image.size))
    size = [max(multiple, multiple * round(side * scale / multiple)) for side in image.size]
    return to_gray(to_tensor(image.resize(size, Image.Resampling.BOX, reducing_gap=2)))


def predict_chroma(
    net: Network, palette: np.ndarray | None, image: Image.Image, working_size: int, temperature: float = TEMPERATURE
) -> tuple[Tensor, Tensor]:
    """Return the chroma that a network predicts for an RGB image, and the gray (1, 1, h, w) that it saw.

    The chroma is the colors minus their mean, (1, 3, h, w), averaged over copies of COPY_SCALES times `working_size`
    pixels on the longer side, each also mirrored; (h, w) is the size of the last.
    """

    def colors(gray: Tensor) -> Tensor:
        return decode_annealed_mean(predict(net, gray).cpu(), palette, gray, temperature, CHROMA_GAIN)

    predictions = []
    for scale in COPY_SCALES:
        gray = small_gray(image, scale * working_size, net.size_multiple)
        predictions.append(colors(gray) + colors(gray.flip(3)).flip(3))  # (1, 3, h, w)
    enlarged = [interpolate(each, gray.shape[2:], mode="bicubic") for each in predictions]
    mean = torch.stack(enlarged).mean(0) / 2
    return mean - mean.mean(1, keepdim=True), gray


def fit_to_gray(chroma: Tensor, gray: Tensor) -> tuple[Tensor, Tensor]:
    """Fit chroma (1, 3, h, w) around every pixel as slope * gray + offset; return both, (1, 3, h, w).

    The coefficients of the guided filter (He et al. 2013, equations 5, 6 and 8).
    """

    def mean(x: Tensor) -> Tensor:  # over the window around each pixel
        return avg_pool2d(pad(x, [RADIUS] * 4, mode="replicate"), 2 * RADIUS + 1, stride=1)

    covariance = mean(gray * chroma) - mean(gray) * mean(chroma)
    slope = covariance / (mean(gray**2) - mean(gray) ** 2 + EPSILON)
    return mean(slope), mean(mean(chroma) - slope * mean(gray))


def colorize_full_size(chroma: Tensor, gray: Tensor, image: Image.Image) -> Image.Image:
    """Return an RGB image colored with the chroma (1, 3, h, w) of its small copy, whose gray is (1, 1, h, w)."""
    width, height = image.size
    # of red and green alone, since the three sum to zero
    planes = [Image.fromarray(plane.numpy()) for part in fit_to_gray(chroma, gray) for plane in part[0, :2]]
    scale = gray.shape[2] / height
    colored = np.empty((height, width, 3), np.uint8)

    def color_rows(top: int, bottom: int) -> None:
        full_gray = to_gray(to_tensor(image.crop((0, top, width, bottom))))
        box = (0, top * scale, gray.shape[3], bottom * scale)
        size = width, bottom - top
        enlarged = np.stack([np.array(plane.resize(size, Image.Resampling.BICUBIC, box=box)) for plane in planes])
        slope, offset = torch.from_numpy(enlarged)[None].chunk(2, 1)  # (1, 2, rows, width) each
        colors = slope * full_gray + offset
        colors = torch.cat([colors, -colors.sum(1, keepdim=True)], 1)
        strip = apply_chroma(colors, full_gray)[0]  # (3, rows, width)
        colored[top:bottom] = strip.mul_(256).round_().clamp_(0, 255).byte().permute(1, 2, 0)

    rows = max(1, STRIP // width)  # per strip, so that a large photograph takes little memory
    tops = range(0, height, rows)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # Pillow and PyTorch release the GIL
        list(pool.map(color_rows, tops, (min(top + rows, height) for top in tops)))
    return Image.fromarray(colored)


def kept_metadata(info: dict) -> dict:
    """Return what a colored image keeps of its source's `info`, as arguments of Image.save(), without the thumbnail."""
    kept = {}
    if all(1 <= value < 1 << 16 for value in info.get("dpi", [0])):  # what a JPEG can store; NaN in a broken TIFF
        kept["dpi"] = info["dpi"]
    profile, most = info.get("icc_profile") or b"", 60_000  # bytes; a JPEG takes no more
    if profile[16:20] == b"RGB " and len(profile) < most:  # else of gray or of printing colors
        kept["icc_profile"] = profile
    with contextlib.suppress(Exception):  # broken metadata may raise anything
        exif = Image.Exif()
        exif.load(info["exif"])
        if len(exif.tobytes()) < most:
            kept["exif"] = exif.tobytes()
    return kept


def save_image(folder: Path, source: Path, image: Image.Image, alpha: Image.Image | None, info: dict) -> Path:
    """Write a colored image under a new name, as JPEG if its source is one without transparency, else as PNG."""
    as_jpeg = source.suffix.lower() in (".jpg", ".jpeg") and alpha is None
    settings: dict = {"format": "JPEG", "quality": 93} if as_jpeg else {"format": "PNG", "compress_level": 1}
    if alpha is not None:
        image.putalpha(alpha)
    path = folder / f"{source.stem}_colored.{'jpg' if as_jpeg else 'png'}"
    with new_file(path) as unique, atomic_write(unique) as file:
        image.save(file, **settings, **kept_metadata(info))
    return unique


def thumbnail(image: Image.Image) -> Tensor:
    """Return a small copy of an image as a tensor (3, h, w) in 0..1."""
    image = image.convert("RGB")  # a copy
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return to_rgb(to_tensor(image))[0]


def is_result(file: Path, folder: Path) -> bool:
    """Return whether a file in `folder`, which may lie inside a folder to color, is an earlier result."""
    named = re.fullmatch(r".*_colored(_\d+)?|before_and_after(_\d+)?", file.stem)
    return bool(named) and file.parent.resolve() == folder.resolve()


def colorize_files(
    paths: list[Path], folder: Path, net: Network, checkpoint: Checkpoint, temperature: float = TEMPERATURE
) -> None:
    """Color image files, and the images in folders, into `folder`; add a sheet of the first six.

    Files that cannot be read are reported and skipped; a UserError at the end says how many.
    """
    files = [file for path in paths for file in list_image_files(path) if file == path or not is_result(file, folder)]
    pairs: list[tuple[Tensor, Tensor]] = []
    failed = 0
    for file in tqdm(files, unit="image", leave=False, disable=None):
        try:
            image, alpha = read_image(file)
            settings = checkpoint.palette, image, checkpoint.working_size, temperature
            colored = colorize_full_size(*predict_chroma(net, *settings), image)
            tqdm.write(f"saved {save_image(folder, file, colored, alpha, image.info)}")
        except UserError as error:
            failed += 1
            tqdm.write(str(error), file=sys.stderr)
            continue
        if len(pairs) < SHEET:
            pairs.append((thumbnail(image), thumbnail(colored)))
    if pairs:
        before, after = zip(*pairs)
        rows = {"gray": [picture.mean(0, keepdim=True) for picture in before], "after": after}
        if any((picture - picture.mean(0)).abs().max() > 0.03 for picture in before):
            rows = {"before": before} | rows  # not for old photographs, which are gray
        with new_file(folder / "before_and_after.png") as path:
            save_image_grid(path, "before and after", rows)
        print(f"saved {path}")
    if not files:
        raise UserError(f"no images found in {', '.join(map(str, paths))}")
    if failed:
        raise UserError(f"{failed} of {len(files)} images could not be colored")
