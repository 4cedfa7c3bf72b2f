"""The pictures that the scripts draw."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import colorization
from pictures.plots import save_image_grid
from utils.files import PROJECT


def test_titles_are_not_taken_for_formulas(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path(r"a$\foo$b")
    folder.mkdir()
    for number in range(20):
        Image.new("RGB", (32, 32), (9 * number, 90, 200)).save(folder / f"{number}.png")
    colorization.main(["--data", str(folder), "-c", "3", "-e", "1", "-f", "2", "-b", "8"])
    assert Path("outputs/unet_k3_f2_curve.png").exists()


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "none", "TkAgg"])
def test_the_backend_of_a_notebook_is_not_needed(tmp_path, backend):
    """A notebook's `!python` inherits the variable, but not the module."""
    call = "save_curve('c.png', 'a', [{'epoch': 1, 'valid_loss': 2.0}])"
    code = "from pictures.plots import save_curve; from utils.console import run_script; "
    code += f"run_script(lambda argv: {call})"
    environment = os.environ | {"MPLBACKEND": backend, "PYTHONPATH": str(PROJECT)}
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True)
    assert Image.open(tmp_path / "c.png").width > 100


def test_portraits_and_landscapes_stand_side_by_side_without_bands(tmp_path):
    """The opaque part of every line of the sheet is as wide as the images of one row, and one gap lies between them."""
    images = [torch.ones(3, 60, 40), torch.ones(3, 60, 90), torch.ones(1, 60, 20)]
    save_image_grid(tmp_path / "a.png", "", {"": images, " ": images})
    opaque = np.asarray(Image.open(tmp_path / "a.png"))[..., 3] == 255
    row = opaque[opaque.sum(1).argmax()]
    edges = np.diff(np.flatnonzero(np.diff(row.astype(int))))  # width, gap, width, gap, width, in the file's pixels
    assert (edges / edges.sum() * 156).round().tolist() == [40, 3, 90, 3, 20]
