"""One patch against all others without the matrix of all pairs: affinity, cosine, attention; and colours.

A bilinear probe's logit is ``left[i] . right[j] + left_offset[i] + right_offset[j]``. The factors are made once an
image and layer, from there on a click costs one product of a row. Where few directions carry the logits, as after
training, factors are cut to a rank at which no affinity moves by more than `TOLERANCE`: that is measured on all pairs,
block by block, before the cut factors are taken; else they stay whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import normalize, pad

from bindkit.affinities.objects import find_objects
from bindkit.affinities.scoring import Affinity, ImageGrid, cell_weights, landing, pair_logits
from bindkit.backbones.attention import AttentionMaps
from bindkit.probes import (
    DiagonalQuadratic,
    DotProduct,
    Linear,
    Probe,
    Quadratic,
    QuadraticFixedRank,
    SelfAttention,
)
from bindkit.scenes.geometry import ScenePlan
from bindkit.views.figures.style import PALETTE, channels
from bindkit.views.viewer.packing import leading_basis

TOLERANCE = 5e-4
"""No affinity moves by more when factors are cut."""

_RANKS = (8, 16, 32, 48, 64, 96, 128)
_BLOCK = 256
"""Rows whose pairs are looked at together."""


@dataclass(frozen=True, eq=False)
class Factors:
    """Logits of all pairs as a product of two thin matrices; `scale`, one over the temperature, comes after the sum."""

    left: Float[Tensor, "n rank"]
    right: Float[Tensor, "m rank"]
    left_offset: Float[Tensor, " n"]
    right_offset: Float[Tensor, " m"]
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """Columns of the factors."""
        return self.left.shape[1]

    def affinity(self, patch: int) -> Float[Tensor, " m"]:
        """Affinities of one patch of the first image."""
        logits = self.right @ self.left[patch] + self.left_offset[patch] + self.right_offset
        return (logits * self.scale).sigmoid()

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

    def cut(self) -> Factors:
        """The same with fewer columns, if no affinity moves by more than the tolerance; else itself."""
        n, m = len(self.left), len(self.right)
        most = min(max(_RANKS), self.rank // 2, n, m)
        if most < min(_RANKS):
            return self
        # A sigmoid is nowhere steeper than 1/4.
        allowed = 4 * TOLERANCE / abs(self.scale)

        def stretched(columns: Tensor) -> Tensor:
            return self.right @ (self.left.T @ torch.linalg.qr(self.left @ (self.right.T @ columns)).Q)

        def farthest(left: Tensor, right: Tensor, rows: Tensor) -> float:
            """How far logits of some rows move, at the most, if these factors take the place of the own ones."""
            moved = (self.left[block] @ self.right.T - left[block] @ right.T for block in rows.split(_BLOCK))
            return max(float(part.abs().max()) for part in moved)

        basis = leading_basis(stretched, m, most, rounds=2)
        u, s, vh = torch.linalg.svd(self.left @ (self.right.T @ basis), full_matrices=False)
        left, right = u * s, basis @ vh.T
        sampled = torch.linspace(0, n - 1, min(n, 64)).long()
        for keep in (*(rank for rank in _RANKS if rank < most), most):
            thin = left[:, :keep], right[:, :keep]
            if farthest(*thin, sampled) > 0.7 * allowed:
                continue
            if farthest(*thin, torch.arange(n)) <= allowed:
                return replace(self, left=thin[0].contiguous(), right=thin[1].contiguous())
            break
        return self


@dataclass(frozen=True)
class PairwiseRows:
    """For a probe whose logit is no product of factors: its own formula, one row at a time."""

    probe: Probe
    first: Float[Tensor, "n d_model"]
    second: Float[Tensor, "m d_model"]

    def affinity(self, patch: int) -> Float[Tensor, " m"]:
        """Affinities of one patch of the first image."""
        scale = self.probe.scale
        logits = self.probe.pairwise(scale * self.first[patch : patch + 1], scale * self.second)[0].float()
        return (logits / self.probe.temperature).sigmoid()


def _fixed_rank(probe: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    left = x @ torch.cat([probe.first, probe.second]).T / (2 * math.sqrt(probe.d_model))
    return left, y @ torch.cat([probe.second, probe.first]).T


def _attention(probe: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    queries, keys = probe.queries_and_keys(x, y)
    return queries / math.sqrt(queries.shape[1]), keys


_FACTORS: dict[type[Probe], Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    Linear: lambda probe, x, y: (torch.zeros(len(x), 0), torch.zeros(len(y), 0)),
    DiagonalQuadratic: lambda probe, x, y: (x * probe.weight, y),
    DotProduct: lambda probe, x, y: (x, y),
    Quadratic: lambda probe, x, y: (x @ probe.symmetric(), y),
    QuadraticFixedRank: _fixed_rank,
    SelfAttention: _attention,
}
"""Exactly these classes: a subclass may judge pairs in another way."""


def rows_of(
    probe: Any, first: Float[Tensor, "n d_model"], second: Float[Tensor, "m d_model"]
) -> Factors | PairwiseRows:
    """A probe's affinities of each patch of one image to every patch of another (or of the same) image."""
    with torch.inference_mode():
        if type(probe) not in _FACTORS:
            return PairwiseRows(probe, first, second)
        left, right = _FACTORS[type(probe)](probe, first, second)
        if isinstance(probe, Linear):
            offsets = first @ probe.weight + probe.offset(), second @ probe.weight
        else:
            offsets = probe.bias.expand(len(left)).clone(), torch.zeros(len(right))
        factors = Factors(left, right, *offsets, 1 / probe.temperature)
        # What is not finite cannot be cut; it is said when its row is shown.
        return factors.centred().cut() if left.isfinite().all() and right.isfinite().all() else factors


@dataclass(frozen=True)
class CosineRows:
    """Cosine similarity of one patch to all, from activations of length 1."""

    first: Float[Tensor, "n d_model"]
    second: Float[Tensor, "m d_model"]

    @classmethod
    def of(cls, first: Float[Tensor, "n d_model"], second: Float[Tensor, "m d_model"]) -> CosineRows:
        """From activations."""
        unit = normalize(first, dim=1)
        return cls(unit, unit if second is first else normalize(second, dim=1))

    def cosine(self, patch: int) -> Float[Tensor, " m"]:
        """Cosines in [-1, 1]."""
        return (self.second @ self.first[patch]).clamp(-1, 1)


@dataclass(frozen=True)
class AttentionRows:
    """How the next layer's heads share out one patch's attention among the patches of its window.

    That is the softmax over the window's patches alone: what a head spends on prefix tokens is left out, so that each
    row adds up to 1. A block sees one window at a time. Of an image of several, a cell pays the attention of the window
    patches that it is the mean of, in their shares, each within its own window; what lands on window patches is laid on
    the cells that they overlap. Rotations and biases that some models add by position are left out, as in
    `bindkit.backbones.attention_maps`. Queries are divided by the root of their width.
    """

    queries: Float[Tensor, "head window patch d_head"]
    keys: Float[Tensor, "head window patch d_head"]
    plan: ScenePlan
    adds: str = ""
    """What is left out, in words; "" if nothing."""

    @classmethod
    def of(
        cls, maps: AttentionMaps, activations: Float[Tensor, "window patch d_model"], plan: ScenePlan
    ) -> AttentionRows:
        """From the maps of the block behind a layer, and that layer's activations in every window."""
        queries, keys = (maps.by_head(activations, which).contiguous() for which in ("query", "key"))
        return cls(queries.div_(math.sqrt(queries.shape[3])), keys, plan, maps.adds)

    def shares(self, cell: int, head: int | None = None) -> Float[Tensor, " cell"]:
        """What one head of a cell gives to each cell, or the mean over heads."""
        chosen = slice(None) if head is None else slice(head, head + 1)
        weights = cell_weights(cell, self.plan)
        window, patch = weights.nonzero(as_tuple=True)
        asked, offered = self.queries[chosen, window, patch], self.keys[chosen, window]
        rows = torch.einsum("hnd,hnpd->hnp", asked, offered).softmax(-1).mean(0)
        landed = torch.zeros_like(weights).index_add_(0, window, rows * weights[window, patch, None])
        return landing(landed, self.plan)


@dataclass(frozen=True)
class PatchColours:
    """Three principal components of activations as red, green and blue, and the share of the variance in them."""

    colours: UInt8[Tensor, "patch 3"]
    explained: float

    @classmethod
    def of(cls, activations: Float[Tensor, "patch d_model"]) -> PatchColours:
        """Each component's largest loading is positive; its 1st and 99th percentile over patches become 0 and 255."""
        centred = activations.double() - activations.double().mean(0)
        n, width = centred.shape
        # The smaller of the two matrices that share their leading values.
        if width <= n:
            values, vectors = torch.linalg.eigh(centred.T @ centred)
            loadings = vectors[:, -3:].flip(1)
        else:
            values, vectors = torch.linalg.eigh(centred @ centred.T)
            loadings = normalize(centred.T @ vectors[:, -3:].flip(1), dim=0)
        largest = loadings.gather(0, loadings.abs().argmax(0, keepdim=True))
        scores = centred @ (loadings * torch.where(largest < 0, -1.0, 1.0))
        low, high = scores.quantile(0.01, dim=0), scores.quantile(0.99, dim=0)
        shades = ((scores - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
        shades = pad(shades, (0, 3 - shades.shape[1]), value=0.5)
        total = float(values.clamp(min=0).sum())
        explained = float(values[-3:].clamp(min=0).sum()) / total if total else 1.0
        return cls((255 * shades).round().to(torch.uint8), explained)


@dataclass(frozen=True)
class ObjectColours:
    """Patches in the colour of the object that they are found to be of, and how many objects that are."""

    colours: UInt8[Tensor, "patch 3"]
    n: int

    @classmethod
    def of(
        cls, probe: Probe, activations: Float[Tensor, "patch d_model"], grid: ImageGrid, layer: int
    ) -> ObjectColours:
        """By correlation clustering of all pairs; the largest object first in the palette."""
        scores = pair_logits(probe, activations).sigmoid().numpy()
        found = find_objects(Affinity(scores, grid, layer))
        palette = torch.tensor([channels(colour) for colour in PALETTE], dtype=torch.uint8)
        return cls(palette[torch.from_numpy(found.labels - 1).long() % len(palette)], found.n)


Rows = Factors | PairwiseRows | CosineRows | AttentionRows | PatchColours | ObjectColours
"""What maps of one image, or of two, are read from, whichever patch is asked."""
