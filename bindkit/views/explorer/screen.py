"""The explorer's screen: what somebody does with mouse, keys and controls, and showing what became of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from bindkit.errors import BindkitError
from bindkit.views.explorer.answering import Answer
from bindkit.views.explorer.controls import Controls
from bindkit.views.explorer.live import LiveFigure
from bindkit.views.explorer.pad import Pad
from bindkit.views.explorer.session import Session
from bindkit.views.explorer.state import patch_of, place_of

logger = logging.getLogger(__name__)


class Screen:
    """Widgets of a session, which they change and show.

    Whatever goes wrong here is said in words, and the session goes on.

    Parameters
    ----------
    session : Session
        What is shown.
    pad : Pad
        Where it is said what is seen, and what went wrong.
    save : callable
        Saves the view under a name that ends in its kind, and gives the path.

    Attributes
    ----------
    controls : Controls
    live : LiveFigure
    body : ipywidgets.Box
        All of it.
    """

    def __init__(self, session: Session, pad: Pad, save: Callable[[str], Path]) -> None:
        self._session, self._pad, self._save = session, pad, save
        self.controls, self.live = Controls(), LiveFigure(self._clicked)
        self._setting = False
        self._answers: list[Answer] = []
        pad.upload = self.controls.upload.model_id
        maps = widgets.VBox([self.live.widget])
        stage = widgets.VBox([maps, self.controls.legend, pad])
        self.body = widgets.Box([stage, self.controls.box])
        for box, name in ((maps, "maps"), (stage, "stage"), (self.body, "body")):
            box.add_class(f"bindkit-{name}")
        self._listen()

    def do(self, act: Callable[[], Any]) -> None:
        """Do what somebody asked for, and show what became of it."""

        def acted() -> None:
            try:
                act()
            finally:
                self.refresh()

        self._guarded(acted)

    def refresh(self) -> None:
        """Show what there is now: the maps first, then what is said of them."""
        session = self._session
        session.look()
        if session.panels:
            self.live.show(session.panels, session.state)
        self._setting = True
        try:
            self.controls.show(session)
        finally:
            self._setting = False
        main = session.main
        with self._pad.hold_sync():
            self._pad.patch = [*main.patch, main.grid.rows, main.grid.cols] if main and main.patch else []
            self._pad.status = session.status
            self._pad.say("\n".join(dict.fromkeys(session.problems)))
        self._share(session.answers(self.live.numbers))

    def close(self) -> None:
        """Let go of everything that is held for showing it."""
        self._answers = []
        self.live.close()

    # --- what somebody does -----------------------------------------------------------------------------

    def _listen(self) -> None:
        controls = self.controls
        for name in ("image", "backbone", "probe", "measure", "layer"):
            self._on(name, partial(self._put, self._session.view, name))
        for name in ("second", "head", "threshold", "opacity", "colours", "outlines", "top", "apart"):
            self._on(name, partial(self._put, self._session.change, name))
        self._on("lock", lambda lock: setattr(self._session, "state", self._session.state.locking(lock)))
        self._on("upload", self._opened)
        for box in controls.beside.values():
            box.observe(lambda event: self._moved(self._beside_changed), "value")
        for kind, button in controls.save.items():
            button.on_click(partial(self._save_clicked, kind))
        self._pad.on_msg(lambda _, content, buffers: self._told(content))

    @staticmethod
    def _put(change: Callable[..., None], name: str, value: Any) -> None:
        change(**{name: value})

    def _opened(self, files: Sequence[Mapping[str, Any]]) -> None:
        for file in files:
            self._session.open(file["name"], bytes(file["content"]))

    def _on(self, name: str, act: Callable[[Any], Any]) -> None:
        """What a control does when somebody moves it."""
        control = getattr(self.controls, name)
        control.observe(lambda event: self._moved(lambda: act(self.controls.meaning(event["new"]))), "value")

    def _moved(self, act: Callable[[], Any]) -> None:
        if not self._setting:
            self.do(act)

    def _guarded(self, act: Callable[[], Any]) -> None:
        """Do something, and say what went wrong instead of leaving a traceback."""
        try:
            act()
        except (BindkitError, OSError) as error:
            self._pad.say(str(error))
        except Exception as error:  # a fault of ours: say so, keep the kernel and the widget
            logger.exception("the explorer failed")
            self._pad.say(f"This should not have happened ({type(error).__name__}: {error}). Details are in the log.")

    def _clicked(self, panel: str, row: int, col: int) -> None:
        """A patch of a panel was chosen."""
        session = self._session
        found = next((entry.found for entry in session.panels if entry.name == panel), None)
        if found is None:
            return
        state = session.state.clicking(panel, place_of(row, col, found.grid))
        if state != session.state:
            self.do(lambda: setattr(session, "state", state))

    def _pressed(self, number: int, place: tuple[float, float]) -> None:
        """The pointer was pressed at a place of a panel, by its number in the figure."""
        found = self._session.panels[number].found if number < len(self._session.panels) else None
        if found is not None:
            self._clicked(self._session.panels[number].name, *patch_of(place, found.grid))

    def _told(self, content: Mapping[str, Any]) -> None:
        """A message of the pad."""
        session, key = self._session, content.get("key")
        if "width" in content:
            self._guarded(lambda: self.live.widen(float(content["width"]), session.panels, session.state))
        elif "panel" in content:
            self._guarded(lambda: self._pressed(int(content["panel"]) - 1, (content["down"], content["across"])))
            self._pad.heard = content.get("mark", 0)
        elif "refused" in content:
            self._pad.say(
                f"{content['refused']} has {content['bytes'] / 1e6:.0f} MB; a browser hands over up to 10 MB. Make it "
                "smaller, or give its path: bk.AffinityExplorer(..., images=[path])"
            )
        elif key in ("[", "]"):
            self.do(lambda: session.step_layer(1 if key == "]" else -1))
        elif key in (",", "."):
            self.do(lambda: session.step_image(1 if key == "." else -1))

    def _beside_changed(self) -> None:
        self._session.change(beside=tuple(name for name, box in self.controls.beside.items() if box.value))

    def _save_clicked(self, kind: str, button: Any = None) -> None:
        name = self.controls.name.value.strip() or "view"
        for known in self.controls.save:
            name = name.removesuffix(f".{known}")

        def saved() -> None:
            self._pad.tell("saving")
            replaced = ", in the place of what was there" if Path(f"{name}.{kind}").expanduser().exists() else ""
            try:
                self._pad.say(f"Saved as {self._save(f'{name}.{kind}')}{replaced}", good=True)
            finally:
                self._pad.tell("")

        self._guarded(saved)

    def _share(self, answers: list[Answer]) -> None:
        """Give the browser what it answers presses with, unless it has that already."""
        if len(answers) != len(self._answers) or not all(map(Answer.is_same, answers, self._answers)):
            self._answers = answers
            with self._pad.hold_sync():
                self._pad.figure = self.live.widget.model_id
                self._pad.answers = [answer.packed() for answer in answers]
