"""Which scenes train, validate and test a probe: by scene, reproducible, and honest about small sets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from bindkit.errors import EmptySplitError, InvalidParameterError, SceneSetError
from bindkit.scenes.groups import Groups, group_scenes

SPLITS = ("train", "validation", "test")
FEW_SCENES = 20
"""Below this many scenes, or groups of them, a split's figures are called a demonstration."""


@runtime_checkable
class _Identified(Protocol):
    """What splitting needs of a scene set."""

    ids: Sequence[str]
    official_splits: Sequence[str] | None


@dataclass(frozen=True)
class Split:
    """Positions of the scenes that train, validate and test; no scene is in two of them.

    Attributes
    ----------
    train, validation, test : tuple of int
        Ascending positions in the scene set. Validation and test are empty where there are too few scenes.
    notices : tuple of str
        What a reader of the figures must know, in words; empty where every split is large enough.
    groups : tuple of tuple of int
        Positions of scenes that belong together (frames of one video, the same picture twice), each group on one
        side. Scenes that are alone in their group are left out.

    Raises
    ------
    InvalidParameterError
        If a position is in two splits, or twice in one, or a group is in two.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    notices: tuple[str, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()

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


Sides = tuple[list[int], list[int], list[int]]


def _split_officially(official: Sequence[str], groups: Sequence[tuple[int, ...]]) -> tuple[Sides, list[str]]:
    """The data set's own split, with groups moved to one side of it, and what was moved, in words."""
    training = [position for position, split in enumerate(official) if split == "training"]
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
    train, validation, test = ([position for position, of in enumerate(side) if of == name] for name in range(3))
    said = f"{moved} scene{'' if moved == 1 else 's'} moved from the data set's own split to the rest of their group"
    return (train, validation, test), [said] if moved else []


def _split_by_hash(ids: Sequence[str], groups: Sequence[tuple[int, ...]]) -> Sides:
    """Groups in the order of their ids' hashes, large ones first, each to the first side with room for it."""
    units = in_order(ids, groups)
    n_held = max(1, len(ids) // 5)
    room = [len(ids) - 2 * n_held, n_held, n_held] if len(units) > 2 else [len(ids)] * 3
    sides: Sides = ([], [], [])
    used = (0, 1, 2) if len(units) > 2 else (0, 2)
    for number, members in enumerate(units):
        empty = [side for side in used if not sides[side]]
        choice = empty if len(units) - number <= len(empty) else used
        fitting = [side for side in choice if room[side] >= len(members)]
        side = fitting[0] if fitting else max(choice, key=lambda at: room[at])
        sides[side].extend(members)
        room[side] -= len(members)
    return sorted(sides[0]), sorted(sides[1]), sorted(sides[2])


def in_order(ids: Sequence[str], groups: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """All groups, those of one scene among them: large ones first, then by the SHA-256 of their ids."""
    keys = [(hashlib.sha256(scene_id.encode()).digest(), position) for position, scene_id in enumerate(ids)]
    grouped = {position for members in groups for position in members}
    units = [*groups, *((position,) for position in range(len(ids)) if position not in grouped)]
    return sorted(units, key=lambda members: (-len(members), min(keys[position] for position in members)))


def _notices(sides: Sides, groups: Sequence[tuple[int, ...]]) -> list[str]:
    train, validation, test = sides
    first = {position: members[0] for members in groups for position in members}

    def counted(scenes: list[int]) -> tuple[int, str]:
        n_scenes, n_groups = len(scenes), len({first.get(position, position) for position in scenes})
        said = f"{n_scenes} scene{'' if n_scenes == 1 else 's'}"
        return n_groups, said if n_groups == n_scenes else f"{said} in {n_groups} group{'' if n_groups == 1 else 's'}"

    notices = []
    if not test and not validation:
        notices.append(
            f"there is one {'scene' if len(train) == 1 else 'group of scenes'} only, so that a probe is judged on the "
            f"very scene{'' if len(train) == 1 else 's'} it was trained on: its figures say nothing about other scenes"
        )
    else:
        if not validation:
            few = "groups" if groups else "scenes"
            notices.append(
                f"validation is empty (too few {few}): the last epoch of every fit is kept instead of the best"
            )
        n_test, held = counted(test)
        if n_test < FEW_SCENES:
            notices.append(f"test holds {held}: its figures are a demonstration, not a measurement")
    n_train, held = counted(train)
    if n_train < FEW_SCENES:
        notices.append(f"train holds {held}: a probe fitted on so few mostly learns them by heart")
    n_validation, held = counted(validation)
    if 0 < n_validation < FEW_SCENES:
        notices.append(f"validation holds {held}: the choice of the epoch that is kept is mostly chance")
    return notices


def split_scenes(scenes: _Identified, groups: Groups = None) -> Split:
    r"""Split scenes into train, validation and test.

    Where the data set defines both a training and a validation split (ADE20K), as the paper does: the first 80 % of
    the training scenes train, the rest validate, the validation scenes test. Otherwise the scenes are ordered by the
    SHA-256 of their ids and shared out 60 : 20 : 20, each split getting at least one where there are three scenes;
    two scenes train and test; a single one trains.

    Scenes of one group stay on one side, and so do scenes whose picture files are the same bytes: whole groups are then
    shared out as near 60 : 20 : 20 as they allow. Where a data set's own split tears a group apart, it moves to the
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
    grouping = group_scenes(scenes, groups)
    official = scenes.official_splits
    notices = list(grouping.notices)
    if official is not None and {"training", "validation"} <= set(official):
        sides, moved = _split_officially(official, grouping.groups)
        notices += moved
    else:
        sides = _split_by_hash(scenes.ids, grouping.groups)
    notices += _notices(sides, grouping.groups)
    train, validation, test = sides
    return Split(tuple(train), tuple(validation), tuple(test), tuple(notices), grouping.groups)
