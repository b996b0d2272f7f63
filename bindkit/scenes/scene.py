"""A scene: one image with its instance mask and class mask; and what every set of scenes offers."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from bindkit.errors import BrokenSceneError, InvalidParameterError, SceneSetError

logger = logging.getLogger(__name__)

OFFICIAL_SPLITS = ("training", "validation")
"""Splits that a data set may define itself, as ADE20K does."""


@dataclass(frozen=True)
class Scene:
    """One image with an instance mask and a class mask (0 = unlabelled in both).

    >>> mask = np.zeros((4, 6), dtype=np.int32)
    >>> Scene("demo", np.zeros((4, 6, 3), dtype=np.uint8), mask, mask).size
    (4, 6)

    Parameters
    ----------
    id : str
        Unique within its scene set, the same on every machine.
    image : uint8 array of shape (height, width, 3)
        RGB, 0..255.
    instances : int32 array of shape (height, width)
        Instance id per pixel; equal ids mean the same object.
    classes : int32 array of shape (height, width)
        Class id per pixel.
    remarks : tuple of str
        What there is to say about how its files were read, one sentence for all scenes of which it is true.

    Raises
    ------
    BrokenSceneError
        If the masks have another size than the image, or an array another type.
    """

    id: str
    image: np.ndarray
    instances: np.ndarray
    classes: np.ndarray
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise BrokenSceneError(
                f"scene {self.id}: the image must be uint8 [height, width, 3], got {self.image.dtype} "
                f"{list(self.image.shape)}"
            )
        for name, mask in (("instance", self.instances), ("class", self.classes)):
            if mask.shape != self.image.shape[:2]:
                raise BrokenSceneError(
                    f"scene {self.id}: the {name} mask is {' x '.join(map(str, mask.shape))} px but the image is "
                    f"{self.image.shape[0]} x {self.image.shape[1]} px; both must have the same size"
                )
            if mask.dtype != np.int32 or (mask.size and mask.min() < 0):
                raise BrokenSceneError(f"scene {self.id}: the {name} mask must be int32 and not negative")

    @property
    def size(self) -> tuple[int, int]:
        """``(height, width)`` in pixels."""
        return int(self.image.shape[0]), int(self.image.shape[1])


@dataclass(frozen=True)
class BrokenScene:
    """A scene that was left out, and why."""

    id: str
    reason: str


@runtime_checkable
class SceneSet(Protocol):
    """What every scene format offers. Scenes are read lazily, one at a time, from any thread.

    ``len(scenes)``, ``scenes[i]`` (raises BrokenSceneError if that one scene cannot be read), iteration.
    """

    uri: str
    """The URI it was opened with, normalised: opening it again gives the same set."""
    ids: Sequence[str]
    """Scene ids in order. Scenes already known to be unusable are not among them but in `broken`."""
    broken: Sequence[BrokenScene]
    """Scenes found unusable on opening (missing or empty files), each with its reason."""
    official_splits: Sequence[str] | None
    """One of `OFFICIAL_SPLITS` per scene where the data set itself defines a split, else None."""
    class_names: Mapping[int, str]
    """Class id -> name; 0 is absent."""

    def __len__(self) -> int: ...
    def __getitem__(self, position: int) -> Scene: ...
    def __iter__(self) -> Iterator[Scene]: ...

    def size_of(self, position: int) -> tuple[int, int]:
        """``(height, width)`` in pixels, from the file's header only. Raises BrokenSceneError."""
        ...


def require_scenes(given: Any) -> None:
    """Refuse what is no scene set, such as its URI. Raises SceneSetError."""
    # Only what all sets have had from the start: a set of one's own may lack what came later.
    if not all(hasattr(given, name) for name in ("ids", "uri", "broken", "__getitem__")):
        raise SceneSetError(f"a scene set is what bk.open_scenes(uri) gives, got {given!r:.80}")


def sources_of(scenes: Any, position: int) -> tuple[Path, ...]:
    """Files that a scene is read from: picture, mask, class mask; none of a computed one, or of a bare set."""
    return scenes.sources(position) if hasattr(scenes, "sources") else ()


class SceneSequence(SceneSet):
    """Base of the scene sets: a subclass sets the fields of `SceneSet` and reads one scene in ``__getitem__``.

    Iterating leaves out scenes that cannot be read and logs a warning that names each; go through the positions
    ``range(len(scenes))`` where a scene's position matters.
    """

    broken: Sequence[BrokenScene] = ()
    official_splits: Sequence[str] | None = None
    scenes_csv: Path | None = None
    """Where a table of the scenes may lie, with a column ``id``; None where the format has none."""
    groups: Sequence[str] | None = None
    """What each scene belongs to by its nature, such as a video; splits never part those. None if nothing is known."""
    made_by: str | None = None
    """Of a set whose scenes are computed from its URI alone: by what, so that another version is another content."""

    def __len__(self) -> int:
        return len(self.ids)

    def size_of(self, position: int) -> tuple[int, int]:
        """``(height, width)`` in pixels, from the file's header only. Raises BrokenSceneError."""
        return self[position].size

    def sources(self, position: int) -> tuple[Path, ...]:
        """Files that a scene is read from, its picture first; none of a scene that is computed."""
        return ()

    def __iter__(self) -> Iterator[Scene]:
        for position in range(len(self)):
            try:
                scene = self[position]
            except BrokenSceneError as error:
                logger.warning("left out of %s: %s", self.uri, error)
                continue
            yield scene

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.uri}: {len(self)} scenes, {len(self.broken)} left out>"

    def _position(self, position: int) -> int:
        """Bring a position, negative ones counted from the end, into ``[0, len)``; IndexError as sequences do."""
        if not -len(self) <= position < len(self):
            raise IndexError(f"scene {position} of {self.uri}, which has {len(self)}")
        return position % len(self)


class SceneSubset(SceneSequence):
    """A view on some scenes of a set, in the order given; made by `subset`."""

    def __init__(self, scenes: SceneSet, positions: Sequence[int], broken: Sequence[BrokenScene]) -> None:
        self._scenes, self._positions = scenes, positions
        self.ids = tuple(scenes.ids[k] for k in positions)
        digest = hashlib.sha256("\n".join(self.ids).encode()).hexdigest()
        self.uri = f"{scenes.uri}#subset={digest[:16]}"
        self.broken = broken
        splits = scenes.official_splits
        self.official_splits = splits and tuple(splits[k] for k in positions)
        self.class_names = scenes.class_names
        self.scenes_csv = getattr(scenes, "scenes_csv", None)
        self.made_by = getattr(scenes, "made_by", None)
        groups = getattr(scenes, "groups", None)
        self.groups = groups and tuple(groups[k] for k in positions)

    @property
    def picture_digest(self) -> Any:
        """That of the set that it is a view of; None where that has none."""
        digest = getattr(self._scenes, "picture_digest", None)
        return digest and (lambda position: digest(self._positions[position]))

    @property
    def benchmark_classes(self) -> Mapping[int, int] | None:
        """Those of the set that it is a view of; None where that has none."""
        return getattr(self._scenes, "benchmark_classes", None)

    def __getitem__(self, position: int) -> Scene:
        return self._scenes[self._position(position)]

    def size_of(self, position: int) -> tuple[int, int]:
        """``(height, width)`` in pixels, from the file's header only. Raises BrokenSceneError."""
        return self._scenes.size_of(self._position(position))

    def sources(self, position: int) -> tuple[Path, ...]:
        """Files that a scene is read from, its picture first; none of a scene that is computed."""
        return sources_of(self._scenes, self._position(position))

    def _position(self, position: int) -> int:
        """In the set that it is a view of."""
        return self._positions[super()._position(position)]


def subset(scenes: SceneSet, positions: Iterable[int], broken: Sequence[BrokenScene] | None = None) -> SceneSet:
    """View some scenes of a set as a set of its own, for instance the usable ones after `check_scenes`.

    Each position once, in the order wanted; all of them in order give `scenes` itself. `broken` is what the view lists
    as left out, by default that of `scenes`. Its `uri` is an identity, which `open_scenes` does not open.
    """
    chosen = tuple(int(position) for position in positions)
    if outside := [position for position in chosen if not 0 <= position < len(scenes)]:
        raise InvalidParameterError(f"position {outside[0]} is outside a set of {len(scenes)} scenes")
    if len(set(chosen)) != len(chosen):
        raise InvalidParameterError("a subset takes each position once; some were given twice")
    left_out = tuple(scenes.broken if broken is None else broken)
    if chosen == tuple(range(len(scenes))) and left_out == tuple(scenes.broken):
        return scenes
    return SceneSubset(scenes, chosen, left_out)
