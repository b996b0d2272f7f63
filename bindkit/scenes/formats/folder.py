"""``folder:`` scenes: any images with instance masks, in a plain folder layout.

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
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

from PIL import Image

from bindkit.errors import SceneSetError
from bindkit.files import parse_json
from bindkit.scenes.decoding import ARRAY_SUFFIXES, Header, StoredPixels, read_array, why_unusable
from bindkit.scenes.reading import FileScenes, ReadingOptions, split_directory
from bindkit.scenes.scene import OFFICIAL_SPLITS, BrokenScene, Scene

LOSSLESS = (".png", ".tif", ".tiff", ".bmp")
MASK_SUFFIXES = (*LOSSLESS, *ARRAY_SUFFIXES)
SUFFIXES = (*LOSSLESS, ".jpg", ".jpeg", ".jfif", ".webp", ".gif")
OWN_OPTIONS = {"variable": (r"[A-Za-z]\w{0,62}", "which variable of .mat files is the mask, default the only one")}
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
    return FolderScenes(root.resolve(), ReadingOptions.parse(items, own=OWN_OPTIONS))
