"""A digest of what a class of one's own computes, so that a fit is not taken for one of a class since rewritten.

What counts is the code that runs, not its text: a cell that was changed but not run has changed nothing, and comments
never do. Two runs of Python give one digest; another version of Python may give another, and the fit is made again.
"""

from __future__ import annotations

import dis
import hashlib
import logging
import site
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

_SAID_ELSEWHERE = {
    *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__firstlineno__"),
    *("__static_attributes__", "__abstractmethods__", "__parameters__", "__orig_bases__", "_abc_impl", "kind"),
}
"""Attributes of a class that are not what it computes, or that Python makes from those that are."""

_PLAIN = (bool, int, float, complex, str, bytes, range, type(None), type(...), torch.dtype, torch.device, np.generic)


class _CannotSayError(Exception):
    """A value of which nobody can say whether it is the same in the next run."""


def class_digest(described: type) -> str | None:
    """Digest of a class: the code of its functions, their constants and defaults, and what they use.

    Followed are base classes, closures, and the functions, classes and values that the code reads as globals. Of
    modules, and of what comes from Python itself, from other installed packages and from bindkit, only the name counts.

    Returns
    -------
    str or None
        None where it depends on a value that cannot be compared across runs, such as an object of a class of one's own.

    Examples
    --------
    ::

        before = class_digest(PROBES["mine"])
        # ... the notebook's cell with the class Mine is changed and run again ...
        assert class_digest(PROBES["mine"]) != before
    """
    try:
        parts = "\n".join(_Reader(_package(described.__module__)).of(described))
    except _CannotSayError:
        return None
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def _package(module: str | None) -> str:
    return (module or "builtins").partition(".")[0]


@cache
def _installed_in() -> tuple[Path, ...]:
    own = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return tuple(Path(place).resolve() for place in {*own, *site.getsitepackages(), site.getusersitepackages()})


@cache
def is_own(module: str | None) -> bool:
    """Whether a module is somebody's own code: not Python's, not an installed package's, not bindkit's."""
    package = _package(module)
    if package == "__main__":
        return True
    if package == "bindkit" or package in sys.builtin_module_names or package in sys.stdlib_module_names:
        return False
    file = getattr(sys.modules.get(package), "__file__", None)
    return file is None or not any(Path(file).resolve().is_relative_to(place) for place in _installed_in())


class _Reader:
    """Walks what a class is made of; its package's and somebody's own things are looked into, others are only named."""

    def __init__(self, home: str) -> None:
        self.home = home
        self.seen: dict[int, int] = {}
        self.kept: list[Any] = []  # so that no address is given to another object meanwhile

    def of(self, value: Any) -> Iterator[str]:
        """Lines that say what a value is, the same in every run."""
        if isinstance(value, _PLAIN):
            yield f"{type(value).__name__} {value!r}"
        elif isinstance(value, types.ModuleType):
            yield f"module {value.__name__}"
        elif isinstance(value, (frozenset, set)):
            yield f"set {sorted(' '.join(self.of(item)) for item in value)}"
        elif isinstance(value, torch.Tensor):
            content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            yield f"tensor {value.dtype} {tuple(value.shape)} {_bytes_digest(content)}"
        elif isinstance(value, np.ndarray) and value.dtype != object:
            yield f"array {value.dtype} {value.shape} {_bytes_digest(value)}"
        elif isinstance(value, logging.Logger):
            yield f"logger {value.name}"
        elif isinstance(value, tuple):
            # Not among those seen: whether equal ones are one object is up to the interpreter.
            yield f"tuple {len(value)}"
            for item in value:
                yield from self.of(item)
        elif id(value) in self.seen:
            yield f"again {self.seen[id(value)]}"
        else:
            self.seen[id(value)] = len(self.seen)
            self.kept.append(value)
            yield from self._compound(value)

    def _compound(self, value: Any) -> Iterator[str]:
        if isinstance(value, type):
            yield from self._class(value)
        elif isinstance(value, types.CodeType):
            yield f"code {value.co_code.hex()} {value.co_names} {value.co_varnames} {value.co_freevars}"
            yield f"{value.co_argcount} {value.co_posonlyargcount} {value.co_kwonlyargcount} {value.co_flags}"
            yield from self.of(value.co_consts)
        elif isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, list):
            yield f"list {len(value)}"
            for item in value:
                yield from self.of(item)
        elif isinstance(value, Mapping):
            yield f"mapping {len(value)}"
            for key, item in value.items():
                yield from self.of(key)
                yield from self.of(item)
        elif isinstance(value, (staticmethod, classmethod)):
            yield type(value).__name__
            yield from self.of(value.__func__)
        elif isinstance(value, property):
            yield "property"
            yield from self.of((value.fget, value.fset, value.fdel))
        elif self._is_named(value):
            yield f"{value.__module__} {value.__qualname__}"
        else:
            raise _CannotSayError

    def _class(self, described: type) -> Iterator[str]:
        yield f"class {described.__qualname__}"
        if not self._looks_into(described.__module__):
            yield described.__module__
            return
        yield from self.of(described.__bases__)
        for name, value in sorted(vars(described).items()):
            if name not in _SAID_ELSEWHERE:
                yield name
                yield from self.of(value)

    def _function(self, function: types.FunctionType) -> Iterator[str]:
        if not self._looks_into(function.__globals__.get("__name__")):
            # What another package wraps around one's own function.
            yield f"{function.__globals__.get('__name__')} {function.__code__.co_qualname}"
            if (wrapped := getattr(function, "__wrapped__", None)) is not None:
                yield from self.of(wrapped)
            return
        yield "function"
        yield from self.of(function.__code__)
        yield from self.of((function.__defaults__, function.__kwdefaults__))
        for cell in function.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:
                yield "empty"
            else:
                yield from self.of(content)
        for name in sorted(_globals_read(function.__code__)):
            if name in function.__globals__:
                yield name
                yield from self.of(function.__globals__[name])

    def _looks_into(self, module: str | None) -> bool:
        return is_own(module) or _package(module) == self.home

    def _is_named(self, value: Any) -> bool:
        """Whether it is something of a package that its name describes: a builtin, a compiled function, a type hint."""
        module = getattr(value, "__module__", None)
        return callable(value) and hasattr(value, "__qualname__") and not self._looks_into(module)


def _globals_read(code: types.CodeType) -> set[str]:
    """Names that a function and those inside it read as globals."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inner = [_globals_read(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return names.union(*inner)


def _bytes_digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
