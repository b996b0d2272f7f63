"""ADE20K's ``index_ade20k.pkl`` and the class names, read once and kept as small JSON files.

Of the 780 MB pickle only the file list and the names of the classes are used. Where there is no pickle, the names
come from the JSON file beside each image.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bindkit.errors import SceneSetError
from bindkit.files import parse_json, progress, write_bytes
from bindkit.scenes.safe_pickle import load_plain_pickle, plain

logger = logging.getLogger(__name__)

INDEX_NAME = "index_ade20k.pkl"


@dataclass(frozen=True)
class Ade20kIndex:
    """What is kept of the pickle.

    Attributes
    ----------
    files : tuple of str
        Images it lists, relative to the data set's directory: ``images/ADE/training/.../ADE_train_00000001.jpg``.
    objectnames : tuple of str
        Name of class id k at ``k - 1``.
    """

    files: tuple[str, ...]
    objectnames: tuple[str, ...]

    @property
    def class_names(self) -> dict[int, str]:
        """Class id -> name."""
        return dict(enumerate(self.objectnames, start=1))


def _file_of(folder: str, filename: str) -> str:
    """Path from ``images/`` on; the index starts its folders at the release's name, which users may have changed."""
    parts = PurePosixPath(folder.replace("\\", "/")).parts
    start = parts.index("images") if "images" in parts else 0
    return PurePosixPath(*parts[start:], filename).as_posix()


def _texts(content: Any, field: str, path: Path) -> list[str]:
    values = plain(content.get(field)) if isinstance(content, dict) else None
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise SceneSetError(
            f"{path} has no list of strings called {field!r}, so it is not ADE20K's index. Fetch it anew, or remove "
            f"it: the scenes are then found by their folders"
        )
    return list(values)


def _read_pickle(path: Path) -> Ade20kIndex:
    logger.info("reading %s once (%.0f MB)", path, path.stat().st_size / 1e6)
    content = load_plain_pickle(path)
    filenames, folders = _texts(content, "filename", path), _texts(content, "folder", path)
    if len(filenames) != len(folders):
        raise SceneSetError(f"{path} lists {len(filenames)} file names but {len(folders)} folders; fetch it anew")
    files = tuple(_file_of(folder, name) for folder, name in zip(folders, filenames, strict=True))
    return Ade20kIndex(files, tuple(_texts(content, "objectnames", path)))


def _kept(place: Path | None, source: dict[str, Any]) -> Any:
    """What was kept at `place` from this very source, or None."""
    if place is None:
        return None
    try:
        kept = parse_json(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return kept.get("content") if isinstance(kept, dict) and kept.get("source") == source else None


def _keep(place: Path | None, source: dict[str, Any], content: Any) -> None:
    if place is None:
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(place, json.dumps({"source": source, "content": content}, ensure_ascii=False).encode())
    except OSError as error:
        logger.warning("cannot keep %s (%s); it will be read again next time", place, error)


def _place(index_dir: Path | None, kind: str, root: Path) -> Path | None:
    """Where something about this data set is kept; None keeps nothing."""
    if index_dir is None:
        return None
    return Path(index_dir) / f"ade20k_{kind}_{hashlib.sha256(str(root).encode()).hexdigest()[:12]}.json"


def read_index(root: Path, index_dir: Path | None) -> Ade20kIndex | None:
    """Read ``index_ade20k.pkl`` of a data set, or what was kept of it; None if there is none.

    Parameters
    ----------
    root : Path
        The data set's directory.
    index_dir : Path or None
        Where what is needed is kept as JSON, so that the pickle (same path, size and time of change) is read once.

    Raises
    ------
    UnsafePickleError, SceneSetError
        As `load_plain_pickle`; or if it does not hold what ADE20K's index holds.
    """
    path = root / INDEX_NAME
    if not path.is_file():
        return None
    status = path.stat()
    source = {"path": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    place = _place(index_dir, "index", root)
    kept = _kept(place, source)
    try:
        return Ade20kIndex(tuple(kept["files"]), tuple(kept["objectnames"]))
    except (TypeError, KeyError):
        index = _read_pickle(path)
    _keep(place, source, {"files": index.files, "objectnames": index.objectnames})
    return index


def read_annotation(path: Path) -> dict[str, Any] | None:
    """The JSON file beside an image (UTF-8, or Latin-1 as some of the release); None if missing or damaged."""
    try:
        raw = path.read_bytes()
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = raw.decode("latin-1")
        annotation = parse_json(text)["annotation"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return annotation if isinstance(annotation, dict) else None


def _names_in(path: Path) -> dict[int, str]:
    annotation = read_annotation(path) or {}
    objects = annotation.get("object")
    if isinstance(objects, dict):  # a single object, as some exporters write it
        objects = [objects]
    names = {}
    for item in objects if isinstance(objects, list) else []:
        if isinstance(item, dict) and isinstance(item.get("name_ndx"), int) and isinstance(item.get("name"), str):
            names[item["name_ndx"]] = item["name"]
    return names


class LazyNames(Mapping):  # not Mapping[int, str]: a checker of types at run time would look inside at once
    """Class id (int) -> name (str), found when first asked for: reading all of ADE20K's JSON files takes a minute."""

    def __init__(self, find: Callable[[], dict[int, str]]) -> None:
        self._find = find
        self._names: dict[int, str] | None = None
        self._lock = threading.Lock()

    def _all(self) -> dict[int, str]:
        with self._lock:
            if self._names is None:
                self._names = self._find()
            return self._names

    def __getitem__(self, class_id: int) -> str:
        return self._all()[class_id]

    def __iter__(self) -> Iterator[int]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


def names_from_annotations(root: Path, paths: Sequence[Path], index_dir: Path | None) -> LazyNames:
    """Class names out of the JSON files beside the images, read on first use and kept under `index_dir`."""

    def find() -> dict[int, str]:
        digest = hashlib.sha256()
        present = []
        for path in paths:
            try:
                status = path.stat()
            except OSError:
                continue
            present.append(path)
            digest.update(f"{path.relative_to(root).as_posix()} {status.st_size} {status.st_mtime_ns}\n".encode())
        source = {"annotations": digest.hexdigest()}
        place = _place(index_dir, "names", root)
        kept = _kept(place, source)
        if isinstance(kept, dict):
            return {int(class_id): name for class_id, name in kept.items()}
        names: dict[int, str] = {}
        with ThreadPoolExecutor(2) as pool, progress(len(present), "class names", "scenes") as bar:
            for found in pool.map(_names_in, present):
                names.update(found)
                bar.update(1)
        names = dict(sorted(names.items()))
        _keep(place, source, names)
        return names

    return LazyNames(find)
