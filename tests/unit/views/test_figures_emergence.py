"""Figures of training: what is drawn where, levels to beat, the slider's frames."""

import base64
import io
import math

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from planted_checkpoints import START, planted

from bindkit.errors import InvalidParameterError
from bindkit.views.figures import emergence_figure, loss_curves, save_figure, training_slider
from bindkit.views.figures.checkpoints import TrainingScale

ENDS = [(0.90, 0.72), (0.94, 0.76), (0.92, 0.86)]


@pytest.fixture
def two():
    """Two objectives; mae from two seeds, dino from one."""
    return planted({"mae": [(START, ENDS[0]), (START, ENDS[1])], "dino": [(START, (0.85, 0.65))]})


def lines(figure, name, panel):
    return [trace for trace in figure.data if trace.name == name and trace.xaxis == f"x{panel if panel > 1 else ''}"]


def test_a_panel_an_objective_a_line_a_layer_and_every_level(two):
    figure = emergence_figure(two, "auroc")
    assert [note.text for note in figure.layout.annotations] == ["<b>mae</b>", "<b>dino</b>"]
    (line,) = lines(figure, "layer 3", 1)
    assert list(line.y) == pytest.approx([0.78, 0.78, 0.92])
    assert line.x[0] == 0
    assert list(line.customdata) == ["0", "100", "512"]
    for panel in (1, 2):
        for name, level in (
            ("position", 0.80),
            ("raw pixels", 0.70),
            ("random init, best layer", 0.78),
            ("chance", 0.5),
        ):
            (drawn,) = lines(figure, name, panel)
            assert list(drawn.y) == pytest.approx([level, level])
            assert list(drawn.x) == list(figure.layout.xaxis.range)
    shown = [trace.name for trace in figure.data if trace.showlegend is not False]
    assert sorted(shown) == sorted(set(shown)), "every name is in the legend once"
    assert figure.layout.yaxis.range == figure.layout.yaxis2.range
    assert figure.layout.yaxis.range[0] < 0.5
    assert figure.layout.yaxis.range[1] > 0.92
    shades = {name: lines(figure, name, 1)[0].line.color for name in ("layer 1", "layer 3")}
    lightness = [sum(int(colour[k : k + 2], 16) for k in (1, 3, 5)) for colour in shades.values()]
    assert lightness[0] > lightness[1], "deeper layers are darker"


def bands(figure):
    """(low, high) at the last checkpoint of every band, by line; a band runs forth along the top, back below."""
    return {trace.legendgroup: (trace.y[3], trace.y[2]) for trace in figure.data if trace.fill}


def test_bands_are_the_range_of_two_seeds_and_the_standard_error_of_three():
    table = planted({"mae": [(START, end) for end in ENDS[:2]]})
    assert bands(emergence_figure(table, "auroc"))["layer 3"] == pytest.approx((0.90, 0.94))
    assert "range over 2 training seeds" in emergence_figure(table).layout.title.subtitle.text
    table = planted({"mae": [(START, end) for end in ENDS]})
    error = np.std([0.72, 0.76, 0.86], ddof=1) / math.sqrt(3)
    low, high = bands(emergence_figure(table, "twins_auroc"))["layer 3"]
    assert (low, high) == pytest.approx((0.78 - error, 0.78 + error), abs=1e-4)
    assert "standard error over 3" in emergence_figure(table).layout.title.subtitle.text
    table = planted({"mae": [(START, ENDS[0])]})
    assert not bands(emergence_figure(table))
    assert "one training seed" in emergence_figure(table).layout.title.subtitle.text


def test_seeds_of_probes_are_averaged_and_make_no_band():
    table = planted({"mae": [(START, ENDS[0])]})
    again = table.assign(seed=1, auroc=table["auroc"] + 0.02)
    figure = emergence_figure(pd.concat([table, again]))
    assert not bands(figure)
    assert lines(figure, "layer 3", 1)[0].y[-1] == pytest.approx(0.91)


def test_several_metrics_have_a_row_each(two):
    figure = emergence_figure(two, ["accuracy", "twins_auroc"])
    assert len({trace.yaxis for trace in figure.data}) == 4
    (below,) = lines(figure, "layer 3", 4)
    assert below.y[-1] == pytest.approx(0.65)
    (majority,) = lines(figure, "majority class", 1)
    assert majority.y[0] == pytest.approx(0.7)
    assert figure.layout.yaxis.range != figure.layout.yaxis3.range


def test_many_layers_get_a_colour_bar_instead_of_a_legend():
    one = planted({"mae": [(START, ENDS[0])]})
    deep = [one[one["layer"] == 3].assign(layer=layer) for layer in range(12)]
    figure = emergence_figure(pd.concat([*deep, one[one["layer"].isna()]]))
    assert not [trace for trace in figure.data if trace.showlegend is not False and "layer " in (trace.name or "x")[:6]]
    (key,) = [trace for trace in figure.data if trace.marker.colorbar.title.text == "layer"]
    assert tuple(key.marker.color) == (0, 11)


def test_the_scale_of_training_begins_at_zero_widens_the_start_and_labels_the_ends():
    moments = [0, 9000, 18000, 45000, 90000, 180000, 315000, 450000, 585000, 720000, 810000, 900000]
    scale = TrainingScale(pd.Series(moments))
    places = [scale.at(seen) for seen in moments]
    assert places[0] == 0
    assert places == sorted(places)
    assert scale.at(18000) - scale.at(9000) > scale.at(900000) - scale.at(810000)
    assert scale.tick_texts[0] == "900k"
    assert scale.tick_texts[-1] == "0"
    gaps = np.diff(sorted(scale.ticks))
    assert (gaps > 0.15 * places[-1]).all()
    untrained_only = TrainingScale(pd.Series([0]))
    assert untrained_only.at(0) == 0


def test_the_slider_runs_through_training_and_opens_at_its_end(two):
    figure = training_slider(two, "twins_auroc")
    assert [frame.name for frame in figure.frames] == ["0", "100", "512"]
    steps = figure.layout.sliders[0].steps
    assert [step.args[0][0] for step in steps] == ["0", "100", "512"]
    assert figure.layout.sliders[0].active == 2
    last = figure.frames[-1]
    assert [figure.data[k].name for k in last.traces] == ["mae", "dino"]
    for k, drawn in zip(last.traces, last.data, strict=True):
        assert list(drawn.y) == list(figure.data[k].y)
    assert last.data[0].y[-1] == pytest.approx(0.74)
    assert figure.frames[0].data[0].y[-1] == pytest.approx(0.55)
    (start,) = [trace for trace in figure.data if trace.name == "mae, random init"]
    assert list(start.y) == list(figure.frames[0].data[0].y)
    assert figure.layout.updatemenus[0].buttons[0].method == "animate"


def test_an_objective_without_a_checkpoint_shows_its_latest(two):
    sparse = two[~((two["pretraining"] == "dino") & (two["scenes_seen"] == 512))]
    dino = training_slider(sparse, "auroc").frames[-1].data[1]
    assert list(dino.y) == pytest.approx([0.77, 0.78])


def test_without_random_init_the_slider_claims_none(two):
    trained = two[two["scenes_seen"] != 0]
    figure = training_slider(trained)
    assert "random init" not in figure.layout.title.subtitle.text
    assert not [trace for trace in figure.data if "random init" in trace.name]


def test_losses_have_a_panel_an_objective_and_a_line_a_seed():
    rows = [("mae", 0, 16, 0.9), ("mae", 0, 32, 0.7), ("mae", 1, 16, 0.8), ("dino", 0, 16, 11.0)]
    history = pd.DataFrame(rows, columns=["pretraining", "training_seed", "scenes_seen", "loss"])
    figure = loss_curves(history)
    assert [(trace.xaxis, trace.name, list(trace.y)) for trace in figure.data] == [
        ("x", "seed 0", [0.9, 0.7]),
        ("x", "seed 1", [0.8]),
        ("x2", "seed 0", [11.0]),
    ]
    with pytest.raises(InvalidParameterError, match="no loss to draw"):
        loss_curves(history.iloc[:0])


@pytest.mark.parametrize("draw", [emergence_figure, training_slider])
@pytest.mark.parametrize(
    ("spoil", "metric", "said"),
    [
        (lambda table: table, "warmth", "unknown metric 'warmth'"),
        (lambda table: table.drop(columns="training_seed"), "auroc", "lacks training_seed"),
        (lambda table: table[table["pretraining"].isna()], "auroc", "has no checkpoints"),
        (lambda table: pd.concat([table, table.assign(probe="linear")]), "auroc", "several probes"),
        (lambda table: pd.concat([table, table.assign(protocol="paper")]), "auroc", "several kinds of protocol"),
    ],
)
def test_tables_that_cannot_be_drawn_are_refused(two, draw, spoil, metric, said):
    with pytest.raises(InvalidParameterError, match=said):
        draw(spoil(two), metric)


def test_a_picture_that_stands_alone_is_a_sharp_png(two, tmp_path, monkeypatch):
    out = io.BytesIO()
    stripes = np.zeros((900, 1600, 3), np.uint8)
    stripes[::7] = stripes[:, ::5] = 255
    Image.fromarray(stripes).save(out, "PNG")
    monkeypatch.setattr("bindkit.views.figures.saving.browser.draw", lambda figure: out.getvalue())
    figure = emergence_figure(two)
    beside = save_figure(figure, "beside", tmp_path)._repr_mimebundle_()[0]
    assert {"image/jpeg", "application/vnd.plotly.v1+json"} <= set(beside)
    monkeypatch.setattr("bindkit.views.figures.saving.INLINE_BYTES", 10)
    alone, sizes = save_figure(figure, "alone", tmp_path)._repr_mimebundle_()
    assert set(alone) == {"text/plain", "image/png"}
    assert sizes == {"image/png": {"width": figure.layout.width}}
    shown = Image.open(io.BytesIO(base64.b64decode(alone["image/png"])))
    assert np.array_equal(np.asarray(shown.convert("RGB")), stripes)
