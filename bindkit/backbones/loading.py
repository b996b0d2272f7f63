"""A frozen pretrained ViT with its preprocessing, patch grid and token layout, and how one is loaded and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from bindkit.arguments import read_device, require_kind, resolve_layers
from bindkit.backbones.checkpoint import open_checkpoint, open_embedded
from bindkit.backbones.families import EncoderShape, family_of_type
from bindkit.backbones.names import TIMM, directory_of, module_of, parse_random_init
from bindkit.backbones.own import OWN, digest_with_code, is_registered, open_own
from bindkit.backbones.preprocessing import IMAGENET, Preprocessing
from bindkit.backbones.timm_models import open_timm
from bindkit.backbones.tower import Rows, VisionTower, check_contract, edited, patch_tokens
from bindkit.errors import BackboneError, GeometryError, InvalidParameterError
from bindkit.scenes.geometry import TokenLayout, WindowGeometry

NORMALIZATIONS = ("checkpoint", "imagenet")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# The paper resizes to 518 px for patches of 14 px and to 592 px for patches of 16 px: 37 patches each.
_PAPER_PATCHES_PER_SIDE = {14: 37, 16: 37}


@dataclass(frozen=True, eq=False)
class Backbone:
    """What `load_backbone` returns. Weights are frozen, float32, in evaluation mode.

    >>> import bindkit as bk
    >>> import torch
    >>> backbone = bk.load_backbone("random-init:vit")
    >>> backbone.n_layers, backbone.d_model, backbone.layout.n_prefix, backbone.layout.grid.n_patches
    (6, 128, 1, 196)
    >>> windows = torch.zeros(1, 112, 112, 3, dtype=torch.uint8)
    >>> backbone.activations(windows, layers=[0, 5])[5].shape       # float32 [window, patch, d_model]
    torch.Size([1, 196, 128])

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
    checks : tuple of str
        What the contract check saw, in words.
    precision : "float32", "bfloat16" or "float16"
        In which products are computed.
    config_digest : str or None
        Sha256 of what the checkpoint's config says of the computation, in hexadecimal.
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
    precision: str = "float32"
    config_digest: str | None = None

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
        self, windows: UInt8[Tensor, "window height width 3"], layers: Sequence[int], rows: Rows | None = None
    ) -> dict[int, Tensor]:
        """Patch activations at some layers: each block's output, before any final norm.

        Parameters
        ----------
        windows : uint8 tensor
            Windows of resized scenes, on any device; all of them go through the model in one batch.
        layers : sequence of int
            0-based; the forward pass stops behind the deepest.
        rows : pair of int tensors, optional
            The window and the patch of each row that is wanted, on the backbone's device. Default: every patch.

        Returns
        -------
        dict of int to float32 tensor
            Patch tokens only, on the backbone's device: [window, patch, d_model] with patches row-major, or
            [row, d_model].

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
        tokens = self.tower.activations(self.pixels(windows), wanted, rows)
        if rows is not None:
            return tokens
        return {layer: patch_tokens(tokens[layer], self.layout.grid.n_patches) for layer in wanted}

    def embedding(self, windows: UInt8[Tensor, "window height width 3"]) -> Float[Tensor, "window patch d_model"]:
        """Patch tokens at the input of block 0. Raises as `activations` does."""
        return patch_tokens(self.tower.embedding(self.pixels(windows)), self.layout.grid.n_patches)

    def edited(self, layer: int, change: Callable[[Tensor], Tensor | None]) -> AbstractContextManager[None]:
        """Let a layer put out other patches for as long as the context lasts, and what follows go on from them.

        ::

            with backbone.edited(3, lambda patches: 0.5 * patches):
                later = backbone.activations(windows, [5])[5]

        Parameters
        ----------
        layer : int
            0-based.
        change : callable
            Of float32 patches [window, patch, d_model], row-major, without prefix tokens: the same shape, or None to
            leave them as they are, bit for bit.

        Raises
        ------
        LayerError
            For a layer that the backbone does not have.
        InvalidParameterError
            In the forward pass, where the change gives another shape.
        """
        (layer,) = self.resolve_layers([layer])
        return edited(self.tower.blocks, layer, self.layout.n_prefix, change)

    def summary(self) -> dict[str, Any]:
        """One row for a table: what it is and how it looks at scenes (sizes in pixels)."""
        return summary_of(self.describe(), self.tower.n_parameters)

    def describe(self) -> dict[str, Any]:
        """Identity of the backbone as plain values that JSON can hold; equal for equal measurements."""
        described: dict[str, Any] = {
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
        if self.config_digest is not None:
            described["config_digest"] = self.config_digest
        return described if self.precision == "float32" else described | {"precision": self.precision}

    def pixels(self, windows: Tensor) -> Float[Tensor, "window 3 height width"]:
        """The model's input: uint8 windows on the backbone's device, normalised. Raises as `activations` does."""
        if not isinstance(windows, Tensor) or windows.dtype != torch.uint8:
            got = windows.dtype if isinstance(windows, Tensor) else type(windows).__name__
            raise InvalidParameterError(f"windows should be a uint8 tensor of pixels from 0 to 255, got {got}")
        side = self.geometry.window
        if windows.ndim != 4 or tuple(windows.shape[1:]) != (side, side, 3):
            raise GeometryError(
                f"windows of {self.name} should have the shape [window, {side}, {side}, 3], got "
                f"{list(windows.shape)}; load the backbone with another window= for other sizes"
            )
        return self.preprocessing.normalise(windows.to(self.device, non_blocking=True))


def summary_of(described: Mapping[str, Any], n_parameters: int) -> dict[str, Any]:
    """One row for a table, from what a backbone or a control says of itself."""
    return {
        "backbone": described["name"],
        "family": described["family"],
        "objective": described["objective"],
        "layers": described["n_layers"],
        "width": described["d_model"],
        "prefix tokens": described["n_prefix"],
        "patch": described["geometry"]["patch_size"],
        "window": described["geometry"]["window"],
        "short side": described["geometry"]["short_side"],
        "parameters": n_parameters,
    }


def load_backbone(
    name: str,
    *,
    window: int | None = None,
    short_side: int | None = None,
    normalization: str = "checkpoint",
    arithmetic: str = "centred",
    precision: str = "float32",
    revision: str | None = None,
    device: str | torch.device = "auto",
    objective: str | None = None,
) -> Backbone:
    """Load a ViT from a hub or a directory, check that it behaves as one, and freeze it.

    ``load_backbone("facebook/dinov2-small")`` needs a network once; ``load_backbone("random-init:dinov2")`` never.

    Parameters
    ----------
    name : str
        A hub id, a local directory, one that comes with bindkit (``bindkit/scenes-mae``, see `shipped_names`), one of
        timm (``timm:NAME``, ``timm:DIR``, ``timm:hf-hub:OWNER/MODEL``; ``pip install 'bindkit[timm]'``), one of your
        own (`register_backbone`), or ``random-init:NAME[,seed=0]`` with untrained weights, where NAME is ``dinov2``,
        ``vit`` (small, embedded) or any of the others.
    window : int, optional
        Side of the windows in pixels, a multiple of the patch. Default: the size that the model was trained on.
    short_side : int, optional
        Short side that scenes are resized to, in pixels. Default: 37 patches for patches of 14 and 16 px, as in the
        paper, but at least the window; else the window.
    normalization : {"checkpoint", "imagenet"}
        Whose mean and std to use; "imagenet" also resizes bicubically, which together is the paper's choice.
    arithmetic : {"centred", "reference"}
        How sizes, windows and masks are rounded; "reference" as in the paper's reference implementation, whose masks
        lie up to a pixel beside the picture. ``bindkit.probes.protocols.loading_options`` gives what a protocol takes.
    precision : {"float32", "bfloat16", "float16"}
        In which matrix products are computed (`torch.autocast`); weights, norms and the residual stream stay float32.
        On a GPU bfloat16 is several times as fast. It is part of what a cache is of.
    revision : str, optional
        Branch, tag or commit of a hub model.
    device : str or torch.device
        "auto" takes the GPU where there is one; else as torch names devices ("cpu", "cuda:1").
    objective : str, optional
        What the model was pretrained for, where bindkit cannot tell.

    Raises
    ------
    BackboneError
        If the checkpoint cannot be found or read, lacks weights or preprocessing, or is no vision transformer.
    ContractError
        If the model loads but its tokens are not its patches; see `bindkit.backbones.tower`.
    GeometryError
        If the window is no multiple of the patch, larger than the short side or none that the family takes, or for an
        unknown arithmetic.
    InvalidParameterError
        For options that do not exist.
    """
    options: dict[str, Any] = {"window": window, "short_side": short_side, "normalization": normalization}
    options |= {"arithmetic": arithmetic, "precision": precision, "revision": revision, "device": device}
    return read_model(name, **options, objective=objective).checked()


@dataclass(frozen=True, eq=False)
class Unchecked:
    """A model that has been read, and what it says of itself; nobody has looked at its tokens yet."""

    name: str
    revision: str | None
    shape: EncoderShape
    objective: str
    geometry: WindowGeometry
    preprocessing: Preprocessing
    model: nn.Module
    device: torch.device
    precision: str
    config_digest: str | None

    def checked(self) -> Backbone:
        """The backbone that it is. Raises ContractError if its tokens are not its patches."""
        tower = VisionTower.of(self.shape, self.model, PRECISIONS[self.precision])
        digest = tower.weights_digest()
        if self.shape.family == OWN:
            digest = digest_with_code(self.name, self.model, digest)
        tower.model.to(self.device)
        n_prefix, checks = check_contract(tower, self.preprocessing.normalise, self.geometry.window)
        return Backbone(
            name=self.name,
            revision=self.revision,
            family=self.shape.family,
            objective=self.objective,
            weights_digest=digest,
            geometry=self.geometry,
            layout=TokenLayout(n_prefix, self.geometry.grid),
            preprocessing=self.preprocessing,
            device=self.device,
            tower=tower,
            checks=checks,
            precision=self.precision,
            config_digest=self.config_digest,
        )


def read_model(
    name: str,
    window: int | None = None,
    short_side: int | None = None,
    normalization: str = "checkpoint",
    arithmetic: str = "centred",
    precision: str = "float32",
    revision: str | None = None,
    device: str | torch.device = "auto",
    objective: str | None = None,
) -> Unchecked:
    """All of `load_backbone` up to the contract check. Raises as it does, but for what that check finds."""
    # From cheap to costly: whatever is wrong should show before any weights are downloaded.
    target = read_device(device)
    if normalization not in NORMALIZATIONS:
        raise InvalidParameterError(f"unknown normalization {normalization!r}; choose one of {NORMALIZATIONS}")
    if precision not in PRECISIONS:
        raise InvalidParameterError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    require_kind(name, str, "a backbone is named by a hub id or a directory's path as text", BackboneError)
    random_init = parse_random_init(name)
    source = name if random_init is None else random_init.source
    if random_init is not None and random_init.is_embedded:
        opened = open_embedded(source)
    elif revision is not None and (source.startswith(TIMM) or module_of(source) or is_registered(source)):
        raise InvalidParameterError(
            f"{name} has no revision to choose, got {revision!r}; of timm's hub name it with the model: "
            "timm:hf-hub:OWNER/MODEL@REVISION"
        )
    elif source.startswith(TIMM):
        opened = open_timm(source)
    elif module_of(source) or is_registered(source):
        opened = open_own(source)
    else:
        opened = open_checkpoint(directory_of(source), revision)
    patch_size, native = opened.shape.patch_size, opened.shape.image_size
    if window is None:
        # Models crop a native size that is no multiple of their patch (384 px, patches of 14 px) in just this way.
        window = native // patch_size * patch_size
    if short_side is None:
        short_side = max(window, _PAPER_PATCHES_PER_SIDE.get(patch_size, 0) * patch_size)
    geometry = WindowGeometry(short_side, window, patch_size, arithmetic)
    if family_of_type(opened.shape.family).fixed_window and window != native:
        raise GeometryError(f"{name} ({opened.shape.family}) takes windows of {native} px alone, got {window}")
    return Unchecked(
        name=name,
        revision=opened.revision,
        shape=opened.shape,
        objective=objective or (opened.objective if random_init is None else "random-init"),
        geometry=geometry,
        preprocessing=IMAGENET if normalization == "imagenet" else opened.preprocessing(),
        model=opened.build(None if random_init is None else random_init.seed),
        device=target,
        precision=precision,
        config_digest=opened.config_digest,
    )
