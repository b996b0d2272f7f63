"""The baseline that asks the model itself: how much the next layer's query of one patch meets the key of another."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bindkit.backbones.attention import AttentionMaps
from bindkit.errors import ProbeError
from bindkit.probes.base import Probe
from bindkit.probes.registry import register_probe


@register_probe("self_attention")
class SelfAttention(Probe):
    """``(Wq n(x)).(Wk n(y)) / sqrt(d) + b`` with the *next* layer's norm n and maps; only ``b`` is learned.

    That is the sum over heads, as in the reference implementation; it ranks pairs as their mean does.
    ``self_attention@3`` is head 3 alone, over the root of its own width. Not symmetric: row i is the patch that looks.
    Rotations and biases that some models add to queries and keys by position (DINOv3, BEiT) are left out.

    The reference implementation feeds the maps with the raw block output, without the norm that the model has there.
    The paper protocol does so too: ``normed=False``.
    """

    trained_in = "raw"
    numbered = "head"

    norm_weight: Tensor
    norm_bias: Tensor
    query_weight: Tensor
    query_bias: Tensor
    key_weight: Tensor
    key_bias: Tensor

    def __init__(
        self,
        d_model: int,
        n_heads: int = 1,
        norm_epsilon: float = 1e-6,
        head: int | None = None,
        normed: bool = True,
    ) -> None:
        if head is not None and not 0 <= head < n_heads:
            raise ProbeError(f"there is no attention head {head}; this backbone has heads 0 to {n_heads - 1}")
        # Named only where it is not so: saved probes with the norm keep their bytes.
        raw = {} if normed else {"normed": False}
        super().__init__(d_model, n_heads=n_heads, norm_epsilon=norm_epsilon, head=head, **raw)
        self.bias = nn.Parameter(torch.zeros(()))
        for name in ("norm_weight", "norm_bias", "query_bias", "key_bias"):
            self.register_buffer(name, torch.zeros(d_model))
        for name in ("query_weight", "key_weight"):
            self.register_buffer(name, torch.zeros(d_model, d_model))

    def take(self, maps: AttentionMaps) -> SelfAttention:
        """Take the weights of a block; returns itself."""
        for name in ("norm_weight", "norm_bias", "query_weight", "query_bias", "key_weight", "key_bias"):
            getattr(self, name).copy_(getattr(maps, name))
        return self

    def pairwise(self, x: Float[Tensor, "*scene n d_model"], y: Float[Tensor, "*scene m d_model"]) -> Tensor:  # noqa: D102
        queries, keys = self.queries_and_keys(x, y)
        return queries @ keys.mT / math.sqrt(queries.shape[-1]) + self.bias

    def queries_and_keys(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Queries of `x` and keys of `y`, of all heads side by side or of the one that the probe has."""
        head, width = self.options["head"], self.d_model // self.options["n_heads"]
        rows = slice(None) if head is None else slice(head * width, (head + 1) * width)
        queries = self._seen(x) @ self.query_weight[rows].T + self.query_bias[rows]
        return queries, self._seen(y) @ self.key_weight[rows].T + self.key_bias[rows]

    def _seen(self, x: Tensor) -> Tensor:
        if not self.options.get("normed", True):
            return x
        return nn.functional.layer_norm(
            x, (self.d_model,), self.norm_weight, self.norm_bias, self.options["norm_epsilon"]
        )
