"""The part of the explorer that Plotly has no event for: keys, the status line, messages, and its own width."""

from __future__ import annotations

import logging
from pathlib import Path

import anywidget
import traitlets

logger = logging.getLogger(__name__)

_HERE = Path(__file__).parent


class Pad(anywidget.AnyWidget):
    """A bar that takes the keyboard for the patch, and says what is seen and what went wrong.

    Sends ``{"panel": number, "down": share, "across": share, "mark": number}`` for a place as soon as it is pressed or
    dragged over, and for one that arrow keys came to rest at; the mark is to come back in `heard`. Sends
    ``{"key": ...}`` for a key of another meaning, ``{"width": pixels}`` when the place of the maps has another width,
    and ``{"refused": name, "bytes": size}`` for a picture too large to be sent.
    """

    _esm = "\n".join((_HERE / name).read_text(encoding="utf-8") for name in ("answers.js", "pad.js"))
    _css = _HERE / "explorer.css"

    patch = traitlets.List(traitlets.Int()).tag(sync=True)
    """Row and column of the chosen patch, then rows and columns of its grid; empty where none is shown."""
    heard = traitlets.Float(0).tag(sync=True)
    """Mark of the last place that was heard and shown."""
    status = traitlets.Unicode("").tag(sync=True)
    message = traitlets.Unicode("").tag(sync=True)
    good = traitlets.Bool(False).tag(sync=True)
    busy = traitlets.Unicode("").tag(sync=True)
    figure = traitlets.Unicode("").tag(sync=True)
    """Model id of the figure that is redrawn."""
    upload = traitlets.Unicode("").tag(sync=True)
    """Model id of the button that opens files."""
    answers = traitlets.List(traitlets.Dict()).tag(sync=True)
    """What `bindkit.views.explorer.answering.Answer.packed` gives, one a map."""

    def say(self, message: str, good: bool = False) -> None:
        """Say what went wrong or should be known, or what went well; "" for nothing."""
        self.message, self.good = message, good

    def tell(self, busy: str) -> None:
        """Say what takes a while, and "" when it is done."""
        if busy:
            logger.info(busy)
        self.busy = busy
