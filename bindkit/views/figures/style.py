"""The look of every figure: template, colours that colour-blind readers can tell apart, lines, panels, titles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bindkit.arguments import CONTROL_PREFIX, is_control, parse_control

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe & Ito's colours for the colour-blind (Color Universal Design, 2008), without the yellow that white swallows."""

INK, FAINT, GRID = "#1f2328", "#6e7781", "#e6e8eb"
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


_SUBTITLE_LETTER, _SUBTITLE_MARGINS = 7.6, 32
"""Pixels of a letter of a subtitle in the widest font of `_FONT`, DejaVu Sans, and left and right of the line."""

LOWER_LEGEND = {"x": 1.01, "y": 0, "xanchor": "left", "yanchor": "bottom"}
"""Place of a second legend, below the template's."""


@dataclass(frozen=True)
class Panels:
    """A figure of `n` equal panels, counted from 0 along the rows; `inside` is width and height of them all."""

    figure: go.Figure
    n: int
    n_rows: int
    n_cols: int
    inside: tuple[float, float]

    def place(self, number: int) -> dict[str, int]:
        """Row and column of a panel, from 1, as Plotly's methods take them."""
        return {"row": number // self.n_cols + 1, "col": number % self.n_cols + 1}

    def corner(self, number: int) -> tuple[float, float]:
        """Left and upper end of a panel, as shares of the plot's width (from the left) and height (from below)."""
        axes = self.figure.get_subplot(**self.place(number))
        return axes.xaxis.domain[0], axes.yaxis.domain[1]

    def add_name(self, number: int, name: str, meaning: str, above: float) -> None:
        """Write a panel's name and, in small, what it means, so many units above it."""
        words, (left, top) = f"<b>{name}</b>  {small(meaning)}", self.corner(number)
        write_on(self.figure, words, left, top, xanchor="left", yanchor="bottom", yshift=above)

    def hide_rest(self) -> None:
        """Hide the axes of places that no panel takes."""
        for number in range(self.n, self.n_rows * self.n_cols):
            self.figure.update_xaxes(visible=False, **self.place(number))
            self.figure.update_yaxes(visible=False, **self.place(number))


def panels(
    n: int, n_cols: int, gap: tuple[float, float], size: tuple[float, float] | None = None, **subplots: Any
) -> Panels:
    """Lay panels out with a gap (across, down) in units of the figure, or without a size in shares of the plot."""
    n_rows = -(-n // n_cols)
    inside = (n_cols * size[0] + (n_cols - 1) * gap[0], n_rows * size[1] + (n_rows - 1) * gap[1]) if size else (1, 1)
    spacing = {"horizontal_spacing": gap[0] / inside[0], "vertical_spacing": gap[1] / inside[1]}
    return Panels(make_subplots(rows=n_rows, cols=n_cols, **spacing, **subplots), n, n_rows, n_cols, inside)


def framed(
    figure: go.Figure, title: str, subtitle: str, width: float, inside: float, margin: dict[str, float], **layout: Any
) -> go.Figure:
    """Set title, width and margins around a plot that is `inside` units high; returns the figure."""
    height = margin["t"] + inside + margin["b"]
    titled(figure, title, subtitle)
    return figure.update_layout(width=width, height=height, title_y=1 - 18 / height, margin=margin, **layout)


def write_on(figure: go.Figure, text: str, x: float, y: float, **how: Any) -> None:
    """Write beside the panels, at shares of the plot's width and height."""
    font = {"size": 13, "color": INK}
    figure.add_annotation(text=text, x=x, y=y, xref="paper", yref="paper", showarrow=False, font=font, **how)


def show_whole(figure: go.Figure, size: tuple[int, int], where: dict[str, int]) -> None:
    """Axes of a panel that end at an image's border (height, width), so that panels of any shape stand flush."""
    figure.update_xaxes(range=[-0.5, size[1] - 0.5], visible=False, constrain="domain", **where)
    figure.update_yaxes(range=[size[0] - 0.5, -0.5], visible=False, **where)


def titled(figure: go.Figure, title: str, subtitle: str = "") -> go.Figure:
    """Give a figure the template, a title at the left and a smaller line below it; returns the figure."""
    figure.update_layout(template=TEMPLATE, title={"text": title, "y": 0.96, "yanchor": "top"})
    if subtitle:
        figure.update_layout(title_subtitle={"text": subtitle, "font": {"size": 13.5, "color": FAINT}})
    return figure


def subtitle_lines(parts: Sequence[str], width: float) -> list[str]:
    """Parts joined by dots, broken between parts where a line would be wider than a figure (pixels)."""
    lines: list[str] = []
    for part in parts:
        longer = f"{lines[-1]} · {part}" if lines else ""
        if lines and len(longer) * _SUBTITLE_LETTER <= width - _SUBTITLE_MARGINS:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines


def small(words: str, size: int = 12) -> str:
    """Words in faint small print, within a title or label."""
    return f"<span style='color:{FAINT};font-size:{size}px'>{words}</span>"
