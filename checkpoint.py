"""Checkpoints: a network's weights with all it takes to use them again."""

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from cli import PROJECT, UserError, atomic_write
from data import check_palette, palette_for
from models import NETWORKS

FORMAT = "colorization checkpoint 1"
CLASSIFIERS = ("CNN", "UNet", "DUNet")
FILE_STEMS = {"CNN": "cnn", "UNet": "unet", "DUNet": "dunet", "RegressionCNN": "regression_cnn"}


@dataclass
class Checkpoint:
    """A network and where it comes from; `palette` is None for RegressionCNN."""

    net: torch.nn.Module
    model: str  # "CNN", "UNet", "DUNet" or "RegressionCNN"
    kernel: int
    num_filters: int
    palette: np.ndarray | None = None  # (K, 3) float64, byte / 256
    data: str = "unknown"
    epoch: int = 0
    figures: dict = field(default_factory=dict)  # of that epoch, such as valid_loss


def create_model(model, kernel, num_filters, num_colors):
    """Return a new network; `num_colors` is not used by RegressionCNN."""
    settings = (kernel, num_filters, num_colors) if model in CLASSIFIERS else (kernel, num_filters)
    return NETWORKS[model](*settings).to(memory_format=torch.channels_last)  # same numbers, and faster convolutions


def file_name(model, kernel, num_filters):
    """Return the customary name of such a network's checkpoint."""
    return f"{FILE_STEMS[model]}_k{kernel}_f{num_filters}.pkl"


def pretrained_path(model, kernel, num_filters):
    """Return where the trained weights of such a network are. Raises UserError if there are none."""
    path = PROJECT / "weights" / file_name(model, kernel, num_filters)
    if not path.exists():
        raise UserError(f"{path}: no weights are shipped for this network; train it, or name a file with --checkpoint")
    return path


def save_checkpoint(path, checkpoint):
    """Write a checkpoint, whole or not at all. Raises UserError where that fails."""
    content = {name: value for name, value in vars(checkpoint).items() if name not in ("net", "palette")}
    content["format"] = FORMAT
    content["palette"] = None if checkpoint.palette is None else torch.from_numpy(checkpoint.palette)
    content["state_dict"] = {name: value.cpu().contiguous() for name, value in checkpoint.net.state_dict().items()}
    write_torch_file(path, content)


def write_torch_file(path, content):
    """Write containers of tensors, whole or not at all. Raises UserError where that fails."""
    buffer = io.BytesIO()  # a full disk is then an OSError, not one of torch.save's own
    torch.save(content, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def read_torch_file(path, what):
    """Read containers of tensors and nothing else. Raises UserError, calling the file `what`."""
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read the {what} ({error.strerror})") from error
    try:
        return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises anything on a broken file
        raise UserError(f"{path}: not a {what}, or a broken one; train it anew or fetch it again") from error


def load_from_flags(args, path, model):
    """Load the checkpoint at `path` with what the flags say of it; None means the weights shipped for `model`."""
    path = path or pretrained_path(model or "UNet", args.kernel or 3, args.num_filters or 32)
    colors = getattr(args, "colors", None)

    def palette():
        if not colors:
            print(f"{path} does not say its palette: taking the shipped one; --colors names another")
        return palette_for(args)

    checkpoint = load_checkpoint(path, model, args.kernel, args.num_filters, palette)
    if colors and not np.array_equal(checkpoint.palette, palette_for(args)):
        raise UserError(
            f"{path}: made with another palette than --colors {colors}; leave --colors out or name another file"
        )
    return checkpoint


def load_checkpoint(path, model=None, kernel=None, num_filters=None, palette=None):
    """Read a checkpoint of this package, or a bare state dict such as the handout's.

    What a checkpoint of this package says of itself counts; the arguments, where
    they are not None, must agree with it. For a bare state dict they say what it
    is (without them: kernel 3, 32 filters), and `palette()` is called for its palette.

    Raises UserError where the file is neither, or does not fit.
    """
    content = read_torch_file(path, "checkpoint")
    if isinstance(content, dict) and content.get("format") == FORMAT:
        for name, value in {"model": model, "kernel": kernel, "num_filters": num_filters}.items():
            if value is not None and content.get(name) != value:
                was = f"{name.replace('_', ' ')} is {content.get(name)}, not {value}"
                raise UserError(f"{path}: its {was}; leave that flag out, or name another file")
        try:
            checkpoint, state = parse_checkpoint(content), content["state_dict"]
        except Exception as error:  # a hostile file's entries may be anything
            raise UserError(f"{path}: a checkpoint with wrong or missing entries ({error}); train it anew") from error
    elif isinstance(content, dict) and content and all(torch.is_tensor(value) for value in content.values()):
        if model is None:
            raise UserError(f"{path}: weights alone, which do not say of what network; name it with --model")
        colors = None if model == "RegressionCNN" else palette()
        checkpoint, state = Checkpoint(None, model, kernel or 3, num_filters or 32, colors), content
    else:
        raise UserError(f"{path}: a file of PyTorch's, but not a checkpoint of this package and no state dict")
    try:
        load_weights(checkpoint, state)
    except Exception as error:
        raise UserError(f"{path}: {error}; name its network, kernel, filters and colors, or train it anew") from error
    return checkpoint


def parse_checkpoint(content):
    """Make a Checkpoint, still without its network, of a file's content. Raises any exception if it lies."""
    palette = content["palette"]
    names = ("model", "kernel", "num_filters", "data", "epoch", "figures")
    checkpoint = Checkpoint(
        None,
        palette=None if palette is None else check_palette(palette.numpy()),
        **{name: content[name] for name in names},
    )
    if checkpoint.model not in FILE_STEMS or (palette is None) != (checkpoint.model == "RegressionCNN"):
        raise ValueError(f"an unknown network {checkpoint.model}")
    if checkpoint.kernel not in range(1, 16, 2) or checkpoint.num_filters not in range(1, 1025):
        raise ValueError(f"kernel {checkpoint.kernel} and {checkpoint.num_filters} filters are not possible")
    return checkpoint


def load_weights(checkpoint, state):
    """Build the checkpoint's network and give it its weights. Raises any exception where they do not fit."""
    num_colors = 3 if checkpoint.palette is None else len(checkpoint.palette)
    checkpoint.net = create_model(checkpoint.model, checkpoint.kernel, checkpoint.num_filters, num_colors)
    wanted = checkpoint.net.state_dict()
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}  # younger than the handout
    shape = f"kernel {checkpoint.kernel}, {checkpoint.num_filters} filters and {num_colors} colors"
    what = f"no weights of {checkpoint.model} with {shape}"
    for name in sorted(wanted.keys() - state.keys() - counters):
        raise ValueError(f"{what}: {name} is missing")
    for name, value in state.items():
        if name not in wanted or value.shape != wanted[name].shape:
            raise ValueError(f"{what}: its {name} is {'x'.join(map(str, value.shape))}")
        if not value.isfinite().all():
            raise ValueError(f"{name} is not finite: the training that made it failed")
    checkpoint.net.load_state_dict(state, strict=False)


def describe(checkpoint):
    """Return one line that says what a checkpoint is."""
    colors = "" if checkpoint.palette is None else f", {len(checkpoint.palette)} colors"
    weights = sum(p.numel() for p in checkpoint.net.parameters())
    return (
        f"{checkpoint.model}, kernel {checkpoint.kernel}, {checkpoint.num_filters} filters{colors}: {weights:,} weights"
    )
