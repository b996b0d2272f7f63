"""Runs of `pretrain`, and every checkpoint of theirs measured as any backbone is, beside controls; rows are kept."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from bindkit import __version__
from bindkit.arguments import CONTROL_KINDS, read_layers, read_path, read_seeds
from bindkit.backbones import load_backbone
from bindkit.backbones.sources import ActivationSource, load_control
from bindkit.cache import cache_activations
from bindkit.errors import BackboneError, InvalidParameterError
from bindkit.files import RememberedDigests, parse_json, progress, sha256_of, slug, write_bytes
from bindkit.pretraining import OBJECTIVES
from bindkit.pretraining.loop import RUN_FILE, STATE_FILE, checkpoints_of
from bindkit.probes.protocols import RESULT_COLUMNS, Protocol
from bindkit.probes.protocols import protocol as protocol_of
from bindkit.results.sweeping import own_code, sweep
from bindkit.scenes import open_scenes
from bindkit.scenes.checking import contents_of, memory_in
from bindkit.scenes.scene import SceneSet
from bindkit.scenes.synthetic import require_unseen

logger = logging.getLogger(__name__)

EMERGENCE_COLUMNS = (*RESULT_COLUMNS, "pretraining", "training_seed", "scenes_seen")
"""Columns of the table: those of ``results.csv``; what the backbone was trained with, from which seed, how far."""

_KEPT_COLUMNS = [*RESULT_COLUMNS, "n_layers"]
_TEXTS = ("backbone", "objective", "probe", "task", "protocol", "split")
_COUNTS = ("n_scenes", "n_pairs", "seed", "n_layers")


@dataclass(frozen=True)
class TrainingRun:
    """A run of `pretrain`, finished or not."""

    directory: Path
    label: str
    """The objective's name; where runs of one objective were trained differently, also what differs."""
    objective: str
    seed: int
    """Of the starting weights and of training."""
    checkpoints: Mapping[int, Path]
    """Scenes seen -> Hugging Face directory, ascending."""


def find_runs(places: Iterable[str | Path]) -> list[Path]:
    """Find runs of `pretrain`: each place is one, or a directory of several. Raises BackboneError where none is."""
    found = []
    for place in map(Path, places):
        runs = [place] if (place / RUN_FILE).exists() else sorted(path.parent for path in place.glob(f"*/{RUN_FILE}"))
        if not runs:
            raise BackboneError(f"{place} is no run of pretrain() and holds none (a {RUN_FILE} marks one)")
        found += runs
    return found


def read_runs(directories: str | Path | Iterable[str | Path]) -> list[TrainingRun]:
    """Read what was trained in each directory, and which checkpoints there are; no training with one seed twice."""
    if isinstance(directories, str | Path) or not isinstance(directories, Iterable):
        directories = [directories]
    places = [read_path(directory, "a run's directory") for directory in directories]
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


def _labels(plans: Sequence[Mapping[str, Any]]) -> list[str]:
    """The objective of each run; with the settings in which it differs from others of that objective."""
    flat = [{**plan, **plan.get("settings", {})} for plan in plans]
    labels = []
    for own in flat:
        alike = [other for other in flat if other["objective"] == own["objective"]]
        told = [name for name in own if name not in ("objective", "settings", "seed", "checkpoints")]
        differing = [name for name in told if any(other.get(name) != own[name] for other in alike)]
        labels.append(", ".join([own["objective"], *(f"{name}={own[name]}" for name in differing)]))
    return labels


def training_histories(runs: Sequence[str | Path]) -> pd.DataFrame:
    """Losses of runs, means since the row before in the objective's units; none of a run without its state."""
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


def measure_checkpoints(
    runs: Sequence[str | Path],
    scenes: str | SceneSet,
    root: str | Path,
    layers: str | Sequence[int] = "all",
    protocol: str | Protocol = "strict",
    seeds: Sequence[int] = (0,),
    probe: str = "quadratic",
    checkpoints: Sequence[int] | None = None,
    keep_caches: bool = False,
    device: str = "auto",
) -> pd.DataFrame:
    """Measure binding at every checkpoint of pretraining runs, and once what controls read without a model.

    ::

        runs = [bk.pretrain("mae", f"runs/mae-{seed}", scenes_seen=50_000, seed=seed).directory for seed in (0, 1)]
        table = bk.measure_checkpoints(runs, "synthetic:n=200,seed=0,size=80x80", "emergence")
        table.groupby(["pretraining", "scenes_seen"])["twins_auroc"].max()

    Each checkpoint is loaded, cached, probed and judged as any backbone is. Its rows are kept in ``root`` as one CSV,
    so that a call that was stopped goes on where it was, and more layers or seeds are added to what is there.

    Parameters
    ----------
    runs : sequence of path
        Directories of `bk.pretrain`; runs of one training from several seeds give the spread over seeds.
    scenes : str or SceneSet
        What to measure on, as `open_scenes` takes or gives it. Never scenes of a training seed.
    root : path
        Where rows are kept, and caches while they are needed.
    layers : "all", "0,3,5" or sequence of int
        0-based blocks.
    protocol : str or Protocol
        ``"strict"`` or ``"paper"``, with fields where they are to be others: ``"strict,epochs=4"``.
    seeds : sequence of int
        Of the probes: one fit a seed.
    probe : str
        Which probe to fit.
    checkpoints : sequence of int, optional
        Scenes seen at the checkpoints to measure; every run must have them. Default: all there are.
    keep_caches : bool
        Keep each checkpoint's activations and fitted probes, under ``root``. By default they go once it is measured.
    device : str
        ``"auto"`` takes CUDA where there is one.

    Returns
    -------
    pandas.DataFrame
        One row a fit, with `EMERGENCE_COLUMNS`. At 0 scenes the objective is ``random-init``. Rows of controls have
        neither ``pretraining`` nor ``training_seed`` nor ``scenes_seen``.

    Raises
    ------
    InvalidParameterError
        For scenes of a training seed, a checkpoint that a run does not have, the same run twice, or runs whose
        backbones were judged on different pairs.
    BackboneError
        If a directory holds no run or no checkpoint.
    LayerError, ProbeError
        For layers or a probe that do not exist.
    """
    known = read_runs(runs)
    scene_set, asked = open_scenes(scenes) if isinstance(scenes, str) else scenes, read_layers(layers)
    require_unseen(scene_set)
    wanted: list[tuple[TrainingRun, int]] = []
    for run in known:
        chosen = list(run.checkpoints) if checkpoints is None else sorted({int(seen) for seen in checkpoints})
        if not chosen or not set(chosen) <= set(run.checkpoints):
            raise InvalidParameterError(
                f"{run.directory} has checkpoints at {', '.join(map(str, run.checkpoints))} scenes; choose among them, "
                f"got {chosen}"
            )
        wanted += [(run, seen) for seen in chosen]
    fixed_seeds = tuple(read_seeds(seeds))
    measuring = _Measuring(scene_set, Path(root), protocol_of(protocol), probe, fixed_seeds, keep_caches, device)
    measuring.root.mkdir(parents=True, exist_ok=True)
    parts = []
    with progress(len(wanted) + len(CONTROL_KINDS), "measure checkpoints", "checkpoint") as bar:
        for run, seen in wanted:
            path = run.checkpoints[seen]
            place = f"{slug(run.label, 40)}-seed{run.seed}-{path.name}"
            rows = measuring.rows_of(place, _digests(path), asked, partial(load_backbone, str(path), device=device))
            objective = OBJECTIVES[run.objective].label if run.objective in OBJECTIVES else run.objective
            named = {"backbone": str(path), "objective": objective if seen else "random-init", "pretraining": run.label}
            parts.append(rows.assign(**named, training_seed=float(run.seed), scenes_seen=float(seen)))
            bar.update(1)
        first = next(iter(known[0].checkpoints.values()))
        seeing, like = _digests(first, weights=False), cache(partial(load_backbone, str(first), device=device))

        def control(kind: str) -> ActivationSource:
            return load_control(kind, like())

        for kind in CONTROL_KINDS:
            rows = measuring.rows_of(f"control-{kind}", seeing, "all", partial(control, kind))
            parts.append(rows.assign(pretraining=None, training_seed=math.nan, scenes_seen=math.nan))
            bar.update(1)
    table = pd.concat(parts, ignore_index=True)
    if table["n_pairs"].nunique() > 1:
        raise InvalidParameterError(
            "the backbones of these runs see other patches than one another, so that they were judged on different "
            "pairs; measure runs of one architecture together"
        )
    return table[list(EMERGENCE_COLUMNS)]


@dataclass(frozen=True)
class _Measuring:
    """What all checkpoints and controls are measured with, and where their rows are kept."""

    scenes: SceneSet
    root: Path
    rules: Protocol
    probe: str
    seeds: tuple[int, ...]
    keep_caches: bool
    device: str

    def rows_of(
        self, name: str, digests: Mapping[str, str], layers: str | Sequence[int], load: Callable[[], ActivationSource]
    ) -> pd.DataFrame:
        """Rows of one source, ordered by layer and seed: those that were kept, the others measured now."""
        code = own_code(self.probe)
        # What rows depend on besides layer, probe and seed.
        seen = {"scenes": self.scenes.uri, "ids": list(self.scenes.ids), "contents": self._contents}
        made_from = {"files": dict(digests), "rules": repr(self.rules), "bindkit": __version__, **seen, **code}
        digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
        place = self.root / f"{name}-{digest[:12]}"
        file = place.with_name(f"{place.name}.csv")
        kept = _kept_rows(file)
        if None in code.values():  # nobody can say whether the probe is what it was
            kept = kept.iloc[:0]
        rows = self._asked(kept, layers)
        if rows is None:
            source = load()
            missing = self._missing(kept, source.resolve_layers(layers))
            fitted = sweep(
                [cache_activations(source, self.scenes, root=place / "cache", layers=missing)],
                missing,
                [self.probe],
                protocol=self.rules,
                seeds=self.seeds,
                root=place / "probes",
                device=self.device,
            )
            parts = [part for part in (kept, fitted.assign(n_layers=source.n_layers)) if len(part)]
            together = pd.concat(parts, ignore_index=True).drop_duplicates(["layer", "probe", "seed"])
            write_bytes(file, together[_KEPT_COLUMNS].to_csv(index=False).encode())
            rows = self._asked(_kept_rows(file), layers)
            assert rows is not None
            if not self.keep_caches:
                shutil.rmtree(place)
        return rows

    def _asked(self, kept: pd.DataFrame, layers: str | Sequence[int]) -> pd.DataFrame | None:
        """The rows that were asked for; None where one of them is not there."""
        if kept.empty:
            return None
        numbers = [*range(int(kept["n_layers"].iloc[0]))] if isinstance(layers, str) else layers
        if self._missing(kept, numbers):
            return None
        own = kept[(kept["probe"] == self.probe) & kept["seed"].isin(self.seeds)]
        own = own[own["layer"].fillna(0).isin(numbers)].sort_values(["layer", "seed"], kind="stable")
        return own[list(RESULT_COLUMNS)].reset_index(drop=True)

    def _missing(self, kept: pd.DataFrame, layers: Sequence[int]) -> list[int]:
        # A control's only layer, 0, is empty in its rows.
        there = set(zip(kept["layer"].fillna(0), kept["probe"], kept["seed"], strict=True))
        return [layer for layer in layers if any((layer, self.probe, seed) not in there for seed in self.seeds)]

    @cached_property
    def _contents(self) -> dict[str, str]:
        return dict(contents_of(self.scenes, digests=RememberedDigests(memory_in(self.root, self.scenes.uri))).of)


def _kept_rows(file: Path) -> pd.DataFrame:
    """Rows that an earlier call left; none if there are none that can be read."""
    try:
        rows = pd.read_csv(file, dtype=str)[_KEPT_COLUMNS]
        # Through Python's own numbers: the default parser of some pandas loses the last digit.
        kinds = dict.fromkeys(_KEPT_COLUMNS, float) | dict.fromkeys(_TEXTS, str) | dict.fromkeys(_COUNTS, int)
        return pd.DataFrame({name: [kind(value) for value in rows[name]] for name, kind in kinds.items()})
    except (OSError, ValueError, KeyError):
        return pd.DataFrame(columns=_KEPT_COLUMNS).astype({"layer": float})


def _digests(checkpoint: Path, weights: bool = True) -> dict[str, str]:
    """SHA-256 of the files that say what a checkpoint computes; without weights, only how it sees scenes."""
    names = ["config.json", "preprocessor_config.json"]
    names += sorted(path.name for path in checkpoint.glob("*.safetensors")) if weights else []
    return {name: sha256_of(checkpoint / name) for name in names if (checkpoint / name).exists()}
