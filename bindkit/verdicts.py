"""The answer in words, computed from the table of best layers."""

from __future__ import annotations

import pandas as pd

from bindkit.scenes.splits import FEW_SCENES


def verdicts(best: pd.DataFrame) -> list[str]:
    """Say of every backbone at its best layer whether its probe beats the majority baseline, and how it does on twins.

    Parameters
    ----------
    best : pandas.DataFrame
        As `bindkit.analysis.best_layers` gives it.

    Returns
    -------
    list of str
        One sentence or two a row.

    Examples
    --------
    >>> row = dict(backbone="vit", objective="random-init", layer=2, accuracy=0.81, accuracy_low=0.79,
    ...            accuracy_high=0.83, majority_accuracy=0.78, auroc=0.8, twins_auroc=0.51, n_scenes=80)
    >>> print(verdicts(pd.DataFrame([row]))[0])
    vit (random-init: never trained, a control): best at layer 2, where 81.0 % of the pairs are judged right [79.0, 83.0], above the 78.0 % of always giving the more frequent answer. AUROC 0.80; on twins 0.51, no better than chance.
    """  # noqa: E501
    return [_sentence(row) for row in best.to_dict("records")]


def _sentence(row: dict) -> str:
    role = row["objective"] if row["objective"] != "random-init" else "random-init: never trained, a control"
    low, high, majority = row["accuracy_low"], row["accuracy_high"], row["majority_accuracy"]
    judged = f"{100 * row['accuracy']:.1f} % of the pairs are judged right"
    if pd.isna(low):
        against = "; there is no interval over a single scene, so nothing can be said against"
    else:
        judged += f" [{100 * low:.1f}, {100 * high:.1f}]"
        against = ", above" if low > majority else ", not above" if high < majority else ", not distinguishable from"
    text = (
        f"{row['backbone']} ({role}): best at layer {row['layer']:.0f}, where {judged}{against} the "
        f"{100 * majority:.1f} % of always giving the more frequent answer. {_over_all(row)}; {_on_twins(row)}."
    )
    n_scenes = row.get("n_scenes")
    if n_scenes is not None and n_scenes < FEW_SCENES:
        text += f" Judged on {n_scenes:.0f} scene{'' if n_scenes == 1 else 's'}: a demonstration, not a measurement."
    return text


def _over_all(row: dict) -> str:
    return "All pairs have one answer, nothing to rank" if pd.isna(row["auroc"]) else f"AUROC {row['auroc']:.2f}"


def _on_twins(row: dict) -> str:
    twins = row["twins_auroc"]
    if pd.isna(twins):
        return "no twins to tell apart"
    if twins < 0.55:
        return f"on twins {twins:.2f}, no better than chance"
    return f"on twins {twins:.2f}, so it tells apart objects that look alike"
