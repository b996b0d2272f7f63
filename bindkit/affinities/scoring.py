"""Affinities of all pairs of patches of one image: how strongly a probe takes two patches for one object.

A backbone sees a large image window by window. Windows may overlap, and their patch grids need not be aligned. Here the
resized image gets one regular grid of cells, each as close to a patch as an even division allows, and a cell's
activation is the mean of the window patches that overlap it, weighted by the pixels they share. Where one window is
the whole image, cells are its patches and nothing is averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from bindkit.backbones.sources import ActivationSource, activations_of, require_source
from bindkit.errors import GeometryError, InvalidParameterError, NonFiniteActivationsError, ProbeError
from bindkit.probes import Probe, load_probe
from bindkit.probes.protocols import Fit
from bindkit.scenes import Scene
from bindkit.scenes.decoding import COLOUR_MODES, read_image
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
    """What lies on window patches, laid on the cells by the pixels that they share: nothing is lost."""
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


Picture = Scene | np.ndarray | Image.Image | str | Path
"""What counts as an image."""

MOST_PATCHES = 16_384
"""Patches of the largest image whose pairs are all scored: a gigabyte of scores."""
_WINDOWS_PER_FORWARD = 8


@dataclass(frozen=True)
class Affinity:
    """Affinities of all pairs of patches of one image.

    Attributes
    ----------
    scores : float32 array of shape (n, n)
        ``sigmoid(logit)`` in [0, 1], patches numbered row-major over the whole image.
    grid : ImageGrid
        Where the patches lie in the image.
    layer : int
        Layer that the probe reads.
    """

    scores: np.ndarray
    grid: ImageGrid
    layer: int

    def of(self, patch: int) -> np.ndarray:
        """Affinities of one patch to all, as float32 [rows, cols]. Raises GeometryError outside the grid."""
        self.grid.row_col(patch)
        return self.scores[patch].reshape(self.grid.rows, self.grid.cols)

    def patch_at(self, row: float, col: float) -> int:
        """Patch that shows a pixel of the image. Raises GeometryError outside the image."""
        return self.grid.patch_at(row, col)

    def box(self, patch: int) -> Box:
        """Pixels of a patch in the image. Raises GeometryError outside the grid."""
        return self.grid.box(patch)


def affinity(
    backbone: ActivationSource, probe: Probe | Fit | str | Path, image: Picture, layer: int | None = None
) -> Affinity:
    """Score all pairs of patches of one image.

    The whole image is covered: it is resized and tiled into windows as for caching, and the windows' activations are
    stitched to one patch grid (`stitch`). An image that one window covers gets exactly the probe's own affinities.

    Parameters
    ----------
    backbone : Backbone
        That the probe was fitted on.
    probe : Probe, Fit or path
        A fitted probe, what `fit_probe` gave, or the directory that ``fit.save`` wrote.
    image : PIL image, uint8 array [height, width, 3], path or Scene
        Files and PIL images are turned upright as their EXIF data say; transparency is dropped.
    layer : int, optional
        Only needed for a probe that does not know which layer it was fitted on.

    Returns
    -------
    Affinity
        ``found.scores`` float32 [n, n], ``found.of(patch)``, ``found.patch_at(row, col)``, ``found.box(patch)``.

    Raises
    ------
    ProbeMismatchError
        A probe of another backbone, width or layer.
    ProbeError, BackboneError
        Something that is no probe or no backbone.
    LayerError
        A layer that the backbone does not have, or none known.
    BrokenSceneError
        An image file that is missing or damaged.
    InvalidParameterError
        Something that is no image of 8 bits a channel.
    GeometryError
        An image without pixels, or so long that its pairs would not fit into memory.

    Examples
    --------
    ::

        found = bk.affinity(backbone, "probes/mine", "photo.jpg")
        patch = found.patch_at(row=120, col=200)         # pixel of the photo
        found.of(patch)                                  # [rows, cols]: that patch's affinity to every patch
    """
    probe, backbone = read_probe(probe), require_source(backbone)
    layer = layer_of(probe, backbone, layer)
    grid, activations = image_activations(backbone, image_pixels(image), [layer])
    return Affinity(pair_logits(probe, activations[layer]).sigmoid().numpy(), grid, layer)


def read_probe(given: Any) -> Probe:
    """The probe itself, the one of a directory, or that of a `Fit`. Raises ProbeError for anything else."""
    found = given.probe if isinstance(given, Fit) else given
    found = load_probe(found) if isinstance(found, str | Path) else found
    if not isinstance(found, Probe):
        raise ProbeError(
            f"a probe is what bk.load_probe gives, a directory that fit.save() wrote, or a fit, got {given!r:.80}"
        )
    return found


def layer_of(probe: Probe, backbone: ActivationSource, layer: int | None = None) -> int:
    """Layer that a probe reads. Raises ProbeMismatchError or LayerError where it is none of this backbone's."""
    (chosen,) = backbone.resolve_layers([probe.layer_for(backbone.describe(), layer)])
    probe.check_fits(backbone.d_model, chosen)
    return chosen


def image_pixels(image: Any) -> np.ndarray:
    """Read whatever counts as an image as uint8 [height, width, 3]. Errors as `affinity`."""
    if isinstance(image, Scene):
        pixels = image.image
    elif isinstance(image, str | Path):
        pixels = read_image(Path(image))
    elif isinstance(image, Image.Image):
        if image.mode not in COLOUR_MODES:
            raise InvalidParameterError(
                f"the image is of mode {image.mode}; expected 8 bits a channel, so convert it to RGB"
            )
        pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    elif isinstance(image, np.ndarray):
        pixels = image
    else:
        raise InvalidParameterError(
            f"an image is a path, a PIL image, a uint8 array or a Scene, got {type(image).__name__}"
        )
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise InvalidParameterError(
            f"an image array should be uint8 [height, width, 3] with values from 0 to 255, got {pixels.dtype} "
            f"{list(pixels.shape)}"
        )
    if not pixels.size:
        raise GeometryError(f"the image has no pixels: {pixels.shape[0]} x {pixels.shape[1]} px")
    return pixels


def image_activations(
    backbone: ActivationSource, pixels: np.ndarray, layers: Sequence[int], most_patches: int = MOST_PATCHES
) -> tuple[ImageGrid, dict[int, Float[Tensor, "patch d_model"]]]:
    """Of a whole image by layer, float32 on the CPU. Raises GeometryError before anything is computed."""
    plan = backbone.geometry.plan((int(pixels.shape[0]), int(pixels.shape[1])))
    grid = ImageGrid.of_plan(plan)
    if grid.n_patches > most_patches:
        raise GeometryError(
            f"an image of {pixels.shape[0]} x {pixels.shape[1]} px becomes {grid.rows} x {grid.cols} patches of "
            f"{backbone.name}, more than the {most_patches} whose pairs are scored; crop it to a shape nearer a square"
        )
    windows = window_activations(backbone, pixels, layers)
    stitched = {layer: stitch(windows.pop(layer), plan) for layer in layers}  # each is let go of once it is stitched
    return grid, stitched


def window_activations(
    backbone: ActivationSource, pixels: np.ndarray, layers: Sequence[int]
) -> dict[int, Float[Tensor, "window patch d_model"]]:
    """Of every window, in the plan's order, float32 on the CPU. Raises NonFiniteActivationsError."""
    plan = backbone.geometry.plan((int(pixels.shape[0]), int(pixels.shape[1])))
    resized = backbone.preprocessing.resize(pixels, plan.resized)
    parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for first in range(0, plan.n_windows, _WINDOWS_PER_FORWARD):
        corners = plan.windows[first : first + _WINDOWS_PER_FORWARD]
        crops = np.stack([resized[w.top : w.top + w.side, w.left : w.left + w.side] for w in corners])
        places = torch.tensor([[w.top, w.left] for w in corners])
        sizes = torch.tensor([plan.resized] * len(corners))
        with torch.inference_mode():
            found = activations_of(backbone, torch.from_numpy(crops), places, sizes, layers)
        for layer, windows in parts.items():
            windows.append(found[layer].float().cpu())
    joined = {}
    for layer in list(parts):
        windows = parts.pop(layer)  # each is let go of once it is joined
        if not all(bool(part.isfinite().all()) for part in windows):
            raise NonFiniteActivationsError(
                f"{backbone.name} gave NaN or infinity at layer {layer}; check its weights (damaged or in half "
                "precision?) or leave out this layer"
            )
        joined[layer] = windows[0] if len(windows) == 1 else torch.cat(windows)
    return joined


def pair_logits(probe: Probe, activations: Float[Tensor, "patch d_model"]) -> Float[Tensor, "patch patch"]:
    """Logits of every pair, in float32 and without gradients. Raises NonFiniteActivationsError for NaN."""
    with torch.inference_mode():
        logits = probe(activations).float()
    if logits.isnan().any():
        raise NonFiniteActivationsError(f"this {probe.kind} probe gives NaN for some pairs; fit it again")
    return logits
