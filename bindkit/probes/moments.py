"""Moments of the pairs of a training split: all that a start in closed form needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class PairMoments:
    """Second moments of the patches that take part, and of their counted pairs.

    Attributes
    ----------
    patches : float tensor of shape (d_model, d_model)
        Mean of ``x x'`` over patches.
    signal : float tensor of shape (d_model, d_model)
        Symmetric mean of ``t x y'`` over the counted pairs ``(x, y)``, where ``t`` is 1 for a pair on one object and 0
        for another, less the share of such pairs: how products go along with the answer.
    """

    patches: Float[Tensor, "d_model d_model"]
    signal: Float[Tensor, "d_model d_model"]

    def in_units(self, units: Tensor) -> PairMoments:
        """The same moments of ``units @ x`` (of ``units * x`` for a diagonal)."""
        if units.ndim == 1:
            outer = units[:, None] * units[None, :]
            return PairMoments(self.patches * outer, self.signal * outer)
        return PairMoments(units @ self.patches @ units.T, units @ self.signal @ units.T)
