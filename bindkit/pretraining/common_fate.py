"""Common fate: see a still scene and how a few patches move, say how every patch moves.

This is conditional motion propagation (Zhan et al., "Self-Supervised Learning via Conditional Motion Propagation", CVPR
2019), but with the exact motion of synthetic objects in the place of optical flow: every object gets a random motion,
the ground stays. That motion is made from the instance masks, so the target tells which patches are one object. Here it
is therefore no self-supervised objective but a reference: what such a model can bind when it is asked to.

The hints enter behind the middle block. What the blocks before it compute comes from the picture alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bindkit.backbones.tower import find_blocks
from bindkit.pretraining.architecture import LAYERS, WIDTH, vision_settings
from bindkit.pretraining.objectives import Objective, register
from bindkit.pretraining.training_scenes import SceneBatch

_ENTRY = LAYERS // 2 - 1
"""Block behind which the hints are added."""


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

    def _build(self) -> nn.Module:
        from transformers import ViTConfig, ViTModel

        own: dict[str, Any] = {"intermediate_size": 4 * WIDTH, "pretraining_objective": self.label}
        config = ViTConfig(**vision_settings(), **own)
        self.hint = nn.Linear(3, WIDTH)
        self.answer = nn.Linear(WIDTH, 2)
        return ViTModel(config, add_pooling_layer=False)

    @property
    def vision(self) -> nn.Module:  # noqa: D102
        return self.model

    def heads(self) -> dict[str, Tensor]:  # noqa: D102
        named = {"hint": self.hint, "answer": self.answer}
        return {f"{part}.{key}": value for part, layer in named.items() for key, value in layer.state_dict().items()}

    def set_heads(self, heads: dict[str, Tensor]) -> None:  # noqa: D102
        for part, layer in (("hint", self.hint), ("answer", self.answer)):
            layer.load_state_dict({key: heads[f"{part}.{key}"] for key in ("weight", "bias")})

    def forward(self, batch: SceneBatch, generator: torch.Generator) -> Float[Tensor, ""]:  # noqa: D102
        device = self.device
        instances = batch.instances.flatten(1)
        motion = draw_motion(instances, generator)
        shown = draw_hints(instances, self.settings["hinted"], generator)[..., None].float()
        hints = shown.to(device) * self.hint(torch.cat([motion, shown], -1).to(device))
        with _added_behind(find_blocks(self.model)[1][_ENTRY], hints):
            tokens = self.model(batch.images.to(device)).last_hidden_state
        return (self.answer(tokens[:, 1:]) - motion.to(device)).square().mean()


@contextmanager
def _added_behind(block: nn.Module, hints: Float[Tensor, "scene patch width"]) -> Iterator[None]:
    """Add hints to a block's output at the patch tokens, for one forward pass."""

    def add(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        tokens = output[0] if isinstance(output, tuple) else output
        tokens = torch.cat([tokens[:, :1], tokens[:, 1:] + hints], 1)
        return (tokens, *output[1:]) if isinstance(output, tuple) else tokens

    handle = block.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


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
    chosen = torch.zeros_like(instances, dtype=torch.bool)
    given = torch.rand(len(instances), n_instances, generator=generator) < hinted
    for instance in range(n_instances):
        own = instances == instance
        first = torch.where(own, keys, -1.0).argmax(1, keepdim=True)
        chosen |= torch.zeros_like(chosen).scatter_(1, first, given[:, instance : instance + 1]) & own
    return chosen
