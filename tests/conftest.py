"""Small data in the official formats, and a way to run a script as its user does."""

import functools
import hashlib
import io
import os
import pickle
import re
import struct
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the networks are tiny, and the machine may have other things to do

import colorization
import data
from sources import cifar10
from utils import console

ROWS = 40  # images of a small batch: four of each class


def text(string):
    """One Python 2 string in a pickle of protocol 2."""
    raw = string.encode()
    return b"U" + bytes([len(raw)]) + raw


def batch_bytes(pixels, labels):
    """Return a CIFAR-10 batch in the byte layout of the official files."""
    head = b"\x80\x02}q\x01(" + text("batch_label") + text("a batch") + text("labels") + b"]("
    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    array = (
        b"e" + text("data") + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        b"M" + struct.pack("<H", len(pixels)) + b"M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<i", pixels.size) + pixels.tobytes() + b"tb"
    )
    return head + numbers + array + text("filenames") + b"]u."


def smooth_images(count, seed=0):
    """Random pictures with some structure, uint8 (count, 3, 32, 32)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 3, 4, 4))
    return np.kron(coarse, np.ones((8, 8))).astype(np.uint8)


def write_cifar(data_dir):
    """Write a small CIFAR-10 below data_dir and return its folder."""
    folder = Path(data_dir) / cifar10.FOLDER
    folder.mkdir(parents=True)
    for seed, name in enumerate(cifar10.TRAIN_FILES + cifar10.TEST_FILES):
        labels = [row % 10 for row in range(ROWS)]
        (folder / name).write_bytes(batch_bytes(smooth_images(ROWS, seed).reshape(ROWS, -1), labels))
    return folder


def write_archive(path, folder):
    """Pack a folder of batches as the official archive is, and return its SHA-256."""
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, cifar10.FOLDER)
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Payload:
    """Pickles to a call that leaves a mark, as a hostile file would."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return open, (self.mark, "w")


def handout_palette(palette):
    """Return a palette as the handout has it: an object array pickled by Python 2."""
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    float_type = b"cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    object_type = b"cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb"
    raw = palette.astype("<f8").tobytes()
    colors = reconstruct + b"(K\x01K" + bytes([len(palette)]) + b"K\x03\x86" + float_type + b"\x89"
    colors += b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
    scalar = b"cnumpy.core.multiarray\nscalar\n" + float_type + b"U\x08" + struct.pack("<d", 0.07) + b"\x86R"
    pickled = b"\x80\x02" + reconstruct + b"(K\x01K\x02\x85" + object_type + b"\x89](" + colors + scalar + b"etb."
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": (2,)})
    return stream.getvalue() + pickled


def hostile_palette(mark):
    """Return an .npy file of an object array whose pickle calls something."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": (2,)})
    return stream.getvalue() + pickle.dumps(Payload(mark), 2)


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A small CIFAR-10 that the scripts find by themselves; returns its data folder."""
    monkeypatch.setattr(cifar10, "ROWS", ROWS)
    monkeypatch.setenv("COLORIZATION_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    write_cifar(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def small_palette(tmp_path):
    """A palette file of five colors."""
    path = tmp_path / "palette.npy"
    np.save(path, np.linspace([0, 0.1, 0], [0.9, 0.8, 0.99], 5))
    return path


@functools.cache
def trained_bytes():
    """Return a UNet's checkpoint, trained in the first test that asks for one."""
    colorization.main(["-f", "4", "-e", "1", "-b", "8", "-c", "palette.npy", "--checkpoint", "u.pkl"])
    return Path("u.pkl").read_bytes()


@pytest.fixture
def trained(cifar, small_palette):
    """A UNet's checkpoint."""
    Path("u.pkl").write_bytes(trained_bytes())
    return Path("u.pkl")


@pytest.fixture
def photo_folder(tmp_path, monkeypatch):
    """A folder of ten pictures to learn from, and one that is broken; an epoch has 100 crops."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "MIN_CROPS", 100)
    (tmp_path / "mine" / "more").mkdir(parents=True)
    for number, picture in enumerate(smooth_images(10)):
        image = Image.fromarray(picture.transpose(1, 2, 0)).resize((60 + number, 50))
        image.save(tmp_path / "mine" / ("more" if number % 2 else "") / f"{number}.png")
    (tmp_path / "mine" / "broken.jpg").write_text("no picture")
    return tmp_path / "mine"


@pytest.fixture
def fails(capsys, monkeypatch):
    """Run a script's main that must fail as promised; returns its one line of error."""

    def check(main, *argv):
        monkeypatch.setattr(sys, "argv", ["script.py", *map(str, argv)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            console.run_script(main)
        assert stop.value.code == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        return lines[-1]

    return check


def pytest_itemcollected(item):
    """Attach the docstrings of the exercise's tests, each the name of a part and its points, to their reports."""
    if item.path.name == "test_parts.py" and re.match(r"\d\.\d .*, \d+ points$", item.obj.__doc__ or ""):
        item.user_properties.append(("part", item.obj.__doc__))


def pytest_terminal_summary(terminalreporter):
    """Print which parts of the exercise passed, and their points."""
    stats, points = terminalreporter.stats, {"passed": 0, "failed": 0}
    outcomes = {part: word for word in points for report in stats.get(word, []) for _, part in report.user_properties}
    for part, word in sorted(outcomes.items()):
        points[word] += int(part.split()[-2])
        terminalreporter.write_line(f"{word}  {part}")
    if outcomes:
        terminalreporter.write_line(f"{points['passed']} of {sum(points.values())} points")
