"""Untrained backbones: the control that shows what an architecture gives without any training.

``random-init:dinov2`` and ``random-init:vit`` are small embedded architectures that need no download;
``random-init:NAME`` with any checkpoint is its *twin*: the checkpoint's config and preprocessing with fresh weights.

>>> parse_random_init("random-init:dinov2,seed=3")
RandomInit(source='dinov2', seed=3)
>>> parse_random_init("facebook/dinov2-small") is None
True
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bindkit.backbones.checkpoint import build_untrained
from bindkit.errors import InvalidParameterError

PREFIX = "random-init:"
EMBEDDED = ("dinov2", "vit")

# Small enough for a laptop: 6 layers of width 128 over 14 x 14 patches of 8 px.
_SMALL: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "patch_size": 8,
    "image_size": 112,
}


@dataclass(frozen=True)
class RandomInit:
    """What to build: an embedded architecture or a checkpoint to be the twin of, and the seed of the weights."""

    source: str
    seed: int

    @property
    def is_embedded(self) -> bool:
        """Whether the architecture comes with bindkit, so that nothing has to be read."""
        return self.source in EMBEDDED


def parse_random_init(name: str) -> RandomInit | None:
    """Read ``random-init:NAME[,seed=N]``; None for any other name.

    Raises
    ------
    InvalidParameterError
        If the name or the seed is missing or cannot be read.
    """
    if not name.startswith(PREFIX):
        return None
    source, _, option = name.removeprefix(PREFIX).partition(",seed=")
    if (
        not source.strip()
        or re.search(r",\w+=", source)
        or (",seed=" in name and not re.fullmatch(r"\d{1,18}", option))
    ):
        raise InvalidParameterError(
            f"cannot read {name!r}; write random-init:NAME or random-init:NAME,seed=0, where NAME is "
            f"{' or '.join(EMBEDDED)} (embedded), a hub id or a model directory"
        )
    return RandomInit(source.strip(), int(option or 0))


def embedded_config(architecture: str) -> Any:
    """Config of an embedded architecture, ``"dinov2"`` or ``"vit"``."""
    if architecture == "dinov2":
        from transformers import Dinov2Config

        return Dinov2Config(**_SMALL, mlp_ratio=4)
    from transformers import ViTConfig

    return ViTConfig(**_SMALL, intermediate_size=4 * _SMALL["hidden_size"])


def build_seeded(name: str, config: Any, seed: int) -> nn.Module:
    """Make an untrained vision encoder whose weights depend on `seed` alone.

    Raises
    ------
    BackboneError
        As `bindkit.backbones.checkpoint.build_untrained` does.
    """
    with _seeded(seed):
        return build_untrained(name, config)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator and put its state back afterwards; CUDA generators are left alone."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
