"""What a script prints, and how it ends."""

import io
import os
import subprocess
import sys

import pytest
from helpers import save_image

import colorization
import models
from utils import console
from utils.files import PROJECT


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


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_too_little_memory_is_one_line(error, fails):
    def main(argv):
        raise error

    assert "out of memory; use fewer or smaller images" in fails(main)


def test_a_closed_pipe_ends_a_script_quietly():
    """As in `python data.py --colors 2 | head -1`: no traceback."""
    code = "from utils.console import run_script; run_script(lambda argv: print('a line'))"
    command = [sys.executable, "-u", "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=PROJECT) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


@pytest.mark.parametrize(
    ("stop", "said"), [(KeyboardInterrupt(), "stopped by Ctrl-C"), (KeyboardInterrupt("epoch 3"), "epoch 3")]
)
def test_ctrl_c_is_one_line(stop, said, capsys, monkeypatch):
    def main(argv):
        raise stop

    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit) as ended:
        console.run_script(main)
    assert ended.value.code == 130
    assert capsys.readouterr().err == f"\nscript.py: {said}\n"
