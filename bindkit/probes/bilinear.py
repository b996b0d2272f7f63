"""Probes whose logit is linear in each of the two patches, and the similarities that need no training beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from bindkit.errors import ProbeError
from bindkit.probes.base import PairMoments, Probe, uniform_start
from bindkit.probes.pair_products import diagonal_logits, symmetric_logits
from bindkit.probes.registry import register_probe


def times_units(weight: Float[Tensor, "*rows d_model"], units: Tensor) -> Float[Tensor, "*rows d_model"]:
    """Rows that give for ``x`` what the rows of `weight` give for ``units @ x``."""
    return weight * units if units.ndim == 1 else weight @ units


class RowsProbe(Probe):
    """A probe in whose formula every parameter but the offset multiplies one patch."""

    trained_in = "whitened"

    def folded(self, parameters: Mapping[str, Tensor], units: Tensor) -> dict[str, Tensor]:  # noqa: D102
        return {name: value if name == "bias" else times_units(value, units) for name, value in parameters.items()}


@register_probe("linear")
class Linear(RowsProbe):
    """``w.x + w.y + b``: whether each patch by itself looks like part of an object that fills the view.

    The reference implementation adds the output of one ``nn.Linear`` at both patches, ``w.x + w.y + 2b``: the same
    functions, but Adam moves that offset twice as far a step. The paper protocol does so: ``offset_at_both``.
    """

    def __init__(self, d_model: int, offset_at_both: bool = False) -> None:
        # Named only where it is so: saved probes without it keep their bytes.
        super().__init__(d_model, **({"offset_at_both": True} if offset_at_both else {}))
        self.weight = uniform_start(d_model, fan_in=d_model)
        self.bias = uniform_start(fan_in=d_model)

    def pairwise(self, x: Float[Tensor, "*scene n d_model"], y: Float[Tensor, "*scene m d_model"]) -> Tensor:  # noqa: D102
        left = x @ self.weight
        right = left if y is x else y @ self.weight
        return left[..., :, None] + right[..., None, :] + self.offset()

    def offset(self) -> Tensor:
        """What a logit has beside the two patches' scores."""
        return 2 * self.bias if self.options.get("offset_at_both") else self.bias


@register_probe("diag_quadratic")
class DiagonalQuadratic(Probe):
    """``sum_k w_k x_k y_k + b``: a weighted similarity."""

    trained_in = "scaled"

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.weight = uniform_start(d_model, fan_in=d_model)
        self.bias = uniform_start(fan_in=d_model)

    def symmetric(self) -> Float[Tensor, "d_model d_model"]:
        """The form itself, a diagonal."""
        return self.weight.diag()

    def pairwise(self, x: Float[Tensor, "*scene n d_model"], y: Float[Tensor, "*scene m d_model"]) -> Tensor:  # noqa: D102
        if y is x:
            return diagonal_logits(x, self.weight) + self.bias
        return (x * self.weight) @ y.mT + self.bias

    def folded(self, parameters: Mapping[str, Tensor], units: Tensor) -> dict[str, Tensor]:  # noqa: D102
        return {"weight": parameters["weight"] * units**2, "bias": parameters["bias"]}

    def closed_form(self, moments: PairMoments) -> dict[str, Tensor]:
        """Least squares of the answer on the products ``x_k y_k``, as if patches of a pair were independent."""
        products = moments.patches.double() ** 2
        ridge = 1e-3 * products.diagonal().mean() * torch.eye(self.d_model, dtype=torch.float64, device=products.device)
        weight = torch.linalg.solve(products + ridge, moments.signal.diagonal().double())
        return {"weight": weight.to(moments.signal.dtype), "bias": torch.zeros_like(self.bias)}


@register_probe("quadratic")
class Quadratic(Probe):
    """``x' (W + W') y / (2 sqrt(d)) + b``: any symmetric bilinear form."""

    trained_in = "whitened"

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.weight = uniform_start(d_model, d_model, fan_in=d_model)
        self.bias = uniform_start(fan_in=d_model)

    def symmetric(self) -> Float[Tensor, "d_model d_model"]:
        """The form itself, ``(W + W') / (2 sqrt(d))``."""
        return (self.weight + self.weight.T) / (2 * math.sqrt(self.d_model))

    def pairwise(self, x: Float[Tensor, "*scene n d_model"], y: Float[Tensor, "*scene m d_model"]) -> Tensor:  # noqa: D102
        if y is x:
            return symmetric_logits(x, self.symmetric()) + self.bias
        return (x @ self.symmetric()) @ y.mT + self.bias

    def folded(self, parameters: Mapping[str, Tensor], units: Tensor) -> dict[str, Tensor]:  # noqa: D102
        columns = times_units(parameters["weight"], units)
        return {"weight": times_units(columns.mT, units).mT, "bias": parameters["bias"]}

    def closed_form(self, moments: PairMoments) -> dict[str, Tensor]:
        """Least squares of the answer on all products ``x_i y_j``: in whitened units, that is the signal itself."""
        return {"weight": moments.signal * math.sqrt(self.d_model), "bias": torch.zeros_like(self.bias)}


@register_probe("quadratic_fixed_rank")
class QuadraticFixedRank(RowsProbe):
    """The quadratic probe with ``W = W1' W2`` of rank 100, as in the reference, or as the name says (``...@16``)."""

    numbered = "rank"
    degrees: ClassVar[Mapping[str, float]] = {"first": 0.5, "second": 0.5}

    def __init__(self, d_model: int, rank: int = 100) -> None:
        if rank < 1:
            raise ProbeError(f"a quadratic_fixed_rank probe of rank {rank} says nothing; give a rank of 1 or more")
        super().__init__(d_model, rank=rank)
        self.first = uniform_start(rank, d_model, fan_in=d_model)
        self.second = uniform_start(rank, d_model, fan_in=d_model)
        self.bias = uniform_start(fan_in=d_model)

    def symmetric(self) -> Float[Tensor, "d_model d_model"]:
        """The form itself, of at most twice the rank."""
        product = self.first.T @ self.second
        return (product + product.T) / (2 * math.sqrt(self.d_model))

    def pairwise(self, x: Float[Tensor, "*scene n d_model"], y: Float[Tensor, "*scene m d_model"]) -> Tensor:  # noqa: D102
        # x (W + W') y = (W1 x).(W2 y) + (W2 x).(W1 y): d x d is never formed.
        scale = 1 / (2 * math.sqrt(self.d_model))
        first, second = (x @ torch.cat([self.first, self.second]).T).chunk(2, dim=-1)
        if y is x:
            half = first @ (scale * second).mT
            return half + half.mT + self.bias
        left, right = torch.cat([first, second], dim=-1), y @ torch.cat([self.second, self.first]).T
        return left @ (scale * right).mT + self.bias

    def closed_form(self, moments: PairMoments) -> dict[str, Tensor]:
        """The strongest eigenvectors of the quadratic probe's start."""
        values, vectors = torch.linalg.eigh(moments.signal * math.sqrt(self.d_model))
        rank = self.first.shape[0]
        chosen = values.abs().topk(min(rank, self.d_model)).indices
        roots = vectors[:, chosen].T * values[chosen].abs().sqrt()[:, None]
        first, second = torch.zeros_like(self.first), torch.zeros_like(self.second)
        first[: len(chosen)], second[: len(chosen)] = roots, roots * values[chosen].sign()[:, None]
        return {"first": first, "second": second, "bias": torch.zeros_like(self.bias)}


@register_probe("cosine_similarity")
class CosineSimilarity(Probe):
    """``cos(x, y) + b``: only an offset is learned."""

    trained_in = "raw"

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.bias = uniform_start(fan_in=d_model)

    def pairwise(self, x: Float[Tensor, "*scene n d_model"], y: Float[Tensor, "*scene m d_model"]) -> Tensor:  # noqa: D102
        # Two norms count for at least 1e-8, as in the reference implementation.
        norms = x.norm(dim=-1)[..., :, None] * y.norm(dim=-1)[..., None, :]
        return x @ y.mT / norms.clamp(min=1e-8) + self.bias


@register_probe("dot_product")
class DotProduct(Probe):
    """``x.y + b``: only an offset is learned."""

    trained_in = "raw"

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.bias = uniform_start(fan_in=d_model)

    def pairwise(self, x: Float[Tensor, "*scene n d_model"], y: Float[Tensor, "*scene m d_model"]) -> Tensor:  # noqa: D102
        return x @ y.mT + self.bias
