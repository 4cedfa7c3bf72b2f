"""Checkpoints: a network's weights, architecture and palette, from a file to a network and back."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import CLASSIFIERS, NETWORKS, Network, create_model
from utils.console import UserError
from utils.files import PROJECT, report_read_errors
from utils.torch_files import read_torch_file, write_torch_file

FORMAT = "colorization checkpoint 2"
OLD_FORMAT = "colorization checkpoint 1"  # stores the metrics under "figures"
ADVICE = "name another file, or train it again"
DEFAULTS: dict[str, Any] = {"model": "UNet", "kernel": 3, "num_filters": 32}  # of an architecture
COLORS = 24  # the default of classifiers
WORKING_SIZE = 64  # about the longer side of the copies of a photograph that a network sees, in pixels
PHOTOGRAPH_WEIGHTS = "photograph_deep_unet_k3_f32.pkl"  # the shipped network for photographs


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file contains."""

    model: str  # a key of models.NETWORKS
    kernel: int
    num_filters: int
    palette: np.ndarray | None  # (K, 3) float64, byte / 256; None for a network that predicts RGB
    state_dict: dict[str, Tensor]
    data: str = "unknown"
    epoch: int = 0
    metrics: dict = field(default_factory=dict)  # of that epoch, such as valid_loss
    working_size: int = WORKING_SIZE

    @property
    def is_classifier(self) -> bool:
        """Whether the network predicts palette colors, not RGB."""
        return self.palette is not None

    @property
    def architecture(self) -> str:
        """A description of the network."""
        colors = "" if self.palette is None else f", {len(self.palette)} colors"
        return f"{self.model}, kernel {self.kernel}, {self.num_filters} filters{colors}"

    def create_model(self) -> Network:
        """Return a new network of this architecture."""
        return create_model(self.model, self.kernel, self.num_filters, 3 if self.palette is None else len(self.palette))

    def __str__(self) -> str:
        count = sum(value.numel() for name, value in self.state_dict.items() if name.endswith(("weight", "bias")))
        return f"{self.architecture}: {count:,} parameters"


def new_network(palette: np.ndarray | None, seed: int = 0, **architecture: Any) -> tuple[Network, Checkpoint]:
    """Return (a new network, its Checkpoint); without a palette it predicts RGB.

    `architecture` may name the model, kernel and num_filters, whose DEFAULTS apply otherwise.
    """
    torch.manual_seed(seed)
    checkpoint = Checkpoint(**DEFAULTS | architecture, palette=palette, state_dict={})
    net = checkpoint.create_model()
    return net, replace(checkpoint, state_dict=net.state_dict())


def load_network(path: Path, palette: np.ndarray | None = None, **architecture: Any) -> tuple[Network, Checkpoint]:
    """Return (a network with the weights of a file, in evaluation mode, its Checkpoint).

    The arguments are load_checkpoint()'s; pretrained_path() returns the path of shipped weights. Raises UserError.
    """
    checkpoint = load_checkpoint(path, palette, **architecture)
    with torch.device("meta"):  # without memory, which a few bytes that claim many filters would fill
        blank = checkpoint.create_model()  # what fails here is the code, such as a missing part of the exercise
    advice = "name another one, or train it again if models.py has changed"
    with report_read_errors(path, f"file of weights of {checkpoint.architecture}", advice):
        check_values(checkpoint.state_dict)
        count = sum(value.numel() for value in checkpoint.state_dict.values())
        if count < (2 * checkpoint.num_filters * checkpoint.kernel) ** 2:  # weights of one convolution in the middle
            blank.load_state_dict({name: value.to("meta") for name, value in checkpoint.state_dict.items()})
        net = checkpoint.create_model()
        net.load_state_dict(checkpoint.state_dict)
    return net.eval(), checkpoint


def load_checkpoint(path: Path, palette: np.ndarray | None = None, **architecture: Any) -> Checkpoint:
    """Read a checkpoint of this package, or a bare state dict such as the handout's.

    `architecture` may name the model, kernel and num_filters. A checkpoint of this package describes itself, and all
    that is given must agree with it. A bare state dict does not, so the arguments describe it. Raises UserError if
    the file is neither, or does not agree.
    """
    content = read_torch_file(path, "checkpoint", ADVICE)
    with report_read_errors(path, "checkpoint", ADVICE):
        if isinstance(content, dict) and content.get("format") in (FORMAT, OLD_FORMAT):
            checkpoint = parse_checkpoint(content)
        else:
            checkpoint = describe_weights(path, content, palette, architecture)
        check_sizes(checkpoint.kernel, checkpoint.num_filters, checkpoint.working_size)
    for name, value in architecture.items():
        if getattr(checkpoint, name) != value:
            difference = f"{name.replace('num_', 'number of ')} is {getattr(checkpoint, name)}, not {value}"
            raise UserError(f"{path}: its {difference}; name another file, or the script and flags that fit it")
    if palette is not None:
        own = checkpoint.palette
        if own is None:
            raise UserError(f"{path}: a {checkpoint.model} predicts RGB, not palette colors; leave --colors out")
        if len(own) != len(palette):
            raise UserError(f"{path}: it has {len(own)} colors, not the {len(palette)} of --colors; leave --colors out")
        if not np.allclose(own, palette, rtol=0, atol=1e-6):
            hint = "leave --colors out, or name the --seed and --holdout that it was fitted with"
            raise UserError(f"{path}: not made with the palette of --colors; {hint}")
    if checkpoint.model not in NETWORKS:
        raise UserError(f"{path}: unknown network {checkpoint.model!r:.50}; the known ones are {', '.join(NETWORKS)}")
    if checkpoint.is_classifier != (checkpoint.model in CLASSIFIERS):
        fault = "has no palette" if checkpoint.is_classifier else "needs its palette; give it with --colors"
        raise UserError(f"{path}: a {checkpoint.model} {fault}")
    return checkpoint


def describe_weights(path: Path, content: object, palette: np.ndarray | None, architecture: dict) -> Checkpoint:
    """Return the bare state dict in a file's content as a Checkpoint; its shapes tell what was not given."""
    if isinstance(content, dict) and str(content.get("format")).startswith("colorization training state"):
        raise UserError(f"{path}: the training state of a run, for --resume; name its checkpoint, a .pkl file")
    weights = find_weights(content)
    if not weights:
        raise UserError(f"{path}: a PyTorch file, but neither a checkpoint of this package nor a state dict")
    if "model" not in architecture:
        raise UserError(f"{path}: a bare state dict does not record its network; name the network with --model")
    first, last = (weights.get(f"{name}.weight", torch.empty(0)).shape for name in ("downconv1.0", "finalconv"))
    if palette is not None and len(last) == 4 and last[0] != len(palette):
        raise UserError(f"{path}: a network for {last[0]} colors, but --colors has {len(palette)}; name its palette")
    told = {"num_filters": first[0], "kernel": first[2]} if len(first) == 4 else {}
    return Checkpoint(**DEFAULTS | told | architecture, palette=palette, state_dict=convert_weights(weights))


def find_weights(content: object) -> dict[str, Tensor]:
    """Return the state dict in a file's content, {} if there is none, with the names that our networks have.

    It may be in a dictionary, as Lightning saves it, and its names may have the prefix of DataParallel, torch.compile
    or a larger module.
    """
    if not isinstance(content, dict):
        return {}
    first = next((name for name in content if isinstance(name, str) and "downconv1." in name), None)
    if first is None:
        return next(filter(None, map(find_weights, content.values())), {})
    prefix = first.partition("downconv1.")[0]
    weights = {str(name).removeprefix(prefix): value for name, value in content.items() if str(name).startswith(prefix)}
    return weights if all(map(torch.is_tensor, weights.values())) else {}


def parse_checkpoint(content: dict) -> Checkpoint:
    """Return a file's content as a Checkpoint.

    Raises KeyError if an entry is missing, ValueError if one is invalid, and AttributeError if one has another type.
    """
    if content["format"] == OLD_FORMAT:
        content |= {"metrics": content["figures"], "state_dict": convert_weights(content["state_dict"])}
    if content["palette"] is not None:
        content["palette"] = check_palette(content["palette"].numpy())
    content.setdefault("working_size", WORKING_SIZE)  # earlier checkpoints do not have it
    checkpoint = Checkpoint(**{field.name: content[field.name] for field in fields(Checkpoint)})
    if not isinstance(checkpoint.model, str):
        raise ValueError("its network has no name")
    if checkpoint.model in CLASSIFIERS and not checkpoint.is_classifier:
        raise ValueError("it lacks its palette")
    return checkpoint


def check_sizes(*sizes: int) -> None:
    """Raise ValueError unless kernel, number of filters and working size are supported."""
    supported = range(1, 16, 2), range(1, 1025), range(4, 513)
    if not all(type(size) is int and size in known for size, known in zip(sizes, supported)):
        raise ValueError("its kernel, number of filters or working size is not supported")


def check_palette(palette: np.ndarray) -> np.ndarray:
    """Return a palette as (K, 3) float64. Raises ValueError if it is not one."""
    if palette.dtype.kind != "f" or palette.shape[1:] != (3,) or not 2 <= len(palette) <= 256:
        raise ValueError(f"it is {palette.dtype} of shape {palette.shape}, not 2 to 256 rows of three floats")
    palette = palette.astype(np.float64)
    if not ((palette >= 0) & (palette <= 1)).all() or len(set(map(tuple, palette.tolist()))) < len(palette):
        raise ValueError("its values are not all from 0 to 1, or a color occurs twice")  # the former also for NaN
    return palette


def convert_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict of the handout's, or of checkpoint format 1, with the names of our networks.

    The handout's decoder upsamples before batch norm, so batch norm is layer 2 of its stages, not layer 1. Its files
    are older than batch norm's counters, which load_state_dict() adds.
    """
    return {re.sub(r"^(upconv\d)\.2\.", r"\1.1.", name): value for name, value in state_dict.items()}


def check_values(state_dict: Mapping[str, Tensor]) -> None:
    """Raise ValueError if a value is not finite as float32, negative where it cannot be, or claims more than it has."""
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in state_dict.values()}
    if sum(storages.values()) < sum(value.nbytes for value in state_dict.values()):
        raise ValueError("its tensors claim to be larger than they are")
    for name, value in state_dict.items():
        nonnegative = any(part in name for part in ("running_var", "exp_avg_sq", "steps"))
        if not value.float().isfinite().all() or (nonnegative and (value < 0).any()):
            reason = "the training diverged, or half precision is too small for it"
            raise ValueError(f"{name} is not finite, or negative: {reason}")


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically. Raises UserError if that fails."""
    palette = torch.from_numpy(checkpoint.palette) if checkpoint.palette is not None else None
    state_dict = {name: value.cpu().contiguous() for name, value in checkpoint.state_dict.items()}
    write_torch_file(path, vars(checkpoint) | {"format": FORMAT, "palette": palette, "state_dict": state_dict})


def file_name(model: str, kernel: int, num_filters: int) -> str:
    """Return the default file name of such a network's checkpoint, such as deep_unet_k3_f32.pkl of a DeepUNet."""
    return f"{file_stem(model)}_k{kernel}_f{num_filters}.pkl"


def file_stem(model: str) -> str:
    """Return the first part of the names of a network's files."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", model).lower()


def pretrained_path(photographs: bool = False, **architecture: Any) -> Path:
    """Return the path of a network's shipped weights. Raises UserError if there are none.

    With `photographs`, it is the network that was trained on photographs, unless the architecture is another.
    """
    of_photographs = DEFAULTS | {"model": "DeepUNet"}
    is_default = photographs and of_photographs | architecture == of_photographs
    name = PHOTOGRAPH_WEIGHTS if is_default else file_name(**DEFAULTS | architecture)
    path = PROJECT / "weights" / name
    if not path.exists():
        shipped = ", ".join(sorted(file.name for file in path.parent.glob("*.pkl")))
        advice = "train the network, or name a file with --checkpoint"
        raise UserError(f"{path}: no such weights are shipped, only {shipped}; {advice}")
    return path
