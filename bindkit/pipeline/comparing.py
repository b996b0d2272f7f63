"""Several workspaces in one table: what a batch of runs over models leaves."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bindkit.arguments import CONTROL, CONTROL_PREFIX
from bindkit.errors import InvalidParameterError, WorkspaceMismatchError
from bindkit.pipeline.merging import read_caches
from bindkit.pipeline.workspace import SETTINGS_FILE, Workspace, recorded_settings, workspace_root

SHARED_SETTINGS = ("scenes", "protocol", "seed", "patches_per_scene", "dtype")
"""What workspaces must agree in. Windows may differ, as geometries do: tables compare rows of the same pairs alone."""


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
    tables = {
        name: pd.read_csv(space.artefact("results.csv", made_by="03_train_probes")) for name, space in spaces.items()
    }
    _require_shared_settings(spaces)
    _require_same_pairs(spaces, tables)
    together = pd.concat([table.assign(workspace=name) for name, table in tables.items()], ignore_index=True)
    figures = [column for column in together if column not in ("workspace", "seconds")]
    again = (together["objective"] == CONTROL) & together.duplicated(figures)
    return together[~again].reset_index(drop=True)[["workspace", *(name for name in together if name != "workspace")]]


def with_others(space: Workspace, also: str = "") -> tuple[pd.DataFrame, Any, Any]:
    """Results of a workspace and of others named in `also`, blanks between; caches and probes for their gains.

    As `bindkit.results.model_table.with_gain_intervals` takes them: of several workspaces those of each, by its name.
    """
    if not also.strip():
        return pd.read_csv(space.artefact("results.csv", made_by="03_train_probes")), read_caches(space), space.probes
    places: list[str | Path] = [space.root, *shlex.split(also)]
    spaces = {str(path): _opened(path) for path in places}
    caches = {name: read_caches(each) for name, each in spaces.items()}
    return compare_workspaces(places), caches, {name: each.probes for name, each in spaces.items()}


def told_apart(table: pd.DataFrame) -> pd.DataFrame:
    """For figures and sentences: the workspace behind the name of a backbone or control that several of them have.

    >>> table = pd.DataFrame({"workspace": ["a", "b", "b"], "backbone": ["vit", "vit", "mae"]})
    >>> told_apart(table)["backbone"].tolist()
    ['vit (a)', 'vit (b)', 'mae']
    """
    if "workspace" not in table:
        return table
    several = table.groupby("backbone")["workspace"].transform("nunique") > 1
    where = [
        f"{name}@{space}" if name.startswith(CONTROL_PREFIX) else f"{name} ({space})"
        for name, space in zip(table["backbone"], table["workspace"], strict=True)
    ]
    return table.assign(backbone=table["backbone"].where(~several, where))


def _opened(path: str | Path) -> Workspace:
    root = workspace_root(path)
    if not (root / SETTINGS_FILE).exists():
        what = f"is no workspace (it has no {SETTINGS_FILE})" if root.exists() else "is not there"
        raise InvalidParameterError(f"{path} {what}; give directories that bindkit run has filled")
    return Workspace(root, recorded_settings(root))


def _require_shared_settings(spaces: dict[str, Workspace]) -> None:
    """Raises WorkspaceMismatchError naming every setting with its values."""
    first, *others = spaces
    lines = []
    for name in SHARED_SETTINGS:
        value = spaces[first].settings.get(name)
        lines += [
            f"  {name}: {value!r} in {first}, {spaces[other].settings.get(name)!r} in {other}"
            for other in others
            if spaces[other].settings.get(name) != value
        ]
    if lines:
        raise WorkspaceMismatchError(
            "these workspaces were not made alike, so that their figures are not comparable:\n"
            + "\n".join(lines)
            + "\ncompare those that agree, or run again with the same settings"
        )


def _require_same_pairs(spaces: dict[str, Workspace], tables: dict[str, pd.DataFrame]) -> None:
    """Raises WorkspaceMismatchError where caches of one geometry were judged on other pairs."""
    first_of: dict[tuple[str, str, str], tuple[str, str]] = {}
    for name, space in spaces.items():
        table = tables[name]
        for cache in read_caches(space):
            geometry = json.dumps(cache.backbone["geometry"], sort_keys=True)
            rows = table[table["backbone"] == cache.backbone["name"]]
            for protocol, split, pairs in rows[["protocol", "split", "judged_pairs"]].drop_duplicates().values.tolist():
                other, known = first_of.setdefault((geometry, protocol, split), (name, pairs))
                if pairs != known:
                    raise WorkspaceMismatchError(
                        f"{other} and {name} have scenes of one name whose {split} pairs differ: their pictures or "
                        "masks have changed in between; run one of them again in a new workspace"
                    )
