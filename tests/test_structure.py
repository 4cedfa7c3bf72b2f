"""Which module may import which: down only, so that no circle can arise."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from utils.files import PROJECT

SCRIPTS = ["colorization", "color_regression", "activations"]
FLOORS = [SCRIPTS, ["training"], ["pictures"], ["data"], ["sources"], ["utils"], ["models"]]  # from the top down
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
MODULES = sorted(path.relative_to(PROJECT) for name in FLOOR for path in [PROJECT / f"{name}.py"] if path.exists())
MODULES += sorted(path.relative_to(PROJECT) for name in FLOOR for path in (PROJECT / name).glob("*.py"))


def imported(path):
    """Yield the dotted names that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse((PROJECT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_script(path):
    return "__main__" in (PROJECT / path).read_text(encoding="utf-8")


def test_every_module_has_a_floor():
    top = {path.stem for path in PROJECT.glob("*.py")}
    assert top == {*SCRIPTS, "data", "models"}, "the top level is the exercise itself"
    folders = {path.parent.name for path in PROJECT.glob("*/__init__.py")}
    assert folders == {"training", "pictures", "sources", "utils"}
    assert len(MODULES) > 20


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_down(path):
    own = path.parts[0].removesuffix(".py")
    for name in imported(path):
        other = name.split(".")[0]
        if other in FLOOR and other != own:
            assert FLOOR[other] > FLOOR[own], f"{path} imports {name}, which is not below it"
        if name.startswith("utils.flags"):
            assert is_script(path), f"{path} imports {name}, which only scripts may"
        if other == own and len(path.parts) == 2:
            assert name.split(".")[1] != path.stem


def test_no_circle_within_a_folder():
    """Taking away the modules that need none of those left, again and again, leaves none."""
    for folder in ("training", "pictures", "sources", "utils"):
        names = {path.stem for path in (PROJECT / folder).glob("*.py")}
        needs = {
            stem: {name.split(".")[1] for name in imported(Path(folder, f"{stem}.py")) if name.startswith(f"{folder}.")}
            for stem in names
        }
        while needs:
            free = {stem for stem, others in needs.items() if not others & needs.keys()}
            assert free, f"{folder}: a circle among {sorted(needs)}"
            needs = {stem: others for stem, others in needs.items() if stem not in free}


def test_scripts_run_from_any_folder(tmp_path):
    """Even from one that contains modules of the same names."""
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "__init__.py").write_text("raise ImportError('the wrong utils')")
    command = [sys.executable, PROJECT / "colorization.py", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr


def test_no_private_functions_of_pytorch():
    """None but pickle._Unpickler, whose reason stands beside it."""
    for path in MODULES:
        for node in ast.walk(ast.parse((PROJECT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                owner = ast.unparse(node.value)
                name = f"{owner}.{node.attr}"
                assert owner == "self" or name == "pickle._Unpickler", f"{path}: {name}"


def test_no_function_is_longer_than_a_screen():
    for path in MODULES:
        for node in ast.walk(ast.parse((PROJECT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 40, f"{path}: {node.name}"


def test_names_are_hinted_where_a_reader_meets_them():
    """Every parameter and result of a public function; mypy checks that the hints are true."""
    for path in MODULES:
        for node in ast.walk(ast.parse((PROJECT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                parameters = [p for p in (*node.args.args, *node.args.kwonlyargs) if p.arg != "self"]
                if not node.decorator_list or ast.unparse(node.decorator_list[0]) != "property":
                    assert all(parameter.annotation for parameter in parameters), f"{path}: {node.name}"
                assert node.returns, f"{path}: {node.name}"
