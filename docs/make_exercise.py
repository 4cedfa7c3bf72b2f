"""Write this package as a student receives it, without the parts that the exercise asks for.

python docs/make_exercise.py DEST                       into a folder that is empty or missing
python docs/make_exercise.py DEST --also conv quantizer evaluation step

tests/test_parts.py tells a student which parts work; writeup.md has the questions.
"""

import ast
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from utils.console import UserError, run_script
from utils.flags import Parser

PARTS = {  # file and function: what a student is told
    "models.py CNN.__init__": "Part 2.1: Build the six stages of RegressionCNN with MyConv2d, and num_colors maps "
    "where RegressionCNN has three.",
    "models.py CNN.forward": "Part 2.2: Call self.check_size, pass the image through the stages, return the logits.",
    "models.py UNet.__init__": "Part 3.1: Build the CNN's stages with MyConv2d, and rfconv with self.bottleneck. Each "
    "decoder stage also gets maps of its size: upconv1 from downconv2, upconv2 from downconv1, finalconv the gray x.",
    "models.py UNet.forward": "Part 3.2: Call self.check_size, then pass the image through the stages. Concatenate the "
    "decoder's maps with those of the encoder, in this order, along the channels.",
    "models.py MyDilatedConv2d.forward": "Part 7.1: Spread the filters: self.dilation zeros between neighboring taps, "
    "by slicing and assignment. Then convolve as MyConv2d does, without PyTorch's own dilation parameter.",
}
OPTIONAL = {
    "conv": ("models.py MyConv2d.forward", "Part 1.1: Convolve by F.conv2d, with self.padding zeros on every side."),
    "quantizer": ("data.py nearest_color", "Part 1.2: Loop over the palette, and keep what is nearest so far."),
    "evaluation": (
        "training/evaluation.py evaluate",
        "Part 1.3: Weight each batch's batch_metrics() by its number of images; METRICS names them. "
        "Without a batch size, take 100 images. Sum over processes by distributed.all_reduce_sum.",
    ),
    "step": (
        "training/loop.py Trainer.step",
        "Part 1.4: Augment the images and find their targets. Forward the gray through self.model, in self.dtype by "
        "torch.autocast; self.loss of the outputs as float32; forget earlier gradients; backward; "
        "distributed.average_gradients; update the weights, then their average. Return the loss, detached.",
    ),
}
COPIED = r"(?!docs/|benchmarks/|\.(?!gitignore)|\w+\.md|CITATION|weights/README|tests/(?!conftest|helpers|test_parts))"


def find(tree, name):
    """Return the node of a function, such as "CNN.forward", in a module's syntax tree."""
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


def main(argv):
    parser = Parser(__doc__)
    parser.add_argument("dest", type=Path, metavar="DEST", help="folder to write")
    parser.add_argument("--also", nargs="+", choices=OPTIONAL, default=[], help="further parts to take out")
    args = parser.parse_args(argv)
    if args.dest.exists() and (not args.dest.is_dir() or any(args.dest.iterdir())):
        raise UserError(f"{args.dest}: not an empty folder; name another one")
    try:
        listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"{PROJECT}: git cannot list its files; install git and clone the repository") from error
    if "models.py" not in listed.splitlines():
        raise UserError(f"{PROJECT}: its files are not in a git repository; clone it")
    copies = {name: name for name in listed.splitlines() if re.match(COPIED, name)}
    copies |= {"docs/exercise_readme.md": "README.md", "docs/writeup.md": "writeup.md"}
    for source, target in copies.items():
        (args.dest / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PROJECT / source, args.dest / target)
    parts = PARTS | dict(OPTIONAL[name] for name in args.also)
    for place, task in parts.items():
        file, function = place.split()
        path = args.dest / file
        text = blank(path.read_text(encoding="utf-8"), function, task)
        path.write_text(text, encoding="utf-8", newline="\n")
    print(f"{args.dest}: the package without {', '.join(place.split()[1] for place in parts)}")


if __name__ == "__main__":
    run_script(main)
