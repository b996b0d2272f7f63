"""A cache's rows read as something else: queries, keys or values of the next block, a dictionary's code, held numbers.

A view has the labels and splits of its cache, so that whatever fits and judges on a cache does so on a view: on the
very same pairs.

Also no cache at all (`LiveCache`): labels of all patches in memory, activations computed from the images whenever rows
are taken. Twice the time of a cached fit or many times, and no disk: a note of a few kilobytes (`NOTE`) stands where
the cache would lie, so that later notebooks find it. Splits that fit in memory are extracted once (`buffer_bytes` of
`bindkit.fit_probe`); larger ones batch by batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bindkit.arguments import is_control, require_kind, whole_number
from bindkit.backbones.attention import AttentionMaps, attention_maps
from bindkit.backbones.loading import Backbone, load_backbone
from bindkit.backbones.sources import on_gpu, source_of
from bindkit.cache.computing import Job, ShardContent, compute_shard
from bindkit.cache.encoding import ACTIVATIONS
from bindkit.cache.manifest import Manifest, layer_folder, shard_file
from bindkit.cache.store import ActivationCache, CachedActivations, CachedLabels, require_cache, row_numbers
from bindkit.cache.writing import Damage, write_file
from bindkit.errors import CacheError, CacheMismatchError, InvalidParameterError, ProbeError, ProbeMismatchError
from bindkit.files import RememberedDigests, ahead
from bindkit.scenes.checking import changes, contents_of
from bindkit.scenes.opening import open_scenes
from bindkit.scenes.splits import SPLITS

_PARTS = {"q": "query", "k": "key", "v": "value"}

Reading = Callable[[Float[Tensor, "row d_model"]], Float[Tensor, "row width"]]


def read_as(
    cache: ActivationCache, source: str, head: int | None = None, encode: Reading | None = None
) -> ActivationCache:
    """Read a cache as another source of activations, for `fit_probe`, `sweep` and whatever else takes a cache.

    ::

        values = bk.read_as(cache, "v", head=3)                      # what the next block's head 3 hands on
        bk.fit_probe(values, layer=4).metrics["matched_auroc"]
        codes = bk.read_as(cache, "my-sae", encode=dictionary.encode)   # of a sparse autoencoder fitted elsewhere

    Parameters
    ----------
    cache : ActivationCache
        Of residual streams, as `cache_activations` gives it.
    source : str
        ``"residual"`` (the cache as it is), ``"q"``, ``"k"`` or ``"v"``: query, key or value of the *next* block,
        which reads a layer through its norm; or with `encode` a name of one's own.
    head : int, optional
        One head of q, k or v, 0-based; all of them side by side by default.
    encode : callable, optional
        Of float32 rows [row, d_model]: rows [row, width]. It should give the same numbers for the same name.

    Returns
    -------
    ActivationCache
        ``view.d_model`` wide; ``view.backbone`` is named ``BACKBONE:SOURCE`` and has a digest of its own, so that no
        probe of one source is taken for one of another.

    Raises
    ------
    InvalidParameterError
        For an unknown source, a head that there is not, or something that cannot encode.
    ProbeError, ProbeMismatchError, ContractError, LayerError
        For a control, other weights than the cache was made with, a block without such maps, and (once a layer is
        read) the last layer.
    """
    require_cache(cache)
    require_kind(source, str, "a source is 'residual', 'q', 'k', 'v', or with encode= a name")
    if encode is not None:
        if source.partition("@")[0] in ("residual", *_PARTS) or head is not None or not callable(encode):
            raise InvalidParameterError("encode= is a function of rows, with a source name of its own and no head")
        with torch.inference_mode():
            width = encode(torch.zeros(1, cache.d_model)).shape[-1]
        return MappedCache(cache, source, int(width), lambda _: encode)
    if source == "residual" and head is None:
        return cache
    if source not in _PARTS:
        raise InvalidParameterError(f"unknown source {source!r}; take residual (no head), q, k or v, or give encode=")
    n_heads = next_layer_attention(cache, cache.layers[0]).n_heads
    width = cache.d_model // n_heads
    part, name = slice(None), source
    if head is not None:
        if not 0 <= whole_number(head, "head") < n_heads:
            raise InvalidParameterError(f"there is no attention head {head}; this backbone has 0 to {n_heads - 1}")
        part, name = slice(head * width, (head + 1) * width), f"{source}@{head}"

    def reads(layer: int) -> Reading:
        maps = next_layer_attention(cache, layer)
        return lambda rows: maps.read(rows, _PARTS[source])[:, part]

    return MappedCache(cache, name, cache.d_model if head is None else width, reads)


class _View(ActivationCache):
    """Has the labels, splits and layers of the cache that it is of."""

    def __init__(self, cache: ActivationCache) -> None:
        super().__init__(cache.path, cache.manifest)
        self._cache = cache

    @property
    def layers(self) -> tuple[int, ...]:
        """As of the cache."""
        return self._cache.layers

    def labels(self, split: str) -> CachedLabels:
        """As of the cache."""
        return self._cache.labels(split)


class MappedCache(_View):
    """Rows are functions of the cache's; without a name for what they are they pass for the backbone's own."""

    def __init__(
        self, cache: ActivationCache, source: str | None, d_model: int, of_layer: Callable[[int], Reading]
    ) -> None:
        super().__init__(cache)
        self.d_model, self._source, self._of_layer = d_model, source, of_layer
        if source is None:
            return
        digest = hashlib.sha256(f"{cache.backbone['weights_digest']} {source}".encode()).hexdigest()
        self.backbone |= {"name": f"{cache.backbone['name']}:{source}", "weights_digest": digest, "d_model": d_model}

    @property
    def layers(self) -> tuple[int, ...]:
        """As of the cache; without the last, where the next block is asked."""
        is_next = str(self._source).partition("@")[0] in _PARTS
        return tuple(k for k in self._cache.layers if not is_next or k + 1 < self.backbone["n_layers"])

    def shard_digests(self) -> dict[str, str]:
        """As of the cache, with the source."""
        return {name: f"{digest}:{self._source}" for name, digest in self._cache.shard_digests().items()}

    def rows_of(self, scenes: Any, layer: int, rows: Any) -> CachedActivations:
        """As of the cache, mapped."""
        return _MappedRows(self._cache.rows_of(scenes, layer, rows), self._of_layer(layer), self.d_model)


class _MappedRows(CachedActivations):
    def __init__(self, of: CachedActivations, reading: Reading, d_model: int) -> None:
        self.split, self.layer, self.d_model = of.split, of.layer, d_model
        self._of, self._reading = of, reading

    @property
    def n_rows(self) -> int:
        return self._of.n_rows

    def take(self, rows: Any, into: Tensor | None = None) -> Tensor:
        with torch.inference_mode():
            mapped = self._reading(self._of.take(rows)).float()
        return mapped.clone() if into is None else into[: len(mapped)].copy_(mapped)


class HeldCache(_View):
    """Other activations in the place of some scenes': rows in memory by layer, as their labels number them."""

    def __init__(
        self,
        cache: ActivationCache,
        split: str,
        labels: CachedLabels,
        rows: Mapping[int, Float[Tensor, "row d_model"]],
    ) -> None:
        super().__init__(cache)
        self._split, self._rows, self._held = split, labels, rows

    def labels(self, split: str) -> CachedLabels:
        """Of the split that is held. Raises InvalidParameterError for another."""
        if split != self._split:
            raise InvalidParameterError(f"only rows of the {self._split} split are held here, got {split}")
        return self._rows

    @property
    def layers(self) -> tuple[int, ...]:
        """Those that are held."""
        return tuple(self._held)

    def rows_of(self, scenes: Any, layer: int, rows: Any) -> CachedActivations:
        """The held rows."""
        return _HeldRows(self._held[layer], self._split, layer)


class _HeldRows(CachedActivations):
    def __init__(self, held: Tensor, split: str, layer: int) -> None:
        self.split, self.layer, self.d_model, self._held = split, layer, held.shape[1], held

    @property
    def n_rows(self) -> int:
        return len(self._held)

    def take(self, rows: Any, into: Tensor | None = None) -> Tensor:
        taken = self._held[torch.from_numpy(row_numbers(rows, self.n_rows, self.split))]
        return taken if into is None else into[: len(taken)].copy_(taken)


def next_layer_attention(cache: ActivationCache, layer: int) -> AttentionMaps:
    """Maps of the block after a layer, of the very weights that the cache was made with.

    The backbone is loaded once more, by its name; a hub model comes from the hub's local cache. Raises LayerError for
    the last layer, ProbeError for a control's cache, ProbeMismatchError if other weights have that name now, and
    BackboneError if the backbone cannot be loaded or has no such maps.
    """
    described = cache.backbone
    if isinstance(cache, MappedCache):
        raise ProbeError(f"{described['name']} is not what the next block reads; give the cache that it was read from")
    if is_control(described["objective"]):
        raise ProbeError(f"{described['name']} is a control without a model, so it has no attention to ask")
    backbone = _loaded(described["name"])
    if backbone.weights_digest != described["weights_digest"]:
        raise ProbeMismatchError(
            f"the cache {cache.path} was made with weights {described['weights_digest'][:8]} of {described['name']}, "
            f"which has weights {backbone.weights_digest[:8]} now; cache it anew"
        )
    return attention_maps(backbone, layer)


@lru_cache(maxsize=1)
def _loaded(name: str) -> Backbone:
    return load_backbone(name, device="cpu")


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
