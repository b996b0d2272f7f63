"""Objectives that are told the classes of a scene: supervised classification, and matching with captions.

The captions of contrastive matching (CLIP; Radford et al. 2021) are written from the scene.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bindkit.pretraining.objectives import HEADS, VISION_SETTINGS, WIDTH, Objective, register
from bindkit.pretraining.training_scenes import SceneBatch
from bindkit.scenes.looks import SHAPES

PADDING, START, END = 0, 1, 3  # transformers reads an end token of 2 as "take the largest token instead"

_TEXT_LAYERS, _LENGTH, _JOINT_WIDTH = 2, 40, 64
_DOWN = ("upper", "central", "lower")
_ACROSS = ("left", "middle", "right")
_SILENT = frozenset({"a", "an", "at", "the"})


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


@register
class ImageText(Objective):
    """Cross-entropy in nats of finding each image's caption among the batch's, and each caption's image."""

    name = "clip"
    label = "contrastive"
    supervision = "captions: classes and where they are"
    vision_part = "vision_model"

    def _build(self) -> nn.Module:
        from transformers import CLIPConfig, CLIPModel

        self.words = vocabulary([shape.name for shape in SHAPES])
        text = {
            "vocab_size": len(self.words),
            "hidden_size": WIDTH,
            "intermediate_size": 4 * WIDTH,
            "num_hidden_layers": _TEXT_LAYERS,
            "num_attention_heads": HEADS,
            "max_position_embeddings": _LENGTH,
            "pad_token_id": PADDING,
            "bos_token_id": START,
            "eos_token_id": END,
        }
        vision = VISION_SETTINGS | {"intermediate_size": 4 * WIDTH}
        return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=_JOINT_WIDTH))

    def forward(self, batch: SceneBatch, generator: torch.Generator) -> Float[Tensor, ""]:  # noqa: D102
        captions = [caption(objects) for objects in batch.named_objects()]
        tokens = encode(captions, self.words, _LENGTH).to(self.device)
        loss: Tensor = self.model(
            input_ids=tokens,
            attention_mask=(tokens != PADDING).long(),
            pixel_values=batch.images.to(self.device),
            return_loss=True,
        ).loss
        return loss


def caption(objects: Sequence[tuple[str, float, float]]) -> str:
    """Say what is where, object by object: class name, and its middle (down, across) as shares 0..1 of the scene.

    >>> caption([("star", 0.1, 0.2), ("ring", 0.9, 0.5)]), caption([])
    ('a star at the upper left, a ring at the lower middle', 'nothing')
    """

    def third(share: float) -> int:
        return min(2, max(0, int(3 * share)))

    phrases = [f"a {name} at the {_DOWN[third(down)]} {_ACROSS[third(across)]}" for name, down, across in objects]
    return ", ".join(phrases) or "nothing"


def vocabulary(class_names: Sequence[str]) -> tuple[str, ...]:
    """Words of captions, one token each: class names in the order of their ids, then those for places; no articles."""
    return ("<padding>", "<start>", "nothing", "<end>", *class_names, *_DOWN, *_ACROSS)


def encode(captions: Sequence[str], words: Sequence[str], length: int) -> Int[Tensor, "caption length"]:
    """Tokens of captions, filled up with padding; what does not fit is cut off before the end token."""
    number = {word: token for token, word in enumerate(words)}
    tokens = torch.full((len(captions), length), PADDING)
    for row, text in enumerate(captions):
        spoken = [number[word] for word in text.replace(",", "").split() if word not in _SILENT]
        sequence = [START, *spoken[: length - 2], END]
        tokens[row, : len(sequence)] = torch.tensor(sequence)
    return tokens
