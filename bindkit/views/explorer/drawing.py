"""Maps as a Plotly figure: what each trace and the layout should say, as plain dictionaries.

The live figure and the saved picture are made of the same dictionaries; the live one is sent only what differs from
what it already has (`differences`), so that a click sends a map's numbers and lines and never the picture.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from bindkit.views.explorer.engine import Map
from bindkit.views.explorer.outlines import NOTHING, Line, joined, patch_outline, square, top_patches
from bindkit.views.explorer.sources import ShownImage
from bindkit.views.explorer.state import State
from bindkit.views.figures.style import INK

SCALES = {"viridis": "Viridis", "magma": "Magma", "cividis": "Cividis"}
"""Colour maps that colour-blind readers can order, by Plotly's names."""

CONTRAST = {"viridis": "#ff4f79", "magma": "#2fe6f2", "cividis": "#ff4f79"}
"""Of the line around patches above the threshold: stands out from every colour of the scale."""

TRUTH, TWINS, CASING = "#ffffff", "#ffb545", "rgba(0,0,0,0.6)"

TITLE, GAP, LEAST = 46, 18, 270
"""Pixels: the two lines above a map, the space between maps, and the least width of a map beside another."""
TALLEST = 540
"""Pixels: no map is higher."""

_DIGITS = 5
"""Decimals of what a figure is sent: numbers travel as text, and more of them only take longer."""

_HOVER = {"affinity": "affinity <b>%{z:.2f}</b>", "cosine": "cosine <b>%{z:.2f}</b>", "attention": "<b>%{z:.2%}</b>"}


@dataclass(frozen=True, eq=False)
class Panel:
    """One map of the figure.

    Attributes
    ----------
    name : str
        Which panel of `bindkit.views.explorer.state.PANELS`.
    measure : str
        Of `bindkit.views.explorer.state.MEASURES`.
    image : ShownImage
        What lies under the map.
    found : Map or None
        None where there is something wrong.
    title, note : str
        The lines above it; the note is the reason where nothing is shown.
    own : int
        Position of the chosen patch's object in this image, -1 for none.
    """

    name: str
    measure: str
    image: ShownImage
    found: Map | None
    title: str
    note: str
    own: int = -1


@dataclass(frozen=True)
class Box:
    """Where a map lies in the figure, in pixels from the top left."""

    left: float
    top: float
    width: float
    height: float


def arrange(width: float, ratios: Sequence[float]) -> tuple[list[Box], float]:
    """Places of maps of some height-to-width ratios in a figure, and the figure's height, in pixels.

    >>> boxes, height = arrange(600, [0.5, 0.5])
    >>> [(box.left, box.width, box.height) for box in boxes], height
    ([(0.0, 291.0, 145.5), (309.0, 291.0, 145.5)], 191.5)
    """
    columns = max(1, min(len(ratios), 3, int((width + GAP) // (LEAST + GAP))))
    if len(ratios) == 4:
        columns = min(columns, 2)
    cell = (width - GAP * (columns - 1)) / columns
    boxes, top = [], 0.0
    for first in range(0, len(ratios), columns):
        row = ratios[first : first + columns]
        sizes = [(min(cell, TALLEST / ratio), min(cell * ratio, TALLEST)) for ratio in row]
        for column, (across, down) in enumerate(sizes):
            boxes.append(Box(column * (cell + GAP), top + TITLE, across, down))
        top += TITLE + max(down for _, down in sizes) + GAP
    return boxes, top - GAP


def traces_of(panel: Panel, state: State, axis: int) -> dict[str, dict[str, Any]]:
    """Traces of one panel by role, on the `axis`-th pair of axes (from 1)."""
    on = {"xaxis": f"x{axis if axis > 1 else ''}", "yaxis": f"y{axis if axis > 1 else ''}", "visible": True}
    found, image = panel.found, panel.image
    roles = {"heat": {"type": "heatmap", "showscale": False, **on}}
    if found is None:
        # Else it would go on showing what was there before.
        roles["heat"]["visible"] = False
        return roles | {role: _line(NOTHING, "#000", 1, on, "") for role in _LINES}
    grid, values = found.grid, found.values
    colour = CONTRAST[state.colours]
    names = image.names(grid)
    words = f"{_HOVER[panel.measure]}<br>" if values is not None else ""
    roles["heat"] |= {
        "z": np.zeros((grid.rows, grid.cols)) if values is None else values.astype(float).round(_DIGITS),
        "x0": 0,
        "dx": 1,
        "y0": 0,
        "dy": 1,
        "zmin": found.low,
        "zmax": found.high,
        "colorscale": SCALES[state.colours],
        "opacity": 0.0 if values is None else state.opacity,
        "text": names,
        "hovertemplate": f"{words}row %{{y}} · column %{{x}}{'' if names is None else '<br>%{text}'}<extra></extra>",
        "name": panel.measure,
        "meta": panel.name,
    }
    judged = panel.measure in ("affinity", "cosine") and values is not None
    guess = patch_outline(values >= state.threshold) if judged and values is not None else NOTHING
    truth = image.outline(panel.own, grid) if state.outlines and panel.own >= 0 else NOTHING
    others = image.objects[panel.own]["twins"] if state.outlines and panel.own >= 0 else []
    twins = joined([image.outline(position, grid) for position in others])
    mark = square(*found.patch) if found.patch is not None else NOTHING
    top = top_patches(values, state.top, found.patch, state.apart) if values is not None and state.top else []
    roles["truth casing"] = _line(truth, CASING, 5, on, "")
    roles["truth"] = _line(truth, TRUTH, 2.5, on, "object")
    roles["twins"] = _line(twins, TWINS, 2.5, on, "twins") | {"line": {"color": TWINS, "width": 2.5, "dash": "6px,5px"}}
    roles["guess"] = _line(guess, colour, 2.5, on, "above the threshold")
    roles["top"] = {
        "type": "scatter",
        "mode": "markers+text",
        "x": np.array([col for _, col in top], np.float32),
        "y": np.array([row for row, _ in top], np.float32),
        "text": [str(rank) for rank in range(1, len(top) + 1)],
        "textfont": {"size": 10, "color": "#fff"},
        "marker": {"size": 17, "color": "rgba(15,17,20,0.85)", "line": {"color": "#fff", "width": 1.5}},
        "hoverinfo": "skip",
        "showlegend": False,
        "name": "highest",
        **on,
        "visible": bool(top),
    }
    roles["mark casing"] = _line(mark, "#000", 6, on, "")
    roles["mark"] = _line(mark, "#fff", 3, on, "chosen patch")
    return roles


_LINES = ("truth casing", "truth", "twins", "guess", "top", "mark casing", "mark")


def _line(
    points: Line, colour: str, width: float, on: Mapping[str, Any], name: str, dash: str = "solid"
) -> dict[str, Any]:
    look = {"line": {"color": colour, "width": width, "dash": dash}, "hoverinfo": "skip", "showlegend": False}
    return {
        "type": "scatter",
        "mode": "lines",
        "x": points[0],
        "y": points[1],
        "name": name,
        **look,
        **on,
        "visible": bool(len(points[0])),
    }


def layout_of(panels: Sequence[Panel], state: State, width: float, photo: Any) -> dict[str, Any]:
    """Layout of the figure: axes, pictures under the maps, and titles; `photo` gives an image's data URL."""
    ratios = [_ratio(panel.image) for panel in panels]
    boxes, height = arrange(width, ratios)
    layout: dict[str, Any] = {
        "width": round(width),
        "height": round(height),
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0, "pad": 0},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hovermode": "closest",
        "dragmode": False,
        "showlegend": False,
        "font": {"color": INK, "size": 13},
        "hoverlabel": {"bgcolor": "rgba(20,23,25,0.94)", "bordercolor": "rgba(0,0,0,0)", "font": {"color": "#fff"}},
        "uirevision": "explorer",
    }
    images: list[dict[str, Any]] = []
    titles: list[dict[str, Any]] = []
    for number, (panel, box) in enumerate(zip(panels, boxes, strict=True), start=1):
        suffix = str(number) if number > 1 else ""
        rows, cols = (panel.found.grid.rows, panel.found.grid.cols) if panel.found is not None else (1, 1)
        across = [box.left / width, min(1.0, (box.left + box.width) / width)]
        down = [max(0.0, 1 - (box.top + box.height) / height), 1 - box.top / height]
        fixed = {"visible": False, "fixedrange": True}
        layout[f"xaxis{suffix}"] = {"domain": across, "range": [-0.5, cols - 0.5], "anchor": f"y{suffix}", **fixed}
        layout[f"yaxis{suffix}"] = {"domain": down, "range": [rows - 0.5, -0.5], "anchor": f"x{suffix}", **fixed}
        place = {"xref": f"x{suffix}", "yref": f"y{suffix}", "x": -0.5, "y": -0.5, "sizex": cols, "sizey": rows}
        place |= {"sizing": "stretch", "layer": "below", "xanchor": "left", "yanchor": "top"}
        if _readable(panel.image):
            images.append({"source": photo(panel.image), "opacity": 1.0, "name": "photo", **place})
        if panel.found is not None and panel.found.colours is not None:
            source = colours_url(panel.found.colours)
            # Plotly takes two pictures at the very same place for one.
            colours = {"source": source, "opacity": max(0.05, state.opacity), "name": "colours", **place}
            images.append(colours | {"sizex": cols * (1 + 1e-9)})
        at = {"xref": "paper", "yref": "paper", "x": across[0], "y": 1 - (box.top - TITLE + 3) / height}
        words = f"<b>{_fit(panel.title, box.width / 7.6)}</b><br>{_fit(panel.note, box.width / 6.2)}"
        look = {"showarrow": False, "xanchor": "left", "yanchor": "top", "align": "left", "font": {"size": 12.5}}
        titles.append({"text": words, **at, **look})
    return layout | {"images": images, "annotations": titles}


def _ratio(image: ShownImage) -> float:
    """Height over width, within what can be laid out."""
    if not _readable(image):
        return 0.75
    return image.size[0] / image.size[1]


def _readable(image: ShownImage) -> bool:
    return "subject" in vars(image)


def _fit(words: str, most: float) -> str:
    """Words cut to about so many letters, and safe inside a figure's text."""
    short = words if len(words) <= most else words[: max(1, int(most) - 1)].rstrip(" ·,") + "…"
    return short.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def colours_url(colours: np.ndarray) -> str:
    """Patches' colours as a picture, each patch a square of many pixels, so that enlarging does not blur them."""
    side = max(4, 640 // max(colours.shape[:2]))
    image = Image.fromarray(np.kron(colours, np.ones((side, side, 1), np.uint8)))
    out = io.BytesIO()
    image.save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def differences(now: Mapping[str, Any], sent: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of `now` that are not as they were sent.

    >>> differences({"a": 1, "z": np.zeros(2)}, {"a": 1, "z": np.ones(2)})
    {'z': array([0., 0.])}
    """
    return {key: value for key, value in now.items() if key not in sent or not _same(value, sent[key])}


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        numbers = one.dtype.kind == "f" == other.dtype.kind
        return one.shape == other.shape and bool(np.array_equal(one, other, equal_nan=numbers))
    return type(one) is type(other) and not isinstance(one, np.ndarray) and bool(one == other)
