"""Small multiples in a grid, and what is written around them: names, titles and margins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bindkit.views.figures.style import FAINT, INK, TEMPLATE

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
