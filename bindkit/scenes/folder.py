"""``folder:`` scenes: any images with instance masks, in a plain folder layout.

::

    DIR/images/NAME.png                 8-bit, any colour mode; also .jpg .jpeg .jfif .webp .tif .tiff .bmp .gif
    DIR/instances/NAME.png              instance id per pixel, 0 = unlabelled; also .tif .tiff .bmp
    DIR/classes/NAME.png                class id per pixel, 0 = unlabelled (optional)
    DIR/class_names.json                {"1": "cat", "2": "dog"} (optional)
    DIR/scenes.csv                      columns id (NAME) and others, such as video (optional)

or the same three folders inside ``DIR/training`` and ``DIR/validation``, which then are official splits. Capitals in
suffixes and the Unicode normal form of names do not matter.

Masks are gray of up to 32 bits, or palette images, whose palette indices count (write 0 where there is no object).
Instance masks may also be RGB: ``R + 256 G + 65536 B`` is the id, as in COCO's panoptic format, so that one colour an
object works too. Ids mean something within one image only. ``folder:DIR,void=255`` reads VOC's border value as
unlabelled; the other options are in `bindkit.scenes.reading_options.OPTIONS`.

Pictures are read upright, as their EXIF data say, if the mask has the upright picture's size, else as stored.

Without ``classes/`` nobody knows which objects are of one class: every pixel has class 0, so that there are no twins
and no figures of twins.
"""

from __future__ import annotations

import logging
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from bindkit.errors import SceneSetError
from bindkit.files import parse_json
from bindkit.scenes.base import SceneSequence
from bindkit.scenes.decoding import why_unusable
from bindkit.scenes.mask_doubts import border_value
from bindkit.scenes.masks import ids_of, numbered
from bindkit.scenes.reading_options import ReadingOptions, split_directory
from bindkit.scenes.scene import BrokenScene, Scene
from bindkit.scenes.scene_files import MaskFile, SceneReader

logger = logging.getLogger(__name__)

SPLITS = ("training", "validation")
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
SUFFIXES = (*MASK_SUFFIXES, ".jpg", ".jpeg", ".jfif", ".webp", ".gif")
NAMES_NAME = "class_names.json"
THIN_BORDER = "a thin border of value {0} around objects is read as an object: void={0} reads it as unlabelled"


@dataclass(frozen=True)
class _Files:
    """The files of one scene; `classes` is None where the data set has no classes folder."""

    id: str
    split: str | None
    image: Path
    instances: Path
    classes: Path | None


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
    masks = _of_kind(paths, MASK_SUFFIXES)
    if len(masks) == 1:
        return masks[0], why_unusable(masks[0])
    if masks:
        return masks[1], f"{masks[1]}: a second mask of this name beside {masks[0].name}"
    others = _of_kind(paths, SUFFIXES)
    if others:
        kinds = ", ".join(MASK_SUFFIXES)
        return others[0], f"{others[0]}: a mask of a format that may change ids; save it anew as one of {kinds}"
    return folder / f"{stem}.png", f"{folder / f'{stem}.png'}: the file is missing"


def _why_no_image(mask: Path, beside: list[Path]) -> str:
    """Beside a mask may stand a picture of a format that is not read."""
    Image.init()
    pictures = [path.name for path in beside if path.suffix.lower() in Image.EXTENSION]
    reason = f"{mask}: a mask whose image is missing"
    return f"{reason}: {pictures[0]} is none of {', '.join(SUFFIXES)}, convert it" if pictures else reason


def _list_part(part: Path, split: str | None) -> tuple[list[_Files], list[BrokenScene]]:
    """Scenes of one ``images/ instances/ classes/`` triple."""
    prefix = "" if split is None else f"{split}/"
    images = _files_in(part / "images")
    folders = [name for name in ("instances", "classes") if (part / name).is_dir()]
    masks_in = {name: _files_in(part / name) for name in folders}
    usable: list[_Files] = []
    broken: list[BrokenScene] = []
    pictured: set[str] = set()
    for stem, paths in images.items():
        pictures = _of_kind(paths, SUFFIXES)
        if not pictures:
            continue
        pictured.add(stem)
        reason = why_unusable(pictures[0])
        chosen: list[Path] = []
        for name in folders:
            mask, unusable = _find_mask(part / name, stem, masks_in[name].get(stem, []))
            chosen.append(mask)
            reason = reason or unusable
        if reason:
            broken.append(BrokenScene(prefix + stem, reason))
        else:
            usable.append(_Files(prefix + stem, split, pictures[0], chosen[0], chosen[1] if chosen[1:] else None))
        for second in pictures[1:]:
            reason = f"{second}: a second image of this name beside {pictures[0].name}"
            broken.append(BrokenScene(prefix + stem, reason))
    for name in folders:
        for stem, paths in masks_in[name].items():
            masks = _of_kind(paths, MASK_SUFFIXES)
            if masks and stem not in pictured:
                pictured.add(stem)
                broken.append(BrokenScene(prefix + stem, _why_no_image(masks[0], images.get(stem, []))))
    return usable, broken


def _read_names(path: Path) -> dict[int, str] | None:
    if not path.is_file():
        return None
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))
        return {int(class_id): str(name) for class_id, name in content.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise SceneSetError(
            f'{path} cannot be read ({error}); expected JSON such as {{"1": "cat", "2": "dog"}}, or remove it'
        ) from error


class FolderScenes(SceneSequence):
    """Scenes of a plain folder; made by `open_folder`."""

    def __init__(self, root: Path, options: ReadingOptions = ReadingOptions()) -> None:  # noqa: B008
        self.root = root
        self.uri = f"folder:{root.as_posix()}{options}"
        self.scenes_csv = root / "scenes.csv"
        self._reader = SceneReader(options)
        layout = ("images", "instances")
        parts: list[tuple[Path, str | None]] = []
        if all((root / name).is_dir() for name in layout):
            parts = [(root, None)]
        else:
            splits = [split for split in SPLITS if all((root / split / name).is_dir() for name in layout)]
            parts = [(root / split, split) for split in splits]
        if not parts:
            raise SceneSetError(
                f"{root} holds no scenes: looked for images/ and instances/ in it, in training/ and in validation/. "
                f"Put each image in images/ and its mask of the same name, as PNG, in instances/"
            )
        usable: list[_Files] = []
        broken: list[BrokenScene] = []
        for part, split in parts:
            found, unusable = _list_part(part, split)
            usable += found
            broken += unusable
        self._files, self.broken = usable, tuple(broken)
        if not usable:
            reasons = "; ".join(scene.reason for scene in broken[:3])
            raise SceneSetError(
                f"{root} holds no usable scene: no image ({', '.join(SUFFIXES)}) with a mask of the same name"
                + (f" ({len(broken)} broken: {reasons})" if broken else "")
            )
        self.ids = tuple(files.id for files in usable)
        splits_found = [files.split for files in usable if files.split is not None]
        self.official_splits = tuple(splits_found) if splits_found else None
        self.class_names = _read_names(root / NAMES_NAME) or {}
        if broken:
            logger.warning("%s: scenes left out: %d; the first: %s", self.uri, len(broken), broken[0].reason)

    def __getitem__(self, position: int) -> Scene:
        files = self._files[self._position(position)]
        picture, *paths = self.sources(position)
        found = self._reader.read(picture, [MaskFile(path, rgb=path == files.instances) for path in paths])
        masks = [ids_of(channels) for channels in found.masks]
        remarks = found.remarks
        if self._reader.options.void:
            unlabelled = np.any([np.isin(mask, self._reader.options.void) for mask in masks], axis=0)
            masks = [np.where(unlabelled, 0, mask) for mask in masks]
        elif border := next(filter(None, map(border_value, masks)), None):
            remarks += (THIN_BORDER.format(border),)
            self._reader.say(remarks[-1:], files.instances)
        instances, *classes = (numbered(mask, path) for mask, path in zip(masks, paths, strict=True))
        if not classes:
            classes = [np.zeros_like(instances)]
        return Scene(files.id, found.image, instances, classes[0], remarks)

    def size_of(self, position: int) -> tuple[int, int]:
        """``(height, width)`` in pixels, from headers only. Raises BrokenSceneError."""
        files = self._files[self._position(position)]
        return self._reader.size_of(files.image, [files.instances])

    def sources(self, position: int) -> tuple[Path, ...]:
        """Picture, instance mask and, where there is one, class mask."""
        files = self._files[self._position(position)]
        return tuple(path for path in (files.image, files.instances, files.classes) if path is not None)


def open_folder(directory: str, index_dir: Path | None = None) -> FolderScenes:
    """Open ``folder:DIR,OPTIONS``; the layout is described above. `index_dir` is not needed here.

    Raises
    ------
    SceneSetError
        If it is no directory, has not that layout, or holds no usable scene.
    InvalidParameterError
        For an option that is not understood; lists them all.
    """
    name, items = split_directory(directory)
    root = Path(name).expanduser()
    if not root.is_dir():
        raise SceneSetError(f"{root} is not a directory; give the one that holds images/ and instances/")
    return FolderScenes(root.resolve(), ReadingOptions.parse(items))
