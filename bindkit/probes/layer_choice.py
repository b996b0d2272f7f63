"""Which of several layers is the best: one rule for tables, figures, explorer and page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bindkit.probes.protocols import PROTOCOLS, Protocol


def best_position(validated: Sequence[float], judged: Sequence[float]) -> tuple[int | None, bool]:
    """Where the best of several layers stands, and whether the *validation* scenes say so.

    They decide where every layer has an accuracy on them; else accuracies on the judged scenes do, so that the best of
    many layers looks a little better than it is. Of equal layers the first; None where nothing was judged.

    >>> best_position([0.7, 0.9, 0.9], [0.9, 0.8, 0.7]), best_position([0.7, math.nan], [0.6, 0.5])
    ((1, True), (0, False))
    """
    by_validation = bool(validated) and not any(map(math.isnan, validated))
    # Rounded to the digits of results.csv: layers that differ only in the last bits of a mean count as equal.
    scores = [-math.inf if math.isnan(score) else round(score, 6) for score in (validated if by_validation else judged)]
    best = max(scores, default=-math.inf)
    return (None if best == -math.inf else scores.index(best)), by_validation


def validation_accuracy(history: Sequence[Mapping[str, Any]], protocol: Protocol) -> float:
    """Accuracy on the validation scenes of the epoch whose weights were kept; NaN where there were no such scenes."""
    looked = [entry for entry in history if entry["validation_accuracy"] is not None]
    looked = [entry for entry in looked if math.isfinite(entry["validation_loss"])]
    if not looked:
        return math.nan
    scores = [entry["validation_accuracy" if protocol.keep == "accuracy" else "validation_loss"] for entry in looked]
    # Of equal epochs the first is kept.
    kept = scores.index(max(scores) if protocol.keep == "accuracy" else min(scores))
    return float(looked[kept]["validation_accuracy"])


def accuracies_of(fitted_on: Mapping[str, Any]) -> tuple[float, float]:
    """Accuracy on the validation and on the judged scenes, by what a saved probe says of itself; NaN the unknown."""
    judged = (fitted_on.get("metrics") or {}).get("accuracy")
    validated = fitted_on.get("validation_accuracy")
    if validated is None and fitted_on.get("history") and fitted_on.get("protocol") in PROTOCOLS:
        # Older probes have their history alone.
        validated = validation_accuracy(fitted_on["history"], PROTOCOLS[fitted_on["protocol"]])
    return math.nan if validated is None else float(validated), math.nan if judged is None else float(judged)
