"""The pictures that the scripts write: grids of images, training curves, feature maps."""

import importlib
import math
import textwrap
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from utils.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


INK = "#808080"


def preload_matplotlib() -> None:
    """Begin to import matplotlib in a thread, beside other work: it takes half a second."""
    threading.Thread(target=importlib.import_module, args=("matplotlib.backends.backend_agg",)).start()


def new_figure(**settings: Any) -> "Figure":
    """Return an empty figure."""
    from matplotlib.figure import Figure

    return Figure(**settings)


def save(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, atomically; transparent, with gray text that reads on light and dark pages."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_text(text.get_text().encode(errors="replace").decode())  # of names that are not UTF-8
        if text.get_color() == "black":
            text.set_color(INK)
    for ax in figure.axes:
        ax.tick_params(color=INK)
        ax.spines[:].set_edgecolor(INK)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=200, bbox_inches="tight", transparent=True)


def save_image_grid(path: Path, title: str, rows: Mapping[str, Sequence[Tensor] | Tensor]) -> None:
    """Write labeled rows of images: `rows` maps a label to images (3, H, W) or (1, H, W), tensors in 0..1.

    All rows have as many images. A column is as wide as its widest image.
    """
    tall = max(image.shape[1] for images in rows.values() for image in images)
    widths = [max(image.shape[2] for image in column) for column in zip(*rows.values(), strict=True)]
    gap = math.ceil(max(tall, *widths) / 32)
    tops = (tall + gap) * np.arange(len(rows) + 1)
    lefts = np.cumsum([0, *(width + gap for width in widths)])
    sheet = np.zeros((tops[-1], lefts[-1], 4), np.uint8)  # one image: 50 axes would take two seconds
    for top, images in zip(tops, rows.values()):
        for left, wide, image in zip(lefts, widths, images):
            height, width = image.shape[1:]
            place = sheet[top + (tall - height) // 2 :, left + (wide - width) // 2 :][:height, :width]
            place[..., :3] = (255 * image.detach().cpu().clamp(0, 1)).round().permute(1, 2, 0)
            place[..., 3] = 255  # around it, the sheet is transparent
    inches = max(1.15 / (gap + max(tall, *widths)), 0.01)  # of one pixel, which is drawn as one or more
    figure = new_figure(figsize=(inches * lefts[-1], inches * tops[-1]))
    ax = figure.add_axes((0, 0, 1, 1))  # the labels are outside, which save() includes
    ax.imshow(sheet, interpolation="nearest")
    ax.set_yticks(tops[:-1] + tall / 2, [textwrap.fill(label, 16) for label in rows])
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(title, fontsize=11, parse_math=False)
    save(figure, path)


def save_curve(path: Path, title: str, history: list[dict]) -> None:
    """Plot the losses and, if present, the validation accuracy against the epoch."""
    epochs = [row["epoch"] for row in history]
    names = [name.removeprefix("valid_") for name in history[0] if name.startswith("valid_")]
    figure = new_figure(figsize=(5 * len(names), 3.6), layout="constrained")
    for ax, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        scale = 100 if name == "accuracy" else 1
        for part, words, color in (("train", "training", "C0"), ("valid", "validation", "C1")):
            if f"{part}_{name}" in history[0]:
                values = [scale * row[f"{part}_{name}"] for row in history]
                ax.plot(epochs, values, color, marker=".", label=words)
        ax.set_xlabel("epoch")
        ax.set_ylabel(f"{name}, %" if name == "accuracy" else name)
        ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
    figure.suptitle(title, parse_math=False)
    save(figure, path)


def save_feature_maps(path: Path, title: str, maps: Tensor) -> None:
    """Write one sheet of feature maps (C, H, W), each scaled to its own range, from dark to light."""
    count, height, width = maps.shape
    columns = min(8, count)
    lines = math.ceil(count / columns)
    step_down, step_right = math.ceil(1.25 * height), math.ceil(1.1 * width)  # room for a line of text, and a gap
    sheet = np.full((lines * step_down, columns * step_right), np.nan)  # NaN stays transparent
    figure = new_figure(figsize=(1.3 * columns, 1.5 * lines + 0.5), layout="constrained")
    ax = figure.subplots()
    for number, values in enumerate(maps.numpy()):
        top, left = number // columns * step_down + step_down - height, number % columns * step_right
        least, most = values.min(), values.max()
        sheet[top : top + height, left : left + width] = (values - least) / ((most - least) or 1)
        ax.text(left - 0.5, top - 0.5, f"{number}: {least:.3g} … {most:.3g}", fontsize=7, va="bottom")
    ax.imshow(sheet, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    ax.axis("off")
    ax.set_title(title, fontsize=11, parse_math=False)
    save(figure, path)
