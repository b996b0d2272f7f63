"""Drawn scenes through a backbone: windows of several scenes per forward, drawn rows kept, the rest dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from bindkit.cache.layout import Skipped
from bindkit.cache.sampling import DrawnScene, Resizer
from bindkit.cache.shards import ShardLabels
from bindkit.errors import BackboneError, NonFiniteActivationsError
from bindkit.scenes.geometry import WindowGeometry

_TORCH_DTYPES = {"float16": torch.float16, "float32": torch.float32}


@runtime_checkable
class ActivationSource(Protocol):
    """What caching asks of a backbone; `bindkit.Backbone` has it."""

    @property
    def name(self) -> str:
        """Hub id or directory."""
        ...

    @property
    def d_model(self) -> int:
        """Width of an activation."""
        ...

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        ...

    @property
    def geometry(self) -> WindowGeometry:
        """How scenes are resized and tiled."""
        ...

    @property
    def preprocessing(self) -> Resizer:
        """Resizes scenes."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        ...

    def resolve_layers(self, layers: str | int | Sequence[int]) -> tuple[int, ...]:
        """Layers in ascending order. Raises LayerError."""
        ...

    def activations(self, windows: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """Float32 activations [window, patch, d_model] by layer."""
        ...

    def describe(self) -> dict[str, Any]:
        """Identity as plain values."""
        ...


@runtime_checkable
class PlacedSource(Protocol):
    """A source that asks where its windows lie, as `bindkit.backbones.controls.Control` does."""

    def activations_at(
        self, windows: Tensor, corners: Tensor, scene_sizes: Tensor, layers: Sequence[int]
    ) -> dict[int, Tensor]:
        """As `ActivationSource.activations`, given (top, left) of each window and (height, width) of its scene."""
        ...


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
    """Activations of windows; where they lie is handed on to a source that asks for it.

    ::

        corners, sizes = torch.tensor([[0, 32]]), torch.tensor([[112, 144]])     # pixels of the resized scene
        activations_of(backbone, windows, corners, sizes, layers=[3])[3]         # [window, patch, d_model]
    """
    if isinstance(source, PlacedSource):
        return source.activations_at(windows, corners, scene_sizes, layers)
    return source.activations(windows, layers)


@dataclass
class ShardContent:
    """What the scenes of a shard gave.

    Attributes
    ----------
    blocks : dict
        Layer -> arrays [rows, d_model], one below the other.
    """

    scenes: list[DrawnScene] = field(default_factory=list)
    blocks: dict[int, list[np.ndarray]] = field(default_factory=dict)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Scenes without rows and why."""
        return tuple(Skipped(scene.id, scene.reason) for scene in self.scenes if scene.reason is not None)

    @property
    def n_rows(self) -> int:
        """Rows of all scenes."""
        return sum(scene.n_rows for scene in self.scenes)

    def labels(self) -> ShardLabels:
        """Labels of all rows."""
        found = [scene.labels for scene in self.scenes if scene.labels is not None]

        def column(name: str, dtype: type, *shape: int) -> np.ndarray:
            parts: list[np.ndarray] = [np.asarray(getattr(labels, name), dtype=dtype) for labels in found]
            return np.concatenate(parts) if parts else np.empty((0, *shape), dtype)

        return ShardLabels(
            instances=column("instances", np.int32),
            classes=column("classes", np.int32),
            purity=column("purity", np.float32),
            window=column("window", np.int32),
            patch=column("patch", np.int32),
            corners=column("corners", np.int32, 2),
            scene_rows=np.array([scene.n_rows for scene in self.scenes], dtype=np.int64),
            scene_digests=np.frombuffer(b"".join(scene.digest for scene in self.scenes), np.uint8).reshape(-1, 32),
        )


@dataclass(frozen=True)
class _DrawnWindow:
    scene_id: str
    pixels: UInt8[Tensor, "height width 3"]
    patches: Int[Tensor, " patch"]
    corner: tuple[int, int]
    scene_size: tuple[int, int]
    closes_scene: bool


def compute_shard(
    backbone: ActivationSource,
    drawn: Iterable[DrawnScene],
    layers: Sequence[int],
    dtype: str,
    windows_per_batch: int,
    scene_done: Callable[[int], Any] = lambda count: None,
) -> ShardContent:
    """Run the scenes of one shard through a backbone and keep the drawn rows.

    Batches never reach into the next shard, so that what a batch holds (and so the last bits of its activations) does
    not depend on where a run was resumed.

    Parameters
    ----------
    backbone : ActivationSource
        The model.
    drawn : iterable of DrawnScene
        All scenes of the shard, in order.
    layers : sequence of int
        To compute; none for labels alone.
    dtype : "float16" or "float32"
        Of what is kept.
    windows_per_batch : int
        Windows per forward.
    scene_done : callable
        Called with the number of scenes that were finished.

    Raises
    ------
    NonFiniteActivationsError
        Names the scene and layer, and what to do.
    """
    content = ShardContent(blocks={layer: [] for layer in layers})
    batch: list[_DrawnWindow] = []
    for scene in drawn:
        # Pixels are dropped as soon as they are through the model; only labels stay. (A slice would hold them all.)
        no_windows = torch.empty_like(scene.windows[:0])
        content.scenes.append(DrawnScene(scene.id, scene.labels, no_windows, (), scene.digest, scene.reason))
        if not layers or scene.labels is None or not scene.patches:
            scene_done(1)
            continue
        plan, last = scene.labels.plan, len(scene.patches) - 1
        numbers = np.unique(scene.labels.window)
        for k, (number, patches) in enumerate(zip(numbers, scene.patches, strict=True)):
            window = plan.windows[number]
            corner = (window.top, window.left)
            batch.append(_DrawnWindow(scene.id, scene.windows[k], patches, corner, plan.resized, k == last))
            if len(batch) == windows_per_batch:
                _forward(backbone, batch, content, dtype, scene_done)
                batch = []
    if batch:
        _forward(backbone, batch, content, dtype, scene_done)
    return content


def _forward(
    backbone: ActivationSource,
    batch: list[_DrawnWindow],
    content: ShardContent,
    dtype: str,
    scene_done: Callable[[int], Any],
) -> None:
    counts = torch.tensor([len(window.patches) for window in batch])
    window_of = torch.arange(len(batch)).repeat_interleave(counts).to(backbone.device)
    patch_of = torch.cat([window.patches for window in batch]).to(backbone.device)
    with torch.inference_mode():
        activations = activations_of(
            backbone,
            torch.stack([window.pixels for window in batch]),
            torch.tensor([window.corner for window in batch]),
            torch.tensor([window.scene_size for window in batch]),
            list(content.blocks),
        )
        kept = {layer: activations.pop(layer)[window_of, patch_of] for layer in content.blocks}
        _check_finite(backbone, batch, kept, dtype)
        for layer, found in kept.items():
            content.blocks[layer].append(found.to(_TORCH_DTYPES[dtype]).cpu().numpy())
    scene_done(sum(window.closes_scene for window in batch))


def _check_finite(backbone: ActivationSource, batch: list[_DrawnWindow], kept: dict[int, Tensor], dtype: str) -> None:
    limit = torch.finfo(_TORCH_DTYPES[dtype]).max
    # NaN makes both ends NaN, and no comparison with NaN holds. One transfer for all layers.
    ends = torch.stack([torch.stack(found.aminmax()) for found in kept.values()]).cpu()
    fits = (ends[:, 0] >= -limit) & (ends[:, 1] <= limit)
    if fits.all():
        return
    layer = list(kept)[int(fits.logical_not().nonzero()[0])]
    found = kept[layer].cpu()
    bad_rows = (~(found.abs() <= limit)).any(1)
    row = int(bad_rows.nonzero()[0])
    value = float(found[row][~(found[row].abs() <= limit)][0])
    scene_id = next(
        window.scene_id
        for window, end in zip(batch, np.cumsum([len(window.patches) for window in batch]), strict=True)
        if row < end
    )
    where = f"{backbone.name} gave {value:g} for scene {scene_id} at layer {layer}"
    if np.isfinite(value):
        raise NonFiniteActivationsError(
            f'{where}, beyond what float16 holds (65,504); cache with dtype="float32" (into another root)'
        )
    raise NonFiniteActivationsError(
        f"{where}; a backbone must give finite numbers: check its weights (a damaged or half-precision checkpoint?), "
        f"or leave out this layer"
    )
