"""The answer in words, computed from the table of best layers: each comparison has a status, each status a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from bindkit.arguments import control_title, is_control
from bindkit.probes.metrics import chance_remark
from bindkit.probes.resampling import MIN_SCENES
from bindkit.results.tables import OVER_CONTROLS, PLAIN, ranked_by, strongest_controls
from bindkit.results.words import DISTRACTORS
from bindkit.scenes.splits import FEW_SCENES

_ROLES = {
    "random-init": ": never trained, a baseline",
    "common-fate": ": trained to say which patches move together, so a reference for what can be bound",
}
"""What a reader must know of an objective to read its figures rightly."""

_NO_BETTER_THAN_CHANCE = 0.55

_OVER_MAJORITY = {
    "above": ", above the {majority}",
    "below": ", not above the {majority}",
    "not told apart": ", not distinguishable from the {majority}",
    "none": "; there is no interval where too few scenes differ, so nothing can be said against the {majority}",
    "too few": f"; there is no interval below {MIN_SCENES} scenes, so nothing can be said against the {{majority}}",
}
"""Status of a row's accuracy beside that of always giving the more frequent answer -> what is said of it."""

_OVER_ALL = {
    "one answer": "All pairs have one answer, nothing to rank",
    "too few": "Too few pairs at equal distance{plain}",
    "none": "{name} {value:.2f}{plain}",
    "above": "{name} {value:.2f}{plain}, {gap:.2f} above {rival}",
    "above, no interval": "{name} {value:.2f}{plain}, {gap:.2f} above {rival}",
    "equal": "{name} {value:.2f}{plain}, no more than {rival}",
    "below": "{name} {value:.2f}{plain}, {gap:.2f} below {rival}",
    "not told apart": "{name} {value:.2f}{plain}, not distinguishable from {rival}",
}
"""Status of a row's AUROC beside the strongest control's -> what is said of it."""

_ON_TWINS = {
    "one answer": "no same-class distractors",
    "too few": "too few same-class distractors at equal distance{plain}",
    "chance": "on {distractors} {value:.2f}{plain}, no better than chance",
    "none": "on {distractors} {value:.2f}{plain}, so it tells apart objects that look alike",
    "above": "on {distractors} {value:.2f}{plain}, {gap:.2f} above {rival}, so it tells apart objects that look alike "
    "by more than that",
    "above, no interval": "on {distractors} {value:.2f}{plain}, {gap:.2f} above {rival}",
    "equal": "on {distractors} {value:.2f}{plain}, no more than a baseline has ({title}, {control:.2f})",
    "below": "on {distractors} {value:.2f}{plain}, no more than a baseline has ({title}, {control:.2f})",
    "not told apart": "on {distractors} {value:.2f}{plain}, not distinguishable from {rival}, which needs no model",
}

_OF_CONTROLS = (
    {"one answer": "all pairs have one answer", "too few": "too few pairs at equal distance{plain}"},
    {name: _ON_TWINS[name] for name in ("one answer", "too few")},
)
"""What is said of a control, over all pairs and on twins, where it has no figure."""


def verdicts(best: pd.DataFrame) -> list[str]:
    """Say of every backbone at its best layer whether its probe beats the majority baseline and the controls.

    `best` is as `bindkit.results.tables.best_layers` gives it, or with intervals as
    `bindkit.results.model_table.with_gain_intervals` does, without the oracle. Over all pairs and on twins, AUROC is
    set against the control that is strongest there: AUROC among pairs that lie equally far apart where the table has it
    (`bindkit.results.tables.ranked_by`), with the plain one beside it. Where the difference has an interval, the
    sentence follows from that; else the difference is stated as it is, rounded to two digits. One sentence or two a
    row; a short one for a control.
    """
    figures = ranked_by(best)
    controls = [strongest_controls(best, figure).rename(columns={figure: "figure"}) for figure in figures]
    sentences = []
    for number, row in enumerate(best.to_dict("records")):
        both = [_beside(row, figure, of.iloc[number]) for figure, of in zip(figures, controls, strict=True)]
        if is_control(row["objective"]):
            alone = ("{name} {value:.2f}{plain}", "on {distractors} {value:.2f}{plain}")
            pairs, twins = (
                missing.get(said["status"], text).format(**said)
                for missing, text, said in zip(_OF_CONTROLS, alone, both, strict=True)
            )
            sentence = f"baseline ({control_title(row['backbone'])}), without any model: {pairs}; {twins}."
        else:
            pairs, twins = (
                of[said["status"]].format(**said) for of, said in zip((_OVER_ALL, _ON_TWINS), both, strict=True)
            )
            sentence = f"{_accuracy(row)} {pairs}; {twins}."
            if figures == PLAIN:
                sentence += " All this at any distance: the table has no figures at equal distance."
            n_scenes = row.get("n_scenes")
            if n_scenes is not None and n_scenes < FEW_SCENES:
                scenes = f"{n_scenes:.0f} scene{'' if n_scenes == 1 else 's'}"
                sentence += f" Evaluated on {scenes}: a demonstration, not a measurement."
        sentences.append(f"{sentence} {chance_remark(row)}".rstrip())
    return sentences


def _accuracy(row: Mapping[str, Any]) -> str:
    """The sentence on a row's best layer and its accuracy."""
    low, high, majority = row["accuracy_low"], row["accuracy_high"], row["majority_accuracy"]
    judged = f"{100 * row['accuracy']:.1f} % of the pairs are told rightly"
    judged += "" if pd.isna(low) else f" [{100 * low:.1f}, {100 * high:.1f}]"
    # Scenes differ in their share of the more frequent answer, which the interval of the difference knows.
    above, below = row.get("gain_low", math.nan), row.get("gain_high", math.nan)
    if pd.isna(above):
        above, below = low - majority, high - majority
    status = "above" if above > 0 else "below" if below < 0 else "not told apart"
    if pd.isna(above):
        status = "too few" if row.get("n_scenes", math.nan) < MIN_SCENES else "none"
    always = f"{100 * majority:.1f} % of the majority class"
    role = row["objective"] + _ROLES.get(row["objective"], "")
    beside = _OVER_MAJORITY[status].format(majority=always)
    return f"{control_title(row['backbone'])} ({role}): best at layer {row['layer']:.0f}, where {judged}{beside}."


def _beside(row: Mapping[str, Any], figure: str, control: pd.Series) -> dict[str, Any]:
    """A row's figure beside that of the strongest control: its status, and what sentences take."""
    value, plain = row.get(figure, math.nan), row.get(figure.removeprefix("matched_"), math.nan)
    is_matched = figure not in PLAIN
    said = {"distractors": DISTRACTORS, "name": "AUROC at equal distance" if is_matched else "AUROC", "value": value}
    said["plain"] = f" ({plain:.2f} at any distance)" if is_matched and not pd.isna(plain) else ""
    if pd.isna(value):
        return said | {"status": "too few" if said["plain"] else "one answer"}
    if figure.endswith("twins_auroc") and value < _NO_BETTER_THAN_CHANCE:
        return said | {"status": "chance"}
    if pd.isna(control["figure"]):
        return said | {"status": "none"}
    ends = [f"{OVER_CONTROLS[figure]}_{end}" for end in ("low", "high")]
    low, high = (row.get(end, math.nan) for end in ends)
    # Rounded as it is said, so that words and figures agree.
    gap = round(value - control["figure"], 2)
    status = "above" if gap > 0 else "below" if gap < 0 else "equal"
    interval = ""
    if not pd.isna(low):
        status = "not told apart" if low <= 0 <= high else status
        interval = f" [{low:+.2f}, {high:+.2f}]"
    elif ends[0] in row:
        status = "above, no interval" if status == "above" else status
        interval = " [no interval: too few scenes differ]"
    title = control_title(control["backbone"])
    said |= {"status": status, "gap": abs(gap), "rival": f"the best baseline ({title}){interval}"}
    return said | {"title": title, "control": control["figure"]}
