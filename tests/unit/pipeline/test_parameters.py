"""Parameters are plain literals; unknown names and other types are errors that help."""

from __future__ import annotations

import math

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from papermill.translators import PythonTranslator

from bindkit.errors import InvalidParameterError, UnknownParameterError
from bindkit.pipeline.parameters import (
    check_parameters,
    check_value,
    notebook_parameters,
    read_assignments,
    typed_parameters,
)

OWN = 'scenes = "synthetic:n=8,seed=0"  # what to look at\nlayers = "all"\nseed = 0\nrate = 0.5\nfast = False'


def inject(**values):
    """The cell that papermill itself would inject."""
    return "# Parameters\n" + PythonTranslator.codify(values).split("\n", 1)[1]


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z_]{0,8}x", fullmatch=True),
        st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-1, 1) | st.text(max_size=5),
        min_size=1,
    )
)
def test_what_papermill_injects_is_read_back(values):
    assert read_assignments(inject(**values)) == values


def test_papermills_undefined_float_is_read():
    assert math.isnan(read_assignments(inject(rate=float("nan")))["rate"])


@pytest.mark.parametrize("source", ["a = b", "import os", "a = f()", "a, b = 1, 2", "a += 1", "print(1)", "a: int"])
def test_anything_but_plain_literals_is_refused(source):
    with pytest.raises(InvalidParameterError):
        read_assignments(source)


def test_known_parameters_pass():
    check_parameters(
        ["", OWN, inject(layers="0,6", rate=1, fast=True), "import bindkit as bk; bk.check_parameters(In)"]
    )


def test_without_an_injected_cell_there_is_nothing_to_check():
    check_parameters([""])
    check_parameters(["", OWN, "bk.check_parameters(In)"])


def test_a_parameter_cell_that_happens_to_start_like_the_injected_one_is_no_error():
    check_parameters(["", "# Parameters\n" + OWN, "bk.check_parameters(In)"])


def test_unknown_names_are_named_with_what_was_meant_and_what_there_is():
    with pytest.raises(UnknownParameterError) as caught:
        check_parameters(["", OWN, inject(layer="0", blub=1)])
    message = str(caught.value)
    assert "'layer' (did you mean 'layers'?)" in message
    assert "'blub'" in message
    assert message.endswith("scenes, layers, seed, rate, fast")


def test_the_last_injected_cell_counts_in_a_rerun_session():
    session = ["", OWN, inject(layer="0"), OWN, inject(layers="0"), inject(layers="0"), "bk.check_parameters(In)"]
    check_parameters(session)
    with pytest.raises(UnknownParameterError):
        check_parameters([*session, inject(layer="0")])


@pytest.mark.parametrize(
    ("name", "value"), [("seed", "0"), ("seed", 0.5), ("seed", True), ("fast", 1), ("scenes", 0.5), ("rate", "much")]
)
def test_another_type_is_refused(name, value):
    with pytest.raises(InvalidParameterError, match=rf"'{name}' takes .*, got "):
        check_parameters(["", OWN, inject(**{name: value})])


def test_an_int_passes_for_a_float_and_becomes_one():
    assert isinstance(check_value("rate", 2, 0.5), float)


def test_numbers_and_lists_pass_for_texts_that_hold_several():
    assert check_value("layers", 3, "all") == "3"
    assert check_value("backbones", ["a", "b c"], "") == "a 'b c'"
    assert check_value("layers", [0, 11], "all") == "0,11"
    with pytest.raises(InvalidParameterError):
        check_value("layers", [0, "a"], "all")


def test_typed_text_is_read_by_the_defaults_type():
    known = {"layers": "all", "seed": 0, "rate": 0.5, "fast": False}
    typed = [("layers", "0"), ("seed", "7"), ("rate", "1"), ("fast", "True")]
    assert typed_parameters(typed, known, {}) == {"layers": "0", "seed": 7, "rate": 1.0, "fast": True}
    for wrong in ("many", "0.5", "True", "'0'"):
        with pytest.raises(InvalidParameterError, match="'seed' takes a whole number"):
            typed_parameters([("seed", wrong)], known, {})


def write_notebook(path, *cells, tag=None):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    if tag is not None:
        notebook.cells[tag].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, path)


def test_a_notebooks_parameters_are_those_of_its_tagged_cell(tmp_path):
    write_notebook(tmp_path / "01_a.ipynb", "x = 1", OWN, "y = 2", tag=1)
    assert list(notebook_parameters(tmp_path / "01_a.ipynb")) == ["scenes", "layers", "seed", "rate", "fast"]


def test_a_notebook_without_a_usable_parameter_cell_is_named(tmp_path):
    write_notebook(tmp_path / "01_a.ipynb", "x = 1")
    write_notebook(tmp_path / "02_b.ipynb", "x = compute()", tag=0)
    (tmp_path / "03_c.ipynb").write_text("no notebook")
    for name in ("01_a.ipynb", "02_b.ipynb", "03_c.ipynb"):
        with pytest.raises(InvalidParameterError, match=name):
            notebook_parameters(tmp_path / name)
