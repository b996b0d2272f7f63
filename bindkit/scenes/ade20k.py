"""``ade20k:`` scenes: the full release of ADE20K (``ADE20K_2021_17_01``), from its folders.

Every image has an ``_seg.png`` beside it that holds both masks: class id = R // 10 * 256 + G, 0 for unlabelled, and
instance id = B. The folders ``training`` and ``validation`` are the official splits. Which scenes there are, their
ids and their order (training first, then by file name) do not depend on ``index_ade20k.pkl``: where it is present
it gives the class names and tells which listed files are missing on disk. Scenes that are on disk and not in the
index are used like all others.

Zhou, Zhao, Puig, Xiao, Fidler, Barriuso, Torralba: Semantic Understanding of Scenes through the ADE20K Dataset, 2019.
"""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from bindkit.errors import BrokenSceneError, SceneSetError
from bindkit.scenes.ade20k_index import Ade20kIndex, names_from_annotations, read_index
from bindkit.scenes.base import SceneSequence
from bindkit.scenes.decoding import why_unusable
from bindkit.scenes.reading_options import ADE20K_OPTIONS, ReadingOptions, split_directory
from bindkit.scenes.scene import BrokenScene, Scene
from bindkit.scenes.scene_files import MaskFile, SceneReader

logger = logging.getLogger(__name__)

SPLITS = ("training", "validation")
BENCHMARK_NAME = "objectInfo150.csv"
# Names of the full release whose spelling differs from objectInfo150.csv's; as in the reference implementation.
BENCHMARK_BY_HAND = {
    "door": 15,
    "double door": 15,
    "television receiver, television, television set, tv, tv set, idiot box, boob tube, telly, goggle box": 90,
    "screen, crt screen": 142,
}


@dataclass(frozen=True)
class _Found:
    """One image on disk: its path from the data set's directory on, and its split."""

    file: str
    split: str

    @property
    def id(self) -> str:
        return PurePosixPath(self.file).stem

    @property
    def mask(self) -> str:
        return self.file[: -len(PurePosixPath(self.file).suffix)] + "_seg.png"

    @property
    def annotation(self) -> str:
        return self.file[: -len(PurePosixPath(self.file).suffix)] + ".json"


def find_root(directory: Path) -> Path:
    """The directory of the release: the one given, or the single one inside it that holds ``images/ADE``.

    Raises
    ------
    SceneSetError
        If it is no directory, or neither holds ``images/ADE``; says what was looked for.
    """
    if not directory.is_dir():
        raise SceneSetError(f"{directory} is not a directory; give the one that holds ADE20K's full release")
    try:
        candidates = [directory, *sorted(child for child in directory.iterdir() if child.is_dir())]
    except OSError as error:
        raise SceneSetError(f"{directory} cannot be listed ({error.strerror}); check that you may read it") from error
    roots = [path for path in candidates if any((path / "images" / "ADE" / split).is_dir() for split in SPLITS)]
    if directory in roots:
        return directory.resolve()
    if len(roots) == 1:
        return roots[0].resolve()
    if roots:
        raise SceneSetError(
            f"{directory} holds several releases of ADE20K ({', '.join(path.name for path in roots)}); give one of them"
        )
    hint = "It is the full release, from https://ade20k.csail.mit.edu"
    if any((path / "annotations").is_dir() for path in candidates):
        hint = (
            "This looks like the scene-parsing benchmark (ADEChallengeData2016), whose masks tell no instances apart; "
            + hint.lower().replace("it is", "what is needed is")
        )
    raise SceneSetError(
        f"{directory} holds no ADE20K: looked for images/ADE/training and images/ADE/validation in it and in the "
        f"directories in it. {hint}"
    )


def _walk(root: Path) -> tuple[list[_Found], list[BrokenScene]]:
    """Images on disk, training first, each split by file name; and what has no image or cannot be listed."""
    found: list[_Found] = []
    lost: list[BrokenScene] = []

    def unlisted(error: OSError) -> None:
        lost.append(BrokenScene(str(error.filename), f"{error.filename}: cannot be listed ({error.strerror})"))

    for split in SPLITS:
        if not (root / "images" / "ADE" / split).is_dir():
            continue
        images: list[_Found] = []
        # Clusters often link folders in from elsewhere: follow links, but enter no folder twice.
        entered: set[tuple[int, int]] = set()
        for folder, subfolders, files in os.walk(root / "images" / "ADE" / split, onerror=unlisted, followlinks=True):
            status = Path(folder).stat()
            if (status.st_dev, status.st_ino) in entered:
                subfolders.clear()
                continue
            entered.add((status.st_dev, status.st_ino))
            base = PurePosixPath(Path(folder).relative_to(root).as_posix())
            visible = [name for name in files if not name.startswith(".")]
            pictures = [name for name in visible if name.lower().endswith(".jpg")]
            stems = {name[: -len(".jpg")] for name in pictures}
            # Beside each image stands a folder with one mask an object: hundreds of thousands of files, not needed.
            subfolders[:] = sorted(name for name in subfolders if name not in stems)
            images += [_Found(str(base / name), split) for name in pictures]
            for name in visible:
                stem = name.removesuffix("_seg.png")
                if stem != name and stem not in stems:
                    lost.append(BrokenScene(stem, f"{root / base / name}: a mask whose image is missing"))
        found += sorted(images, key=lambda image: (image.id, image.file))
    return found, sorted(lost, key=lambda scene: scene.id)


def _sort_out(root: Path, found: list[_Found], index: Ade20kIndex | None) -> tuple[list[_Found], list[BrokenScene]]:
    """Part what can be read from what cannot, judged by names and sizes alone."""
    usable: list[_Found] = []
    broken: list[BrokenScene] = []
    places: dict[str, str] = {}
    for image in found:
        reason = why_unusable(root / image.file) or why_unusable(root / image.mask)
        if image.id in places:
            reason = f"{root / image.file}: a second image of this name, the first is {places[image.id]}"
        if reason:
            broken.append(BrokenScene(image.id, reason))
            continue
        places[image.id] = image.file
        usable.append(image)
    if index is not None:
        on_disk = {image.file for image in found}
        for file in index.files:
            if file not in on_disk:
                broken.append(BrokenScene(PurePosixPath(file).stem, f"{root / file}: in the index but missing on disk"))
    return usable, broken


class Ade20kScenes(SceneSequence):
    """Scenes of ADE20K's full release; made by `open_ade20k`."""

    def __init__(self, root: Path, options: ReadingOptions, index_dir: Path | None) -> None:
        self.root = root
        self.uri = f"ade20k:{root.as_posix()}{options}"
        self._reader = SceneReader(options)
        index = read_index(root, index_dir)
        found, lost = _walk(root)
        self._files, broken = _sort_out(root, found, index)
        already = {scene.id for scene in broken}
        self.broken = (*broken, *(scene for scene in lost if scene.id not in already))
        if not self._files:
            reasons = "; ".join(scene.reason for scene in self.broken[:3])
            raise SceneSetError(
                f"{root} holds no usable scene: no .jpg with its _seg.png under images/ADE/training or "
                f"images/ADE/validation" + (f" ({len(self.broken)} broken: {reasons})" if reasons else "")
            )
        self.ids = tuple(image.id for image in self._files)
        self.official_splits = tuple(image.split for image in self._files)
        self.class_names: Mapping[int, str]
        if index is not None:
            self.class_names = index.class_names
        else:
            annotations = [root / image.annotation for image in self._files]
            self.class_names = names_from_annotations(root, annotations, index_dir)
        if self.broken:
            logger.warning("%s: scenes left out: %d; the first: %s", self.uri, len(self.broken), self.broken[0].reason)

    def __getitem__(self, position: int) -> Scene:
        image = self._files[self._position(position)]
        mask = self.root / image.mask
        found = self._reader.read(self.root / image.file, [MaskFile(mask, rgb=True, gray=False)])
        if found.masks[0].dtype != np.uint8:
            raise BrokenSceneError(f"{mask}: a mask of 16 bits a channel; expected ADE20K's own, of 8")
        red, green, blue = (found.masks[0][..., channel].astype(np.int32) for channel in range(3))
        return Scene(image.id, found.image, blue, red // 10 * 256 + green, found.remarks)

    def size_of(self, position: int) -> tuple[int, int]:
        """``(height, width)`` in pixels, from headers only. Raises BrokenSceneError."""
        image = self._files[self._position(position)]
        return self._reader.size_of(self.root / image.file, [self.root / image.mask])

    def sources(self, position: int) -> tuple[Path, ...]:
        """Picture and mask."""
        image = self._files[self._position(position)]
        return self.root / image.file, self.root / image.mask

    @cached_property
    def benchmark_classes(self) -> dict[int, int] | None:
        """Class id of the full release -> class of the 150-class benchmark, 0 for all others; None without the table.

        Raises
        ------
        SceneSetError
            If ``objectInfo150.csv`` has no columns Idx and Name.
        """
        for place in (self.root / BENCHMARK_NAME, self.root.parent / BENCHMARK_NAME):
            if place.is_file():
                return map_to_benchmark(self.class_names, place)
        return None


def map_to_benchmark(class_names: Mapping[int, str], table: Path) -> dict[int, int]:
    """Map class names of the full release to the 150 classes of ``objectInfo150.csv`` (columns Idx, Name).

    Its names are written with ";" for both ", " and " ". Capitals do not count.

    Raises
    ------
    SceneSetError
        If the table cannot be read.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            numbers = {row["Name"].strip().lower(): int(row["Idx"]) for row in csv.DictReader(stream)}
        if not numbers:
            raise ValueError("no rows")
    except (KeyError, AttributeError, TypeError, ValueError, OSError, csv.Error) as error:
        raise SceneSetError(
            f"{table} cannot be read as the benchmark's table ({type(error).__name__}: {error}); expected a CSV with "
            f"the columns Idx and Name. Fetch it anew, or remove it to go without the 150 classes"
        ) from error
    mapped = {}
    for class_id, name in class_names.items():
        lowered = name.lower()
        spelled = lowered.replace(", ", ";").replace(" ", ";")
        mapped[class_id] = BENCHMARK_BY_HAND.get(lowered) or numbers.get(spelled, 0)
    return mapped


def open_ade20k(directory: str, index_dir: Path | None = None) -> Ade20kScenes:
    """Open ``ade20k:DIR,OPTIONS``: the release's directory or the one that holds it.

    Parameters
    ----------
    directory : str
        As the URI gives it, options included; ``~`` is understood.
    index_dir : Path, optional
        Where what is needed of ``index_ade20k.pkl`` is kept; nothing is kept if not given.

    Raises
    ------
    SceneSetError
        If there is no ADE20K, or no usable scene in it.
    UnsafePickleError
        If the index asks for anything but plain containers, strings and arrays.
    InvalidParameterError
        For an option that is not understood; lists them all.
    """
    name, items = split_directory(directory)
    options = ReadingOptions.parse(items, ADE20K_OPTIONS)
    return Ade20kScenes(find_root(Path(name).expanduser()), options, index_dir)
