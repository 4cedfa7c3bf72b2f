"""CIFAR-10 in its official Python format: download, unpack and read it."""

import hashlib
import http.client
import os
import socket
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from utils.console import UserError
from utils.files import report_read_errors
from utils.unpickling import RestrictedUnpickler

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SIZE = 32
ROWS = 10_000  # images in a batch file
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
ARCHIVE, FOLDER = "cifar-10-python.tar.gz", "cifar-10-batches-py"
TIMEOUT = 30  # seconds without data after which a download is given up
TRAIN_FILES = [f"data_batch_{i}" for i in range(1, 6)]
TEST_FILES = ["test_batch"]


def contains_cifar10(data_dir: str | Path) -> bool:
    """Return whether a folder contains CIFAR-10's batches or its archive."""
    return os.path.isdir(Path(data_dir) / FOLDER) or os.path.exists(Path(data_dir) / ARCHIVE)


def load_cifar10(data_dir: str | Path, categories: list[str], train: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return CIFAR-10's training or test images of these classes, downloaded if needed. Raises UserError.

    uint8 (N, 3, 32, 32) in the order of the files, and labels int64 (N,), indices into CLASSES.
    """
    folder = batches_folder(data_dir)
    wanted = [CLASSES.index(name) for name in categories]
    parts = []
    for name in TRAIN_FILES if train else TEST_FILES:
        images, labels = read_batch(folder / name)
        chosen = np.isin(labels, wanted)  # at once, so that no more is kept in memory
        parts.append((images[chosen], labels[chosen]))
    images, labels = map(np.concatenate, zip(*parts))
    return torch.from_numpy(images).view(-1, 3, SIZE, SIZE), torch.from_numpy(labels)


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return a batch file's images, uint8 (10000, 3072), and labels, (10000,). Raises UserError unless it has those."""
    advice = f"delete {path.parent} to download it again"
    with report_read_errors(path, "batch of CIFAR-10", advice, most=1 << 26), open(path, "rb") as file:
        batch = RestrictedUnpickler(file).load()
        images, labels = batch[b"data"].array, batch[b"labels"]
        if images.shape != (ROWS, 3 * SIZE * SIZE) or images.dtype != np.uint8:
            raise ValueError(f"its images have shape {images.shape}")
        if len(labels) != ROWS or not all(type(c) is int and 0 <= c < len(CLASSES) for c in labels):
            raise ValueError(f"its labels are not {ROWS} numbers from 0 to 9")
        return images, np.array(labels)


def batches_folder(data_dir: str | Path) -> Path:
    """Return the folder of CIFAR-10's batches, downloaded and unpacked if needed. Raises UserError."""
    data_dir = Path(data_dir)
    folder, archive, is_new = data_dir / FOLDER, data_dir / ARCHIVE, not data_dir.exists()
    if os.path.isdir(folder):
        return folder
    lock = data_dir / ".download.lock"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):  # of several processes, one downloads
            try:
                data_dir.mkdir(exist_ok=True)  # a process before this one may have failed
                if not os.path.exists(archive):
                    download(URL, archive, SHA256)
                if not os.path.isdir(folder):
                    unpack(archive, folder, SHA256)
            finally:
                with suppress(OSError):  # nothing is left of a failed download
                    lock.unlink()
                    if is_new:
                        data_dir.rmdir()
    except OSError as error:
        raise UserError(f"{data_dir}: cannot be written ({error.strerror or error})") from error
    return folder


def download(url: str, path: Path, sha256: str) -> None:
    """Download `url` to `path`, which appears only if the content has this SHA-256. Raises UserError."""
    timeout = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(TIMEOUT)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256)
    except (OSError, http.client.HTTPException, RuntimeError) as error:  # a RuntimeError is a wrong SHA-256
        reason = getattr(error, "reason", error)
        hint = f"put {url} there, or name a folder that contains it with --data, or use --data sample"
        raise UserError(f"CIFAR-10 is not in {path.parent} and cannot be downloaded ({reason}); {hint}") from error
    finally:
        socket.setdefaulttimeout(timeout)


def unpack(archive: Path, folder: Path, sha256: str) -> None:
    """Unpack only the batches of CIFAR-10's archive into `folder`, which appears when complete. Raises UserError."""
    names = [f"{FOLDER}/{name}" for name in TRAIN_FILES + TEST_FILES]
    advice = "free some disk space, or delete it to download it again"
    with report_read_errors(archive, "copy of CIFAR-10's archive", advice):
        with open(archive, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise ValueError("corrupt or truncated: wrong SHA-256")
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpacking-") as part, tarfile.open(archive) as tar:
            members = [tar.getmember(name) for name in names]
            if not all(member.isreg() and member.size < 40_000_000 for member in members):
                raise ValueError("its batches are not regular files, or too large")
            (Path(part) / FOLDER).mkdir()
            for name, member in zip(names, members):  # extractall() is safe only from Python 3.11.4 on
                (Path(part) / name).write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
            if not os.path.isdir(folder):  # else another process was first, as where locks have no effect
                os.replace(Path(part) / FOLDER, folder)
