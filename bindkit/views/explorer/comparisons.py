"""What stands beside affinity: cosine similarity, the next layer's attention, principal components as colours.

>>> import torch
>>> x = torch.randn(20, 8)
>>> round(CosineRows.of(x, x).cosine(3)[3].item(), 5)
1.0
>>> PatchColours.of(x).colours.shape
torch.Size([20, 3])
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import layer_norm, normalize

from bindkit.affinities.stitching import cell_weights, landing
from bindkit.backbones.attention import AttentionMaps
from bindkit.scenes.geometry import ScenePlan


@dataclass(frozen=True)
class CosineRows:
    """Cosine similarity of one patch to all.

    Attributes
    ----------
    first, second : float32 tensors of shape (n, d_model) and (m, d_model)
        Activations of length 1.
    """

    first: Float[Tensor, "n d_model"]
    second: Float[Tensor, "m d_model"]

    @classmethod
    def of(cls, first: Float[Tensor, "n d_model"], second: Float[Tensor, "m d_model"]) -> CosineRows:
        """From activations."""
        unit = normalize(first, dim=1)
        return cls(unit, unit if second is first else normalize(second, dim=1))

    @property
    def n_bytes(self) -> int:
        """Memory in bytes."""
        return 4 * (self.first.numel() + (0 if self.second is self.first else self.second.numel()))

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
    `bindkit.backbones.attention_maps`.

    Attributes
    ----------
    queries, keys : float32 tensors of shape (head, window, patch, d_head)
        The queries divided by the root of their width.
    plan : ScenePlan
        How the image was tiled.
    """

    queries: Float[Tensor, "head window patch d_head"]
    keys: Float[Tensor, "head window patch d_head"]
    plan: ScenePlan

    @classmethod
    def of(
        cls, maps: AttentionMaps, activations: Float[Tensor, "window patch d_model"], plan: ScenePlan
    ) -> AttentionRows:
        """From the maps of the block behind a layer, and that layer's activations in every window."""
        width = activations.shape[2]
        seen = layer_norm(activations, (width,), maps.norm_weight, maps.norm_bias, maps.norm_epsilon)
        queries, keys = (
            (seen @ weight.T + bias).unflatten(2, (maps.n_heads, -1)).movedim(2, 0).contiguous()
            for weight, bias in ((maps.query_weight, maps.query_bias), (maps.key_weight, maps.key_bias))
        )
        return cls(queries.div_(math.sqrt(queries.shape[3])), keys, plan)

    @property
    def n_heads(self) -> int:
        """Number of heads."""
        return len(self.queries)

    @property
    def n_bytes(self) -> int:
        """Memory in bytes."""
        return 4 * (self.queries.numel() + self.keys.numel())

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
    """Three principal components of an image's activations as red, green and blue.

    Attributes
    ----------
    colours : uint8 tensor of shape (patch, 3)
    explained : float
        Share of the variance that the three hold.
    """

    colours: UInt8[Tensor, "patch 3"]
    explained: float

    @classmethod
    def of(cls, activations: Float[Tensor, "patch d_model"]) -> PatchColours:
        """From activations.

        Each component's largest loading is positive; its 1st and 99th percentile over the patches become 0 and 255.
        """
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
        shades = torch.nn.functional.pad(shades, (0, 3 - shades.shape[1]), value=0.5)
        total = float(values.clamp(min=0).sum())
        explained = float(values[-3:].clamp(min=0).sum()) / total if total else 1.0
        return cls((255 * shades).round().to(torch.uint8), explained)

    @property
    def n_bytes(self) -> int:
        """Memory in bytes."""
        return self.colours.numel()
