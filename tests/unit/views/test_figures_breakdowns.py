"""What the breakdown and reliability figures draw: every group where it belongs, no point upon another."""

import numpy as np
import pandas as pd
import pytest

from bindkit.errors import InvalidParameterError
from bindkit.views.figures import breakdown_figure, reliability_figure

NAN = float("nan")
GROUPS = (
    ("distance", "2 to 4", 2, 4, 0.7),
    ("distance", "0 to 2", 0, 2, 0.6),
    ("object_size", "8 to 16", 8, 16, 0.9),
    ("negatives", "same object", NAN, NAN, 1.0),
    ("negatives", "class unknown", NAN, NAN, 1.0),
    ("window", "same window", NAN, NAN, 0.8),
    ("window", "across windows", NAN, NAN, 0.75),
)


def table(accuracy=0.85):
    rows = [
        {"by": by, "group": group, "low": low, "high": high, "n_pairs": 100, "n_scenes": 9, "share_same": 0.3}
        | {"accuracy": accuracy, "accuracy_low": accuracy - 0.05, "accuracy_high": accuracy + 0.02}
        | {"majority_accuracy": majority, "auroc": 0.8}
        for by, group, low, high, majority in GROUPS
    ]
    return pd.DataFrame(rows)


def curve(error=0.0123):
    rows = {"low": [0.0, 0.5], "high": [0.5, 1.0], "mean_affinity": [0.2, 0.9], "share_same": [0.3, 0.8]}
    rows |= {"share_same_low": [0.2, 0.7], "share_same_high": [0.45, 0.82], "n_pairs": [30, 10]}
    made = pd.DataFrame(rows)
    made.attrs |= {"calibration_error": error, "loss": 0.456, "temperature": 1.0}
    return made


def points(figure, name):
    return [trace for trace in figure.data if trace.name == name and trace.mode == "markers"]


def test_every_group_is_a_point_with_its_whiskers_over_its_name():
    figure = breakdown_figure({"a": table(0.85)})
    found = {}
    for trace in points(figure, "a"):
        axis = figure.layout[trace.xaxis.replace("x", "xaxis")]
        for x, y, (group, n_pairs, n_scenes, _) in zip(trace.x, trace.y, trace.customdata, strict=True):
            found[group] = (axis.ticktext[round(x)], y, n_pairs, n_scenes)
        assert np.allclose(trace.error_y.array, 0.02)
        assert np.allclose(trace.error_y.arrayminus, 0.05)
    assert set(found) == {group for _, group, *_ in GROUPS}
    assert {group: name for group, (name, *_) in found.items()} == {
        "0 to 2": "0–2",
        "2 to 4": "2–4",
        "8 to 16": "8–16",
        "same object": "same<br>object",
        "class unknown": "two objects,<br>class unknown",
        "same window": "same window",
        "across windows": "across windows",
    }
    assert {tuple(rest) for _, *rest in found.values()} == {(0.85, 100, 9)}
    # Bins are drawn in their order, whatever that of the rows.
    assert list(figure.layout.xaxis.ticktext) == ["0–2", "2–4"]


def test_several_tables_stand_side_by_side_in_their_own_colours():
    figure = breakdown_figure({"a": table(), "b": table(0.8), "control:position": table(0.7)})
    drawn = [points(figure, name) for name in ("a", "b", "position")]
    assert [len(traces) for traces in drawn] == [4, 4, 4]
    assert len({traces[0].marker.color for traces in drawn}) == 3
    for a, b, control in zip(*drawn, strict=True):
        assert (np.array(sorted(a.x)) < np.array(sorted(b.x))).all()
        assert (np.array(sorted(b.x)) < np.array(sorted(control.x))).all()
        assert (np.abs(np.array(control.x) - np.round(control.x)) < 0.5).all(), "still over its own group's name"
    named = [trace.name for trace in figure.data if trace.showlegend]
    assert sorted(named) == ["a", "b", "majority class", "position"]


def test_the_more_frequent_answer_lies_behind_its_points_where_there_are_two_answers():
    figure = breakdown_figure({"a": table(), "b": table(0.8)})
    dashes = [trace for trace in figure.data if trace.name == "majority class"]
    assert len(dashes) == 2 * 3, "none for kinds of pair"
    assert all(figure.data[number].name == "majority class" for number in range(6)), "drawn first"
    levels = {(trace.xaxis, level) for trace in dashes for level in trace.y if np.isfinite(level)}
    assert levels == {("x", 0.6), ("x", 0.7), ("x2", 0.9), ("x4", 0.8), ("x4", 0.75)}
    for dash in dashes:
        own = [t for name in "ab" for t in points(figure, name) if t.xaxis == dash.xaxis]
        middles = sorted((dash.x[k] + dash.x[k + 1]) / 2 for k in range(0, len(dash.x), 3))
        assert any(np.allclose(middles, sorted(trace.x)) for trace in own)


def test_all_that_is_drawn_is_within_the_axes():
    for lowest in (0.06, 0.5, 0.93):
        figure = breakdown_figure(table(lowest))
        for axis in (figure.layout.yaxis, figure.layout.yaxis4):
            assert axis.range[0] < min(lowest - 0.05, 0.6)
            assert axis.range[1] > 1


def test_one_way_to_break_down_is_one_panel():
    whole = table()
    figure = breakdown_figure(whole[whole["by"] == "window"])
    assert len(points(figure, "probe")) == 1
    assert list(figure.select_xaxes()) == [figure.layout.xaxis]


def test_reliability_draws_the_curve_the_diagonal_and_the_share_of_pairs():
    figure = reliability_figure({"as fitted": curve(), "scaled": curve(0.0045)})
    diagonal, *rest = figure.data
    assert list(diagonal.x) == list(diagonal.y) == [0, 1]
    curves = [trace for trace in rest if trace.type == "scatter"]
    assert [trace.name.partition("<br>")[0] for trace in curves] == ["as fitted", "scaled"]
    assert "ECE 0.012, 0.456 nats a pair" in curves[0].name
    assert "ECE 0.004" in curves[1].name or "ECE 0.005" in curves[1].name
    assert list(curves[0].x) == [0.2, 0.9]
    assert list(curves[0].y) == [0.3, 0.8]
    assert np.allclose(curves[0].error_y.array, [0.15, 0.02])
    assert np.allclose(curves[0].error_y.arrayminus, [0.1, 0.1])
    bars = [trace for trace in rest if trace.type == "bar"]
    assert [list(trace.y) for trace in bars] == [[0.75, 0.25]] * 2
    assert list(bars[0].x) == [0.25, 0.75]


MEASURED = {"backbone": "vit", "layer": 3, "probe": "quadratic", "task": "pairwise", "protocol": "strict"}
MEASURED |= {"split": "test", "n_scenes": 80}


@pytest.mark.parametrize(("draw", "made"), [(breakdown_figure, table), (reliability_figure, curve)])
def test_a_saved_picture_says_what_was_measured_on_what(draw, made):
    first, second = made(), made()
    first.attrs |= MEASURED
    second.attrs |= MEASURED
    whole = "vit · layer 3 · quadratic probe · strict protocol · 80 test scenes · whiskers: 95 % intervals over scenes"
    figure = draw({"as fitted": first, "scaled": second})
    assert figure.layout.title.subtitle.text.replace("<br>", " · ") == whole
    assert all(7.5 * len(line) + 20 < figure.layout.width for line in figure.layout.title.subtitle.text.split("<br>"))
    # What differs is left to the legend.
    second.attrs |= {"backbone": "wide", "layer": 5, "n_scenes": 1}
    assert draw({"a": first, "b": second}).layout.title.subtitle.text.startswith(
        "quadratic probe · strict protocol · wh"
    )
    second.attrs |= {"task": "shuffled_labels"}
    assert "wide · layer 5 · quadratic probe · shuffled_labels · strict protocol · 1 test scene · whisk" in (
        draw(second).layout.title.subtitle.text.replace("<br>", " · ")
    )


@pytest.mark.parametrize("draw", [breakdown_figure, reliability_figure])
def test_another_table_is_refused(draw):
    for wrong in ({}, table()[:0], pd.DataFrame({"accuracy": [1.0]})):
        with pytest.raises(InvalidParameterError, match="nothing to draw: give what"):
            draw(wrong)
