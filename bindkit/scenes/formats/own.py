"""Scenes of your own: any images with instance masks, in a plain folder layout or a Hugging Face dataset.

``folder:`` scenes: any images with instance masks, in a plain folder layout.

::

    DIR/images/NAME.png                 8-bit, any colour mode; also .jpg .jpeg .jfif .webp .tif .tiff .bmp .gif
    DIR/instances/NAME.png              instance id per pixel, 0 = unlabelled; also .tif .tiff .bmp .npy .mat
    DIR/classes/NAME.png                class id per pixel, 0 = unlabelled (optional)
    DIR/class_names.json                {"1": "cat", "2": "dog"} (optional)
    DIR/scenes.csv                      columns id (NAME) and others, such as video (optional)

or the same three folders inside ``DIR/training`` and ``DIR/validation``, which then are official splits. Capitals in
suffixes and the Unicode normal form of names do not matter.

Masks are gray of up to 32 bits, or palette images, whose palette indices count (write 0 where there is no object).
Instance masks may also be RGB: ``R + 256 G + 65536 B`` is the id, as in COCO's panoptic format, so that one colour an
object works too. Ids mean something within one image only. ``folder:DIR,void=255`` reads VOC's border value as
unlabelled; the other options are in `bindkit.scenes.reading.OPTIONS`. Of a ``.npy`` or ``.mat`` mask, see
`bindkit.scenes.decoding`; ``variable=NAME`` says which variable of ``.mat`` files it is, where they have several.

Pictures are read upright, as their EXIF data say, if the mask has the upright picture's size, else as stored.

Without ``classes/`` nobody knows which objects are of one class: every pixel has class 0, so that there are no twins
and no figures of twins.

``hf:`` scenes: a Hugging Face dataset with a column of pictures and one of instance masks.

``hf:DIR`` is a directory that ``save_to_disk`` wrote, or one of Parquet files as hubs hold them (``train-*.parquet``);
``hf:USER/NAME`` is fetched from the hub. Options name columns and parts: ``hf:USER/NAME,image=photo,mask=instances``,
``classes=COLUMN`` (a class mask; without it no pixel has a class), ``group=COLUMN`` (rows that stay on one side of a
split; those of one picture do by themselves), ``config=NAME``, ``split=NAME``. Without ``split``,
``train`` and ``validation`` are the official splits where both are there, and a single split of any name is read.

A mask is a column of pictures (palette, gray of 8 or 16 bits, or RGB, held as PNG: JPEG changes ids) or of arrays
[row, col] of whole numbers; 0 is unlabelled, and so is what ``void=255`` names. Ids of scenes are ``SPLIT/ROW``. No
code of a data set is executed: from version 4 on, ``datasets`` has no way to. Bytes that are not in the data set itself
are read from its own directory (or the hub's cache) alone.

Needs ``pip install 'bindkit[hf]'``.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bindkit.errors import BrokenSceneError, SceneSetError
from bindkit.files import parse_json
from bindkit.scenes.decoding import (
    ARRAY_SUFFIXES,
    Header,
    StoredPixels,
    read_array,
    read_channels,
    read_stored,
    reading,
    whole_numbers,
    why_unusable,
)
from bindkit.scenes.reading import FileScenes, ReadingOptions, leads_out, optional, split_directory
from bindkit.scenes.scene import OFFICIAL_SPLITS, BrokenScene, Scene

LOSSLESS = (".png", ".tif", ".tiff", ".bmp")
MASK_SUFFIXES = (*LOSSLESS, *ARRAY_SUFFIXES)
SUFFIXES = (*LOSSLESS, ".jpg", ".jpeg", ".jfif", ".webp", ".gif")
FOLDER_OPTIONS = {"variable": (r"[A-Za-z]\w{0,62}", "which variable of .mat files is the mask, default the only one")}
NAMES_NAME = "class_names.json"


def _files_in(folder: Path) -> dict[str, list[Path]]:
    """Files by stem in Unicode's normal form NFC, in the order of their names in that form."""
    try:
        children = sorted(folder.iterdir(), key=lambda path: unicodedata.normalize("NFC", path.name))
    except OSError as error:
        raise SceneSetError(f"{folder} cannot be listed ({error.strerror}); check that you may read it") from error
    found: dict[str, list[Path]] = {}
    for path in children:
        if not path.name.startswith("."):
            found.setdefault(unicodedata.normalize("NFC", path.stem), []).append(path)
    return found


def _of_kind(paths: list[Path], suffixes: tuple[str, ...]) -> list[Path]:
    return [path for path in paths if path.suffix.lower() in suffixes]


def _find_mask(folder: Path, stem: str, paths: list[Path]) -> tuple[Path, str | None]:
    """The mask of a name, and why there is none that can be used."""
    masks, others = _of_kind(paths, MASK_SUFFIXES), _of_kind(paths, SUFFIXES)
    if len(masks) > 1:
        return masks[1], f"{masks[1]}: a second mask of this name beside {masks[0].name}"
    if others and not masks:
        kinds = ", ".join(MASK_SUFFIXES)
        return others[0], f"{others[0]}: a mask of a format that may change ids; save it anew as one of {kinds}"
    mask = masks[0] if masks else folder / f"{stem}.png"
    return mask, why_unusable(mask) if masks else f"{mask}: the file is missing"


def _list_part(part: Path, prefix: str) -> tuple[dict[str, tuple[Path, ...]], list[BrokenScene]]:
    """Files of the scenes of one ``images/ instances/ classes/`` triple: picture, instance mask, maybe class mask."""
    images = _files_in(part / "images")
    folders = [name for name in ("instances", "classes") if (part / name).is_dir()]
    masks_in = {name: _files_in(part / name) for name in folders}
    usable: dict[str, tuple[Path, ...]] = {}
    broken: list[BrokenScene] = []
    named: set[str] = set()
    for stem, paths in images.items():
        pictures = _of_kind(paths, SUFFIXES)
        if not pictures:
            continue
        named.add(stem)
        chosen = [_find_mask(part / name, stem, masks_in[name].get(stem, [])) for name in folders]
        reason = next(filter(None, [why_unusable(pictures[0]), *(unusable for _, unusable in chosen)]), None)
        if reason:
            broken.append(BrokenScene(prefix + stem, reason))
        else:
            usable[prefix + stem] = (pictures[0], *(mask for mask, _ in chosen))
        beside = f"a second image of this name beside {pictures[0].name}"
        broken += [BrokenScene(prefix + stem, f"{second}: {beside}") for second in pictures[1:]]
    Image.init()
    for name in folders:
        for stem, paths in masks_in[name].items():
            masks = _of_kind(paths, MASK_SUFFIXES)
            if masks and stem not in named:
                named.add(stem)
                reason = f"{masks[0]}: a mask whose image is missing"
                # Beside a mask may stand a picture of a format that is not read.
                if pictures := _of_kind(images.get(stem, []), tuple(Image.EXTENSION)):
                    reason += f": {pictures[0].name} is none of {', '.join(SUFFIXES)}, convert it"
                broken.append(BrokenScene(prefix + stem, reason))
    return usable, broken


def _read_names(path: Path) -> dict[int, str]:
    if not path.is_file():
        return {}
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))
        return {int(class_id): str(name) for class_id, name in content.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise SceneSetError(
            f'{path} cannot be read ({error}); expected JSON such as {{"1": "cat", "2": "dog"}}, or remove it'
        ) from error


class FolderScenes(FileScenes):
    """Scenes of a plain folder; made by `open_folder`."""

    mask_kinds = (("gray", "rgb"), ("gray",))

    def __init__(self, root: Path, options: ReadingOptions) -> None:
        super().__init__("folder", root, options)
        self.scenes_csv = root / "scenes.csv"
        layout = ("images", "instances")
        whole = all((root / name).is_dir() for name in layout)
        official = [split for split in OFFICIAL_SPLITS if all((root / split / name).is_dir() for name in layout)]
        if not whole and not official:
            raise SceneSetError(
                f"{root} holds no scenes: looked for images/ and instances/ in it, in training/ and in validation/. "
                f"Put each image in images/ and its mask of the same name, as PNG, in instances/"
            )
        parts = [_list_part(root, "")] if whole else [_list_part(root / split, f"{split}/") for split in official]
        self._files = {name: files for usable, _ in parts for name, files in usable.items()}
        self.broken = tuple(scene for _, unusable in parts for scene in unusable)
        self.ids = tuple(self._files)
        self.require_usable(f"image ({', '.join(SUFFIXES)}) with a mask of the same name")
        self.official_splits = None if whole else tuple(name.split("/")[0] for name in self.ids)
        self.class_names = _read_names(root / NAMES_NAME)

    def __getitem__(self, position: int) -> Scene:
        position = self._position(position)
        return self.scene_of(position, *self.read(position), self.sources(position)[1:])

    def read_mask(self, position: int, number: int) -> StoredPixels:
        """Of an array too."""
        path = self.sources(position)[1 + number]
        if path.suffix.lower() in ARRAY_SUFFIXES:
            return read_array(path, self.options.max_pixels, self.options.own.get("variable"))
        return super().read_mask(position, number)

    def mask_header(self, position: int) -> Header:
        """Of an array too."""
        is_array = self.sources(position)[1].suffix.lower() in ARRAY_SUFFIXES
        return self.read_mask(position, 0) if is_array else super().mask_header(position)

    def sources(self, position: int) -> tuple[Path, ...]:
        """Picture, instance mask and, where there is one, class mask."""
        return self._files[self.ids[self._position(position)]]


def open_folder(directory: str, index_dir: Path | None = None) -> FolderScenes:
    """Open ``folder:DIR,OPTIONS``; the layout is described above. `index_dir` is not needed here."""
    name, items = split_directory(directory)
    root = Path(name).expanduser()
    if not root.is_dir():
        raise SceneSetError(f"{root} is not a directory; give the one that holds images/ and instances/")
    return FolderScenes(root.resolve(), ReadingOptions.parse(items, own=FOLDER_OPTIONS))


_COLUMN = r"[^,=]+"
HF_OPTIONS = {
    "image": (_COLUMN, "column of pictures, default image"),
    "mask": (_COLUMN, "column of instance masks, default mask"),
    "classes": (_COLUMN, "column of class masks, default none"),
    "group": (_COLUMN, "column of what rows of one group share (a video, a place), which keeps them on one side"),
    "config": (_COLUMN, "configuration of the data set, default its only one"),
    "split": (_COLUMN, "split to read, default train and validation where both are there, or the only one"),
}


class HuggingFaceScenes(FileScenes):
    """Scenes of a Hugging Face dataset; made by `open_huggingface`."""

    def __init__(self, root: Path, options: ReadingOptions, parts: Mapping[str, Any], within: Path) -> None:
        super().__init__("hf", root, options)
        datasets = optional("datasets", "hf")
        self._within = within
        columns = [options.own.get("image", "image"), options.own.get("mask", "mask"), options.own.get("classes", "")]
        self._columns = [column for column in columns if column]
        self._parts: dict[str, Any] = {}
        for split, part in parts.items():
            asked = filter(None, (*self._columns, options.own.get("group")))
            if missing := [column for column in asked if column not in part.features]:
                raise SceneSetError(
                    f"{self.uri}: split {split} has no column {missing[0]!r}, but {', '.join(part.features)}; write "
                    "image=COLUMN,mask=COLUMN"
                )
            pictures = [name for name in self._columns if isinstance(part.features[name], datasets.Image)]
            self._parts[split] = part.select_columns(self._columns).with_format(None)
            for column in pictures:  # as the bytes that they are held as, for this package to decode
                self._parts[split] = self._parts[split].cast_column(column, datasets.Image(decode=False))
        self._pictures = {split: part.select_columns(self._columns[:1]) for split, part in self._parts.items()}
        self._places = [(split, row) for split, part in self._parts.items() for row in range(len(part))]
        self.ids = tuple(f"{split}/{row:06d}" for split, row in self._places)
        if len(parts) == 2:
            of = dict(zip(parts, OFFICIAL_SPLITS, strict=True))
            self.official_splits = tuple(of[split] for split, _ in self._places)
        if group := options.own.get("group"):
            named = [name for part in parts.values() for name in part[group]]
            self.groups = tuple(str(name) for name in named)
        self.class_names: dict[int, str] = {}
        self.require_usable("row")

    def __getitem__(self, position: int) -> Scene:
        position = self._position(position)
        split, row = self._places[position]
        names = [Path(f"{self.uri}#{self.ids[position]}", column) for column in self._columns]
        with reading(names[0].parent):
            held = self._parts[split][row]
        picture, *columns = (held[column] for column in self._columns)
        most = self.options.max_pixels
        image = read_stored(names[0], most, held_bytes(picture, names[0], self._within))
        found = []
        for number, (name, mask) in enumerate(zip(names[1:], columns, strict=True)):
            if isinstance(mask, dict):
                content = held_bytes(mask, name, self._within)
                found.append(read_channels(name, number == 0, True, most, content))
            else:
                with reading(name):
                    found.append(whole_numbers(np.asarray(mask), name, most))
        return self.scene_of(position, *self.laid(image, found, names), names[1:])

    def picture_digest(self, position: int) -> str:
        """Of a picture's bytes as they are held: rows of one picture belong together."""
        split, row = self._places[self._position(position)]
        (held,) = self._pictures[split][row].values()
        return hashlib.sha256(held_bytes(held, Path(self.ids[position]), self._within)).hexdigest()

    def size_of(self, position: int) -> tuple[int, int]:
        """``(height, width)`` in pixels. Raises BrokenSceneError."""
        return self[position].size


def held_bytes(held: Any, name: Path, within: Path) -> bytes:
    """The file that a picture is held as; one that is only named is read from `within` alone."""
    if not isinstance(held, dict) or not (held.get("bytes") or held.get("path")):
        raise BrokenSceneError(f"{name}: holds no picture")
    if held.get("bytes"):
        return held["bytes"]
    place = within / held["path"]
    if reason := leads_out(place, within):
        raise BrokenSceneError(f"{name}: {reason}")
    with reading(place):
        return place.read_bytes()


def parquet_files(root: Path) -> dict[str, list[str]]:
    """Split -> files of a directory, by the first word of their names as hubs write them. Raises SceneSetError."""
    found: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*.parquet")):
        found.setdefault(re.split("[-.]", path.name)[0], []).append(path)
    if not found or any(len({path.parent for path in paths}) > 1 for paths in found.values()):
        fault = "has several configurations: add config=FOLDER" if found else "holds no Parquet file"
        raise SceneSetError(f"hf: {root} {fault}; expected what save_to_disk wrote, or train-*.parquet")
    return {split: [str(path) for path in paths] for split, paths in found.items()}


def copies_of(files: Mapping[str, list[str]]) -> Path:
    """Where `datasets` keeps its copy of Parquet files. It goes by their times, which a copied file may share."""
    states = [Path(file).stat() for several in files.values() for file in several]
    said = [[files], [[one.st_size, one.st_mtime_ns, one.st_ctime_ns, one.st_ino] for one in states]]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    return Path(optional("datasets", "hf").config.HF_DATASETS_CACHE) / f"bindkit-{digest[:16]}"


def open_huggingface(name: str, index_dir: Path | None = None) -> HuggingFaceScenes:
    """Open ``hf:NAME_OR_DIR,OPTIONS``; described above. `index_dir` is not needed here."""
    name, items = split_directory(name)
    options = ReadingOptions.parse(items, own=HF_OPTIONS)
    datasets = optional("datasets", "hf")
    directory = Path(name).expanduser()
    is_local = directory.is_dir()
    root = directory.resolve() if is_local else Path(name)
    try:
        if is_local and any((root / file).is_file() for file in ("state.json", "dataset_dict.json")):
            for state in (*root.glob("state.json"), *root.glob("*/state.json")):
                for file in json.loads(state.read_text(encoding="utf-8"))["_data_files"]:
                    if reason := leads_out(state.parent / file["filename"], root):
                        raise SceneSetError(f"{state}: {reason}")
            if (named := root / "dataset_dict.json").is_file():
                for split in json.loads(named.read_text(encoding="utf-8"))["splits"]:
                    if reason := leads_out(root / split, root):
                        raise SceneSetError(f"{named}: {reason}")
            found = datasets.load_from_disk(root.as_posix())
        elif is_local:
            files = parquet_files(root / options.own.get("config", "."))
            found = datasets.load_dataset("parquet", data_files=files, cache_dir=str(copies_of(files)))
        else:
            found = datasets.load_dataset(root.as_posix(), options.own.get("config"))
    except SceneSetError:
        raise
    except Exception as error:  # whatever a hub, a network or a damaged file makes the library raise
        raise SceneSetError(
            f"hf:{name} cannot be opened ({type(error).__name__}: {error}); expected a directory that save_to_disk "
            "wrote, one of Parquet files, or the hub's name of a data set that needs no code"
        ) from error
    split = options.own.get("split")
    parts = dict(found) if isinstance(found, datasets.DatasetDict) else {split or "train": found}
    wanted = [split] if split else list(parts) if len(parts) == 1 else ["train", "validation"]
    if missing := [split for split in wanted if split not in parts]:
        raise SceneSetError(f"hf:{name} has no split {missing[0]!r}, but {', '.join(parts)}; write split=NAME")
    within = root if is_local else Path(datasets.config.HF_CACHE_HOME)
    return HuggingFaceScenes(root, options, {split: parts[split] for split in wanted}, within)
