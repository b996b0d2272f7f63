"""Image and mask files to arrays; whatever is wrong with a file becomes a BrokenSceneError that names it.

Pillow raises many different errors on damaged files, and lets a PNG with a flipped byte through; here every PNG's
checksums are verified first, so that a damaged mask is never taken for a good one.
"""

from __future__ import annotations

import io
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from bindkit.errors import BrokenSceneError

# 8-bit modes that convert to RGB without losing anything but transparency.
COLOUR_MODES = ("RGB", "L", "P", "RGBA", "LA", "PA", "CMYK", "YCbCr", "1")
# Modes whose pixel values are label ids as they stand (of a palette image, the palette index).
LABEL_MODES = ("L", "P", "I", "I;16", "I;16B", "1")


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


def image_size(path: Path) -> tuple[int, int]:
    """``(height, width)`` in pixels from the header alone. Raises BrokenSceneError."""
    with reading(path), Image.open(path) as image:
        return image.height, image.width


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    with reading(path):
        content = path.read_bytes()
        if not content:
            raise BrokenSceneError(f"{path}: the file is empty")
        with Image.open(io.BytesIO(content)) as image:
            if image.format == "PNG":
                image.verify()
        with Image.open(io.BytesIO(content)) as image:
            yield image


def read_image(path: Path) -> np.ndarray:
    """Read an 8-bit image of any colour mode as RGB.

    Transparency is dropped. EXIF orientation is not applied: masks are drawn on the pixels as stored.

    Returns
    -------
    uint8 array of shape (height, width, 3)

    Raises
    ------
    BrokenSceneError
        If the file is missing, damaged, or not 8 bits a channel.
    """
    with _opened(path) as image:
        if image.mode not in COLOUR_MODES:
            raise BrokenSceneError(f"{path}: a picture of mode {image.mode}; expected 8 bits a channel, so convert it")
        return np.array(image.convert("RGB"), dtype=np.uint8)


def read_rgb_mask(path: Path) -> np.ndarray:
    """Read a mask that encodes its labels in the channels of an RGB file.

    Returns
    -------
    uint8 array of shape (height, width, 3)

    Raises
    ------
    BrokenSceneError
        If the file is missing, damaged, or of another mode than RGB.
    """
    with _opened(path) as image:
        if image.mode != "RGB":
            raise BrokenSceneError(f"{path}: a mask of mode {image.mode}; expected RGB")
        return np.array(image, dtype=np.uint8)


def read_label_mask(path: Path, rgb_ids: bool) -> np.ndarray:
    """Read a mask of label ids: gray of 8, 16 or 32 bits, or a palette image, whose palette indices count.

    Parameters
    ----------
    path : Path
        Of the mask.
    rgb_ids : bool
        Whether an RGB file is welcome; its ids are ``R + 256 G + 65536 B``, as in COCO's panoptic format, so that a
        mask that paints every object in a colour of its own works too (black = unlabelled).

    Returns
    -------
    int32 array of shape (height, width)

    Raises
    ------
    BrokenSceneError
        If the file is missing, damaged, or of a mode that holds no ids.
    """
    with _opened(path) as image:
        if image.mode == "RGB" and rgb_ids:
            channels = np.asarray(image, dtype=np.int32)
            return channels[..., 0] + 256 * channels[..., 1] + 65536 * channels[..., 2]
        if image.mode not in LABEL_MODES:
            wanted = "8- or 16-bit gray or palette" + (", or RGB" if rgb_ids else "")
            raise BrokenSceneError(f"{path}: a mask of mode {image.mode}; expected {wanted} without transparency")
        return np.array(image).astype(np.int32)


def require_same_size(mask: np.ndarray, mask_path: Path, image: np.ndarray, image_path: Path) -> None:
    """Raise BrokenSceneError, naming both files and sizes, if a mask does not cover its image pixel by pixel."""
    if mask.shape[:2] != image.shape[:2]:
        raise BrokenSceneError(
            f"{mask_path}: the mask is {mask.shape[0]} x {mask.shape[1]} px but the image {image_path} is "
            f"{image.shape[0]} x {image.shape[1]} px (height x width); both must have the same size"
        )
