"""Colorize photographs of any size: the network colors small copies; their chroma is added to the full-size gray.

A guided filter (He et al. 2013) enlarges the chroma along the edges of the gray.
"""

import contextlib
import hashlib
import io
import itertools
import os
import re
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad
from tqdm import tqdm

from data import to_gray, to_rgb
from models import Network, predict
from pictures.decoding import apply_chroma, decode_annealed_mean
from pictures.plots import save_image_grid
from sources.image_files import MARK_TAG, SCRIPT, is_result, list_image_files, mark_of, read_image, to_srgb, to_tensor
from utils.checkpoint import Checkpoint, load_network, pretrained_path
from utils.console import UserError
from utils.files import atomic_write, check_writable, report_read_errors

PHOTOGRAPH_TEMPERATURE = 1.0  # the mean over several copies of a photograph needs no sharpening
PHOTOGRAPH_GAIN = 1.25  # more than for small pictures: that mean, and enlarging, take some of the color
COPY_SCALES = (0.5, 1.0, 1.5)  # longer side of the copies that the network sees, as multiples of the working size
RADIUS = 4  # of the guided filter, in pixels of the largest copy
EPSILON = 1e-3  # variance of the gray above which the guided filter takes a difference for an edge
STRIP = 1 << 20  # pixels colored at a time
SHEET = 6  # images on before_and_after.png
THUMBNAIL = 240  # height of each of them, in pixels, less if it is wider than three times that
JPEG_SIDE = 65_500  # pixels, the most that a JPEG can have
METADATA = 60_000  # bytes of each kind of metadata that a JPEG can have


@lru_cache
def photograph_network() -> tuple[Network, Checkpoint]:
    """Return the shipped network for photographs, and its Checkpoint. Raises UserError if it is not there."""
    return load_network(pretrained_path(photographs=True))


def colorize(
    image: Image.Image,
    network: tuple[Network, Checkpoint] | None = None,
    saturation: float = 1.0,
    temperature: float = PHOTOGRAPH_TEMPERATURE,
) -> Image.Image:
    """Return a colored copy of a Pillow image of any mode: RGB, or RGBA if it has transparent parts.

    `network` is what load_network() returns, by default the shipped network for photographs. `saturation`
    multiplies the colors: 0 leaves the image gray, 1 is what the network predicts.
    """
    return colorize_srgb(to_srgb(image), network or photograph_network(), saturation, temperature)


def colorize_srgb(
    image: Image.Image, network: tuple[Network, Checkpoint], saturation: float, temperature: float
) -> Image.Image:
    """Return a colored copy of an image as to_srgb() returns it. The other arguments are colorize()'s."""
    chroma, gray = predict_chroma(network, image, temperature)
    colored = colorize_full_size(saturation * chroma, gray, image)
    if image.mode == "RGBA":
        colored.putalpha(image.getchannel("A"))
    return colored


def predict_chroma(
    network: tuple[Network, Checkpoint], image: Image.Image, temperature: float = PHOTOGRAPH_TEMPERATURE
) -> tuple[Tensor, Tensor]:
    """Return the chroma that a network predicts for an RGB image, and the gray (1, 1, h, w) that it saw.

    The chroma is the colors minus their mean, (1, 3, h, w), averaged over copies of COPY_SCALES times the working size
    on the longer side, each also mirrored; (h, w) is the size of the last. Raises UserError if it predicts RGB instead.
    """
    net, checkpoint = network
    if not checkpoint.is_classifier:
        raise UserError(f"a {checkpoint.model} predicts RGB, not palette colors; name another network")
    predictions, multiple = [], net.size_multiple
    image = image if image.mode == "RGB" else image.convert("RGB")  # which copies, and a photograph may be large
    for scale in COPY_SCALES:
        shrinking = min(1, scale * checkpoint.working_size / max(image.size))
        size = [max(multiple, multiple * round(side * shrinking / multiple)) for side in image.size]
        gray = to_gray(to_tensor(image.resize(size, Image.Resampling.BOX, reducing_gap=2)))
        for mirrored in (False, True):
            seen = gray.flip(3) if mirrored else gray
            logits = predict(net, seen).cpu()
            colors = decode_annealed_mean(logits, checkpoint.palette, seen, temperature, PHOTOGRAPH_GAIN)
            predictions.append(colors.flip(3) if mirrored else colors)  # (1, 3, h, w)
    mean = torch.stack([interpolate(each, gray.shape[2:], mode="bicubic") for each in predictions]).mean(0)
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
        full_gray = to_gray(to_tensor(image.crop((0, top, width, bottom)))) * 256 / 255  # white is 1
        box = (0, top * scale, gray.shape[3], bottom * scale)
        size = width, bottom - top
        enlarged = np.stack([np.array(plane.resize(size, Image.Resampling.BICUBIC, box=box)) for plane in planes])
        slope, offset = torch.from_numpy(enlarged)[None].chunk(2, 1)  # (1, 2, rows, width) each
        colors = slope * full_gray + offset
        colors = torch.cat([colors, -colors.sum(1, keepdim=True)], 1)
        strip = apply_chroma(colors, full_gray)[0]  # (3, rows, width)
        colored[top:bottom] = strip.mul_(255).round_().clamp_(0, 255).byte().permute(1, 2, 0)

    rows = max(1, STRIP // width)  # per strip, so that a large photograph takes little memory
    tops = range(0, height, rows)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # Pillow and PyTorch release the GIL
        list(pool.map(color_rows, tops, (min(top + rows, height) for top in tops)))
    return Image.fromarray(colored)


def kept_metadata(info: dict, image_format: str, mark: str) -> dict:
    """Return what a colored image keeps of its source's `info`, as arguments of Image.save(), without the thumbnail.

    Those are resolution, EXIF data, XMP data and comments, if they can be written. The mark is added to the EXIF data.
    """
    text = PngImagePlugin.PngInfo()
    kept: dict = {"pnginfo": text}
    dpi = info.get("dpi")
    if isinstance(dpi, tuple) and all(1 <= value < 65_000 for value in dpi):  # what a JPEG can store, and no NaN
        kept["dpi"] = dpi
    for key, value in info.items():
        if isinstance(value, str) and len(value) < METADATA and not key.startswith("XML:") and key != "compression":
            text.add_itxt(key, value)
    xmp, comment = info.get("xmp") or info.get("XML:com.adobe.xmp") or b"", info.get("comment") or b""
    xmp = xmp.encode() if isinstance(xmp, str) else xmp
    xmp = re.sub(rb"""(tiff:Orientation(\s*=\s*["']|>)\s*)\d""", rb"\g<1>1", xmp)  # the image has been turned
    for key, name, value in (("xmp", "XML:com.adobe.xmp", xmp), ("comment", "Comment", comment)):
        if isinstance(value, bytes) and 0 < len(value) < METADATA:
            kept[key] = value
            text.add_itxt(name, value.decode(errors="replace"))
    for source in (info.get("exif", b""), b""):  # without the source's, if that is broken
        with contextlib.suppress(Exception):  # broken metadata may raise anything
            exif = Image.Exif()
            exif.load(source)
            exif[MARK_TAG] = mark
            kept["exif"] = exif.tobytes()
            Image.new("RGB", (1, 1)).save(io.BytesIO(), image_format, **kept)
            if len(kept["exif"]) < METADATA:
                break
    return kept


def fingerprint(checkpoint: Checkpoint) -> int:
    """Return a checksum of a network's weights, palette and working size."""
    weights = (value.detach().cpu().reshape(-1).view(torch.uint8).numpy() for value in checkpoint.state_dict.values())
    return zlib.crc32(b"".join(map(bytes, weights)) + repr((checkpoint.palette, checkpoint.working_size)).encode())


def numbered(path: Path) -> Iterator[Path]:
    """Return a path, and then the same with numbers from 2 at the end of its name."""
    return itertools.chain([path], (path.with_stem(f"{path.stem}_{number}") for number in itertools.count(2)))


def thumbnail(image: Image.Image) -> Tensor:
    """Return a small copy of an image as a tensor (3, h, w) in 0..1."""
    image = image.convert("RGB")  # a copy, without the transparency, which would darken what is resized
    image.thumbnail((3 * THUMBNAIL, THUMBNAIL))
    return to_rgb(to_tensor(image))[0]


def list_sources(paths: list[Path], folder: Path) -> list[tuple[Path, Path]]:
    """Return the files to color, and for each the folder of its result: `folder`, or one as deep in it as the file is.

    Earlier results are left out, since `folder` may lie inside a folder to color. Raises UserError if there are none.
    """
    sources, resolved = [], folder.resolve()
    for path in paths:
        for file in list_image_files(path):
            if file == path:
                sources.append((file, folder))
            elif resolved not in file.resolve().parents or not is_result(file):
                sources.append((file, folder / file.parent.relative_to(path)))
    if not sources:
        raise UserError(f"no images found in {', '.join(map(str, paths))}")
    return sources


def colorize_file(
    file: Path, folder: Path, network: tuple[Network, Checkpoint], settings: tuple[float, float], mark: str
) -> tuple[Image.Image, Image.Image] | None:
    """Color an image file into a folder; return both images, None if a result with this mark is there.

    The mark is completed with a checksum of the file. Raises UserError.
    """
    with report_read_errors(file, "picture", "check its name"), open(file, "rb") as content:
        mark += f" {hashlib.file_digest(content, 'md5').hexdigest()}"
    endings = [".jpg", ".png"] if file.suffix.lower() in (".jpg", ".jpeg") else [".png"]
    paths = [folder / f"{file.stem}_colored{ending}" for ending in endings]
    earlier = (itertools.takewhile(os.path.lexists, numbered(path)) for path in paths)
    if mark in map(mark_of, itertools.chain(*earlier)):
        return None
    image = read_image(file)
    colored = colorize_srgb(image, network, *settings)
    as_jpeg = len(paths) == 2 and image.mode == "RGB" and max(image.size) <= JPEG_SIDE
    image_format, quality = ("JPEG", {"quality": 93}) if as_jpeg else ("PNG", {"compress_level": 1})
    for path in numbered(paths[0] if as_jpeg else paths[-1]):
        with contextlib.suppress(FileExistsError):  # another process may have written it in the meantime
            if not os.path.lexists(path):
                check_writable(path)
                with atomic_write(path, may_replace=False) as result:
                    colored.save(result, image_format, **quality, **kept_metadata(image.info, image_format, mark))
                break
        if mark_of(path) == mark:
            return None
    with contextlib.suppress(OSError):  # some file systems keep no dates
        os.utime(path, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))  # those of its source
    tqdm.write(f"saved {path}" + ("" if path.stem == f"{file.stem}_colored" else f", from {file}"))
    return image, colored


def colorize_files(
    paths: list[Path], folder: Path, network: tuple[Network, Checkpoint], saturation: float, temperature: float
) -> None:
    """Color image files, and the images in folders, into `folder`; add a sheet of the first six.

    What is there already, from the same file and with the same settings, is left. Files that cannot be read are
    reported and skipped; a UserError at the end says how many.
    """
    sources = list_sources(paths, folder)
    mark = f"{SCRIPT} {fingerprint(network[1])} {saturation:g} {temperature:g}"
    pairs: list[list[Tensor]] = []
    failed = left = 0
    for file, target in tqdm(sources, unit="image", leave=False, disable=None):
        try:
            both = colorize_file(file, target, network, (saturation, temperature), mark)
        except UserError as error:
            failed += 1
            tqdm.write(str(error), file=sys.stderr)
            continue
        left += both is None
        if both and len(pairs) < SHEET:
            pairs.append([thumbnail(image) for image in both])
    count = len(sources) - failed - left
    if pairs:
        title = f"before and after: {network[1].model}, saturation {saturation:g}, temperature {temperature:g}"
        save_sheet(folder / "before_and_after.png", pairs, title + (f"; {SHEET} of {count}" if count > SHEET else ""))
    print(f"{count} image{'s'[: count != 1]} colored" + (f"; {left} colored before" if left else ""))
    if failed:
        raise UserError(f"{failed} of {len(sources)} images could not be colored")


def save_sheet(path: Path, pairs: list[list[Tensor]], title: str) -> None:
    """Write pictures before and after coloring, and their gray between the two unless all were gray."""
    before, after = zip(*pairs)
    rows = {"gray": [picture.mean(0, keepdim=True) for picture in before], "after": after}
    if any((picture - picture.mean(0)).abs().max() > 0.03 for picture in before):
        rows = {"before": before} | rows  # not for old photographs, which are gray
    path = next(candidate for candidate in numbered(path) if not os.path.lexists(candidate))
    save_image_grid(path, title, rows)
    print(f"saved {path}")
