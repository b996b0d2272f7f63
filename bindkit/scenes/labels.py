"""From a scene's masks to the labels of its patches and objects: the most frequent one of their pixels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from bindkit.arguments import require_kind
from bindkit.scenes.geometry import PatchGrid, ScenePlan, WindowGeometry
from bindkit.scenes.scene import Scene

if TYPE_CHECKING:
    import pandas as pd

_DENSE = 1 << 22
"""Counts of so many possible pairs fit a table that is made faster than pixels are sorted."""


@dataclass(frozen=True)
class PatchLabels:
    """Labels of `n` patches of one scene: int32 ``[n]`` where nothing else is said."""

    instances: np.ndarray
    """The most frequent id among a patch's pixels (0 = unlabelled); where two are equally frequent, the lower."""
    classes: np.ndarray
    purity: np.ndarray
    """float32: share of the patch's pixels that carry its instance id, in (0, 1]."""
    window: np.ndarray
    patch: np.ndarray
    """Its number in the window's grid, row-major."""
    corners: np.ndarray
    """``[n, 2]``: (top, left) in pixels of the resized scene."""
    plan: ScenePlan

    def __len__(self) -> int:
        return len(self.instances)

    def take(self, rows: np.ndarray) -> PatchLabels:
        """Labels of the chosen rows, in the order given."""
        return replace(self, **{name: column[rows] for name, column in vars(self).items() if name != "plan"})


def resize_mask(mask: np.ndarray, size: tuple[int, int], arithmetic: str = "centred") -> np.ndarray:
    """Resize an integer mask to ``(height, width)`` pixels by nearest neighbour, so that no label is invented.

    ``centred`` takes the pixel that holds a new pixel's centre; ``reference`` the one that holds its upper left corner,
    in the float32 arithmetic of torch's ``interpolate(mode="nearest")``.

    >>> resize_mask(np.array([[1, 2], [3, 4]], dtype=np.int32), (2, 4))
    array([[1, 1, 2, 2],
           [3, 3, 4, 4]], dtype=int32)
    """
    if arithmetic == "reference":
        rows, cols = (
            np.minimum(np.arange(new, dtype=np.float32) * np.float32(old / new), old - 1).astype(np.int64)
            for old, new in zip(mask.shape, size, strict=True)
        )
        return mask[rows[:, None], cols].astype(np.int32)
    image = Image.fromarray(mask.astype(np.int32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.NEAREST), dtype=np.int32)


def pixels_by_cell(mask: np.ndarray, row_of: np.ndarray, col_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels of a mask, ascending, and how many pixels of each lie in each cell: int64 ``[cell, label]``.

    `row_of` and `col_of` are the cells' row of every row of pixels, and their column of every column; cells row-major.
    """
    n_rows, n_cols = int(row_of[-1]) + 1, int(col_of[-1]) + 1
    labels, highest = None, int(mask.max(initial=0))
    if mask.min(initial=0) < 0 or n_rows * n_cols * (highest + 1) > _DENSE:
        labels, compact = np.unique(mask, return_inverse=True)
        mask, highest = compact.reshape(mask.shape), len(labels) - 1
    slots = (row_of[:, None] * n_cols + col_of) * (highest + 1) + mask
    counts = np.bincount(slots.ravel(), minlength=n_rows * n_cols * (highest + 1)).reshape(n_rows * n_cols, -1)
    found = np.flatnonzero(counts.any(axis=0))
    return (found.astype(mask.dtype) if labels is None else labels[found]), counts[:, found]


def majority(mask: np.ndarray, grid: PatchGrid) -> tuple[np.ndarray, np.ndarray]:
    """Most frequent label (the lower of equals; int32) of every patch of a window, and its share (float32, in (0, 1]).

    >>> majority(np.array([[5, 5, 0, 7], [5, 0, 7, 7]]), PatchGrid(1, 2, 2))
    (array([5, 7], dtype=int32), array([0.75, 0.75], dtype=float32))
    """
    side = grid.patch_size
    labels, counts = pixels_by_cell(mask, np.arange(grid.height) // side, np.arange(grid.width) // side)
    share = counts.max(axis=1) / (side * side)
    return labels[counts.argmax(axis=1)].astype(np.int32), share.astype(np.float32)


def object_classes(scene: Scene) -> dict[int, int]:
    """Instance id -> class of most of its pixels (the lower where two are equally frequent), by ascending id."""
    n_classes = int(scene.classes.max(initial=0)) + 1
    pairs = scene.instances.astype(np.int64).ravel() * n_classes + scene.classes.ravel()
    if (int(scene.instances.max(initial=0)) + 1) * n_classes <= _DENSE:
        table = np.bincount(pairs)
        found = np.flatnonzero(table)
        pixels = table[found]
    else:
        found, pixels = np.unique(pairs, return_counts=True)
    instances, classes = np.divmod(found, n_classes)
    # Of each instance the most pixels last, the lower class last among equals, so that the dict keeps it.
    order = np.lexsort((-classes, pixels, instances))
    return {int(instances[k]): int(classes[k]) for k in order if instances[k] > 0}


def label_patches(scene: Scene, geometry: WindowGeometry) -> PatchLabels:
    """Label every patch of every window of a scene, in ``(window, patch)`` order.

    Parameters
    ----------
    scene : Scene
        With masks of the image's size.
    geometry : WindowGeometry
        Short side, window and patch in pixels.

    Raises
    ------
    GeometryError
        If the geometry does not fit.

    Examples
    --------
    >>> mask = np.zeros((16, 24), dtype=np.int32)
    >>> mask[:, 16:] = 3
    >>> scene = Scene("demo", np.zeros((16, 24, 3), dtype=np.uint8), mask, mask)
    >>> labels = label_patches(scene, WindowGeometry(short_side=16, window=16, patch_size=8))
    >>> labels.instances
    array([0, 0, 0, 0, 0, 3, 0, 3], dtype=int32)
    """
    require_kind(scene, Scene, "a scene is what scenes[0] gives")
    require_kind(geometry, WindowGeometry, "a geometry is a WindowGeometry, as backbone.geometry")
    plan = geometry.plan(scene.size)
    crops = [np.s_[at.top : at.top + at.side, at.left : at.left + at.side] for at in plan.windows]

    def in_patches(mask: np.ndarray) -> list[np.ndarray]:
        resized = resize_mask(mask, plan.resized, plan.arithmetic)
        found = [majority(resized[crop], plan.grid) for crop in crops]
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    (instances, purity), (classes, _) = in_patches(scene.instances), in_patches(scene.classes)
    window = np.repeat(np.arange(plan.n_windows, dtype=np.int32), plan.grid.n_patches)
    patch = np.tile(np.arange(plan.grid.n_patches, dtype=np.int32), plan.n_windows)
    return PatchLabels(instances, classes, purity, window, patch, plan.corners(window, patch), plan)


def pair_counts(labelled: Iterable[PatchLabels], min_purity: float = 0.5) -> pd.DataFrame:
    """Count pairs of labelled patches of each scene: on one object, on two, and among these the twins (of one class).

    As in the strict protocol, patches take part whose purity is above `min_purity`, and pairs of them that do not show
    the same pixels. ``majority`` is the share of the more frequent answer.
    """
    import pandas as pd

    rows = []
    for labels in labelled:
        taken = labels.take(np.flatnonzero((labels.instances > 0) & (labels.purity > min_purity)))
        first, second = np.triu_indices(len(taken), 1)
        gaps = np.abs(taken.corners[first] - taken.corners[second]).max(axis=1, initial=0)
        first, second = (side[gaps >= labels.plan.grid.patch_size] for side in (first, second))
        same = taken.instances[first] == taken.instances[second]
        twins = ~same & (taken.classes[first] == taken.classes[second]) & (taken.classes[first] > 0)
        share = max(same.mean(), 1 - same.mean()) if len(same) else float("nan")
        rows.append((len(taken), len(same), int(same.sum()), int((~same).sum()), int(twins.sum()), round(share, 3)))
    columns = ["patches", "pairs", "same object", "different objects", "twins", "majority"]
    return pd.DataFrame(rows, columns=columns)
