"""CIFAR-10: its batches, its archive and the download."""

import hashlib
import http.server
import io
import pickle
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROWS, Payload, batch_bytes, smooth_images, write_archive, write_cifar

import colorization
from sources import cifar10
from utils.console import UserError


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
    cifar10.download(server.url, tmp_path / "file", hashlib.sha256(body).hexdigest())
    assert (tmp_path / "file").read_bytes() == body
    assert len(list(tmp_path.iterdir())) == 1


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


def test_a_failed_download_leaves_no_folder(server, tmp_path, monkeypatch):
    server.answer = (404, None, b"")
    monkeypatch.setattr(cifar10, "URL", server.url)
    with pytest.raises(UserError):
        cifar10.batches_folder(tmp_path / "cifar10")
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


def test_of_two_processes_one_downloads(tmp_path, monkeypatch):
    """The other waits, and finds the folder."""
    archive, downloads = tmp_path / "archive.tar.gz", []
    monkeypatch.setattr(cifar10, "SHA256", write_archive(archive, write_cifar(tmp_path / "source")))

    def download(url, path, sha256):
        downloads.append(path)
        time.sleep(0.3)
        archive.rename(path)

    monkeypatch.setattr(cifar10, "download", download)
    with ThreadPoolExecutor(2) as pool:  # locks are of threads as well as of processes
        folders = list(pool.map(cifar10.batches_folder, [tmp_path / "data"] * 2))
    assert downloads == [tmp_path / "data" / cifar10.ARCHIVE] and len(set(folders)) == 1
    assert sorted(path.name for path in folders[0].iterdir()) == sorted(cifar10.TRAIN_FILES + cifar10.TEST_FILES)
