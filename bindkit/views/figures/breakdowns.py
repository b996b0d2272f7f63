"""Where probes are right, and whether their affinities are probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bindkit.arguments import CONTROL_PREFIX, control_title
from bindkit.errors import InvalidParameterError
from bindkit.probes.judging import scenes_of
from bindkit.views.figures.style import FAINT, colour_of, subtitle_lines, titled, translucent, whiskers
from bindkit.views.figures.variations import write_on

_PANELS = {
    "distance": ("distance", "between the two patches, in patches"),
    "object_size": ("object size", "of the smaller object, in patches that show it"),
    "negatives": ("kind of pair", "share of its pairs judged right"),
    "window": ("windows", "of the model that the two patches lie in"),
}
"""Panel -> its name, and what it means."""

_WRAPPED = {
    "different objects, same class": "two objects,<br>same class",
    "different objects, other class": "two objects,<br>other class",
    "same object": "same<br>object",
    "class unknown": "two objects,<br>class unknown",
}
_DODGE = 0.5
"""Share of a group's width over which its points are spread, so that whiskers do not cover each other."""
_PANEL, _GAP, _BELOW, _ABOVE = 236, 92, 62, 110
"""Heights: of a panel, between two, below the last, and above the first without the legend."""
_WIDTH, _LEGEND_LINE, _SUBTITLE_LINE = 900, 24, 19
_GREYS = ("#3d444d", "#8c959f", "#59636e")


def breakdown_figure(tables: pd.DataFrame | Mapping[str, pd.DataFrame]) -> go.Figure:
    """One panel for each way of breaking pairs down: the share of pairs judged right, a point for each group.

    Whiskers are 95 % intervals. The faint dash behind each point is what the more frequent answer gives on the same
    pairs; kinds of pair have none, as all pairs of a kind have one answer. Lines join bins for the eye.

    Parameters
    ----------
    tables : pandas.DataFrame, or mapping of name to pandas.DataFrame
        As `bindkit.breakdown` gives them; several are drawn side by side in one colour each, controls
        (``control:...``) in greys.

    Raises
    ------
    InvalidParameterError
        Without rows.

    Examples
    --------
    ::

        breakdown_figure({fit.probe.fitted_on["backbone"]: bk.breakdown(fit.probe, cache) for fit, cache in fits})
    """
    named = _named(tables, "by", "breakdown")
    rows = pd.concat(list(named.values()))
    panels = [name for name in _PANELS if (rows["by"] == name).any()]
    if not panels:
        raise InvalidParameterError("nothing to draw: give what breakdown() returns")
    n_rows, n_cols = (len(panels) + 1) // 2, min(2, len(panels))
    inside = _PANEL * n_rows + _GAP * (n_rows - 1)
    figure = make_subplots(rows=n_rows, cols=n_cols, horizontal_spacing=0.06, vertical_spacing=_GAP / inside)
    colours = _colours(named)
    for position, panel in enumerate(panels):
        where = {"row": position // n_cols + 1, "col": position % n_cols + 1}
        groups = _groups(rows[rows["by"] == panel])
        for number, (label, table) in enumerate(named.items()):
            part = table[table["by"] == panel]
            shift = _DODGE * ((number + 0.5) / len(named) - 0.5)
            at = np.array([groups.index(group) for group in part["group"]]) + shift
            if panel != "negatives":
                _add_majority(figure, part, at, _DODGE / len(named), where)
            _add_points(figure, part, at, control_title(label), colours[label], panel in _BINNED, where)
        ticks = [_WRAPPED.get(group, group.replace(" to ", "–")) for group in groups]
        spare = {"tickvals": list(range(len(groups))), "ticktext": ticks, "range": [-0.6, len(groups) - 0.4]}
        figure.update_xaxes(**spare, showgrid=False, ticks="", tickangle=0, **where)
        axis = figure.get_subplot(**where)
        name, meaning = _PANELS[panel]
        words = f"<b>{name}</b>  <span style='color:{FAINT};font-size:12px'>{meaning}</span>"
        write_on(figure, words, axis.xaxis.domain[0], axis.yaxis.domain[1], xanchor="left", yanchor="bottom", yshift=6)
        figure.update_yaxes(showticklabels=where["col"] == 1, **where)
    for position in range(len(panels), n_rows * n_cols):
        for update in (figure.update_xaxes, figure.update_yaxes):
            update(visible=False, row=n_rows, col=position % n_cols + 1)
    seen = [value for table in named.values() for value in table[["accuracy", "accuracy_low"]].to_numpy().ravel()]
    lowest = min(0.5, float(np.nanmin(seen)), float(rows["majority_accuracy"].min()))
    figure.update_yaxes(tickformat=".1f", dtick=0.1 if lowest > 0.4 else 0.2, range=[max(-0.02, lowest - 0.06), 1.04])
    figure.update_yaxes(title_text="share judged right", title_font_size=14, col=1)
    # Lines first, so that no line of one probe is drawn over the points of another.
    figure.data = sorted(figure.data, key=lambda trace: {"lines": 1, "markers": 2}[trace.mode] - (trace.name == _DASH))
    lines = subtitle_lines([*_measured(named), "whiskers: 95 % intervals over scenes"], _WIDTH)
    titled(figure, "Where is the probe right?", "<br>".join(lines))
    _add_dash_to_legend(figure)
    # Plotly does not make room for a legend above panels: about 7 units a letter, 50 for each mark.
    length = sum(50 + 7 * len(trace.name) for trace in figure.data if trace.showlegend)
    more = _SUBTITLE_LINE * (len(lines) - 1)
    top = _ABOVE + more + _LEGEND_LINE * -(-length // (_WIDTH - 80))
    height = top + inside + _BELOW
    legend = {"orientation": "h", "x": 0, "xref": "paper", "y": 1 - (74 + more) / height, "yref": "container"}
    return figure.update_layout(
        height=height,
        title_y=1 - 18 / height,
        width=_WIDTH,
        margin={"t": top, "b": _BELOW},
        hovermode="closest",
        legend=legend | {"xanchor": "left", "yanchor": "top", "traceorder": "normal", "tracegroupgap": 0},
    )


_BINNED = ("distance", "object_size")
_DASH = "more frequent answer"


def _named(tables: pd.DataFrame | Mapping[str, pd.DataFrame], column: str, maker: str) -> dict[str, pd.DataFrame]:
    """Tables by label, or a named error where one is not of the kind."""
    named = {"probe": tables} if isinstance(tables, pd.DataFrame) else dict(tables)
    if not named or any(table.empty or column not in table for table in named.values()):
        raise InvalidParameterError(f"nothing to draw: give what {maker}() returns")
    return named


def _measured(named: Mapping[str, pd.DataFrame]) -> list[str]:
    """What was judged on what, as far as all tables agree: parts of a subtitle."""
    first, *others = (table.attrs for table in named.values())
    known = {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}
    parts = [control_title(known["backbone"])] if "backbone" in known else []
    parts += [f"layer {known['layer']}"] if "layer" in known else []
    parts += [f"{known['probe']} probe"] if "probe" in known else []
    parts += [str(known["task"])] if known.get("task", "pairwise") != "pairwise" else []
    parts += [f"{known['protocol']} protocol"] if "protocol" in known else []
    if "n_scenes" in known:
        parts.append(scenes_of(known.get("split", "judged"), known["n_scenes"]))
    return parts or ["pairs of patches"]


def _colours(named: Mapping[str, Any]) -> dict[str, str]:
    """Greys for controls, the palette in order for the others."""
    models = [label for label in named if not label.startswith(CONTROL_PREFIX)]
    controls = [label for label in named if label.startswith(CONTROL_PREFIX)]
    colours = {label: colour_of(number) for number, label in enumerate(models)}
    return colours | {label: _GREYS[number % len(_GREYS)] for number, label in enumerate(controls)}


def _groups(rows: pd.DataFrame) -> list[str]:
    """Groups of one panel in order: bins by their edge, kinds as the tables have them."""
    if rows["low"].notna().all():
        rows = rows.sort_values("low", kind="stable")
    return list(dict.fromkeys(rows["group"]))


def _add_points(
    figure: go.Figure, part: pd.DataFrame, at: np.ndarray, label: str, colour: str, joined: bool, where: dict[str, int]
) -> None:
    first = not any(trace.name == label and trace.mode == "markers" for trace in figure.data)
    if joined and len(part) > 1:
        line = {"color": translucent(colour, 0.45), "width": 2}
        look = {"mode": "lines", "line": line, "name": label, "legendgroup": label, "showlegend": False}
        figure.add_trace(go.Scatter(x=at, y=part["accuracy"], hoverinfo="skip", **look), **where)
    trace = go.Scatter(
        x=at,
        y=part["accuracy"],
        name=label,
        legendgroup=label,
        showlegend=first,
        mode="markers",
        marker={"size": 9, "color": colour, "line": {"color": "white", "width": 1}},
        error_y=whiskers(part, "accuracy", colour),
        customdata=part[["group", "n_pairs", "n_scenes", "auroc"]],
        hovertemplate="%{customdata[0]}: %{y:.3f}<br>%{customdata[1]:,} pairs of %{customdata[2]:,} scenes, "
        "AUROC %{customdata[3]:.3f}",
    )
    figure.add_trace(trace, **where)


def _add_majority(figure: go.Figure, part: pd.DataFrame, at: np.ndarray, width: float, where: dict[str, int]) -> None:
    """A dash behind each point."""
    ends = np.stack([at - width * 0.5, at + width * 0.5, np.full(len(at), np.nan)], axis=1).ravel()
    levels = np.stack([part["majority_accuracy"], part["majority_accuracy"], np.full(len(at), np.nan)], axis=1).ravel()
    look = {"mode": "lines", "line": {"color": "#a3abb4", "width": 2.5}, "name": _DASH, "legendgroup": _DASH}
    figure.add_trace(go.Scatter(x=ends, y=levels, showlegend=False, hoverinfo="skip", **look), **where)


def _add_dash_to_legend(figure: go.Figure) -> None:
    """Name the dashes behind the probes, once."""
    dashes = [trace for trace in figure.data if trace.name == _DASH]
    for trace in dashes[:1]:
        trace.update(showlegend=True, legendrank=2000)


def reliability_figure(tables: pd.DataFrame | Mapping[str, pd.DataFrame]) -> go.Figure:
    """Share of pairs on one object over the affinity that they were given; a calibrated probe lies on the diagonal.

    Below, which share of pairs got such an affinity. The legend gives the expected calibration error (ECE).

    Parameters
    ----------
    tables : pandas.DataFrame, or mapping of name to pandas.DataFrame
        As `bindkit.reliability` gives them.

    Raises
    ------
    InvalidParameterError
        If there is nothing to draw.

    Examples
    --------
    ::

        scaled = bk.calibrated(probe, cache)
        reliability_figure({"as fitted": bk.reliability(probe, cache), "scaled": bk.reliability(scaled, cache)})
    """
    named = _named(tables, "mean_affinity", "reliability")
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.8, 0.2], vertical_spacing=0.04)
    line = {"color": FAINT, "dash": "dash", "width": 1.5}
    look = {"mode": "lines", "line": line, "name": "a probability", "legendrank": 2000, "hoverinfo": "skip"}
    figure.add_trace(go.Scatter(x=[0, 1], y=[0, 1], **look), 1, 1)
    for label, colour in _colours(named).items():
        table = named[label]
        curve = go.Scatter(
            x=table["mean_affinity"],
            y=table["share_same"],
            name=f"{control_title(label)}<br><span style='color:{FAINT};font-size:12px'>"
            f"ECE {table.attrs['calibration_error']:.3f}, {table.attrs['loss']:.3f} nats a pair</span>",
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"size": 8, "line": {"color": "white", "width": 1}},
            error_y=whiskers(table, "share_same", colour),
            customdata=table[["n_pairs"]],
            hovertemplate="affinity %{x:.3f}: %{y:.3f} on one object, of %{customdata[0]:,} pairs<extra></extra>",
        )
        figure.add_trace(curve, 1, 1)
        bars = go.Bar(
            x=(table["low"] + table["high"]) / 2,
            y=table["n_pairs"] / table["n_pairs"].sum(),
            marker={"color": translucent(colour, 0.5), "line": {"width": 0}},
            showlegend=False,
            hovertemplate="%{y:.1%} of pairs<extra></extra>",
        )
        figure.add_trace(bars, 2, 1)
    figure.update_yaxes(title_text="share on one object", tickformat=".1f", dtick=0.2, range=[-0.02, 1.02], row=1)
    figure.update_yaxes(title_text="share of<br>all pairs", tickformat=".0%", nticks=4, row=2)
    figure.update_yaxes(title_font_size=14)
    figure.update_xaxes(range=[-0.02, 1.02], tickformat=".1f", dtick=0.2)
    figure.update_xaxes(ticks="", row=1)
    figure.update_xaxes(title_text="affinity that a pair was given", row=2)
    lines = subtitle_lines([*_measured(named), "whiskers: 95 % intervals over scenes"], 780)
    titled(figure, "Is affinity a probability?", "<br>".join(lines))
    # As wide as high, so that the diagonal is one; the legend beside it takes what it needs.
    more = _SUBTITLE_LINE * (len(lines) - 1)
    height = 650 + more
    size = {"width": 780, "height": height, "margin": {"l": 76, "r": 260, "t": 84 + more, "b": 60}}
    return figure.update_layout(hovermode="closest", bargap=0.08, title_y=1 - 18 / height, **size)
