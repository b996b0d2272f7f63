"""What a probe is, a logit for every pair of patches; and the kinds there are, by name.

One of one's own is tried before it is fitted, so that a slip has a name.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bindkit.arguments import require_kind
from bindkit.errors import LayerError, ProbeError, ProbeMismatchError


@dataclass(frozen=True)
class PairMoments:
    """Moments of the pairs of a training split: all that a start in closed form needs to know of it."""

    patches: Float[Tensor, "d_model d_model"]
    """Mean of ``x x'`` over the patches that take part."""
    signal: Float[Tensor, "d_model d_model"]
    """Symmetric mean of ``t x y'`` over the counted pairs ``(x, y)``, where ``t`` is 1 for a pair on one object and 0
    for another, less the share of such pairs: how products go along with the answer."""

    def in_units(self, units: Tensor) -> PairMoments:
        """The same moments of ``units @ x`` (of ``units * x`` for a diagonal)."""
        if units.ndim == 1:
            outer = units[:, None] * units[None, :]
            return PairMoments(self.patches * outer, self.signal * outer)
        return PairMoments(units @ self.patches @ units.T, units @ self.signal @ units.T)


class Probe(nn.Module, ABC):
    """A logit for every pair of patches; symmetric in its two patches, save for `self_attention`.

    ::

        affinity = bk.load_probe("probes/mine")(activations).sigmoid()     # [scene, patch, patch]

    Parameters
    ----------
    d_model : int
        Width of the activations.

    Attributes
    ----------
    kind : str
        Name in the registry.
    options : dict
        Keywords besides `d_model` that make a probe of the same shape; saved with it.
    scale : float
        What activations are multiplied with before `pairwise` sees them; 1 unless training under ``strict`` set it.
    temperature : float
        What logits are divided by before they become affinities; 1 unless `bindkit.results.breakdowns` set it.
    fitted_on : dict
        What a fitted probe was fitted on (backbone, layer, scenes, protocol, seed, figures); empty before.
    """

    kind: str = ""

    trained_in: ClassVar[str] = "normed"
    """Units of the activations in which a protocol that preconditions trains: ``"normed"`` (divided by the root mean
    square of their lengths, which the probe keeps as its `scale`), ``"scaled"`` (divided by each dimension's root mean
    square), ``"whitened"``, or ``"raw"``. Scaled and whitened ask for `folded`."""

    degrees: ClassVar[Mapping[str, float]] = {"weight": 1.0}
    """How the logit grows with the parameters that `closed_form` gives: ``factor**degree`` makes it `factor` times as
    large. What is not listed is an offset."""

    numbered: ClassVar[str | None] = None
    """The option that a number behind an ``@`` in the name sets."""

    pointwise_task: ClassVar[str | None] = None
    """The task of a probe that says something of each patch by itself; None where it judges pairs."""

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__()
        self.d_model = d_model
        self.options = options
        self.scale = self.temperature = 1.0
        self.fitted_on: dict[str, Any] = {}

    @abstractmethod
    def pairwise(self, x: Float[Tensor, "*scene n d_model"], y: Float[Tensor, "*scene m d_model"]) -> Tensor:
        """Logits ``[*scene, n, m]`` of every patch of `x` with every patch of `y`."""

    def forward(self, activations: Float[Tensor, "*scene patch d_model"]) -> Float[Tensor, "*scene patch patch"]:
        """Logits of every pair of patches of a scene, divided by the temperature."""
        seen = activations if self.scale == 1 else activations * self.scale
        logits = self.pairwise(seen, seen)
        return logits if self.temperature == 1 else logits / self.temperature

    def says_same(
        self, activations: Float[Tensor, "*scene patch d_model"], logits: Float[Tensor, "*scene patch patch"]
    ) -> Bool[Tensor, "*scene patch patch"]:
        """Which pairs are called *same*: those whose logit is above 0, unless a probe says otherwise."""
        return logits > 0

    def folded(self, parameters: Mapping[str, Tensor], units: Tensor) -> dict[str, Tensor]:
        """Parameters that give for ``x`` what `parameters` give for ``units @ x``.

        They are those of `named_parameters` and may carry gradients; units of shape ``(d_model,)`` are a diagonal.
        """
        raise ProbeError(f"the {self.kind} probe says trained_in = {self.trained_in!r} but does not define folded()")

    def closed_form(self, moments: PairMoments) -> dict[str, Tensor] | None:
        """Start in closed form up to scale and offset, from moments in training units; None where there is none."""
        return None

    def check_fits(self, d_model: int, layer: int | None = None) -> None:
        """Refuse activations of another width, or of another layer than the probe was fitted on: ProbeMismatchError."""
        if d_model != self.d_model:
            raise ProbeMismatchError(
                f"this {self.kind} probe takes activations of width {self.d_model}, got width {d_model}; "
                "fit a probe on this backbone's cache"
            )
        fitted = self.fitted_on.get("layer")
        if layer is not None and fitted is not None and layer != fitted:
            raise ProbeMismatchError(
                f"this {self.kind} probe was fitted on layer {fitted}, it is asked to judge layer {layer}; "
                f"use activations of layer {fitted} or fit a probe on layer {layer}"
            )

    def layer_for(self, backbone: Mapping[str, Any], layer: int | None = None) -> int:
        """Layer (0-based) that this probe reads, once it is known to be a probe of that backbone.

        Told of the backbone as ``backbone.describe()`` or ``cache.backbone``, and the layer where the probe does not
        know it. Raises ProbeMismatchError if it was fitted on other weights, LayerError if no layer is known.
        """
        digest, given = self.fitted_on.get("weights_digest"), backbone["weights_digest"]
        if digest is not None and digest != given:
            raise ProbeMismatchError(
                f"this {self.kind} probe was fitted on {self.fitted_on.get('backbone')} (weights {digest[:8]}), it is "
                f"asked to judge {backbone['name']} (weights {given[:8]}); take that backbone or fit another probe"
            )
        chosen = self.fitted_on.get("layer") if layer is None else layer
        if chosen is None:
            raise LayerError(f"this {self.kind} probe does not say which layer it was fitted on; say layer=")
        return int(chosen)


def by_capability(name: str) -> tuple[int, int, str]:
    """Sort key of probes' names, the most capable first; of one kind the highest number (a rank) first."""
    kind, _, number = name.partition("@")
    # Each contains those behind it, as good as; all others come behind in alphabetical order.
    capable = ["quadratic", "quadratic_fixed_rank", "diag_quadratic", "linear"]
    return [*capable, kind].index(kind), -int(number) if number.isdigit() else 0, name


def require_probe(given: Any) -> Probe:
    """Refuse what is no probe, such as a fit or a directory. Raises ProbeError."""
    require_kind(given, Probe, "a probe is what fit.probe or bk.load_probe(directory) gives", ProbeError)
    return given


def uniform_start(*shape: int, fan_in: int) -> nn.Parameter:
    """``nn.Linear``'s own start, uniform within ``1 / sqrt(fan_in)``: what the reference implementation starts from."""
    bound = 1 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


def check_layer(layer: int, available: tuple[int, ...], where: str) -> int:
    """Refuse a layer that is not there. Raises LayerError, which names those there are."""
    if layer not in available:
        raise LayerError(f"{where} has no layer {layer}; it has {', '.join(map(str, available))} (0-based)")
    return layer


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
    """Kind, and options such as ``{"rank": 16}``, of ``KIND`` or ``KIND@NUMBER``. Raises ProbeError."""
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
