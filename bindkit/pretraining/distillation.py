"""Self-distillation (DINO; Caron et al. 2021), with a patch term (iBOT; Zhou et al. 2022) as an option.

A student sees several crops of a scene, a teacher (the student's moving average) only the large ones; for every pair of
different crops the student has to give the teacher's answer. Centring and sharpening the teacher keep both from saying
the same of everything. The patch term hides patches of the student's large crops and asks for the teacher's answer
there.
"""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, log_softmax, normalize, softmax

from bindkit.pretraining.objectives import VISION_SETTINGS, WIDTH, Objective, register
from bindkit.pretraining.training_scenes import GRID, SIDE, SceneBatch

_CODES, _BOTTLENECK, _HIDDEN = 512, 64, 256
_STUDENT_TEMPERATURE, _TEACHER_TEMPERATURE = 0.1, 0.05
_CENTRE_MOMENTUM = 0.9
_FIRST_MOMENTUM = 0.99


class Head(nn.Module):
    """Scores of a token against a set of codes: two layers, a normalised bottleneck, codes of length one."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Sequential(nn.Linear(WIDTH, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, _BOTTLENECK))
        self.codes = nn.Parameter(torch.randn(_CODES, _BOTTLENECK))

    def forward(self, tokens: Float[Tensor, "*token width"]) -> Float[Tensor, "*token code"]:
        """Cosine of each token with each code."""
        return normalize(self.narrow(tokens), dim=-1) @ normalize(self.codes, dim=-1).T


@register
class SelfDistillation(Objective):
    """Cross-entropy in nats between the teacher's and the student's distribution over 512 codes."""

    name = "dino"
    label = "self-distillation"
    supervision = "nothing"
    learning_rate = 5e-4
    defaults: ClassVar[dict[str, Any]] = {"patch_term": True, "large_crops": 2, "small_crops": 2}
    head_parts: ClassVar[dict[str, str]] = {
        "head": "teacher_head",
        "patch_head": "teacher_patch_head",
        "centre": "centre",
        "patch_centre": "patch_centre",
    }
    centre: Tensor
    patch_centre: Tensor

    def __init__(self, seed: int = 0, **settings: Any) -> None:
        super().__init__(seed, **settings)
        self.teacher = copy.deepcopy(self.model).requires_grad_(False)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.teacher_patch_head = copy.deepcopy(self.patch_head).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(_CODES))
        self.register_buffer("patch_centre", torch.zeros(_CODES))

    def _build(self) -> nn.Module:
        from transformers import Dinov2Config, Dinov2Model

        config = Dinov2Config(**VISION_SETTINGS, mlp_ratio=4, use_mask_token=True, layerscale_value=1.0)
        student = Dinov2Model(config)
        self.head, self.patch_head = Head(), Head()
        return student

    def saved_model(self) -> Any:
        """The teacher, as is usual: it is the better of the two."""
        return self.teacher

    def _teachers_and_students(self) -> tuple[tuple[nn.Module, nn.Module], ...]:
        return (
            (self.teacher, self.model),
            (self.teacher_head, self.head),
            (self.teacher_patch_head, self.patch_head),
        )

    def set_heads(self, heads: dict[str, Tensor]) -> None:
        """Teacher and student alike: of a saved model only the teacher is kept."""
        super().set_heads(heads)
        for teacher, student in self._teachers_and_students():
            student.load_state_dict(teacher.state_dict())

    def forward(self, batch: SceneBatch, generator: torch.Generator) -> Float[Tensor, ""]:  # noqa: D102
        n_large, n_small = self.settings["large_crops"], self.settings["small_crops"]
        large = [crop(batch.images, 0.5, 1.0, SIDE, generator).to(self.device) for _ in range(n_large)]
        small = [crop(batch.images, 0.15, 0.5, SIDE // 2, generator).to(self.device) for _ in range(n_small)]
        hidden = hide(len(batch.images) * n_large, generator).to(self.device) if self.settings["patch_term"] else None
        with torch.no_grad():
            seen = self.teacher(torch.cat(large)).last_hidden_state
            scores, patch_scores = self.teacher_head(seen[:, 0]), self.teacher_patch_head(seen[:, 1:])
            wanted = softmax((scores - self.centre) / _TEACHER_TEMPERATURE, -1).chunk(n_large)
        guessed = self.model(torch.cat(large), bool_masked_pos=hidden).last_hidden_state
        given = list(self.head(guessed[:, 0]).chunk(n_large))
        if small:
            given += self.head(self.model(torch.cat(small)).last_hidden_state[:, 0]).chunk(n_small)
        terms = [
            _cross_entropy(answer, target).mean()
            for k, target in enumerate(wanted)
            for j, answer in enumerate(given)
            if j != k
        ]
        loss = torch.stack(terms).mean()
        if hidden is not None:
            with torch.no_grad():
                patch_wanted = softmax((patch_scores[hidden] - self.patch_centre) / _TEACHER_TEMPERATURE, -1)
            loss = loss + _cross_entropy(self.patch_head(guessed[:, 1:][hidden]), patch_wanted).mean()
        if self.training:
            with torch.no_grad():
                for centre, found in ((self.centre, scores), (self.patch_centre, patch_scores.flatten(0, 1))):
                    centre.lerp_(found.mean(0), 1 - _CENTRE_MOMENTUM)
        return loss

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the teacher towards the student; ever more slowly, along half a cosine."""
        share = (1 - _FIRST_MOMENTUM) * (math.cos(math.pi * progress) + 1) / 2
        for teacher, student in self._teachers_and_students():
            for own, towards in zip(teacher.parameters(), student.parameters(), strict=True):
                own.lerp_(towards, share)


def _cross_entropy(scores: Tensor, wanted: Tensor) -> Tensor:
    return -(wanted * log_softmax(scores / _STUDENT_TEMPERATURE, -1)).sum(-1)


def crop(
    images: Float[Tensor, "scene 3 side side"], least: float, most: float, side: int, generator: torch.Generator
) -> Float[Tensor, "scene 3 out out"]:
    """One square crop of every image, resized to `side`, mirrored half of the time, a little brighter or darker.

    Its area is a share of the image's drawn from `least` to `most`; bilinear.
    """
    n_scenes = len(images)
    area, down, across, mirror, light = torch.rand(5, n_scenes, generator=generator)
    extent = (least + (most - least) * area).sqrt()
    transform = torch.zeros(n_scenes, 2, 3)
    transform[:, 0, 0] = extent * torch.where(mirror < 0.5, -1.0, 1.0)
    transform[:, 1, 1] = extent
    transform[:, 0, 2] = (2 * across - 1) * (1 - extent)
    transform[:, 1, 2] = (2 * down - 1) * (1 - extent)
    places = affine_grid(transform, [n_scenes, 3, side, side], align_corners=False)
    return grid_sample(images, places, padding_mode="border", align_corners=False) + (light - 0.5).view(-1, 1, 1, 1)


def hide(n_crops: int, generator: torch.Generator) -> Bool[Tensor, "crop patch"]:
    """Patches to hide from the student: none in every other crop, else a tenth to a half of them."""
    share = 0.1 + 0.4 * torch.rand(n_crops, 1, generator=generator)
    share[::2] = 0.0
    return torch.rand(n_crops, GRID * GRID, generator=generator) < share
