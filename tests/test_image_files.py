"""Photographs to learn from."""

import io
import math
import struct
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import smooth_images
from helpers import save_image
from PIL import Image, ImageCms, PngImagePlugin

import colorization
from sources import image_files
from utils.console import UserError


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
    assert image_files.read_image(tmp_path / "motion.jpg").size == (64, 64)
    assert image_files.read_image(tmp_path / "few.jpg").size == (64, 64)
    with pytest.raises(
        UserError, match=r"many\.jpg: not a picture, or a corrupt one .it has more than 100 progressive"
    ):
        image_files.read_image(tmp_path / "many.jpg")


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    Image.new("RGB", (200, 100)).save(tmp_path / "large.png")
    monkeypatch.setattr(image_files, "MAX_PIXELS", 19_000)
    with pytest.raises(UserError, match=r"large\.png: .*it has 200 x 100 pixels.; .* up to 19,000 pixels"):
        image_files.read_image(tmp_path / "large.png")


def test_an_albums_photographs_are_split_the_same_way_every_time(photo_folder):
    train, valid = (image_files.folder_photographs.__wrapped__(photo_folder, part, 64) for part in (True, False))
    assert (len(train), len(valid)) == (9, 1) and train[0].shape[2] == 3 and train[0].dtype == np.uint8
    again = image_files.folder_photographs.__wrapped__(photo_folder, False, 64)
    assert all(np.array_equal(a, b) for a, b in zip(valid, again))
    assert not {x.tobytes() for x in train} & {x.tobytes() for x in valid}


def test_crops_show_every_photograph_as_often_at_several_scales(monkeypatch):
    """A photograph whose red, green and blue are its number, the row and the column says where a crop is from."""
    rows, columns = np.mgrid[:80, :120].astype(np.uint8)
    photographs = [np.stack([np.full_like(rows, number), rows, columns], 2) for number in range(5)]
    crops = image_files.random_crops(photographs, 32, 64, 20, seed=1)
    assert crops.shape == (20, 3, 32, 32) and crops.dtype == torch.uint8
    assert crops[:, 0].amax((1, 2)).bincount().tolist() == [4] * 5
    widths = (crops[:, 2].int()[:, :, -1] - crops[:, 2].int()[:, :, 0]).float().mean(1)
    assert widths.min() > 35 and widths.max() < 80 and widths.max() > 1.5 * widths.min()  # 40 to 80 pixels
    assert torch.equal(crops, image_files.random_crops(photographs, 32, 64, 20, seed=1))
    assert not torch.equal(crops, image_files.random_crops(photographs, 32, 64, 20, seed=2))
    details = image_files.random_crops(photographs, 32, 10_000, 20, seed=1)[:, 2].int()
    assert 19 < (details[:, :, -1] - details[:, :, 0]).float().mean(1).min() < 22  # enlarged 1.5 times: 21 pixels
    small = image_files.random_crops([np.full((5, 9, 3), 7, np.uint8)], 32, 64, 2, seed=0)  # smaller than a crop
    assert (small == 7).all()


def test_crops_are_of_copies_of_all_sizes_alike():
    """Here, drawn from 24 to 192 pixels; a photograph's red is the column, so that a crop's width can be read off."""
    photograph = np.broadcast_to(np.arange(250, dtype=np.uint8)[None, :, None], (200, 250, 3)).copy()
    crops = image_files.random_crops([photograph], 32, 128, 2000, seed=0)[:, 0].int()
    widths = (crops[:, :, -1] - crops[:, :, 0]).float().mean(1)
    assert 39.5 < widths.min() < 42  # of the largest copy: 32 of 192 pixels
    whole = (widths > 190).float().mean().item()  # all of the shorter side, of copies of up to 40 pixels
    assert whole == pytest.approx(math.log(40 / 24) / math.log(192 / 24), abs=0.05)
    small = image_files.random_crops([photograph[::5, ::5]], 32, 128, 2000, seed=0)[:, 0].int()  # copies of 24 to 75
    widths = (small[:, :, -1] - small[:, :, 0]).float().mean(1) / 5
    assert (widths < 25).float().mean().item() == pytest.approx(math.log(75 / 64) / math.log(75 / 24), abs=0.05)
    fine = np.repeat(np.indices((400, 400)).sum(0)[..., None] % 2 * 255, 3, 2).astype(np.uint8)
    assert image_files.random_crops([fine], 32, 64, 20, seed=0).float().std() < 20  # a mean of pixels, not one of them


def test_photographs_are_kept_as_large_as_crops_need_them(tmp_path):
    for number in range(4):
        Image.new("RGB", (400, 300), (number, 50, 90)).save(tmp_path / f"{number}.jpg")
    photographs = image_files.folder_photographs.__wrapped__(tmp_path, True, 64)
    assert all(photograph.shape == (72, 96, 3) for photograph in photographs)


def test_the_noise_of_crops_is_gray_and_of_any_strength_up_to_the_greatest(monkeypatch):
    monkeypatch.setattr(image_files, "GAMMAS", (1, 1))
    monkeypatch.setattr(image_files, "NOISE", 12)
    flat = np.full((64, 64, 3), (100, 120, 140), np.uint8)
    crops = image_files.random_crops([flat], 64, 64, 300, seed=0, augmented=True)
    differences = crops.float() - torch.tensor([100, 120, 140]).view(3, 1, 1)
    assert torch.equal(differences, differences[:, :1].expand(-1, 3, -1, -1))
    strengths = differences[:, 0].flatten(1).std(1)
    assert strengths.min() < 1 and 11 < strengths.max() < 12.5 and abs(strengths.mean() - 6) < 0.8
    assert (image_files.random_crops([np.full((64, 64, 3), 255, np.uint8)], 64, 64, 9, 0, True) > 190).all()


def test_the_large_ones_of_many_photographs_are_kept_smaller(tmp_path, monkeypatch):
    for number in range(30):
        Image.new("RGB", (80, 60) if number < 10 else (20, 10), (number, 0, 0)).save(tmp_path / f"{number:02}.png")
    (tmp_path / "broken.jpg").write_text("not a picture")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "too_large.png")
    small, at_40 = 20 * 3 * 20 * 10, 10 * 3 * 40 * 30
    for limit, longer_side in ((small + at_40, 40), (small + at_40 - 100, 39), (1 << 20, 80), (0, 1)):
        monkeypatch.setattr(image_files, "KEPT_BYTES", limit)
        photographs = image_files.folder_photographs.__wrapped__(str(tmp_path), True, 64)
        assert {max(photo.shape[:2]) for photo in photographs} == {longer_side, min(20, longer_side)}


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(tmp_path):
    image = Image.fromarray(smooth_images(1)[0].transpose(1, 2, 0)).resize((1600, 1200))
    image.save(tmp_path / "large.jpg")
    small, whole = (
        image_files.read_image(tmp_path / "large.jpg", 128),
        image_files.read_image(tmp_path / "large.jpg"),
    )
    assert small.size == (200, 150) and whole.size == (1600, 1200)
    assert abs(np.asarray(small).astype(int) - np.asarray(whole.reduce(8))).mean() < 2
    image.save(tmp_path / "large.jpg", progressive=True)  # takes as much memory at any size, so it waits for the lock
    assert image_files.read_image(tmp_path / "large.jpg", 128).size == (1600, 1200)


def test_folders_that_will_not_do(tmp_path, fails):
    assert "not cifar10, sample or a folder of images" in fails(
        colorization.main, "--data", tmp_path / "none", "--colors", "4"
    )
    assert "too few readable images" in fails(colorization.main, "--data", tmp_path, "--colors", "4")
    for number in range(2):
        Image.new("RGB", (40, 30), (9 * number, 90, 200)).save(tmp_path / f"{number}.png")
    assert "too few readable images to" in fails(colorization.main, "--data", tmp_path, "--colors", "2")


GRADIENT = np.linspace(0, 1, 32 * 24).reshape(24, 32)


def tiff_bytes(values, sample_format=1, photometric=1, orientation=1):
    """An uncompressed TIFF of one channel; sample formats are 1 for unsigned, 2 for signed, 3 for floats."""
    (height, width), content = values.shape, values.tobytes()
    tags = {256: width, 257: height, 258: 8 * values.itemsize, 259: 1, 262: photometric, 273: 150, 274: orientation}
    tags |= {277: 1, 278: height, 279: len(content)} | ({339: sample_format} if sample_format else {})
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return (b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)).ljust(150, b"\0") + content


def png_bytes(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


DEEP = {  # content, whether a guess is announced
    "16 bits": (tiff_bytes((GRADIENT * 65535).astype("<u2")), False),
    "16 bits, white is zero": (tiff_bytes(((1 - GRADIENT) * 65535).astype("<u2"), photometric=0), False),
    "8 bits, white is zero": (tiff_bytes(((1 - GRADIENT) * 255).astype("u1"), photometric=0), False),
    "floats, white is zero": (tiff_bytes((1 - GRADIENT).astype("<f4"), 3, photometric=0), False),
    "12 bits in 16": (tiff_bytes((GRADIENT * 4095).astype("<u2")), True),
    "12 bits in a PNG of 16": (png_bytes(Image.fromarray((GRADIENT * 4095).astype(np.uint16))), True),
    "10 bits in 16": (tiff_bytes((GRADIENT * 1023).astype("<u2")), True),
    "32 bits, format not told": (tiff_bytes((GRADIENT * (2**32 - 1)).astype("<u4"), None), False),
    "floats of great size": (tiff_bytes((3e38 * (2 * GRADIENT - 1)).astype("<f4"), 3), True),
    "8 bits in 16": (tiff_bytes((GRADIENT * 255).astype("<u2")), True),
    "signed 8 bits": (tiff_bytes((GRADIENT * 127).astype("i1"), 2), False),
    "signed 16 bits": (tiff_bytes((GRADIENT * 32767).astype("<i2"), 2), False),
    "negative 16 bits": (tiff_bytes((GRADIENT * 65535 - 32768).astype("<i2"), 2), True),
    "32 bits": (tiff_bytes((GRADIENT * (2**32 - 1)).astype("<u4")), False),
    "signed 32 bits": (tiff_bytes((GRADIENT * (2**31 - 1)).astype("<i4"), 2), False),
    "floats up to 1": (tiff_bytes(GRADIENT.astype("<f4"), 3), False),
    "floats up to 1.4": (tiff_bytes((1.4 * GRADIENT).astype("<f4"), 3), True),
    "floats up to 100": (tiff_bytes((100 * GRADIENT).astype("<f4"), 3), True),
    "floats up to 255": (tiff_bytes((255 * GRADIENT).astype("<f4"), 3), True),
    "floats up to 65535": (tiff_bytes((65535 * GRADIENT).astype("<f4"), 3), True),
    "floats from -1 to 1": (tiff_bytes((2 * GRADIENT - 1).astype("<f4"), 3), True),
}


@pytest.mark.parametrize(("content", "is_guessed"), DEEP.values(), ids=DEEP)
def test_any_depth_has_the_brightness_that_was_meant(tmp_path, content, is_guessed):
    (tmp_path / "a.tif").write_bytes(content)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        image = image_files.read_image(tmp_path / "a.tif")
    assert np.abs(np.asarray(image) - 255 * GRADIENT[..., None]).max() <= 2.5 and image.mode == "RGB"
    lines = [str(warning.message) for warning in said]
    assert [f"{tmp_path / 'a.tif'}: its values are from " in line for line in lines] == [True] * is_guessed


def test_values_that_are_not_finite_are_black_or_white(tmp_path):
    values = np.array([[np.nan, -np.inf, 0, 0.5, 1, np.inf]], "<f4")
    (tmp_path / "a.tif").write_bytes(tiff_bytes(values, 3))
    assert np.asarray(image_files.read_image(tmp_path / "a.tif"))[0, :, 0].tolist() == [0, 0, 0, 128, 255, 255]


def test_a_picture_that_would_be_all_black_is_refused(tmp_path):
    for spoilt, words in ((4000, "0 to 4000"), (-9999, r"-9999 to 1"), (3e38, r"0 to 3e\+38"), (None, "0 to 0.001")):
        values = GRADIENT.astype("<f4") * (1 if spoilt else 0.001)
        values[5, 5] = spoilt or 0
        (tmp_path / "a.tif").write_bytes(tiff_bytes(values, 3))
        with warnings.catch_warnings(action="ignore"), pytest.raises(UserError, match=f"from {words}, become a single"):
            image_files.read_image(tmp_path / "a.tif")
    (tmp_path / "a.tif").write_bytes(tiff_bytes(np.full((20, 20), 0.3, "<f4"), 3))
    assert (np.asarray(image_files.read_image(tmp_path / "a.tif")) == 76).all()  # it has one color


@pytest.mark.parametrize(("values", "guess"), [(12_000, True), (16_384, False), (4095, True)])
def test_a_dark_picture_of_16_bits(tmp_path, values, guess):
    """One of less than a quarter of the brightness is announced; one that fits into 12 bits is taken to have those."""
    (tmp_path / "a.tif").write_bytes(tiff_bytes((GRADIENT * values).astype("<u2")))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        image = image_files.read_image(tmp_path / "a.tif")
    assert len(said) == guess
    assert np.asarray(image).max() == pytest.approx(255 if values == 4095 else values / 257, abs=1)


def test_pale_inverted_scans_stay_pale(tmp_path):
    """White is zero in a file of 16 bits, whose darkest value is a twentieth of black."""
    (tmp_path / "a.tif").write_bytes(tiff_bytes((GRADIENT * 3276).astype("<u2"), photometric=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = image_files.read_image(tmp_path / "a.tif")
    assert np.asarray(image).min() == round(255 * 0.95) and np.asarray(image).max() == 255


def test_a_depth_that_the_file_tells_is_no_guess():
    image = Image.fromarray((GRADIENT * 800).astype(np.uint16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        converted = image_files.to_8_bits(image, {258: (12,)}, "a.tif")
    assert np.asarray(converted).max() == round(255 * 800 / 4095)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colors_of_12_bits_in_16_are_announced(tmp_path, mode):
    values = (4095 * GRADIENT).astype(">u2")
    rows = b"".join(b"\0" + np.repeat(row[:, None], len(mode), 1).tobytes() for row in values)
    head = struct.pack(">IIBBBBB", 32, 24, 16, 2 if mode == "RGB" else 6, 0, 0, 0)
    parts = b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    with pytest.warns(UserWarning, match="a.png: almost black; it seems to use only the lower 12 of its 16 bits"):
        image_files.read_image(tmp_path / "a.png")


def test_a_black_image_of_8_bits_is_not_announced(tmp_path, recwarn):
    Image.new("RGB", (160, 16)).save(tmp_path / "a.png")
    image_files.read_image(tmp_path / "a.png")
    assert not recwarn


def test_the_gamma_of_a_png_is_applied(tmp_path):
    stream = io.BytesIO()
    Image.fromarray((255 * GRADIENT).round().astype(np.uint8)).save(stream, "PNG")
    content = b"gAMA" + struct.pack(">I", 100_000)  # values are proportional to light
    chunk = struct.pack(">I", 4) + content + struct.pack(">I", zlib.crc32(content))
    (tmp_path / "a.png").write_bytes(stream.getvalue()[:33] + chunk + stream.getvalue()[33:])
    image = image_files.read_image(tmp_path / "a.png")
    assert abs(np.asarray(image)[..., 0] - 255 * GRADIENT ** (1 / 2.2))[GRADIENT > 0.02].max() < 6


def test_broken_exif_leaves_the_picture_as_it_was_turned(tmp_path):
    exif = Image.Exif()
    exif[274], exif[306] = 6, "2001:02:03 04:05:06"
    image = Image.fromarray(smooth_images(1)[0].transpose(1, 2, 0)).resize((48, 32))
    image.save(tmp_path / "a.png", exif=exif)
    whole, broken = image_files.read_image(tmp_path / "a.png"), 0
    content = exif.tobytes()
    for place in range(10, len(content)):
        changed = bytes([*content[:place], content[place] ^ 0xFF, *content[place + 1 :]])
        image.save(tmp_path / "b.png", exif=changed)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            read = image_files.read_image(tmp_path / "b.png")
        broken += any("EXIF data is broken" in str(warning.message) for warning in said)
        assert read.size in (whole.size, image.size)


def test_what_a_tiff_says_of_itself_is_kept(tmp_path):
    image = Image.new("RGB", (20, 10))
    image.save(tmp_path / "a.tif", description="a meadow", artist="somebody")
    exif = Image.Exif()
    exif.load(image_files.read_image(tmp_path / "a.tif").info["exif"])
    assert (exif[270], exif[315]) == ("a meadow", "somebody") and 256 not in exif


def test_a_deep_picture_is_turned_as_its_camera_was(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff_bytes((GRADIENT * 65535).astype("<u2"), orientation=6))
    image = image_files.read_image(tmp_path / "a.tif")
    assert np.abs(np.asarray(image)[..., 0] - 255 * np.rot90(GRADIENT, -1)).max() <= 1.5


def with_gamma(space, gamma):
    """A color profile with another tone curve than its original: the bytes of its curves are replaced."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes())
    for number in range(struct.unpack_from(">I", profile, 128)[0]):
        name, start, _ = struct.unpack_from(">4sII", profile, 132 + 12 * number)
        if name in (b"rTRC", b"gTRC", b"bTRC"):
            profile[start : start + 14] = b"curv" + bytes(4) + struct.pack(">IH", 1, round(256 * gamma))
        if name == b"desc":
            profile[start : start + 8] = b"text" + bytes(4)
    return bytes(profile)


def gray_profile(gamma):
    """A color profile of gray alone, with a white point and a tone curve."""
    white = b"XYZ \0\0\0\0" + struct.pack(">iii", 63190, 65536, 54061)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * gamma)) + b"\0\0"
    tags = struct.pack(">I4sII4sII", 2, b"wtpt", 156, 20, b"kTRC", 176, 16)
    head = struct.pack(">I4sI4s4s4s", 192, b"none", 0x02400000, b"mntr", b"GRAY", b"XYZ ").ljust(36, b"\0") + b"acsp"
    head = head.ljust(68, b"\0") + struct.pack(">iii", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + tags + white + curve


def srgb(linear):
    """The sRGB transfer function, 0..1."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("gamma", [1.0, 1.8])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_values_are_converted_from_a_color_profile_to_srgb(tmp_path, mode, gamma):
    image = Image.fromarray((GRADIENT * 255).round().astype(np.uint8)).convert(mode)
    profile = gray_profile(gamma) if mode == "L" else with_gamma("sRGB", gamma)
    image.save(tmp_path / "a.png", icc_profile=profile)
    converted = image_files.read_image(tmp_path / "a.png")
    expected = 255 * srgb((np.asarray(image.convert("L")) / 255) ** gamma)
    assert np.abs(np.asarray(converted) - expected[..., None])[GRADIENT > 0.05].max() < 3
    assert "icc_profile" not in converted.info


def test_a_profile_that_does_not_fit_is_ignored_with_a_line(tmp_path):
    image = Image.fromarray(smooth_images(1)[0].transpose(1, 2, 0))
    for number, profile in enumerate((b"no profile", gray_profile(1.0), with_gamma("sRGB", 1.0)[:200])):
        image.save(tmp_path / f"{number}.png", icc_profile=profile)
        with pytest.warns(UserWarning, match=rf"{number}\.png: its color profile is broken or does not fit it"):
            converted = image_files.read_image(tmp_path / f"{number}.png")
        assert np.array_equal(np.asarray(converted), np.asarray(image))


def test_srgb_values_stay_as_they_are(tmp_path):
    image = Image.fromarray(smooth_images(1)[0].transpose(1, 2, 0))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for mode in ("RGB", "L"):  # gray with a profile of RGB, as scanners write it
        image.convert(mode).save(tmp_path / "a.png", icc_profile=profile)
        assert np.array_equal(
            np.asarray(image_files.read_image(tmp_path / "a.png")), image.convert(mode).convert("RGB")
        )


@pytest.mark.parametrize("name", ["a.gif", "a.tif", "a.webp", "a.png"])
def test_only_the_first_of_several_images_is_used_and_a_line_says_so(tmp_path, name):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "green", "blue")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match=f"{name}: only the first of its 3 images is used"):
        image = image_files.read_image(tmp_path / name)
    assert np.abs(np.asarray(image, int)[8, 8] - (255, 0, 0)).max() < 5


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
def test_a_picture_that_is_cut_short_is_told_from_no_picture(tmp_path, name):
    image = Image.fromarray(smooth_images(1)[0].transpose(1, 2, 0)).resize((200, 200))
    image.save(tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-400])
    with pytest.raises(UserError, match=r"copy it again|cannot identify|could not create decoder object"):
        image_files.read_image(tmp_path / name)
    if name == "a.jpg":
        with pytest.raises(UserError, match=r"\(image file is truncated .*it is cut short or damaged; copy it again"):
            image_files.read_image(tmp_path / name)


def test_what_macos_keeps_beside_a_photograph_is_none(tmp_path, recwarn):
    for name in (".a.jpg", "._a.jpg", "._a.cr2"):
        (tmp_path / name).touch()
    assert image_files.list_image_files(tmp_path) == [tmp_path / ".a.jpg"] and not recwarn.list


@pytest.mark.parametrize(
    ("name", "expected"),
    [("before_and_after.png", True), ("before_and_after_12.png", True), ("before_and_after.jpg", False)],
)
def test_sheets_are_results(tmp_path, name, expected):
    save_image(tmp_path / name)
    assert image_files.is_result(tmp_path / name) == expected


def test_a_photograph_is_not_decoded_to_learn_that_it_is_no_result(tmp_path, monkeypatch):
    save_image(tmp_path / "a.png")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
    assert not image_files.is_result(tmp_path / "a.png")


def test_a_split_depends_on_the_first_64_kilobytes(tmp_path):
    files = [tmp_path / f"{number}.bmp" for number in range(60)]
    for number, file in enumerate(files):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (150, 150, 3), np.uint8)).save(file)
    expected = [file for file in files if zlib.crc32(file.read_bytes()[: 1 << 16]) < (1 << 32) // 10]
    assert expected and image_files.split_files(files, train=False) == expected


def test_broken_exif_still_turns_a_picture(monkeypatch):
    image = Image.new("RGB", (4, 2))
    image.getexif()[274] = 6
    monkeypatch.setattr(image_files.ImageOps, "exif_transpose", Mock(side_effect=ValueError))
    with pytest.warns(UserWarning, match="only its orientation is used"):
        assert image_files.upright(image, "a").size == (2, 4)


def test_what_an_image_of_the_users_knows_is_left_to_it():
    image = Image.new("RGB", (4, 4))
    image.info["exif"] = "300"
    with pytest.warns(UserWarning, match="EXIF data is broken"):
        image_files.to_srgb(image)
    assert image.info == {"exif": "300"}


def test_pictures_that_are_not_read_are_counted(tmp_path):
    for name in ("a.heic", "b.HEIC", "c.svg", "d.txt"):
        (tmp_path / name).write_bytes(b"content")
    save_image(tmp_path / "e.ppm")
    with pytest.warns(UserWarning, match=r"3 pictures are left out, whose format is not read: \.heic, \.svg"):
        assert image_files.list_image_files(tmp_path) == [tmp_path / "e.ppm"]
    assert image_files.read_image(tmp_path / "e.ppm").size == (40, 30)


def test_a_picture_of_one_pixel_and_millions_is_refused(tmp_path, monkeypatch):
    Image.new("1", (1, 100_001)).save(tmp_path / "thin.png")
    started = time.perf_counter()
    with pytest.raises(UserError, match=r"it has 1 x 100,001 pixels.*100,000 on a side"):
        image_files.read_image(tmp_path / "thin.png")
    assert time.perf_counter() - started < 1


def test_a_photograph_stays_on_its_side_whatever_joins_it(tmp_path):
    names = []
    for number in range(40):
        Image.new("RGB", (8, 8), (6 * number, 9, 9)).save(tmp_path / f"{number}.png")
        names.append(tmp_path / f"{number}.png")
    few, all_of_them = image_files.split_files(names[:20], train=False), image_files.split_files(names, train=False)
    assert set(all_of_them) & set(names[:20]) == set(few) and 0 < len(all_of_them) < 12
    (tmp_path / "copy.png").write_bytes(few[0].read_bytes())
    (tmp_path / "other.png").write_bytes(image_files.split_files(names, train=True)[0].read_bytes())
    assert image_files.split_files([tmp_path / "copy.png", tmp_path / "other.png"], train=False) == [
        tmp_path / "copy.png"
    ]
    (tmp_path / "empty.png").touch()
    content = next(text for text in map(b"no picture %d".__mod__, range(1000)) if zlib.crc32(text) < 1 << 24)
    (tmp_path / "broken.png").write_bytes(content)  # its checksum would be the least
    useless = [tmp_path / "gone.png", tmp_path / "empty.png", tmp_path / "broken.png"]
    assert image_files.split_files([*useless, names[0]], train=False) == names[:1]
    assert image_files.split_files([*useless, *names], train=False) == all_of_them


def test_crops_are_from_everywhere_and_of_any_brightness(monkeypatch):
    monkeypatch.setattr(image_files, "GAMMAS", (0.5, 2))
    monkeypatch.setattr(image_files, "NOISE", 0)
    rows, columns = np.mgrid[:80, :120].astype(np.uint8)
    photographs = [np.stack([np.full_like(rows, 128), rows, columns], 2)]
    crops = image_files.random_crops(photographs, 32, 64, 200, seed=0)
    assert (crops[:, 0] == 128).all()
    assert crops[:, 1, 0, 0].unique().numel() > 10 and crops[:, 2, 0, 0].unique().numel() > 10
    gray = image_files.random_crops(photographs, 32, 64, 2000, seed=0, augmented=True)[:, 0, 0, 0] / 255
    exponents = gray.log() / np.log(128 / 255)  # drawn evenly on a logarithmic scale
    assert 0.49 < exponents.min() < 0.52 and 1.9 < exponents.max() < 2.02
    assert exponents.log().mean().abs() < 0.05


def test_the_previews_in_a_phones_picture_are_no_frames(tmp_path):
    Image.new("RGB", (16, 16), "red").save(
        tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16), "blue")]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.asarray(image_files.read_image(tmp_path / "a.jpg"))[8, 8, 0] > 250
