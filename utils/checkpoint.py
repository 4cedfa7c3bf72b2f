"""Checkpoint files: a network's weights, architecture and palette, from which models.py builds the network."""

import io
import warnings
import zipfile
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch

from utils.console import UserError
from utils.files import atomic_write, reading
from utils.unpickling import RestrictedUnpickler

FORMAT = "colorization checkpoint 2"
OLD_FORMAT = "colorization checkpoint 1"  # stores the metrics under "figures"
ADVICE = "name another file, or train it again"
MAX_PICKLE = 4 << 20  # bytes of a file's containers; the numbers of its tensors come after them
MODEL, KERNEL, NUM_FILTERS, COLORS = "UNet", 3, 32, 24  # the defaults
WORKING_SIZE = 64  # about the longer side of the copies of a photograph that a network sees, in pixels


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file contains; `palette` is None for a network that predicts RGB."""

    model: str  # a key of models.NETWORKS
    kernel: int
    num_filters: int
    palette: np.ndarray | None  # (K, 3) float64, byte / 256
    state_dict: dict
    data: str = "unknown"
    epoch: int = 0
    metrics: dict = field(default_factory=dict)  # of that epoch, such as valid_loss
    working_size: int = WORKING_SIZE

    @property
    def architecture(self):
        """A description of the network."""
        colors = "" if self.palette is None else f", {len(self.palette)} colors"
        return f"{self.model}, kernel {self.kernel}, {self.num_filters} filters{colors}"

    def __str__(self):
        count = sum(value.numel() for name, value in self.state_dict.items() if name.endswith(("weight", "bias")))
        return f"{self.architecture}: {count:,} parameters"


def save_checkpoint(path, checkpoint):
    """Write a checkpoint atomically. Raises UserError if that fails."""
    palette = None if checkpoint.palette is None else torch.from_numpy(checkpoint.palette)
    own = {"memory_format": torch.contiguous_format}  # not views of a larger vector
    state_dict = {name: value.cpu().clone(**own) for name, value in checkpoint.state_dict.items()}
    write_torch_file(path, vars(checkpoint) | {"format": FORMAT, "palette": palette, "state_dict": state_dict})


def write_torch_file(path, content):
    """Write containers of tensors atomically. Raises UserError if that fails."""
    buffer = io.BytesIO()  # so that a full disk raises OSError, not an error of torch.save's
    torch.save(content, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def read_torch_file(path, kind, advice=ADVICE):
    """Load a file of plain containers of tensors, and nothing else. The arguments are those of reading()."""
    with reading(path, kind, advice), warnings.catch_warnings(action="ignore"):
        return torch.load(check_torch_file(Path(path).read_bytes()), map_location="cpu", weights_only=True)


def check_torch_file(raw):
    """Return the bytes of a file of torch.save's as a stream that is safe to load. Raises some exception.

    torch.load(weights_only=True) runs no code that a file names, but a small file can fill the memory or run forever.
    """
    stream = io.BytesIO(raw[:MAX_PICKLE])
    if raw[:4] != b"PK\3\4":  # the format before PyTorch 1.6, that of the handout: five pickles, then the storages
        unpicklers = [RestrictedUnpickler(stream) for _ in range(5)]
        *_, keys = [unpickler.load() for unpickler in unpicklers]
        sizes = unpicklers[3].sizes
        if sum(sizes.values()) > len(raw) or sorted(map(int, keys)) != sorted(sizes):
            raise ValueError("its tensors claim to be larger than the file")
        return io.BytesIO(raw)
    source, stream = zipfile.ZipFile(io.BytesIO(raw)), io.BytesIO()
    parts = source.infolist()
    if any(part.compress_type for part in parts) or sum(part.file_size for part in parts) > len(raw):
        raise ValueError("its parts claim to be larger than the file")  # torch.save does not compress
    with zipfile.ZipFile(stream, "w") as target:  # written again, so that PyTorch reads the parts checked here
        for part in parts:
            content = source.read(part)
            if part.filename.lower().endswith("data.pkl"):
                RestrictedUnpickler(io.BytesIO(content[:MAX_PICKLE])).load()
            target.writestr(zipfile.ZipInfo(part.filename), content)
    stream.seek(0)
    return stream


def load_checkpoint(path, model=None, kernel=None, num_filters=None, palette=None):
    """Read a checkpoint of this package, or a bare state dict such as the handout's.

    A checkpoint of this package describes itself; arguments other than None must agree with it. A bare
    state dict does not, so the arguments describe it. Raises UserError if the file is neither, or does not agree.
    """
    content = read_torch_file(path, "checkpoint")
    if isinstance(content, dict) and content.get("format") in (FORMAT, OLD_FORMAT):
        with reading(path, "checkpoint", ADVICE):
            checkpoint = parse_checkpoint(content)
        for name, value in {"model": model, "kernel": kernel, "num_filters": num_filters}.items():
            if value is not None and getattr(checkpoint, name) != value:
                difference = f"{name.replace('num_', 'number of ')} is {getattr(checkpoint, name)}, not {value}"
                raise UserError(f"{path}: its {difference}; name another file, or the script and flags that fit it")
        mine = np.zeros(0) if checkpoint.palette is None else checkpoint.palette
        if palette is not None and (mine.shape != palette.shape or not np.allclose(mine, palette, rtol=0, atol=1e-6)):
            hint = "leave --colors out, or name the --seed and --holdout that it was fitted with"
            raise UserError(f"{path}: not made with the palette of --colors; {hint}")
        return checkpoint
    if not isinstance(content, dict) or not content or not all(map(torch.is_tensor, content.values())):
        raise UserError(f"{path}: a PyTorch file, but neither a checkpoint of this package nor a state dict")
    if model is None:
        raise UserError(f"{path}: a bare state dict does not record its network; name the network with --model")
    return Checkpoint(model, kernel or KERNEL, num_filters or NUM_FILTERS, palette, content)


def parse_checkpoint(content):
    """Return a file's content as a Checkpoint. Raises any exception if an entry is missing or invalid."""
    if content["format"] == OLD_FORMAT:
        content["metrics"] = content["figures"]
    if content["palette"] is not None:
        content["palette"] = check_palette(content["palette"].numpy())
    content.setdefault("working_size", WORKING_SIZE)  # earlier checkpoints do not have it
    checkpoint = Checkpoint(**{field.name: content[field.name] for field in fields(Checkpoint)})
    sizes = checkpoint.kernel, checkpoint.num_filters, checkpoint.working_size
    supported = range(1, 16, 2), range(1, 1025), range(4, 513)
    if not all(type(size) is int and size in known for size, known in zip(sizes, supported)):
        raise ValueError("its kernel, number of filters or working size is not supported")
    if not isinstance(checkpoint.model, str) or not isinstance(checkpoint.state_dict, dict):
        raise ValueError("its network has no name or no weights")
    return checkpoint


def check_palette(palette):
    """Return a palette as (K, 3) float64. Raises ValueError if it is not one."""
    if palette.dtype.kind != "f" or palette.shape[1:] != (3,) or not 2 <= len(palette) <= 256:
        raise ValueError(f"it is {palette.dtype} of shape {palette.shape}, not 2 to 256 rows of three floats")
    palette = palette.astype(np.float64)
    if not ((palette >= 0) & (palette <= 1)).all() or len(np.unique(palette, axis=0)) < len(palette):
        raise ValueError("its values are not all from 0 to 1, or a color occurs twice")  # the former also for NaN
    return palette
