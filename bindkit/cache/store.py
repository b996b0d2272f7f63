"""Reading a cache: labels of a split or of chosen scenes, and activations at a layer through memory maps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bindkit.arguments import require_kind
from bindkit.cache import writing
from bindkit.cache.encoding import ACTIVATIONS, SCALES
from bindkit.cache.manifest import Manifest
from bindkit.cache.remote import place_of
from bindkit.cache.shards import COLUMNS, Labels, read_activations, read_labels, stack
from bindkit.cache.writing import Damage
from bindkit.errors import CacheError, InvalidParameterError, LayerError
from bindkit.scenes.scene import BrokenScene
from bindkit.scenes.splits import SPLITS

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 1024
"""Rows that are read before they are widened to 32 bits: at width 1024 two megabytes, which stay in the processor."""

_SHORT_RUN = 8
"""Rows in an order with shorter runs of one shard (on average) are read shard by shard and put in order afterwards."""


@dataclass(frozen=True)
class CachedLabels:
    """Labels of a split's rows. Rows of one scene lie together, sorted by window and patch.

    `instances`, `classes` (0 = unlabelled), `window` and `patch` (row-major in its window's grid) are int32 [row],
    `purity` is float32 [row], `corners` int32 [row, 2]: ``(top, left)`` in pixels of the resized scene. Rows of scene k
    are ``scene_offsets[k]:scene_offsets[k + 1]``; skipped scenes are not among `scene_ids`.
    """

    instances: np.ndarray
    classes: np.ndarray
    purity: np.ndarray
    window: np.ndarray
    patch: np.ndarray
    corners: np.ndarray
    patch_size: int  # in pixels
    scene_offsets: np.ndarray
    scene_ids: tuple[str, ...]

    @classmethod
    def of(cls, parts: Sequence[Labels], ids: Sequence[str], patch_size: int) -> CachedLabels:
        """Labels of shards, one below the other; `ids` are of all their scenes, skipped ones included."""
        scene_rows = stack("scene_rows", [part["scene_rows"] for part in parts])
        present = np.flatnonzero(scene_rows).tolist()
        return cls(
            **{name: stack(name, [part[name] for part in parts]) for name in COLUMNS},
            patch_size=patch_size,
            scene_offsets=np.array([0, *accumulate(scene_rows[present])], dtype=np.int64),
            scene_ids=tuple(ids[position] for position in present),
        )

    def __len__(self) -> int:
        return len(self.instances)

    @property
    def n_scenes(self) -> int:
        """Scenes that have rows."""
        return len(self.scene_ids)


class CachedActivations:
    """Activations of a split (or of chosen scenes) at one layer, ``[n_rows, d_model]``, on disk until rows are taken.

    Rows are numbered as in the labels. Shards are mapped into memory on first use; taking rows reads those rows and
    nothing else, from any number of threads.
    """

    def __init__(
        self, cache: ActivationCache, scenes: str | SceneChoice, layer: int, rows: np.ndarray | None = None
    ) -> None:
        """`rows`: where the chosen scenes' rows lie among those of all splits together."""
        self.split, self.layer, self.d_model = str(scenes), layer, cache.d_model
        self._path, self._manifest, self._rows = cache.path, cache.manifest, rows
        records = [shard for shard in cache.manifest.records() if rows is not None or shard[0] == scenes]
        self._shards = [(split, shard) for split, shard, _ in records]
        self._starts = np.array([0, *accumulate(record.rows for _, _, record in records)], dtype=np.int64)
        self._maps: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}

    @property
    def n_rows(self) -> int:
        """How many there are."""
        return int(self._starts[-1]) if self._rows is None else len(self._rows)

    def __len__(self) -> int:
        return self.n_rows

    def __getitem__(self, row: int) -> Float[Tensor, " d_model"]:
        """One row, so that these are a data set of rows for torch's DataLoader. Raises IndexError behind the last."""
        if not -self.n_rows <= row < self.n_rows:
            raise IndexError(f"row {row} of {self.n_rows}")
        return self.take([row % self.n_rows])[0]

    def __getitems__(self, rows: list[int]) -> list[Tensor]:
        """Several rows at once, as torch's DataLoader asks."""
        return list(self.take(rows))

    def take(
        self,
        rows: Int[Tensor, " row"] | np.ndarray | Sequence[int],
        into: Float[Tensor, "row_or_more d_model"] | None = None,
    ) -> Float[Tensor, "row d_model"]:
        """Read rows in any order, repetitions allowed.

        Parameters
        ----------
        rows : int tensor, array or sequence
            Row numbers, ``0 <= row < n_rows``.
        into : float32 tensor of shape (len(rows) or more, d_model), optional
            Where to put them, so that a loop over batches need not ask for fresh memory every time.

        Returns
        -------
        float32 tensor of shape (len(rows), d_model)
            On the CPU, in the order asked for; the head of `into` where it is given.

        Raises
        ------
        InvalidParameterError, CacheDamagedError
            For a row that there is not, and a shard that is missing, cut short or of another width.
        """
        wanted = row_numbers(rows, self.n_rows, self.split)
        wanted = wanted if self._rows is None else self._rows[wanted]
        taken = torch.empty(len(wanted), self.d_model, dtype=torch.float32) if into is None else into[: len(wanted)]
        shard_of = np.searchsorted(self._starts, wanted, side="right") - 1
        order = None
        if np.count_nonzero(np.diff(shard_of)) * _SHORT_RUN > len(wanted):
            order = np.argsort(shard_of, kind="stable")
            wanted, shard_of = wanted[order], shard_of[order]
        encoding = self._manifest.identity.encoding
        at_once = min(_ROWS_AT_ONCE, len(wanted))
        # In numpy, which starts no threads for a few rows, as bits: it has no bfloat16.
        stored = np.empty((at_once, self.d_model), f"u{encoding.stored.itemsize}")
        scales = np.empty(at_once, np.float32)
        for first in range(0, len(wanted), _ROWS_AT_ONCE):
            part, of = (values[first : first + _ROWS_AT_ONCE] for values in (wanted, shard_of))
            for start, end in pairwise([0, *(np.flatnonzero(np.diff(of)) + 1).tolist(), len(of)]):
                shard = int(of[start])
                rows_there = part[start:end] - self._starts[shard]
                bits, scales_there = self._map(shard)
                np.take(bits, rows_there, axis=0, out=stored[start:end], mode="clip")
                if scales_there is not None:
                    np.take(scales_there, rows_there, out=scales[start:end], mode="clip")
            found = torch.from_numpy(stored[: len(part)]).view(encoding.stored)
            if encoding.scaled:
                found = encoding.decode({ACTIVATIONS: found, SCALES: torch.from_numpy(scales[: len(part)])})
            if order is None:
                taken[first : first + len(part)] = found
            else:
                taken[torch.from_numpy(order[first : first + len(part)])] = found.float()
        return taken

    def _map(self, number: int) -> tuple[np.ndarray, np.ndarray | None]:
        """A shard's rows as bits, and their scales where it has any."""
        if number not in self._maps:
            mapped = read_activations(self._path, self._manifest, *self._shards[number], self.layer)
            rows = mapped[ACTIVATIONS]
            bits = rows.view({1: torch.uint8, 2: torch.uint16, 4: torch.uint32}[rows.itemsize]).numpy()
            self._maps[number] = bits, mapped[SCALES].numpy() if SCALES in mapped else None
        return self._maps[number]


def row_numbers(rows: Any, n_rows: int, split: str) -> np.ndarray:
    """Row numbers as int64, each below `n_rows`. Raises InvalidParameterError."""
    wanted = np.asarray(rows.cpu() if isinstance(rows, Tensor) else rows)
    if wanted.ndim != 1 or not (wanted.size == 0 or np.issubdtype(wanted.dtype, np.integer)):
        raise InvalidParameterError(f"rows must be whole numbers in one dimension, got {wanted.dtype} {wanted.shape}")
    wanted = wanted.astype(np.int64)
    outside = wanted[(wanted < 0) | (wanted >= n_rows)]
    if outside.size:
        raise InvalidParameterError(f"row {outside[0]} is outside the {n_rows} rows of the {split} split")
    return wanted


class ActivationCache:
    """Activations and patch labels of one backbone on one scene set, on disk.

    ::

        cache = ActivationCache.open("cache/synthetic-n=400,seed=0/facebook-dinov2-large")
        labels = cache.labels("train")
        rows = np.flatnonzero(labels.instances > 0)
        activations = cache.activations("train", layer=18).take(rows)     # float32 [rows, d_model]
        assert not cache.verify()

    Made by `bindkit.cache_activations`. Opening reads the manifest only.

    Attributes
    ----------
    path : Path
    manifest : Manifest
    backbone : dict
        As `Backbone.describe` told it.
    d_model : int
        Width of an activation.
    dtype : "float16", "float32", "bfloat16" or "int8"
        How activations lie on disk.
    splits : tuple
        ``("train", "validation", "test")``; one may have no scenes.
    class_names : dict
        Class id -> name.
    benchmark_classes : dict
        Class id -> number in the data set's benchmark (ADE20K's has 150), 0 for all others; empty without one.
    groups : dict
        Scene id -> first scene id of its group, for scenes that belong together; empty where none do.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest, self.splits = path, manifest, SPLITS
        identity = manifest.identity
        self.backbone, self.d_model, self.dtype = dict(identity.backbone), identity.d_model, identity.dtype
        self.class_names, self.groups = dict(identity.class_names), dict(identity.groups)
        self.benchmark_classes = dict(identity.benchmark_classes)
        self._labels: dict[str, CachedLabels] = {}

    @classmethod
    def open(cls, path: str | Path) -> ActivationCache:
        """Open the cache in a directory, or at a URL such as ``s3://bucket/cache/SCENES/BACKBONE``.

        Raises
        ------
        CacheError
            If there is no manifest, or it is not JSON, damaged, or of an unknown format version.
        """
        place = place_of(path, "a cache's directory")
        return cls(place, Manifest.read(place))

    def __repr__(self) -> str:
        layers = ", ".join(map(str, self.layers)) or "none"
        return f"<ActivationCache {self.path}: {self.backbone['name']}, layers {layers}>"

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that are there for every scene of every split."""
        return self.manifest.layers

    @property
    def skipped(self) -> tuple[BrokenScene, ...]:
        """Scenes without rows and why: those left out on opening the scene set, then those met on the way."""
        return (*self.manifest.broken, *self.manifest.skipped)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to compute: False after an interrupted run or a repair."""
        return self.manifest.is_complete

    @property
    def n_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(record.n_bytes for record in self.manifest.files().values())

    def labels(self, split: str) -> CachedLabels:
        """Labels of every row of a split.

        Raises
        ------
        InvalidParameterError, CacheError, CacheDamagedError
            For a split that there is not, an unfinished cache, a labels file that is missing or cannot be read.
        """
        self._check_split(split)
        if split in self._labels:
            return self._labels[split]
        if not self.manifest.has_all_labels:
            raise CacheError(
                f"the cache {self.path} is not finished (an interrupted run, or repaired); make the same "
                "cache_activations call again to complete it"
            )
        shards = range(self.manifest.n_shards(split))
        parts = [read_labels(self.path, self.manifest, split, shard) for shard in shards]
        patch_size = int(self.manifest.identity.backbone["geometry"]["patch_size"])
        self._labels[split] = CachedLabels.of(parts, self.manifest.identity.scene_ids[split], patch_size)
        return self._labels[split]

    def activations(self, split: str, layer: int) -> CachedActivations:
        """Activations of a split at a layer, read when rows are taken.

        Raises
        ------
        InvalidParameterError, LayerError
            For a split, or a layer, that the cache does not have; says which it has.
        """
        self._check_split(split)
        if layer not in self.layers:
            has = f"it has layers {', '.join(map(str, self.layers))}" if self.layers else "it has no complete layer"
            raise LayerError(
                f"layer {layer} is not in the cache {self.path} of {self.backbone['name']}; {has}; add it with "
                f"cache_activations(..., layers=[{layer}])"
            )
        return self.rows_of(split, int(layer), None)

    def rows_of(self, scenes: str | SceneChoice, layer: int, rows: np.ndarray | None) -> CachedActivations:
        """Activations of a split, or of `rows` as numbered through all splits."""
        return CachedActivations(self, scenes, layer, rows)

    def shard_digests(self) -> dict[str, str]:
        """SHA-256 in hex of every file, by its name in the cache."""
        return {name: record.sha256 for name, record in self.manifest.files().items()}

    def verify(self) -> list[Damage]:
        """Check every byte against the manifest, and what the manifest says against the shards; empty means whole.

        Finds missing, cut-short, changed and foreign files, and files that are of something else than the manifest
        says (which was edited, or they were taken from another cache), and names each. Whether anything is left to
        compute is another question: see `is_complete`.
        """
        return writing.find_damage(self.path, self.manifest)

    def repair(self) -> list[Damage]:
        """Remove damaged files so that the same `cache_activations` call computes exactly those again.

        Returns what was found; this cache's manifest is read again. Files that bindkit did not write are left alone.

        Raises
        ------
        WorkspaceBusyError
            If another process is writing to the cache.
        """
        with writing.exclusive(self.path):
            there = Manifest.read(self.path)
            damage = writing.find_damage(self.path, there)
            if damage:
                writing.require_idle(self.path)
                writing.remove_damage(self.path, there, [item.path for item in damage])
        for item in damage:
            if item.path not in there.files() and not writing.is_ours(item.path):
                logger.warning("%s was not written by bindkit and is left alone; move it out of the cache", item.path)
        self.manifest = Manifest.read(self.path)
        self._labels.clear()
        return damage

    def summary(self) -> dict[str, Any]:
        """One row for a table: what is cached, how much of it, and what was skipped."""
        counts = {f"{split}_scenes": len(ids) for split, ids in self.manifest.identity.scene_ids.items()}
        for split, _, record in self.manifest.records():
            counts[f"{split}_scenes"] -= len(record.skipped)
        return {
            "backbone": self.backbone["name"],
            "objective": self.backbone.get("objective", ""),
            **counts,
            "patches": sum(record.rows for _, _, record in self.manifest.records()),
            "layers": len(self.layers),
            "d_model": self.d_model,
            "dtype": self.dtype,
            "bytes": self.n_bytes,
            "skipped": len(self.skipped),
            "complete": self.is_complete,
        }

    def _check_split(self, split: str) -> None:
        if split not in SPLITS:
            raise InvalidParameterError(f"unknown split {split!r}; a cache has {', '.join(SPLITS)}")


def require_cache(given: Any) -> ActivationCache:
    """Refuse what is no cache, such as a backbone or a path. Raises CacheError."""
    told = "a cache is what bk.cache_activations or bk.ActivationCache.open gives"
    require_kind(given, ActivationCache, told, CacheError)
    return given


@dataclass(frozen=True)
class SceneChoice:
    """Scenes of a cache in an order of one's own, with a name for messages and tables."""

    name: str
    scene_ids: tuple[str, ...]

    def __str__(self) -> str:
        return self.name


def labels_of(cache: ActivationCache, scenes: str | SceneChoice) -> CachedLabels:
    """Labels of a split, or of chosen scenes. Errors as `ActivationCache.labels`."""
    if isinstance(scenes, str):
        return cache.labels(scenes)
    parts = [cache.labels(split) for split in SPLITS]
    rows, offsets = _rows_of(cache, scenes)
    columns = {name: np.concatenate([getattr(part, name) for part in parts])[rows] for name in COLUMNS}
    return CachedLabels(**columns, patch_size=parts[0].patch_size, scene_offsets=offsets, scene_ids=scenes.scene_ids)


def activations_of(cache: ActivationCache, scenes: str | SceneChoice, layer: int) -> CachedActivations:
    """Activations of a split, or of chosen scenes. Errors as `ActivationCache.activations`."""
    whole = cache.activations(scenes if isinstance(scenes, str) else SPLITS[0], layer)
    return whole if isinstance(scenes, str) else cache.rows_of(scenes, layer, _rows_of(cache, scenes)[0])


def _rows_of(cache: ActivationCache, scenes: SceneChoice) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the scenes, numbered through all splits, and where each scene begins."""
    place, start = {}, 0
    for split in SPLITS:
        labels = cache.labels(split)
        for scene_id, (first, end) in zip(labels.scene_ids, pairwise(labels.scene_offsets), strict=True):
            place[scene_id] = np.arange(first, end) + start
        start += len(labels)
    rows = [place[scene_id] for scene_id in scenes.scene_ids]
    offsets = np.array([0, *accumulate(map(len, rows))], dtype=np.int64)
    return np.concatenate([np.zeros(0, dtype=np.int64), *rows]), offsets
