"""Where probes are right, and whether their affinities are probabilities."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from bindkit.arguments import CONTROL_PREFIX, control_title
from bindkit.errors import InvalidParameterError
from bindkit.probes.batches import scenes_of
from bindkit.views.figures.panels import panels, small, subtitle_lines, titled
from bindkit.views.figures.style import FAINT, GREYS, SILENT, Look, colour_of, curve, translucent, whiskers

_PANELS = {
    "distance": ("distance", "between the two patches, in patches"),
    "object_size": ("object size", "of the smaller object, in patches that show it"),
    "negatives": ("kind of pair", "share of its pairs right"),
    "window": ("windows", "of the model that the two patches lie in"),
}
"""Panel -> its name, and what it means."""
_BINNED = ("distance", "object_size")

_WRAPPED = {
    "different objects, same class": "two objects,<br>same class",
    "different objects, other class": "two objects,<br>other class",
    "same object": "same<br>object",
    "class unknown": "two objects,<br>class unknown",
}
_DODGE = 0.5
"""Share of a group's width over which its points are spread, so that whiskers do not cover each other."""
_WIDTH, _SUBTITLE_LINE = 900, 19
_DASH = "majority class"


def breakdown_figure(tables: pd.DataFrame | Mapping[str, pd.DataFrame]) -> go.Figure:
    """One panel for each way of breaking pairs down: the share of pairs judged right, a point for each group.

    ::

        breakdown_figure({fit.probe.fitted_on["backbone"]: bk.breakdown(fit.probe, cache) for fit, cache in fits})

    Whiskers are 95 % intervals. The faint dash behind each point is what the majority class gives on the same
    pairs; kinds of pair have none, as all pairs of a kind have one answer. Lines join bins for the eye. Several tables,
    as `bindkit.breakdown` gives them, are drawn side by side in one colour each, controls (``control:...``) in greys.
    Raises InvalidParameterError without rows.
    """
    named = _named(tables, "by", "breakdown")
    rows = pd.concat(list(named.values()))
    ways = [way for way in _PANELS if (rows["by"] == way).any()]
    if not ways:
        raise InvalidParameterError("nothing to draw: give what breakdown() returns")
    shown = panels(len(ways), min(2, len(ways)), gap=(48, 92), size=(376, 236))
    figure, colours = shown.figure, _colours(named)
    for number, way in enumerate(ways):
        where, own = shown.place(number), rows[rows["by"] == way]
        # Bins by their edge, kinds of pair as the tables have them.
        own = own.sort_values("low", kind="stable") if own["low"].notna().all() else own
        groups = list(dict.fromkeys(own["group"]))
        for place, (label, table) in enumerate(named.items()):
            part = table[table["by"] == way]
            at = np.array([groups.index(group) for group in part["group"]])
            at = at + _DODGE * ((place + 0.5) / len(named) - 0.5)
            if way != "negatives":  # what the majority class reaches, a dash behind each point
                level, gap, half = part["majority_accuracy"], np.full(len(at), np.nan), _DODGE / len(named) * 0.5
                ends, levels = np.stack([at - half, at + half, gap], axis=1), np.stack([level, level, gap], axis=1)
                look = Look("#a3abb4", None, 2.5)
                dashes = curve(ends.ravel(), levels.ravel(), look, name=_DASH, legendgroup=_DASH, **SILENT)
                figure.add_trace(dashes, **where)
            name, colour = control_title(label), colours[label]
            if way in _BINNED and len(part) > 1:
                look = Look(translucent(colour, 0.45), None, 2)
                figure.add_trace(curve(at, part["accuracy"], look, name=name, legendgroup=name, **SILENT), **where)
            points = go.Scatter(
                x=at,
                y=part["accuracy"],
                name=name,
                legendgroup=name,
                showlegend=number == 0,
                mode="markers",
                marker={"size": 9, "color": colour, "line": {"color": "white", "width": 1}},
                error_y=whiskers(part, "accuracy", colour),
                customdata=part[["group", "n_pairs", "n_scenes", "auroc"]],
                hovertemplate="%{customdata[0]}: %{y:.3f}<br>%{customdata[1]:,} pairs of %{customdata[2]:,} scenes, "
                "AUROC %{customdata[3]:.3f}",
            )
            figure.add_trace(points, **where)
        ticks = [_WRAPPED.get(group, group.replace(" to ", "–")) for group in groups]
        spare = {"tickvals": list(range(len(groups))), "ticktext": ticks, "range": [-0.6, len(groups) - 0.4]}
        figure.update_xaxes(**spare, showgrid=False, ticks="", tickangle=0, **where)
        shown.add_name(number, *_PANELS[way], above=6)
        figure.update_yaxes(showticklabels=where["col"] == 1, **where)
    shown.hide_rest()
    seen = [value for table in named.values() for value in table[["accuracy", "accuracy_low"]].to_numpy().ravel()]
    lowest = min(0.5, float(np.nanmin(seen)), float(rows["majority_accuracy"].min()))
    figure.update_yaxes(tickformat=".1f", dtick=0.1 if lowest > 0.4 else 0.2, range=[max(-0.02, lowest - 0.06), 1.04])
    figure.update_yaxes(title_text="share of pairs right", title_font_size=14, col=1)
    # Dashes first, then lines, so that no line of one probe is drawn over the points of another.
    figure.data = sorted(figure.data, key=lambda trace: (trace.mode == "markers", trace.name != _DASH))
    lines = subtitle_lines([*_measured(named), "whiskers: 95 % intervals over scenes"], _WIDTH)
    titled(figure, "Where is the probe right?", "<br>".join(lines))
    if figure.data[0].name == _DASH:  # named once, behind the probes
        figure.data[0].update(showlegend=True, legendrank=2000)
    # Plotly does not make room for a legend above panels: about 7 units a letter, 50 for each mark, 24 a line.
    length = sum(50 + 7 * len(trace.name) for trace in figure.data if trace.showlegend)
    more = _SUBTITLE_LINE * (len(lines) - 1)
    top = 110 + more + 24 * -(-length // (_WIDTH - 80))
    height = top + shown.inside[1] + 62
    legend = {"orientation": "h", "x": 0, "xref": "paper", "y": 1 - (74 + more) / height, "yref": "container"}
    return figure.update_layout(
        height=height,
        title_y=1 - 18 / height,
        width=_WIDTH,
        margin={"t": top, "b": 62},
        hovermode="closest",
        legend=legend | {"xanchor": "left", "yanchor": "top", "traceorder": "normal", "tracegroupgap": 0},
    )


def reliability_figure(tables: pd.DataFrame | Mapping[str, pd.DataFrame]) -> go.Figure:
    """Share of pairs on one object over the affinity that they were given; a calibrated probe lies on the diagonal.

    ::

        scaled = bk.calibrated(probe, cache)
        reliability_figure({"as fitted": bk.reliability(probe, cache), "scaled": bk.reliability(scaled, cache)})

    Below, which share of pairs got such an affinity. The legend gives the expected calibration error (ECE). Raises
    InvalidParameterError if there is nothing to draw.
    """
    named = _named(tables, "mean_affinity", "reliability")
    figure = panels(2, 1, gap=(0, 0.04), shared_xaxes=True, row_heights=[0.8, 0.2]).figure
    diagonal = {"name": "a probability", "legendrank": 2000, "hoverinfo": "skip"}
    figure.add_trace(curve([0, 1], [0, 1], Look(FAINT, "dash", 1.5), **diagonal), 1, 1)
    for label, colour in _colours(named).items():
        table = named[label]
        error = f"ECE {table.attrs['calibration_error']:.3f}, {table.attrs['loss']:.3f} nats a pair"
        shares = curve(
            table["mean_affinity"],
            table["share_same"],
            Look(colour, None, 2),
            size=8,
            name=f"{control_title(label)}<br>{small(error)}",
            error_y=whiskers(table, "share_same", colour),
            customdata=table[["n_pairs"]],
            hovertemplate="affinity %{x:.3f}: %{y:.3f} on one object, of %{customdata[0]:,} pairs<extra></extra>",
        )
        figure.add_trace(shares, 1, 1)
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


def _named(tables: pd.DataFrame | Mapping[str, pd.DataFrame], column: str, maker: str) -> dict[str, pd.DataFrame]:
    """Tables by label, or a named error where one is not of the kind."""
    named = {"probe": tables} if isinstance(tables, pd.DataFrame) else dict(tables)
    if not named or any(table.empty or column not in table for table in named.values()):
        raise InvalidParameterError(f"nothing to draw: give what {maker}() returns")
    return named


def _colours(named: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """The palette in order, greys for controls; controls last."""
    controls = [label for label in named if label.startswith(CONTROL_PREFIX)]
    models = [label for label in named if label not in controls]
    colours = {label: colour_of(number) for number, label in enumerate(models)}
    return colours | {label: GREYS[number % len(GREYS)] for number, label in enumerate(controls)}


def _measured(named: Mapping[str, pd.DataFrame]) -> list[str]:
    """What was judged on what, as far as all tables agree: parts of a subtitle."""
    first, *others = (table.attrs for table in named.values())
    known = {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}
    parts = [control_title(known["backbone"])] if "backbone" in known else []
    parts += [f"layer {known['layer']}"] if "layer" in known else []
    parts += [f"{known['probe']} probe"] if "probe" in known else []
    parts += [str(known["task"])] if known.get("task", "pairwise") != "pairwise" else []
    parts += [f"{known['protocol']} protocol"] if "protocol" in known else []
    parts += [scenes_of(known.get("split", "judged"), known["n_scenes"])] if "n_scenes" in known else []
    return parts or ["pairs of patches"]
