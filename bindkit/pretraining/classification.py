"""Supervised classification: say which classes are in the scene (several may be)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bindkit.pretraining.objectives import VISION_SETTINGS, WIDTH, Objective, register
from bindkit.pretraining.training_scenes import SceneBatch
from bindkit.scenes.looks import SHAPES


@register
class Classification(Objective):
    """Binary cross-entropy in nats a class, read from the CLS token by a linear head."""

    name = "supervised"
    label = "supervised"
    supervision = "the classes that are in a scene"
    vision_part = "vit"

    def _build(self) -> nn.Module:
        from transformers import ViTConfig, ViTForImageClassification

        names = dict(enumerate(shape.name for shape in SHAPES))
        config = ViTConfig(
            **VISION_SETTINGS,
            intermediate_size=4 * WIDTH,
            id2label=names,
            label2id={name: number for number, name in names.items()},
            problem_type="multi_label_classification",
        )
        return ViTForImageClassification(config)

    def forward(self, batch: SceneBatch, generator: torch.Generator) -> Float[Tensor, ""]:  # noqa: D102
        loss: Tensor = self.model(batch.images.to(self.device), labels=batch.present().to(self.device)).loss
        return loss
