"""Mask files to label ids, with every bit that they hold.

Pillow scales small gray values up, drops the lower half of 16-bit colours and hides what a TIFF means by its numbers,
all without a word; here the header says what a file holds, and what cannot be read to the last bit is refused.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from bindkit.errors import BrokenSceneError
from bindkit.scenes.decoding import MAX_PIXELS, StoredPixels, decoded, opened, reading

# Pillow's modes whose pixel values are label ids (of a palette image, the palette index).
LABEL_MODES = ("L", "P", "I", "I;16", "I;16B", "1")
# What Pillow multiplies gray values of few bits with, so that the highest is white.
GRAY_SCALE = {2: 85, 4: 17}
BMP_BITS = {("1", 1): 1, ("P", 1): 1, ("P", 4): 4, ("P", 8): 8, ("L", 8): 8, ("RGB", 24): 8}
LOSSLESS_TIFF = ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "lzma", "zstd")
HIGHEST_ID = 2**31 - 1


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


def _decoded_ids(image: Image.Image, content: bytes, path: Path, bits: int) -> StoredPixels:
    """Pixels with every bit of theirs, [height, width] or [height, width, 3]."""
    stored = decoded(image)
    pixels = stored.pixels
    if image.mode == "RGB" and bits == 16:
        with opened(content, path, max_pixels=image.width * image.height) as again:
            # Read as if its bytes stood the other way round, a PNG gives the lower byte where it gave the upper one.
            again.tile = [(*again.tile[0][:3], "RGB;16L")]  # type: ignore[attr-defined]
            pixels = pixels.astype(np.uint16) << 8 | decoded(again).pixels
    elif image.mode == "L" and bits in GRAY_SCALE:
        pixels = pixels // GRAY_SCALE[bits]
    return StoredPixels(stored.size, stored.orientation, pixels)


def read_channels(path: Path, rgb: bool, gray: bool = True, max_pixels: int = MAX_PIXELS) -> StoredPixels:
    """Read a mask as its file holds it: gray values or palette indices [height, width], or colours [..., 3].

    Raises
    ------
    BrokenSceneError
        If the file is missing, damaged or too large, or holds no ids that are certain to the last bit.
    """
    with reading(path):
        content = path.read_bytes()
    with opened(content, path, max_pixels) as image:
        bits = _bits(image, content)
        if isinstance(bits, str) or not ((image.mode == "RGB" and rgb) or (image.mode in LABEL_MODES and gray)):
            wanted = " or ".join(["8- or 16-bit gray or palette"] * gray + ["RGB"] * rgb)
            what = bits if isinstance(bits, str) else f"of mode {image.mode}"
            raise BrokenSceneError(
                f"{path}: a mask {what}; expected {wanted} without transparency, as PNG (or TIFF or BMP without loss)"
            )
        return _decoded_ids(image, content, path, bits)


def ids_of(channels: np.ndarray) -> np.ndarray:
    """Label ids of a mask's values: of colours ``R + 256 G + 65536 B``, of 16-bit ones with 65536 in place of 256.

    Gives int32, or int64 where that is needed.
    """
    if channels.ndim == 2:
        return channels.astype(np.int32)
    if channels.dtype == np.uint8:
        channels = channels.astype(np.int32)
        return channels[..., 0] + 256 * channels[..., 1] + 65536 * channels[..., 2]
    channels = channels.astype(np.int64)
    return channels[..., 0] + (channels[..., 1] << 16) + (channels[..., 2] << 32)


def numbered(ids: np.ndarray, path: Path) -> np.ndarray:
    """As int32: ids above its range are numbered anew, by size, with 0 staying 0.

    Raises
    ------
    BrokenSceneError
        For ids below 0, which is what gray values of 32 bits above the range look like.
    """
    if ids.size and ids.min() < 0:
        raise BrokenSceneError(f"{path}: holds ids below 0 or above {HIGHEST_ID}; number them from 1")
    if ids.dtype == np.int32 or not ids.size or ids.max() <= HIGHEST_ID:
        return ids.astype(np.int32, copy=False)
    found, position = np.unique(ids, return_inverse=True)
    return (position.reshape(ids.shape) + (found[0] != 0)).astype(np.int32)
