"""Maps as a Plotly figure: on the screen, which is sent only what changes, and as a picture to keep.

Both are made of the same plain dictionaries, one a trace and one for the layout. The live figure is sent what differs
from what it already has, so that a click sends a map's numbers and lines and never the picture.
"""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import traitlets
from PIL import Image, ImageEnhance
from plotly.colors import sample_colorscale
from plotly.serializers import custom_serializers

from bindkit.views.explorer.engine import Map
from bindkit.views.explorer.session import DIGITS, Panel, number
from bindkit.views.explorer.sources import NOTHING, Line, ShownImage, joined, patch_outline, square, top_patches
from bindkit.views.explorer.state import COLOURED, State
from bindkit.views.figures.style import INK, TEMPLATE
from bindkit.views.viewer.exporting import picture

CONTRAST = {"viridis": "#ff4f79", "magma": "#2fe6f2", "cividis": "#ff4f79"}
"""Plotly's colour maps that colour-blind readers can order, and of each a colour that stands out from all of its own:
that of the line around patches above the threshold."""

TRUTH, TWINS = "#ffffff", "#ffb545"
_CASING = "rgba(0,0,0,0.6)"

_TITLE, _SCALE, _GAP, _LEAST, _TITLED = 46, 34, 18, 170, 190
"""Pixels: the two lines above a map, its scale below, the space between maps, the least height of a map (below it one
scrolls), and the least width of a column of maps, for titles."""
_FIRST_ROOM = (640, 460)
"""Width and height in pixels, until a browser tells how much room there is for the maps."""
_PICTURE_ROOM = (760, 640)
"""Of a saved picture of two maps or more; of one map less wide."""

_ANCHORS = {0.0: "left", 1.0: "right"}

_DIGITS = 5
"""Decimals of what a figure is sent: numbers travel as text, and more of them only take longer."""


def _png(pixels: np.ndarray) -> str:
    """uint8 [height, width, 3] as a data URL."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


_BARS = {
    name: _png((255 * np.array([sample_colorscale(name, 256, colortype="tuple")])).round().astype(np.uint8))
    for name in CONTRAST
}
"""Colour maps from left to right."""


def _traces_of(panel: Panel, state: State, axis: int) -> dict[str, dict[str, Any]]:
    """Traces of one panel by role, on the `axis`-th pair of axes (from 1)."""
    suffix = axis if axis > 1 else ""
    on = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
    found, image = panel.found, panel.image
    heat: dict[str, Any] = {"type": "heatmap", "showscale": False, **on, "visible": found is not None}
    guess = truth = twins = mark = NOTHING
    top: list[tuple[int, int]] = []
    # Where nothing is found all are sent all the same: else the figure would go on showing what was there before.
    if found is not None:
        grid, values = found.grid, None if found.is_coloured else found.values
        names = image.names(grid)
        named = "" if names is None else "<br>%{text}"
        measure = panel.view.measure
        words = "" if values is None else f"{measure} <b>%{{z:{DIGITS[measure]}}}</b><br>"
        heat["z"] = np.zeros((grid.rows, grid.cols)) if values is None else values.astype(float).round(_DIGITS)
        heat |= {"x0": 0, "dx": 1, "y0": 0, "dy": 1, "zmin": found.low, "zmax": found.high}
        heat |= {"colorscale": state.colours, "opacity": 0.0 if values is None else state.opacity}
        heat |= {"text": names, "hovertemplate": f"{words}row %{{y}} · column %{{x}}{named}<extra></extra>"}
        heat |= {"name": measure, "meta": panel.name}
        if values is not None:
            guess = patch_outline(panel.above) if panel.above is not None and panel.is_outlined else NOTHING
            top = top_patches(values, state.top, found.patch, state.apart) if state.top else []
        if state.outlines and panel.own >= 0:
            truth = image.outline(panel.own, grid)
            twins = joined([image.outline(position, grid) for position in image.objects[panel.own]["twins"]])
        mark = square(*found.patch) if found.patch is not None else NOTHING

    def line(points: Line, colour: str, width: float, name: str = "", dash: str = "solid") -> dict[str, Any]:
        look = {"color": colour, "width": width, "dash": dash}
        x, y = points
        trace = {"type": "scatter", "mode": "lines", "x": x, "y": y, "name": name, "line": look}
        return {**trace, "hoverinfo": "skip", "showlegend": False, **on, "visible": bool(len(x))}

    contrast = CONTRAST[state.colours]
    return {
        "heat": heat,
        "truth casing": line(truth, _CASING, 5),
        "truth": line(truth, TRUTH, 2.5, "object"),
        "twins": line(twins, TWINS, 2.5, "twins", "6px,5px"),
        "guess": line(guess, contrast, 2.5, "above the threshold"),
        "top": {
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
        },
        "mark casing": line(mark, "#000", 6),
        "mark": line(mark, "#fff", 3, "chosen patch"),
    }


def _arranged(room: tuple[float, float], ratios: Sequence[float]) -> list[tuple[float, float, float, float]]:
    """Left, top, width and height in pixels of maps of some height-to-width ratios, as large as there is room."""

    def sizes(columns: int) -> list[tuple[float, float]]:
        n_rows = -(-len(ratios) // columns)
        wide = (room[0] - _GAP * (columns - 1)) / columns
        tall = max(_LEAST, (room[1] - _GAP * (n_rows - 1)) / n_rows - _TITLE - _SCALE)
        return [(min(wide, tall / ratio), min(wide * ratio, tall)) for ratio in ratios]

    possible = [n for n in range(1, len(ratios) + 1) if n == 1 or (room[0] + _GAP) / n - _GAP >= _LEAST]
    columns = max(possible, key=lambda n: (sum(wide for wide, _ in sizes(n)), -n))
    found = sizes(columns)
    step = min(max(_TITLED, *(wide for wide, _ in found)), (room[0] + _GAP) / columns - _GAP) + _GAP
    boxes, top = [], 0.0
    for first in range(0, len(found), columns):
        row = found[first : first + columns]
        boxes += [(column * step, top + _TITLE, *size) for column, size in enumerate(row)]
        top += _TITLE + max(tall for _, tall in row) + _SCALE + _GAP
    return boxes


def _layout_of(
    panels: Sequence[Panel], state: State, room: tuple[float, float], photo: Callable[[ShownImage, float], str]
) -> dict[str, Any]:
    """Layout of the figure: axes, pictures under the maps, titles and scales; `photo` gives an image's data URL."""
    ratios = [panel.image.size[0] / panel.image.size[1] if panel.image.is_read else 0.75 for panel in panels]
    boxes, width = _arranged(room, ratios), room[0]
    height = max(top + tall for _, top, _, tall in boxes) + _SCALE
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
    texts: list[dict[str, Any]] = []
    ticks: list[dict[str, Any]] = []
    for axis, (panel, (left, top, wide, tall)) in enumerate(zip(panels, boxes, strict=True), start=1):
        suffix = str(axis) if axis > 1 else ""
        found = panel.found
        rows, cols = (found.grid.rows, found.grid.cols) if found is not None else (1, 1)
        across = [left / width, min(1.0, (left + wide) / width)]
        down = [max(0.0, 1 - (top + tall) / height), 1 - top / height]
        fixed = {"visible": False, "fixedrange": True}
        layout[f"xaxis{suffix}"] = {"domain": across, "range": [-0.5, cols - 0.5], "anchor": f"y{suffix}", **fixed}
        layout[f"yaxis{suffix}"] = {"domain": down, "range": [rows - 0.5, -0.5], "anchor": f"x{suffix}", **fixed}
        place = {"xref": f"x{suffix}", "yref": f"y{suffix}", "x": -0.5, "y": -0.5, "sizex": cols, "sizey": rows}
        place |= {"sizing": "stretch", "layer": "below", "xanchor": "left", "yanchor": "top"}
        if panel.image.is_read:
            under = 0.0 if panel.name == "picture" else state.opacity
            images.append({"source": photo(panel.image, under), "opacity": 1.0, "name": "photo", **place})
        if found is not None and panel.view.measure in COLOURED:
            # Each patch is a square of many pixels, so that enlarging does not blur it.
            side = max(4, 640 // max(found.values.shape[:2]))
            source = _png(np.kron(found.values, np.ones((side, side, 1), np.uint8)))
            # Plotly takes two pictures at the very same place for one.
            place["sizex"] = cols * (1 + 1e-9)
            images.append({"source": source, "opacity": max(0.05, state.opacity), "name": "colours", **place})
        at = {"xref": "paper", "yref": "paper", "x": across[0], "y": 1 - (top - _TITLE + 3) / height}
        words = f"<b>{_fit(panel.title, wide / 7.6)}</b><br>{_fit(panel.note, wide / 6.2)}"
        look = {"showarrow": False, "xanchor": "left", "yanchor": "top", "align": "left", "font": {"size": 12.5}}
        texts.append({"text": words, **at, **look})
        if found is not None and not found.is_coloured:
            # In shares of the map.
            on = {"xref": f"x{suffix} domain", "yref": f"y{suffix} domain"}
            look = {"source": _BARS[state.colours], "sizing": "stretch", "xanchor": "left", "yanchor": "top"}
            images.append({**look, **on, "x": 0, "sizex": 1, "y": -5 / tall, "sizey": 9 / tall, "name": "scale"})
            for share, words in _said(panel, found):
                look = {"showarrow": False, "xanchor": _ANCHORS.get(share, "center"), "font": {"size": 11.5}}
                texts.append({"text": words, **on, "x": share, "y": -14 / tall, "yanchor": "top", **look})
            if panel.threshold is not None and panel.is_outlined:
                x, line = _share(panel.threshold, found), {"color": CONTRAST[state.colours], "width": 3}
                ticks.append({"type": "line", "x0": x, "x1": x, "y0": -3 / tall, "y1": -16 / tall, "line": line, **on})
    return layout | {"images": images, "annotations": texts, "shapes": ticks}


def _said(panel: Panel, found: Map) -> list[tuple[float, str]]:
    """Words below a scale, each with its share of the way along it: both ends, and the threshold."""
    measure = panel.view.measure
    ends = [(0.0, number(measure, found.low)), (1.0, number(measure, found.high))]
    if panel.threshold is None:
        return ends
    if not panel.is_outlined:
        return [*ends, (0.5, "threshold off: nearly all")]
    return [*ends, (min(max(_share(panel.threshold, found), 0.25), 0.75), f"≥ {number(measure, panel.threshold)}")]


def _share(value: float, found: Map) -> float:
    """How far along a map's scale a value lies, in [0, 1]."""
    return min(max((value - found.low) / (found.high - found.low), 0.0), 1.0) if found.high > found.low else 0.0


def _fit(words: str, most: float) -> str:
    """Words cut to about so many letters, and safe inside a figure's text."""
    short = words if len(words) <= most else words[: max(1, int(most) - 1)].rstrip(" ·,") + "…"
    return short.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _differences(now: Mapping[str, Any], sent: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of `now` that are not as they were sent."""

    def same(one: Any, other: Any) -> bool:
        if one is other:
            return True
        if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
            numbers = one.dtype.kind == "f" == other.dtype.kind
            return bool(np.array_equal(one, other, equal_nan=numbers))
        return type(one) is type(other) and bool(one == other)

    return {key: value for key, value in now.items() if key not in sent or not same(value, sent[key])}


def _report() -> traitlets.Dict:
    """As Plotly defines it, but not sent back to the browser that it came from."""
    return traitlets.Dict(allow_none=True).tag(sync=True, echo_update=False, **custom_serializers)


class _Figure(go.FigureWidget):
    """Plotly's widget, without what a browser reports of its defaults and of every move of the mouse.

    Python would read such a report after each change and answer it; meanwhile a click waits.
    """

    _js2py_traceDeltas = _report()  # noqa: N815
    _js2py_layoutDelta = _report()  # noqa: N815
    _js2py_pointsCallback = _report()  # noqa: N815
    # Numbers of edits, which only those reports need.
    _last_trace_edit_id = traitlets.Integer(0).tag(sync=False)
    _last_layout_edit_id = traitlets.Integer(0).tag(sync=False)

    def get_state(self, key: Any = None, drop_defaults: bool = False) -> dict[str, Any]:
        """With the figure as it is now: a page that was loaded anew asks for it, Plotly gives it as it was made."""
        state: dict[str, Any] = super().get_state(key, drop_defaults)
        asked = self.keys if key is None else [key] if isinstance(key, str) else key
        if "_layout_obj" in vars(self):  # it is made by now
            for name, value in (("_widget_data", self._data), ("_widget_layout", self._layout_obj._props)):
                if name in asked:
                    state[name] = custom_serializers["to_json"](value, self)
        return state

    @traitlets.observe("_js2py_traceDeltas")
    def _handler_js2py_traceDeltas(self, change: Any) -> None:  # noqa: N802
        self._trace_edit_in_process = False

    @traitlets.observe("_js2py_layoutDelta")
    def _handler_js2py_layoutDelta(self, change: Any) -> None:  # noqa: N802
        self._layout_edit_in_process = False

    @traitlets.observe("_js2py_pointsCallback")
    def _handler_js2py_pointsCallback(self, change: Any) -> None:  # noqa: N802
        if change["new"] and change["new"].get("event_type") == "plotly_click":
            super()._handler_js2py_pointsCallback(change)


class LiveFigure:
    """A FigureWidget of some panels; `clicked` is told the panel, row and column of every click at a patch."""

    def __init__(self, clicked: Callable[[str, int, int], None]) -> None:
        self.widget = _Figure()
        self.widget._config = {"displayModeBar": False, "doubleClick": False, "scrollZoom": False}
        self.room: tuple[float, float] = _FIRST_ROOM
        self._clicked = clicked
        # By panel and role.
        self._traces: dict[tuple[str, str], Any] = {}
        self._sent: dict[tuple[str, str], dict[str, Any]] = {}
        self._layout: dict[str, Any] = {}
        self._photos: dict[tuple[ShownImage, float], str] = {}

    def show(self, panels: Sequence[Panel], state: State) -> None:
        """Show these panels and no others."""
        layout = _layout_of(panels, state, self.room, self._photo)
        wanted = {
            (panel.name, role): trace
            for number, panel in enumerate(panels, start=1)
            for role, trace in _traces_of(panel, state, number).items()
        }
        with self.widget.batch_update():
            for part, value in _differences(layout, self._layout).items():
                self.widget.layout[part] = value
            for key, trace in self._traces.items():
                changed = _differences(wanted.get(key, {"visible": False}), self._sent[key])
                if changed:
                    trace.update(changed, overwrite=True)
                    self._sent[key] |= changed
        self._layout = layout
        fresh = {key: trace for key, trace in wanted.items() if key not in self._traces}
        if not fresh:
            return
        before = len(self.widget.data)
        self.widget.add_traces(list(fresh.values()))
        for (name, role), trace in zip(fresh, self.widget.data[before:], strict=True):
            self._traces[name, role], self._sent[name, role] = trace, fresh[name, role]
            if role == "heat":
                trace.on_click(
                    lambda _, at, __, name=name: self._clicked(name, int(at.ys[0]), int(at.xs[0])) if at.xs else None
                )

    def _photo(self, image: ShownImage, opacity: float) -> str:
        # In steps, since it is sent anew with each.
        key = (image, round(4 * opacity) / 4)
        if key not in self._photos:
            if len(self._photos) > 16:
                self._photos.clear()
            self._photos[key] = _faded(*key)
        return self._photos[key]

    def numbers(self, panel: str) -> dict[str, int]:
        """Number of each role's trace of a panel in the figure."""
        return {role: number for number, (name, role) in enumerate(self._traces) if name == panel}

    def close(self) -> None:
        """Let go of everything."""
        self._photos, self._traces, self._sent = {}, {}, {}
        self.widget.close()


def picture_figure(panels: Sequence[Panel], state: State, caption: str) -> go.Figure:
    """The panels as a figure to keep: with a legend, and what is seen in words, plain text."""
    across = _PICTURE_ROOM[0] * (1 if len(panels) > 1 else 0.75)
    layout = _layout_of(panels, state, (across, _PICTURE_ROOM[1]), _faded)
    traces = [trace for at, panel in enumerate(panels, start=1) for trace in _traces_of(panel, state, at).values()]
    main = panels[0]
    lines = textwrap.wrap(caption, max(20, int(across / 6.1)))
    marks = ['<span style="color:#8c959f">□</span> chosen patch']
    if any(panel.is_outlined for panel in panels):
        marks.append(f'<span style="color:{CONTRAST[state.colours]}">━</span> at its map\'s threshold or above')
    if main.own >= 0 and state.outlines:
        marks.append('<span style="color:#8c959f">━</span> the true object')
        if main.image.objects[main.own]["twins"]:
            marks.append('<span style="color:#ffb545">┅</span> others of its class')
    safe = [line.replace("&", "&amp;").replace("<", "&lt;") for line in lines]
    note = {"xref": "paper", "yref": "paper", "x": 0, "y": 0, "yshift": -10, "xanchor": "left", "yanchor": "top"}
    note |= {"showarrow": False, "align": "left", "font": {"size": 12, "color": INK}}
    note["text"] = "<br>".join([" &nbsp; ".join(marks), *safe])
    below = 30 + 17 * (len(lines) + 1)
    layout |= {
        "annotations": [*layout["annotations"], note],
        "template": TEMPLATE,
        "paper_bgcolor": "white",
        "margin": {"l": 18, "r": 18, "t": 14, "b": below},
        "width": round(across) + 36,
        "height": layout["height"] + 14 + below,
        "font": {"color": INK, "size": 13},
        "title": None,
    }
    return go.Figure(traces, layout).update_annotations(font_color=INK)


def _faded(image: ShownImage, opacity: float) -> str:
    """The picture as it lies under colours: under strong ones grey, so that hues always stand for values."""
    photo = ImageEnhance.Color(Image.fromarray(image.pixels)).enhance(max(0.0, 1 - 1.3 * opacity))
    return picture(np.asarray(photo))
