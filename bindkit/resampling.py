"""Bootstrap over scenes: how much a figure would differ, had other scenes been drawn.

Pairs of one scene share its objects, so that scenes are drawn with replacement, never pairs.

>>> import numpy as np
>>> right = np.array([True, True, False, True, False, False])
>>> resamples = resample_scenes(np.array([0, 0, 0, 1, 1, 2]), n_bootstrap=200)
>>> resamples.share_interval(right, np.ones(6, dtype=bool))
(0.0, 0.6666666666666666)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

N_BOOTSTRAP = 1000
"""Resamples behind every 95 % interval."""

UNKNOWN = (float("nan"), float("nan"))
"""Bounds of what has no interval."""


@dataclass(frozen=True)
class SceneResamples:
    """Resamples of the scenes that some pairs come from; `resample_scenes` draws them.

    Attributes
    ----------
    scene : int array of shape (pair,)
        Number of each pair's scene, from 0 on without gaps.
    draws : float array of shape (resample, scene)
        How often each resample has each scene.
    """

    scene: np.ndarray
    draws: np.ndarray

    @property
    def n_scenes(self) -> int:
        """Scenes that have pairs."""
        return self.draws.shape[1]

    def counts(self, chosen: Bool[np.ndarray, " pair"]) -> Int[np.ndarray, " scene"]:
        """How many of the chosen pairs each scene has."""
        return np.bincount(self.scene[chosen], minlength=self.n_scenes)

    def total(self, chosen: Bool[np.ndarray, " pair"]) -> Float[np.ndarray, " resample"]:
        """How many of the chosen pairs each resample has."""
        return self.draws @ self.counts(chosen)

    def share(
        self, hits: Bool[np.ndarray, " pair"], among: Bool[np.ndarray, " pair"]
    ) -> Float[np.ndarray, " resample"]:
        """Share of `hits` among some pairs, in each resample; NaN where it has none of these pairs."""
        with np.errstate(invalid="ignore"):
            return self.total(hits & among) / self.total(among)

    def share_interval(self, hits: Bool[np.ndarray, " pair"], among: Bool[np.ndarray, " pair"]) -> tuple[float, float]:
        """95 % interval of the share of `hits` among some pairs; NaN unless two scenes have such pairs."""
        if (self.counts(among) > 0).sum() < 2:
            return UNKNOWN
        return interval(self.share(hits, among))


def resample_scenes(scene: Int[np.ndarray, " pair"], n_bootstrap: int = N_BOOTSTRAP, seed: int = 0) -> SceneResamples:
    """Draw as many scenes as there are, with replacement, again and again.

    The draws depend on the number of scenes and the seed alone. Whatever is judged on the same scenes is so resampled
    alike: differences are paired, and figures of one list can be compared.

    Parameters
    ----------
    scene : int array of shape (pair,)
        Which scene each pair comes from; any numbers.
    n_bootstrap : int
        How many resamples.
    seed : int
        Of the draws.
    """
    known, numbers = np.unique(scene, return_inverse=True)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(known), np.full(len(known), 1 / len(known)), size=n_bootstrap)
    return SceneResamples(numbers, draws.astype(np.float64))


def interval(drawn: Float[np.ndarray, " resample"]) -> tuple[float, float]:
    """Percentiles 2.5 and 97.5 of what is finite; NaN where nothing is.

    >>> interval(np.array([0.0, 1.0, float("nan")]))
    (0.025, 0.975)
    """
    finite = drawn[np.isfinite(drawn)]
    if not finite.size:
        return UNKNOWN
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)
