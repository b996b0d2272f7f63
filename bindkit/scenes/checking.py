"""Decode every scene once and report: which are usable, which are broken and why, and what they hold."""

from __future__ import annotations

import csv
import io
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bindkit.arguments import whole_number
from bindkit.errors import BrokenSceneError, OneAnswerError
from bindkit.files import progress, write_bytes
from bindkit.scenes.base import subset
from bindkit.scenes.scene import BrokenScene, Scene, SceneSet, require_scenes

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

DENSE_KEYS = 1 << 22


@dataclass(frozen=True)
class SceneStatistics:
    """What one scene holds.

    Attributes
    ----------
    position : int
        In the scene set.
    id : str
    height, width : int
        In pixels.
    objects : int
        Instances.
    classes : int
        Classes among the instances; an instance's class is the most frequent class of its pixels.
    twins_classes : int
        Classes with two or more instances: only these yield twins.
    labelled : float
        Share of the pixels that belong to an instance, 0..1.
    remarks : tuple of str
        What there is to say about how its files were read; mostly nothing.
    """

    position: int
    id: str
    height: int
    width: int
    objects: int
    classes: int
    twins_classes: int
    labelled: float
    remarks: tuple[str, ...] = ()


def _count_pairs(instances: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Instance, class and pixel count of every combination that occurs."""
    n_classes = int(classes.max(initial=0)) + 1
    keys = instances.astype(np.int64).ravel() * n_classes + classes.ravel()
    if (int(instances.max(initial=0)) + 1) * n_classes <= DENSE_KEYS:
        dense = np.bincount(keys)
        present = np.flatnonzero(dense)
        counts = dense[present]
    else:
        present, counts = np.unique(keys, return_counts=True)
    return present // n_classes, present % n_classes, counts


def describe_scene(scene: Scene, position: int) -> SceneStatistics:
    """Count what a scene holds."""
    instance, class_id, pixels = _count_pairs(scene.instances, scene.classes)
    labelled = int(pixels[instance > 0].sum())
    # Most pixels last, the lower class id last among equals, so that the dict keeps it.
    order = np.lexsort((-class_id, pixels))
    class_of = {int(instance[k]): int(class_id[k]) for k in order if instance[k] > 0}
    known = [label for label in class_of.values() if label > 0]
    n_of_class = np.bincount(np.array(known, dtype=np.int64)) if known else np.zeros(0, dtype=np.int64)
    height, width = scene.size
    return SceneStatistics(
        position=position,
        id=scene.id,
        height=height,
        width=width,
        objects=len(class_of),
        classes=int((n_of_class > 0).sum()),
        twins_classes=int((n_of_class > 1).sum()),
        labelled=labelled / max(1, height * width),
        remarks=scene.remarks,
    )


@dataclass(frozen=True)
class SceneReport:
    """Outcome of `check_scenes`.

    Attributes
    ----------
    uri : str
        Of the scene set.
    statistics : tuple of SceneStatistics
        One for each usable scene, by position.
    broken : tuple of BrokenScene
        Every scene that cannot be used, those found on opening first.
    """

    uri: str
    statistics: tuple[SceneStatistics, ...]
    broken: tuple[BrokenScene, ...]

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

        columns = [field.name for field in fields(SceneStatistics)]
        return pd.DataFrame([asdict(scene) for scene in self.statistics], columns=columns)

    def usable_scenes(self, scenes: SceneSet) -> SceneSet:
        """The scene set that was checked without its broken scenes, which its `broken` then lists."""
        return subset(scenes, self.usable, broken=self.broken)

    def require_two_objects(self) -> None:
        """Make sure that some scene has two objects: in one alone, every pair of patches is on the same.

        Raises
        ------
        OneAnswerError
            If there are usable scenes and none has two labelled objects.
        """
        if self.statistics and max(scene.objects for scene in self.statistics) < 2:
            raise OneAnswerError(
                f"none of the {len(self.statistics)} usable scenes has two labelled objects, so that no pair of "
                "patches is on different objects and there is nothing to learn; give scenes with several objects each "
                "(do the masks give all objects one number?)"
            )

    def write_csv(self, path: str | Path) -> None:
        """Write one row per scene, the broken ones with their reason: nothing is left out."""
        stream = io.StringIO(newline="")
        columns = [field.name for field in fields(SceneStatistics)]
        table = csv.DictWriter(stream, ["id", "usable", *[name for name in columns if name != "id"], "reason"])
        table.writeheader()
        for scene in self.statistics:
            written = {"usable": "yes", "labelled": f"{scene.labelled:.6f}", "remarks": "; ".join(scene.remarks)}
            table.writerow({**asdict(scene), **written})
        for left_out in self.broken:
            table.writerow({"id": left_out.id, "usable": "no", "reason": left_out.reason})
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(Path(path), stream.getvalue().encode())

    def __str__(self) -> str:
        lines = [f"{self.n_scenes} scenes, {len(self.statistics)} usable, {len(self.broken)} broken"]
        if self.statistics:
            objects = [scene.objects for scene in self.statistics]
            twins = sum(scene.twins_classes > 0 for scene in self.statistics)
            lines.append(
                f"objects a scene: {min(objects)} to {max(objects)}, {sum(objects)} in all; scenes with twins: {twins}"
            )
            without = objects.count(0)
            if without:
                have = "1 scene has" if without == 1 else f"{without} scenes have"
                lines.append(f"{have} no labelled object")
        for remark in dict.fromkeys(remark for scene in self.statistics for remark in scene.remarks):
            ids = [scene.id for scene in self.statistics if remark in scene.remarks]
            some = ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
            lines.append(f"note: {remark}: {some}")
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
