"""What every script shares with its user: errors of one line, safe writing, the device."""

import argparse
import glob
import json
import os
import random
import sys
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

PROJECT = Path(__file__).resolve().parent


class UserError(Exception):
    """Something the user can mend; the message, one line, says what is wrong and what to do."""

    def __init__(self, message):
        super().__init__(" ".join(message.split()))


def run(main):
    """Call main(argv) and exit: code 2 and one line for a UserError, 130 for Ctrl-C, 141 where nobody reads on."""
    warnings.filterwarnings("ignore", module="PIL")  # of pictures that are odd, and read all the same
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # what read the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own last flush
        sys.exit(141)
    except UserError as error:
        which = f" (process {os.environ['RANK']})" if os.environ.get("RANK", "0") != "0" else ""
        print(f"{Path(sys.argv[0]).name}{which}: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if "RANK" not in os.environ or not any(name in str(error) for name in ("gloo", "NCCL", "Connection closed")):
            raise
        print(f"{Path(sys.argv[0]).name}: another process ended or fell silent, so this one ends", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as stop:
        print(f"\n{Path(sys.argv[0]).name}: {stop or 'stopped by Ctrl-C'}", file=sys.stderr)
        sys.exit(130)


@contextmanager
def atomic_write(path, mode="wb"):
    """Open a temporary file beside `path` that takes its place when the block succeeds.

    A failure leaves `path` as it was. Missing folders are made. Raises UserError
    where the file cannot be written.
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
    """Write plain containers as JSON, whole or not at all."""
    with atomic_write(path, "w") as file:
        json.dump(content, file, indent=1)


def check_writable(path):
    """Raise UserError unless a file can be written at `path`, in a folder that may still be missing.

    Removes what a killed process left half-written there.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: cannot write it (it is a folder); name a file")
    try:
        folder = next(folder for folder in path.absolute().parents if folder.exists())
        tempfile.TemporaryFile(dir=folder).close()
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
            left.unlink()
    except OSError as error:
        raise UserError(f"{path}: cannot write it ({error.strerror or error})") from error


def current_umask():
    """Return the mask of permissions that new files do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def choose_device(name):
    """Return the torch device called `name`; None means CUDA where there is one, else the CPU."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: no such device; use cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: only cpu and cuda are supported")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: no such GPU on this machine; leave the flag out for the CPU")
    return device


def seed_everything(seed):
    """Seed every generator of random numbers in use, and have CUDA's convolutions add up in one order."""
    torch.backends.cudnn.deterministic = True
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def number(kind, low, high, what):
    """Return an argparse type: a `kind` (int or float) from `low` to `high`."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} from {low} to {high}")
        return value

    return parse
