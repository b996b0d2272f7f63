"""Imports only point down: the floors of DESIGN.md, walked module by module."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

FLOORS = {
    1: {
        "arguments",
        "chance",
        "control_names",
        "errors",
        "files",
        "geometry",
        "matching",
        "layer_choice",
        "metrics",
        "probes",
        "progress",
        "protocols",
        "resampling",
    },
    2: {"cache", "labels", "scenes", "stitching"},
    3: {"backbones", "controls"},
    4: {
        *("affinities", "attention_source", "calibration", "extraction", "folds", "judging", "patch_batches", "starts"),
        *("finishing", "fits", "layer_patches", "side_by_side", "tasks", "training"),
    },
    5: {
        *("analysis", "breakdowns", "difficulty", "emergence", "model_table", "paired_gains", "pretraining", "repair"),
        *("inputs", "scene_tables", "sweeping", "verdicts"),
    },
    6: {
        "choices",
        "cli",
        "comparing",
        "explorer",
        "figures",
        "merging",
        "parameters",
        "pipeline",
        "viewer",
        "workspace",
    }
    | {"notebook_engine", "notebook_execution"},
}
FLOOR_OF = {part: floor for floor, parts in FLOORS.items() for part in parts}
TRANSFORMERS_FREE = ("bindkit.cache", "bindkit.probes", "bindkit.metrics", "bindkit.training", "bindkit.sweeping")


def parts_of(root):
    """(part, file) of every module: the part is the name right below bindkit."""
    package = root / "bindkit"
    for path in sorted(package.rglob("*.py")):
        relative = path.relative_to(package)
        if relative.parts == ("__init__.py",):
            continue
        yield relative.parts[0].removesuffix(".py"), path


def imported_by(path, package):
    """Dotted names that a module imports anywhere in it, functions included."""
    module = ["bindkit", *path.relative_to(package).with_suffix("").parts]
    parents = module if path.name == "__init__.py" else module[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            name = ".".join(filter(None, [base, node.module]))
            yield name
            yield from (f"{name}.{alias.name}" for alias in node.names)


def arrows(root):
    """(from part, to part, file) for every import within bindkit."""
    for part, path in parts_of(root):
        for name in imported_by(path, root / "bindkit"):
            words = name.split(".")
            if words[0] == "bindkit" and len(words) > 1 and words[1] in FLOOR_OF and words[1] != part:
                yield part, words[1], path


def test_every_module_stands_on_a_floor(root):
    unplaced = {part for part, _ in parts_of(root)} - set(FLOOR_OF)
    assert not unplaced, f"place these in FLOORS (and in DESIGN's order): {sorted(unplaced)}"


def test_no_import_points_up(root):
    upward = {
        f"{path.relative_to(root)} imports bindkit.{target} (floor {FLOOR_OF[target]} from {FLOOR_OF[part]})"
        for part, target, path in arrows(root)
        if FLOOR_OF[target] > FLOOR_OF[part]
    }
    assert not upward, "\n".join(sorted(upward))


def test_no_import_goes_in_a_circle(root):
    below = {part: set() for part in FLOOR_OF}
    for part, target, _ in arrows(root):
        below[part].add(target)
    while free := {part for part, targets in below.items() if not targets}:
        below = {part: targets - free for part, targets in below.items() if part not in free}
    assert not below, f"these import each other: {below}"


def test_the_walk_sees_imports_inside_functions_and_relative_ones(tmp_path):
    package = tmp_path / "bindkit"
    (package / "cache").mkdir(parents=True)
    (package / "metrics.py").write_text("def judge():\n    from bindkit import training\n")
    (package / "cache" / "shards.py").write_text("from ..training import fit\nfrom . import layout\n")
    found = {(part, target) for part, target, _ in arrows(tmp_path)}
    assert found == {("metrics", "training"), ("cache", "training")}


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("plotly", {"explorer", "figures"}),
        ("kaleido", {"figures"}),
        ("ipywidgets", {"explorer"}),
        ("anywidget", {"explorer"}),
        ("transformers", {"backbones", "pretraining"}),
        ("papermill", {"notebook_engine", "notebook_execution"}),
    ],
)
def test_libraries_are_imported_only_where_they_belong(root, library, allowed):
    users = {
        part
        for part, path in parts_of(root)
        if any(name.split(".")[0] == library for name in imported_by(path, root / "bindkit"))
    }
    assert users <= allowed


def test_probing_needs_no_transformers():
    """Not even through something that it imports."""
    code = f"import sys, importlib\nfor name in {TRANSFORMERS_FREE}: importlib.import_module(name)\n"
    code += "print(sorted({'transformers', 'plotly', 'IPython', 'papermill'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
