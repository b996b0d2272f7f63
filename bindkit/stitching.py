"""One patch grid for a whole image: activations of its windows averaged cell by cell.

A backbone sees a large image window by window. Windows may overlap, and their patch grids need not be aligned. Here the
resized image gets one regular grid of cells, each as close to a patch as an even division allows, and a cell's
activation is the mean of the window patches that overlap it, weighted by the pixels they share. Where one window is
the whole image, cells are its patches and nothing is averaged.

>>> from bindkit.geometry import WindowGeometry
>>> grid = ImageGrid.of_plan(WindowGeometry(short_side=16, window=16, patch_size=8).plan((32, 52)))
>>> grid.rows, grid.cols, grid.resized
(2, 3, (16, 26))
>>> grid.patch_at(row=31, col=51)
5
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bindkit.errors import GeometryError
from bindkit.geometry import Box, ScenePlan
from bindkit.labels import resize_mask


@dataclass(frozen=True)
class ImageGrid:
    """``rows x cols`` equal cells over a whole image, numbered row-major from the top left.

    Attributes
    ----------
    rows, cols : int
        Cells down and across.
    original, resized : (height, width)
        Of the image, and of what the windows are cut from, in pixels.
    """

    rows: int
    cols: int
    original: tuple[int, int]
    resized: tuple[int, int]

    @classmethod
    def of_plan(cls, plan: ScenePlan) -> ImageGrid:
        """Divide the resized image into cells of about one patch."""
        side = plan.grid.patch_size
        return cls(round(plan.resized[0] / side), round(plan.resized[1] / side), plan.original, plan.resized)

    @property
    def n_patches(self) -> int:
        """Number of cells."""
        return self.rows * self.cols

    def row_col(self, patch: int) -> tuple[int, int]:
        """Row and column of a cell. Raises GeometryError for a cell outside the grid."""
        if not 0 <= patch < self.n_patches:
            raise GeometryError(f"patch {patch} is outside a grid of {self.rows} x {self.cols} patches")
        return divmod(patch, self.cols)

    def patch_at(self, row: float, col: float) -> int:
        """Cell that holds a pixel of the original image. Raises GeometryError outside the image."""
        height, width = self.original
        if not (0 <= row < height and 0 <= col < width):
            raise GeometryError(f"pixel ({row}, {col}) is outside an image of {height} x {width} px")
        return int(row * self.rows / height) * self.cols + int(col * self.cols / width)

    def box(self, patch: int) -> Box:
        """Pixels of a cell in the original image; corners are real numbers."""
        row, col = self.row_col(patch)
        down, across = self.original[0] / self.rows, self.original[1] / self.cols
        return Box(row * down, col * across, (row + 1) * down, (col + 1) * across)

    def majority(self, mask: np.ndarray) -> np.ndarray:
        """Most frequent label of every cell, the lower one where two are equally frequent.

        Parameters
        ----------
        mask : int array of the original image's shape
            Labels, resized by nearest neighbour as `bindkit.label_patches` does.

        Returns
        -------
        int32 array of shape (n_patches,)
        """
        height, width = self.resized
        ids, compact = np.unique(resize_mask(mask, self.resized), return_inverse=True)
        # The cell that holds the centre of each pixel.
        row_of = ((np.arange(height) + 0.5) * self.rows / height).astype(np.int64)
        col_of = ((np.arange(width) + 0.5) * self.cols / width).astype(np.int64)
        slots = (row_of[:, None] * self.cols + col_of) * len(ids) + compact.reshape(height, width)
        counts = np.bincount(slots.ravel(), minlength=self.n_patches * len(ids)).reshape(self.n_patches, len(ids))
        return ids[counts.argmax(axis=1)].astype(np.int32)


def stitch(windows: Float[Tensor, "window patch d_model"], plan: ScenePlan) -> Float[Tensor, "cell d_model"]:
    """Average the activations of all windows onto the cells of `ImageGrid.of_plan`.

    For a probe whose logit is linear in each of its two patches (linear, quadratic) this equals averaging the logits
    of all pairs of window patches with the same weights.

    Parameters
    ----------
    windows : float tensor
        Patch activations of every window of the plan, in its order.
    plan : ScenePlan
        How the image was tiled.

    Returns
    -------
    float tensor
        One row a cell, row-major; the very activations where there is one window.

    Examples
    --------
    >>> from bindkit.geometry import WindowGeometry
    >>> plan = WindowGeometry(short_side=8, window=8, patch_size=8).plan((8, 12))
    >>> [window.left for window in plan.windows], ImageGrid.of_plan(plan).cols  # cells of 6 pixels
    ([0, 4], 2)
    >>> stitch(torch.tensor([[[0.0]], [[6.0]]]), plan)
    tensor([[1.5000],
            [4.5000]])
    """
    if plan.n_windows == 1:
        return windows[0]
    grid, inner = ImageGrid.of_plan(plan), plan.grid
    tops = sorted({window.top for window in plan.windows})
    lefts = sorted({window.left for window in plan.windows})
    down = _shares(grid.rows, plan.resized[0], tops, inner.rows, inner.patch_size).to(windows)
    across = _shares(grid.cols, plan.resized[1], lefts, inner.cols, inner.patch_size).to(windows)
    tiled = windows.reshape(len(tops), len(lefts), inner.rows, inner.cols, -1).transpose(1, 2)
    tiled = tiled.reshape(len(tops) * inner.rows, len(lefts) * inner.cols, -1)
    return torch.einsum("rt,tld,cl->rcd", down, tiled, across).reshape(grid.n_patches, -1)


def _shares(n_cells: int, length: int, starts: list[int], per_window: int, side: int) -> Tensor:
    """Along one axis: the share of every window patch in every cell's mean, rows adding up to 1."""
    edges = np.arange(n_cells + 1) * (length / n_cells)
    first = (np.array(starts)[:, None] + np.arange(per_window) * side).ravel()
    shared = np.minimum(edges[1:, None], first + side) - np.maximum(edges[:-1, None], first)
    shared = shared.clip(min=0)
    return torch.from_numpy(shared / shared.sum(axis=1, keepdims=True))
