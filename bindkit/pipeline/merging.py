"""Several runs in one workspace: their caches in one list, the rows of their fits in one table."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pandas as pd

from bindkit.cache import ActivationCache
from bindkit.errors import BindkitError, InvalidParameterError
from bindkit.files import write_bytes
from bindkit.pipeline.workspace import Workspace
from bindkit.probes.judging import is_folds
from bindkit.probes.protocols import Protocol
from bindkit.results.sweeping import SWEEP_COLUMNS, kept_rows, remove_stale_fits, same_class_rows

logger = logging.getLogger(__name__)

ROW_KEY = ["backbone", "layer", "probe", "task", "protocol", "seed", "split"]
"""What tells the rows of one workspace apart; of two that agree in it, the new one replaces the old."""


def merge_caches(space: Workspace, caches: Sequence[ActivationCache]) -> pd.DataFrame:
    """List this run's caches in ``caches.csv``, before those of earlier runs that are still there.

    What was made from scenes or weights that have changed since is left out or removed, which is said: caches of the
    scenes as they were, and fits on a cache as it was before it was computed anew.

    ::

        table = bk.merge_caches(bk.open_workspace("workspace"), caches)

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
    earlier = [cache for cache in read_caches(space) if cache.backbone["name"] not in names]
    alike = [cache for cache in earlier if all(_of_same_scenes(cache, other) for other in caches)]
    for cache in earlier:
        if cache not in alike:
            logger.warning(
                "the cache of %s is left out: it is of the scenes as they were before they changed; run that backbone "
                "again in this workspace",
                cache.backbone["name"],
            )
    for cache in caches:
        if n_removed := remove_stale_fits(space.probes, cache):
            logger.warning(
                "fits of %s that are removed, since scenes or weights have changed: %d",
                cache.backbone["name"],
                n_removed,
            )
    _write_csv(space, "caches.csv", pd.concat([table, _cache_table(space, alike, latest=False)]))
    return table


def _of_same_scenes(one: ActivationCache, other: ActivationCache) -> bool:
    """Whether two caches were made from the same scenes, by content."""
    first, second = one.manifest.identity, other.manifest.identity
    return all(getattr(first, name) == getattr(second, name) for name in _OF_SCENES)


_OF_SCENES = ("contents", "scene_ids", "class_names", "groups")
"""What of a cache's identity is of its scenes."""


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
            caches.append(ActivationCache.open(space.root / row["path"]))
        except BindkitError as error:
            if latest:
                raise
            logger.warning("the cache of %s is left out: %s", row["backbone"], error)
    return caches


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
    _say_what_is_left_out(space, merged)
    _write_csv(space, "results.csv", merged)
    return merged


def _say_what_is_left_out(space: Workspace, merged: pd.DataFrame) -> None:
    """Rows of the table before that are in the new one no more."""
    if not space.results_csv.exists():
        return
    before, there = pd.read_csv(space.results_csv).reindex(columns=SWEEP_COLUMNS), set(_keys(merged))
    # How many oracles there are follows from the caches.
    gone = before[[key not in there for key in _keys(before)] & (before["probe"] != "oracle").to_numpy()]
    for backbone, rows in gone.groupby("backbone", sort=False):
        logger.warning(
            "%d rows of %s are left out: their cache or probes are gone or have changed since, or another bindkit, "
            "protocol or number of folds made them; run that backbone again in this workspace",
            len(rows),
            backbone,
        )


def _keys(table: pd.DataFrame) -> list[tuple[str, ...]]:
    """`ROW_KEY` of every row; numbers as they are read from a file, the missing layer of a control equal to itself."""
    numbers = pd.api.types.is_numeric_dtype
    columns = [table[name].astype(float) if numbers(table[name]) else table[name] for name in ROW_KEY]
    return list(zip(*([str(value) for value in column] for column in columns), strict=True))


def _cache_table(space: Workspace, caches: Sequence[ActivationCache], latest: bool) -> pd.DataFrame:
    root = space.root
    rows = [cache.summary() | {"path": cache.path.relative_to(root).as_posix(), "latest": latest} for cache in caches]
    return pd.DataFrame(rows)


def _write_csv(space: Workspace, name: str, table: pd.DataFrame) -> None:
    write_bytes(space.root / name, table.to_csv(index=False, float_format="%.6g").encode())
