"""The explorer's controls: labelled ipywidgets in cards, and the colour scale and legend below the maps."""

from __future__ import annotations

from functools import cache
from typing import Any

import ipywidgets as widgets
from plotly.colors import get_colorscale

from bindkit.views.explorer.drawing import CONTRAST, SCALES, TRUTH, TWINS
from bindkit.views.explorer.session import Session
from bindkit.views.explorer.state import LOCKS, MEASURES
from bindkit.views.explorer.words import number

_BESIDE = ("cosine", "attention", "pca")
_NONE = "none"
"""Stands for None in pickers."""


class Controls:
    """Every control by name, and the boxes that hold them. What they mean is the explorer's business.

    Attributes
    ----------
    backbone, probe, measure, image, layer, threshold, ... : ipywidgets
        One for each part of the state.
    box : ipywidgets.VBox
        All of them, in cards.
    legend : ipywidgets.HTML
        To be shown below the maps.
    """

    def __init__(self) -> None:
        self.image = widgets.Dropdown(description="Image")
        self.upload = widgets.FileUpload(
            description="Open a picture of yours", accept="image/*", multiple=False, tooltip="A file of up to 10 MB"
        )
        self.second = widgets.Dropdown(description="Compare to", tooltip="Another image, compared with the patch")
        self.backbone = widgets.Dropdown(description="Backbone")
        self.probe = widgets.Dropdown(description="Probe")
        self.measure = widgets.Dropdown(description="Map")
        self.layer = widgets.SelectionSlider(description="Layer", options=[0], continuous_update=True)
        self.beside = {
            name: widgets.Checkbox(description=words, indent=False)
            for name, words in zip(_BESIDE, ("cosine", "attention", "PCA"), strict=True)
        }
        self.head = widgets.Dropdown(description="Head", options=[("mean of all", _NONE)])
        self.lock = widgets.Dropdown(description="Lock", options=[(words, key) for key, words in LOCKS.items()])
        self.threshold = widgets.FloatSlider(
            description="Threshold", min=0, max=1, step=0.01, value=0.5, readout_format=".2f"
        )
        self.opacity = widgets.FloatSlider(description="Opacity", min=0, max=1, step=0.05, readout_format=".2f")
        self.colours = widgets.Dropdown(description="Colours", options=list(SCALES))
        self.outlines = widgets.Checkbox(description="outline the true object", indent=False)
        self.top = widgets.IntSlider(description="Mark top", min=0, max=20)
        self.apart = widgets.IntSlider(description="Skip within", min=0, max=10)
        self.name = widgets.Text(description="File", value="view", placeholder="view")
        self.save = {
            kind: widgets.Button(description=words, tooltip=f"Save the view as {tip}", icon=icon)
            for kind, words, tip, icon in (
                ("png", "PNG", "a picture", "picture-o"),
                ("svg", "SVG", "a drawing", "pencil"),
                ("html", "Page", "one page to click through, with every layer", "file-o"),
            )
        }
        self.legend = widgets.HTML()
        self.legend.add_class("bindkit-legend")
        checks = _classed(widgets.HBox(list(self.beside.values())), "bindkit-checks")
        buttons = _classed(widgets.HBox(list(self.save.values())), "bindkit-row")
        self.box = _classed(
            widgets.VBox(
                [
                    _card("What is shown", self.backbone, self.probe, self.layer, self.measure),
                    _card("Image", self.image, self.upload, self.outlines),
                    _card("Side by side", checks, self.head, self.lock, self.second),
                    _card("Patches that stand out", self.threshold, self.top, self.apart),
                    _card("Look", self.opacity, self.colours),
                    _card("Save", self.name, buttons),
                ]
            ),
            "bindkit-controls",
        )

    @staticmethod
    def meaning(value: Any) -> Any:
        """What a control's value stands for; ipywidgets take None for "nothing is chosen"."""
        return None if value is _NONE else value

    def show(self, session: Session) -> None:
        """Set every control to what is shown, and explain it."""
        state, view = session.state, session.state.view
        shelf = session.shelf()
        kinds = () if shelf is None else shelf.kinds
        images: list[tuple[str, Any]] = [(image.name, number) for number, image in enumerate(session.images)]
        choices: dict[str, list[tuple[str, Any]]] = {
            "image": images,
            "second": [("nothing", _NONE), *images],
            "backbone": [(entry.title, number) for number, entry in enumerate(session.backbones)],
            "probe": [(kind.replace("_", " "), kind) for kind in kinds] or [("none", _NONE)],
            "measure": [(words, key) for key, words in MEASURES.items() if key != "affinity" or kinds or shelf is None],
            "head": [("mean of all", _NONE), *((f"head {head}", head) for head in range(session.heads()))],
        }
        layers = session.layers()
        for name, options in choices.items():
            picker = getattr(self, name)
            if list(picker.options) != options:
                picker.options = options
        if tuple(self.layer.options) != layers:
            self.layer.options = layers
        self.layer.disabled = len(layers) < 2
        wanted = {
            self.image: view.image if images else None,
            self.second: _NONE if state.second is None else state.second,
            self.backbone: view.backbone,
            self.probe: view.probe if view.probe in kinds else _NONE if not kinds else kinds[0],
            self.measure: view.measure,
            self.layer: view.layer,
            self.head: _NONE if state.head is None else state.head,
            self.lock: state.lock,
            self.threshold: state.threshold,
            self.opacity: state.opacity,
            self.colours: state.colours,
            self.outlines: state.outlines,
            self.top: state.top,
            self.apart: state.apart,
        } | {box: name in state.beside for name, box in self.beside.items()}
        for control, value in wanted.items():
            if control.value != value:
                control.value = value
        # So that the same file can be opened again.
        self.upload.value = ()
        self.head.disabled = "attention" not in (view.measure, *state.beside)
        self._explain(session)

    def _explain(self, session: Session) -> None:
        """Say what colours and lines mean."""
        found, state = session.main, session.state
        if found is None:
            self.legend.value = ""
            return
        panel, low, high = session.panels[0], found.low, found.high
        measure = panel.measure
        objects = panel.own >= 0
        twins = objects and bool(panel.image.objects[panel.own]["twins"])
        guess = CONTRAST[state.colours]
        parts = []
        if measure != "pca":
            at = 100 * (state.threshold - low) / (high - low) if high > low else 0
            judged = measure in ("affinity", "cosine")
            limit = f'<b style="left:{min(max(at, 0), 100):.1f}%;background:{guess}"></b>' if judged else ""
            bar = f'<i style="background:linear-gradient(90deg,{_stops(state.colours)})">{limit}</i>'
            word = MEASURES[measure].lower()
            ends = [number(measure, low), number(measure, high)]
            parts.append(f'<div class="bk-scale"><span>{word} {ends[0]}</span>{bar}<span>{ends[1]}</span></div>')
        marks = [_CHOSEN]
        if measure in ("affinity", "cosine"):
            marks.append(_mark(f"{MEASURES[measure].lower()} {state.threshold:.2f} or more", guess, "#0000"))
        if objects and state.outlines:
            marks.append(_mark("the true object", TRUTH, "#000a"))
        if twins and state.outlines:
            marks.append(_mark("its twins", TWINS, "#0000", dashed=True))
        if state.top and measure != "pca":
            marks.append(f"<li><b>1–{state.top}</b> the highest that lie more than {state.apart} away</li>")
        parts.append(f'<ul class="bk-marks" aria-label="Lines on the image">{"".join(marks)}</ul>')
        self.legend.value = "".join(parts)


@cache
def _stops(colours: str) -> str:
    """A colour map as CSS writes the stops of a gradient."""
    return ", ".join(f"{colour} {100 * at:.1f}%" for at, colour in get_colorscale(SCALES[colours]))


_SQUARE = '<rect x="7" y="0" width="10" height="10" fill="none"'
_CHOSEN = (
    f'<li><svg viewBox="0 0 24 10" aria-hidden="true">{_SQUARE} stroke="#000" stroke-width="5"/>'
    f'{_SQUARE} stroke="#fff" stroke-width="2.5"/></svg>chosen patch</li>'
)


def _mark(words: str, colour: str, casing: str, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="6 5"' if dashed else ""
    lines = f'<path d="M1 5H23" stroke="{casing}" stroke-width="5"/>'
    lines += f'<path d="M1 5H23" stroke="{colour}" stroke-width="2.5"{dash}/>'
    return f'<li><svg viewBox="0 0 24 10" aria-hidden="true">{lines}</svg>{words}</li>'


def _card(heading: str, *controls: widgets.Widget) -> widgets.VBox:
    title = _classed(widgets.HTML(f"<h4>{heading}</h4>"), "bindkit-heading")
    return _classed(widgets.VBox([title, *controls]), "bindkit-card")


def _classed(widget: Any, name: str) -> Any:
    widget.add_class(name)
    return widget
