"""No cache: labels of all patches in memory, activations computed from the images whenever rows are taken.

Twice the time of a cached fit or many times, and no disk: a note of a few kilobytes (`NOTE`) stands where the cache
would lie, so that later notebooks find it. Splits that fit in memory are extracted once (`buffer_bytes` of
`bindkit.fit_probe`); larger ones batch by batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bindkit.backbones.sources import on_gpu, source_of
from bindkit.cache.computing import Job, ShardContent, compute_shard
from bindkit.cache.encoding import ACTIVATIONS
from bindkit.cache.manifest import Manifest, layer_folder, shard_file
from bindkit.cache.store import ActivationCache, CachedActivations, CachedLabels, row_numbers
from bindkit.cache.writing import Damage, write_file
from bindkit.errors import CacheError, CacheMismatchError
from bindkit.files import RememberedDigests, ahead
from bindkit.scenes.checking import changes, contents_of
from bindkit.scenes.opening import open_scenes
from bindkit.scenes.splits import SPLITS

NOTE = "no_cache.json"
_AT_ONCE = 64
"""Scenes that are extracted together."""


class LiveCache(ActivationCache):
    """Speaks as an `ActivationCache` of float32 does, and keeps no activations."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.path, Manifest(job.identity, job.making(None), 1, tuple(job.scenes.broken)))
        self._job = job
        self._parts: dict[str, ShardContent] = {}

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that were asked for."""
        return self._job.layers

    @property
    def skipped(self) -> tuple[Any, ...]:
        """Scenes without rows, and why."""
        return (*self.manifest.broken, *(scene for split in SPLITS for scene in self._read(split).skipped))

    @property
    def is_complete(self) -> bool:
        """Nothing is ever left to compute."""
        return True

    def labels(self, split: str) -> CachedLabels:
        """As `ActivationCache.labels`; the first time every scene of the split is read."""
        self._check_split(split)
        if split not in self._labels:
            parts, ids = [self._read(split).labels], self.manifest.identity.scene_ids[split]
            self._labels[split] = CachedLabels.of(parts, ids, self._job.backbone.geometry.patch_size)
        return self._labels[split]

    def rows_of(self, scenes: Any, layer: int, rows: np.ndarray | None) -> Any:
        """As `ActivationCache.rows_of`."""
        return LiveActivations(self, scenes, layer, rows)

    def shard_digests(self) -> dict[str, str]:
        """Of what every layer of every split is computed from, in the place of files."""
        known = json.dumps([self._job.identity.contents_by_id, self.manifest.identity.backbone], sort_keys=True)
        digest = hashlib.sha256(known.encode()).hexdigest()
        folders = ("labels", *map(layer_folder, self.layers))
        return {shard_file(split, folder, 0): digest for split in SPLITS for folder in folders}

    def verify(self) -> list[Damage]:
        """Empty: there is nothing that could be damaged."""
        return []

    def repair(self) -> list[Damage]:
        """Empty, as `verify`."""
        return []

    def summary(self) -> dict[str, Any]:
        """One row for a table."""
        labels = {split: self.labels(split) for split in SPLITS}
        counts = {f"{split}_scenes": found.n_scenes for split, found in labels.items()}
        rows = sum(map(len, labels.values()))
        return super().summary() | counts | {"patches": rows, "dtype": "none", "bytes": 0, "skipped": len(self.skipped)}

    def _read(self, split: str) -> ShardContent:
        """Labels and skipped scenes of a split."""
        if split not in self._parts:
            self._parts[split] = self.extract(self._job.positions[split], ())
        return self._parts[split]

    def extract(self, positions: Sequence[int], layers: Sequence[int]) -> ShardContent:
        """Run scenes through the backbone, as for a shard of a float32 cache."""
        job = self._job
        drawn = ahead(job.reader(), list(positions), job.workers, on_gpu(job.backbone))
        return compute_shard(job.backbone, drawn, layers, "float32", self.manifest.making.windows_per_batch)

    def positions_of(self, scenes: Any) -> tuple[list[int], list[int], np.ndarray]:
        """Of a split's scenes (of all splits' for chosen scenes): position in the set, rows, digest of the pixels."""
        splits = [scenes] if isinstance(scenes, str) else SPLITS
        place = {scene_id: position for position, scene_id in enumerate(self._job.scenes.ids)}
        found, counts, digests = [], [], [np.empty((0, 32), np.uint8)]
        for split in splits:
            labels = self.labels(split)
            found += [place[scene_id] for scene_id in labels.scene_ids]
            counts += np.diff(labels.scene_offsets).tolist()
            read = self._read(split).labels
            digests.append(read["scene_digests"][read["scene_rows"] > 0])
        return found, counts, np.concatenate(digests)


class LiveActivations(CachedActivations):
    """Activations that are computed when rows are taken, float32."""

    def __init__(self, cache: LiveCache, scenes: Any, layer: int, rows: np.ndarray | None) -> None:
        self.split, self.layer, self.d_model = str(scenes), layer, cache.d_model
        self._cache, self._rows = cache, rows
        self._positions, self._counts, self._digests = cache.positions_of(scenes)
        self._starts = np.array([0, *accumulate(self._counts)], dtype=np.int64)

    def take(self, rows: Any, into: Tensor | None = None) -> Tensor:
        """As `CachedActivations.take`. Raises CacheMismatchError where a scene has other patches than it had."""
        wanted = row_numbers(rows, self.n_rows, self.split)
        wanted = wanted if self._rows is None else self._rows[wanted]
        taken = torch.empty(len(wanted), self.d_model) if into is None else into[: len(wanted)]
        scene_of = np.searchsorted(self._starts, wanted, side="right") - 1
        needed = np.unique(scene_of)
        for first in range(0, len(needed), _AT_ONCE):
            chosen = needed[first : first + _AT_ONCE]
            content = self._cache.extract([self._positions[k] for k in chosen], [self.layer])
            for batch in content.batches:
                batch.arrive()
            expected = [self._counts[k] for k in chosen]
            same_pixels = np.array_equal(content.labels["scene_digests"], self._digests[chosen])
            if content.labels["scene_rows"].tolist() != expected or not same_pixels:
                raise CacheMismatchError(
                    f"pictures of {self._cache.path} have changed since their labels were read: make the call again "
                    "from the beginning"
                )
            found = torch.cat([batch.layers[self.layer][ACTIVATIONS] for batch in content.batches])
            for scene, (start, end) in zip(chosen, pairwise([0, *accumulate(expected)]), strict=True):
                here = np.flatnonzero(scene_of == scene)
                taken[torch.from_numpy(here)] = found[start:end][torch.from_numpy(wanted[here] - self._starts[scene])]
        return taken


def write_note(cache: LiveCache) -> None:
    """Leave a note where a cache would lie."""
    layers = ",".join(map(str, cache.layers))
    write_file(cache.path, NOTE, f"{layers}\n".encode() + cache.manifest.to_bytes())


def open_cache(path: Path) -> ActivationCache:
    """Open a cache, or what a note stands for, with its backbone and its scenes, which must be as they were.

    Raises CacheError as `ActivationCache.open`, CacheMismatchError where scenes have changed, and as `load_backbone`.
    """
    if not (path / NOTE).exists():
        return ActivationCache.open(path)
    layers, _, content = (path / NOTE).read_bytes().partition(b"\n")
    manifest = Manifest.of_bytes(content, path / NOTE)
    identity = manifest.identity
    index = path.resolve().parent.parent.parent / "index"
    scenes = open_scenes(identity.scenes_uri, index_dir=index if index.is_dir() else None)
    place = {scene_id: position for position, scene_id in enumerate(scenes.ids)}
    missing = [scene_id for ids in identity.scene_ids.values() for scene_id in ids if scene_id not in place]
    if missing:
        raise CacheMismatchError(f"{identity.scenes_uri} no longer has scene {missing[0]}; run notebook 02 again")
    positions = {split: tuple(place[scene_id] for scene_id in ids) for split, ids in identity.scene_ids.items()}
    digests = RememberedDigests()
    now = contents_of(scenes, [k for chosen in positions.values() for k in chosen], digests)
    if said := changes(identity.contents_by_id, now.of, scenes, "labels were read"):
        raise CacheMismatchError(f"{'; '.join(said)}; run notebook 02 again")
    source = source_of(identity.backbone, manifest.making.device)
    if source.describe()["weights_digest"] != identity.backbone["weights_digest"]:
        raise CacheError(f"{source.name} has other weights than when {path / NOTE} was written; run notebook 02 again")
    numbers = tuple(int(number) for number in layers.decode().split(","))
    windows = manifest.making.windows_per_batch
    return LiveCache(Job(path, source, scenes, positions, identity, numbers, windows, 2, digests, "refuse", (0, 1)))
