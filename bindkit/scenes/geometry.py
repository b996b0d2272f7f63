"""Where patches lie (grids, token layouts, windows), and their labels: the most frequent one of their pixels.

Coordinates are ``(row, col)`` or ``(top, left)`` in that order. A scene is *resized* by its short side, and the resized
scene is tiled by square *windows* that cover it; the model sees one window at a time.

>>> plan = WindowGeometry(short_side=112, window=112, patch_size=8).plan((96, 128))
>>> plan.resized, [window.left for window in plan.windows], plan.grid.n_patches
((112, 149), [0, 37], 196)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from bindkit.arguments import require_kind
from bindkit.errors import GeometryError
from bindkit.scenes.scene import Scene

if TYPE_CHECKING:
    import pandas as pd

ARITHMETICS = ("centred", "reference")
"""How sizes, windows and masks are rounded. ``centred``: long sides rounded down as torchvision does, windows rounded
to where they belong, masks resized pixel centre by pixel centre, as pictures are. ``reference``: as in the reference
implementation of the paper, whose masks lie up to a pixel to the lower right of the picture."""


@dataclass(frozen=True)
class Box:
    """A half-open rectangle in pixels: ``[top, bottom) x [left, right)``."""

    top: float
    left: float
    bottom: float
    right: float


@dataclass(frozen=True)
class PatchGrid:
    """``rows x cols`` square patches of `patch_size` pixels, numbered row-major from the top left.

    >>> PatchGrid(rows=2, cols=3, patch_size=8).row_col(4)
    (1, 1)

    Parameters
    ----------
    rows, cols : int
        Patches down and across.
    patch_size : int
        Side of one patch in pixels of the window.

    Raises
    ------
    GeometryError
        If any is below one.
    """

    rows: int
    cols: int
    patch_size: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.cols < 1 or self.patch_size < 1:
            raise GeometryError(
                f"a patch grid needs at least one row, column and pixel, got {self.rows} x {self.cols} patches "
                f"of {self.patch_size} px"
            )

    @classmethod
    def of_size(cls, height: int, width: int, patch_size: int) -> PatchGrid:
        """Grid of an image of ``height x width`` pixels. Raises GeometryError if a side is no multiple of the patch."""
        if patch_size < 1:
            raise GeometryError(f"patch size must be at least 1 px, got {patch_size}")
        if min(height, width) < patch_size or height % patch_size or width % patch_size:
            down = [max(patch_size, side // patch_size * patch_size) for side in (height, width)]
            raise GeometryError(
                f"{height} x {width} px is no multiple of the {patch_size} px patch (the model would silently "
                f"crop it); use for example {down[0]} x {down[1]} px"
            )
        return cls(height // patch_size, width // patch_size, patch_size)

    @classmethod
    def of_window(cls, window: int, patch_size: int) -> PatchGrid:
        """Grid of a square window of `window` pixels. Raises GeometryError as `of_size`."""
        return cls.of_size(window, window, patch_size)

    @property
    def n_patches(self) -> int:
        """Number of patches."""
        return self.rows * self.cols

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.rows * self.patch_size

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.cols * self.patch_size

    def row_col(self, patch: int) -> tuple[int, int]:
        """Row and column of a patch. Raises GeometryError for a patch outside the grid."""
        if not 0 <= patch < self.n_patches:
            raise GeometryError(f"patch {patch} is outside a grid of {self.rows} x {self.cols} patches")
        return divmod(patch, self.cols)

    def patch_at(self, row: float, col: float) -> int:
        """Patch that holds the pixel ``(row, col)``. Raises GeometryError outside the grid."""
        if not (0 <= row < self.height and 0 <= col < self.width):
            raise GeometryError(f"pixel ({row}, {col}) is outside a window of {self.height} x {self.width} px")
        return int(row // self.patch_size) * self.cols + int(col // self.patch_size)

    def box(self, patch: int) -> Box:
        """Pixels of a patch, in pixels of the window."""
        row, col = self.row_col(patch)
        side = self.patch_size
        return Box(row * side, col * side, (row + 1) * side, (col + 1) * side)


@dataclass(frozen=True)
class TokenLayout:
    """Which of a model's tokens are patches: `n_prefix` prefix tokens (CLS, distillation, registers) come first."""

    n_prefix: int
    grid: PatchGrid

    def __post_init__(self) -> None:
        if self.n_prefix < 0:
            raise GeometryError(f"a model cannot have {self.n_prefix} prefix tokens")


@dataclass(frozen=True)
class Window:
    """A square crop of the resized scene: its corner and side, in pixels of the resized scene."""

    top: int
    left: int
    side: int

    @property
    def box(self) -> Box:
        """Pixels of the window in the resized scene."""
        return Box(self.top, self.left, self.top + self.side, self.left + self.side)


def resized_size(size: tuple[int, int], short_side: int, arithmetic: str = "centred") -> tuple[int, int]:
    """``(height, width)`` after resizing the short side, in pixels; the long side as `ARITHMETICS` says."""
    height, width = size
    if height < 1 or width < 1 or short_side < 1:
        raise GeometryError(f"cannot resize {height} x {width} px to a short side of {short_side} px")
    short, long = sorted(size)
    scaled = short_side * long // short if arithmetic == "centred" else round(short_side * long / short)
    return (short_side, scaled) if height <= width else (scaled, short_side)


def tile_windows(size: tuple[int, int], window: int, arithmetic: str = "centred") -> tuple[Window, ...]:
    """Evenly spaced square windows, row-major: the fewest that can cover a resized scene; neighbours may overlap.

    Of ``n`` in a row, the reference's whole strides leave up to ``n - 2`` pixels at the end in no window.
    """
    height, width = size
    if window < 1 or min(height, width) < window:
        raise GeometryError(
            f"a scene of {height} x {width} px is smaller than one window of {window} px; resize it to a short "
            f"side of at least {window} px"
        )

    def starts(length: int) -> list[int]:
        gaps, rest = math.ceil(length / window) - 1, length - window
        whole = arithmetic == "reference"
        return [0, *(k * (rest // gaps) if whole else round(k * rest / gaps) for k in range(1, gaps + 1))]

    return tuple(Window(top, left, window) for top in starts(height) for left in starts(width))


@dataclass(frozen=True)
class WindowGeometry:
    """How a backbone looks at scenes: resize to `short_side`, tile by `window`, cut into `patch_size`, in pixels.

    ``WindowGeometry(592, 224, 16, "reference")`` has the roundings of the paper's reference implementation. Raises
    GeometryError if the window is no multiple of the patch or larger than the short side.
    """

    short_side: int
    window: int
    patch_size: int
    arithmetic: str = "centred"

    def __post_init__(self) -> None:
        if self.arithmetic not in ARITHMETICS:
            raise GeometryError(f"unknown arithmetic {self.arithmetic!r}; choose one of {', '.join(ARITHMETICS)}")
        step = self.grid.patch_size  # or raises
        if self.short_side < self.window:
            raise GeometryError(
                f"a window of {self.window} px does not fit scenes resized to a short side of {self.short_side} px; "
                f"use a window of at most {self.short_side // step * step} px"
            )

    @property
    def grid(self) -> PatchGrid:
        """Patch grid of one window."""
        return PatchGrid.of_window(self.window, self.patch_size)

    def plan(self, size: tuple[int, int]) -> ScenePlan:
        """Place every window of a scene of ``(height, width)`` original pixels."""
        resized = resized_size(size, self.short_side, self.arithmetic)
        windows = tile_windows(resized, self.window, self.arithmetic)
        return ScenePlan(size, resized, windows, self.grid, self.arithmetic)

    def describe(self) -> dict[str, int | str]:
        """As plain values that JSON can hold, ``WindowGeometry(**...)`` again; "centred" goes without saying."""
        said = asdict(self)
        if self.arithmetic == "centred":
            del said["arithmetic"]
        return said

    @property
    def label(self) -> str:
        """The geometry in few letters, in pixels: ``112/8``, ``592-224/16``, ``592-224/16-reference``."""
        short = "" if self.short_side == self.window else f"{self.short_side}-"
        return f"{short}{self.window}/{self.patch_size}" + ("" if self.arithmetic == "centred" else "-reference")


@dataclass(frozen=True)
class ScenePlan:
    """Every window and patch of one scene; ``(window, patch)`` numbers address a patch. Sizes are ``(height, width)``.

    >>> WindowGeometry(short_side=16, window=16, patch_size=8).plan((32, 48)).original_box(window=1, patch=0)
    Box(top=0.0, left=16.0, bottom=16.0, right=32.0)
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    windows: tuple[Window, ...]
    grid: PatchGrid
    arithmetic: str = "centred"

    @property
    def n_windows(self) -> int:
        """Number of windows."""
        return len(self.windows)

    @property
    def n_patches(self) -> int:
        """Patches of all windows together."""
        return self.n_windows * self.grid.n_patches

    def original_box(self, window: int, patch: int) -> Box:
        """Pixels of a patch in the original image; corners are real numbers, since resizing scales them."""
        at, box = self.windows[window], self.grid.box(patch)
        down, across = (old / new for old, new in zip(self.original, self.resized, strict=True))
        top, left = (at.top + box.top) * down, (at.left + box.left) * across
        return Box(top, left, (at.top + box.bottom) * down, (at.left + box.right) * across)

    def corners(self, window: np.ndarray, patch: np.ndarray) -> np.ndarray:
        """``(top, left)`` of `n` patches in pixels of the resized scene, int32 ``[n, 2]``."""
        rows, cols = np.divmod(np.asarray(patch), self.grid.cols)
        windows = np.array([(corner.top, corner.left) for corner in self.windows], dtype=np.int32)
        return (windows[window] + np.stack([rows, cols], axis=1) * self.grid.patch_size).astype(np.int32)


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
