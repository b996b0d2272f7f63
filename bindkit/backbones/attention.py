"""What the next block makes of a layer's activations: its query, key and value maps, and its attention weights."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from bindkit.backbones.loading import Backbone
from bindkit.errors import ContractError, LayerError

_QUERIES, _KEYS, _VALUES = ("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")
"""Last parts of the names that the families of transformers give to their maps."""

_NORMS = ("norm1", "layernorm_before", "layer_norm1")
"""Names that they give to the layer norm in front of the attention; some register it behind the attention."""


@dataclass(frozen=True)
class AttentionMaps:
    """Query, key and value maps of one transformer block with the layer norm that they look through.

    Biases are zero where the block has none. Each head owns ``d_model / n_heads`` rows, one after the other.
    """

    norm_weight: Float[Tensor, " d_model"]
    norm_bias: Float[Tensor, " d_model"]
    norm_epsilon: float
    query_weight: Float[Tensor, "d_model d_model"]
    query_bias: Float[Tensor, " d_model"]
    key_weight: Float[Tensor, "d_model d_model"]
    key_bias: Float[Tensor, " d_model"]
    value_weight: Float[Tensor, "d_model d_model"]
    value_bias: Float[Tensor, " d_model"]
    n_heads: int

    def read(self, x: Float[Tensor, "*row d_model"], which: str) -> Float[Tensor, "*row d_model"]:
        """Queries, keys or values of activations: ``"query"``, ``"key"`` or ``"value"``, all heads side by side."""
        normed = nn.functional.layer_norm(x, x.shape[-1:], self.norm_weight, self.norm_bias, self.norm_epsilon)
        return normed @ getattr(self, f"{which}_weight").T + getattr(self, f"{which}_bias")

    def by_head(self, x: Float[Tensor, "*row d_model"], which: str) -> Float[Tensor, "head *row d_head"]:
        """The same, head by head."""
        return self.read(x, which).unflatten(-1, (self.n_heads, -1)).movedim(-2, 0)

    def products(self, x: Float[Tensor, "patch d_model"]) -> Float[Tensor, "head patch patch"]:
        """Queries times keys over the root of the head's width: what the softmax is taken of."""
        queries, keys = self.by_head(x, "query"), self.by_head(x, "key")
        return queries @ keys.mT / queries.shape[2] ** 0.5


def attention_maps(backbone: Backbone, layer: int) -> AttentionMaps:
    """Take the query, key and value maps of the block after a layer (0-based, not the last), and the norm before them.

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
    for names in (_QUERIES, _KEYS, _VALUES):
        found = [
            module
            for name, module in block.named_modules()
            if name.rpartition(".")[2] in names and isinstance(module, nn.Linear)
        ]
        if len(found) != 1:
            raise ContractError(f"{where} should have one linear map called {' or '.join(names)}, it has {len(found)}")
        if found[0].weight.shape != (width, width):
            raise ContractError(
                f"{where} maps {found[0].in_features} dimensions to {found[0].out_features} for its queries, keys or "
                f"values, expected {width} to {width}; self_attention cannot be asked of this model"
            )
        maps += found
    query, key, value = maps
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
        value_weight=value.weight.detach().float().cpu(),
        value_bias=_plain(value.bias, zeros),
        n_heads=config.num_attention_heads,
    )


def _plain(weight: Tensor | None, otherwise: Tensor) -> Tensor:
    return (otherwise if weight is None else weight).detach().float().cpu()


def attention_weights(
    backbone: Backbone, windows: UInt8[Tensor, "window height width 3"], layer: int
) -> tuple[Float[Tensor, "window patch d_model"], Float[Tensor, "window head patch patch"]]:
    """A layer's activations, and how the block after it attends: the model's own weights, rotations and biases in them.

    Row i is the patch that looks, as in ``softmax(q_i . k_j)`` over all tokens; what goes to prefix tokens is left out,
    so that rows add up to less than 1 where there are any. Raises LayerError for the last layer, ContractError if the
    block does not say its weights.
    """
    (layer,) = backbone.resolve_layers([layer])
    if layer + 1 >= backbone.n_layers:
        raise LayerError(f"layer {layer} is the last of {backbone.name}: no further layer attends to it")
    seen: list[Tensor] = []

    def look(_module: nn.Module, _args: Any, output: Any) -> None:
        parts = output if isinstance(output, tuple) else ()
        square = [part for part in parts if isinstance(part, Tensor) and part.ndim == 4 and not seen]
        seen.extend(part.detach().float() for part in square if part.shape[-1] == part.shape[-2])

    with contextlib.ExitStack() as stack:
        for module in backbone.tower.blocks[layer + 1].modules():
            stack.callback(module.register_forward_hook(look).remove)
        configs = {
            id(config): config for module in backbone.tower.model.modules() if (config := getattr(module, "config", 0))
        }
        for config in [config for config in configs.values() if hasattr(config, "_attn_implementation")]:
            # Only then do models of transformers give their weights away; the setting is read in every pass.
            stack.callback(setattr, config, "_attn_implementation", config._attn_implementation)
            config._attn_implementation = "eager"
        activations = backbone.activations(windows, [layer, layer + 1])[layer]
    n_patches = backbone.layout.grid.n_patches
    if not seen or seen[0].shape[2] != n_patches + backbone.layout.n_prefix:
        raise ContractError(
            f"block {layer + 1} of {backbone.name} ({type(backbone.tower.model).__name__}) does not say its attention "
            'weights; take its queries and keys (measure="logit"), or another family'
        )
    return activations, seen[0][:, :, -n_patches:, -n_patches:]
