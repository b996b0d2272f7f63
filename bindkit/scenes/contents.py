"""What scenes are made from, by content: digests of their files, and in words what has changed since an earlier look.

>>> from bindkit.scenes import open_scenes
>>> contents_of(open_scenes("synthetic:n=2,seed=0")).made_by.startswith("bindkit ")
True
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from bindkit.errors import BrokenSceneError
from bindkit.files import RememberedDigests, progress, slug
from bindkit.scenes.scene import ReadFromFiles, SceneSet

_DIGITS = 32
"""Of a SHA-256 in hex: 128 bits keep files apart, and a manifest of a hundred thousand scenes small."""

MEMORY = "contents.json"
"""Name of the file that remembers digests."""

_UNREADABLE = "-"
_KINDS = ("picture", "mask", "class mask")
"""What the files of a scene are, in the order of its sources."""

_MOST_NAMED = 5


@dataclass(frozen=True)
class SceneContents:
    """What the scenes of a set are made from.

    Attributes
    ----------
    made_by : str
        Of a set whose scenes are computed from its URI, what computes them; else empty.
    of : dict
        Scene id -> digests of picture, mask and class mask (as many as there are), with blanks between; empty for
        computed scenes. Of scenes that come neither from files nor from a recipe, digests of their pixels.
    """

    made_by: str = ""
    of: Mapping[str, str] = field(default_factory=dict)


def memory_in(root: str | Path, scenes_uri: str) -> Path:
    """Where the digests of a scene set's files are remembered: beside its caches.

    >>> memory_in("cache", "folder:/data/mine").as_posix()
    'cache/folder-data-mine/contents.json'
    """
    return Path(root) / slug(scenes_uri) / MEMORY


def contents_of(
    scenes: SceneSet,
    positions: Iterable[int] | None = None,
    digests: RememberedDigests | None = None,
    workers: int = 2,
) -> SceneContents:
    """Look what the scenes at some positions (by default all) are made from.

    A set that computes its scenes says so in ``made_by``. Files are read as far as they are not remembered.
    """
    if made_by := getattr(scenes, "made_by", None):
        return SceneContents(str(made_by))
    chosen = list(range(len(scenes)) if positions is None else positions)
    known = RememberedDigests() if digests is None else digests
    one: Callable[[int], str] = partial(content_of, scenes, known)
    of: dict[str, str] = {}
    with progress(len(chosen), "look at scene files", "scene") as bar, ThreadPoolExecutor(max(1, workers)) as threads:
        for position, content in zip(chosen, (threads.map if workers else map)(one, chosen), strict=True):
            of[scenes.ids[position]] = content
            bar.update(1)
    known.keep()
    return SceneContents("", of)


def are_files(scenes: SceneSet) -> bool:
    """Whether scenes are read from files that the set names."""
    return isinstance(scenes, ReadFromFiles) and len(scenes) > 0 and bool(scenes.sources(0))


def content_of(scenes: SceneSet, digests: RememberedDigests, position: int) -> str:
    """What one scene is made from now, as `SceneContents.of` has it."""
    files = scenes.sources(position) if isinstance(scenes, ReadFromFiles) else ()
    if files:
        return " ".join(digests.of(file)[:_DIGITS] or _UNREADABLE for file in files)
    try:
        scene = scenes[position]
    except BrokenSceneError:
        return _UNREADABLE
    return " ".join(_digest_of(array) for array in (scene.image, scene.instances, scene.classes))


def _digest_of(array: np.ndarray) -> str:
    return hashlib.sha256(str(array.shape).encode() + np.ascontiguousarray(array).data).hexdigest()[:_DIGITS]


def changed_ids(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Scenes of both looks whose content differs, in the order of the first."""
    return [scene_id for scene_id, content in before.items() if now.get(scene_id, content) != content]


def changes(before: Mapping[str, str], now: Mapping[str, str], scenes: SceneSet, since: str) -> list[str]:
    """Say which files have changed between two looks at scenes, by name; nothing of scenes that only one look saw.

    `since` ends the sentence: ``3 masks have changed since this cache was made: a.png, b.png, c.png``.
    """
    position_of = {scene_id: position for position, scene_id in enumerate(scenes.ids)}
    named: dict[int, list[str]] = {}
    for scene_id in sorted(changed_ids(before, now), key=lambda scene_id: position_of.get(scene_id, len(scenes))):
        files: Sequence[Path] = ()
        if isinstance(scenes, ReadFromFiles) and scene_id in position_of:
            files = scenes.sources(position_of[scene_id])
        old, new = before[scene_id].split(" "), now[scene_id].split(" ")
        for number in range(max(len(old), len(new))):
            if old[number : number + 1] != new[number : number + 1]:
                named.setdefault(number, []).append(files[number].name if number < len(files) else scene_id)
    return [
        f"{_counted(len(named[number]), _KINDS[min(number, 2)])} changed since {since}: {listed(named[number])}"
        for number in sorted(named)
    ]


def comings_and_goings(before: Iterable[str], now: Iterable[str], since: str) -> list[str]:
    """Say which scenes there were and are no more, and which are new."""
    then, today = dict.fromkeys(before), dict.fromkeys(now)
    gone, new = [name for name in then if name not in today], [name for name in today if name not in then]
    said = [f"{_counted(len(gone), 'scene')} gone since {since}: {listed(gone)}"] if gone else []
    return said + ([f"{_counted(len(new), 'scene')} been added since {since}: {listed(new)}"] if new else [])


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more.

    >>> listed(["a", "b"]), listed(["a", "b", "c", "d", "e", "f"])
    ('a, b', 'a, b, c, d, e and 1 more')
    """
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _counted(count: int, thing: str) -> str:
    return f"1 {thing} has" if count == 1 else f"{count} {thing}s have"
