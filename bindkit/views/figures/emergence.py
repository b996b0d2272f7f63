"""Binding along training: a panel an objective, a row a metric, a line a layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from bindkit.results.tables import layer_of_best
from bindkit.views.figures.checkpoints import (
    DASH_UNTRAINED,
    add_level,
    add_levels,
    is_named,
    limits_of,
    panel_title,
    short_count,
    split_table,
    subtitle_of,
    two_legends,
)
from bindkit.views.figures.curves import METRICS
from bindkit.views.figures.style import FAINT, INK, titled, translucent

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

_TITLE = "Does training teach what belongs together?"
_TITLES = dict.fromkeys(
    ("twins_auroc", "twins_accuracy", "matched_twins_auroc"),
    "Does training teach to tell apart objects that look alike?",
)


def emergence_figure(table: pd.DataFrame, metric: str | Sequence[str] = "auroc") -> go.Figure:
    """Draw one panel an objective, over the scenes seen in training, with one line a layer.

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

    Examples
    --------
    ::

        table = bk.measure_checkpoints(["runs/mae", "runs/dino"], "synthetic:n=200,seed=0,size=80x80", "emergence")
        emergence_figure(table, ["auroc", "twins_auroc"])
    """
    metrics = [metric] if isinstance(metric, str) else list(metric)
    trained, controls = split_table(table, metrics)
    labels = list(dict.fromkeys(trained["pretraining"]))
    scale = TrainingScale(trained["scenes_seen"])
    n_cols = len(labels) if len(metrics) > 1 else min(_MOST_ACROSS, len(labels))
    n_rows = len(metrics) if len(metrics) > 1 else math.ceil(len(labels) / n_cols)
    panel = max(_PANEL, min(360, (_MOST_ACROSS * (_PANEL + _GAP) - n_cols * _GAP) / n_cols))
    n_named = min(_MOST_LINES, trained["layer"].nunique()) + controls["backbone"].nunique()
    row, between = (_ROW, _BETWEEN) if len(metrics) > 1 else (max(_ALONE, 118 + 20 * n_named), _WRAPPED)
    inside = (n_cols * panel + (n_cols - 1) * _GAP, n_rows * row + (n_rows - 1) * between)
    figure = make_subplots(
        rows=n_rows,
        cols=n_cols,
        shared_xaxes=len(metrics) > 1,
        shared_yaxes=True,
        subplot_titles=[panel_title(label) for label in labels],
        horizontal_spacing=_GAP / inside[0],
        vertical_spacing=between / inside[1] if n_rows > 1 else 0,
    )
    figure.update_annotations(font={"size": 14, "color": INK})
    colours = _layer_colours(trained["layer"])
    for down, name in enumerate(metrics):
        limits = limits_of(trained, controls, name)
        for number, label in enumerate(labels):
            across = number % n_cols
            where = {"row": 1 + (down if len(metrics) > 1 else number // n_cols), "col": 1 + across}
            own = trained[trained["pretraining"] == label]
            add_levels(figure, controls, name, scale.ends, where)
            _add_untrained(figure, own, name, scale.ends, where)
            for layer, colour in colours.items():
                of_layer = own[own["layer"] == layer]
                _add_layer(figure, of_layer, name, scale, colour, len(colours), where)
            figure.update_yaxes(range=limits, **where)
            if across == 0:
                text = METRICS[name] if len(metrics) == 1 else _in_two_lines(METRICS[name])
                figure.update_yaxes(title={"text": text, "font": {"size": 13.5}}, **where)
    figure.update_xaxes(tickvals=scale.ticks, ticktext=scale.tick_texts, range=list(scale.ends), tickangle=0)
    figure.update_xaxes(tickfont_size=12, title_standoff=4)
    last = {"row": n_rows} if len(metrics) > 1 else {}
    figure.update_xaxes(title={"text": "scenes seen", "font": {"size": 13}}, **last)
    figure.update_yaxes(tickformat=".2f", tickfont_size=12, nticks=7)
    titled(figure, _TITLES.get(metrics[0], _TITLE) if len(metrics) == 1 else _TITLE, subtitle_of(trained))
    if len(colours) > _MOST_LINES:
        _add_colour_bar(figure, colours)
    height = _TOP + inside[1] + _BOTTOM
    return figure.update_layout(
        width=_LEFT + inside[0] + _LEGEND,
        height=height,
        title_y=1 - 18 / height,
        margin={"l": _LEFT, "r": _LEGEND, "t": _TOP, "b": _BOTTOM},
        hovermode="closest",
        **two_legends(),
    )


class TrainingScale:
    """Positions of numbers of scenes on an axis that begins at 0 and is logarithmic beyond the first checkpoint."""

    def __init__(self, seen: pd.Series) -> None:
        self.moments = sorted(float(value) for value in seen.unique())
        self.unit = next((value for value in self.moments if value > 0), 1.0)
        width = self.at(self.moments[-1]) or 1.0
        self.ends = (round(-0.06 * width, 4), round(1.06 * width, 4))
        shown: list[float] = []
        # From the end on, so that the last checkpoint always has its number; then 0.
        for value in reversed(self.moments):
            if not shown or self.at(shown[-1]) - self.at(value) > 0.2 * width or value == 0:
                shown.append(value)
        if len(shown) > 2 and self.at(shown[-2]) - self.at(shown[-1]) < 0.2 * width:
            shown.pop(-2)
        self.ticks = [self.at(value) for value in shown]
        self.tick_texts = [short_count(value) for value in shown]

    def at(self, seen: float) -> float:
        """Position of a number of scenes."""
        return round(math.log10(1 + seen / self.unit), 4)


def _add_layer(
    figure: go.Figure,
    own: pd.DataFrame,
    metric: str,
    scale: TrainingScale,
    colour: str,
    n_layers: int,
    where: dict[str, int],
) -> None:
    """One layer over training, with its spread over training seeds."""
    if own.empty:
        return
    name = f"layer {own['layer'].iloc[0]:.0f}"
    spread = _over_seeds(own, metric).round(4)
    x = [scale.at(seen) for seen in spread.index]
    crowded = n_layers > _MOST_LINES
    if not crowded and (spread["high"] > spread["low"]).any():
        figure.add_trace(
            go.Scatter(
                x=[*x, *x[::-1]],
                y=[*spread["high"], *spread["low"][::-1]],
                fill="toself",
                fillcolor=translucent(colour, 0.17),
                mode="lines",
                line={"width": 0},
                legendgroup=name,
                showlegend=False,
                hoverinfo="skip",
            ),
            **where,
        )
    figure.add_trace(
        go.Scatter(
            x=x,
            y=list(spread["mean"]),
            customdata=[short_count(seen) for seen in spread.index],
            name=name,
            legendgroup=name,
            showlegend=not crowded and not is_named(figure, name),
            mode="lines" if crowded else "lines+markers",
            line={"color": colour, "width": 1.6 if crowded else 2.2},
            marker={
                "size": 5.5 if len(x) <= 6 else 3.5,
                "line": {"color": "white", "width": 0.8 if len(x) <= 6 else 0},
            },
            hovertemplate="%{customdata} scenes: %{y:.3f}",
        ),
        **where,
    )


def _over_seeds(own: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Mean, low and high over training seeds, by scenes seen; seeds of probes are averaged before."""
    by_seed = own.groupby(["scenes_seen", "training_seed"])[metric].mean()
    grouped = by_seed.groupby("scenes_seen")
    spread = pd.DataFrame({"mean": grouped.mean(), "low": grouped.min(), "high": grouped.max()})
    count, error = grouped.count(), grouped.std() / np.sqrt(grouped.count())
    many = count >= 3
    spread.loc[many, "low"] = (spread["mean"] - error)[many]
    spread.loc[many, "high"] = (spread["mean"] + error)[many]
    return spread


def _add_untrained(
    figure: go.Figure, own: pd.DataFrame, metric: str, ends: tuple[float, float], where: dict[str, int]
) -> None:
    """The best layer of an objective's own random init."""
    untrained = own[own["scenes_seen"] == 0]
    level = untrained[untrained["layer"] == layer_of_best(untrained, metric)][metric].mean()
    if pd.notna(level):
        line = {"color": INK, "dash": DASH_UNTRAINED, "width": 1.8}
        add_level(figure, float(level), "random init, best layer", line, ends, where)


def _in_two_lines(title: str) -> str:
    """An axis title for a low panel."""
    for mark, kept in ((", ", ","), (" on ", "")):
        if mark in title:
            first, rest = title.split(mark, 1)
            return f"{first}{kept}<br>{'' if kept else 'on '}{rest}"
    return title


def _add_colour_bar(figure: go.Figure, colours: Mapping[float, str]) -> None:
    """A key of layers where there are too many for a legend."""
    numbers = list(colours)
    steps = np.linspace(0, 1, len(numbers))
    bar = {
        "title": {"text": "layer", "font": {"size": 13, "color": FAINT}},
        "tickvals": sorted({numbers[0], numbers[len(numbers) // 2], numbers[-1]}),
        "thickness": 14,
        "len": 0.42,
        "x": 1.02,
        "xanchor": "left",
        "y": 1.0,
        "yanchor": "top",
    }
    marker = {
        "color": [numbers[0], numbers[-1]],
        "colorscale": [[step, colour] for step, colour in zip(steps, colours.values(), strict=True)],
        "opacity": 0,
        "colorbar": bar,
    }
    figure.add_trace(
        go.Scatter(x=[0, 0], y=[None, None], mode="markers", marker=marker, showlegend=False, hoverinfo="skip")
    )


def _layer_colours(layers: pd.Series) -> dict[float, str]:
    """A colour a layer, light to dark from the first to the last."""
    numbers = sorted(layers.dropna().unique())
    shares = np.linspace(_FROM, _TO, len(numbers)) if len(numbers) > 1 else [_TO]
    colours = sample_colorscale(_SHALLOW_TO_DEEP, list(shares), colortype="tuple")
    return {
        number: "#" + "".join(f"{round(255 * part):02x}" for part in colour)
        for number, colour in zip(numbers, colours, strict=True)
    }
