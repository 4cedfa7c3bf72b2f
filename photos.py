"""Picture files of any kind: reading them, and folders of them as images to learn from."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from cli import UserError

VALIDATION_SHARE = 0.2  # of a folder's pictures


def list_image_files(path):
    """Return the picture files of a folder and its subfolders, by their endings, sorted; or the file itself."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    endings = Image.registered_extensions()
    return sorted(file for file in path.rglob("*") if file.suffix.lower() in endings and file.is_file())


def read_image(path):
    """Return a picture as it is to be seen: (an RGB image of 8 bits, its alpha channel or None).

    Turns it upright, takes the first frame, and of 16 bits the upper 8. Raises
    UserError where the file is no picture that Pillow reads.
    """
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
            return to_uint8(image).convert("RGB"), alpha
    except Image.DecompressionBombError as error:
        limit = 2 * Image.MAX_IMAGE_PIXELS // 10**6
        raise UserError(f"{path}: has more than {limit} million pixels; scale it down first") from error
    except UnidentifiedImageError as error:  # whose message is the path again
        raise UserError(f"{path}: no picture, or of a format that Pillow does not read") from error
    except Exception as error:  # a broken file raises anything
        raise UserError(f"{path}: cannot read this picture ({getattr(error, 'strerror', None) or error})") from error


def to_uint8(image):
    """Return a gray image of 16 or 32 bits, or of floats up to 1 or 255, as one of 8 bits; others as they are."""
    if image.mode.startswith("I"):  # 16 bits, kept in 16 or 32
        values = np.asarray(image).clip(0, 65535) >> 8
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        values = (values * 255 if values.max(initial=0) <= 1 else values).clip(0, 255)
    else:
        return image
    return Image.fromarray(values.astype(np.uint8))


def load_square(path, size):
    """Return the middle square of a picture, scaled to uint8 (3, size, size)."""
    square = ImageOps.fit(read_image(path)[0], (size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


@lru_cache(2)
def folder_images(folder, train, size):
    """Return the pictures of a folder as images to train on or to validate by, uint8 (N, 3, size, size).

    One in five is for validation, the same ones every time. What cannot be read is left
    out, with a line that says so. Raises UserError where too few are left.
    """
    files = list_image_files(folder)
    order = np.random.default_rng(0).permutation(len(files))
    count = round(len(files) * VALIDATION_SHARE)
    chosen = np.sort(order[count:] if train else order[:count])

    def read(number):
        try:
            return load_square(files[number], size)
        except UserError as error:
            tqdm.write(f"left out: {error}")

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow lets go of Python's lock while it decodes
        bar = tqdm(pool.map(read, chosen), total=len(chosen), desc="reading", leave=False, disable=None)
        images = [image for image in bar if image is not None]
    if len(images) < 2:
        what = "to train on" if train else "to validate by"
        raise UserError(f"{folder}: too few pictures {what}, {len(images)}; 20 or more files that Pillow reads will do")
    return torch.stack(images)
