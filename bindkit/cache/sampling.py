"""Which patches of a scene are kept, and the pixels and labels that belong to them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from bindkit.errors import BrokenSceneError, GeometryError
from bindkit.scenes.geometry import WindowGeometry
from bindkit.scenes.labels import PatchLabels, label_patches
from bindkit.scenes.scene import Scene, SceneSet

T = TypeVar("T")
S = TypeVar("S")


@runtime_checkable
class Resizer(Protocol):
    """What drawing asks of a backbone's preprocessing."""

    def resize(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Resize uint8 [height, width, 3] to ``(height, width)`` pixels."""
        ...


@dataclass(frozen=True)
class DrawnScene:
    """The drawn patches of one scene, or why there are none.

    Attributes
    ----------
    id : str
    labels : PatchLabels or None
        Of the drawn patches, sorted by window and patch.
    windows : uint8 tensor [window, height, width, 3]
        Those windows that hold a drawn patch, in order.
    patches : tuple of int64 tensors
        Drawn patches of each of these windows, ascending.
    digest : bytes
        SHA-256 of the scene's pixels and size.
    reason : str or None
        Why the scene is skipped; all else is empty then.
    """

    id: str
    labels: PatchLabels | None
    windows: UInt8[Tensor, "window height width 3"]
    patches: tuple[Int[Tensor, " _"], ...]
    digest: bytes
    reason: str | None = None

    @property
    def n_rows(self) -> int:
        """Patches drawn."""
        return len(self.labels) if self.labels is not None else 0


def draw_patches(
    scene_id: str, n_windows: int, patches_per_window: int, patches_per_scene: int | str, seed: int
) -> np.ndarray:
    """Draw patches of a scene over its windows as evenly as possible, without repetition.

    The draw depends on the seed, the scene's id and the two counts only: not on order, machine, NumPy version or
    backbone, so that backbones with one geometry are measured on the same patches.

    >>> draw_patches("a scene", n_windows=2, patches_per_window=4, patches_per_scene=3, seed=0)
    array([2, 4, 7])

    Parameters
    ----------
    scene_id : str
        Unique in its scene set.
    n_windows : int
        Windows of the scene.
    patches_per_window : int
        Patches of one window's grid.
    patches_per_scene : int or "all"
        How many to draw; all of them if there are no more. No window gives two more than another.
    seed : int
        Another seed, another draw.

    Returns
    -------
    int64 array
        ``window * patches_per_window + patch``, ascending.
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
    scenes: SceneSet,
    position: int,
    geometry: WindowGeometry,
    preprocessing: Resizer,
    patches_per_scene: int | str,
    seed: int,
) -> DrawnScene:
    """Read, resize, label and draw one scene; a broken one comes back with its reason."""
    scene_id = scenes.ids[position]
    try:
        scene = scenes[position]
        labels = label_patches(scene, geometry)
    except (BrokenSceneError, GeometryError) as error:
        side = geometry.window
        nothing = torch.empty(0, side, side, 3, dtype=torch.uint8)
        return DrawnScene(scene_id, None, nothing, (), bytes(32), str(error))
    plan = labels.plan
    rows = draw_patches(scene_id, plan.n_windows, plan.grid.n_patches, patches_per_scene, seed)
    resized = preprocessing.resize(scene.image, plan.resized)
    window_of, patch_of = np.divmod(rows, plan.grid.n_patches)
    used = np.unique(window_of)
    pixels = np.stack(
        [resized[w.top : w.top + w.side, w.left : w.left + w.side] for w in (plan.windows[k] for k in used)]
    )
    return DrawnScene(
        id=scene_id,
        labels=labels.take(rows),
        windows=torch.from_numpy(pixels),
        patches=tuple(torch.from_numpy(patch_of[window_of == k]) for k in used),
        digest=digest_of(scene),
    )


def digest_of(scene: Scene) -> bytes:
    """SHA-256 of a scene's pixels and size."""
    return hashlib.sha256(str(scene.size).encode() + np.ascontiguousarray(scene.image).data).digest()


def ahead(function: Callable[[S], T], items: Iterable[S], workers: int) -> Generator[T, None, None]:
    """Give ``function(item)`` in order, computed by threads ahead of the consumer; at most ``2 * workers`` wait.

    With no workers everything happens in the caller's thread.
    """
    if workers == 0:
        yield from map(function, items)
        return
    remaining = iter(items)
    waiting: list[Future[T]] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="bindkit-scenes") as threads:
        try:
            while True:
                while len(waiting) < 2 * workers and (item := next(remaining, _END)) is not _END:
                    waiting.append(threads.submit(function, item))  # type: ignore[arg-type]
                if not waiting:
                    return
                yield waiting.pop(0).result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


_END = object()
