"""A frozen pretrained ViT with its preprocessing, patch grid and token layout.

>>> import bindkit as bk
>>> backbone = bk.load_backbone("random-init:vit")
>>> backbone.n_layers, backbone.d_model, backbone.layout.n_prefix, backbone.layout.grid.n_patches
(6, 128, 1, 196)
>>> import torch
>>> windows = torch.zeros(1, 112, 112, 3, dtype=torch.uint8)
>>> backbone.activations(windows, layers=[0, 5])[5].shape
torch.Size([1, 196, 128])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from bindkit.arguments import resolve_layers
from bindkit.backbones.preprocessing import Preprocessing
from bindkit.backbones.tower import VisionTower, patch_tokens
from bindkit.errors import GeometryError, InvalidParameterError
from bindkit.scenes.geometry import TokenLayout, WindowGeometry


@dataclass(frozen=True, eq=False)
class Backbone:
    """What `load_backbone` returns. Weights are frozen, float32, in evaluation mode.

    ::

        backbone = bk.load_backbone("random-init:dinov2")
        backbone.activations(windows, layers=[0, 5])[5]     # float32 [window, patch, d_model]

    Attributes
    ----------
    name : str
        As it was asked for.
    revision : str or None
        Commit of the hub that the files came from.
    family : str
        Architecture, as transformers calls its model type.
    objective : str
        What it was pretrained for; "random-init" if it was not, "unknown" if nobody can tell.
    weights_digest : str
        Sha256 of the weights, in hexadecimal.
    geometry : WindowGeometry
        How scenes are resized and tiled, in pixels.
    layout : TokenLayout
        Prefix tokens and patch grid of one window.
    """

    name: str
    revision: str | None
    family: str
    objective: str
    weights_digest: str
    geometry: WindowGeometry
    layout: TokenLayout
    preprocessing: Preprocessing
    device: torch.device
    tower: VisionTower
    checks: tuple[str, ...]

    def __repr__(self) -> str:
        return (
            f"Backbone({self.name!r}, family={self.family!r}, n_layers={self.n_layers}, d_model={self.d_model}, "
            f"window={self.geometry.window}, patch_size={self.geometry.patch_size}, device='{self.device}')"
        )

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.tower.shape.d_model

    @property
    def n_layers(self) -> int:
        """Number of transformer blocks."""
        return self.tower.n_layers

    def resolve_layers(self, layers: str | int | Sequence[int]) -> tuple[int, ...]:
        """Turn ``"all"``, ``"0,6,12"``, a number or a sequence of numbers into layers, ascending, each once.

        Raises
        ------
        LayerError
            For anything else, for no layer at all, and for layers that the backbone does not have.
        """
        return resolve_layers(layers, self.n_layers, self.name)

    def activations(
        self, windows: UInt8[Tensor, "window height width 3"], layers: Sequence[int]
    ) -> dict[int, Float[Tensor, "window patch d_model"]]:
        """Patch activations at some layers: each block's output, before any final norm.

        Parameters
        ----------
        windows : uint8 tensor
            Windows of resized scenes, on any device; all of them go through the model in one batch.
        layers : sequence of int
            0-based; the forward pass stops behind the deepest.

        Returns
        -------
        dict of int to float32 tensor
            Patch tokens only, row-major, on the backbone's device.

        Raises
        ------
        LayerError
            For a layer that the backbone does not have.
        GeometryError
            For windows of another size than the backbone's geometry says.
        InvalidParameterError
            For windows that are not uint8.
        """
        wanted = self.resolve_layers(layers)
        tokens = self.tower.activations(self._pixels(windows), wanted)
        return {layer: patch_tokens(tokens[layer], self.layout.grid.n_patches) for layer in wanted}

    def embedding(self, windows: UInt8[Tensor, "window height width 3"]) -> Float[Tensor, "window patch d_model"]:
        """Patch tokens at the input of block 0. Raises as `activations` does."""
        return patch_tokens(self.tower.embedding(self._pixels(windows)), self.layout.grid.n_patches)

    def summary(self) -> dict[str, Any]:
        """One row for a table: what it is and how it looks at scenes (sizes in pixels)."""
        return {
            "backbone": self.name,
            "family": self.family,
            "objective": self.objective,
            "layers": self.n_layers,
            "width": self.d_model,
            "prefix tokens": self.layout.n_prefix,
            "patch": self.geometry.patch_size,
            "window": self.geometry.window,
            "short side": self.geometry.short_side,
            "parameters": self.tower.n_parameters,
        }

    def describe(self) -> dict[str, Any]:
        """Identity of the backbone as plain values that JSON can hold; equal for equal measurements."""
        return {
            "name": self.name,
            "revision": self.revision,
            "family": self.family,
            "objective": self.objective,
            "weights_digest": self.weights_digest,
            "d_model": self.d_model,
            "n_layers": self.n_layers,
            "n_prefix": self.layout.n_prefix,
            "geometry": self.geometry.describe(),
            "preprocessing": self.preprocessing.describe(),
        }

    def _pixels(self, windows: Tensor) -> Tensor:
        if not isinstance(windows, Tensor) or windows.dtype != torch.uint8:
            got = windows.dtype if isinstance(windows, Tensor) else type(windows).__name__
            raise InvalidParameterError(f"windows should be a uint8 tensor of pixels from 0 to 255, got {got}")
        side = self.geometry.window
        if windows.ndim != 4 or tuple(windows.shape[1:]) != (side, side, 3):
            raise GeometryError(
                f"windows of {self.name} should have the shape [window, {side}, {side}, 3], got "
                f"{list(windows.shape)}; load the backbone with another window= for other sizes"
            )
        return self.preprocessing.normalise(windows.to(self.device))
