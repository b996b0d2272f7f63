"""What each difficulty of a scene costs: a panel an option, with the scenes themselves below its values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bindkit.arguments import control_title
from bindkit.errors import InvalidParameterError
from bindkit.results.tables import require_one_kind
from bindkit.views.figures.curves import _CHANCE, _LEAST_SPAN, METRICS
from bindkit.views.figures.looks import Look, line_looks
from bindkit.views.figures.painting import picture
from bindkit.views.figures.style import FAINT, titled, whiskers
from bindkit.views.figures.variations import MEANINGS, example_scene, write_on

_PANEL, _GAP = 290, 30
"""Width of a panel and space between two, in the figure's units."""
_PLOT, _ABOVE = 210, 46
"""Height of the curves, and of a panel's name above them."""
_TICKS, _THUMB = 30, 62
"""Height of the values below the curves, and of the scenes below those."""
_LEFT, _TOP, _LEGEND = 72, 68, 250
_BAND = "#eef1f4"
_DODGE = 0.07
"""Values between two lines that carry intervals, so that these do not cover each other."""

_TITLES = {"own": "What makes objects hard to tell apart?", "base": "Does what a probe reads carry over?"}
_FITTED = {"own": "probe fitted anew on every set", "base": "probe fitted on the base scenes only"}


def difficulty_figure(
    table: pd.DataFrame, metric: str = "auroc", probe_from: str = "own", examples: bool = True
) -> go.Figure:
    """Draw one panel an option with one line a backbone over the option's values, in the order of the table.

    The grey band is the value that the base scenes have. Below each value stands the first scene of its set. Controls
    and untrained backbones are thin and dashed or grey, as in `layer_curves`; trained backbones have 95 % intervals
    where the metric is the accuracy. Dashed: chance, or always giving the more frequent answer. Figures are averaged
    over seeds. Lines join values for the eye; nothing was measured between them.

    Parameters
    ----------
    table : pandas.DataFrame
        As `bindkit.vary_scenes` gives it, of one layer a backbone.
    metric : str
        One of `bindkit.views.figures.curves.METRICS`.
    probe_from : str
        ``"own"``: fitted anew on every set. ``"base"``: fitted on the base scenes, where they were measured
        with ``transfer=True``.
    examples : bool
        Whether to show scenes below the values.

    Raises
    ------
    InvalidParameterError
        For an unknown metric, a table without such rows, or rows that may not be averaged: of several layers, probes,
        tasks, protocols or splits.

    Examples
    --------
    ::

        table = bk.vary_scenes([backbone], "synthetic:n=200,seed=0", {"twins": [0.2, 0.5, 0.9]})
        difficulty_figure(table, "twins_auroc")
    """
    rows = _rows(table, metric, probe_from)
    options = list(dict.fromkeys(rows["option"]))
    n_cols = len(options) if len(options) < 4 else 2 if len(options) == 4 else 3
    n_rows = math.ceil(len(options) / n_cols)
    below = _TICKS + (_THUMB + 8 if examples else 0)
    inside = (n_cols * _PANEL + (n_cols - 1) * _GAP, n_rows * _PLOT + (n_rows - 1) * (below + _ABOVE))
    figure = make_subplots(
        rows=n_rows,
        cols=n_cols,
        horizontal_spacing=_GAP / inside[0],
        vertical_spacing=(below + _ABOVE) / inside[1] if n_rows > 1 else 0,
    )
    looks = line_looks(rows, "backbone")
    for number, option in enumerate(options):
        where = {"row": number // n_cols + 1, "col": number % n_cols + 1}
        _draw_panel(figure, rows[rows["option"] == option], metric, looks, where, first=number == 0)
        axis = figure.get_subplot(**where)
        _name_panel(figure, option, axis.xaxis.domain[0], axis.yaxis.domain[1])
        if examples:
            _add_examples(figure, rows[rows["option"] == option], axis, inside)
    for number in range(len(options), n_rows * n_cols):
        figure.update_xaxes(visible=False, row=n_rows, col=number % n_cols + 1)
        figure.update_yaxes(visible=False, row=n_rows, col=number % n_cols + 1)
    _share_range(figure, rows, metric)
    figure.update_yaxes(title_text=METRICS[metric], col=1, title_font_size=13.5)
    titled(figure, _TITLES[probe_from], _subtitle(rows, metric, probe_from))
    free = n_rows * n_cols > len(options)
    corner = figure.get_subplot(n_rows, n_cols) if free else figure.get_subplot(1, n_cols)
    at = (corner.xaxis.domain[0] + 0.01 if free else 1.015, corner.yaxis.domain[1])
    height = _TOP + _ABOVE + inside[1] + below + 16
    return figure.update_layout(
        title_y=1 - 18 / height,
        width=max(760, _LEFT + inside[0] + (24 if free else _LEGEND)),
        height=height,
        margin={"l": _LEFT, "r": 24 if free else _LEGEND, "t": _TOP + _ABOVE, "b": below + 16},
        hovermode="closest",
        legend={"x": at[0], "y": at[1], "xanchor": "left", "yanchor": "top", "tracegroupgap": 0},
    )


def _rows(table: pd.DataFrame, metric: str, probe_from: str) -> pd.DataFrame:
    """Rows to draw, or a named error."""
    if metric not in METRICS:
        raise InvalidParameterError(f"unknown metric {metric!r}; choose one of {', '.join(METRICS)}")
    if missing := [name for name in (metric, "backbone", "option", "value", "probe_from") if name not in table]:
        raise InvalidParameterError(
            f"the table lacks the columns {', '.join(missing)}; give one that bk.vary_scenes made"
        )
    rows = table[table["probe_from"] == probe_from]
    if rows.empty:
        there = ", ".join(map(str, table["probe_from"].unique())) or "nothing"
        raise InvalidParameterError(
            f"the table has no rows of probe_from={probe_from!r}, it has {there}; measure with transfer=True for "
            "probes of the base scenes"
        )
    for name, own in rows.groupby("backbone"):
        require_one_kind(own, f"the line of {name}")
        for column in ("layer", "probe"):
            if own[column].nunique() > 1:
                kinds = own[column].dropna().unique()
                raise InvalidParameterError(
                    f"the rows of {name} are of several {column}s ({', '.join(f'{kind}' for kind in kinds)}); draw one "
                    f"of them, for example table[table[{column!r}] == {kinds[0]!r}]"
                )
    return rows.assign(value=rows["value"].astype(str), **{metric: pd.to_numeric(rows[metric])})


def _draw_panel(
    figure: go.Figure, rows: pd.DataFrame, metric: str, looks: Mapping[str, Look], where: dict[str, int], first: bool
) -> None:
    """Lines of one option, receding ones first so that the others are drawn over them."""
    values = list(dict.fromkeys(rows["value"]))
    positions = np.arange(len(values))
    marked = [at for at, value in enumerate(values) if rows.loc[rows["value"] == value, "is_base"].any()]
    for at in marked:
        band = {"fillcolor": _BAND, "line_width": 0, "layer": "below", "exclude_empty_subplots": False}
        half = min(0.46, 0.14 * len(values))
        figure.add_vrect(at - half, at + half, **band, **where)
    _add_baseline(figure, rows, metric, values, where, first)
    solid = [name for name, look in looks.items() if not look.recedes]
    with_bars = metric == "accuracy" and {"accuracy_low", "accuracy_high"} <= set(rows)
    for name in sorted(looks, key=lambda name: not looks[name].recedes):
        look, own = looks[name], rows[rows["backbone"] == name]
        drawn = own.groupby("value")[[metric, *(("accuracy_low", "accuracy_high") if with_bars else ())]].mean()
        drawn = drawn.reindex(values)
        bars: dict[str, Any] = {}
        shift = 0.0
        if with_bars and not look.recedes:
            shift = _DODGE * (solid.index(name) - (len(solid) - 1) / 2)
            bars["error_y"] = whiskers(drawn, metric, look.colour)
        trace = go.Scatter(
            x=positions + shift,
            y=drawn[metric],
            name=control_title(name),
            legendgroup=name,
            legendrank=1000 + 2 * look.is_control + look.recedes,
            showlegend=first,
            mode="lines+markers",
            line=look.line,
            marker={"size": 5 if look.recedes else 8, "line": {"color": "white", "width": 1}},
            customdata=values,
            hovertemplate="%{customdata}: %{y:.3f}",
            **bars,
        )
        figure.add_trace(trace, **where)
    for at, value in enumerate(values):
        if rows.loc[rows["value"] == value, metric].isna().all():
            faint = {"size": 12, "color": FAINT}
            why = "no twins" if "twins" in metric else "undefined"
            figure.add_annotation(
                x=at, y=0.5, yref="y domain", text=why, textangle=-90, showarrow=False, font=faint, **where
            )
    ticks = [f"<b>{value}</b>" if at in marked else value for at, value in enumerate(values)]
    figure.update_xaxes(
        tickvals=positions, ticktext=ticks, range=[-0.5, len(values) - 0.5], showgrid=False, ticks="", **where
    )
    figure.update_xaxes(tickfont_size=12, tickangle=0, automargin=False, **where)
    figure.update_yaxes(showticklabels=where["col"] == 1, automargin=False, tickformat=".2f", **where)


def _add_baseline(
    figure: go.Figure, rows: pd.DataFrame, metric: str, values: list[str], where: dict[str, int], first: bool
) -> None:
    """What one gets without looking, over all values."""
    if metric in _CHANCE:
        name, levels = "chance", [_CHANCE[metric]] * len(values)
    elif metric == "accuracy" and "majority_accuracy" in rows:
        name = "more frequent answer"
        levels = list(rows.groupby("value")["majority_accuracy"].mean().reindex(values))
    else:
        return
    ends = [-0.5, *range(len(values)), len(values) - 0.5]
    trace = go.Scatter(
        x=ends,
        y=[levels[0], *levels, levels[-1]],
        name=name,
        legendgroup=name,
        legendrank=1004,
        showlegend=first,
        mode="lines",
        line={"color": FAINT, "dash": "dash", "width": 1.3},
        hoverinfo="skip",
    )
    figure.add_trace(trace, **where)


def _share_range(figure: go.Figure, rows: pd.DataFrame, metric: str) -> None:
    """One range for all panels."""
    if metric in _CHANCE:
        lowest = float(rows[metric].min()) if rows[metric].notna().any() else 0.5
        figure.update_yaxes(range=[min(0.45, lowest - 0.03), 1.01])
        return
    drawn = [float(value) for trace in figure.data for value in trace.y if not math.isnan(value)] or [0.0, 1.0]
    for trace in figure.data:
        if trace.error_y.array is not None:
            ends = np.concatenate([trace.y + trace.error_y.array, trace.y - trace.error_y.arrayminus])
            drawn += [float(value) for value in ends if not math.isnan(value)]
    spare = max(0.015, (_LEAST_SPAN - max(drawn) + min(drawn)) / 2)
    figure.update_yaxes(range=[min(drawn) - spare, max(drawn) + spare])


def _add_examples(figure: go.Figure, rows: pd.DataFrame, axis: Any, inside: tuple[int, int]) -> None:
    """A scene of every set below its value, in the panel's own coordinates across."""
    uris = rows.drop_duplicates("value").set_index("value")["scenes"]
    for at, uri in enumerate(uris):
        scene = example_scene(uri, 0)
        shown = picture(scene.image, scene.size, lossy=True)
        figure.add_layout_image(
            source=shown.source,
            xref=axis.xaxis.plotly_name.replace("axis", ""),
            yref="paper",
            x=at,
            y=axis.yaxis.domain[0] - _TICKS / inside[1],
            sizex=0.92,
            sizey=_THUMB / inside[1],
            xanchor="center",
            yanchor="top",
            sizing="contain",
        )


def _name_panel(figure: go.Figure, option: str, left: float, top: float) -> None:
    words = f"<b>{option}</b>  <span style='color:{FAINT};font-size:12px'>{MEANINGS.get(option, '')}</span>"
    write_on(figure, words, left, top, xanchor="left", yanchor="bottom", yshift=4)


def _subtitle(rows: pd.DataFrame, metric: str, probe_from: str) -> str:
    """How it was measured, in one line."""
    probes = " and ".join(dict.fromkeys(rows["probe"]))
    layers = sorted(rows["layer"].dropna().astype(int).unique())
    at = f" at layer {layers[0]}" if len(layers) == 1 else ""
    parts = [f"{probes} probe{at}, {_FITTED[probe_from].removeprefix('probe ')}", "grey band: the base scenes"]
    if metric == "accuracy":
        parts.append("bars: 95 % intervals over scenes")
    return " · ".join(parts)
