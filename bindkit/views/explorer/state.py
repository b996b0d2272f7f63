"""What the explorer shows, as plain values, and how it changes: pure functions, no widget, no model.

>>> view = View(layer=3)
>>> state = State(view).locking("layer")
>>> [(panel, shown.layer) for panel, shown in replace(state, view=replace(view, layer=5)).panels()]
[('main', 5), ('locked', 3)]
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bindkit.affinities.stitching import ImageGrid

MEASURES = {
    "affinity": "Affinity",
    "cosine": "Cosine similarity",
    "attention": "Attention of the next layer",
    "pca": "PCA colours",
}
"""What a map can show, with its name for people."""

PANELS = ("main", "locked", "cosine", "attention", "pca", "second")
"""Places of maps, in the order in which they stand."""

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

    Attributes
    ----------
    image, backbone : int
        Positions in the explorer's lists.
    probe : str or None
        Which of the backbone's kinds of probe; None where affinity is not asked for.
    layer : int
        0-based.
    place : (down, across)
        The chosen patch, as a place in the image in [0, 1): it stays where it is when the patch grid changes.
    measure : str
        A key of `MEASURES`.
    """

    image: int = 0
    backbone: int = 0
    probe: str | None = None
    layer: int = 0
    place: tuple[float, float] = (0.5, 0.5)
    measure: str = "affinity"


@dataclass(frozen=True)
class State:
    """Everything that the explorer shows.

    Attributes
    ----------
    view : View
        The one that clicks and controls change.
    lock : str
        A key of `LOCKS`: which part of `locked` stays while the rest follows the view.
    locked : View or None
        The view as it was when the lock was set.
    beside : tuple of str
        Further measures of the same patch.
    second : int or None
        Another image whose patches are compared with the chosen one.
    head : int or None
        Attention head; None is the mean over heads.
    threshold : float
        Affinity from which on a patch counts as of the object.
    top, apart : int
        So many highest patches are marked, none of them so near to the chosen one (in patches).
    opacity : float
        Of the colours over the image, in [0, 1].
    colours : str
        Name of the colour map.
    outlines : bool
        Whether the true object is outlined.
    """

    view: View
    lock: str = ""
    locked: View | None = None
    beside: tuple[str, ...] = ()
    second: int | None = None
    head: int | None = None
    threshold: float = 0.5
    top: int = 0
    apart: int = 1
    opacity: float = 0.7
    colours: str = "viridis"
    outlines: bool = True

    def locking(self, lock: str) -> State:
        """With the present view held, wholly or in part; ``""`` lets go."""
        return replace(self, lock=lock, locked=self.view if lock else None)

    def locked_view(self) -> View | None:
        """What the lock shows: the part that it holds as it was, the rest as it is."""
        if self.locked is None:
            return None
        return replace(self.view, **{name: getattr(self.locked, name) for name in _HELD[self.lock]})

    def panels(self) -> list[tuple[str, View]]:
        """Maps to show: panel and view, in order."""
        shown = [("main", self.view)]
        locked = self.locked_view()
        if locked is not None:
            shown.append(("locked", locked))
        shown += [
            (measure, replace(self.view, measure=measure))
            for measure in PANELS
            if measure in self.beside and measure != self.view.measure
        ]
        if self.second is not None:
            # Attention stays within one image, and colours say nothing of pairs.
            asked = self.view.measure if self.view.measure in ("affinity", "cosine") else "cosine"
            shown.append(("second", replace(self.view, measure=asked)))
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
    """Centre of a patch.

    >>> place_of(1, 0, ImageGrid(2, 4, (80, 100), (40, 50)))
    (0.75, 0.125)
    """
    return (row + 0.5) / grid.rows, (col + 0.5) / grid.cols


def nearest_layer(layer: int, available: tuple[int, ...]) -> int:
    """The available layer nearest to one; of two equally near the lower."""
    return min(available, key=lambda candidate: (abs(candidate - layer), candidate))
