"""Somebody's own: code, digested by what it computes, and backbones, with the facts that bindkit cannot see in them."""

from __future__ import annotations

import dis
import hashlib
import importlib
import inspect
import logging
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bindkit.backbones.checkpoint import seeded
from bindkit.backbones.families import EncoderShape, Opened, frozen
from bindkit.backbones.names import EMBEDDED
from bindkit.backbones.preprocessing import Preprocessing
from bindkit.errors import BackboneError

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


logger = logging.getLogger(__name__)

OWN = "own"
"""What such a backbone says as its family."""


@dataclass(frozen=True)
class _Own:
    make: Callable[..., Any]
    shape: EncoderShape
    preprocessing: Preprocessing
    objective: str


_REGISTERED: dict[str, _Own] = {}


def register_backbone(
    name: str,
    *,
    patch_size: int,
    window: int,
    d_model: int,
    n_prefix: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    resample: str = "bicubic",
    objective: str = "unknown",
    n_heads: int | None = None,
    blocks: str | None = None,
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Decorate a function that makes a ViT, so that `load_backbone` knows it by name.

    ::

        @bk.register_backbone(
            "mine", patch_size=16, window=224, d_model=768, n_prefix=1, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        )
        def mine():
            return MyViT.load("mine.pt")

    The function gives a `torch.nn.Module` that takes normalised pixels [window, 3, row, col]; what it returns is not
    looked at, its blocks are, which hold tokens [window, token, d_model], prefix tokens first. It is frozen. A keyword
    ``untrained=True``, where the function has it, asks for fresh weights: the twin ``random-init:mine``. The contract
    check applies as to any other, and what is measured is known by weights and code. In a process that has not run the
    decorator, ``MODULE:NAME`` imports the module first. The latest of one name counts.

    Parameters
    ----------
    name : str
        Letters, digits, ``_``, ``-`` and ``.``.
    patch_size, window : int
        Side of a patch, and of the windows that it was trained on, in pixels.
    d_model, n_prefix : int
        Width of a token; tokens in front of the patches.
    mean, std : three floats
        Of pixels from 0 to 1, red, green and blue.
    resample : str
        How scenes are resized, as Pillow calls it.
    objective : str
        What it was pretrained for.
    n_heads : int, optional
        Attention heads of a block, where its queries and keys shall be read.
    blocks : str, optional
        Where its blocks lie, such as ``"encoder.blocks"``. Default: its longest ``ModuleList`` of like modules.

    Raises
    ------
    BackboneError
        For another kind of name, or a preprocessing that no image can be normalised with.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][\w.-]*", name, re.ASCII) or name in EMBEDDED:
        raise BackboneError(
            f"a backbone's name is made of letters, digits, _, - and . and is not {' or '.join(EMBEDDED)}; got {name!r}"
        )
    shape = EncoderShape(OWN, patch_size, window, d_model, None, n_prefix, n_heads, blocks)
    preprocessing = Preprocessing(tuple(mean), tuple(std), resample=resample, source="register_backbone")

    def add(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        _REGISTERED[name] = _Own(make, shape, preprocessing, objective)
        return make

    return add


def is_registered(name: str) -> bool:
    """Whether ``NAME`` or ``MODULE:NAME`` is known in this process, so that nothing has to be imported."""
    module, _, own = name.rpartition(":")
    return own in _REGISTERED and module in ("", _REGISTERED[own].make.__module__)


def open_own(name: str) -> Opened:
    """Look up ``NAME`` or ``MODULE:NAME``. Raises BackboneError where it is not there."""
    module, _, short = name.rpartition(":")
    if not is_registered(name):
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a module of one's own may raise
            raise BackboneError(
                f"{name}: the module {module} cannot be imported ({type(error).__name__}: {error}); it has to lie "
                "where Python finds it, for example PYTHONPATH=. in front of the command"
            ) from error
    if not is_registered(name):
        raise BackboneError(
            f"{module} registers no backbone {short!r}; put @bk.register_backbone({short!r}, ...) above its function"
        )
    own = _REGISTERED[short]

    def build(seed: int | None) -> nn.Module:
        arguments: dict[str, Any] = {}
        if seed is not None:
            if "untrained" not in inspect.signature(own.make).parameters:
                raise BackboneError(
                    f"the function behind {name} makes no untrained twin; give it a keyword untrained=False, and "
                    "let True make the same architecture with fresh weights"
                )
            arguments["untrained"] = True
        try:
            with seeded(seed or 0):
                model = own.make(**arguments)
        except Exception as error:
            raise BackboneError(f"the function behind {name} raised {type(error).__name__}: {error}") from error
        if not isinstance(model, nn.Module):
            raise BackboneError(f"the function behind {name} should give a torch.nn.Module, got {type(model).__name__}")
        return frozen(model)

    return Opened(own.shape, own.objective, lambda: own.preprocessing, build)


def _settings(model: nn.Module) -> Iterator[str]:
    """What modules were made with and no weight says: plain attributes, and buffers that are not saved."""
    for place, module in model.named_modules():
        kept = {name: value for name, value in vars(module).items() if not name.startswith("_") and _is_plain(value)}
        yield f"{place}: {type(module).__qualname__}({module.extra_repr()}) {sorted(kept.items())}"
        for name in sorted(module._non_persistent_buffers_set):
            buffer = getattr(module, name)
            content = b"" if buffer is None else buffer.detach().cpu().contiguous().view(-1).numpy().tobytes()
            yield f"{place}.{name}: {hashlib.sha256(content).hexdigest()}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str | None)


def digest_with_code(name: str, model: nn.Module, weights_digest: str) -> str:
    """A digest of weights, settings and of what the model's own code computes, as 64 hexadecimal digits."""
    own = _REGISTERED[name.rpartition(":")[2].partition(",")[0]]
    classes = {type(module) for module in model.modules() if is_own(type(module).__module__)}
    digests = {f"{one.__module__}.{one.__qualname__}": code_digest(one) for one in classes}
    digests["the function behind it"] = code_digest(own.make)
    for unsaid in sorted(one for one, digest in digests.items() if digest is None):
        logger.warning(
            "%s: what %s computes depends on values that cannot be compared across runs, so a change of its code would "
            "not be noticed; register it under another name after one",
            *(name, unsaid),
        )
    said = [weights_digest, str(own.shape.blocks_at), *_settings(model), *sorted(map(str, digests.values()))]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()
