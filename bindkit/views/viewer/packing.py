"""All affinities of one image and layer in few bytes, every one of them within 0.01.

Logits are split into the leading eigenvectors of their matrix, stored as whole numbers, and what these leave of each
affinity is stored as a whole number of steps. So the bound holds for every probe whatever its spectrum; the rank
decides on the size alone and is chosen for the smallest. Decoding one patch's row takes ``rank * n`` products.

>>> import torch
>>> logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
>>> packed = pack(logits + logits.T)
>>> bool(np.abs(packed.scores() - (logits + logits.T).sigmoid().numpy()).max() < TOLERANCE)
True

What the page does, and `Packed.scores` in Python, for the affinity of patches i and j::

    logit    = sum over k of weight[k] * factors[k, i] * factors[k, j]
    affinity = clip(1 / (1 + exp(-logit)) + STEP * residual[i, j], 0, 1)
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

TOLERANCE = 0.01
"""No affinity on the page is further than this from Python's."""
STEP = 0.0198
"""Unit of residuals; half of it, and a little for rounding, stays below the tolerance."""

_RANKS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 48, 56, 64, 80, 96, 128, 160, 192)
_FINENESS = (1 / 30, 1 / 60, 1 / 100, 1 / 150, 1 / 220, 1 / 330)
"""Error in a logit that one rounded factor is allowed, about; finer factors leave smaller residuals."""
_SAMPLED_ROWS = 128
_ESCAPE = 8
"""Of the sixteen values of a half-byte, the one that says: the residual is larger and stands at the end."""
_SYMMETRIC = 1e-3
"""Logits of the two orders of a pair may differ by so much (it is added to nobody's error: residuals see to it)."""


@dataclass(frozen=True)
class Packed:
    """Affinities of the pairs of `n` patches.

    Attributes
    ----------
    n : int
        Patches.
    rank : int
        Eigenvectors kept.
    symmetric : bool
        Whether residuals are stored for pairs i >= j only.
    factors : bytes
        Deflated: `rank` float32 weights, then the low bytes and the high bytes of the int16 factors [rank, n].
    residuals : bytes
        Deflated: two residuals a byte, the earlier in the lower half, then those beyond -7..7 as int8.
    """

    n: int
    rank: int
    symmetric: bool
    factors: bytes
    residuals: bytes

    @property
    def n_bytes(self) -> int:
        """Size of both parts."""
        return len(self.factors) + len(self.residuals)

    def scores(self) -> np.ndarray:
        """Affinities of all pairs as float64 [n, n], by the arithmetic of the page."""
        body = np.frombuffer(zlib.decompress(self.factors), np.uint8)
        weights = body[: 4 * self.rank].view("<f4").astype(np.float64)
        low, high = body[4 * self.rank :].reshape(2, self.rank, self.n)
        factors = (low.astype(np.int16) | (high.astype(np.int16) << 8)).astype(np.float64)
        shape = np.tril_indices(self.n) if self.symmetric else tuple(np.indices((self.n, self.n)).reshape(2, -1))
        n_pairs = len(shape[0])
        body = np.frombuffer(zlib.decompress(self.residuals), np.uint8)
        pairs = body[: (n_pairs + 1) // 2]
        halves = np.stack([pairs & 15, pairs >> 4], axis=1).ravel()[:n_pairs].astype(np.int16)
        values = np.where(halves >= _ESCAPE, halves - 16, halves)
        values[halves == _ESCAPE] = body[len(pairs) :].view(np.int8)
        residuals = np.zeros((self.n, self.n))
        residuals[shape] = values
        if self.symmetric:
            residuals[shape[::-1]] = values
        return np.clip(_sigmoid((factors.T * weights) @ factors) + STEP * residuals, 0, 1)


def pack(logits: Float[Tensor, "patch patch"]) -> Packed:
    """Pack the affinities of all pairs of patches.

    Parameters
    ----------
    logits : float tensor
        Finite or infinite, not NaN. Nearly symmetric ones take half the space.

    Returns
    -------
    Packed
        Of 1,369 patches: 0.2 MB for a fitted quadratic probe, 0.6 MB at the worst (a random one).
    """
    # Beyond 30 an affinity is 0 or 1 to twelve digits; infinite logits would have no eigenvectors.
    clipped = logits.detach().cpu().double().clamp(-30, 30)
    n = len(clipped)
    symmetric = bool((clipped - clipped.T).abs().max() <= _SYMMETRIC)
    spectrum, basis = _leading((clipped + clipped.T) / 2)
    wanted = _sigmoid(clipped.numpy())
    weights, factors = _cheapest(wanted, spectrum, basis)
    predicted = _sigmoid((factors.T * weights.astype(np.float64)) @ factors)
    residuals = np.rint((wanted - predicted) / STEP).astype(np.int16)
    kept = residuals[np.tril_indices(n)] if symmetric else residuals.ravel()
    whole = factors.astype(np.int16)
    planes = (whole & 255).astype(np.uint8).tobytes() + (whole >> 8).astype(np.int8).tobytes()
    return Packed(
        n, len(weights), symmetric, _deflate(weights.astype("<f4").tobytes() + planes), _deflate(_half_bytes(kept))
    )


def _leading(form: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [k] of largest size and their eigenvectors [k, n], near enough: residuals mend what they miss.

    A few rounds of subspace iteration (Halko, Martinsson & Tropp, 2011) find them in a fraction of the time that all
    of a large matrix take.
    """
    n, most = len(form), max(_RANKS)
    if n <= 2 * most:
        values, vectors = torch.linalg.eigh(form)
    else:
        single = form.float()
        block = torch.randn(n, most + 16, generator=torch.Generator().manual_seed(0))
        for _ in range(5):
            block = torch.linalg.qr(single @ block).Q
        values, inner = torch.linalg.eigh(block.T @ (single @ block))
        vectors = block @ inner
    order = values.abs().argsort(descending=True)[:most]
    order = order[values[order].abs() > 1e-6 * max(1.0, float(values.abs().max()))]
    return values[order].double().numpy(), vectors[:, order].T.double().numpy()


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def _rounded(spectrum: np.ndarray, basis: np.ndarray, fineness: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights [k] and whole factors [k, n] of eigenvectors: the larger the eigenvalue, the finer its steps."""
    scaled = basis * np.sqrt(np.abs(spectrum))[:, None]
    spread = np.sqrt(np.abs(spectrum) / basis.shape[1])
    steps = np.maximum(fineness / spread, np.abs(scaled).max(axis=1, initial=0) / 32767)
    weights = (np.sign(spectrum) * steps**2).astype(np.float32)
    return weights, np.rint(scaled / steps[:, None])


def _cheapest(wanted: np.ndarray, spectrum: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights and factors of the rank and fineness that take the fewest bytes, as judged on some rows."""
    n = len(wanted)
    rows = np.unique(np.linspace(0, n - 1, _SAMPLED_ROWS).astype(int))
    best = (np.inf, 0, _FINENESS[0])
    rank = None
    for fineness in (_FINENESS[3], *_FINENESS):
        weights, factors = _rounded(spectrum, basis, fineness)
        bits = np.concatenate([[0], np.cumsum([n * _entropy(row) + 40 for row in factors])])
        # The first pass finds the rank, the others the fineness that suits it.
        ranks = [r for r in _RANKS if r <= len(spectrum)] if rank is None else [rank]
        for tried, logits in _growing(weights, factors, rows, ranks):
            residuals = np.rint((wanted[rows] - _sigmoid(logits)) / STEP)
            cost = bits[tried] + n * n / 2 * _entropy(residuals.ravel())
            best = min(best, (float(cost), tried, fineness))
        rank = best[1]
    weights, factors = _rounded(spectrum, basis, best[2])
    return weights[: best[1]], factors[: best[1]]


def _growing(
    weights: np.ndarray, factors: np.ndarray, rows: np.ndarray, ranks: list[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Logits of some rows by ever more factors."""
    logits, done = np.zeros((len(rows), factors.shape[1])), 0
    for rank in ranks:
        part = factors[done:rank]
        logits = logits + (part[:, rows].T * weights[done:rank].astype(np.float64)) @ part
        done = rank
        yield rank, logits


def _entropy(values: np.ndarray) -> float:
    """Bits a value."""
    counts = np.bincount((values - values.min()).astype(np.int64))
    shares = counts[counts > 0] / values.size
    return float(-(shares * np.log2(shares)).sum())


def _half_bytes(residuals: np.ndarray) -> bytes:
    """Two residuals a byte, which Huffman codes take to within a few per cent of their entropy; large ones behind."""
    large = np.abs(residuals) >= _ESCAPE
    halves = np.where(large, _ESCAPE, residuals & 15).astype(np.uint8)
    halves = np.append(halves, np.zeros(len(halves) % 2, np.uint8)).reshape(-1, 2)
    return (halves[:, 0] | (halves[:, 1] << 4)).tobytes() + residuals[large].astype(np.int8).tobytes()


def _deflate(content: bytes) -> bytes:
    """The shorter of two ways: with repetitions, or Huffman codes alone, which suit noise."""
    found = []
    for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY):
        squeezer = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
        found.append(squeezer.compress(content) + squeezer.flush())
    return min(found, key=len)
