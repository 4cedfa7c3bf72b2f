"""Files of every kind that claim too much or are damaged."""

import gzip
import hashlib
import io
import random
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import batch_bytes, handout_palette, smooth_images
from helpers import PALETTE, checkpoint_bytes, nested_key, save_image
from PIL import Image

import data
import models
from models import create_model
from sources import cifar10, image_files
from training import loop
from training.log import STATE_FORMAT, RunLog
from utils import checkpoint, torch_files
from utils.checkpoint import FORMAT, load_network, new_network, save_checkpoint
from utils.console import UserError
from utils.files import PROJECT


def test_sizes_that_a_checkpoint_claims(tmp_path):
    """The checks themselves, beside what they save below."""
    files = {path.stem: path for path in hostile_checkpoints(tmp_path)}
    with pytest.raises(ValueError, match="claim to be larger than the file"):
        torch_files.check_torch_file(io.BytesIO(files["deflated"].read_bytes()))
    with pytest.raises(UserError, match="its tensors claim to be larger than they are"):
        checkpoint.load_network(files["expanded"])


def hostile_checkpoints(folder):
    """Write small files that claim much; return their paths."""
    save_checkpoint(folder / "small.pkl", new_network(PALETTE, model="CNN", kernel=3, num_filters=2)[1])
    content = torch.load(folder / "small.pkl", weights_only=True)
    assert content["format"] == FORMAT
    with zipfile.ZipFile(folder / "small.pkl") as source:
        parts = {entry.filename: source.read(entry) for entry in source.infolist()}
    with zipfile.ZipFile(folder / "deflated.pkl", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:  # the fastest
        for name, part in parts.items():
            target.writestr(name, bytes(1 << 31) if name.endswith("data/1") else part)
    torch.save(content | {"kernel": 15, "num_filters": 1024}, folder / "many_filters.pkl")
    with torch.device("meta"):
        shapes = models.create_model("CNN", 15, 1024, 5).state_dict()
    expanded = {name: torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in shapes.items()}
    torch.save(content | {"kernel": 15, "num_filters": 1024, "state_dict": expanded}, folder / "expanded.pkl")
    (folder / "hidden.pkl").write_bytes((folder / "deflated.pkl").read_bytes() + b"PK\5\6")  # zipfile sees no archive
    deep = []
    for _ in range(45):
        deep = [deep, deep]  # takes 2^45 steps to print
    torch.save(content | {"kernel": deep}, folder / "deep.pkl")
    torch.save(content | {"data": deep}, folder / "deep_name.pkl")
    palette = torch.zeros((), dtype=torch.float64).expand(1 << 30, 3)
    torch.save(content | {"palette": palette}, folder / "palette.pkl")
    return [
        folder / f"{name}.pkl"
        for name in ("deflated", "hidden", "deep", "deep_name", "many_filters", "expanded", "palette")
    ]


def hostile_files(folder):
    """Write small files of all kinds that claim much; return [(how to read it, path)]."""
    checkpoints = hostile_checkpoints(folder)
    result = [("load_network", path) for path in checkpoints] + [("read_state", checkpoints[0])]
    with open(folder / "palette.npy", "wb") as file:
        header = {"descr": "<f8", "fortran_order": False, "shape": (1 << 40, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(1000))
    result.append(("load_palette", folder / "palette.npy"))
    for number, start in enumerate((b"\x80\x05\x96", b"\x80\x04\x8e", b"\x80\x04\x95")):  # bytearray, bytes, frame
        (folder / f"batch{number}").write_bytes(start + struct.pack("<Q", 60 << 30) + bytes(1000))
        result.append(("read_batch", folder / f"batch{number}"))
    (folder / "long_key").write_bytes(nested_key(50, b"u"))
    (folder / "archive.tar.gz").write_bytes(gzip.compress(bytes(1 << 30), 1))
    save_image(folder / "image.png")
    whole = bytearray((folder / "image.png").read_bytes())
    whole[16:24] = struct.pack(">II", 60_000, 60_000)  # width and height
    whole[29:33] = struct.pack(">I", zlib.crc32(whole[12:29]))
    (folder / "image.png").write_bytes(whole)
    return [
        *result,
        ("read_batch", folder / "long_key"),
        ("unpack", folder / "archive.tar.gz"),
        ("read_image", folder / "image.png"),
    ]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory in use is read from /proc")
def test_small_files_that_claim_much_take_little_memory_and_time(tmp_path):
    """All are refused by a process that may have 1.5 GB more than PyTorch takes, each within ten seconds."""
    files_and_readers = hostile_files(tmp_path)
    assert all(path.stat().st_size < 10 << 20 for _, path in files_and_readers)
    code = """
import resource, sys, time
from pathlib import Path
from types import SimpleNamespace
from data import load_palette
from utils.checkpoint import load_network
from sources.cifar10 import read_batch, unpack
from sources.image_files import read_image
from utils.torch_files import read_torch_file
from utils.console import UserError
readers = globals() | {
    "read_state": lambda path: read_torch_file(path, "training state", "advice"),
    "unpack": lambda path: unpack(Path(path), Path(path).with_name("unpacked"), "0" * 64),
}
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + 1_500_000_000
resource.setrlimit(resource.RLIMIT_AS, (size, size))
for argument in sys.argv[1:]:
    name, path = argument.split("=", 1)
    start = time.perf_counter()
    try:
        readers[name](Path(path))
        sys.exit(f"{path} was read")
    except UserError as error:
        print(error)
    assert time.perf_counter() - start < 10, path
"""
    arguments = [f"{reader}={path}" for reader, path in files_and_readers]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == len(arguments)


def mutations(content, count, seed, tail=None):
    """Yield `count` damaged copies of a file's content: cut, changed, doubled, shuffled; in its last `tail` bytes."""
    chance = random.Random(seed)
    for _ in range(count):
        damaged = bytearray(content)
        for _ in range(chance.choice([1, 1, 2, 8])):
            start = chance.randrange(max(0, len(damaged) - (tail or len(damaged))), len(damaged))
            kind = chance.randrange(4)
            if kind == 0:
                damaged[start] = chance.randrange(256)
            elif kind == 1:
                del damaged[start : start + chance.choice([1, 4, 1000, len(damaged)])]
            elif kind == 2:
                damaged[start:start] = damaged[start : start + chance.choice([1, 16, 300])]
            else:
                damaged[start : start + 4] = chance.randbytes(4)
            if not damaged:
                break
        yield bytes(damaged)


def read_batch_file(path):
    cifar10.read_batch(path)


def unpack_archive(path):
    target = path.with_name("unpacked")
    cifar10.unpack(path, target, hashlib.sha256(path.read_bytes()).hexdigest())
    for file in target.iterdir():
        file.unlink()
    target.rmdir()


def archive_bytes(mode="w"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:
        for name in cifar10.TRAIN_FILES + cifar10.TEST_FILES:
            member = tarfile.TarInfo(f"{cifar10.FOLDER}/{name}")
            member.size = 100
            tar.addfile(member, io.BytesIO(bytes(100)))
    return stream.getvalue()


def plain_palette_bytes():
    stream = io.BytesIO()
    np.save(stream, np.random.default_rng(0).random((5, 3)))
    return stream.getvalue()


def picture_bytes(kind):
    stream = io.BytesIO()
    Image.fromarray(smooth_images(1)[0].transpose(1, 2, 0)).save(stream, kind)
    return stream.getvalue()


@cache
def small_trainer():
    torch.manual_seed(0)
    dataset = data.ImageDataset(torch.from_numpy(smooth_images(4)), None, torch.device("cpu"))
    return loop.Trainer(create_model("RegressionCNN", 3, 1), dataset, loop.TrainingConfig(batch_size=4))


def state_bytes():
    stream = io.BytesIO()
    metrics = {"train_loss": 0.5, "valid_loss": 0.4, "valid_accuracy": 0.3, "learning_rate": 0.0, "seconds": 1.0}
    history = [{"epoch": 1} | metrics]
    content = {"format": STATE_FORMAT, "settings": {"epochs": 2}, "history": history}
    torch.save(content | {"trainer": small_trainer().state_dict()}, stream)
    return stream.getvalue()


def read_state_file(path):
    log = SimpleNamespace(
        path_for=lambda suffix: path, settings={"epochs": 2}, checkpoint=SimpleNamespace(is_classifier=True)
    )
    RunLog.resume(log, small_trainer().load_state_dict)


PARSERS = {  # how to read a file, how to make one, how many to damage (5,000 in all), in how many of the last bytes
    "batch": (read_batch_file, lambda: batch_bytes(smooth_images(2).reshape(2, -1), [3, 7]), 700, None),
    "archive": (unpack_archive, lambda: archive_bytes("w:gz"), 400, None),
    "unpacked archive": (unpack_archive, archive_bytes, 200, None),
    "plain palette": (data.load_palette, plain_palette_bytes, 1100, None),
    "handout's palette": (
        data.load_palette,
        lambda: handout_palette(np.random.default_rng(0).random((5, 3))),
        700,
        None,
    ),
    "checkpoint": (load_network, checkpoint_bytes, 400, None),
    "directory of a checkpoint": (load_network, checkpoint_bytes, 600, 3000),
    "training state": (read_state_file, state_bytes, 300, None),
    **{
        kind: (image_files.read_image, partial(picture_bytes, kind), 150, None)
        for kind in ("PNG", "TIFF", "GIF", "BMP")
    },
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PARSERS)
def test_damaged_files_end_in_success_or_in_one_clear_line(name, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "ROWS", 2)
    parse, make, count, tail = PARSERS[name]
    path = tmp_path / "file"
    refused = 0
    path.write_bytes(make())
    parse(path)  # undamaged, it is read
    for seed, damaged in enumerate(mutations(make(), count, seed=1, tail=tail)):
        path.write_bytes(damaged)
        try:
            parse(path)
        except UserError as error:
            refused += 1
            assert str(path) in str(error), f"mutation {seed}"
            assert "\n" not in str(error), f"mutation {seed}"
    assert refused > count / 10
