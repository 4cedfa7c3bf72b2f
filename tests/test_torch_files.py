"""Files of torch.save that lie."""

import io
import pickle
import struct
import time
import zipfile

import pytest
import torch
from helpers import nested_key

from utils import torch_files
from utils.console import UserError

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


def test_old_files_that_claim_a_little_too_much(tmp_path):
    stream = io.BytesIO()
    torch.save({"a": torch.ones(2)}, stream, _use_new_zipfile_serialization=False)
    whole = stream.getvalue()
    size = b"K\x02N"  # of the storage, in the tuple that describes it
    assert whole.count(size) == 1
    for claimed, match in ((len(whole) + 2, "claim to be larger than the file"), (len(whole) + 1, "")):
        (tmp_path / "a.pkl").write_bytes(whole.replace(size, b"M" + struct.pack("<H", claimed) + b"N"))
        with open(tmp_path / "a.pkl", "rb") as file:
            if match:
                with pytest.raises(ValueError, match=match):
                    torch_files.check_torch_file(file)
            else:
                assert torch_files.check_torch_file(file)  # PyTorch itself says that storages are cut short


@pytest.mark.parametrize("how", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_STORED])
def test_compressed_files_are_refused(tmp_path, how, monkeypatch):
    """Also if their directory says that they hardly grow: zipfile unpacks first, and then sees that it is not so."""
    torch.save({"a": torch.zeros(4000)}, tmp_path / "a.pkl")
    with zipfile.ZipFile(tmp_path / "a.pkl") as source, zipfile.ZipFile(tmp_path / "b.pkl", "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            target.writestr(entry.filename, content, how if len(content) == 16_000 else zipfile.ZIP_STORED)
    whole = (tmp_path / "b.pkl").read_bytes()
    start = whole.index(b"a/data/0", whole.index(b"PK\1\2")) - 46 + 24  # of its size in the directory
    assert whole[start : start + 4] == struct.pack("<I", 16_000)
    claimed = len(whole) if how == zipfile.ZIP_STORED else 100
    whole = whole[:start] + struct.pack("<I", claimed) + whole[start + 4 :]
    (tmp_path / "b.pkl").write_bytes(whole)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(UserError, match="its parts claim to be larger than the file"):
        torch_files.read_torch_file(tmp_path / "b.pkl", "file", "advice")


def test_pytorch_is_asked_for_weights_only(tmp_path, monkeypatch):
    """Whatever was checked before."""
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pkl")
    asked = []
    monkeypatch.setattr(torch, "load", lambda file, **settings: asked.append(settings))
    torch_files.read_torch_file(tmp_path / "a.pkl", "file", "advice")
    assert asked == [{"map_location": "cpu", "weights_only": True}]


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
    checked = zipfile.ZipFile(torch_files.check_torch_file(stream))
    assert {part.filename: checked.read(part) for part in checked.infolist()} == {
        part.filename: parts.read(part) for part in parts.infolist()
    }
