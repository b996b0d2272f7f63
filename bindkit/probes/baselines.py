"""Baselines: similarities that are there without training, with nothing but an offset learned."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from bindkit.probes.base import Probe, uniform_start
from bindkit.probes.registry import register_probe

_LEAST_NORMS = 1e-8
"""What the product of two norms counts for at least, as in the reference implementation."""


@register_probe("cosine_similarity")
class CosineSimilarity(Probe):
    """``cos(x, y) + b``."""

    trained_in = "raw"

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.bias = uniform_start(fan_in=d_model)

    def pairwise(self, x: Float[Tensor, "*scene n d_model"], y: Float[Tensor, "*scene m d_model"]) -> Tensor:  # noqa: D102
        norms = x.norm(dim=-1)[..., :, None] * y.norm(dim=-1)[..., None, :]
        return x @ y.mT / norms.clamp(min=_LEAST_NORMS) + self.bias


@register_probe("dot_product")
class DotProduct(Probe):
    """``x.y + b``."""

    trained_in = "raw"

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.bias = uniform_start(fan_in=d_model)

    def pairwise(self, x: Float[Tensor, "*scene n d_model"], y: Float[Tensor, "*scene m d_model"]) -> Tensor:  # noqa: D102
        return x @ y.mT + self.bias
