"""Files: errors of reading in one line, and atomic writing, whose failure leaves existing files as they were."""

import glob
import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from utils.console import UserError

PROJECT = Path(__file__).resolve().parent.parent


@contextmanager
def report_read_errors(path: str | Path, kind: str, advice: str, most: float = 4 << 30) -> Iterator[None]:
    """Turn any error of the block, which reads the file `path`, into a UserError that ends with some advice.

    Files that are not regular, such as devices and pipes, or have more than `most` bytes are not read at all.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is a folder, a device or a pipe")
        if status.st_size > most:
            raise ValueError(f"it has {status.st_size:,} bytes")
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot read the {kind} ({error.strerror or error}); {advice}") from error
    except Exception as error:  # a broken file may raise anything, even MemoryError
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise UserError(f"{path}: not a {kind}, or a corrupt one ({reason:.200}); {advice}") from error


@contextmanager
def atomic_write(path: Path, mode: str = "xb", may_replace: bool = True) -> Iterator[IO]:
    """Open a temporary file beside `path` that replaces it when the block succeeds; a failure leaves it as it was.

    Missing folders are created. Raises UserError if the file cannot be written, FileExistsError if it exists and may
    not be replaced.
    """
    path = Path(os.path.realpath(path))  # a symbolic link is followed
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text: dict = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}  # the same bytes on every system
        with open(temporary, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if may_replace or not linked(temporary, path):
            os.replace(temporary, path)
    except OSError as error:
        if not may_replace and os.path.lexists(path):
            raise FileExistsError(path) from error
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):  # it exists only after a failure
            temporary.unlink()


def linked(source: Path, path: Path) -> bool:
    """Make `path` another name of a file; return whether the file system can. Raises FileExistsError."""
    try:
        os.link(source, path)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


def temporary_path(path: Path) -> Path:
    """Return the path of a new temporary file beside `path`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def check_targets(targets: Iterable[Path], inputs: Iterable[Path | None] = ()) -> None:
    """Raise UserError unless all `targets` can be written, replacing neither each other nor an input.

    `inputs` are the files and the folders of images that are read; what is None or does not exist is ignored.
    """
    seen: dict = {file_identity(given): given for given in inputs if given and os.path.exists(given)}
    for target in targets:
        check_writable(target)
        for folder in Path(os.path.realpath(target)).parents if Path(target).suffix == ".png" else ():
            if file_identity(folder) in seen:
                raise UserError(f"{target}: would become part of the data in {folder}; name another folder")
        if file_identity(target) in seen:
            raise UserError(f"{target}: would replace {seen[file_identity(target)]}; name another file or folder")
        seen[file_identity(target)] = "another file of this run"


def file_identity(path: Path) -> object:
    """Return what two paths share if they name one file, also on file systems that ignore the case of names."""
    with suppress(OSError):  # it need not exist
        status = os.stat(path)
        if status.st_ino:  # 0 on file systems that have none
            return status.st_dev, status.st_ino
    return os.path.realpath(path).casefold()


def check_writable(path: Path) -> None:
    """Raise UserError unless `path` can be written, its folder made if needed; delete what a killed process left."""
    path = Path(os.path.realpath(path))
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{path}: cannot be written (it is a folder or a device); name a file")
    try:
        folder = next((folder for folder in path.parents if os.path.exists(folder)), path.parent)
        trial = temporary_path(folder / path.name)
        open(trial, "xb").close()
        trial.unlink()
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
            with suppress(FileNotFoundError):  # another process may delete it first
                if time.time() - leftover.stat().st_mtime > 3600:  # an hour: no process is still writing it
                    leftover.unlink()
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
