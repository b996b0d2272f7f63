"""``folder:`` scenes: any images with instance masks, in a plain folder layout.

::

    DIR/images/NAME.png (.jpg, .jpeg)   8-bit, any colour mode
    DIR/instances/NAME.png              instance id per pixel, 0 = unlabelled
    DIR/classes/NAME.png                class id per pixel, 0 = unlabelled (optional)
    DIR/class_names.json                {"1": "cat", "2": "dog"} (optional)
    DIR/scenes.csv                      columns id (NAME) and others, such as video (optional)

or the same three folders inside ``DIR/training`` and ``DIR/validation``, which then are official splits.

Masks are gray of 8, 16 or 32 bits, or palette images, whose palette indices count (write 0 where there is no object;
VOC's border value 255 would be an object of its own). Instance masks may also be RGB: ``R + 256 G + 65536 B`` is the
id, as in COCO's panoptic format, so that one colour an object works too. Ids mean something within one image only.

Without ``classes/`` nobody knows which objects are of one class: every pixel has class 0, so that there are no twins
and no figures of twins.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bindkit.errors import BrokenSceneError, SceneSetError
from bindkit.files import parse_json
from bindkit.scenes.base import SceneSequence
from bindkit.scenes.decoding import image_size, read_image, read_label_mask, require_same_size, why_unusable
from bindkit.scenes.scene import BrokenScene, Scene

logger = logging.getLogger(__name__)

SPLITS = ("training", "validation")
SUFFIXES = (".png", ".jpg", ".jpeg")
NAMES_NAME = "class_names.json"
HIGHEST_ID = 2**31 - 1


@dataclass(frozen=True)
class _Files:
    """The files of one scene; `classes` is None where the data set has no classes folder."""

    id: str
    split: str | None
    image: Path
    instances: Path
    classes: Path | None


def _names_in(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    try:
        children = sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise SceneSetError(f"{folder} cannot be listed ({error.strerror}); check that you may read it") from error
    return [path for path in children if path.suffix.lower() in suffixes and not path.name.startswith(".")]


def _list_part(part: Path, split: str | None) -> tuple[list[_Files], list[BrokenScene]]:
    """Scenes of one ``images/ instances/ classes/`` triple."""
    prefix = "" if split is None else f"{split}/"
    with_classes = (part / "classes").is_dir()
    usable: list[_Files] = []
    broken: list[BrokenScene] = []
    first: dict[str, Path] = {}
    for image in _names_in(part / "images", SUFFIXES):
        scene_id = prefix + image.stem
        if image.stem in first:
            reason = f"{image}: a second image of this name beside {first[image.stem].name}"
            broken.append(BrokenScene(scene_id, reason))
            continue
        first[image.stem] = image
        instances = part / "instances" / f"{image.stem}.png"
        classes = part / "classes" / f"{image.stem}.png" if with_classes else None
        reasons = (why_unusable(path) for path in (image, instances, classes) if path is not None)
        unusable = next(filter(None, reasons), None)
        if unusable:
            broken.append(BrokenScene(scene_id, unusable))
        else:
            usable.append(_Files(scene_id, split, image, instances, classes))
    for folder in ("instances", "classes") if with_classes else ("instances",):
        for mask in _names_in(part / folder, (".png",)):
            if mask.stem not in first:
                first[mask.stem] = mask
                broken.append(BrokenScene(prefix + mask.stem, f"{mask}: a mask whose image is missing"))
    return usable, broken


def _read_names(path: Path) -> dict[int, str] | None:
    if not path.is_file():
        return None
    try:
        return {int(class_id): str(name) for class_id, name in parse_json(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise SceneSetError(
            f'{path} cannot be read ({error}); expected JSON such as {{"1": "cat", "2": "dog"}}, or remove it'
        ) from error


class FolderScenes(SceneSequence):
    """Scenes of a plain folder; made by `open_folder`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = f"folder:{root.as_posix()}"
        self.scenes_csv = root / "scenes.csv"
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
        image = read_image(files.image)
        instances = read_label_mask(files.instances, rgb_ids=True)
        require_same_size(instances, files.instances, image, files.image)
        if files.classes is None:
            classes = np.zeros_like(instances)
        else:
            classes = read_label_mask(files.classes, rgb_ids=False)
            require_same_size(classes, files.classes, image, files.image)
        for mask, path in ((instances, files.instances), (classes, files.classes)):
            if mask.size and mask.min() < 0:
                raise BrokenSceneError(f"{path}: holds ids below 0 or above {HIGHEST_ID}; number them from 1")
        return Scene(files.id, image, instances, classes)

    def size_of(self, position: int) -> tuple[int, int]:
        """``(height, width)`` in pixels, from the image's header only. Raises BrokenSceneError."""
        return image_size(self._files[self._position(position)].image)

    def sources(self, position: int) -> tuple[Path, ...]:
        """Picture, instance mask and, where there is one, class mask."""
        files = self._files[self._position(position)]
        return tuple(path for path in (files.image, files.instances, files.classes) if path is not None)


def open_folder(directory: str, index_dir: Path | None = None) -> FolderScenes:
    """Open ``folder:DIR``; the layout is described above. `index_dir` is not needed here.

    Raises
    ------
    SceneSetError
        If it is no directory, has not that layout, or holds no usable scene.
    """
    root = Path(directory).expanduser()
    if not root.is_dir():
        raise SceneSetError(f"{root} is not a directory; give the one that holds images/ and instances/")
    return FolderScenes(root.resolve())
