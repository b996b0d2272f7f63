"""Scenes through a backbone: of every forward the drawn rows are kept, encoded, and on their way while it goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from bindkit.backbones.sources import ActivationSource, activations_of, on_gpu
from bindkit.cache.encoding import ENCODINGS
from bindkit.cache.sampling import DrawnScene
from bindkit.cache.shards import COLUMNS, Labels, stack
from bindkit.errors import BackboneError, NonFiniteActivationsError
from bindkit.scenes.geometry import PatchLabels
from bindkit.scenes.scene import BrokenScene


@dataclass(frozen=True)
class _DrawnWindow:
    scene_id: str
    pixels: UInt8[Tensor, "height width 3"]
    patches: Int[np.ndarray, " patch"]
    corner: tuple[int, int]
    scene_size: tuple[int, int]


@dataclass(frozen=True)
class EncodedBatch:
    """Drawn rows of one batch, in host memory once they have arrived."""

    backbone: str
    scene_of_row: tuple[str, ...]
    dtype: str
    layers: dict[int, dict[str, Tensor]]  # what `Encoding.encode` gave
    ends: Float[Tensor, "layer row 2"]  # smallest and largest number of each row
    arrived: torch.cuda.Event | None  # None where it never was elsewhere

    def arrive(self) -> None:
        """Wait until they have.

        Raises NonFiniteActivationsError for NaN, infinity and what the dtype cannot hold; names scene, layer, remedy.
        """
        if self.arrived is not None:
            self.arrived.synchronize()
        limit = ENCODINGS[self.dtype].limit
        # No comparison with NaN holds.
        fits = (self.ends[..., 0] >= -limit) & (self.ends[..., 1] <= limit)
        if fits.all():
            return
        number, row = fits.logical_not().nonzero()[0].tolist()
        value = next(end for end in self.ends[number, row].tolist() if not abs(end) <= limit)
        where = (
            f"{self.backbone} gave {value:g} for scene {self.scene_of_row[row]} at layer {list(self.layers)[number]}"
        )
        if np.isfinite(value):
            raise NonFiniteActivationsError(
                f'{where}, beyond what {self.dtype} holds ({limit:,.6g}); cache with dtype="float32" or "bfloat16" '
                "(into another root)"
            )
        raise NonFiniteActivationsError(
            f"{where}; a backbone must give finite numbers: check its weights (a damaged or half-precision "
            "checkpoint?), or leave out this layer"
        )


@dataclass(frozen=True)
class ShardContent:
    """What the scenes of a shard gave."""

    labels: Labels
    skipped: tuple[BrokenScene, ...]
    batches: list[EncodedBatch]  # their rows one below the other


def compute_shard(
    backbone: ActivationSource, drawn: Iterable[DrawnScene], layers: Sequence[int], dtype: str, windows_per_batch: int
) -> ShardContent:
    """Run all scenes of one shard through a backbone and keep the drawn rows; no layers for labels alone.

    Batches hold windows of several scenes and never reach into the next shard, so that what a batch holds (and so the
    last bits of its activations) does not depend on where a run was resumed. On a GPU this returns while the device
    still works: `EncodedBatch.arrive` waits for it.
    """
    labels: list[PatchLabels | None] = []
    digests: list[bytes] = []
    skipped: list[BrokenScene] = []

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

    remaining, batches = windows(), []
    while batch := list(islice(remaining, windows_per_batch)):
        batches.append(_forward(backbone, batch, layers, dtype))
    of_rows = {name: stack(name, [getattr(found, name) for found in labels if found is not None]) for name in COLUMNS}
    n_rows = np.array([0 if found is None else len(found) for found in labels], dtype=np.int64)
    pixels_of = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
    return ShardContent(of_rows | {"scene_rows": n_rows, "scene_digests": pixels_of}, tuple(skipped), batches)


@torch.inference_mode()
def _forward(backbone: ActivationSource, batch: list[_DrawnWindow], layers: Sequence[int], dtype: str) -> EncodedBatch:
    """Drawn rows of a batch. What else the model gave is let go on return."""
    elsewhere = on_gpu(backbone)
    counts = [len(window.patches) for window in batch]
    window_of, patch_of = np.repeat(np.arange(len(batch)), counts), np.concatenate([w.patches for w in batch])
    windows = torch.empty((len(batch), *batch[0].pixels.shape), dtype=torch.uint8, pin_memory=elsewhere)
    for place, window in zip(windows.numpy(), batch, strict=True):
        place[:] = window.pixels.numpy()  # torch's would start a thread a core, where all cores read scenes
    kept = activations_of(
        backbone,
        windows,
        torch.tensor([window.corner for window in batch]),
        torch.tensor([window.scene_size for window in batch]),
        list(layers),
        (_to_device(window_of, backbone.device), _to_device(patch_of, backbone.device)),
    )
    ends, found = [], {}
    for layer in layers:
        rows = kept.pop(layer)
        if rows.shape != (sum(counts), backbone.d_model):
            raise BackboneError(
                f"{backbone.name} gave {rows.shape[-1]} numbers a patch at layer {layer}, and says that its width is "
                f"{backbone.d_model}; one of the two is wrong"
            )
        lowest, highest = rows.aminmax(dim=1)
        ends.append(torch.stack([lowest, highest], dim=1))
        encoded = ENCODINGS[dtype].encode(rows)
        found[layer] = {name: _to_host(values) for name, values in encoded.items()}
    scene_of_row = tuple(np.repeat([window.scene_id for window in batch], counts).tolist())
    all_ends, arrived = _to_host(torch.stack(ends)), None
    if elsewhere:
        arrived = torch.cuda.Event()
        arrived.record(_copying(backbone.device))
    return EncodedBatch(backbone.name, scene_of_row, dtype, found, all_ends, arrived)


def _to_device(numbers: np.ndarray, device: torch.device) -> Tensor:
    """On its way, from pinned memory: from any other, the copy would wait for the device."""
    found = torch.from_numpy(numbers)
    return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found


@lru_cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    """Beside the stream of computations, which need not wait for copies."""
    return torch.cuda.Stream(device)


def _to_host(values: Tensor) -> Tensor:
    """On its way into pinned memory."""
    if values.device.type != "cuda":
        return values
    host, stream = torch.empty(values.shape, dtype=values.dtype, pin_memory=True), _copying(values.device)
    stream.wait_stream(torch.cuda.current_stream(values.device))
    with torch.cuda.stream(stream):
        host.copy_(values, non_blocking=True)
    values.record_stream(stream)
    return host
