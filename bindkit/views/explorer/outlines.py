"""Lines around patches and objects, how well a set of patches covers an object, and the patches that stand out.

>>> inside = np.zeros((3, 4), dtype=bool)
>>> inside[1, 1:3] = True
>>> loops_around(inside)
[array([[1, 1],
       [3, 1],
       [3, 2],
       [1, 2]])]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bindkit.affinities.stitching import ImageGrid
from bindkit.scenes.labels import resize_mask

_LONGEST_MASK = 480
"""Pixels that the longer side of a mask has at most before its border is followed."""
_REACH = 2
"""Points before and after that a border's point is averaged with, so that slanted borders are no staircases."""

INSET = 0.07
"""Of a patch's side, between the patch and the line that marks it."""


def loops_around(inside: np.ndarray) -> list[np.ndarray]:
    """Closed loops along the edges of the cells that are inside, each a list of corners ``(x, y)`` in cells.

    Cells that touch in a corner only belong to two loops. Straight runs are one edge.

    Parameters
    ----------
    inside : bool array of shape (rows, cols)
        The cells.

    Returns
    -------
    list of int arrays of shape (corner, 2)
    """
    return [_corners(loop) for loop in _unit_loops(inside)]


def _unit_loops(inside: np.ndarray) -> list[np.ndarray]:
    """The same with a point at every cell's corner."""
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
            points, now, came = [], first, (0, 0)
            while True:
                points.append(now)
                ways = after[now]
                # Where two cells touch in a corner, turn right, so that each keeps a loop of its own.
                right = (now[0] - came[1], now[1] + came[0])
                going = ways.pop(ways.index(right) if right in ways else -1)
                came, now = (going[0] - now[0], going[1] - now[1]), going
                if now == first:
                    break
            loops.append(np.array(points))
    return loops


def _corners(loop: np.ndarray) -> np.ndarray:
    """Points at which a loop turns."""
    along, onward = loop - np.roll(loop, 1, axis=0), np.roll(loop, -1, axis=0) - loop
    return loop[(along != onward).any(axis=1)]


Line = tuple[np.ndarray, np.ndarray]
"""x and y of a line as float32, NaN where it is interrupted."""

NOTHING: Line = (np.zeros(0, np.float32), np.zeros(0, np.float32))


def line_through(loops: Sequence[np.ndarray], scale: tuple[float, float] = (1, 1)) -> Line:
    """Loops as one line for Plotly, closed, with NaN between them.

    Parameters
    ----------
    loops : sequence of arrays of shape (point, 2)
        As ``(x, y)``, in some unit.
    scale : (across, down)
        Patches per unit.

    Returns
    -------
    x, y : float32 arrays of equal length
        In patches, the centre of the first one at 0.
    """
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
    """Outline of a set of patches, bool [rows, cols], in patches."""
    return line_through(loops_around(inside))


def mask_outline(mask: np.ndarray, grid: ImageGrid) -> Line:
    """Smooth outline of the pixels of an object, bool [height, width], in patches of a grid over that image."""
    shrink = max(1.0, max(mask.shape) / _LONGEST_MASK)
    size = (max(1, round(mask.shape[0] / shrink)), max(1, round(mask.shape[1] / shrink)))
    small = resize_mask(mask, size) > 0
    loops = [_smooth(loop) for loop in _unit_loops(small)]
    return line_through(loops, (grid.cols / size[1], grid.rows / size[0]))


def _smooth(loop: np.ndarray) -> np.ndarray:
    if len(loop) <= 4 * (2 * _REACH + 1):
        return loop
    return np.mean([np.roll(loop, shift, axis=0) for shift in range(-_REACH, _REACH + 1)], axis=0)


def square(row: int, col: int) -> Line:
    """Outline of one patch, a little inside it, so that it shows at the image's border too."""
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * (1 - 2 * INSET) + INSET
    return line_through([corners + np.array([col, row])])


class Coverage:
    """How many pixels of every object lie in every patch of a grid: what an IoU needs, counted once.

    >>> mask = np.zeros((4, 4), dtype=np.int32)
    >>> mask[:2, :3] = 7
    >>> coverage = Coverage(mask, ImageGrid(2, 2, (4, 4), (4, 4)))
    >>> round(coverage.iou(np.array([True, True, False, False]), 7), 3)  # 6 of 8 pixels
    0.75

    Parameters
    ----------
    mask : int array of shape (height, width)
        Instance ids, 0 where there is none.
    grid : ImageGrid
        Of an image of this size.
    """

    def __init__(self, mask: np.ndarray, grid: ImageGrid) -> None:
        height, width = mask.shape
        row_of, col_of = np.arange(height) * grid.rows // height, np.arange(width) * grid.cols // width
        patch_of = (row_of[:, None] * grid.cols + col_of).ravel()
        self.ids, compact = np.unique(mask, return_inverse=True)
        slots = patch_of * len(self.ids) + compact.ravel()
        counts = np.bincount(slots, minlength=grid.n_patches * len(self.ids))
        self.pixels = counts.reshape(grid.n_patches, len(self.ids))

    def iou(self, chosen: np.ndarray, instance: int) -> float:
        """Pixels that the chosen patches share with an object, over the pixels of both together, in [0, 1].

        Parameters
        ----------
        chosen : bool array of shape (n_patches,)
            The patches.
        instance : int
            One of the mask's ids.
        """
        column = int(np.searchsorted(self.ids, instance))
        shared = int(self.pixels[chosen, column].sum())
        both = int(self.pixels[chosen].sum()) + int(self.pixels[:, column].sum()) - shared
        return shared / both if both else 0.0


def top_patches(values: np.ndarray, how_many: int, around: tuple[int, int] | None, apart: int) -> list[tuple[int, int]]:
    """Patches of the highest values, the highest first.

    Parameters
    ----------
    values : float array of shape (rows, cols)
        One number a patch.
    how_many : int
        At most so many.
    around : (row, col), optional
        Patches around this one do not count.
    apart : int
        How far: those at most so many rows and columns away are left out; 0 leaves out the patch itself.

    Returns
    -------
    list of (row, col)
        Of equal values the first in reading order.
    """
    rows, cols = values.shape
    counts = np.ones(values.shape, dtype=bool)
    if around is not None:
        down, across = np.ogrid[:rows, :cols]
        counts = np.maximum(np.abs(down - around[0]), np.abs(across - around[1])) > apart
    candidates = np.flatnonzero(counts)
    order = np.argsort(-values.ravel()[candidates], kind="stable")[:how_many]
    return [(int(patch) // cols, int(patch) % cols) for patch in candidates[order]]
