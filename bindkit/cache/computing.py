"""What is missing in a cache is computed, shard by shard, together with whoever else works on it.

Scenes go through a backbone: of every forward the drawn rows are kept, encoded, and on their way while it goes on.
"""

from __future__ import annotations

import importlib.metadata
import logging
import multiprocessing
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from bindkit import __version__
from bindkit.backbones.sources import ActivationSource, activations_of, on_gpu
from bindkit.cache import sizing, writing
from bindkit.cache.encoding import ENCODINGS
from bindkit.cache.manifest import FileRecord, Identity, Making, Manifest, ShardRecord, layer_folder, shard_file
from bindkit.cache.shards import COLUMNS, Labels, activations_to_parts, labels_to_bytes, layer_stamp, stack
from bindkit.cache.sizing import DrawnScene, draw_scene
from bindkit.errors import BackboneError, CacheMismatchError, NonFiniteActivationsError
from bindkit.files import RememberedDigests, ahead, trim_memory
from bindkit.scenes.checking import are_files, changes, content_of
from bindkit.scenes.geometry import PatchLabels
from bindkit.scenes.scene import BrokenScene, SceneSet


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


logger = logging.getLogger(__name__)

_LIBRARIES = ("numpy", "pillow", "torch", "transformers")
_WRITERS = 8
"""Threads that hash and write files."""
_LOOK_AGAIN = 0.5
"""Seconds until the next look whether other processes have finished their shards."""


@dataclass(frozen=True)
class Task:
    """What one shard lacks."""

    split: str
    shard: int
    positions: tuple[int, ...]
    layers: tuple[int, ...]
    needs_labels: bool

    @property
    def place(self) -> tuple[str, int]:
        """Split and number of the shard."""
        return self.split, self.shard


@dataclass(frozen=True)
class Job:
    """One call's arguments, checked."""

    path: Path
    backbone: ActivationSource
    scenes: SceneSet
    positions: dict[str, tuple[int, ...]]
    identity: Identity
    layers: tuple[int, ...]
    windows_per_batch: int | None
    workers: int
    digests: RememberedDigests
    changed: str
    share: tuple[int, int]
    elsewhere: Making | None = None  # how other machines compute, where they do

    def missing(self, manifest: Manifest) -> list[Task]:
        """Shards that lack labels or layers, in order."""
        tasks = (self.task(manifest, split, shard) for split, shard, _ in manifest.records())
        return [task for task in tasks if task is not None]

    def task(self, manifest: Manifest, split: str, shard: int) -> Task | None:
        """What a shard lacks, if anything."""
        record = manifest.record(split, shard) or ShardRecord(0)
        lacking = tuple(layer for layer in self.layers if layer not in record.layers)
        if not lacking and "labels" in record.files:
            return None
        start = shard * manifest.scenes_per_shard
        chosen = self.positions[split][start : start + manifest.scenes_per_shard]
        return Task(split, shard, chosen, lacking, "labels" not in record.files)

    def damage(self, manifest: Manifest) -> dict[str, str]:
        """Files that this call needs and that are missing or of another size, each with the reason."""
        folders = ("labels", *map(layer_folder, self.layers))
        needed = {shard_file(split, folder, shard) for split, shard, _ in manifest.records() for folder in folders}
        return {name: why for name, why in writing.quick_damage(self.path, manifest).items() if name in needed}

    def undamaged(self, manifest: Manifest) -> Manifest:
        """The manifest without these files."""
        return manifest.without_files(self.damage(manifest))

    def reader(self) -> Callable[[int], DrawnScene]:
        """What reads, labels and draws the scene at a position; it can be sent to another process."""
        look = SimpleNamespace(geometry=self.backbone.geometry, preprocessing=self.backbone.preprocessing)
        patches, seed = self.identity.patches_per_scene, self.identity.seed
        return partial(draw_scene, self.scenes, source=look, patches_per_scene=patches, seed=seed)

    def making(self, manifest: Manifest | None) -> Making:
        """What this call would compute with; an unfinished cache's batch size is kept unless another is asked for."""
        windows = self.windows_per_batch or (manifest and manifest.making.windows_per_batch)
        if self.elsewhere is not None:
            return replace(self.elsewhere, windows_per_batch=windows or self.elsewhere.windows_per_batch)
        # Only where it computes: other caches do not depend on it.
        timm = ("timm",) if str(self.identity.backbone.get("family", "")).startswith("timm.") else ()
        names = (*_LIBRARIES, *timm)
        versions = {name: importlib.metadata.version(name) for name in names} | {"bindkit": __version__}
        return Making(versions, self.backbone.device.type, windows or sizing.default_windows_per_batch(self.backbone))


def compute_shards(job: Job, manifest: Manifest, places: Container[tuple[str, int]], bar: Any = None) -> None:
    """Compute some shards, given by split and number, or wait until others have; `bar` counts the scenes of all."""
    total = sum(map(len, job.positions.values()))
    state = None
    while wanted := [task for task in job.missing(manifest) if task.place in places]:
        if not _compute(job, manifest, state, wanted, bar):
            time.sleep(_LOOK_AGAIN)
        state = writing.state_of(job.path)
        manifest = Manifest.read(job.path)
        if bar is not None:
            bar.update(total - sum(len(task.positions) for task in job.missing(manifest)) - bar.n)


def _compute(job: Job, manifest: Manifest, state: Any, tasks: list[Task], bar: Any) -> int:
    """Compute those of some shards that can be had, and say how many: one is written while the next is computed.

    `state` is that of the manifest's file when it was read.
    """
    identity, scenes, backbone = job.identity, job.scenes, job.backbone
    claimed: list[tuple[Task, Manifest, FileLock]] = []

    def positions() -> Iterator[int]:
        """Shards are claimed as the readers come to them."""
        for task in tasks:
            if lock := writing.claim(job.path, task.split, task.shard):
                # Another process may have finished it since the manifest was read, and the cache, too.
                here = manifest if writing.state_of(job.path) == state else Manifest.read(job.path)
                here = here.with_records(job.path, [task.place])
                if lacking := job.task(here, *task.place):
                    claimed.append((lacking, here, lock))
                    yield from task.positions
                else:
                    lock.release()

    # Workers of Dask may not start processes.
    processes = on_gpu(backbone) and not multiprocessing.current_process().daemon
    drawn = ahead(job.reader(), positions(), job.workers, processes)
    remarked: set[str] = set()

    def next_scenes(first: list[DrawnScene], count: int) -> Iterator[DrawnScene]:
        for scene in chain(first, islice(drawn, count - len(first))):
            if scene.reason is not None:
                logger.warning("scene %s is skipped: %s", scene.id, scene.reason)
            for remark in scene.remarks if processes else ():  # which no scene set here has said
                if remark not in remarked:
                    logger.warning("%s: %s", scene.id, remark)
                    remarked.add(remark)
            yield scene
            if bar is not None:
                bar.update(1)

    done, written = 0, None
    with ThreadPoolExecutor(_WRITERS, thread_name_prefix="bindkit-writer") as writers:
        try:
            # The first scene of a shard is there once the shard is claimed.
            while first := list(islice(drawn, 1)):
                task, here, lock = claimed[done]
                shown = next_scenes(first, len(task.positions))
                content = compute_shard(backbone, shown, task.layers, identity.dtype, here.making.windows_per_batch)
                if are_files(scenes):
                    now = {scenes.ids[k]: content_of(scenes, job.digests, k) for k in task.positions}
                    if said := changes(identity.contents_by_id, now, scenes, "this call began"):
                        again = "make the same call again once they stay as they are"
                        raise CacheMismatchError(f"{'; '.join(said)}; {again}")
                if written:
                    written.result()
                    trim_memory()
                written = _write_shard(job, here, task, content, writers, lock)
                done += 1
            if written:
                written.result()
        finally:
            drawn.close()
            if written:
                written.exception()
            for *_, lock in claimed:
                lock.release()
    return done


def _write_shard(
    job: Job, manifest: Manifest, task: Task, content: ShardContent, writers: ThreadPoolExecutor, lock: FileLock
) -> Future[None]:
    """Have a shard's files written, then its record, then the shard given back."""
    path, split, shard = job.path, task.split, task.shard
    stamp = manifest.stamp(split, shard)
    labels, n_rows = labels_to_bytes(content.labels, stamp), len(content.labels["instances"])
    record = manifest.record(split, shard) or ShardRecord(n_rows, content.skipped)
    same = record.rows == n_rows and [scene.id for scene in record.skipped] == [scene.id for scene in content.skipped]
    if not same or record.files.get("labels") not in (None, FileRecord.of(labels)):
        raise CacheMismatchError(
            f"scenes of shard {shard} of the {split} split are not those that the cache {path} was made "
            "from: their images, masks or readability have changed on disk; restore them, give another root, or "
            "delete that directory to cache afresh"
        )

    def arrive() -> None:
        for batch in content.batches:
            batch.arrive()

    arrived = writers.submit(arrive)

    def write_layer(layer: int) -> FileRecord:
        arrived.result()
        blocks = [batch.layers[layer] for batch in content.batches]
        parts = activations_to_parts(blocks, job.backbone.d_model, job.identity.dtype, layer_stamp(stamp, layer))
        return writing.write_file(path, shard_file(split, layer_folder(layer), shard), parts)

    layers = {layer: writers.submit(write_layer, layer) for layer in task.layers}

    def finish() -> None:
        files = dict(record.files)
        arrived.result()
        if task.needs_labels:
            files["labels"] = writing.write_file(path, shard_file(split, "labels", shard), labels)
        files |= {layer_folder(layer): written.result() for layer, written in layers.items()}
        writing.write_record(path, manifest, split, shard, replace(record, files=files))
        lock.release()

    return writers.submit(finish)
