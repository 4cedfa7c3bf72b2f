"""Image files: photographs in any format, folders, arrays, and two photographs that come with scikit-learn."""

import contextlib
import itertools
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
from utils.files import reading

FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "TGA", "TIFF", "WEBP")  # none runs a program
MAX_PIXELS = 80_000_000  # of an image, which keeps the process under 2 GB
LARGE_IMAGES = threading.Lock()  # one at a time, so that threads do not fill the memory together
MAX_SCANS = 100  # of a progressive JPEG, which has ten or so; each takes time, and few bytes


def list_image_files(path):
    """Return the image files in a folder and its subfolders, sorted, by extension; or the file itself."""
    path = Path(path)
    if not os.path.isdir(path):
        return [path]
    extensions = {extension for extension, name in Image.registered_extensions().items() if name in FORMATS}
    return sorted(file for file in path.rglob("*") if file.suffix.lower() in extensions and os.path.isfile(file))


def read_image(path):
    """Return an image as a viewer shows it: (8-bit RGB, its alpha channel or None).

    Applies the EXIF orientation, takes the first frame, and reduces 16 bits to the upper 8. Raises UserError.
    """
    supported = f"{', '.join(FORMATS)} of up to {MAX_PIXELS:,} pixels are supported"
    with reading(path, "picture", supported), Image.open(path, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"it has {image.width * image.height:,} pixels")
        if image.info.get("progressive") and Path(path).read_bytes().count(b"\xff\xda") > MAX_SCANS:
            raise ValueError(f"it has more than {MAX_SCANS} progressive scans")
        with LARGE_IMAGES if image.width * image.height > MAX_PIXELS / 8 else contextlib.nullcontext():
            image = ImageOps.exif_transpose(image)
            alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
            return to_uint8(image).convert("RGB"), alpha


def to_uint8(image):
    """Convert a gray image of 16 or 32 bits, or of floats up to 1 or 255, to 8 bits; return others unchanged."""
    if image.mode.startswith("I"):  # 16 bits, stored in 16 or 32
        values = np.asarray(image).clip(0, 65535) >> 8
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        values = (values * 255 if values.max(initial=0) <= 1 else values).clip(0, 255)
    else:
        return image
    return Image.fromarray(values.astype(np.uint8))


def load_square(path):
    """Return the central square of an image file, resized to uint8 (3, 32, 32). Raises UserError."""
    square = ImageOps.fit(read_image(path)[0], (SIZE, SIZE), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


@lru_cache(2)
def folder_images(folder, train):
    """Return a folder's images to train on or to validate on, uint8 (N, 3, 32, 32).

    One image in five, always the same, is for validation. Unreadable files are reported and skipped. Raises UserError.
    """
    files = list_image_files(folder)
    order = np.random.default_rng(0).permutation(len(files))
    count = round(len(files) / 5)
    chosen = np.sort(order[count:] if train else order[:count])

    def read(number):
        try:
            return load_square(files[number])
        except UserError as error:
            tqdm.write(f"skipped {error}")

    # in threads, because Pillow releases the GIL while decoding
    images = thread_map(read, chosen, max_workers=os.cpu_count(), desc="reading", leave=False, disable=None)
    images = [image for image in images if image is not None]
    if len(images) < 2:
        raise UserError(f"{folder}: too few images to {'train' if train else 'validate'} on; at least 20 are required")
    return torch.stack(images)


def array_images(path, train):
    """Return the images of an .npy file to train on or to validate on, uint8 (N, 3, 32, 32), memory-mapped.

    The last tenth, at most 10,000 images, is for validation. The file may be larger than memory. Raises UserError.
    """
    with reading(path, "NumPy array of images", f"save uint8 of shape (N, 3, {SIZE}, {SIZE}), N ≥ 20, with numpy.save"):
        array = np.load(path, mmap_mode="c", allow_pickle=False)  # copy on write: torch requires a writable array
        if array.dtype != np.uint8 or array.shape[1:] != (3, SIZE, SIZE) or len(array) < 20:
            raise ValueError(f"it is {array.dtype} of shape {array.shape}")
    count = min(len(array) // 10, 10_000)
    return torch.from_numpy(array[:-count] if train else array[-count:])


def sample_images(train):
    """Return 32x32 crops of scikit-learn's two photographs at five scales, uint8 (N, 3, 32, 32).

    Validation crops come from a strip right of the center, a quarter of the photograph's width; training
    crops come from both sides of it. The parts are separated before scaling, so they share no pixels.
    """
    from sklearn.datasets import load_sample_images  # slow to import, and seldom needed

    crops = []
    for photo in load_sample_images().images:  # (427, 640, 3) uint8
        parts = (photo[:, :320], photo[:, 480:]) if train else (photo[:, 320:480],)
        for part, window in itertools.product(parts, (48, 64, 80, 96, 128)):  # pixels that a crop covers
            scale = SIZE / window
            size = round(part.shape[1] * scale), round(part.shape[0] * scale)
            small = torch.from_numpy(np.array(Image.fromarray(part).resize(size, Image.Resampling.LANCZOS)))
            step = round((14 if train else 32) * scale)
            crops.append(small.unfold(0, SIZE, step).unfold(1, SIZE, step).flatten(0, 1))  # (n, 3, 32, 32)
    crops = torch.cat(crops)
    return crops[np.random.default_rng(0).permutation(len(crops))]  # shuffled, so that the first ten differ
