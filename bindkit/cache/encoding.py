"""How activations lie on disk: one row of a table for each dtype, and numbers there and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

ACTIVATIONS, SCALES = "activations", "scales"
"""Names of a layer's tensors in its file: [row, d_model], and of scaled dtypes float32 [row]."""


@dataclass(frozen=True)
class Encoding:
    """A dtype of activations on disk."""

    stored: torch.dtype
    limit: float
    """Largest magnitude that it holds."""
    deviation: float
    """What a direct run may lie beside it, as a share of a layer's largest activation: its rounding, and what is left
    for other batch sizes, which change the last bits of float32."""
    in_file: str
    """What safetensors calls it."""
    scaled: bool = False
    """Whether every row is stored as multiples of its largest magnitude / 127."""

    def bytes_per_row(self, d_model: int) -> int:
        """Bytes of one patch's activations at one layer."""
        return d_model * self.stored.itemsize + 4 * self.scaled

    def encode(self, rows: Float[Tensor, "row d_model"], largest: Float[Tensor, " row"]) -> dict[str, Tensor]:
        """What is stored of rows, given the largest magnitude of each; on their device."""
        if not self.scaled:
            return {ACTIVATIONS: rows.to(self.stored)}
        scales = largest / 127
        multiples = rows / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        return {ACTIVATIONS: multiples.round_().clamp_(-127, 127).to(torch.int8), SCALES: scales}

    def decode(self, stored: Mapping[str, Tensor]) -> Float[Tensor, "row d_model"]:
        """Float32 of what is stored."""
        rows = stored[ACTIVATIONS].float()
        return rows.mul_(stored[SCALES][:, None]) if self.scaled else rows


ENCODINGS = {
    "float16": Encoding(torch.float16, torch.finfo(torch.float16).max, 1e-3, "F16"),
    "float32": Encoding(torch.float32, torch.finfo(torch.float32).max, 1e-4, "F32"),
    "bfloat16": Encoding(torch.bfloat16, torch.finfo(torch.bfloat16).max, 5e-3, "BF16"),
    "int8": Encoding(torch.int8, torch.finfo(torch.float32).max, 5e-3, "I8", scaled=True),
}
"""By the name that `cache_activations` takes. float16 rounds to 2**-11 of a value, bfloat16 to 2**-8, int8 to half of
1/127 of the row's largest."""
