"""Scenes through a backbone: what is asked of it, how large that will be, and drawn rows kept of every forward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from bindkit.backbones.controls import HasGeometry
from bindkit.cache.manifest import DTYPES, Identity
from bindkit.cache.sampling import DrawnScene, ahead
from bindkit.cache.shards import BYTES_PER_ROW, BYTES_PER_SCENE, COLUMNS, Labels, stack
from bindkit.errors import BackboneError, BrokenSceneError, GeometryError, NonFiniteActivationsError
from bindkit.scenes.geometry import WindowGeometry
from bindkit.scenes.labels import PatchLabels
from bindkit.scenes.scene import BrokenScene, SceneSet, require_scenes

_SHARD_BYTES = 2**30
_LARGEST_SHARD = 128
_BATCH = {"cpu": (2**28, 64), "cuda": (2**31, 256)}
"""Bytes that all layers of a batch may take, and its windows at most."""


@runtime_checkable
class ActivationSource(HasGeometry, Protocol):
    """What caching asks of a backbone; `bindkit.Backbone` has it."""

    @property
    def name(self) -> str:
        """Hub id or directory."""

    @property
    def d_model(self) -> int:
        """Width of an activation."""

    @property
    def n_layers(self) -> int:
        """Number of blocks."""

    @property
    def device(self) -> torch.device:
        """Where the model runs."""

    def resolve_layers(self, layers: str | int | Sequence[int]) -> tuple[int, ...]:
        """Layers in ascending order. Raises LayerError."""

    def activations(self, windows: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """Float32 activations [window, patch, d_model] by layer."""

    def describe(self) -> dict[str, Any]:
        """Identity as plain values."""


@runtime_checkable
class PlacedSource(Protocol):
    """A source that asks where its windows lie, as `bindkit.backbones.controls.Control` does."""

    def activations_at(
        self, windows: Tensor, corners: Tensor, scene_sizes: Tensor, layers: Sequence[int]
    ) -> dict[int, Tensor]:
        """As `ActivationSource.activations`, given (top, left) of each window and (height, width) of its scene."""


def require_source(given: Any) -> ActivationSource:
    """Refuse what is no backbone, such as its name. Raises BackboneError."""
    if not isinstance(given, ActivationSource):
        raise BackboneError(f"a backbone is what bk.load_backbone(name) gives, got {given!r:.80}")
    return given


def activations_of(
    source: ActivationSource,
    windows: UInt8[Tensor, "window height width 3"],
    corners: Int[Tensor, "window 2"],
    scene_sizes: Int[Tensor, "window 2"],
    layers: Sequence[int],
) -> dict[int, Tensor]:
    """Activations [window, patch, d_model] of windows; a source that asks where they lie is told.

    Corners (top, left) and sizes (height, width) are in pixels of the resized scene.
    """
    if isinstance(source, PlacedSource):
        return source.activations_at(windows, corners, scene_sizes, layers)
    return source.activations(windows, layers)


@dataclass(frozen=True)
class SceneSize:
    """Windows and drawn patches of one scene; none, and the reason, if it cannot be read."""

    n_windows: int
    n_rows: int
    reason: str = ""


def scene_sizes(
    scenes: SceneSet, positions: Sequence[int], geometry: WindowGeometry, patches_per_scene: int | str, workers: int = 2
) -> dict[int, SceneSize]:
    """Size of each scene by position. Reads headers only."""

    def size(position: int) -> SceneSize:
        try:
            plan = geometry.plan(scenes.size_of(position))
        except (BrokenSceneError, GeometryError) as error:
            return SceneSize(0, 0, str(error))
        rows = plan.n_patches if patches_per_scene == "all" else min(int(patches_per_scene), plan.n_patches)
        return SceneSize(plan.n_windows, rows)

    return dict(zip(positions, ahead(size, positions, workers), strict=True))


def bytes_of(n_scenes: int, n_rows: int, n_layers: int, d_model: int, itemsize: int, with_labels: bool = True) -> int:
    """Bytes of the tensors of so many rows, file headers (about 100 bytes a file) not counted."""
    labels = n_rows * BYTES_PER_ROW + n_scenes * BYTES_PER_SCENE if with_labels else 0
    return labels + n_rows * n_layers * d_model * itemsize


def scenes_per_shard(backbone: ActivationSource, identity: Identity, largest_rows: int) -> int:
    """Largest power of two up to 128 for which all layers of a shard stay within 1 GiB, at `largest_rows` a scene."""
    per_scene = max(1, largest_rows) * backbone.n_layers * backbone.d_model * identity.itemsize
    return _power_of_two(_SHARD_BYTES // per_scene, _LARGEST_SHARD)


def default_windows_per_batch(backbone: ActivationSource) -> int:
    """Largest power of two for which all layers of a batch stay within 256 MiB (2 GiB on a GPU), at most 64 (256)."""
    n_bytes, largest = _BATCH["cuda" if backbone.device.type == "cuda" else "cpu"]
    per_window = backbone.geometry.grid.n_patches * backbone.d_model * 4 * backbone.n_layers
    return _power_of_two(n_bytes // per_window, largest)


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
    identity = Identity({}, scenes.uri, {}, {}, patches_per_scene, dtype, 0)
    sizes = scene_sizes(scenes, range(len(scenes)), backbone.geometry, patches_per_scene)
    n_rows, n_layers = sum(size.n_rows for size in sizes.values()), len(backbone.resolve_layers(layers))
    return bytes_of(len(scenes), n_rows, n_layers, backbone.d_model, identity.itemsize)


@dataclass(frozen=True)
class ShardContent:
    """What the scenes of a shard gave."""

    labels: Labels
    skipped: tuple[BrokenScene, ...]
    blocks: dict[int, list[np.ndarray]]  # by layer: [rows, d_model], one below the other


@dataclass(frozen=True)
class _DrawnWindow:
    scene_id: str
    pixels: UInt8[Tensor, "height width 3"]
    patches: Int[Tensor, " patch"]
    corner: tuple[int, int]
    scene_size: tuple[int, int]


def compute_shard(
    backbone: ActivationSource, drawn: Iterable[DrawnScene], layers: Sequence[int], dtype: str, windows_per_batch: int
) -> ShardContent:
    """Run all scenes of one shard through a backbone and keep the drawn rows; no layers for labels alone.

    Batches hold windows of several scenes and never reach into the next shard, so that what a batch holds (and so the
    last bits of its activations) does not depend on where a run was resumed. Raises NonFiniteActivationsError.
    """
    labels: list[PatchLabels | None] = []
    digests: list[bytes] = []
    skipped: list[BrokenScene] = []
    blocks: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}

    def windows() -> Iterator[_DrawnWindow]:
        for scene in drawn:
            # Of a scene only these stay; its pixels are let go as soon as they are through the model.
            labels.append(scene.labels)
            digests.append(scene.digest)
            if scene.labels is None:
                skipped.append(BrokenScene(scene.id, str(scene.reason)))
            elif layers:
                plan, numbers = scene.labels.plan, np.unique(scene.labels.window)
                for number, pixels, patches in zip(numbers, scene.windows, scene.patches, strict=True):
                    corner = (plan.windows[number].top, plan.windows[number].left)
                    yield _DrawnWindow(scene.id, pixels, patches, corner, plan.resized)

    remaining = windows()
    while batch := list(islice(remaining, windows_per_batch)):
        for layer, rows in _forward(backbone, batch, layers, dtype).items():
            blocks[layer].append(rows)
    of_rows = {name: stack(name, [getattr(found, name) for found in labels if found is not None]) for name in COLUMNS}
    n_rows = np.array([0 if found is None else len(found) for found in labels], dtype=np.int64)
    pixels_of = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
    return ShardContent(of_rows | {"scene_rows": n_rows, "scene_digests": pixels_of}, tuple(skipped), blocks)


@torch.inference_mode()
def _forward(
    backbone: ActivationSource, batch: list[_DrawnWindow], layers: Sequence[int], dtype: str
) -> dict[int, np.ndarray]:
    """Drawn rows of a batch by layer. What else the model gave is let go on return."""
    counts = torch.tensor([len(window.patches) for window in batch])
    window_of = torch.arange(len(batch)).repeat_interleave(counts).to(backbone.device)
    patch_of = torch.cat([window.patches for window in batch]).to(backbone.device)
    activations = activations_of(
        backbone,
        torch.stack([window.pixels for window in batch]),
        torch.tensor([window.corner for window in batch]),
        torch.tensor([window.scene_size for window in batch]),
        list(layers),
    )
    kept = {layer: activations.pop(layer)[window_of, patch_of] for layer in layers}
    _require_finite(backbone, batch, kept, dtype)
    return {layer: found.to(DTYPES[dtype]).cpu().numpy() for layer, found in kept.items()}


def _require_finite(backbone: ActivationSource, batch: list[_DrawnWindow], kept: dict[int, Tensor], dtype: str) -> None:
    """Refuse NaN, infinity and what the dtype cannot hold; names the scene, the layer and the remedy."""
    limit = torch.finfo(DTYPES[dtype]).max
    # NaN makes both ends NaN, and no comparison with NaN holds. One transfer for all layers.
    ends = torch.stack([torch.stack(found.aminmax()) for found in kept.values()]).cpu()
    fits = (ends[:, 0] >= -limit) & (ends[:, 1] <= limit)
    if fits.all():
        return
    layer = list(kept)[int(fits.logical_not().nonzero()[0])]
    found = kept[layer].cpu()
    row, column = (~(found.abs() <= limit)).nonzero()[0].tolist()
    value = float(found[row, column])
    ends_of = np.cumsum([len(window.patches) for window in batch])
    scene_id = batch[int(np.searchsorted(ends_of, row, side="right"))].scene_id
    where = f"{backbone.name} gave {value:g} for scene {scene_id} at layer {layer}"
    if np.isfinite(value):
        raise NonFiniteActivationsError(
            f'{where}, beyond what float16 holds (65,504); cache with dtype="float32" (into another root)'
        )
    raise NonFiniteActivationsError(
        f"{where}; a backbone must give finite numbers: check its weights (a damaged or half-precision checkpoint?), "
        f"or leave out this layer"
    )
