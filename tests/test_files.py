"""Atomic writing, and what may be replaced."""

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import smooth_images
from helpers import SMALL, TINY, save_image
from PIL import Image

import activations
import color_regression
import colorization
import data
from utils import files
from utils.checkpoint import new_network, save_checkpoint
from utils.console import UserError
from utils.files import atomic_write, check_writable


def test_names_too_long_to_ask_about(tmp_path, monkeypatch, fails, capsys):
    monkeypatch.chdir(tmp_path)
    long = "x" * 300
    for flags in (["--data", long], ["--checkpoint", long], ["--out-dir", long], ["-c", long]):
        fails(colorization.main, "-e", "1", *flags)
    fails(activations.main, long)
    fails(data.main, "--output", long)
    save_image("a.png")
    save_image(f"{'y' * 245}.png")  # its result's name would be too long
    with pytest.raises(UserError, match="1 of 2 images"):
        colorization.main(["--colorize", f"{'y' * 245}.png", "a.png"])
    assert "a_colored.png" in capsys.readouterr().out


def test_a_system_whose_chmod_takes_no_descriptors(tmp_path, monkeypatch):
    """As Windows' before Python 3.13."""

    def chmod(path, mode, **_):
        if isinstance(path, int):
            raise TypeError("chmod: path should be string, bytes or os.PathLike, not int")

    monkeypatch.setattr(os, "chmod", chmod)
    with atomic_write(tmp_path / "file") as file:
        file.write(b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_name_whose_temporary_file_would_be_too_long(tmp_path):
    """It is found before training, not when the first epoch ends."""
    check_writable(tmp_path / "new" / "folder" / ("x" * 230))
    with pytest.raises(UserError, match="File name too long"):
        check_writable(tmp_path / ("x" * 246))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="a folder or a device"):
        check_writable(tmp_path / "pipe")


def test_a_folder_that_is_a_dangling_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with atomic_write(tmp_path / "link" / "a.png") as file:
        file.write(b"content")
    assert (tmp_path / "elsewhere" / "a.png").read_bytes() == b"content"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"), atomic_write(tmp_path / "file" / "a.png"):
        pass


def test_a_drive_that_is_not_there(monkeypatch):
    """As on Windows, where Z: need not exist, and has no folder above it that does."""
    monkeypatch.setattr(os.path, "exists", lambda _: False)
    with pytest.raises(UserError, match="cannot be written"):
        check_writable("/there/is/no/such/folder/file")


def test_file_systems_without_inodes(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).touch()
    monkeypatch.setattr(files.os, "stat", lambda _: SimpleNamespace(st_dev=1, st_ino=0))
    assert files.file_identity(tmp_path / "a") != files.file_identity(tmp_path / "b")
    assert files.file_identity(tmp_path / "a") == files.file_identity(tmp_path / "." / "a")


def test_leftovers_of_others(tmp_path, monkeypatch):
    """Those of a process that still writes stay; one that another process deletes first is no error."""
    old, new = tmp_path / ".file.1.part", tmp_path / ".file.2.part"
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    check_writable(tmp_path / "file")
    assert not old.exists() and new.exists()
    monkeypatch.setattr(files.Path, "glob", lambda *_: [old])
    check_writable(tmp_path / "file")


def test_text_files_have_the_same_bytes_on_every_system(tmp_path):
    with atomic_write(tmp_path / "file", "x") as file:
        file.write("å\n")
    assert (tmp_path / "file").read_bytes() == b"\xc3\xa5\n"


def test_no_input_is_replaced(cifar, small_palette, fails, monkeypatch):
    Path("album").mkdir()
    for number in range(60):  # so many that some of them are to validate on, whatever else is in the folder
        Image.fromarray(smooth_images(1, seed=number)[0].transpose(1, 2, 0)).save(f"album/{number}.png")
    colorization.main([*TINY, "-e", "1", "-c", str(small_palette), "--checkpoint", "u.pkl"])
    Path("U.PKL").hardlink_to("u.pkl")  # as on a file system that ignores the case of names
    Path("outputs/unet_valid.png").write_bytes(Path("u.pkl").read_bytes())
    kept = {path: path.read_bytes() for path in (Path("u.pkl"), small_palette)}
    train = [*TINY, "-e", "1", "-c", small_palette]
    for argv in (
        [*train, "--checkpoint", small_palette],
        [*train[:-2], "--start-from", "u.pkl", "--checkpoint", "u.pkl"],
        [*train[:-2], "--start-from", "u.pkl", "--checkpoint", "U.PKL"],
        ["--valid", "--checkpoint", "outputs/unet_valid.png"],
    ):
        assert "would replace" in fails(colorization.main, *argv)
    assert Path("outputs/unet_valid.png").read_bytes() == kept[Path("u.pkl")]
    Path("outputs/unet_valid.png").write_bytes(small_palette.read_bytes())
    flags = ["-c", "outputs/unet_valid.png", "--checkpoint", "u.pkl"]
    assert "would replace" in fails(colorization.main, "--valid", *flags)
    baseline = Path("outputs/regression_cnn_valid.png")
    save_checkpoint(baseline, new_network(None, model="RegressionCNN", num_filters=2)[1])
    assert "would replace" in fails(color_regression.main, "--checkpoint", baseline)
    assert "would become part" in fails(data.main, "--data", "album", "-c", 3, "--output", "album/0.png")
    data.main(["--data", "album", "-c", "3", "--output", "album/palette.npy"])  # which is no image
    for argv in (["--data", "album", "--out-dir", "album/results"], ["--data", "."]):
        assert "would become part of the data" in fails(colorization.main, *train, *argv)
    assert "would become part" in fails(activations.main, "0", "--data", "album", "--out-dir", "album")
    assert all(path.read_bytes() == content for path, content in kept.items())


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_text() == "old"
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot be written"), atomic_write(tmp_path / "folder") as file:
        file.write(b"new")
    with pytest.raises(UserError, match="cannot be written"), atomic_write(path / "below" / "a" / "file"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_a_folder_is_no_file_to_write(cifar, fails):
    assert "it is a folder" in fails(data.main, "--output", ".")
    assert "it is a folder" in fails(colorization.main, *SMALL, "--checkpoint", ".")


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder", "a large file"])
def test_only_regular_files_of_a_reasonable_size_are_read(cifar, small_palette, tmp_path, kind, fails):
    """Whatever flag names them, and at once."""
    path = tmp_path / "file.npy"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a folder":
        path.mkdir()
    else:
        with open(path, "wb") as file:
            file.truncate(5 << 30)  # sparse
    training = ["-e", "1", "-f", "2", "-b", "8"]
    for flags in (
        ["--valid", "--checkpoint", path],
        ["--valid", "-c", path],
        [*training, "--start-from", path],
        [*training, "-c", path],
        *([] if kind == "a folder" else [[*training, "--data", path]]),
    ):
        line = fails(colorization.main, *flags)
        assert str(path) in line and re.search(
            "a folder, a device or a pipe|5,368,709,120 bytes|not cifar10, sample or a folder", line
        )
    if kind != "a folder":
        with pytest.raises(UserError, match="1 of 1 images could not be colored"):
            colorization.main(["--colorize", str(path)])
    Path("outputs").mkdir(exist_ok=True)
    Path("outputs/unet_k3_f2.state").symlink_to(path)
    line = fails(colorization.main, *training, "-c", small_palette, "--resume")
    assert "unet_k3_f2.state" in line or "it is a folder or a device" in line
