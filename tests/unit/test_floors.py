"""The house: the rooms of the package, which of them may know which, and how large they are."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter

import pytest

ROOMS = (
    *("errors", "arguments", "files"),
    *("scenes", "backbones", "cache", "probes", "results", "affinities", "pretraining", "analysis"),
    *("views", "pipeline", "cli"),
)
"""From the ground up: a room may import those before it, and none behind it."""

WALLS = {
    "plotly": "bindkit.views",
    "kaleido": "bindkit.views.figures",
    "ipywidgets": "bindkit.views.explorer",
    "anywidget": "bindkit.views.explorer",
    "transformers": ("bindkit.backbones", "bindkit.pretraining"),
    "papermill": "bindkit.pipeline",
    "argparse": "bindkit.cli",
    "bindkit.pipeline": ("bindkit.pipeline", "bindkit.cli"),
    "bindkit.analysis": ("bindkit.analysis", "bindkit.cli"),
    "bindkit.views": ("bindkit.views", "bindkit.cli"),
}
"""Who alone may import what."""

LARGEST = {
    **{"errors": 115, "arguments": 240, "files": 320, "cli": 325, "scenes": 4250, "backbones": 2805, "cache": 3180},
    **{"probes": 3460, "results": 1450, "affinities": 732, "pretraining": 1555, "analysis": 2070, "views": 6005},
    "pipeline": 1555,
}
"""Lines that a room may have: what it has, and little more. HOUSE's plan is less; lower these as rooms shrink."""

TRANSFORMERS_FREE = ("bindkit.cache", "bindkit.probes", "bindkit.probes.fitting", "bindkit.results.sweeping")


def modules_of(root):
    """(dotted name, file) of every module, packages by their own name."""
    for path in sorted((root / "bindkit").rglob("*.py")):
        yield ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"), path


def room_of(module):
    return (*module.split("."), "")[1]


def imported_by(module, path):
    """Dotted names that a module imports anywhere in it, functions included."""
    parents = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            name = ".".join(filter(None, [base, node.module]))
            yield name
            yield from (f"{name}.{alias.name}" for alias in node.names)


def arrows(root):
    """(module, module that it imports) within the package; a package stands for what its `__init__` offers."""
    known = dict(modules_of(root))
    for module, path in known.items():
        for name in imported_by(module, path):
            if name in known and name != module:
                yield module, name


def test_the_top_of_the_package_shows_the_rooms_and_nothing_else(root):
    there = {path.name.removesuffix(".py") for path in (root / "bindkit").iterdir() if path.name != "__pycache__"}
    assert there == {*ROOMS, "__init__", "README.md"}


def test_no_import_points_up(root):
    upward = [
        f"{module} imports {target}"
        for module, target in arrows(root)
        if room_of(module) and room_of(target) and ROOMS.index(room_of(target)) > ROOMS.index(room_of(module))
    ]
    assert not upward, "\n".join(upward)


def test_no_import_goes_in_a_circle(root):
    """Between modules, imports inside functions included. A package's `__init__` only offers names of its modules."""
    below = {module: set() for module, _ in modules_of(root)}
    packages = {module for module, path in modules_of(root) if path.name == "__init__.py"}
    for module, target in arrows(root):
        if module not in packages and not (target in packages and module.startswith(f"{target}.")):
            below[module].add(target)
    while free := {module for module, targets in below.items() if not targets}:
        below = {module: targets - free for module, targets in below.items() if module not in free}
    assert not below, f"these import each other: {below}"


def test_the_walk_sees_imports_inside_functions_and_relative_ones(tmp_path):
    package = tmp_path / "bindkit"
    (package / "cache").mkdir(parents=True)
    for name in ("__init__", "metrics", "training", "cache/__init__", "cache/manifest"):
        (package / f"{name}.py").write_text("")
    (package / "metrics.py").write_text("def judge():\n    from bindkit import training\n")
    (package / "cache" / "shards.py").write_text("from ..training import fit\nfrom . import manifest\n")
    assert {arrow for arrow in arrows(tmp_path) if arrow[1] not in {"bindkit", "bindkit.cache"}} == {
        ("bindkit.metrics", "bindkit.training"),
        ("bindkit.cache.shards", "bindkit.training"),
        ("bindkit.cache.shards", "bindkit.cache.manifest"),
    }


@pytest.mark.parametrize("library", WALLS)
def test_what_stands_behind_a_wall_is_imported_there_alone(root, library):
    users = {
        module
        for module, path in modules_of(root)
        if any(f"{name}.".startswith(f"{library}.") for name in imported_by(module, path))
    }
    allowed = (WALLS[library],) if isinstance(WALLS[library], str) else WALLS[library]
    assert {module for module in users if not module.startswith(allowed)} == set()


def test_probing_needs_no_transformers():
    """Not even through something that it imports."""
    code = f"import sys, importlib\nfor name in {TRANSFORMERS_FREE}: importlib.import_module(name)\n"
    code += "print(sorted({'transformers', 'plotly', 'IPython', 'papermill'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_house_stays_small(root):
    """Prints lines a room (`pytest -s`): code, docstrings and blank lines together."""
    lines = {module: path.read_text(encoding="utf-8").count("\n") for module, path in modules_of(root)}
    rooms = {room: sum(n for module, n in lines.items() if room_of(module) == room) for room in ROOMS}
    print(*(f"{n:6d} {room}" for room, n in [*rooms.items(), ("all", sum(lines.values()))]), sep="\n")  # noqa: T201
    assert {room: n for room, n in rooms.items() if n > LARGEST[room]} == {}
    assert {module: n for module, n in lines.items() if n > 450} == {}
    assert len(lines) <= 113


def test_few_private_functions_are_called_at_one_place_only(root):
    """A name is worth a jump only where it says more than the body does. Rows of a table are not called by name."""
    once = []
    for module, path in modules_of(root):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        used = Counter(getattr(node, "id", getattr(node, "attr", None)) for node in nodes)
        called = {
            getattr(node.func, "id", getattr(node.func, "attr", None)) for node in nodes if isinstance(node, ast.Call)
        }
        names = [
            node.name for node in nodes if isinstance(node, ast.FunctionDef) and re.fullmatch(r"_[a-z]\w*", node.name)
        ]
        once += [f"{module}.{name}" for name in names if used[name] == 1 and name in called]
    assert len(once) <= 109, "\n".join(once)
