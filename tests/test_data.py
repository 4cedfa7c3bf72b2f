"""Reading images and palettes, quantizing, downloading; and what lies in the way of each."""

import hashlib
import http.server
import io
import pickle
import tarfile
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROWS, Payload, batch_bytes, handout_palette, hostile_palette, smooth_images, write_archive

import colorization
import data
from sources import cifar10, image_files
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


def test_of_very_many_images_every_color_has_its_label(monkeypatch):
    monkeypatch.setattr(data, "MAX_SCANNED_IMAGES", 2)
    palette = np.array([[0, 0, 0], [0.25, 0.5, 0.75], [0.9, 0.9, 0.9]])
    dataset = data.ImageDataset(torch.zeros(3, 3, 4, 4, dtype=torch.uint8), palette, torch.device("cpu"))
    unseen = torch.from_numpy(smooth_images(2))
    assert (dataset.targets(unseen).numpy() == brute_force(unseen, palette)).all()


def test_samples_are_evenly_spaced():
    images = torch.arange(10)
    assert data.subsample(images, 10).equal(images)
    assert data.subsample(images, 9).tolist() == [0, 2, 4, 6, 8]
    assert data.subsample(images, 3).tolist() == [0, 4, 8]


def test_an_array_file_is_trained_on_from_the_disk(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images = smooth_images(40)
    np.save("mine.npy", images)
    for train, expected in ((True, images[:36]), (False, images[36:])):
        mapped = image_files.array_images("mine.npy", train)
        assert np.array_equal(mapped.numpy(), expected)
        mapped[0] = 0  # stays in memory
    assert np.array_equal(np.load("mine.npy"), images)
    colorization.main(["--data", "mine.npy", "-c", "4", "-e", "1", "-f", "2", "-b", "8"])
    assert "36 training and 4 validation images of mine.npy" in capsys.readouterr().out
    colorization.main(["--data", "mine.npy", "--valid", "--checkpoint", "outputs/unet_k3_f2.pkl"])
    assert "4 images of mine.npy" in capsys.readouterr().out


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


def test_a_folder_of_cifar10_is_told_from_one_of_images(cifar, tmp_path):
    (tmp_path / "album").mkdir()
    for name, folder in (("cifar10", cifar), (str(cifar), cifar), ("album", None), ("sample", None)):
        assert data.ImageSource(name).cifar10_folder == folder
    horses = data.ImageSource(str(cifar), "horse").validation_images()
    assert torch.equal(horses, cifar10.load_cifar10(cifar, ["horse"], train=False)[0])
    (cifar / cifar10.FOLDER).rename(tmp_path / "elsewhere")
    (cifar / "cifar-10-python.tar.gz").touch()  # to be unpacked
    assert data.ImageSource(str(cifar)).cifar10_folder == cifar


def test_gray_is_the_mean_over_256():
    image = torch.tensor([255, 0, 3], dtype=torch.uint8).view(1, 3, 1, 1)
    assert data.to_gray(image).item() == 86 / 256


def test_cifar_by_category(cifar):
    horses, labels = cifar10.load_cifar10(cifar, ["horse"], train=True)
    assert labels.tolist() == [7] * len(horses)
    assert horses.shape == (5 * ROWS // 10, 3, 32, 32)
    assert horses.dtype == torch.uint8
    expected = [smooth_images(ROWS, seed)[row] for seed in range(5) for row in range(7, ROWS, 10)]
    assert (horses.numpy() == np.stack(expected)).all()
    assert len(cifar10.load_cifar10(cifar, cifar10.CLASSES, train=True)[0]) == 5 * ROWS
    assert (cifar10.load_cifar10(cifar, ["airplane"], train=False)[0][0].numpy() == smooth_images(ROWS, 5)[0]).all()


BROKEN = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-5000]),
    "html": lambda path: path.write_bytes(b"<!DOCTYPE html><html></html>"),
    "few images": lambda path: path.write_bytes(batch_bytes(smooth_images(20).reshape(20, -1), [7] * ROWS)),
    "few labels": lambda path: path.write_bytes(batch_bytes(smooth_images(ROWS).reshape(ROWS, -1), [7] * 20)),
    "wrong label": lambda path: path.write_bytes(batch_bytes(smooth_images(ROWS).reshape(ROWS, -1), [10] * ROWS)),
    "other content": lambda path: path.write_bytes(pickle.dumps({b"data": 1, b"labels": 2}, 2)),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_broken_batches_are_named(cifar, damage):
    path = cifar / cifar10.FOLDER / "data_batch_3"
    BROKEN[damage](path)
    with pytest.raises(UserError, match=r"data_batch_3.*delete"):
        cifar10.load_cifar10(cifar, ["horse"], train=True)


def test_a_hostile_batch_does_nothing(cifar, tmp_path):
    path = cifar / cifar10.FOLDER / "test_batch"
    path.write_bytes(pickle.dumps(Payload(tmp_path / "mark"), 2))
    with pytest.raises(UserError, match="test_batch"):
        cifar10.load_cifar10(cifar, ["horse"], train=False)
    assert not (tmp_path / "mark").exists()


def test_the_archive_is_unpacked_once(cifar, monkeypatch):
    folder = cifar / cifar10.FOLDER
    before, _ = cifar10.load_cifar10(cifar, cifar10.CLASSES, train=False)
    monkeypatch.setattr(cifar10, "SHA256", write_archive(cifar / "cifar-10-python.tar.gz", folder))
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert (cifar10.load_cifar10(cifar, cifar10.CLASSES, train=False)[0] == before).all()
    (cifar / "cifar-10-python.tar.gz").unlink()
    assert (cifar10.load_cifar10(cifar, cifar10.CLASSES, train=False)[0] == before).all()
    assert sorted(path.name for path in cifar.iterdir()) == [cifar10.FOLDER]


def test_archives_that_are_not_cifar_leave_no_folder(tmp_path, monkeypatch):
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(b"half an archive")
    with pytest.raises(UserError, match="SHA-256"):
        cifar10.batches_folder(tmp_path)
    (tmp_path / "something").mkdir()
    sha = write_archive(archive, tmp_path / "something")
    with pytest.raises(UserError, match="not a copy of CIFAR-10"):
        cifar10.unpack(archive, tmp_path / cifar10.FOLDER, sha)
    with tarfile.open(archive, "w:gz") as tar:
        link = tarfile.TarInfo(f"{cifar10.FOLDER}/data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(UserError, match="not a copy of CIFAR-10"):
        cifar10.unpack(archive, tmp_path / cifar10.FOLDER, sha256(archive))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cifar-10-python.tar.gz", "something"]


def test_hostile_archives_write_nothing(tmp_path):
    (tmp_path / "data").mkdir()
    archive = tmp_path / "data" / "archive.tar"
    folder = cifar10.FOLDER
    for name in (str(tmp_path / "absolute"), "../above", f"{folder}/../above", f"{folder}/data_batch_1"):
        with tarfile.open(archive, "w") as tar:
            member = tarfile.TarInfo(name)
            member.size = 50_000_000 if name.endswith("batch_1") else 10
            tar.addfile(member, io.BytesIO(bytes(member.size)))
        with pytest.raises(UserError, match="CIFAR-10"):
            cifar10.unpack(archive, tmp_path / "data" / cifar10.FOLDER, sha256(archive))
        assert [path.name for path in tmp_path.rglob("*")] == ["data", "archive.tar"]
    for change in (
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"type": tarfile.DIRTYPE},
        {"size": 50_000_000},
    ):
        with tarfile.open(archive, "w") as tar:
            for name in cifar10.TRAIN_FILES + cifar10.TEST_FILES:
                member = tarfile.TarInfo(f"{folder}/{name}")
                for key, value in change.items() if name == "data_batch_2" else ():
                    setattr(member, key, value)
                tar.addfile(member, io.BytesIO(bytes(member.size)))
        with pytest.raises(UserError, match="not regular files"):
            cifar10.unpack(archive, tmp_path / "data" / cifar10.FOLDER, sha256(archive))
        assert [path.name for path in tmp_path.rglob("*")] == ["data", "archive.tar"]
    huge = tarfile.TarInfo(f"{cifar10.FOLDER}/data_batch_1")
    huge.size = 100 << 30
    archive.write_bytes(huge.tobuf() + bytes(10_000))
    with pytest.raises(UserError, match="CIFAR-10"):
        cifar10.unpack(archive, tmp_path / "data" / cifar10.FOLDER, sha256(archive))


def sha256(path):
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def server():
    """An HTTP server on this machine; `.answer` is (status, announced length or None, body).

    A status of None is silence; a redirect's body is where it leads.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, length, body = state.answer
            if status is None:
                over.wait(20)
                return
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", body.decode())
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = SimpleNamespace(answer=(200, None, b""), url=f"http://127.0.0.1:{httpd.server_port}/file.tar.gz")
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    over = threading.Event()
    yield state
    over.set()
    httpd.shutdown()
    httpd.server_close()


def test_a_download_arrives_whole(server, tmp_path):
    body = bytes(range(256)) * 3000
    server.answer = (200, None, body)
    cifar10.download(server.url, tmp_path / "new" / "file", hashlib.sha256(body).hexdigest())
    assert (tmp_path / "new" / "file").read_bytes() == body
    assert len(list((tmp_path / "new").iterdir())) == 1


@pytest.mark.parametrize(
    "answer",
    [
        (404, None, b"no such page"),
        (200, None, b"<html>an error page</html>"),
        (200, 9000, b"cut short"),
        (500, None, b""),
        (302, None, b"file:///etc/hostname"),
        (None, None, b""),
    ],
)
def test_a_failed_download_leaves_nothing(server, tmp_path, monkeypatch, answer):
    server.answer = answer
    monkeypatch.setattr(cifar10, "TIMEOUT", 0.3)
    monkeypatch.setattr(cifar10, "URL", server.url)
    with pytest.raises(UserError, match="--data sample") as error:
        cifar10.batches_folder(tmp_path)
    assert server.url in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_download_cut_at_any_byte_leaves_nothing(server, tmp_path):
    body = bytes(range(100))
    for length in range(0, 100, 7):
        server.answer = (200, 100, body[:length])
        with pytest.raises(UserError, match="invalid hash value"):
            cifar10.download(server.url, tmp_path / "file", hashlib.sha256(body).hexdigest())
        assert list(tmp_path.iterdir()) == []


def test_an_interrupted_download_leaves_nothing(server, tmp_path, monkeypatch):
    def interrupt(self, count):
        raise KeyboardInterrupt

    server.answer = (200, None, bytes(1000))
    monkeypatch.setattr("torch.hub.tqdm.update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cifar10.download(server.url, tmp_path / "file", "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_no_network_is_one_clear_message(fails, tmp_path, monkeypatch):
    url = "http://127.0.0.1:9/cifar-10-python.tar.gz"  # nothing listens there
    monkeypatch.setattr(cifar10, "URL", url)
    monkeypatch.setenv("COLORIZATION_DATA", str(tmp_path / "data"))
    line = fails(colorization.main, "--out-dir", tmp_path)
    for part in (url, str(tmp_path / "data"), "--data sample"):
        assert part in line


def test_sample_crops_share_no_pixel(monkeypatch):
    photo = np.zeros((427, 640, 3), np.uint8)
    photo[:, 320:480] = 255
    monkeypatch.setattr("sklearn.datasets.load_sample_images", lambda: SimpleNamespace(images=[photo]))
    assert all((photograph == 0).all() for photograph in image_files.sample_photographs.__wrapped__(train=True))
    assert all((photograph == 255).all() for photograph in image_files.sample_photographs.__wrapped__(train=False))


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
    album = data.Album(first, palette, torch.device("cpu"), photographs, 64)
    assert torch.equal(album.images, first)
    seen = []
    for seed in (1, 2, 1):
        album.start_epoch(seed)
        expected = image_files.random_crops(photographs, 64, 6, seed, image_files.GAMMAS)
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
