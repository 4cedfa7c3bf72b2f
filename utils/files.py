"""Writing files so that a failure loses nothing that was there before."""

import glob
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

from utils.console import UserError

PROJECT = Path(__file__).resolve().parent.parent


@contextmanager
def atomic_write(path, mode="wb"):
    """Open a temporary file beside `path` that replaces it when the block succeeds.

    A failure leaves `path` as it was. Missing folders are made. Raises UserError
    if the file cannot be written.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.chmod(handle, 0o666 & ~current_umask())
        with open(handle, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot write it ({error.strerror or error})") from error
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def write_json(path, content):
    """Write plain containers as JSON, atomically."""
    with atomic_write(path, "w") as file:
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


def current_umask():
    """Return the mask of the permissions that new files do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def unique_path(path):
    """Return `path`, with a number added to its name if such a file exists already."""
    path, number = Path(path), 2
    unique = path
    while unique.exists():
        unique = path.with_name(f"{path.stem}_{number}{path.suffix}")
        number += 1
    return unique
