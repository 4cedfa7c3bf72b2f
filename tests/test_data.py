"""The data sets: gray, labels, palettes, what is held out."""

import io
import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Payload, handout_palette, hostile_palette, smooth_images
from helpers import CPU, PALETTE

import colorization
import data
from data import ImageSource, hold_out
from sources import cifar10, image_files
from utils.checkpoint import new_network
from utils.console import UserError


def brute_force(images, palette):
    """The nearest palette color of every pixel, the plain way; argmin takes the first of equals."""
    pixels = images.permute(0, 2, 3, 1).numpy() / 256
    return ((pixels[..., None, :] - palette) ** 2).sum(-1).argmin(-1)


def test_quantizer_is_brute_force_with_ties():
    # Each color twice, and colors whose middle is a byte: ties everywhere.
    palette = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0, 0, 0], [0.5, 0.5, 0.5], [0.25, 0.75, 0.25], [0.75, 0.25, 0.75]])
    random = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32)).astype(np.uint8))
    ties = torch.full((1, 3, 32, 32), 64, dtype=torch.uint8)  # half way between colors 0 and 1
    images = torch.cat([random, ties])
    labels = data.ImageDataset(images, palette, torch.device("cpu")).targets(images)
    assert labels.dtype == torch.uint8
    assert (labels.numpy() == brute_force(torch.cat([random, ties]), palette)).all()
    assert (labels[3] == 0).all()
    assert not (labels == 2).any()


def test_quantizer_with_many_colors_and_any_size():
    palette = np.random.default_rng(1).random((256, 3))
    images = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (2, 3, 8, 12)).astype(np.uint8))
    assert (
        data.ImageDataset(images, palette, torch.device("cpu")).targets(images).numpy() == brute_force(images, palette)
    ).all()


def test_a_folder_of_cifar10_is_told_from_one_of_images(cifar, tmp_path):
    (tmp_path / "album").mkdir()
    for name, folder in (("cifar10", cifar), (str(cifar), cifar), ("album", None), ("sample", None)):
        assert data.ImageSource(name).cifar10_folder == folder
    assert data.ImageSource(str(cifar / cifar10.FOLDER)).cifar10_folder == cifar
    horses = data.ImageSource(str(cifar), "horse").validation_images()
    assert torch.equal(horses, cifar10.load_cifar10(cifar, ["horse"], train=False)[0])
    (cifar / cifar10.FOLDER).rename(tmp_path / "elsewhere")
    (cifar / "cifar-10-python.tar.gz").touch()  # to be unpacked
    assert data.ImageSource(str(cifar)).cifar10_folder == cifar


def test_gray_is_the_mean_over_256():
    image = torch.tensor([255, 0, 3], dtype=torch.uint8).view(1, 3, 1, 1)
    assert data.to_gray(image).item() == 86 / 256


def test_sample_crops_are_thousands_of_small_pictures():
    source = data.ImageSource("sample")
    train, valid = source.training_images(), source.validation_images()
    assert train.shape == (2000, 3, 32, 32) and valid.shape == (200, 3, 32, 32)
    assert train.dtype == torch.uint8


def test_new_images_get_a_table_of_their_own():
    palette = np.array([[0.1, 0.2, 0.3], [0.9, 0.8, 0.7]])
    images = torch.from_numpy(smooth_images(8))
    dataset = data.ImageDataset(images[:4], palette, torch.device("cpu"))
    dataset.set_images(images[4:])
    assert torch.equal(dataset.images, images[4:]) and len(dataset) == 4
    assert (dataset.targets(images[4:]).numpy() == brute_force(images[4:], palette)).all()


def test_an_album_is_cropped_anew_in_every_epoch():
    palette = np.array([[0.1, 0.2, 0.3], [0.9, 0.8, 0.7]])
    photographs = [smooth_images(1, seed)[0].transpose(1, 2, 0) for seed in range(3)]
    first = torch.from_numpy(smooth_images(6))
    crops = partial(image_files.random_crops, photographs, 32, 64, 6, augmented=True)
    album = data.ImageDataset(first, palette, torch.device("cpu"))
    album.crops = crops
    assert torch.equal(album.images, first)
    seen = []
    for seed in (1, 2, 1):
        album.start_epoch(seed)
        expected = image_files.random_crops(photographs, 32, 64, 6, seed, augmented=True)
        assert torch.equal(album.images, expected)
        assert (album.targets(album.images).numpy() == brute_force(expected, palette)).all()
        seen.append(album.images)
    assert torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[1])
    others = data.ImageDataset(first, palette, torch.device("cpu"))
    others.start_epoch(1)
    assert torch.equal(others.images, first)


def test_a_data_set_says_what_its_targets_are():
    images = torch.from_numpy(smooth_images(2))
    regression = data.ImageDataset(images, None, torch.device("cpu"))
    assert not regression.is_classification and torch.equal(regression.targets(images), images / 256)
    assert data.ImageDataset(images, np.eye(3), torch.device("cpu")).is_classification


def test_palette_is_fitted_to_all_pixels_and_repeats():
    centers = np.array([[20, 30, 40], [200, 190, 10], [120, 230, 240]])
    noise = np.random.default_rng(0).integers(-6, 7, (20, 16, 16, 3))
    images = centers[np.random.default_rng(1).integers(0, 3, (20, 16, 16))] + noise
    images = torch.from_numpy(images.astype(np.uint8)).permute(0, 3, 1, 2)
    palette, distance = data.fit_palette(images, 3, seed=4)
    assert palette.dtype == np.float64
    np.testing.assert_allclose(palette * 256, centers[np.argsort(centers.sum(1))], atol=0.5)
    pixels = images.permute(0, 2, 3, 1).reshape(-1, 3).numpy() / 256
    nearest = np.linalg.norm(pixels[:, None] - palette, axis=2).min(1)
    assert distance == pytest.approx(nearest.mean(), abs=1e-12)
    assert (data.fit_palette(images, 3, seed=4)[0] == palette).all()


def test_k_means_sums_in_one_thread_and_keeps_its_best_start(monkeypatch):
    """Several threads would sum in varying order, so that the last digits would differ."""
    from sklearn.cluster import KMeans
    from sklearn.utils._openmp_helpers import _openmp_effective_n_threads

    fit, threads = KMeans.fit, []

    def watched(self, *settings, **more):
        threads.append((_openmp_effective_n_threads(), self.n_init))
        return fit(self, *settings, **more)

    monkeypatch.setattr(KMeans, "fit", watched)
    data.fit_palette(torch.from_numpy(smooth_images(4)), 3)
    assert threads == [(1, 8)]


def test_palette_of_more_colors_than_there_are():
    with pytest.raises(UserError, match="only 1 different"):
        data.fit_palette(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 2)


def test_shipped_palettes():
    for count in (16, 24, 32):
        path = data.palette_path(count, "horse")
        palette = np.load(path, allow_pickle=False)
        assert palette.shape == (count, 3)
        assert palette.dtype == np.float64
        assert (np.diff(palette.sum(1)) > 0).all(), "from dark to light"
        assert (data.load_palette(path) == palette).all()


def test_the_handouts_palettes_load(tmp_path):
    palette = np.random.default_rng(0).random((24, 3))
    (tmp_path / "handout.npy").write_bytes(handout_palette(palette))
    assert (data.load_palette(tmp_path / "handout.npy") == palette).all()
    # The bytes above are what numpy, too, takes for such a file.
    theirs = np.load(tmp_path / "handout.npy", allow_pickle=True, encoding="latin1")
    assert (theirs[0] == palette).all()
    assert theirs[1] == 0.07


BAD_PALETTES = {
    "wrong shape": np.zeros((24, 4)),
    "one color": np.zeros((1, 3)),
    "too many": np.random.default_rng(0).random((257, 3)),
    "bytes": np.arange(72).reshape(24, 3),
    "too large": np.linspace(0, 2, 6).reshape(2, 3),
    "negative": np.linspace(-0.5, 0.9, 6).reshape(2, 3),
    "not a number": np.array([[0.1, 0.2, np.nan], [0, 0, 0]]),
    "a color twice": np.array([[0.1, 0.2, 0.3]] * 2),
}


@pytest.mark.parametrize("fault", BAD_PALETTES)
def test_bad_palettes_are_named(tmp_path, fault):
    np.save(tmp_path / "bad.npy", BAD_PALETTES[fault])
    with pytest.raises(UserError, match=r"bad\.npy: not a palette"):
        data.load_palette(tmp_path / "bad.npy")


def test_the_largest_palette(tmp_path):
    palette = np.random.default_rng(0).random((256, 3))
    np.save(tmp_path / "most.npy", palette)
    assert np.array_equal(data.load_palette(tmp_path / "most.npy"), palette)


def test_palettes_that_are_no_palettes_at_all(tmp_path):
    with pytest.raises(UserError, match=r"gone\.npy: cannot read"):
        data.load_palette(tmp_path / "gone.npy")
    for content in (b"", b"\x89PNG", handout_palette(np.zeros((24, 3)))[:-60]):
        (tmp_path / "bad.npy").write_bytes(content)
        with pytest.raises(UserError, match=r"bad\.npy: not a palette"):
            data.load_palette(tmp_path / "bad.npy")


def test_a_hostile_palette_does_nothing(tmp_path):
    (tmp_path / "bad.npy").write_bytes(hostile_palette(tmp_path / "mark"))
    stream = io.BytesIO()
    np.save(stream, np.array([Payload(tmp_path / "mark")], dtype=object), allow_pickle=True)
    (tmp_path / "worse.npy").write_bytes(stream.getvalue())
    for name in ("bad.npy", "worse.npy"):
        with pytest.raises(UserError, match="not a palette"):
            data.load_palette(tmp_path / name)
    assert not (tmp_path / "mark").exists()


def test_a_palette_is_fitted_once(cifar, monkeypatch):
    torch.save(new_network(PALETTE, model="CNN", kernel=3, num_filters=2)[0].state_dict(), "bare.pkl")
    fits = []
    monkeypatch.setattr(data, "fit_palette", lambda *_: fits.append(1) or (PALETTE, 0.1))
    flags = ["--category", "cat", "-c", "5", "-m", "CNN", "-f", "2"]
    colorization.main(["--valid", "--checkpoint", "bare.pkl", *flags])
    assert len(fits) == 1


def test_fitting_a_palette(cifar, capsys):
    data.main(["--colors", "6", "--output", "p.npy"])
    assert re.search(r"palette color: 0\.\d{5} ", capsys.readouterr().out)
    first = Path("p.npy").read_bytes()
    assert data.load_palette("p.npy").shape == (6, 3)
    data.main(["--colors", "6", "--output", "p.npy"])
    assert Path("p.npy").read_bytes() == first


def test_the_seed_of_k_means_has_its_range(cifar, fails):
    assert "--seed: '-1' is not a number from 0" in fails(data.main, "--seed", "-1")


def test_images_of_every_class_are_held_out_the_same_ones_for_every_seed():
    images, one_class = torch.arange(20).view(20, 1, 1, 1), torch.zeros(20)
    torch.manual_seed(1)
    others, held = hold_out(images, one_class, 6)
    torch.manual_seed(2)
    assert torch.equal(held, hold_out(images, one_class, 6)[1])
    assert len(held) == 6
    assert sorted(torch.cat([others, held]).flatten().tolist()) == list(range(20))
    with pytest.raises(UserError, match="only 20"):
        hold_out(images, one_class, 20)

    labels = torch.arange(20) % 2
    others, held = hold_out(images, labels, 3)
    assert torch.equal(held[held % 2 == 0], hold_out(images[::2], torch.zeros(10), 3)[1].flatten())
    assert sorted(torch.cat([others, held]).flatten().tolist()) == list(range(20))
    with pytest.raises(UserError, match="only 10 training images of each class"):
        hold_out(images, labels, 10)


def test_what_is_held_out_stays_the_same():
    images = torch.arange(20).view(20, 1, 1, 1)
    assert hold_out(images, torch.zeros(20), 6)[1].flatten().tolist() == [4, 5, 7, 13, 14, 19]


def test_palette_colors_are_means_of_pixels_from_dark_to_light():
    levels = torch.tensor([0] * 200 + [30] * 6 + [255] * 50, dtype=torch.uint8)
    palette, _ = data.fit_palette(levels.view(1, 1, 16, 16).expand(1, 3, 16, 16), 2)
    np.testing.assert_allclose(palette * 256, [[6 * 30 / 206] * 3, [255] * 3], atol=1e-9)
    green, blue = (torch.tensor(color, dtype=torch.uint8).view(1, 3, 1, 1) for color in ([0, 100, 0], [0, 0, 150]))
    assert (data.fit_palette(torch.cat([blue, green]), 2)[0] * 256).tolist() == [[0, 100, 0], [0, 0, 150]]


def test_k_means_converges():
    images = torch.from_numpy(smooth_images(100))
    palette, _ = data.fit_palette(images, 8)
    pixels = images.permute(0, 2, 3, 1).reshape(-1, 3).numpy() / 256
    labels, _ = data.nearest_color(pixels, palette)
    means = [pixels[labels == label].mean(0) for label in range(8)]
    np.testing.assert_allclose(palette, means, atol=1e-6)


def test_the_nearest_color_may_be_far():
    labels, distances = data.nearest_color(np.zeros((1, 3)), np.array([[1.0, 1, 1], [0.9, 0.9, 0.9]]))
    assert labels.tolist() == [1] and distances == pytest.approx([0.9 * math.sqrt(3)])


def test_the_seed_reaches_k_means(cifar, monkeypatch):
    seeds = []
    monkeypatch.setattr(
        data, "fit_palette", lambda images, count, seed=0, chroma=False: seeds.append(seed) or (PALETTE, 0.1)
    )
    data.main(["--colors", "5", "--seed", "3", "--output", "p.npy"])
    data.palette_for("5", ImageSource(category="cat"), 4)
    assert seeds == [3, 4]


def test_an_album_trains_on_its_training_photographs(monkeypatch):
    photographs = {train: [np.full((80, 120, 3), 0 if train else 255, np.uint8)] for train in (True, False)}
    monkeypatch.setattr(ImageSource, "photographs", lambda self, train: photographs[train])
    monkeypatch.setattr(data, "MIN_CROPS", 20)
    album = ImageSource("sample", working_size=48).training_set(None, CPU)
    album.start_epoch(1)
    assert album.images.max() < 128 and album.crops.args[1:] == (32, 48, 20)  # black but for the noise


def test_a_palette_is_fitted_to_training_images(cifar, monkeypatch):
    fitted, source = [], ImageSource(category="cat", holdout=3)
    monkeypatch.setattr(data, "fit_palette", lambda images, *_: fitted.append(images) or (PALETTE, 0.1))
    data.palette_for("5", source)
    assert torch.equal(fitted[0], source.training_images())


def test_2_to_256_colors_are_supported():
    assert data.palette_file("256", ImageSource()) is None
    with pytest.raises(UserError, match="2 to 256"):
        data.palette_file("257", ImageSource())


def test_k_means_starts_from_the_seed_and_has_a_small_tolerance(monkeypatch):
    from sklearn.cluster import KMeans

    fit, seen = KMeans.fit, []
    monkeypatch.setattr(KMeans, "fit", lambda self, *a, **k: seen.append(vars(self)) or fit(self, *a, **k))
    data.fit_palette(torch.from_numpy(smooth_images(4)), 3, seed=5)
    assert [seen[0][name] for name in ("random_state", "tol", "max_iter")] == [5, 1e-7, 1000]


def test_a_palette_of_chromas_tells_colors_apart_whatever_their_gray():
    """Dark and light pixels of two chromas: two colors of gray 1/2, and labels by the nearest chroma."""
    chromas = np.array([[40, -20, -20], [-24, -12, 36]])
    pixels = np.stack([gray + chromas[number % 2] for number, gray in enumerate((60, 70, 100, 128, 180, 200))])
    images = torch.from_numpy(pixels.T.reshape(1, 3, 2, 3).astype(np.uint8))
    palette, distance = data.fit_palette(images, 2, chroma=True)
    assert np.allclose(palette.mean(1), 0.5) and distance < 1e-6
    assert np.allclose(sorted(palette.tolist()), sorted((0.5 + chromas / 256).tolist()))
    labels = data.ImageDataset(images, palette, CPU).targets(images)[0].flatten()
    assert np.allclose(palette[labels.numpy()], 0.5 + chromas[[0, 1] * 3] / 256)
    with pytest.raises(UserError, match="only 2 different chromas"):
        data.fit_palette(images, 3, chroma=True)


def test_validation_images_are_of_the_training_set_only_if_held_out(cifar):
    test = cifar10.load_cifar10(cifar, ["horse"], train=False)[0]
    training = cifar10.load_cifar10(cifar, ["horse"], train=True)[0]
    assert torch.equal(ImageSource().validation_images(), test)
    held = ImageSource(holdout=3).validation_images()
    assert len(held) == 3 and all((training == image).flatten(1).all(1).any() for image in held)
    assert torch.equal(torch.cat([ImageSource(holdout=3).training_images(), held]).sum(0), training.sum(0))


def test_a_palette_file_is_small(tmp_path):
    np.save(tmp_path / "p.npy", np.zeros(200_000))
    with pytest.raises(UserError, match="it has 1,600,128 bytes"):
        data.load_palette(tmp_path / "p.npy")


def test_what_is_no_palette_file_says_so(tmp_path, fails):
    (tmp_path / "palette.npy").write_text("0.1 0.2 0.3")
    said = fails(colorization.main, "-c", tmp_path / "palette.npy")
    assert "(it is not a .npy file); fit one with: python data.py --colors 24 --output palette.npy" in said


def test_where_cifar10_is(cifar, monkeypatch):
    assert ImageSource().path == cifar / cifar10.FOLDER
    monkeypatch.setenv("COLORIZATION_DATA", "~/pictures")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert ImageSource().cifar10_folder == Path("/home/somebody/pictures")
    monkeypatch.setenv("COLORIZATION_DATA", str(cifar / cifar10.FOLDER))
    assert ImageSource().cifar10_folder == ImageSource(str(cifar / cifar10.FOLDER)).cifar10_folder == cifar
    (cifar / "other").mkdir()
    (cifar / cifar10.FOLDER).rename(cifar / "other" / cifar10.FOLDER)
    (cifar / "other").rename(cifar / cifar10.FOLDER)
    assert ImageSource().cifar10_folder == cifar / cifar10.FOLDER  # which contains one of its own name


def test_sample_means_the_shipped_photographs_even_beside_a_folder_of_this_name(cifar, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample").symlink_to(cifar)
    assert ImageSource("sample").path is None and ImageSource("sample").is_album
    assert ImageSource("./sample").cifar10_folder == Path("sample")


def test_an_album_has_as_many_crops_as_photographs_if_these_are_many(monkeypatch):
    monkeypatch.setattr(ImageSource, "photographs", lambda self, train: [np.zeros((40, 40, 3), np.uint8)] * 7)
    monkeypatch.setattr(data, "MIN_CROPS", 5)
    assert len(ImageSource("sample").training_images()) == len(ImageSource("sample").validation_images()) == 7
    assert ImageSource("sample").training_set(None, CPU).crops.keywords == {"augmented": True}


def test_crops_have_the_sizes_of_the_source(monkeypatch):
    read, cropped = [], []
    monkeypatch.setattr(data, "folder_photographs", lambda folder, *settings: read.append(settings) or [])
    monkeypatch.setattr(data, "random_crops", lambda photographs, *settings, seed: cropped.append(settings))
    ImageSource(".", working_size=48, crop_size=64).validation_images()
    assert read == [(False, 48)] and cropped == [(64, 48, 200)]


def test_chromas_of_pure_colors_stay_colors():
    red_and_blue = torch.tensor([[255, 0], [0, 0], [0, 255]], dtype=torch.uint8).view(1, 3, 1, 2)
    palette, _ = data.fit_palette(red_and_blue, 2, chroma=True)  # their gray, 85, becomes 128: 298 would be too much
    expected = [[256, 57.333, 57.333], [57.333, 57.333, 256]]
    assert palette.max() <= 1 and np.allclose(sorted((palette * 256).tolist(), reverse=True), expected, atol=0.01)


def test_a_number_of_colors_means_the_shipped_palette_of_the_same_images(cifar, tmp_path):
    assert data.palette_file("24", ImageSource()) == data.palette_path(24, "horse")
    assert data.palette_file("24", ImageSource(category="cat")) is None  # none is shipped
    assert data.palette_path(24, "horse", chroma=True).name == "color_kmeans24_cat7_chroma.npy"  # replaces none of RGB
    assert data.palette_file("24", ImageSource(str(tmp_path / "album"))) is None


def test_a_palette_is_fitted_as_the_flags_say(cifar, photo_folder, monkeypatch, fails):
    fitted, named = [], []
    monkeypatch.setattr(data, "fit_palette", lambda *settings: fitted.append(settings) or (PALETTE, 0.1))
    monkeypatch.setattr(data, "palette_path", lambda *name: named.append(name) or Path("p.npy"))
    data.main(["--colors", "5", "--category", "cat", "--seed", "3", "--chroma"])
    images, *settings = fitted[0]
    assert torch.equal(images, ImageSource(category="cat").training_images()) and settings == [5, 3, True]
    assert named == [(5, "cat", True)] and Path("p.npy").exists()
    assert "p.npy: already exists" in fails(data.main, "--colors", "5")
    assert f"--data {photo_folder} needs --output FILE" in fails(data.main, "--data", photo_folder)
