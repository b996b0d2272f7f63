"""The paper's table: one probe across models, each beside all that it has to be compared with, and how sure that is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bindkit.arguments import CONTROL, SAME_CLASS, control_title, parse_control
from bindkit.cache import ActivationCache
from bindkit.errors import InvalidParameterError
from bindkit.probes.batches import is_folds
from bindkit.probes.judging import judging
from bindkit.probes.metrics import UNKNOWN, JudgedPairs, interval, left_out
from bindkit.probes.protocols import Protocol, load_folds, protocol_of_fit
from bindkit.results.sweeping import probe_directory, same_class_pairs
from bindkit.results.tables import (
    COMPARED_FIGURES,
    JUDGED_ALIKE,
    OVER_CONTROLS,
    agreeing,
    best_layers,
    chance_remark,
    ranked_by,
    strongest_controls,
)
from bindkit.results.words import BEST_BASELINE, WORDS

UNTRAINED = "random-init"
"""Objective of an untrained backbone, and what its name begins with."""

KINDS_OF_ROWS = ("trained", "untrained", "control", "oracle")
"""In this order they stand in the table, told by the column ``kind``."""

_OF_ALL_SEEDS = ["workspace", "backbone", "layer", "probe", "task", "protocol", "split"]
"""Columns in which rows agree that differ in their seed alone."""

_TOLERANCE = 1e-3
"""By how much a probe's accuracy may differ from that in the table: digits cut off, another device."""


def model_table(results: pd.DataFrame, probe: str = "quadratic", task: str = "pairwise") -> pd.DataFrame:
    """Set every model at its best layer beside baseline, controls, untrained twin, oracle and control task.

    ::

        table = model_table(pd.read_csv("workspace/results.csv"))
        table[["backbone", "layer", "accuracy", "gain", "auroc", "auroc_over_untrained", "selectivity"]]

    One row a model, in the order of `KINDS_OF_ROWS`, which ``kind`` tells, with the columns of `best_layers`, and

    - for every control, ``accuracy_over_NAME``, ``auroc_over_NAME`` and so on: the figure less that of the control on
      the very same pairs. NAME is ``position``, ``raw-pixels``, ``position+raw-pixels``, ``untrained`` (the untrained
      twin ``random-init:BACKBONE`` if it was measured, else the strongest untrained backbone; of twins of several
      seeds the strongest) or ``same-class`` (the oracle; no baseline of accuracies, as it calls all pairs of one class
      *same*);
    - ``selectivity``: AUROC less that of the same probe at the same layer on shuffled labels (Hewitt & Liang 2019,
      arXiv 1909.03368; theirs is of accuracies). NaN where that task was not fitted, and of any other task.

    InvalidParameterError if there is no row of that probe and task.
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
    kind_of = {CONTROL: "control", UNTRAINED: "untrained"}
    kinds = best["objective"].map(lambda objective: kind_of.get(objective, "trained"))
    best.insert(0, "kind", kinds.where(best["probe"] != "oracle", "oracle"))
    best = best.sort_values("kind", kind="stable", key=lambda kinds: kinds.map(KINDS_OF_ROWS.index), ignore_index=True)
    records = best.to_dict("records")
    for figure in COMPARED_FIGURES:
        for name in comparisons(best, figure):
            rivals = [rival_of(row, best, name, figure) for row in records]
            best[f"{figure}_over_{name}"] = [
                float(row[figure] - rival[figure]) if rival else np.nan
                for row, rival in zip(records, rivals, strict=True)
            ]
    shuffled = [shuffled_rows(row, rows if task == "pairwise" else rows[:0])["auroc"].mean() for row in records]
    return best.assign(selectivity=best["auroc"] - shuffled)


def comparisons(best: pd.DataFrame, figure: str) -> list[str]:
    """Names of what there is to compare a figure with, in order of appearance: controls, untrained, oracle."""
    names = [parse_control(name).kind for name in best.loc[best["kind"] == "control", "backbone"]]
    names += ["untrained"] if (best["kind"] == "untrained").any() else []
    names += ["same-class"] if figure != "accuracy" and (best["kind"] == "oracle").any() else []
    return list(dict.fromkeys(names))


def rival_of(row: Mapping[str, Any], best: pd.DataFrame, name: str, figure: str) -> dict[str, Any] | None:
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


def shuffled_rows(row: Mapping[str, Any], results: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``results.csv`` of the same probe and layer, fitted and judged on shuffled labels."""
    shuffled = results[results["task"] == "shuffled_labels"]
    shuffled = shuffled.assign(layer=pd.to_numeric(shuffled["layer"]), auroc=pd.to_numeric(shuffled["auroc"]))
    return agreeing(shuffled, row, [column for column in _OF_ALL_SEEDS if column != "task"])


# --- how sure gains are ----------------------------------------------------------------------------------------------


def with_gain_intervals(
    table: pd.DataFrame,
    results: pd.DataFrame,
    caches: Sequence[ActivationCache] | Mapping[str, Sequence[ActivationCache]],
    root: str | Path | Mapping[str, str | Path],
    protocol: str | Protocol | None = None,
    device: str = "auto",
) -> pd.DataFrame:
    """Give every gain of a `model_table`, made from these `results`, its 95 % interval.

    ::

        table = with_gain_intervals(model_table(results), results, caches, "workspace/probes")
        table[["backbone", "auroc_over_position", "auroc_over_position_low", "auroc_over_position_high"]]

    Nothing is fitted: the probes of the table are read and say again what they said of each pair. Then each scene is
    left out in turn, on both sides of a difference. That scene which is hard for the model is mostly hard for
    the control too, so that such an interval is narrower, and says more, than two intervals side by side.

    `caches` are those that were swept and `root` is where the sweep kept its probes; of a table of several workspaces
    (`bindkit.compare_workspaces`) those of each, by what its column ``workspace`` says. `protocol` is needed where it
    was a Protocol of one's own.

    Added are ``_low`` and ``_high`` of ``gain``, of every ``FIGURE_over_NAME`` and of ``selectivity``; figures are
    averaged over seeds before the difference is taken. NaN where the difference is, with too few scenes, and where the
    two were not judged on the same pairs (of ``selectivity``, the same scenes: its labels differ).
    InvalidParameterError if a cache is missing or probes are not those of the table, ProbeError if one is missing.
    """
    roots: dict[str | None, str | Path] = {None: root} if not isinstance(root, Mapping) else dict(root.items())
    of_each = caches if isinstance(caches, Mapping) else {None: caches}
    known = {(space, cache.backbone["name"]): cache for space, several in of_each.items() for cache in several}
    told = _Told(results, known, roots, protocol, device)
    strongest = {figure: strongest_controls(table, figure)["backbone"] for figure in OVER_CONTROLS}
    bounds: list[dict[str, tuple[float, float]]] = []
    for number, row in enumerate(table.to_dict("records")):
        mine = told.of(row)
        own = {"gain": mine.over_majority()}
        for figure in COMPARED_FIGURES:
            for name in comparisons(table, figure):
                rival = rival_of(row, table, name, figure)
                own[f"{figure}_over_{name}"] = mine.over(told.of(rival), figure) if rival else UNKNOWN
        for figure, column in OVER_CONTROLS.items():
            named = table[table["backbone"] == strongest[figure].iloc[number]]
            rivals = agreeing(named, row, JUDGED_ALIKE).to_dict("records")
            # Of one control in several workspaces the strongest, as the difference says.
            rival = max(rivals, key=lambda rival: rival[figure], default=None)
            own[column] = mine.over(told.of(rival), figure) if rival else UNKNOWN
        shuffled = shuffled_rows(row, results) if pd.notna(row["selectivity"]) else results[:0]
        own["selectivity"] = mine.over(told.of_rows(shuffled), "auroc", same_labels=False)
        bounds.append(own)
    ends = {
        f"{name}_{end}": [own[name][side] for own in bounds]
        for name in (bounds[0] if bounds else ())
        for side, end in enumerate(("low", "high"))
    }
    # All at once: pandas warns of every column behind the hundredth that is put in by itself.
    return pd.concat([table.drop(columns=list(ends), errors="ignore"), pd.DataFrame(ends, index=table.index)], axis=1)


@dataclass(frozen=True)
class _LeftOut:
    """Figures with each scene left out in turn, averaged over seeds; digests of the scenes and pairs they come from."""

    figures: Mapping[str, np.ndarray]
    scenes: str = ""
    pairs: str = ""

    @classmethod
    def of(cls, pairs: JudgedPairs) -> _LeftOut:
        # Numbered without gaps: a scene whose pairs all do not count leaves none.
        scenes = hashlib.sha256(np.unique(pairs.scene, return_inverse=True)[1].tobytes())
        answers = scenes.copy()
        answers.update(np.packbits(pairs.same.astype(bool)).tobytes())
        return cls(left_out(pairs), scenes.hexdigest(), answers.hexdigest())

    def over_majority(self) -> tuple[float, float]:
        if not self.figures:
            return UNKNOWN
        return interval(self.figures["accuracy"] - self.figures["majority_accuracy"], within_unit=False)

    def over(self, other: _LeftOut, figure: str, same_labels: bool = True) -> tuple[float, float]:
        paired = self.pairs == other.pairs if same_labels else self.scenes == other.scenes
        if not self.figures or not other.figures or not paired:
            return UNKNOWN
        return interval(self.figures[figure] - other.figures[figure], within_unit=False)


@dataclass(frozen=True)
class _Told:
    """What rows of the table say with each scene left out; every probe is asked once."""

    results: pd.DataFrame
    caches: Mapping[tuple[str | None, str], ActivationCache]
    roots: Mapping[str | None, str | Path]
    protocol: str | Protocol | None
    device: str
    known: dict[str, _LeftOut] = field(default_factory=dict)

    def of(self, row: dict[str, Any]) -> _LeftOut:
        """A row of the table."""
        if row["kind"] != "oracle":
            return self.of_rows(agreeing(self.results, row, _OF_ALL_SEEDS))
        # The oracle needs labels alone: any cache whose pairs are the same will do.
        rows = agreeing(self.results, row, ["judged_pairs", "protocol", "split"])
        asked = rows[rows["probe"] != "oracle"].iloc[0].to_dict()
        cache = self._cache(asked)
        key = f"oracle of {cache.path}"
        if key not in self.known:
            rules = self.protocol or protocol_of_fit(load_folds(self._place(asked))[0].fitted_on)
            self.known[key] = _LeftOut.of(same_class_pairs(cache, rules, row["split"])[1])
        return self.known[key]

    def of_rows(self, rows: pd.DataFrame) -> _LeftOut:
        """Rows of the results that differ in their seed, averaged; nothing without rows."""
        seeds = [self._asked(row) for row in rows.to_dict("records")]
        if not seeds:
            return _LeftOut({})
        averaged = {name: np.mean([seed.figures[name] for seed in seeds], axis=0) for name in seeds[0].figures}
        return replace(seeds[0], figures=averaged)

    def _asked(self, row: dict[str, Any]) -> _LeftOut:
        """What one probe says now. Raises InvalidParameterError where that is not what its row says."""
        place = self._place(row)
        if str(place) not in self.known:
            parts, split = [], "test" if is_folds(row["split"]) else row["split"]
            for probe in load_folds(place):
                with judging(probe, self._cache(row), split, self.protocol, device=self.device) as judged:
                    parts.append(judged.pairs())
            pairs = JudgedPairs.together(parts)
            accuracy = float((pairs.said_same == pairs.same).mean())
            if abs(accuracy - row["accuracy"]) > _TOLERANCE:
                raise InvalidParameterError(
                    f"the probe in {place} judges {accuracy:.4f} of the pairs right, the table says "
                    f"{row['accuracy']:.4f}; sweep again, and give the table and the probes of one run"
                )
            self.known[str(place)] = _LeftOut.of(pairs)
        return self.known[str(place)]

    def _place(self, row: Mapping[str, Any]) -> Path:
        return probe_directory(self.roots[row.get("workspace")], row)

    def _cache(self, row: Mapping[str, Any]) -> ActivationCache:
        key = (row.get("workspace"), row["backbone"])
        if key not in self.caches:
            raise InvalidParameterError(
                f"the table has {row['backbone']}, whose cache is not among those given: "
                f"{', '.join(name for _, name in self.caches) or 'none'}"
            )
        return self.caches[key]


# --- for readers -----------------------------------------------------------------------------------------------------


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Give a `model_table` heads of two levels, for readers: what is measured, and less what.

    Accuracy stands beside the majority class, AUROCs (those that `ranked_by` names) beside the best baseline without a
    model, all beside the untrained network; the differences to every baseline by itself are in the table given.
    Columns without any figure are left out. Intervals, and gains that have one, are text; a model below chance beyond
    its interval is marked so.
    """

    def name(row: Mapping[str, Any]) -> str:
        remark, title = chance_remark(row).partition(":")[0], control_title(str(row["backbone"]))
        return f"{title} ({remark})" if remark else title

    heads: dict[tuple[str, str], pd.Series] = {
        ("", "model"): _texts(table, name),
        ("", "layer"): table["layer"].map(lambda layer: "-" if pd.isna(layer) else f"{layer:.0f}"),
    }
    for figure in ("accuracy", *ranked_by(table)):
        title = WORDS.get(figure, figure)
        heads[title, "value"] = table.get(figure)
        heads[title, "95 % interval"] = _texts(table, partial(bounds_text, column=figure))
        heads[title, "± over seeds"] = table.get(f"{figure}_spread")
        over = ("over majority class", "gain") if figure == "accuracy" else (BEST_BASELINE, OVER_CONTROLS[figure])
        heads[title, over[0]] = _gain(table, over[1])
        heads[title, "over untrained"] = _gain(table, f"{figure}_over_untrained")
    heads[WORDS["auroc"], "over shuffled labels"] = _gain(table, "selectivity")
    return pd.DataFrame({head: column for head, column in heads.items() if column is not None and column.notna().any()})


def differences(table: pd.DataFrame, figure: str) -> list[str]:
    """Columns with what a figure is over each control by itself, the strongest not among them."""
    beginning, leave_out = f"{figure}_over_", ("_low", "_high", "_controls")
    return [name for name in table if name.startswith(beginning) and not name.endswith(leave_out)]


def bounds_text(row: Mapping[str, Any], column: str, sign: str = "") -> str | None:
    """The interval of a row's figure, such as ``−0.010 to +0.020`` with `sign` "+"; None where there is none."""
    low, high = row.get(f"{column}_low"), row.get(f"{column}_high")
    return None if pd.isna(low) or pd.isna(high) else f"{low:{sign}.3f} to {high:{sign}.3f}".replace("-", "−")


def _gain(table: pd.DataFrame, column: str) -> pd.Series | None:
    """The numbers, or where any has an interval the numbers with their intervals as text."""
    if f"{column}_low" not in table or table[f"{column}_low"].isna().all():
        return table.get(column)

    def told(row: Mapping[str, Any]) -> str | None:
        if pd.isna(row[column]):
            return None
        gain, bounds = f"{row[column]:+.3f}".replace("-", "−"), bounds_text(row, column, "+")
        # An interval is not broken over two lines.
        return gain + (f" ({bounds})".replace(" to ", "\u00a0to\u00a0") if bounds else "")

    return _texts(table, told)


def _texts(table: pd.DataFrame, tell: Callable[[Mapping[str, Any]], str | None]) -> pd.Series:
    return pd.Series([tell(row) for row in table.to_dict("records")], table.index, dtype=object)
