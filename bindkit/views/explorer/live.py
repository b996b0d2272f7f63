"""The figure on the screen, which is sent only what changes; and the same figure as a picture to keep."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import traitlets
from PIL import Image, ImageEnhance
from plotly.serializers import custom_serializers

from bindkit.views.explorer.drawing import CONTRAST, Panel, differences, layout_of, traces_of
from bindkit.views.explorer.sources import ShownImage
from bindkit.views.explorer.state import State
from bindkit.views.figures.style import INK, TEMPLATE
from bindkit.views.viewer.subjects import picture

FIRST_WIDTH = 640
"""Pixels, until a browser tells how wide the place of the maps is."""
_PICTURE_WIDTH = 760
"""Pixels of a saved picture of two maps or more; of one map less."""


_EDITS = ("_last_trace_edit_id", "_last_layout_edit_id")
_REPORTS = ("_js2py_traceDeltas", "_js2py_layoutDelta", "_js2py_pointsCallback")


def _report() -> traitlets.Dict:
    """As Plotly defines it, but not sent back to the browser that it came from."""
    return traitlets.Dict(allow_none=True).tag(sync=True, echo_update=False, **custom_serializers)


class _Figure(go.FigureWidget):
    """Plotly's widget, without what a browser reports of its defaults and of every move of the mouse.

    Python would read such a report after each change and answer it; meanwhile a click waits.
    """

    locals().update({name: _report() for name in _REPORTS})
    # Numbers of edits, which only those reports need.
    locals().update({name: traitlets.Integer(0).tag(sync=False) for name in _EDITS})

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
    """A FigureWidget of some panels.

    Parameters
    ----------
    clicked : callable
        Is told the panel, row and column of every click at a patch.
    """

    def __init__(self, clicked: Callable[[str, int, int], None]) -> None:
        self.widget = _Figure()
        self.widget._config = {"displayModeBar": False, "doubleClick": False, "scrollZoom": False}
        self.width: float = FIRST_WIDTH
        self._clicked = clicked
        self._traces: dict[tuple[str, str], Any] = {}
        self._sent: dict[tuple[str, str], dict[str, Any]] = {}
        self._layout: dict[str, Any] = {}
        self._panels: dict[str, Panel] = {}
        self._photos: dict[tuple[ShownImage, float], str] = {}

    def show(self, panels: Sequence[Panel], state: State) -> None:
        """Show these panels and no others."""
        self._panels = {panel.name: panel for panel in panels}
        layout = layout_of(panels, state, self.width, lambda image: self._photo(image, state.opacity))
        wanted = {
            (panel.name, role): trace
            for number, panel in enumerate(panels, start=1)
            for role, trace in traces_of(panel, state, number).items()
        }
        with self.widget.batch_update():
            for part, value in differences(layout, self._layout).items():
                self.widget.layout[part] = value
            for key, trace in self._traces.items():
                now = wanted.get(key, {"visible": False})
                changed = differences(now, self._sent[key])
                if changed:
                    trace.update(changed, overwrite=True)
                    self._sent[key] |= changed
        self._layout = layout
        self._add({key: trace for key, trace in wanted.items() if key not in self._traces})

    def numbers(self, panel: str) -> dict[str, int]:
        """Number of each role's trace of a panel in the figure."""
        return {role: number for number, (name, role) in enumerate(self._traces) if name == panel}

    def widen(self, width: float, panels: Sequence[Panel], state: State) -> None:
        """Lay the panels out for another width, in pixels."""
        self.width = width
        if panels:
            self.show(panels, state)

    def close(self) -> None:
        """Let go of everything."""
        self._panels, self._photos, self._traces, self._sent = {}, {}, {}, {}
        self.widget.close()

    def _add(self, fresh: dict[tuple[str, str], dict[str, Any]]) -> None:
        if not fresh:
            return
        before = len(self.widget.data)
        self.widget.add_traces(list(fresh.values()))
        for key, trace in zip(fresh, self.widget.data[before:], strict=True):
            self._traces[key], self._sent[key] = trace, dict(fresh[key])
            if key[1] == "heat":
                trace.on_click(self._listener(key[0]))

    def _listener(self, name: str) -> Callable[..., None]:
        def heard(trace: Any, points: Any, device: Any) -> None:
            panel = self._panels.get(name)
            if panel is None or panel.found is None or not points.xs:
                return
            self._clicked(name, int(points.ys[0]), int(points.xs[0]))

        return heard

    def _photo(self, image: ShownImage, opacity: float) -> str:
        # In steps, since it is sent anew with each.
        key = (image, round(4 * opacity) / 4)
        if key not in self._photos:
            if len(self._photos) > 16:
                self._photos.clear()
            self._photos[key] = faded(*key)
        return self._photos[key]


def picture_figure(panels: Sequence[Panel], state: State, caption: str, width: float | None = None) -> go.Figure:
    """The panels as a figure to keep: with a colour scale, a legend, and what is seen in words.

    Parameters
    ----------
    panels : sequence of Panel
        As `LiveFigure.show` takes them.
    state : State
        Of the explorer.
    caption : str
        Plain text, broken into lines here.
    width : float, optional
        Pixels of the maps together.
    """
    across = width or (_PICTURE_WIDTH if len(panels) > 1 else 0.75 * _PICTURE_WIDTH)
    layout = layout_of(panels, state, across, lambda image: faded(image, state.opacity))
    traces = [
        trace for number, panel in enumerate(panels, start=1) for trace in traces_of(panel, state, number).values()
    ]
    main = panels[0]
    if main.found is not None and main.found.values is not None:
        scale = {"orientation": "h", "x": 0, "xanchor": "left", "len": min(1.0, 340 / across), "thickness": 9}
        scale |= {"y": 0, "yanchor": "top", "ypad": 12, "xpad": 0, "outlinewidth": 0, "tickfont": {"size": 11}}
        traces[0] |= {"showscale": True, "colorbar": scale}
    lines = _broken(caption, across / 6.1)
    marks = ['<span style="color:#8c959f">□</span> chosen patch']
    if main.measure in ("affinity", "cosine"):
        marks.append(f'<span style="color:{CONTRAST[state.colours]}">━</span> {main.measure} ≥ {state.threshold:.2f}')
    if main.own >= 0 and state.outlines:
        marks.append('<span style="color:#8c959f">━</span> the true object')
        if main.image.objects[main.own]["twins"]:
            marks.append('<span style="color:#ffb545">┅</span> its twins')
    text = "<br>".join([" &nbsp; ".join(marks), *lines])
    note = {"xref": "paper", "yref": "paper", "x": 0, "y": 0, "yshift": -44, "xanchor": "left", "yanchor": "top"}
    look = {"showarrow": False, "align": "left", "font": {"size": 12, "color": INK}, "text": text}
    layout["annotations"] = [*layout["annotations"], note | look]
    below = 64 + 17 * (len(lines) + 1)
    layout |= {
        "template": TEMPLATE,
        "paper_bgcolor": "white",
        "margin": {"l": 18, "r": 18, "t": 14, "b": below},
        "width": round(across) + 36,
        "height": layout["height"] + 14 + below,
        "font": {"color": INK, "size": 13},
        "title": None,
    }
    figure = go.Figure(traces, layout)
    figure.update_annotations(font_color=INK)
    return figure


def faded(image: ShownImage, opacity: float) -> str:
    """The picture as it lies under colours: under strong ones grey, so that hues always stand for values."""
    photo = ImageEnhance.Color(Image.fromarray(image.pixels)).enhance(max(0.0, 1 - 1.3 * opacity))
    return picture(np.asarray(photo))


def _broken(words: str, most: float) -> list[str]:
    """Words in lines of about so many letters, safe inside a figure's text."""
    lines = textwrap.wrap(words, max(20, int(most)))
    return [line.replace("&", "&amp;").replace("<", "&lt;") for line in lines]
