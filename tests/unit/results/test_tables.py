"""The best layer of every backbone, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bindkit.errors import InvalidParameterError
from bindkit.results.tables import best_fit, best_layers, pointwise_tasks


def table(*rows, columns=("backbone", "layer", "probe", "seed", "accuracy", "majority_accuracy")):
    return pd.DataFrame(list(rows), columns=list(columns))


def test_seeds_are_averaged_before_the_layer_is_picked():
    """Layer 1 has the single best fit, layer 0 the best mean."""
    best = best_layers(
        table(
            ("vit", 0, "linear", 0, 0.80, 0.70),
            ("vit", 0, "linear", 1, 0.82, 0.72),
            ("vit", 1, "linear", 0, 0.90, 0.70),
            ("vit", 1, "linear", 1, 0.60, 0.72),
        )
    )
    assert len(best) == 1
    row = best.iloc[0]
    assert (row["layer"], row["n_seeds"]) == (0, 2)
    assert row["accuracy"] == pytest.approx(0.81)
    assert row["majority_accuracy"] == pytest.approx(0.71)
    assert row["gain"] == pytest.approx(0.10)


def test_the_layer_is_picked_by_accuracy_and_brings_its_own_figures():
    columns = ("backbone", "layer", "accuracy", "auroc", "twins_auroc", "accuracy_low", "n_scenes")
    best = best_layers(
        table(
            ("vit", 0, 0.70, 0.95, 0.6, 0.69, 30),
            ("vit", 1, 0.90, 0.80, 0.7, 0.88, 31),
            ("vit", 2, 0.80, 0.99, 0.8, 0.78, 32),
            columns=columns,
        )
    )
    assert best[list(columns)].iloc[0].tolist() == ["vit", 1, 0.90, 0.80, 0.7, 0.88, 31]


def test_the_layer_is_picked_on_the_validation_scenes_where_all_layers_have_them():
    columns = ("backbone", "layer", "accuracy", "validation_accuracy", "split", "seed")
    rows = [("vit", 0, 0.99, 0.70, "test", 0), ("vit", 1, 0.80, 0.90, "test", 0), ("vit", 1, 0.82, 0.60, "test", 1)]
    rows += [("vit", 2, 0.70, 0.72, "test", 0), ("part", 0, 0.8, 0.9, "test", 0), ("part", 1, 0.9, np.nan, "test", 0)]
    best = best_layers(table(*rows, columns=columns)).set_index("backbone")
    # Means over seeds: 0.70, 0.75, 0.72.
    assert best.loc["vit", ["layer", "accuracy", "chosen_on"]].tolist() == [1, pytest.approx(0.81), "validation"]
    assert best.loc["part", ["layer", "accuracy", "chosen_on"]].tolist() == [1, 0.9, "test"]


def test_the_luckiest_of_many_equal_layers_does_not_flatter_the_figure():
    """Forty layers of true accuracy 0.8: the best as judged looks like 0.84, one chosen elsewhere like 0.80."""
    rng = np.random.default_rng(0)
    rows = [
        (f"model {model}", layer, *(0.8 + 0.02 * rng.standard_normal(2))) for model in range(200) for layer in range(40)
    ]
    results = table(*rows, columns=("backbone", "layer", "accuracy", "validation_accuracy"))
    assert best_layers(results)["accuracy"].mean() == pytest.approx(0.8, abs=0.005)
    assert best_layers(results.drop(columns="validation_accuracy"))["accuracy"].mean() > 0.83


def test_of_equal_layers_the_lowest_wins_whatever_the_row_order():
    rows = [("vit", layer, "linear", 0, 0.75, 0.7) for layer in (11, 2, 5)]
    assert best_layers(table(*rows))["layer"].tolist() == [2]
    # 0.1 + 0.2 and 0.3 differ in the last bit only
    rows = [("vit", 1, "linear", 0, 0.3, 0), ("vit", 0, "linear", 0, 0.1, 0), ("vit", 0, "linear", 1, 0.5, 0)]
    assert best_layers(table(*rows))["layer"].tolist() == [0]


def test_spread_is_over_the_seeds_of_the_best_layer():
    """0.90, 0.92, 0.97: mean 0.93, deviations -0.03, -0.01, 0.04, so sqrt(0.0026 / 2). Layer 0 spreads far more."""
    columns = ("backbone", "layer", "seed", "accuracy", "auroc", "twins_auroc")
    rows = [("vit", 0, 0, 0.1, 0.1, 0.1), ("vit", 0, 1, 0.9, 0.9, 0.9)]
    rows += [("vit", 1, seed, 0.9, auroc, 0.6) for seed, auroc in enumerate((0.90, 0.92, 0.97))]
    rows += [("single", 0, 0, 0.9, 0.9, 0.9)]
    best = best_layers(table(*rows, columns=columns)).set_index("backbone")
    assert best.loc["vit", "n_seeds"] == 3
    assert best.loc["vit", "auroc"] == pytest.approx(0.93)
    assert best.loc["vit", "auroc_spread"] == pytest.approx(0.0013**0.5)
    assert best.loc["vit", "accuracy_spread"] == pytest.approx(0)
    assert best.loc["vit", "twins_auroc_spread"] == pytest.approx(0)
    assert best.loc["single", ["accuracy_spread", "auroc_spread", "twins_auroc_spread"]].isna().all()


def test_neither_the_oracle_nor_the_control_task_disturbs_what_controls_are_subtracted():
    """The oracle (0.99) knows the true classes, and a control's figure on shuffled labels (0.95) is of another task."""
    columns = ("backbone", "objective", "layer", "probe", "task", "accuracy", "auroc")
    model = ("vit", "dino", 0, "quadratic", "pairwise", 0.9, 0.9)
    position = ("control:position", "control", None, "quadratic", "pairwise", 0.8, 0.7)
    oracle = ("control:same-class", "control", None, "oracle", "pairwise", 0.8, 0.99)
    shuffled = ("control:position", "control", None, "quadratic", "shuffled_labels", 0.8, 0.95)
    best = best_layers(table(oracle, shuffled, model, position, columns=columns))
    row = best[best["backbone"] == "vit"].iloc[0]
    assert row["auroc_over_controls"] == pytest.approx(0.2)
    alone = best_layers(table(oracle, shuffled, model, columns=columns))
    assert alone["auroc_over_controls"].isna().all()


def test_backbones_and_probes_are_kept_apart_in_order_of_appearance():
    best = best_layers(
        table(
            ("vit", 0, "quadratic", 0, 0.8, 0.7),
            ("dino", 3, "linear", 0, 0.6, 0.7),
            ("vit", 1, "linear", 0, 0.7, 0.7),
        )
    )
    assert list(zip(best["backbone"], best["probe"], strict=True)) == [
        ("vit", "quadratic"),
        ("dino", "linear"),
        ("vit", "linear"),
    ]


def test_empty_cells_neither_drop_rows_nor_count_as_numbers():
    """Controls have no layer; a split too small for twins has no twins figure; a fit may have failed."""
    best = best_layers(
        table(
            ("position", None, "linear", 0, 0.7, 0.7),
            ("vit", 0, "linear", 0, np.nan, 0.7),
            ("vit", 1, "linear", 0, 0.6, 0.7),
        )
    )
    assert best["backbone"].tolist() == ["position", "vit"]
    assert np.isnan(best["layer"].iloc[0])
    assert best["layer"].iloc[1] == 1
    assert best["twins_auroc"].isna().all()


def test_an_empty_table_gives_an_empty_one():
    assert len(best_layers(table())) == 0


def test_a_table_of_something_else_is_named():
    with pytest.raises(InvalidParameterError, match="accuracy missing from backbone, layer"):
        best_layers(pd.DataFrame(columns=["backbone", "layer"]))


FITS = ("backbone", "layer", "task", "seed", "accuracy", "validation_accuracy", "auroc")


def test_the_fit_that_is_looked_into_is_the_best_on_the_validation_scenes():
    """Neither that of the highest test AUROC nor that of the highest test accuracy, no control and no other task."""
    rows = [
        ("vit", 0, "pairwise", 0, 0.80, 0.85, 0.99),
        ("vit", 1, "pairwise", 0, 0.95, 0.86, 0.90),
        ("vit", 2, "pairwise", 1, 0.79, 0.90, 0.70),
        ("vit", 2, "pointwise_class", 0, 0.99, 0.99, 0.99),
        ("control:position", None, "pairwise", 0, 0.99, 0.99, 0.99),
    ]
    results = table(*rows, columns=FITS)
    assert best_fit(results)[["layer", "seed"]].tolist() == [2, 1]
    assert best_fit(results.drop(columns="validation_accuracy"))["layer"] == 1
    assert best_fit(results.assign(validation_accuracy=[0.85, None, 0.9, 0.99, 0.99]))["layer"] == 1


def test_the_layer_that_is_looked_into_is_that_of_the_tables():
    """Layer 1 has the luckiest seed (0.92), layer 0 the best mean (0.89); of its seeds the first is taken."""
    rows = [("vit", layer, "pairwise", seed, 0.8, accuracy, 0.9) for layer, seed, accuracy in
            [(1, 0, 0.92), (1, 1, 0.80), (0, 0, 0.88), (0, 1, 0.90)]]  # fmt: skip
    results = table(*rows, columns=FITS)
    assert best_fit(results)[["layer", "seed"]].tolist() == [0, 0]
    assert best_layers(results)["layer"].tolist() == [0]


@pytest.mark.parametrize("left", [slice(3, 4), slice(4, 5), slice(0, 0)])
def test_no_fit_to_look_into_is_a_named_error(left):
    rows = [("vit", 0, "pairwise", 0, 0.8, 0.8, 0.8)] * 3 + [("vit", 2, "pointwise_class", 0, 0.9, 0.9, 0.9)]
    results = table(*rows, ("control:position", None, "pairwise", 0, 0.9, 0.9, 0.9), columns=FITS)
    with pytest.raises(InvalidParameterError, match="no probe of a model was fitted for the task pairwise, only for"):
        best_fit(results[left])


def test_pointwise_tasks_bring_their_own_figures_at_their_best_layer():
    columns = ("backbone", "layer", "probe", "task", "seed", "accuracy", "class_accuracy", "matched_iou")
    columns += ("reference_accuracy",)
    rows = [
        ("vit", 0, "linear", "pairwise", 0, 0.99, None, None, None),
        ("vit", 0, "linear", "pointwise_identity", 0, 0.70, None, 0.30, 0.71),
        ("vit", 0, "linear", "pointwise_class", 0, 0.60, 0.90, None, 0.61),
        ("vit", 1, "linear", "pointwise_class", 0, 0.70, 0.50, None, 0.72),
        ("vit", 1, "linear", "pointwise_class", 1, 0.72, 0.54, None, 0.76),
        ("control:position", None, "linear", "pointwise_class", 0, 0.5, 0.25, None, 0.55),
    ]
    results = table(*rows, columns=columns)
    found = pointwise_tasks(results)
    assert found[["task", "backbone"]].to_numpy().tolist() == [
        ["pointwise_class", "vit"],
        ["pointwise_class", "control:position"],
        ["pointwise_identity", "vit"],
    ]
    assert found["class_accuracy"].tolist() == pytest.approx([0.52, 0.25, np.nan], nan_ok=True)
    assert found["matched_iou"].tolist() == pytest.approx([np.nan, np.nan, 0.30], nan_ok=True)
    assert found["reference_accuracy"].tolist() == pytest.approx([0.74, 0.55, 0.71])
    assert found["layer"].tolist() == pytest.approx([1, np.nan, 0], nan_ok=True)
    assert pointwise_tasks(results[:1]).empty
    assert pointwise_tasks(results.drop(columns="task")).empty
