"""What a scene set holds: which scenes can be read, what is on them, and whether they are still what they were."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindkit.arguments import whole_number
from bindkit.errors import BrokenSceneError, OneAnswerError
from bindkit.files import RememberedDigests, ahead, progress, slug, write_bytes
from bindkit.scenes.geometry import object_classes
from bindkit.scenes.scene import BrokenScene, Scene, SceneSet, require_scenes, sources_of, subset

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

MEMORY = "contents.json"
"""Name of the file that remembers digests."""
_DIGITS = 32
"""Of a SHA-256 in hex: 128 bits keep files apart, and a manifest of a hundred thousand scenes small."""
_UNREADABLE = "-"
_KINDS = ("picture", "mask", "class mask")
"""What the files of a scene are, in the order of its sources."""
_MOST_NAMED = 5


@dataclass(frozen=True)
class SceneStatistics:
    """What one scene holds; `position` is its own in the scene set, sizes are in pixels."""

    position: int
    id: str
    height: int
    width: int
    objects: int
    classes: int
    """Classes among the objects."""
    twins_classes: int
    """Classes with two or more objects: only these yield twins."""
    labelled: float
    """Share of the pixels that belong to an object, 0..1."""
    remarks: tuple[str, ...] = ()
    """What there is to say about how its files were read; mostly nothing."""


_COLUMNS = [column.name for column in fields(SceneStatistics)]


def describe_scene(scene: Scene, position: int) -> SceneStatistics:
    """Count what a scene holds."""
    class_of = object_classes(scene)
    known = Counter(label for label in class_of.values() if label > 0)
    twins = sum(count > 1 for count in known.values())
    labelled = np.count_nonzero(scene.instances) / max(1, scene.instances.size)
    return SceneStatistics(position, scene.id, *scene.size, len(class_of), len(known), twins, labelled, scene.remarks)


@dataclass(frozen=True)
class SceneReport:
    """Outcome of `check_scenes` on the scene set of this `uri`; print it for a summary."""

    uri: str
    statistics: tuple[SceneStatistics, ...]
    """One for each usable scene, by position."""
    broken: tuple[BrokenScene, ...]
    """Every scene that cannot be used, those found on opening first."""

    @property
    def n_scenes(self) -> int:
        """Usable and broken scenes together."""
        return len(self.statistics) + len(self.broken)

    @property
    def usable(self) -> tuple[int, ...]:
        """Positions, in the scene set that was checked, of the scenes that can be read."""
        return tuple(scene.position for scene in self.statistics)

    @property
    def table(self) -> pd.DataFrame:
        """One row per usable scene: the fields of `SceneStatistics`."""
        import pandas as pd

        return pd.DataFrame([asdict(scene) for scene in self.statistics], columns=_COLUMNS)

    def usable_scenes(self, scenes: SceneSet) -> SceneSet:
        """The scene set that was checked without its broken scenes, which its `broken` then lists."""
        return subset(scenes, self.usable, broken=self.broken)

    def require_two_objects(self) -> None:
        """Raise OneAnswerError if no scene has two objects: in one alone, every pair of patches is on the same."""
        if self.statistics and max(scene.objects for scene in self.statistics) < 2:
            raise OneAnswerError(
                f"none of the {len(self.statistics)} usable scenes has two labelled objects, so that no pair of "
                "patches is on different objects and there is nothing to learn; give scenes with several objects each "
                "(do the masks give all objects one number?)"
            )

    def write_csv(self, path: str | Path) -> None:
        """Write one row per scene, the broken ones with their reason: nothing is left out."""
        import pandas as pd

        written = {
            "labelled": [f"{scene.labelled:.6f}" for scene in self.statistics],
            "remarks": ["; ".join(scene.remarks) for scene in self.statistics],
        }
        broken = [{"id": scene.id, "usable": "no", "reason": scene.reason} for scene in self.broken]
        rows = self.table.assign(usable="yes", **written).to_dict("records") + broken
        columns = ["id", "usable", *[name for name in _COLUMNS if name != "id"], "reason"]
        table = pd.DataFrame(rows, columns=columns, dtype=object)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(Path(path), table.to_csv(index=False, lineterminator="\r\n").encode())

    def __str__(self) -> str:
        lines = [f"{self.n_scenes} scenes, {len(self.statistics)} usable, {len(self.broken)} broken"]
        if self.statistics:
            objects = [scene.objects for scene in self.statistics]
            twins = sum(scene.twins_classes > 0 for scene in self.statistics)
            lines.append(
                f"objects a scene: {min(objects)} to {max(objects)}, {sum(objects)} in all; "
                f"scenes with same-class distractors: {twins}"
            )
            if without := objects.count(0):
                lines.append(f"{_counted(without, 'scene')} no labelled object")
        for remark in dict.fromkeys(remark for scene in self.statistics for remark in scene.remarks):
            ids = [scene.id for scene in self.statistics if remark in scene.remarks]
            lines.append(f"note: {remark}: {listed(ids)}")
        lines += [f"broken: {scene.id}: {scene.reason}" for scene in self.broken[:20]]
        if len(self.broken) > 20:
            lines.append(f"broken: and {len(self.broken) - 20} more")
        return "\n".join(lines)


def check_scenes(scenes: SceneSet, workers: int = 2) -> SceneReport:
    """Decode every scene once; broken ones are reported, never raised.

    >>> from bindkit.scenes import open_scenes
    >>> report = check_scenes(open_scenes("synthetic:n=3,seed=0"))
    >>> report.n_scenes, report.usable, report.broken
    (3, (0, 1, 2), ())

    Parameters
    ----------
    scenes : SceneSet
        Of any format.
    workers : int
        Threads that decode.

    Returns
    -------
    SceneReport
        ``report.usable_scenes(scenes)`` is the set without the broken scenes.

    Raises
    ------
    InvalidParameterError
        For fewer than one worker.
    """
    require_scenes(scenes)
    workers = whole_number(workers, "workers", least=1)

    def check(position: int) -> SceneStatistics | BrokenScene:
        try:
            return describe_scene(scenes[position], position)
        except BrokenSceneError as error:
            return BrokenScene(scenes.ids[position], str(error))

    statistics: list[SceneStatistics] = []
    broken = list(scenes.broken)
    with ThreadPoolExecutor(workers) as pool, progress(len(scenes), "checking scenes", "scenes") as bar:
        for outcome in pool.map(check, range(len(scenes))):
            if isinstance(outcome, BrokenScene):
                logger.warning("broken scene %s: %s", outcome.id, outcome.reason)
                broken.append(outcome)
            else:
                statistics.append(outcome)
            bar.update(1)
    return SceneReport(scenes.uri, tuple(statistics), tuple(broken))


@dataclass(frozen=True)
class SceneContents:
    """What the scenes of a set are made from."""

    made_by: str = ""
    """Of a set whose scenes are computed from its URI, what computes them; else empty."""
    of: Mapping[str, str] = field(default_factory=dict)
    """Scene id -> digests of its files (or of its pixels, where it has none), with blanks between; empty for computed
    scenes."""


def memory_in(root: str | Path, scenes_uri: str) -> Path:
    """Where the digests of a scene set's files are remembered: beside its caches."""
    return Path(root) / slug(scenes_uri) / MEMORY


def contents_of(
    scenes: SceneSet,
    positions: Iterable[int] | None = None,
    digests: RememberedDigests | None = None,
    workers: int = 2,
    processes: bool = False,
) -> SceneContents:
    """What the scenes at some positions (by default all) are made from; files are read if they are not remembered."""
    if made_by := getattr(scenes, "made_by", None):
        return SceneContents(str(made_by))
    chosen = list(range(len(scenes)) if positions is None else positions)
    known = RememberedDigests() if digests is None else digests
    of: dict[str, str] = {}
    with progress(len(chosen), "look at scene files", "scene") as bar:
        looked = ahead(partial(_look, scenes, known), chosen, workers, processes, at_once=64)
        for position, (content, found) in zip(chosen, looked, strict=True):
            of[scenes.ids[position]] = content
            known.learn(found)
            bar.update(1)
    known.keep()
    return SceneContents("", of)


def _look(scenes: SceneSet, digests: RememberedDigests, position: int) -> tuple[str, dict[str, list[Any]]]:
    """What a scene is made from, and which digests were new, for the process that asked."""
    return content_of(scenes, digests, position), digests.told()


def are_files(scenes: SceneSet) -> bool:
    """Whether scenes are read from files that the set names."""
    return len(scenes) > 0 and bool(sources_of(scenes, 0))


def content_of(scenes: SceneSet, digests: RememberedDigests, position: int) -> str:
    """What one scene is made from now, as `SceneContents.of` has it."""
    if files := sources_of(scenes, position):
        return " ".join(digests.of(file)[:_DIGITS] or _UNREADABLE for file in files)
    try:
        scene = scenes[position]
    except BrokenSceneError:
        return _UNREADABLE
    return " ".join(
        hashlib.sha256(str(array.shape).encode() + np.ascontiguousarray(array).data).hexdigest()[:_DIGITS]
        for array in (scene.image, scene.instances, scene.classes)
    )


def changed_ids(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Scenes of both looks whose content differs, in the order of the first."""
    return [scene_id for scene_id, content in before.items() if now.get(scene_id, content) != content]


def changes(before: Mapping[str, str], now: Mapping[str, str], scenes: SceneSet, since: str) -> list[str]:
    """Say which files of scenes that both looks saw have changed: ``2 masks have changed since then: a.png, b.png``."""
    position_of = {scene_id: position for position, scene_id in enumerate(scenes.ids)}
    named: dict[int, list[str]] = {}
    for scene_id in sorted(changed_ids(before, now), key=lambda scene_id: position_of.get(scene_id, len(scenes))):
        files = sources_of(scenes, position_of[scene_id]) if scene_id in position_of else ()
        looks = zip_longest(before[scene_id].split(" "), now[scene_id].split(" "))
        for number, (old, new) in enumerate(looks):
            if old != new:
                named.setdefault(number, []).append(files[number].name if number < len(files) else scene_id)
    return [
        f"{_counted(len(named[number]), _KINDS[min(number, 2)])} changed since {since}: {listed(named[number])}"
        for number in sorted(named)
    ]


def comings_and_goings(before: Iterable[str], now: Iterable[str], since: str) -> list[str]:
    """Say which scenes there were and are no more, and which are new."""
    then, today = dict.fromkeys(before), dict.fromkeys(now)
    gone, new = [name for name in then if name not in today], [name for name in today if name not in then]
    told = (("gone", gone), ("been added", new))
    return [f"{_counted(len(ids), 'scene')} {what} since {since}: {listed(ids)}" for what, ids in told if ids]


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more."""
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _counted(count: int, thing: str) -> str:
    """``1 mask has``, ``2 masks have``."""
    return f"1 {thing} has" if count == 1 else f"{count} {thing}s have"
