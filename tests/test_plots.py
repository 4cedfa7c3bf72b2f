"""The pictures that the scripts draw."""

from pathlib import Path

from helpers import save_image

import colorization


def test_titles_are_not_taken_for_formulas(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path(r"a$\foo$b")
    folder.mkdir()
    for number in range(20):
        save_image(folder / f"{number}.png")
    colorization.main(["--data", str(folder), "-c", "3", "-e", "1", "-f", "2", "-b", "8"])
    assert Path("outputs/unet_k3_f2_curve.png").exists()
