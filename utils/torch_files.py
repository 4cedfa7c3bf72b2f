"""Files of torch.save: written atomically, and read so that a hostile one can do nothing."""

import io
import warnings
import zipfile
from pathlib import Path
from typing import IO

import torch

from utils.files import atomic_write, report_read_errors
from utils.unpickling import HOW_TO_SAVE, RestrictedUnpickler

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file in the old format
MAX_PICKLE = 4 << 20  # bytes of a file's containers; the numbers of its tensors come after them


def write_torch_file(path: Path, content: dict) -> None:
    """Write containers of tensors atomically. Raises UserError if that fails."""
    buffer = io.BytesIO()  # so that a full disk raises OSError, not an error of torch.save's
    torch.save(content, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def read_torch_file(path: Path, kind: str, advice: str) -> object:
    """Load a file of plain containers of tensors, and nothing else. The arguments are report_read_errors()'s."""
    with report_read_errors(path, kind, advice), warnings.catch_warnings(action="ignore"), open(path, "rb") as file:
        return torch.load(check_torch_file(file), map_location="cpu", weights_only=True)


def check_torch_file(file: IO[bytes]) -> io.BytesIO:
    """Return the content of a file of torch.save's as a stream that is safe to load.

    torch.load(weights_only=True) runs no code that a file names, but a small file can fill the memory or run forever.
    Raises ValueError, UnpicklingError or whatever else the broken parts of a file lead to.
    """
    start, size = file.read(2), file.seek(0, io.SEEK_END)
    file.seek(0)
    if start == b"\x80\2":  # the format before PyTorch 1.6, that of the handout: five pickles, then the storages
        raw = file.read()
        stream = io.BytesIO(raw[:MAX_PICKLE])
        unpicklers = [RestrictedUnpickler(stream) for _ in range(5)]
        if unpicklers[0].load() != MAGIC:
            raise ValueError(f"it is a plain pickle, not a file of torch.save; {HOW_TO_SAVE}")
        *_, keys = [unpickler.load() for unpickler in unpicklers[1:]]
        sizes = unpicklers[3].sizes
        if sum(sizes.values()) > len(raw) or sorted(map(int, keys)) != sorted(sizes):
            raise ValueError("its tensors claim to be larger than the file")
        return io.BytesIO(raw)
    if start != b"PK":
        what = "a plain pickle, not a file" if start[:1] == b"\x80" else "no file"
        raise ValueError(f"it is {what} of torch.save; {HOW_TO_SAVE}")
    source, stream = zipfile.ZipFile(file), io.BytesIO()
    parts = source.infolist()
    if any("/code/" in part.filename for part in parts):
        raise ValueError(f"it is a traced network; {HOW_TO_SAVE}")
    # torch.save does not compress; and of a compressed part, the size may be a lie
    if any(part.compress_type for part in parts) or sum(part.file_size for part in parts) > size:
        raise ValueError("its parts claim to be larger than the file")
    with zipfile.ZipFile(stream, "w") as target:  # written again, so that PyTorch reads the parts checked here
        for part in parts:
            content = source.read(part)
            if part.filename.lower().endswith("data.pkl"):
                RestrictedUnpickler(io.BytesIO(content[:MAX_PICKLE])).load()
            target.writestr(zipfile.ZipInfo(part.filename), content)
    stream.seek(0)
    return stream
