"""Which scenes train, validate and test a probe: by scene, reproducible, and honest about small sets.

Scenes that belong together, such as frames of one video or pictures that are there twice, stay on one side.
"""

from __future__ import annotations

import csv
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from bindkit.errors import BrokenSceneError, EmptySplitError, InvalidParameterError, SceneSetError
from bindkit.files import sha256_of
from bindkit.scenes.scene import OFFICIAL_SPLITS, sources_of

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("train", "validation", "test")
FEW_SCENES = 20
"""Below this many scenes, or groups of them, a split's figures are called a demonstration."""

Groups = str | Mapping[str, Any] | Sequence[Any] | None
"""How groups are told: a regular expression, a column, a name for each id, or one for each scene."""
Members = tuple[int, ...]
_SHOWN = 3


@runtime_checkable
class _Identified(Protocol):
    """What splitting needs of a scene set."""

    ids: Sequence[str]
    official_splits: Sequence[str] | None


@dataclass(frozen=True)
class Split:
    """Positions of the scenes that train, validate and test; no scene and no group is in two of them."""

    train: tuple[int, ...]
    """Ascending, as the others. Validation and test are empty where there are too few scenes."""
    validation: tuple[int, ...]
    test: tuple[int, ...]
    notices: tuple[str, ...] = ()
    """What a reader of the figures must know, in words; empty where every split is large enough."""
    groups: tuple[tuple[int, ...], ...] = ()
    """Scenes that belong together, each group on one side; those alone in their group are left out."""

    def __post_init__(self) -> None:
        together = (*self.train, *self.validation, *self.test)
        if len(set(together)) != len(together):
            twice = next(position for position in together if together.count(position) > 1)
            raise InvalidParameterError(f"scene {twice} is in two splits; each scene belongs to exactly one")
        side = {position: name for name in SPLITS for position in getattr(self, name)}
        for members in self.groups:
            if len({side.get(position) for position in members}) > 1:
                raise InvalidParameterError(f"scenes {members} belong together but are in several splits")

    @property
    def judged(self) -> str:
        """The split whose figures are reported: the first of test, validation and train that is not empty."""
        return next((name for name in reversed(SPLITS) if getattr(self, name)), "train")

    def positions(self, name: str) -> tuple[int, ...]:
        """Positions of one split. Raises InvalidParameterError for a name other than those of `SPLITS`."""
        if name not in SPLITS:
            raise InvalidParameterError(f"there is no split {name!r}; choose one of {', '.join(SPLITS)}")
        return tuple(getattr(self, name))


def split_table(split: Split) -> pd.DataFrame:
    """Scenes in each split and what it is for."""
    import pandas as pd

    uses = ("fits the probes", "picks the epoch that is kept", "gives the reported figures")
    counts = [len(split.positions(name)) for name in SPLITS]
    return pd.DataFrame({"scenes": counts, "what for": uses}, index=pd.Index(SPLITS, name="split"))


def named_groups(scenes: Any, groups: Groups) -> tuple[list[Members], list[str]]:
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
    return _by_name(names, told)


def _by_name(names: Sequence[Any], told: str) -> tuple[list[Members], list[str]]:
    """Groups of several scenes, out of one name for each scene or none, and what to say of them."""
    having = [position for position, name in enumerate(names) if name is not None and name != ""]
    n_groups = len({names[position] for position in having})
    said = f"{len(having)} scenes in {_counted(n_groups, 'group')} ({told})"
    if len(having) < len(names):
        said += f", {len(names) - len(having)} without one: each of those is a group of its own"
    return _alike(having, lambda position: names[position]), [said]


def _alike(positions: Iterable[int], key: Callable[[int], Any]) -> list[Members]:
    """Positions with one key, where there are several; without those whose key is in a file that cannot be read."""
    found: dict[Any, list[int]] = {}
    for position in positions:
        with suppress(OSError, BrokenSceneError):  # a picture that is gone is reported where it is read
            found.setdefault(key(position), []).append(position)
    return [tuple(members) for members in found.values() if len(members) > 1]


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
        where = f", and {table} has the columns {', '.join(columns)}" if columns else ""
        if table is not None and not columns:
            where = f", and there is no {table} with such a column"
        raise InvalidParameterError(
            f"groups {groups!r} is found in no scene id, such as {scenes.ids[0]!r}{where}; give a regular expression "
            "whose first group, or whole match, is what scenes of one group have in common"
        )
    return [match and match.group(1 if pattern.groups else 0) for match in found], f"by {groups!r} in their ids"


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
    if twice := [scene_id for scene_id, n in Counter(row["id"] for row in rows).items() if n > 1]:
        raise SceneSetError(f"{table} has the scene {twice[0]!r} twice; give each scene one line")
    return {name: {row["id"]: row[name] for row in rows} for name in names if name != "id"}


def _identical_pictures(scenes: Any) -> list[Members]:
    """Scenes whose pictures are held as the same bytes; of files only those of one size can."""
    if digest := getattr(scenes, "picture_digest", None):  # held in a table, not in files
        return sorted(_alike(range(len(scenes.ids)), digest))

    def picture(position: int) -> Path:
        files = sources_of(scenes, position)
        if not files:
            raise FileNotFoundError
        return files[0]

    of_one_size = _alike(range(len(scenes.ids)), lambda position: picture(position).stat().st_size)
    same = (_alike(positions, lambda position: sha256_of(picture(position))) for positions in of_one_size)
    return sorted(chain.from_iterable(same))


def _joined(n_scenes: int, groups: Sequence[Members]) -> tuple[Members, ...]:
    """Groups that share a scene, as one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = [(members[0], other) for members in groups for other in members[1:]]
    if not links:
        return ()
    graph = coo_array(([1] * len(links), tuple(zip(*links, strict=True))), shape=(n_scenes, n_scenes))
    part_of = connected_components(graph, directed=False)[1]
    return tuple(_alike(range(n_scenes), lambda position: part_of[position]))


def _split_officially(official: Sequence[str], groups: Sequence[Members]) -> tuple[list[int], list[str]]:
    """Side of each scene in the data set's own split, whole groups on one, and what was moved for that, in words."""
    training = [position for position, split in enumerate(official) if split == OFFICIAL_SPLITS[0]]
    n_train = max(1, len(training) * 4 // 5)
    side = [2] * len(official)
    for number, position in enumerate(training):
        side[position] = 0 if number < n_train else 1
    moved = 0
    for members in groups:
        held = [side[position] for position in members]
        # What tests must test; between training and validation, the side of most.
        whole = 2 if 2 in held else int(2 * held.count(1) > len(held))
        moved += len(held) - held.count(whole)
        for position in members:
            side[position] = whole
    if 0 not in side:
        raise EmptySplitError(
            "every training scene shares a group with a validation scene of the data set; nothing is left to train on: "
            "give finer groups"
        )
    said = f"{_counted(moved, 'scene')} moved from the data set's own split to the rest of their group"
    return side, [said] if moved else []


def _split_by_hash(ids: Sequence[str], groups: Sequence[Members]) -> list[int]:
    """Side of each scene: groups in the order of their ids' hashes, large ones first, to the first side with room."""
    units = in_order(ids, groups)
    n_held = max(1, len(ids) // 5)
    room = [len(ids) - 2 * n_held, n_held, n_held] if len(units) > 2 else [len(ids)] * 3
    side_of: dict[int, int] = {}
    filled: set[int] = set()
    used = (0, 1, 2) if len(units) > 2 else (0, 2)
    for number, members in enumerate(units):
        empty = [side for side in used if side not in filled]
        choice = empty if len(units) - number <= len(empty) else used
        fitting = [side for side in choice if room[side] >= len(members)]
        side = fitting[0] if fitting else max(choice, key=lambda at: room[at])
        side_of |= dict.fromkeys(members, side)
        filled.add(side)
        room[side] -= len(members)
    return [side_of[position] for position in range(len(ids))]


def in_order(ids: Sequence[str], groups: Sequence[Members]) -> list[Members]:
    """All groups, those of one scene among them: large ones first, then by the SHA-256 of their ids."""
    keys = [(hashlib.sha256(scene_id.encode()).digest(), position) for position, scene_id in enumerate(ids)]
    grouped = {position for members in groups for position in members}
    units = [*groups, *((position,) for position in range(len(ids)) if position not in grouped)]
    return sorted(units, key=lambda members: (-len(members), min(keys[position] for position in members)))


def _notices(sides: Sequence[Members], groups: Sequence[Members]) -> list[str]:
    """What is too small to measure with, in words."""
    first = {position: members[0] for members in groups for position in members}
    n_groups = [len({first.get(position, position) for position in side}) for side in sides]
    train, validation, test = sides
    said = []
    if not test and not validation:
        alone, very = ("scene", "scene") if len(train) == 1 else ("group of scenes", "scenes")
        said.append(
            f"there is one {alone} only, so that a probe is judged on the very {very} it was trained on: its figures "
            "say nothing about other scenes"
        )
    elif not validation:
        few = "groups" if groups else "scenes"
        said.append(f"validation is empty (too few {few}): the last epoch of every fit is kept instead of the best")
    for number, name, meaning in (
        (2, "test", "its figures are a demonstration, not a measurement"),
        (0, "train", "a probe fitted on so few mostly learns them by heart"),
        (1, "validation", "the choice of the epoch that is kept is mostly chance"),
    ):
        n_scenes, n_units = len(sides[number]), n_groups[number]
        if 0 < n_units < FEW_SCENES:
            in_groups = "" if n_units == n_scenes else f" in {_counted(n_units, 'group')}"
            said.append(f"{name} holds {_counted(n_scenes, 'scene')}{in_groups}: {meaning}")
    return said


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def split_scenes(scenes: _Identified, groups: Groups = None) -> Split:
    r"""Split scenes into train, validation and test.

    Where the data set defines a training and a validation split (such as ADE20K), as the paper does: the first
    80 % of the training scenes train, the rest validate, the validation scenes test. Otherwise the scenes are ordered
    by the SHA-256 of their ids and shared out 60 : 20 : 20, each split getting at least one where there are three
    scenes; two scenes train and test; a single one trains.

    Scenes of one group stay on one side, and so do scenes that the data set itself calls parts of one thing (frames of
    a video of DAVIS) and those whose picture files are the same bytes: whole groups are then shared out as near
    60 : 20 : 20 as they allow. Where a data set's own split tears a group apart, it moves to the
    test scenes (or to the side of most, between training and validation). `Split.notices` says what was found.

    >>> from bindkit.scenes import open_scenes
    >>> split = split_scenes(open_scenes("synthetic:n=5,seed=0"))
    >>> len(split.train), len(split.validation), len(split.test), split.judged
    (3, 1, 1, 'test')
    >>> split.notices[0]
    'test holds 1 scene: its figures are a demonstration, not a measurement'

    Parameters
    ----------
    scenes : SceneSet
        Its `ids`, `official_splits` and which pictures are the same are all that counts: the same scenes are split
        alike on every machine.
    groups : str, mapping or sequence, optional
        Which scenes belong together, such as frames of one video:

        - a regular expression searched in every scene id; its first group, or else the whole match, names the scene's
          group (``"video_\d+"``, or ``"^(.*)_frame"``);
        - a column of the table ``scenes.csv`` (with a column ``id``) in the directory of ``folder:`` scenes;
        - in Python also a mapping from scene id to group, or a sequence with one group a scene.

        Scenes without one are groups of their own. ``""`` means None.

    Raises
    ------
    EmptySplitError
        If there is no scene, or groups leave none to train on.
    InvalidParameterError
        If groups are no regular expression or column, are found in no id, or are not one a scene.
    SceneSetError
        If ``scenes.csv`` is there and cannot be read.
    """
    if not hasattr(scenes, "ids") or not hasattr(scenes, "official_splits"):
        raise SceneSetError(f"a scene set is what bk.open_scenes(uri) gives, got {scenes!r:.80}")
    n_scenes = len(scenes.ids)
    if n_scenes == 0:
        raise EmptySplitError("there is no scene to train on; check the report of broken scenes, or add scenes")
    named, notices = named_groups(scenes, groups)
    if by_nature := getattr(scenes, "groups", None):
        own, said = _by_name(by_nature, "the data set's own")
        named, notices = [*named, *own], [*notices, *said]
    same = _identical_pictures(scenes)
    if same:
        shown = "; ".join(", ".join(scenes.ids[k] for k in members[:_SHOWN]) for members in same[:_SHOWN])
        more = "; ..." if len(same) > _SHOWN or any(len(members) > _SHOWN for members in same[:_SHOWN]) else ""
        notices.append(
            f"{sum(map(len, same))} scenes show {_counted(len(same), 'picture')}, byte for byte: {shown}{more}; "
            "each is kept on one side of the split"
        )
    together = _joined(n_scenes, [*named, *same])
    official = scenes.official_splits
    if official is not None and set(OFFICIAL_SPLITS) <= set(official):
        side_of, moved = _split_officially(official, together)
        notices += moved
    else:
        side_of = _split_by_hash(scenes.ids, together)
    sides = [tuple(position for position, of in enumerate(side_of) if of == side) for side in range(3)]
    train, validation, test = sides
    return Split(train, validation, test, (*notices, *_notices(sides, together)), together)
