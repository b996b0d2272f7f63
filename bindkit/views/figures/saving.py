"""Saved figures: an interactive page, its data, and a static picture that any page can show."""

from __future__ import annotations

import asyncio
import atexit
import base64
import contextlib
import html
import io
import json
import logging
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from PIL import Image
from plotly.offline import get_plotlyjs

from bindkit.arguments import read_path, require_kind
from bindkit.errors import InvalidParameterError
from bindkit.files import slug, write_bytes

logger = logging.getLogger(__name__)

INLINE_BYTES = 46_000
"""A figure larger than this is shown in a notebook by its picture only, so that the notebook stays small."""
INLINE_PICTURE_BYTES = 36_000
"""A picture larger than this is shown in a notebook with fewer pixels, at least half of them a side, then coarser."""
PHOTO, PHOTOGRAPH_LETTERS = 4, 20_000
"""Figures with a photograph, a picture that is written in more letters than this, may be so many times as large."""

_SCALE, _SECONDS = 2, 60
"""Pixels of a picture per unit of a figure's size, so that text is sharp; after so long a browser counts as broken."""
_LEFT_OUT = (
    "static pictures of figures are left out (%s); install Chromium, or name its program in BROWSER_PATH, or run "
    "plotly_get_chrome"
)


class PictureBrowser:
    """One Chromium, driven from a thread of its own; opened at the first picture, closed when Python ends.

    Starting it takes seconds, drawing a picture a fraction of one.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._kaleido: Any = None
        self._broken = False
        self._lock = threading.Lock()

    def draw(self, figure: go.Figure, kind: str = "png") -> bytes | None:
        """Draw a figure as "png", "svg" or "pdf". Without a usable Chromium it is None, which is said once."""
        with self._lock:
            if self._broken:
                return None
            try:
                if self._kaleido is None:
                    self._open()
                own, usual = figure.layout, figure.layout.template.layout
                size = {"width": own.width or usual.width or 860, "height": own.height or usual.height or 460}
                options = {"format": kind, "scale": _SCALE, **size}
                drawing = self._kaleido.calc_fig(figure.to_plotly_json(), opts=options)
                return bytes(self._await(drawing, _SECONDS))
            except Exception as error:  # no browser, one that does not start, one that died: never a reason to stop
                logger.info(_LEFT_OUT, str(error).strip().split(". ")[0].split("\n")[0] or type(error).__name__)
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

        async def start() -> Any:  # without MathJax nothing is fetched from the network; no figure here needs it
            return await kaleido.Kaleido(mathjax=False).__aenter__()

        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="bindkit pictures").start()
        self._kaleido = self._await(start(), _SECONDS)
        atexit.register(self.close)

    def _await(self, work: Any, seconds: float) -> Any:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=seconds)


browser = PictureBrowser()
"""The one that every figure shares."""


@dataclass(frozen=True)
class SavedFigure:
    """Where a figure was saved; as the last line of a cell it shows itself.

    ``html`` is the interactive page, which needs the ``plotly.min.js`` beside it and no network; ``csv`` the data, None
    where a figure has no table; ``png`` the picture, None where no Chromium was at hand. A notebook shows the picture
    where nothing else can be shown (on a code-hosting page) and the interactive figure in JupyterLab.
    """

    name: str
    html: Path
    csv: Path | None
    png: Path | None
    figure: go.Figure = field(repr=False, compare=False)

    def save(self, path: str | Path) -> Path:
        """Draw it once more, into a ``.pdf`` or ``.svg`` for a paper, or a ``.png``; returns the file.

        ::

            bk.save_figure(figure, "layers", "figures").save("paper/layers.pdf")

        Raises InvalidParameterError for another ending, or where no Chromium is at hand.
        """
        place = read_path(path, "a picture's file")
        kind = place.suffix.lower().removeprefix(".")
        if kind not in ("pdf", "svg", "png"):
            raise InvalidParameterError(f"a figure is saved as .pdf, .svg or .png, got {place.name!r}")
        on_paper = go.Figure(self.figure).update_layout(paper_bgcolor="white")
        if (picture := browser.draw(on_paper, kind)) is None:
            raise InvalidParameterError(
                f"{place.name} cannot be drawn without Chromium: install it, or name its program in BROWSER_PATH"
            )
        write_bytes(place, picture)
        return place

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Give a notebook the picture and, if it is small, the interactive figure; and the picture's size as drawn."""
        bundle: dict[str, Any] = {"text/plain": f"figure {self.name}"}
        sizes: dict[str, Any] = {}
        content = self.figure.to_json()
        pictures = [trace.source for trace in self.figure.data if trace.type == "image"]
        is_photo = any(code.startswith("data:image/jpeg") and len(code) > PHOTOGRAPH_LETTERS for code in pictures)
        times = PHOTO if is_photo else 1
        if len(content) <= times * INLINE_BYTES or self.png is None:
            bundle["application/vnd.plotly.v1+json"] = json.loads(content)
        if self.png is not None:
            drawn = self.png.read_bytes()
            kind, picture = "image/jpeg", compact(drawn, times * INLINE_PICTURE_BYTES)
            # A PNG only alone: beside an interactive figure, Plotly in JupyterLab would show it instead of that.
            if len(bundle) == 1 and len(few := _in_few_colours(drawn)) < len(picture):
                kind, picture = "image/png", few
            bundle[kind] = base64.b64encode(picture).decode()
            # Pictures hold more pixels than the figure has units, for sharp screens.
            sizes[kind] = {"width": self.figure.layout.width or self.figure.layout.template.layout.width}
        return bundle, sizes


def save_figure(figure: go.Figure, name: str, directory: str | Path, data: pd.DataFrame | None = None) -> SavedFigure:
    """Save a figure as ``name.html``, ``name.csv`` and ``name.png``.

    ::

        bk.save_figure(bk.figures.layer_curves(results), "accuracy_by_layer", "figures")

    Parameters
    ----------
    figure : plotly.graph_objects.Figure
        Any Plotly figure.
    name : str
        Of the files, without an ending.
    directory : str or Path
        Is made if need be. ``plotly.min.js`` (4.5 MB) lies in it once for all its pages.
    data : pandas.DataFrame, optional
        The table behind the figure. Default: the points of its lines, if it has any.

    Returns
    -------
    SavedFigure

    Raises
    ------
    InvalidParameterError
        For a name that is no file name.
    """
    require_kind(name, str, "a figure's name is text")
    if not hasattr(figure, "to_html"):
        raise InvalidParameterError(f"a figure is one of Plotly's, got {figure!r:.80}")
    if not name or slug(name) != name:
        raise InvalidParameterError(
            f"a figure's name becomes a file name, got {name!r}; use for example {slug(name)!r}"
        )
    place = read_path(directory, "the figures' directory")
    place.mkdir(parents=True, exist_ok=True)
    library, code = place / "plotly.min.js", get_plotlyjs().encode()
    if not library.exists() or library.stat().st_size != len(code):  # once, and anew after an update of Plotly
        write_bytes(library, code)
    config = {"displaylogo": False, "responsive": False}
    page = figure.to_html(include_plotlyjs="directory", div_id=name, config=config, auto_play=False)
    page = page.replace("<head>", f"<head><title>{html.escape(name)}</title>", 1)
    write_bytes(place / f"{name}.html", page.encode())

    table = data if data is not None else _points(figure)
    csv = None if table is None else place / f"{name}.csv"
    if csv is not None and table is not None:
        write_bytes(csv, table.to_csv(index=False, lineterminator="\n").encode())

    png = place / f"{name}.png"
    picture = browser.draw(figure)
    if picture is not None:
        write_bytes(png, picture)
    else:
        png.unlink(missing_ok=True)  # one of an earlier figure would not belong to this one
    return SavedFigure(name, place / f"{name}.html", csv, png if picture is not None else None, figure)


def _points(figure: go.Figure) -> pd.DataFrame | None:
    """Points of a figure's lines, one row each; neither bands nor whiskers that stand beside their point."""
    traces = [trace for trace in figure.data if trace.type == "scatter" and trace.x is not None and trace.fill is None]
    traces = [trace for trace in traces if (trace.mode, trace.hoverinfo) != ("markers", "skip")]
    parts = [pd.DataFrame({"trace": trace.name or "", "x": list(trace.x), "y": list(trace.y)}) for trace in traces]
    return pd.concat(parts, ignore_index=True) if parts else None


def compact(png: bytes, most: int = INLINE_PICTURE_BYTES) -> bytes:
    """A smaller picture for a notebook, which holds several, as JPEG."""
    with Image.open(io.BytesIO(png)) as image:
        picture = image.convert("RGB")
    for shrink, quality in ((1.0, 76), (1.5, 76), (2.0, 76), (2.0, 64)):
        size = (round(picture.width / shrink), round(picture.height / shrink))
        small = picture.resize(size, Image.Resampling.LANCZOS) if shrink > 1 else picture
        out = io.BytesIO()
        small.save(out, "JPEG", quality=quality, optimize=True, progressive=True)
        if len(out.getvalue()) <= most:
            break
    return out.getvalue()


def _in_few_colours(png: bytes) -> bytes:
    """The same picture as a PNG of 64 colours: for curves and text smaller than a JPEG, and sharp."""
    with Image.open(io.BytesIO(png)) as image:
        picture = image.convert("RGB").quantize(64, dither=Image.Dither.NONE)
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()
