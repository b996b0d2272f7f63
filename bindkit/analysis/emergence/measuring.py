"""Measure every checkpoint of pretraining runs as any backbone is measured, and keep its rows."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindkit import __version__
from bindkit.analysis.emergence.runs import TrainingRun, read_runs
from bindkit.arguments import CONTROL_KINDS, read_layers, read_seeds
from bindkit.errors import InvalidParameterError
from bindkit.files import RememberedDigests, progress, sha256_of, slug, write_bytes
from bindkit.probes.protocols import Protocol
from bindkit.probes.protocols import protocol as protocol_of
from bindkit.probes.saving import RESULT_COLUMNS
from bindkit.scenes import open_scenes
from bindkit.scenes.checking import contents_of, memory_in
from bindkit.scenes.synthetic import require_unseen

if TYPE_CHECKING:
    import pandas as pd

    from bindkit.cache.forward import ActivationSource
    from bindkit.scenes.scene import SceneSet

EMERGENCE_COLUMNS = (*RESULT_COLUMNS, "pretraining", "training_seed", "scenes_seen")
"""Columns of the table: those of ``results.csv``; what the backbone was trained with, from which seed, how far."""

_KEPT_COLUMNS = [*RESULT_COLUMNS, "n_layers"]
_TEXTS = ("backbone", "objective", "probe", "task", "protocol", "split")
_COUNTS = ("n_scenes", "n_pairs", "seed", "n_layers")


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

        table = bk.measure_checkpoints(["runs/mae", "runs/dino"], "synthetic:n=200,seed=0,size=80x80", "emergence")
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
        ``"strict"`` or ``"paper"``.
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
    from bindkit.backbones import load_backbone

    known = read_runs(runs)
    scene_set, asked = open_scenes(scenes) if isinstance(scenes, str) else scenes, read_layers(layers)
    require_unseen(scene_set)
    wanted = [(run, seen) for run in known for seen in _chosen(run, checkpoints)]
    fixed_seeds = tuple(read_seeds(seeds))
    measuring = _Measuring(scene_set, Path(root), protocol_of(protocol), probe, fixed_seeds, keep_caches, device)
    measuring.root.mkdir(parents=True, exist_ok=True)
    import pandas as pd

    parts = []
    with progress(len(wanted) + len(CONTROL_KINDS), "measure checkpoints", "checkpoint") as bar:
        for run, seen in wanted:
            path = run.checkpoints[seen]
            place = f"{slug(run.label, 40)}-seed{run.seed}-{path.name}"
            rows = measuring.rows_of(place, _digests(path), asked, partial(load_backbone, str(path), device=device))
            named = {"backbone": str(path), "objective": _objective(run, seen), "pretraining": run.label}
            parts.append(rows.assign(**named, training_seed=float(run.seed), scenes_seen=float(seen)))
            bar.update(1)
        first = next(iter(known[0].checkpoints.values()))
        seeing, like = _digests(first, weights=False), cache(partial(load_backbone, str(first), device=device))
        for kind in CONTROL_KINDS:
            load = partial(_control, kind, like)
            rows = measuring.rows_of(f"control-{kind}", seeing, "all", load)
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
        self,
        name: str,
        digests: Mapping[str, str],
        layers: str | tuple[int, ...],
        load: Callable[[], ActivationSource],
    ) -> pd.DataFrame:
        """Rows of one source, ordered by layer and seed: those that were kept, the others measured now."""
        place = self.root / f"{name}-{self._made_from(digests)[:12]}"
        file = place.with_name(f"{place.name}.csv")
        kept = _kept_rows(file)
        rows = self._chosen(kept, layers)
        if None in self._own_code.values():
            kept, rows = kept.iloc[:0], None
        if rows is None:
            write_bytes(file, self._measured(kept, load(), layers, place).to_csv(index=False).encode())
            rows = self._chosen(_kept_rows(file), layers)
            assert rows is not None
            if not self.keep_caches:
                shutil.rmtree(place)
        return rows

    def _measured(
        self, kept: pd.DataFrame, source: ActivationSource, layers: str | tuple[int, ...], place: Path
    ) -> pd.DataFrame:
        """What was kept, and below it what was missing."""
        import pandas as pd

        from bindkit.cache import cache_activations
        from bindkit.results.sweeping import sweep

        missing = [layer for layer in source.resolve_layers(layers) if self._lacks(kept, layer)]
        cache = cache_activations(source, self.scenes, root=place / "cache", layers=missing)
        choice: dict[str, Any] = {
            "protocol": self.rules,
            "seeds": self.seeds,
            "root": place / "probes",
            "device": self.device,
        }
        fitted = sweep([cache], missing, [self.probe], **choice)
        parts = [part for part in (kept, fitted.assign(n_layers=source.n_layers)) if len(part)]
        together = pd.concat(parts, ignore_index=True)
        return together.drop_duplicates(["layer", "probe", "seed"])[_KEPT_COLUMNS]

    def _chosen(self, kept: pd.DataFrame, layers: str | tuple[int, ...]) -> pd.DataFrame | None:
        """The rows that were asked for; None where one of them is not there."""
        if kept.empty:
            return None
        numbers = tuple(range(int(kept["n_layers"].iloc[0]))) if layers == "all" else layers
        if any(self._lacks(kept, int(layer)) for layer in numbers):
            return None
        own = kept[(kept["probe"] == self.probe) & kept["seed"].isin(self.seeds)]
        own = own[own["layer"].fillna(0).isin(numbers)].sort_values(["layer", "seed"], kind="stable")
        return own[list(RESULT_COLUMNS)].reset_index(drop=True)

    def _lacks(self, kept: pd.DataFrame, layer: int) -> bool:
        # A control's only layer, 0, is empty in its rows.
        there = set(zip(kept["layer"].fillna(0), kept["probe"], kept["seed"], strict=True))
        return any((layer, self.probe, seed) not in there for seed in self.seeds)

    def _made_from(self, digests: Mapping[str, str]) -> str:
        """Digest of what rows depend on besides layer, probe and seed."""
        scenes = {"scenes": self.scenes.uri, "ids": list(self.scenes.ids), "contents": self._contents}
        content = {"files": dict(digests), **scenes, "rules": repr(self.rules), "bindkit": __version__}
        return _digest(content | self._own_code)

    @cached_property
    def _contents(self) -> dict[str, str]:
        return dict(contents_of(self.scenes, digests=RememberedDigests(memory_in(self.root, self.scenes.uri))).of)

    @property
    def _own_code(self) -> dict[str, str | None]:
        from bindkit.results.sweeping import own_code

        return own_code(self.probe)


def _kept_rows(file: Path) -> pd.DataFrame:
    """Rows that an earlier call left; none if there are none that can be read."""
    import pandas as pd

    try:
        rows = pd.read_csv(file, dtype=str)[_KEPT_COLUMNS]
        # Through Python's own numbers: the default parser of some pandas loses the last digit.
        kinds = dict.fromkeys(_KEPT_COLUMNS, float) | dict.fromkeys(_TEXTS, str) | dict.fromkeys(_COUNTS, int)
        return pd.DataFrame({name: [kind(value) for value in rows[name]] for name, kind in kinds.items()})
    except (OSError, ValueError, KeyError):
        return pd.DataFrame(columns=_KEPT_COLUMNS).astype({"layer": float})


def _chosen(run: TrainingRun, checkpoints: Sequence[int] | None) -> list[int]:
    absent = [int(seen) for seen in checkpoints or () if int(seen) not in run.checkpoints]
    if absent or (checkpoints is not None and not len(checkpoints)):
        raise InvalidParameterError(
            f"{run.directory} has checkpoints at {', '.join(map(str, run.checkpoints))} scenes, not at "
            f"{', '.join(map(str, absent)) or 'none'}"
        )
    return list(run.checkpoints) if checkpoints is None else sorted({int(seen) for seen in checkpoints})


def _control(kind: str, like: Callable[[], Any]) -> ActivationSource:
    from bindkit.backbones.controls import load_control

    return load_control(kind, like())


def _objective(run: TrainingRun, seen: int) -> str:
    from bindkit.pretraining import OBJECTIVES

    if seen == 0:
        return "random-init"
    return OBJECTIVES[run.objective].label if run.objective in OBJECTIVES else run.objective


def _digests(checkpoint: Path, weights: bool = True) -> dict[str, str]:
    """SHA-256 of the files that say what a checkpoint computes; without weights, only how it sees scenes."""
    names = ["config.json", "preprocessor_config.json"]
    names += sorted(path.name for path in checkpoint.glob("*.safetensors")) if weights else []
    return {name: sha256_of(checkpoint / name) for name in names if (checkpoint / name).exists()}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
