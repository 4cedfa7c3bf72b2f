"""What the documents say exists, and numbers that stand in two places agree; no judgment of the text."""

import argparse
import importlib
import re
import shlex

import pytest

from utils.checkpoint import load_network
from utils.files import PROJECT

DOCUMENTS = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("[!.]*/*.md")])
NAMES = [str(path.relative_to(PROJECT)) for path in DOCUMENTS]
SCRIPTS = ["colorization", "color_regression", "activations", "data", "models", "docs/make_answers"]
SCRIPTS += [f"benchmarks/{path.stem}" for path in (PROJECT / "benchmarks").glob("*.py")]
FOREIGN_FLAGS = {"--index-url", "--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--check"}


class Parsed(Exception):
    """Raised in place of what a script does after its command line is parsed; carries the parser."""


def parse(script, argv, monkeypatch):
    """Parse a script's command line without running it; return its flags. A wrong one raises SystemExit."""
    original = argparse.ArgumentParser.parse_known_args

    def stop(parser, args=None, namespace=None):
        _, unknown = original(parser, argv if args is None else args, namespace)
        assert not unknown, unknown
        raise Parsed(parser)

    monkeypatch.syspath_prepend(str(PROJECT / script).rpartition("/")[0])
    module = importlib.import_module(script.rpartition("/")[2])
    with monkeypatch.context() as patch, pytest.raises(Parsed) as parsed:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        module.main(argv) if module.main.__code__.co_argcount else module.main()
    return set(parsed.value.args[0]._option_string_actions)


def commands(text):
    """Return the commands that run this project's scripts, in code blocks and inline: (script, [argument])."""
    blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    found = [re.match(r"(?:python|torchrun .*?) (\S+)\.py\b(.*)", line) for line in lines]
    words = [(match[1], shlex.split(match[2].replace("…", ""), comments=True)) for match in found if match]
    return [(script, ["3" if word == "N" else word for word in argv]) for script, argv in words]


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
    text = (PROJECT / "docs" / "reliability.md").read_text(encoding="utf-8")
    tests = "".join(path.read_text(encoding="utf-8") for path in (PROJECT / "tests").glob("test_*.py"))
    names = re.findall(r"::(test_\w+)", text)
    assert len(names) > 50 and not [name for name in names if f"def {name}(" not in tests]


def test_commands_parse(monkeypatch):
    seen = [(path.name, *command) for path in DOCUMENTS for command in commands(path.read_text(encoding="utf-8"))]
    assert len(seen) > 25
    for document, script, argv in seen:
        if script.rpartition("/")[2] != "temperature":  # which takes no flags
            try:
                parse(script, argv, monkeypatch)
            except SystemExit:
                pytest.fail(f"{document}: {script}.py {shlex.join(argv)}")


def test_flags_that_are_named_exist(monkeypatch):
    arguments = {"activations": ["3"], "models": ["UNet"]}
    flags = [parse(s, arguments.get(s, []), monkeypatch) for s in SCRIPTS if "temperature" not in s]
    known = set().union(*flags) | FOREIGN_FLAGS
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
