"""A model before its weights are read: what can be known of it cheaply, and how the rest is had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from bindkit.backbones.families import EncoderShape
from bindkit.backbones.preprocessing import Preprocessing


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
