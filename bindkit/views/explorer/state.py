"""What the explorer shows, as plain values, and how it changes: pure functions, no widget, no model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bindkit.affinities.scoring import ImageGrid

MEASURES = {
    "affinity": "Affinity",
    "cosine": "Cosine similarity",
    "attention": "Attention of the next layer",
    "pca": "PCA colours",
    "objects": "Objects found",
}
"""What a map can show, with its name for people."""

JUDGED = ("affinity", "cosine")
"""Measures of pairs, which a threshold judges."""

COLOURED = ("pca", "objects")
"""Measures of patches, which have colours and no scale."""

BY_PROBE = ("affinity", "objects")
"""Measures that a fitted probe is asked for."""

BESIDE = ("picture", "cosine", "attention", "pca", "objects")
"""What can stand beside the main map, in the order in which it stands: the picture alone, or measures."""

LOCKS = {
    "": "nothing",
    "view": "the whole view",
    "patch": "its patch",
    "layer": "its layer",
    "backbone": "its backbone",
}
"""What a lock can hold, with its name for people."""

_HELD = {
    "view": ("image", "backbone", "probe", "layer", "place", "measure"),
    "patch": ("place",),
    "layer": ("layer",),
    "backbone": ("backbone", "probe", "layer"),
}


@dataclass(frozen=True)
class View:
    """One map: what is asked of which patch.

    Image and backbone are positions in the explorer's lists; the probe is a kind, None where affinity is not asked for.
    The place of the chosen patch, (down, across) in the image, each in [0, 1), stays where it is when the patch grid
    changes. Where there is a second image, its patches are compared with the chosen one.
    """

    image: int = 0
    backbone: int = 0
    probe: str | None = None
    layer: int = 0
    place: tuple[float, float] = (0.5, 0.5)
    measure: str = "affinity"
    second: int | None = None

    @property
    def shown(self) -> int:
        """The image whose patches have the values."""
        return self.image if self.second is None else self.second


@dataclass(frozen=True)
class State:
    """Everything that the explorer shows."""

    view: View
    """The one that clicks and controls change."""
    lock: str = ""
    """Which part of `locked` stays while the rest follows the view: a key of `LOCKS`."""
    locked: View | None = None
    """The view as it was when the lock was set."""
    beside: tuple[str, ...] = ("picture",)
    second: int | None = None
    """Another image whose patches are compared with the chosen one."""
    head: int | None = None
    """Attention head; None is the mean over heads."""
    threshold: float = 0.5
    """From which on a patch counts as of the object, as a share of its map's scale: of affinities the value itself."""
    top: int = 0
    """So many highest patches are marked, none of them within `apart` patches of the chosen one."""
    apart: int = 1
    opacity: float = 0.7
    """Of the colours over the image, in [0, 1]."""
    colours: str = "viridis"
    outlines: bool = True
    """Whether the true object is outlined."""

    def locked_view(self) -> View | None:
        """What the lock shows: the part that it holds as it was, the rest as it is."""
        if self.locked is None:
            return None
        return replace(self.view, **{name: getattr(self.locked, name) for name in _HELD[self.lock]})

    def panels(self) -> list[tuple[str, View]]:
        """Maps to show, in order: main, picture, locked, others beside, second; each with its view."""
        beside = [measure for measure in BESIDE if measure in self.beside and measure != self.view.measure]
        shown = [("main", self.view)]
        shown += [(measure, replace(self.view, measure=measure)) for measure in beside]
        if locked := self.locked_view():
            # Next to the main map, after the picture.
            shown.insert(1 + ("picture" in beside), ("locked", locked))
        if self.second is not None:
            # Attention stays within one image, and colours say nothing of pairs.
            asked = self.view.measure if self.view.measure in JUDGED else "cosine"
            shown.append(("second", replace(self.view, measure=asked, second=self.second)))
        return shown

    def clicking(self, panel: str, place: tuple[float, float]) -> State:
        """With the patch at a place of a panel chosen: in a panel that holds its patch, that panel's own."""
        if panel == "second":
            return self
        if panel == "locked" and self.locked is not None and "place" in _HELD[self.lock]:
            return replace(self, locked=replace(self.locked, place=place))
        return replace(self, view=replace(self.view, place=place))


def patch_of(place: tuple[float, float], grid: ImageGrid) -> tuple[int, int]:
    """Row and column of the patch at a place, the nearest one where the place is outside the image."""
    row, col = int(place[0] * grid.rows // 1), int(place[1] * grid.cols // 1)
    return min(max(row, 0), grid.rows - 1), min(max(col, 0), grid.cols - 1)


def place_of(row: int, col: int, grid: ImageGrid) -> tuple[float, float]:
    """Centre of a patch."""
    return (row + 0.5) / grid.rows, (col + 0.5) / grid.cols
