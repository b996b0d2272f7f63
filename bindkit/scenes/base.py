"""What scene sets share: iteration that one broken scene cannot stop, and views on a part of a set."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from bindkit.errors import BrokenSceneError, InvalidParameterError
from bindkit.scenes.scene import BrokenScene, ReadFromFiles, Scene, SceneSet

logger = logging.getLogger(__name__)


class SceneSequence:
    """Base of the scene sets: a subclass sets the fields of `SceneSet` and reads one scene in ``__getitem__``.

    Iterating leaves out scenes that cannot be read and logs a warning that names each; go through the positions
    ``range(len(scenes))`` where a scene's position matters.
    """

    uri: str
    ids: Sequence[str]
    broken: Sequence[BrokenScene]
    official_splits: Sequence[str] | None
    class_names: Mapping[int, str]
    scenes_csv: Path | None = None
    """Where a table of the scenes may lie, with a column ``id``; None where the format has none."""
    made_by: str | None = None
    """Of a set whose scenes are computed from its URI alone: by what, so that another version is another content."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, position: int) -> Scene:
        raise NotImplementedError

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
        self._scenes = scenes
        self._positions = tuple(positions)
        chosen = hashlib.sha256("\n".join(scenes.ids[k] for k in self._positions).encode()).hexdigest()[:16]
        self.uri = f"{scenes.uri}#subset={chosen}"
        self.ids = tuple(scenes.ids[k] for k in self._positions)
        self.broken = tuple(broken)
        splits = scenes.official_splits
        self.official_splits = None if splits is None else tuple(splits[k] for k in self._positions)
        self.class_names = scenes.class_names
        self.scenes_csv = getattr(scenes, "scenes_csv", None)
        self.made_by = getattr(scenes, "made_by", None)

    @property
    def benchmark_classes(self) -> Mapping[int, int] | None:
        """Those of the set that it is a view of; None where that has none."""
        return getattr(self._scenes, "benchmark_classes", None)

    def __getitem__(self, position: int) -> Scene:
        return self._scenes[self._positions[self._position(position)]]

    def size_of(self, position: int) -> tuple[int, int]:
        """``(height, width)`` in pixels, from the file's header only. Raises BrokenSceneError."""
        return self._scenes.size_of(self._positions[self._position(position)])

    def sources(self, position: int) -> tuple[Path, ...]:
        """Files that a scene is read from, its picture first; none of a scene that is computed."""
        chosen = self._positions[self._position(position)]
        return self._scenes.sources(chosen) if isinstance(self._scenes, ReadFromFiles) else ()


def subset(scenes: SceneSet, positions: Iterable[int], broken: Sequence[BrokenScene] | None = None) -> SceneSet:
    """View some scenes of a set as a set of its own, for instance the usable ones after `check_scenes`.

    >>> from bindkit.scenes import open_scenes
    >>> view = subset(open_scenes("synthetic:n=4,seed=0"), [3, 1])
    >>> list(view.ids)
    ['synthetic-0-000003', 'synthetic-0-000001']

    Parameters
    ----------
    scenes : SceneSet
        The set to view.
    positions : iterable of int
        Positions in `scenes`, each once, in the order wanted. All of them in order give `scenes` itself.
    broken : sequence of BrokenScene, optional
        What the view lists as left out; that of `scenes` if not given.

    Returns
    -------
    SceneSet
        Its `uri` is that of `scenes` with ``#subset=`` and a digest of the chosen ids: an identity, which
        `open_scenes` does not open.

    Raises
    ------
    InvalidParameterError
        For a position outside the set, or one given twice.
    """
    chosen = tuple(int(position) for position in positions)
    outside = [position for position in chosen if not 0 <= position < len(scenes)]
    if outside:
        raise InvalidParameterError(
            f"position {outside[0]} is outside a set of {len(scenes)} scenes (0..{len(scenes) - 1})"
        )
    if len(set(chosen)) != len(chosen):
        raise InvalidParameterError("a subset takes each position once; some were given twice")
    left_out = tuple(scenes.broken if broken is None else broken)
    if chosen == tuple(range(len(scenes))) and left_out == tuple(scenes.broken):
        return scenes
    return SceneSubset(scenes, chosen, left_out)
