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


def figures_below_chance(row: Mapping[str, Any]) -> list[str]:
    """Which AUROCs of a fit are below chance with their whole interval; none where there is no interval.

    Accuracy is not looked at: below that of always giving the more frequent answer, it says where a probe draws its
    line, not that it has the order of pairs upside down.

    >>> figures_below_chance({"auroc": 0.4, "auroc_high": 0.43, "matched_auroc": 0.45, "matched_auroc_high": 0.52})
    ['auroc']
    """
    highs = {figure: row.get(f"{figure}_high") for figure in _FIGURES}
    return [figure for figure, high in highs.items() if high is not None and not math.isnan(high) and high < CHANCE]


def below_chance(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """A sentence for each row of ``results.csv`` (or of a table made from it) that is below chance.

    >>> row = dict(backbone="vit", layer=3, probe="dot_product", task="pairwise", auroc=0.4, auroc_low=0.38,
    ...            auroc_high=0.43)
    >>> print(*below_chance([row, dict(row, auroc_high=0.52)]))
    BELOW CHANCE: dot_product (pairwise) on vit, layer 3: AUROC 0.400 [0.380, 0.430]; it takes pairs on one object for less alike than pairs on two. If its sign is not learnt, that is a finding about the score; else do not use the fit: it has not settled, its formula lacks an offset, or what holds of its training scenes does not hold of the judged ones.

    Parameters
    ----------
    rows : iterable of mapping
        With ``backbone``, ``layer``, ``probe``, ``task`` and AUROCs with their intervals.
    """  # noqa: E501
    return [
        f"BELOW CHANCE: {row['probe']} ({row.get('task', 'pairwise')}) on {row['backbone']}{_layer(row['layer'])}: "
        + ", ".join(_figure(row, figure) for figure in figures)
        + f"; {BELOW_CHANCE}."
        for row in rows
        if (figures := figures_below_chance(row))
    ]


def warn_below_chance(rows: Iterable[Mapping[str, Any]]) -> None:
    """Say it in the log."""
    for sentence in below_chance(rows):
        logger.warning("%s", sentence)


def _figure(row: Mapping[str, Any], figure: str) -> str:
    return f"{_FIGURES[figure]} {row[figure]:.3f} [{row[f'{figure}_low']:.3f}, {row[f'{figure}_high']:.3f}]"


def _layer(layer: float) -> str:
    return "" if math.isnan(layer) else f", layer {layer:.0f}"
