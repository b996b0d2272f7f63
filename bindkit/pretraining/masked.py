"""Masked reconstruction (MAE; He et al. 2022): see a quarter of the patches, draw the rest."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bindkit.backbones.untrained import sine_cosine_positions
from bindkit.pretraining.objectives import HEADS, VISION_SETTINGS, WIDTH, Objective, register
from bindkit.pretraining.training_scenes import GRID, SceneBatch

_DECODER_WIDTH = 64


@register
class MaskedReconstruction(Objective):
    """Mean squared error of the hidden patches' pixels, in units of the normalised image.

    The decoder is small (one block of width 64), so that most of the work is the encoder's.
    """

    name = "mae"
    label = "masked-reconstruction"
    supervision = "nothing"
    learning_rate = 2e-3
    vision_part = "vit"
    defaults: ClassVar[dict[str, Any]] = {"mask_ratio": 0.75}

    def _build(self) -> nn.Module:
        from transformers import ViTMAEConfig, ViTMAEForPreTraining

        config = ViTMAEConfig(
            **VISION_SETTINGS,
            intermediate_size=4 * WIDTH,
            decoder_hidden_size=_DECODER_WIDTH,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=HEADS,
            decoder_intermediate_size=4 * _DECODER_WIDTH,
            mask_ratio=self.settings["mask_ratio"],
            norm_pix_loss=False,
        )
        model = ViTMAEForPreTraining(config)
        with torch.no_grad():
            # transformers leaves these at zero; without them the decoder could not tell which patch to draw.
            model.decoder.mask_token.normal_(std=0.02)
            model.decoder.decoder_pos_embed[:, 1:] = sine_cosine_positions(GRID, GRID, _DECODER_WIDTH)
        return model

    def forward(self, batch: SceneBatch, generator: torch.Generator) -> Float[Tensor, ""]:  # noqa: D102
        noise = torch.rand(len(batch.images), GRID * GRID, generator=generator)
        loss: Tensor = self.model(batch.images.to(self.device), noise=noise.to(self.device)).loss
        return loss
