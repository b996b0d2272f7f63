"""Lines around patches and objects, how well a set of patches covers an object, and the patches that stand out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bindkit.affinities.stitching import ImageGrid
from bindkit.views.viewer.subjects import outlined_mask

_REACH = 2
"""Points before and after that a border's point is averaged with, so that slanted borders are no staircases."""

INSET = 0.07
"""Of a patch's side, between the patch and the line that marks it."""

Line = tuple[np.ndarray, np.ndarray]
"""x and y of a line as float32 in patches, the centre of the first one at 0; NaN where it is interrupted."""

NOTHING: Line = (np.zeros(0, np.float32), np.zeros(0, np.float32))


def loops_around(inside: np.ndarray) -> list[np.ndarray]:
    """Closed loops along the edges of the cells that are inside, bool [rows, cols].

    Each is an int array [point, 2] of ``(x, y)`` in cells, with a point at every cell's corner. Cells that touch in a
    corner only belong to two loops.
    """
    framed = np.pad(inside.astype(bool), 1)
    middle = framed[1:-1, 1:-1]
    after: dict[tuple[int, int], list[tuple[int, int]]] = {}
    # Edges run clockwise, the inside at their right: from a corner of the cell, by a step along x and y.
    sides = (
        (framed[:-2, 1:-1], (0, 0), (1, 0)),
        (framed[1:-1, 2:], (1, 0), (0, 1)),
        (framed[2:, 1:-1], (1, 1), (-1, 0)),
        (framed[1:-1, :-2], (0, 1), (0, -1)),
    )
    for neighbour, (across, down), (dx, dy) in sides:
        for row, col in np.argwhere(middle & ~neighbour).tolist():
            start = (col + across, row + down)
            after.setdefault(start, []).append((start[0] + dx, start[1] + dy))
    loops = []
    for first, ways_on in after.items():
        while ways_on:
            points: list[tuple[int, int]] = []
            now, came = first, (0, 0)
            while not points or now != first:
                points.append(now)
                ways = after[now]
                # Where two cells touch in a corner, turn right, so that each keeps a loop of its own.
                right = (now[0] - came[1], now[1] + came[0])
                going = ways.pop(ways.index(right) if right in ways else -1)
                came, now = (going[0] - now[0], going[1] - now[1]), going
            loops.append(np.array(points))
    return loops


def line_through(loops: Sequence[np.ndarray], scale: tuple[float, float] = (1, 1)) -> Line:
    """Loops of ``(x, y)`` in some unit as one line, closed, with gaps between them; `scale` is in patches per unit."""
    gap = np.full((1, 2), np.nan)
    pieces = [piece for loop in loops for piece in (loop, loop[:1], gap)]
    points = np.concatenate(pieces[:-1]) if pieces else np.zeros((0, 2))
    x, y = (points * scale - 0.5).astype(np.float32).T
    return np.ascontiguousarray(x), np.ascontiguousarray(y)


def joined(lines: Sequence[Line]) -> Line:
    """Several lines as one, with a gap between them."""
    if not lines:
        return NOTHING
    gap = np.full((2, 1), np.nan, np.float32)
    x, y = np.concatenate([part for line in lines for part in (np.stack(line), gap)][:-1], axis=1)
    return x, y


def patch_outline(inside: np.ndarray) -> Line:
    """Outline of a set of patches, bool [rows, cols]; a straight run is one edge."""
    loops = []
    for loop in loops_around(inside):
        along, onward = loop - np.roll(loop, 1, axis=0), np.roll(loop, -1, axis=0) - loop
        loops.append(loop[(along != onward).any(axis=1)])
    return line_through(loops)


def mask_outline(mask: np.ndarray, grid: ImageGrid) -> Line:
    """Smooth outline of the pixels of an object, bool [height, width], in patches of a grid over that image."""
    small = outlined_mask(mask) > 0
    shifts = range(-_REACH, _REACH + 1)
    loops = [
        np.mean([np.roll(loop, shift, axis=0) for shift in shifts], axis=0) if len(loop) > 4 * len(shifts) else loop
        for loop in loops_around(small)
    ]
    return line_through(loops, (grid.cols / small.shape[1], grid.rows / small.shape[0]))


def square(row: int, col: int) -> Line:
    """Outline of one patch, a little inside it, so that it shows at the image's border too."""
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * (1 - 2 * INSET) + INSET
    return line_through([corners + np.array([col, row])])


class Coverage:
    """How many pixels of every object of a mask lie in every patch of a grid: what an IoU needs, counted once."""

    def __init__(self, mask: np.ndarray, grid: ImageGrid) -> None:
        height, width = mask.shape
        row_of, col_of = np.arange(height) * grid.rows // height, np.arange(width) * grid.cols // width
        patch_of = (row_of[:, None] * grid.cols + col_of).ravel()
        self.ids, compact = np.unique(mask, return_inverse=True)
        slots = patch_of * len(self.ids) + compact.ravel()
        counts = np.bincount(slots, minlength=grid.n_patches * len(self.ids))
        self.pixels = counts.reshape(grid.n_patches, len(self.ids))

    def iou(self, chosen: np.ndarray, instance: int) -> float:
        """Pixels that the chosen patches, bool [n_patches], share with an object, over those of both, in [0, 1]."""
        column = int(np.searchsorted(self.ids, instance))
        shared = int(self.pixels[chosen, column].sum())
        both = int(self.pixels[chosen].sum()) + int(self.pixels[:, column].sum()) - shared
        return shared / both if both else 0.0


def top_patches(values: np.ndarray, how_many: int, around: tuple[int, int] | None, apart: int) -> list[tuple[int, int]]:
    """Row and column of the highest values, the highest first, of equal ones the first in reading order.

    Those at most `apart` rows and columns away from the patch `around` are left out; 0 leaves out the patch itself.
    """
    rows, cols = values.shape
    counts = np.ones(values.shape, dtype=bool)
    if around is not None:
        down, across = np.ogrid[:rows, :cols]
        counts = np.maximum(np.abs(down - around[0]), np.abs(across - around[1])) > apart
    candidates = np.flatnonzero(counts)
    order = np.argsort(-values.ravel()[candidates], kind="stable")[:how_many]
    return [(int(patch) // cols, int(patch) % cols) for patch in candidates[order]]
