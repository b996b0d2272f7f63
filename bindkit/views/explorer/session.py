"""The explorer without its widgets: what is open, what is shown, what follows from a change, and all of it in words."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bindkit.affinities.scoring import ImageGrid, Picture
from bindkit.backbones.sources import ActivationSource
from bindkit.errors import BindkitError, InvalidParameterError, ProbeError
from bindkit.scenes import Scene
from bindkit.scenes.scene import SceneSet
from bindkit.views.explorer.engine import Engine, Map, bytes_of
from bindkit.views.explorer.rows import Factors
from bindkit.views.explorer.sources import INSET, Shelf, ShownImage, shown_backbones, shown_images, uploaded_image
from bindkit.views.explorer.state import BY_PROBE, JUDGED, LOCKS, MEASURES, State, View, patch_of, place_of
from bindkit.views.viewer.exporting import export_viewer
from bindkit.views.viewer.probe_choice import Probes, best_backbone, spread

logger = logging.getLogger(__name__)

MOST_BYTES = 4_000_000
"""Of the factors of one map that the browser is given; of larger ones the kernel answers presses alone."""

DIGITS = {"affinity": ".2f", "cosine": ".3f", "attention": ".2%"}
"""How values of a measure are written."""

_PAGE_LAYERS = 9

_ELSEWHERE = (-1.0, -1.0)
"""A place that no patch has."""

_NO_PROBES = (
    "There is no fitted probe to show affinity with; cosine similarity, attention and PCA colours work without one. "
    "Fit one with bk.fit_probe(cache, layer=..., probe='quadratic') and give it, or its directory, as probes."
)
_NO_IMAGE = "There is no image yet. Open a picture of yours with the button, or give some: images=[...]."


@dataclass(frozen=True, eq=False)
class Panel:
    """One map on the screen: main, locked, one of `BESIDE`, or second.

    Nothing is found where there is something wrong, and the note, the second line above the map, says what. `own` is
    the position of the chosen patch's object in this image, -1 for none. The threshold is in the map's own units, None
    where it shows no numbers of pairs.
    """

    name: str
    view: View
    image: ShownImage
    found: Map | None
    title: str
    note: str
    own: int = -1
    threshold: float | None = None

    @property
    def above(self) -> np.ndarray | None:
        """Which patches are at the threshold or above, bool [rows, cols]; None where there is none."""
        if self.found is None or self.threshold is None:
            return None
        return np.asarray(self.found.values >= self.threshold)

    @property
    def is_outlined(self) -> bool:
        """Whether the threshold has an outline: around nearly all patches it would frame the others, the low ones."""
        return (above := self.above) is not None and 10 * int(above.sum()) <= 9 * above.size


@dataclass(frozen=True)
class Answer:
    """One affinity map that the browser may redraw, which takes several times less than the way to the kernel and back.

    A press on the panels, by number from 1, moves the patch, one of the grid `own`; values are of the patches of
    `shown`; the figure's traces are by role.
    """

    panels: tuple[int, ...]
    factors: Factors
    own: ImageGrid
    shown: ImageGrid
    traces: Mapping[str, int]
    threshold: float

    def packed(self) -> dict[str, Any]:
        """As `answers.js` reads it; numbers as little-endian float32."""
        parts = {name: getattr(self.factors, name).numpy() for name in ("left", "right", "left_offset", "right_offset")}
        return {
            **{name: np.ascontiguousarray(part, "<f4").tobytes() for name, part in parts.items()},
            "rank": self.factors.rank,
            "scale": self.factors.scale,
            "own": [self.own.rows, self.own.cols],
            "shown": [self.shown.rows, self.shown.cols],
            "panels": list(self.panels),
            "heat": self.traces["heat"],
            "guess": self.traces["guess"],
            "marks": [number for role, number in self.traces.items() if "mark" in role],
            "inset": INSET,
            "threshold": self.threshold,
        }


class Session:
    """Backbones, images, and the state of what is shown of them, set through `change` and `view`.

    `panels` is what `look` found last, `problems` what is to be said of it.
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
        self.backbones = shown_backbones(backbone, probes, tell)
        self.engine = Engine(self.backbones, self.images, tell, memory)
        self.state = State(View())
        self.panels: list[Panel] = []
        self.problems: list[str] = []

    # --- changes ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin with the best layer of the backbone that does best, and a telling patch of the first image."""
        view = self.state.view
        if self.images:
            if len(self.backbones) > 1:
                view = replace(view, backbone=best_backbone([entry.candidates for entry in self.backbones]))
            shelf = self.backbones[view.backbone].shelf
            kind = shelf.kinds[0] if shelf.kinds else None
            view = replace(view, image=0, probe=kind, layer=shelf.best_layer(kind))
        self.change(view=self._telling(self._settled(view)))

    def view(self, **changes: Any) -> None:
        """Change the main view; what does not fit any more follows."""
        old = self.state.view
        if "backbone" in changes:
            self.backbones[changes["backbone"]].try_again()
        view = self._settled(replace(old, **changes))
        if view.image != old.image and "place" not in changes:
            view = self._telling(view)
        self.change(view=view)

    def change(self, **changes: Any) -> None:
        """Change the state as it is told."""
        self.state = replace(self.state, **changes)

    def lock(self, lock: str) -> None:
        """Hold the present view, wholly or in part, by a key of `LOCKS`; ``""`` lets go."""
        self.change(lock=lock, locked=self.state.view if lock else None)

    def step(self, part: str, step: int) -> None:
        """Go so many layers on, among those that can be shown, or so many images."""
        there = self.layers() if part == "layer" else range(len(self.images))
        if there:
            at = there.index(getattr(self.state.view, part)) + step
            self.view(**{part: there[min(max(at, 0), len(there) - 1)]})

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
        return (tower is not None and tower.shape.n_heads) or 0

    def _settled(self, view: View) -> View:
        """A view of what is there: a kind of probe that the backbone has, a layer that can be shown."""
        try:
            shelf = self.backbones[view.backbone].shelf
        except (BindkitError, OSError):  # said where the map would be
            return view
        kind = view.probe if view.probe in shelf.kinds else next(iter(shelf.kinds), None)
        measure = view.measure if kind is not None or view.measure != "affinity" else "cosine"
        # After a backbone without probes: back to affinity.
        if kind is not None and view.probe is None and measure == "cosine":
            measure = "affinity"
        view = replace(view, probe=kind, measure=measure)
        # The nearest layer; of two equally near the lower.
        return replace(view, layer=min(_layers(shelf, view), key=lambda layer: (abs(layer - view.layer), layer)))

    def _telling(self, view: View) -> View:
        """With a patch worth a first look, if the image can be read.

        In the middle of the object of most patches that has a twin; without twins of the object of most patches, and
        without objects of the image.
        """
        try:
            image, grid = self.images[view.image], self.engine.grid(view.backbone, view.image)
        except (BindkitError, OSError, IndexError):
            return view
        labels = image.labels(grid)
        sizes = [int((labels == position).sum()) for position in range(len(image.objects))]
        with_twins = [size if entry["twins"] else 0 for size, entry in zip(sizes, image.objects, strict=True)]
        sizes = with_twins if any(with_twins) else sizes
        row, col = grid.rows // 2, grid.cols // 2
        if any(sizes):
            places = np.argwhere(labels == int(np.argmax(sizes)))
            row, col = map(int, places[((places - places.mean(0)) ** 2).sum(1).argmin()])
        return replace(view, place=place_of(row, col, grid))

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
        # Panels that look through one model say one thing of it.
        self.problems = list(dict.fromkeys(self.problems))

    def _panel(self, name: str, view: View) -> Panel:
        image = self.images[view.shown]
        title = MEASURES.get(view.measure, "Picture")
        if name == "second":
            title = f"{title} across images · {image.name}"
        if name == "locked":
            held = "" if self.state.lock == "view" else LOCKS[self.state.lock].removeprefix("its")
            title = f"Locked{held}: {title.lower()}"
        try:
            found = self.engine.map(view, self.state.head)
        except Exception as error:
            words = str(error)
            # Others are of a probe or a model of the user's own, or a fault of ours.
            if not isinstance(error, BindkitError | OSError):
                logger.exception("the %s map failed", view.measure)
                words = f"This map failed ({type(error).__name__}: {error}). Details are in the log."
            self.problems.append(words)
            return Panel(name, view, image, None, title, words)
        own = -1 if found.patch is None else int(image.labels(found.grid)[found.patch])
        if name == "picture":
            return Panel(name, view, image, found, title, image.name, own)
        parts = [f"layer {view.layer}"]
        if view.measure in BY_PROBE:
            parts.append(f"{str(view.probe).replace('_', ' ')} probe")
        if found.note:
            parts.append(found.note)
        if name == "locked" and found.patch is not None:
            parts.append(f"patch {found.patch[0]}, {found.patch[1]}")
        parts.append(self.backbones[view.backbone].title)
        share, judged = self.state.threshold, view.measure in JUDGED
        threshold = found.low + share * (found.high - found.low) if judged else None
        return Panel(name, view, image, found, title, " · ".join(parts), own, threshold)

    @property
    def main(self) -> Map | None:
        """The main map; None where nothing can be shown."""
        return self.panels[0].found if self.panels else None

    @property
    def status(self) -> str:
        """What is seen in the main map, in a line; "" where nothing is.

        Means are over patches other than the chosen one. An image without masks has no objects to speak of.
        """
        if self.main is None or self.main.patch is None:
            return ""
        main, found, patch = self.panels[0], self.main, self.main.patch
        image, own, view = main.image, main.own, self.state.view
        parts = [f"Patch row {patch[0]}, column {patch[1]}"]
        if name := image.object_name(own):
            parts.append(name)
        shelf = self.shelf()
        if not image.objects and view.measure in BY_PROBE and shelf and shelf.is_synthetic(view.probe, view.layer):
            parts.append("a probe fitted on synthetic scenes says little of photos")
        if view.measure == "objects":
            parts.append("objects from affinities alone: one colour, one object (colours repeat after seven)")
            return " · ".join(parts)
        if found.is_coloured:
            parts.append(f"three principal components of layer {view.layer}: alike colours, alike activations")
            return " · ".join(parts)
        values, labels = found.values, image.labels(found.grid)
        if image.objects:
            parts.append(f"{view.measure} to itself {number(view.measure, float(values[patch]))}")
        others = np.ones(values.shape, dtype=bool)
        others[patch] = False
        groups = [("all others", others)]
        if own >= 0:
            twins = np.isin(labels, image.objects[own]["twins"])
            groups = [("its object", (labels == own) & others), ("others of its class", twins & others)]
            groups.append(("the rest", (labels != own) & ~twins & others))
        means = [f"{what} {number(view.measure, float(values[which].mean()))}" for what, which in groups if which.any()]
        if means:
            parts.append(f"mean to {', '.join(means)}")
        if main.threshold is not None and (above := main.above) is not None:
            limit = number(view.measure, main.threshold)
            parts.append(f"{int(above.sum())} of {values.size} patches at {limit} or more")
            if not main.is_outlined:
                parts[-1] += ", nearly all: the threshold is off"
            elif own >= 0:
                parts.append(f"threshold IoU with its object {image.iou(above, found.grid, own):.2f}")
        return " · ".join(parts)

    def answers(self, traces_of: Callable[[str], Mapping[str, int]]) -> list[Answer]:
        """What the browser may redraw by itself: affinity maps of factors that are not too large.

        `traces_of` gives the number of each role's trace of a panel in the figure.
        """
        if self.main is None:
            return []
        moved_by = {
            panel.name: {
                name for name, view in self.state.clicking(panel.name, _ELSEWHERE).panels() if view.place == _ELSEWHERE
            }
            for panel in self.panels
        }
        found = []
        for panel in self.panels:
            view = panel.view
            if panel.found is None or view.measure != "affinity":
                continue
            factors = self.engine.rows(view)
            if not isinstance(factors, Factors) or bytes_of(factors) > MOST_BYTES:
                continue
            traces = dict(traces_of(panel.name))
            if panel.found.patch is None:  # the chosen patch lies in another image
                traces = {role: at for role, at in traces.items() if not role.startswith("mark")}
            # The picture's mark moves with it, where there is a picture.
            if panel.name == "main" and any(other.name == "picture" for other in self.panels):
                traces |= {f"picture {role}": at for role, at in traces_of("picture").items() if "mark" in role}
            movers = [at for at, mover in enumerate(self.panels, start=1) if panel.name in moved_by[mover.name]]
            own = self.engine.grid(view.backbone, view.image)
            assert panel.threshold is not None
            found.append(Answer(tuple(movers), factors, own, panel.found.grid, traces, panel.threshold))
        return found

    # --- the page ---------------------------------------------------------------------------------------

    def save_page(self, place: Path) -> Path:
        """Write a page of the images and backbones that are shown, with up to nine layers and the shown one.

        Raises ProbeError without a probe, as there is no affinity for a page then, and as `bindkit.export_viewer`.
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
        scenes = []
        for image in images:
            # A scene each, so that it keeps its name.
            nothing = np.zeros(image.size, dtype=np.int32)
            scenes.append(image.subject.scene or Scene(image.name, image.pixels, nothing, nothing))
        names = {key: name for image in images for key, name in image.subject.class_names.items()}
        view = self.state.view
        row, col = patch_of(view.place, self.grid())
        start = {name: getattr(self.state, name) for name in ("threshold", "opacity", "colours")}
        start |= {"backbone": self.backbones[view.backbone].title, "layer": view.layer, "patch": f"{row},{col}"}
        return export_viewer(place, probes, images=scenes, class_names=names, start=start)


def _layers(shelf: Shelf, view: View) -> tuple[int, ...]:
    return shelf.layers(view.probe if view.measure == "affinity" else None)


def number(measure: str, value: float) -> str:
    """A value of a measure: ``0.71``, of attention ``0.32%``, of cosine, which may vary little, ``0.712``."""
    return f"{value:{DIGITS[measure]}}"
