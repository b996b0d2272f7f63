"""From a scene's masks to the labels of its patches: the most frequent label of a patch's pixels, and its purity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from bindkit.arguments import require_kind
from bindkit.scenes.geometry import PatchGrid, ScenePlan, WindowGeometry
from bindkit.scenes.scene import Scene


@dataclass(frozen=True)
class PatchLabels:
    """Labels of `n` patches of one scene.

    Attributes
    ----------
    instances, classes : int32 arrays of shape (n,)
        The most frequent instance id and the most frequent class id among the patch's pixels (0 = unlabelled).
        Where two are equally frequent, the lower id.
    purity : float32 array of shape (n,)
        Share of the patch's pixels that carry its instance id, in (0, 1].
    window, patch : int32 arrays of shape (n,)
        Which window of the scene, and which patch of its grid (row-major).
    corners : int32 array of shape (n, 2)
        ``(top, left)`` of the patch in pixels of the resized scene.
    plan : ScenePlan
        Windows and grid, leading back to pixels of the original image.
    """

    instances: np.ndarray
    classes: np.ndarray
    purity: np.ndarray
    window: np.ndarray
    patch: np.ndarray
    corners: np.ndarray
    plan: ScenePlan

    def __len__(self) -> int:
        return len(self.instances)

    def take(self, rows: np.ndarray) -> PatchLabels:
        """Labels of the chosen rows, in the order given."""
        return PatchLabels(
            self.instances[rows],
            self.classes[rows],
            self.purity[rows],
            self.window[rows],
            self.patch[rows],
            self.corners[rows],
            self.plan,
        )


def resize_mask(mask: np.ndarray, size: tuple[int, int], arithmetic: str = "centred") -> np.ndarray:
    """Resize an integer mask to ``(height, width)`` pixels by nearest neighbour, so that no label is invented.

    ``centred`` takes the pixel that holds a new pixel's centre; ``reference`` the one that holds its upper left corner,
    in the float32 arithmetic of torch's ``interpolate(mode="nearest")``.

    >>> resize_mask(np.array([[1, 2], [3, 4]], dtype=np.int32), (2, 4))
    array([[1, 1, 2, 2],
           [3, 3, 4, 4]], dtype=int32)
    """
    if arithmetic == "reference":
        rows, cols = (_floor_indices(*lengths) for lengths in zip(mask.shape, size, strict=True))
        return mask[rows[:, None], cols].astype(np.int32)
    image = Image.fromarray(mask.astype(np.int32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.NEAREST), dtype=np.int32)


def _floor_indices(length: int, wanted: int) -> np.ndarray:
    return np.minimum(np.arange(wanted, dtype=np.float32) * np.float32(length / wanted), length - 1).astype(np.int64)


def majority(mask: np.ndarray, grid: PatchGrid) -> tuple[np.ndarray, np.ndarray]:
    """Most frequent label of every patch of a window, and that label's share.

    Parameters
    ----------
    mask : int array of shape (grid.height, grid.width)
        Labels of a window's pixels.
    grid : PatchGrid
        Patches of the window.

    Returns
    -------
    labels : int32 array of shape (n_patches,)
        Row-major; the lower id where two are equally frequent.
    shares : float32 array of shape (n_patches,)
        In (0, 1].

    Examples
    --------
    >>> labels, shares = majority(np.array([[5, 5, 0, 7], [5, 0, 7, 7]]), PatchGrid(1, 2, 2))
    >>> labels, shares
    (array([5, 7], dtype=int32), array([0.75, 0.75], dtype=float32))
    """
    side = grid.patch_size
    by_patch = mask.reshape(grid.rows, side, grid.cols, side).transpose(0, 2, 1, 3).reshape(grid.n_patches, side * side)
    ids, compact = np.unique(by_patch, return_inverse=True)
    slots = np.arange(grid.n_patches)[:, None] * len(ids) + compact.reshape(by_patch.shape)
    counts = np.bincount(slots.ravel(), minlength=grid.n_patches * len(ids)).reshape(grid.n_patches, len(ids))
    winner = counts.argmax(axis=1)
    share = counts[np.arange(grid.n_patches), winner] / (side * side)
    return ids[winner].astype(np.int32), share.astype(np.float32)


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
    instances, classes = (resize_mask(mask, plan.resized, plan.arithmetic) for mask in (scene.instances, scene.classes))
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for corner in plan.windows:
        crop = np.s_[corner.top : corner.top + corner.side, corner.left : corner.left + corner.side]
        instance, purity = majority(instances[crop], plan.grid)
        found.append((instance, majority(classes[crop], plan.grid)[0], purity))
    window = np.repeat(np.arange(plan.n_windows, dtype=np.int32), plan.grid.n_patches)
    patch = np.tile(np.arange(plan.grid.n_patches, dtype=np.int32), plan.n_windows)
    return PatchLabels(
        instances=np.concatenate([instance for instance, _, _ in found]),
        classes=np.concatenate([label for _, label, _ in found]),
        purity=np.concatenate([purity for _, _, purity in found]),
        window=window,
        patch=patch,
        corners=plan.corners(window, patch),
        plan=plan,
    )
