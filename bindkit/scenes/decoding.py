"""Picture files to upright RGB; whatever is wrong with a file becomes a BrokenSceneError that names it.

Pillow raises many different errors on damaged files, and lets a PNG with a flipped byte through; here every PNG's
checksums are verified first, so that a damaged mask is never taken for a good one. Its limit on pixels is replaced by
one that is checked before anything is decoded and says what it is.
"""

from __future__ import annotations

import io
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from bindkit.errors import BrokenSceneError

# 8-bit modes that convert to RGB without losing anything but transparency.
COLOUR_MODES = ("RGB", "L", "P", "RGBA", "LA", "PA", "CMYK", "YCbCr", "1")
MAX_PIXELS = 300_000_000
ORIENTATION_TAG = 0x0112
# How the parts of a PNG begin that may hold an orientation.
PNG_EXIF = re.compile(rb"eXIf|(tEXt|zTXt|iTXt)(Raw profile type exif|XML:com\.adobe\.xmp)")
# Of formats that hold several pictures; a telephone's MPO holds one picture and its previews.
SEVERAL = ("GIF", "PNG", "TIFF", "WEBP")

_limit_lock = threading.Lock()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn any error while a file is read into a BrokenSceneError with its path and the reason."""
    try:
        yield
    except BrokenSceneError:
        raise
    except FileNotFoundError as error:
        raise BrokenSceneError(f"{path}: the file is missing") from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them trip over
        reason = str(error).replace(f"{str(path)!r}", "")
        reason = re.sub(r" ?<[\w.]+ object at 0x[0-9a-fA-F]+>", "", reason).strip() or type(error).__name__
        raise BrokenSceneError(f"{path}: cannot be read ({reason}); the file is damaged or not an image") from error


def why_unusable(path: Path) -> str | None:
    """Why a file cannot possibly be read, judged without opening it; None if it is there and not empty."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return f"{path}: the file is missing"
    except OSError as error:
        return f"{path}: cannot be looked at ({error.strerror})"
    if not stat.S_ISREG(status.st_mode):
        return f"{path}: is not a file"
    return None if status.st_size else f"{path}: the file is empty"


def turned(pixels: np.ndarray, orientation: int, back: bool = False) -> np.ndarray:
    """Stored pixels as EXIF's orientation 1..8 shows them, or `back`: shown pixels as they are stored."""
    if back:
        orientation = {6: 8, 8: 6}.get(orientation, orientation)  # every other turn undoes itself
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


@dataclass(frozen=True)
class Header:
    """Size as stored, (height, width), and EXIF orientation of a file."""

    size: tuple[int, int]
    orientation: int

    def size_when(self, upright: bool) -> tuple[int, int]:
        """(height, width) of the pixels upright, or as stored."""
        return self.size[::-1] if upright and self.orientation >= 5 else self.size


@dataclass(frozen=True)
class StoredPixels(Header):
    """A file's pixels as stored: what a picture or a mask is before its EXIF orientation is looked at."""

    pixels: np.ndarray


@contextmanager
def _without_pillows_limit() -> Iterator[None]:
    # Pillow's limit is one for the whole process: held for as long as it is off, it is put back as it was.
    with _limit_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _open(source: Path | io.BytesIO, path: Path, max_pixels: int) -> Image.Image:
    with _without_pillows_limit():
        image = Image.open(source)
    if image.width * image.height > max_pixels:
        size = f"{image.height} x {image.width} px, {image.width * image.height:,} pixels"
        image.close()
        raise BrokenSceneError(
            f"{path}: is {size}, above the limit of {max_pixels:,}; make it smaller, or raise the limit where the "
            f"scenes are opened: folder:DIR,max_pixels=N (ade20k: too)"
        )
    return image


@contextmanager
def opened(content: bytes, path: Path, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """The image that the bytes of a file hold, verified and not yet decoded. Raises BrokenSceneError."""
    with reading(path):
        if not content:
            raise BrokenSceneError(f"{path}: the file is empty")
        with _open(io.BytesIO(content), path, max_pixels) as image:
            if image.format == "PNG":
                image.verify()
        with _open(io.BytesIO(content), path, max_pixels) as image:
            n_frames = getattr(image, "n_frames", 1) if image.format in SEVERAL else 1
            if n_frames > 1:
                raise BrokenSceneError(f"{path}: holds {n_frames} pictures; give a file of one")
            yield image


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # EXIF data that cannot be read: viewers show such a picture as stored
        return 1
    return found if found in range(1, 9) else 1


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Pillow gives some TIFF files the size that they are turned to on loading."""
    if image.format == "TIFF":
        return image.tag_v2[257], image.tag_v2[256]  # type: ignore[attr-defined]
    return image.height, image.width


def _png_has_exif(path: Path) -> bool:
    """Whether an orientation may stand anywhere in a PNG, behind the pixels too."""
    with path.open("rb") as stream:
        stream.seek(8)
        while len(head := stream.read(8)) == 8:
            length = int.from_bytes(head[:4], "big")
            if PNG_EXIF.match(head[4:] + stream.read(min(length, 24))):
                return True
            stream.seek(max(0, length - 24) + 4, io.SEEK_CUR)
    return False


def read_header(path: Path, max_pixels: int = MAX_PIXELS) -> Header:
    """Size and orientation, without decoding. Raises BrokenSceneError."""
    with reading(path), _open(path, path, max_pixels) as image:
        # Asked for its EXIF data, a PNG is decoded to its end.
        needless = image.format == "PNG" and not _png_has_exif(path)
        return Header(_stored_size(image), 1 if needless else _orientation(image))


def decoded(image: Image.Image, mode: str | None = None) -> StoredPixels:
    """Decode an opened image, and convert it to a mode if one is given; bits are as Pillow gives them."""
    size = _stored_size(image)
    if image.format == "TIFF":  # which Pillow asks for its limit once more, and turns, while it loads
        orientation = _orientation(image)
        with _without_pillows_limit():
            image.load()
    else:
        image.load()
        orientation = _orientation(image)  # not before: a PNG would be loaded then, and what is wrong with it lost
    pixels = np.array(image if mode in (None, image.mode) else image.convert(mode))
    return StoredPixels(size, orientation, turned(pixels, orientation, back=True) if image.format == "TIFF" else pixels)


def read_stored(path: Path, max_pixels: int = MAX_PIXELS, content: bytes | None = None) -> StoredPixels:
    """Read a picture as RGB without turning it. Raises BrokenSceneError as `read_image`."""
    with reading(path):
        content = path.read_bytes() if content is None else content
    with opened(content, path, max_pixels) as image:
        if image.mode not in COLOUR_MODES:
            raise BrokenSceneError(f"{path}: a picture of mode {image.mode}; expected 8 bits a channel, so convert it")
        return decoded(image, "RGB")


def read_image(path: Path, max_pixels: int = MAX_PIXELS, content: bytes | None = None) -> np.ndarray:
    """Read a picture of any colour mode as RGB, upright as its EXIF data say and as every viewer shows it.

    Transparency is dropped; of 16 bits a colour channel the upper 8 are taken.

    Parameters
    ----------
    path : Path
        Of the file.
    max_pixels : int
        Larger pictures are refused before they are decoded.
    content : bytes, optional
        Of the file, where they are at hand; `path` then only names it.

    Returns
    -------
    uint8 array of shape (height, width, 3)

    Raises
    ------
    BrokenSceneError
        If the file is missing, damaged, too large, of several pictures, or of a mode that does not convert to RGB.
    """
    stored = read_stored(path, max_pixels, content)
    return np.ascontiguousarray(turned(stored.pixels, stored.orientation))
