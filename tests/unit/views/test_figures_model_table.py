"""The paper's table as a picture: bars start where they should, and every number is there."""

import math

import pandas as pd
import pytest

from bindkit.errors import InvalidParameterError
from bindkit.results.model_table import model_table
from bindkit.views.figures import model_table_figure

COLUMNS = ["backbone", "objective", "layer", "probe", "accuracy", "auroc", "twins_auroc", "n_pairs"]
ROWS = [
    ("vit", "dino", 3, "quadratic", 0.90, 0.95, 0.82, 1000),
    ("wide", "mae", 2, "quadratic", 0.84, 0.86, 0.65, 1000),
    ("random-init:vit", "random-init", 0, "quadratic", 0.82, 0.70, 0.55, 1000),
    ("control:position", "control", math.nan, "quadratic", 0.81, 0.75, 0.66, 1000),
    ("control:same-class", "control", math.nan, "oracle", 0.70, 0.88, 0.50, 1000),
]


@pytest.fixture
def results():
    frame = pd.DataFrame(ROWS, columns=COLUMNS)
    return frame.assign(task="pairwise", protocol="strict", split="test", n_scenes=80, majority_accuracy=0.8)


def traces(figure, name):
    """Traces of a name, one a panel or, of bars, none where nothing is added to."""
    return [trace for trace in figure.data if trace.name == name]


def test_every_model_is_a_point_in_each_of_three_panels(results):
    figure = model_table_figure(model_table(results))
    for metric, axis in (("accuracy", "x"), ("auroc", "x2"), ("twins_auroc", "x3")):
        (points,) = traces(figure, metric)
        assert points.xaxis == axis
        assert list(points.x) == pytest.approx(list(results[metric]))
        assert list(points.y) == [0, 1, 2, 3, 4]
    (points,) = traces(figure, "auroc")
    assert list(points.marker.symbol) == ["circle", "circle", "circle-open", "diamond", "diamond-open"]
    vit, wide, twin, position, oracle = points.marker.color
    assert vit == twin != wide, "an untrained twin has the colour of its model"
    assert not {vit, wide} & {position, oracle}
    labels = figure.layout.yaxis.ticktext
    assert labels[0].startswith("vit ")
    assert "dino · layer 3" in labels[0]
    assert "untrained · layer 0" in labels[2]
    assert "layer" not in labels[3] + labels[4]


def test_bars_go_from_what_needs_no_model_to_the_figure(results):
    figure = model_table_figure(model_table(results))
    assert [list(bar.x) for bar in traces(figure, "added by vit")] == [
        pytest.approx(ends) for ends in ([0.80, 0.90], [0.75, 0.95], [0.66, 0.82])
    ]
    assert [list(bar.x) for bar in traces(figure, "added by random-init:vit")][1] == pytest.approx([0.75, 0.70])
    assert not traces(figure, "added by control:position")
    assert not traces(figure, "added by control:same-class")
    (digits,) = traces(figure, "auroc in digits")
    assert [text.startswith(begin) for text, begin in zip(digits.text, ("0.950", "0.860", "0.700"), strict=False)]
    assert "+0.200" in digits.text[0]
    assert "−0.050" in digits.text[2]
    assert digits.text[3:] == ("0.750", "0.880")


def test_without_controls_bars_start_at_chance_and_the_panel_says_so(results):
    alone = model_table_figure(model_table(results[:2]))
    assert [list(bar.x) for bar in traces(alone, "added by wide")] == [
        pytest.approx(ends) for ends in ([0.80, 0.84], [0.50, 0.86], [0.50, 0.65])
    ]
    titles = [annotation.text for annotation in alone.layout.annotations]
    assert ["chance" in title for title in titles] == [False, True, True]
    beside = model_table_figure(model_table(results))
    assert ["best baseline" in note.text for note in beside.layout.annotations] == [False, True, True]


def test_controls_of_two_geometries_give_each_model_its_own_line(results):
    coarse = results[:1].assign(backbone="coarse", n_pairs=500)
    position = results[3:4].assign(backbone="control:position@112/16", n_pairs=500, auroc=0.6)
    table = model_table(pd.concat([results.replace("control:position", "control:position@112/8"), coarse, position]))
    (bar,) = [bar for bar in traces(model_table_figure(table), "added by coarse") if bar.xaxis == "x2"]
    assert list(bar.x) == pytest.approx([0.6, 0.95])
    (bar,) = [bar for bar in traces(model_table_figure(table), "added by vit") if bar.xaxis == "x2"]
    assert list(bar.x) == pytest.approx([0.75, 0.95])


def test_figures_that_are_not_there_are_left_blank(results):
    """A split without twins."""
    figure = model_table_figure(model_table(results.assign(twins_auroc=math.nan)))
    (digits,) = traces(figure, "twins_auroc in digits")
    assert set(digits.text) == {""}
    assert len(traces(figure, "added by vit")) == 2


def test_pointing_at_a_figure_tells_interval_spread_and_every_difference(results):
    again = results.assign(auroc=results["auroc"] + 0.02)
    told = traces(model_table_figure(model_table(pd.concat([results, again]))), "auroc")[0].customdata[0]
    assert told.split("<br>") == [
        "<b>vit</b>: 0.960",
        "standard deviation over 2 seeds 0.014",
        *("+0.200 over position", "+0.250 over untrained", "+0.070 over same-class"),
    ]
    bounded = model_table(results.assign(accuracy_low=0.5, accuracy_high=0.96))
    pointed = traces(model_table_figure(bounded), "accuracy")[0].customdata[0]
    assert pointed == "<b>vit</b>: 0.900 [0.500, 0.960]<br>+0.090 over position<br>+0.080 over untrained"


def test_an_interval_stands_below_the_gain_and_decides_whether_the_bar_is_faint(results):
    plain = model_table(results)
    bounded = plain.assign(auroc_over_controls_low=[-0.01, 0.02, *[math.nan] * 3], auroc_over_controls_high=0.4)
    figure = model_table_figure(bounded)
    (digits,) = traces(figure, "auroc in digits")
    assert "+0.200<br>−0.010 to +0.400" in digits.text[0]
    assert " to " not in digits.text[2], "none is known"
    opacities = {}
    for name in ("vit", "wide"):
        (bar,) = [bar for bar in traces(figure, f"added by {name}") if bar.xaxis == "x2"]
        opacities[name] = float(bar.line.color.rstrip(")").split(",")[-1])
    assert opacities["vit"] < 0.2 < opacities["wide"], "what may be nothing is faint"
    assert figure.layout.height > model_table_figure(plain).layout.height
    one = plain.assign(auroc_over_position_low=0.1, auroc_over_position_high=0.3)
    assert "+0.200 over position (+0.100 to +0.300)" in traces(model_table_figure(one), "auroc")[0].customdata[0]


def test_the_subtitle_says_which_scenes_chose_the_layer(results):
    validated = results.assign(validation_accuracy=results["accuracy"])
    for rows, split in ((results, "test"), (validated, "validation")):
        said = model_table_figure(model_table(rows)).layout.title.subtitle.text.replace("<br>", " · ")
        assert f"best layer, chosen on the {split} scenes · strict protocol · 80 test scenes" in said


@pytest.mark.parametrize("name", ["vit", "random-init:facebook/dinov2-with-registers-large"])
def test_intervals_stand_clear_of_lines_and_points_and_no_word_is_cut_off(results, name):
    rows = results.assign(validation_accuracy=0.8, accuracy_low=0.5, accuracy_high=0.96).replace("vit", name)
    table = model_table(rows)
    bounds = {f"{gain}_over_controls_{end}": -0.3 for gain in ("auroc", "twins_auroc") for end in ("low", "high")}
    figure = model_table_figure(table.assign(**bounds))
    names = 6.9 * len(name)  # as wide as Chromium draws it at 13 units
    for axis, metric in ((figure.layout.xaxis2, "auroc"), (figure.layout.xaxis3, "twins_auroc")):
        panel = (figure.layout.width - names - 16) * (axis.domain[1] - axis.domain[0])
        low, edge = axis.range
        drawn = max(x for trace in figure.data if trace.xaxis == traces(figure, metric)[0].xaxis
                    for x in trace.x if x is not None and x < edge)  # fmt: skip
        assert (edge - drawn) / (edge - low) * panel > 100, "pixels of '−0.265 to −0.200' at 11 units"
    lines = figure.layout.title.subtitle.text.split("<br>")
    assert len(lines) == 2
    assert all(7.5 * len(line) + 20 < figure.layout.width for line in lines)
    assert " · ".join(lines).endswith("80 test scenes · intervals: 95 % over scenes")


def test_what_cannot_be_set_side_by_side_is_an_error(results):
    with pytest.raises(InvalidParameterError, match="no kind"):
        model_table_figure(results)
    both = pd.concat([results, results.assign(protocol="paper")])
    with pytest.raises(InvalidParameterError, match=r"several kinds of protocol \(strict, paper\)"):
        model_table_figure(model_table(both))
