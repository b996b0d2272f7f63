"""Does binding emerge in training? The answer in words, computed from the table of checkpoints."""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas as pd

from bindkit.analysis.emergence.gains import FEW_SEEDS, FIGURES, emergence_gains
from bindkit.arguments import control_title
from bindkit.scenes.splits import FEW_SCENES

_NO_BETTER_THAN_CHANCE = 0.55
_ASKED_FOR = ("motion",)
"""Objectives whose loss is about objects: what binds there did not emerge by itself."""


def emergence_verdicts(table: pd.DataFrame) -> list[str]:
    """Say of every objective whether binding emerged, and then which one binds best and how far that carries.

    "Yes" takes AUROC and twins AUROC that are both above the objective's own random init and above the strongest
    control in every sense of `emergence_gains`, and twins told apart better than by chance.

    ::

        for sentence in emergence_verdicts(table):
            print("-", sentence)

    Parameters
    ----------
    table : pandas.DataFrame
        As `bindkit.measure_checkpoints` gives it.

    Returns
    -------
    list of str
        One entry an objective, one for the comparison, one for what the numbers cannot say.

    Raises
    ------
    InvalidParameterError
        As `emergence_gains`.
    """
    gains = emergence_gains(table)
    judged = [_Judged(label, *_figures(own)) for label, own in gains.groupby("pretraining", sort=False)]
    return [*(objective.sentence() for objective in judged), _ranking(judged), _caveat(gains)]


class _Gap(NamedTuple):
    """How far a figure is above another: mean and bounds of the differences."""

    mean: float
    low: float
    high: float
    n_seeds: int

    @property
    def is_there(self) -> bool:
        return not math.isnan(self.mean)

    @property
    def way(self) -> int:
        """1 above, -1 below, 0 not told apart; differences that are said as 0.00 are none."""
        low, high = (self.mean, self.mean) if self.n_seeds == 1 else (self.low, self.high)
        if round(self.mean, 2) > 0 and low > 0:
            return 1
        return -1 if round(self.mean, 2) < 0 and high < 0 else 0

    def words(self, other: str) -> str:
        """Such as ``0.05 above its random init (0.70), 0.03 to 0.07 over two seeds``."""
        bounds = ""
        if self.n_seeds >= FEW_SEEDS:
            bounds = f" [{_signed(self.low)}, {_signed(self.high)}]"
        elif self.n_seeds == 2:
            bounds = f" (its two seeds: {_signed(self.low)} and {_signed(self.high)})"
        if self.way:
            return f"{abs(self.mean):.2f} {'above' if self.way > 0 else 'below'} {other}{bounds}"
        return f"not told apart from {other}{bounds}"


class _Figure(NamedTuple):
    """One figure of one objective."""

    row: pd.Series
    over_untrained: _Gap
    over_control: _Gap

    @property
    def is_there(self) -> bool:
        return not math.isnan(self.row["value"])

    @property
    def emerged(self) -> bool:
        return all(gap.way > 0 for gap in (self.over_untrained, self.over_control) if gap.is_there)

    def words(self) -> str:
        name, row = FIGURES[self.row["figure"]], self.row
        if not self.is_there:
            return f"{name}: nothing to rank"
        against = []
        if self.over_untrained.is_there:
            against.append(self.over_untrained.words(f"its random init ({row['untrained']:.2f})"))
        if self.over_control.is_there:
            control = f"the strongest control ({control_title(row['control'])}, {row['control_value']:.2f})"
            against.append(self.over_control.words(control))
        return f"{name} {row['value']:.2f} at layer {row['layer']:.0f}" + "".join(f", {words}" for words in against)

    def lacking(self) -> list[str]:
        """What keeps the figure from being a yes."""
        name = FIGURES[self.row["figure"]]
        if not self.is_there:
            return [f"there is no {name}"]
        found = []
        if self.row["figure"].endswith("twins_auroc") and self.row["value"] < _NO_BETTER_THAN_CHANCE:
            found.append("twins are told apart no better than by chance")
        if not self.over_untrained.is_there:
            found.append(f"{name} has no random init to be set against")
        if not self.over_control.is_there:
            found.append(f"{name} has no control to be set against")
        gaps = ((self.over_untrained, "its random init"), (self.over_control, "what a control reads"))
        below = [other for gap, other in gaps if gap.is_there and gap.way <= 0]
        if below:
            found.append(f"{name} is not above {' nor above '.join(below)}")
        return found


class _Judged(NamedTuple):
    """One objective with its figures."""

    label: str
    pairs: _Figure
    twins: _Figure

    @property
    def lacking(self) -> list[str]:
        return self.pairs.lacking() + self.twins.lacking()

    @property
    def binds(self) -> bool:
        return not self.lacking

    def sentence(self) -> str:
        row = self.pairs.row
        n_seeds = row["n_seeds"]
        seeds = f"{n_seeds} training seed{'' if n_seeds == 1 else 's'}"
        how = "is there, as its loss asks for" if self.label.split(",")[0] in _ASKED_FOR else "emerged in training"
        verdict = (
            f"Yes: binding {how}, beyond likeness and beyond what can be read without a model"
            if self.binds
            else f"No: {'; '.join(self.lacking)}"
        )
        if self.binds and n_seeds == 1:
            verdict += ", in the one seed that was trained"
        return (
            f"{self.label}, {row['scenes_seen']:,.0f} scenes seen, {seeds}. {self.pairs.words()}. "
            f"{_capital(self.twins.words())}. {verdict}."
        )


def _figures(own: pd.DataFrame) -> tuple[_Figure, _Figure]:
    on_twins = own["figure"].str.endswith("twins_auroc")
    return _figure(own[~on_twins].iloc[0]), _figure(own[on_twins].iloc[0])


def _figure(row: pd.Series) -> _Figure:
    gaps = [
        _Gap(row[name], row[f"{name}_low"], row[f"{name}_high"], int(row["n_seeds"]))
        for name in ("over_untrained", "over_control")
    ]
    return _Figure(row, *gaps)


def _ranking(judged: list[_Judged]) -> str:
    """Which objective binds best, by twins AUROC at its best layer."""
    ranked = sorted((own for own in judged if own.twins.is_there), key=lambda own: -own.twins.row["value"])
    if not ranked:
        return "Which objective binds best cannot be said: no twins were judged."
    first = ranked[0]
    highest = f"{first.label} has the highest twins AUROC, {first.twins.row['value']:.2f}"
    if not any(own.binds for own in judged):
        return f"No objective binds by this measure; {highest}."
    if not first.binds:
        return f"{highest}, but does not pass as binding; of those that do, {_best_binding(ranked)} has the highest."
    if len(ranked) == 1:
        return f"{first.label} binds; there is no other objective to compare it with."
    second = ranked[1]
    ahead = first.twins.row["value"] - second.twins.row["value"]
    apart = f"{ahead:.2f} above {second.label}"
    if round(ahead, 2) == 0:
        return f"{highest}, as high as {second.label}: which of the two binds best is open."
    if min(first.twins.row["n_seeds"], second.twins.row["n_seeds"]) == 1:
        return f"{first.label} binds best, its twins AUROC {apart}; with one seed each, chance may decide that."
    if first.twins.row["value_low"] > second.twins.row["value_high"]:
        return f"{first.label} binds best: its twins AUROC is {apart}, in every seed above every seed of that."
    return f"{highest}, {apart}; but seeds of the two overlap, so which binds best is open."


def _best_binding(ranked: list[_Judged]) -> str:
    return next(own.label for own in ranked if own.binds)


def _caveat(gains: pd.DataFrame) -> str:
    """What the numbers cannot say."""
    n_scenes, n_seeds = gains["n_scenes"].min(), gains["n_seeds"].min()
    seen = sorted(gains["scenes_seen"].unique())
    text = f"Judged on {n_scenes:.0f} scenes"
    text += ": a demonstration, not a measurement. " if n_scenes < FEW_SCENES else ". "
    text += {
        1: "One training seed says nothing of how much seeds differ. ",
        2: "Two training seeds show a difference, but give no interval. ",
    }.get(int(n_seeds), "Intervals are over training seeds, not over scenes. ")
    if len(seen) > 1:
        text += f"Objectives saw different numbers of scenes ({' and '.join(f'{count:,.0f}' for count in seen)}). "
    return text + f"Longer training than {max(seen):,.0f} scenes, other data or larger backbones may say otherwise."


def _signed(value: float) -> str:
    return f"{value:+.2f}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
