"""The query and key maps that read a layer's activations: those of the next block, behind its norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bindkit.backbones.backbone import Backbone
from bindkit.errors import ContractError, LayerError

_QUERIES, _KEYS = ("q_proj", "query"), ("k_proj", "key")
"""Last parts of the names that the families of transformers give to their maps."""

_NORMS = ("norm1", "layernorm_before", "layer_norm1")
"""Names that they give to the layer norm in front of the attention; some register it behind the attention."""


@dataclass(frozen=True)
class AttentionMaps:
    """Query and key maps of one transformer block with the norm in front of them.

    Attributes
    ----------
    norm_weight, norm_bias : float tensors of shape (d_model,)
        Of the layer norm that the block's attention looks through.
    norm_epsilon : float
        Of that norm.
    query_weight, key_weight : float tensors of shape (d_model, d_model)
    query_bias, key_bias : float tensors of shape (d_model,)
        Zero where the block has none.
    n_heads : int
        Heads; each owns ``d_model / n_heads`` rows, one after the other.
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
    """Take the query and key maps of the block after a layer, and the layer norm in front of them.

    ::

        maps = attention_maps(backbone, layer=3)                  # what block 4 asks of layer 3
        bk.fit_probe(cache, layer=3, probe="self_attention")      # takes them by itself

    Rotations (DINOv3) and position biases (BEiT) that a block adds to queries and keys are not in them.

    Parameters
    ----------
    backbone : Backbone
        Of any family.
    layer : int
        0-based; not the last.

    Raises
    ------
    LayerError
        For the last layer, or one that the backbone does not have.
    ContractError
        If the block has no such maps, maps of another width, or no layer norm in front of them.
    """
    backbone.resolve_layers([layer])
    if layer + 1 >= backbone.n_layers:
        raise LayerError(
            f"layer {layer} is the last of {backbone.name}: no further layer's queries and keys read it; ask for "
            f"self_attention at layers 0 to {backbone.n_layers - 2}"
        )
    block = backbone.tower.blocks[layer + 1]
    where = f"block {layer + 1} of {backbone.name}"
    query, key = (_map_named(block, names, where) for names in (_QUERIES, _KEYS))
    norm = _norm_of(block, where)
    width = backbone.d_model
    for module in (query, key):
        if module.weight.shape != (width, width):
            raise ContractError(
                f"{where} maps {module.in_features} dimensions to {module.out_features} for its queries or keys, "
                f"expected {width} to {width}; self_attention cannot be asked of this model"
            )
    config: Any = backbone.tower.model.config
    return AttentionMaps(
        norm_weight=_or(norm.weight, torch.ones(width)),
        norm_bias=_or(norm.bias, torch.zeros(width)),
        norm_epsilon=float(norm.eps),
        query_weight=_plain(query.weight),
        query_bias=_or(query.bias, torch.zeros(width)),
        key_weight=_plain(key.weight),
        key_bias=_or(key.bias, torch.zeros(width)),
        n_heads=config.num_attention_heads,
    )


def _map_named(block: nn.Module, names: tuple[str, ...], where: str) -> nn.Linear:
    found = [
        module
        for name, module in block.named_modules()
        if name.rpartition(".")[2] in names and isinstance(module, nn.Linear)
    ]
    if len(found) != 1:
        raise ContractError(f"{where} should have one linear map called {' or '.join(names)}, it has {len(found)}")
    return found[0]


def _norm_of(block: nn.Module, where: str) -> nn.LayerNorm:
    found = [child for name, child in block.named_children() if name in _NORMS]
    if len(found) == 1 and isinstance(found[0], nn.LayerNorm):
        return found[0]
    got = ", ".join(type(child).__name__ for child in found) or "none"
    raise ContractError(
        f"{where} should have one layer norm called {' or '.join(_NORMS)} in front of its attention, got {got}, so "
        "what its queries and keys look at is not known"
    )


def _or(weight: Tensor | None, otherwise: Tensor) -> Tensor:
    return otherwise if weight is None else _plain(weight)


def _plain(weight: Tensor) -> Tensor:
    return weight.detach().float().cpu()
