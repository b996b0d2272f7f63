"""How well affinities tell pairs on one object from pairs on two: figures and their intervals.

All figures are computed from one flat list of judged pairs. *Twins* are pairs on two different instances of one
class: the hard negatives that similarity alone cannot tell from pairs on one object.

Intervals say how much a figure would differ, had other scenes been drawn. Pairs of one scene share its objects, so that
scenes are left out one at a time (the jackknife), never pairs. Bounds are Student's t of the jackknife's standard
error, of a share on the logit scale, with fewer degrees of freedom where a few scenes make most of that error.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import expit, logit
from scipy.stats import rankdata, t

from bindkit.errors import InvalidParameterError, NonFiniteActivationsError

logger = logging.getLogger(__name__)

MIN_SCENES = 8
"""Scenes that a figure must depend on to have an interval. From 8 on simulated ones held the truth in 92 % of cases and
more (``tests/benchmarks/bench_intervals.py``); with 5 they were half as wide again and hang on each single scene."""

UNKNOWN = (float("nan"), float("nan"))
"""Bounds of what has no interval."""

_FREEDOM = 1.5
"""Degrees of freedom for each of the scenes that, moving the figure alike, would make the same error: of these values
1, 1.5, 2 the largest with which simulated intervals held the truth in 92 % of cases everywhere from 8 scenes on."""

_UNMOVED = 1e-12
"""A figure that changes by less without a scene does not depend on it: differences of sums in another order."""


@dataclass(frozen=True)
class LeftOutScenes:
    """The scenes that some pairs come from, to be left out in turn; `leave_out_scenes` makes it."""

    scene: np.ndarray
    """Number of each pair's scene, from 0 on without gaps."""
    n_scenes: int
    """Scenes that have pairs."""

    def totals(self, counts: np.ndarray) -> np.ndarray:
        """Sums of what each scene has, ``[scene, ...]``: over all scenes in the first row, then over all but each."""
        everything = counts.sum(axis=0, keepdims=True)
        return np.concatenate([everything, everything - counts]).astype(np.float64)

    def share(self, hits: Bool[np.ndarray, " pair"], among: Bool[np.ndarray, " pair"]) -> Float[np.ndarray, " row"]:
        """Share of `hits` among some pairs, in each row; NaN where it has none of these pairs."""
        hit, asked = (np.bincount(self.scene[chosen], minlength=self.n_scenes) for chosen in (hits & among, among))
        with np.errstate(invalid="ignore"):
            return self.totals(hit) / self.totals(asked)

    def share_interval(self, hits: Bool[np.ndarray, " pair"], among: Bool[np.ndarray, " pair"]) -> tuple[float, float]:
        """95 % interval of the share of `hits` among some pairs; NaN where there is no honest one."""
        return interval(self.share(hits, among))


def leave_out_scenes(scene: Int[np.ndarray, " pair"]) -> LeftOutScenes:
    """All scenes, then all but each: the same rows for all that is judged on them, so that differences are paired."""
    known, numbers = np.unique(scene, return_inverse=True)
    return LeftOutScenes(numbers, len(known))


def interval(values: Float[np.ndarray, " row"], within_unit: bool = True) -> tuple[float, float]:
    """95 % interval of a figure, from its value over all scenes and then its values with each scene left out.

    Where it lies within 0..1, unlike a difference of figures, the bounds do too (the logit scale, by the delta method).
    NaN where there is no honest interval: fewer than `MIN_SCENES` scenes move the figure (that have such pairs), none
    does or it is at 0 or 1 (nothing tells how much other scenes would differ), or it cannot be computed without one.
    """
    estimate, moves = values[0], values[1:] - values[0]
    n_moving = int((np.abs(moves) > _UNMOVED).sum())
    if not np.isfinite(values).all() or n_moving < MIN_SCENES or (within_unit and not 0 < estimate < 1):
        return UNKNOWN
    error = np.sqrt((n_moving - 1) / n_moving * (moves**2).sum())
    like_equals = (moves**2).sum() ** 2 / (moves**4).sum()
    half = t.ppf(0.975, min(n_moving - 1, _FREEDOM * like_equals)) * error
    if not within_unit:
        return float(estimate - half), float(estimate + half)
    half /= estimate * (1 - estimate)
    low, high = expit(logit(estimate) + np.array([-half, half]))
    return float(low), float(high)


def mean_interval(values: Float[np.ndarray, " scene"], within_unit: bool = False) -> tuple[float, float]:
    """95 % interval of a mean over scenes, as `interval`."""
    if len(values) < 2:
        return UNKNOWN
    left_out = (values.sum() - values) / (len(values) - 1)
    return interval(np.concatenate([[values.mean()], left_out]), within_unit)


# --- figures ---------------------------------------------------------------------------------------------------------

FIGURES = (
    *("accuracy", "majority_accuracy", "balanced_accuracy", "auroc", "average_precision"),
    *("twins_accuracy", "twins_auroc", "matched_auroc", "matched_twins_auroc"),
)
"""Names of the figures that `judge` gives, each with ``_low`` and ``_high`` beside it."""

_BINS = 1024
_SAMPLED = 1_000_000
"""Pairs that decide where the bins lie."""

LEAST = 5
"""Pairs on one object and pairs on two that a stratum needs to be counted."""

_STRATUM_BINS = 64
"""Bins of equal count that the scores of a stratum fall into, where scenes are left out."""

_CELLS_AT_ONCE = 1 << 22
"""Counts (scenes times bins) that are held at a time."""

_IN_WORDS = {"auroc": "AUROC", "matched_auroc": "AUROC among pairs at equal distance"}

BELOW_CHANCE = (
    "it takes pairs on one object for less alike than pairs on two. If its sign is not learnt, that is a finding about "
    "the score; else do not use the fit: it has not settled, its formula lacks an offset, or what holds of its "
    "training scenes does not hold of the judged ones"
)
"""What it means, for a score that only an offset is learnt of as for a probe that could have learnt its sign."""


@dataclass(frozen=True)
class JudgedPairs:
    """A flat list of pairs, in arrays of shape (pair,): what a probe said of them and what is true."""

    logits: np.ndarray
    """A pair is called *same* where its logit is above 0, unless `said` says otherwise."""
    same: np.ndarray
    """Whether both patches belong to one instance."""
    twins_question: np.ndarray
    """Pairs of one class of which the scene shows several instances: pairs on one of them, and twins."""
    scene: np.ndarray
    """Number of the scene, 0-based."""
    said: np.ndarray | None = None
    """Which pairs are called *same*, where that is not decided by the logit."""
    stratum: np.ndarray | None = None
    """Pairs of one number lie equally far apart (`distance_strata`); without it, no distance-matched figures."""
    group: np.ndarray | None = None
    """Number of the scene's group, where scenes belong together (frames of one video)."""

    @property
    def unit(self) -> np.ndarray:
        """What intervals leave out in turn: scenes, or whole groups of them where there are any."""
        return self.scene if self.group is None else self.group

    @property
    def said_same(self) -> np.ndarray:
        """Which pairs are called *same*."""
        return self.logits > 0 if self.said is None else self.said

    def __post_init__(self) -> None:
        columns = [self.logits, self.same, self.twins_question, self.scene, self.said, self.unit, self.stratum]
        shapes = {np.shape(column) for column in columns if column is not None}
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

        def joined(name: str) -> Any:
            columns = [getattr(part, name) for part in parts]
            return None if any(column is None for column in columns) else np.concatenate(columns)

        def through(name: str) -> np.ndarray:
            starts = np.cumsum([0, *(getattr(part, name).max() + 1 for part in parts[:-1])])
            return np.concatenate([getattr(part, name) + at for part, at in zip(parts, starts, strict=True)])

        columns = {name: joined(name) for name in ("logits", "same", "twins_question", "stratum")}
        group = None if any(part.group is None for part in parts) else through("group")
        return cls(**columns, scene=through("scene"), said=joined("said_same"), group=group)


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a random positive outranks a random negative; ties count half. NaN without both kinds."""
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return float("nan")
    # The Mann-Whitney U statistic.
    rank_sum = rankdata(scores)[positive].sum()
    return float((rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Mean precision over the recall steps, one step a distinct score (no interpolation). NaN without positives."""
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
    """All figures of one list of judged pairs, with 95 % intervals over scenes. Raises InvalidParameterError for none.

    The names of `FIGURES`, each also with ``_low`` and ``_high`` (`bindkit.probes.metrics.interval`). NaN where a
    figure is undefined (no pair on one object, no twins); bounds also where no interval is honest: fewer than
    `bindkit.probes.metrics.MIN_SCENES` scenes that the figure depends on, or a figure of 0 or 1.

    - ``accuracy``: share of pairs judged right (at logit 0, unless ``said`` says otherwise).
    - ``majority_accuracy``: the same for always giving these pairs' more frequent answer.
    - ``balanced_accuracy``: mean of the shares of same and of different pairs judged right.
    - ``auroc``, ``average_precision``: of *same* as the positive answer.
    - ``twins_accuracy``: share of twins judged different. Saying "different" to everything gives 1: read it beside
      ``twins_auroc``, which ranks pairs on one object against twins, classes with several instances in the scene only.
    - ``matched_auroc``, ``matched_twins_auroc``: the same two among pairs that lie equally far apart: AUROC within
      strata of equal patch distance, averaged with weights ``n_same * n_different / (n_same + n_different)``; strata
      with fewer than 5 of either are left out. A probe that knows distances alone is at 0.5.
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
    of the pairs on one object and of twins, so that rare ones keep their ranks. Arrays ``[1 + scene]`` by the names of
    `FIGURES`, NaN where a row has none of the pairs that are asked for. The difference of two probes' figures on the
    same scenes, row by row, is a paired one.
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

    matched = dict.fromkeys(("matched_auroc", "matched_twins_auroc"), np.full(scenes.n_scenes + 1, np.nan))
    matched |= {name: strata.left_out(scenes) for name, strata in pairs.matched.items()}
    positive, negative = histograms(same), histograms(~same)
    from_top, called = positive[:, ::-1], np.cumsum((positive + negative)[:, ::-1], axis=1)
    precision = np.divide(np.cumsum(from_top, axis=1), called, out=np.zeros_like(called), where=called > 0)
    share_same = scenes.share(same, np.ones_like(same))
    with np.errstate(invalid="ignore", divide="ignore"):
        return matched | {
            "accuracy": scenes.share(right, np.ones_like(same)),
            "majority_accuracy": np.maximum(share_same, 1 - share_same),
            "balanced_accuracy": (scenes.share(right, same) + scenes.share(right, ~same)) / 2,
            "auroc": _binned_auroc(positive, negative),
            "average_precision": (from_top * precision).sum(1) / positive.sum(1),
            "twins_accuracy": scenes.share(right, ~same & asked),
            "twins_auroc": _binned_auroc(histograms(same & asked), histograms(~same & asked)),
        }


def _binned_auroc(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    below = np.cumsum(negative, axis=1) - negative
    return (positive * (below + negative / 2)).sum(1) / (positive.sum(1) * negative.sum(1))


def distance_strata(corners: np.ndarray, others: np.ndarray, patch_size: int) -> np.ndarray:
    """Strata of equal distance: squared distances of patches in sixteenths of a squared patch, as whole numbers.

    Offsets between overlapping windows are rounded to a quarter of a patch. Corners ``[pair, (top, left)]`` in pixels.
    """
    quarters = (np.abs(corners.astype(np.int64) - others) * 8 + patch_size) // (2 * patch_size)
    return (quarters**2).sum(1)


@dataclass(frozen=True)
class Strata:
    """Pairs of the strata that have enough of both kinds, sorted by stratum and score; `of` makes them.

    Near patches are mostly of one object and far ones of two, so that a probe which knows nothing but how far two
    patches lie apart ranks pairs well. Within strata of equal distance it is at chance.
    """

    pair: np.ndarray
    """Positions in the list of pairs that was given."""
    positive: np.ndarray
    stratum: np.ndarray
    """Numbers from 0 on without gaps, ascending."""
    rank: np.ndarray
    """Of the score within its stratum, from 0 on; the mean where scores are equal."""

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
        """The figure of all scenes, which say what strata count, then without each; exact up to 64 bins a stratum."""
        n_rows = scenes.n_scenes + 1
        if not self.n_strata:
            return np.full(n_rows, np.nan)
        sizes = np.bincount(self.stratum)
        bins = (self.rank * _STRATUM_BINS / sizes[self.stratum]).astype(np.int64)
        outranked, weight = np.zeros(n_rows), np.zeros(n_rows)
        at_once = max(1, _CELLS_AT_ONCE // (_STRATUM_BINS * n_rows))
        for low in range(0, self.n_strata, at_once):
            n_here = min(at_once, self.n_strata - low)
            part = slice(*np.searchsorted(self.stratum, [low, low + n_here]))
            cell = (self.stratum[part] - low) * _STRATUM_BINS + bins[part]
            cell += scenes.scene[self.pair[part]] * (n_here * _STRATUM_BINS)

            def rows(kind: np.ndarray, cell: np.ndarray = cell, n_here: int = n_here) -> np.ndarray:
                counts = np.bincount(cell[kind], minlength=scenes.n_scenes * n_here * _STRATUM_BINS)
                return scenes.totals(counts.reshape(scenes.n_scenes, n_here, _STRATUM_BINS))

            same, different = rows(self.positive[part]), rows(~self.positive[part])
            below = np.cumsum(different, axis=2) - different
            n_same, n_different = same.sum(2), different.sum(2)
            total = np.maximum(n_same + n_different, 1)
            outranked += ((same * (below + different / 2)).sum(2) / total).sum(1)
            weight += (n_same * n_different / total).sum(1)
        with np.errstate(invalid="ignore"):
            return outranked / weight


def figures_below_chance(row: Mapping[str, Any]) -> list[str]:
    """Which AUROCs of a fit are below chance with their whole interval; none where there is no interval."""
    # Accuracy below that of one answer says where a probe draws its line, not that it has the order upside down.
    highs = {figure: row.get(f"{figure}_high") for figure in _IN_WORDS}
    return [figure for figure, high in highs.items() if high is not None and not math.isnan(high) and high < 0.5]


def warn_below_chance(rows: Iterable[Mapping[str, Any]]) -> None:
    """Say in the log which fits are below chance over all pairs."""
    for row in rows:
        if "auroc" in (figures := figures_below_chance(row)):
            logger.warning("%s", below_chance_sentence(row, figures))


def below_chance_sentence(row: Mapping[str, Any], figures: Iterable[str]) -> str:
    """What is said of a fit of which these figures, AUROC among them, are below chance."""
    fit = f"{row['probe']} ({row.get('task', 'pairwise')})"
    return f"BELOW CHANCE: {fit} {place_and_figures(row, figures)}; {BELOW_CHANCE}."


def place_and_figures(row: Mapping[str, Any], figures: Iterable[str]) -> str:
    """Backbone and layer of a fit, and figures with their intervals."""
    place = f"on {row['backbone']}" + ("" if math.isnan(row["layer"]) else f", layer {row['layer']:.0f}")
    values = {name: [row[f"{name}{bound}"] for bound in ("", "_low", "_high")] for name in figures}
    said = [f"{_IN_WORDS[name]} {value:.3f} [{low:.3f}, {high:.3f}]" for name, (value, low, high) in values.items()]
    return f"{place}: {', '.join(said)}"
