"""The explorer without its widgets: what is open, what is shown, and what follows from a change."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bindkit.affinities.scoring import Picture
from bindkit.affinities.stitching import ImageGrid
from bindkit.cache.forward import ActivationSource
from bindkit.errors import BindkitError, InvalidParameterError, ProbeError
from bindkit.scenes import Scene
from bindkit.scenes.scene import SceneSet
from bindkit.views.explorer.answering import Answer, answers_of
from bindkit.views.explorer.drawing import Panel
from bindkit.views.explorer.engine import Engine, Map
from bindkit.views.explorer.factors import Rows
from bindkit.views.explorer.sources import Probes, Shelf, ShownImage, shown_backbones, shown_images, uploaded_image
from bindkit.views.explorer.state import State, View, nearest_layer, patch_of, place_of
from bindkit.views.explorer.words import note_of, status_of, title_of
from bindkit.views.viewer.exporting import export_viewer
from bindkit.views.viewer.probe_choice import spread

logger = logging.getLogger(__name__)

_PAGE_LAYERS = 9

_NO_PROBES = (
    "There is no fitted probe to show affinity with; cosine similarity, attention and PCA colours work without one. "
    "Fit one with bk.fit_probe(cache, layer=..., probe='quadratic') and give it, or its directory, as probes."
)
_NO_IMAGE = "There is no image yet. Open a picture of yours with the button, or give some: images=[...]."


class Session:
    """Backbones, images, and the state of what is shown of them.

    Attributes
    ----------
    state : State
        Set through `change` and `view`.
    panels : list of Panel
        What `look` found last.
    problems : list of str
        What is to be said of it.
    """

    def __init__(
        self,
        backbone: ActivationSource | str | Sequence[ActivationSource | str] | Mapping[Any, Probes],
        probes: Probes,
        images: SceneSet | Iterable[Picture],
        class_names: Mapping[int, str] | None,
        tell: Callable[[str], None],
        memory: int,
    ) -> None:
        self.images, self._remarks = shown_images(images, class_names)
        self.backbones = shown_backbones(backbone, probes)
        for entry in self.backbones:
            entry.tell = tell
        self.engine = Engine(self.backbones, self.images, tell, memory)
        self.state = State(View())
        self.panels: list[Panel] = []
        self.problems: list[str] = []

    # --- changes ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin with the first backbone's best layer, and a telling patch of the first image."""
        view = self.state.view
        if self.images:
            shelf = self.backbones[view.backbone].shelf
            kind = shelf.kinds[0] if shelf.kinds else None
            view = replace(view, image=0, probe=kind, layer=shelf.best_layer(kind))
        self.state = replace(self.state, view=self._telling(self._settled(view)))

    def view(self, **changes: Any) -> None:
        """Change the main view; what does not fit any more follows."""
        old = self.state.view
        if "backbone" in changes:
            self.backbones[changes["backbone"]].try_again()
        view = self._settled(replace(old, **changes))
        if view.image != old.image and "place" not in changes:
            view = self._telling(view)
        self.state = replace(self.state, view=view)

    def change(self, **changes: Any) -> None:
        """Change anything but the view."""
        self.state = replace(self.state, **changes)

    def step_layer(self, step: int) -> None:
        """Go so many layers on, among those that can be shown."""
        layers = self.layers()
        at = layers.index(self.state.view.layer) + step
        self.view(layer=layers[min(max(at, 0), len(layers) - 1)])

    def step_image(self, step: int) -> None:
        """Go so many images on."""
        self.view(image=min(max(self.state.view.image + step, 0), len(self.images) - 1))

    def open(self, name: str, content: bytes) -> None:
        """Add a picture, the bytes of a file, and show it. Raises BrokenSceneError."""
        self.images.append(uploaded_image(name, content))
        if len(self.images) == 1:
            self.start()
        else:
            self.view(image=len(self.images) - 1)

    # --- what there is ----------------------------------------------------------------------------------

    def grid(self) -> ImageGrid:
        """Patch grid of the image shown. Raises as `Engine.grid`, and InvalidParameterError without an image."""
        if not self.images:
            raise InvalidParameterError(_NO_IMAGE)
        return self.engine.grid(self.state.view.backbone, self.state.view.image)

    def shelf(self) -> Shelf | None:
        """Probes of the backbone shown, if it could be loaded."""
        found: Shelf | None = vars(self.backbones[self.state.view.backbone]).get("shelf")
        return found

    def layers(self) -> tuple[int, ...]:
        """Layers that can be shown: for affinity those that have a probe."""
        shelf, view = self.shelf(), self.state.view
        return (view.layer,) if shelf is None else _layers(shelf, view)

    def heads(self) -> int:
        """Attention heads of the backbone shown; 0 if it does not say."""
        tower = getattr(vars(self.backbones[self.state.view.backbone]).get("source"), "tower", None)
        config = getattr(getattr(tower, "model", None), "config", None)
        return int(getattr(config, "num_attention_heads", 0) or 0)

    def _settled(self, view: View) -> View:
        """A view of what is there: a kind of probe that the backbone has, a layer that can be shown."""
        try:
            shelf = self.backbones[view.backbone].shelf
        except (BindkitError, OSError):  # said where the map would be
            return view
        kind = view.probe if view.probe in shelf.kinds else (shelf.kinds[0] if shelf.kinds else None)
        measure = view.measure if kind is not None or view.measure != "affinity" else "cosine"
        # After a backbone without probes: back to affinity.
        if kind is not None and view.probe is None and measure == "cosine":
            measure = "affinity"
        view = replace(view, probe=kind, measure=measure)
        return replace(view, layer=nearest_layer(view.layer, _layers(shelf, view)))

    def _telling(self, view: View) -> View:
        """With a patch worth a first look, if the image can be read."""
        try:
            image, grid = self.images[view.image], self.engine.grid(view.backbone, view.image)
        except (BindkitError, OSError, IndexError):
            return view
        return replace(view, place=place_of(*telling_place(image, grid), grid))

    # --- what is seen -----------------------------------------------------------------------------------

    def look(self) -> None:
        """Find what is to be shown, and what is to be said of it."""
        self.problems = list(self._remarks)
        self.panels = [self._panel(name, view) for name, view in self.state.panels()] if self.images else []
        if not self.images:
            self.problems.append(_NO_IMAGE)
        shelf = self.shelf()
        if shelf is not None:
            self.problems += shelf.problems
            if not shelf.kinds:
                self.problems.append(_NO_PROBES)

    @property
    def main(self) -> Map | None:
        """The main map; None where nothing can be shown."""
        return self.panels[0].found if self.panels else None

    @property
    def status(self) -> str:
        """What is seen, in a line; "" where nothing is."""
        if self.main is None or self.main.patch is None:
            return ""
        return status_of(self.state.view, self.main, self.panels[0].image, self.state.threshold)

    def answers(self, traces_of: Callable[[str], Mapping[str, int]]) -> list[Answer]:
        """What the browser may redraw by itself; `traces_of` gives the traces of a panel."""
        if self.main is None:
            return []

        def rows_of(name: str, view: View) -> Rows:
            other = self.state.second if name == "second" and self.state.second is not None else view.image
            return self.engine.affinities(view.backbone, view.image, other, view.layer, view.probe)

        def grid_of(view: View) -> ImageGrid:
            return self.engine.grid(view.backbone, view.image)

        return answers_of(self.state, self.panels, rows_of, grid_of, traces_of)

    def _panel(self, name: str, view: View) -> Panel:
        second = self.state.second if name == "second" else None
        image = self.images[view.image if second is None else second]
        title = title_of(name, view, self.state, image.name)
        found = None
        try:
            found = self.engine.map(view, second, self.state.head)
        except (BindkitError, OSError) as error:
            words = str(error)
        except Exception as error:  # of a probe or a model of the user's own, or a fault of ours
            logger.exception("the %s map failed", view.measure)
            words = f"This map failed ({type(error).__name__}: {error}). Details are in the log."
        if found is None:
            self.problems.append(words)
            return Panel(name, view.measure, image, None, title, words)
        note = note_of(view, self.backbones[view.backbone].title, found, of_patch=name == "locked")
        own = -1 if found.patch is None else int(image.labels(found.grid)[found.patch])
        return Panel(name, view.measure, image, found, title, note, own)

    # --- the page ---------------------------------------------------------------------------------------

    def save_page(self, place: Path) -> Path:
        """Write a page of the images and backbones that are shown, with up to nine layers and the shown one.

        Raises
        ------
        ProbeError
            Without a probe there is no affinity for a page.
        BindkitError, OSError
            As `bindkit.export_viewer`.
        """
        views = [self.state.view, *filter(None, [self.state.locked_view()])]
        probes: dict[Any, list[Any]] = {}
        for view in views:
            if view.probe is None:
                raise ProbeError("a page shows affinity, which needs a fitted probe; save a picture instead")
            entry = self.backbones[view.backbone]
            there = entry.shelf.layers(view.probe)
            shown = {*spread(there, _PAGE_LAYERS), view.layer} & set(there)
            probes.setdefault(entry.source, [entry.shelf.probe(view.probe, layer) for layer in sorted(shown)])
        numbers = [view.image for view in views] + [self.state.second]
        images = [self.images[number] for number in dict.fromkeys(numbers) if number is not None]
        names = {key: name for image in images for key, name in image.subject.class_names.items()}
        view = self.state.view
        row, col = patch_of(view.place, self.grid())
        start = {name: getattr(self.state, name) for name in ("threshold", "opacity", "colours")}
        start |= {"backbone": self.backbones[view.backbone].title, "layer": view.layer, "patch": f"{row},{col}"}
        scenes = [_as_scene(image) for image in images]
        return export_viewer(place, probes, images=scenes, class_names=names, start=start)


def telling_place(image: ShownImage, grid: ImageGrid) -> tuple[int, int]:
    """Row and column of a patch worth a first look: in the middle of the object of most patches that has a twin.

    Without twins it is the object of most patches, without objects the image's middle.
    """
    labels = image.labels(grid)
    sizes = [(int((labels == k).sum()) if entry["twins"] else 0) for k, entry in enumerate(image.objects)]
    if not any(sizes):
        sizes = [int((labels == k).sum()) for k in range(len(image.objects))]
    if not any(sizes):
        return grid.rows // 2, grid.cols // 2
    places = np.argwhere(labels == int(np.argmax(sizes)))
    row, col = places[((places - places.mean(0)) ** 2).sum(1).argmin()]
    return int(row), int(col)


def _layers(shelf: Shelf, view: View) -> tuple[int, ...]:
    return shelf.layers(view.probe if view.measure == "affinity" else None)


def _as_scene(image: ShownImage) -> Scene:
    """An image as a scene, so that it keeps its name on a page."""
    if image.subject.scene is not None:
        return image.subject.scene
    nothing = np.zeros(image.size, dtype=np.int32)
    return Scene(image.name, image.pixels, nothing, nothing)
