"""The paper's table: every difference by hand."""

import math

import pandas as pd
import pytest

from bindkit.errors import InvalidParameterError
from bindkit.figures import model_table_figure
from bindkit.model_table import model_table

COLUMNS = ["backbone", "objective", "layer", "probe", "task", "accuracy", "auroc", "twins_auroc", "seed", "n_pairs"]
ROWS = [
    ("random-init:vit", "random-init", 0, "quadratic", "pairwise", 0.82, 0.70, 0.55, 0, 1000),
    ("random-init:other", "random-init", 0, "quadratic", "pairwise", 0.83, 0.75, 0.58, 0, 1000),
    ("vit", "dino", 0, "quadratic", "pairwise", 0.85, 0.80, 0.60, 0, 1000),
    ("vit", "dino", 1, "quadratic", "pairwise", 0.90, 0.92, 0.81, 0, 1000),
    ("vit", "dino", 1, "quadratic", "pairwise", 0.92, 0.96, 0.83, 1, 1000),
    ("vit", "dino", 1, "quadratic", "shuffled_labels", 0.80, 0.51, 0.50, 0, 1000),
    ("vit", "dino", 0, "quadratic", "shuffled_labels", 0.80, 0.40, 0.50, 0, 1000),
    ("vit", "dino", 1, "linear", "pointwise_class", 0.99, 0.99, 0.99, 0, 1000),
    ("wide", "mae", 2, "quadratic", "pairwise", 0.84, 0.86, 0.65, 0, 1000),
    ("control:position", "control", math.nan, "quadratic", "pairwise", 0.81, 0.79, 0.66, 0, 1000),
    ("control:raw-pixels", "control", math.nan, "quadratic", "pairwise", 0.80, 0.60, 0.50, 0, 999),
    ("control:same-class", "control", math.nan, "oracle", "pairwise", 0.70, 0.88, 0.50, math.nan, 1000),
]


@pytest.fixture
def results():
    frame = pd.DataFrame(ROWS, columns=COLUMNS)
    return frame.assign(protocol="strict", split="test", n_scenes=80, majority_accuracy=0.8)


def test_every_model_stands_beside_all_that_it_is_compared_with(results):
    table = model_table(results).set_index("backbone")
    assert list(table.index) == [
        *("vit", "wide", "random-init:vit", "random-init:other"),
        *("control:position", "control:raw-pixels", "control:same-class"),
    ]
    vit, wide = table.loc["vit"], table.loc["wide"]
    assert (vit["layer"], vit["n_seeds"]) == (1, 2)
    assert vit["accuracy"] == pytest.approx(0.91)
    assert vit["gain"] == pytest.approx(0.11)
    assert vit["auroc_spread"] == pytest.approx(0.04 / math.sqrt(2))
    assert vit["auroc_over_position"] == pytest.approx(0.94 - 0.79)
    assert vit["twins_auroc_over_position"] == pytest.approx(0.82 - 0.66)
    assert vit["auroc_over_untrained"] == pytest.approx(0.94 - 0.70), "its own twin"
    assert wide["auroc_over_untrained"] == pytest.approx(0.86 - 0.75), "the strongest, having no twin"
    assert vit["auroc_over_same-class"] == pytest.approx(0.94 - 0.88)
    assert vit["twins_auroc_over_same-class"] == pytest.approx(0.32)
    assert vit["selectivity"] == pytest.approx(0.94 - 0.51), "at its own layer"
    assert math.isnan(wide["selectivity"])
    assert math.isnan(vit["auroc_over_raw-pixels"]), "not judged on the same pairs"
    assert table.loc["control:position"].filter(like="_over_").isna().all()
    assert math.isnan(table.loc["random-init:vit", "auroc_over_untrained"])
    assert table.loc["random-init:vit", "auroc_over_position"] == pytest.approx(0.70 - 0.79)
    # The oracle knows what a control does not: it is not counted among the controls.
    assert vit["auroc_over_controls"] == pytest.approx(0.94 - 0.79)
    assert table.loc["wide", "auroc_over_controls"] == pytest.approx(0.86 - 0.79)


def test_tables_without_tasks_oracle_or_controls_do_as_well(results):
    bare = results[results["backbone"].isin(["vit"])].drop(columns=["task", "n_pairs"])[:2]
    table = model_table(bare)
    assert table["backbone"].tolist() == ["vit"]
    assert not [name for name in table if "_over_" in name and not name.endswith("controls")]
    assert table["selectivity"].isna().all()


def test_a_probe_that_was_not_fitted_is_an_error(results):
    with pytest.raises(InvalidParameterError, match=r"no softmax probe of the task pairwise; it has linear \(point"):
        model_table(results, "softmax")


def test_the_figure_shows_every_row_in_three_panels(results):
    figure = model_table_figure(model_table(results))
    assert [list(trace.x) for trace in figure.data] == [
        pytest.approx(list(model_table(results)[name])) for name in ("accuracy", "auroc", "twins_auroc")
    ]
    assert figure.data[0].y[-1] == "knows all classes"
    assert len(set(figure.data[0].marker.color[:2])) == 2
    assert len(set(figure.data[0].marker.color[2:])) == 1
    with pytest.raises(InvalidParameterError, match="no kind"):
        model_table_figure(results.drop(columns="backbone"))
