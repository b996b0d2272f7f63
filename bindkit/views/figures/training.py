"""Training itself: a slider that runs the layer curves through it, and the losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bindkit.errors import InvalidParameterError
from bindkit.views.figures.checkpoints import (
    DASH_UNTRAINED,
    add_levels,
    limits_of,
    panel_title,
    short_count,
    split_table,
    subtitle_of,
    two_legends,
)
from bindkit.views.figures.curves import METRICS, whole_ticks
from bindkit.views.figures.style import INK, colour_of, titled, translucent


def training_slider(table: pd.DataFrame, metric: str = "auroc") -> go.Figure:
    """Draw the curve over layers of every objective, with a slider and a play button that run through training.

    It opens at the end of training, so that its picture shows the result. Thin and dashed: each objective before
    training. Where objectives were kept at different numbers of scenes, each shows its latest checkpoint up to that of
    the slider.

    Parameters
    ----------
    table : pandas.DataFrame
        As `bindkit.measure_checkpoints` gives it.
    metric : str
        One of `bindkit.views.figures.curves.METRICS`.

    Raises
    ------
    InvalidParameterError
        As `emergence_figure`.
    """
    trained, controls = split_table(table, [metric])
    labels = list(dict.fromkeys(trained["pretraining"]))
    moments = sorted(trained["scenes_seen"].unique())
    layers = trained["layer"].dropna()
    ends = (layers.min() - 0.25, layers.max() + 0.25)
    curves = {
        seen: [_curve(trained[trained["pretraining"] == label], metric, seen) for label in labels] for seen in moments
    }
    figure = go.Figure()
    for number, label in enumerate(labels if moments[0] == 0 else []):
        start = curves[moments[0]][number]
        line = {"color": colour_of(number), "dash": DASH_UNTRAINED, "width": 1.4}
        look = {"mode": "lines", "line": line, "legendgroup": label, "hoverinfo": "skip", "showlegend": False}
        figure.add_trace(go.Scatter(x=list(start.index), y=list(start.round(4)), name=f"{label}, random init", **look))
    add_levels(figure, controls, metric, ends, {})
    first_moving = len(figure.data)
    for number, label in enumerate(labels):
        figure.add_trace(_objective_line(curves[moments[-1]][number], label, number))
    moving = list(range(first_moving, first_moving + len(labels)))
    figure.frames = [
        go.Frame(
            name=f"{seen:.0f}",
            data=[{"type": "scatter", "x": list(curve.index), "y": list(curve.round(4))} for curve in curves[seen]],
            traces=moving,
        )
        for seen in moments
    ]
    figure.update_xaxes(title_text="layer (transformer block, counted from 0)", range=ends, **whole_ticks(layers))
    figure.update_yaxes(title_text=METRICS[metric], tickformat=".2f", range=limits_of(trained, controls, metric))
    titled(
        figure,
        "How does the curve over layers grow in training?",
        subtitle_of(trained, bands=False) + (" · thin and dashed: random init" if moments[0] == 0 else ""),
    )
    figure.update_layout(width=800, height=500, margin={"b": 138}, hovermode="closest", **two_legends())
    return figure.update_layout(**_player(moments))


def loss_curves(history: pd.DataFrame) -> go.Figure:
    """Draw the training loss of every objective over the scenes seen, one line a training seed.

    Losses are in the objectives' own units and comparable only within a panel.

    Parameters
    ----------
    history : pandas.DataFrame
        As `bindkit.analysis.checkpoints.training_histories` gives it.

    Raises
    ------
    InvalidParameterError
        If there is no loss to draw.
    """
    if history.empty or not {"pretraining", "training_seed", "scenes_seen", "loss"} <= set(history):
        raise InvalidParameterError("there is no loss to draw; give what training_histories returned for finished runs")
    labels = list(dict.fromkeys(history["pretraining"]))
    n_cols = min(4, len(labels))
    n_rows = math.ceil(len(labels) / n_cols)
    figure = make_subplots(
        rows=n_rows,
        cols=n_cols,
        subplot_titles=[panel_title(label) for label in labels],
        horizontal_spacing=0.07,
        vertical_spacing=0.36 if n_rows > 1 else 0,
    )
    figure.update_annotations(font={"size": 14, "color": INK})
    for number, label in enumerate(labels):
        for seed, own in history[history["pretraining"] == label].groupby("training_seed"):
            line = go.Scatter(
                x=list(own["scenes_seen"]),
                y=list(own["loss"].round(4)),
                name=f"seed {seed:.0f}",
                mode="lines",
                line={"color": translucent(colour_of(number), 0.75), "width": 1.6},
                hovertemplate="%{x:,} scenes: %{y:.3f}",
            )
            figure.add_trace(line, row=number // n_cols + 1, col=number % n_cols + 1)
    figure.update_xaxes(nticks=4, tickfont_size=12, rangemode="tozero")
    figure.update_xaxes(title={"text": "scenes seen", "font": {"size": 13}, "standoff": 4})
    figure.update_yaxes(tickfont_size=12, nticks=5)
    figure.update_yaxes(title={"text": "training loss", "font": {"size": 13.5}}, col=1)
    titled(
        figure, "Did training get anywhere?", "each objective's own loss, in its own units; one line a training seed"
    )
    height = 104 + 130 * n_rows + 80 * (n_rows - 1) + 56
    margin = {"t": 104, "b": 56, "l": 64, "r": 24}
    return figure.update_layout(
        width=800, height=height, title_y=1 - 18 / height, margin=margin, hovermode="closest", showlegend=False
    )


def _curve(own: pd.DataFrame, metric: str, seen: float) -> pd.Series:
    """The metric by layer at an objective's latest checkpoint up to a number of scenes."""
    moments = own["scenes_seen"].unique()
    latest = max((moment for moment in moments if moment <= seen), default=min(moments))
    return own[own["scenes_seen"] == latest].groupby("layer")[metric].mean().sort_index()


def _objective_line(curve: pd.Series, label: str, number: int) -> go.Scatter:
    return go.Scatter(
        x=list(curve.index),
        y=list(curve.round(4)),
        name=label,
        legendgroup=label,
        mode="lines+markers",
        line={"color": colour_of(number), "width": 2.5},
        marker={"size": 7, "line": {"color": "white", "width": 1}},
        hovertemplate="layer %{x}: %{y:.3f}",
    )


def _player(moments: Sequence[float]) -> dict[str, Any]:
    """The slider over checkpoints and the button that plays them."""
    still = {"mode": "immediate", "frame": {"duration": 0, "redraw": False}, "transition": {"duration": 250}}
    play = {"mode": "immediate", "fromcurrent": False, "frame": {"duration": 900, "redraw": False}}
    play["transition"] = {"duration": 500, "easing": "cubic-in-out"}
    button = {"label": "▶ play", "method": "animate", "args": [None, play]}
    stop = {"label": "❚❚", "method": "animate", "args": [[None], still]}
    steps = [{"label": short_count(seen), "method": "animate", "args": [[f"{seen:.0f}"], still]} for seen in moments]
    return {
        "updatemenus": [
            {
                "type": "buttons",
                "direction": "left",
                "buttons": [button, stop],
                "showactive": False,
                "x": 0,
                "xanchor": "left",
                "y": -0.24,
                "yanchor": "top",
                "pad": {"t": 18},
                "font": {"size": 13},
            }
        ],
        "sliders": [
            {
                "steps": steps,
                "active": len(steps) - 1,
                "x": 0.24,
                "len": 0.76,
                "y": -0.2,
                "yanchor": "top",
                "pad": {"t": 10},
                "currentvalue": {"prefix": "scenes seen: ", "font": {"size": 14}, "xanchor": "left"},
                "font": {"size": 12},
                "transition": {"duration": 250},
            }
        ],
    }
