"""Data sets that list their scenes, by a file or by folders: found, judged by names and sizes alone, and opened.

A format says what its directory holds, lists its scenes and reads labels out of their masks; all else stands here. No
path that a file of the data set names is followed out of the data set. (A link in it is its owner's, and followed.)
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bindkit.errors import SceneSetError
from bindkit.scenes.decoding import why_unusable
from bindkit.scenes.reading import FIXED_MASKS, FileScenes, ReadingOptions, split_directory
from bindkit.scenes.scene import OFFICIAL_SPLITS, BrokenScene

SPLIT_FILES = dict(zip(OFFICIAL_SPLITS, ("train", "val"), strict=True))
"""Official split -> what most data sets call it in names of files and folders."""

LEADING_OUT = re.compile(r"(^|[/\\])(\.\.[/\\]|[A-Za-z]:)|(^|/)\\|\0")
"""In names: a part that goes up, a drive, a root of Windows, and what no system allows."""


@dataclass(frozen=True)
class Listed:
    """A scene as its data set lists it."""

    id: str
    files: tuple[Path, ...]
    """Picture, instance mask, and class mask if there is one."""
    split: str | None = None
    group: str | None = None
    """What it belongs to, such as a video."""
    reason: str | None = None
    """Why it cannot be used, where that is known already."""


def leads_out(path: Path, root: Path) -> str | None:
    """Why a path that a file of the data set names is not followed: on some system it leads out of `root`."""
    inner = f"{path.as_posix()}/".removeprefix(f"{root.as_posix()}/")
    if not inner.startswith("/") and not LEADING_OUT.search(inner):
        return None
    return f"{str(path)!r}: leads out of the data set {root}, and is not read; names are relative, without '..'"


def optional(module: str, extra: str) -> Any:
    """A library that one format alone needs. Raises SceneSetError with what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SceneSetError(
            f"{extra}: scenes need a library that is not there ({error}); run: pip install 'bindkit[{extra}]'"
        ) from error


def children(folder: Path) -> list[Path]:
    """What lies in a folder, by name, without hidden files; nothing where it is missing. Raises SceneSetError."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise SceneSetError(f"{folder} cannot be listed ({error.strerror}); check that you may read it") from error


def stems(*places: tuple[Path, str]) -> list[str]:
    """Names in any of several folders, each without the ending that files there have."""
    names = [(path.name, end) for folder, end in places for path in children(folder)]
    return sorted({name.removesuffix(end) for name, end in names if name.endswith(end)})


def lines_in(path: Path) -> list[str]:
    """Lines of a list of names that are not blank; none where it is missing. Raises SceneSetError."""
    try:
        text = path.read_text(encoding="utf-8-sig") if path.exists() else ""
    except (OSError, ValueError) as error:
        raise SceneSetError(f"{path} cannot be read ({error}); expected a name a line") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def find_dataset(directory: Path, inner: Sequence[str], what: str, hint: str) -> Path:
    """The directory given, or the single one inside it, that holds one of the `inner` folders. Raises SceneSetError."""
    if not directory.is_dir():
        raise SceneSetError(f"{directory} is not a directory; give the one that holds {what}")
    candidates = [directory, *filter(Path.is_dir, children(directory))]
    roots = [path for path in candidates if any((path / place).is_dir() for place in inner)]
    if directory in roots:
        return directory.resolve()
    if len(roots) == 1:
        return roots[0].resolve()
    if roots:
        names = ", ".join(path.name for path in roots)
        raise SceneSetError(f"{directory} holds several releases of {what} ({names}); give one of them")
    raise SceneSetError(
        f"{directory} holds no {what}: looked for {' and '.join(inner)} in it and in the directories in it. {hint}"
    )


class ListedScenes(FileScenes):
    """Base of the formats that list their scenes; a subclass fills in what is declared here."""

    scheme: ClassVar[str]
    what: ClassVar[str]
    """Name of the data set."""
    inner: ClassVar[tuple[str, ...]]
    """Folders of which its directory holds one at least."""
    layout: ClassVar[str]
    """How its files lie, in words."""
    own_options: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """Options of this format alone: name -> pattern of its value, and what it means."""
    known_options: ClassVar[tuple[str, ...]] = FIXED_MASKS

    def __init__(self, root: Path, options: ReadingOptions) -> None:
        super().__init__(self.scheme, root, options)
        self.take(self.listed())

    @classmethod
    def open(cls, directory: str, index_dir: Path | None = None) -> ListedScenes:
        """Open ``SCHEME:DIR,OPTIONS``: the data set's directory or the one that holds it. `index_dir` is not needed."""
        name, items = split_directory(directory)
        options = ReadingOptions.parse(items, cls.known_options, cls.own_options)
        return cls(find_dataset(Path(name).expanduser(), cls.inner, cls.what, f"Expected {cls.layout}"), options)

    def listed(self) -> Iterable[Listed]:
        """Every scene of the data set, in order."""
        raise NotImplementedError

    def take(self, listed: Iterable[Listed]) -> None:
        """Sort scenes into usable and broken ones. Raises SceneSetError where none can be used."""
        usable: dict[str, Listed] = {}
        broken: list[BrokenScene] = []
        for scene in listed:
            reasons = [scene.reason, *map(self._why_unusable, scene.files)]
            reason = next(filter(None, reasons), None)
            if scene.id in usable:
                reason = f"{scene.files[0]}: a second scene of this name, the first is {usable[scene.id].files[0]}"
            if reason:
                broken.append(BrokenScene(scene.id, reason))
            else:
                usable[scene.id] = scene
        kept = usable.values()
        self.ids, self.broken = tuple(usable), tuple(broken)
        self._files = tuple(scene.files for scene in kept)
        splits, groups = ([getattr(scene, name) for scene in kept] for name in ("split", "group"))
        self.official_splits = tuple(splits) if all(splits) else None
        self.groups = tuple(groups) if any(groups) else None
        self.require_usable(self.layout)

    def _why_unusable(self, path: Path) -> str | None:
        return leads_out(path, self.root) or why_unusable(path)

    def sources(self, position: int) -> tuple[Path, ...]:
        """Picture, instance mask and, where there is one, class mask."""
        return self._files[self._position(position)]


def in_both(pictures: Path, ending: str, masks: Path, mask_ending: str) -> Iterator[tuple[str, tuple[Path, Path]]]:
    """Name, picture and mask of all that lie in either of two folders."""
    for stem in stems((pictures, ending), (masks, mask_ending)):
        yield stem, (pictures / f"{stem}{ending}", masks / f"{stem}{mask_ending}")
