"""The images, their gray version (the network's input), and the palette of colors that it predicts.

Conventions, those of the course: images are uint8 tensors (N, 3, 32, 32); pixel values are byte / 256; gray is
the mean of R, G and B; a pixel's label is its nearest palette color in RGB.

    python data.py --colors 24      fits a palette to all training pixels
"""

import argparse
import io
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.contrib.concurrent import thread_map

from sources.cifar10 import CLASSES, FOLDER, contains_cifar10, load_cifar10
from sources.image_files import GAMMAS, array_images, folder_photographs, random_crops, sample_photographs
from utils.checkpoint import COLORS, WORKING_SIZE, check_palette
from utils.console import UserError, run
from utils.files import PROJECT, atomic_write, check_targets, reading
from utils.flags import add_image_flags, add_number
from utils.unpickling import unpickle

STARTS = 8  # of k-means
MIN_CROPS = 2_000  # of an album's photographs in an epoch; a tenth of that to validate on
MAX_SCANNED_IMAGES = 50_000  # larger data sets are sampled before training, not read whole


@dataclass(frozen=True)
class ImageSource:
    """The images to train on and to validate on, each uint8 (N, 3, 32, 32)."""

    name: str = "cifar10"  # or "sample", a folder of photographs or of CIFAR-10, or an .npy file
    category: str = "horse"  # of CIFAR-10, or "all"
    holdout: int = 0  # training images of each class to validate on, instead of the test images
    working_size: int = WORKING_SIZE  # of photographs

    @property
    def path(self):
        """The file or folder that is read, or None."""
        if self.cifar10_folder:
            return self.cifar10_folder / FOLDER
        return None if self.name == "sample" else Path(self.name)

    @property
    def cifar10_folder(self):
        """The folder of CIFAR-10, or None for another source."""
        if self.name == "cifar10":
            return Path(os.environ.get("COLORIZATION_DATA") or PROJECT / "cifar10").expanduser()
        return Path(self.name) if self.name != "sample" and contains_cifar10(self.name) else None

    @property
    def is_album(self):
        """Whether these are photographs, a folder or the samples, which are cropped anew in every epoch."""
        return not self.cifar10_folder and (self.name == "sample" or os.path.isdir(self.name))

    def training_images(self):
        """Return the images to train on. Raises UserError."""
        images, labels = self.load(train=True)
        return hold_out(images, labels, self.holdout)[0] if self.holdout else images

    def validation_images(self):
        """Return the images to validate on: the test images, or those held out. Raises UserError."""
        images, labels = self.load(train=bool(self.holdout))
        return hold_out(images, labels, self.holdout)[1] if self.holdout else images

    def load(self, train):
        """Return the training or test images and their classes. Raises UserError."""
        if self.cifar10_folder:
            return load_cifar10(self.cifar10_folder, CLASSES if self.category == "all" else [self.category], train)
        if self.category != ImageSource.category:
            raise UserError(f"--category {self.category} has no effect with --data {self.name}; remove it")
        if Path(self.name).suffix == ".npy":
            images = array_images(self.name, train)
        elif self.is_album:
            if self.holdout:
                raise UserError(f"--holdout has no effect with --data {self.name}; remove it")
            images = self.crops(train)
        else:
            raise UserError(f"--data {self.name}: not cifar10, sample, a folder of images or an .npy file")
        return images, torch.zeros((), dtype=torch.int64).expand(len(images))

    def crops(self, train, seed=0, gammas=(1, 1)):
        """Return crops of an album's photographs, those to train on or to validate on, uint8 (N, 3, 32, 32)."""
        if self.name == "sample":
            photographs = sample_photographs(train)
        else:
            photographs = folder_photographs(self.name, train, self.working_size)
        count = max(MIN_CROPS if train else MIN_CROPS // 10, len(photographs))
        return random_crops(photographs, self.working_size, count, seed, gammas)

    def training_crops(self, seed):
        """Return new crops to train on, for one epoch, some darker and some lighter than the photographs."""
        return self.crops(True, seed, GAMMAS)

    def __str__(self):
        if self.cifar10_folder:
            return f"CIFAR-10 {self.category}"
        return "sample photographs" if self.name == "sample" else self.name


def hold_out(images, labels, count):
    """Split images into (the rest, those held out), with `count` images of every class held out.

    The seed does not matter. From more than MAX_SCANNED_IMAGES, the last `count` are held out. Raises UserError.
    """
    if count >= len(images):
        raise UserError(f"--holdout {count}: there are only {len(images):,} training images")
    if len(images) > MAX_SCANNED_IMAGES:
        return images[:-count], images[-count:]
    held = torch.zeros(len(images), dtype=torch.bool)
    for label in labels.unique():
        places = (labels == label).nonzero()[:, 0]
        if count >= len(places):
            raise UserError(f"--holdout {count}: a class has only {len(places):,} training images")
        held[places[torch.randperm(len(places), generator=torch.Generator().manual_seed(0))[:count]]] = True
    return images[~held], images[held]


def subsample(images, most=MAX_SCANNED_IMAGES):
    """Return at most `most` of the images, evenly spaced."""
    return images[:: math.ceil(len(images) / most)]


def to_rgb(images):
    """Convert uint8 images (N, 3, H, W) to float32 in [0, 1)."""
    return images.float() / 256


def to_gray(images):
    """Convert uint8 images (N, 3, H, W) to gray (N, 1, H, W), float32 in [0, 1)."""
    return images.float().mean(1, keepdim=True) / 256


class ImageDataset:
    """Images, on the device if they fit, and their targets: palette labels, or RGB if there is no palette.

    `pixels`, uint8 (N, C, H, W), are red, green, blue and, for a palette and at most MAX_SCANNED_IMAGES,
    the labels; so whatever moves pixels moves their labels along.
    """

    def __init__(self, images, palette, device):
        self.palette, self.device, self.table = palette, device, None
        self.replace(images)

    def replace(self, images):
        """Take these images in place of the earlier ones."""
        if self.palette is not None and (self.table is None or len(images) <= MAX_SCANNED_IMAGES):
            self.table = label_table(images, self.palette)  # for more images, one that has all colors stays
        if self.palette is not None and len(images) <= MAX_SCANNED_IMAGES:
            labels = torch.cat([self.targets(part) for part in images.split(4096)])
            images = torch.cat([images, labels[:, None]], 1)
        fits = self.device.type != "cuda" or images.nbytes < torch.cuda.mem_get_info(self.device)[0] / 2
        self.pixels = images.to(self.device) if fits else images

    def __len__(self):
        return len(self.pixels)

    @property
    def images(self):
        """The images without labels, uint8 (N, 3, H, W)."""
        return self.pixels[:, :3]

    def split(self, pixels):
        """Split pixels (N, C, H, W) into images (N, 3, H, W) and their targets, those of targets()."""
        images = pixels[:, :3]
        return images, pixels[:, 3] if pixels.shape[1] > 3 else self.targets(images)

    def targets(self, images):
        """Return the targets of such images: labels uint8 (N, H, W), or RGB float32 (N, 3, H, W) in [0, 1)."""
        if self.palette is None:
            return to_rgb(images)
        self.table = self.table.to(images.device)
        return self.table[pack_rgb(images)]


def pack_rgb(images):
    """Return every pixel's color code R·65536 + G·256 + B: (N, 3, H, W) -> int32 (N, H, W)."""
    red, green, blue = images.int().unbind(1)
    return (red << 16) | (green << 8) | blue


def unpack_rgb(codes):
    """Unpack color codes (M,) into colors (M, 3), float64, byte / 256."""
    return np.stack([codes >> 16, codes >> 8 & 255, codes & 255], 1) / 256


def nearest_color(colors, palette):
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


def distinct_colors(images):
    """Return the codes of the distinct colors, int64 (M,), and how often each occurs, int32 (M,)."""
    counts = torch.zeros(1 << 24, dtype=torch.int32)
    for part in images.split(4096):
        codes = pack_rgb(part).flatten().cpu()
        counts.index_add_(0, codes, torch.ones_like(codes))
    codes = counts.nonzero()[:, 0]
    return codes, counts[codes]


def label_table(images, palette):
    """Return the label of every color code, uint8 (2^24,): the index of the nearest palette color.

    Only colors that occur in `images`, uint8 (N, 3, H, W), are filled in; for over MAX_SCANNED_IMAGES, all (faster).
    """
    table = torch.zeros(1 << 24, dtype=torch.uint8)
    codes = torch.arange(1 << 24) if len(images) > MAX_SCANNED_IMAGES else distinct_colors(images)[0]
    for part in codes.split(1 << 13):  # chunks that fit into the CPU's cache
        table[part] = torch.from_numpy(nearest_color(unpack_rgb(part.numpy()), palette)[0])
    return table


def fit_palette(images, num_colors, seed=0):
    """Fit a palette to all pixels of uint8 images by k-means: ((K, 3) float64, mean distance).

    The best of STARTS random starts is kept. Colors are sorted from dark to light, by R + G + B. Raises
    UserError if the images have too few colors.
    """
    from sklearn.cluster import KMeans  # slow to import, and seldom needed
    from threadpoolctl import threadpool_limits

    codes, counts = distinct_colors(images)
    colors = unpack_rgb(codes.numpy())
    if len(colors) < num_colors:
        raise UserError(f"--colors {num_colors}: the images have only {len(colors)} different colors; ask for fewer")

    def fit(start):
        kmeans = KMeans(num_colors, random_state=start, n_init=1, max_iter=1000, tol=1e-7)
        with threadpool_limits(1, "openmp"):  # of this thread's OpenMP threads, which would sum in varying order
            return kmeans.fit(colors, sample_weight=counts.numpy())

    starts = np.random.SeedSequence(seed).generate_state(STARTS)
    settings = {"max_workers": os.cpu_count(), "desc": "k-means", "leave": False, "disable": None}
    palette = min(thread_map(fit, starts, **settings), key=lambda kmeans: kmeans.inertia_).cluster_centers_
    palette = palette[np.argsort(palette.sum(1), kind="stable")]
    return palette, np.average(nearest_color(colors, palette)[1], weights=counts.numpy())


def load_palette(path):
    """Read a palette file: (K, 3) float64, byte / 256.

    Raises UserError unless it is a plain .npy array, or the handout's [palette, distortion], pickled by Python 2.
    """
    with reading(path, "palette", "fit one with: python data.py --colors 24"):
        content = Path(path).read_bytes()
        if b"'|O'" in content[:128]:  # the header, whose line the pickle follows
            return check_palette(unpickle(io.BytesIO(content.partition(b"\n")[2])).array[0].array)
        return check_palette(np.load(io.BytesIO(content), allow_pickle=False))


def palette_path(num_colors, category):
    """Return the path of the palette with `num_colors` colors for a class of CIFAR-10."""
    suffix = "all" if category == "all" else f"cat{CLASSES.index(category)}"
    return PROJECT / "color" / f"color_kmeans{num_colors}_{suffix}.npy"


def palette_file(colors, source):
    """Return the palette file that a string names, or None if it is a number of colors to be fitted.

    A number means the shipped palette of the source's category if there is one. Raises UserError.
    """
    if not colors.isdecimal():
        return Path(colors)
    if not 2 <= int(colors) <= 256:
        raise UserError(f"--colors {colors}: 2 to 256 colors are supported")
    shipped = palette_path(int(colors), source.category)
    return shipped if source.cifar10_folder and shipped.exists() else None


def palette_for(colors, source, seed=0):
    """Return the palette (K, 3) of palette_file(), or one fitted to the training images. Raises UserError."""
    file = palette_file(colors, source)
    if file:
        return load_palette(file)
    images = subsample(source.training_images())
    print(f"fitting a palette of {colors} colors to the training images", flush=True)
    return fit_palette(images, int(colors), seed)[0]


def main(argv):
    parser = argparse.ArgumentParser(description="Fit a palette to all training pixels by k-means.")
    add_number(parser, "-c", "--colors", default=COLORS, low=2, high=256, text="number of colors", metavar="K")
    add_number(parser, "-s", "--seed", default=0, low=0, high=2**32 - 1, text="seed of k-means")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="file to write or replace (default: color/color_kmeansK_cat*.npy)"
    )
    add_image_flags(parser, ImageSource(), CLASSES)
    args = parser.parse_args(argv)

    source = ImageSource(args.data, args.category)
    if not source.cifar10_folder and not args.output:
        raise UserError(f"--data {args.data} needs --output FILE: color/ contains only palettes of CIFAR-10")
    output = args.output or palette_path(args.colors, args.category)
    check_targets([output], [source.path])
    palette, distance = fit_palette(subsample(source.training_images()), args.colors, args.seed)
    with atomic_write(output) as file:
        np.save(file, palette, allow_pickle=False)
    print(f"mean distance from a pixel to its palette color: {distance:.5f} (RGB in [0, 1))")
    print(f"saved {output}")


if __name__ == "__main__":
    run(main)
