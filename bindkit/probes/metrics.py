"""How well affinities tell pairs on one object from pairs on two: figures and their intervals.

All figures are computed from one flat list of judged pairs. *Twins* are pairs on two different instances of one
class: the hard negatives that similarity alone cannot tell from pairs on one object.

>>> import numpy as np
>>> pairs = JudgedPairs(
...     logits=np.array([2.0, 1.0, -1.0, 0.5]),
...     same=np.array([True, True, False, False]),
...     twins_question=np.array([True, False, False, True]),
...     scene=np.array([0, 0, 1, 1]),
... )
>>> figures = judge(pairs)
>>> figures["accuracy"], figures["auroc"], figures["twins_accuracy"], figures["twins_auroc"]
(0.75, 1.0, 0.0, 1.0)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import rankdata

from bindkit.errors import InvalidParameterError, NonFiniteActivationsError
from bindkit.probes.matching import Strata
from bindkit.probes.resampling import interval, leave_out_scenes

FIGURES = (
    "accuracy",
    "majority_accuracy",
    "balanced_accuracy",
    "auroc",
    "average_precision",
    "twins_accuracy",
    "twins_auroc",
    "matched_auroc",
    "matched_twins_auroc",
)
"""Names of the figures that `judge` gives, each with ``_low`` and ``_high`` beside it."""

_BINS = 1024
_SAMPLED = 1_000_000
"""Pairs that decide where the bins lie."""


@dataclass(frozen=True)
class JudgedPairs:
    """A flat list of pairs with what a probe said of them and what is true.

    Attributes
    ----------
    logits : float array of shape (pair,)
        A pair is called *same* where its logit is above 0, unless `said` says otherwise.
    same : bool array of shape (pair,)
        Whether both patches belong to one instance.
    twins_question : bool array of shape (pair,)
        Pairs of one class of which the scene shows several instances: pairs on one of them, and twins.
    scene : int array of shape (pair,)
        Number of the scene, 0-based.
    said : bool array of shape (pair,), optional
        Which pairs are called *same*, where that is not decided by the logit.
    stratum : int array of shape (pair,), optional
        Pairs of one number lie equally far apart (`bindkit.probes.matching.distance_strata`); without it there are no
        distance-matched figures.
    group : int array of shape (pair,), optional
        Number of the scene's group, where scenes belong together (frames of one video).
    """

    logits: np.ndarray
    same: np.ndarray
    twins_question: np.ndarray
    scene: np.ndarray
    said: np.ndarray | None = None
    stratum: np.ndarray | None = None
    group: np.ndarray | None = None

    @property
    def unit(self) -> np.ndarray:
        """What intervals leave out in turn: scenes, or whole groups of them where there are any."""
        return self.scene if self.group is None else self.group

    @property
    def said_same(self) -> np.ndarray:
        """Which pairs are called *same*."""
        return self.logits > 0 if self.said is None else self.said

    def __post_init__(self) -> None:
        columns = [self.logits, self.same, self.twins_question, self.scene, self.said_same, self.unit]
        columns += [] if self.stratum is None else [self.stratum]
        shapes = {np.shape(column) for column in columns}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1:
            raise InvalidParameterError(f"judged pairs are arrays of one shape (pair,), got {sorted(shapes)}")
        if not np.isfinite(self.logits).all():
            raise NonFiniteActivationsError(
                "a probe gave NaN or infinite logits; look at the activations (cache.verify()) and the learning rate"
            )

    def __len__(self) -> int:
        return len(self.logits)

    @cached_property
    def matched(self) -> dict[str, Strata]:
        """Strata of equal distance by the figure that they are for; empty where nobody said how far pairs lie apart."""
        if self.stratum is None:
            return {}
        chosen = {"matched_auroc": None, "matched_twins_auroc": self.twins_question.astype(bool)}
        same = self.same.astype(bool)
        return {name: Strata.of(self.logits, same, self.stratum, asked) for name, asked in chosen.items()}

    @classmethod
    def together(cls, parts: Sequence[JudgedPairs]) -> JudgedPairs:
        """Lists of different scenes as one; scenes and groups are numbered through."""
        if len(parts) == 1:
            return parts[0]

        def through(name: str) -> np.ndarray:
            starts = np.cumsum([0, *(getattr(part, name).max() + 1 for part in parts)])
            return np.concatenate([getattr(part, name) + at for part, at in zip(parts, starts, strict=False)])

        columns = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("logits", "same", "twins_question")
        }
        columns["said"] = np.concatenate([part.said_same for part in parts])
        if all(part.stratum is not None for part in parts):
            columns["stratum"] = np.concatenate([part.stratum for part in parts])
        group = None if any(part.group is None for part in parts) else through("group")
        return cls(**columns, scene=through("scene"), group=group)


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a random positive outranks a random negative; ties count half. NaN without both kinds.

    The Mann-Whitney U statistic over ``n_positive * n_negative``.

    >>> import numpy as np
    >>> auroc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True]))
    0.875
    """
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return float("nan")
    rank_sum = rankdata(scores)[positive].sum()
    return float((rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Mean precision over the recall steps, one step a distinct score (no interpolation). NaN without positives.

    >>> import numpy as np
    >>> round(average_precision(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])), 4)
    0.8333
    """
    n_positive = int(positive.sum())
    if not n_positive:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked = positive[order]
    last_of_tie = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(ranked)[last_of_tie]
    precision = hits / (last_of_tie + 1)
    return float((np.diff(hits, prepend=0) * precision).sum() / n_positive)


def _share(part: np.ndarray) -> float:
    return float(part.mean()) if part.size else float("nan")


def judge(pairs: JudgedPairs) -> dict[str, float]:
    """All figures of one list of judged pairs, with 95 % intervals over scenes.

    Parameters
    ----------
    pairs : JudgedPairs
        At least one pair.

    Returns
    -------
    dict
        The names of `FIGURES`, each also with ``_low`` and ``_high`` (`bindkit.probes.resampling.interval`). NaN where
        a figure is undefined (no pair on one object, no twins); bounds also where no interval is honest: fewer than
        `bindkit.probes.resampling.MIN_SCENES` scenes that the figure depends on, or a figure of 0 or 1.

        - ``accuracy``: share of pairs judged right (at logit 0, unless ``said`` says otherwise).
        - ``majority_accuracy``: the same for always giving these pairs' more frequent answer.
        - ``balanced_accuracy``: mean of the shares of same and of different pairs judged right.
        - ``auroc``, ``average_precision``: of *same* as the positive answer.
        - ``twins_accuracy``: share of twins judged different. Saying "different" to everything gives 1: read it beside
          ``twins_auroc``, which ranks pairs on one object against twins, classes with several instances in the
          scene only.
        - ``matched_auroc``, ``matched_twins_auroc``: the same two among pairs that lie equally far apart: AUROC within
          strata of equal patch distance, averaged with weights ``n_same * n_different / (n_same + n_different)``;
          strata with fewer than 5 of either are left out. A probe that knows distances alone is at 0.5.

    Raises
    ------
    InvalidParameterError
        For an empty list of pairs.
    """
    if not len(pairs):
        raise InvalidParameterError("there is no pair to judge; the split has no scene with two usable patches")
    same = pairs.same.astype(bool)
    right = pairs.said_same == same
    twins = pairs.twins_question & ~same
    asked = pairs.twins_question.astype(bool)
    figures = {
        "accuracy": _share(right),
        "majority_accuracy": max(_share(same), _share(~same)),
        "balanced_accuracy": (_share(right[same]) + _share(right[~same])) / 2,
        "auroc": auroc(pairs.logits, same),
        "average_precision": average_precision(pairs.logits, same),
        "twins_accuracy": _share(right[twins]),
        "twins_auroc": auroc(pairs.logits[asked], same[asked]),
    }
    for name in ("matched_auroc", "matched_twins_auroc"):
        figures[name] = pairs.matched[name].auroc() if name in pairs.matched else float("nan")
    for name, values in left_out(pairs).items():
        figures[f"{name}_low"], figures[f"{name}_high"] = interval(values)
    return figures


def left_out(pairs: JudgedPairs) -> dict[str, np.ndarray]:
    """Every figure over all scenes and with each scene left out in turn, by name: what `interval` takes.

    Accuracies are exact; ranks are exact up to the bin: 1,024 bins of equal count, and as many again around quantiles
    of the pairs on one object and of twins, so that rare ones keep their ranks.
    The difference of two probes' figures on the same scenes, row by row, is a paired one.

    Parameters
    ----------
    pairs : JudgedPairs
        At least one pair.

    Returns
    -------
    dict
        Arrays of shape (1 + scene,) by the names of `FIGURES`, NaN where a row has none of the pairs that are asked
        for.
    """
    scenes = leave_out_scenes(pairs.unit)
    rng = np.random.default_rng(0)
    same, asked = pairs.same.astype(bool), pairs.twins_question.astype(bool)

    def quantiles(chosen: np.ndarray, n_bins: int) -> np.ndarray:
        found = pairs.logits[chosen]
        sample = found if len(found) <= _SAMPLED else rng.choice(found, _SAMPLED)
        return np.quantile(sample, np.linspace(0, 1, n_bins), method="nearest") if len(found) else found

    rare = np.concatenate([quantiles(same, _BINS // 4), quantiles(~same & asked, _BINS // 4)])
    below = np.nextafter(rare, np.array(-np.inf, dtype=rare.dtype))  # a bin of its own for each of few
    edges = np.unique(np.concatenate([quantiles(np.ones_like(same), _BINS), rare, below]))
    slot = np.searchsorted(edges, pairs.logits, side="left")
    n_slots = len(edges) + 1
    right = pairs.said_same == same

    def histograms(chosen: np.ndarray) -> np.ndarray:
        counts = np.bincount(scenes.scene[chosen] * n_slots + slot[chosen], minlength=scenes.n_scenes * n_slots)
        return scenes.totals(counts.reshape(scenes.n_scenes, n_slots))

    unknown = np.full(scenes.n_scenes + 1, np.nan)
    matched = {name: unknown for name in ("matched_auroc", "matched_twins_auroc")}
    matched |= {name: strata.left_out(scenes) for name, strata in pairs.matched.items()}
    positive, negative = histograms(same), histograms(~same)
    share_same = scenes.share(same, np.ones_like(same))
    with np.errstate(invalid="ignore", divide="ignore"):
        return matched | {
            "accuracy": scenes.share(right, np.ones_like(same)),
            "majority_accuracy": np.maximum(share_same, 1 - share_same),
            "balanced_accuracy": (scenes.share(right, same) + scenes.share(right, ~same)) / 2,
            "auroc": _binned_auroc(positive, negative),
            "average_precision": _binned_average_precision(positive, negative),
            "twins_accuracy": scenes.share(right, ~same & asked),
            "twins_auroc": _binned_auroc(histograms(same & asked), histograms(~same & asked)),
        }


def _binned_auroc(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    below = np.cumsum(negative, axis=1) - negative
    return (positive * (below + negative / 2)).sum(1) / (positive.sum(1) * negative.sum(1))


def _binned_average_precision(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    from_top = positive[:, ::-1]
    called = np.cumsum(from_top + negative[:, ::-1], axis=1)
    precision = np.divide(np.cumsum(from_top, axis=1), called, out=np.zeros_like(called), where=called > 0)
    return (from_top * precision).sum(1) / positive.sum(1)
