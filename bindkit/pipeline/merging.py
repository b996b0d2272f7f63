"""Several runs in one workspace, several workspaces in one table: no row is lost, none of what has changed stays."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from bindkit.arguments import CONTROL, CONTROL_PREFIX
from bindkit.cache import ActivationCache
from bindkit.cache.views import open_cache
from bindkit.errors import BindkitError, InvalidParameterError, WorkspaceMismatchError
from bindkit.files import write_bytes
from bindkit.pipeline.workspace import SETTINGS_FILE, Workspace, recorded_settings, workspace_root
from bindkit.probes import by_capability
from bindkit.probes.batches import is_folds
from bindkit.probes.protocols import Protocol
from bindkit.results.model_table import model_table
from bindkit.results.sweeping import SWEEP_COLUMNS, kept_rows, remove_stale_fits, same_class_rows, sweep
from bindkit.results.tables import OVER_CONTROLS, below_chance, ranked_by

logger = logging.getLogger(__name__)

ROW_KEY = ["backbone", "layer", "probe", "task", "protocol", "seed", "split"]
"""What tells the rows of one workspace apart; of two that agree in it, the new one replaces the old."""

SHARED_SETTINGS = ("scenes", "protocol", "seed", "patches_per_scene", "dtype")
"""What workspaces must agree in. Windows may differ, as geometries do: tables compare rows of the same pairs alone."""

_scenes_of = attrgetter(*(f"manifest.identity.{name}" for name in ("contents", "scene_ids", "class_names", "groups")))
"""What of a cache's identity is of its scenes."""


def merge_caches(space: Workspace, caches: Sequence[ActivationCache]) -> pd.DataFrame:
    """List this run's caches in ``caches.csv``, before those of earlier runs that are still there.

    ::

        table = bk.merge_caches(bk.open_workspace("workspace"), caches)

    Caches of scenes as they were before they changed are left out, fits on a cache as it was before it was computed
    anew are removed; both is said.

    Parameters
    ----------
    space : Workspace
        In whose ``cache`` directory they lie.
    caches : sequence of ActivationCache
        Of this run.

    Returns
    -------
    pandas.DataFrame
        One row a cache of this run, as in the file: `ActivationCache.summary`, ``path`` relative to the workspace and
        ``latest``, whether this run asked for it. The file holds those of earlier runs as well.
    """
    table = _cache_table(space, caches, latest=True)
    names = set(table["backbone"])
    alike = []
    for cache in read_caches(space):
        name = cache.backbone["name"]
        if name in names:
            continue
        if all(_scenes_of(cache) == _scenes_of(other) for other in caches):
            alike.append(cache)
        else:
            logger.warning(
                "the cache of %s is left out: it is of the scenes as they were before they changed; run that backbone "
                "again in this workspace",
                name,
            )
    for cache in caches:
        if n_removed := remove_stale_fits(space.probes, cache):
            name = cache.backbone["name"]
            logger.warning("fits of %s that are removed, since scenes or weights have changed: %d", name, n_removed)
    write_table(space.caches_csv, pd.concat([table, _cache_table(space, alike, latest=False)]))
    return table


def _cache_table(space: Workspace, caches: Sequence[ActivationCache], latest: bool) -> pd.DataFrame:
    root = space.root
    rows = [cache.summary() | {"path": cache.path.relative_to(root).as_posix(), "latest": latest} for cache in caches]
    return pd.DataFrame(rows)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """As CSV, six digits of every figure."""
    write_bytes(path, table.to_csv(index=False, float_format="%.6g").encode())


def read_caches(space: Workspace, latest: bool = False) -> list[ActivationCache]:
    """Open the caches listed in ``caches.csv`` that are still there; with `latest` only those of the last run.

    ::

        caches = bk.read_caches(bk.open_workspace("workspace"))

    Raises
    ------
    CacheError
        If one of the last run cannot be opened; of an earlier run that is said, and it is left out.
    """
    if not space.caches_csv.exists():
        return []
    caches = []
    for row in pd.read_csv(space.caches_csv).to_dict("records"):
        of_last_run = bool(row.get("latest", True))
        if latest and not of_last_run:
            continue
        try:
            caches.append(open_cache(space.root / row["path"]))
        except BindkitError as error:
            if latest:
                raise
            logger.warning("the cache of %s is left out: %s", row["backbone"], error)
    return caches


def fits_of_every_layer(
    space: Workspace, probe: str = "quadratic"
) -> tuple[dict[str, ActivationCache], pd.DataFrame, Path]:
    """Caches of a run's backbones by name, a fit of a probe at every layer of each, and where these fits lie.

    Those of ``results.csv`` where it lists them all. Else they lie apart, in ``analysis`` of the workspace: among the
    run's own, the next run's table would take them for rows of its own. Raises as `bindkit.sweep`.
    """
    caches = {cache.backbone["name"]: cache for cache in read_caches(space)}
    caches = {name: cache for name, cache in caches.items() if cache.backbone["objective"] != CONTROL}
    results = pd.read_csv(space.artefact("results.csv", made_by="03_train_probes"))
    seed = space.settings.get("seed", 0)
    listed = results[(results["probe"] == probe) & (results["task"] == "pairwise") & (results["seed"] == seed)]
    listed = listed[~listed["split"].map(is_folds).astype(bool)]
    wanted = {(name, layer) for name, cache in caches.items() for layer in cache.layers}
    is_listed = wanted <= set(zip(listed["backbone"], listed["layer"], strict=True))
    root = space.probes if is_listed else space.root / "analysis"
    how = {"protocol": space.settings.get("protocol", "strict"), "seeds": [seed]}
    with FileLock(space.root / ".fits.lock"):  # notebooks 06 and 07 may ask at once, and need not fit twice
        fits = sweep(list(caches.values()), "all", [probe], root=root, **how)
    return caches, fits.assign(layer=fits["layer"].astype(int)), root


def merge_results(space: Workspace, results: pd.DataFrame, protocol: str | Protocol | None = None) -> pd.DataFrame:
    """Write ``results.csv``: the rows of this run, and those of earlier runs whose caches and probes are unchanged.

    ::

        results = bk.merge_results(space, bk.sweep(caches, protocol="strict", root=space.probes, oracle=True))

    Earlier rows are read from beside their probes, not from the table, so that the order of runs does not matter and a
    killed run loses nothing. What a cache that is gone or has changed since once gave is left out, which is said.

    Parameters
    ----------
    space : Workspace
        Whose ``probes`` directory was the sweep's root, and whose ``caches.csv`` lists the caches.
    results : pandas.DataFrame
        As `bindkit.sweep` gives it.
    protocol : str or Protocol, optional
        Of the sweep, where it was a Protocol of one's own. Default: the one that the rows name.

    Returns
    -------
    pandas.DataFrame
        With the same columns; this run's rows first. The oracle stands for all geometries among the caches.

    Raises
    ------
    InvalidParameterError
        For an empty table, or one of several protocols.
    """
    protocols = list(results["protocol"].unique()) if "protocol" in results else []
    if len(protocols) != 1:
        raise InvalidParameterError(
            f"a workspace takes the results of one protocol at a time, as bk.sweep gives them; got {len(protocols)}"
        )
    rules, split = protocols[0] if protocol is None else protocol, results["split"].iloc[0]
    caches = read_caches(space)
    known = set(_keys(results))
    kept = pd.DataFrame(kept_rows(space.probes, caches, rules, split), columns=list(SWEEP_COLUMNS))
    kept = kept[[key not in known for key in _keys(kept)]]
    merged = results
    if len(kept):
        is_oracle = results["probe"] == "oracle"
        rows = [*results[~is_oracle].to_dict("records"), *kept.to_dict("records")]
        if is_oracle.any():
            named = {row["backbone"] for row in rows}
            rows += same_class_rows(
                [cache for cache in caches if cache.backbone["name"] in named],
                rules,
                split if is_folds(split) else None,
            )
        merged = pd.DataFrame(rows, columns=list(SWEEP_COLUMNS))
        logger.info("rows kept of earlier runs: %d, beside %d of this one", len(kept), len(results))
    if space.results_csv.exists():
        before, there = pd.read_csv(space.results_csv).reindex(columns=SWEEP_COLUMNS), set(_keys(merged))
        # How many oracles there are follows from the caches.
        gone = before[[key not in there for key in _keys(before)] & (before["probe"] != "oracle").to_numpy()]
        for backbone, lost in gone.groupby("backbone", sort=False):
            logger.warning(
                "%d rows of %s are left out: their cache or probes are gone or have changed since, or another bindkit, "
                "protocol or number of folds made them; run that backbone again in this workspace",
                len(lost),
                backbone,
            )
    write_table(space.results_csv, merged)
    return merged


def _keys(table: pd.DataFrame) -> list[tuple[str, ...]]:
    """`ROW_KEY` of every row; numbers as they are read from a file, the missing layer of a control equal to itself."""
    numbers = pd.api.types.is_numeric_dtype
    columns = [table[name].astype(float) if numbers(table[name]) else table[name] for name in ROW_KEY]
    return list(zip(*([str(value) for value in column] for column in columns), strict=True))


def compare_workspaces(workspaces: Sequence[str | Path]) -> pd.DataFrame:
    """Set the results of several workspaces in one table.

    ::

        results = bk.compare_workspaces(["runs/dinov2", "runs/clip", "runs/mae"])
        model_table(results)[["workspace", "backbone", "layer", "auroc"]]

    Parameters
    ----------
    workspaces : sequence of paths
        Each with a ``results.csv``. One that is named twice is read once.

    Returns
    -------
    pandas.DataFrame
        The rows of their ``results.csv`` in this order, with the column ``workspace`` (as it was named here) in front.
        A backbone that is in two of them stays two; a control or oracle that says the very same on the same pairs, as
        each workspace has its own, stands once.

    Raises
    ------
    InvalidParameterError
        If none is named, or one is missing or no workspace.
    WorkspaceStepMissingError
        If one has no results yet.
    WorkspaceMismatchError
        If they were made with other scenes, protocol, seed, patches per scene or dtype, or if scenes of one name have
        other pairs in them: masks that have changed in between.
    """
    if isinstance(workspaces, str | Path) or not workspaces:
        raise InvalidParameterError(f"give the directories of the workspaces to compare in a list; got {workspaces!r}")
    spaces = {str(path): _opened(path) for path in {workspace_root(path): path for path in workspaces}.values()}
    tables = {name: _results_of(space) for name, space in spaces.items()}
    first, *others = spaces
    told = [(name, [space.settings.get(name) for space in spaces.values()]) for name in SHARED_SETTINGS]
    unlike = [
        f"  {name}: {value!r} in {first}, {another!r} in {other}"
        for name, (value, *values) in told
        for other, another in zip(others, values, strict=True)
        if another != value
    ]
    if unlike:
        raise WorkspaceMismatchError(
            "these workspaces were not made alike, so that their figures are not comparable:\n"
            + "\n".join(unlike)
            + "\ncompare those that agree, or run again with the same settings"
        )
    first_of: dict[tuple[str, str, str], tuple[str, str]] = {}  # where pairs were first seen, by geometry
    for name, space in spaces.items():
        for cache in read_caches(space):
            geometry = json.dumps(cache.backbone["geometry"], sort_keys=True)
            rows = tables[name][tables[name]["backbone"] == cache.backbone["name"]]
            for protocol, split, pairs in rows[["protocol", "split", "judged_pairs"]].drop_duplicates().values.tolist():
                other, known = first_of.setdefault((geometry, protocol, split), (name, pairs))
                if pairs != known:
                    raise WorkspaceMismatchError(
                        f"{other} and {name} have scenes of one name whose {split} pairs differ: their pictures or "
                        "masks have changed in between; run one of them again in a new workspace"
                    )
    together = pd.concat([table.assign(workspace=name) for name, table in tables.items()], ignore_index=True)
    figures = [column for column in together if column not in ("workspace", "seconds")]
    again = (together["objective"] == CONTROL) & together.duplicated(figures)
    return together[~again].reset_index(drop=True)[["workspace", *(name for name in together if name != "workspace")]]


def _opened(path: str | Path) -> Workspace:
    root = workspace_root(path)
    if not (root / SETTINGS_FILE).exists():
        what = f"is no workspace (it has no {SETTINGS_FILE})" if root.exists() else "is not there"
        raise InvalidParameterError(f"{path} {what}; give directories that bindkit run has filled")
    return Workspace(root, recorded_settings(root))


def _results_of(space: Workspace) -> pd.DataFrame:
    return pd.read_csv(space.artefact("results.csv", made_by="03_train_probes"))


def with_others(space: Workspace, also: str = "") -> tuple[pd.DataFrame, Any, Any]:
    """Results of a workspace and of others named in `also`, blanks between; caches and probes for their gains.

    As `bindkit.results.model_table.with_gain_intervals` takes them: of several workspaces those of each, by its name.
    """
    if not also.strip():
        return _results_of(space), read_caches(space), space.probes
    places: list[str | Path] = [space.root, *shlex.split(also)]
    spaces = {str(path): _opened(path) for path in places}
    caches = {name: read_caches(each) for name, each in spaces.items()}
    return compare_workspaces(places), caches, {name: each.probes for name, each in spaces.items()}


def told_apart(table: pd.DataFrame) -> pd.DataFrame:
    """For figures and sentences: the workspace behind the name of a backbone or control that several of them have."""
    if "workspace" not in table:
        return table
    several = table.groupby("backbone")["workspace"].transform("nunique") > 1
    where = [
        f"{name}@{space}" if name.startswith(CONTROL_PREFIX) else f"{name} ({space})"
        for name, space in zip(table["backbone"], table["workspace"], strict=True)
    ]
    return table.assign(backbone=table["backbone"].where(~several, where))


def compared_models(workspaces: Sequence[str | Path], probe: str | None = None) -> tuple[pd.DataFrame, str]:
    """`model_table` of several workspaces, of the most capable probe unless told otherwise, and the text to read."""
    results = compare_workspaces(workspaces)
    fitted = results.loc[(results["task"] == "pairwise") & (results["probe"] != "oracle"), "probe"]
    table = model_table(results, probe or min(fitted.unique(), key=by_capability, default="quadratic"))
    shown = ["kind", "workspace", "backbone", "layer", "accuracy", "gain", "auroc", "twins_auroc"]
    shown += [name for figure in ranked_by(table) for name in (figure, OVER_CONTROLS[figure])] + ["n_scenes"]
    rows = told_apart(table)[list(dict.fromkeys(shown))]
    lines = [rows.to_string(index=False, float_format="{:.3f}".format, na_rep="-")]
    return table, "\n".join([*lines, *below_chance(results.to_dict("records"))])
