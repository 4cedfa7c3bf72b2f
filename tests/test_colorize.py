"""Photographs in color: formats, metadata, names, edges."""

import hashlib
import io
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import smooth_images
from helpers import THREE_COLORS, save_image, some_pictures
from PIL import ExifTags, Image, ImageCms, ImageOps, PngImagePlugin

import colorization
from models import predict
from pictures import colorize, metrics
from pictures.decoding import decode_annealed_mean
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
        "before_and_after.png",
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
    made = [
        line.removeprefix("saved ").split(", from ")[0]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("saved")
    ]
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
                gray = np.asarray(image_files.read_image(album / name))[..., :3].astype(float).mean(2)
                assert abs(np.asarray(colored.convert("RGB")).astype(float).mean(2) - gray).max() <= 1
    deep, plain = (np.asarray(image_files.read_image(album / f"{name}")) for name in ("deep.png", "floats.tif"))
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
            assert "icc_profile" not in colored.info  # its values are those of sRGB
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
    assert {file.name for file in out.iterdir()} == {"a_colored.png", "before_and_after.png"}  # the two are the same
    assert "0 images colored; 2 colored before" in capsys.readouterr().out
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    before = (out / "a_colored.png").read_bytes()
    with pytest.raises(UserError, match="1 of 2 images"):
        colorization.main(["--colorize", str(tmp_path / "broken.png"), str(tmp_path / "a.png"), "--out-dir", str(out)])
    said = capsys.readouterr()
    assert "broken.png" in said.err and "a_colored_2.png" in said.out
    assert (out / "a_colored.png").read_bytes() == before
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
    chroma, _ = colorize.predict_chroma((net, checkpoint), image)
    mirrored, _ = colorize.predict_chroma((net, checkpoint), ImageOps.mirror(image))
    assert chroma.abs().max() > 0.01 and torch.allclose(chroma, mirrored.flip(3), atol=1e-5)


def test_a_lower_temperature_gives_a_photograph_more_color(tmp_path):
    Image.fromarray(smooth_images(1)[0].transpose(1, 2, 0)).save(tmp_path / "a.png")
    made = []
    for temperature in ("0.05", "100"):
        out = tmp_path / temperature
        colorization.main(
            [
                "--model",
                "UNet",
                "--colorize",
                str(tmp_path / "a.png"),
                "--temperature",
                temperature,
                "--out-dir",
                str(out),
            ]
        )
        colored = torch.from_numpy(np.array(Image.open(out / "a_colored.png"))).permute(2, 0, 1)[None] / 255
        made.append(metrics.colorfulness(colored).item())
    assert made[0] > made[1]


def test_a_pictures_own_white_and_black_stay(tmp_path):
    picture = np.full((40, 60, 3), 255, np.uint8)
    picture[:, 30:] = 0
    colored = np.asarray(colorize.colorize(Image.fromarray(picture)))
    assert np.array_equal(colored, picture)
    colored = np.asarray(colorize.colorize(Image.fromarray(np.full((40, 60, 3), 254, np.uint8)), saturation=5))
    assert abs(colored.astype(int).mean(2) - 254).max() <= 1


def test_a_folder_keeps_its_shape(tmp_path, capsys):
    pictures = {}
    for number, name in enumerate(("001.png", "a/001.png", "b/001.png", "b/c/001.jpg", "b/c/001.png")):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        pictures[name] = Image.new("L", (40, 30), 40 * number)
        pictures[name].save(tmp_path / "in" / name)
    out = tmp_path / "in" / "out"  # inside
    for said in ("5 images colored\n", "0 images colored; 5 colored before\n"):
        colorization.main(["--colorize", str(tmp_path / "in"), "--out-dir", str(out)])
        assert capsys.readouterr().out.endswith(said)
        made = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
        expected = {str(Path(name).with_name(f"001_colored{Path(name).suffix}")) for name in pictures}
        assert made == expected | {"before_and_after.png"}
    for name, picture in pictures.items():
        with Image.open(out / Path(name).with_name(f"001_colored{Path(name).suffix}")) as colored:
            assert abs(np.asarray(colored.convert("RGB")).mean() - np.asarray(picture).mean()) < 1.5


def test_an_interrupted_folder_goes_on_where_it_stopped(tmp_path, monkeypatch):
    for number in range(4):
        Image.new("RGB", (40, 30), (60 * number, 9, 9)).save(tmp_path / f"{number}.png")
    color, calls = colorize.colorize_srgb, []

    def stop_at_third(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return color(*args)

    monkeypatch.setattr(colorize, "colorize_srgb", stop_at_third)
    argv = ["--colorize", str(tmp_path), "--out-dir", str(tmp_path / "out")]
    with pytest.raises(KeyboardInterrupt):
        colorization.main(argv)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0_colored.png", "1_colored.png"]
    colorization.main(argv)
    assert len(calls) == 5  # the third and the fourth
    with monkeypatch.context() as patched:
        patched.setattr(colorize, "read_image", lambda path: pytest.fail("decoded again"))
        colorization.main(argv)
    colorization.main([*argv, "--saturation", "0.5"])  # another result, beside the first
    assert len(calls) == 9 and (tmp_path / "out" / "0_colored_2.png").exists()


def test_nothing_of_the_users_is_overwritten(tmp_path):
    """Not a file named as the sheet is; and a photograph named as a result is colored all the same."""
    save_image(tmp_path / "before_and_after.png")
    save_image(tmp_path / "cat_colored.png", (30, 30))
    before = (tmp_path / "before_and_after.png").read_bytes()
    colorization.main(["--colorize", str(tmp_path), "--out-dir", str(tmp_path)])
    assert (tmp_path / "before_and_after.png").read_bytes() == before
    assert (tmp_path / "before_and_after_2.png").exists() and (tmp_path / "cat_colored_colored.png").exists()


def test_results_inside_an_album_are_not_learned_from(photo_folder):
    count = len(image_files.folder_photographs.__wrapped__(photo_folder, True, 64))
    colorization.main(["--colorize", str(photo_folder / "more"), "--out-dir", str(photo_folder / "results")])
    assert {file.suffix for file in (photo_folder / "results").iterdir()} == {".png"}
    assert len(list((photo_folder / "results").iterdir())) == 6  # and a sheet
    assert len(image_files.folder_photographs.__wrapped__(photo_folder, True, 64)) == count


def test_another_working_size_or_palette_gives_another_result(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_image("a.png")
    net, _ = new_network(THREE_COLORS, model="UNet", kernel=3, num_filters=2)
    torch.save({name: value.bfloat16() for name, value in net.state_dict(keep_vars=True).items()}, "bare.pkl")
    for number, palette in enumerate((THREE_COLORS, THREE_COLORS[::-1])):
        np.save(f"{number}.npy", palette)
    argv = ["--colorize", "a.png", "--out-dir", "out", "--model", "UNet", "--checkpoint", "bare.pkl", "-c"]
    for more in (["0.npy"], ["1.npy"], ["1.npy", "--working-size", "32"], ["0.npy"]):
        colorization.main([*argv, *more])
    made = sorted(path.name for path in Path("out").glob("a_colored*"))
    assert made == ["a_colored.png", "a_colored_2.png", "a_colored_3.png"]


def test_a_pipe_where_a_result_would_go(tmp_path):
    save_image(tmp_path / "a.png")
    os.mkfifo(tmp_path / "a_colored.png")
    colorization.main(["--colorize", str(tmp_path / "a.png"), "--out-dir", str(tmp_path)])
    assert (tmp_path / "a_colored_2.png").exists()


def test_broken_metadata_does_not_stop_an_album(tmp_path, capsys):
    exif = Image.Exif()
    exif[ExifTags.Base.DateTime], exif[ExifTags.Base.XResolution] = "2001:02:03 04:05:06", 72.0
    content, rng = exif.tobytes(), np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(60):
        changed = bytearray(content)
        changed[rng.integers(10, len(content))] = rng.integers(256)
        Image.new("RGB", (8, 8), (number, 9, 9)).save(tmp_path / "in" / f"{number}.jpg", exif=bytes(changed))
    for number, name in enumerate(("dpi", "exif", "gamma", "xmp", "Raw profile type exif")):
        text = PngImagePlugin.PngInfo()
        text.add_text(name, "300")
        Image.new("RGB", (8, 8), (number, 9, 9)).save(tmp_path / "in" / f"{number}.png", pnginfo=text)
    colorization.main(["--colorize", str(tmp_path / "in"), "--out-dir", str(tmp_path / "out")])
    assert "65 images colored" in capsys.readouterr().out


def test_threads_color_alike_and_leave_the_network_as_it_was():
    images = [Image.fromarray(picture.transpose(1, 2, 0)).resize((96, 64)) for picture in smooth_images(6)]
    net, _ = colorize.photograph_network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    one_by_one = [np.asarray(colorize.colorize(image)) for image in images]
    with ThreadPoolExecutor(3) as pool:
        assert all(map(np.array_equal, pool.map(colorize.colorize, images), one_by_one))
    assert not net.training and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_regression_is_refused_from_python_too():
    with pytest.raises(UserError, match="a RegressionCNN predicts RGB"):
        colorize.colorize(Image.new("L", (16, 16)), new_network(None, model="RegressionCNN"))


def test_a_stopped_folder_says_how_to_go_on(tmp_path, monkeypatch):
    save_image(tmp_path / "a.png")
    monkeypatch.setattr(colorize, "colorize_srgb", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt, match="to color the others, repeat the command"):
        colorization.main(["--colorize", str(tmp_path / "a.png"), "--out-dir", str(tmp_path)])


@pytest.mark.parametrize("count", [6, 7])
def test_the_sheet_says_what_it_shows(tmp_path, monkeypatch, count):
    (tmp_path / "in").mkdir()
    for number in range(count):
        save_image(tmp_path / "in" / f"{number}.png")
    (tmp_path / "in" / "broken.png").touch()
    titles = []
    monkeypatch.setattr(colorize, "save_image_grid", lambda path, title, rows: titles.append(title))
    with pytest.raises(UserError, match=f"1 of {count + 1} images could not be colored"):
        colorization.main(["--colorize", str(tmp_path / "in"), "--saturation", "1.3", "--out-dir", str(tmp_path)])
    assert titles == ["before and after: DeepUNet, saturation 1.3, temperature 1" + "; 6 of 7" * (count == 7)]


def test_results_of_another_folder_are_colored_like_any_image(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    save_image(tmp_path / "in" / "a.png")
    colorization.main(["--colorize", str(tmp_path / "in"), "--out-dir", str(tmp_path / "in")])
    capsys.readouterr()
    colorization.main(["--colorize", str(tmp_path / "in"), "--out-dir", str(tmp_path / "out")])
    assert "3 images colored" in capsys.readouterr().out


def test_more_or_less_color(tmp_path):
    image = Image.fromarray(smooth_images(1)[0].transpose(1, 2, 0)).resize((64, 48)).convert("L")
    gray = np.asarray(image.convert("RGB")).astype(float)
    chroma = {s: np.asarray(colorize.colorize(image, saturation=s)) - gray for s in (0, 0.5, 1, 1.5)}
    assert abs(chroma[0]).max() == 0
    size = {s: abs(values).mean() for s, values in chroma.items()}
    assert size[0.5] == pytest.approx(size[1] / 2, rel=0.15) and size[1.5] == pytest.approx(1.5 * size[1], rel=0.15)
    image.save(tmp_path / "a.png")
    colorization.main(["--colorize", str(tmp_path / "a.png"), "--saturation", "1.5", "--out-dir", str(tmp_path)])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a_colored.png")), (chroma[1.5] + gray).astype(np.uint8))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I", "F", "La", "RGBa"]
)
def test_an_image_of_any_mode_in_a_notebook(mode):
    picture = Image.fromarray(smooth_images(1)[0].transpose(1, 2, 0)).resize((50, 40))
    if mode in ("I;16", "I", "F"):
        gray = np.asarray(picture.convert("L")).astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode])
        image = Image.fromarray(gray / 255 if mode == "F" else gray * 257)
        assert image.mode == mode
    else:
        image = picture.convert("RGBA" if mode in ("PA", "RGBa") else "LA" if mode == "La" else "RGB").convert(mode)
    before = image.copy()
    colored = colorize.colorize(image)
    assert colored.size == image.size and colored.mode == ("RGBA" if "A" in mode.upper() else "RGB")
    assert image.tobytes() == before.tobytes()
    as_seen = picture.convert(
        "1" if mode == "1" else "RGB" if mode in ("RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV") else "L"
    )
    as_seen = image if mode in ("P", "PA") else as_seen
    expected = np.asarray(as_seen.convert("RGB")).astype(float).mean(2)
    assert abs(np.asarray(colored.convert("RGB")).astype(float).mean(2) - expected).max() <= 3


def test_a_picture_is_turned_once_whatever_names_its_orientation(tmp_path):
    """Pillow reads it also from XMP, with white space around the number, which it does not remove."""
    picture = Image.fromarray(smooth_images(1)[0].transpose(1, 2, 0)).resize((56, 40))
    xmp = b"<x:xmpmeta><rdf:Description><tiff:Orientation>6 </tiff:Orientation></rdf:Description></x:xmpmeta>"
    picture.save(tmp_path / "a.jpg", xmp=xmp, quality=95)
    colorization.main(["--colorize", str(tmp_path / "a.jpg"), "--out-dir", str(tmp_path)])
    expected = np.asarray(picture.rotate(-90, expand=True)).astype(float).mean(2)
    with Image.open(tmp_path / "a_colored.jpg") as colored:
        assert abs(np.asarray(colored).astype(float).mean(2) - expected).mean() < 4
        assert b"<tiff:Orientation>1 </tiff:Orientation>" in colored.info["xmp"]
        assert ImageOps.exif_transpose(colored).size == (40, 56)


def test_another_process_that_writes_the_same_name_is_not_overwritten(tmp_path, monkeypatch):
    save_image(tmp_path / "a.png")
    save, written = Image.Image.save, []

    def other_is_first(image, file, *args, **settings):
        save(image, file, *args, **settings)
        if not written and hasattr(file, "name") and "_colored" in file.name:
            written.append((tmp_path / "out" / "a_colored.png").write_bytes(b"of the other"))

    monkeypatch.setattr(Image.Image, "save", other_is_first)
    colorization.main(["--colorize", str(tmp_path / "a.png"), "--out-dir", str(tmp_path / "out")])
    assert written and (tmp_path / "out" / "a_colored.png").read_bytes() == b"of the other"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a_colored.png",
        "a_colored_2.png",
        "before_and_after.png",
    ]


def test_pictures_that_other_programs_have_marked_are_colored(tmp_path, capsys):
    """In the tag that results have."""
    exif = Image.Exif()
    exif[colorize.MARK_TAG] = "digiKam-8.1.0"
    Image.new("RGB", (20, 20), (9, 90, 9)).save(tmp_path / "a.jpg", exif=exif)
    for said in ("1 image colored\n", "0 images colored; 1 colored before\n"):
        colorization.main(["--colorize", str(tmp_path), "--out-dir", str(tmp_path)])
        assert said in capsys.readouterr().out


@pytest.mark.parametrize("quoted", [b'="6"', b"='6'", b" = '6'", b">6<", b"> 6 <"])
def test_the_orientation_in_xmp_is_that_of_the_result(quoted):
    kept = colorize.kept_metadata({"xmp": b"<a tiff:Orientation" + quoted + b"/>"}, "JPEG", "mark")
    assert kept["xmp"] == b"<a tiff:Orientation" + quoted.replace(b"6", b"1") + b"/>"


def test_transparent_parts_of_a_large_picture_keep_their_color_on_the_sheet():
    image = Image.new("RGBA", (700, 350), (255, 255, 255, 0))
    assert colorize.thumbnail(image).shape == (3, 240, 480)
    assert colorize.thumbnail(image).min() == 255 / 256
    assert image.mode == "RGBA" and image.size == (700, 350)


def test_a_network_of_ones_own_colors_an_image(tmp_path):
    network = new_network(THREE_COLORS, model="DeepUNet", kernel=3, num_filters=2)
    image = Image.fromarray(smooth_images(1)[0].transpose(1, 2, 0)).resize((50, 37))
    mine, shipped = (np.asarray(colorize.colorize(image, network)) for network in (network, None))
    assert mine.shape == (37, 50, 3) and not np.array_equal(mine, shipped)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_xmp_and_comments_stay(tmp_path, suffix):
    image = Image.fromarray(smooth_images(1)[0].transpose(1, 2, 0)).resize((40, 24))
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><a/></x:xmpmeta>"
    if suffix == "jpg":
        image.save(tmp_path / "a.jpg", xmp=xmp, comment=b"taken by hand")
    else:
        text = PngImagePlugin.PngInfo()
        text.add_text("Author", "somebody")
        text.add_itxt("Title", "caf\u00e9", "fr")
        text.add_itxt("XML:com.adobe.xmp", xmp.decode())
        image.save(tmp_path / "a.png", pnginfo=text)
    os.utime(tmp_path / f"a.{suffix}", ns=(10**18, 10**18))
    colorization.main(["--colorize", str(tmp_path / f"a.{suffix}"), "--out-dir", str(tmp_path)])
    path = tmp_path / f"a_colored.{suffix}"
    with Image.open(path) as colored:
        assert xmp in (colored.info.get("xmp"), colored.info.get("XML:com.adobe.xmp", "").encode())
        if suffix == "jpg":
            assert colored.info["comment"] == b"taken by hand"
        else:
            assert (colored.text["Author"], colored.text["Title"]) == ("somebody", "caf\u00e9")
    assert path.stat().st_mtime_ns == 10**18


def test_what_is_too_long_for_a_jpeg_becomes_a_png(tmp_path):
    Image.new("L", (2, 65_501), 90).save(tmp_path / "tall.png")
    (tmp_path / "tall.png").rename(tmp_path / "tall.jpg")
    colorization.main(["--colorize", str(tmp_path / "tall.jpg"), "--out-dir", str(tmp_path)])
    assert Image.open(tmp_path / "tall_colored.png").size == (2, 65_501)


def test_chroma_is_the_mean_over_three_sizes_and_their_mirror_images():
    net, content = new_network(THREE_COLORS, model="UNet", kernel=3, num_filters=2)
    image = Image.fromarray(smooth_images(1)[0].transpose(1, 2, 0)).resize((128, 96))
    chroma, gray = colorize.predict_chroma((net, content), image)
    expected = []
    for size in ((32, 24), (64, 48), (96, 72)):
        small = image.resize(size, Image.Resampling.BOX, reducing_gap=2)
        level = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float().mean(1, keepdim=True) / 256
        for flip in ([], [3]):
            logits = predict(net, level.flip(flip))
            colored = decode_annealed_mean(logits, THREE_COLORS, level.flip(flip), 1.0, 1.25).flip(flip)
            expected.append(torch.nn.functional.interpolate(colored, (72, 96), mode="bicubic"))
    mean = torch.stack(expected).mean(0)
    assert torch.equal(gray, level)
    assert torch.allclose(chroma, mean - mean.mean(1, keepdim=True), atol=1e-5)


def test_the_guided_filter_by_hand():
    """Slope and offset around the middle pixel: means over 9x9 windows of coefficients over 9x9 windows."""
    torch.manual_seed(0)
    chroma, gray = torch.rand(1, 3, 21, 21).double(), torch.rand(1, 1, 21, 21).double()
    slopes, offsets = [], []
    for row in range(6, 15):
        for column in range(6, 15):
            window = ..., slice(row - 4, row + 5), slice(column - 4, column + 5)
            x, y = gray[window].flatten(), chroma[window].flatten(2)[0]  # (81,), (3, 81)
            covariance = ((x - x.mean()) * (y - y.mean(1, keepdim=True))).mean(1)
            slopes.append(covariance / (x.var(correction=0) + 0.001))
            offsets.append(y.mean(1) - slopes[-1] * x.mean())
    slope, offset = colorize.fit_to_gray(chroma, gray)
    assert torch.allclose(slope[0, :, 10, 10], torch.stack(slopes).mean(0))
    assert torch.allclose(offset[0, :, 10, 10], torch.stack(offsets).mean(0))
