"""Photographs and arrays as images to learn from."""

import io
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import smooth_images
from helpers import save_image
from PIL import Image

import colorization
from sources import image_files
from utils.console import UserError


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((30, 3, 32, 32)), "float64 of shape (30, 3, 32, 32)"),
        (np.zeros((30, 32, 32, 3), np.uint8), "uint8 of shape (30, 32, 32, 3)"),
        (np.zeros((19, 3, 32, 32), np.uint8), "uint8 of shape (19, 3, 32, 32)"),
        (np.zeros(3, object), "not a NumPy array"),
        (None, "cannot read the NumPy array"),
        ("cut", "a corrupt one"),
    ],
)
def test_array_files_that_will_not_do(tmp_path, fails, array, said):
    path = tmp_path / "mine.npy"
    if isinstance(array, np.ndarray):
        np.save(path, array)
    elif array == "cut":
        np.save(path, smooth_images(30))
        path.write_bytes(path.read_bytes()[:-1000])
    error = fails(colorization.main, "--data", path, "--out-dir", tmp_path)
    assert said in error and str(path) in error


def test_sample_crops_share_no_pixel(monkeypatch):
    photo = np.zeros((427, 640, 3), np.uint8)
    photo[:, 320:480] = 255
    monkeypatch.setattr("sklearn.datasets.load_sample_images", lambda: SimpleNamespace(images=[photo]))
    assert all((photograph == 0).all() for photograph in image_files.sample_photographs.__wrapped__(train=True))
    assert all((photograph == 255).all() for photograph in image_files.sample_photographs.__wrapped__(train=False))


def test_files_that_start_a_program_are_not_images(tmp_path, monkeypatch):
    path = tmp_path / "picture.eps"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(UserError, match="cannot identify image file"):
        image_files.read_image(path)
    assert image_files.list_image_files(tmp_path) == []
    path.rename(tmp_path / "picture.png")
    with pytest.raises(UserError, match="cannot identify image file"):
        image_files.read_image(tmp_path / "picture.png")
    Image.init()
    assert set(image_files.FORMATS) <= set(Image.OPEN)


def test_large_images_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    """Else several threads would fill the memory together."""
    monkeypatch.setattr(image_files, "MAX_PIXELS", 4000)
    transpose, decoding, most = image_files.ImageOps.exif_transpose, [], []

    def watched(image):
        decoding.append(image)
        most.append(len(decoding))
        time.sleep(0.02)
        decoding.pop()
        return transpose(image)

    monkeypatch.setattr(image_files.ImageOps, "exif_transpose", watched)
    for number in range(4):
        save_image(tmp_path / f"{number}.png")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(image_files.read_image, sorted(tmp_path.iterdir())))
    assert most == [1, 1, 1, 1]


def test_a_jpeg_of_thousands_of_scans_is_refused(tmp_path):
    """Each takes as long as decoding the whole image, and ten bytes."""
    stream = io.BytesIO()
    Image.new("L", (64, 64), 128).save(stream, "JPEG", progressive=True)
    *parts, last = stream.getvalue().split(b"\xff\xda")
    for count, name in ((10, "few"), (5000, "many")):
        scans = [*parts, *[min(parts[2:], key=len)] * count, last]
        (tmp_path / f"{name}.jpg").write_bytes(b"\xff\xda".join(scans))
    Image.new("L", (64, 64), 128).save(tmp_path / "motion.jpg")
    with open(tmp_path / "motion.jpg", "ab") as file:
        file.write(b"\xff\xda" * 200)  # as in the film that some telephones append
    assert image_files.read_image(tmp_path / "motion.jpg")[0].size == (64, 64)
    assert image_files.read_image(tmp_path / "few.jpg")[0].size == (64, 64)
    with pytest.raises(
        UserError, match=r"many\.jpg: not a picture, or a corrupt one .it has more than 100 progressive"
    ):
        image_files.read_image(tmp_path / "many.jpg")


def test_an_archive_of_arrays_is_no_array(tmp_path, fails):
    with open(tmp_path / "mine.npy", "wb") as file:
        np.savez(file, images=smooth_images(30))
    assert "NpzFile" in fails(colorization.main, "--data", tmp_path / "mine.npy", "--out-dir", tmp_path)


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    Image.new("RGB", (200, 100)).save(tmp_path / "large.png")
    monkeypatch.setattr(image_files, "MAX_PIXELS", 19_000)
    with pytest.raises(UserError, match=r"large\.png: .*it has 20,000 pixels.; .* up to 19,000 pixels"):
        image_files.read_image(tmp_path / "large.png")


def test_an_albums_photographs_are_split_the_same_way_every_time(photo_folder):
    train, valid = (image_files.folder_photographs.__wrapped__(photo_folder, part, 64) for part in (True, False))
    assert (len(train), len(valid)) == (8, 2) and train[0].shape[2] == 3 and train[0].dtype == np.uint8
    again = image_files.folder_photographs.__wrapped__(photo_folder, False, 64)
    assert all(np.array_equal(a, b) for a, b in zip(valid, again))
    assert not {x.tobytes() for x in train} & {x.tobytes() for x in valid}


def test_crops_show_every_photograph_as_often_at_several_scales(monkeypatch):
    """A photograph whose red, green and blue are its number, the row and the column says where a crop is from."""
    rows, columns = np.mgrid[:80, :120].astype(np.uint8)
    photographs = [np.stack([np.full_like(rows, number), rows, columns], 2) for number in range(5)]
    crops = image_files.random_crops(photographs, 64, 20, seed=1)
    assert crops.shape == (20, 3, 32, 32) and crops.dtype == torch.uint8
    assert crops[:, 0].amax((1, 2)).bincount().tolist() == [4] * 5
    widths = (crops[:, 2].int()[:, :, -1] - crops[:, 2].int()[:, :, 0]).float().mean(1)
    assert widths.min() > 24 and widths.max() < 79 and widths.max() > 1.5 * widths.min()  # 30 to 80 pixels
    assert torch.equal(crops, image_files.random_crops(photographs, 64, 20, seed=1))
    assert not torch.equal(crops, image_files.random_crops(photographs, 64, 20, seed=2))
    small = image_files.random_crops([np.full((5, 9, 3), 7, np.uint8)], 64, 2, seed=0)  # smaller than a crop
    assert (small == 7).all()


def test_many_photographs_are_kept_smaller(photo_folder, monkeypatch):
    monkeypatch.setattr(image_files, "KEPT_BYTES", 11 * 3 * 40**2)
    photographs = image_files.folder_photographs.__wrapped__(photo_folder, True, 64)
    assert all(max(photograph.shape) == 40 for photograph in photographs)


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(tmp_path):
    image = Image.fromarray(smooth_images(1)[0].transpose(1, 2, 0)).resize((1600, 1200))
    image.save(tmp_path / "large.jpg")
    small, whole = (
        image_files.read_image(tmp_path / "large.jpg", 128)[0],
        image_files.read_image(tmp_path / "large.jpg")[0],
    )
    assert small.size == (200, 150) and whole.size == (1600, 1200)
    assert abs(np.asarray(small).astype(int) - np.asarray(whole.reduce(8))).mean() < 2
    image.save(tmp_path / "large.jpg", progressive=True)  # takes as much memory at any size, so it waits for the lock
    assert image_files.read_image(tmp_path / "large.jpg", 128)[0].size == (1600, 1200)


def test_folders_that_will_not_do(tmp_path, fails):
    assert "a folder of images or an .npy file" in fails(
        colorization.main, "--data", tmp_path / "none", "--colors", "4"
    )
    assert "too few readable images" in fails(colorization.main, "--data", tmp_path, "--colors", "4")
    for number in range(2):
        Image.new("RGB", (40, 30), (9 * number, 90, 200)).save(tmp_path / f"{number}.png")
    assert "too few readable images to validate on" in fails(colorization.main, "--data", tmp_path, "--colors", "2")
