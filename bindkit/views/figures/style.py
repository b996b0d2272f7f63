"""The look of every figure: one template, colours that colour-blind readers can tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe & Ito's colours for the colour-blind (Color Universal Design, 2008), without the yellow that white swallows."""

INK, FAINT, GRID = "#1f2328", "#6e7781", "#e6e8eb"
_FONT = "Inter, Helvetica Neue, Helvetica, Arial, DejaVu Sans, sans-serif"

_SUBTITLE_LETTER, _SUBTITLE_MARGINS = 7.6, 32
"""Pixels of a letter of a subtitle in the widest font of `_FONT`, DejaVu Sans, and left and right of the line."""

_AXIS = {
    "showgrid": True,
    "gridcolor": GRID,
    "zeroline": False,
    "showline": True,
    "linecolor": FAINT,
    "ticks": "outside",
    "tickcolor": FAINT,
    "ticklen": 4,
    "title": {"font": {"size": 15}, "standoff": 10},
    "tickfont": {"size": 13},
    "automargin": True,
}

TEMPLATE = go.layout.Template(
    layout={
        "colorway": PALETTE,
        "font": {"family": _FONT, "size": 14, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "title": {"x": 0, "xref": "container", "xanchor": "left", "pad": {"l": 16}, "font": {"size": 19}},
        "margin": {"l": 70, "r": 30, "t": 92, "b": 60},
        "width": 860,
        "height": 460,
        "hovermode": "x unified",
        "hoverlabel": {"bgcolor": "white", "font": {"size": 13}},
        "legend": {"font": {"size": 13}, "x": 1.01, "y": 1, "xanchor": "left", "yanchor": "top"},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)


def titled(figure: go.Figure, title: str, subtitle: str = "") -> go.Figure:
    """Give a figure the template, a title at the left and a smaller line below it; returns the figure."""
    figure.update_layout(template=TEMPLATE, title={"text": title, "y": 0.96, "yanchor": "top"})
    if subtitle:
        figure.update_layout(title_subtitle={"text": subtitle, "font": {"size": 13.5, "color": FAINT}})
    return figure


def subtitle_lines(parts: Sequence[str], width: float) -> list[str]:
    """Parts of a subtitle joined by dots, broken between parts where a line would be wider than a figure (pixels).

    >>> subtitle_lines(["quadratic probe", "strict protocol", "80 test scenes"], 300)
    ['quadratic probe · strict protocol', '80 test scenes']
    """
    lines: list[str] = []
    for part in parts:
        longer = f"{lines[-1]} · {part}" if lines else ""
        if lines and len(longer) * _SUBTITLE_LETTER <= width - _SUBTITLE_MARGINS:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines


def colour_of(position: int) -> str:
    """Colour of the `position`-th line; they repeat after seven."""
    return PALETTE[position % len(PALETTE)]


def translucent(colour: str, opacity: float) -> str:
    """Write ``#rrggbb`` with an opacity of 0 to 1.

    >>> translucent("#0072B2", 0.2)
    'rgba(0,114,178,0.2)'
    """
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def whiskers(table: pd.DataFrame, value: str, colour: str) -> dict[str, Any] | None:
    """Error bars from a column's ``_low`` to its ``_high``; None where the table has no such columns.

    >>> bars = whiskers(pd.DataFrame({"auroc": [0.75], "auroc_low": [0.5], "auroc_high": [0.875]}), "auroc", INK)
    >>> list(bars["arrayminus"]), list(bars["array"])
    ([0.25], [0.125])
    """
    low, high = f"{value}_low", f"{value}_high"
    if not {low, high} <= set(table):
        return None
    ends = {"array": table[high] - table[value], "arrayminus": table[value] - table[low]}
    return {"type": "data", "symmetric": False, **ends, "thickness": 1.5, "width": 3, "color": colour}
