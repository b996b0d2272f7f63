"""Backbones of somebody's own: a torch module, and the few facts that bindkit cannot see in it."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from bindkit.backbones.code_digests import code_digest, is_own
from bindkit.backbones.families import EncoderShape, Opened, frozen
from bindkit.backbones.names import EMBEDDED
from bindkit.backbones.preprocessing import Preprocessing
from bindkit.backbones.untrained import seeded
from bindkit.errors import BackboneError

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
