"""How scenes in files are read: options behind a directory, and masks that lie on their pictures pixel by pixel.

Also what the content of a mask says against it. Smoothing and JPEG turn the sharp step from one id to another into a
ramp of ids in between, which belong to nothing; in masks as they are drawn, steps are sharp but for chance and for
objects a pixel wide.

Of data sets that list their scenes, by a file or by folders (`ListedScenes`), a format says what its directory holds,
lists its scenes and reads labels out of their masks. No path that a file of the data set names is followed out of the
data set. (A link in it is its owner's, and followed.)
"""

from __future__ import annotations

import importlib
import logging
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from scipy import ndimage

from bindkit.errors import BrokenSceneError, InvalidParameterError, SceneSetError
from bindkit.scenes.decoding import (
    MAX_PIXELS,
    Header,
    StoredPixels,
    ids_of,
    numbered,
    read_channels,
    read_header,
    read_stored,
    turned,
    why_unusable,
)
from bindkit.scenes.scene import OFFICIAL_SPLITS, BrokenScene, Scene, SceneSequence

logger = logging.getLogger(__name__)

OPTIONS = {
    "max_pixels": f"pixels of the largest picture that is read, default {MAX_PIXELS}",
    "orientation": "upright | stored: how pictures with an EXIF orientation lie on their masks, default upright unless "
    "only the pixels as stored have the mask's size",
    "soft": "allow: read masks that look smoothed, which are refused by default",
    "void": "ids that mean unlabelled, such as 255 or 254+255, default none",
}
VALUES = {
    "max_pixels": "[1-9][0-9]{0,14}",
    "orientation": "upright|stored",
    "soft": "allow",
    "void": r"[0-9]{1,15}(\+[0-9]{1,15})*",
}
FIXED_MASKS = ("max_pixels", "orientation", "soft")
"""Options of the formats that say themselves what their masks mean."""

# Pixels between the ids on both their sides, for each step from one id to another. Drawn masks (crowds, lines, cells,
# ADE20K, made smaller by nearest neighbour too) have 0 to 0.08; smoothed ones and JPEG from 0.12 on, mostly 0.3.
MOST_BETWEEN = 0.1
# Of larger masks only every other, third ... row and column is looked at: it takes long otherwise.
ENOUGH_LINES = 200
# What borders are painted with: white, of 8 and 16 bits, gray and in colours; VOC's border colour.
BORDER_VALUES = (2**8 - 1, 2**16 - 1, 2**24 - 1, 2**48 - 1, 0xC0E0E0)
THIN_BORDER = "a thin border of value {0} around objects is read as an object: void={0} reads it as unlabelled"
FITS_BOTH_WAYS = (
    "an EXIF orientation turns the picture, and the mask fits it both ways: read upright, as viewers show it "
    "(orientation=stored reads the pixels as stored; orientation=upright says that upright is right)"
)


def split_directory(text: str, base: Path = Path()) -> tuple[str, list[str]]:
    """Part a directory from the options behind it; a directory may have commas and "=" in its name."""
    pieces = text.split(",")
    n_options = next((n for n, piece in enumerate(reversed(pieces[1:])) if "=" not in piece), len(pieces) - 1)
    for end in range(len(pieces), len(pieces) - n_options - 1, -1):
        directory = ",".join(pieces[:end])
        if (base / Path(directory).expanduser()).is_dir():
            return directory, pieces[end:]
    end = len(pieces) - n_options
    return ",".join(pieces[:end]), pieces[end:]


@dataclass(frozen=True)
class ReadingOptions:
    """How the files of a scene are read; the fields are described in `OPTIONS`."""

    max_pixels: int = MAX_PIXELS
    orientation: str | None = None
    soft: bool = False
    void: tuple[int, ...] = ()
    own: Mapping[str, str] = field(default_factory=dict)
    """Options of one format alone, as they were written."""

    @classmethod
    def parse(
        cls,
        items: Sequence[str],
        known: Sequence[str] = tuple(OPTIONS),
        own: Mapping[str, tuple[str, str]] | None = None,
    ) -> ReadingOptions:
        """Read ``NAME=VALUE`` items; `own` are a format's, each with a pattern and what it means.

        Raises InvalidParameterError that lists the known options.
        """
        table = {name: (VALUES[name], OPTIONS[name]) for name in known} | dict(own or {})
        values: dict[str, str] = {}
        for item in items:
            name, _, value = item.strip().partition("=")
            if name not in table or name in values or not re.fullmatch(table[name][0], value):
                fault = "is given twice" if name in values else "is not understood"
                listed = "; ".join(f"{option}: {meaning}" for option, (_, meaning) in table.items())
                raise InvalidParameterError(f"scenes in files: {name}={value} {fault}; the options are {listed}")
            values[name] = value
        void = tuple(sorted({int(number) for number in re.findall("[0-9]+", values.get("void", ""))}))
        others = {name: values[name] for name in own or () if name in values}
        return cls(int(values.get("max_pixels", MAX_PIXELS)), values.get("orientation"), "soft" in values, void, others)

    def __str__(self) -> str:
        """What stands behind the directory in a normalised URI: the options that are not at their default, in order."""
        return (
            (f",max_pixels={self.max_pixels}" if self.max_pixels != MAX_PIXELS else "")
            + (f",orientation={self.orientation}" if self.orientation else "")
            + (",soft=allow" if self.soft else "")
            + (f",void={'+'.join(map(str, self.void))}" if self.void else "")
            + "".join(f",{name}={value}" for name, value in self.own.items())
        )


def _steps(channels: np.ndarray) -> tuple[np.ndarray, int, np.ndarray]:
    """Ids of some rows, how often they change along them, and those of pixels whose values lie between both sides'."""
    ids = channels if channels.ndim == 2 else ids_of(channels)
    changes = ids[:, 1:] != ids[:, :-1]
    rows, cols = np.divmod(np.flatnonzero(changes[:, 1:] & changes[:, :-1]), max(1, ids.shape[1] - 2))
    before, middle, after = (channels[rows, cols + k] for k in range(3))
    lies_between = (np.minimum(before, after) <= middle) & (middle <= np.maximum(before, after))
    if channels.ndim == 3:
        lies_between = lies_between.all(axis=1)
    return ids, int(np.count_nonzero(changes)), ids[rows[lies_between], cols[lies_between] + 1]


def require_hard(channels: np.ndarray, path: Path) -> None:
    """Raise BrokenSceneError if a mask was smoothed; `channels` as `read_channels` gives them."""
    every = 1 + min(channels.shape[:2]) // ENOUGH_LINES
    lines = [channels[::every], np.ascontiguousarray(channels[:, ::every].swapaxes(0, 1))]
    ids, n_changes, between = zip(*map(_steps, lines), strict=True)
    middle = np.concatenate(between)
    most = MOST_BETWEEN * sum(n_changes)
    if len(middle) <= most:
        return
    found, counts = np.unique(middle, return_counts=True)
    top = int(counts.argmax())
    # One id that by itself lies between others is an outline, drawn around objects: no sign of smoothing.
    n_pixels = sum(np.count_nonzero(part == found[top]) for part in ids) / 2
    if counts[top] > 0.5 * len(middle) and counts[top] > 0.1 * n_pixels and len(middle) - counts[top] <= most:
        return
    raise BrokenSceneError(
        f"{path}: a mask that looks smoothed: it has {len(np.unique(ids_of(channels)))} ids, of which {len(found)} or "
        f"more lie at borders, between the ids on both sides, as resizing with smoothing or JPEG leaves them. Make it "
        f"anew with nearest neighbour, as PNG; if it is right as it is, add soft=allow behind the directory"
    )


def border_value(ids: np.ndarray) -> int | None:
    """The value of a thin border around the objects that is usually none itself, such as 255; None without one."""
    value = int(ids.max(initial=0))
    if value not in BORDER_VALUES or (ids == value - 1).any():
        return None
    border = ids == value
    inside = ndimage.binary_erosion(border, iterations=3)
    beside = ndimage.binary_dilation(border) & ~border
    others, touched = (np.setdiff1d(part, [0, value]) for part in (ids, ids[beside]))
    thin = 2 * np.count_nonzero(inside) <= np.count_nonzero(border)
    return value if thin and len(others) and 2 * len(touched) >= len(others) else None


def choose_orientation(files: Sequence[Header], paths: Sequence[Path], wish: str | None) -> tuple[bool, bool]:
    """Whether to read a picture and its masks, in this order, upright; and whether they would fit as stored, too.

    Upright is preferred; where that does not fit, the masks were drawn on the pixels as stored.
    """
    ways = [name == "upright" for name in ("upright", "stored") if wish in (None, name)]
    fitting = [upright for upright in ways if len({file.size_when(upright) for file in files}) == 1]
    orientations = [file.orientation for file in files]
    if fitting:
        return fitting[0], len(fitting) == 2 and len(set(orientations)) > 1
    sizes = [file.size_when(wish != "stored") for file in files]
    other = next(k for k, size in enumerate(sizes) if size != sizes[0])
    turns = f" (EXIF orientation: image {orientations[0]}, mask {orientations[other]}; read {wish or 'either way'})"
    raise BrokenSceneError(
        f"{paths[other]}: the mask is {sizes[other][0]} x {sizes[other][1]} px but the image {paths[0]} is "
        f"{sizes[0][0]} x {sizes[0][1]} px (height x width); both must have the same size"
        + (turns if set(orientations) != {1} else "")
    )


_saying = threading.Lock()
"""One for all sets, which then can be sent to other processes."""


class FileScenes(SceneSequence):
    """Base of the sets read from files: a subclass finds them, says a scene's `sources` and what its masks mean."""

    mask_kinds: tuple[tuple[str, ...], ...]
    """What each mask of a scene, in the order of its sources, may be: "gray" (or palette), "rgb"."""
    may_be_soft = True
    """Whether masks are pixels that somebody may have smoothed; not where they are drawn here."""

    def __init__(self, scheme: str, root: Path, options: ReadingOptions) -> None:
        self.root = root
        self.uri = f"{scheme}:{root.as_posix()}{options}"
        self.options = options
        self._said: set[str] = set()

    def require_usable(self, looked_for: str) -> None:
        """Say what was left out. Raises SceneSetError where nothing remains."""
        if not self.ids:
            reasons = "; ".join(scene.reason for scene in self.broken[:3])
            raise SceneSetError(
                f"{self.root} holds no usable scene: no {looked_for} ({len(self.broken)} broken: {reasons or 'none'})"
            )
        if self.broken:
            logger.warning("%s: scenes left out: %d; the first: %s", self.uri, len(self.broken), self.broken[0].reason)

    def __getitem__(self, position: int) -> Scene:
        position = self._position(position)
        image, values, remarks = self.read(position)
        instances, classes = self.labels(position, values)
        return Scene(self.ids[position], image, instances, classes, remarks)

    def labels(self, position: int, values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Instance and class ids out of the values of a scene's masks. Raises BrokenSceneError."""
        raise NotImplementedError

    def read_mask(self, position: int, number: int) -> StoredPixels:
        """Values of one mask, the first is number 0, as `read_channels` gives them. Raises BrokenSceneError."""
        kinds, path = self.mask_kinds[number], self.sources(position)[1 + number]
        return read_channels(path, "rgb" in kinds, "gray" in kinds, self.options.max_pixels)

    def mask_header(self, position: int) -> Header:
        """Size of the first mask, without decoding it. Raises BrokenSceneError."""
        return read_header(self.sources(position)[1], self.options.max_pixels)

    def read(self, position: int) -> tuple[np.ndarray, list[np.ndarray], tuple[str, ...]]:
        """Picture, values of its masks of the same size, and remarks on how they were read. Raises BrokenSceneError."""
        paths = self.sources(position)
        image = read_stored(paths[0], self.options.max_pixels)
        return self.laid(image, [self.read_mask(position, number) for number in range(len(paths) - 1)], paths)

    def laid(
        self, image: StoredPixels, masks: Sequence[StoredPixels], paths: Sequence[Path]
    ) -> tuple[np.ndarray, list[np.ndarray], tuple[str, ...]]:
        """Picture and masks turned so that they lie on each other, as `read`; `paths` name them, the picture first."""
        upright, doubtful = choose_orientation([image, *masks], paths, self.options.orientation)
        if self.may_be_soft and not self.options.soft:
            for mask, file in zip(masks, paths[1:], strict=True):
                require_hard(mask.pixels, file)
        if doubtful:
            self.say(FITS_BOTH_WAYS, paths[0])
        pixels, *values = (turned(file.pixels, file.orientation if upright else 1) for file in (image, *masks))
        return np.ascontiguousarray(pixels), values, (FITS_BOTH_WAYS,) if doubtful else ()

    def scene_of(
        self,
        position: int,
        image: np.ndarray,
        values: list[np.ndarray],
        remarks: tuple[str, ...],
        paths: Sequence[Path],
    ) -> Scene:
        """A scene of an instance mask and maybe a class mask whose values are ids, less those that mean unlabelled."""
        masks = [ids_of(channels) for channels in values]
        if self.options.void:
            unlabelled = np.any([np.isin(mask, self.options.void) for mask in masks], axis=0)
            masks = [np.where(unlabelled, 0, mask) for mask in masks]
        elif border := next(filter(None, map(border_value, masks)), None):
            remarks += (THIN_BORDER.format(border),)
            self.say(remarks[-1], paths[0])
        instances, *classes = (numbered(mask, path) for mask, path in zip(masks, paths, strict=True))
        return Scene(self.ids[position], image, instances, classes[0] if classes else np.zeros_like(instances), remarks)

    def say(self, remark: str, path: Path) -> None:
        """Log a remark the first time that it comes up; `check_scenes` names all scenes that it is true of."""
        with _saying:
            if remark in self._said:
                return
            self._said.add(remark)
        logger.warning("%s: %s; said once, check_scenes names all such scenes", path, remark)

    def size_of(self, position: int) -> tuple[int, int]:
        """``(height, width)`` in pixels, from headers only. Raises BrokenSceneError."""
        picture, mask = self.sources(position)[:2]
        header = read_header(picture, self.options.max_pixels)
        if header.size_when(upright=True) == header.size:
            return header.size
        headers = [header, self.mask_header(position)]
        return header.size_when(choose_orientation(headers, [picture, mask], self.options.orientation)[0])


SPLIT_FILES = dict(zip(OFFICIAL_SPLITS, ("train", "val"), strict=True))
"""Official split -> what most data sets call it in names of files and folders."""

LEADING_OUT = re.compile(r"(^|[/\\])(\.\.[/\\]|[A-Za-z]:)|(^|/)\\|\0")
"""In names: a part that goes up, a drive, a root of Windows, and what no system allows."""


@dataclass(frozen=True)
class Listed:
    """A scene as its data set lists it."""

    id: str
    files: tuple[Path, ...]
    """Picture, instance mask, and class mask if there is one."""
    split: str | None = None
    group: str | None = None
    """What it belongs to, such as a video."""
    reason: str | None = None
    """Why it cannot be used, where that is known already."""


def leads_out(path: Path, root: Path) -> str | None:
    """Why a path that a file of the data set names is not followed: on some system it leads out of `root`."""
    inner = f"{path.as_posix()}/".removeprefix(f"{root.as_posix()}/")
    if not inner.startswith("/") and not LEADING_OUT.search(inner):
        return None
    return f"{str(path)!r}: leads out of the data set {root}, and is not read; names are relative, without '..'"


def optional(module: str, extra: str) -> Any:
    """A library that one format alone needs. Raises SceneSetError with what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SceneSetError(
            f"{extra}: scenes need a library that is not there ({error}); run: pip install 'bindkit[{extra}]'"
        ) from error


def children(folder: Path) -> list[Path]:
    """What lies in a folder, by name, without hidden files; nothing where it is missing. Raises SceneSetError."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise SceneSetError(f"{folder} cannot be listed ({error.strerror}); check that you may read it") from error


def stems(*places: tuple[Path, str]) -> list[str]:
    """Names in any of several folders, each without the ending that files there have."""
    names = [(path.name, end) for folder, end in places for path in children(folder)]
    return sorted({name.removesuffix(end) for name, end in names if name.endswith(end)})


def lines_in(path: Path) -> list[str]:
    """Lines of a list of names that are not blank; none where it is missing. Raises SceneSetError."""
    try:
        text = path.read_text(encoding="utf-8-sig") if path.exists() else ""
    except (OSError, ValueError) as error:
        raise SceneSetError(f"{path} cannot be read ({error}); expected a name a line") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def find_dataset(directory: Path, inner: Sequence[str], what: str, hint: str) -> Path:
    """The directory given, or the single one inside it, that holds one of the `inner` folders. Raises SceneSetError."""
    if not directory.is_dir():
        raise SceneSetError(f"{directory} is not a directory; give the one that holds {what}")
    candidates = [directory, *filter(Path.is_dir, children(directory))]
    roots = [path for path in candidates if any((path / place).is_dir() for place in inner)]
    if directory in roots:
        return directory.resolve()
    if len(roots) == 1:
        return roots[0].resolve()
    if roots:
        names = ", ".join(path.name for path in roots)
        raise SceneSetError(f"{directory} holds several releases of {what} ({names}); give one of them")
    raise SceneSetError(
        f"{directory} holds no {what}: looked for {' and '.join(inner)} in it and in the directories in it. {hint}"
    )


class ListedScenes(FileScenes):
    """Base of the formats that list their scenes; a subclass fills in what is declared here."""

    scheme: ClassVar[str]
    what: ClassVar[str]
    """Name of the data set."""
    inner: ClassVar[tuple[str, ...]]
    """Folders of which its directory holds one at least."""
    layout: ClassVar[str]
    """How its files lie, in words."""
    own_options: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """Options of this format alone: name -> pattern of its value, and what it means."""
    known_options: ClassVar[tuple[str, ...]] = FIXED_MASKS

    def __init__(self, root: Path, options: ReadingOptions) -> None:
        super().__init__(self.scheme, root, options)
        self.take(self.listed())

    @classmethod
    def open(cls, directory: str, index_dir: Path | None = None) -> ListedScenes:
        """Open ``SCHEME:DIR,OPTIONS``: the data set's directory or the one that holds it. `index_dir` is not needed."""
        name, items = split_directory(directory)
        options = ReadingOptions.parse(items, cls.known_options, cls.own_options)
        return cls(find_dataset(Path(name).expanduser(), cls.inner, cls.what, f"Expected {cls.layout}"), options)

    def listed(self) -> Iterable[Listed]:
        """Every scene of the data set, in order."""
        raise NotImplementedError

    def take(self, listed: Iterable[Listed]) -> None:
        """Sort scenes into usable and broken ones. Raises SceneSetError where none can be used."""
        usable: dict[str, Listed] = {}
        broken: list[BrokenScene] = []
        for scene in listed:
            reasons = [scene.reason, *map(self._why_unusable, scene.files)]
            reason = next(filter(None, reasons), None)
            if scene.id in usable:
                reason = f"{scene.files[0]}: a second scene of this name, the first is {usable[scene.id].files[0]}"
            if reason:
                broken.append(BrokenScene(scene.id, reason))
            else:
                usable[scene.id] = scene
        kept = usable.values()
        self.ids, self.broken = tuple(usable), tuple(broken)
        self._files = tuple(scene.files for scene in kept)
        splits, groups = ([getattr(scene, name) for scene in kept] for name in ("split", "group"))
        self.official_splits = tuple(splits) if all(splits) else None
        self.groups = tuple(groups) if any(groups) else None
        self.require_usable(self.layout)

    def _why_unusable(self, path: Path) -> str | None:
        return leads_out(path, self.root) or why_unusable(path)

    def sources(self, position: int) -> tuple[Path, ...]:
        """Picture, instance mask and, where there is one, class mask."""
        return self._files[self._position(position)]


def in_both(pictures: Path, ending: str, masks: Path, mask_ending: str) -> Iterator[tuple[str, tuple[Path, Path]]]:
    """Name, picture and mask of all that lie in either of two folders."""
    for stem in stems((pictures, ending), (masks, mask_ending)):
        yield stem, (pictures / f"{stem}{ending}", masks / f"{stem}{mask_ending}")
