"""What docs/make_exercise.py writes: each part fails by its own message, and nothing else breaks."""

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from utils.files import PROJECT

pytestmark = pytest.mark.skipif(not (PROJECT / ".git").exists(), reason="needs git's list of files")
ALL = ["1.1", "1.2", "1.3", "1.4", "2.1", "2.2", "3.1", "3.2", "7.1"]


def run(folder, *command):
    """Run Python in a folder; return what it prints, errors too."""
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.run([sys.executable, *map(str, command)], cwd=folder, **settings).stdout


def check_parts(folder, failing):
    """Run the parts' tests in a folder; exactly these parts fail, by their own messages, and so does 7.2."""
    printed = run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_parts.py")
    table = re.findall(r"^(passed|failed)  (\d\.\d) ", printed, re.MULTILINE)
    assert [part for word, part in table if word == "failed"] == [*failing, "7.2"] and len(table) == 10
    assert all(f"NotImplementedError: Part {part}: " in printed for part in failing)


def test_each_part_fails_by_itself_and_nothing_else_breaks(tmp_path):
    made, full = tmp_path / "made", tmp_path / "full"
    run(PROJECT, "docs/make_exercise.py", made)
    run(PROJECT, "docs/make_exercise.py", full, "--also", "conv", "quantizer", "evaluation", "step")
    regression = "color_regression.py", "--data", "sample", "-e", "1", "-f", "2", "-b", "200"
    palette = "data.py", "--data", "sample", "--colors", "4", "--output", "p.npy"
    valid = "colorization.py", "--model", "CNN", "--data", "sample", "--valid"
    with ThreadPoolExecutor(2) as pool:  # each is a process of its own
        checks = [pool.submit(check_parts, made, ALL[4:]), pool.submit(check_parts, full, ALL)]
        printed = [pool.submit(run, made, *command) for command in (regression, palette, valid)]
        assert all(check.result() is None for check in checks)
    assert "validation mean squared error" in printed[0].result() and "saved" in printed[1].result()
    assert printed[2].result().endswith("NotImplementedError: Part 2.1: CNN.__init__\n")  # not a corrupt checkpoint
    assert "not an empty folder" in run(PROJECT, "docs/make_exercise.py", made)
    readme = (made / "README.md").read_text()
    assert not list(made.rglob("*answer*")) and "answer" not in readme.split("##", 1)[1]
    assert not re.search(r"make_exercise|benchmarks|reliability", readme)
    assert "--checkpoint outputs/unet_k3_f32.pkl" in readme and "unless part 1 was taken out" in readme
    (made / "p.npy").unlink()
    assert sorted(path.name for path in made.iterdir() if path.is_file()) == [
        ".gitignore",
        "LICENSE",
        "README.md",
        "activations.py",
        "color_regression.py",
        "colorization.py",
        "data.py",
        "models.py",
        "pyproject.toml",
        "requirements-dev.txt",
        "requirements.txt",
        "writeup.md",
    ]
    copied = shutil.copytree(PROJECT / "docs", made / "docs", dirs_exist_ok=True)
    assert "git cannot list its files" in run(made, copied / "make_exercise.py", tmp_path / "other")
    solution, path = (PROJECT / "models.py").read_text(), made / "models.py"
    forward = re.compile(r"(class UNet\(.*?    def forward)(.*?)(?=\n\n\nclass)", re.DOTALL)
    path.write_text(forward.sub(lambda match: match[1] + forward.search(solution)[2], path.read_text()))
    check_parts(made, ["2.1", "2.2", "3.1", "7.1"])  # 3.2 alone is put back
    text = path.read_text()
    start = text.index("def forward", text.index("class MyDilatedConv2d"))
    step = "return F.conv2d(x, self.weight, self.bias, padding=self.padding, dilation=self.dilation + 1)"
    body = text[start:].replace('raise NotImplementedError("Part 7.1: MyDilatedConv2d.forward")', step, 1)
    path.write_text(text[:start] + body)
    printed = run(made, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_parts.py", "-k", "test_dilation")
    assert "without PyTorch's own dilation" in printed and "failed  7.1" in printed
