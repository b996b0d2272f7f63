"""Digests of somebody's own code, by what it computes: of probes, and of backbones."""

from __future__ import annotations

import dis
import hashlib
import logging
import sys
import types
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

_NOT_COMPUTED = {
    *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__firstlineno__"),
    *("__static_attributes__", "__abstractmethods__", "__parameters__", "__orig_bases__", "_abc_impl", "kind"),
}
"""Attributes of a class that are not what it computes, or that Python makes from those that are."""

_PLAIN = (bool, int, float, complex, str, bytes, range, type(None), type(...), torch.dtype, torch.device, np.generic)


class _CannotSayError(Exception):
    """A value of which nobody can say whether it is the same in the next run."""


def code_digest(described: Any) -> str | None:
    """Digest of what a class or function of one's own computes, so that nothing is taken for one since rewritten.

    What counts is the code that runs, not its text (a cell that was changed but not run has changed nothing, comments
    never do): of functions, base classes, closures, and of what the code reads as globals. Of modules, and of what is
    Python's, bindkit's or another installed package's, the name counts. None where it depends on a value that cannot
    be compared across runs, such as an object of a class of one's own. Another version of Python may give another one.
    """
    try:
        parts = "\n".join(_told(described, _package(described.__module__), []))
    except _CannotSayError:
        return None
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def _package(module: str | None) -> str:
    return (module or "builtins").partition(".")[0]


@cache
def is_own(module: str | None) -> bool:
    """Whether a module is somebody's own code: not Python's, not an installed package's, not bindkit's."""
    package = _package(module)
    if package == "__main__":
        return True
    if package == "bindkit" or package in sys.builtin_module_names or package in sys.stdlib_module_names:
        return False
    file = getattr(sys.modules.get(package), "__file__", None)
    return file is None or not {"site-packages", "dist-packages"} & set(Path(file).resolve().parts)


def _told(value: Any, home: str, seen: list[Any]) -> Iterator[str]:
    """Lines that say what a value is, the same in every run; what is neither `home`'s nor somebody's own is named."""

    def each(*values: Any) -> Iterator[str]:
        for one in values:
            yield from _told(one, home, seen)

    def looked_into(module: str | None) -> bool:
        return is_own(module) or _package(module) == home

    module = getattr(value, "__module__", None)
    if isinstance(value, _PLAIN):
        yield f"{type(value).__name__} {value!r}"
    elif isinstance(value, types.ModuleType):
        yield f"module {value.__name__}"
    elif isinstance(value, logging.Logger):
        yield f"logger {value.name}"
    elif isinstance(value, (frozenset, set)):
        yield f"set {sorted(' '.join(each(item)) for item in value)}"
    elif isinstance(value, torch.Tensor):
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        yield f"tensor {value.dtype} {tuple(value.shape)} {hashlib.sha256(content.tobytes()).hexdigest()}"
    elif isinstance(value, np.ndarray) and value.dtype != object:
        yield f"array {value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    elif isinstance(value, tuple):
        # Not among those seen: whether equal ones are one object is up to the interpreter.
        yield f"tuple {len(value)}"
        yield from each(*value)
    elif any(value is one for one in seen):
        yield f"again {next(number for number, one in enumerate(seen) if one is value)}"
    else:
        seen.append(value)
        if isinstance(value, type):
            yield f"class {value.__qualname__}"
            if not looked_into(module):
                yield str(module)
                return
            yield from each(value.__bases__)
            for name, attribute in sorted(vars(value).items()):
                if name not in _NOT_COMPUTED:
                    yield name
                    yield from each(attribute)
        elif isinstance(value, types.CodeType):
            yield f"code {value.co_code.hex()} {value.co_names} {value.co_varnames} {value.co_freevars}"
            yield f"{value.co_argcount} {value.co_posonlyargcount} {value.co_kwonlyargcount} {value.co_flags}"
            yield from each(value.co_consts)
        elif isinstance(value, types.FunctionType):
            names = value.__globals__
            if not looked_into(names.get("__name__")):
                # What another package wraps around one's own function.
                yield f"{names.get('__name__')} {value.__code__.co_qualname}"
                if hasattr(value, "__wrapped__"):
                    yield from each(value.__wrapped__)
                return
            yield "function"
            yield from each(value.__code__, (value.__defaults__, value.__kwdefaults__))
            for cell in value.__closure__ or ():
                try:
                    yield from each(cell.cell_contents)
                except ValueError:
                    yield "empty"
            for name in sorted(_globals_read(value.__code__)):
                if name in names:
                    yield name
                    yield from each(names[name])
        elif isinstance(value, list):
            yield f"list {len(value)}"
            yield from each(*value)
        elif isinstance(value, Mapping):
            yield f"mapping {len(value)}"
            yield from each(*chain.from_iterable(value.items()))
        elif isinstance(value, (staticmethod, classmethod, property)):
            yield type(value).__name__
            yield from each((value.fget, value.fset, value.fdel) if isinstance(value, property) else value.__func__)
        elif callable(value) and hasattr(value, "__qualname__") and not looked_into(module):
            # A builtin, a compiled function, a type hint: its name describes it.
            yield f"{module} {value.__qualname__}"
        else:
            raise _CannotSayError


def _globals_read(code: types.CodeType) -> set[str]:
    """Names that a function and those inside it read as globals."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(_globals_read(inner) for inner in code.co_consts if isinstance(inner, types.CodeType)))
