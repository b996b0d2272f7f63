"""Which scenes train, validate and test a probe: by scene, reproducible, and honest about small sets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from bindkit.errors import EmptySplitError, InvalidParameterError, SceneSetError

SPLITS = ("train", "validation", "test")
FEW_SCENES = 20
"""Below this many scenes, a split's figures are called a demonstration."""


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

    Raises
    ------
    InvalidParameterError
        If a position is in two splits, or twice in one.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    notices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        together = (*self.train, *self.validation, *self.test)
        if len(set(together)) != len(together):
            twice = next(position for position in together if together.count(position) > 1)
            raise InvalidParameterError(f"scene {twice} is in two splits; each scene belongs to exactly one")

    @property
    def judged(self) -> str:
        """The split whose figures are reported: the first of test, validation and train that is not empty."""
        return next((name for name in reversed(SPLITS) if getattr(self, name)), "train")

    def positions(self, name: str) -> tuple[int, ...]:
        """Positions of one split. Raises InvalidParameterError for a name other than those of `SPLITS`."""
        if name not in SPLITS:
            raise InvalidParameterError(f"there is no split {name!r}; choose one of {', '.join(SPLITS)}")
        return tuple(getattr(self, name))


def _split_officially(official: Sequence[str]) -> tuple[list[int], list[int], list[int]]:
    training = [position for position, split in enumerate(official) if split == "training"]
    test = [position for position, split in enumerate(official) if split != "training"]
    n_train = max(1, len(training) * 4 // 5)
    return training[:n_train], training[n_train:], test


def _split_by_hash(ids: Sequence[str]) -> tuple[list[int], list[int], list[int]]:
    order = sorted(range(len(ids)), key=lambda k: (hashlib.sha256(ids[k].encode()).digest(), k))
    n_scenes = len(order)
    if n_scenes < 3:
        return sorted(order[:1]), [], sorted(order[1:])
    n_held = max(1, n_scenes // 5)
    n_train = n_scenes - 2 * n_held
    return sorted(order[:n_train]), sorted(order[n_train : n_train + n_held]), sorted(order[n_train + n_held :])


def _notices(train: list[int], validation: list[int], test: list[int]) -> tuple[str, ...]:
    notices = []
    if not test and not validation:
        notices.append(
            "there is one scene only, so a probe is judged on the very scene it was trained on: its figures say "
            "nothing about other scenes"
        )
    else:
        if not validation:
            notices.append(
                "validation is empty (too few scenes): the last epoch of every fit is kept instead of the best"
            )
        if len(test) < FEW_SCENES:
            held = f"{len(test)} scene{'' if len(test) == 1 else 's'}"
            notices.append(f"test holds {held}: its figures are a demonstration, not a measurement")
    if len(train) < FEW_SCENES:
        held = f"{len(train)} scene{'' if len(train) == 1 else 's'}"
        notices.append(f"train holds {held}: a probe fitted on so few mostly learns them by heart")
    if 0 < len(validation) < FEW_SCENES:
        held = f"{len(validation)} scene{'' if len(validation) == 1 else 's'}"
        notices.append(f"validation holds {held}: the choice of the epoch that is kept is mostly chance")
    return tuple(notices)


def split_scenes(scenes: _Identified) -> Split:
    """Split scenes into train, validation and test.

    Where the data set defines both a training and a validation split (ADE20K), as the paper does: the first 80 % of
    the training scenes train, the rest validate, the validation scenes test. Otherwise the scenes are ordered by the
    SHA-256 of their ids and shared out 60 : 20 : 20, each split getting at least one where there are three scenes;
    two scenes train and test; a single one trains.

    >>> from bindkit.scenes import open_scenes
    >>> split = split_scenes(open_scenes("synthetic:n=5,seed=0"))
    >>> len(split.train), len(split.validation), len(split.test), split.judged
    (3, 1, 1, 'test')
    >>> split.notices[0]
    'test holds 1 scene: its figures are a demonstration, not a measurement'

    Parameters
    ----------
    scenes : SceneSet
        Its `ids` and `official_splits` are all that counts: the same scenes are split alike on every machine.

    Raises
    ------
    EmptySplitError
        If there is no scene.
    """
    if not hasattr(scenes, "ids") or not hasattr(scenes, "official_splits"):
        raise SceneSetError(f"a scene set is what bk.open_scenes(uri) gives, got {scenes!r:.80}")
    n_scenes = len(scenes.ids)
    if n_scenes == 0:
        raise EmptySplitError("there is no scene to train on; check the report of broken scenes, or add scenes")
    official = scenes.official_splits
    if official is not None and {"training", "validation"} <= set(official):
        train, validation, test = _split_officially(official)
    else:
        train, validation, test = _split_by_hash(scenes.ids)
    return Split(tuple(train), tuple(validation), tuple(test), _notices(train, validation, test))
