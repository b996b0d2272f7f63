"""The pipeline: the numbered notebooks, executed in order into a workspace by papermill.

``bindkit run`` is this module's `run_pipeline` from a terminal.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import bindkit
from bindkit.errors import NotebookFailedError, WorkspaceBusyError, WorkspaceMismatchError
from bindkit.pipeline.parameters import absolute_paths, check_choices, check_known, notebook_parameters
from bindkit.pipeline.workspace import (
    Inputs,
    Workspace,
    one_protocol,
    open_workspace,
    recorded_settings,
    workspace_root,
    writing_into,
)

logger = logging.getLogger(__name__)

RUN_DEFAULTS: Mapping[str, Any] = {
    "scenes": "synthetic:n=400,seed=0,size=80x80,objects=4-6,twins=1,surface=graded,outlines=any",
    "backbones": "bindkit/scenes-flow bindkit/scenes-mae bindkit/scenes-dino bindkit/scenes-motion "
    "bindkit/scenes-supervised bindkit/scenes-clip random-init:bindkit/scenes-flow",
    "layers": "all",
}
"""What a run measures unless told otherwise; by hand, notebooks measure some of it, so that both share a cache."""

FIXED_SETTINGS = ("scenes", "groups", "protocol", "seed", "patches_per_scene", "window", "dtype")
"""Parameters that all figures of a workspace must share, since its table has no column for most of them."""

FIRST_LAB = 8
"""Notebooks numbered from here on are laboratories: run on their own, not by `run_pipeline`."""


@dataclass(frozen=True)
class NotebookRun:
    """One notebook of a run: where it lies as executed, and the seconds taken."""

    name: str
    path: Path
    skipped: bool
    seconds: float


@dataclass(frozen=True)
class RunReport:
    """What a run did and where it left it; notebooks that were complete already are skipped."""

    workspace: Workspace
    notebooks: tuple[NotebookRun, ...]
    seconds: float

    @property
    def executed(self) -> tuple[str, ...]:
        """Names of notebooks."""
        return tuple(run.name for run in self.notebooks if not run.skipped)

    @property
    def skipped(self) -> tuple[str, ...]:
        """Names of notebooks."""
        return tuple(run.name for run in self.notebooks if run.skipped)


def notebooks_directory() -> Path:
    """Directory of the numbered notebooks: inside the installed package, or beside it in a checkout."""
    places = [above / "notebooks" for above in Path(bindkit.__file__).parents[:2]]
    if found := next(filter(numbered_notebooks, places), None):
        return found
    raise NotebookFailedError(
        f"the numbered notebooks are neither in {places[0]} nor in {places[1]}; install bindkit again"
    )


def numbered_notebooks(directory: Path) -> list[Path]:
    """Notebooks of the pipeline, named ``NN_verb_object.ipynb`` with NN below `FIRST_LAB`, in order."""
    return [path for path in sorted(directory.glob("[0-9][0-9]_*.ipynb")) if int(path.name[:2]) < FIRST_LAB]


def pipeline_parameters(notebooks: Path) -> dict[str, Any]:
    """Every parameter of the numbered notebooks, but the workspace, with what a run uses unless told otherwise."""
    known: dict[str, Any] = {}
    for path in numbered_notebooks(notebooks):
        for name, default in notebook_parameters(path).items():
            known.setdefault(name, RUN_DEFAULTS.get(name, default))
    known.pop("workspace", None)
    return known


def run_pipeline(
    workspace: str | Path = "workspace",
    notebooks: str | Path | None = None,
    force: bool = False,
    **parameters: Any,
) -> RunReport:
    """Execute the numbered notebooks in order into a workspace, from where an earlier run stopped.

    ::

        report = bk.run_pipeline("runs/first", scenes="ade20k:data/ADE20K_2021_17_01")
        pd.read_csv(report.workspace.results_csv)

    Parameters
    ----------
    workspace : str or Path
        Directory to fill: new, empty, or a workspace of the same configuration.
    notebooks : str or Path, optional
        Directory of numbered notebooks; by default bindkit's own.
    force : bool
        Execute every notebook, complete or not, and compute anew what depends on changed scenes and weights.
    **parameters
        Parameters of the notebooks; each notebook gets those that it has. Relative paths in `scenes` and `backbones`
        are meant from the present directory.

    Returns
    -------
    RunReport
        The workspace, and which notebooks were executed or skipped because they were complete.

    Raises
    ------
    UnknownParameterError, InvalidParameterError
        For a parameter that no notebook has, a value of another type, or a workspace that may not be written into.
    SceneSetError, BackboneError, LayerError, GeometryError, ProbeError
        For scenes, a backbone, layers, a window, a probe or a task that there are not.
    WorkspaceMismatchError
        If the workspace holds a run of another configuration, or something else, or if scenes or backbones have
        changed since, by content; each is named.
    WorkspaceBusyError
        If another run is writing to the workspace. Of all these nothing is started.
    NotebookFailedError
        If a notebook stops with an error; the next run goes on there.
    """
    from filelock import FileLock, Timeout

    directory = Path(notebooks).expanduser().resolve() if notebooks is not None else notebooks_directory()
    if not numbered_notebooks(directory):
        raise NotebookFailedError(f"{directory} holds no numbered notebooks (NN_verb_object.ipynb)")
    known = pipeline_parameters(directory)
    values = {**known, **check_known(parameters, known, "the notebooks have", tell_values=True)}
    values = absolute_paths(values, Path.cwd())  # notebooks run in another directory
    check_choices(values)
    values = one_protocol(values)
    root = workspace_root(workspace)
    fixed = {name: values[name] for name in FIXED_SETTINGS if name in values}
    recorded_settings(root, fixed)

    lock = FileLock(root / ".lock", timeout=0)
    try:
        with writing_into(root):
            root.mkdir(parents=True, exist_ok=True)
            lock.acquire()
    except Timeout:
        raise WorkspaceBusyError(
            f"another run is writing to {root}; wait until it has ended, or give another workspace"
        ) from None
    try:
        return _run(directory, open_workspace(root, **fixed), values, force)
    finally:
        lock.release()


def _run(directory: Path, workspace: Workspace, values: dict[str, Any], force: bool) -> RunReport:
    """Execute what is not complete; once one was executed, all later ones are, but those that ran beside it."""
    from bindkit.pipeline.engine import (
        ExecutionRecord,
        WholeLines,
        at_once,
        execute_notebook,
        quiet_papermill,
        runs_beside,
    )

    started = time.perf_counter()
    before, inputs = Inputs.read(workspace.inputs), Inputs.look(values, workspace.cache, workspace.index)
    recompute = force or values.get("changed") == "recompute"
    changes: list[str] = []
    if before is not None and workspace.holds_results:
        changes = inputs.changes_since(before, "the run in this workspace")
    if changes and not recompute:
        raise WorkspaceMismatchError(
            f"{workspace.root} holds a run on other files:\n  " + "\n  ".join(changes) + "\nrun again with --force (in "
            "Python force=True) to compute anew what depends on them, put back what it was run on, or give another "
            "workspace"
        )
    for sentence in changes:
        logger.info("%s", sentence)
    if not changes:
        inputs.also_of(before).write(workspace.inputs)

    sources = numbered_notebooks(directory)
    stale = force

    def run(source: Path, shown: WholeLines | None = None) -> NotebookRun:
        target = workspace.notebooks / source.name
        names = notebook_parameters(source)
        given = {name: values[name] for name in names if name in values}
        if "workspace" in names:
            given["workspace"] = str(workspace.root)
        also = {"changed": "recompute" if recompute else "refuse"} if given.pop("changed", None) else {}
        record = ExecutionRecord.of(source, given, inputs.of(given))
        heading = f"[{sources.index(source) + 1}/{len(sources)}] {source.stem}"
        begun = time.perf_counter()
        # What other workspaces hold may have changed since.
        if not (stale or given.get("also")) and record.describes(target, workspace.root):
            logger.info("%s: complete already, skipped", heading)
            return NotebookRun(source.stem, target, True, time.perf_counter() - begun)
        logger.info("%s: running", heading)
        execute_notebook(source, target, record, workspace.root, also, shown)
        logger.info("%s: done in %.0f s", heading, time.perf_counter() - begun)
        if also:
            # All caches are of these inputs now: a later notebook that fails goes on from here.
            inputs.also_of(before).write(workspace.inputs)
        return NotebookRun(source.stem, target, False, time.perf_counter() - begun)

    runs: list[NotebookRun] = []
    with quiet_papermill():
        for beside, several in groupby(sources, runs_beside):
            for one in at_once(run, list(several)) if beside else map(run, several):
                runs.append(one)
                stale = stale or not one.skipped
    inputs.also_of(before).write(workspace.inputs)
    return RunReport(workspace, tuple(runs), time.perf_counter() - started)
