"""Objectives that answer for every patch: masked reconstruction, and common fate.

Masked reconstruction (MAE; He et al. 2022): see a quarter of the patches, draw the rest.

Common fate: see a still scene and how a few patches move, say how every patch moves. This is conditional motion
propagation (Zhan et al., "Self-Supervised Learning via Conditional Motion Propagation", CVPR 2019), but with the exact
motion of synthetic objects in the place of optical flow: every object gets a random motion, the ground stays. That
motion is made from the instance masks, so the target tells which patches are one object. Here it is therefore no
self-supervised objective but a reference: what such a model can bind when it is asked to. The hints enter behind the
middle block. What the blocks before it compute comes from the picture alone.

Matched flow: the same where pixels tell what moves together, by matching two frames (`bindkit.pretraining.clips`). That
sees no mask: self-supervised.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bindkit.backbones.checkpoint import sine_cosine_positions
from bindkit.backbones.tower import find_blocks
from bindkit.pretraining.clips import UNSURE
from bindkit.pretraining.objectives import HEADS, LAYERS, VISION_SETTINGS, WIDTH, Objective, register
from bindkit.pretraining.training_scenes import GRID, SceneBatch

_DECODER_WIDTH = 64
_ENTRY = LAYERS // 2 - 1
"""Block behind which the hints are added."""


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


@register
class CommonFate(Objective):
    """Mean squared error of every patch's motion (down, across), of which each object's has variance one."""

    name = "motion"
    label = "common-fate"
    supervision = (
        "which patches move together, from the generator's own masks: the very partition that a probe asks for"
    )
    learning_rate = 1.5e-3
    defaults: ClassVar[dict[str, Any]] = {"hinted": 0.8}
    head_parts: ClassVar[dict[str, str]] = {"hint": "hint", "answer": "answer"}

    def _build(self) -> nn.Module:
        from transformers import ViTConfig, ViTModel

        own: dict[str, Any] = {"intermediate_size": 4 * WIDTH, "pretraining_objective": self.label}
        self.hint = nn.Linear(3, WIDTH)
        self.answer = nn.Linear(WIDTH, 2)
        return ViTModel(ViTConfig(**VISION_SETTINGS, **own), add_pooling_layer=False)

    def forward(self, batch: SceneBatch, generator: torch.Generator) -> Float[Tensor, ""]:  # noqa: D102
        together, known = self._together(batch)
        motion = draw_motion(together, generator)
        shown = draw_hints(together, self.settings["hinted"], generator) & known
        errors: Tensor = (self._answers(batch, motion, shown) - motion.to(self.device)).square()
        return errors[known.to(self.device)].mean()

    def _together(self, batch: SceneBatch) -> tuple[Int[Tensor, "scene patch"], Bool[Tensor, "scene patch"]]:
        """Patches of one number move together, those of 0 stay; and which patches are shown, and asked, at all."""
        instances = batch.instances.flatten(1)
        return instances, torch.ones_like(instances, dtype=torch.bool)

    def _answers(
        self, batch: SceneBatch, motion: Float[Tensor, "scene patch 2"], shown: Bool[Tensor, "scene patch"]
    ) -> Float[Tensor, "scene patch 2"]:
        """The motion that the model says of every patch, where it is shown that of some."""
        marks = shown[..., None].float()
        hints = marks.to(self.device) * self.hint(torch.cat([motion, marks], -1).to(self.device))

        def add(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            tokens = output[0] if isinstance(output, tuple) else output
            tokens = torch.cat([tokens[:, :1], tokens[:, 1:] + hints], 1)
            return (tokens, *output[1:]) if isinstance(output, tuple) else tokens

        with find_blocks(self.model)[1][_ENTRY].register_forward_hook(add):
            tokens = self.model(batch.images.to(self.device)).last_hidden_state
        answers: Tensor = self.answer(tokens[:, 1:])
        return answers


@register
class MatchedFlow(CommonFate):
    """The same, where patches that moved alike between two frames are to move together; mean over those matched.

    Each motion of a clip is drawn anew whenever the clip is seen: what follows it might as well have moved so.
    """

    name = "flow"
    label = "conditional-motion"
    supervision = "a second frame, in which objects have moved: motion is what matching pixels finds, no mask is used"
    needs_clips = True

    def _together(self, batch: SceneBatch) -> tuple[Int[Tensor, "scene patch"], Bool[Tensor, "scene patch"]]:
        assert batch.moving is not None, "scenes of an objective that needs clips are clips"
        moving = batch.moving.flatten(1)
        return moving, moving != UNSURE


def draw_motion(instances: Int[Tensor, "scene patch"], generator: torch.Generator) -> Float[Tensor, "scene patch 2"]:
    """A random motion for every instance, the same at all its patches; zero for the ground."""
    motions = torch.randn(len(instances), int(instances.max()) + 1, 2, generator=generator)
    motions[:, 0] = 0.0
    return motions.gather(1, instances[..., None].expand(-1, -1, 2))


def draw_hints(
    instances: Int[Tensor, "scene patch"], hinted: float, generator: torch.Generator
) -> Bool[Tensor, "scene patch"]:
    """Mark one random patch of each instance, of the ground too, with probability `hinted`."""
    keys = torch.rand(instances.shape, generator=generator)
    n_instances = int(instances.max()) + 1
    given = torch.rand(len(instances), n_instances, generator=generator) < hinted
    first = torch.full(given.shape, -1.0).scatter_reduce(1, instances, keys, "amax")
    return (keys == first.gather(1, instances)) & given.gather(1, instances)
