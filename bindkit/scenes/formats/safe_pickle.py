"""Read pickles of plain containers, strings and numpy arrays, and nothing else.

A pickle is a program: loading one runs whatever it names. Here only the names in `ADMITTED` are taken, and even those
stand for inert code of this module, so that a pickle reaches neither numpy nor anything else. Numbers of arrays are not
kept (in ADE20K's index they are 780 MB that nobody needs); arrays of text become lists.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bindkit.errors import SceneSetError, UnsafePickleError


class _Dtype:
    """A numpy dtype as far as text needs it: its code, such as ``U12``, and its byte order."""

    __slots__ = ("big_endian", "code")

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code if isinstance(code, str) else ""
        self.big_endian = False

    def __setstate__(self, state: Any) -> None:
        self.big_endian = isinstance(state, tuple) and len(state) > 1 and state[1] == ">"


def _texts(dtype: Any, content: Any) -> list[Any] | None:
    """Elements of an array with this dtype, if they are text or objects; else None."""
    if not isinstance(dtype, _Dtype):
        return None
    if dtype.code.startswith("O"):
        return list(content) if isinstance(content, list) else None
    kind, digits = dtype.code[:1], dtype.code[1:]
    if kind not in ("U", "S") or not digits.isdecimal() or not isinstance(content, bytes | bytearray):
        return None
    width = int(digits) * (4 if kind == "U" else 1)
    encoding = "latin-1" if kind == "S" else "utf-32-be" if dtype.big_endian else "utf-32-le"
    items = [content[start : start + width] for start in range(0, len(content), max(1, width))]
    return [bytes(item).decode(encoding).rstrip("\0") for item in items]


class SkippedArray:
    """What is left of a numpy array: its text as a list, or None where it held numbers."""

    __slots__ = ("text",)

    def __init__(self, text: list[Any] | None = None) -> None:
        self.text = text

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 5:  # version, shape, dtype, order, content
            self.text = _texts(state[2], state[4])


class _Inert(NamedTuple):
    """Is called in place of something of numpy's; a tuple, so that a pickle can change nothing of it."""

    make: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.make(*arguments)


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("only latin-1 bytes are read")
    return text.encode("latin-1")


_ARRAY = _Inert(lambda *_: SkippedArray())
_BUFFER = _Inert(lambda content, dtype, *_: SkippedArray(_texts(dtype, content)))
_SCALAR = _Inert(lambda dtype, content=None: (_texts(dtype, content) or [None])[0])
_CORES = ("numpy.core", "numpy._core")
ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _Inert(_Dtype),
    **{(f"{core}.multiarray", "_reconstruct"): _ARRAY for core in _CORES},
    **{(f"{core}.multiarray", "scalar"): _SCALAR for core in _CORES},
    **{(f"{core}.numeric", "_frombuffer"): _BUFFER for core in _CORES},
    ("_codecs", "encode"): _Inert(_encode),
    ("collections", "OrderedDict"): dict,
    **{(home, kind.__name__): kind for home in ("builtins", "__builtin__") for kind in (set, frozenset, bytearray)},
}


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, stream: Any, path: Path) -> None:
        super().__init__(stream)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise UnsafePickleError(
                f"{self._path} asks for {module}.{name}, but an index holds only plain containers, strings and numpy "
                f"arrays; nothing of it was executed. Do not open this file with pickle. Fetch the index anew from "
                f"the data set's own site, or remove it: the scenes are then found by their folders"
            )
        return ADMITTED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickleError(f"{self._path} refers to objects outside itself; nothing of it was executed")


def plain(value: Any) -> Any:
    """The value itself, or the list of texts of an array that was skipped (None if it held numbers)."""
    return value.text if isinstance(value, SkippedArray) else value


def load_plain_pickle(path: Path) -> Any:
    """What a pickle holds, its arrays as `SkippedArray`.

    Raises UnsafePickleError if it names anything that is not admitted (nothing of it is executed), SceneSetError if it
    is damaged.
    """
    try:
        with path.open("rb") as stream:
            return _PlainUnpickler(stream, path).load()
    except UnsafePickleError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to spell
        raise SceneSetError(
            f"{path} is damaged and cannot be read ({error or type(error).__name__}). Fetch it anew, or remove it: "
            f"the scenes are then found by their folders"
        ) from error
