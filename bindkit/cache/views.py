"""A cache's rows read as something else: queries, keys or values of the next block, a dictionary's code, held numbers.

A view has the labels and splits of its cache, so that whatever fits and judges on a cache does so on a view: on the
very same pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bindkit.arguments import is_control, require_kind, whole_number
from bindkit.backbones.attention import AttentionMaps, attention_maps
from bindkit.backbones.loading import Backbone, load_backbone
from bindkit.cache.store import ActivationCache, CachedActivations, CachedLabels, require_cache, row_numbers
from bindkit.errors import InvalidParameterError, ProbeError, ProbeMismatchError

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
