"""The images, their gray version (the network's input), and the palette of colors that it predicts.

Conventions, those of the course: images are uint8 tensors (N, 3, H, W), 32x32 in CIFAR-10; pixel values are byte / 256;
gray is the mean of R, G and B; a pixel's label is its nearest palette color in RGB.

    python data.py --colors 12 --output palette.npy      fits a palette to all training pixels
"""

import hashlib
import io
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # which python -I leaves out

from sources.cifar10 import CLASSES, FOLDER, SIZE, contains_cifar10, load_cifar10
from sources.image_files import folder_photographs, random_crops, sample_photographs
from utils.checkpoint import COLORS, WORKING_SIZE, check_palette
from utils.console import UserError, run_script
from utils.files import PROJECT, atomic_write, check_targets, report_read_errors
from utils.flags import Parser, add_image_flags, add_number
from utils.unpickling import RestrictedUnpickler

STARTS = 8  # random starts of k-means
MIN_CROPS = 2_000  # crops per epoch of an album, at least; a tenth of that for validation


@dataclass(frozen=True)
class ImageSource:
    """A source of images to train on and to validate on, each uint8 (N, 3, H, W).

    Squares of `crop_size` are cut from copies of photographs, up to 1.5 times `working_size` on the longer side.
    """

    location: str = "cifar10"  # or "sample", or a folder of photographs or of CIFAR-10
    category: str = "horse"  # of CIFAR-10, or "all"
    holdout: int = 0  # training images of each class to validate on, instead of the test images
    working_size: int = WORKING_SIZE  # of photographs
    crop_size: int = SIZE  # height and width of the crops that are taken from them

    @property
    def cifar10_folder(self) -> Path | None:
        """The folder of CIFAR-10, or None for another source."""
        default = Path(os.environ.get("COLORIZATION_DATA") or PROJECT / "cifar10").expanduser()
        folder = default if self.location == "cifar10" else Path(self.location)
        folder = folder.parent if folder.name == FOLDER and not contains_cifar10(folder) else folder
        is_album = self.location == "sample" or (self.location != "cifar10" and not contains_cifar10(folder))
        return None if is_album else folder

    @property
    def is_album(self) -> bool:
        """Whether these are photographs, which are cropped anew in every epoch."""
        return not self.cifar10_folder

    @property
    def path(self) -> Path | None:
        """The folder that is read, or None."""
        if self.cifar10_folder:
            return self.cifar10_folder / FOLDER
        return None if self.location == "sample" else Path(self.location)

    def training_set(self, palette: np.ndarray | None, device: torch.device) -> "ImageDataset":
        """Return the data set to train on. Raises UserError."""
        dataset = ImageDataset(self.training_images(), palette, device)
        if self.is_album:
            settings = self.crop_size, self.working_size, len(dataset)
            dataset.crops = partial(random_crops, self.photographs(train=True), *settings, augmented=True)
        return dataset

    def validation_set(self, palette: np.ndarray | None, device: torch.device) -> "ImageDataset":
        """Return the data set to validate on. Raises UserError."""
        return ImageDataset(self.validation_images(), palette, device)

    def training_images(self) -> Tensor:
        """Return the images to train on. Raises UserError."""
        return self.load(train=True)

    def validation_images(self) -> Tensor:
        """Return the images to validate on: the test images, or those held out. Raises UserError."""
        return self.load(train=False)

    def load(self, train: bool) -> Tensor:
        """Return the images to train or to validate on. Raises UserError."""
        if self.cifar10_folder:
            categories = CLASSES if self.category == "all" else [self.category]
            images, labels = load_cifar10(self.cifar10_folder, categories, train or self.holdout > 0)
            return hold_out(images, labels, self.holdout)[0 if train else 1] if self.holdout else images
        for flag, is_given in (("--category", self.category != ImageSource.category), ("--holdout", self.holdout)):
            if is_given:
                raise UserError(f"{flag} has no effect with --data {self.location}; remove it")
        photographs = self.photographs(train)
        count = max(MIN_CROPS if train else MIN_CROPS // 10, len(photographs))
        return random_crops(photographs, self.crop_size, self.working_size, count, seed=0)

    def photographs(self, train: bool) -> list[np.ndarray]:
        """Return an album's photographs to train on or to validate on, uint8 (h, w, 3). Raises UserError."""
        if self.location == "sample":
            return sample_photographs(train)
        if not os.path.isdir(self.location):
            raise UserError(f"--data {self.location}: not cifar10, sample or a folder of images")
        return folder_photographs(self.location, train, self.working_size)

    def __str__(self) -> str:
        if self.cifar10_folder:
            return f"CIFAR-10 {self.category}"
        return "sample photographs" if self.location == "sample" else str(Path(self.location))


def hold_out(images: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Split images into (the rest, those held out), with `count` images of every class held out.

    The split does not depend on --seed. Raises UserError if a class has no more images.
    """
    held = torch.zeros(len(images), dtype=torch.bool)
    for label in labels.unique():
        places = (labels == label).nonzero()[:, 0]
        if count >= len(places):
            raise UserError(f"--holdout {count}: there are only {len(places):,} training images of each class")
        held[places[torch.randperm(len(places), generator=torch.Generator().manual_seed(0))[:count]]] = True
    return images[~held], images[held]


def to_rgb(images: Tensor) -> Tensor:
    """Convert uint8 images (N, 3, H, W) to float32 in [0, 1)."""
    return images.float() / 256


def to_gray(images: Tensor) -> Tensor:
    """Convert uint8 images (N, 3, H, W) to gray (N, 1, H, W), float32 in [0, 1)."""
    return images.float().mean(1, keepdim=True) / 256


class ImageDataset:
    """Images on the device, and the targets of any of them: labels of palette colors, or RGB without a palette.

    `images` are uint8 (N, 3, H, W). `label_table` has the label of every color that occurs in them.
    """

    crops: Callable[[int], Tensor] | None = None  # of an album: from a seed to other images

    def __init__(self, images: Tensor, palette: np.ndarray | None, device: torch.device):
        self.palette, self.device = palette, device
        self.set_images(images)

    def set_images(self, images: Tensor) -> None:
        """Take these images in place of the earlier ones."""
        if self.palette is not None:
            self.label_table = label_table(images, self.palette).to(self.device)
        self.images = images.to(self.device)

    def start_epoch(self, seed: int) -> None:
        """Crop the photographs of an album anew; other images are the same in all epochs."""
        if self.crops:
            self.set_images(self.crops(seed))

    def __len__(self) -> int:
        return len(self.images)

    def sha256(self) -> str:
        """Return a checksum of the images."""
        return hashlib.sha256(self.images.cpu().numpy().data).hexdigest()

    @property
    def is_classification(self) -> bool:
        """Whether targets are labels of palette colors, not RGB."""
        return self.palette is not None

    def targets(self, images: Tensor) -> Tensor:
        """Return the targets of images on the device: labels uint8 (N, H, W), or RGB float32 (N, 3, H, W) in [0, 1)."""
        return self.label_table[pack_rgb(images)] if self.is_classification else to_rgb(images)


def pack_rgb(images: Tensor) -> Tensor:
    """Return every pixel's color code R·65536 + G·256 + B: (N, 3, H, W) -> int32 (N, H, W)."""
    red, green, blue = images.int().unbind(1)
    return (red << 16) | (green << 8) | blue


def unpack_rgb(codes: np.ndarray) -> np.ndarray:
    """Unpack color codes (M,) into colors (M, 3), float64, byte / 256."""
    return np.stack([codes >> 16, codes >> 8 & 255, codes & 255], 1) / 256


def nearest_color(colors: np.ndarray, palette: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each color's nearest palette color and its distance: uint8 (M,), float64 (M,).

    Ties go to the lower index. Exact, in float64; scipy.cluster.vq.vq returns the same, but takes 0.2 s to import.
    """
    labels, least = np.zeros(len(colors), np.uint8), np.full(len(colors), np.inf)
    red, green, blue = np.ascontiguousarray(colors.T)
    for label, (r, g, b) in enumerate(palette):
        square = (red - r) ** 2 + (green - g) ** 2 + (blue - b) ** 2
        np.copyto(labels, label, where=square < least)
        np.minimum(least, square, out=least)
    return labels, np.sqrt(least)


def label_table(images: Tensor, palette: np.ndarray) -> Tensor:
    """Return the label of every color code, uint8 (2^24,): the index of the nearest palette color.

    Only colors that occur in `images`, uint8 (N, 3, H, W), are filled in; others are 255, an error in the loss if the
    palette has fewer colors.
    """
    occurs = torch.zeros(1 << 24, dtype=torch.bool)
    for part in images.split(4096):
        occurs[pack_rgb(part).cpu()] = True
    table = torch.full((1 << 24,), 255, dtype=torch.uint8)
    for codes in occurs.nonzero()[:, 0].split(1 << 13):  # parts that fit into the CPU's cache
        table[codes] = torch.from_numpy(nearest_color(unpack_rgb(codes.numpy()), palette)[0])
    return table


def fit_palette(images: Tensor, num_colors: int, seed: int = 0, chroma: bool = False) -> tuple[np.ndarray, float]:
    """Fit a palette to all pixels of uint8 images by k-means: ((K, 3) float64, mean distance).

    The best of STARTS random starts is kept. Colors are sorted from dark to light, by R + G + B. With `chroma`, the
    gray of every pixel is first made 1/2, and so is that of every color: nearest is then what has the nearest chroma.
    Raises UserError if the images have too few colors.
    """
    from sklearn.cluster import KMeans  # slow to import, and seldom needed
    from threadpoolctl import threadpool_limits

    counts = torch.zeros(1 << 24, dtype=torch.int64)
    for part in images.split(8192):
        if chroma:
            part = (part - part.float().mean(1, keepdim=True) + 128).round().clamp(0, 255).byte()
        counts += torch.bincount(pack_rgb(part).flatten(), minlength=1 << 24)
    codes = counts.nonzero()[:, 0]
    counts = counts[codes]
    colors = unpack_rgb(codes.numpy())
    if len(colors) < num_colors:
        found = f"{len(colors)} different {'chromas' if chroma else 'colors'}"
        raise UserError(f"--colors {num_colors}: the images have only {found}; ask for fewer, or name other images")
    kmeans = KMeans(num_colors, random_state=seed, n_init=STARTS, max_iter=1000, tol=1e-7)
    with threadpool_limits(1, "openmp"):  # several threads sum in varying order, and so give varying palettes
        palette = kmeans.fit(colors, sample_weight=counts.numpy()).cluster_centers_
    if chroma:
        palette = (palette + 0.5 - palette.mean(1, keepdims=True)).clip(0, 1)
    palette = palette[np.argsort(palette.sum(1), kind="stable")]
    return palette, np.average(nearest_color(colors, palette)[1], weights=counts.numpy())


def load_palette(path: Path) -> np.ndarray:
    """Read a palette file: (K, 3) float64, byte / 256.

    Raises UserError unless it is a plain .npy array, or the handout's [palette, distortion], pickled by Python 2.
    """
    advice = "fit one with: python data.py --colors 24 --output palette.npy"
    with report_read_errors(path, "palette", advice, most=1 << 20):
        content = Path(path).read_bytes()
        if not content.startswith(b"\x93NUMPY"):
            raise ValueError("it is not a .npy file")
        if b"'|O'" in content[:128]:  # the header, whose line the pickle follows
            pickled = io.BytesIO(content.partition(b"\n")[2])
            return check_palette(RestrictedUnpickler(pickled).load().array[0].array)
        return check_palette(np.load(io.BytesIO(content), allow_pickle=False))


def palette_path(num_colors: int, category: str, chroma: bool = False) -> Path:
    """Return the path of the palette with `num_colors` colors, or chromas, for a class of CIFAR-10."""
    suffix = "all" if category == "all" else f"cat{CLASSES.index(category)}"
    return PROJECT / "color" / f"color_kmeans{num_colors}_{suffix}{'_chroma' if chroma else ''}.npy"


def palette_file(colors: str | None, source: ImageSource) -> Path | None:
    """Return the palette file that a string names, or None if there is none, as for a number of colors to be fitted.

    A number means the shipped palette of the source's category if there is one. Raises UserError.
    """
    if colors is None or not colors.isdecimal():
        return Path(colors) if colors else None
    if len(colors) > 3 or not 2 <= int(colors) <= 256:
        raise UserError(f"--colors {colors:.20}: 2 to 256 colors are supported")
    shipped = palette_path(int(colors), source.category)
    return shipped if source.cifar10_folder and shipped.exists() else None


def palette_for(colors: str, source: ImageSource, seed: int = 0) -> np.ndarray:
    """Return the palette (K, 3) of palette_file(), or one fitted to the training images. Raises UserError."""
    file = palette_file(colors, source)
    if file:
        return load_palette(file)
    images = source.training_images()
    print(f"fitting a palette of {colors} colors to the training images", flush=True)
    return fit_palette(images, int(colors), seed)[0]


def main(argv: list[str]) -> None:
    parser = Parser("Fit a palette to all training pixels by k-means.")
    text = "number of colors"
    add_number(parser, "-c", "--colors", "--colours", default=COLORS, low=2, high=256, help=text, metavar="K")
    add_number(parser, "-s", "--seed", default=0, low=0, high=2**32 - 1, help="seed of k-means")
    text = "cluster by chroma only, ignoring the gray"
    parser.add_argument("--chroma", action="store_true", help=text)
    text = "file to write or replace (default: a new one in color/, such as color_kmeans12_cat7.npy)"
    parser.add_argument("--output", type=Path, metavar="FILE", help=text)
    add_image_flags(parser, asdict(ImageSource()), CLASSES)
    args = parser.parse_args(argv)

    source = ImageSource(args.data, args.category)
    if not source.cifar10_folder and not args.output:
        raise UserError(f"--data {args.data} needs --output FILE: color/ contains only palettes of CIFAR-10")
    output = args.output or palette_path(args.colors, args.category, args.chroma)
    if not args.output and output.exists():
        raise UserError(f"{output}: already exists; to replace it, name it with --output")
    check_targets([output], [source.path])
    palette, distance = fit_palette(source.training_images(), args.colors, args.seed, args.chroma)
    with atomic_write(output) as file:
        np.save(file, palette, allow_pickle=False)
    print(f"mean distance from a pixel to its palette color: {distance:.5f} (RGB in [0, 1))")
    print(f"saved {output}")


if __name__ == "__main__":
    run_script(main)
