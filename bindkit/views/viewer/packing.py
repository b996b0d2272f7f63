"""All affinities of one image and layer in few bytes, every one of them within 0.01, and these as text of a page.

Logits are split into the leading eigenvectors of their matrix, stored as whole numbers, and what these leave of each
affinity is stored as a whole number of steps. So the bound holds for every probe whatever its spectrum; the rank
decides on the size alone and is chosen for the smallest. Decoding one patch's row takes ``rank * n`` products.

What the page does (`unpacking.js`) for the affinity of patches i and j::

    logit    = sum over k of weight[k] * factors[k, i] * factors[k, j]
    affinity = clip(1 / (1 + exp(-logit)) + STEP * residual[i, j], 0, 1)
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

TOLERANCE = 0.01
"""No affinity on the page is further than this from Python's."""
STEP = 0.0198
"""Unit of residuals; half of it, and a little for rounding, stays below the tolerance."""
ALPHABET = "".join(chr(code) for code in range(35, 127) if chr(code) not in "&'<>\\`")[:85]
"""Base 85 without the characters that mean something to HTML or JavaScript; text in it cannot end a script."""

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
    """Affinities of the pairs of `n` patches by `rank` eigenvectors.

    Attributes
    ----------
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


def pack(logits: Float[Tensor, "patch patch"]) -> Packed:
    """Pack the affinities of all pairs of patches; logits may be infinite, not NaN.

    Nearly symmetric ones take half the space: of 1,369 patches 0.2 MB for a fitted quadratic probe, 0.6 MB at the worst
    (a random one).
    """
    # Beyond 30 an affinity is 0 or 1 to twelve digits; infinite logits would have no eigenvectors.
    clipped = logits.detach().cpu().double().clamp(-30, 30)
    n = len(clipped)
    symmetric = bool((clipped - clipped.T).abs().max() <= _SYMMETRIC)
    wanted = _sigmoid(clipped.numpy())
    weights, factors = _cheapest(wanted, *_leading((clipped + clipped.T) / 2))
    predicted = _sigmoid((factors.T * weights.astype(np.float64)) @ factors)
    residuals = np.rint((wanted - predicted) / STEP).astype(np.int16)
    kept = residuals[np.tril_indices(n)] if symmetric else residuals.ravel()
    whole = factors.astype(np.int16)
    planes = (whole & 255).astype(np.uint8).tobytes() + (whole >> 8).astype(np.int8).tobytes()
    # Two residuals a byte, which Huffman codes take to within a few per cent of their entropy; large ones behind.
    large = np.abs(kept) >= _ESCAPE
    halves = np.where(large, _ESCAPE, kept & 15).astype(np.uint8)
    halves = np.append(halves, np.zeros(len(halves) % 2, np.uint8)).reshape(-1, 2)
    pairs = (halves[:, 0] | (halves[:, 1] << 4)).tobytes() + kept[large].astype(np.int8).tobytes()
    return Packed(n, len(weights), symmetric, _deflate(weights.astype("<f4").tobytes() + planes), _deflate(pairs))


def leading_basis(product: Callable[[Tensor], Tensor], size: int, width: int, rounds: int) -> Tensor:
    """Orthonormal directions [size, width] that a symmetric map stretches most, near enough.

    Subspace iteration from a seeded start (Halko, Martinsson & Tropp, 2011), in a fraction of the time that all
    directions of a large matrix take; `product` applies the map to the columns of a basis.
    """
    basis = torch.randn(size, width, generator=torch.Generator().manual_seed(0))
    for _ in range(rounds):
        basis = torch.linalg.qr(product(basis)).Q
    return basis


def _leading(form: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [k] of largest size and their eigenvectors [k, n]; residuals mend what they miss."""
    n, most = len(form), max(_RANKS)
    if n <= 2 * most:
        values, vectors = torch.linalg.eigh(form)
    else:
        single = form.float()
        basis = leading_basis(lambda columns: single @ columns, n, most + 16, rounds=5)
        values, inner = torch.linalg.eigh(basis.T @ (single @ basis))
        vectors = basis @ inner
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
    # The first pass finds the rank, the others the fineness that suits it.
    ranks = [rank for rank in _RANKS if rank <= len(spectrum)]
    for fineness in (_FINENESS[3], *_FINENESS):
        weights, factors = _rounded(spectrum, basis, fineness)
        bits = np.concatenate([[0], np.cumsum([n * _entropy(row) + 40 for row in factors])])
        logits, done = np.zeros((len(rows), n)), 0
        for rank in ranks:
            part = factors[done:rank]
            logits = logits + (part[:, rows].T * weights[done:rank].astype(np.float64)) @ part
            done = rank
            residuals = np.rint((wanted[rows] - _sigmoid(logits)) / STEP)
            cost = bits[rank] + n * n / 2 * _entropy(residuals.ravel())
            best = min(best, (float(cost), rank, fineness))
        ranks = [best[1]]
    weights, factors = _rounded(spectrum, basis, best[2])
    return weights[: best[1]], factors[: best[1]]


def _entropy(values: np.ndarray) -> float:
    """Bits a value."""
    counts = np.bincount((values - values.min()).astype(np.int64))
    shares = counts[counts > 0] / values.size
    return float(-(shares * np.log2(shares)).sum())


def _deflate(content: bytes) -> bytes:
    """The shorter of two ways: with repetitions, or Huffman codes alone, which suit noise."""
    found = []
    for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY):
        squeezer = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
        found.append(squeezer.compress(content) + squeezer.flush())
    return min(found, key=len)


def to_text(content: bytes) -> str:
    """Bytes as text that any HTML page can hold: 5 characters for 4 bytes, where base64 takes 5.33.

    Base 85, big end first, padded with zero bytes to a multiple of four.
    """
    words = np.frombuffer(content + bytes(-len(content) % 4), ">u4").astype(np.int64)
    digits = words[:, None] // 85 ** np.arange(4, -1, -1) % 85
    return np.frombuffer(ALPHABET.encode(), np.uint8)[digits].tobytes().decode()
