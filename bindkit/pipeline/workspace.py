"""Workspaces: the directory that a run fills, with what everything in it shares and was made from."""

from __future__ import annotations

import errno
import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from bindkit.arguments import read_path
from bindkit.errors import InvalidParameterError, WorkspaceMismatchError, WorkspaceStepMissingError
from bindkit.files import RememberedDigests, parse_json, write_json

if TYPE_CHECKING:
    from bindkit.scenes import SceneSet
    from bindkit.scenes.checking import SceneContents

SETTINGS_FILE = "workspace.json"
FORMAT = 1
"""Version of the layout below; a workspace of a later one is refused."""


def _place(name: str, what: str) -> property:
    return property(lambda workspace: workspace.root / name, doc=what)


@dataclass(frozen=True)
class Workspace:
    """Where everything of a run lies, and its settings; `open_workspace` opens one and creates its directories."""

    root: Path
    settings: dict[str, Any] = field(default_factory=dict, compare=False)

    notebooks = _place("notebooks", "Executed notebooks.")
    cache = _place("cache", "Activation caches, one directory per backbone.")
    probes = _place("probes", "Fitted probes.")
    figures = _place("figures", "Figures, each with its data table.")
    index = _place("index", "What was kept of a scene set's own index, so that it is read only once.")
    results_csv = _place("results.csv", "The table of results, one row per fit.")
    caches_csv = _place("caches.csv", "The table of caches, one row a backbone, with paths relative to the workspace.")
    viewer = _place("viewer.html", "The page to click through.")
    inputs = _place("inputs.json", "What the scenes and backbones of the run were made from: `Inputs`.")

    def artefact(self, name: str, made_by: str) -> Path:
        """A file that an earlier notebook leaves. Raises WorkspaceStepMissingError where it is not there yet."""
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
        If a setting is not a plain value, or ``strict,FIELD=VALUE`` sets what there is not; or the directories cannot
        be made.
    """
    try:
        # As JSON gives them back, so that later comparisons are between equals.
        given: dict[str, Any] = one_protocol(json.loads(json.dumps(fixed_settings, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise InvalidParameterError(f"settings of a workspace must be plain values (text, numbers): {error}") from error
    root = workspace_root(path)
    recorded = recorded_settings(root, given)
    workspace = Workspace(root, {**recorded, **given})
    try:
        with writing_into(root):
            root.mkdir(parents=True, exist_ok=True)
            # The record comes first: a directory with anything else in it but no record is somebody else's.
            if workspace.settings != recorded or not (root / SETTINGS_FILE).exists():
                write_json(root / SETTINGS_FILE, {"format": FORMAT, "settings": workspace.settings})
            for name in ("notebooks", "cache", "probes", "figures", "index"):
                (root / name).mkdir(exist_ok=True)
    except OSError as error:
        raise InvalidParameterError(f"cannot make the workspace {root}: {error}; give another directory") from error
    return workspace


def one_protocol(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same, with the one name of a protocol whose fields are set in text. Raises InvalidParameterError."""
    text = settings.get("protocol")
    if isinstance(text, str) and "," in text:
        from bindkit.probes.protocols import PROTOCOLS, protocol  # only where it is needed, since it needs torch

        if text.partition(",")[0].strip() in PROTOCOLS:
            return {**settings, "protocol": protocol(text).name}
    return dict(settings)


@contextmanager
def writing_into(root: Path) -> Iterator[None]:
    """Say by InvalidParameterError which directory may not be written into; other errors pass as they are."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise InvalidParameterError(
            f"cannot write into {root} ({error.strerror}); give another --workspace or change its permissions"
        ) from error


def workspace_root(path: str | Path) -> Path:
    """Absolute path of a workspace, ``~`` and ``..`` resolved.

    Notebooks run where they lie, which is no place for what they leave: there a path is meant as from the directory
    above, so that it is the same workspace as that of ``bindkit run``.
    """
    here = Path.cwd()
    if here.name == "notebooks" and any(here.glob("[0-9][0-9]_*.ipynb")):
        here = here.parent
    return (here / read_path(path, "a workspace")).resolve()


def recorded_settings(root: Path, given: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Settings recorded in a directory; none if it is new or empty. Creates nothing.

    Raises WorkspaceMismatchError for a file, a directory with other things in it, a record that cannot be read, and
    for a `given` setting that differs from the one with which results were made.
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
    differing = differing_names(settings, given)
    if differing and Workspace(root).holds_results:
        lines = [f"  {name}: recorded {settings[name]!r}, given {given[name]!r}" for name in differing]
        raise WorkspaceMismatchError(
            f"the workspace {root} holds a run of another configuration:\n" + "\n".join(lines) + "\ngive another "
            "workspace, or the recorded values again; to start over, delete that directory"
        )
    return settings


def differing_names(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is not made from the same things: what only one of the two looks knows is no difference."""
    return [name for name, value in now.items() if before.get(name, value) != value]


@dataclass(frozen=True)
class Inputs:
    """What a run reads from outside, by content, kept in its workspace so that a later run knows what has changed."""

    contents: SceneContents
    classes: str
    """Digest of the names and numbers of classes."""
    backbones: Mapping[str, Mapping[str, str]]
    """Name -> as `contents_of_backbone` gives it."""
    groups: str
    """SHA-256 of the table that may say which scenes belong together; empty without one, and where nobody asks."""
    scenes: SceneSet | None = field(default=None, compare=False, repr=False)
    """To call changed files by their names; None where it was read from a file."""

    @classmethod
    def look(cls, parameters: Mapping[str, Any], cache: Path, index: Path) -> Inputs:
        """What scenes and backbones are made from now; what is read of files is remembered in `cache` and `index`."""
        from bindkit.backbones.names import contents_of_backbone
        from bindkit.scenes import open_scenes
        from bindkit.scenes.checking import SceneContents, contents_of, memory_in

        digests = RememberedDigests(index / "backbones.json")
        names = shlex.split(parameters.get("backbones", ""))
        backbones = {name: contents_of_backbone(name, digests) for name in names}
        if "scenes" not in parameters:
            return cls(SceneContents(), "", backbones, "")
        scenes = open_scenes(parameters["scenes"], index_dir=index)
        contents = contents_of(scenes, digests=RememberedDigests(memory_in(cache, scenes.uri)))
        benchmark = getattr(scenes, "benchmark_classes", None) or {}
        classes = _digest([sorted(scenes.class_names.items()), sorted(benchmark.items())])
        table: Path | None = getattr(scenes, "scenes_csv", None)
        groups = digests.of(table) if table is not None and parameters.get("groups") else ""
        return cls(contents, classes, backbones, groups, scenes)

    def of(self, parameters: Mapping[str, Any]) -> dict[str, str]:
        """Digests of those inputs that a notebook with these parameters reads; without what is not known here."""
        found = {}
        if "scenes" in parameters:
            contents = [self.contents.made_by, list(self.contents.of.items())]
            found["scenes"] = _digest([*contents, self.classes, self.groups])
        if "backbones" in parameters:
            found |= {f"backbone {name}": _digest(dict(files)) for name, files in self.backbones.items() if files}
        return found

    def changes_since(self, before: Inputs, since: str) -> list[str]:
        """Say what has changed, by name; `since` ends each sentence. Backbones of one look only are no change."""
        from bindkit.scenes.checking import changes, comings_and_goings, listed

        then, now = before.contents, self.contents
        said = comings_and_goings(then.of, now.of, since)
        if self.scenes is not None:
            said += changes(then.of, now.of, self.scenes, since)
        if then.made_by != now.made_by:
            said.append(f"scenes are computed by {now.made_by or 'nothing'}, not by {then.made_by or 'nothing'}")
        if before.classes != self.classes:
            said.append(f"names or numbers of classes have changed since {since}")
        if before.groups != self.groups:
            said.append(f"the table of scenes and their groups has changed since {since}")
        looks = [{name: dict(files) for name, files in look.backbones.items() if files} for look in (before, self)]
        for name in differing_names(*looks):
            old, new = looks[0][name], looks[1][name]
            differing = [file for file in {**old, **new} if old.get(file) != new.get(file)]
            said.append(f"the backbone {name} has changed since {since}: {listed(differing)}")
        return said

    def also_of(self, before: Inputs | None) -> Inputs:
        """These, and backbones that only an earlier look saw; of hub models that have come meanwhile the revision."""
        from bindkit.backbones.names import contents_of_backbone

        backbones = {name: files or contents_of_backbone(name) for name, files in self.backbones.items()}
        return replace(self, backbones={**(before.backbones if before else {}), **backbones})

    def write(self, file: Path) -> None:
        """Keep them as JSON."""
        scenes: dict[str, Any] = {"made_by": self.contents.made_by, "classes": self.classes, "groups": self.groups}
        scenes["of"] = dict(self.contents.of)
        backbones = {name: dict(files) for name, files in self.backbones.items()}
        write_json(file, {"scenes": scenes, "backbones": backbones})

    @classmethod
    def read(cls, file: Path) -> Inputs | None:
        """Those that were kept; None if there are none that can be read."""
        from bindkit.scenes.checking import SceneContents

        try:
            kept = parse_json(file.read_text(encoding="utf-8"))
            scenes, backbones = kept["scenes"], kept["backbones"]
            contents = SceneContents(scenes["made_by"], dict(scenes["of"]))
            files_of = {name: dict(files) for name, files in backbones.items()}
            return cls(contents, scenes["classes"], files_of, scenes["groups"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
