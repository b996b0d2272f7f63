"""Runs of `pretrain`: which are in a place, what each was trained with, its checkpoints and its losses."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindkit.arguments import read_path
from bindkit.errors import BackboneError, InvalidParameterError
from bindkit.files import parse_json
from bindkit.pretraining.loop import RUN_FILE, STATE_FILE, checkpoints_of

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

_NOT_IN_LABELS = ("objective", "seed", "checkpoints")
"""Parts of a plan in which runs of one training may differ."""


@dataclass(frozen=True)
class TrainingRun:
    """A run of `pretrain`, finished or not.

    Attributes
    ----------
    directory : Path
    label : str
        The objective's name; where runs of one objective were trained differently, also what differs.
    objective : str
        The objective's name.
    seed : int
        Of the starting weights and of training.
    checkpoints : mapping of int to Path
        Scenes seen -> Hugging Face directory, ascending.
    """

    directory: Path
    label: str
    objective: str
    seed: int
    checkpoints: Mapping[int, Path]


def find_runs(places: Iterable[str | Path]) -> list[Path]:
    """Find runs of `pretrain`: each place is one, or a directory of several.

    Raises
    ------
    BackboneError
        If there is none in a place.
    """
    found = []
    for place in map(Path, places):
        runs = [place] if (place / RUN_FILE).exists() else sorted(path.parent for path in place.glob(f"*/{RUN_FILE}"))
        if not runs:
            raise BackboneError(f"{place} is no run of pretrain() and holds none (a {RUN_FILE} marks one)")
        found += runs
    return found


def read_runs(directories: str | Path | Iterable[str | Path]) -> list[TrainingRun]:
    """Read what was trained in each directory, and which checkpoints there are.

    Raises
    ------
    BackboneError
        If a directory holds no run of `pretrain`, or no checkpoint yet.
    InvalidParameterError
        If none is given, or one training with one seed is there twice.
    """
    given = (
        [directories] if isinstance(directories, str | Path) or not isinstance(directories, Iterable) else directories
    )
    places = [read_path(directory, "a run's directory") for directory in given]
    if not places:
        raise InvalidParameterError("give at least one directory of a pretrain() run")
    plans = []
    for place in places:
        try:
            plan = parse_json((place / RUN_FILE).read_text(encoding="utf-8"))["plan"]
            plans.append({**plan, "objective": str(plan["objective"]), "seed": int(plan["seed"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BackboneError(
                f"{place} holds no readable {RUN_FILE} ({error}); give directories that pretrain() filled"
            ) from error
    taken: dict[tuple[str, int], Path] = {}
    runs = []
    for place, plan, label in zip(places, plans, _labels(plans), strict=True):
        other = taken.setdefault((label, plan["seed"]), place)
        if other is not place:
            raise InvalidParameterError(
                f"{other} and {place} hold the same training ({label}, seed {plan['seed']}); give one of them"
            )
        runs.append(TrainingRun(place, label, plan["objective"], plan["seed"], checkpoints_of(place)))
    return runs


def training_histories(runs: Sequence[str | Path]) -> pd.DataFrame:
    """Training losses of runs, which they keep beside their checkpoints.

    ::

        training_histories(["runs/mae", "runs/dino"]).groupby("pretraining")["loss"].last()

    Returns
    -------
    pandas.DataFrame
        Columns ``pretraining, training_seed, scenes_seen, loss, seconds``: the loss is a mean since the row before,
        in the objective's own units. A run without a state to resume from has no rows.

    Raises
    ------
    BackboneError, InvalidParameterError
        As `read_runs`.
    """
    import pandas as pd
    import torch

    rows = []
    for run in read_runs(runs):
        path = run.directory / STATE_FILE
        if not path.exists():
            logger.info("%s has no %s, which holds the losses; its curve is left out", run.directory, STATE_FILE)
            continue
        try:
            history = torch.load(path, weights_only=True, mmap=True)["history"]
        except (OSError, RuntimeError, KeyError, ValueError, EOFError) as error:
            raise BackboneError(f"{path} cannot be read ({error}); delete it, or pretrain again") from error
        rows += [{"pretraining": run.label, "training_seed": run.seed, **entry} for entry in history]
    return pd.DataFrame(rows, columns=["pretraining", "training_seed", "scenes_seen", "loss", "seconds"])


def _labels(plans: Sequence[Mapping[str, Any]]) -> list[str]:
    """The objective of each run; with the settings in which it differs from others of that objective."""
    flat = [
        {name: value for name, value in {**plan, **plan.get("settings", {})}.items() if name != "settings"}
        for plan in plans
    ]
    labels = []
    for own in flat:
        alike = [other for other in flat if other["objective"] == own["objective"]]
        differing = [
            name for name in own if name not in _NOT_IN_LABELS and any(other.get(name) != own[name] for other in alike)
        ]
        labels.append(", ".join([own["objective"], *(f"{name}={own[name]}" for name in differing)]))
    return labels
