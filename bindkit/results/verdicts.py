"""The answer in words, computed from the table of best layers."""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas as pd

from bindkit.arguments import control_title, is_control
from bindkit.probes.metrics import chance_remark
from bindkit.probes.resampling import MIN_SCENES
from bindkit.results.tables import OVER_CONTROLS, PLAIN, ranked_by, strongest_controls
from bindkit.scenes.splits import FEW_SCENES


def verdicts(best: pd.DataFrame) -> list[str]:
    """Say of every backbone at its best layer whether its probe beats the majority baseline and the controls.

    Over all pairs and on twins, AUROC is set against the control that is strongest there: AUROC among pairs that lie
    equally far apart where the table has it (`bindkit.results.tables.ranked_by`), with the plain one beside it. Where the difference has an
    interval, the sentence follows from that; else the difference is stated as it is, rounded to two digits.

    Parameters
    ----------
    best : pandas.DataFrame
        As `bindkit.results.tables.best_layers` gives it, or with intervals as `bindkit.results.gains.with_gain_intervals` does,
        without the oracle.

    Returns
    -------
    list of str
        One sentence or two a row; a short one for a control.

    Examples
    --------
    >>> row = dict(backbone="vit", objective="random-init", layer=2, accuracy=0.81, accuracy_low=0.79,
    ...            accuracy_high=0.83, majority_accuracy=0.78, auroc=0.8, twins_auroc=0.51, n_scenes=80)
    >>> print(verdicts(pd.DataFrame([row]))[0])
    vit (random-init: never trained, a control): best at layer 2, where 81.0 % of the pairs are judged right [79.0, 83.0], above the 78.0 % of always giving the more frequent answer. AUROC 0.80; on twins 0.51, no better than chance. All this at any distance: the table has no figures at equal distance.
    >>> control = dict(row, backbone="control:position", objective="control", layer=None, auroc=0.7, twins_auroc=0.66)
    >>> above, alone = verdicts(pd.DataFrame([dict(row, objective="self-supervised", twins_auroc=0.86), control]))
    >>> print(above.split("answer. ")[1])
    AUROC 0.80, 0.10 above the strongest control (position); on twins 0.86, 0.20 above the strongest control (position), so it tells apart objects that look alike by more than that. All this at any distance: the table has no figures at equal distance.
    >>> print(alone)
    control (position), read without any model: AUROC 0.70; on twins 0.66.
    """  # noqa: E501
    figures = ranked_by(best)
    against = {figure: strongest_controls(best, figure) for figure in figures}
    sentences = []
    for number, row in enumerate(best.to_dict("records")):
        rivals = [_rival(row, controls.iloc[number], figure) for figure, controls in against.items()]
        sentence = _control_sentence(row, figures) if is_control(row["objective"]) else _sentence(row, rivals)
        sentences.append(f"{sentence} {chance_remark(row)}".rstrip())
    return sentences


_NAMES = {"auroc": "AUROC", "matched_auroc": "AUROC among pairs at equal distance"}

_ROLES = {
    "random-init": ": never trained, a control",
    "common-fate": ": trained to say which patches move together, so a reference for what can be bound",
}
"""What a reader must know of an objective to read its figures rightly."""


class _Rival(NamedTuple):
    """A row's figure, the strongest control in it, and the interval of the difference; NaN what there is not."""

    measure: str
    value: float
    name: str | float
    figure: float
    low: float
    high: float
    is_bounded: bool
    """Whether intervals were asked for, also where there is none."""

    @property
    def is_there(self) -> bool:
        return not pd.isna(self.figure)

    @property
    def title(self) -> str:
        return control_title(str(self.name))

    @property
    def is_unsure(self) -> bool:
        """Whether the interval says that there may be no difference."""
        return self.low <= 0 <= self.high

    @property
    def said(self) -> str:
        """Its name, and the interval of the difference where there is one."""
        if pd.isna(self.low):
            interval = " [no interval: too few scenes differ]" if self.is_bounded else ""
        else:
            interval = f" [{self.low:+.2f}, {self.high:+.2f}]"
        return f"the strongest control ({self.title}){interval}"

    @property
    def behind(self) -> float:
        """By how much it is beaten: rounded as it is said, so that words and figures agree; 0 if unsure."""
        return 0.0 if self.is_unsure else round(self.value - self.figure, 2)


def _rival(row: dict, control: pd.Series, figure: str) -> _Rival:
    ends = [f"{OVER_CONTROLS[figure]}_{end}" for end in ("low", "high")]
    low, high = (row.get(end, math.nan) for end in ends)
    value = row.get(figure, math.nan)
    return _Rival(figure, value, control["backbone"], control[figure], low, high, is_bounded=ends[0] in row)


def _plain(row: dict, measure: str) -> str:
    """The plain figure behind one that is matched for distance."""
    plain = row.get(measure.removeprefix("matched_"))
    return f" ({plain:.2f} at any distance)" if measure.startswith("matched_") and not pd.isna(plain) else ""


def _no_twins(plain: str) -> str:
    return f"too few twins at equal distance{plain}" if plain else "no twins to tell apart"


def _control_sentence(row: dict, figures: tuple[str, str]) -> str:
    pairs, twins = (row.get(figure, math.nan) for figure in figures)
    plain, plain_twins = (_plain(row, figure) for figure in figures)
    if pd.isna(pairs):
        over_all = f"too few pairs at equal distance{plain}" if plain else "all pairs have one answer"
    else:
        over_all = f"{_NAMES[figures[0]]} {pairs:.2f}{plain}"
    on_twins = _no_twins(plain_twins) if pd.isna(twins) else f"on twins {twins:.2f}{plain_twins}"
    return f"control ({control_title(row['backbone'])}), read without any model: {over_all}; {on_twins}."


def _sentence(row: dict, rivals: list[_Rival]) -> str:
    role = row["objective"] + _ROLES.get(row["objective"], "")
    low, high, majority = row["accuracy_low"], row["accuracy_high"], row["majority_accuracy"]
    judged = f"{100 * row['accuracy']:.1f} % of the pairs are judged right"
    judged += "" if pd.isna(low) else f" [{100 * low:.1f}, {100 * high:.1f}]"
    # Scenes differ in their share of the more frequent answer, which the interval of the difference knows.
    above, below = row.get("gain_low", math.nan), row.get("gain_high", math.nan)
    if pd.isna(above):
        above, below = low - majority, high - majority
    against = ", above" if above > 0 else ", not above" if below < 0 else ", not distinguishable from"
    if pd.isna(above):
        n_scenes = row.get("n_scenes", math.nan)
        why = f"below {MIN_SCENES} scenes" if n_scenes < MIN_SCENES else "where too few scenes differ"
        against = f"; there is no interval {why}, so nothing can be said against"
    text = (
        f"{row['backbone']} ({role}): best at layer {row['layer']:.0f}, where {judged}{against} the "
        f"{100 * majority:.1f} % of always giving the more frequent answer. "
        f"{_over_all(row, rivals[0])}; {_on_twins(row, rivals[1])}."
    )
    if rivals[0].measure in PLAIN:
        text += " All this at any distance: the table has no figures at equal distance."
    n_scenes = row.get("n_scenes")
    if n_scenes is not None and n_scenes < FEW_SCENES:
        text += f" Judged on {n_scenes:.0f} scene{'' if n_scenes == 1 else 's'}: a demonstration, not a measurement."
    return text


def _over_all(row: dict, rival: _Rival) -> str:
    if pd.isna(rival.value):
        plain = _plain(row, rival.measure)
        return f"Too few pairs at equal distance{plain}" if plain else "All pairs have one answer, nothing to rank"
    told = f"{_NAMES[rival.measure]} {rival.value:.2f}{_plain(row, rival.measure)}"
    if not rival.is_there:
        return told
    if rival.behind == 0:
        return f"{told}, {'not distinguishable from' if rival.is_unsure else 'no more than'} {rival.said}"
    return f"{told}, {abs(rival.behind):.2f} {'above' if rival.behind > 0 else 'below'} {rival.said}"


def _on_twins(row: dict, rival: _Rival) -> str:
    if pd.isna(rival.value):
        return _no_twins(_plain(row, rival.measure))
    told = f"on twins {rival.value:.2f}{_plain(row, rival.measure)}"
    if rival.value < 0.55:
        return f"{told}, no better than chance"
    if not rival.is_there:
        return f"{told}, so it tells apart objects that look alike"
    if rival.is_unsure:
        return f"{told}, not distinguishable from {rival.said}, which needs no model"
    if rival.behind <= 0:
        return f"{told}, no more than a control has without a model ({rival.title}, {rival.figure:.2f})"
    follows = ", so it tells apart objects that look alike by more than that"
    if rival.is_bounded and pd.isna(rival.low):
        follows = ""
    return f"{told}, {rival.behind:.2f} above {rival.said}{follows}"
