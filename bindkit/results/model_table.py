"""The paper's table: one probe across models, each beside all that it has to be compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from bindkit.arguments import CONTROL, SAME_CLASS, parse_control
from bindkit.errors import InvalidParameterError
from bindkit.probes import by_capability
from bindkit.probes.judging import scenes_of
from bindkit.probes.metrics import below_chance, chance_remark
from bindkit.results.tables import JUDGED_ALIKE, OVER_CONTROLS, best_layers, ranked_by
from bindkit.scenes.splits import FEW_SCENES

UNTRAINED = "random-init"
"""Objective of an untrained backbone, and what its name begins with."""

COMPARED_FIGURES = ("accuracy", "auroc", "twins_auroc", "matched_auroc", "matched_twins_auroc")
"""Figures in which models are set against controls."""

FIGURE_TITLES = {
    "accuracy": "accuracy",
    "matched_auroc": "AUROC at equal distance",
    "matched_twins_auroc": "AUROC at equal distance, twins",
    "auroc": "AUROC",
    "twins_auroc": "AUROC, twins",
}
"""Heads of what is compared, as a reader sees them."""

KINDS_OF_ROWS = ("trained", "untrained", "control", "oracle")
"""In this order they stand in the table, told by the column ``kind``."""


def model_table(results: pd.DataFrame, probe: str = "quadratic", task: str = "pairwise") -> pd.DataFrame:
    """Set every model at its best layer beside baseline, controls, untrained twin, oracle and control task.

    ::

        table = model_table(pd.read_csv("workspace/results.csv"))
        table[["backbone", "layer", "accuracy", "gain", "auroc", "auroc_over_untrained", "selectivity"]]

    Parameters
    ----------
    results : pandas.DataFrame
        Rows of ``results.csv``.
    probe, task : str
        Which rows to compare.

    Returns
    -------
    pandas.DataFrame
        One row a model: trained ones, untrained ones, controls, and the oracle that knows classes. Columns ``kind``
        (see `KINDS_OF_ROWS`), those of `best_layers`, and

        - for every control, ``accuracy_over_NAME``, ``auroc_over_NAME`` and ``twins_auroc_over_NAME``: the figure less
          that of the control on the very same pairs; NAME is ``position``, ``raw-pixels``, ``position+raw-pixels``,
          ``untrained`` (the untrained twin ``random-init:BACKBONE`` if it was measured, else the strongest untrained
          backbone; of twins of several seeds the strongest) or ``same-class`` (the oracle; no baseline of accuracies,
          as it calls all pairs of one class *same*);
        - ``selectivity``: AUROC less that of the same probe at the same layer on shuffled labels (Hewitt & Liang 2019,
          arXiv 1909.03368; theirs is of accuracies). NaN where that task was not fitted, and of any other task.

    Raises
    ------
    InvalidParameterError
        If there is no row of that probe and task.
    """
    rows = results.reindex(columns=list(dict.fromkeys([*results.columns, *JUDGED_ALIKE, "objective"])))
    tasks = rows["task"].astype(object).fillna("pairwise")
    chosen = rows[(rows["probe"] == probe) & (tasks == task)]
    if chosen.empty:
        there = sorted({f"{kind} ({name})" for kind, name in zip(rows["probe"], tasks, strict=True)})
        raise InvalidParameterError(
            f"the table of results has no {probe} probe of the task {task}; it has {', '.join(there) or 'nothing'}"
        )
    oracle = rows[rows["probe"] == "oracle"]
    best = best_layers(pd.concat([chosen, oracle]) if len(oracle) else chosen)
    best.insert(0, "kind", [_kind(row) for row in best.to_dict("records")])
    best["order"] = best["kind"].map(KINDS_OF_ROWS.index)
    best = best.sort_values("order", kind="stable").drop(columns="order").reset_index(drop=True)
    for figure in COMPARED_FIGURES:
        for name in comparisons(best, figure):
            best[f"{figure}_over_{name}"] = [_difference(row, best, name, figure) for row in best.to_dict("records")]
    best["selectivity"] = [
        _selectivity(row, rows) if task == "pairwise" else float("nan") for row in best.to_dict("records")
    ]
    return best


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Give a `model_table` heads of two levels, for readers: what is measured, and less what.

    >>> row = {"kind": "trained", "backbone": "vit", "layer": 3, "accuracy": 0.9, "gain": 0.1, "auroc": 0.95}
    >>> readable(pd.DataFrame([row | {"auroc_over_position": 0.2}])).to_dict("records")
    [{('', 'model'): 'vit', ('', 'layer'): '3', ('accuracy', 'is'): 0.9, ('accuracy', '− majority'): 0.1, ('AUROC', 'is'): 0.95, ('AUROC', '− position'): 0.2}]

    Columns without any figure are left out. Intervals, and gains that have one, are text; the layer of what has none is
    a dash; a model below chance beyond its interval is marked so; all else is as in the table.
    """  # noqa: E501
    heads: dict[tuple[str, str], pd.Series] = {
        ("", "model"): _texts(table, _name),
        ("", "layer"): table["layer"].map(lambda layer: "-" if pd.isna(layer) else f"{layer:.0f}"),
    }
    for figure, title in FIGURE_TITLES.items():
        heads[title, "is"] = table.get(figure)
        if figure == "accuracy" and "accuracy_low" in table:
            heads[title, "95 % interval"] = _texts(table, lambda row: bounds_text(row, "accuracy"))
        heads[title, "± over seeds"] = table.get(f"{figure}_spread")
        if figure == "accuracy":
            heads[title, "− majority"] = _gain(table, "gain")
        for name in differences(table, figure):
            heads[title, f"− {name.removeprefix(f'{figure}_over_')}"] = _gain(table, name)
        if figure == "auroc":
            heads[title, "− shuffled labels"] = _gain(table, "selectivity")
    shown = {head: column for head, column in heads.items() if column is not None and column.notna().any()}
    return pd.DataFrame(shown)


def _name(row: Mapping[str, Any]) -> str:
    remark = chance_remark(row).partition(":")[0]
    return f"{row['backbone']} ({remark})" if remark else str(row["backbone"])


def differences(table: pd.DataFrame, figure: str) -> list[str]:
    """Columns with what a figure is over each control by itself, the strongest not among them.

    >>> differences(pd.DataFrame(columns=["auroc_over_position", "auroc_over_position_low", "auroc_over_controls"]), "auroc")
    ['auroc_over_position']
    """  # noqa: E501
    beginning, leave_out = f"{figure}_over_", ("_low", "_high", "_controls")
    return [name for name in table if name.startswith(beginning) and not name.endswith(leave_out)]


def bounds_text(row: Mapping[str, Any], column: str, sign: str = "") -> str | None:
    """The interval of a row's figure in words; None where there is none.

    >>> bounds_text({"gain_low": -0.01, "gain_high": 0.0204}, "gain", "+")
    '−0.010 to +0.020'
    """
    low, high = row.get(f"{column}_low"), row.get(f"{column}_high")
    return None if pd.isna(low) or pd.isna(high) else f"{low:{sign}.3f} to {high:{sign}.3f}".replace("-", "−")


def _gain(table: pd.DataFrame, column: str) -> pd.Series | None:
    """The numbers, or where any has an interval the numbers with their intervals as text."""
    if f"{column}_low" not in table or table[f"{column}_low"].isna().all():
        return table.get(column)

    def told(row: dict) -> str | None:
        if pd.isna(row[column]):
            return None
        gain, bounds = f"{row[column]:+.3f}".replace("-", "−"), bounds_text(row, column, "+")
        # An interval is not broken over two lines.
        return gain + (f" ({bounds})".replace(" to ", "\u00a0to\u00a0") if bounds else "")

    return _texts(table, told)


def _texts(table: pd.DataFrame, tell: Callable[[dict], str | None]) -> pd.Series:
    return pd.Series([tell(row) for row in table.to_dict("records")], table.index, dtype=object)


def _kind(row: dict) -> str:
    if row["probe"] == "oracle":
        return "oracle"
    if row["objective"] == CONTROL:
        return "control"
    return "untrained" if row["objective"] == UNTRAINED else "trained"


def comparisons(best: pd.DataFrame, figure: str) -> list[str]:
    """Names of what there is to compare a figure with, in order of appearance: controls, untrained, oracle."""
    names = [parse_control(name).kind for name in best.loc[best["kind"] == "control", "backbone"]]
    names += ["untrained"] if (best["kind"] == "untrained").any() else []
    names += ["same-class"] if figure != "accuracy" and (best["kind"] == "oracle").any() else []
    return list(dict.fromkeys(names))


def rival_of(row: dict, best: pd.DataFrame, name: str, figure: str) -> dict | None:
    """The row that a row's figure is compared with; None for a control itself and where there is none."""
    if row["kind"] in ("control", "oracle") or (name == "untrained" and row["kind"] == "untrained"):
        return None
    # The oracle is no probe that was trained for a task; which pairs it was asked about is all that matters.
    alike = [column for column in JUDGED_ALIKE if name != "same-class" or column not in ("probe", "task")]
    same = agreeing(best, row, alike)
    if name == "untrained":
        rivals = same[same["kind"] == "untrained"]
        # Written ``random-init:NAME`` or, of other weights than the first, ``random-init:NAME,seed=3``.
        twin = rivals[rivals["backbone"].str.split(",seed=").str[0] == f"{UNTRAINED}:{row['backbone']}"]
        rivals = twin if len(twin) else rivals
        own = agreeing(rivals, row, ["workspace"])
        rivals = own if len(own) else rivals
    elif name == "same-class":
        rivals = same[same["backbone"].str.startswith(SAME_CLASS)]
    else:
        controls = same[same["kind"] == "control"]
        rivals = controls[controls["backbone"].map(lambda control: parse_control(control).kind == name).astype(bool)]
    rivals = rivals[rivals[figure].notna()]
    return rivals.loc[rivals[figure].idxmax()].to_dict() if len(rivals) else None


def shuffled_rows(row: dict, results: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``results.csv`` of the same probe and layer, fitted and judged on shuffled labels."""
    shuffled = results[results["task"] == "shuffled_labels"]
    shuffled = shuffled.assign(layer=pd.to_numeric(shuffled["layer"]), auroc=pd.to_numeric(shuffled["auroc"]))
    return agreeing(shuffled, row, ["workspace", "backbone", "layer", "probe", "protocol", "split"])


def agreeing(table: pd.DataFrame, row: dict, columns: Sequence[str]) -> pd.DataFrame:
    """Rows of a table that agree with a row in some columns; what is missing on both sides agrees."""
    for column in columns:
        if column in table:
            table = table[(table[column] == row[column]) | (table[column].isna() & pd.isna(row[column]))]
    return table


def _difference(row: dict, best: pd.DataFrame, name: str, figure: str) -> float:
    rival = rival_of(row, best, name, figure)
    return float("nan") if rival is None else float(row[figure] - rival[figure])


def _selectivity(row: dict, results: pd.DataFrame) -> float:
    shuffled = shuffled_rows(row, results)
    return float(row["auroc"] - shuffled["auroc"].mean()) if len(shuffled) else float("nan")


def format_results(results: pd.DataFrame) -> str:
    """Write the table across models: the best layer of every backbone by the most capable probe that was fitted.

    Where there are controls, two more columns say by how much AUROC and twins AUROC exceed the strongest of them.
    """
    below = below_chance(results.to_dict("records"))
    if "task" in results:
        results = results[results["task"].isna() | (results["task"] == "pairwise")]
    best = best_layers(results[results["probe"] != "oracle"])
    if best.empty:
        return "No fit has figures yet."
    shown = min(best["probe"].astype(str), key=by_capability)
    best = best[best["probe"].astype(str) == shown]

    def number(value: float, sign: str = "") -> str:
        return "-" if pd.isna(value) else f"{value:{sign}.3f}"

    table = pd.DataFrame(
        {
            "backbone": best["backbone"],
            "objective": ["-" if pd.isna(objective) else objective for objective in best["objective"]],
            "layer": ["-" if pd.isna(layer) else f"{layer:.0f}" for layer in best["layer"]],
            "accuracy": best["accuracy"].map(number),
            "95 % interval": [
                "-" if pd.isna(low) else f"{number(low)} to {number(high)}"
                for low, high in zip(best["accuracy_low"], best["accuracy_high"], strict=True)
            ],
            "majority": best["majority_accuracy"].map(number),
            "gain": [number(gain, "+") for gain in best["gain"]],
        }
    )
    has_controls = bool((best["objective"] == CONTROL).any())
    figures = ranked_by(best)
    plain = {"auroc": "AUROC", "twins_auroc": "twins AUROC"}
    matched = {"matched_auroc": "at equal distance", "matched_twins_auroc": "twins at equal distance"}
    for figure, head in (plain if figures[0] in plain else plain | matched).items():
        table[head] = best[figure].map(number)
        if has_controls and figure in figures:
            over = [number(value, "+") for value in best[OVER_CONTROLS[figure]]]
            table.insert(table.shape[1], "over controls", over, allow_duplicates=True)
    judged_on = ", ".join(map(scenes_of, sorted(set(best["split"].dropna())))) or "unknown scenes"
    protocols = ", ".join(sorted(set(best["protocol"].dropna()))) or "unknown"
    chosen_on = ", ".join(sorted(set(best["chosen_on"].dropna()))) or "judged"
    title = (
        f"Best layer of each backbone, chosen on the {chosen_on} scenes ({shown} probe, {protocols} protocol, "
        f"judged on {judged_on})"
    )
    lines = ["", title, "", table.to_string(index=False)]
    if below:
        lines += ["", *below]
    fewest = best["n_scenes"].min()
    if not pd.isna(fewest) and fewest < FEW_SCENES:
        judged = f"{fewest} scene{'' if fewest == 1 else 's'}"
        lines += ["", f"Judged on {judged} only: a demonstration that the path works, not a measurement."]
    if (best["objective"] == "random-init").any():
        lines += ["", "random-init: never trained; a control that trained backbones have to beat, not a result."]
    if has_controls:
        lines += [
            "",
            "over controls: AUROC minus that of the strongest control, which reads the same pairs without a model.",
        ]
    if figures[0] not in plain:
        lines += ["", "at equal distance: AUROC among pairs that lie equally far apart, where proximity tells nothing."]
    return "\n".join(lines)
