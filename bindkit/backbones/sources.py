"""What caching and affinities ask of a backbone, and activations of windows that lie somewhere in a scene.

Controls: what a probe reads without any model, from where a patch lies and from its own pixels. A control stands in the
place of a backbone: it is cached, probed and judged by the same machinery on the same pairs, and has one layer, 0.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from bindkit.arguments import CONTROL, CONTROL_KINDS, ControlName, each_of, is_control, parse_control
from bindkit.backbones.loading import Backbone, load_backbone, summary_of
from bindkit.backbones.names import module_of, parse_random_init
from bindkit.backbones.own import is_registered
from bindkit.backbones.preprocessing import IMAGENET, Preprocessing
from bindkit.backbones.tower import Rows
from bindkit.errors import BackboneError, GeometryError, InvalidParameterError
from bindkit.scenes.geometry import WindowGeometry

FREQUENCIES = tuple((down, across) for down in range(8) for across in range(8) if down + across < 8)
"""Half waves down and across a scene. On synthetic scenes, all 8 x 8 (and more) gave a lower AUROC than these 36: the
strict protocol's few hundred steps do not settle so many weights; 21 gave the same."""

MOST_PIXELS = 16
"""A patch of more pixels a side is averaged down to so many, so that a control is no wider than 768."""

_DEFINITIONS = {
    "position": f"cos(pi k row) cos(pi m col) of the patch's centre in the scene, (k, m) in {FREQUENCIES}; version 1",
    "raw-pixels": f"value / 255 - 0.5 of the resized patch, at most {MOST_PIXELS} px a side; version 1",
}
"""What a control's numbers are; their digest stands where a backbone has that of its weights."""


@runtime_checkable
class HasGeometry(Protocol):
    """What a control asks of a backbone."""

    @property
    def geometry(self) -> WindowGeometry:
        """How scenes are resized and tiled."""

    @property
    def preprocessing(self) -> Preprocessing:
        """Resizes scenes."""


@dataclass(frozen=True)
class Control:
    """A source of activations without a model, beside a backbone whose windows, patches and resizing it has."""

    known: ControlName
    geometry: WindowGeometry
    preprocessing: Preprocessing

    n_layers = 1
    device = torch.device("cpu")

    @property
    def name(self) -> str:
        """``control:KIND``, where need be with ``@`` and the geometry."""
        return self.known.full

    @property
    def d_model(self) -> int:
        """Numbers a patch: 36 of its position, and three a pixel."""
        side = min(self.geometry.patch_size, MOST_PIXELS)
        widths = {"position": len(FREQUENCIES), "raw-pixels": 3 * side**2}
        return sum(widths[part] for part in self.known.parts)

    def resolve_layers(self, layers: str | int | Sequence[int]) -> tuple[int, ...]:
        """Layer 0, whatever is asked of the backbones beside it."""
        return (0,)

    def activations(
        self, windows: UInt8[Tensor, "window height width 3"], layers: Sequence[int]
    ) -> dict[int, Float[Tensor, "window patch d_model"]]:
        """As `activations_at`, of pixels alone. Raises InvalidParameterError if the control reads positions."""
        if "position" in self.known.parts:
            raise InvalidParameterError(
                f"{self.name} needs to know where in its scene a window lies; call activations_at with its corner and "
                "the size of the resized scene"
            )
        anywhere = torch.zeros(len(windows), 2, dtype=torch.int64)
        return self.activations_at(windows, anywhere, anywhere, layers)

    def activations_at(
        self,
        windows: UInt8[Tensor, "window height width 3"],
        corners: Int[Tensor, "window 2"],
        scene_sizes: Int[Tensor, "window 2"],
        layers: Sequence[int],
    ) -> dict[int, Float[Tensor, "window patch d_model"]]:
        """What there is to read from each patch, at layer 0.

        `corners` are ``(top, left)`` of each window in pixels of its resized scene, `scene_sizes` ``(height, width)``
        of these scenes. Raises GeometryError for windows of another size than the control's geometry says.
        """
        side = self.geometry.window
        if windows.ndim != 4 or tuple(windows.shape[1:]) != (side, side, 3) or windows.dtype != torch.uint8:
            raise GeometryError(
                f"windows of {self.name} should be uint8 of shape [window, {side}, {side}, 3], got "
                f"{str(windows.dtype).removeprefix('torch.')} of {list(windows.shape)}; a control has the geometry of "
                "the backbone that it was loaded with"
            )
        found = [
            position_code(self.geometry, corners, scene_sizes)
            if part == "position"
            else raw_pixels(windows.to(self.device), self.geometry.patch_size)
            for part in self.known.parts
        ]
        return dict.fromkeys(layers, torch.cat(found, dim=-1))

    def summary(self) -> dict[str, Any]:
        """One row for a table, beside those of backbones."""
        return summary_of(self.describe(), n_parameters=0)

    def describe(self) -> dict[str, Any]:
        """Identity as plain values; equal for equal measurements."""
        definition = "\n".join(_DEFINITIONS[part] for part in self.known.parts)
        return {
            "name": self.name,
            "revision": None,
            "family": CONTROL,
            "objective": CONTROL,
            "weights_digest": hashlib.sha256(definition.encode()).hexdigest(),
            "d_model": self.d_model,
            "n_layers": self.n_layers,
            "n_prefix": 0,
            "geometry": self.geometry.describe(),
            "preprocessing": {"resample": str(getattr(self.preprocessing, "resample", "as the backbone"))},
        }


def load_control(name: str, like: HasGeometry) -> Control:
    """Make a control that sees scenes as a backbone does.

    ::

        backbone = bk.load_backbone("facebook/dinov2-small")
        control = bk.load_control("position+raw-pixels", like=backbone)
        cache = bk.cache_activations(control, scenes)

    ``position`` is where the patch's centre lies in the whole scene, as 36 products of a cosine down with a cosine
    across: a quadratic probe on them can read any smooth function of two positions. ``raw-pixels`` are the patch's own
    pixels, resized as for the backbone. ``position+raw-pixels`` are both, side by side.

    Parameters
    ----------
    name : str
        ``position``, ``raw-pixels`` or ``position+raw-pixels``; with ``control:`` in front of it or without. With the
        geometry behind it (``position@112/8``), that is part of the name.
    like : Backbone
        Whose windows, patches and resizing to take.

    Raises
    ------
    InvalidParameterError
        For a control that there is not, or whose name says another geometry than `like` has.
    """
    known = parse_control(name)
    if known.geometry and known.geometry != like.geometry.label:
        raise InvalidParameterError(
            f"{name!r} names another geometry than the backbone has, which is {like.geometry.label}"
        )
    return Control(known, like.geometry, like.preprocessing)


def control_of(described: Mapping[str, Any]) -> Control:
    """The control that a cache describes, as its `Control.describe` gave it. Raises InvalidParameterError if gone."""
    preprocessing = Preprocessing((0.0,) * 3, (1.0,) * 3, resample=described["preprocessing"]["resample"])
    return Control(parse_control(described["name"]), WindowGeometry(**described["geometry"]), preprocessing)


def load_controls(backbones: Sequence[HasGeometry], kinds: str | Sequence[str] = CONTROL_KINDS) -> list[Control]:
    """Make the controls of several backbones: one set for every geometry among them.

    ::

        controls = bk.load_controls([backbone, another])
        [control.name for control in controls]

    Where all backbones share one geometry, names are plain (``control:position``); else they say the geometry
    (``control:position@112/8``: windows of 112 px, patches of 8; ``@592-224/16`` if the short side is another,
    ``@112/8-reference`` with the reference's arithmetic).

    Parameters
    ----------
    backbones : sequence of Backbone
        Of backbones that differ in resampling alone, the first decides.
    kinds : str or sequence of str
        Which controls, with blanks between; none for an empty text.

    Raises
    ------
    InvalidParameterError
        For a control that there is not.
    """
    wanted = [parse_control(kind).kind for kind in (kinds.split() if isinstance(kinds, str) else kinds)]
    first_of: dict[WindowGeometry, HasGeometry] = {}
    for backbone in each_of(backbones, HasGeometry, "backbones are what bk.load_backbone(name) gives"):
        first_of.setdefault(backbone.geometry, backbone)
    return [
        load_control(ControlName(kind, geometry.label if len(first_of) > 1 else "").full, like)
        for geometry, like in first_of.items()
        for kind in dict.fromkeys(wanted)
    ]


def position_code(
    geometry: WindowGeometry, corners: Int[Tensor, "window 2"], scene_sizes: Int[Tensor, "window 2"]
) -> Float[Tensor, "window patch code"]:
    """Where patches lie in their scene: ``cos(pi k row) cos(pi m col)`` for every pair ``(k, m)`` of `FREQUENCIES`.

    ``row`` and ``col`` are those of the patch's centre in the resized scene, as shares of its height and width. With
    ``(0, 0)``, the constant, probes can read linear functions as well.
    """
    grid = geometry.grid
    waves = []
    for axis, count in enumerate((grid.rows, grid.cols)):
        centres = corners[:, axis, None].double() + (torch.arange(count) + 0.5) * float(grid.patch_size)
        shares = centres / scene_sizes[:, axis, None]
        waves.append(torch.cos(math.pi * shares[..., None] * torch.tensor(FREQUENCIES)[:, axis]))
    down, across = waves
    return (down[:, :, None] * across[:, None, :]).reshape(len(corners), grid.n_patches, -1).float()


def raw_pixels(
    windows: UInt8[Tensor, "window height width 3"], patch_size: int
) -> Float[Tensor, "window patch values"]:
    """Each patch's pixels as ``value / 255 - 0.5``, row by row, red, green and blue of a pixel side by side.

    Patches of more than `MOST_PIXELS` a side are averaged down to that (``adaptive_avg_pool2d``).
    """
    n_windows, height, width, _ = windows.shape
    rows, cols = height // patch_size, width // patch_size
    cells = windows.reshape(n_windows, rows, patch_size, cols, patch_size, 3).permute(0, 1, 3, 5, 2, 4)
    pixels = cells.reshape(n_windows * rows * cols, 3, patch_size, patch_size).float() / 255 - 0.5
    if patch_size > MOST_PIXELS:
        pixels = adaptive_avg_pool2d(pixels, MOST_PIXELS)
    return pixels.permute(0, 2, 3, 1).reshape(n_windows, rows * cols, -1)


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
    """A source that asks where its windows lie, as `bindkit.backbones.sources.Control` does."""

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
