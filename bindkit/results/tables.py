"""What a table of results says: the best layer of every backbone, how sure that is, and what controls read as well."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from bindkit.arguments import CONTROL
from bindkit.errors import InvalidParameterError
from bindkit.probes.saving import best_position

COMPARED = ["backbone", "objective", "probe", "task", "protocol", "split", "judged_pairs"]
"""Columns that tell rows apart which may not be compared across layers, with ``workspace`` where there is one."""


def compared_columns(results: pd.DataFrame) -> list[str]:
    """`COMPARED`, and ``workspace`` in the table of several: one backbone in two workspaces is two."""
    return [*COMPARED, *(["workspace"] if "workspace" in results else [])]


AVERAGED = [
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "auroc",
    "auroc_low",
    "auroc_high",
    "twins_auroc",
    "twins_auroc_low",
    "twins_auroc_high",
    "matched_auroc",
    "matched_auroc_low",
    "matched_auroc_high",
    "matched_twins_auroc",
    "matched_twins_auroc_low",
    "matched_twins_auroc_high",
    "majority_accuracy",
    "validation_accuracy",
    "n_scenes",
    "n_pairs",
]
"""Columns that are averaged over seeds; of the interval, each bound."""

SPREAD = {"accuracy": "accuracy_spread", "auroc": "auroc_spread", "twins_auroc": "twins_auroc_spread"}
"""Figures whose standard deviation over seeds is given, and the columns that it stands in."""

JUDGED_ALIKE = ["probe", "task", "protocol", "split", "n_scenes", "n_pairs", "judged_pairs"]
"""Columns in which rows agree that are judged in one way on the same pairs."""

OF_PATCHES = ("class_accuracy", "matched_iou")
"""Figures of the pointwise tasks, which are of patches and not of pairs."""

POINTWISE = ("reference_accuracy", *OF_PATCHES)
"""Figures that pointwise tasks alone have; the first is of pairs as the reference implementation counts them."""

OVER_CONTROLS = {
    figure: f"{figure}_over_controls" for figure in ("auroc", "twins_auroc", "matched_auroc", "matched_twins_auroc")
}
"""Figures that are compared with those of the controls, and the columns with the difference."""


PLAIN, MATCHED = ("auroc", "twins_auroc"), ("matched_auroc", "matched_twins_auroc")
"""How well pairs are ranked, over all pairs and on twins: as they are, and among pairs that lie equally far apart."""


def ranked_by(table: pd.DataFrame) -> tuple[str, str]:
    """The two figures that a table is read by: those at equal distance, or the plain ones where it has no others.

    >>> ranked_by(pd.DataFrame({"auroc": [0.9], "matched_auroc": [0.7]})), ranked_by(pd.DataFrame({"auroc": [0.9]}))
    (('matched_auroc', 'matched_twins_auroc'), ('auroc', 'twins_auroc'))
    """
    return MATCHED if "matched_auroc" in table and table["matched_auroc"].notna().any() else PLAIN


def best_layers(results: pd.DataFrame) -> pd.DataFrame:
    """Pick the best layer for each backbone, objective, probe, task, protocol and split.

    The best is that of highest accuracy on the *validation* scenes, so that the figures, which are of other scenes, are
    not those of the luckiest of many layers. Without validation accuracies it is that of highest ``accuracy``.

    >>> rows = [("vit", layer, "linear", accuracy) for layer, accuracy in [(0, 0.7), (1, 0.9), (2, 0.9)]]
    >>> results = pd.DataFrame(rows, columns=["backbone", "layer", "probe", "accuracy"])
    >>> best_layers(results)[["backbone", "probe", "layer", "accuracy"]].to_dict("records")
    [{'backbone': 'vit', 'probe': 'linear', 'layer': 1, 'accuracy': 0.9}]

    Parameters
    ----------
    results : pandas.DataFrame
        Rows of ``results.csv``, one a fit. Columns that are missing count as empty.

    Returns
    -------
    pandas.DataFrame
        One row a group in order of first appearance, with the layer, the figures averaged over seeds (of the 95 %
        interval each bound; missing values left out), ``gain`` (accuracy above always saying the more frequent
        answer), ``auroc_over_controls`` and the like (see `strongest_controls`; NaN for
        controls and where there is none), the standard deviation over seeds (``accuracy_spread``,
        ``auroc_spread``, ``twins_auroc_spread``; NaN for a single seed), ``n_seeds``, and in ``chosen_on`` the split
        whose accuracy chose the layer. Of layers of equal accuracy, the lowest. The layer of a control is NaN.

    Notes
    -----
    Where ``chosen_on`` is the judged split itself (a scene set too small for three), the best of many layers looks a
    little better than it is.

    Raises
    ------
    InvalidParameterError
        If the table has no backbone, layer or accuracy.
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

    >>> layer_of_best(pd.DataFrame({"layer": [0, 1], "auroc": [0.9, 0.8], "validation_accuracy": [0.7, 0.8]}), "auroc")
    1.0
    """
    told = rows.reindex(columns=["layer", figure, "validation_accuracy"])
    by_layer = told.groupby("layer").mean().dropna(subset=[figure])
    position, _ = best_position(by_layer["validation_accuracy"].tolist(), by_layer[figure].tolist())
    return math.nan if position is None else float(by_layer.index[position])


def best_fit(results: pd.DataFrame, task: str = "pairwise") -> pd.Series:
    """A fit to look into, a row of ``results.csv``: of the models' best layers the best on the *validation* scenes.

    Chosen as `best_layers` does: seeds are averaged, and where validation accuracies are missing, ``accuracy`` decides.
    Of equal ones it is the first, of several seeds the first. Controls, which have no layer, are left out.

    >>> rows = [("vit", 0, "pairwise", 0.9, 0.7), ("vit", 1, "pairwise", 0.8, 0.8), ("vit", None, "pairwise", 1, 1)]
    >>> columns = ["backbone", "layer", "task", "accuracy", "validation_accuracy"]
    >>> int(best_fit(pd.DataFrame(rows, columns=columns))["layer"])
    1

    Raises
    ------
    InvalidParameterError
        If no model has a fit of that task.
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
    for column in (name for name in [*compared_columns(rows), "layer"] if name in rows):
        rows = rows[(rows[column] == chosen[column]) | (rows[column].isna() & pd.isna(chosen[column]))]
    return rows.iloc[0]


def pointwise_tasks(results: pd.DataFrame) -> pd.DataFrame:
    """The pointwise tasks, every backbone at its best layer, with the figure that each task has of its own.

    Parameters
    ----------
    results : pandas.DataFrame
        Rows of ``results.csv``.

    Returns
    -------
    pandas.DataFrame
        One row a task and backbone (see `best_layers`): ``task``, ``backbone``, ``layer``, ``accuracy``,
        ``majority_accuracy``, ``auroc`` and ``twins_auroc`` of pairs, ``reference_accuracy`` of pairs as the reference
        implementation counts them (see `bindkit.probes.tasks.own_figures`), ``class_accuracy`` and ``matched_iou`` of
        patches (averaged over seeds; NaN for the other task). No row where no pointwise task was fitted.
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
    """Find for every row the control that is strongest in a figure among those judged alike on the same pairs.

    >>> rows = [("control:position", "control", 0.7), ("control:raw-pixels", "control", 0.6), ("vit", "dino", 0.9)]
    >>> best = best_layers(pd.DataFrame(rows, columns=["backbone", "objective", "auroc"]).assign(layer=0, accuracy=1))
    >>> strongest_controls(best, "auroc").to_dict("records")[2]
    {'backbone': 'control:position', 'auroc': 0.7}

    Parameters
    ----------
    best : pandas.DataFrame
        As `best_layers` gives it.
    figure : str
        A column, larger is stronger.

    Returns
    -------
    pandas.DataFrame
        One row a row of `best`, with the control's name in ``backbone`` and its ``figure``; both empty in rows of
        controls and where no control was judged on the row's pairs. Untrained backbones are no controls in this sense.
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
    """Refuse to average, or to set side by side, what was not measured alike.

    >>> require_one_kind(pd.DataFrame({"split": ["test", "train"]}), "the table")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    bindkit.errors.InvalidParameterError: the table has several kinds of split (test, train), ...

    Raises
    ------
    InvalidParameterError
        Beginning with `whose` ("the table") and naming the column and its values; `table` is what the reader calls it.
    """
    for column in columns:
        kinds = list(rows[column].dropna().unique()) if column in rows else []
        if len(kinds) > 1:
            raise InvalidParameterError(
                f"{whose} has several kinds of {column} ({', '.join(map(str, kinds))}), whose figures are not "
                f"comparable; give one of them, for example {table}[{table}[{column!r}] == {kinds[0]!r}]"
            )
