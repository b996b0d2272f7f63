"""Read pickles of plain containers, strings and numpy arrays, and nothing else.

A pickle is a program: loading one runs whatever it names. Here only the names below are admitted, and even those
stand for inert code of this module, so that a pickle reaches neither numpy nor anything else. Numbers of arrays are
not kept (in ADE20K's index they are 780 MB that nobody needs); arrays of text become lists.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bindkit.errors import SceneSetError, UnsafePickleError


class SkippedArray:
    """What is left of a numpy array: its text as a list, or nothing where it held numbers."""

    __slots__ = ("text",)

    def __init__(self) -> None:
        self.text: list[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 5 and isinstance(state[2], _Dtype):
            self.text = state[2].texts(state[4])


class _Dtype:
    """A numpy dtype as far as text needs it: its code, such as ``U12``, and its byte order."""

    __slots__ = ("big_endian", "code")

    def __init__(self, code: Any) -> None:
        self.code = code if isinstance(code, str) else ""
        self.big_endian = False

    def __setstate__(self, state: Any) -> None:
        self.big_endian = isinstance(state, tuple) and len(state) > 1 and state[1] == ">"

    def texts(self, content: Any) -> list[Any] | None:
        """Elements of an array with this dtype, if they are text or objects; else None."""
        if self.code.startswith("O"):
            return list(content) if isinstance(content, list) else None
        kind, digits = self.code[:1], self.code[1:]
        if kind not in ("U", "S") or not digits.isdecimal() or not isinstance(content, bytes | bytearray):
            return None
        width = int(digits) * (4 if kind == "U" else 1)
        encoding = "latin-1" if kind == "S" else "utf-32-be" if self.big_endian else "utf-32-le"
        items = [content[start : start + width] for start in range(0, len(content), max(1, width))]
        return [bytes(item).decode(encoding).rstrip("\0") for item in items]


class _Admitted:
    """A callable without attributes that a pickle could change."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> Any:
        raise NotImplementedError


class _MakeArray(_Admitted):
    __slots__ = ()

    def __call__(self, *arguments: Any) -> SkippedArray:
        return SkippedArray()


class _MakeDtype(_Admitted):
    __slots__ = ()

    def __call__(self, *arguments: Any) -> _Dtype:
        return _Dtype(arguments[0] if arguments else "")


class _MakeScalar(_Admitted):
    __slots__ = ()

    def __call__(self, *arguments: Any) -> Any:
        dtype, content = arguments if len(arguments) == 2 else (None, None)
        found = dtype.texts(content) if isinstance(dtype, _Dtype) else None
        return found[0] if found else None


class _MakeArrayFromBuffer(_Admitted):
    __slots__ = ()

    def __call__(self, *arguments: Any) -> SkippedArray:
        array = SkippedArray()
        if len(arguments) > 1 and isinstance(arguments[1], _Dtype):
            array.text = arguments[1].texts(arguments[0])
        return array


class _Encode(_Admitted):
    __slots__ = ()

    def __call__(self, *arguments: Any) -> bytes:
        if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError("only latin-1 bytes are read")
        return arguments[0].encode("latin-1")


def _admitted() -> dict[tuple[str, str], Callable[..., Any] | str]:
    names: dict[tuple[str, str], Callable[..., Any] | str] = {
        ("numpy", "ndarray"): "ndarray",
        ("numpy", "dtype"): _MakeDtype(),
        ("_codecs", "encode"): _Encode(),
        ("collections", "OrderedDict"): dict,
    }
    for module in ("builtins", "__builtin__"):
        for container in (set, frozenset, bytearray):
            names[module, container.__name__] = container
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray", "_reconstruct"] = _MakeArray()
        names[f"{core}.multiarray", "scalar"] = _MakeScalar()
        names[f"{core}.numeric", "_frombuffer"] = _MakeArrayFromBuffer()
    return names


ADMITTED = _admitted()


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
    """Load a pickle that holds nothing but plain containers, strings, numbers and numpy arrays.

    Returns
    -------
    object
        Arrays inside it are `SkippedArray`.

    Raises
    ------
    UnsafePickleError
        If it names anything else; nothing of it is executed.
    SceneSetError
        If it is damaged.
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
