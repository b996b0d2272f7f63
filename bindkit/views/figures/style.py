"""The look of every figure: one template, colours that colour-blind readers can tell apart, and how lines look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from bindkit.arguments import CONTROL_PREFIX, is_control, parse_control

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe & Ito's colours for the colour-blind (Color Universal Design, 2008), without the yellow that white swallows."""

INK, FAINT, GRID, GROUND = "#1f2328", "#5f6872", "#e6e8eb", "#f3f4f6"
GREYS = ("#3d444d", "#8c959f", "#59636e")
"""Of the controls, one for every geometry."""

_FONT = "Inter, Helvetica Neue, Helvetica, Arial, DejaVu Sans, sans-serif"

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
        "paper_bgcolor": GROUND,  # a card with white plots on it, on a light page as on a dark one
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

SILENT = {"showlegend": False, "hoverinfo": "skip"}
"""Of traces that only stand behind others."""


def colour_of(position: int) -> str:
    """Colour of the `position`-th line; they repeat after seven."""
    return PALETTE[position % len(PALETTE)]


def channels(colour: str) -> tuple[int, int, int]:
    """Red, green and blue of ``#rrggbb``, each 0 to 255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def translucent(colour: str, opacity: float) -> str:
    """Write ``#rrggbb`` with an opacity of 0 to 1."""
    red, green, blue = channels(colour)
    return f"rgba({red},{green},{blue},{opacity:g})"


def whiskers(table: pd.DataFrame, value: str, colour: str) -> dict[str, Any] | None:
    """Error bars from a column's ``_low`` to its ``_high``; None where the table has no such columns."""
    low, high = f"{value}_low", f"{value}_high"
    if not {low, high} <= set(table):
        return None
    ends = {"array": table[high] - table[value], "arrayminus": table[value] - table[low]}
    return {"type": "data", "symmetric": False, **ends, "thickness": 1.5, "width": 3, "color": colour}


@dataclass(frozen=True)
class Look:
    """Colour, dash and width (pixels) of one line, and whether it is a control's."""

    colour: str
    dash: str | None = "solid"
    width: float = 2.5
    is_control: bool = False

    @property
    def line(self) -> dict[str, Any]:
        """As Plotly takes it."""
        return {"color": self.colour, "width": self.width} | ({"dash": self.dash} if self.dash else {})

    @property
    def recedes(self) -> bool:
        """Whether it is thin and without whiskers."""
        return self.width < 2.5


def curve(x: Any, y: Any, look: Look, size: Any = 0, **how: Any) -> go.Scatter:
    """A line; with a size, also its points, each with a white outline."""
    points = {"marker": {"size": size, "line": {"color": "white", "width": 1}}} if size else {}
    return go.Scatter(x=x, y=y, mode="lines+markers" if size else "lines", line=look.line, **points, **how)


_CONTROL_DASHES = {"position": "2px,3px", "raw-pixels": "8px,3px,2px,3px", "position+raw-pixels": "10px,3px"}


def line_looks(rows: pd.DataFrame, line_of: str = "backbone") -> dict[str, Look]:
    """Look of every line of ``results.csv``, by name ("backbone" or "probe") in order of appearance.

    Controls are grey, told apart by their dashes. Beside trained backbones, untrained ones are thin and dashed, in the
    colour of their twin where it is drawn (``random-init:NAME`` beside ``NAME``), else in grey; among themselves they
    have colours of their own.
    """
    names = [str(name) for name in rows[line_of].unique()]
    if line_of != "backbone":
        return {name: Look(colour_of(position)) for position, name in enumerate(names)}
    objective = rows.groupby("backbone")["objective"].first() if "objective" in rows else pd.Series(dtype=object)
    controls = {
        name: parse_control(name)
        for name in names
        if is_control(objective.get(name)) and name.startswith(CONTROL_PREFIX)
    }
    models = [name for name in names if name not in controls]
    trained = [name for name in models if objective.get(name) != "random-init"]
    looks = {name: Look(colour_of(position)) for position, name in enumerate(trained or models)}
    for name in models:
        twin = looks.get(name.removeprefix("random-init:").partition(",seed=")[0], Look(FAINT))
        looks.setdefault(name, Look(twin.colour, "4px,3px", 1.6))
    geometries = list(dict.fromkeys(control.geometry for control in controls.values()))
    for name, control in controls.items():
        grey = GREYS[geometries.index(control.geometry) % len(GREYS)]
        looks[name] = Look(grey, _CONTROL_DASHES[control.kind], 1.6, is_control=True)
    return {name: looks[name] for name in names}
