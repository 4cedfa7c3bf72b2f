"""Images to learn from, and the palette of colors that stands for their pixels.

Conventions, those of the course: images are uint8 tensors (N, 3, 32, 32), a pixel's
value is byte / 256, its gray is the mean of R, G and B, and its label is the nearest
palette color in RGB.

    python data.py --colors 24      fits a palette to all training pixels
"""

import argparse
import hashlib
import http.client
import io
import itertools
import os
import pickle
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from cli import PROJECT, UserError, atomic_write, number, run
from distributed import local_rank0_first
from photos import folder_images

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SIZE = 32
ROWS = 10_000
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
FOLDER = "cifar-10-batches-py"
MAX_SCANNED_IMAGES = 50_000  # images, that may be read through before a run begins
TIMEOUT = 30  # seconds of silence that end a download
TRAIN_FILES = [f"data_batch_{i}" for i in range(1, 6)]
TEST_FILES = ["test_batch"]


def add_data_flags(parser):
    """Give an argument parser the flags that say which images to use."""
    parser.add_argument(
        "--data",
        default="cifar10",
        metavar="NAME|PATH",
        help="cifar10, or sample: crops of two photographs that come with scikit-learn, offline; or a folder "
        "of pictures, or a .npy file of uint8 (N, 3, 32, 32), which may outgrow memory (%(default)s)",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path(os.environ.get("COLORIZATION_DATA") or PROJECT / "cifar10"),
        metavar="DIR",
        help=f"where {FOLDER}/ or its .tar.gz lies, or is downloaded to (%(default)s)",
    )
    parser.add_argument(
        "--category",
        choices=[*CLASSES, "all"],
        default="horse",
        metavar="NAME",
        help=f"one of CIFAR-10's classes ({', '.join(CLASSES)}), or all (%(default)s)",
    )


def load_images(args, train):
    """Return the training or test images that the flags name, uint8 (N, 3, 32, 32)."""
    if args.data == "sample":
        return sample_images(train)
    if args.data == "cifar10":
        return cifar10_images(args.data_dir, CLASSES if args.category == "all" else [args.category], train)
    if Path(args.data).suffix == ".npy":
        return array_images(args.data, train)
    if not Path(args.data).is_dir():
        raise UserError(f"--data {args.data}: neither cifar10 nor sample, and no folder of pictures or .npy file")
    return folder_images(args.data, train, SIZE)


def array_images(path, train):
    """Return the images of an .npy file to train on or to validate by, uint8 (N, 3, 32, 32), left on the disk.

    The last tenth is for validation, at most 10,000 of them. The file is mapped into
    memory: what is read of it the system may drop again. Raises UserError.
    """
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)  # copy on write: torch wants it writable
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror or error})") from error
    except Exception as error:  # a broken file raises anything
        raise UserError(f"{path}: not an array of numpy's, or cut short ({error})") from error
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1:] != (3, SIZE, SIZE):
        was = f"{array.dtype} of shape {array.shape}"
        raise UserError(f"{path}: not uint8 of shape (N, 3, {SIZE}, {SIZE}) but {was}; save it so with numpy.save")
    if len(array) < 20:
        raise UserError(f"{path}: has {len(array)} images; 20 are the least to train on and to validate by")
    count = min(len(array) // 10, 10_000)
    return torch.from_numpy(array[:-count] if train else array[-count:])


def subsample(images, most=MAX_SCANNED_IMAGES):
    """Return images, or where they are more than `most`, no more of them, evenly spaced."""
    return images[:: -(-len(images) // most)]


def load_other_classes(args):
    """Return CIFAR-10's training images of all classes but the flags' own, uint8 (N, 3, 32, 32)."""
    if args.data != "cifar10" or args.category == "all":
        raise UserError("--pretrain learns from CIFAR-10's other classes: it goes with one --category alone")
    return cifar10_images(args.data_dir, [name for name in CLASSES if name != args.category], train=True)


def describe_data(args):
    """Return the name of the images that the flags ask for."""
    if args.data == "cifar10":
        return f"CIFAR-10 {args.category}"
    return "sample photographs" if args.data == "sample" else f"the pictures of {args.data}"


def to_gray(images):
    """Turn uint8 images (N, 3, H, W) into gray (N, 1, H, W), float32 in [0, 1)."""
    return images.float().mean(1, keepdim=True) / 256


class PickledArray:
    """Stands in for numpy.ndarray while unpickling, so that no file reaches numpy's own code."""

    def __init__(self, *_):
        self.state = None

    def __setstate__(self, state):
        self.state = state

    def array(self):
        """Return the array. Raises ValueError unless it is a plain one of bytes, floats or objects."""
        _, shape, dtype, fortran_order, content = self.state
        if fortran_order:
            raise ValueError("an array in column order")
        if dtype.code == "O8":
            return content
        return np.frombuffer(content, {"u1": "u1", "f8": "<f8"}[dtype.code]).reshape(shape)


class PickledDtype:
    """Stands in for numpy.dtype while unpickling: keeps the type's name alone."""

    def __init__(self, code, *_):
        self.code = code.decode() if isinstance(code, bytes) else code

    def __setstate__(self, state):
        if state[1] not in (b"|", b"<", "|", "<"):
            raise ValueError("numbers in big-endian order")


class ArrayUnpickler(pickle._Unpickler):
    """Reads pickles of plain containers and numpy arrays, as CIFAR-10 and the handout hold them.

    Nothing that a file names is ever imported or called: the four names that such
    files need mean the stand-ins above, and any other name ends the reading. It is
    the standard library's unpickler in Python, since the one in C takes 64 GB of
    memory if a file asks for it.
    """

    def find_class(self, module, name):
        stand_ins = {
            "numpy.core.multiarray._reconstruct": PickledArray,
            "numpy.core.multiarray.scalar": lambda dtype, content: np.frombuffer(content, "<f8")[0],
            "numpy.ndarray": None,
            "numpy.dtype": PickledDtype,
        }
        wanted = f"{module}.{name}"
        if wanted not in stand_ins:
            raise pickle.UnpicklingError(f"it asks for {wanted}, which such a file has no use for")
        return stand_ins[wanted]


def unpickle(file):
    """Read one Python 2 pickle of containers and arrays; strings come as bytes."""
    return ArrayUnpickler(file, encoding="bytes").load()


def read_batch(path):
    """Return the images, uint8 (10000, 3072), and labels, (10000,), of one CIFAR-10 batch file.

    Raises UserError where the file is missing or is not what the official one is.
    """
    try:
        with open(path, "rb") as file:
            batch = unpickle(file)
        images, labels = batch[b"data"].array(), batch[b"labels"]
        if images.shape != (ROWS, 3 * SIZE * SIZE) or images.dtype != np.uint8:
            raise ValueError(f"its images have the shape {images.shape}")
        if len(labels) != ROWS or not all(type(c) is int and 0 <= c < len(CLASSES) for c in labels):
            raise ValueError(f"its labels are not {ROWS} numbers from 0 to 9")
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror}); remove {path.parent} to get it anew") from error
    except Exception as error:  # a broken file raises anything, MemoryError too
        raise UserError(f"{path}: not a batch of CIFAR-10 ({error}); remove {path.parent} to get it anew") from error
    return images, np.array(labels)


def cifar10_images(data_dir, categories, train):
    """Return CIFAR-10's training or test images of the named classes, uint8 (N, 3, 32, 32)."""
    with local_rank0_first():
        folder = cifar10_folder(data_dir)
    wanted = [CLASSES.index(name) for name in categories]
    kept = []
    for name in TRAIN_FILES if train else TEST_FILES:
        images, labels = read_batch(folder / name)
        kept.append(images[np.isin(labels, wanted)])
    return torch.from_numpy(np.concatenate(kept)).view(-1, 3, SIZE, SIZE)


def cifar10_folder(data_dir):
    """Return the folder of CIFAR-10's batches, unpacking or downloading the archive if need be."""
    data_dir = Path(data_dir)
    folder, archive = data_dir / FOLDER, data_dir / f"{Path(URL).name}"
    if folder.is_dir():
        return folder
    if not archive.exists():
        try:
            download(URL, archive, SHA256)
        except (OSError, http.client.HTTPException, UserError) as error:
            reason = getattr(error, "reason", error)
            raise UserError(
                f"CIFAR-10 is not in {data_dir} and cannot be downloaded ({reason}); put {URL} into that "
                f"folder, or name another with --data-dir, or use --data sample, which needs no download"
            ) from error
    unpack(archive, folder, SHA256)
    return folder


class HttpsRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https alone."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if not newurl.startswith("https:"):
            raise UserError(f"{req.full_url} leads to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(url, path, sha256):
    """Fetch `url` into `path`, which appears only when its content has the right SHA-256.

    Raises UserError, OSError (URLError is one) or HTTPException.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "colorization"})
    with (
        urllib.request.build_opener(HttpsRedirects).open(request, timeout=TIMEOUT) as response,
        atomic_write(path) as file,
    ):
        digest, total = hashlib.sha256(), int(response.headers.get("Content-Length") or 0)
        with tqdm(total=total or None, unit="B", unit_scale=True, desc=Path(path).name, leave=False) as bar:
            while chunk := next_chunk(response):
                digest.update(chunk)
                file.write(chunk)
                bar.update(len(chunk))
        if digest.hexdigest() != sha256:
            raise UserError(f"what {url} sent is broken or cut short: its SHA-256 is not {sha256[:12]}…")


def next_chunk(response):
    """Read on in a download; raises UserError where the connection breaks or falls silent."""
    try:
        return response.read(1 << 18)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"the connection broke: {error}") from error


def unpack(archive, folder, sha256):
    """Unpack the batches of CIFAR-10's archive into `folder`, which appears only when complete.

    Only the files that are needed are read, by name, and written under names of our
    own, so nothing else in an archive can matter. Raises UserError.
    """
    try:
        with open(archive, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise UserError(
                    f"{archive}: broken or cut short (its SHA-256 is not {sha256[:12]}…); remove it to get it anew"
                )
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpacking-") as temporary:
            part = Path(temporary) / FOLDER
            part.mkdir()
            with tarfile.open(archive) as tar:
                for name in TRAIN_FILES + TEST_FILES:
                    member = tar.getmember(f"{FOLDER}/{name}")
                    if not member.isreg() or member.size > 40_000_000:
                        raise UserError(
                            f"{archive}: {member.name} is not a batch of CIFAR-10; remove the archive to get it anew"
                        )
                    with tar.extractfile(member) as source, open(part / name, "wb") as target:
                        shutil.copyfileobj(source, target)
            os.replace(part, folder)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{archive}: cannot unpack it ({error.strerror or error})") from error
    except Exception as error:  # a broken archive raises anything
        raise UserError(f"{archive}: not the archive of CIFAR-10 ({error}); remove it to get it anew") from error


def sample_images(train):
    """Return 32x32 crops of scikit-learn's two photographs at five scales, uint8 (N, 3, 32, 32).

    Validation crops come from a quarter right of the middle of each photograph, training crops
    from both sides of it, cut apart before scaling: no pixel is shared.
    """
    from sklearn.datasets import load_sample_images  # slow to import, and seldom needed

    crops = []
    for photo in load_sample_images().images:  # (427, 640, 3) uint8
        parts = (photo[:, :320], photo[:, 480:]) if train else (photo[:, 320:480],)
        for part, window in itertools.product(parts, (48, 64, 80, 96, 128)):  # pixels that a crop covers
            scale = SIZE / window
            size = round(part.shape[1] * scale), round(part.shape[0] * scale)
            small = np.asarray(Image.fromarray(part).resize(size, Image.Resampling.LANCZOS))
            step = (14 if train else 32) * scale
            for top in np.arange(0, size[1] - SIZE + 1, step).astype(int):
                for left in np.arange(0, size[0] - SIZE + 1, step).astype(int):
                    crops.append(small[top : top + SIZE, left : left + SIZE])
    order = np.random.default_rng(0).permutation(len(crops))  # the first ten shall differ
    return torch.from_numpy(np.stack(crops)[order]).permute(0, 3, 1, 2).contiguous()


def pack_rgb(images):
    """Return each pixel's color as one number R·65536 + G·256 + B: (N, 3, H, W) -> int32 (N, H, W)."""
    red, green, blue = images.int().unbind(1)
    return (red << 16) | (green << 8) | blue


def unpack_rgb(codes):
    """Turn color numbers (M,) back into colors (M, 3), float64, byte / 256."""
    return np.stack([codes >> 16, codes >> 8 & 255, codes & 255], 1) / 256


def nearest_color(colors, palette):
    """Return each color's nearest palette color and its distance: uint8 (M,), float64 (M,).

    Of equally near palette colors the lower index wins. Exact, in float64.
    """
    labels, distances = np.zeros(len(colors), np.uint8), np.full(len(colors), np.inf)
    for start in range(0, len(colors), 1 << 13):  # what stays in the processor's cache
        part = slice(start, start + (1 << 13))
        red, green, blue = np.ascontiguousarray(colors[part].T)
        nearest, least = labels[part], distances[part]
        for label, (r, g, b) in enumerate(palette):
            square = (red - r) ** 2 + (green - g) ** 2 + (blue - b) ** 2
            np.copyto(nearest, label, where=square < least)
            np.minimum(least, square, out=least)
    return labels, np.sqrt(distances)


def distinct_colors(images):
    """Return the colors that occur, (M, 3) float64 byte / 256, their numbers (M,) and their counts (M,)."""
    counts = torch.zeros(1 << 24, dtype=torch.int32)
    for part in images.split(4096):
        codes = pack_rgb(part).flatten()
        counts.index_add_(0, codes, torch.ones_like(codes))
    codes = counts.nonzero()[:, 0]
    return unpack_rgb(codes.numpy()), codes, counts[codes]


class Quantizer:
    """Finds the nearest palette color of every pixel, by way of a table of all 2^24 colors.

    Only the colors that occur in `images`, uint8 (N, 3, H, W), are looked up, each once;
    of very many images, whose reading would take longer, all colors are. The table
    follows the images to their device.
    """

    def __init__(self, images, palette):
        table = torch.zeros(1 << 24, dtype=torch.uint8)
        if len(images) > MAX_SCANNED_IMAGES:
            table.fill_(1)
        else:
            for part in images.split(4096):
                table[pack_rgb(part).cpu()] = 1
        for codes in table.nonzero()[:, 0].split(1 << 20):
            table[codes] = torch.from_numpy(nearest_color(unpack_rgb(codes.numpy()), palette)[0])
        self.table = table

    def __call__(self, images):
        """Return the label of every pixel: uint8 (N, 3, H, W) -> uint8 (N, H, W)."""
        self.table = self.table.to(images.device)
        return self.table[pack_rgb(images)]


def fit_palette(images, num_colors, seed=0):
    """Fit a palette to all pixels of uint8 images by k-means: ((K, 3) float64, mean distance).

    Colors stand from dark to light, by R + G + B.
    """
    from sklearn.cluster import KMeans  # slow to import, and seldom needed
    from threadpoolctl import threadpool_limits

    colors, _, counts = distinct_colors(images)
    counts = counts.numpy()
    if len(colors) < num_colors:
        raise UserError(f"--colors {num_colors}: the images have only {len(colors)} different colors; ask for fewer")
    with threadpool_limits(1, "openmp"):  # threads add up in any order, and rounding would differ
        palette = (
            KMeans(num_colors, random_state=seed, n_init=1, max_iter=300, tol=1e-5)
            .fit(colors, sample_weight=counts)
            .cluster_centers_
        )
    palette = palette[np.argsort(palette.sum(1), kind="stable")]
    return palette, np.average(nearest_color(colors, palette)[1], weights=counts)


def load_palette(path):
    """Read a palette file: (K, 3) float64, byte / 256.

    Takes a plain .npy array and the handout's, an object array pickled by Python 2
    that holds [palette, distortion]. Raises UserError for anything else.
    """
    try:
        content = Path(path).read_bytes()
        if b"'|O'" in content[:128]:
            stream = io.BytesIO(content)
            np.lib.format.read_magic(stream)
            np.lib.format.read_array_header_1_0(stream)
            palette = unpickle(stream).array()[0].array()
        else:
            palette = np.load(io.BytesIO(content), allow_pickle=False)
        return check_palette(palette)
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the palette ({error.strerror}); fit one with: python data.py --colors 24"
        ) from error
    except Exception as error:  # a broken file raises anything, MemoryError too
        raise UserError(f"{path}: not a palette ({error}); fit one with: python data.py --colors 24") from error


def check_palette(palette):
    """Return the palette as (K, 3) float64. Raises ValueError where it is not one."""
    if not isinstance(palette, np.ndarray) or palette.dtype.kind != "f" or palette.ndim != 2 or palette.shape[1] != 3:
        raise ValueError("it is no array of floats with three columns")
    palette = palette.astype(np.float64)
    if not 2 <= len(palette) <= 256:
        raise ValueError(f"it has {len(palette)} colors; 2 to 256 are possible")
    if not ((palette >= 0) & (palette <= 1)).all():  # false for not-a-number, too
        raise ValueError("its values are not all from 0 to 1")
    if len(np.unique(palette, axis=0)) < len(palette):
        raise ValueError("a color occurs twice")
    return palette


def palette_path(num_colors, category):
    """Return where the palette of so many colors for a class of CIFAR-10 is kept."""
    suffix = "all" if category == "all" else f"cat{CLASSES.index(category)}"
    return PROJECT / "color" / f"color_kmeans{num_colors}_{suffix}.npy"


def palette_for(args):
    """Return the palette that the flags ask for, (K, 3).

    --colors FILE reads that file. --colors K takes the shipped palette, and where
    there is none for these images fits one to the training images.
    """
    colors = args.colors or "24"
    if not colors.isdecimal():
        return load_palette(colors)
    if not 2 <= int(colors) <= 256:
        raise UserError(f"--colors {colors}: 2 to 256 colors are possible")
    shipped = palette_path(int(colors), args.category)
    if args.data == "cifar10" and shipped.exists():
        return load_palette(shipped)
    print(f"fitting a palette of {colors} colors to the training images", flush=True)
    return fit_palette(subsample(load_images(args, train=True)), int(colors), getattr(args, "seed", 0))[0]


def main(argv):
    parser = argparse.ArgumentParser(description="Fit a palette to all training pixels by k-means.")
    parser.add_argument(
        "-c",
        "--colors",
        type=number(int, 2, 256, "a number of colors"),
        default=24,
        metavar="K",
        help="how many colors (%(default)s)",
    )
    parser.add_argument("-s", "--seed", type=int, default=0, help="seed of k-means (%(default)s)")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="file to write (color/color_kmeansK_catC.npy, C being the class's number)",
    )
    add_data_flags(parser)
    args = parser.parse_args(argv)
    output = args.output or palette_path(args.colors, args.category)
    if args.data != "cifar10" and not args.output:
        raise UserError(f"--data {args.data} needs --output FILE: the palettes in color/ are those of CIFAR-10")

    palette, distance = fit_palette(subsample(load_images(args, train=True)), args.colors, args.seed)
    with atomic_write(output) as file:
        np.save(file, palette, allow_pickle=False)
    print(f"mean distance of a pixel to its color: {distance:.5f} (RGB, byte / 256)")
    print(f"saved {output}")


if __name__ == "__main__":
    run(main)
