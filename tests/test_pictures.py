"""Decoding, the measures of pictures, and the user's own photographs."""

import hashlib
import io
import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import smooth_images
from PIL import ExifTags, Image, ImageCms, ImageOps
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import activations
import colorization
import data
from pictures import colorize, metrics
from pictures.decoding import (
    CHROMA_GAIN,
    annealed_mean,
    apply_chroma,
    chroma_error,
    decode_annealed_mean,
    labels_to_rgb,
)
from sources import image_files
from training.log import RunLog
from utils.checkpoint import load_network, new_network, pretrained_path, save_checkpoint
from utils.console import UserError

THREE_COLORS = np.array([[0.1, 0.1, 0.1], [0.9, 0.3, 0.3], [0.2, 0.3, 0.7]])


def some_pictures(count=3, size=16, seed=0):
    """Random pictures (count, 3, size, size) in 0..1."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_decoding_by_hand():
    logits = torch.tensor([0.0, 1.0, 0.5]).view(1, 3, 1, 1)
    assert torch.allclose(labels_to_rgb(logits.argmax(1), THREE_COLORS).flatten(), torch.tensor([0.9, 0.3, 0.3]))
    gray = torch.full((1, 1, 1, 1), 0.4)
    odds = np.exp(np.array([0, 1, 0.5]) / 0.6)
    mean = odds @ THREE_COLORS / odds.sum()
    expected = 1.1 * (mean - mean.mean()) + 0.4
    assert torch.allclose(
        decode_annealed_mean(logits, THREE_COLORS, gray).flatten(), torch.tensor(expected).float(), atol=1e-6
    )
    cold = decode_annealed_mean(logits, THREE_COLORS, gray, 0.01)
    assert torch.allclose(cold, apply_chroma(labels_to_rgb(logits.argmax(1), THREE_COLORS), gray, CHROMA_GAIN), atol=1e-6)


def test_the_smooth_prediction_averages_the_chroma_of_neighbors():
    logits = torch.full((1, 3, 5, 5), -1000.0)
    logits[:, 0] = 0
    logits[:, :, 2, 2] = torch.tensor([-1000.0, 0.0, -1000.0])  # one pixel of another color
    gray = torch.full((1, 1, 5, 5), 0.5)
    base, other = (torch.tensor(color - color.mean()).float() for color in THREE_COLORS[:2])
    kernel = torch.tensor([1.0, 2, 1]) / 4
    share = torch.zeros(5, 5)
    share[1:4, 1:4] = kernel[:, None] * kernel
    chroma = base.view(3, 1, 1) + share * (other - base).view(3, 1, 1)
    assert torch.allclose(decode_annealed_mean(logits, THREE_COLORS, gray)[0], 0.5 + CHROMA_GAIN * chroma, atol=1e-6)


def test_color_error_is_that_of_the_mean_color():
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(110, 146, (2, 3, 8, 8), generator=generator, dtype=torch.uint8)  # any difference fits
    logits = torch.randn(2, 3, 8, 8, generator=generator)
    gray = images.float().mean(1, keepdim=True) / 256
    picture = apply_chroma(annealed_mean(logits, THREE_COLORS, 0.7).permute(0, 3, 1, 2), gray)
    expected = (picture - images.float() / 256).square().mean().item()
    assert chroma_error(logits, THREE_COLORS, images, 0.7).item() == pytest.approx(expected, rel=1e-5)
    shifted = images + 20  # the gray does not matter
    assert chroma_error(logits, THREE_COLORS, shifted, 0.7).item() == pytest.approx(expected, rel=1e-5)


def test_the_gray_given_is_kept_and_every_value_possible():
    gray = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    gray[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    laid = apply_chroma(some_pictures(2), gray)
    assert torch.allclose(laid.mean(1, keepdim=True), gray, atol=1e-6)
    assert laid.min() >= -1e-6 and laid.max() <= 1 + 1e-6


def test_colorfulness_by_hand():
    # one red and one blue pixel: rg = 255 and 0, yb = 127.5 and -255
    picture = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]).view(1, 3, 1, 2)
    spread, mean = math.hypot(127.5, 191.25), math.hypot(127.5, -63.75)
    assert metrics.colorfulness(picture).item() == pytest.approx(spread + 0.3 * mean, rel=1e-6)
    assert metrics.colorfulness(some_pictures()[:, :1].expand(-1, 3, -1, -1)).abs().max() < 1e-3


def test_measures_are_scikit_images():
    truth, picture = some_pictures(seed=1), (some_pictures(seed=1) + 0.1 * some_pictures(seed=2)).clamp(0, 1)
    figures = metrics.measure({"it": picture, "truth": truth}, truth, perceptual=True)["it"]
    one = [x.permute(0, 2, 3, 1).numpy() for x in (picture, truth)]
    assert figures["psnr"]["mean"] == pytest.approx(peak_signal_noise_ratio(*one, data_range=1), abs=1e-4)
    for number, (made, true) in enumerate(zip(*one)):
        each = {name: both["per_image"][number] for name, both in figures.items()}
        assert each["psnr"] == pytest.approx(peak_signal_noise_ratio(made, true, data_range=1), abs=1e-4)
        assert each["ssim"] == pytest.approx(structural_similarity(made, true, data_range=1, channel_axis=2), abs=1e-5)
        assert each["ciede2000"] == pytest.approx(deltaE_ciede2000(rgb2lab(made), rgb2lab(true)).mean(), abs=1e-4)
    assert figures["ssim"]["mean"] == pytest.approx(np.mean(figures["ssim"]["per_image"]), abs=1e-6)


def test_the_truth_itself_measures_as_perfect():
    truth = some_pictures()
    figures = metrics.measure({"truth": truth}, truth, perceptual=True)["truth"]
    assert figures["psnr"]["mean"] is None and figures["psnr"]["per_image"] == [None] * 3
    assert [figures[name]["mean"] for name in ("ssim", "auc", "balanced_auc", "ciede2000")] == pytest.approx(
        [1, 1, 1, 0]
    )


def test_auc_is_the_area_under_the_curve_and_balance_weighs_rare_colors_up():
    truth = torch.tensor([0.5, 0.5, 0.5]).view(1, 3, 1, 1).repeat(1, 1, 8, 8)
    truth[0, :, 0, 0] = torch.tensor([1.0, 0.0, 0.0])
    gray = truth.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    figures = metrics.measure({"gray": gray}, truth, perceptual=True)["gray"]
    far = np.linalg.norm((rgb2lab([1.0, 0, 0]) - rgb2lab([1 / 3] * 3))[1:])
    curve = [np.mean(np.array([0.0] * 63 + [far]) <= threshold) for threshold in np.linspace(0, 150, 15001)]
    assert figures["auc"]["mean"] == pytest.approx(np.mean(curve), abs=1e-4)
    assert figures["balanced_auc"]["mean"] == pytest.approx(1 - far / 150 / 2, abs=0.01)  # two colors, a half each


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


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    Image.new("RGB", (200, 100)).save(tmp_path / "large.png")
    monkeypatch.setattr(image_files, "MAX_PIXELS", 19_000)
    with pytest.raises(UserError, match=r"large\.png: .*it has 20,000 pixels.; .* up to 19,000 pixels"):
        image_files.read_image(tmp_path / "large.png")


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


@pytest.fixture
def photo_folder(tmp_path, monkeypatch):
    """A folder of ten pictures to learn from, and one that is broken; an epoch has 100 crops."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "MIN_CROPS", 100)
    (tmp_path / "mine" / "more").mkdir(parents=True)
    for number, picture in enumerate(smooth_images(10)):
        image = Image.fromarray(picture.transpose(1, 2, 0)).resize((60 + number, 50))
        image.save(tmp_path / "mine" / ("more" if number % 2 else "") / f"{number}.png")
    (tmp_path / "mine" / "broken.jpg").write_text("no picture")
    return tmp_path / "mine"


def test_training_on_a_folder_of_pictures(photo_folder, capsys, fails):
    flags = ["--data", str(photo_folder), "-c", "4", "-f", "4"]
    colorization.main([*flags, "-e", "1", "-b", "8"])
    said = capsys.readouterr()
    assert "100 training and 10 validation images" in said.out
    assert (said.out + said.err).count("broken.jpg: ") == 1
    colorization.main([*flags[:2], "--valid", "--checkpoint", "outputs/unet_k3_f4.pkl"])
    assert "validation loss" in capsys.readouterr().out
    assert "--holdout has no effect" in fails(colorization.main, *flags, "-e", "1", "--holdout", "3")


def test_a_network_taught_an_album_colors_photographs(photo_folder, capsys):
    """The advised way: start from the shipped network for photographs, then color with what came out."""
    flags = ["--start-from", str(pretrained_path(photographs=True)), "--data", str(photo_folder), "-l", "0.004"]
    colorization.main([*flags, "-e", "1", "-b", "20", "--working-size", "48"])
    (weights,) = Path("outputs").glob("*_f64.pkl")
    assert load_network(weights)[1].working_size == 48
    colorization.main(["--colorize", str(photo_folder / "0.png"), "--checkpoint", str(weights), "--out-dir", "out"])
    with Image.open("out/0_colored.png") as colored, Image.open(photo_folder / "0.png") as source:
        assert colored.size == source.size
        grays = [np.asarray(image.convert("RGB")).mean(2) for image in (colored, source)]
        assert abs(grays[0] - grays[1]).max() <= 1
        assert np.ptp(np.asarray(colored).astype(int), axis=2).max() > 10


def test_an_interrupted_run_on_an_album_resumes_with_the_same_crops(photo_folder, monkeypatch):
    flags = ["--data", str(photo_folder), "-c", str(photo_folder.parent / "palette.npy"), "-f", "2", "-b", "20", "-e", "2"]
    np.save(photo_folder.parent / "palette.npy", THREE_COLORS)
    colorization.main([*flags, "--out-dir", "whole"])

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        write = RunLog.write
        patch.setattr(RunLog, "write", lambda *written: (write(*written), stop()))
        with pytest.raises(KeyboardInterrupt):
            colorization.main([*flags, "--out-dir", "halves"])
    colorization.main([*flags, "--out-dir", "halves", "--resume"])
    whole, halves = (load_network(f"{out}/unet_k3_f2.pkl")[1].state_dict for out in ("whole", "halves"))
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


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


def test_validation_writes_every_images_figures(cifar, small_palette, capsys):
    colorization.main(["-e", "1", "-b", "10", "-f", "4", "-c", str(small_palette)])
    colorization.main(["--valid", "--checkpoint", "outputs/unet_k3_f4.pkl", "--json", "figures.json"])
    printed = capsys.readouterr().out
    figures = json.loads(Path("figures.json").read_text())
    names = {"psnr", "colorfulness", "ssim", "ciede2000", "auc", "balanced_auc"}
    rows = {"gray input", "mean training color, over the gray", "prediction in palette colors", "smooth prediction"}
    rows |= {"truth in palette colors", "truth in palette colors, over the gray", "truth"}
    assert figures["pictures"].keys() == rows and figures["loss"] > 0
    for label, row in figures["pictures"].items():
        assert label in printed and row.keys() == names
        assert all(len(both["per_image"]) == 4 for both in row.values())  # horses among 40 images
    assert figures["pictures"]["gray input"]["colorfulness"]["mean"] == 0


@pytest.mark.parametrize("flags", [["--rebalance"], ["--picture-weight", "100"]])
def test_other_losses_change_what_is_learned(cifar, small_palette, flags):
    weights = []
    for more in ([], flags):
        colorization.main(["-e", "1", "-b", "10", "-f", "4", "-c", str(small_palette), *more])
        weights.append(torch.load("outputs/unet_k3_f4.pkl", weights_only=True)["state_dict"]["finalconv.weight"])
    assert not torch.equal(*weights)


def test_training_starts_from_a_checkpoint(cifar, small_palette, fails, capsys):
    colorization.main(["-e", "2", "-b", "10", "-f", "4", "-c", str(small_palette), "--out-dir", "first"])
    first = torch.load("first/unet_k3_f4.pkl", weights_only=True)["state_dict"]["finalconv.weight"]
    flags = ["-e", "1", "-b", "10", "-l", "1e-8", "--start-from", "first/unet_k3_f4.pkl"]
    colorization.main(flags)
    second = torch.load("outputs/unet_k3_f4.pkl", weights_only=True)
    assert torch.allclose(second["state_dict"]["finalconv.weight"], first, atol=1e-5)
    assert np.array_equal(second["palette"].numpy(), np.load(small_palette)) and second["epoch"] == 1
    assert "its model is UNet, not CNN" in fails(colorization.main, *flags, "--model", "CNN")
    assert "missing.pkl: cannot read" in fails(colorization.main, "--start-from", "missing.pkl")


def test_activations_of_a_picture_file(photo_folder, capsys):
    save_checkpoint("small.pkl", new_network(THREE_COLORS, model="UNet", kernel=3, num_filters=2)[1])
    activations.main([str(photo_folder / "0.png"), "--checkpoint", "small.pkl"])
    assert "activations_unet_0" in capsys.readouterr().out


def test_activations_of_a_file_that_is_no_picture(photo_folder, fails):
    assert "broken.jpg" in fails(activations.main, photo_folder / "broken.jpg")
