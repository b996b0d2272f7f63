"""Fitted probes with their figures, on disk as weights (safetensors) and JSON that says what they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from bindkit.arguments import is_control, read_path
from bindkit.errors import ProbeError
from bindkit.files import parse_json, sha256_of, write_bytes, write_json
from bindkit.probes.base import PROBES, Probe, make_probe
from bindkit.probes.protocols import PROTOCOLS, Protocol

FORMAT = 3
"""Version of a saved probe's directory. Version 1 had neither options nor temperature, version 2 no scale."""

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
        known = {**self.probe.fitted_on, **self.metrics, "split": self.split, "seconds": self.seconds}
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


def save_probe(probe: Probe, directory: str | Path) -> Path:
    """Write ``probe.safetensors`` and ``probe.json`` (what it was fitted on); the JSON comes last and seals both."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    record = directory / "probe.json"
    record.unlink(missing_ok=True)
    weights = directory / "probe.safetensors"
    write_bytes(weights, save({name: value.detach().cpu().contiguous() for name, value in probe.state_dict().items()}))
    shape = {"probe": probe.kind, "d_model": probe.d_model, "options": probe.options}
    shape |= {"scale": probe.scale, "temperature": probe.temperature}
    write_json(record, {"format": FORMAT, **shape, "sha256": sha256_of(weights), "fitted_on": probe.fitted_on})
    return directory


def load_probe(directory: str | Path, d_model: int | None = None, layer: int | None = None) -> Probe:
    """Read a fitted probe.

    Parameters
    ----------
    directory : path
        As written by ``fit.save(directory)``.
    d_model, layer : int, optional
        Width and layer that the probe will be asked to judge; checked against what it was fitted on.

    Returns
    -------
    Probe
        In evaluation mode, on the CPU, with ``fitted_on`` filled.

    Raises
    ------
    ProbeError
        No probe there, an unknown kind or format, or weights that are not those that were saved.
    ProbeMismatchError
        Another width or layer.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     _ = save_probe(make_probe("linear", d_model=4), directory)
    ...     load_probe(directory, d_model=4).kind
    'linear'
    """
    directory = read_path(directory, "a probe's directory")
    try:
        description = parse_json((directory / "probe.json").read_text(encoding="utf-8"))
        kind, width, digest = description["probe"], description["d_model"], description["sha256"]
        version, fitted_on = description["format"], description["fitted_on"]
        options = description.get("options", {})
        scale, temperature = (float(description.get(name, 1)) for name in ("scale", "temperature"))
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise ProbeError(
            f"{directory} holds no readable probe.json ({cause}); give a directory that fit.save() wrote"
        ) from cause
    if version not in range(1, FORMAT + 1):
        raise ProbeError(f"{directory} has probe format {version}, this bindkit reads {FORMAT}; fit it again or update")
    if kind not in PROBES:
        raise ProbeError(f"{directory} holds a {kind!r} probe, which is not registered; there are {', '.join(PROBES)}")
    weights = directory / "probe.safetensors"
    try:
        probe = make_probe(kind, width, **options)
        if sha256_of(weights) != digest:
            raise ProbeError(f"{weights} is not the file that was saved (its digest differs); fit the probe again")
        probe.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError, TypeError) as cause:
        raise ProbeError(f"{weights} cannot be read ({cause}); fit the probe again") from cause
    probe.fitted_on, probe.scale, probe.temperature = fitted_on, scale, temperature
    probe.check_fits(probe.d_model if d_model is None else d_model, layer)
    return probe.eval()


def load_folds(directory: str | Path) -> list[Probe]:
    """All probes of a saved fit: one, or one a fold. Raises ProbeError as `bindkit.load_probe`."""
    first = load_probe(directory)
    numbers = first.fitted_on.get("fold", {}).get("saved", [1])
    return [first, *(load_probe(Path(directory) / f"fold_{number}") for number in numbers[1:])]


def validation_accuracy(history: Sequence[Mapping[str, Any]], protocol: Protocol) -> float:
    """Accuracy on the validation scenes of the epoch whose weights were kept; NaN where there were no such scenes."""
    looked = [entry for entry in history if entry["validation_accuracy"] is not None]
    looked = [entry for entry in looked if math.isfinite(entry["validation_loss"])]
    if not looked:
        return math.nan
    # Of equal epochs the first is kept.
    if protocol.keep == "accuracy":
        return float(max(entry["validation_accuracy"] for entry in looked))
    return float(min(looked, key=lambda entry: entry["validation_loss"])["validation_accuracy"])


def accuracies_of(fitted_on: Mapping[str, Any]) -> tuple[float, float]:
    """Accuracy on the validation and on the judged scenes, by what a saved probe says of itself; NaN the unknown."""
    judged = (fitted_on.get("metrics") or {}).get("accuracy")
    validated = fitted_on.get("validation_accuracy")
    if validated is None and fitted_on.get("history") and fitted_on.get("protocol") in PROTOCOLS:
        # Older probes have their history alone.
        validated = validation_accuracy(fitted_on["history"], PROTOCOLS[fitted_on["protocol"]])
    return math.nan if validated is None else float(validated), math.nan if judged is None else float(judged)


def best_position(validated: Sequence[float], judged: Sequence[float]) -> tuple[int | None, bool]:
    """Where the best of several layers stands, and whether the *validation* scenes say so: one rule for all views.

    They decide where every layer has an accuracy on them; else accuracies on the judged scenes do, so that the best of
    many layers looks a little better than it is. Of equal layers the first; None where nothing was judged.
    """
    by_validation = bool(validated) and not any(map(math.isnan, validated))
    # Rounded to the digits of results.csv: layers that differ only in the last bits of a mean count as equal.
    scores = [-math.inf if math.isnan(score) else round(score, 6) for score in (validated if by_validation else judged)]
    best = max(scores, default=-math.inf)
    return (None if best == -math.inf else scores.index(best)), by_validation
