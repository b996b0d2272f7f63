"""Query and key maps for the `self_attention` baseline, from the backbone that a cache was made with."""

from __future__ import annotations

from functools import lru_cache

from bindkit.arguments import is_control
from bindkit.backbones import Backbone, load_backbone
from bindkit.backbones.attention import AttentionMaps, attention_maps
from bindkit.cache import ActivationCache
from bindkit.errors import ProbeError, ProbeMismatchError


def next_layer_attention(cache: ActivationCache, layer: int) -> AttentionMaps:
    """Maps of the block after a layer, of the very weights that the cache was made with.

    The backbone is loaded once more, by its name; a hub model comes from the hub's local cache.

    Raises
    ------
    LayerError
        For the last layer, after which there is none.
    ProbeError
        If the cache is of a control.
    ProbeMismatchError
        If other weights have that name now.
    BackboneError
        If the backbone cannot be loaded, or has no such maps.
    """
    described = cache.backbone
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
