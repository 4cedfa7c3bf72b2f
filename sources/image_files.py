"""Image files: photographs in any format, folders of them, and two photographs that come with scikit-learn."""

import contextlib
import io
import os
import re
import threading
import warnings
import zlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageChops, ImageCms, ImageOps
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from sources.cifar10 import SIZE
from utils.console import UserError
from utils.files import report_read_errors

FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")  # none runs a program
UNREAD = {".heic", ".heif", ".jxl", ".psd", ".svg", ".eps", ".dng", ".cr2", ".cr3", ".nef", ".arw"}  # also pictures
MAX_PIXELS, MAX_SIDE = 80_000_000, 100_000  # of an image, which keeps the process under 2 GB
LARGE_IMAGES = threading.Lock()  # one at a time, so that threads do not fill the memory together
KEPT_BYTES = 2 << 30  # of all of a folder's photographs together
SMALLEST_SIDE = 0.75  # longer side of the smallest copies that crops are taken from, as a multiple of the crops'
LARGEST_SIDE = 1.5  # of the largest, as a multiple of the working size, as in COPY_SCALES of pictures/colorize.py
MAX_ENLARGEMENT = 1.5  # of a photograph, unless it is smaller than a crop
GAMMAS = (0.67, 1.5)  # of augmented crops, which makes them darker or lighter
NOISE = 6  # largest standard deviation of the noise in these, of 255: a network should ignore the grain of film
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF files
MARK_TAG = 11  # the EXIF tag ProcessingSoftware, in which a result of --colorize records what it was made from
SCRIPT = "colorization.py"  # begins that mark
DESCRIPTIVE = {270, 271, 272, 305, 306, 315, 33432, 34665, 34853}  # EXIF tags: what, by whom, when and where
TRANSPOSED = dict(enumerate(map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), 2))  # by EXIF orientation
MAX_SCANS = 100  # of a progressive JPEG, which has ten or so; each takes time, and few bytes


@lru_cache
def readable_formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that are read, with that of newer phones if pillow-heif is installed."""
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener  # type: ignore[import-not-found, unused-ignore]

        register_heif_opener()
        return (*FORMATS, "HEIF")
    return FORMATS


def list_image_files(path: str | Path) -> list[Path]:
    """Return the image files in a folder and its subfolders, sorted, by extension; or the file itself.

    Files named ._NAME, which macOS adds on other file systems, are left out. Warns of pictures in formats that are not
    read.
    """
    path = Path(path)
    if not os.path.isdir(path):
        return [path]
    formats = readable_formats()
    extensions = {extension for extension, name in Image.registered_extensions().items() if name in formats}
    files = sorted(file for file in path.rglob("*") if os.path.isfile(file) and not file.name.startswith("._"))
    left_out = [file.suffix.lower() for file in files if file.suffix.lower() in UNREAD - extensions]
    if left_out:
        kinds = ", ".join(sorted(set(left_out)))
        warnings.warn(f"{path}: {len(left_out)} pictures are left out, whose format is not read: {kinds}")
    return [file for file in files if file.suffix.lower() in extensions]


def mark_of(path: Path) -> str:
    """Return what a colored image was made from, as --colorize has recorded it; "" for any other file."""
    with contextlib.suppress(Exception):  # it may be anything
        if path.is_file():
            with Image.open(path) as result:
                # if it stands before the pixels: otherwise getexif() decodes a whole PNG to look behind them
                mark = str(result.getexif().get(MARK_TAG, "")) if "exif" in result.info else ""
                return mark if mark.startswith(SCRIPT) else ""
    return ""


def is_result(path: Path) -> bool:
    """Whether --colorize has written this file."""
    return bool(mark_of(path) or re.fullmatch(r"before_and_after(_\d+)?\.png", path.name))


def read_image(path: Path, size: int | None = None) -> Image.Image:
    """Return the image of a file as to_srgb() does, the first one if there are several.

    With `size`, a JPEG is decoded faster, at half, a quarter or an eighth of its size, but at least `size`. Raises
    UserError.
    """
    formats = readable_formats()
    supported = f"supported formats: {', '.join(formats)}, up to {MAX_PIXELS:,} pixels and {MAX_SIDE:,} on a side"
    with contextlib.ExitStack() as files:
        with report_read_errors(path, "picture", supported if os.path.exists(path) else "check its name"):
            # by its stream, since from its name Pillow 13 scrambles TIFFs that are turned by a quarter
            stream = files.enter_context(open(path, "rb"))
            try:
                file = files.enter_context(Image.open(stream, formats=formats))
            except Image.UnidentifiedImageError:
                raise ValueError("cannot identify image file") from None
            if file.width * file.height > MAX_PIXELS or max(file.size) > MAX_SIDE:
                raise ValueError(f"it has {file.width:,} x {file.height:,} pixels")
            progressive = file.info.get("progressive")
            if progressive and Path(path).read_bytes().count(b"\xff\xda") > MAX_SCANS:
                raise ValueError(f"it has more than {MAX_SCANS} progressive scans")
        with report_read_errors(path, "picture", "it is cut short or damaged; copy it again"):
            frames = getattr(file, "n_frames", 1)
            if frames > 1 and file.format != "MPO":  # whose other images are previews
                warnings.warn(f"{path}: only the first of its {frames} images is used")
            if size and not progressive:  # which takes all of its memory at any size
                file.draft("RGB", (size, size))
            is_deep = ";16" in str(file.tile) and file.mode[0] != "I"  # colors of 16 bits, of which Pillow keeps 8
            with LARGE_IMAGES if file.width * file.height > MAX_PIXELS / 8 else contextlib.nullcontext():
                image = to_srgb(file, str(path))
            if is_deep and np.asarray(image)[..., :3].max() < 16:
                warnings.warn(f"{path}: almost black; it seems to use only the lower 12 of its 16 bits")
            return image


def to_srgb(image: Image.Image, name: str = "the image") -> Image.Image:
    """Return an image as a viewer shows it: 8-bit RGB in the sRGB color space, RGBA if it has transparent parts.

    Applies the EXIF orientation, to_8_bits() and the color profile. Warns if that is broken, and ignores it.
    """
    if not image.width or not image.height:
        raise ValueError("the image has no pixels")
    profile, gamma, tags = image.info.get("icc_profile"), image.info.get("gamma"), getattr(image, "tag_v2", {})
    image = to_8_bits(upright(image, name), tags, name)
    image = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode))
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    info = {key: value for key, value in image.info.items() if key not in ("icc_profile", "gamma", "transparency")}
    is_gray = image.mode in ("1", "L", "LA")
    image = image.convert("L" if is_gray else image.mode if image.mode in ("CMYK", "LAB") else "RGB")
    if profile:
        image = convert_profile(image, profile, name)
    elif gamma and isinstance(gamma, float) and not 0.4 < gamma < 0.5:  # without a profile; sRGB's is about 1 / 2.2
        image = image.convert("RGB").point([round(255 * (v / 255) ** (1 / (2.2 * gamma))) for v in range(256)] * 3)
    image = image.convert("RGB")
    if alpha:
        image.putalpha(alpha)
    image.info = info
    return image


def upright(image: Image.Image, name: str) -> Image.Image:
    """Return a copy turned as its EXIF orientation says, with EXIF data that says so. Warns if that is broken."""
    image.load()  # so that what is raised below is not due to its pixels
    try:
        turned = ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF data may raise anything
        warnings.warn(f"{name}: its EXIF data is broken, and only its orientation is used")
        orientation = TRANSPOSED.get(image.getexif().get(274, 1))
        turned = image.copy() if orientation is None else image.transpose(orientation)
        turned.info = {key: value for key, value in image.info.items() if key != "exif"}
    with contextlib.suppress(Exception):
        tags = {tag: value for tag, value in image.getexif().items() if tag in DESCRIPTIVE}
        if tags and "exif" not in turned.info:  # those of a TIFF stand among its other tags
            exif = Image.Exif()
            exif.update(tags)
            turned.info["exif"] = exif.tobytes()
    return turned


def convert_profile(image: Image.Image, profile: bytes, name: str) -> Image.Image:
    """Convert an image from its color profile to sRGB. Warns if that is broken or does not fit, and ignores it."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() == "RGB":  # also of gray images
            image = image.convert("RGB")
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB") or image
    except Exception as error:  # a broken profile may raise anything
        warnings.warn(f"{name}: its color profile is broken or does not fit it, and is ignored ({error!s:.100})")
        return image
    changes = ImageChops.difference(image.convert("RGB"), converted)
    return converted if np.asarray(changes).max() > 2 else image  # from sRGB to sRGB, rounding changes values


def to_8_bits(image: Image.Image, tags: Mapping[int, Any], name: str) -> Image.Image:
    """Convert a gray image of more than 8 bits, of signed integers or of floats to 8 bits; return others unchanged.

    White is the largest number of as many bits as the `tags` of a TIFF tell, else of 8, 10, 12, 16 or 32 bits, the
    fewest that all values fit into (one bit less for signed integers); for floats it is 1, or the largest value. Black
    is 0, or the least negative value. Warns where that is a guess. Raises ValueError if almost all of several values
    would become one.
    """
    is_signed = tags.get(SAMPLE_FORMAT, (1,))[0] == 2
    is_inverted = tags.get(PHOTOMETRIC) == 0 and image.mode != "L"  # white is zero; Pillow inverts only 8 bits
    if image.mode[0] not in "IF" and not (image.mode == "L" and is_signed):
        return image
    values = np.asarray(image)
    if image.mode == "F":
        values = np.nan_to_num(values, posinf=values[np.isfinite(values)].max(initial=0), neginf=0)
    elif image.mode == "L" or (image.mode == "I" and tags and not is_signed):
        values = values.view(np.int8 if is_signed else np.uint32)  # Pillow takes them for the opposite
    least, most = values.min().item(), values.max().item()
    if image.mode == "F":
        black, white, is_sure = min(0, least), max(1, most), most <= 1
    else:
        told = tags.get(BITS_PER_SAMPLE, (16,))[0]
        depths = (told,) if told in (10, 12, 14) else (16, 32) if is_inverted else (8, 10, 12, 16, 32)
        bits = next(bits for bits in depths if most < 1 << (bits - is_signed)) - is_signed
        black, white = min(0, least), (1 << bits) - 1
        is_sure = image.mode == "L" or len(depths) < 5 or (bits >= 15 and most > white / 4)
    if black or not is_sure:
        words = f"{black:g} is taken for black, and {white:g} for white"
        warnings.warn(f"{name}: its values are from {least:g} to {most:g}; {words}")
    values, scale = values.astype(np.float32), 255 / (white - black)
    nearly_all = np.percentile(values[:: -(-len(values) // 500)], (1, 99))
    if 0 < np.ptp(nearly_all) < 1 / scale:
        raise ValueError(f"its values, from {least:g} to {most:g}, become a single one in 8 bits")
    values *= scale
    values -= black * scale
    result = values.round(out=values).astype(np.uint8)
    converted = Image.fromarray(255 - result if is_inverted else result)
    converted.info = image.info
    return converted


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Return an image as a tensor of its red, green and blue, uint8 (1, 3, H, W)."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]


def load_square(path: Path) -> torch.Tensor:
    """Return the central square of an image file, resized to uint8 (1, 3, 32, 32). Raises UserError."""
    return to_tensor(ImageOps.fit(read_image(path).convert("RGB"), (SIZE, SIZE), Image.Resampling.LANCZOS))


def split_files(files: list[Path], train: bool) -> list[Path]:
    """Return the image files to train on, about nine tenths, or those to validate on.

    A file's content alone decides, so that it stays on its side whatever its name is and whatever else is there.
    """

    def draw(file: Path) -> int:
        with contextlib.suppress(Exception), open(file, "rb") as stream:
            Image.open(stream, formats=readable_formats())  # whatever it raises
            stream.seek(0)
            return zlib.crc32(stream.read(1 << 16))
        return 1 << 32  # for training, which will skip it

    draws = [draw(file) for file in files]
    limit = max((1 << 32) // 10, min(draws, default=0) + 1)  # at least one is to validate on
    return [file for file, number in zip(files, draws) if (number >= limit) == train]


def kept_size(files: list[Path], size: int) -> int:
    """Return the longer side of copies of image files: `size`, or less, to take at most KEPT_BYTES together."""
    if 3 * len(files) * size**2 <= KEPT_BYTES:
        return size
    sides = np.zeros((len(files), 2))
    for row, file in zip(sides, files):
        with contextlib.suppress(Exception), Image.open(file, formats=readable_formats()) as image:
            row[:] = image.size  # it stays 0 if the file is unreadable
    longer = sides.max(1, keepdims=True)
    while size > 1 and 3 * (sides / np.maximum(1, longer / size)).prod(1).sum() > KEPT_BYTES:
        size -= 1
    return size


@lru_cache(2)
def folder_photographs(folder: str, train: bool, working_size: int) -> list[np.ndarray]:
    """Return small copies of a folder's photographs to train on or to validate on, a list of uint8 arrays (h, w, 3).

    They are as large as random_crops() can use, smaller if all together would take more than KEPT_BYTES.
    Unreadable files are named and skipped, and results of --colorize are left out. Raises UserError.
    """
    all_files = [file for file in list_image_files(folder) if not is_result(file)]
    size = kept_size(all_files, int(LARGEST_SIDE * working_size))

    def read(file: Path) -> np.ndarray | None:
        try:
            image = read_image(file, size).convert("RGB")
        except UserError as error:
            return tqdm.write(f"skipped: {error}")
        image.thumbnail((size, size), Image.Resampling.BOX)
        return np.array(image)

    # in threads, because Pillow releases the GIL while decoding
    files = split_files(all_files, train)
    photographs = thread_map(read, files, max_workers=os.cpu_count(), desc="reading", leave=False, disable=None)
    photographs = [photograph for photograph in photographs if photograph is not None]
    if len(photographs) < 1 + train:
        advice = "use at least 10 (results of --colorize do not count)"
        raise UserError(f"{folder}: too few readable images to {'train' if train else 'validate'} on; {advice}")
    return photographs


def random_crops(
    photographs: list[np.ndarray], size: int, working_size: int, count: int, seed: int, augmented: bool = False
) -> torch.Tensor:
    """Return square crops of uint8 arrays (h, w, 3) at random places and scales, uint8 (count, 3, size, size).

    Each is a part of a copy of a photograph, whose longer side is drawn between SMALLEST_SIDE times `size` and
    LARGEST_SIDE times `working_size`, or MAX_ENLARGEMENT times its own if that is less. Of copies too small for a crop,
    the whole shorter side is taken. `augmented` crops are made darker or lighter by an exponent between the two GAMMAS,
    and have Gaussian noise in their gray, of a standard deviation up to NOISE. Each photograph occurs equally often,
    give or take one.
    """
    rng = np.random.default_rng(seed)
    crops = np.empty((count, size, size, 3), np.uint8)
    for crop, number in zip(crops, rng.permutation(np.arange(count) % len(photographs))):
        height, width, _ = photographs[number].shape
        largest = min(LARGEST_SIDE * working_size, MAX_ENLARGEMENT * max(height, width))
        smallest = min(SMALLEST_SIDE * size, largest)
        longer_side = np.exp(rng.uniform(np.log(smallest), np.log(largest)))
        side = min(size * max(height, width) / longer_side, height, width)
        left, top = rng.uniform(0, (width - side, height - side))
        box = left, top, min(left + side, width), min(top + side, height)
        crop[:] = np.asarray(Image.fromarray(photographs[number]).resize((size, size), Image.Resampling.HAMMING, box))
        if augmented:
            gamma = np.exp(rng.uniform(*np.log(GAMMAS)))
            noise = rng.uniform(0, NOISE) * rng.standard_normal((size, size, 1), np.float32)
            crop[:] = (255 * (crop / 255) ** gamma + noise).round().clip(0, 255)
    return torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous()


@lru_cache(2)
def sample_photographs(train: bool) -> list[np.ndarray]:
    """Return parts of scikit-learn's two photographs to train on or to validate on, a list of uint8 arrays (h, w, 3).

    A strip right of the center, a quarter of the width, is for validation; both sides of it are for training.
    """
    from sklearn.datasets import load_sample_images  # slow to import, and seldom needed

    columns = (slice(0, 320), slice(480, 640)) if train else (slice(320, 480),)
    return [np.ascontiguousarray(photo[:, part]) for photo in load_sample_images().images for part in columns]
