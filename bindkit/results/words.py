"""The words that people read for the names in tables: one for each, in notebooks, on the console and in figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from bindkit.arguments import control_title

DISTRACTORS = "same-class distractors"
"""Pairs of patches on two objects of one class, which similarity cannot tell from pairs on one object."""

BEST_BASELINE = "over baseline"
"""The difference to the strongest baseline without a model, on the same pairs."""

WORDS = {
    "backbone": "model",
    "objective": "pretraining",
    "majority_accuracy": "majority class",
    "auroc": "AUROC",
    "twins_auroc": f"AUROC, {DISTRACTORS}",
    "matched_auroc": "AUROC at equal distance",
    "matched_twins_auroc": f"AUROC at equal distance, {DISTRACTORS}",
    "reference_accuracy": "accuracy as the reference counts",
    "class_accuracy": "class accuracy, patches",
    "matched_iou": "matched IoU, patches",
    "fg_ari": "foreground ARI",
    "mean_best_overlap": "mean best overlap",
    "of": "read from",
    "n_found": "segments",
    "n_true": "objects",
    "n_scenes": "scenes",
    "n_twins": "pairs",
    "n_copies": "pairs of copies",
    "rank": "directions",
    "binding": "probe",
    "similarity": "cosine similarity",
    "beyond_similarity": "difference",
    "share_elsewhere": "share elsewhere",
    "consistency_elsewhere": "consistency elsewhere",
    "at_distance": "at equal distance",
    "partial": "at equal distance and similarity",
    "d_model": "width",
    "train_scenes": "train",
    "validation_scenes": "validation",
    "test_scenes": "test",
}
"""Column -> what stands above it; others stand under their own name."""


def in_words(table: pd.DataFrame, columns: Sequence[str] | None = None, precision: int = 3) -> Any:
    """A table as people read it: named in `WORDS`, models without their directories, empty columns left out.

    Bounds ``FIGURE_low`` and ``FIGURE_high`` become one column; a missing figure is a dash. Gives
    pandas' Styler, whose ``data`` is the table.
    """
    rows = table[list(columns if columns is not None else table)].dropna(axis=1, how="all")
    shown: dict[Any, pd.Series] = {}
    for name, values in rows.items():
        if str(name).endswith("_high"):
            continue
        if (figure := str(name).removesuffix("_low")) != name:
            ends = zip(values, table[f"{figure}_high"], strict=True)
            texts = [None if pd.isna(low) else f"{low:.{precision}f} to {high:.{precision}f}" for low, high in ends]
            shown[f"{WORDS.get(figure, figure)}, 95 % interval"] = pd.Series(texts, rows.index)
        else:
            shown[WORDS.get(str(name), name)] = values.map(control_title) if name == "backbone" else values
    whole = {name: "{:.0f}" for name in ("layer", "scenes", "directions") if name in shown}
    return pd.DataFrame(shown).style.format(whole, precision=precision, na_rep="-").hide(axis="index")
