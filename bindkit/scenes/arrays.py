"""Masks as arrays: NumPy's ``.npy`` and MATLAB's ``.mat``. Nothing in such a file is executed.

An array is [row, col] of whole numbers: integers or true and false, in ``.mat`` files also MATLAB's doubles where all
are whole. Arrays of objects, structs and cells are refused, and so are files that unpack to more than a mask may have.
"""

from __future__ import annotations

import io
import math
import zlib
from pathlib import Path
from typing import Literal

import numpy as np

from bindkit.errors import BrokenSceneError
from bindkit.scenes.decoding import StoredPixels, reading

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
