"""Where probes are right, and whether their affinities are probabilities."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bindkit.errors import InvalidParameterError
from bindkit.figures.style import FAINT, colour_of, titled, translucent

_PANELS = {
    "distance": "distance of the two patches (patches)",
    "object_size": "size of the (smaller) object (patches)",
    "negatives": "kind of pair",
    "window": "windows of the model",
}
_WRAPPED = {
    "different objects, same class": "two objects,<br>same class",
    "different objects, other class": "two objects,<br>other class",
    "same object": "same<br>object",
    "class unknown": "class<br>unknown",
}


def breakdown_figure(tables: pd.DataFrame | Mapping[str, pd.DataFrame]) -> go.Figure:
    """One panel for each way of breaking pairs down: accuracy with its interval, and that of the more frequent answer.

    Parameters
    ----------
    tables : pandas.DataFrame, or mapping of name to pandas.DataFrame
        As `bindkit.breakdown` gives them; several are drawn in one colour each.

    Raises
    ------
    InvalidParameterError
        Without rows.
    """
    named = {"probe": tables} if isinstance(tables, pd.DataFrame) else dict(tables)
    panels = [name for name in _PANELS if any((table["by"] == name).any() for table in named.values() if len(table))]
    if not panels:
        raise InvalidParameterError("nothing to draw: give what breakdown() returns")
    rows = (len(panels) + 1) // 2
    figure = make_subplots(
        rows=rows,
        cols=2 if len(panels) > 1 else 1,
        horizontal_spacing=0.09,
        vertical_spacing=0.2,
        subplot_titles=[_PANELS[name] for name in panels],
    )
    for number, (label, table) in enumerate(named.items()):
        for position, name in enumerate(panels):
            place = {"row": position // 2 + 1, "col": position % 2 + 1}
            part = table[table["by"] == name]
            x = [_WRAPPED.get(group, group) for group in part["group"]]
            binned = name in ("distance", "object_size")
            figure.add_trace(
                go.Scatter(
                    x=x,
                    y=part["accuracy"],
                    name=label,
                    legendgroup=label,
                    showlegend=position == 0 and len(named) > 1,
                    mode="lines+markers" if binned else "markers",
                    line={"color": colour_of(number), "width": 2.5},
                    marker={"size": 9, "color": colour_of(number)},
                    error_y={
                        "type": "data",
                        "symmetric": False,
                        "array": part["accuracy_high"] - part["accuracy"],
                        "arrayminus": part["accuracy"] - part["accuracy_low"],
                        "thickness": 1.5,
                        "width": 4,
                        "color": colour_of(number),
                    },
                    customdata=part[["n_pairs", "auroc"]],
                    hovertemplate="%{y:.3f} of %{customdata[0]:,} pairs, AUROC %{customdata[1]:.3f}",
                ),
                **place,
            )
            if number == 0 and name != "negatives":
                figure.add_trace(
                    go.Scatter(
                        x=x,
                        y=part["majority_accuracy"],
                        name="more frequent answer",
                        showlegend=position == 0,
                        mode="lines+markers" if binned else "markers",
                        line={"color": FAINT, "dash": "dash", "width": 1.5},
                        marker={"size": 9, "symbol": "line-ew", "line": {"width": 2, "color": FAINT}},
                        hovertemplate="%{y:.3f}",
                    ),
                    **place,
                )
    figure.update_yaxes(tickformat=".2f", title_text="judged right", title_standoff=8, range=[-0.02, 1.05])
    figure.update_annotations(font={"size": 14})
    titled(figure, "Where is the probe right?", "accuracy on pairs · whiskers: 95 % bootstrap over scenes")
    legend = {"orientation": "h", "x": 0, "y": 1.0, "yref": "container", "yanchor": "top", "xanchor": "left"}
    return figure.update_layout(height=190 + 270 * rows, margin={"t": 150}, legend=legend | {"y": 0.87})


def reliability_figure(tables: pd.DataFrame | Mapping[str, pd.DataFrame]) -> go.Figure:
    """Share of pairs on one object over the affinity that they were given; a calibrated probe lies on the diagonal.

    Below, how many pairs there are. The legend gives the expected calibration error.

    Parameters
    ----------
    tables : pandas.DataFrame, or mapping of name to pandas.DataFrame
        As `bindkit.reliability` gives them.

    Raises
    ------
    InvalidParameterError
        Without rows.
    """
    named = {"probe": tables} if isinstance(tables, pd.DataFrame) else dict(tables)
    if not named or any(table.empty for table in named.values()):
        raise InvalidParameterError("nothing to draw: give what reliability() returns")
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.76, 0.24], vertical_spacing=0.05)
    line = {"color": FAINT, "dash": "dash", "width": 1.5}
    figure.add_trace(go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line=line, name="calibrated", hoverinfo="skip"), 1, 1)
    for number, (label, table) in enumerate(named.items()):
        colour = colour_of(number)
        figure.add_trace(
            go.Scatter(
                x=table["mean_affinity"],
                y=table["share_same"],
                name=f"{label}, error {table.attrs['calibration_error']:.3f}",
                mode="lines+markers",
                line={"color": colour, "width": 2.5},
                marker={"size": 8},
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": table["share_same_high"] - table["share_same"],
                    "arrayminus": table["share_same"] - table["share_same_low"],
                    "thickness": 1.5,
                    "width": 4,
                    "color": colour,
                },
                hovertemplate="affinity %{x:.3f}: %{y:.3f} on one object",
            ),
            1,
            1,
        )
        share = table["n_pairs"] / table["n_pairs"].sum()
        bars = {"color": translucent(colour, 0.45)}
        middles = (table["low"] + table["high"]) / 2
        figure.add_trace(
            go.Bar(x=middles, y=share, marker=bars, showlegend=False, hovertemplate="%{y:.1%} of pairs<extra></extra>"),
            2,
            1,
        )
    figure.update_yaxes(title_text="share on one object", tickformat=".1f", range=[-0.02, 1.02], row=1, col=1)
    figure.update_yaxes(title_text="pairs", tickformat=".0%", row=2, col=1)
    figure.update_xaxes(title_text="affinity", range=[-0.02, 1.02], tickformat=".1f", row=2, col=1)
    titled(figure, "Is affinity a probability?", "pairs by the affinity they were given · 95 % bootstrap over scenes")
    return figure.update_layout(height=560, hovermode="closest", bargap=0.1)
