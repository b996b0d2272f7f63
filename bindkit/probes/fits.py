"""A fitted probe with its figures: one row of ``results.csv``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bindkit.arguments import is_control
from bindkit.probes.base import Probe
from bindkit.probes.saving import load_probe, save_probe

RESULT_COLUMNS = (
    *("backbone", "objective", "layer", "probe", "task", "protocol", "split"),
    *("accuracy", "accuracy_low", "accuracy_high", "auroc", "average_precision", "balanced_accuracy"),
    *("twins_accuracy", "twins_auroc", "majority_accuracy", "n_scenes", "n_pairs", "seed", "seconds"),
    *("auroc_low", "auroc_high", "twins_auroc_low", "twins_auroc_high", "class_accuracy", "matched_iou"),
    *("matched_auroc", "matched_auroc_low", "matched_auroc_high"),
    *("matched_twins_auroc", "matched_twins_auroc_low", "matched_twins_auroc_high"),
    "reference_accuracy",
)
"""Columns of ``results.csv``, one row a fit; some are of pointwise tasks alone (`bindkit.probes.tasks.own_figures`)."""


@dataclass(frozen=True)
class Fit:
    """A fitted probe with its figures.

    Attributes
    ----------
    probe : Probe
        In evaluation mode, on the CPU, in the activations' own units.
    metrics : dict
        The figures of `bindkit.probes.metrics.judge` on the judged split, ``n_pairs``, and in ``n_scenes`` how many
        scenes they come from; with a pointwise task, its own figure.
    history : tuple of dict
        One entry an epoch: training loss, validation loss and accuracy (None without a validation split), seconds
        (shared with the probes that were trained beside it) and scenes per second. Where there is a start in closed
        form, it comes first as epoch -1, without a training loss; behind the protocol's epochs comes what a probe of
        one's own is trained on to its end.
    split : str
        The judged split: "test", or what there is where the scene set is too small to have one.
    seconds : float
        Training time, the judging not counted; of the probes trained side by side, an equal share each.
    folds : tuple of Fit
        Of a cross-validation one fit a fold, with its probe and history; probe and history above are the first one's,
        the figures those of all. ``probe.fitted_on["fold"]`` says which scenes a probe never saw.
    """

    probe: Probe
    metrics: dict[str, float]
    history: tuple[dict[str, float | None], ...]
    split: str
    seconds: float
    folds: tuple[Fit, ...] = ()

    def row(self) -> dict[str, Any]:
        """The fit as one row of ``results.csv``. A control has no layers: its layer is NaN."""
        fitted = self.probe.fitted_on
        known = {**fitted, **self.metrics, "split": self.split, "seconds": self.seconds}
        if is_control(known.get("objective")):
            known["layer"] = math.nan
        return {column: known.get(column, math.nan) for column in RESULT_COLUMNS}

    def save(self, directory: str | Path) -> Path:
        """Write probe, figures and history; `bindkit.load_probe` reads the probe back. Returns the directory.

        The probes of further folds go into ``fold_2``, ``fold_3``, ... of the directory.
        """
        for fit in self.folds[1:]:
            save_probe(fit.probe, Path(directory) / f"fold_{fit.probe.fitted_on['fold']['number']}")
        return save_probe(self.probe, directory)


def load_folds(directory: str | Path) -> list[Probe]:
    """All probes of a saved fit: one, or one a fold. Raises ProbeError as `bindkit.load_probe`."""
    first = load_probe(directory)
    numbers = first.fitted_on.get("fold", {}).get("saved", [1])
    return [first, *(load_probe(Path(directory) / f"fold_{number}") for number in numbers[1:])]
