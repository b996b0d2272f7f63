"""Fits below chance: which they are, and what a reader must be told of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

logger = logging.getLogger(__name__)

CHANCE = 0.5

_FIGURES = {"auroc": "AUROC", "matched_auroc": "AUROC among pairs at equal distance"}

BELOW_CHANCE = (
    "it takes pairs on one object for less alike than pairs on two. If its sign is not learnt, that is a finding about "
    "the score; else do not use the fit: it has not settled, its formula lacks an offset, or what holds of its "
    "training scenes does not hold of the judged ones"
)
"""What it means, for a score that only an offset is learnt of as for a probe that could have learnt its sign."""

BY_DISTANCE = "what it orders rightly among all pairs, it orders by how far apart they are"
"""What it means where the AUROC is below chance among pairs at equal distance alone."""


def figures_below_chance(row: Mapping[str, Any]) -> list[str]:
    """Which AUROCs of a fit are below chance with their whole interval; none where there is no interval.

    Accuracy is not looked at: below that of always giving the more frequent answer, it says where a probe draws its
    line, not that it has the order of pairs upside down.

    >>> figures_below_chance({"auroc": 0.4, "auroc_high": 0.43, "matched_auroc": 0.45, "matched_auroc_high": 0.52})
    ['auroc']
    """
    highs = {figure: row.get(f"{figure}_high") for figure in _FIGURES}
    return [figure for figure, high in highs.items() if high is not None and not math.isnan(high) and high < CHANCE]


def chance_remark(row: Mapping[str, Any]) -> str:
    """What to add to a sentence about a fit that is below chance; empty for any other.

    >>> print(chance_remark({"auroc": 0.6, "auroc_high": 0.7, "matched_auroc": 0.4, "matched_auroc_high": 0.45}))
    BELOW CHANCE AT EQUAL DISTANCE: what it orders rightly among all pairs, it orders by how far apart they are.
    """
    figures = figures_below_chance(row)
    if "auroc" in figures:
        return f"BELOW CHANCE: {BELOW_CHANCE}."
    return f"BELOW CHANCE AT EQUAL DISTANCE: {BY_DISTANCE}." if figures else ""


def below_chance(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """A sentence for each row of ``results.csv`` (or of a table made from it) that is below chance.

    Rows that are so among pairs at equal distance alone share one sentence for each probe: a probe that looks at each
    patch by itself, as ``linear`` does, is so in nearly every layer.

    >>> row = dict(backbone="vit", layer=3, probe="dot_product", task="pairwise", auroc=0.4, auroc_low=0.38,
    ...            auroc_high=0.43)
    >>> print(*below_chance([row, dict(row, auroc_high=0.52)]))
    BELOW CHANCE: dot_product (pairwise) on vit, layer 3: AUROC 0.400 [0.380, 0.430]; it takes pairs on one object for less alike than pairs on two. If its sign is not learnt, that is a finding about the score; else do not use the fit: it has not settled, its formula lacks an offset, or what holds of its training scenes does not hold of the judged ones.
    >>> row |= dict(auroc=0.6, auroc_high=0.7, matched_auroc=0.45, matched_auroc_low=0.42, matched_auroc_high=0.48)
    >>> print(*below_chance([row, dict(row, layer=2, matched_auroc=0.44)]))
    BELOW CHANCE AT EQUAL DISTANCE: dot_product (pairwise) in 2 fits, the lowest on vit, layer 2: AUROC among pairs at equal distance 0.440 [0.420, 0.480]; what it orders rightly among all pairs, it orders by how far apart they are.

    Parameters
    ----------
    rows : iterable of mapping
        With ``backbone``, ``layer``, ``probe``, ``task`` and AUROCs with their intervals.
    """  # noqa: E501
    below = [(row, figures) for row in rows if (figures := figures_below_chance(row))]
    by_distance: dict[str, list[Mapping[str, Any]]] = {}
    for row, figures in below:
        if "auroc" not in figures:
            by_distance.setdefault(_fit(row), []).append(row)
    sentences = [_sentence(row, figures) for row, figures in below if "auroc" in figures]
    for fit, those in by_distance.items():
        lowest = min(those, key=lambda row: row["matched_auroc"])
        sentences.append(
            f"BELOW CHANCE AT EQUAL DISTANCE: {fit} in {len(those)} fit{'s' * (len(those) > 1)}, the lowest "
            f"{_place(lowest)}: {_figure(lowest, 'matched_auroc')}; {BY_DISTANCE}."
        )
    return sentences


def warn_below_chance(rows: Iterable[Mapping[str, Any]]) -> None:
    """Say in the log which fits are below chance over all pairs."""
    for row in rows:
        if "auroc" in (figures := figures_below_chance(row)):
            logger.warning("%s", _sentence(row, figures))


def _sentence(row: Mapping[str, Any], figures: Iterable[str]) -> str:
    said = ", ".join(_figure(row, figure) for figure in figures)
    return f"BELOW CHANCE: {_fit(row)} {_place(row)}: {said}; {BELOW_CHANCE}."


def _fit(row: Mapping[str, Any]) -> str:
    return f"{row['probe']} ({row.get('task', 'pairwise')})"


def _place(row: Mapping[str, Any]) -> str:
    return f"on {row['backbone']}" + ("" if math.isnan(row["layer"]) else f", layer {row['layer']:.0f}")


def _figure(row: Mapping[str, Any], figure: str) -> str:
    return f"{_FIGURES[figure]} {row[figure]:.3f} [{row[f'{figure}_low']:.3f}, {row[f'{figure}_high']:.3f}]"
