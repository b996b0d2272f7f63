"""Which patches of a scene are kept; and, from headers alone, how large a cache of them will be."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from bindkit.backbones.loading import Backbone
from bindkit.backbones.sources import ActivationSource, HasGeometry, require_source
from bindkit.cache.manifest import Identity
from bindkit.cache.shards import BYTES_PER_ROW, BYTES_PER_SCENE
from bindkit.errors import BrokenSceneError, GeometryError
from bindkit.files import ahead
from bindkit.scenes.geometry import PatchLabels, WindowGeometry, label_patches
from bindkit.scenes.scene import SceneSet, require_scenes


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


_SHARD_BYTES = 2**30
_LARGEST_SHARD = 128
_BATCH = {"cpu": (2**28, 64), "cuda": (2**33, 256)}
"""Bytes that all layers of a batch's patches would take, and its windows at most."""
_LONG = 1.0
"""Seconds that measuring a batch may take."""


@dataclass(frozen=True)
class SceneSize:
    """Windows and drawn patches of one scene; none, and the reason, if it cannot be read."""

    n_windows: int
    n_rows: int
    reason: str = ""


def scene_sizes(
    scenes: SceneSet,
    positions: Sequence[int],
    geometry: WindowGeometry,
    patches_per_scene: int | str,
    workers: int = 2,
    processes: bool = False,
) -> dict[int, SceneSize]:
    """Size of each scene by position, read by threads or processes from headers only."""

    def size(position: int) -> SceneSize:
        try:
            plan = geometry.plan(scenes.size_of(position))
        except (BrokenSceneError, GeometryError) as error:
            return SceneSize(0, 0, str(error))
        rows = plan.n_patches if patches_per_scene == "all" else min(int(patches_per_scene), plan.n_patches)
        return SceneSize(plan.n_windows, rows)

    return dict(zip(positions, ahead(size, positions, workers, processes, at_once=64), strict=True))


def bytes_of(n_scenes: int, n_rows: int, n_layers: int, bytes_per_row: int, with_labels: bool = True) -> int:
    """Bytes of the tensors of so many rows, file headers (about 100 bytes a file) not counted."""
    labels = n_rows * BYTES_PER_ROW + n_scenes * BYTES_PER_SCENE if with_labels else 0
    return labels + n_rows * n_layers * bytes_per_row


def bytes_at_most(d_model: int, n_layers: int, n_scenes: int, patches_per_scene: int, dtype: str) -> int:
    """Bytes of a cache of so many scenes, each with so many patches; scenes that have fewer take less."""
    identity = Identity({"d_model": d_model}, "", {}, {}, patches_per_scene, dtype, 0)
    return bytes_of(n_scenes, n_scenes * patches_per_scene, n_layers, identity.bytes_per_row)


def scenes_per_shard(backbone: ActivationSource, identity: Identity, largest_rows: int) -> int:
    """Largest power of two up to 128 for which all layers of a shard stay within 1 GiB, at `largest_rows` a scene."""
    per_scene = max(1, largest_rows) * backbone.n_layers * identity.encoding.bytes_per_row(backbone.d_model)
    return _power_of_two(_SHARD_BYTES // per_scene, _LARGEST_SHARD)


def default_windows_per_batch(backbone: ActivationSource) -> int:
    """Largest power of two for which all layers of a batch stay within 256 MiB (8 GiB on a GPU), at most 64 (256)."""
    n_bytes, largest = _BATCH["cuda" if backbone.device.type == "cuda" else "cpu"]
    per_window = backbone.geometry.grid.n_patches * backbone.d_model * 4 * backbone.n_layers
    return _power_of_two(n_bytes // per_window, largest)


def seconds_per_window(backbone: Backbone, layers: Sequence[int], windows_per_batch: int) -> float:
    """Seconds that the model alone takes for a window, measured in a whole batch; where that takes long, in one."""
    side, seconds = backbone.geometry.window, 0.0
    rows = (torch.zeros(1, dtype=torch.int64, device=backbone.device),) * 2
    for count in (1, 1, windows_per_batch):  # the first also sets up what later ones find
        if seconds * count < _LONG:
            started = time.perf_counter()
            backbone.activations(torch.zeros(count, side, side, 3, dtype=torch.uint8), layers, rows)[layers[0]].cpu()
            seconds = (time.perf_counter() - started) / count
    return seconds


def _power_of_two(at_most: int, largest: int) -> int:
    return min(largest, 1 << max(0, at_most.bit_length() - 1))


def estimate_bytes(
    backbone: ActivationSource,
    scenes: SceneSet,
    layers: str | int | Sequence[int] = "all",
    patches_per_scene: int | str = 512,
    dtype: str = "float16",
) -> int:
    """Bytes that `cache_activations` would write for these arguments, from image headers alone.

    Exact but for file headers and the manifest, as long as no scene turns out to be broken.

    ::

        print(f"{bk.estimate_bytes(backbone, scenes) / 1e9:.1f} GB")

    Raises
    ------
    LayerError
        For a layer that the backbone does not have.
    InvalidParameterError
        For a dtype or patches_per_scene that there is not.
    """
    require_source(backbone)
    require_scenes(scenes)
    identity = Identity({"d_model": backbone.d_model}, scenes.uri, {}, {}, patches_per_scene, dtype, 0)
    sizes = scene_sizes(scenes, range(len(scenes)), backbone.geometry, patches_per_scene)
    n_rows, n_layers = sum(size.n_rows for size in sizes.values()), len(backbone.resolve_layers(layers))
    return bytes_of(len(scenes), n_rows, n_layers, identity.bytes_per_row)
