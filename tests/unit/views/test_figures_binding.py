"""Figures of the binding analyses show the numbers of their tables, at the place that they say."""

import numpy as np
import pandas as pd
import pytest

from bindkit.errors import InvalidParameterError
from bindkit.views import figures

NAMED = {"backbone": "one", "layer": 3, "probe": "quadratic"}


def with_bounds(row, *names):
    return row | {f"{name}{end}": row[name] + step for name in names for end, step in (("_low", -0.1), ("_high", 0.1))}


@pytest.fixture
def spectrum():
    weights = np.array([2.0, -1.0, 0.5, 0.0])
    share = weights**2 / (weights**2).sum()
    columns = {"axis": range(1, 5), "weight": weights, "sign": np.sign(weights).astype(int), "share": share}
    return pd.DataFrame({**NAMED, **columns, "cumulative": share.cumsum(), "effective_rank": 1.7})


@pytest.fixture
def curve():
    rows = [
        {"axes": axes, "rank": rank, "accuracy": 0.5 + rank / 16, "matched_auroc": 0.75}
        for axes, ranks in (("all", [8]), ("binding", [4, 1]), ("random", [1, 4]))
        for rank in ranks
    ]
    return pd.DataFrame([NAMED | with_bounds(row, "accuracy", "matched_auroc") | {"n_scenes": 9} for row in rows])


@pytest.fixture
def attention():
    figures_of = {"pearson": 0.1, "spearman": 0.5, "at_distance": 0.4, "partial": 0.2}
    rows = [
        NAMED
        | {"layer": layer, "measure": "weight", "head": head, "pairs": "all", "of": of, "n_scenes": 9, "n_pairs": 100}
        | with_bounds({name: value + layer / 10 for name, value in figures_of.items()}, *figures_of)
        for layer in (0, 2)
        for head in ("mean", "0", "1")
        for of in ("affinity", "nearness")
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def doses():
    return pd.DataFrame(
        [
            {
                **{
                    "backbone": "one",
                    "layer": 3,
                    "rank": 8,
                    "n_scenes": 9,
                    "edit": edit,
                    "subspace": subspace,
                    "draw": 0,
                },
                **{"strength": strength, "read_out": read_out, "read_layer": layer, "figure": figure},
                **{"value": value - strength / 10, "low": value - 0.2, "high": value + 0.1},
            }
            for edit in ("remove", "other scene")
            for subspace in ("binding", "random")
            for strength in (1.0, 0.0)
            for read_out, layer, figure, value in (
                ("affinity", 3, "matched_auroc", 0.5),
                ("affinity", 5, "matched_auroc", 0.9),
                ("loss", np.nan, "loss", 0.3),
            )
            if read_out != "loss" or edit == "remove"
        ]
    )


def lines(figure, name):
    return [trace for trace in figure.data if trace.name == name]


def test_the_spectrum_has_its_signs_and_the_share_of_the_first_axes(spectrum):
    figure = figures.spectrum_figure(spectrum)
    positive, negative = lines(figure, "alike speaks for one object")[0], lines(figure, "unlike does")[0]
    assert dict(zip(positive.x, positive.y, strict=True)) == {1: 2.0, 3: 0.5}
    assert dict(zip(negative.x, negative.y, strict=True)) == {2: -1.0}
    assert list(lines(figure, "share")[0].y) == list(spectrum["cumulative"])
    assert "effective rank 1.7 of 4" in figure.layout.title.subtitle.text


def test_ranks_stand_in_order_and_only_the_binding_axes_have_a_band(curve):
    figure = figures.rank_figure(curve)
    (first, second) = lines(figure, "binding axes, by weight")
    assert list(first.x) == [1, 4] and list(first.y) == [0.5625, 0.75]
    assert list(second.y) == [0.75, 0.75]
    assert list(lines(figure, "the whole probe")[0].y) == [1.0, 1.0]
    assert sum(trace.fill == "toself" for trace in figure.data) == 2


def test_squares_say_agreement_and_overlap_where_there_is_one():
    rows = [("a", "b", 0.9, 0.8), ("a", "c", 0.7, np.nan), ("b", "c", 0.6, np.nan)]
    columns = ["first", "second", "agreement", "overlap"]
    figure = figures.subspaces_figure(pd.DataFrame(rows, columns=columns).assign(rank=2, agreement_chance=0.3))
    (squares,) = figure.data
    assert list(squares.x) == ["a", "b", "c"]
    assert squares.z[1][0] == 0.9 and squares.text[1][0] == "<b>0.90</b><br>0.80"
    assert squares.z[2][1] == 0.6 and squares.text[2][1] == "<b>0.60</b>"
    assert np.isnan(squares.z[0][1])
    assert "chance 0.30" in figure.layout.title.subtitle.text


def test_copies_are_joined_part_by_part():
    rows = [
        {"axes": axes, "copies": 0, "scene": 1, "instance": k, "part": part, "first": part + 10 * k, "second": float(k)}
        for axes in ("binding", "principal")
        for k in (0, 1)
        for part in (1, 0)
    ]
    figure = figures.twins_scores_figure(pd.DataFrame(rows))
    joined = figure.data[0]
    assert np.array_equal(joined.x, [0, 10, np.nan, 1, 11, np.nan], equal_nan=True)
    assert list(lines(figure, "its copy")[0].x) == [10, 11]


def test_twins_stand_beside_likeness_with_the_interval_of_the_difference():
    row = with_bounds({"binding": 0.8, "similarity": 0.6, "beyond_similarity": 0.2}, "beyond_similarity")
    table = pd.DataFrame([{"backbone": "one", "layer": layer, "n_twins": 7} | row for layer in (3, 1)])
    figure = figures.twins_figure(table)
    assert list(lines(figure, "one")[0].x) == [1, 3]
    assert list(lines(figure, "one, cosine similarity")[0].y) == [0.6, 0.6]
    (difference,) = [trace for trace in figure.data if trace.error_y.array is not None]
    assert np.allclose(difference.y, 0.2) and np.allclose(difference.error_y.array, 0.1)


def test_attention_over_layers_is_that_of_the_heads_mean(attention):
    figure = figures.attention_figure(attention)
    shown = lines(figure, "the probe's affinity")
    assert [list(trace.x) for trace in shown] == [[0, 2]] * 3
    assert np.allclose([trace.y for trace in shown], [[0.5, 0.7], [0.4, 0.6], [0.2, 0.4]])
    one = figures.attention_figure(attention[attention["layer"] == 2])
    assert list(lines(one, "nearness")[0].x) == ["mean", "0", "1"]
    with pytest.raises(InvalidParameterError, match="no pairs 'none'; it has all"):
        figures.attention_figure(attention, "none")


def test_doses_are_of_the_deepest_layer_and_from_weak_to_strong(doses):
    figure = figures.dose_figure(doses)
    shown = lines(figure, "binding part is edited")
    assert len(shown) == 3  # affinity under both edits, the loss under one
    assert list(shown[0].x) == [0.0, 1.0]
    assert np.allclose(shown[0].y, [0.9, 0.8])
    assert np.allclose(shown[2].y, [0.3, 0.2])


@pytest.mark.parametrize(
    "name",
    [
        *("spectrum_figure", "rank_figure", "subspaces_figure", "twins_scores_figure", "twins_figure"),
        *("attention_figure", "dose_figure"),
    ],
)
@pytest.mark.parametrize("table", [pd.DataFrame(), pd.DataFrame({"layer": [1]})])
def test_another_table_is_refused_by_name(name, table):
    with pytest.raises(InvalidParameterError, match=r"nothing to draw .*; give what bk\.\w+\(\) returns"):
        getattr(figures, name)(table)
