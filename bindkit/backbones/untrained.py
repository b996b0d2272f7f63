"""How untrained encoders start: embedded architectures, seeded weights, and the positions of their patch grid."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bindkit.errors import BackboneError

# Small enough for a laptop: 6 layers of width 128 over 14 x 14 patches of 8 px.
_SMALL: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "patch_size": 8,
    "image_size": 112,
}
_PLACES = ("embeddings.position_embeddings", "embeddings.position_embedding.weight")


def embedded_config(architecture: str) -> Any:
    """Config of an embedded architecture, ``"dinov2"`` or ``"vit"``."""
    import transformers

    if architecture == "dinov2":
        return transformers.Dinov2Config(**_SMALL, mlp_ratio=4)
    return transformers.ViTConfig(**_SMALL, intermediate_size=4 * _SMALL["hidden_size"])


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator and put its state back afterwards; CUDA generators are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def sine_cosine_positions(rows: int, cols: int, width: int) -> Float[Tensor, "patch width"]:
    """The embedding of He et al. (MAE, 2022, as published code has it): column in the first half, row in the second.

    Each half holds sines, then cosines, of ``position / 10000**(k / (width / 4))``. Raises BackboneError for a width
    that is no multiple of four.
    """
    if width % 4:
        raise BackboneError(f"sine-cosine positions need a width that is a multiple of four, got {width}")
    # Python's own sine: torch's differs in the last bit from one process to the next, and so would an untrained twin.
    rates = [1.0 / 10000 ** (k / (width / 4)) for k in range(width // 4)]

    def along(n_positions: int) -> Tensor:
        angles = [[position * rate for rate in rates] for position in range(n_positions)]
        return torch.tensor([[*map(math.sin, row), *map(math.cos, row)] for row in angles], dtype=torch.float32)

    return torch.cat([along(cols).repeat(rows, 1), along(rows).repeat_interleave(cols, 0)], dim=1)


def position_embeddings(model: nn.Module) -> nn.Parameter:
    """An encoder's position embeddings, prefix tokens included where they have one. Raises BackboneError for none."""
    found = [weight for name, weight in model.named_parameters() if name.endswith(_PLACES)]
    if len(found) != 1:
        raise BackboneError(
            f"{type(model).__name__} keeps its position embeddings in none of {', '.join(_PLACES)}; name another model"
        )
    return found[0]


def fill_positions(model: nn.Module, scale: float) -> None:
    """Set a new encoder's position embeddings to `scale` times the sine-cosine ones, those of prefix tokens to zero."""
    embeddings = position_embeddings(model)
    weight = embeddings.data.view(-1, embeddings.shape[-1])
    side = int((weight.shape[0]) ** 0.5)
    patches = sine_cosine_positions(side, side, weight.shape[1])
    weight.zero_()
    weight[-len(patches) :] = scale * patches
