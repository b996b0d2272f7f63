"""The ViT families that bindkit knows, of transformers and of timm, one row each, and what a config says of an encoder.

`Opened` is a model before its weights are read: what can be known of it cheaply, and how the rest is had.

Anything of transformers that is not in the table is tried generically.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from bindkit.backbones.preprocessing import Preprocessing
from bindkit.errors import BackboneError


@dataclass(frozen=True)
class Family:
    """How one family of models is loaded and called, and what its token sequence looks like.

    The rows were checked against transformers 5.24 and timm 1.0.31; the contract check on load would notice a change.
    """

    name: str
    """``config.model_type`` of the vision model; of timm's classes ``timm.CLASS``."""
    model_class: str
    """Class of transformers (of timm) that holds the vision encoder alone."""
    objective: str
    """What the family was pretrained for; ``"by-architecture"`` where only the checkpoint's config can tell."""
    n_prefix: int | None
    """CLS and distillation tokens in front of the patch tokens; None where nobody has said."""
    registers: bool = False
    """Whether ``config.num_register_tokens`` more prefix tokens follow."""
    any_size: bool | None = False
    """Whether it takes windows of any size without ``interpolate_pos_encoding=True``; None: ask its signature."""
    fixed_window: bool = False
    """Whether only windows of the size that it was trained on can be shown."""
    masks_patches: bool = False
    """Whether the forward pass drops and shuffles patches unless told not to (MAE)."""
    takes_patches: bool = False
    """Whether it takes patches cut out beforehand in place of pixels (the NaFlex models of SigLIP 2)."""
    adds: str = ""
    """What its blocks do to queries and keys, or add to their products, behind the maps that `attention_maps` gives."""
    examples: tuple[str, ...] = ()
    """Some checkpoints, for the table of bindkit/README.md."""
    model_arguments: dict[str, Any] = field(default_factory=dict)
    """Arguments of the model class, to leave out parts that are never used."""
    aliases: tuple[str, ...] = ()
    """Other model types whose checkpoints hold this vision encoder (a text and image model, for example)."""

    @property
    def is_known(self) -> bool:
        """Whether it is a row of the table."""
        return self in FAMILIES

    @property
    def is_timms(self) -> bool:
        """Whether timm has its class, and not transformers."""
        return self.name.startswith("timm.")

    def prefix_tokens(self, config: Any) -> int | None:
        """Number of prefix tokens that a model with this config puts in front of the patch tokens."""
        registers = config.num_register_tokens if self.registers else 0
        return None if self.n_prefix is None else self.n_prefix + registers

    def table_row(self) -> tuple[str, ...]:
        """The facts in words, for bindkit/README.md: name, checkpoints, prefix tokens, other windows, q k v."""
        said = "as the model says" if self.n_prefix is None else str(self.n_prefix)
        return (
            f"`{self.name}`",
            ", ".join(f"`{name}`" for name in self.examples),
            f"{said} + registers" if self.registers else said,
            "its own alone" if self.fixed_window else "yes",
            f"without {self.adds}" if self.adds else "yes",
        )


_NO_POOLER = {"add_pooling_layer": False}
ROTATION, BIAS = "a rotation", "a position bias"

# fmt: off
FAMILIES = (
    Family("dinov2", "Dinov2Model", "self-distillation", 1, any_size=True,
           examples=("facebook/dinov2-large", "facebook/webssl-dino1b-full2b-224")),
    Family("dinov2_with_registers", "Dinov2WithRegistersModel", "self-distillation", 1, registers=True, any_size=True,
           examples=("facebook/dinov2-with-registers-large",)),
    Family("dinov3_vit", "DINOv3ViTModel", "self-distillation", 1, registers=True, any_size=True, adds=ROTATION,
           examples=("facebook/dinov3-vitl16-pretrain-lvd1689m",)),
    Family("vit", "ViTModel", "by-architecture", 1, model_arguments=_NO_POOLER,
           examples=("google/vit-base-patch16-224", "facebook/dino-vitb16")),
    Family("deit", "DeiTModel", "by-architecture", 2, model_arguments=_NO_POOLER,
           examples=("facebook/deit-base-distilled-patch16-224",)),
    Family("vit_mae", "ViTMAEModel", "masked-reconstruction", 1, masks_patches=True,
           examples=("facebook/vit-mae-large",)),
    Family("clip_vision_model", "CLIPVisionModel", "contrastive", 1, aliases=("clip",),
           examples=("openai/clip-vit-large-patch14", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
                     "facebook/metaclip-b32-400m")),
    Family("metaclip_2_vision_model", "MetaClip2VisionModel", "contrastive", 1, aliases=("metaclip_2",),
           examples=("facebook/metaclip-2-worldwide-huge-quickgelu",)),
    Family("siglip_vision_model", "SiglipVisionModel", "contrastive", 0, aliases=("siglip",),
           examples=("google/siglip-base-patch16-224", "google/siglip2-base-patch16-224")),
    Family("siglip2_vision_model", "Siglip2VisionModel", "contrastive", 0, any_size=True, takes_patches=True,
           aliases=("siglip2",), examples=("google/siglip2-base-patch16-naflex",)),
    Family("beit", "BeitModel", "masked-reconstruction", 1, any_size=True, model_arguments=_NO_POOLER, adds=BIAS,
           examples=("microsoft/beit-base-patch16-224-pt22k",)),
    Family("data2vec-vision", "Data2VecVisionModel", "self-prediction", 1, any_size=True, model_arguments=_NO_POOLER,
           adds=BIAS, examples=("facebook/data2vec-vision-base",)),
    Family("ijepa", "IJepaModel", "self-prediction", 0, model_arguments=_NO_POOLER,
           examples=("facebook/ijepa_vith14_1k",)),
    Family("timm.VisionTransformer", "VisionTransformer", "unknown", None, any_size=True,
           examples=("timm:vit_base_patch16_224.augreg_in21k", "timm:vit_small_patch14_reg4_dinov2.lvd142m")),
    Family("timm.VisionTransformerDistilled", "VisionTransformerDistilled", "unknown", 2, any_size=True,
           examples=("timm:deit_base_distilled_patch16_224.fb_in1k",)),
    Family("timm.Eva", "Eva", "unknown", None, any_size=True, adds=ROTATION,
           examples=("timm:eva02_base_patch14_224.mim_in22k",)),
    Family("timm.Beit", "Beit", "unknown", 1, any_size=True, fixed_window=True, adds=BIAS,
           examples=("timm:beitv2_base_patch16_224.in1k_ft_in22k",)),
)
# fmt: on

_BY_TYPE = {model_type: family for family in FAMILIES for model_type in (family.name, *family.aliases)}


def family_of_type(model_type: str) -> Family:
    """Row of a ``config.model_type``; for one that is not in the table, what can be tried with it."""
    unknown = Family(model_type, "AutoModel", "unknown", n_prefix=None, any_size=None)
    return _BY_TYPE.get(model_type, unknown)


def objective_of(config: Any) -> str:
    """Pretraining objective of a checkpoint, as far as its family and config tell; ``"unknown"`` otherwise.

    ViT and DeiT checkpoints with a classifier are supervised. The same architectures without one (DINO, for example)
    carry no trace of how they were trained. A config may say it itself, as ``pretraining_objective``.
    """
    stated = getattr(config, "pretraining_objective", None)
    if isinstance(stated, str):
        return stated
    family = family_of_type(config.model_type)
    if family.objective != "by-architecture":
        return family.objective
    architectures = getattr(config, "architectures", None) or ()
    return "supervised" if any("ForImageClassification" in one for one in architectures) else "unknown"


def vision_config_of(config: Any) -> Any:
    """The part of a config that describes the vision encoder."""
    return getattr(config, "vision_config", None) or config


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of a vision encoder, read and checked before any weights are; sides in pixels."""

    family: str
    """The row of the family table, or ``config.model_type`` for a family that is not in it."""
    patch_size: int
    image_size: int
    """Side of the windows that it was trained on."""
    d_model: int
    n_layers: int | None
    n_prefix: int | None
    """Prefix tokens that its family has; None where nobody has said."""
    n_heads: int | None = None
    """Attention heads of a block; None where nobody has said."""
    blocks_at: str | None = None
    """Where in the model its blocks lie; None: its longest list of like modules."""

    @classmethod
    def of_config(cls, name: str, config: Any) -> EncoderShape:
        """Sizes of checkpoint `name`. Raises BackboneError for a config of anything but a ViT on square RGB windows."""
        family = family_of_type(config.model_type)
        vision = vision_config_of(config)
        patch_size = square_side(name, vision, "patch_size")
        if family.takes_patches:
            image_size = math.isqrt(vision.num_patches) * patch_size
        else:
            image_size = square_side(name, vision, "image_size")
        d_model, n_layers = getattr(vision, "hidden_size", None), getattr(vision, "num_hidden_layers", None)
        n_heads = getattr(vision, "num_attention_heads", None)
        if not isinstance(d_model, int):
            raise BackboneError(
                f"{name} ({config.model_type}) has no single hidden_size in its config (got {d_model!r}), so it is no "
                "plain ViT; choose one such as facebook/dinov2-small"
            )
        if getattr(vision, "num_channels", 3) != 3:
            raise BackboneError(
                f"{name} takes {vision.num_channels} channels, and bindkit reads RGB images; choose an RGB model"
            )
        return cls(
            family=family.name,
            patch_size=patch_size,
            image_size=image_size,
            d_model=d_model,
            n_layers=n_layers if isinstance(n_layers, int) else None,
            n_prefix=family.prefix_tokens(vision),
            n_heads=n_heads if isinstance(n_heads, int) else None,
        )


def square_side(name: str, config: Any, what: str) -> int:
    """A side in pixels that a config, or a module, says as one number or as two. Raises BackboneError for others."""
    side = getattr(config, what, None)
    if isinstance(side, list | tuple) and side:
        if len(set(side)) != 1:
            raise BackboneError(
                f"{name} has {what} {tuple(side)} in its config, and bindkit shows models square windows of square "
                "patches; choose a checkpoint that was trained on them"
            )
        side = side[0]
    if isinstance(side, bool) or not isinstance(side, int) or side < 1:
        raise BackboneError(
            f"{name} has no {what} in its config (got {side!r}), so it is no ViT that bindkit "
            "can read; choose a vision transformer such as facebook/dinov2-small"
        )
    return side


@dataclass(frozen=True)
class Opened:
    """What a checkpoint of transformers, a model of timm or one of somebody's own says of itself."""

    shape: EncoderShape
    objective: str
    preprocessing: Callable[[], Preprocessing]
    """Its own. Raises BackboneError if it says none."""
    build: Callable[[int | None], nn.Module]
    """Its encoder on the CPU in float32, frozen: pretrained, or untrained from this seed. Raises BackboneError."""
    config_digest: str | None = None
    """Of what its config says of the computation beside the weights (heads, scales, norms); None without a config."""
    revision: str | None = None
    """Commit of the hub that its files come from."""


def frozen(model: nn.Module) -> nn.Module:
    """The model itself, float32, in evaluation mode, without gradients."""
    return model.float().eval().requires_grad_(False)
