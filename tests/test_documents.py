"""What the documents say exists, their commands run on small data, and numbers that stand in two places agree."""

import importlib
import importlib.util
import re
import shlex
import shutil
import sys

import pytest
import torch
from conftest import smooth_images
from PIL import Image

import data
import pictures.plots
from utils.checkpoint import load_network
from utils.files import PROJECT

DOCUMENTS = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("[!.]*/*.md")])
NAMES = [str(path.relative_to(PROJECT)) for path in DOCUMENTS]
SCRIPTS = ["colorization", "color_regression", "activations", "data", "models"]
TOOLS = ["docs/make_answers", "docs/make_exercise"]
TOOLS += [f"benchmarks/{path.stem}" for path in PROJECT.glob("benchmarks/*.py")]
FOREIGN_FLAGS = {
    "--extra-index-url",
    "--index-url",
    "--batch_size",
    "--colours",
    "--gpu",
    "--nproc-per-node",
    "--nnodes",
    "--rdzv-backend",
    "--rdzv-endpoint",
    "--check",
}
FOREIGN_FLAGS |= {"--tb"}


def commands(text):
    """Return the commands that run this project's scripts, in code blocks and inline: (script, [argument]).

    A block that runs Python code is ("-c", [code]).
    """
    blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in ([block] if block.startswith("python -c") else block.splitlines())]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    found = [re.match(r"python (-c|\S+(?=\.py\b))(?:\.py)?(.*)", line, re.DOTALL) for line in lines]
    return [(match[1], shlex.split(match[2], comments=True)) for match in found if match]


def shrink(script, argv):
    """Return a command's arguments for small data: one epoch, batches of four, two images held out."""
    small = {"-e": "1", "-b": "4", "--holdout": "2"}
    argv = [small.get(before, word) for before, word in zip([None, *argv], argv)]
    placeholders = {"N": "3", "FOLDER": "album", "ALBUM": "album"}
    argv = [placeholders.get(word, word) for word in argv if word != "…"]
    if script == "colorization" and not {"-b", "--valid", "--colorize"} & set(argv):
        argv += ["-b", "4"]
    if script == "color_regression" and "-e" in argv and "-b" not in argv:
        argv += ["-b", "4"]
    return [*argv, "--output", "palette.npy"] if script == "data" and "--output" not in argv else argv


@pytest.fixture
def place(cifar, tmp_path, monkeypatch):
    """A folder with all that the documents' commands read."""
    for name in ("weights", "color"):
        (tmp_path / name).symlink_to(PROJECT / name)
    monkeypatch.setattr(data, "MIN_CROPS", 8)
    monkeypatch.setattr(pictures.plots, "save", lambda figure, path: path.parent.mkdir(parents=True, exist_ok=True))
    for folder in ("album", "similar", "frames", "photographs", "handout/weights", "handout/color"):
        (tmp_path / folder).mkdir(parents=True)
    for number, picture in enumerate(smooth_images(10)):
        for folder in ("album", "similar", "frames", "photographs"):
            Image.fromarray(picture.transpose(1, 2, 0)).save(tmp_path / folder / f"{number}.png")
    shutil.copy(tmp_path / "album" / "0.png", tmp_path / "photo.jpg")
    content = torch.load(PROJECT / "weights" / "unet_k3_f32.pkl", weights_only=True)
    torch.save(content["state_dict"], tmp_path / "handout" / "weights" / "unet_k3_f32.pkl")
    shutil.copy(PROJECT / "color" / "color_kmeans24_cat7.npy", tmp_path / "handout" / "color")
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_commands_run_on_small_data(name, place, capsys):
    """One after the other, as a reader would; what one writes, the next ones read."""
    seen = []
    for script, argv in commands((PROJECT / name).read_text(encoding="utf-8")):
        if script in SCRIPTS and (script, argv) not in seen and (argv or script == "color_regression"):
            seen.append((script, argv))
            importlib.import_module(script).main(shrink(script, argv))
        elif script == "-c":
            exec(argv[0], {})
        assert script in [*SCRIPTS, *TOOLS, "-c"], script


def test_python_examples_run(place, monkeypatch):
    """In the folder of the documents' commands, each for itself."""
    Image.new("RGB", (60, 40), (90, 120, 40)).save("photo.jpg")
    blocks = re.findall(
        r"^```python\n(.*?)^```", (PROJECT / "docs" / "recipes.md").read_text(), re.MULTILINE | re.DOTALL
    )
    for block in blocks:
        if "onnx" not in block or importlib.util.find_spec("onnx"):
            exec(block, {})
    assert len(blocks) == 3 and Image.open("colored.png").size == Image.open("by_the_unet.png").size == (60, 40)


def test_the_first_two_blocks_are_one_line_each():
    """They clone, make an environment and install; the first ends with pictures, the second with passed tests."""
    blocks = re.findall(
        r"^```\n(.*?)^```", (PROJECT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    start = "git clone URL colorization && cd colorization && python3 -m venv .venv && .venv/bin/pip install -r"
    assert blocks[0].splitlines() == [
        f"{start} requirements.txt && .venv/bin/python colorization.py --data sample -e 3"
    ]
    assert blocks[1].splitlines() == [f"{start} requirements-dev.txt && .venv/bin/python -m pytest -q -n 2"]


def anchors(path):
    """Return the anchors of a document's headings, as they are made from their text."""
    headings = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    path = PROJECT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        if not target.startswith("http"):
            linked = path.parent / file if file else path
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_named_exist(name):
    """Of the project's folders; names with a placeholder, and what a command writes, are not looked for."""
    text = (PROJECT / name).read_text(encoding="utf-8")
    folders = "sources|training|pictures|utils|weights|color|docs|tests|benchmarks"
    for file in re.findall(rf"`((?:{folders})/[\w./*]*)`", text) + re.findall(r"`(\w+\.(?:py|md))`", text):
        places = [PROJECT, *(PROJECT / folder for folder in folders.split("|"))]
        assert any(list(place.glob(file)) for place in places), file


def test_tests_that_are_named_exist():
    text = (PROJECT / "tests" / "README.md").read_text(encoding="utf-8")
    for row in text.splitlines():
        file = None
        for named, test in re.findall(r"`(test_\w+\.py)?::(test_\w+)`", row):
            file = named or file
            assert f"def {test}(" in (PROJECT / "tests" / file).read_text(encoding="utf-8"), test
    assert text.count("::test_") > 50


def test_flags_that_are_named_exist(monkeypatch, capsys):
    known = set(FOREIGN_FLAGS)
    for script in [*SCRIPTS, *TOOLS]:
        folder, _, module = str(PROJECT / script).rpartition("/")
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setattr(sys, "argv", [script, "--help"])
        main = importlib.import_module(module).main
        with pytest.raises(SystemExit):
            main(["--help"]) if main.__code__.co_argcount else main()
        known |= set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
    for path in DOCUMENTS:
        for code in re.findall(r"`[^`]+`", path.read_text(encoding="utf-8")):
            unknown = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", code)) - known
            assert not unknown, (path.name, unknown)


def test_numbers_of_the_shipped_weights_agree():
    """The table in weights/README.md with the files' own metrics, and the README's with that table."""
    table = (PROJECT / "weights" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+\.pkl)` \| ([\d.]+) \| (?:([\d.]+) %)?", table, re.MULTILINE)
    assert len(rows) == 4
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    for file, loss, accuracy in rows:
        _, checkpoint = load_network(PROJECT / "weights" / file)
        assert round(checkpoint.metrics["valid_loss"], len(loss) - 2) == float(loss), file
        if not accuracy:
            assert loss in readme
            continue
        assert abs(100 * checkpoint.metrics["valid_accuracy"] - float(accuracy)) < 0.006, file
        short = re.search(rf"^\| {checkpoint.model}\b[^|]*\| \**([\d.]+)\** \| \**([\d.]+) %", readme, re.MULTILINE)
        assert abs(float(short[1]) - float(loss)) < 0.00051
        assert abs(float(short[2]) - float(accuracy)) < 0.051
