"""The Scene type: one image with its instance mask and class mask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from bindkit.errors import BrokenSceneError, SceneSetError


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
    """``"training"`` or ``"validation"`` per scene where the data set itself defines a split, else None."""
    class_names: Mapping[int, str]
    """Class id -> name; 0 is absent."""

    def __len__(self) -> int: ...
    def __getitem__(self, position: int) -> Scene: ...
    def __iter__(self) -> Iterator[Scene]: ...

    def size_of(self, position: int) -> tuple[int, int]:
        """``(height, width)`` in pixels, from the file's header only. Raises BrokenSceneError."""
        ...


@runtime_checkable
class ReadFromFiles(Protocol):
    """What a scene set may offer besides, so that what its scenes are made from is known without decoding them."""

    def sources(self, position: int) -> tuple[Path, ...]:
        """Files that a scene is read from: picture, mask, class mask; none of a scene that is computed."""
        ...


def require_scenes(given: Any) -> None:
    """Refuse what is no scene set, such as its URI. Raises SceneSetError."""
    # Only what all sets have had from the start: a set of one's own may lack what came later.
    if not all(hasattr(given, name) for name in ("ids", "uri", "broken", "__getitem__")):
        raise SceneSetError(f"a scene set is what bk.open_scenes(uri) gives, got {given!r:.80}")
