"""What a table of results says: the best layer of every backbone, how sure that is, and what controls read as well."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bindkit.arguments import CONTROL, control_title
from bindkit.errors import InvalidParameterError
from bindkit.probes import by_capability
from bindkit.probes.judging import scenes_of
from bindkit.probes.metrics import below_chance
from bindkit.probes.saving import best_position
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
    """The best layer of rows that differ in layer and seeds alone, as `best_layers` chooses it; NaN if none is judged.

    A table without validation accuracies goes by `figure`.
    """
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
    """The pointwise tasks, every backbone at its best layer, with the figures that they alone have (`POINTWISE`).

    One row a task and backbone, figures averaged over seeds; no row where no pointwise task was fitted.
    """
    shown = ["task", "backbone", "layer", "accuracy", "majority_accuracy", "auroc", "twins_auroc", *POINTWISE]
    rows = results.reindex(columns=list(dict.fromkeys([*results.columns, "task", *POINTWISE])))
    rows = rows[rows["task"].astype(str).str.startswith("pointwise")]
    if rows.empty:
        return pd.DataFrame(columns=shown)
    key = [*(column for column in compared_columns(rows) if column in rows), "layer"]
    own = rows.groupby(key, dropna=False)[list(POINTWISE)].mean().reset_index()
    return best_layers(rows).merge(own, on=key, how="left").sort_values("task", kind="stable")[shown]


def strongest_controls(best: pd.DataFrame, figure: str) -> pd.DataFrame:
    """Find for every row of `best_layers` the control that is strongest in a figure among those judged alike.

    Its name in ``backbone`` and its ``figure``, row by row; both empty in rows of controls and where no control was
    judged on the row's pairs. Untrained backbones are no controls in this sense.
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
    """Refuse to average, or to set side by side, what was not measured alike: InvalidParameterError.

    It begins with `whose` ("the table") and names the column and its values; `table` is what the reader calls it.
    """
    for column in columns:
        kinds = list(rows[column].dropna().unique()) if column in rows else []
        if len(kinds) > 1:
            raise InvalidParameterError(
                f"{whose} has several kinds of {column} ({', '.join(map(str, kinds))}), whose figures are not "
                f"comparable; give one of them, for example {table}[{table}[{column!r}] == {kinds[0]!r}]"
            )


def format_results(results: pd.DataFrame) -> str:
    """Write the table across models: the best layer of every backbone by the most capable probe that was fitted.

    Where there are baselines without a model, two more columns say by how much AUROCs exceed the best of them.
    """
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
