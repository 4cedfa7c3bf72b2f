"""Atomic file writing: a failure leaves existing files as they were."""

import glob
import json
import os
import secrets
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.console import UserError

PROJECT = Path(__file__).resolve().parent.parent


@contextmanager
def atomic_write(path, mode="xb"):
    """Open a temporary file beside `path` that replaces it when the block succeeds.

    A failure leaves `path` as it was. Missing folders are created. Raises UserError
    if the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot write it ({error.strerror or error})") from error
    finally:
        with suppress(OSError):  # it exists only after a failure
            temporary.unlink()


def write_json(path, content):
    """Write plain containers as JSON, atomically."""
    with atomic_write(path, "x") as file:
        json.dump(content, file, indent=1)


def check_writable(path):
    """Raise UserError unless a file can be written at `path`, in a folder that need not exist yet.

    Deletes the temporary files that a killed process left there.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: cannot write it (it is a folder); name a file")
    try:
        folder = next(folder for folder in path.absolute().parents if folder.exists())
        tempfile.TemporaryFile(dir=folder).close()
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
            leftover.unlink()
    except OSError as error:
        raise UserError(f"{path}: cannot write it ({error.strerror or error})") from error


def unique_path(path):
    """Return `path`, with a number added to its name if it exists already."""
    path, number = Path(path), 2
    unique = path
    while unique.exists():
        unique = path.with_name(f"{path.stem}_{number}{path.suffix}")
        number += 1
    return unique
