"""What caching and affinities ask of a backbone, and activations of windows that lie somewhere in a scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from bindkit.arguments import is_control
from bindkit.backbones.controls import HasGeometry, control_of
from bindkit.backbones.loading import Backbone, load_backbone
from bindkit.backbones.names import module_of, parse_random_init
from bindkit.backbones.own import is_registered
from bindkit.backbones.preprocessing import IMAGENET
from bindkit.backbones.tower import Rows
from bindkit.errors import BackboneError
from bindkit.scenes.geometry import WindowGeometry


@runtime_checkable
class ActivationSource(HasGeometry, Protocol):
    """What caching asks of a backbone; `bindkit.Backbone` has it."""

    @property
    def name(self) -> str:
        """Hub id or directory."""

    @property
    def d_model(self) -> int:
        """Width of an activation."""

    @property
    def n_layers(self) -> int:
        """Number of blocks."""

    @property
    def device(self) -> torch.device:
        """Where the model runs."""

    def resolve_layers(self, layers: str | int | Sequence[int]) -> tuple[int, ...]:
        """Layers in ascending order. Raises LayerError."""

    def activations(self, windows: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """Float32 activations [window, patch, d_model] by layer."""

    def describe(self) -> dict[str, Any]:
        """Identity as plain values."""


@runtime_checkable
class PlacedSource(Protocol):
    """A source that asks where its windows lie, as `bindkit.backbones.controls.Control` does."""

    def activations_at(
        self, windows: Tensor, corners: Tensor, scene_sizes: Tensor, layers: Sequence[int]
    ) -> dict[int, Tensor]:
        """As `ActivationSource.activations`, given (top, left) of each window and (height, width) of its scene."""


def source_of(described: Mapping[str, Any], device: str = "auto") -> ActivationSource:
    """Load the backbone or control that describes itself so.

    Raises as `load_backbone`, and BackboneError for somebody's own whose module has not been imported.
    """
    if is_control(described.get("objective")):
        return control_of(described)
    geometry = WindowGeometry(**described["geometry"])
    source = named.source if (named := parse_random_init(described["name"])) else described["name"]
    if module_of(source) and not is_registered(source):
        raise BackboneError(
            f"{described['name']} is somebody's own backbone, and bindkit imports no module that only a file names; "
            f"import {module_of(source)} yourself and make the same call again in Python"
        )
    return load_backbone(
        described["name"],
        window=geometry.window,
        short_side=geometry.short_side,
        arithmetic=geometry.arithmetic,
        normalization="imagenet" if described["preprocessing"] == IMAGENET.describe() else "checkpoint",
        precision=described.get("precision", "float32"),
        revision=described.get("revision"),
        device=device,
    )


def on_gpu(source: ActivationSource) -> bool:
    """Whether a source computes beside the processor, which then has time for other things."""
    return source.device.type == "cuda"


def require_source(given: Any) -> ActivationSource:
    """Refuse what is no backbone, such as its name. Raises BackboneError."""
    if not isinstance(given, ActivationSource):
        raise BackboneError(f"a backbone is what bk.load_backbone(name) gives, got {given!r:.80}")
    return given


def activations_of(
    source: ActivationSource,
    windows: UInt8[Tensor, "window height width 3"],
    corners: Int[Tensor, "window 2"],
    scene_sizes: Int[Tensor, "window 2"],
    layers: Sequence[int],
    rows: Rows | None = None,
) -> dict[int, Tensor]:
    """Activations of windows by layer, [window, patch, d_model]; a source that asks where they lie is told.

    Corners (top, left) and sizes (height, width) are in pixels of the resized scene. With `rows` (the window and the
    patch of each, on the source's device) only these: [row, d_model].
    """
    if isinstance(source, Backbone):
        return source.activations(windows, layers, rows)
    if isinstance(source, PlacedSource):
        found = source.activations_at(windows, corners, scene_sizes, layers)
    else:
        found = source.activations(windows, layers)
    # Popped, so that a layer is let go once its rows are picked.
    return found if rows is None else {layer: found.pop(layer)[rows] for layer in list(found)}
