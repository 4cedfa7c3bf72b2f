"""Write this package as a student receives it, without the parts that the exercise asks for.

python docs/make_exercise.py DEST                       into a folder that is empty or missing
python docs/make_exercise.py DEST --also conv quantizer evaluation step

tests/test_parts.py tells a student which parts work; writeup.md has the questions.
"""

import argparse
import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from utils.console import UserError, run

PARTS = {  # file, function: what a student is told
    ("models.py", "CNN.__init__"): "Part 2.1: Build the six stages of RegressionCNN. Use self.conv, and num_colors "
    "maps where RegressionCNN has three.",
    ("models.py", "CNN.forward"): "Part 2.2: Pass the image through the stages; return the logits.",
    (
        "models.py",
        "UNet.__init__",
    ): "Part 3.1: Build the CNN's stages with MyConv2d, and rfconv with self.bottleneck. "
    "upconv1 and upconv2 also receive the encoder's maps of the same size, and finalconv the gray image.",
    ("models.py", "UNet.forward"): "Part 3.2: Pass the image through the stages; concatenate the decoder's maps with "
    "those of the encoder, in this order, along the channels.",
    ("models.py", "MyDilatedConv2d.__init__"): "Part 4.1: How many pixels does the spread filter cover? Which padding "
    "keeps the size? Call MyConv2d's __init__, then set self.spacing, which its forward passes to F.conv2d.",
}
OPTIONAL = {
    "conv": (("models.py", "MyConv2d.forward"), "Part 1.1: Convolve with self.weight and self.bias by F.conv2d."),
    "quantizer": (("data.py", "nearest_color"), "Part 1.2: Find the nearest palette color of every color."),
    "evaluation": (("training/evaluation.py", "evaluate"), "Part 1.3: Weight each batch's metrics by its size."),
    "step": (("training/loop.py", "Trainer.step"), "Part 1.4: Forward, loss, backward, both optimizers, averages."),
}
TASK = """## Your task

Implement the functions that raise NotImplementedError and answer the questions in [writeup.md](writeup.md).
`python -m pytest tests/test_parts.py` prints which parts work.

"""
LEFT_OUT = r"docs/(answers|make_)|docs/writeup|benchmarks/|\.ci/|tests/(?!conftest|test_parts)"


def find(tree, name):
    """Return the node of a function, such as "CNN.forward", or of a class."""
    for part in name.split("."):
        tree = next(node for node in tree.body if getattr(node, "name", None) == part)
    return tree


def blank(text, name, task):
    """Return a module's text with the body of a function replaced by its docstring, the task and an error."""
    lines, node = text.splitlines(), find(ast.parse(text), name)
    first = node.body[1] if ast.get_docstring(node) else node.body[0]
    indent = " " * node.body[0].col_offset
    part, _, words = task.partition(": ")
    body = re.findall(r".{1,90}(?:\s|$)", words)  # as lines of comments
    body = [f"{indent}# {line.strip()}" for line in body] + [f'{indent}raise NotImplementedError("{part}: {name}")']
    return "\n".join([*lines[: first.lineno - 1], *body, *lines[node.end_lineno :]]) + "\n"


def give_regression(text):
    """Return models.py with RegressionCNN whole: the methods that it inherits from CNN, which are taken out there."""
    lines, tree = text.splitlines(), ast.parse(text)
    methods = [find(tree, f"CNN.{name}") for name in ("__init__", "forward")]
    given = "\n\n".join("\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in methods)
    text = text.replace("class RegressionCNN(CNN):", "class RegressionCNN(nn.Module):")
    return text.replace("    conv = nn.Conv2d\n", f"    conv = nn.Conv2d\n\n{given}\n", 1)


def for_students(readme):
    """Return the README with the student's task, and without what leads to the answers or is left out."""
    sections = r"^## (The exercise's questions|For teachers).*?(?=^## Where)"
    readme = re.sub(sections, TASK, readme, flags=re.DOTALL | re.MULTILINE)
    readme = re.sub(r"^\*The first six of.*?\*\n", "", readme, flags=re.DOTALL | re.MULTILINE)  # a picture's caption
    unwanted = r"docs/answers|`benchmarks/`|`\.ci/run`"
    return "".join(line for line in readme.splitlines(keepends=True) if not re.search(unwanted, line))


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dest", type=Path, metavar="DEST", help="folder to write")
    parser.add_argument("--also", nargs="+", choices=OPTIONAL, default=[], help="further parts to take out")
    args = parser.parse_args(argv)
    if args.dest.exists() and (not args.dest.is_dir() or any(args.dest.iterdir())):
        raise UserError(f"{args.dest}: not an empty folder; name another one")
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if not re.match(LEFT_OUT, name):
            (args.dest / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PROJECT / name, args.dest / name)
    shutil.copyfile(PROJECT / "docs" / "writeup.md", args.dest / "writeup.md")
    parts = PARTS | dict(OPTIONAL[name] for name in args.also)
    changes = {("models.py", None): give_regression, ("README.md", None): for_students}
    changes |= {
        (file, name): lambda text, n=name, task=task: blank(text, n, task) for (file, name), task in parts.items()
    }
    for (file, _), change in changes.items():
        path = args.dest / file
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{args.dest}: the package without {', '.join(name for _, name in parts)}")


if __name__ == "__main__":
    run(main)
