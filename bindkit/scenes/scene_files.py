"""The picture and the masks of one scene, read so that they lie on each other pixel by pixel."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bindkit.errors import BrokenSceneError
from bindkit.scenes.decoding import Header, read_header, read_stored, turned
from bindkit.scenes.mask_doubts import require_hard
from bindkit.scenes.masks import read_channels
from bindkit.scenes.reading_options import ReadingOptions

logger = logging.getLogger(__name__)

FITS_BOTH_WAYS = (
    "an EXIF orientation turns the picture, and the mask fits it both ways: read upright, as viewers show it "
    "(orientation=stored reads the pixels as stored; orientation=upright says that upright is right)"
)


@dataclass(frozen=True)
class MaskFile:
    """A mask and the kinds of file that it may be."""

    path: Path
    rgb: bool
    gray: bool = True


@dataclass(frozen=True)
class Aligned:
    """A picture and the values of its masks, of one size; and what there is to say about how they were read."""

    image: np.ndarray
    masks: tuple[np.ndarray, ...]
    remarks: tuple[str, ...]


def choose_orientation(files: Sequence[Header], paths: Sequence[Path], wish: str | None) -> tuple[bool, bool]:
    """Whether to read a picture and its masks, in this order, upright or as stored; and whether both would fit.

    Upright is preferred; where that does not fit, the masks were drawn on the pixels as stored.

    Raises
    ------
    BrokenSceneError
        If they are of different sizes.
    """
    ways = {"upright": True, "stored": False}
    fitting = [
        upright
        for name, upright in ways.items()
        if wish in (None, name) and len({file.size_when(upright) for file in files}) == 1
    ]
    orientations = [file.orientation for file in files]
    if fitting:
        return fitting[0], len(fitting) == 2 and len(set(orientations)) > 1
    sizes = [file.size_when(wish != "stored") for file in files]
    other = next(k for k, size in enumerate(sizes) if size != sizes[0])
    hint = ""
    if set(orientations) != {1}:
        hint = f" (EXIF orientation: image {orientations[0]}, mask {orientations[other]}; read {wish or 'either way'})"
    raise BrokenSceneError(
        f"{paths[other]}: the mask is {sizes[other][0]} x {sizes[other][1]} px but the image {paths[0]} is "
        f"{sizes[0][0]} x {sizes[0][1]} px (height x width); both must have the same size{hint}"
    )


class SceneReader:
    """Reads scenes by one set of options, and says once a thing that is to be said of many."""

    def __init__(self, options: ReadingOptions) -> None:
        self.options = options
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def read(self, picture: Path, masks: Sequence[MaskFile]) -> Aligned:
        """Read and align a picture and its masks. Raises BrokenSceneError."""
        options = self.options
        image = read_stored(picture, options.max_pixels)
        found = [read_channels(mask.path, mask.rgb, mask.gray, options.max_pixels) for mask in masks]
        paths = [picture, *(mask.path for mask in masks)]
        upright, doubtful = choose_orientation([image, *found], paths, options.orientation)
        if not options.soft:
            for mask, file in zip(found, masks, strict=True):
                require_hard(mask.pixels, file.path)
        remarks = (FITS_BOTH_WAYS,) if doubtful else ()
        self.say(remarks, picture)
        pixels, *values = (turned(file.pixels, file.orientation if upright else 1) for file in (image, *found))
        return Aligned(np.ascontiguousarray(pixels), tuple(values), remarks)

    def say(self, remarks: Sequence[str], path: Path) -> None:
        """Log each remark the first time that it comes up; `check_scenes` names all scenes that it is true of."""
        for remark in remarks:
            with self._lock:
                is_new = remark not in self._said
                self._said.add(remark)
            if is_new:
                logger.warning("%s: %s; said once, check_scenes names all such scenes", path, remark)

    def size_of(self, picture: Path, masks: Sequence[Path]) -> tuple[int, int]:
        """(height, width) that `read` gives, from headers. Raises BrokenSceneError."""
        options = self.options
        header = read_header(picture, options.max_pixels)
        if header.size_when(upright=True) == header.size:
            return header.size
        headers = [header, *(read_header(mask, options.max_pixels) for mask in masks)]
        return header.size_when(choose_orientation(headers, [picture, *masks], options.orientation)[0])
