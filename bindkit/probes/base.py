"""What a probe is: a logit for every pair of patches."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
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
        """Parameters to start from, found in closed form up to scale and offset; None where there is no such start.

        `moments` are in the units that the probe is trained in.
        """
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
