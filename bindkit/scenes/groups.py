"""Scenes that belong together, such as frames of one video, and pictures that are there twice.

>>> from types import SimpleNamespace
>>> scenes = SimpleNamespace(ids=("cat_001", "dog_001", "cat_002"))
>>> group_scenes(scenes, groups=r"^[a-z]+").groups
((0, 2),)
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bindkit.errors import BrokenSceneError, InvalidParameterError, SceneSetError
from bindkit.files import sha256_of

Groups = str | Mapping[str, Any] | Sequence[Any] | None
"""How groups are told: a regular expression, a column, a name for each id, or one for each scene."""

_SHOWN = 3


@dataclass(frozen=True)
class Grouping:
    """Which scenes belong together.

    Attributes
    ----------
    groups : tuple of tuple of int
        Positions of scenes that belong together, ascending; scenes alone in their group are left out.
    notices : tuple of str
        What was grouped, in words; empty where nothing was.
    """

    groups: tuple[tuple[int, ...], ...]
    notices: tuple[str, ...]


def group_scenes(scenes: Any, groups: Groups = None) -> Grouping:
    """Find scenes that belong together: those of one group, and always those whose pictures are the same bytes.

    Arguments and errors as `bindkit.split_scenes`.
    """
    named, notices = named_groups(scenes, groups)
    same = _identical_pictures(scenes)
    if same:
        n_scenes = sum(map(len, same))
        shown = "; ".join(", ".join(scenes.ids[k] for k in members[:_SHOWN]) for members in same[:_SHOWN])
        more = "; ..." if len(same) > _SHOWN or any(len(members) > _SHOWN for members in same[:_SHOWN]) else ""
        notices.append(
            f"{n_scenes} scenes show {len(same)} picture{'' if len(same) == 1 else 's'}, byte for byte: {shown}{more}; "
            "each is kept on one side of the split"
        )
    return Grouping(_joined(len(scenes.ids), [*named, *same]), tuple(notices))


def named_groups(scenes: Any, groups: Groups) -> tuple[list[tuple[int, ...]], list[str]]:
    """Groups as they were told, of several scenes each, and what to say of them; errors as `bindkit.split_scenes`."""
    if groups is None or (isinstance(groups, str) and not groups):
        return [], []
    ids = scenes.ids
    if isinstance(groups, str):
        names, told = _by_text(scenes, groups)
    elif isinstance(groups, Mapping):
        strangers = [scene_id for scene_id in groups if scene_id not in set(ids)]
        if strangers:
            raise InvalidParameterError(f"groups name {strangers[0]!r}, which is no scene of the set; give scene ids")
        names, told = [groups.get(scene_id) for scene_id in ids], "as given"
    else:
        names, told = list(groups), "as given"
        if len(names) != len(ids):
            raise InvalidParameterError(f"groups has {len(names)} entries for {len(ids)} scenes; give one a scene")
    members: dict[Any, list[int]] = {}
    for position, name in enumerate(names):
        if name is not None and name != "":
            members.setdefault(name, []).append(position)
    without = len(ids) - sum(map(len, members.values()))
    said = f"{len(ids) - without} scenes in {len(members)} group{'' if len(members) == 1 else 's'} ({told})"
    if without:
        said += f", {without} without one: each of those is a group of its own"
    return [tuple(found) for found in members.values() if len(found) > 1], [said]


def _by_text(scenes: Any, groups: str) -> tuple[list[str | None], str]:
    """Names by a column of the set's own table if it has that column, else by a regular expression."""
    table: Path | None = getattr(scenes, "scenes_csv", None)
    columns = _columns(table) if table is not None and table.is_file() else {}
    if table is not None and groups in columns:
        return [columns[groups].get(scene_id) for scene_id in scenes.ids], f"column {groups!r} of {table.name}"
    try:
        pattern = re.compile(groups)
    except re.error as error:
        raise InvalidParameterError(
            f"groups is a regular expression that is searched in scene ids, or a column; {groups!r} is neither: {error}"
        ) from None
    found = [pattern.search(scene_id) for scene_id in scenes.ids]
    if not any(found):
        where = ""
        if table is not None:
            has = f"{table.name} has the columns {', '.join(columns)}" if columns else f"there is no {table.name}"
            where = f", nor is it a column of {table} ({has}; it needs id and {groups!r})"
        raise InvalidParameterError(
            f"groups {groups!r} is found in no scene id, such as {scenes.ids[0]!r}{where}; give a regular expression "
            "whose first group, or whole match, is what scenes of one group have in common"
        )
    names = [None if match is None else match.group(1 if pattern.groups else 0) for match in found]
    return names, f"by {groups!r} in their ids"


def _columns(table: Path) -> dict[str, dict[str, str]]:
    """Column -> scene id -> value. Raises SceneSetError for a table without ids or with one twice."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            rows, names = list(reader), list(reader.fieldnames or ())
    except (OSError, ValueError, csv.Error) as error:
        raise SceneSetError(f"{table} cannot be read ({error}); give a CSV with a column id, or remove it") from error
    if "id" not in names:
        raise SceneSetError(f"{table} has no column id; it has {', '.join(names) or 'none'}; add scene ids as id")
    for row in rows:
        row["id"] = unicodedata.normalize("NFC", row["id"] or "")  # as scene ids are
    ids = [row["id"] for row in rows]
    twice = next((scene_id for scene_id in ids if ids.count(scene_id) > 1), None) if len(set(ids)) < len(ids) else None
    if twice is not None:
        raise SceneSetError(f"{table} has the scene {twice!r} twice; give each scene one line")
    return {name: {row["id"]: row[name] for row in rows} for name in names if name != "id"}


def _identical_pictures(scenes: Any) -> list[tuple[int, ...]]:
    """Scenes whose picture files hold the same bytes; only files of one size can."""
    sources = getattr(scenes, "sources", None)  # a set of one's own need not say
    if sources is None:
        return []
    by_size: dict[int, list[tuple[int, Path]]] = {}
    for position in range(len(scenes.ids)):
        try:
            files = sources(position)
            if files:
                by_size.setdefault(files[0].stat().st_size, []).append((position, files[0]))
        except (OSError, BrokenSceneError):
            continue  # a picture that is gone is reported where it is read
    by_digest: dict[str, list[int]] = {}
    for alike in by_size.values():
        for position, file in alike if len(alike) > 1 else ():
            try:
                by_digest.setdefault(sha256_of(file), []).append(position)
            except OSError:
                continue
    return sorted(tuple(found) for found in by_digest.values() if len(found) > 1)


def _joined(n_scenes: int, groups: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Groups that share a scene, as one."""
    first = list(range(n_scenes))

    def root(position: int) -> int:
        while first[position] != position:
            first[position] = first[first[position]]
            position = first[position]
        return position

    for members in groups:
        for position in members[1:]:
            low, high = sorted((root(members[0]), root(position)))
            first[high] = low
    together: dict[int, list[int]] = {}
    for position in range(n_scenes):
        together.setdefault(root(position), []).append(position)
    return tuple(tuple(found) for found in together.values() if len(found) > 1)
