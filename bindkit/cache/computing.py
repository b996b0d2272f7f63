"""What is missing in a cache is computed, shard by shard, together with whoever else works on it."""

from __future__ import annotations

import importlib.metadata
import logging
import multiprocessing
import time
from collections.abc import Callable, Container, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from filelock import FileLock

from bindkit import __version__
from bindkit.backbones.sources import ActivationSource, on_gpu
from bindkit.cache import sizing, writing
from bindkit.cache.forward import ShardContent, compute_shard
from bindkit.cache.manifest import FileRecord, Identity, Making, Manifest, ShardRecord, layer_folder, shard_file
from bindkit.cache.sampling import DrawnScene, draw_scene
from bindkit.cache.shards import activations_to_parts, labels_to_bytes, layer_stamp
from bindkit.errors import CacheMismatchError
from bindkit.files import RememberedDigests, ahead, trim_memory
from bindkit.scenes.checking import are_files, changes, content_of
from bindkit.scenes.scene import SceneSet

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
