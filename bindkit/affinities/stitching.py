"""One patch grid for a whole image: activations of its windows averaged cell by cell.

A backbone sees a large image window by window. Windows may overlap, and their patch grids need not be aligned. Here the
resized image gets one regular grid of cells, each as close to a patch as an even division allows, and a cell's
activation is the mean of the window patches that overlap it, weighted by the pixels they share. Where one window is
the whole image, cells are its patches and nothing is averaged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bindkit.errors import GeometryError
from bindkit.scenes.geometry import Box, ScenePlan, pixels_by_cell, resize_mask


@dataclass(frozen=True)
class ImageGrid:
    """``rows x cols`` equal cells over a whole image, numbered row-major from the top left."""

    rows: int
    cols: int
    original: tuple[int, int]
    """Height and width of the image in pixels."""
    resized: tuple[int, int]
    """The same of what the windows are cut from."""
    arithmetic: str = "centred"
    """How masks are resized: "centred" or "reference"."""

    @classmethod
    def of_plan(cls, plan: ScenePlan) -> ImageGrid:
        """Divide the resized image into cells of about one patch."""
        rows, cols = (round(length / plan.grid.patch_size) for length in plan.resized)
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
        """Pixels of a cell in the original image; corners are real numbers. Raises GeometryError outside the grid."""
        row, col = self.row_col(patch)
        down, across = self.original[0] / self.rows, self.original[1] / self.cols
        return Box(row * down, col * across, (row + 1) * down, (col + 1) * across)

    def majority(self, mask: np.ndarray) -> np.ndarray:
        """Most frequent label of every cell as int32 ``[n_patches]``, the lower one where two are equally frequent.

        The mask is of the original image's shape; it is resized as `bindkit.label_patches` does.
        """
        # The cell that holds the centre of each pixel.
        row_of, col_of = (
            ((np.arange(length) + 0.5) * cells / length).astype(np.int64)
            for cells, length in zip((self.rows, self.cols), self.resized, strict=True)
        )
        ids, counts = pixels_by_cell(resize_mask(mask, self.resized, self.arithmetic), row_of, col_of)
        return ids[counts.argmax(axis=1)].astype(np.int32)


def stitch(windows: Float[Tensor, "window patch d_model"], plan: ScenePlan) -> Float[Tensor, "cell d_model"]:
    """Average the activations of all windows, in the plan's order, onto the cells of `ImageGrid.of_plan`.

    For a probe whose logit is linear in each of its two patches (linear, quadratic) this equals averaging the logits
    of all pairs of window patches with the same weights. The very activations where there is one window.
    """
    if plan.n_windows == 1:
        return windows[0]
    down, across = (_per_cell(shared).to(windows) for shared in _shared_pixels(plan))
    return torch.einsum("rt,tld,cl->rcd", down, _tiled(windows, plan), across).reshape(-1, windows.shape[-1])


def cell_weights(cell: int, plan: ScenePlan) -> Float[Tensor, "window patch"]:
    """What each window patch counts in the mean that `stitch` takes for one cell; they add up to 1."""
    row, col = ImageGrid.of_plan(plan).row_col(cell)
    down, across = (_per_cell(shared) for shared in _shared_pixels(plan))
    n_down, n_across = map(len, _starts(plan))
    sheet = torch.outer(down[row], across[col]).float().reshape(n_down, plan.grid.rows, n_across, plan.grid.cols)
    return sheet.transpose(1, 2).reshape(plan.n_windows, plan.grid.n_patches)


def landing(amounts: Float[Tensor, "window patch"], plan: ScenePlan) -> Float[Tensor, " cell"]:
    """What lies on window patches, laid on the cells that they overlap in proportion to the pixels shared.

    Nothing is lost: the sum over cells is the sum over patches.
    """
    down, across = ((shared / shared.sum(0)).to(amounts) for shared in _shared_pixels(plan))
    return (down @ _tiled(amounts[..., None], plan)[..., 0] @ across.T).flatten()


def _shared_pixels(plan: ScenePlan) -> list[Tensor]:
    """Pixels that each cell shares with each window patch ``[cell, patch]``, down and across: factors of the areas."""
    grid, side, shared = ImageGrid.of_plan(plan), plan.grid.patch_size, []
    for n_cells, length, starts, per_window in zip(
        (grid.rows, grid.cols), plan.resized, _starts(plan), (plan.grid.rows, plan.grid.cols), strict=True
    ):
        edges = np.arange(n_cells + 1) * (length / n_cells)
        first = (np.array(starts)[:, None] + np.arange(per_window) * side).ravel()
        last = first + side
        last[-1] = length  # a few pixels behind the windows of the reference's arithmetic count with the last patch
        overlap = np.minimum(edges[1:, None], last) - np.maximum(edges[:-1, None], first)
        shared.append(torch.from_numpy(overlap.clip(min=0)))
    return shared


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
