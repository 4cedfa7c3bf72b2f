"""Small images, networks and checks that several tests use."""

import csv
import io

import numpy as np
import torch
from conftest import smooth_images
from PIL import Image
from torch import nn

from data import ImageDataset
from models import create_model
from utils import checkpoint

PALETTE = np.linspace([0.1, 0, 0.2], [0.9, 0.8, 1], 5)


def save_image(path, size=(40, 30)):
    Image.fromarray(smooth_images(1)[0].transpose(1, 2, 0)).resize(size).save(path)


def nested_key(depth, opcode):
    """A pickle of a dict whose key, a tuple of one tuple twice, and so on, takes 2^depth steps to hash."""
    double = b"h\x00h\x00\x86q\x000"  # get, get, make a tuple of the two, put, pop
    return (
        b"\x80\x02}"
        + (b"(" if opcode == b"u" else b"")
        + b"K\x01\x85q\x000"
        + depth * double
        + b"h\x00K\x01"
        + opcode
        + b"."
    )


THREE_COLORS = np.array([[0.1, 0.1, 0.1], [0.9, 0.3, 0.3], [0.2, 0.3, 0.7]])


def some_pictures(count=3, size=16, seed=0):
    """Random pictures (count, 3, size, size) in 0..1."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


TINY = ["-f", "2", "-b", "8"]


def checkpoint_bytes():
    stream = io.BytesIO()
    torch.manual_seed(0)
    palette = torch.rand(5, 3).double()
    content = {"format": checkpoint.FORMAT, "model": "CNN", "kernel": 3, "num_filters": 2, "palette": palette}
    content |= {
        "data": "x",
        "epoch": 1,
        "metrics": {},
        "state_dict": create_model("CNN", 3, 2, 5).state_dict(),
    }
    torch.save(content, stream)
    return stream.getvalue()


SMALL = ["-f", "4", "-e", "2", "-b", "8"]


def rows_of(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def is_picture(path):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    return pixels.shape[0] > 100 and pixels.std() > 10  # neither tiny nor blank


CPU = torch.device("cpu")


BLACK_AND_WHITE = np.array([[0.0, 0, 0], [1, 1, 1]])


def random_images(count, size=8, seed=0):
    """Random images, uint8 (count, 3, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def random_dataset(count, palette=PALETTE, device=CPU, **settings):
    return ImageDataset(random_images(count, **settings), palette, device)


class Fixed(nn.Module):
    """Gives the same logits for every pixel of every image."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x):
        return self.logits.view(1, -1, 1, 1).expand(len(x), -1, *x.shape[2:])
