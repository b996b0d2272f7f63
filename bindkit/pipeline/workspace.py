"""Workspaces: the directory that a run fills, with the settings that everything in it shares.

>>> import tempfile
>>> place = tempfile.mkdtemp()
>>> workspace = open_workspace(place, scenes="synthetic:n=8,seed=0", protocol="strict")
>>> workspace.results_csv.name, workspace.settings["protocol"]
('results.csv', 'strict')
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bindkit.arguments import read_path
from bindkit.errors import InvalidParameterError, WorkspaceMismatchError, WorkspaceStepMissingError
from bindkit.files import parse_json, write_json

SETTINGS_FILE = "workspace.json"
FORMAT = 1
"""Version of the layout below; a workspace of a later one is refused."""


@dataclass(frozen=True)
class Workspace:
    """Where everything of a run lies. Open one with `open_workspace`, which creates its directories.

    >>> Workspace(Path("runs/a")).cache.as_posix()
    'runs/a/cache'

    Parameters
    ----------
    root : Path
        The workspace's directory.
    settings : dict
        Recorded settings that everything in the workspace shares.
    """

    root: Path
    settings: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def notebooks(self) -> Path:
        """Executed notebooks."""
        return self.root / "notebooks"

    @property
    def cache(self) -> Path:
        """Activation caches, one directory per backbone."""
        return self.root / "cache"

    @property
    def probes(self) -> Path:
        """Fitted probes."""
        return self.root / "probes"

    @property
    def figures(self) -> Path:
        """Figures, each with its data table."""
        return self.root / "figures"

    @property
    def index(self) -> Path:
        """What was kept of a scene set's own index, so that it is read only once."""
        return self.root / "index"

    @property
    def results_csv(self) -> Path:
        """The table of results, one row per fit."""
        return self.root / "results.csv"

    @property
    def viewer(self) -> Path:
        """The page to click through."""
        return self.root / "viewer.html"

    @property
    def inputs(self) -> Path:
        """What the scenes and backbones of the run were made from."""
        return self.root / "inputs.json"

    @property
    def caches_csv(self) -> Path:
        """The table of caches, one row a backbone, with paths relative to the workspace."""
        return self.root / "caches.csv"

    def artefact(self, name: str, made_by: str) -> Path:
        """A file that an earlier notebook leaves.

        Raises
        ------
        WorkspaceStepMissingError
            If it is not there yet; says which notebook makes it.
        """
        if not (self.root / name).exists():
            raise WorkspaceStepMissingError(
                f"{self.root} has no {name} yet; run notebook {made_by} with the same workspace first"
            )
        return self.root / name

    @property
    def holds_results(self) -> bool:
        """Whether anything was made here that belongs to the recorded settings."""
        from bindkit.scenes.checking import MEMORY

        cached = any(file.is_file() and file.name != MEMORY for file in self.cache.rglob("*"))
        return cached or any(self.probes.glob("*")) or self.results_csv.exists()


def open_workspace(path: str | Path, **fixed_settings: Any) -> Workspace:
    """Open a workspace, create its directories, and hold it to one configuration.

    >>> import tempfile
    >>> place = Path(tempfile.mkdtemp()) / "run"
    >>> open_workspace(place, seed=0).settings
    {'seed': 0}
    >>> open_workspace(place, protocol="paper").settings
    {'seed': 0, 'protocol': 'paper'}

    Parameters
    ----------
    path : str or Path
        A new or empty directory, or a workspace from before. ``~`` is the home directory.
    **fixed_settings
        Plain values that everything in the workspace must share, such as scenes, protocol and seed. They are recorded
        on first use; from the moment that a cache, a probe or a result lies in the workspace they may not change.

    Returns
    -------
    Workspace
        With an absolute root.

    Raises
    ------
    WorkspaceMismatchError
        If a setting differs from the recorded one; names each with both values. Or if the directory holds something
        else than a workspace, so that nothing of yours is overwritten.
    InvalidParameterError
        If a setting is not a plain value, or the directories cannot be made.
    """
    given = _plain(fixed_settings)
    root = workspace_root(path)
    recorded = recorded_settings(root)
    check_settings(root, recorded, given)
    settings = {**recorded, **given}
    workspace = Workspace(root, settings)
    directories = (workspace.notebooks, workspace.cache, workspace.probes, workspace.figures, workspace.index)
    try:
        with writing_into(root):
            root.mkdir(parents=True, exist_ok=True)
            # The record comes first: a directory with anything else in it but no record is somebody else's.
            if settings != recorded or not (root / SETTINGS_FILE).exists():
                write_json(root / SETTINGS_FILE, {"format": FORMAT, "settings": settings})
            for directory in directories:
                directory.mkdir(exist_ok=True)
    except OSError as error:
        raise InvalidParameterError(f"cannot make the workspace {root}: {error}; give another directory") from error
    return workspace


@contextmanager
def writing_into(root: Path) -> Iterator[None]:
    """Say which directory may not be written into, and what to do, where the system only says that something may not.

    Raises
    ------
    InvalidParameterError
        For permissions that are lacking and for a disk that is read-only; other errors pass as they are.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise InvalidParameterError(
            f"cannot write into {root} ({error.strerror}); give another --workspace or change its permissions"
        ) from error


def workspace_root(path: str | Path) -> Path:
    """Absolute path of a workspace, ``~`` and ``..`` resolved."""
    return read_path(path, "a workspace").resolve()


def recorded_settings(root: Path) -> dict[str, Any]:
    """Settings recorded in a directory; none if it is new or empty. Creates nothing.

    Raises
    ------
    WorkspaceMismatchError
        If it is a file, a directory with other things in it, or a workspace that this version cannot read.
    """
    if above := next((parent for parent in root.parents if parent.exists() and not parent.is_dir()), None):
        raise WorkspaceMismatchError(f"{root} cannot be a directory: {above} is a file; give another workspace")
    if not root.exists():
        return {}
    if not root.is_dir():
        raise WorkspaceMismatchError(f"{root} is a file; give a new or empty directory as the workspace")
    record = root / SETTINGS_FILE
    if not record.exists():
        entries = sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))
        if entries:
            shown = ", ".join(entries[:3]) + (", ..." if len(entries) > 3 else "")
            raise WorkspaceMismatchError(
                f"{root} is not a bindkit workspace (it has no {SETTINGS_FILE}) but holds {shown}; so that nothing of "
                f"yours is overwritten, give a new or empty directory"
            )
        return {}
    try:
        content = parse_json(record.read_text(encoding="utf-8"))
        version, settings = content["format"], dict(content["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkspaceMismatchError(
            f"{record} cannot be read ({error}); give another workspace, or delete that file, which records the "
            f"settings anew"
        ) from error
    if version != FORMAT:
        raise WorkspaceMismatchError(
            f"{root} has workspace format {version}, this bindkit writes format {FORMAT}; give another workspace"
        )
    return settings


def check_settings(root: Path, recorded: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse settings that differ from the recorded ones of a workspace that holds results.

    Raises
    ------
    WorkspaceMismatchError
        Naming each differing setting with both values.
    """
    differing = [name for name in given if name in recorded and recorded[name] != given[name]]
    if differing and Workspace(root).holds_results:
        lines = [f"  {name}: recorded {recorded[name]!r}, given {given[name]!r}" for name in differing]
        raise WorkspaceMismatchError(
            f"the workspace {root} holds a run of another configuration:\n" + "\n".join(lines) + "\ngive another "
            "workspace, or the recorded values again; to start over, delete that directory"
        )


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back, so that later comparisons are between equals."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(settings, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidParameterError(f"settings of a workspace must be plain values (text, numbers): {error}") from error
    return plain
