"""The explorer's screen: labelled controls in cards, keys and messages, and what somebody does with all of these."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import traitlets

from bindkit.errors import BindkitError
from bindkit.views.explorer.figure import CONTRAST, TRUTH, TWINS, LiveFigure
from bindkit.views.explorer.session import Answer, Session, number
from bindkit.views.explorer.state import BESIDE, BY_PROBE, COLOURED, LOCKS, MEASURES, patch_of, place_of

logger = logging.getLogger(__name__)

_VIEWS = files("bindkit.views")
_KEYS = {"[": ("layer", -1), "]": ("layer", 1), ",": ("image", -1), ".": ("image", 1)}
"""Key -> the part of the view that it changes, and by how much."""
_NONE = "none"
"""Stands for None in pickers, since ipywidgets take that for "nothing is chosen"."""


class Pad(anywidget.AnyWidget):
    """What Plotly has no event for: keys, the status line, messages, and the room that there is for the maps.

    Sends ``{"panel": number, "down": share, "across": share, "mark": number}`` for a place as soon as it is pressed or
    dragged over, and for one that arrow keys came to rest at; the mark is to come back in `heard`. Sends
    ``{"key": ...}`` for a key of another meaning, ``{"width": pixels, "height": pixels}`` when there is other room, so
    that maps, keys and status are seen without scrolling, and ``{"refused": name, "bytes": size}`` for a picture too
    large to be sent.
    """

    _esm = "\n".join(
        (_VIEWS / name).read_text(encoding="utf-8")
        for name in ("viewer/loops.js", "explorer/answers.js", "explorer/pad.js")
    )
    _css = (_VIEWS / "explorer/explorer.css").read_text(encoding="utf-8")

    patch = traitlets.List(traitlets.Int()).tag(sync=True)
    """Row and column of the chosen patch, then rows and columns of its grid; empty where none is shown."""
    heard = traitlets.Float(0).tag(sync=True)
    """Mark of the last place that was heard and shown."""
    status = traitlets.Unicode("").tag(sync=True)
    message = traitlets.Unicode("").tag(sync=True)
    good = traitlets.Bool(False).tag(sync=True)
    busy = traitlets.Unicode("").tag(sync=True)
    beside = traitlets.Unicode("").tag(sync=True)
    """Where message and busy line stand: ``"save"`` or ``"open"``, beside those buttons, or below the maps."""
    figure = traitlets.Unicode("").tag(sync=True)
    """Model id of the figure that is redrawn."""
    upload = traitlets.Unicode("").tag(sync=True)
    """Model id of the button that opens files."""
    answers = traitlets.List(traitlets.Dict()).tag(sync=True)
    """What `Answer.packed` gives, one a map."""

    def say(self, message: str, good: bool = False, beside: str = "") -> None:
        """Say what went wrong or should be known, or what went well; "" for nothing."""
        with self.hold_sync():
            self.message, self.good, self.beside = message, good, beside

    def tell(self, busy: str) -> None:
        """Say what takes a while, and "" when it is done."""
        if busy:
            logger.info(busy)
        self.busy = busy


class Controls:
    """Every control by the name of its part of the state; `legend` stands below the maps.

    `box` holds them: those that change what is asked at first sight, the rest in parts that a button unfolds.
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
            for name, words in zip(BESIDE, ("picture", "cosine", "attention", "PCA", "objects"), strict=True)
        }
        self.head = widgets.Dropdown(description="Head", options=[("mean of all", _NONE)])
        self.lock = widgets.Dropdown(description="Lock", options=[(words, key) for key, words in LOCKS.items()])
        # Along the map's own scale, so the number that it stands for is in the map's units.
        self.threshold = widgets.FloatSlider(description="Threshold", max=1, step=0.01, value=0.5, readout=False)
        self.limit = _classed(widgets.Label(), "limit")
        self.opacity = widgets.FloatSlider(description="Opacity", min=0, max=1, step=0.05, readout_format=".2f")
        self.colours = widgets.Dropdown(description="Colours", options=list(CONTRAST))
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
        self.legend = _classed(widgets.HTML(), "legend")
        checks = _classed(widgets.HBox(list(self.beside.values())), "checks")
        buttons = _classed(widgets.HBox(list(self.save.values())), "row")
        # Where the pad puts what opening and saving have to say.
        limited = _classed(widgets.HBox([self.threshold, self.limit]), "row")
        opened, saved = (_classed(widgets.Box(), f"beside-{which}") for which in ("open", "save"))
        asked = [self.image, self.upload, opened, self.backbone, self.probe, self.layer, self.measure, limited]
        self.folds = {
            "Side by side": [checks, self.head, self.lock, self.second],
            "Marks and colours": [self.outlines, self.top, self.apart, self.opacity, self.colours],
            "Save": [self.name, buttons, saved],
        }
        unfolded = [[widgets.ToggleButton(description=words), *parts] for words, parts in self.folds.items()]
        boxes = [_classed(widgets.VBox(parts), "fold") for parts in unfolded]
        cards = [_classed(box, "card") for box in (widgets.VBox(asked), *boxes)]
        self.box = _classed(widgets.VBox(cards), "controls")

    def show(self, session: Session) -> None:
        """Set every control to what is shown, and explain it."""
        state, view = session.state, session.state.view
        shelf = session.shelf()
        kinds = () if shelf is None else shelf.kinds
        images: list[tuple[str, Any]] = [(image.name, position) for position, image in enumerate(session.images)]
        choices: dict[str, list[tuple[str, Any]]] = {
            "image": images,
            "second": [("nothing", _NONE), *images],
            "backbone": [(entry.title, position) for position, entry in enumerate(session.backbones)],
            "probe": [(kind.replace("_", " "), kind) for kind in kinds] or [("none", _NONE)],
            "measure": [
                (words, key) for key, words in MEASURES.items() if key not in BY_PROBE or kinds or shelf is None
            ],
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
        # There is something to choose among several only.
        self.probe.layout.display = None if len(kinds) > 1 else "none"
        judged = session.panels[0].threshold if session.panels else None
        self.threshold.disabled = judged is None
        self.limit.value = "" if judged is None else number(view.measure, judged)
        wanted = {
            self.image: view.image if images else None,
            self.second: _NONE if state.second is None else state.second,
            self.backbone: view.backbone,
            self.probe: view.probe if view.probe in kinds else next(iter(kinds), _NONE),
            self.measure: view.measure,
            self.layer: view.layer,
            self.head: _NONE if state.head is None else state.head,
        }
        for name in ("lock", "threshold", "opacity", "colours", "outlines", "top", "apart"):
            wanted[getattr(self, name)] = getattr(state, name)
        for control, value in (wanted | {box: name in state.beside for name, box in self.beside.items()}).items():
            if control.value != value:
                control.value = value
        # So that the same file can be opened again.
        self.upload.value = ()
        self.head.disabled = "attention" not in (view.measure, *state.beside)
        self.legend.value = "" if session.main is None else self._legend(session)

    def _legend(self, session: Session) -> str:
        """What colours and lines mean, as HTML."""
        panel, state = session.panels[0], session.state
        assert panel.found is not None
        measure, marks = panel.view.measure, [_CHOSEN]
        if any(entry.is_outlined for entry in session.panels):
            marks.append(_mark("at its map's threshold or above", CONTRAST[state.colours], "#0000"))
        if panel.own >= 0 and state.outlines:
            marks.append(_mark("the true object", TRUTH, "#000a"))
            if panel.image.objects[panel.own]["twins"]:
                marks.append(_mark("others of its class", TWINS, "#0000", ' stroke-dasharray="6 5"'))
        if state.top and measure not in COLOURED:
            marks.append(f"<li><b>1–{state.top}</b> the highest that lie more than {state.apart} away</li>")
        return f'<ul class="bk-marks" aria-label="Lines on the image">{"".join(marks)}</ul>'


_SQUARE = '<rect x="7" y="0" width="10" height="10" fill="none"'
_CHOSEN = (
    f'<li><svg viewBox="0 0 24 10" aria-hidden="true">{_SQUARE} stroke="#000" stroke-width="5"/>'
    f'{_SQUARE} stroke="#fff" stroke-width="2.5"/></svg>chosen patch</li>'
)


def _mark(words: str, colour: str, casing: str, dash: str = "") -> str:
    lines = f'<path d="M1 5H23" stroke="{casing}" stroke-width="5"/>'
    lines += f'<path d="M1 5H23" stroke="{colour}" stroke-width="2.5"{dash}/>'
    return f'<li><svg viewBox="0 0 24 10" aria-hidden="true">{lines}</svg>{words}</li>'


def _classed(widget: Any, name: str) -> Any:
    widget.add_class(f"bindkit-{name}")
    return widget


class Screen:
    """Widgets of a session, which they change and show; `body` holds all of them.

    Whatever goes wrong here is said in words, and the session goes on. `save` saves the view under a name that ends in
    its kind, and gives the path.
    """

    def __init__(self, session: Session, pad: Pad, save: Callable[[str], Path]) -> None:
        self._session, self._pad, self._save = session, pad, save
        self.controls, self.live = Controls(), LiveFigure(self._clicked)
        self._setting = False
        self._answers: list[Answer] = []
        pad.upload = self.controls.upload.model_id
        maps = _classed(widgets.VBox([self.live.widget]), "maps")
        stage = _classed(widgets.VBox([maps, self.controls.legend, pad]), "stage")
        self.body = _classed(widgets.Box([stage, self.controls.box]), "body")
        self._on(session.view, "image", "backbone", "probe", "measure", "layer")
        self._on(session.change, "second", "head", "threshold", "opacity", "colours", "outlines", "top", "apart")
        self._on(session.lock, "lock")
        self.controls.upload.observe(lambda event: self._moved(lambda: self._open(event["new"]), "open"), "value")
        for box in self.controls.beside.values():
            box.observe(lambda event: self._moved(self._set_beside), "value")
        for kind, button in self.controls.save.items():
            button.on_click(lambda button, kind=kind: self.do(lambda: self._save_as(kind), False, "save"))
        pad.on_msg(lambda _, content, buffers: self._told(content))

    def refresh(self) -> None:
        """Show what there is now: the maps first, then what is said of them."""
        session, pad = self._session, self._pad
        session.look()
        if session.panels:
            self.live.show(session.panels, session.state)
        self._setting = True
        try:
            self.controls.show(session)
        finally:
            self._setting = False
        main = session.main
        with pad.hold_sync():
            pad.patch = [*main.patch, main.grid.rows, main.grid.cols] if main and main.patch else []
            pad.status = session.status
            pad.say("\n".join(session.problems))
        answers = session.answers(self.live.numbers)
        if answers != self._answers:  # else the browser has them already
            self._answers = answers
            with pad.hold_sync():
                pad.figure = self.live.widget.model_id
                pad.answers = [answer.packed() for answer in answers]

    def close(self) -> None:
        """Let go of everything that is held for showing it."""
        self._answers = []
        self.live.close()

    # --- what somebody does -----------------------------------------------------------------------------

    def do(self, act: Callable[[], Any], refresh: bool = True, beside: str = "") -> None:
        """Do what somebody asked for, show what became of it, and say what went wrong: never leave a traceback."""
        self._pad.say("", beside=beside)
        try:
            try:
                act()
            finally:
                if refresh:
                    self.refresh()
        except (BindkitError, OSError) as error:
            self._pad.say(str(error), beside=beside)
        except Exception as error:  # a fault of ours: say so, keep the kernel and the widget
            logger.exception("the explorer failed")
            self._pad.say(f"This should not have happened ({type(error).__name__}: {error}). Details are in the log.")

    def _on(self, act: Callable[..., Any], *names: str) -> None:
        """What is done when somebody moves one of these controls: takes its value under its name."""

        def moved(event: Mapping[str, Any], name: str) -> None:
            value = None if event["new"] is _NONE else event["new"]
            self._moved(lambda: act(**{name: value}))

        for name in names:
            getattr(self.controls, name).observe(partial(moved, name=name), "value")

    def _moved(self, act: Callable[[], Any], beside: str = "") -> None:
        if not self._setting:
            self.do(act, beside=beside)

    def _set_beside(self) -> None:
        self._session.change(beside=tuple(name for name, box in self.controls.beside.items() if box.value))

    def _open(self, upload: Sequence[Mapping[str, Any]]) -> None:
        for file in upload:
            self._session.open(file["name"], bytes(file["content"]))

    def _save_as(self, kind: str) -> None:
        name = self.controls.name.value.strip() or "view"
        for known in self.controls.save:
            name = name.removesuffix(f".{known}")
        self._pad.tell("saving")
        try:
            replaced = ", in the place of what was there" if Path(f"{name}.{kind}").expanduser().exists() else ""
            self._pad.say(f"Saved as {self._save(f'{name}.{kind}')}{replaced}", good=True, beside="save")
        finally:
            self._pad.tell("")

    def _clicked(self, panel: str, row: int, col: int) -> None:
        """A patch of a panel was chosen."""
        session = self._session
        found = next((entry.found for entry in session.panels if entry.name == panel), None)
        if found is None:
            return
        state = session.state.clicking(panel, place_of(row, col, found.grid))
        if state != session.state:
            self.do(lambda: setattr(session, "state", state))

    def _told(self, content: Mapping[str, Any]) -> None:
        """A message of the pad."""
        session, key = self._session, content.get("key")
        if "width" in content:
            self.live.room = float(content["width"]), float(content["height"])
            if session.panels:
                self.do(lambda: self.live.show(session.panels, session.state), refresh=False)
        elif "panel" in content:
            # By its number in the figure, which may be gone by now.
            for panel in session.panels[content["panel"] - 1 : content["panel"]]:
                if panel.found is not None:
                    self._clicked(panel.name, *patch_of((content["down"], content["across"]), panel.found.grid))
            self._pad.heard = content.get("mark", 0)
        elif "refused" in content:
            self._pad.say(
                f"{content['refused']} has {content['bytes'] / 1e6:.0f} MB; a browser hands over up to 10 MB. Make it "
                "smaller, or give its path: bk.AffinityExplorer(..., images=[path])",
                beside="open",
            )
        elif key in _KEYS:
            self.do(lambda: session.step(*_KEYS[key]))
