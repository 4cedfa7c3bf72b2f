"""Image files: photographs in any format, folders, arrays, and two photographs that come with scikit-learn."""

import contextlib
import os
import threading
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from sources.cifar10 import SIZE
from utils.console import UserError
from utils.files import report_read_errors

FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "TGA", "TIFF", "WEBP")  # none runs a program
MAX_PIXELS = 80_000_000  # of an image, which keeps the process under 2 GB
LARGE_IMAGES = threading.Lock()  # one at a time, so that threads do not fill the memory together
KEPT_BYTES = 1 << 30  # of all of a folder's photographs together
CROP_SCALES = (0.75, 2)  # longer side of the photograph that a crop is taken from, as multiples of the working size
GAMMAS = (0.67, 1.5)  # of the crops to learn from, which makes them darker or lighter
MAX_SCANS = 100  # of a progressive JPEG, which has ten or so; each takes time, and few bytes


def list_image_files(path: str | Path) -> list[Path]:
    """Return the image files in a folder and its subfolders, sorted, by extension; or the file itself."""
    path = Path(path)
    if not os.path.isdir(path):
        return [path]
    extensions = {extension for extension, name in Image.registered_extensions().items() if name in FORMATS}
    return sorted(file for file in path.rglob("*") if file.suffix.lower() in extensions and os.path.isfile(file))


def read_image(path: Path, size: int | None = None) -> tuple[Image.Image, Image.Image | None]:
    """Return an image as a viewer shows it: (8-bit RGB, its alpha channel or None).

    Applies the EXIF orientation, takes the first frame, and reduces 16 bits to the upper 8. With `size`, a JPEG is
    decoded faster, at half, a quarter or an eighth of its size, but at least `size`. Raises UserError.
    """
    supported = f"supported formats: {', '.join(FORMATS)}, up to {MAX_PIXELS:,} pixels"
    advice = supported if os.path.exists(path) else "check its name"
    with report_read_errors(path, "picture", advice), Image.open(path, formats=FORMATS) as file:
        if file.width * file.height > MAX_PIXELS:
            raise ValueError(f"it has {file.width * file.height:,} pixels")
        if file.info.get("progressive") and Path(path).read_bytes().count(b"\xff\xda") > MAX_SCANS:
            raise ValueError(f"it has more than {MAX_SCANS} progressive scans")
        if size and not file.info.get("progressive"):  # which takes all of its memory at any size
            file.draft("RGB", (size, size))
        with LARGE_IMAGES if file.width * file.height > MAX_PIXELS / 8 else contextlib.nullcontext():
            image = ImageOps.exif_transpose(file)
            alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
            return to_uint8(image).convert("RGB"), alpha


def to_uint8(image: Image.Image) -> Image.Image:
    """Convert a gray image of 16 or 32 bits, or of floats up to 1 or 255, to 8 bits; return others unchanged."""
    if image.mode.startswith("I"):  # 16 bits, stored in 16 or 32
        values = np.asarray(image).clip(0, 65535) >> 8
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        values = (values * 255 if values.max(initial=0) <= 1 else values).clip(0, 255)
    else:
        return image
    return Image.fromarray(values.astype(np.uint8))


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Return an RGB image as a tensor, uint8 (1, 3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def load_square(path: Path) -> torch.Tensor:
    """Return the central square of an image file, resized to uint8 (3, 32, 32). Raises UserError."""
    return to_tensor(ImageOps.fit(read_image(path)[0], (SIZE, SIZE), Image.Resampling.LANCZOS))[0]


def split_files(files: list[Path], train: bool) -> list[Path]:
    """Return the four fifths of image files to train on, or the fifth to validate on, always the same."""
    order = np.random.default_rng(0).permutation(len(files))
    count = round(len(files) / 5)
    return [files[number] for number in np.sort(order[count:] if train else order[:count])]


@lru_cache(2)
def folder_photographs(folder: str, train: bool, working_size: int) -> list[np.ndarray]:
    """Return small copies of a folder's photographs to train on or to validate on, a list of uint8 arrays (h, w, 3).

    They are as large as random_crops() can use, smaller if all together would take more than KEPT_BYTES.
    Unreadable files are named and skipped. Raises UserError.
    """
    all_files = list_image_files(folder)
    size = int(min(CROP_SCALES[1] * working_size, (KEPT_BYTES / 3 / max(1, len(all_files))) ** 0.5))

    def read(file: Path) -> np.ndarray | None:
        try:
            image, _ = read_image(file, size)
        except UserError as error:
            return tqdm.write(f"skipped: {error}")
        image.thumbnail((size, size), Image.Resampling.BOX)
        return np.array(image)

    # in threads, because Pillow releases the GIL while decoding
    files = split_files(all_files, train)
    photographs = thread_map(read, files, max_workers=os.cpu_count(), desc="reading", leave=False, disable=None)
    photographs = [photograph for photograph in photographs if photograph is not None]
    if len(photographs) < 1 + train:
        raise UserError(f"{folder}: too few readable images to {'train' if train else 'validate'} on; use at least 10")
    return photographs


def random_crops(
    photographs: list[np.ndarray], working_size: int, count: int, seed: int, gammas: tuple[float, float] = (1, 1)
) -> torch.Tensor:
    """Return square crops of uint8 arrays (h, w, 3) at random places and scales, uint8 (count, 3, 32, 32).

    Each is 32x32 pixels of a photograph whose longer side is scaled down to CROP_SCALES times the working size, made
    darker or lighter by an exponent between the two `gammas`. Each photograph occurs equally often, give or take one.
    """
    rng = np.random.default_rng(seed)
    crops = np.empty((count, SIZE, SIZE, 3), np.uint8)
    for crop, number in zip(crops, rng.permutation(np.arange(count) % len(photographs))):
        height, width, _ = photographs[number].shape
        scale = working_size * np.exp(rng.uniform(*np.log(CROP_SCALES)))
        side = min(SIZE * max(1, max(height, width) / scale), height, width)
        left, top = rng.uniform(0, (width - side, height - side))
        box = left, top, min(left + side, width), min(top + side, height)
        values = Image.fromarray(photographs[number]).resize((SIZE, SIZE), Image.Resampling.BOX, box)
        gamma = np.exp(rng.uniform(*np.log(gammas)))
        crop[:] = (255 * (np.asarray(values) / 255) ** gamma).round()
    return torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous()


def array_images(path: str | Path, train: bool) -> torch.Tensor:
    """Return the images of an .npy file to train on or to validate on, uint8 (N, 3, 32, 32), memory-mapped.

    The last tenth, at most 10,000 images, is for validation. The file may be larger than memory. Raises UserError.
    """
    with report_read_errors(
        path, "NumPy array of images", f"save uint8 of shape (N, 3, {SIZE}, {SIZE}), N ≥ 20, with numpy.save"
    ):
        array = np.load(path, mmap_mode="c", allow_pickle=False)  # copy on write: torch requires a writable array
        if array.dtype != np.uint8 or array.shape[1:] != (3, SIZE, SIZE) or len(array) < 20:
            raise ValueError(f"it is {array.dtype} of shape {array.shape}")
    count = min(len(array) // 10, 10_000)
    return torch.from_numpy(array[:-count] if train else array[-count:])


@lru_cache(2)
def sample_photographs(train: bool) -> list[np.ndarray]:
    """Return parts of scikit-learn's two photographs to train on or to validate on, a list of uint8 arrays (h, w, 3).

    A strip right of the center, a quarter of the width, is for validation; both sides of it are for training.
    """
    from sklearn.datasets import load_sample_images  # slow to import, and seldom needed

    columns = (slice(0, 320), slice(480, 640)) if train else (slice(320, 480),)
    return [np.ascontiguousarray(photo[:, part]) for photo in load_sample_images().images for part in columns]
