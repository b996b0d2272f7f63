"""Does binding emerge in training? What each objective gained, in numbers and in words, from a table of checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from scipy.stats import t

from bindkit.arguments import control_title, is_control
from bindkit.errors import InvalidParameterError
from bindkit.results.tables import PLAIN, layer_of_best, ranked_by, require_one_kind
from bindkit.results.words import DISTRACTORS
from bindkit.scenes.splits import FEW_SCENES

FIGURES = {
    "auroc": "AUROC",
    "twins_auroc": f"AUROC against {DISTRACTORS}",
    "matched_auroc": "AUROC at equal distance",
    "matched_twins_auroc": f"AUROC at equal distance against {DISTRACTORS}",
}
"""What may be compared, with its name in sentences."""

FEW_SEEDS = 3
"""Below this many training seeds there is no interval, only what each seed gave."""

_NO_BETTER_THAN_CHANCE = 0.55
_ASKED_FOR = ("motion",)
"""Objectives whose loss is about objects: what binds there did not emerge by itself."""


def emergence_gains(table: pd.DataFrame) -> pd.DataFrame:
    """Set every objective at its last checkpoint against its own random init and against the strongest control.

    `table` is as `bindkit.measure_checkpoints` gives it, of one probe, task, protocol and split. One row an objective
    (``pretraining``) and ``figure``: at the last checkpoint that all its seeds have (``scenes_seen``), the best
    ``layer``, averaged over seeds, and its ``value`` (``_low``, ``_high``: of the least and greatest seed); the same at
    0 scenes (``untrained``); the strongest ``control``; and the mean differences ``over_untrained`` and
    ``over_control`` with bounds. What does not apply is NaN.

    Differences are taken within each training seed. From three seeds on the bounds are a 95 % interval of their mean
    (Student's t); of two seeds they are the two differences; of one there are none. They tell how much training seeds
    differ; that scenes differ too, they do not. The best layer is that of `bindkit.results.tables.layer_of_best`.
    """
    needed = ["backbone", "objective", "layer", "pretraining", "training_seed", "scenes_seen", "n_scenes", *PLAIN]
    missing = [name for name in needed if name not in table.columns]
    if missing or table["pretraining"].isna().all():
        why = f"{', '.join(missing)} missing" if missing else "every pretraining is empty"
        raise InvalidParameterError(f"this is no table of checkpoints ({why}); give what measure_checkpoints returned")
    require_one_kind(table, "the table", ("probe", "task", "protocol", "split"), "table")
    controls = table[[is_control(objective) for objective in table["objective"]]]
    rows = []
    for label, own in table[table["pretraining"].notna()].groupby("pretraining", sort=False):
        n_seeds = own["training_seed"].nunique()
        shared = own.groupby("scenes_seen")["training_seed"].nunique() == n_seeds
        if not shared.any():
            raise InvalidParameterError(f"the runs of {label} have no checkpoint at the same number of scenes seen")
        last = float(shared[shared].index.max())
        for figure in ranked_by(table):
            layer, at_end = _at_best_layer(own, last, figure)
            untrained_layer, at_start = _at_best_layer(own, 0.0, figure)
            levels = pd.to_numeric(controls[figure]).groupby(controls["backbone"]).mean().dropna()
            control_value = float(levels.max())
            rows.append(
                {
                    "pretraining": label,
                    "figure": figure,
                    "scenes_seen": last,
                    "layer": layer,
                    "value": at_end.mean(),
                    "value_low": at_end.min(),
                    "value_high": at_end.max(),
                    "untrained_layer": untrained_layer,
                    "untrained": at_start.mean(),
                    **_bounded("over_untrained", at_end - at_start.reindex(at_end.index)),
                    "control": str(levels.idxmax()) if len(levels) else None,
                    "control_value": control_value,
                    **_bounded("over_control", at_end - control_value),
                    "n_seeds": n_seeds,
                    "n_scenes": own["n_scenes"].iloc[0],
                }
            )
    return pd.DataFrame(rows)


def _at_best_layer(own: pd.DataFrame, seen: float, figure: str) -> tuple[float, pd.Series]:
    """The best layer at one checkpoint, and its figure by training seed."""
    here = own[own["scenes_seen"] == seen].assign(**{figure: pd.to_numeric(own[figure])})
    layer = layer_of_best(here, figure)
    return layer, here[here["layer"] == layer].groupby("training_seed")[figure].mean()


def _bounded(name: str, differences: pd.Series) -> dict[str, float]:
    """Mean of the differences of training seeds, and its bounds."""
    values = differences.dropna()
    mean, low, high = values.mean(), math.nan, math.nan
    if len(values) >= FEW_SEEDS:
        half = float(t.ppf(0.975, len(values) - 1)) * values.std() / math.sqrt(len(values))
        low, high = mean - half, mean + half
    elif len(values) > 1:
        low, high = values.min(), values.max()
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


# --- in words --------------------------------------------------------------------------------------------------------

_RANKING = {
    "no twins": "Which objective binds best cannot be said: there were no same-class distractors.",
    "none binds": "No objective binds by this measure; {highest}.",
    "highest does not": "{highest}, but does not pass as binding; of those that do, {binding} has the highest.",
    "alone": "{first} binds; there is no other objective to compare it with.",
    "equal": "{highest}, as high as {second}: which of the two binds best is open.",
    "one seed": "{first} binds best, its AUROC on distractors {apart}; with one seed each, chance may decide that.",
    "apart": "{first} binds best: its AUROC on distractors is {apart}, in every seed above every seed of that.",
    "overlap": "{highest}, {apart}; but seeds of the two overlap, so which binds best is open.",
}
"""Which objective binds best, by AUROC against same-class distractors at its best layer."""

_OF_SEEDS = {
    1: "One training seed says nothing of how much seeds differ.",
    2: "Two training seeds show a difference, but give no interval.",
}


class _Judged(NamedTuple):
    """One objective: its row on twins, what keeps it from being a yes, and its sentence."""

    label: str
    twins: Mapping[str, Any]
    lacking: Sequence[str]
    sentence: str


def emergence_verdicts(table: pd.DataFrame) -> list[str]:
    """Say of every objective whether binding emerged, and then which one binds best and how far that carries.

    "Yes" takes AUROC, and that against same-class distractors, above the objective's own random init and above the best
    baseline in every sense of `emergence_gains`, and distractors told apart better than by chance. One entry an
    objective, one for the comparison, one for what the numbers cannot say.
    """
    gains = emergence_gains(table)
    judged = []
    for label, own in gains.groupby("pretraining", sort=False):
        by_figure = sorted(own.to_dict("records"), key=lambda row: row["figure"].endswith("twins_auroc"))
        (pairs, of_pairs), (on_twins, of_twins) = map(_told, by_figure)
        lacking, n_seeds = of_pairs + of_twins, by_figure[0]["n_seeds"]
        how = "is there, as its loss asks for" if label.split(",")[0] in _ASKED_FOR else "emerged in training"
        verdict = f"Yes: binding {how}, beyond likeness and beyond what can be read without a model"
        if lacking:
            verdict = f"No: {'; '.join(lacking)}"
        elif n_seeds == 1:
            verdict += ", in the one seed that was trained"
        sentence = (
            f"{label}, {by_figure[0]['scenes_seen']:,.0f} scenes seen, {n_seeds} training seed"
            f"{'' if n_seeds == 1 else 's'}. {pairs}. {on_twins[:1].upper()}{on_twins[1:]}. {verdict}."
        )
        judged.append(_Judged(label, by_figure[1], lacking, sentence))
    n_scenes, n_seeds, seen = gains["n_scenes"].min(), gains["n_seeds"].min(), sorted(gains["scenes_seen"].unique())
    few = ": a demonstration, not a measurement" if n_scenes < FEW_SCENES else ""
    caveats = [f"Evaluated on {n_scenes:.0f} scenes{few}."]
    caveats.append(_OF_SEEDS.get(int(n_seeds), "Intervals are over training seeds, not over scenes."))
    if len(seen) > 1:
        counts = " and ".join(f"{count:,.0f}" for count in seen)
        caveats.append(f"Objectives saw different numbers of scenes ({counts}).")
    beyond = f"Longer training than {max(seen):,.0f} scenes, other data or larger backbones may say otherwise."
    return [*(own.sentence for own in judged), _ranking(judged), " ".join([*caveats, beyond])]


def _told(row: Mapping[str, Any]) -> tuple[str, list[str]]:
    """One figure of one objective in words, and what keeps it from being a yes."""
    name, n_seeds = FIGURES[row["figure"]], row["n_seeds"]
    if math.isnan(row["value"]):
        return f"{name}: nothing to rank", [f"there is no {name}"]
    words, lacking, not_above = f"{name} {row['value']:.2f} at layer {row['layer']:.0f}", [], []
    if row["figure"].endswith("twins_auroc") and row["value"] < _NO_BETTER_THAN_CHANCE:
        lacking.append(f"{DISTRACTORS} are told apart no better than by chance")
    for column, what, other in (
        ("over_untrained", "random init", "its random init"),
        ("over_control", "baseline", "the best baseline"),
    ):
        gap, low, high = (row[f"{column}{end}"] for end in ("", "_low", "_high"))
        if math.isnan(gap):
            lacking.append(f"{name} has no {what} to be set against")
            continue
        bounds = {1: "", 2: f" (its two seeds: {low:+.2f} and {high:+.2f})"}.get(n_seeds, f" [{low:+.2f}, {high:+.2f}]")
        low, high = (gap, gap) if n_seeds == 1 else (low, high)
        # Differences that are said as 0.00 are none.
        is_above, is_below = round(gap, 2) > 0 and low > 0, round(gap, 2) < 0 and high < 0
        if not is_above:
            not_above.append(other)
        against = f"{other} ({row['untrained']:.2f})"
        if column == "over_control":
            against = f"the best baseline ({control_title(row['control'])}, {row['control_value']:.2f})"
        apart = f"{abs(gap):.2f} {'above' if is_above else 'below'}" if is_above or is_below else "not told apart from"
        words += f", {apart} {against}{bounds}"
    if not_above:
        lacking.append(f"{name} is not above {' nor above '.join(not_above)}")
    return words, lacking


def _ranking(judged: Sequence[_Judged]) -> str:
    """Which objective binds best, by AUROC against same-class distractors at its best layer."""
    ranked = sorted((own for own in judged if not math.isnan(own.twins["value"])), key=lambda own: -own.twins["value"])
    if not ranked:
        return _RANKING["no twins"]
    first, second = ranked[0], ranked[1] if len(ranked) > 1 else ranked[0]
    ahead = first.twins["value"] - second.twins["value"]
    if all(own.lacking for own in judged):
        status = "none binds"
    elif first.lacking:
        status = "highest does not"
    elif len(ranked) == 1:
        status = "alone"
    elif round(ahead, 2) == 0:
        status = "equal"
    elif min(first.twins["n_seeds"], second.twins["n_seeds"]) == 1:
        status = "one seed"
    else:
        status = "apart" if first.twins["value_low"] > second.twins["value_high"] else "overlap"
    return _RANKING[status].format(
        first=first.label,
        second=second.label,
        highest=f"{first.label} has the highest AUROC against {DISTRACTORS}, {first.twins['value']:.2f}",
        apart=f"{ahead:.2f} above {second.label}",
        binding=next((own.label for own in ranked if not own.lacking), ""),
    )
