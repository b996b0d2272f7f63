"""How sure each gain of the paper's table is: model and control on the very same scenes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bindkit.cache import ActivationCache
from bindkit.errors import InvalidParameterError
from bindkit.probes.judging import is_folds, judging, same_class_pairs
from bindkit.probes.metrics import JudgedPairs, left_out
from bindkit.probes.protocols import Protocol, protocol_of_fit
from bindkit.probes.resampling import UNKNOWN, interval
from bindkit.probes.saving import load_folds
from bindkit.results.model_table import COMPARED_FIGURES, agreeing, comparisons, rival_of, shuffled_rows
from bindkit.results.sweeping import probe_directory
from bindkit.results.tables import JUDGED_ALIKE, OVER_CONTROLS, strongest_controls

_TOLERANCE = 1e-3
"""By how much a probe's accuracy may differ from that in the table: digits cut off, another device."""


_OF_ALL_SEEDS = ["workspace", "backbone", "layer", "probe", "task", "protocol", "split"]
"""Columns in which rows agree that differ in their seed alone."""


def with_gain_intervals(
    table: pd.DataFrame,
    results: pd.DataFrame,
    caches: Sequence[ActivationCache] | Mapping[str, Sequence[ActivationCache]],
    root: str | Path | Mapping[str, str | Path],
    protocol: str | Protocol | None = None,
    device: str = "auto",
) -> pd.DataFrame:
    """Give every gain of a `model_table` its 95 % interval.

    ::

        table = with_gain_intervals(model_table(results), results, caches, "workspace/probes")
        table[["backbone", "auroc_over_position", "auroc_over_position_low", "auroc_over_position_high"]]

    Nothing is fitted: the probes of the table are read and say again what they said of each pair. Then each scene is
    left out in turn, on both sides of a difference. That scene which is hard for the model is mostly hard for
    the control too, so that such an interval is narrower, and says more, than two intervals side by side.

    Parameters
    ----------
    table : pandas.DataFrame
        As `model_table` gives it.
    results : pandas.DataFrame
        The rows of ``results.csv`` that it was made from.
    caches : sequence of ActivationCache
        Those that were swept; of a table of several workspaces (`bindkit.compare_workspaces`) those of each, by what
        its column ``workspace`` says.
    root : path
        Where the sweep kept its probes; of several workspaces, of each.
    protocol : str or Protocol, optional
        Of the sweep, where it was a Protocol of one's own. Default: the one that each probe names.
    device : str
        ``"auto"`` takes CUDA where there is one.

    Returns
    -------
    pandas.DataFrame
        The table with ``_low`` and ``_high`` of ``gain``, of every ``FIGURE_over_NAME`` and of ``selectivity``. Figures
        are averaged over seeds before the difference is taken. NaN where the difference is, with too few scenes, and
        where the two were not judged on the same pairs (of ``selectivity``, the same scenes: its labels differ).

    Raises
    ------
    InvalidParameterError
        If a backbone's cache is not among those given, or the probes are others than those of the table.
    ProbeError
        If a probe is missing.
    """
    roots: dict[str | None, str | Path] = {None: root} if not isinstance(root, Mapping) else dict(root.items())
    of_each = caches if isinstance(caches, Mapping) else {None: caches}
    known = {(space, cache.backbone["name"]): cache for space, several in of_each.items() for cache in several}
    told = _Told(results, known, roots, protocol, device)
    strongest = {figure: strongest_controls(table, figure)["backbone"] for figure in OVER_CONTROLS}
    bounds: list[dict[str, tuple[float, float]]] = []
    for number, row in enumerate(table.to_dict("records")):
        mine, own = told.of(row), {}
        own["gain"] = mine.over_majority()
        for figure in COMPARED_FIGURES:
            for name in comparisons(table, figure):
                rival = rival_of(row, table, name, figure)
                own[f"{figure}_over_{name}"] = UNKNOWN if rival is None else mine.over(told.of(rival), figure)
        for figure, column in OVER_CONTROLS.items():
            named = table[table["backbone"] == strongest[figure].iloc[number]]
            rivals = agreeing(named, row, JUDGED_ALIKE).to_dict("records")
            # Of one control in several workspaces the strongest, as the difference says.
            rival = max(rivals, key=lambda rival: rival[figure], default=None)
            own[column] = mine.over(told.of(rival), figure) if rival else UNKNOWN
        shuffled = shuffled_rows(row, results) if pd.notna(row["selectivity"]) else results[:0]
        own["selectivity"] = mine.over(told.of_rows(shuffled), "auroc", same_labels=False)
        bounds.append(own)
    added = table.copy()
    for name in bounds[0] if bounds else ():
        for side, end in enumerate(("low", "high")):
            added[f"{name}_{end}"] = [own[name][side] for own in bounds]
    return added


@dataclass(frozen=True)
class _LeftOut:
    """Figures with each scene left out in turn, averaged over seeds; which scenes and pairs they come from."""

    figures: Mapping[str, np.ndarray]
    scenes: str = ""
    pairs: str = ""

    def over_majority(self) -> tuple[float, float]:
        if not self.figures:
            return UNKNOWN
        return interval(self.figures["accuracy"] - self.figures["majority_accuracy"], within_unit=False)

    def over(self, other: _LeftOut, figure: str, same_labels: bool = True) -> tuple[float, float]:
        paired = self.pairs == other.pairs if same_labels else self.scenes == other.scenes
        if not self.figures or not other.figures or not paired:
            return UNKNOWN
        return interval(self.figures[figure] - other.figures[figure], within_unit=False)


class _Told:
    """What rows of the table say with each scene left out; every probe is asked once."""

    def __init__(
        self,
        results: pd.DataFrame,
        caches: Mapping[tuple[str | None, str], ActivationCache],
        roots: Mapping[str | None, str | Path],
        protocol: str | Protocol | None,
        device: str,
    ) -> None:
        self._results, self._caches, self._roots = results, caches, roots
        self._protocol, self._device = protocol, device
        self._known: dict[str, _LeftOut] = {}

    def of(self, row: dict[str, Any]) -> _LeftOut:
        """A row of the table."""
        if row["kind"] == "oracle":
            return self._oracle(row)
        return self.of_rows(agreeing(self._results, row, _OF_ALL_SEEDS))

    def of_rows(self, rows: pd.DataFrame) -> _LeftOut:
        """Rows of the results that differ in their seed, averaged; nothing without rows."""
        seeds = [self._asked(row) for row in rows.to_dict("records")]
        if not seeds:
            return _LeftOut({})
        averaged = {name: np.mean([seed.figures[name] for seed in seeds], axis=0) for name in seeds[0].figures}
        return replace(seeds[0], figures=averaged)

    def _asked(self, row: dict[str, Any]) -> _LeftOut:
        """What one probe says now. Raises InvalidParameterError where that is not what its row says."""
        place = probe_directory(self._roots[row.get("workspace")], row)
        if str(place) not in self._known:
            parts = []
            for probe in load_folds(place):
                split = "test" if is_folds(row["split"]) else row["split"]
                with judging(probe, self._cache(row), split, self._protocol, device=self._device) as judged:
                    parts.append(judged.pairs())
            pairs = JudgedPairs.together(parts)
            accuracy = float((pairs.said_same == pairs.same).mean())
            if abs(accuracy - row["accuracy"]) > _TOLERANCE:
                raise InvalidParameterError(
                    f"the probe in {place} judges {accuracy:.4f} of the pairs right, the table says "
                    f"{row['accuracy']:.4f}; sweep again, and give the table and the probes of one run"
                )
            self._known[str(place)] = _summary(pairs)
        return self._known[str(place)]

    def _oracle(self, row: dict[str, Any]) -> _LeftOut:
        """It needs labels alone: any cache whose pairs are the same will do."""
        rows = agreeing(self._results, row, ["judged_pairs", "protocol", "split"])
        asked = rows[rows["probe"] != "oracle"].iloc[0].to_dict()
        cache = self._cache(asked)
        key = f"oracle of {cache.path}"
        if key not in self._known:
            place = probe_directory(self._roots[asked.get("workspace")], asked)
            rules = self._protocol or protocol_of_fit(load_folds(place)[0].fitted_on)
            self._known[key] = _summary(same_class_pairs(cache, rules, row["split"])[1])
        return self._known[key]

    def _cache(self, row: dict[str, Any]) -> ActivationCache:
        key = (row.get("workspace"), row["backbone"])
        if key not in self._caches:
            raise InvalidParameterError(
                f"the table has {row['backbone']}, whose cache is not among those given: "
                f"{', '.join(name for _, name in self._caches) or 'none'}"
            )
        return self._caches[key]


def _summary(pairs: JudgedPairs) -> _LeftOut:
    # Numbered without gaps: a scene whose pairs all do not count leaves none.
    scenes = hashlib.sha256(np.unique(pairs.scene, return_inverse=True)[1].tobytes())
    answers = scenes.copy()
    answers.update(np.packbits(pairs.same.astype(bool)).tobytes())
    return _LeftOut(left_out(pairs), scenes.hexdigest(), answers.hexdigest())
