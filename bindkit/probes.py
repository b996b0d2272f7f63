"""Probes: small modules that give one logit for every pair of patches.

>>> import torch
>>> probe = make_probe("quadratic", d_model=4, seed=0)
>>> probe.pairwise(torch.ones(2, 3, 4), torch.ones(2, 5, 4)).shape
torch.Size([2, 3, 5])

A probe of one's own is a subclass in the registry:

>>> @register_probe("sum_of_products")
... class SumOfProducts(Probe):
...     '''Adds up all products: one learned factor and an offset.'''
...
...     def __init__(self, d_model: int) -> None:
...         super().__init__(d_model)
...         self.factor = torch.nn.Parameter(torch.ones(d_model))
...         self.bias = torch.nn.Parameter(torch.zeros(()))
...
...     def pairwise(self, x, y):
...         return (x * self.factor) @ y.mT + self.bias
...
...     def fold_scale(self, scale):
...         self.factor.data.div_(scale**2)
>>> make_probe("sum_of_products", d_model=4).pairwise(torch.ones(1, 4), torch.ones(2, 4)).shape
torch.Size([1, 2])
>>> _ = PROBES.pop("sum_of_products")
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from bindkit.errors import LayerError, ProbeError, ProbeMismatchError
from bindkit.files import sha256_of, write_bytes, write_json

FORMAT = 1
"""Version of a saved probe's directory."""

PROBES: dict[str, type[Probe]] = {}
"""Probe name -> class; `register_probe` adds to it."""


class Probe(nn.Module, ABC):
    """A logit for every pair of patches; symmetric in its two patches.

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
    fitted_on : dict
        What a fitted probe was fitted on (backbone, layer, scenes, protocol, seed, figures); empty before.
    """

    kind: str = ""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.fitted_on: dict[str, Any] = {}

    @abstractmethod
    def pairwise(self, x: Float[Tensor, "*scene n d_model"], y: Float[Tensor, "*scene m d_model"]) -> Tensor:
        """Logits ``[*scene, n, m]`` of every patch of `x` with every patch of `y`."""

    def forward(self, activations: Float[Tensor, "*scene patch d_model"]) -> Float[Tensor, "*scene patch patch"]:
        """Logits of every pair of patches of a scene."""
        return self.pairwise(activations, activations)

    @abstractmethod
    def fold_scale(self, scale: Float[Tensor, " d_model"]) -> None:
        """Change the weights so that the probe gives for ``x`` what it gave for ``x / scale``."""

    def check_fits(self, d_model: int, layer: int | None = None) -> None:
        """Refuse activations of another width, or of another layer than the probe was fitted on.

        Raises
        ------
        ProbeMismatchError
            Naming both sides.
        """
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
        """Layer that this probe reads, once it is known to be a probe of that backbone.

        Parameters
        ----------
        backbone : mapping
            As ``backbone.describe()`` or ``cache.backbone`` gives it: ``name``, ``weights_digest``.
        layer : int, optional
            0-based; needed for a probe that does not know which layer it was fitted on.

        Raises
        ------
        ProbeMismatchError
            If it was fitted on other weights.
        LayerError
            If no layer is known.
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


def register_probe(kind: str) -> Callable[[type[Probe]], type[Probe]]:
    """Class decorator that makes a probe known under a name to `fit_probe`, `sweep` and `load_probe`."""

    def add(probe_class: type[Probe]) -> type[Probe]:
        probe_class.kind = kind
        PROBES[kind] = probe_class
        return probe_class

    return add


def make_probe(kind: str, d_model: int, seed: int = 0) -> Probe:
    """A fresh probe; the weights depend on the seed alone, and the global random state is left as it was.

    Raises
    ------
    ProbeError
        For a name that is not in the registry.
    """
    if kind not in PROBES:
        raise ProbeError(f"unknown probe {kind!r}; there are {', '.join(PROBES)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PROBES[kind](d_model)


def _uniform(*shape: int, fan_in: int) -> nn.Parameter:
    """``nn.Linear``'s own start, uniform within ``1 / sqrt(fan_in)``: what the reference implementation starts from."""
    bound = 1 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


@register_probe("linear")
class Linear(Probe):
    """``w.x + w.y + b``: whether each patch by itself looks like part of an object that fills the view."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.weight = _uniform(d_model, fan_in=d_model)
        self.bias = _uniform(fan_in=d_model)

    def pairwise(self, x: Float[Tensor, "*scene n d_model"], y: Float[Tensor, "*scene m d_model"]) -> Tensor:  # noqa: D102
        return (x @ self.weight)[..., :, None] + (y @ self.weight)[..., None, :] + self.bias

    @torch.no_grad()
    def fold_scale(self, scale: Float[Tensor, " d_model"]) -> None:  # noqa: D102
        self.weight.div_(scale)


@register_probe("diag_quadratic")
class DiagonalQuadratic(Probe):
    """``sum_k w_k x_k y_k + b``: a weighted similarity."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.weight = _uniform(d_model, fan_in=d_model)
        self.bias = _uniform(fan_in=d_model)

    def pairwise(self, x: Float[Tensor, "*scene n d_model"], y: Float[Tensor, "*scene m d_model"]) -> Tensor:  # noqa: D102
        return (x * self.weight) @ y.mT + self.bias

    @torch.no_grad()
    def fold_scale(self, scale: Float[Tensor, " d_model"]) -> None:  # noqa: D102
        self.weight.div_(scale**2)


@register_probe("quadratic")
class Quadratic(Probe):
    """``x' (W + W') y / (2 sqrt(d)) + b``: any symmetric bilinear form."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.weight = _uniform(d_model, d_model, fan_in=d_model)
        self.bias = _uniform(fan_in=d_model)

    def symmetric(self) -> Float[Tensor, "d_model d_model"]:
        """The form itself, ``(W + W') / (2 sqrt(d))``."""
        return (self.weight + self.weight.T) / (2 * math.sqrt(self.d_model))

    def pairwise(self, x: Float[Tensor, "*scene n d_model"], y: Float[Tensor, "*scene m d_model"]) -> Tensor:  # noqa: D102
        return (x @ self.symmetric()) @ y.mT + self.bias

    @torch.no_grad()
    def fold_scale(self, scale: Float[Tensor, " d_model"]) -> None:  # noqa: D102
        self.weight.div_(scale[:, None] * scale[None, :])


def save_probe(probe: Probe, directory: str | Path) -> Path:
    """Write ``probe.safetensors`` and ``probe.json`` (what it was fitted on); the JSON comes last and seals both."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    record = directory / "probe.json"
    record.unlink(missing_ok=True)
    weights = directory / "probe.safetensors"
    write_bytes(weights, save({name: value.detach().cpu().contiguous() for name, value in probe.state_dict().items()}))
    description = {"format": FORMAT, "probe": probe.kind, "d_model": probe.d_model, "sha256": sha256_of(weights)}
    write_json(record, description | {"fitted_on": probe.fitted_on})
    return directory


def load_probe(directory: str | Path, d_model: int | None = None, layer: int | None = None) -> Probe:
    """Read a fitted probe.

    Parameters
    ----------
    directory : path
        As written by ``fit.save(directory)``.
    d_model, layer : int, optional
        Width and layer that the probe will be asked to judge; checked against what it was fitted on.

    Returns
    -------
    Probe
        In evaluation mode, on the CPU, with ``fitted_on`` filled.

    Raises
    ------
    ProbeError
        No probe there, an unknown kind or format, or weights that are not those that were saved.
    ProbeMismatchError
        Another width or layer.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     _ = save_probe(make_probe("linear", d_model=4), directory)
    ...     load_probe(directory, d_model=4).kind
    'linear'
    """
    directory = Path(directory)
    try:
        description = json.loads((directory / "probe.json").read_text(encoding="utf-8"))
        kind, width, digest = description["probe"], description["d_model"], description["sha256"]
        version, fitted_on = description["format"], description["fitted_on"]
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise ProbeError(
            f"{directory} holds no readable probe.json ({cause}); give a directory that fit.save() wrote"
        ) from cause
    if version != FORMAT:
        raise ProbeError(f"{directory} has probe format {version}, this bindkit reads {FORMAT}; fit it again or update")
    if kind not in PROBES:
        raise ProbeError(f"{directory} holds a {kind!r} probe, which is not registered; there are {', '.join(PROBES)}")
    weights = directory / "probe.safetensors"
    probe = make_probe(kind, width)
    try:
        if sha256_of(weights) != digest:
            raise ProbeError(f"{weights} is not the file that was saved (its digest differs); fit the probe again")
        probe.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError) as cause:
        raise ProbeError(f"{weights} cannot be read ({cause}); fit the probe again") from cause
    probe.fitted_on = fitted_on
    if d_model is not None:
        probe.check_fits(d_model, layer)
    elif layer is not None:
        probe.check_fits(probe.d_model, layer)
    return probe.eval()


def check_layer(layer: int, available: tuple[int, ...], where: str) -> int:
    """Refuse a layer that is not there.

    Raises
    ------
    LayerError
        Naming the layers there are.
    """
    if layer not in available:
        raise LayerError(f"{where} has no layer {layer}; it has {', '.join(map(str, available))} (0-based)")
    return layer
