"""Contrastive matching of images and captions (CLIP; Radford et al. 2021), with captions written from the scene."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bindkit.pretraining.architecture import WIDTH, vision_settings
from bindkit.pretraining.captions import END, PADDING, START, Vocabulary, caption
from bindkit.pretraining.objectives import Objective, register
from bindkit.pretraining.training_scenes import SceneBatch
from bindkit.scenes.looks import SHAPES

_TEXT_LAYERS, _LENGTH, _JOINT_WIDTH = 2, 40, 64


@register
class ImageText(Objective):
    """Cross-entropy in nats of finding each image's caption among the batch's, and each caption's image."""

    name = "clip"
    label = "contrastive"
    supervision = "captions: classes and where they are"

    def _build(self) -> nn.Module:
        from transformers import CLIPConfig, CLIPModel

        self.vocabulary = Vocabulary.of([shape.name for shape in SHAPES])
        text = {
            "vocab_size": len(self.vocabulary.words),
            "hidden_size": WIDTH,
            "intermediate_size": 4 * WIDTH,
            "num_hidden_layers": _TEXT_LAYERS,
            "num_attention_heads": 4,
            "max_position_embeddings": _LENGTH,
            "pad_token_id": PADDING,
            "bos_token_id": START,
            "eos_token_id": END,
        }
        vision = vision_settings() | {"intermediate_size": 4 * WIDTH}
        return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=_JOINT_WIDTH))

    @property
    def vision(self) -> nn.Module:  # noqa: D102
        encoder: nn.Module = self.model.vision_model
        return encoder

    def forward(self, batch: SceneBatch, generator: torch.Generator) -> Float[Tensor, ""]:  # noqa: D102
        captions = [caption(objects) for objects in batch.named_objects()]
        tokens = self.vocabulary.encode(captions, _LENGTH).to(self.device)
        matched = self.model(
            input_ids=tokens,
            attention_mask=(tokens != PADDING).long(),
            pixel_values=batch.images.to(self.device),
            return_loss=True,
        )
        loss: Tensor = matched.loss
        return loss
