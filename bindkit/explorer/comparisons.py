"""What stands beside affinity: cosine similarity, the next layer's attention, principal components as colours.

>>> import torch
>>> x = torch.randn(20, 8)
>>> CosineRows.of(x, x).cosine(3)[3].item()
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

from bindkit.probes import AttentionMaps


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
    """How the next layer's heads share out one patch's attention among the patches of the image.

    That is the softmax over the image's patches alone: what a head spends on prefix tokens is left out, so that each
    row adds up to 1. Where one window shows the image these are the block's own weights, so normalised; of several
    windows it is as if the block saw the whole image at once.

    Attributes
    ----------
    queries, keys : float32 tensors of shape (head, patch, d_head)
        The queries divided by the root of their width.
    """

    queries: Float[Tensor, "head patch d_head"]
    keys: Float[Tensor, "head patch d_head"]

    @classmethod
    def of(cls, maps: AttentionMaps, activations: Float[Tensor, "patch d_model"]) -> AttentionRows:
        """From the maps of the block behind a layer, and that layer's activations."""
        n, width = activations.shape
        seen = layer_norm(activations, (width,), maps.norm_weight, maps.norm_bias, maps.norm_epsilon)
        queries = (seen @ maps.query_weight.T + maps.query_bias).reshape(n, maps.n_heads, -1).transpose(0, 1)
        keys = (seen @ maps.key_weight.T + maps.key_bias).reshape(n, maps.n_heads, -1).transpose(0, 1)
        return cls((queries / math.sqrt(queries.shape[2])).contiguous(), keys.contiguous())

    @property
    def n_heads(self) -> int:
        """Number of heads."""
        return len(self.queries)

    @property
    def n_bytes(self) -> int:
        """Memory in bytes."""
        return 4 * (self.queries.numel() + self.keys.numel())

    def shares(self, patch: int, head: int | None = None) -> Float[Tensor, " patch"]:
        """What one head gives to each patch, or the mean over heads."""
        chosen = slice(None) if head is None else slice(head, head + 1)
        logits = (self.keys[chosen] @ self.queries[chosen, patch, :, None])[..., 0]
        return logits.softmax(-1).mean(0)


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
