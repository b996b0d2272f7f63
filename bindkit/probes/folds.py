"""Cross-validation over scenes: every scene is judged once, by a probe that never saw it.

All cached scenes, whatever their split, are dealt into folds by groups. The probe of fold k is trained on the rest less
fold k + 1, which validates, and judges fold k.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bindkit.arguments import whole_number
from bindkit.cache import ActivationCache
from bindkit.cache.store import SceneChoice
from bindkit.errors import InvalidParameterError
from bindkit.scenes.splits import in_order

Roles = Mapping[str, str | SceneChoice]
"""Scenes that train, validate and test."""

LEAST_FOLDS = 3
_FOLDS = " folds"


def fold_roles(cache: ActivationCache, n_folds: int) -> list[dict[str, SceneChoice]]:
    """Of each fold the scenes that train, validate and test its probe; they depend on scene ids and groups alone.

    Raises
    ------
    InvalidParameterError
        For fewer than three folds (one is judged, one validates, one trains), or more than there are groups.
    """
    folds = _dealt(cache, n_folds)
    return [
        roles(cache, number + 1, n_folds, folds[number], folds[(number + 1) % n_folds]) for number in range(n_folds)
    ]


def roles(
    cache: ActivationCache, number: int, n_folds: int, test: Iterable[str], validation: Iterable[str]
) -> dict[str, SceneChoice]:
    """What each scene of a cache is to the probe of one fold (number from 1 on), by the scenes that it never saw."""
    known = _scene_ids(cache)
    tested, validating = [scene for scene in test if scene in known], [scene for scene in validation if scene in known]
    trained = tuple(scene for scene in known if scene not in {*tested, *validating})
    name = f"fold {number} of {n_folds}"
    return {
        "train": SceneChoice(f"training scenes of {name}", trained),
        "validation": SceneChoice(f"validation scenes of {name}", tuple(validating)),
        "test": SceneChoice(name, tuple(tested)),
    }


def roles_for(fitted_on: Mapping[str, Any], cache: ActivationCache) -> Roles:
    """What a cache's splits are to a probe: its own where it was fitted on a fold of these scenes, else the cache's."""
    fold = fitted_on.get("fold")
    if fold is None or fitted_on["scenes"] != cache.manifest.identity.scenes_uri:
        return {split: split for split in cache.splits}
    return roles(cache, fold["number"], fold["of"], fold["test"], fold["validation"])


def judged_scenes(cache: ActivationCache, split: str) -> str | SceneChoice:
    """Scenes that a table's ``split`` speaks of: of ``"5 folds"`` all, fold by fold."""
    if not is_folds(split):
        return split
    return SceneChoice(split, tuple(scene for fold in _dealt(cache, int(split.removesuffix(_FOLDS))) for scene in fold))


def said(n_folds: int) -> str:
    """What stands in the column ``split``."""
    return f"{n_folds}{_FOLDS}"


def is_folds(split: str) -> bool:
    """Whether the column ``split`` speaks of a cross-validation."""
    return split.endswith(_FOLDS)


def scenes_of(split: str, n_scenes: int | None = None) -> str:
    """The judged scenes in words, with their number where it is known.

    >>> scenes_of("test"), scenes_of("test", 1), scenes_of("5 folds"), scenes_of("5 folds", 22)
    ('the test scenes', '1 test scene', 'all scenes in 5 folds', '22 scenes in 5 folds')
    """
    if n_scenes is None:
        return f"all scenes in {split}" if is_folds(split) else f"the {split} scenes"
    noun = "scene" if n_scenes == 1 else "scenes"
    return f"{n_scenes} {noun} in {split}" if is_folds(split) else f"{n_scenes} {split} {noun}"


def _scene_ids(cache: ActivationCache) -> dict[str, None]:
    return {scene: None for split in cache.splits for scene in cache.labels(split).scene_ids}


def _dealt(cache: ActivationCache, n_folds: int) -> list[tuple[str, ...]]:
    """Scenes of each fold: large groups first, each to the smallest fold so far."""
    n_folds, scenes = whole_number(n_folds, "folds"), sorted(_scene_ids(cache))
    members: dict[str, list[int]] = {}
    for position, scene in enumerate(scenes):
        members.setdefault(cache.groups.get(scene, scene), []).append(position)
    if not LEAST_FOLDS <= n_folds <= len(members):
        raise InvalidParameterError(
            f"folds is at least {LEAST_FOLDS} (one is judged, one validates, the rest trains) and at most the number "
            f"of scenes or groups of them, {len(members)}; got {n_folds}"
        )
    folds: list[list[int]] = [[] for _ in range(n_folds)]
    for group in in_order(scenes, [tuple(found) for found in members.values()]):
        min(folds, key=len).extend(group)
    return [tuple(scenes[position] for position in sorted(fold)) for fold in folds]
