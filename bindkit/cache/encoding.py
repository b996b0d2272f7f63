"""How activations lie on disk: one row of a table for each dtype, and numbers there and back.

int8 has one scale a patch. A few channels of large ViTs are a hundred times as large as the rest and would take that
scale up, so a patch is turned first by a fixed orthogonal map: signs, and Hadamard matrices of up to `_BLOCK` channels
(as QuaRot does, arXiv 2404.00456). Turning back multiplies whole numbers by 1 and -1, which is exact in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import hadamard
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
    """Whether every row is turned and stored as multiples of its largest magnitude / 127."""

    def bytes_per_row(self, d_model: int) -> int:
        """Bytes of one patch's activations at one layer."""
        return d_model * self.stored.itemsize + 4 * self.scaled

    def encode(self, rows: Float[Tensor, "row d_model"]) -> dict[str, Tensor]:
        """What is stored of rows, on their device."""
        if not self.scaled:
            return {ACTIVATIONS: rows.to(self.stored)}
        signs, matrix = turning(rows.shape[1], rows.device)
        turned = ((rows * signs).unflatten(1, (-1, len(matrix))) @ matrix).flatten(1)
        scales = turned.abs().amax(dim=1) / 127
        multiples = turned / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        return {ACTIVATIONS: multiples.round_().clamp_(-127, 127).to(torch.int8), SCALES: scales / len(matrix)}

    def decode(self, stored: Mapping[str, Tensor]) -> Float[Tensor, "row d_model"]:
        """Float32 of what is stored."""
        rows = stored[ACTIVATIONS].float()
        if not self.scaled:
            return rows
        signs, matrix = turning(rows.shape[1], rows.device)
        back = (rows.unflatten(1, (-1, len(matrix))) @ matrix).flatten(1)
        return back.mul_(signs).mul_(stored[SCALES][:, None])


@lru_cache
def turning(d_model: int, device: torch.device) -> tuple[Float[Tensor, " d_model"], Float[Tensor, "block block"]]:
    """Signs of the channels, and the matrix that mixes each block of them; it is its own inverse times its size."""
    block = min(d_model & -d_model, _BLOCK)
    words = np.random.PCG64(0).random_raw(d_model)  # the same in every version of NumPy
    signs = np.where(words >> np.uint64(63), 1.0, -1.0)
    with torch.inference_mode(False):
        return torch.tensor(signs, dtype=torch.float32, device=device), torch.tensor(
            hadamard(block), dtype=torch.float32, device=device
        )


_BLOCK = 128

ENCODINGS = {
    "float16": Encoding(torch.float16, torch.finfo(torch.float16).max, 1e-3, "F16"),
    "float32": Encoding(torch.float32, torch.finfo(torch.float32).max, 1e-4, "F32"),
    "bfloat16": Encoding(torch.bfloat16, torch.finfo(torch.bfloat16).max, 5e-3, "BF16"),
    "int8": Encoding(torch.int8, torch.finfo(torch.float32).max / 256, 2e-2, "I8", scaled=True),
}
"""By the name that `cache_activations` takes. float16 rounds to 2**-11 of a value, bfloat16 to 2**-8, int8 to half of
1/127 of the row's largest."""
