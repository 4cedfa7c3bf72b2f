"""What a script prints, and how it ends."""

import io
import os
import subprocess
import sys
import warnings

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


@pytest.mark.parametrize("script", ["colorization", "color_regression", "activations", "data", "models"])
def test_scripts_run_in_isolated_mode(script, tmp_path):
    """In which Python does not look for modules beside them."""
    command = [sys.executable, "-I", PROJECT / f"{script}.py", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: {script}.py")


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


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has it")
@pytest.mark.parametrize(
    ("redirect", "code", "said"),
    [
        ("> /dev/full", 2, "No space left on device"),
        (">&-", 2, "it is closed"),
        ("2> /dev/full", 0, ""),
        ("2>&-", 0, ""),
        ("> /dev/full 2> /dev/full", 2, ""),
        (">&- 2>&-", 2, ""),
    ],
)
def test_the_work_is_done_whatever_the_streams_take(tmp_path, redirect, code, said):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, warnings\nfrom tqdm import tqdm\nfrom utils.console import run_script\n"
        "def main(argv):\n"
        "    for _ in tqdm(range(2)):\n"
        "        print('a line', flush=True)\n"
        "        print('x' * 10000)\n"
        "        warnings.warn('a warning')\n"
        "    open(argv[0], 'w').write('done')\n"
        "run_script(main)\n"
    )
    command = f"{sys.executable} {script} {tmp_path / 'done'} {redirect}"
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == code and (tmp_path / "done").read_text() == "done"
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    if said:
        line = f"script.py: the work is done, but its output could not be written ({said})"
        assert done.stderr.splitlines()[-1] == line


def test_a_stopped_script_removes_its_temporary_files(tmp_path):
    """SIGTERM while a file is being written: nothing is left of it."""
    code = (
        "import pathlib, sys, time\nfrom utils.console import run_script\nfrom utils.files import atomic_write\n"
        "def main(argv):\n"
        f"    with atomic_write(pathlib.Path({str(tmp_path / 'file')!r})):\n"
        "        print('writing', flush=True)\n"
        "        time.sleep(60)\n"
        "run_script(main)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=PROJECT, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.terminate()
    assert process.returncode == 143 and not list(tmp_path.iterdir())


def test_a_warning_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py"])
    console.run_script(lambda argv: warnings.warn("a.gif: only the first of its 3 images is used"))
    assert capsys.readouterr().err == "a.gif: only the first of its 3 images is used\n"
