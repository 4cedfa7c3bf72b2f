"""What docs/make_exercise.py writes: each part fails by its own message, and nothing else breaks."""

import re
import subprocess
import sys

import pytest

from utils.files import PROJECT

pytestmark = pytest.mark.skipif(not (PROJECT / ".git").exists(), reason="needs git's list of files")


def run(folder, *command):
    """Run Python in a folder; return what it prints, errors too."""
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.run([sys.executable, *command], cwd=folder, **settings).stdout


def parts(folder):
    """Return the parts' table, {part: passed or FAILED}, and everything that was printed."""
    printed = run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_parts.py")
    table = re.findall(r"^(passed|FAILED)  *(\d\.\d) ", printed, re.MULTILINE)
    return {part: word for word, part in table}, printed


def test_each_part_fails_by_itself_and_nothing_else_breaks(tmp_path):
    made, full = tmp_path / "made", tmp_path / "full"
    run(PROJECT, "docs/make_exercise.py", str(made))
    run(PROJECT, "docs/make_exercise.py", str(full), "--also", "conv", "quantizer", "evaluation", "step")
    for folder, missing in ((made, "2.1 2.2 3.1 3.2 4.1 5.1"), (full, "1.1 1.2 1.3 1.4 2.1 2.2 3.1 3.2 4.1 5.1")):
        found, printed = parts(folder)
        assert {part for part, word in found.items() if word == "FAILED"} == set(missing.split())
        for part in missing.split():
            assert f"Part {part}: " in printed
    assert "usage" in run(made, "colorization.py", "--help")
    assert "validation mean squared error" in run(made, "color_regression.py", "--data", "sample", "-e", "1")
    assert "saved" in run(made, "data.py", "--data", "sample", "--colors", "4", "--output", "p.npy")
    assert not (made / "docs" / "answers.md").exists() and "docs/answers" not in (made / "README.md").read_text()
    assert "not an empty folder" in run(PROJECT, "docs/make_exercise.py", str(made))
    solution, path = (PROJECT / "models.py").read_text(), made / "models.py"
    body = solution.split("class UNet(nn.Module)")[1].split("    def forward")[1].split("\n\n\n")[0]
    before, after = path.read_text().split("class UNet(nn.Module)")
    head, tail = after.split("    def forward", 1)
    path.write_text(f"{before}class UNet(nn.Module){head}    def forward{body}\n\n\n" + tail.split("\n\n\n", 1)[1])
    found, _ = parts(made)
    assert found["3.2"] == "passed" and found["3.1"] == found["2.2"] == "FAILED"
