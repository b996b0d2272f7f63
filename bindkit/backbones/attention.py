"""The query and key maps that read a layer's activations: those of the next block, behind its norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bindkit.backbones.loading import Backbone
from bindkit.errors import ContractError, LayerError

_QUERIES, _KEYS = ("q_proj", "query"), ("k_proj", "key")
"""Last parts of the names that the families of transformers give to their maps."""

_NORMS = ("norm1", "layernorm_before", "layer_norm1")
"""Names that they give to the layer norm in front of the attention; some register it behind the attention."""


@dataclass(frozen=True)
class AttentionMaps:
    """Query and key maps of one transformer block with the layer norm that they look through.

    Biases are zero where the block has none. Each head owns ``d_model / n_heads`` rows, one after the other.
    """

    norm_weight: Float[Tensor, " d_model"]
    norm_bias: Float[Tensor, " d_model"]
    norm_epsilon: float
    query_weight: Float[Tensor, "d_model d_model"]
    query_bias: Float[Tensor, " d_model"]
    key_weight: Float[Tensor, "d_model d_model"]
    key_bias: Float[Tensor, " d_model"]
    n_heads: int


def attention_maps(backbone: Backbone, layer: int) -> AttentionMaps:
    """Take the query and key maps of the block after a layer (0-based, not the last), and the norm in front of them.

    Rotations (DINOv3) and position biases (BEiT) that a block adds to queries and keys are not in them. Raises
    LayerError for the last layer or one that the backbone does not have, ContractError if the block has no such maps,
    maps of another width, or no layer norm in front of them.
    """
    backbone.resolve_layers([layer])
    if layer + 1 >= backbone.n_layers:
        raise LayerError(
            f"layer {layer} is the last of {backbone.name}: no further layer's queries and keys read it; ask for "
            f"self_attention at layers 0 to {backbone.n_layers - 2}"
        )
    block = backbone.tower.blocks[layer + 1]
    where = f"block {layer + 1} of {backbone.name}"
    width = backbone.d_model
    maps = []
    for names in (_QUERIES, _KEYS):
        found = [
            module
            for name, module in block.named_modules()
            if name.rpartition(".")[2] in names and isinstance(module, nn.Linear)
        ]
        if len(found) != 1:
            raise ContractError(f"{where} should have one linear map called {' or '.join(names)}, it has {len(found)}")
        if found[0].weight.shape != (width, width):
            raise ContractError(
                f"{where} maps {found[0].in_features} dimensions to {found[0].out_features} for its queries or keys, "
                f"expected {width} to {width}; self_attention cannot be asked of this model"
            )
        maps += found
    query, key = maps
    norms = [child for name, child in block.named_children() if name in _NORMS]
    if len(norms) != 1 or not isinstance(norms[0], nn.LayerNorm):
        got = ", ".join(type(child).__name__ for child in norms) or "none"
        raise ContractError(
            f"{where} should have one layer norm called {' or '.join(_NORMS)} in front of its attention, got {got}, so "
            "what its queries and keys look at is not known"
        )
    config: Any = backbone.tower.model.config
    ones, zeros = torch.ones(width), torch.zeros(width)
    return AttentionMaps(
        norm_weight=_plain(norms[0].weight, ones),
        norm_bias=_plain(norms[0].bias, zeros),
        norm_epsilon=float(norms[0].eps),
        query_weight=query.weight.detach().float().cpu(),
        query_bias=_plain(query.bias, zeros),
        key_weight=key.weight.detach().float().cpu(),
        key_bias=_plain(key.bias, zeros),
        n_heads=config.num_attention_heads,
    )


def _plain(weight: Tensor | None, otherwise: Tensor) -> Tensor:
    return (otherwise if weight is None else weight).detach().float().cpu()
