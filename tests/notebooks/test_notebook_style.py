"""Every notebook obeys the house style: readable cells, literal parameters, small files, no machine in it."""

from __future__ import annotations

import re

import nbformat
import pytest

from bindkit.pipeline.parameters import notebook_parameters
from bindkit.pipeline.running import FIRST_LAB, RUN_DEFAULTS

LONGEST_CELL = 15
LARGEST_BYTES = 300_000
DRAWS = re.compile(r"save_figure|_curves\(|scene_figure|FigureWidget|Explorer|\.show\(")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell):
    return set(cell.metadata.get("tags", []))


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def test_the_pipeline_is_numbered_without_a_gap_and_labs_come_after_it(notebook_paths):
    numbers = [int(path.name[:2]) for path in notebook_paths]
    pipeline = [number for number in numbers if number < FIRST_LAB]
    assert pipeline == list(range(1, len(pipeline) + 1))
    assert numbers == sorted(set(numbers))
    others = [path.name for path in notebook_paths[0].parent.glob("*.ipynb") if path not in notebook_paths]
    assert not others


def test_the_name_says_number_verb_object(path):
    # 08 is known by the name of its question.
    assert re.fullmatch(r"\d\d_([a-z]+_[a-z]+(_[a-z]+)*|emergence)\.ipynb", path.name)


def test_it_opens_with_a_title_and_closes_with_what_was_learned(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert re.search(r"minute|second", first.source), "say how long it takes"
    headings = [line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    assert any(re.match(r"#+ .*What we learned", line) for line in headings)


def test_it_has_one_cell_of_literal_parameters_and_checks_what_was_set(path, notebook):
    tagged = [cell for cell in code_cells(notebook) if "parameters" in tags(cell)]
    assert len(tagged) == 1
    assert tagged[0] is code_cells(notebook)[0]
    assert "workspace" in notebook_parameters(path)
    assert "check_parameters(In)" in code_cells(notebook)[1].source


def test_shared_parameters_have_the_same_default_everywhere(notebook_paths):
    """In the notebooks of the pipeline; each laboratory is run by itself."""
    seen = {}
    for path in (path for path in notebook_paths if int(path.name[:2]) < FIRST_LAB):
        for name, value in notebook_parameters(path).items():
            assert seen.setdefault(name, value) == value, f"{name} differs in {path.name}"
    assert set(RUN_DEFAULTS) <= set(seen)
    # By hand and by `bindkit run` they fill one workspace: backbones and layers by hand are among those of the run.
    assert {name for name, value in RUN_DEFAULTS.items() if seen[name] != value} <= {"backbones", "layers"}
    assert set(seen["backbones"].split()) <= set(RUN_DEFAULTS["backbones"].split())


def test_nothing_is_defined_in_a_cell(notebook):
    for cell in code_cells(notebook):
        assert not re.search(r"^\s*(def|class|async def) ", cell.source, re.MULTILINE), cell.source
        assert "lambda" not in cell.source, cell.source


def test_cells_are_short(notebook):
    for cell in code_cells(notebook):
        assert len(cell.source.splitlines()) <= LONGEST_CELL, cell.source


def test_figures_are_not_compared(notebook):
    for cell in code_cells(notebook):
        if DRAWS.search(cell.source) and not cell.source.startswith(("import", "from")):
            assert "nbval-ignore-output" in tags(cell), cell.source


def test_it_was_executed_in_order_without_errors(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert not [output for cell in code_cells(notebook) for output in cell.outputs if output.output_type == "error"]


def test_it_is_small_and_holds_no_widget_state(path, notebook):
    assert path.stat().st_size < LARGEST_BYTES
    assert "widgets" not in notebook.metadata
    assert not any(
        mime.startswith("application/vnd.jupyter.widget")
        for cell in code_cells(notebook)
        for output in cell.outputs
        for mime in output.get("data", {})
    )


def test_it_names_no_place_of_one_machine(path):
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"(?<![\w.:/])/(?:home|root|tmp|work|Users|mnt|data)/[\w./-]+", text)
    assert not found
