"""One patch against all others without the matrix of all pairs: a probe's logits as products of thin factors.

A bilinear probe's logit is ``left[i] . right[j] + left_offset[i] + right_offset[j]``. The factors are made once an
image and layer, from there on a click costs one product of a row. Where few directions carry the logits, as after
training, factors are cut to a rank at which no affinity moves by more than `TOLERANCE`: that is measured on all pairs,
block by block, before the cut factors are taken; else they stay whole.

>>> import torch
>>> from bindkit.probes import make_probe
>>> x, probe = torch.randn(50, 8), make_probe("quadratic", 8)
>>> rows = rows_of(probe, x, x)
>>> bool((rows.affinity(7) - probe(x)[7].sigmoid()).abs().max() < TOLERANCE)
True
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from bindkit.probes import (
    DiagonalQuadratic,
    DotProduct,
    Linear,
    Probe,
    Quadratic,
    QuadraticFixedRank,
    SelfAttention,
)

TOLERANCE = 5e-4
"""No affinity moves by more when factors are cut."""

_RANKS = (8, 16, 32, 48, 64, 96, 128)
_ROUNDS = 2
_BLOCK = 256
"""Rows whose pairs are looked at together."""


@runtime_checkable
class Rows(Protocol):
    """One patch of the first image against all of the second."""

    def affinity(self, patch: int) -> Float[Tensor, " patch"]:
        """Affinities in [0, 1]."""
        ...

    @property
    def n_bytes(self) -> int:
        """Memory in bytes."""
        ...


@dataclass(frozen=True)
class Factors:
    """Logits of all pairs as a product of two thin matrices.

    Attributes
    ----------
    left, right : float32 tensors of shape (n, rank) and (m, rank)
    left_offset, right_offset : float32 tensors of shape (n,) and (m,)
    scale : float
        What a logit is multiplied with before it becomes an affinity: one over the probe's temperature.
    """

    left: Float[Tensor, "n rank"]
    right: Float[Tensor, "m rank"]
    left_offset: Float[Tensor, " n"]
    right_offset: Float[Tensor, " m"]
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """Columns of the factors."""
        return self.left.shape[1]

    @property
    def n_bytes(self) -> int:
        """Memory in bytes."""
        parts = (self.left, self.right, self.left_offset, self.right_offset)
        return sum(part.numel() * part.element_size() for part in parts)

    def logits(self, patch: int) -> Float[Tensor, " m"]:
        """Logits of one patch of the first image, temperature included."""
        row = self.right @ self.left[patch] + self.left_offset[patch] + self.right_offset
        return row * self.scale

    def affinity(self, patch: int) -> Float[Tensor, " m"]:
        """Affinities of one patch of the first image."""
        return self.logits(patch).sigmoid()

    def centred(self) -> Factors:
        """The same logits with factors of mean zero, the rest in the offsets.

        Where activations lie far from zero, as in most ViTs, this leaves less to the products and so to rounding.
        """
        over_left = self.left.mean(0, dtype=torch.float64).float()
        over_right = self.right.mean(0, dtype=torch.float64).float()
        left, right = self.left - over_left, self.right - over_right
        # Here large numbers cancel.
        left_offset = self.left_offset + self.left.double() @ over_right.double()
        right_offset = self.right_offset + right.double() @ over_left.double()
        return Factors(left, right, left_offset.float(), right_offset.float(), self.scale)

    def cut(self, tolerance: float = TOLERANCE) -> Factors:
        """The same with fewer columns, if no affinity moves by more than the tolerance; else itself.

        The leading directions come from subspace iteration (Halko, Martinsson & Tropp, 2011).
        """
        n, m, rank = len(self.left), len(self.right), self.rank
        most = min(max(_RANKS), rank // 2, n, m)
        if most < min(_RANKS):
            return self
        # A sigmoid is nowhere steeper than 1/4.
        allowed = 4 * tolerance / abs(self.scale)
        basis = torch.randn(m, most, generator=torch.Generator().manual_seed(0))
        for _ in range(_ROUNDS):
            across = torch.linalg.qr(self.left @ (self.right.T @ basis)).Q
            basis = torch.linalg.qr(self.right @ (self.left.T @ across)).Q
        u, s, vh = torch.linalg.svd(self.left @ (self.right.T @ basis), full_matrices=False)
        left, right = u * s, basis @ vh.T
        sampled = torch.linspace(0, n - 1, min(n, 64)).long()
        for keep in (*(keep for keep in _RANKS if keep < most), most):
            if self._farthest(left[:, :keep], right[:, :keep], sampled) > 0.7 * allowed:
                continue
            if self._farthest(left[:, :keep], right[:, :keep], torch.arange(n)) <= allowed:
                kept = (left[:, :keep].contiguous(), right[:, :keep].contiguous())
                return Factors(*kept, self.left_offset, self.right_offset, self.scale)
            break
        return self

    def _farthest(self, left: Tensor, right: Tensor, rows: Tensor) -> float:
        """How far logits of some rows move, at the most, if these factors take the place of the own ones."""
        found = 0.0
        for block in rows.split(_BLOCK):
            moved = self.left[block] @ self.right.T - left[block] @ right.T
            found = max(found, float(moved.abs().max()))
        return found


@dataclass(frozen=True)
class PairwiseRows:
    """For a probe whose logit is no product of factors: its own formula, one row at a time."""

    probe: Probe
    first: Float[Tensor, "n d_model"]
    second: Float[Tensor, "m d_model"]

    @property
    def n_bytes(self) -> int:
        """Memory in bytes."""
        return 4 * (self.first.numel() + (0 if self.second is self.first else self.second.numel()))

    def affinity(self, patch: int) -> Float[Tensor, " m"]:
        """Affinities of one patch of the first image."""
        scale = self.probe.scale
        logits = self.probe.pairwise(scale * self.first[patch : patch + 1], scale * self.second)[0].float()
        return (logits / self.probe.temperature).sigmoid()


def rows_of(probe: Probe, first: Float[Tensor, "n d_model"], second: Float[Tensor, "m d_model"]) -> Rows:
    """A probe's affinities of each patch of one image to every patch of another (or of the same) image.

    Parameters
    ----------
    probe : Probe
        Of any kind. The bilinear ones become factors; a kind of one's own is asked row by row.
    first, second : float tensors
        Activations of the layer that it reads.

    Returns
    -------
    Factors or PairwiseRows
    """
    with torch.inference_mode():
        split = _SPLITS.get(type(probe))
        if split is None:
            return PairwiseRows(probe, first, second)
        left, right, left_offset, right_offset = split(probe, first, second)
        factors = Factors(left, right, left_offset, right_offset, 1 / probe.temperature)
        # What is not finite cannot be cut; it is said when its row is shown.
        return factors.centred().cut() if left.isfinite().all() and right.isfinite().all() else factors


Split = tuple[Tensor, Tensor, Tensor, Tensor]


def _flat(left: Tensor, right: Tensor, bias: Tensor) -> Split:
    """Factors without offsets but the probe's own."""
    return left, right, bias.expand(len(left)).clone(), torch.zeros(len(right))


def _linear(probe: Any, x: Tensor, y: Tensor) -> Split:
    empty = torch.zeros(len(x), 0), torch.zeros(len(y), 0)
    return *empty, x @ probe.weight + probe.offset(), y @ probe.weight


def _fixed_rank(probe: Any, x: Tensor, y: Tensor) -> Split:
    left = x @ torch.cat([probe.first, probe.second]).T / (2 * math.sqrt(probe.d_model))
    return _flat(left, y @ torch.cat([probe.second, probe.first]).T, probe.bias)


def _attention(probe: Any, x: Tensor, y: Tensor) -> Split:
    queries, keys = probe.queries_and_keys(x, y)
    return _flat(queries / math.sqrt(queries.shape[1]), keys, probe.bias)


_SPLITS: dict[type[Probe], Callable[[Any, Tensor, Tensor], Split]] = {
    Linear: _linear,
    DiagonalQuadratic: lambda probe, x, y: _flat(x * probe.weight, y, probe.bias),
    DotProduct: lambda probe, x, y: _flat(x, y, probe.bias),
    Quadratic: lambda probe, x, y: _flat(x @ probe.symmetric(), y, probe.bias),
    QuadraticFixedRank: _fixed_rank,
    SelfAttention: _attention,
}
"""Exactly these classes: a subclass may judge pairs in another way."""
