"""``ade20k:`` scenes: the full release of ADE20K (``ADE20K_2021_17_01``), from its folders.

Every image has an ``_seg.png`` beside it that holds both masks: class id = R // 10 * 256 + G, 0 for unlabelled, and
instance id = B. The folders ``training`` and ``validation`` are the official splits. Which scenes there are, their
ids and their order (training first, then by file name) do not depend on ``index_ade20k.pkl``: where it is present
it gives the class names and tells which listed files are missing on disk. Scenes that are on disk and not in the
index are used like all others. Of the 780 MB pickle only the file list and the names of the classes are used, and kept
as a small JSON file; without it, the names come from the JSON file beside each image.

Zhou, Zhao, Puig, Xiao, Fidler, Barriuso, Torralba: Semantic Understanding of Scenes through the ADE20K Dataset, 2019.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from bindkit.errors import BrokenSceneError, SceneSetError
from bindkit.files import parse_json, progress, write_bytes
from bindkit.scenes.decoding import why_unusable
from bindkit.scenes.formats.safe_pickle import load_plain_pickle, plain
from bindkit.scenes.reading import ADE20K_OPTIONS, FileScenes, ReadingOptions, split_directory
from bindkit.scenes.scene import OFFICIAL_SPLITS, BrokenScene, Scene

logger = logging.getLogger(__name__)

INDEX_NAME = "index_ade20k.pkl"
BENCHMARK_NAME = "objectInfo150.csv"
# Names of the full release whose spelling differs from objectInfo150.csv's; as in the reference implementation.
BENCHMARK_BY_HAND = {
    "door": 15,
    "double door": 15,
    "television receiver, television, television set, tv, tv set, idiot box, boob tube, telly, goggle box": 90,
    "screen, crt screen": 142,
}


def find_root(directory: Path) -> Path:
    """The directory of the release: the one given, or the single one inside it that holds ``images/ADE``.

    Raises SceneSetError, and says what was looked for.
    """
    if not directory.is_dir():
        raise SceneSetError(f"{directory} is not a directory; give the one that holds ADE20K's full release")
    try:
        candidates = [directory, *sorted(child for child in directory.iterdir() if child.is_dir())]
    except OSError as error:
        raise SceneSetError(f"{directory} cannot be listed ({error.strerror}); check that you may read it") from error
    inner = [Path("images", "ADE", split) for split in OFFICIAL_SPLITS]
    roots = [path for path in candidates if any((path / place).is_dir() for place in inner)]
    if directory in roots:
        return directory.resolve()
    if len(roots) == 1:
        return roots[0].resolve()
    if roots:
        raise SceneSetError(
            f"{directory} holds several releases of ADE20K ({', '.join(path.name for path in roots)}); give one of them"
        )
    hint = "It is"
    if any((path / "annotations").is_dir() for path in candidates):
        hint = (
            "This looks like the scene-parsing benchmark (ADEChallengeData2016), whose masks tell no instances apart; "
        )
        hint += "what is needed is"
    raise SceneSetError(
        f"{directory} holds no ADE20K: looked for images/ADE/training and images/ADE/validation in it and in the "
        f"directories in it. {hint} the full release, from https://ade20k.csail.mit.edu"
    )


def _walk(root: Path) -> tuple[dict[str, str], list[BrokenScene]]:
    """Image -> split, training first, each split by file name; and what has no image or cannot be listed.

    Images are named from the data set's directory on: ``images/ADE/training/.../ADE_train_00000001.jpg``.
    """
    found: dict[str, str] = {}
    lost: list[BrokenScene] = []

    def unlisted(error: OSError) -> None:
        lost.append(BrokenScene(str(error.filename), f"{error.filename}: cannot be listed ({error.strerror})"))

    for split in OFFICIAL_SPLITS:
        if not (root / "images" / "ADE" / split).is_dir():
            continue
        images: list[PurePosixPath] = []
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
            images += [base / name for name in pictures]
            for name in visible:
                stem = name.removesuffix("_seg.png")
                if stem != name and stem not in stems:
                    lost.append(BrokenScene(stem, f"{root / base / name}: a mask whose image is missing"))
        found |= {str(image): split for image in sorted(images, key=lambda image: (image.stem, str(image)))}
    return found, sorted(lost, key=lambda scene: scene.id)


def _beside(image: str, ending: str) -> str:
    return image[: -len(".jpg")] + ending


class Ade20kScenes(FileScenes):
    """Scenes of ADE20K's full release; made by `open_ade20k`."""

    mask_kinds = (("rgb",),)

    def __init__(self, root: Path, options: ReadingOptions, index_dir: Path | None) -> None:
        super().__init__("ade20k", root, options)
        index = read_index(root, index_dir)
        found, lost = _walk(root)
        usable: dict[str, str] = {}
        broken: list[BrokenScene] = []
        for image in found:
            # Judged by names and sizes alone.
            scene_id = PurePosixPath(image).stem
            reason = why_unusable(root / image) or why_unusable(root / _beside(image, "_seg.png"))
            if scene_id in usable:
                reason = f"{root / image}: a second image of this name, the first is {usable[scene_id]}"
            if reason:
                broken.append(BrokenScene(scene_id, reason))
            else:
                usable[scene_id] = image
        for image in index["files"] if index else ():
            if image not in found:
                reason = f"{root / image}: in the index but missing on disk"
                broken.append(BrokenScene(PurePosixPath(image).stem, reason))
        already = {scene.id for scene in broken}
        self.broken = (*broken, *(scene for scene in lost if scene.id not in already))
        self.ids, self._images = tuple(usable), tuple(usable.values())
        self.official_splits = tuple(found[image] for image in self._images)
        self.require_usable(".jpg with its _seg.png under images/ADE/training or images/ADE/validation")
        self.class_names: Mapping[int, str]
        if index:
            self.class_names = dict(enumerate(index["objectnames"], start=1))
        else:
            annotations = [root / _beside(image, ".json") for image in self._images]
            self.class_names = _LazyNames(lambda: names_from_annotations(root, annotations, index_dir))

    def __getitem__(self, position: int) -> Scene:
        position = self._position(position)
        image, (values,), remarks = self.read(position)
        if values.dtype != np.uint8:
            mask = self.sources(position)[1]
            raise BrokenSceneError(f"{mask}: a mask of 16 bits a channel; expected ADE20K's own, of 8")
        red, green, blue = (values[..., channel].astype(np.int32) for channel in range(3))
        return Scene(self.ids[position], image, blue, red // 10 * 256 + green, remarks)

    def sources(self, position: int) -> tuple[Path, ...]:
        """Picture and mask."""
        image = self._images[self._position(position)]
        return self.root / image, self.root / _beside(image, "_seg.png")

    @cached_property
    def benchmark_classes(self) -> dict[int, int] | None:
        """Class id -> class of the 150-class benchmark, 0 for all others; None without ``objectInfo150.csv``."""
        for place in (self.root / BENCHMARK_NAME, self.root.parent / BENCHMARK_NAME):
            if place.is_file():
                return map_to_benchmark(self.class_names, place)
        return None


def map_to_benchmark(class_names: Mapping[int, str], table: Path) -> dict[int, int]:
    """Map class names of the full release to the 150 classes of ``objectInfo150.csv`` (columns Idx, Name).

    Its names are written with ";" for both ", " and " ". Capitals do not count. Raises SceneSetError.
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


# --- what is read once and kept --------------------------------------------------------------------


def _kept(
    place: Path | None, source: dict[str, Any], read: Callable[[], dict[Any, Any]], holds: tuple[str, ...] = ()
) -> dict[Any, Any]:
    """What `read` gives, kept at `place` as JSON (None keeps nothing) as long as it has this very source.

    A file without what it `holds`, as another version may have kept it, is read anew.
    """
    if place is None:
        return read()
    try:
        kept = parse_json(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        kept = None
    found = kept.get("content") if isinstance(kept, dict) and kept.get("source") == source else None
    if isinstance(found, dict) and all(name in found for name in holds):
        return found
    content = read()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(place, json.dumps({"source": source, "content": content}, ensure_ascii=False).encode())
    except OSError as error:
        logger.warning("cannot keep %s (%s); it will be read again next time", place, error)
    return content


def _place(index_dir: Path | None, kind: str, root: Path) -> Path | None:
    """Where something about this data set is kept."""
    digest = hashlib.sha256(str(root).encode()).hexdigest()[:12]
    return None if index_dir is None else Path(index_dir) / f"ade20k_{kind}_{digest}.json"


def read_index(root: Path, index_dir: Path | None) -> dict[str, Any] | None:
    """``files`` of the index (from ``images/`` on) and ``objectnames`` (of class id k at ``k - 1``); None without one.

    The pickle is read once for each path, size and time of change. Raises UnsafePickleError, or SceneSetError if it
    does not hold what ADE20K's index holds.
    """
    path = root / INDEX_NAME
    if not path.is_file():
        return None
    status = path.stat()

    def read() -> dict[str, Any]:
        logger.info("reading %s once (%.0f MB)", path, status.st_size / 1e6)
        content = load_plain_pickle(path)
        lists: dict[str, list[str]] = {}
        for field in ("filename", "folder", "objectnames"):
            values = plain(content.get(field)) if isinstance(content, dict) else None
            if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
                raise SceneSetError(
                    f"{path} has no list of strings called {field!r}, so it is not ADE20K's index. Fetch it anew, or "
                    f"remove it: the scenes are then found by their folders"
                )
            lists[field] = list(values)
        names, folders = lists["filename"], lists["folder"]
        if len(names) != len(folders):
            raise SceneSetError(f"{path} lists {len(names)} file names but {len(folders)} folders; fetch it anew")
        files = []
        for folder, name in zip(folders, names, strict=True):
            # The index starts its folders at the release's name, which users may have changed.
            parts = PurePosixPath(folder.replace("\\", "/")).parts
            start = parts.index("images") if "images" in parts else 0
            files.append(PurePosixPath(*parts[start:], name).as_posix())
        return {"files": files, "objectnames": lists["objectnames"]}

    source = {"path": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    return _kept(_place(index_dir, "index", root), source, read, holds=("files", "objectnames"))


def _names_in(path: Path) -> dict[int, str]:
    """Class names in the JSON file beside an image (UTF-8, or Latin-1 as some of the release); none if damaged."""
    try:
        raw = path.read_bytes()
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = raw.decode("latin-1")
        objects = parse_json(text)["annotation"]["object"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    if isinstance(objects, dict):  # a single object, as some exporters write it
        objects = [objects]
    names = {}
    for item in objects if isinstance(objects, list) else []:
        if isinstance(item, dict) and isinstance(item.get("name_ndx"), int) and isinstance(item.get("name"), str):
            names[item["name_ndx"]] = item["name"]
    return names


def names_from_annotations(root: Path, paths: Sequence[Path], index_dir: Path | None) -> dict[int, str]:
    """Class id -> name out of the JSON files beside the images, kept under `index_dir`."""
    digest = hashlib.sha256()
    present = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue
        present.append(path)
        digest.update(f"{path.relative_to(root).as_posix()} {status.st_size} {status.st_mtime_ns}\n".encode())

    def read() -> dict[int, str]:
        names: dict[int, str] = {}
        with ThreadPoolExecutor(2) as pool, progress(len(present), "class names", "scenes") as bar:
            for found in pool.map(_names_in, present):
                names.update(found)
                bar.update(1)
        return dict(sorted(names.items()))

    kept = _kept(_place(index_dir, "names", root), {"annotations": digest.hexdigest()}, read)
    return {int(class_id): name for class_id, name in kept.items()}


class _LazyNames(Mapping):  # not Mapping[int, str]: a checker of types at run time would look inside at once
    """Class id (int) -> name (str), found when first asked for: reading all of ADE20K's JSON files takes a minute."""

    def __init__(self, find: Callable[[], dict[int, str]]) -> None:
        self._find = find

    @cached_property
    def _names(self) -> dict[int, str]:
        return self._find()

    def __getitem__(self, class_id: int) -> str:
        return self._names[class_id]

    def __iter__(self) -> Iterator[int]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_ade20k(directory: str, index_dir: Path | None = None) -> Ade20kScenes:
    """Open ``ade20k:DIR,OPTIONS``: the release's directory or the one that holds it; ``~`` is understood.

    What is needed of ``index_ade20k.pkl`` is kept under `index_dir`. Raises SceneSetError if there is no ADE20K, or no
    usable scene in it; UnsafePickleError; InvalidParameterError for an option that is not understood.
    """
    name, items = split_directory(directory)
    options = ReadingOptions.parse(items, ADE20K_OPTIONS)
    return Ade20kScenes(find_root(Path(name).expanduser()), options, index_dir)
