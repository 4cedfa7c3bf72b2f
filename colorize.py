"""Photographs of any size, colored: the network sees a small copy, its colors go over the full-size gray."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from cli import UserError, atomic_write
from data import to_gray
from decoding import apply_chroma, decode_annealed_mean, decode_argmax
from photos import list_image_files, read_image
from plots import save_image_grid

STRIP = 1 << 20  # pixels that are colored at a time
SHEET = 10  # pictures on a sheet
THUMBNAIL = 240  # pixels, the longer side of each there


def predict_chroma(net, palette, image, working_size, decode, temperature):
    """Return how the colors of an RGB image differ from its gray, as the network sees it small: (1, 3, h, w).

    The longer side is scaled to `working_size` pixels at most, both to multiples of 4.
    """
    scale = min(1, working_size / max(image.size))
    size = [max(4, 4 * round(side * scale / 4)) for side in image.size]
    small = np.array(image.resize(size, Image.Resampling.BOX, reducing_gap=2))  # (h, w, 3)
    device = next(net.parameters()).device
    gray = to_gray(torch.from_numpy(small).permute(2, 0, 1)[None].to(device))  # (1, 1, h, w)
    net.eval()
    with torch.no_grad():
        logits = net(gray)
    if decode == "smooth":
        colors = decode_annealed_mean(logits, palette, gray, temperature)
    else:
        colors = decode_argmax(logits, palette)
    return (colors - colors.mean(1, keepdim=True)).cpu()


def colorize_full_size(differences, image):
    """Return an RGB image with small color differences (1, 3, h, w) laid over its gray."""
    width, height = image.size
    planes = [Image.fromarray(plane.numpy()) for plane in differences[0]]
    down = differences.shape[2] / height
    colored = np.empty((height, width, 3), np.uint8)

    def color_rows(top, bottom):
        pixels = torch.from_numpy(np.array(image.crop((0, top, width, bottom)))).permute(2, 0, 1)[None]
        box = (0, top * down, differences.shape[3], bottom * down)
        size = width, bottom - top
        enlarged = np.stack([np.array(plane.resize(size, Image.Resampling.BICUBIC, box=box)) for plane in planes])
        strip = apply_chroma(torch.from_numpy(enlarged)[None], to_gray(pixels))[0]  # (3, rows, width)
        colored[top:bottom] = strip.mul_(256).round_().clamp_(0, 255).byte().permute(1, 2, 0)

    rows = max(1, STRIP // width)  # at a time, so that a great photograph takes little memory
    tops = range(0, height, rows)
    with ThreadPoolExecutor(min(4, os.cpu_count())) as pool:  # Pillow and PyTorch let go of Python's lock
        list(pool.map(color_rows, tops, (min(top + rows, height) for top in tops)))
    return Image.fromarray(colored)


def unique_path(path):
    """Return the path, with a number in its name if need be, that no file has yet."""
    path, number = Path(path), 2
    wanted = path
    while wanted.exists():
        wanted = path.with_name(f"{path.stem}_{number}{path.suffix}")
        number += 1
    return wanted


def save_photo(folder, source, image, alpha):
    """Write a colored picture under a name like its source's that is still free; return that path.

    JPEG for a JPEG, PNG for all else.
    """
    if source.suffix.lower() in (".jpg", ".jpeg") and alpha is None:
        path, settings = folder / f"{source.stem}_colored.jpg", {"format": "JPEG", "quality": 93}
    else:
        path, settings = folder / f"{source.stem}_colored.png", {"format": "PNG", "compress_level": 1}
    if alpha is not None:
        image.putalpha(alpha)
    path = unique_path(path)
    with atomic_write(path) as file:
        image.save(file, **settings)
    return path


def thumbnail(image):
    """Return a small copy of an image as a tensor (3, h, w) in 0..1."""
    image = image.convert("RGB")  # a copy
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 256


def colorize_files(paths, folder, net, palette, working_size, decode, temperature):
    """Color picture files and folders of them into `folder`, with a sheet of the first ten.

    What cannot be read is named, and the others go on; then a UserError says how many.
    """
    out = folder.resolve()  # which may lie in a folder to be colored
    files = [
        file for path in paths for file in list_image_files(path) if file == path or out not in file.resolve().parents
    ]
    sheet = {"before": [], "gray": [], "after": []}
    failed = 0
    for file in tqdm(files, unit="picture", leave=False, disable=None):
        try:
            image, alpha = read_image(file)
            differences = predict_chroma(net, palette, image, working_size, decode, temperature)
            colored = colorize_full_size(differences, image)
            tqdm.write(f"saved {save_photo(folder, file, colored, alpha)}")
        except UserError as error:
            failed += 1
            tqdm.write(str(error), file=sys.stderr)
            continue
        if len(sheet["before"]) < SHEET:
            before, after = thumbnail(image), thumbnail(colored)
            for label, picture in zip(sheet, (before, before.mean(0, keepdim=True), after)):
                sheet[label].append(picture)
    if sheet["before"]:
        path = unique_path(folder / "before_and_after.png")
        save_image_grid(path, "before and after", sheet)
        print(f"saved {path}")
    if failed or not files:
        raise UserError(f"{failed} of {len(files)} pictures could not be colored" if files else "no pictures there")
