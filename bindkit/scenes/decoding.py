"""Picture files to upright RGB, mask files to label ids; whatever is wrong with a file is a BrokenSceneError.

Pillow lets a PNG with a flipped byte through, so every PNG's checksums are verified first. Of masks, it scales small
gray values up, drops the lower half of 16-bit colours and hides what a TIFF means by its numbers, all without a word;
here the header says what a file holds, and what cannot be read to the last bit is refused.

Masks may also be arrays, NumPy's ``.npy`` and MATLAB's ``.mat``; nothing in such a file is executed. An array is
[row, col] of whole numbers: integers or true and false, in ``.mat`` files also MATLAB's doubles where all are whole.
Arrays of objects, structs and cells are refused, and so are files that unpack to more than a mask may have.
"""

from __future__ import annotations

import io
import math
import os
import re
import stat
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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

# Pillow's modes whose pixel values are label ids (of a palette image, the palette index).
LABEL_MODES = ("L", "P", "I", "I;16", "I;16B", "1")
# What Pillow multiplies gray values of few bits with, so that the highest is white.
GRAY_SCALE = {2: 85, 4: 17}
BMP_BITS = {("1", 1): 1, ("P", 1): 1, ("P", 4): 4, ("P", 8): 8, ("L", 8): 8, ("RGB", 24): 8}
LOSSLESS_TIFF = ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "lzma", "zstd")
HIGHEST_ID = 2**31 - 1

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


def why_unusable(path: Path | str) -> str | None:
    """Why a file cannot possibly be read, judged without opening it; None if it is there and not empty."""
    try:
        status = os.stat(path)  # noqa: PTH116 (of text too)
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
    """A picture or mask before its EXIF orientation is looked at."""

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
        image.close()
        raise BrokenSceneError(
            f"{path}: is {image.height} x {image.width} px, {image.width * image.height:,} pixels, above the limit of "
            f"{max_pixels:,}; make it smaller, or raise it behind the directory, as in folder:DIR,max_pixels=N"
        )
    return image


@contextmanager
def opened(path: Path, max_pixels: int, content: bytes | None = None) -> Iterator[tuple[Image.Image, bytes]]:
    """The image in a file, or in bytes that `path` only names, verified and not yet decoded; and the bytes."""
    with reading(path):
        content = path.read_bytes() if content is None else content
        if not content:
            raise BrokenSceneError(f"{path}: the file is empty")
        with _open(io.BytesIO(content), path, max_pixels) as image:
            if image.format == "PNG":
                image.verify()
        with _open(io.BytesIO(content), path, max_pixels) as image:
            n_frames = getattr(image, "n_frames", 1) if image.format in SEVERAL else 1
            if n_frames > 1:
                raise BrokenSceneError(f"{path}: holds {n_frames} pictures; give a file of one")
            yield image, content


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
    """Read a picture as RGB without turning it; where `content` is at hand, `path` only names it."""
    with opened(path, max_pixels, content) as (image, _):
        if image.mode not in COLOUR_MODES:
            raise BrokenSceneError(f"{path}: a picture of mode {image.mode}; expected 8 bits a channel, so convert it")
        return decoded(image, "RGB")


def read_image(path: Path, max_pixels: int = MAX_PIXELS, content: bytes | None = None) -> np.ndarray:
    """Read a picture of any colour mode as RGB uint8, upright as its EXIF data say and as every viewer shows it.

    Transparency is dropped; of 16 bits a colour channel the upper 8 are taken. Raises BrokenSceneError.
    """
    stored = read_stored(path, max_pixels, content)
    return np.ascontiguousarray(turned(stored.pixels, stored.orientation))


def _bits(image: Image.Image, content: bytes) -> int | str:
    """Bits a channel; or, as words, why the numbers in a file are no certain ids."""
    if image.format == "PNG":
        return content[24]
    if image.format == "BMP":
        place = 24 if content[14] == 12 else 28  # a header of OS/2, or one of the longer ones
        bits = int.from_bytes(content[place : place + 2], "little")
        # Pillow reads pixels of some bits as if they had those of the gray ramp that their palette is.
        return BMP_BITS.get((image.mode, bits), f"in a BMP file of {bits} bits a pixel and mode {image.mode}")
    if image.format != "TIFF":
        return f"saved as {image.format}, which may change ids"
    tags = image.tag_v2  # type: ignore[attr-defined]
    compression = image.info.get("compression", "raw")
    if compression not in LOSSLESS_TIFF:
        return f"in a TIFF file compressed by {compression}, which may change ids"
    bits, meaning = tags.get(258, (1,)), tags.get(262)
    channels = {1: 1, 2: 3, 3: 1}.get(meaning)
    if channels != len(bits) or len(set(bits)) > 1:
        return f"in a TIFF file of bits {bits} and photometric interpretation {meaning}"
    if channels == 3 and bits[0] != 8:
        return f"in a TIFF file of {bits[0]}-bit colours"
    little = content[:2] == b"II"
    if set(tags.get(339, (1,))) != {1} and not (bits[0] == 32 and (little or compression == "raw")):
        return f"in a TIFF file of {bits[0]}-bit numbers with a sign"
    return int(bits[0])


def read_channels(
    path: Path, rgb: bool, gray: bool = True, max_pixels: int = MAX_PIXELS, content: bytes | None = None
) -> StoredPixels:
    """Read a mask as its file holds it: gray values or palette indices [height, width], or colours [..., 3].

    Where `content` is at hand, `path` only names it.
    """
    with opened(path, max_pixels, content) as (image, whole):
        bits = _bits(image, whole)
        if isinstance(bits, str) or not ((image.mode == "RGB" and rgb) or (image.mode in LABEL_MODES and gray)):
            wanted = " or ".join(["8- or 16-bit gray or palette"] * gray + ["RGB"] * rgb)
            what = bits if isinstance(bits, str) else f"of mode {image.mode}"
            raise BrokenSceneError(
                f"{path}: a mask {what}; expected {wanted} without transparency, as PNG (or TIFF or BMP without loss)"
            )
        stored = decoded(image)
        pixels = stored.pixels
        if image.mode == "RGB" and bits == 16:
            with opened(path, max_pixels, whole) as (again, _):
                # Read as if its bytes stood the other way round, a PNG gives the lower byte in place of the upper.
                again.tile = [(*again.tile[0][:3], "RGB;16L")]  # type: ignore[attr-defined]
                pixels = pixels.astype(np.uint16) << 8 | decoded(again).pixels
        elif image.mode == "L" and bits in GRAY_SCALE:
            pixels = pixels // GRAY_SCALE[bits]
        return StoredPixels(stored.size, stored.orientation, pixels)


def ids_of(channels: np.ndarray) -> np.ndarray:
    """Label ids of a mask's values: of colours ``R + 256 G + 65536 B``, of 16-bit ones with 65536 in place of 256."""
    if channels.ndim == 2:
        return channels if channels.dtype == np.int64 else channels.astype(np.int32)
    base, dtype = (256, np.int32) if channels.dtype == np.uint8 else (65536, np.int64)
    red, green, blue = np.moveaxis(channels.astype(dtype), -1, 0)
    return red + base * green + base * base * blue


def of_8_bits(channels: np.ndarray, path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Red, green and blue as int32, of colours that have 8 bits a channel."""
    if channels.dtype != np.uint8:
        raise BrokenSceneError(f"{path}: a mask of 16 bits a channel; expected the data set's own, of 8")
    red, green, blue = (channels[..., channel].astype(np.int32) for channel in range(3))
    return red, green, blue


def numbered(ids: np.ndarray, path: Path) -> np.ndarray:
    """As int32: ids above its range are numbered anew, by size, with 0 staying 0."""
    if ids.size and ids.min() < 0:  # which is what gray values of 32 bits above the range look like
        raise BrokenSceneError(f"{path}: holds ids below 0 or above {HIGHEST_ID}; number them from 1")
    if ids.dtype == np.int32 or not ids.size or ids.max() <= HIGHEST_ID:
        return ids.astype(np.int32, copy=False)
    found, position = np.unique(ids, return_inverse=True)
    return (position.reshape(ids.shape) + (found[0] != 0)).astype(np.int32)


ARRAY_SUFFIXES = (".npy", ".mat")
NUMBERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "logical", "double", "single")
# Of version 5 of MATLAB's files: length of the header, of a tag, and the type of a compressed part.
_HEADER, _TAG, _COMPRESSED = 128, 8, 15
_CHUNK = 1 << 20


def read_array(path: Path, max_pixels: int, variable: str | None = None) -> StoredPixels:
    """The mask in a file. Raises BrokenSceneError."""
    with reading(path):
        if path.suffix.lower() == ".npy":
            # Mapped, so that a header that promises more than there is costs nothing; arrays of objects cannot be.
            return whole_numbers(np.lib.format.open_memmap(path, mode="r"), path, max_pixels)
        array = read_mat(path, max_pixels, variable)
        if array.dtype.kind == "f" and np.isfinite(array).all() and (array == array.astype(np.int64)).all():
            array = array.astype(np.int64)
        return whole_numbers(array, path, max_pixels)


def whole_numbers(array: np.ndarray, path: Path, max_pixels: int) -> StoredPixels:
    """A mask as int64, for `numbered` to look at; `path` names it. Raises BrokenSceneError for any other array."""
    if array.ndim != 2 or array.dtype.kind not in "iub" or not 0 < array.size <= max_pixels:
        raise BrokenSceneError(
            f"{path}: an array of {array.dtype} {list(array.shape)}; expected whole numbers [row, col], at most "
            f"{max_pixels:,} of them"
        )
    return StoredPixels(array.shape, 1, np.array(array, dtype=np.int64, order="C"))


def read_mat(path: Path, max_pixels: int, variable: str | None) -> np.ndarray:
    """The variable of a MATLAB file that is asked for, or its only matrix. Raises BrokenSceneError."""
    from scipy.io import loadmat, whosmat

    content = path.read_bytes()
    if content[:_HEADER].startswith(b"MATLAB 7.3") or content.startswith(b"\x89HDF"):
        raise BrokenSceneError(f"{path}: a MATLAB file of version 7.3; save it with -v7 or as .npy")
    if unpacked_bytes(content, most := 8 * max_pixels + _CHUNK) > most:
        raise BrokenSceneError(f"{path}: unpacks to more than {most:,} bytes, which no mask has")
    found = {name: (shape, kind) for name, shape, kind in whosmat(io.BytesIO(content))}
    fitting = [name for name, (shape, kind) in found.items() if len(shape) == 2 and kind in NUMBERS]
    chosen = [variable] if variable else fitting
    if len(chosen) != 1 or chosen[0] not in fitting:
        wanted = f"the variable {variable!r}" if variable else "a single variable"
        listed = ", ".join(f"{name} ({kind} {list(shape)})" for name, (shape, kind) in found.items()) or "none"
        raise BrokenSceneError(
            f"{path}: expected {wanted} of whole numbers [row, col] but it has {listed}; name it with variable=NAME "
            "behind the directory"
        )
    if math.prod(found[chosen[0]][0]) > max_pixels:
        raise BrokenSceneError(f"{path}: an array of {list(found[chosen[0]][0])}, above the limit of {max_pixels:,}")
    return loadmat(io.BytesIO(content), variable_names=chosen)[chosen[0]]


def unpacked_bytes(content: bytes, most: int) -> int:
    """How many bytes the packed parts of a MATLAB file of version 5 unpack to, counted to somewhat above `most`."""
    order: Literal["big", "little"] = "big" if content[126:128] == b"MI" else "little"
    place, n_bytes = _HEADER, 0
    while place + _TAG <= len(content):
        kind, length = (int.from_bytes(content[place + k : place + k + 4], order) for k in (0, 4))
        place += _TAG
        if kind == _COMPRESSED:
            unpacking, rest = zlib.decompressobj(), content[place : place + length]
            while rest and not unpacking.eof and n_bytes <= most:
                n_bytes += len(unpacking.decompress(rest, _CHUNK))
                rest = unpacking.unconsumed_tail
        place += length
    return n_bytes
