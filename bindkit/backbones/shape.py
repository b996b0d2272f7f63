"""What a checkpoint's config says of its vision encoder, read and checked before any weights are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bindkit.backbones.families import family_of_type
from bindkit.errors import BackboneError


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of a vision encoder; sides in pixels."""

    family: str
    """The row of the family table, or ``config.model_type`` for a family that is not in it."""
    patch_size: int
    image_size: int
    """Side of the windows that it was trained on."""
    d_model: int
    n_layers: int | None
    n_prefix: int | None
    """Prefix tokens that its family has; None where nobody has said."""

    @classmethod
    def of_config(cls, name: str, config: Any) -> EncoderShape:
        """Read the sizes from the config of checkpoint `name`.

        Raises
        ------
        BackboneError
            If the config does not describe a ViT on square RGB windows.
        """
        family = family_of_type(config.model_type)
        vision = vision_config_of(config)
        patch_size = _square_side(name, vision, "patch_size")
        image_size = _square_side(name, vision, "image_size")
        d_model, n_layers = getattr(vision, "hidden_size", None), getattr(vision, "num_hidden_layers", None)
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
            family=family.name if family is not None else config.model_type,
            patch_size=patch_size,
            image_size=image_size,
            d_model=d_model,
            n_layers=n_layers if isinstance(n_layers, int) else None,
            n_prefix=family.prefix_tokens(vision) if family is not None else None,
        )


def vision_config_of(config: Any) -> Any:
    """Return the part of a config that describes the vision encoder."""
    return getattr(config, "vision_config", None) or config


def _square_side(name: str, config: Any, what: str) -> int:
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
            f"{name} ({config.model_type}) has no {what} in its config (got {side!r}), so it is no ViT that bindkit "
            "can read; choose a vision transformer such as facebook/dinov2-small"
        )
    return side
