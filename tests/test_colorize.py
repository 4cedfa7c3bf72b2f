"""Photographs in color: formats, metadata, names, edges."""

import hashlib
import io
import struct

import numpy as np
import pytest
import torch
from conftest import smooth_images
from helpers import THREE_COLORS, save_image, some_pictures
from PIL import ExifTags, Image, ImageCms, ImageOps

import colorization
from pictures import colorize, metrics
from sources import image_files
from utils.checkpoint import new_network
from utils.console import UserError


def test_an_album_is_colored_into_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_image("a.png")
    for _ in range(2):
        colorization.main(["--colorize", ".", "--out-dir", "."])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.png",
        "a_colored.png",
        "a_colored_2.png",
        "before_and_after.png",
        "before_and_after_2.png",
    ]


def save_kinds(folder):
    """Write one picture in many formats and modes; return their names."""
    picture = Image.fromarray(smooth_images(1)[0].transpose(1, 2, 0)).resize((48, 36))
    alpha = Image.linear_gradient("L").resize(picture.size)
    with_alpha = picture.copy()
    with_alpha.putalpha(alpha)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be seen turned by a quarter
    deep = np.asarray(picture.convert("L")).astype(np.uint16) * 257
    kinds = {
        "plain.png": (picture, {}),
        "plain.jpg": (picture, {}),
        "turned.jpg": (picture, {"exif": turned}),
        "alpha.png": (with_alpha, {}),
        "gray_alpha.png": (with_alpha.convert("LA"), {}),
        "cmyk.jpg": (picture.convert("CMYK"), {}),
        "palette.gif": (picture.convert("P"), {}),
        "palette.png": (picture.convert("P"), {"transparency": 0}),
        "bits.png": (picture.convert("1"), {}),
        "deep.png": (Image.fromarray(deep), {}),
        "floats.tif": (Image.fromarray(deep.astype(np.float32) / 65535), {}),
        "thin.bmp": (picture.resize((300, 1)), {}),
    }
    for name, (image, settings) in kinds.items():
        image.save(folder / name, **settings)
    return kinds


def test_any_format_and_mode_is_colored_at_its_size(tmp_path, capsys):
    album = tmp_path / "album"
    album.mkdir()
    kinds = save_kinds(album)
    before = {file.name: hashlib.sha256(file.read_bytes()).digest() for file in album.iterdir()}
    colorization.main(["--colorize", str(album), "--out-dir", str(tmp_path / "out")])
    assert {file.name: hashlib.sha256(file.read_bytes()).digest() for file in album.iterdir()} == before
    made = [line.removeprefix("saved ") for line in capsys.readouterr().out.splitlines() if line.startswith("saved")]
    assert len(set(made)) == len(kinds) + 1
    for name, file in zip(sorted(kinds), made):
        with Image.open(file) as colored, Image.open(album / name) as source:
            size = source.size[::-1] if name == "turned.jpg" else source.size
            assert colored.size == size and colored.mode in ("RGB", "RGBA")
            transparent = name in ("alpha.png", "gray_alpha.png", "palette.png")
            assert (colored.mode == "RGBA") == transparent
            if transparent:
                assert colored.getchannel("A").tobytes() == source.convert("RGBA").getchannel("A").tobytes()
            if file.endswith("png"):
                gray = np.asarray(image_files.read_image(album / name)[0]).astype(float).mean(2)
                assert abs(np.asarray(colored.convert("RGB")).astype(float).mean(2) - gray).max() <= 1
    deep, plain = (np.asarray(image_files.read_image(album / f"{name}")[0]) for name in ("deep.png", "floats.tif"))
    assert abs(deep.astype(int) - plain).max() <= 1 and deep.max() > 128


@pytest.mark.parametrize("resolution", [(0, 0), (2**32 - 1, 1)])
def test_a_resolution_that_no_file_can_store_is_dropped(tmp_path, resolution):
    """A broken TIFF's resolution may be 0/0, or four billion."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "TIFF", dpi=(72, 72))
    rational = struct.pack("<II", 72, 1)
    assert stream.getvalue().count(rational) == 2
    for name in ("a.tif", "b.jpg"):
        (tmp_path / name).write_bytes(stream.getvalue().replace(rational, struct.pack("<II", *resolution)))
    colorization.main(["--colorize", str(tmp_path), "--out-dir", str(tmp_path / "out")])
    assert (tmp_path / "out" / "a_colored.png").exists() and (tmp_path / "out" / "b_colored.jpg").exists()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_colored_photograph_keeps_its_metadata(tmp_path):
    """Orientation is applied; date, resolution and color profile stay, and the old thumbnail does not."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.DateTime] = 6, "2001:02:03 04:05:06"
    photo = Image.fromarray(smooth_images(1)[0].transpose(1, 2, 0)).resize((40, 24))
    for name in ("a.jpg", "a.png"):
        photo.save(tmp_path / name, exif=exif, icc_profile=profile, dpi=(300, 300))
    photo.convert("L").save(tmp_path / "gray.jpg", icc_profile=profile.replace(b"RGB ", b"GRAY"))
    photo.save(tmp_path / "broken.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    colorization.main(["--colorize", str(tmp_path), "--out-dir", str(tmp_path / "out")])
    for name in ("a_colored.jpg", "a_colored.png"):
        with Image.open(tmp_path / "out" / name) as colored:
            assert colored.size == (24, 40)
            assert colored.getexif().get(ExifTags.Base.Orientation, 1) == 1
            assert colored.getexif()[ExifTags.Base.DateTime] == "2001:02:03 04:05:06"
            assert colored.info["icc_profile"] == profile
            assert colored.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    with Image.open(tmp_path / "out" / "gray_colored.jpg") as colored:
        assert "icc_profile" not in colored.info
    assert (tmp_path / "out" / "broken_colored.jpg").exists()


def test_names_are_never_overwritten_and_what_is_no_picture_is_named(tmp_path, capsys, fails):
    (tmp_path / "album").mkdir()
    picture = Image.fromarray(smooth_images(1)[0].transpose(1, 2, 0))
    for name in ("a.png", "album/a.png"):
        picture.save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    (tmp_path / "album" / "page.html").write_text("<html>")  # in a folder only pictures are looked for
    out = tmp_path / "album" / "out"  # within what is colored
    argv = ["--colorize", tmp_path / "a.png", tmp_path / "album", "--out-dir", out]
    for _ in range(2):
        colorization.main([str(word) for word in argv])
    names = {"a_colored.png", "a_colored_2.png", "a_colored_3.png", "a_colored_4.png"}
    assert {file.name for file in out.iterdir()} == names | {"before_and_after.png", "before_and_after_2.png"}
    capsys.readouterr()
    with pytest.raises(UserError, match="1 of 2 images"):
        colorization.main(["--colorize", str(tmp_path / "broken.png"), str(tmp_path / "a.png"), "--out-dir", str(out)])
    said = capsys.readouterr()
    assert "broken.png" in said.err and "a_colored_5.png" in said.out
    assert "none.png" in "".join(fails(colorization.main, "--colorize", tmp_path / "a.png", "--checkpoint", "none.png"))
    (tmp_path / "empty").mkdir()
    assert "no images" in fails(colorization.main, "--colorize", tmp_path / "empty", "--out-dir", out)


def test_strips_leave_no_seams(monkeypatch):
    differences = some_pictures(1, 8) - 0.5
    image = Image.fromarray(smooth_images(1)[0].transpose(1, 2, 0)).resize((70, 50))
    differences, gray = differences - differences.mean(1, keepdim=True), some_pictures(1, 8)[:, :1]
    whole = np.asarray(colorize.colorize_full_size(differences, gray, image)).astype(int)
    monkeypatch.setattr(colorize, "STRIP", 70 * 7)
    assert abs(np.asarray(colorize.colorize_full_size(differences, gray, image)) - whole).max() <= 1


def test_enlarged_color_ends_at_the_edges_of_the_gray():
    """Dark blue beside light orange: at full size, the color changes where the gray does, within a pixel."""
    image = Image.new("RGB", (320, 320), (40, 60, 140))
    image.paste((230, 190, 120), (160, 0, 320, 320))
    small = torch.from_numpy(np.array(image.resize((32, 32), Image.Resampling.BOX))).permute(2, 0, 1)[None] / 256
    gray = small.mean(1, keepdim=True)
    colored = colorize.colorize_full_size(small - gray, gray, image)
    error = abs(np.asarray(colored).astype(int) - np.asarray(image)).max(2)  # (320, 320)
    assert error[:, :158].max() < 20 and error[:, 162:].max() < 20


def test_a_photograph_and_its_mirror_image_get_the_same_colors(tmp_path):
    net, checkpoint = new_network(THREE_COLORS, model="UNet", kernel=3, num_filters=2)
    image = Image.fromarray(smooth_images(1)[0].transpose(1, 2, 0)).resize((64, 48))
    chroma, _ = colorize.predict_chroma(net, checkpoint.palette, image, 64)
    mirrored, _ = colorize.predict_chroma(net, checkpoint.palette, ImageOps.mirror(image), 64)
    assert chroma.abs().max() > 0.01 and torch.allclose(chroma, mirrored.flip(3), atol=1e-5)


def test_a_lower_temperature_gives_a_photograph_more_color(tmp_path):
    Image.fromarray(smooth_images(1)[0].transpose(1, 2, 0)).save(tmp_path / "a.png")
    made = []
    for temperature in ("0.05", "1"):
        out = tmp_path / temperature
        colorization.main(["--colorize", str(tmp_path / "a.png"), "--temperature", temperature, "--out-dir", str(out)])
        colored = torch.from_numpy(np.array(Image.open(out / "a_colored.png"))).permute(2, 0, 1)[None] / 255
        made.append(metrics.colorfulness(colored).item())
    assert made[0] > made[1]
