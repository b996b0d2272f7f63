"""The kinds of probes there are, by name. One's own is tried before it is fitted, so that a slip has a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bindkit.arguments import require_kind
from bindkit.errors import ProbeError
from bindkit.probes.base import Probe

PROBES: dict[str, type[Probe]] = {}
"""Probe name -> class; `register_probe` adds to it."""


def is_shipped(probe_class: type[Probe]) -> bool:
    """Whether a class comes with bindkit."""
    return probe_class.__module__.partition(".")[0] == "bindkit"


def register_probe(kind: str) -> Callable[[Any], type[Probe]]:
    """Class decorator that makes a probe known under a name to `fit_probe`, `sweep` and `load_probe`.

    ::

        @register_probe("sum_of_products")
        class SumOfProducts(Probe): ...

    One's own name can be registered again, as by a notebook's cell that is run twice; the latest class counts.

    Parameters
    ----------
    kind : str
        ASCII letters, digits and underscores, no digit first: it becomes part of directories, and of names such as
        ``KIND@16``.

    Raises
    ------
    ProbeError
        For another kind of name, that of a probe that comes with bindkit, or something that is no subclass of `Probe`.
    """
    if not (isinstance(kind, str) and kind.isascii() and kind.isidentifier()):
        raise ProbeError(
            f"a probe's name is made of letters, digits and underscores and does not begin with a digit, got {kind!r}; "
            'write @register_probe("my_probe") above the class'
        )

    def add(probe_class: Any) -> type[Probe]:
        if not (isinstance(probe_class, type) and issubclass(probe_class, Probe)):
            raise ProbeError(f"{probe_class!r} is no probe; write class {kind.title()}(bindkit.probes.Probe)")
        if kind in PROBES and is_shipped(PROBES[kind]) and not is_shipped(probe_class):
            raise ProbeError(f"{kind!r} is a probe that comes with bindkit; register {probe_class.__name__} as another")
        units = ("normed", "scaled", "whitened", "raw")
        if probe_class.trained_in not in units:
            raise ProbeError(
                f"{probe_class.__name__} says trained_in = {probe_class.trained_in!r}; it is one of {', '.join(units)}"
            )
        probe_class.kind = kind
        PROBES[kind] = probe_class
        return probe_class

    return add


def parse_probe(name: str) -> tuple[str, dict[str, int]]:
    """Kind, and options such as ``{"rank": 16}``, of ``KIND`` or ``KIND@NUMBER``.

    Raises ProbeError for a kind that is not in the registry, or a number where it takes none.
    """
    require_kind(name, str, "a probe is asked for by its name, such as 'quadratic'", ProbeError)
    kind, at, number = name.partition("@")
    if kind not in PROBES:
        raise ProbeError(f"unknown probe {name!r}; there are {', '.join(PROBES)}")
    option = PROBES[kind].numbered
    if not at:
        return kind, {}
    if option is None or not (number.isascii() and number.isdigit()):
        takes = f"takes a whole number behind the @ ({option})" if option else "takes nothing behind an @"
        raise ProbeError(f"unknown probe {name!r}: {kind} {takes}")
    return kind, {option: int(number)}


def make_probe(name: str, d_model: int, seed: int = 0, **options: Any) -> Probe:
    """A fresh probe of ``KIND`` or ``KIND@NUMBER``, with what else the kind takes as options.

    The weights depend on the seed alone, and the global random state is left as it was. Raises ProbeError for a name
    that is not in the registry, and for what `check_probe` finds in a class that does not come with bindkit.
    """
    kind, numbered = parse_probe(name)
    if twice := numbered.keys() & options:
        raise ProbeError(f"the name {name!r} gives {twice.pop()} already; leave one of the two out")
    probe_class, given = PROBES[kind], numbered | options
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if is_shipped(probe_class):
            return probe_class(d_model, **given)
        probe = made(probe_class, d_model, given)
        check_probe(probe, given)
        return probe


def made(probe_class: type[Probe], d_model: int, options: Mapping[str, Any]) -> Probe:
    """A probe of a class of one's own. Raises ProbeError, with the cause, where it cannot be made."""
    try:
        probe = probe_class(d_model, **options)
    except ProbeError:
        raise
    except Exception as cause:
        raise ProbeError(
            f"{_name(probe_class)} cannot be made with d_model={d_model} and the options {dict(options)}: "
            f"{type(cause).__name__}: {cause}. A probe takes d_model and its options, calls "
            "super().__init__(d_model, ...) before anything else, and has a method pairwise(x, y)"
        ) from cause
    if not all(hasattr(probe, name) for name in ("d_model", "options", "scale", "temperature", "fitted_on")):
        raise ProbeError(f"the __init__ of {_name(probe_class)} does not call Probe's; {_first_line(options)}")
    return probe


def check_probe(probe: Probe, given: Mapping[str, Any]) -> None:
    """Refuse a probe that could not be trained, judged, or read from disk as it was saved.

    Tried on a copy that is made anew from the probe's options, as `load_probe` would make it; the probe, fresh and made
    with the options given, stays as it is. Raises ProbeError.
    """
    kind = type(probe)
    missing = object()
    kept = {name: probe.options.get(name, missing) for name in given}
    # Numbers come back as they were; a list may well be kept as a tuple.
    lost = {k: v for k, v in given.items() if kept[k] is missing or (isinstance(v, int) and kept[k] != v)}
    if lost:
        raise ProbeError(
            f"{_name(kind)} was made with {lost} but remembers {probe.options}, so that it would come back from disk "
            f"as another probe; {_first_line(given)}"
        )
    if not any(parameter.requires_grad for parameter in probe.parameters()):
        raise ProbeError(
            f"{_name(kind)} has nothing to learn; give it at least an offset: "
            "self.bias = torch.nn.Parameter(torch.zeros(()))"
        )
    copy = made(kind, probe.d_model, probe.options)
    shapes, saved = ({key: tuple(v.shape) for key, v in p.state_dict().items()} for p in (copy, probe))
    if shapes != saved:
        raise ProbeError(
            f"{_name(kind)} with weights of shapes {saved} would come back from disk with {shapes}; pass all that they "
            f"depend on to super().__init__(d_model, ...), which now has {probe.options}"
        )
    generator = torch.Generator().manual_seed(0)
    # 2 scenes, 3 and 4 patches: all different, so that swapped axes show.
    x, others = (torch.randn(2, n, probe.d_model, generator=generator) for n in (3, 4))
    with torch.enable_grad():
        logits = _told(copy, x, x)
        if not logits.requires_grad:
            raise ProbeError(
                f"the logits of {_name(kind)} depend on none of its parameters, so that there is nothing to learn; let "
                "pairwise() use them, without detach() or no_grad()"
            )
    with torch.no_grad():
        _told(copy, x, others)
        # As the explorer asks, for one row of a picture.
        _told(copy, x[0, :1], others[0])


def _told(probe: Probe, x: Tensor, y: Tensor) -> Tensor:
    """Logits of `pairwise`, one a pair. Raises ProbeError."""
    what = f"pairwise() of {_name(type(probe))}, on activations of shapes {list(x.shape)} and {list(y.shape)},"
    expected = [*x.shape[:-1], y.shape[-2]]
    try:
        logits = probe.pairwise(x, y)
    except Exception as cause:
        raise ProbeError(f"{what} failed with {type(cause).__name__}: {cause}; expected logits {expected}") from cause
    if not (isinstance(logits, Tensor) and logits.is_floating_point()):
        kind = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise ProbeError(f"{what} gave {kind}; expected a float tensor of logits {expected}")
    if list(logits.shape) != expected:
        raise ProbeError(
            f"{what} gave logits of shape {list(logits.shape)}, expected {expected}: one for every pair of patches, as "
            "x @ y.mT has"
        )
    return logits


def _name(probe_class: type[Probe]) -> str:
    return f"the probe {probe_class.kind!r} ({probe_class.__name__})"


def _first_line(options: Mapping[str, Any]) -> str:
    passed = "".join(f", {name}={name}" for name in options)
    return f"begin its __init__ with super().__init__(d_model{passed})"
