"""AUROC among pairs that lie equally far apart: what is left of a figure once proximity is taken out of it.

Near patches are mostly of one object and far ones of two, so that a probe which knows nothing but how far two patches
lie apart ranks pairs well. Within strata of equal distance it is at chance.

>>> import numpy as np
>>> scores, same = np.array([9.0, 8.0, 2.0, 1.0]), np.array([True, False, True, False])
>>> stratum = np.array([1, 1, 2, 2])
>>> Strata.of(scores, same, stratum, least=1).auroc()
1.0
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from bindkit.probes.resampling import LeftOutScenes

LEAST = 5
"""Pairs on one object and pairs on two that a stratum needs to be counted."""

_BINS = 64
"""Bins of equal count that the scores of a stratum fall into, where scenes are left out."""

_CELLS_AT_ONCE = 1 << 22
"""Counts (scenes times bins) that are held at a time."""


def distance_strata(corners: np.ndarray, others: np.ndarray, patch_size: int) -> np.ndarray:
    """Strata of equal distance: squared distances of patches in sixteenths of a squared patch, as whole numbers.

    Offsets down and across are exact where they are multiples of a quarter of a patch, as all within one window are;
    those between overlapping windows are rounded to it.

    >>> distance_strata(np.array([[0, 0], [0, 0]]), np.array([[16, 8], [0, 3]]), patch_size=8).tolist()
    [80, 4]

    Parameters
    ----------
    corners, others : int arrays of shape (pair, 2)
        ``(top, left)`` in pixels of the resized scene.
    patch_size : int
        In pixels.
    """
    quarters = (np.abs(corners.astype(np.int64) - others) * 8 + patch_size) // (2 * patch_size)
    return (quarters**2).sum(1)


@dataclass(frozen=True)
class Strata:
    """Pairs of the strata that have enough of both kinds, sorted by stratum and score; `of` makes them.

    Attributes
    ----------
    pair : int array of shape (pair,)
        Positions in the list of pairs that was given.
    positive : bool array of shape (pair,)
    stratum : int array of shape (pair,)
        Numbers from 0 on without gaps, ascending.
    rank : float array of shape (pair,)
        Of the score within its stratum, from 0 on; the mean where scores are equal.
    """

    pair: np.ndarray
    positive: np.ndarray
    stratum: np.ndarray
    rank: np.ndarray

    @classmethod
    def of(
        cls,
        scores: Float[np.ndarray, " pair"],
        positive: Bool[np.ndarray, " pair"],
        stratum: Int[np.ndarray, " pair"],
        chosen: Bool[np.ndarray, " pair"] | None = None,
        least: int = LEAST,
    ) -> Strata:
        """Sort the chosen pairs (all, if not said) into strata; leave out those with fewer than `least` of a kind."""
        pair = np.arange(len(scores)) if chosen is None else np.flatnonzero(chosen)
        found, positives = stratum[pair], positive[pair].astype(bool)
        n_strata = int(found.max(initial=-1)) + 1
        n_positive = np.bincount(found[positives], minlength=n_strata)
        enough = np.minimum(n_positive, np.bincount(found, minlength=n_strata) - n_positive) >= least
        keep = enough[found]
        pair, number = pair[keep], (np.cumsum(enough) - 1)[found[keep]]
        # Small numbers are sorted by their digits, much faster than pairs of keys.
        number = number.astype(np.uint16 if enough.sum() < 1 << 16 else np.int64)
        order = np.argsort(scores[pair])
        order = order[np.argsort(number[order], kind="stable")]
        pair, number = pair[order], number[order].astype(np.int64)
        # Runs of equal stratum and score share their mean position.
        new = np.ones(len(pair), dtype=bool)
        new[1:] = (np.diff(number) != 0) | (np.diff(scores[pair]) != 0)
        first = np.flatnonzero(new)
        last = np.append(first[1:], len(pair)) - 1
        position = ((first + last) / 2)[np.cumsum(new) - 1]
        starts = np.searchsorted(number, np.arange(number.max(initial=-1) + 1))
        return cls(pair, positive[pair].astype(bool), number, position - starts[number] if len(pair) else position)

    @property
    def n_strata(self) -> int:
        """Strata that count."""
        return int(self.stratum.max(initial=-1)) + 1

    def auroc(self) -> float:
        """Mean AUROC of strata, weighted by ``n_same * n_different / (n_same + n_different)``; NaN without any."""
        if not self.n_strata:
            return float("nan")
        n_positive = np.bincount(self.stratum[self.positive], minlength=self.n_strata).astype(float)
        n = np.bincount(self.stratum, minlength=self.n_strata)
        ranks = np.bincount(self.stratum[self.positive], self.rank[self.positive], minlength=self.n_strata)
        # Mann-Whitney's U, with ranks that begin at 0.
        outranked = ranks - n_positive * (n_positive - 1) / 2
        return float((outranked / n).sum() / (n_positive * (n - n_positive) / n).sum())

    def left_out(self, scenes: LeftOutScenes) -> Float[np.ndarray, " row"]:
        """The figure of all scenes, then without each, exact up to 64 bins a stratum; NaN where no such pair is.

        Which strata count is decided by all scenes.

        Parameters
        ----------
        scenes : LeftOutScenes
            Of all pairs that were given.
        """
        n_rows = scenes.n_scenes + 1
        if not self.n_strata:
            return np.full(n_rows, np.nan)
        sizes = np.bincount(self.stratum)
        bins = (self.rank * _BINS / sizes[self.stratum]).astype(np.int64)
        outranked, weight = np.zeros(n_rows), np.zeros(n_rows)
        at_once = max(1, _CELLS_AT_ONCE // (_BINS * n_rows))
        for low in range(0, self.n_strata, at_once):
            n_here = min(at_once, self.n_strata - low)
            part = slice(*np.searchsorted(self.stratum, [low, low + n_here]))
            cell = (self.stratum[part] - low) * _BINS + bins[part]
            cell += scenes.scene[self.pair[part]] * (n_here * _BINS)

            def rows(kind: np.ndarray, cell: np.ndarray = cell, n_here: int = n_here) -> np.ndarray:
                counts = np.bincount(cell[kind], minlength=scenes.n_scenes * n_here * _BINS)
                return scenes.totals(counts.reshape(scenes.n_scenes, n_here, _BINS))

            same, different = rows(self.positive[part]), rows(~self.positive[part])
            below = np.cumsum(different, axis=2) - different
            n_same, n_different = same.sum(2), different.sum(2)
            total = np.maximum(n_same + n_different, 1)
            outranked += ((same * (below + different / 2)).sum(2) / total).sum(1)
            weight += (n_same * n_different / total).sum(1)
        with np.errstate(invalid="ignore"):
            return outranked / weight
