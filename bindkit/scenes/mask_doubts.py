"""What the content of a mask says against it: values between others at borders, or a border that is no object.

Smoothing and JPEG turn the sharp step from one id to another into a ramp of ids in between, which belong to nothing.
In masks as they are drawn, steps are sharp but for chance and for objects a pixel wide.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from bindkit.errors import BrokenSceneError
from bindkit.scenes.masks import ids_of

# Pixels between the ids on both their sides, for each step from one id to another. Drawn masks (crowds, lines, cells,
# ADE20K, made smaller by nearest neighbour too) have 0 to 0.08; smoothed ones and JPEG from 0.12 on, mostly 0.3.
MOST_BETWEEN = 0.1
# Of larger masks only every other, third ... row and column is looked at: it takes long otherwise.
ENOUGH_LINES = 200
# What borders are painted with: white, of 8 and 16 bits, gray and in colours; VOC's border colour.
BORDER_VALUES = (2**8 - 1, 2**16 - 1, 2**24 - 1, 2**48 - 1, 0xC0E0E0)


def _along_rows(channels: np.ndarray) -> tuple[np.ndarray, int, np.ndarray]:
    """Ids of some rows, how often they change along them, and those of pixels whose values lie between both sides'."""
    ids = channels if channels.ndim == 2 else ids_of(channels)
    changes = ids[:, 1:] != ids[:, :-1]
    rows, cols = np.divmod(np.flatnonzero(changes[:, 1:] & changes[:, :-1]), max(1, ids.shape[1] - 2))
    before, middle, after = (channels[rows, cols + k] for k in range(3))
    lies_between = (np.minimum(before, after) <= middle) & (middle <= np.maximum(before, after))
    if channels.ndim == 3:
        lies_between = lies_between.all(axis=1)
    return ids, int(np.count_nonzero(changes)), ids[rows[lies_between], cols[lies_between] + 1]


def require_hard(channels: np.ndarray, path: Path) -> None:
    """Make sure that a mask was not smoothed; `channels` as `read_channels` gives them.

    Raises
    ------
    BrokenSceneError
        Says how many ids there are and what to do.
    """
    every = 1 + min(channels.shape[:2]) // ENOUGH_LINES
    lines = [channels[::every], np.ascontiguousarray(channels[:, ::every].swapaxes(0, 1))]
    ids, n_changes, between = zip(*map(_along_rows, lines), strict=True)
    middle = np.concatenate(between)
    most = MOST_BETWEEN * sum(n_changes)
    if len(middle) <= most:
        return
    found, counts = np.unique(middle, return_counts=True)
    top = int(counts.argmax())
    # One id that by itself lies between others is an outline, drawn around objects: no sign of smoothing.
    n_pixels = sum(np.count_nonzero(part == found[top]) for part in ids) / 2
    if counts[top] > 0.5 * len(middle) and counts[top] > 0.1 * n_pixels and len(middle) - counts[top] <= most:
        return
    raise BrokenSceneError(
        f"{path}: a mask that looks smoothed: it has {len(np.unique(ids_of(channels)))} ids, of which {len(found)} or "
        f"more lie at borders, between the ids on both sides, as resizing with smoothing or JPEG leaves them. Make it "
        f"anew with nearest neighbour, as PNG; if it is right as it is, add soft=allow behind the directory"
    )


def border_value(ids: np.ndarray) -> int | None:
    """The value of a thin border around the objects that is usually none itself, such as 255; None without one."""
    value = int(ids.max(initial=0))
    if value not in BORDER_VALUES or (ids == value - 1).any():
        return None
    border = ids == value
    inside = ndimage.binary_erosion(border, iterations=3)
    beside = ndimage.binary_dilation(border) & ~border
    others, touched = (np.setdiff1d(part, [0, value]) for part in (ids, ids[beside]))
    thin = 2 * np.count_nonzero(inside) <= np.count_nonzero(border)
    return value if thin and len(others) and 2 * len(touched) >= len(others) else None
