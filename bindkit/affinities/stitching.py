"""One patch grid for a whole image: activations of its windows averaged cell by cell.

A backbone sees a large image window by window. Windows may overlap, and their patch grids need not be aligned. Here the
resized image gets one regular grid of cells, each as close to a patch as an even division allows, and a cell's
activation is the mean of the window patches that overlap it, weighted by the pixels they share. Where one window is
the whole image, cells are its patches and nothing is averaged.

>>> from bindkit.scenes.geometry import WindowGeometry
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
from bindkit.scenes.geometry import Box, ScenePlan
from bindkit.scenes.labels import resize_mask


@dataclass(frozen=True)
class ImageGrid:
    """``rows x cols`` equal cells over a whole image, numbered row-major from the top left.

    Attributes
    ----------
    rows, cols : int
        Cells down and across.
    original, resized : (height, width)
        Of the image, and of what the windows are cut from, in pixels.
    arithmetic : {"centred", "reference"}
        How masks are resized.
    """

    rows: int
    cols: int
    original: tuple[int, int]
    resized: tuple[int, int]
    arithmetic: str = "centred"

    @classmethod
    def of_plan(cls, plan: ScenePlan) -> ImageGrid:
        """Divide the resized image into cells of about one patch."""
        side = plan.grid.patch_size
        rows, cols = (round(length / side) for length in plan.resized)
        return cls(rows, cols, plan.original, plan.resized, plan.arithmetic)

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
        ids, compact = np.unique(resize_mask(mask, self.resized, self.arithmetic), return_inverse=True)
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
    >>> from bindkit.scenes.geometry import WindowGeometry
    >>> plan = WindowGeometry(short_side=8, window=8, patch_size=8).plan((8, 12))
    >>> [window.left for window in plan.windows], ImageGrid.of_plan(plan).cols  # cells of 6 pixels
    ([0, 4], 2)
    >>> stitch(torch.tensor([[[0.0]], [[6.0]]]), plan)
    tensor([[1.5000],
            [4.5000]])
    """
    if plan.n_windows == 1:
        return windows[0]
    down, across = (_per_cell(shared).to(windows) for shared in _shared_pixels(plan))
    tiled = _tiled(windows, plan)
    return torch.einsum("rt,tld,cl->rcd", down, tiled, across).reshape(-1, windows.shape[-1])


def cell_weights(cell: int, plan: ScenePlan) -> Float[Tensor, "window patch"]:
    """What each window patch counts in the mean that `stitch` takes for one cell; they add up to 1.

    >>> from bindkit.scenes.geometry import WindowGeometry
    >>> plan = WindowGeometry(short_side=8, window=8, patch_size=8).plan((8, 12))
    >>> cell_weights(0, plan)
    tensor([[0.7500],
            [0.2500]])
    """
    row, col = ImageGrid.of_plan(plan).row_col(cell)
    down, across = (_per_cell(shared) for shared in _shared_pixels(plan))
    return _untiled(torch.outer(down[row], across[col]).float(), plan)


def landing(amounts: Float[Tensor, "window patch"], plan: ScenePlan) -> Float[Tensor, " cell"]:
    """What lies on window patches, laid on the cells that they overlap in proportion to the pixels shared.

    Nothing is lost: the sum over cells is the sum over patches.

    >>> from bindkit.scenes.geometry import WindowGeometry
    >>> plan = WindowGeometry(short_side=8, window=8, patch_size=8).plan((8, 12))
    >>> landing(torch.tensor([[4.0], [0.0]]), plan)
    tensor([3., 1.])
    """
    down, across = ((shared / shared.sum(0)).to(amounts) for shared in _shared_pixels(plan))
    return (down @ _tiled(amounts[..., None], plan)[..., 0] @ across.T).flatten()


def _shared_pixels(plan: ScenePlan) -> tuple[Float[Tensor, "row down"], Float[Tensor, "col across"]]:
    """Pixels that every cell shares with every window patch, down and across; an area is the product of the two."""
    grid, inner = ImageGrid.of_plan(plan), plan.grid
    tops, lefts = _starts(plan)
    return (
        _shared(grid.rows, plan.resized[0], tops, inner.rows, inner.patch_size),
        _shared(grid.cols, plan.resized[1], lefts, inner.cols, inner.patch_size),
    )


def _shared(n_cells: int, length: int, starts: list[int], per_window: int, side: int) -> Float[Tensor, "cell patch"]:
    edges = np.arange(n_cells + 1) * (length / n_cells)
    first = (np.array(starts)[:, None] + np.arange(per_window) * side).ravel()
    last = first + side
    last[-1] = length  # a few pixels behind the windows of the reference's arithmetic count with the last patch
    shared = np.minimum(edges[1:, None], last) - np.maximum(edges[:-1, None], first)
    return torch.from_numpy(shared.clip(min=0))


def _per_cell(shared: Float[Tensor, "cell patch"]) -> Float[Tensor, "cell patch"]:
    return shared / shared.sum(dim=1, keepdim=True)


def _starts(plan: ScenePlan) -> tuple[list[int], list[int]]:
    """Tops and lefts of the rows and columns of windows."""
    return sorted({window.top for window in plan.windows}), sorted({window.left for window in plan.windows})


def _tiled(windows: Float[Tensor, "window patch d"], plan: ScenePlan) -> Float[Tensor, "down across d"]:
    """Window patches as one sheet: rows of all rows of windows below each other, columns likewise."""
    n_down, n_across = map(len, _starts(plan))
    sheet = windows.reshape(n_down, n_across, plan.grid.rows, plan.grid.cols, -1).transpose(1, 2)
    return sheet.reshape(n_down * plan.grid.rows, n_across * plan.grid.cols, -1)


def _untiled(sheet: Float[Tensor, "down across"], plan: ScenePlan) -> Float[Tensor, "window patch"]:
    n_down, n_across = map(len, _starts(plan))
    windows = sheet.reshape(n_down, plan.grid.rows, n_across, plan.grid.cols).transpose(1, 2)
    return windows.reshape(plan.n_windows, plan.grid.n_patches)
