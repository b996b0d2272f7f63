"""What a table of results says: the best layer of every backbone, how sure that is, and what controls read as well."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from bindkit.arguments import CONTROL, control_title, is_control
from bindkit.errors import InvalidParameterError
from bindkit.probes import by_capability
from bindkit.probes.batches import scenes_of
from bindkit.probes.metrics import (
    BELOW_CHANCE,
    MIN_SCENES,
    below_chance_sentence,
    figures_below_chance,
    place_and_figures,
)
from bindkit.probes.protocols import best_position
from bindkit.results.words import BEST_BASELINE, DISTRACTORS, WORDS
from bindkit.scenes.splits import FEW_SCENES

PLAIN, MATCHED = ("auroc", "twins_auroc"), ("matched_auroc", "matched_twins_auroc")
"""How well pairs are ranked, over all pairs and on twins: as they are, and among pairs that lie equally far apart."""

COMPARED_FIGURES = ("accuracy", *PLAIN, *MATCHED)
"""Figures in which models are set against controls."""

COMPARED = ["backbone", "objective", "probe", "task", "protocol", "split", "judged_pairs"]
"""Columns that tell rows apart which may not be compared across layers, with ``workspace`` where there is one."""

AVERAGED = [f"{figure}{end}" for figure in COMPARED_FIGURES for end in ("", "_low", "_high")]
AVERAGED += ["majority_accuracy", "validation_accuracy", "n_scenes", "n_pairs"]
"""Columns that are averaged over seeds; of the interval, each bound."""

SPREAD = {figure: f"{figure}_spread" for figure in ("accuracy", *PLAIN)}
"""Figures whose standard deviation over seeds is given, and the columns that it stands in."""

OVER_CONTROLS = {figure: f"{figure}_over_controls" for figure in (*PLAIN, *MATCHED)}
"""Figures that are compared with those of the controls, and the columns with the difference."""

JUDGED_ALIKE = ["probe", "task", "protocol", "split", "n_scenes", "n_pairs", "judged_pairs"]
"""Columns in which rows agree that are judged in one way on the same pairs."""

OF_PATCHES = ("class_accuracy", "matched_iou")
"""Figures of the pointwise tasks, which are of patches and not of pairs."""

POINTWISE = ("reference_accuracy", *OF_PATCHES)
"""Figures that pointwise tasks alone have; the first is of pairs as the reference implementation counts them."""


def compared_columns(results: pd.DataFrame) -> list[str]:
    """`COMPARED`, and ``workspace`` in the table of several: one backbone in two workspaces is two."""
    return [*COMPARED, *(["workspace"] if "workspace" in results else [])]


def ranked_by(table: pd.DataFrame) -> tuple[str, str]:
    """The two figures that a table is read by: those at equal distance, or the plain ones where it has no others."""
    return MATCHED if "matched_auroc" in table and table["matched_auroc"].notna().any() else PLAIN


def agreeing(table: pd.DataFrame, row: Mapping[str, Any], columns: Sequence[str]) -> pd.DataFrame:
    """Rows of a table that agree with a row in some columns; what is missing on both sides agrees."""
    for column in columns:
        if column in table:
            table = table[(table[column] == row[column]) | (table[column].isna() & pd.isna(row[column]))]
    return table


def best_layers(results: pd.DataFrame) -> pd.DataFrame:
    """Pick the best layer for each backbone, objective, probe, task, protocol and split of ``results.csv``.

    The best is that of highest accuracy on the *validation* scenes, so that the figures, which are of other scenes, are
    not those of the luckiest of many layers. Without validation accuracies it is that of highest ``accuracy``, which
    then looks a little better than it is; of equal layers, the lowest. ``chosen_on`` names the split that chose.

    One row a group in order of first appearance: the layer (NaN of a control), figures averaged over ``n_seeds``
    (missing values left out), ``gain`` (accuracy above always saying the more frequent answer), ``auroc_over_controls``
    and the like (see `strongest_controls`; NaN for controls and where there is none), and the standard deviation over
    seeds (``accuracy_spread``, ...; NaN for a single seed). Columns that `results` lacks count as empty; without
    backbone, layer or accuracy: InvalidParameterError.
    """
    missing = [name for name in ("backbone", "layer", "accuracy") if name not in results.columns]
    if missing:
        raise InvalidParameterError(
            f"a table of results needs the columns backbone, layer and accuracy; {', '.join(missing)} missing from "
            f"{', '.join(map(str, results.columns)) or 'an empty table'}"
        )
    compared = compared_columns(results)
    rows = results.reindex(columns=[*compared, "layer", *AVERAGED, "seed"])
    rows[AVERAGED] = rows[AVERAGED].apply(pd.to_numeric)
    rows = rows[rows["accuracy"].notna()]
    by_layer = rows.groupby([*compared, "layer"], dropna=False, sort=False)
    spread = by_layer[list(SPREAD)].std(ddof=1).rename(columns=SPREAD)
    layers = by_layer[AVERAGED].mean().join(spread).assign(n_seeds=by_layer.size()).reset_index()
    chosen = []
    for _, group in layers.sort_values("layer", kind="stable").groupby(compared, dropna=False, sort=False):
        position, validated = best_position(group["validation_accuracy"].tolist(), group["accuracy"].tolist())
        row = group.iloc[[position or 0]]
        chosen.append(row.assign(chosen_on="validation" if validated else row["split"]))
    order = rows[compared].drop_duplicates().reset_index(drop=True)
    best = order.merge(pd.concat(chosen) if chosen else layers.assign(chosen_on=None), on=compared, how="left")
    for count in ("n_scenes", "n_pairs"):
        best[count] = best[count].round().astype("Int64")
    best["gain"] = best["accuracy"] - best["majority_accuracy"]
    for figure, column in OVER_CONTROLS.items():
        best[column] = best[figure] - strongest_controls(best, figure)[figure]
    added = ["gain", *OVER_CONTROLS.values(), *SPREAD.values(), "n_seeds", "chosen_on"]
    return best[[*compared, "layer", *AVERAGED, *added]]


def layer_of_best(rows: pd.DataFrame, figure: str) -> float:
    """Best layer of rows that differ in layer and seed alone, as `best_layers` chooses; NaN if none is judged."""
    told = rows.reindex(columns=["layer", figure, "validation_accuracy"])
    by_layer = told.groupby("layer").mean().dropna(subset=[figure])
    position, _ = best_position(by_layer["validation_accuracy"].tolist(), by_layer[figure].tolist())
    return math.nan if position is None else float(by_layer.index[position])


def best_fit(results: pd.DataFrame, task: str = "pairwise") -> pd.Series:
    """A fit to look into, a row of ``results.csv``: of the models' best layers the best on the *validation* scenes.

    Chosen as `best_layers` does: seeds are averaged, and where validation accuracies are missing, ``accuracy`` decides.
    Of equal ones it is the first, of several seeds the first; never a control. InvalidParameterError if no model has a
    fit of that task.
    """
    rows = results[(results["task"] == task) & results["layer"].notna() & results["accuracy"].notna()]
    if rows.empty:
        there = ", ".join(map(str, results["task"].dropna().unique())) or "nothing"
        raise InvalidParameterError(
            f"no probe of a model was fitted for the task {task}, only for {there}; sweep a backbone with it among the "
            f"tasks, as in tasks = '{task} pointwise_class'"
        )
    best = best_layers(rows)
    chosen = best.loc[best["validation_accuracy" if (best["chosen_on"] == "validation").all() else "accuracy"].idxmax()]
    return agreeing(rows, chosen.to_dict(), [*compared_columns(rows), "layer"]).iloc[0]


def pointwise_tasks(results: pd.DataFrame) -> pd.DataFrame:
    """One row a pointwise task and backbone at its best layer, averaged over seeds, with figures of `POINTWISE`."""
    shown = ["task", "backbone", "layer", "accuracy", "majority_accuracy", "auroc", "twins_auroc", *POINTWISE]
    rows = results.reindex(columns=list(dict.fromkeys([*results.columns, "task", *POINTWISE])))
    rows = rows[rows["task"].astype(str).str.startswith("pointwise")]
    if rows.empty:
        return pd.DataFrame(columns=shown)
    key = [*(column for column in compared_columns(rows) if column in rows), "layer"]
    own = rows.groupby(key, dropna=False)[list(POINTWISE)].mean().reset_index()
    return best_layers(rows).merge(own, on=key, how="left").sort_values("task", kind="stable")[shown]


def strongest_controls(best: pd.DataFrame, figure: str) -> pd.DataFrame:
    """Of every row of `best_layers` the control judged alike (none untrained) that is strongest in a figure.

    Its name in ``backbone`` and its ``figure``, row by row; empty for controls, and where none was judged on the pairs.
    """
    table = best.reindex(columns=[*JUDGED_ALIKE, "objective", "backbone", figure])
    controls = table[(table["objective"] == CONTROL) & table[figure].notna()]
    ranked = controls.sort_values(figure, ascending=False, kind="stable").drop_duplicates(JUDGED_ALIKE)
    found = table[JUDGED_ALIKE].merge(ranked[[*JUDGED_ALIKE, "backbone", figure]], on=JUDGED_ALIKE, how="left")
    found = found[["backbone", figure]].set_index(table.index)
    return found.where(table["objective"] != CONTROL)


def require_one_kind(
    rows: pd.DataFrame, whose: str, columns: Sequence[str] = ("task", "protocol", "split"), table: str = "results"
) -> None:
    """Refuse what was not measured alike: InvalidParameterError, which begins with `whose` ("the table")."""
    for column in columns:
        kinds = list(rows[column].dropna().unique()) if column in rows else []
        if len(kinds) > 1:
            raise InvalidParameterError(
                f"{whose} has several kinds of {column} ({', '.join(map(str, kinds))}), whose figures are not "
                f"comparable; give one of them, for example {table}[{table}[{column!r}] == {kinds[0]!r}]"
            )


def format_results(results: pd.DataFrame) -> str:
    """Write the table across models: each backbone's best layer by the most capable probe, beside baselines."""
    below = below_chance(results.to_dict("records"))
    if "task" in results:
        results = results[results["task"].isna() | (results["task"] == "pairwise")]
    best = best_layers(results[results["probe"] != "oracle"])
    if best.empty:
        return "No fit has figures yet."
    shown = min(best["probe"].astype(str), key=by_capability)
    best = best[best["probe"].astype(str) == shown]

    def told(column: str, form: str = ".3f") -> list[str]:
        return ["-" if pd.isna(value) else format(value, form) for value in best[column]]

    bounds = zip(told("accuracy_low"), told("accuracy_high"), strict=True)
    columns = {
        WORDS["backbone"]: best["backbone"].map(control_title),
        WORDS["objective"]: told("objective", ""),
        "layer": told("layer", ".0f"),
        "accuracy": told("accuracy"),
        "95 % interval": ["-" if low == "-" else f"{low} to {high}" for low, high in bounds],
        "majority": told("majority_accuracy"),
        "gain": told("gain", "+.3f"),
    }
    table = pd.DataFrame(columns)
    has_controls, is_matched = bool((best["objective"] == CONTROL).any()), ranked_by(best) == MATCHED
    heads = {"auroc": "AUROC", "twins_auroc": "same class"}
    if is_matched:
        heads |= {"matched_auroc": "at equal distance", "matched_twins_auroc": "same class"}
    for figure, head in heads.items():
        table.insert(table.shape[1], head, told(figure), allow_duplicates=True)
        if has_controls and figure in ranked_by(best):
            over = told(OVER_CONTROLS[figure], "+.3f")
            table.insert(table.shape[1], BEST_BASELINE, over, allow_duplicates=True)
    judged_on = ", ".join(map(scenes_of, sorted(set(best["split"].dropna())))) or "unknown scenes"
    protocols = ", ".join(sorted(set(best["protocol"].dropna()))) or "unknown"
    chosen_on = ", ".join(sorted(set(best["chosen_on"].dropna()))) or "judged"
    title = (
        f"Best layer of each model, chosen on the {chosen_on} scenes ({shown} probe, {protocols} protocol, "
        f"evaluated on {judged_on})"
    )
    fewest = best["n_scenes"].min()
    is_few = bool(not pd.isna(fewest) and fewest < FEW_SCENES)
    few = f"{fewest} scene{'s' * bool(is_few and fewest != 1)}"
    is_untrained = bool((best["objective"] == "random-init").any())
    notes = (
        (is_few, f"Evaluated on {few} only: a demonstration that the path works, not a measurement."),
        (is_untrained, "random-init: never trained; a baseline that trained models have to beat, not a result."),
        (True, "majority: accuracy of always answering with the majority class; gain: the difference to it."),
        (True, f"same class: of pairs on two objects only {DISTRACTORS}, which lie on two objects of one class."),
        (
            has_controls,
            f"{BEST_BASELINE}: AUROC minus that of the best baseline, which reads the same pairs without a model.",
        ),
        (is_matched, "at equal distance: AUROC among pairs that lie equally far apart, where proximity tells nothing."),
    )
    lines = ["", title, "", table.to_string(index=False), *(["", *below] if below else [])]
    return "\n".join([*lines, *(line for holds, note in notes if holds for line in ("", note))])


# --- in words: each comparison has a status, each status a sentence ---------------------------------------------------

_ROLES = {
    "random-init": ": never trained, a baseline",
    "conditional-motion": ": trained on what moves together between two frames, by their pixels alone",
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

    `best` is as `best_layers` gives it, or with intervals as `bindkit.results.model_table.with_gain_intervals` does,
    without the oracle. AUROC, over all pairs and on twins, is set against the control that is strongest there: among
    pairs that lie equally far apart where the table has it (`ranked_by`), with the plain one beside it. Where the
    difference has an interval, the sentence follows from that; else it is stated as it is, rounded to two digits.
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


_BY_DISTANCE = "what it orders rightly among all pairs, it orders by how far apart they are"
"""What it means where the AUROC is below chance among pairs at equal distance alone."""


def chance_remark(row: Mapping[str, Any]) -> str:
    """What to add to a sentence about a fit that is below chance; empty for any other."""
    figures = figures_below_chance(row)
    if "auroc" in figures:
        return f"BELOW CHANCE: {BELOW_CHANCE}."
    return f"BELOW CHANCE AT EQUAL DISTANCE: {_BY_DISTANCE}." if figures else ""


def below_chance(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """A sentence for each row that is below chance; one a probe for those so among pairs at equal distance alone."""
    sentences, by_distance = [], dict[str, list[Mapping[str, Any]]]()
    for row in rows:
        if "auroc" in (figures := figures_below_chance(row)):
            sentences.append(below_chance_sentence(row, figures))
        elif figures:
            by_distance.setdefault(f"{row['probe']} ({row.get('task', 'pairwise')})", []).append(row)
    for fit, those in by_distance.items():
        lowest = min(those, key=lambda row: row["matched_auroc"])
        sentences.append(
            f"BELOW CHANCE AT EQUAL DISTANCE: {fit} in {len(those)} fit{'s' * (len(those) > 1)}, the lowest "
            f"{place_and_figures(lowest, ['matched_auroc'])}; {_BY_DISTANCE}."
        )
    return sentences
