"""Binding along training: over scenes seen, over layers with a slider that runs through training, and the losses."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from bindkit.arguments import control_title, is_control
from bindkit.errors import InvalidParameterError
from bindkit.results.tables import layer_of_best, require_one_kind
from bindkit.views.figures.curves import CHANCE, LEAST_SPAN, METRICS, require_metric, whole_ticks
from bindkit.views.figures.panels import LOWER_LEGEND, framed, panels, titled
from bindkit.views.figures.style import FAINT, INK, SILENT, Look, colour_of, curve, line_looks, translucent

_PANEL, _GAP = 176, 18
"""Width of a panel and space between two, in the figure's units."""
_ALONE, _ROW, _BETWEEN, _WRAPPED = 250, 168, 26, 92
"""Height of a row of panels, alone and among several; space between rows of metrics, and of objectives."""
_LEFT, _TOP, _BOTTOM, _LEGEND = 82, 104, 58, 186

_MOST_ACROSS = 4
_MOST_LINES = 8
"""With more layers than this, a colour bar stands for the legend, and lines go without bands and markers."""

_SHALLOW_TO_DEEP, _FROM, _TO = "Plasma_r", 0.22, 1.0
"""The scale of layers, and the part of it that stands out on white; its lightness alone tells layers apart."""

_UNTRAINED_DASH = "5px,3px"
_TITLE = "Does training teach what belongs together?"
_TITLES = dict.fromkeys(
    ("twins_auroc", "twins_accuracy", "matched_twins_auroc"),
    "Does training teach to tell apart objects that look alike?",
)

Where = dict[str, int]
"""Row and column of a panel; empty in a figure without panels."""


def emergence_figure(table: pd.DataFrame, metric: str | Sequence[str] = "auroc") -> go.Figure:
    """Draw one panel an objective, over the scenes seen in training, with one line a layer.

    ::

        table = bk.measure_checkpoints(["runs/mae", "runs/dino"], "synthetic:n=200,seed=0,size=80x80", "emergence")
        emergence_figure(table, ["auroc", "twins_auroc"])

    Lines are means over training seeds (and seeds of probes). Bands are the standard error of that mean from three
    training seeds on, and the range of two; one seed has none. Grey: the controls, which need no model. Dashed: the
    best layer of the objective's own random init, and what one gets without looking. The horizontal scale begins at 0
    and widens early training: beyond the first checkpoint it is nearly logarithmic. Panels of one metric share the
    vertical scale.

    Parameters
    ----------
    table : pandas.DataFrame
        As `bindkit.measure_checkpoints` gives it.
    metric : str or sequence of str
        One or more of `bindkit.views.figures.curves.METRICS`; of several, each has a row.

    Raises
    ------
    InvalidParameterError
        For an unknown metric, a table without checkpoints, or rows of several probes, tasks, protocols or splits.
    """
    metrics = [metric] if isinstance(metric, str) else list(metric)
    trained, controls = _split_table(table, metrics)
    several = len(metrics) > 1
    labels = list(dict.fromkeys(trained["pretraining"]))
    scale = TrainingScale(trained["scenes_seen"])
    n_cols = len(labels) if several else min(_MOST_ACROSS, len(labels))
    width = max(_PANEL, min(360, (_MOST_ACROSS * (_PANEL + _GAP) - n_cols * _GAP) / n_cols))
    n_named = min(_MOST_LINES, trained["layer"].nunique()) + controls["backbone"].nunique()
    shown = panels(
        len(metrics) * len(labels),
        n_cols,
        gap=(_GAP, _BETWEEN if several else _WRAPPED),
        size=(width, _ROW if several else max(_ALONE, 118 + 20 * n_named)),
        shared_xaxes=several,
        shared_yaxes=True,
        subplot_titles=[_panel_title(label) for label in labels],
    )
    figure = shown.figure
    figure.update_annotations(font={"size": 14, "color": INK})
    colours = _layer_colours(trained["layer"])
    for down, name in enumerate(metrics):
        limits = _limits(trained, controls, name)
        for number, label in enumerate(labels):
            where = shown.place(down * len(labels) + number)
            own = trained[trained["pretraining"] == label]
            _add_levels(figure, controls, name, scale.ends, where)
            untrained = own[own["scenes_seen"] == 0]
            level = untrained[untrained["layer"] == layer_of_best(untrained, name)][name].mean()
            if pd.notna(level):
                look = Look(INK, _UNTRAINED_DASH, 1.8)
                _add_level(figure, float(level), "random init, best layer", look, scale.ends, where)
            for layer, colour in colours.items():
                of_layer = own[own["layer"] == layer]
                if len(of_layer):
                    _add_layer(figure, of_layer, name, scale, colour, len(colours) > _MOST_LINES, where)
            figure.update_yaxes(range=limits, **where)
            if where["col"] == 1:
                # Low panels have their axis title in two lines.
                text = re.sub("(?<=,) | (?=on )", "<br>", METRICS[name], count=1) if several else METRICS[name]
                figure.update_yaxes(title={"text": text, "font": {"size": 13.5}}, **where)
    figure.update_xaxes(tickvals=scale.ticks, ticktext=scale.tick_texts, range=list(scale.ends), tickangle=0)
    figure.update_xaxes(tickfont_size=12, title_standoff=4)
    last = {"row": shown.n_rows} if several else {}
    figure.update_xaxes(title={"text": "scenes seen", "font": {"size": 13}}, **last)
    figure.update_yaxes(tickformat=".2f", tickfont_size=12, nticks=7)
    if len(colours) > _MOST_LINES:
        _add_colour_bar(figure, colours)
    return framed(
        figure,
        _TITLE if several else _TITLES.get(metrics[0], _TITLE),
        _subtitle(trained),
        width=_LEFT + shown.inside[0] + _LEGEND,
        inside=shown.inside[1],
        margin={"l": _LEFT, "r": _LEGEND, "t": _TOP, "b": _BOTTOM},
        hovermode="closest",
        **_two_legends(),
    )


def training_slider(table: pd.DataFrame, metric: str = "auroc") -> go.Figure:
    """Draw the curve over layers of every objective, with a slider and a play button that run through training.

    It opens at the end of training, so that its picture shows the result. Thin and dashed: each objective before
    training. Where objectives were kept at different numbers of scenes, each shows its latest checkpoint up to that of
    the slider. Takes and refuses what `emergence_figure` does, of one metric.
    """
    trained, controls = _split_table(table, [metric])
    by_label = {label: trained[trained["pretraining"] == label] for label in dict.fromkeys(trained["pretraining"])}
    moments = sorted(trained["scenes_seen"].unique())
    layers = trained["layer"].dropna()
    ends = (layers.min() - 0.25, layers.max() + 0.25)
    # x and y of every objective's line, at every moment.
    curves = {seen: [_curve(own, metric, seen) for own in by_label.values()] for seen in moments}
    from_start = moments[0] == 0
    figure = go.Figure()
    for number, label in enumerate(by_label if from_start else []):
        look, name = Look(colour_of(number), _UNTRAINED_DASH, 1.4), f"{label}, random init"
        figure.add_trace(curve(**curves[0][number], look=look, name=name, legendgroup=label, **SILENT))
    _add_levels(figure, controls, metric, ends, {})
    moving = list(range(len(figure.data), len(figure.data) + len(by_label)))
    for number, label in enumerate(by_label):
        how = {"name": label, "legendgroup": label, "hovertemplate": "layer %{x}: %{y:.3f}"}
        figure.add_trace(curve(**curves[moments[-1]][number], look=Look(colour_of(number), None), size=7, **how))
    figure.frames = [
        go.Frame(name=f"{seen:.0f}", data=[{"type": "scatter", **line} for line in curves[seen]], traces=moving)
        for seen in moments
    ]
    figure.update_xaxes(title_text="layer (transformer block, counted from 0)", range=ends, **whole_ticks(layers))
    figure.update_yaxes(title_text=METRICS[metric], tickformat=".2f", range=_limits(trained, controls, metric))
    subtitle = _subtitle(trained, bands=False) + (" · thin and dashed: random init" if from_start else "")
    titled(figure, "How does the curve over layers grow in training?", subtitle)
    figure.update_layout(width=800, height=500, margin={"b": 138}, hovermode="closest", **_two_legends())
    return figure.update_layout(**_player(moments))


def loss_curves(history: pd.DataFrame) -> go.Figure:
    """Draw the training loss of every objective over the scenes seen, one line a training seed.

    Losses are in the objectives' own units and comparable only within a panel. `history` is what
    `bindkit.analysis.checkpoints.training_histories` gives. Raises InvalidParameterError if there is no loss to draw.
    """
    if history.empty or not {"pretraining", "training_seed", "scenes_seen", "loss"} <= set(history):
        raise InvalidParameterError("there is no loss to draw; give what training_histories returned for finished runs")
    labels = list(dict.fromkeys(history["pretraining"]))
    titles = [_panel_title(label) for label in labels]
    shown = panels(len(labels), min(4, len(labels)), gap=(0.07, 0.36), subplot_titles=titles)
    figure = shown.figure
    figure.update_annotations(font={"size": 14, "color": INK})
    for number, label in enumerate(labels):
        for seed, own in history[history["pretraining"] == label].groupby("training_seed"):
            look = Look(translucent(colour_of(number), 0.75), None, 1.6)
            how = {"name": f"seed {seed:.0f}", "hovertemplate": "%{x:,} scenes: %{y:.3f}"}
            line = curve(list(own["scenes_seen"]), list(own["loss"].round(4)), look, **how)
            figure.add_trace(line, **shown.place(number))
    figure.update_xaxes(nticks=4, tickfont_size=12, rangemode="tozero")
    figure.update_xaxes(title={"text": "scenes seen", "font": {"size": 13}, "standoff": 4})
    figure.update_yaxes(tickfont_size=12, nticks=5)
    figure.update_yaxes(title={"text": "training loss", "font": {"size": 13.5}}, col=1)
    return framed(
        figure,
        "Did training get anywhere?",
        "each objective's own loss, in its own units; one line a training seed",
        width=800,
        inside=130 * shown.n_rows + 80 * (shown.n_rows - 1),
        margin={"t": 104, "b": 56, "l": 64, "r": 24},
        hovermode="closest",
        showlegend=False,
    )


class TrainingScale:
    """Positions of numbers of scenes on an axis that begins at 0 and is logarithmic beyond the first checkpoint."""

    def __init__(self, seen: pd.Series) -> None:
        moments = sorted(float(value) for value in seen.unique())
        self.unit = next((value for value in moments if value > 0), 1.0)
        width = self.at(moments[-1]) or 1.0
        self.ends = (round(-0.06 * width, 4), round(1.06 * width, 4))
        shown: list[float] = []
        # From the end on, so that the last checkpoint always has its number; then 0.
        for value in reversed(moments):
            if not shown or self.at(shown[-1]) - self.at(value) > 0.2 * width or value == 0:
                shown.append(value)
        if len(shown) > 2 and self.at(shown[-2]) - self.at(shown[-1]) < 0.2 * width:
            shown.pop(-2)
        self.ticks = [self.at(value) for value in shown]
        self.tick_texts = [_short_count(value) for value in shown]

    def at(self, seen: float) -> float:
        """Position of a number of scenes."""
        return round(math.log10(1 + seen / self.unit), 4)


def _split_table(table: pd.DataFrame, metrics: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of checkpoints and rows of controls, with layers and metrics as numbers."""
    for metric in metrics:
        require_metric(metric)
    if not metrics:
        raise InvalidParameterError(f"give at least one metric of {', '.join(METRICS)}")
    needed = (*metrics, "backbone", "objective", "layer", "pretraining", "training_seed", "scenes_seen")
    missing = [name for name in needed if name not in table]
    lacking = f" (it lacks {', '.join(missing)})" if missing else ""
    if missing or table["pretraining"].isna().all():
        raise InvalidParameterError(f"the table has no checkpoints{lacking}; give what bk.measure_checkpoints returned")
    require_one_kind(table, "the table", table="table")
    if "probe" in table and table["probe"].nunique() > 1:
        kinds = table["probe"].unique()
        raise InvalidParameterError(
            f"the table has rows of several probes ({', '.join(kinds)}); draw one of them, for example "
            f"table[table['probe'] == {kinds[0]!r}]"
        )
    rows = table.assign(**{name: pd.to_numeric(table[name]) for name in ("layer", *metrics)})
    aside = rows["objective"].map(is_control).astype(bool)
    return rows[rows["pretraining"].notna() & ~aside], rows[aside]


def _panel_title(label: str) -> str:
    """Name of an objective above its panel; what sets it apart, if anything, in small below."""
    name, comma, rest = label.partition(", ")
    return f"<b>{name}</b>" + (f"<br><sub>{rest}</sub>" if comma else "")


def _short_count(seen: float) -> str:
    """Few letters for a number of scenes: 0, 512, 9k, 1.5M."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if seen >= unit:
            return f"{seen / unit:.3g}{letter}"
    return f"{seen:.0f}"


def _majority(controls: pd.DataFrame, metric: str) -> pd.Series:
    """Shares of the majority class, if the metric is compared with them."""
    known = metric == "accuracy" and "majority_accuracy" in controls
    return controls["majority_accuracy"].dropna() if known else pd.Series(dtype=float)


def _add_levels(
    figure: go.Figure, controls: pd.DataFrame, metric: str, ends: tuple[float, float], where: Where
) -> None:
    """Controls, and what one gets without looking, as lines across a panel; each is named once in the legend."""
    for name, look in line_looks(controls).items():
        level = controls.loc[controls["backbone"] == name, metric].mean()
        if pd.notna(level):
            _add_level(figure, float(level), control_title(name), look, ends, where)
    look, majority = Look(FAINT, "dash", 1.2), _majority(controls, metric)
    if metric in CHANCE:
        _add_level(figure, CHANCE[metric], "chance", look, ends, where)
    elif len(majority):
        _add_level(figure, float(majority.mean()), "majority class", look, ends, where)


def _add_level(figure: go.Figure, level: float, name: str, look: Look, ends: tuple[float, float], where: Where) -> None:
    """One line across a panel."""
    how = {"legend": "legend2", "showlegend": not _is_named(figure, name), "hovertemplate": "%{y:.3f}"}
    figure.add_trace(curve(list(ends), [round(level, 4)] * 2, look, name=name, legendgroup=name, **how), **where)


def _is_named(figure: go.Figure, name: str) -> bool:
    """Whether the legend has this name already."""
    return any(trace.name == name and trace.showlegend is not False for trace in figure.data)


def _two_legends() -> dict[str, Any]:
    """Legends of what was trained, above, and of what was not, below."""
    title = {"font": {"size": 13, "color": FAINT}}
    below = {"title": {"text": "without training", **title}, **LOWER_LEGEND, "font": {"size": 13}, "tracegroupgap": 0}
    return {"legend": {"title": {"text": "trained", **title}, "tracegroupgap": 0}, "legend2": below}


def _limits(trained: pd.DataFrame, controls: pd.DataFrame, metric: str) -> list[float]:
    """What all panels show: from just below the least to just above the greatest, chance included."""
    drawn = [*trained[metric].dropna(), *controls[metric].dropna(), *_majority(controls, metric)]
    if metric in CHANCE:
        drawn.append(CHANCE[metric])
    if not drawn:
        return [0.0, 1.0]
    low, high = min(drawn), max(drawn)
    spare = max(0.06 * (high - low), (LEAST_SPAN - high + low) / 2)
    return [low - spare, min(high + spare, 1.02)]


def _subtitle(trained: pd.DataFrame, bands: bool = True) -> str:
    """What was measured on what, and what bands are."""
    parts = []
    for column, words in (("probe", "{} probe"), ("protocol", "{} protocol"), ("split", "evaluated on the {} scenes")):
        values = list(trained[column].dropna().unique()) if column in trained else []
        parts += [words.format(values[0])] if values else []
    n_seeds = trained.groupby("pretraining")["training_seed"].nunique()
    counts = " or ".join(map(str, sorted(set(n_seeds))))
    if n_seeds.max() == 1:
        parts.append("one training seed, so no bands" if bands else "one training seed")
    elif bands:
        kinds = {"standard error" if count >= 3 else "range" for count in n_seeds if count > 1}
        parts.append(f"bands: {' or '.join(sorted(kinds))} over {counts} training seeds")
    else:
        parts.append(f"means over {counts} training seeds")
    return " · ".join(parts)


def _add_layer(
    figure: go.Figure, own: pd.DataFrame, metric: str, scale: TrainingScale, colour: str, crowded: bool, where: Where
) -> None:
    """One layer over training, with its spread over training seeds; seeds of probes are averaged before."""
    name = f"layer {own['layer'].iloc[0]:.0f}"
    by_seed = own.groupby(["scenes_seen", "training_seed"])[metric].mean().groupby("scenes_seen")
    mean, error, few = by_seed.mean(), by_seed.std() / np.sqrt(by_seed.count()), by_seed.count() < 3
    high = by_seed.max().where(few, mean + error).round(4)
    low = by_seed.min().where(few, mean - error).round(4)
    x = [scale.at(seen) for seen in mean.index]
    if not crowded and (high > low).any():
        band = go.Scatter(
            x=[*x, *x[::-1]],
            y=[*high, *low[::-1]],
            fill="toself",
            fillcolor=translucent(colour, 0.17),
            mode="lines",
            line={"width": 0},
            legendgroup=name,
            **SILENT,
        )
        figure.add_trace(band, **where)
    size, outline = (5.5, 0.8) if len(x) <= 6 else (3.5, 0)
    line = go.Scatter(
        x=x,
        y=list(mean.round(4)),
        customdata=[_short_count(seen) for seen in mean.index],
        name=name,
        legendgroup=name,
        showlegend=not crowded and not _is_named(figure, name),
        mode="lines" if crowded else "lines+markers",
        line={"color": colour, "width": 1.6 if crowded else 2.2},
        marker={"size": size, "line": {"color": "white", "width": outline}},
        hovertemplate="%{customdata} scenes: %{y:.3f}",
    )
    figure.add_trace(line, **where)


def _layer_colours(layers: pd.Series) -> dict[float, str]:
    """A colour a layer, light to dark from the first to the last."""
    numbers = sorted(layers.dropna().unique())
    shares = np.linspace(_FROM, _TO, len(numbers)) if len(numbers) > 1 else [_TO]
    colours = sample_colorscale(_SHALLOW_TO_DEEP, list(shares), colortype="tuple")
    codes = ["#" + "".join(f"{round(255 * part):02x}" for part in colour) for colour in colours]
    return dict(zip(numbers, codes, strict=True))


def _add_colour_bar(figure: go.Figure, colours: Mapping[float, str]) -> None:
    """A key of layers where there are too many for a legend."""
    numbers = list(colours)
    bar = {
        "title": {"text": "layer", "font": {"size": 13, "color": FAINT}},
        "tickvals": sorted({numbers[0], numbers[len(numbers) // 2], numbers[-1]}),
        **{"thickness": 14, "len": 0.42, "x": 1.02, "xanchor": "left", "y": 1.0, "yanchor": "top"},
    }
    scale = [[step, colour] for step, colour in zip(np.linspace(0, 1, len(numbers)), colours.values(), strict=True)]
    marker = {"color": [numbers[0], numbers[-1]], "colorscale": scale, "opacity": 0, "colorbar": bar}
    figure.add_trace(go.Scatter(x=[0, 0], y=[None, None], mode="markers", marker=marker, **SILENT))


def _curve(own: pd.DataFrame, metric: str, seen: float) -> dict[str, list[float]]:
    """Layers (x) and the metric (y) at an objective's latest checkpoint up to a number of scenes."""
    moments = own["scenes_seen"].unique()
    latest = max((moment for moment in moments if moment <= seen), default=min(moments))
    by_layer = own[own["scenes_seen"] == latest].groupby("layer")[metric].mean().sort_index()
    return {"x": list(by_layer.index), "y": list(by_layer.round(4))}


def _player(moments: Sequence[float]) -> dict[str, Any]:
    """The slider over checkpoints and the button that plays them."""
    still = {"mode": "immediate", "frame": {"duration": 0, "redraw": False}, "transition": {"duration": 250}}
    play = {"mode": "immediate", "fromcurrent": False, "frame": {"duration": 900, "redraw": False}}
    play["transition"] = {"duration": 500, "easing": "cubic-in-out"}
    button = {"label": "▶ play", "method": "animate", "args": [None, play]}
    stop = {"label": "❚❚", "method": "animate", "args": [[None], still]}
    steps = [{"label": _short_count(seen), "method": "animate", "args": [[f"{seen:.0f}"], still]} for seen in moments]
    menu = {"type": "buttons", "direction": "left", "buttons": [button, stop], "showactive": False}
    slider = {"steps": steps, "active": len(steps) - 1, "x": 0.24, "len": 0.76, "y": -0.2, "yanchor": "top"}
    shown = {"prefix": "scenes seen: ", "font": {"size": 14}, "xanchor": "left"}
    look = {"pad": {"t": 10}, "currentvalue": shown, "font": {"size": 12}, "transition": {"duration": 250}}
    place = {"x": 0, "xanchor": "left", "y": -0.24, "yanchor": "top", "pad": {"t": 18}, "font": {"size": 13}}
    return {"updatemenus": [menu | place], "sliders": [slider | look]}
