"""Static pictures of figures, drawn by a Chromium that stays open while pictures are asked for.

Starting Chromium takes seconds, drawing a picture a fraction of one.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import threading
from typing import Any

import plotly.graph_objects as go

logger = logging.getLogger(__name__)

SCALE = 2
"""Pixels of a picture per unit of the figure's size, so that text is sharp."""
START_SECONDS, DRAW_SECONDS = 60, 60
"""After these a browser counts as broken."""

_INSTALL = (
    "static pictures of figures are left out (%s); install Chromium, or name its program in BROWSER_PATH, or run "
    "plotly_get_chrome"
)


class PictureBrowser:
    """One Chromium, driven from a thread of its own; opened at the first picture, closed when Python ends."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._kaleido: Any = None
        self._broken = False
        self._lock = threading.Lock()

    def draw(self, figure: go.Figure, kind: str = "png") -> bytes | None:
        """Draw a figure as "png" or "svg". Without a usable Chromium it is None, which is said once."""
        with self._lock:
            if self._broken:
                return None
            try:
                if self._kaleido is None:
                    self._open()
                own, usual = figure.layout, figure.layout.template.layout
                size = {"width": own.width or usual.width or 860, "height": own.height or usual.height or 460}
                options = {"format": kind, "scale": SCALE, **size}
                drawing = self._kaleido.calc_fig(figure.to_plotly_json(), opts=options)
                return bytes(self._await(drawing, DRAW_SECONDS))
            except Exception as error:  # no browser, one that does not start, one that died: never a reason to stop
                logger.info(_INSTALL, str(error).strip().split(". ")[0].split("\n")[0] or type(error).__name__)
                self._broken = True
                return None

    def close(self) -> None:
        """Close Chromium; a later picture opens it again."""
        with self._lock:
            if self._loop is None:
                return
            with contextlib.suppress(Exception):  # it may have died, or Python may be ending
                self._await(self._kaleido.__aexit__(None, None, None), 10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = self._kaleido = None

    def _open(self) -> None:
        import kaleido

        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="bindkit pictures").start()
        self._kaleido = self._await(self._start(kaleido), START_SECONDS)
        atexit.register(self.close)

    @staticmethod
    async def _start(kaleido: Any) -> Any:
        # Without MathJax nothing is fetched from the network; no figure here needs it.
        return await kaleido.Kaleido(mathjax=False).__aenter__()

    def _await(self, work: Any, seconds: float) -> Any:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=seconds)


browser = PictureBrowser()
"""The one that every figure shares."""
