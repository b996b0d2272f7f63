"""Which patches of a scene are kept, and the pixels and labels that belong to them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from bindkit.backbones.sources import HasGeometry
from bindkit.errors import BrokenSceneError, GeometryError
from bindkit.scenes.geometry import PatchLabels, label_patches
from bindkit.scenes.scene import SceneSet


@dataclass(frozen=True)
class DrawnScene:
    """The drawn patches of one scene, or why there are none."""

    id: str
    labels: PatchLabels | None  # sorted by window and patch
    windows: UInt8[Tensor, "window height width 3"]  # those that hold a drawn patch, in order
    patches: tuple[Int[np.ndarray, " _"], ...]  # drawn patches of each of these windows, ascending
    digest: bytes  # SHA-256 of its pixels and size; zeros where it is skipped
    reason: str | None = None  # why it is skipped
    remarks: tuple[str, ...] = ()  # as `Scene.remarks`


def draw_patches(
    scene_id: str, n_windows: int, patches_per_window: int, patches_per_scene: int | str, seed: int
) -> np.ndarray:
    """Draw patches of a scene over its windows as evenly as possible: int64, ascending, without repetition.

    Numbered ``window * patches_per_window + patch``; all of them where no more are asked for than there are.
    The draw depends on the seed, the scene's id and the two counts only: not on order, machine, NumPy version or
    backbone, so that backbones with one geometry are measured on the same patches.
    """
    n_patches = n_windows * patches_per_window
    if patches_per_scene == "all" or int(patches_per_scene) >= n_patches:
        return np.arange(n_patches)
    digest = hashlib.sha256(f"{seed}:{scene_id}".encode(errors="surrogatepass")).digest()
    # Raw words of a bit generator are stable across NumPy versions, a Generator's methods are not (NEP 19).
    words = np.random.PCG64(int.from_bytes(digest, "big")).random_raw(n_windows + n_patches)
    base, rest = divmod(int(patches_per_scene), n_windows)
    wanted = np.full(n_windows, base)
    wanted[np.argsort(words[:n_windows], kind="stable")[:rest]] += 1
    order = np.argsort(words[n_windows:].reshape(n_windows, patches_per_window), axis=1, kind="stable")
    chosen = np.zeros((n_windows, patches_per_window), dtype=bool)
    np.put_along_axis(chosen, order, np.arange(patches_per_window) < wanted[:, None], axis=1)
    return np.flatnonzero(chosen)


def draw_scene(
    scenes: SceneSet, position: int, source: HasGeometry, patches_per_scene: int | str, seed: int
) -> DrawnScene:
    """Read, resize, label and draw one scene as a backbone sees it; a broken one comes back with its reason."""
    scene_id, side = scenes.ids[position], source.geometry.window
    try:
        scene = scenes[position]
        labels = label_patches(scene, source.geometry)
    except (BrokenSceneError, GeometryError) as error:
        return DrawnScene(scene_id, None, torch.empty(0, side, side, 3, dtype=torch.uint8), (), bytes(32), str(error))
    plan = labels.plan
    rows = draw_patches(scene_id, plan.n_windows, plan.grid.n_patches, patches_per_scene, seed)
    resized = source.preprocessing.resize(scene.image, plan.resized)
    window_of, patch_of = np.divmod(rows, plan.grid.n_patches)
    used = np.unique(window_of)
    pixels = np.stack(
        [resized[w.top : w.top + w.side, w.left : w.left + w.side] for w in (plan.windows[k] for k in used)]
    )
    patches = tuple(patch_of[window_of == k] for k in used)
    digest = hashlib.sha256(str(scene.size).encode() + np.ascontiguousarray(scene.image).data).digest()
    return DrawnScene(scene_id, labels.take(rows), torch.from_numpy(pixels), patches, digest, remarks=scene.remarks)
