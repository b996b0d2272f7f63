"""The explorer: click a patch, see which others belong to it, at every layer of every backbone."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np

from bindkit.affinities.scoring import Picture
from bindkit.backbones.sources import ActivationSource
from bindkit.errors import BindkitError, GeometryError, InvalidParameterError, LayerError, ProbeError
from bindkit.files import write_bytes
from bindkit.scenes.scene import SceneSet
from bindkit.views.explorer.engine import MEMORY
from bindkit.views.explorer.figure import picture_figure
from bindkit.views.explorer.screen import Pad, Screen
from bindkit.views.explorer.session import Session
from bindkit.views.explorer.state import BESIDE, LOCKS, MEASURES, patch_of, place_of
from bindkit.views.figures.saving import browser, compact
from bindkit.views.viewer.probe_choice import Probes


class AffinityExplorer(widgets.VBox):
    """Click a patch of an image and see its affinity to every other patch; the last line of a cell shows it.

    What is clicked can also be set and read in Python. Whatever goes wrong after the explorer is made is said in it, in
    words, and it goes on; what is set in Python raises.

    ::

        explorer = bk.AffinityExplorer(backbone, "workspace/probes", scenes_or_photos)
        explorer                                    # shows it
        explorer.patch = 12, 7                      # row and column
        explorer.layer = 5
        explorer.scores[12, 8]                      # affinity to the right-hand neighbour
        explorer.save("view.png")

    Parameters
    ----------
    backbone : Backbone, name, sequence of these, or mapping
        One model or several; a mapping gives each its probes. Named models are loaded when they are first shown.
    probes : Probe, path, or sequence of these, optional
        Fitted probes, their directories, or a directory with many (a workspace's ``probes``). Without any, cosine
        similarity, attention and PCA colours are shown.
    images : scene set, or iterable of scenes, paths, PIL images and arrays
        Read when first shown. With scenes, objects have names and outlines.
    class_names : mapping, optional
        Class id -> name, for scenes; a scene set brings its own.
    memory : int
        Bytes of activations and factors to hold.

    Raises
    ------
    InvalidParameterError
        For something that is no backbone, or one image where a list belongs.
    """

    def __init__(
        self,
        backbone: ActivationSource | str | Sequence[ActivationSource | str] | Mapping[Any, Probes],
        probes: Probes = None,
        images: SceneSet | Iterable[Picture] = (),
        *,
        class_names: Mapping[int, str] | None = None,
        memory: int = MEMORY,
    ) -> None:
        self._pad = Pad()
        self._session = Session(backbone, probes, images, class_names, self._pad.tell, memory)
        self._screen = Screen(self._session, self._pad, self.save)
        super().__init__([self._screen.body])
        self.add_class("bindkit-explorer")
        self._screen.do(self._session.start)

    # --- what is shown, for scripts -------------------------------------------------------------------

    @property
    def figure(self) -> Any:
        """The Plotly FigureWidget."""
        return self._screen.live.widget

    @property
    def scores(self) -> np.ndarray:
        """What the main map shows: float32 [rows, cols], of PCA colours uint8 [rows, cols, 3].

        Raises InvalidParameterError, which says why, if nothing can be shown.
        """
        return self.maps["main"]

    @property
    def maps(self) -> dict[str, np.ndarray]:
        """What every map shows, by panel: main, locked, measures of `BESIDE`, second. Raises as `scores`."""
        if self._session.main is None:
            raise InvalidParameterError("\n".join(self._session.problems) or "nothing is shown yet")
        shown = (panel for panel in self._session.panels if panel.name != "picture")
        return {panel.name: panel.found.values for panel in shown if panel.found is not None}

    @property
    def status(self) -> str:
        """The line that says what is seen."""
        return self._session.status

    @property
    def message(self) -> str:
        """What went wrong or should be known, or nothing."""
        return str(self._pad.message)

    @property
    def patch(self) -> tuple[int, int]:
        """Row and column of the chosen patch. Setting raises GeometryError outside the grid."""
        return patch_of(self._session.state.view.place, self._session.grid())

    @patch.setter
    def patch(self, chosen: tuple[int, int]) -> None:
        grid, (row, col) = self._session.grid(), chosen
        if not (0 <= row < grid.rows and 0 <= col < grid.cols):
            raise GeometryError(f"patch ({row}, {col}) is outside a grid of {grid.rows} x {grid.cols} patches")
        self._view(place=place_of(row, col, grid))

    @property
    def layer(self) -> int:
        """Layer shown. Setting raises LayerError for one that cannot be shown."""
        return self._session.state.view.layer

    @layer.setter
    def layer(self, layer: int) -> None:
        there = self._session.layers()
        if layer not in there:
            raise LayerError(f"layer {layer} cannot be shown here, only {', '.join(map(str, there))}")
        self._view(layer=int(layer))

    @property
    def image(self) -> str:
        """Name of the image. Set it by name or by position."""
        return self._session.images[self._session.state.view.image].name

    @image.setter
    def image(self, chosen: str | int) -> None:
        self._view(image=self._image_at(chosen))

    @property
    def backbone(self) -> str:
        """Name of the backbone. Set it by name or by position."""
        return self._session.backbones[self._session.state.view.backbone].title

    @backbone.setter
    def backbone(self, chosen: str | int) -> None:
        self._view(backbone=_position(chosen, [entry.title for entry in self._session.backbones], "backbone"))

    @property
    def probe(self) -> str | None:
        """Kind of probe, or None. Setting raises ProbeError for a kind that is not there."""
        return self._session.state.view.probe

    @probe.setter
    def probe(self, kind: str) -> None:
        shelf = self._session.shelf()
        there = () if shelf is None else shelf.kinds
        if kind not in there:
            raise ProbeError(f"{self.backbone} has no {kind} probe here; it has {', '.join(there) or 'none'}")
        self._view(probe=kind)

    @property
    def measure(self) -> str:
        """What the main map shows: affinity, cosine, attention, pca or objects."""
        return self._session.state.view.measure

    @measure.setter
    def measure(self, measure: str) -> None:
        self._view(measure=_one_of(measure, MEASURES, "measure"))

    @property
    def threshold(self) -> float:
        """From which on a patch counts as of the object, in the main map's units; it stays where it is on the scale."""
        shown = self._session.panels[0].threshold if self._session.panels else None
        return self._session.state.threshold if shown is None else shown

    @threshold.setter
    def threshold(self, threshold: float) -> None:
        low, high = (0, 1) if (main := self._session.main) is None or main.is_coloured else (main.low, main.high)
        self._set(threshold=min(max((threshold - low) / (high - low), 0.0), 1.0) if high > low else 0.0)

    @property
    def beside(self) -> tuple[str, ...]:
        """What stands beside the main map: any of picture (as it is), cosine, attention, pca, objects."""
        return self._session.state.beside

    @beside.setter
    def beside(self, measures: Sequence[str]) -> None:
        self._set(beside=tuple(_one_of(measure, BESIDE, "map beside it") for measure in measures))

    @property
    def second(self) -> str | None:
        """Name of the image whose patches are compared with the chosen one, or None. Set it as `image`."""
        second = self._session.state.second
        return None if second is None else self._session.images[second].name

    @second.setter
    def second(self, chosen: str | int | None) -> None:
        self._set(second=None if chosen is None else self._image_at(chosen))

    def lock(self, held: str = "view") -> None:
        """Hold the present ``"view"``, or only its ``"patch"``, ``"layer"`` or ``"backbone"``; ``""`` lets go."""
        self._session.lock(_one_of(held, LOCKS, "lock"))
        self._screen.refresh()

    @property
    def n_bytes(self) -> int:
        """Bytes of activations and factors that are held now."""
        return self._session.engine.store.n_bytes

    def add_image(self, name: str, content: bytes) -> None:
        """Add a picture, given as the bytes of its file, and show it. Raises BrokenSceneError if it cannot be read."""
        self._session.open(name, content)
        self._screen.refresh()

    def save(self, path: str | Path) -> Path:
        """Save what is shown: as a picture (``.png``), a drawing (``.svg``) or a page with its layers (``.html``).

        Raises
        ------
        InvalidParameterError
            For another ending, or where nothing is shown.
        BindkitError
            If there is no Chromium to draw a picture with, or no probe for a page.
        OSError
            If the file cannot be written.
        """
        place = Path(path).expanduser()
        kind = place.suffix.lower().removeprefix(".")
        if kind not in ("png", "svg", "html"):
            raise InvalidParameterError(f"a view is saved as .png, .svg or .html, got {place.name!r}")
        _ = self.maps  # says why if nothing is shown
        if kind == "html":
            return self._session.save_page(place)
        content = self._drawn(kind)
        if content is None:
            raise BindkitError(
                "drawing a picture needs Chromium: install it, or name its program in BROWSER_PATH; a page (.html) "
                "can be saved without"
            )
        place.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(place, content)
        return place

    def close(self) -> None:
        """Free all memory and take the explorer off the screen."""
        if not hasattr(self, "_screen"):  # refused before it was made
            return
        self._session.engine.store.clear()
        self._session.images.clear()
        self._session.panels = []
        self._screen.close()
        _close_below(self)
        super().close()

    def __repr__(self) -> str:
        session = self._session
        what = f"{len(session.backbones)} backbones, {len(session.images)} images"
        return f"AffinityExplorer({what}; {self.status or 'nothing shown'})"

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The widget; in a batch run, which nobody can click in, also a picture of it for readers."""
        bundle = super()._repr_mimebundle_(**options)
        in_batch = os.environ.get("BINDKIT_PROGRESS", "auto") != "auto"
        content = self._drawn("png") if in_batch and self._session.main is not None else None
        if content is not None:
            bundle["image/jpeg"] = base64.b64encode(compact(content)).decode()
        return bundle

    def _image_at(self, chosen: str | int) -> int:
        return _position(chosen, [image.name for image in self._session.images], "image")

    def _view(self, **changes: Any) -> None:
        self._session.view(**changes)
        self._screen.refresh()

    def _set(self, **changes: Any) -> None:
        self._session.change(**changes)
        self._screen.refresh()

    def _drawn(self, kind: str) -> bytes | None:
        return browser.draw(picture_figure(self._session.panels, self._session.state, self.status), kind)


def _position(chosen: str | int, names: Sequence[str], what: str) -> int:
    if isinstance(chosen, str) and chosen in names:
        return names.index(chosen)
    if not isinstance(chosen, str) and 0 <= chosen < len(names):
        return int(chosen)
    there = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    raise InvalidParameterError(f"there is no {what} {chosen!r}; there are {there or 'none'}, or give a position")


def _one_of(chosen: str, there: Iterable[str], what: str) -> str:
    if chosen not in there:
        raise InvalidParameterError(f"there is no {what} {chosen!r}; there are {', '.join(map(repr, there))}")
    return chosen


def _close_below(widget: Any) -> None:
    for child in getattr(widget, "children", ()):
        _close_below(child)
        child.close()
