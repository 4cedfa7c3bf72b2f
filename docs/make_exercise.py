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
import textwrap
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from utils.console import UserError, run

PARTS = {  # file and function: what a student is told
    "models.py CNN.__init__": "Part 2.1: Build the six stages of RegressionCNN. Use self.conv, and num_colors maps "
    "where RegressionCNN has three.",
    "models.py CNN.forward": "Part 2.2: Call check_size, pass the image through the stages, and return the logits.",
    "models.py UNet.__init__": "Part 3.1: Build the CNN's stages with MyConv2d, and rfconv with self.bottleneck. Each "
    "decoder stage also receives maps of its size: upconv1 from downconv2, upconv2 from downconv1, finalconv x itself.",
    "models.py UNet.forward": "Part 3.2: Call check_size, then pass the image through the stages. Concatenate the "
    "decoder's maps with those of the encoder, in this order, along the channels.",
    "models.py MyDilatedConv2d.__init__": "Part 4.1: How many pixels does the spread filter cover along one side? "
    "Which padding keeps the size? Call MyConv2d's __init__, then set self.spacing, which MyConv2d.forward uses.",
}
OPTIONAL = {
    "conv": ("models.py MyConv2d.forward", "Part 1.1: Convolve by F.conv2d, with self.spacing between the taps."),
    "quantizer": ("data.py nearest_color", "Part 1.2: Find the nearest palette color of every color."),
    "evaluation": (
        "training/evaluation.py evaluate",
        "Part 1.3: Weight each batch's metrics by its number of images. "
        "Without a batch size, take 100 images. Sum over processes by distributed.all_reduce_sum.",
    ),
    "step": (
        "training/loop.py Trainer.step",
        "Part 1.4: Augment the pixels, then split them. Forward through self.forward, in self.dtype by torch.autocast; "
        "loss; backward; both optimizers, which reset the gradients (zero_grad would detach them); Muon's rate is "
        "MUON_RATE times the learning rate; self.averages, by averaging_weight(self.adam.steps).",
    ),
}
TASK = """# Colorizing horses

Implement the functions that raise NotImplementedError, part by part, and answer the questions in
[writeup.md](writeup.md), which have numbers of their own. `color_regression.py` and `data.py` {first};
CNN needs part 2, UNet part 3, DUNet and `--colorize` parts 3 and 4. After the set-up below,
`pip install -r requirements-dev.txt` and `python -m pytest --tb=short tests/test_parts.py` show which parts work.

"""
LEFT_OUT = r"docs/(?!photographs/photographs_1)|weights/README|benchmarks/|\.ci/|tests/(?!conftest|test_parts)"
LEFT_OUT_OF_README = [
    r"\A.*?(?=^## First)",
    r"^git clone.*?\n",
    r" It\s+ends\s+with.*?```.*?```\n",
    r"^\| network \| loss.*?(?=^## Your)",
]
LEFT_OUT_OF_README += [r"^## (The exercise's|For teachers).*?(?=^## Where)", r"^## Tests.*?(?=^MIT)"]
LEFT_OUT_OF_README += [r"^\| `(docs|benchmarks)/`.*?\n", r"\s*\(\[more\][^)]*\)\)"]


def find(tree, name):
    """Return the node of a function, such as "CNN.forward", or of a class."""
    for part in name.split("."):
        tree = next(node for node in tree.body if getattr(node, "name", None) == part)
    return tree


def blank(text, name, task):
    """Return a module's text with the body of a function replaced by its docstring, the task and an error."""
    lines, node = text.splitlines(), find(ast.parse(text), name)
    first = node.body[1] if ast.get_docstring(node) else node.body[0]
    part, _, words = task.partition(": ")
    body = [*(f"# {line}" for line in textwrap.wrap(words, 90)), f'raise NotImplementedError("{part}: {name}")']
    body = [" " * node.body[0].col_offset + line for line in body]
    return "\n".join([*lines[: first.lineno - 1], *body, *lines[node.end_lineno :]]) + "\n"


def give_regression(text):
    """Return models.py with RegressionCNN whole: the methods that it inherits from CNN, which are taken out there."""
    lines, tree = text.splitlines(), ast.parse(text)
    methods = [find(tree, f"CNN.{name}") for name in ("__init__", "forward")]
    given = "\n\n".join("\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in methods)
    text = text.replace("class RegressionCNN(CNN):", "class RegressionCNN(nn.Module):")
    return text.replace("    conv = nn.Conv2d\n", f"    conv = nn.Conv2d\n\n{given}\n", 1)


def for_students(readme, first):
    """Return the README with the student's task, and without what leads to answers or needs what is left out.

    `first` says what color_regression.py and data.py need.
    """
    for section in LEFT_OUT_OF_README:
        readme = re.sub(section, "", readme, flags=re.DOTALL | re.MULTILINE)
    readme = readme.replace("python colorization.py --data sample", "python color_regression.py --data sample")
    return TASK.format(first=first) + readme.replace("outputs/unet_k3_f32_im", "outputs/regression_cnn_k3_f32_im")


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dest", type=Path, metavar="DEST", help="folder to write")
    parser.add_argument("--also", nargs="+", choices=OPTIONAL, default=[], help="further parts to take out")
    args = parser.parse_args(argv)
    if args.dest.exists() and (not args.dest.is_dir() or any(args.dest.iterdir())):
        raise UserError(f"{args.dest}: not an empty folder; name another one")
    try:
        listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"{PROJECT}: git cannot list its files; install git and clone the repository") from error
    for name in listed.splitlines():
        if not re.match(LEFT_OUT, name):
            (args.dest / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PROJECT / name, args.dest / name)
    shutil.copyfile(PROJECT / "docs" / "writeup.md", args.dest / "writeup.md")

    def change(file, function, *more):
        path = args.dest / file
        path.write_text(function(path.read_text(encoding="utf-8"), *more), encoding="utf-8")

    first = "need part 1" if args.also else "work from the start"
    change("README.md", for_students, first)
    change("models.py", give_regression)
    parts = PARTS | dict(OPTIONAL[name] for name in args.also)
    for place, task in parts.items():
        file, function = place.split()
        change(file, blank, function, task)
    print(f"{args.dest}: the package without {', '.join(place.split()[1] for place in parts)}")


if __name__ == "__main__":
    run(main)
