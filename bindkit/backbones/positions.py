"""Fixed sine-cosine positions of a patch grid, and where the families keep their position embeddings.

>>> sine_cosine_positions(2, 3, width=8).shape
torch.Size([6, 8])
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bindkit.errors import BackboneError

_PLACES = ("embeddings.position_embeddings", "embeddings.position_embedding.weight")


def sine_cosine_positions(rows: int, cols: int, width: int) -> Float[Tensor, "patch width"]:
    """The embedding of He et al. (MAE, 2022, as published code has it): column in the first half, row in the second.

    Each half holds sines, then cosines, of ``position / 10000**(k / (width / 4))``.

    Raises
    ------
    BackboneError
        If the width is no multiple of four.
    """
    if width % 4:
        raise BackboneError(f"sine-cosine positions need a width that is a multiple of four, got {width}")
    # Python's own sine: torch's differs in the last bit from one process to the next, and so would an untrained twin.
    rates = [1.0 / 10000 ** (k / (width / 4)) for k in range(width // 4)]

    def along(n_positions: int) -> Tensor:
        angles = [[position * rate for rate in rates] for position in range(n_positions)]
        return torch.tensor([[*map(math.sin, row), *map(math.cos, row)] for row in angles], dtype=torch.float32)

    row, col = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    return torch.cat([along(cols)[col.reshape(-1)], along(rows)[row.reshape(-1)]], dim=1)


def position_embeddings(model: nn.Module) -> nn.Parameter:
    """The position embeddings of an encoder, prefix tokens included where they have one.

    Raises
    ------
    BackboneError
        If there are none in a place that bindkit knows.
    """
    found = [weight for name, weight in model.named_parameters() if name.endswith(_PLACES)]
    if len(found) != 1:
        raise BackboneError(
            f"{type(model).__name__} keeps its position embeddings in none of {', '.join(_PLACES)}; name another model"
        )
    return found[0]


def fill_positions(model: nn.Module, scale: float) -> None:
    """Set a freshly made encoder's position embeddings to `scale` times the sine-cosine ones; prefix tokens to zero.

    transformers 5.23 leaves those of a new MAE at zero, so that the model would not know where its patches lie.

    Raises
    ------
    BackboneError
        As `position_embeddings` does.
    """
    embeddings = position_embeddings(model)
    weight = embeddings.data.view(-1, embeddings.shape[-1])
    side = int((weight.shape[0]) ** 0.5)
    patches = sine_cosine_positions(side, side, weight.shape[1])
    weight.zero_()
    weight[-len(patches) :] = scale * patches


def start_positions(model: nn.Module, config: Any) -> None:
    """Give a new encoder the positions that its architecture starts from, where transformers does not.

    A config may carry ``position_embedding_scale`` (bindkit's own tiny backbones do); MAE starts at 1.
    """
    vision = getattr(config, "vision_config", None) or config
    scale = getattr(vision, "position_embedding_scale", None)
    if scale is None and getattr(vision, "model_type", "") == "vit_mae":
        scale = 1.0
    if scale is not None:
        fill_positions(model, float(scale))
