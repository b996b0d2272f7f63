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
import pickle
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from bindkit.errors import SceneSetError, UnsafePickleError
from bindkit.files import parse_json, progress, write_bytes
from bindkit.scenes.decoding import of_8_bits, why_unusable
from bindkit.scenes.reading import FIXED_MASKS, FileScenes, ReadingOptions, find_dataset, split_directory
from bindkit.scenes.scene import OFFICIAL_SPLITS, BrokenScene

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
    """The directory of the release: the one given, or the single one inside it that holds ``images/ADE``."""
    hint = "Give the full release, from https://ade20k.csail.mit.edu"
    if any(path.is_dir() for pattern in ("annotations", "*/annotations") for path in directory.glob(pattern)):
        hint = (
            "The scene-parsing benchmark (ADEChallengeData2016), whose masks tell no instances apart, will not do "
            f"(its masks of instances will: ade20k-instances:DIR). {hint}"
        )
    return find_dataset(directory, [f"images/ADE/{split}" for split in OFFICIAL_SPLITS], "ADE20K", hint)


def _walk(root: Path) -> tuple[dict[str, str], list[BrokenScene]]:
    """Image (from ``images/`` on) -> split, training first, by file name; and what has no image or cannot be listed."""
    found: dict[str, str] = {}
    lost: list[BrokenScene] = []

    def unlisted(error: OSError) -> None:
        lost.append(BrokenScene(str(error.filename), f"{error.filename}: cannot be listed ({error.strerror})"))

    for split in OFFICIAL_SPLITS:
        if not (root / "images" / "ADE" / split).is_dir():
            continue
        images: list[tuple[str, str]] = []  # name without suffix, and all
        # Clusters often link folders in from elsewhere: follow links, but enter no folder twice.
        entered: set[tuple[int, int]] = set()
        for folder, subfolders, files in os.walk(root / "images" / "ADE" / split, onerror=unlisted, followlinks=True):
            status = Path(folder).stat()
            if (status.st_dev, status.st_ino) in entered:
                subfolders.clear()
                continue
            entered.add((status.st_dev, status.st_ino))
            base = Path(folder).relative_to(root).as_posix()
            visible = [name for name in files if not name.startswith(".")]
            pictures = [name for name in visible if name.lower().endswith(".jpg")]
            stems = {name[: -len(".jpg")] for name in pictures}
            # Beside each image stands a folder with one mask an object: hundreds of thousands of files, not needed.
            subfolders[:] = sorted(name for name in subfolders if name not in stems)
            images += [(name[: -len(".jpg")], f"{base}/{name}") for name in pictures]
            for name in visible:
                stem = name.removesuffix("_seg.png")
                if stem != name and stem not in stems:
                    lost.append(BrokenScene(stem, f"{root / base / name}: a mask whose image is missing"))
        found |= {image: split for _, image in sorted(images)}
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
            scene_id = _beside(image, "").rpartition("/")[2]
            # As text: fifty thousand paths take a second to put together.
            picture = f"{root}/{image}"
            reason = why_unusable(picture) or why_unusable(_beside(picture, "_seg.png"))
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
        annotations = [_beside(image, ".json") for image in self._images]
        self.class_names = (
            dict(enumerate(index["objectnames"], start=1))
            if index
            else _LazyNames(partial(names_from_annotations, root, annotations, index_dir))
        )

    def labels(self, position: int, values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The blue channel, and the class of the other two."""
        red, green, blue = of_8_bits(values[0], self.sources(position)[1])
        return blue, red // 10 * 256 + green

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


def benchmark_name(name: str) -> str:
    """A class name of the full release as ``objectInfo150.csv`` writes it."""
    return name.lower().replace(", ", ";").replace(" ", ";")


def map_to_benchmark(class_names: Mapping[int, str], table: Path) -> dict[int, int]:
    """Map class names of the full release to the 150 classes of ``objectInfo150.csv`` (columns Idx, Name)."""
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
    return {
        class_id: BENCHMARK_BY_HAND.get(name.lower()) or numbers.get(benchmark_name(name), 0)
        for class_id, name in class_names.items()
    }


def _kept(
    index_dir: Path | None, kind: str, root: Path, source: dict[str, Any], read: Callable[[], dict[Any, Any]]
) -> dict[Any, Any]:
    """What `read` gives of a release, kept as JSON (without `index_dir` not) as long as it has this very source."""
    if index_dir is None:
        return read()
    place = Path(index_dir) / f"ade20k_{kind}_{hashlib.sha256(str(root).encode()).hexdigest()[:12]}.json"
    try:
        kept = parse_json(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        kept = None
    found = kept.get("content") if isinstance(kept, dict) and kept.get("source") == source else None
    # An index without what it holds, as another version may have kept it, is read anew.
    if isinstance(found, dict) and (kind != "index" or {"files", "objectnames"} <= set(found)):
        return found
    content = read()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(place, json.dumps({"source": source, "content": content}, ensure_ascii=False).encode())
    except OSError as error:
        logger.warning("cannot keep %s (%s); it will be read again next time", place, error)
    return content


def read_index(root: Path, index_dir: Path | None) -> dict[str, Any] | None:
    """``files`` of the index (from ``images/`` on) and ``objectnames`` (of class id k at ``k - 1``); None without one.

    The pickle is read once for each path, size and time of change.
    """
    path = root / INDEX_NAME
    if not path.is_file():
        return None
    status = path.stat()

    def read() -> dict[str, Any]:
        logger.info("reading %s once (%.0f MB)", path, status.st_size / 1e6)
        content = load_plain_pickle(path)
        fields = ("filename", "folder", "objectnames")
        lists: list[Any] = [plain(content.get(field)) if isinstance(content, dict) else None for field in fields]
        names, folders, object_names = lists
        of_strings = [isinstance(one, list | tuple) and all(isinstance(x, str) for x in one) for one in lists]
        if not all(of_strings) or len(names) != len(folders):
            raise SceneSetError(
                f"{path} is not ADE20K's index, which has lists of strings called {', '.join(fields)}, as many folders "
                "as file names. Fetch it anew, or remove it: the scenes are then found by their folders"
            )
        files = []
        for folder, name in zip(folders, names, strict=True):
            # The index starts its folders at the release's name, which users may have changed.
            parts = PurePosixPath(folder.replace("\\", "/")).parts
            start = parts.index("images") if "images" in parts else 0
            files.append(PurePosixPath(*parts[start:], name).as_posix())
        return {"files": files, "objectnames": list(object_names)}

    source = {"path": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    return _kept(index_dir, "index", root, source, read)


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
    named = [item for item in objects if isinstance(item, dict)] if isinstance(objects, list) else []
    pairs = ((item.get("name_ndx"), item.get("name")) for item in named)
    return {class_id: name for class_id, name in pairs if isinstance(class_id, int) and isinstance(name, str)}


def names_from_annotations(root: Path, files: Sequence[str], index_dir: Path | None) -> dict[int, str]:
    """Class id -> name out of the JSON files beside the images, kept under `index_dir`."""
    digest = hashlib.sha256()
    present = []
    for file in files:
        path = root / file
        try:
            status = path.stat()
        except OSError:
            continue
        present.append(path)
        digest.update(f"{file} {status.st_size} {status.st_mtime_ns}\n".encode())

    def read() -> dict[int, str]:
        names: dict[int, str] = {}
        with ThreadPoolExecutor(2) as pool, progress(len(present), "class names", "scenes") as bar:
            for found in pool.map(_names_in, present):
                names.update(found)
                bar.update(1)
        return dict(sorted(names.items()))

    kept = _kept(index_dir, "names", root, {"annotations": digest.hexdigest()}, read)
    return {int(class_id): name for class_id, name in kept.items()}


class _LazyNames(UserDict):  # not of [int, str]: a checker of types at run time would look inside at once
    """Class id (int) -> name (str), found when first asked for: reading all of ADE20K's JSON files takes a minute."""

    def __init__(self, find: Callable[[], dict[int, str]]) -> None:
        self._find = find

    @cached_property
    def data(self) -> dict[int, str]:  # type: ignore[override]
        return self._find()


def open_ade20k(directory: str, index_dir: Path | None = None) -> Ade20kScenes:
    """Open ``ade20k:DIR,OPTIONS``: the release's directory or the one that holds it; ``~`` is understood."""
    name, items = split_directory(directory)
    options = ReadingOptions.parse(items, FIXED_MASKS)
    return Ade20kScenes(find_root(Path(name).expanduser()), options, index_dir)


# --- pickles of plain containers, strings and numpy arrays, and nothing else ---
# A pickle is a program: loading one runs whatever it names. Here only the names in `ADMITTED` are taken, and even those
# stand for inert code of this module, so that a pickle reaches neither numpy nor anything else. Numbers of arrays are
# not kept (in ADE20K's index they are 780 MB that nobody needs); arrays of text become lists.


class _Dtype:
    """A numpy dtype as far as text needs it: its code, such as ``U12``, and its byte order."""

    __slots__ = ("big_endian", "code")

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code if isinstance(code, str) else ""
        self.big_endian = False

    def __setstate__(self, state: Any) -> None:
        self.big_endian = isinstance(state, tuple) and len(state) > 1 and state[1] == ">"


def _texts(dtype: Any, content: Any) -> list[Any] | None:
    """Elements of an array with this dtype, if they are text or objects; else None."""
    if not isinstance(dtype, _Dtype):
        return None
    if dtype.code.startswith("O"):
        return list(content) if isinstance(content, list) else None
    kind, digits = dtype.code[:1], dtype.code[1:]
    if kind not in ("U", "S") or not digits.isdecimal() or not isinstance(content, bytes | bytearray):
        return None
    width = int(digits) * (4 if kind == "U" else 1)
    encoding = "latin-1" if kind == "S" else "utf-32-be" if dtype.big_endian else "utf-32-le"
    items = [content[start : start + width] for start in range(0, len(content), max(1, width))]
    return [bytes(item).decode(encoding).rstrip("\0") for item in items]


class SkippedArray:
    """What is left of a numpy array: its text as a list, or None where it held numbers."""

    __slots__ = ("text",)

    def __init__(self, text: list[Any] | None = None) -> None:
        self.text = text

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 5:  # version, shape, dtype, order, content
            self.text = _texts(state[2], state[4])


class _Inert(NamedTuple):
    """Is called in place of something of numpy's; a tuple, so that a pickle can change nothing of it."""

    make: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.make(*arguments)


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("only latin-1 bytes are read")
    return text.encode("latin-1")


_ARRAY = _Inert(lambda *_: SkippedArray())
_BUFFER = _Inert(lambda content, dtype, *_: SkippedArray(_texts(dtype, content)))
_SCALAR = _Inert(lambda dtype, content=None: (_texts(dtype, content) or [None])[0])
_CORES = ("numpy.core", "numpy._core")
ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _Inert(_Dtype),
    **{(f"{core}.multiarray", "_reconstruct"): _ARRAY for core in _CORES},
    **{(f"{core}.multiarray", "scalar"): _SCALAR for core in _CORES},
    **{(f"{core}.numeric", "_frombuffer"): _BUFFER for core in _CORES},
    ("_codecs", "encode"): _Inert(_encode),
    ("collections", "OrderedDict"): dict,
    **{(home, kind.__name__): kind for home in ("builtins", "__builtin__") for kind in (set, frozenset, bytearray)},
}


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, stream: Any, path: Path) -> None:
        super().__init__(stream)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise UnsafePickleError(
                f"{self._path} asks for {module}.{name}, but an index holds only plain containers, strings and numpy "
                f"arrays; nothing of it was executed. Do not open this file with pickle. Fetch the index anew from "
                f"the data set's own site, or remove it: the scenes are then found by their folders"
            )
        return ADMITTED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickleError(f"{self._path} refers to objects outside itself; nothing of it was executed")


def plain(value: Any) -> Any:
    """The value itself, or the list of texts of an array that was skipped (None if it held numbers)."""
    return value.text if isinstance(value, SkippedArray) else value


def load_plain_pickle(path: Path) -> Any:
    """What a pickle holds, its arrays as `SkippedArray`. Raises UnsafePickleError (nothing of it is executed)."""
    try:
        with path.open("rb") as stream:
            return _PlainUnpickler(stream, path).load()
    except UnsafePickleError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to spell
        raise SceneSetError(
            f"{path} is damaged and cannot be read ({error or type(error).__name__}). Fetch it anew, or remove it: "
            f"the scenes are then found by their folders"
        ) from error
