"""Files that claim too much, names that cannot be printed or asked about, and systems that refuse."""

import gzip
import io
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import smooth_images, write_archive, write_cifar
from PIL import Image

import activations
import colorization
import data
import models
from sources import cifar10, image_files
from training.log import RunLog
from utils import checkpoint, console, distributed, files, torch_files, unpickling
from utils.checkpoint import FORMAT, load_checkpoint, new_network, save_checkpoint
from utils.console import UserError
from utils.files import PROJECT, atomic_write, check_writable

PALETTE = np.linspace([0.1, 0, 0.2], [0.9, 0.8, 1], 5)


def save_image(path, size=(40, 30)):
    Image.fromarray(smooth_images(1)[0].transpose(1, 2, 0)).resize(size).save(path)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_what_an_encoding_lacks_is_printed_all_the_same(encoding, tmp_path, monkeypatch):
    """As on a terminal of Windows: bars of a network's stages, and names of images."""
    names = ["plain.png", "café.png", "馬.png", os.fsdecode(b"caf\xe9.png")]  # the last is no UTF-8
    for name in names:
        save_image(tmp_path / name)
    for main, argv in (
        (models.main, ["UNet"]),
        (colorization.main, ["--colorize", *(str(tmp_path / name) for name in names), "--out-dir", str(tmp_path)]),
    ):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
        with monkeypatch.context() as patched:
            patched.setattr(sys, "argv", ["script.py", *argv])
            patched.setattr(sys, "stdout", stream)
            console.run_script(main)
        assert len(stream.buffer.getvalue().splitlines()) > 5
    assert len(list(tmp_path.glob("*_colored.png"))) == len(names)


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


def test_titles_are_not_taken_for_formulas(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path(r"a$\foo$b")
    folder.mkdir()
    for number in range(20):
        save_image(folder / f"{number}.png")
    colorization.main(["--data", str(folder), "-c", "3", "-e", "1", "-f", "2", "-b", "8"])
    assert Path("outputs/unet_k3_f2_curve.png").exists()


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


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_too_little_memory_is_one_line(error, fails):
    def main(argv):
        raise error

    assert "out of memory; use fewer or smaller images" in fails(main)


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
    with files.new_file(tmp_path / "link" / "a.png") as path:
        path.write_bytes(b"content")
    assert (tmp_path / "elsewhere" / "a.png").read_bytes() == b"content"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"), files.new_file(tmp_path / "file" / "a.png"):
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


def test_two_processes_never_get_one_name(tmp_path):
    """While one has not written yet, another asks for the same name."""
    with files.new_file(tmp_path / "a.png") as first, files.new_file(tmp_path / "a.png") as second:
        assert (first.name, second.name) == ("a.png", "a_2.png")
    with pytest.raises(RuntimeError), files.new_file(tmp_path / "a.png"):
        raise RuntimeError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a_2.png"]


def test_two_processes_unpack_one_archive(tmp_path, monkeypatch):
    """The second finds the folder that the first has made in the meantime."""
    source = write_cifar(tmp_path / "source")
    sha256 = write_archive(tmp_path / "archive.tar.gz", source)
    folder = tmp_path / cifar10.FOLDER
    original = cifar10.tarfile.TarFile.extractfile

    def other_is_first(tar, member):
        folder.mkdir(exist_ok=True)
        return original(tar, member)

    monkeypatch.setattr(cifar10.tarfile.TarFile, "extractfile", other_is_first)
    cifar10.unpack(tmp_path / "archive.tar.gz", folder, sha256)
    assert list(folder.iterdir()) == []


def test_text_files_have_the_same_bytes_on_every_system(tmp_path):
    with atomic_write(tmp_path / "file", "x") as file:
        file.write("å\n")
    assert (tmp_path / "file").read_bytes() == b"\xc3\xa5\n"


def test_the_gpu_that_is_named_is_the_current_one(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    distributed.setup("cuda:1")
    distributed.setup("cuda")
    distributed.setup("cpu")
    assert chosen == [1, 0]


def test_the_other_processes_wait_long_for_a_download(monkeypatch):
    """Longer than for any other word of rank 0, which ends the run after ten minutes."""
    waits = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "new_group", lambda backend, timeout: waits.append(timeout))
    monkeypatch.setattr(distributed.dist, "barrier", lambda group: pytest.fail("no group to wait in"))
    with distributed.local_rank0_first():
        assert waits[0] > 60 * distributed.TIMEOUT


def test_every_process_resumes_from_the_state_that_it_reads(tmp_path, monkeypatch):
    """Also one that writes nothing."""
    net, content = new_network(PALETTE, model="CNN", kernel=3, num_filters=2)
    log = RunLog(content, {"epochs": 2, "learning_rate": 0.01}, tmp_path)
    log.write({"epoch": 1, "train_loss": 1.0, "valid_loss": 2.0, "seconds": 3.0}, net.state_dict(), {"a": {}})
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    loaded, other = [], RunLog(content, {"epochs": 2, "learning_rate": 0.01}, tmp_path)
    other.resume(loaded.append)
    assert other.history == log.history and loaded == [{"a": {}}]
    other.write({"epoch": 2, "train_loss": 1.0, "valid_loss": 2.0, "seconds": 3.0}, net.state_dict(), {"a": {}})
    assert len(torch.load(tmp_path / "cnn_k3_f2.state", weights_only=True)["history"]) == 1
    (tmp_path / "cnn_k3_f2.state").unlink()
    with pytest.raises(UserError, match=r"cnn_k3_f2\.state: cannot read the training state"):
        other.resume(loaded.append)


def test_a_failing_run_ends_all_runs_of_the_answers(monkeypatch):
    monkeypatch.syspath_prepend(PROJECT / "docs")
    import make_answers

    started = []

    def train(name, *_):
        started.append(name)
        if name == "first":
            raise SystemExit("first: failed")
        time.sleep(0.1)

    monkeypatch.setattr(make_answers, "train", train)
    with pytest.raises(SystemExit, match="first: failed"):
        make_answers.train_all({name: [] for name in ("first", *"abcdefgh")}, [], jobs=2)
    assert len(started) < 5


def test_memory_is_left_out_where_there_is_no_proc(monkeypatch):
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")
    import bench_scaling

    monkeypatch.setattr(bench_scaling.Path, "exists", lambda path: False)
    assert bench_scaling.memory_of(SimpleNamespace(pid=1)) == ["", ""]


def test_a_palette_is_fitted_once(cifar, monkeypatch):
    torch.save(new_network(PALETTE, model="CNN", kernel=3, num_filters=2)[0].state_dict(), "bare.pkl")
    fits = []
    monkeypatch.setattr(data, "fit_palette", lambda *_: fits.append(1) or (PALETTE, 0.1))
    flags = ["--category", "cat", "-c", "5", "-m", "CNN", "-f", "2"]
    colorization.main(["--valid", "--checkpoint", "bare.pkl", *flags])
    assert len(fits) == 1


def nested_key(depth, opcode):
    """A pickle of a dict whose key, a tuple of one tuple twice, and so on, takes 2^depth steps to hash."""
    double = b"h\x00h\x00\x86q\x000"  # get, get, make a tuple of the two, put, pop
    return (
        b"\x80\x02}"
        + (b"(" if opcode == b"u" else b"")
        + b"K\x01\x85q\x000"
        + depth * double
        + b"h\x00K\x01"
        + opcode
        + b"."
    )


def test_keys_that_take_forever_to_hash():
    with pytest.raises(ValueError, match="another type"):
        unpickling.PickledDtype(((("u1",),),))
    for opcode in (b"u", b"s"):
        assert len(pickle.loads(nested_key(3, opcode))) == 1
        with pytest.raises((pickle.UnpicklingError, KeyError)):
            unpickling.unpickle(io.BytesIO(nested_key(50, opcode)))


FORK = b"K\x01\x85q\x000" + 50 * b"h\x00h\x00\x86q\x000" + b"h\x00"  # a tuple that takes 2^50 steps to hash
HOSTILE_PICKLES = {
    "nested key": nested_key(50, b"s"),
    "nested keys": nested_key(50, b"u"),
    "bytearray": b"\x80\x02c__builtin__\nbytearray\n\x8a\x05" + struct.pack("<Q", 60 << 30)[:5] + b"\x85R.",
    "pairs": b"\x80\x02ccollections\nOrderedDict\n](" + FORK + b"K\x01\x86e\x85R.",
    "many times one list": b"\x80\x02}q\x01U\x01x]q\x02(" + b"U\x01aK\x01\x86" * 100 + b"es0h\x02.",
    "equal hashes": b"\x80\x02}(" + b"".join(pickle.dumps(n * (2**61 - 1), 2)[2:-1] + b"N" for n in range(9)) + b"u.",
    "a stand-in's state": b"\x80\x02ccollections\nOrderedDict\nN}U\x0c__defaults__N\x86b.",
    "storage": b"\x80\x02(U\x07storagectorch\nFloatStorage\n" + FORK + b"U\x03cpuK\x01tQ.",
}


def legacy_file(content):
    """Return a pickle as a file of torch.save's before PyTorch 1.6."""
    stream = io.BytesIO()
    torch.save({}, stream, _use_new_zipfile_serialization=False)
    head, empty = stream.getvalue(), pickle.dumps({}, 2)
    assert empty in head
    return content.join(head.rsplit(empty, 1))


def test_pickles_that_never_end_or_fill_the_memory(tmp_path):
    """torch.load(weights_only=True) would go on forever, or allocate 60 GB."""
    stream = io.BytesIO()
    torch.save({"a": torch.ones(2), 3: [1.5, None, True]}, stream, _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pkl").write_bytes(stream.getvalue())
    assert torch_files.read_torch_file(tmp_path / "plain.pkl", "file", "advice")[3] == [1.5, None, True]
    torch.save({}, tmp_path / "new.pkl")
    with zipfile.ZipFile(tmp_path / "new.pkl") as source:
        parts = {entry.filename: source.read(entry) for entry in source.infolist()}
    for name, content in HOSTILE_PICKLES.items():
        (tmp_path / f"{name}.old.pkl").write_bytes(legacy_file(content))
        with zipfile.ZipFile(tmp_path / f"{name}.new.pkl", "w") as target:
            for part, whole in parts.items():
                part = part.replace("data.pkl", "DATA.PKL")  # PyTorch ignores case
                target.writestr(part, content if part.endswith("PKL") else whole)
        for kind in ("old", "new"):
            with pytest.raises(UserError, match="not a file, or a corrupt one") as caught:
                torch_files.read_torch_file(tmp_path / f"{name}.{kind}.pkl", "file", "advice")
            assert isinstance(caught.value.__cause__, (pickle.UnpicklingError, KeyError, ValueError)), (name, kind)


def test_old_files_whose_tensors_are_larger_than_the_file(tmp_path):
    """Their storages are missing in the list of those that follow; PyTorch returns zeros, or what was in memory."""
    stream = io.BytesIO()
    torch.save({"a": torch.ones(2)}, stream, _use_new_zipfile_serialization=False)
    whole = stream.getvalue()
    keys = whole.rindex(b"\x80\x02]q")
    (tmp_path / "a.pkl").write_bytes(whole[:keys] + b"\x80\x02]q\x00.")
    assert len(torch.load(tmp_path / "a.pkl", weights_only=True)["a"]) == 2
    with pytest.raises(UserError) as caught:
        torch_files.read_torch_file(tmp_path / "a.pkl", "file", "advice")
    assert "claim to be larger than the file" in str(caught.value.__cause__)


def test_two_storages_whose_names_differ_in_case_are_refused(tmp_path):
    """PyTorch would read one part for each."""
    torch.save({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "a.pkl")
    with zipfile.ZipFile(tmp_path / "a.pkl") as source, zipfile.ZipFile(tmp_path / "b.pkl", "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith("data.pkl"):
                content = content.replace(b"X\x01\0\0\x000", b"X\x01\0\0\0a").replace(
                    b"X\x01\0\0\x001", b"X\x01\0\0\0A"
                )
            target.writestr(entry.filename.replace("data/0", "data/a"), content)
    assert torch.load(tmp_path / "b.pkl", weights_only=True)["b"].tolist() == [1, 1]
    with pytest.raises(UserError, match="corrupt"):
        torch_files.read_torch_file(tmp_path / "b.pkl", "file", "advice")


def test_the_clock_of_a_computer_may_stand_at_1970(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pkl")
    monkeypatch.setattr(time, "time", lambda: 0)
    assert torch_files.read_torch_file(tmp_path / "a.pkl", "file", "advice")["a"].tolist() == [1, 1]


def test_what_is_checked_of_a_file_is_all_of_it(tmp_path):
    """PyTorch is given the parts as they were checked, in a new archive."""
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pkl")
    parts = zipfile.ZipFile(tmp_path / "a.pkl")
    stream = io.BytesIO((tmp_path / "a.pkl").read_bytes())
    checked = zipfile.ZipFile(torch_files.check_torch_file(stream.getvalue()))
    assert {part.filename: checked.read(part) for part in checked.infolist()} == {
        part.filename: parts.read(part) for part in parts.infolist()
    }


def test_sizes_that_a_checkpoint_claims(tmp_path):
    """The checks themselves, beside what they save below."""
    files = {path.stem: path for path in hostile_checkpoints(tmp_path)}
    with pytest.raises(ValueError, match="claim to be larger than the file"):
        torch_files.check_torch_file(files["deflated"].read_bytes())
    with pytest.raises(UserError, match=r"downconv1\.0.weight claims to be larger than it is"):
        checkpoint.load_network(files["expanded"])


@pytest.mark.parametrize(("name", "value"), [("downconv1.0.weight", 1e300), ("downconv1.2.running_var", -1.0)])
def test_weights_that_give_no_finite_output(tmp_path, name, value):
    _, small = new_network(PALETTE, model="CNN", kernel=3, num_filters=2)
    small.state_dict[name] = torch.full_like(small.state_dict[name], value, dtype=torch.float64)
    save_checkpoint(tmp_path / "u.pkl", small)
    with pytest.raises(UserError, match=f"{name} is not finite"):
        checkpoint.load_network(tmp_path / "u.pkl")


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


def hostile_checkpoints(folder):
    """Write small files that claim much; return their paths."""
    save_checkpoint(folder / "small.pkl", new_network(PALETTE, model="CNN", kernel=3, num_filters=2)[1])
    content = torch.load(folder / "small.pkl", weights_only=True)
    assert content["format"] == FORMAT
    with zipfile.ZipFile(folder / "small.pkl") as source:
        parts = {entry.filename: source.read(entry) for entry in source.infolist()}
    with zipfile.ZipFile(folder / "deflated.pkl", "w", zipfile.ZIP_DEFLATED) as target:
        for name, part in parts.items():
            target.writestr(name, bytes(1 << 31) if name.endswith("data/1") else part)
    torch.save(content | {"kernel": 15, "num_filters": 1024}, folder / "many_filters.pkl")
    with torch.device("meta"):
        shapes = models.create_model("CNN", 15, 1024, 5).state_dict()
    expanded = {name: torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in shapes.items()}
    torch.save(content | {"kernel": 15, "num_filters": 1024, "state_dict": expanded}, folder / "expanded.pkl")
    (folder / "hidden.pkl").write_bytes((folder / "deflated.pkl").read_bytes() + b"PK\5\6")  # zipfile sees no archive
    deep = []
    for _ in range(45):
        deep = [deep, deep]  # takes 2^45 steps to print
    torch.save(content | {"kernel": deep}, folder / "deep.pkl")
    palette = torch.zeros((), dtype=torch.float64).expand(1 << 30, 3)
    torch.save(content | {"palette": palette}, folder / "palette.pkl")
    return [folder / f"{name}.pkl" for name in ("deflated", "hidden", "deep", "many_filters", "expanded", "palette")]


def hostile_files(folder):
    """Write small files of all kinds that claim much; return [(how to read it, path)]."""
    checkpoints = hostile_checkpoints(folder)
    result = [("load_network", path) for path in checkpoints] + [("read_state", checkpoints[0])]
    for name, shape in (("palette.npy", (1 << 40, 3)), ("images.npy", (1 << 40, 3, 32, 32))):
        with open(folder / name, "wb") as file:
            kind = "<f8" if name == "palette.npy" else "|u1"
            header = {"descr": kind, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.write(bytes(1000))
    result += [("load_palette", folder / "palette.npy"), ("array_images", folder / "images.npy")]
    for number, start in enumerate((b"\x80\x05\x96", b"\x80\x04\x8e", b"\x80\x04\x95")):  # bytearray, bytes, frame
        (folder / f"batch{number}").write_bytes(start + struct.pack("<Q", 60 << 30) + bytes(1000))
        result.append(("read_batch", folder / f"batch{number}"))
    (folder / "long_key").write_bytes(nested_key(50, b"u"))
    (folder / "archive.tar.gz").write_bytes(gzip.compress(bytes(1 << 30), 1))
    save_image(folder / "image.png")
    whole = bytearray((folder / "image.png").read_bytes())
    whole[16:24] = struct.pack(">II", 60_000, 60_000)  # width and height
    whole[29:33] = struct.pack(">I", zlib.crc32(whole[12:29]))
    (folder / "image.png").write_bytes(whole)
    return [
        *result,
        ("read_batch", folder / "long_key"),
        ("unpack", folder / "archive.tar.gz"),
        ("read_image", folder / "image.png"),
    ]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory in use is read from /proc")
def test_small_files_that_claim_much_take_little_memory_and_time(tmp_path):
    """All are refused by a process that may have 1.5 GB more than PyTorch takes, each within ten seconds."""
    files_and_readers = hostile_files(tmp_path)
    assert all(path.stat().st_size < 10 << 20 for _, path in files_and_readers)
    code = """
import resource, sys, time
from pathlib import Path
from types import SimpleNamespace
from data import load_palette
from utils.checkpoint import load_network
from sources.cifar10 import read_batch, unpack
from sources.image_files import array_images, read_image
from utils.torch_files import read_torch_file
from utils.console import UserError
readers = globals() | {
    "read_state": lambda path: read_torch_file(path, "training state", "advice"),
    "unpack": lambda path: unpack(Path(path), Path(path).with_name("unpacked"), "0" * 64),
    "array_images": lambda path, read=array_images: read(path, True),
}
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + 1_500_000_000
resource.setrlimit(resource.RLIMIT_AS, (size, size))
for argument in sys.argv[1:]:
    name, path = argument.split("=", 1)
    start = time.perf_counter()
    try:
        readers[name](Path(path))
        sys.exit(f"{path} was read")
    except UserError as error:
        print(error)
    assert time.perf_counter() - start < 10, path
"""
    arguments = [f"{reader}={path}" for reader, path in files_and_readers]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == len(arguments)


def test_an_archive_of_arrays_is_no_array(tmp_path, fails):
    with open(tmp_path / "mine.npy", "wb") as file:
        np.savez(file, images=smooth_images(30))
    assert "NpzFile" in fails(colorization.main, "--data", tmp_path / "mine.npy", "--out-dir", tmp_path)


def test_a_checkpoint_of_this_package_is_stored_uncompressed(tmp_path):
    save_checkpoint(tmp_path / "u.pkl", new_network(PALETTE, model="CNN", kernel=3, num_filters=2)[1])
    assert load_checkpoint(tmp_path / "u.pkl").num_filters == 2
