"""A backbone's own pretraining loss, batch by batch, while one of its layers may be edited."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from bindkit.backbones import Backbone
from bindkit.backbones.checkpoint import quiet
from bindkit.backbones.names import directory_of
from bindkit.backbones.tower import edited, find_blocks
from bindkit.errors import BackboneError
from bindkit.pretraining.objectives import OBJECTIVE_FILE, read_objective
from bindkit.pretraining.training_scenes import TRAINING_SCENES, TRAINING_SEED, TrainingScenes

HELD_OUT_SCENES = TRAINING_SCENES.replace("n=20000", "n=128").replace(f"seed={TRAINING_SEED}", "seed=11")
"""The shipped backbones' training recipe with a seed for measuring."""

_SCENES_PER_BATCH, _WINDOWS_PER_BATCH = 16, 16

Change = Callable[[Tensor], Tensor | None]


class PretrainingLoss:
    """What a backbone was pretrained to make small, on scenes that it never saw.

    Of a directory that `pretrain` wrote, and of the shipped backbones, that is the objective's own loss with the heads
    kept beside it, on `HELD_OUT_SCENES`. Of other MAE checkpoints it is the error of ``ViTMAEForPreTraining`` on the
    windows given, where the checkpoint holds a decoder. Raises BackboneError for all others, which keep nothing that
    a loss could be computed with.
    """

    def __init__(self, backbone: Backbone, windows: UInt8[Tensor, "window height width 3"], seed: int = 0) -> None:
        self._n_prefix, self._seed = backbone.layout.n_prefix, seed
        directory = Path(directory_of(backbone.name))
        if (directory / OBJECTIVE_FILE).exists():
            objective = read_objective(directory)
            self.name = objective.label
            self._towers: list[nn.Module] = [objective.model]
            if objective.saved_model() is not objective.model:  # a teacher
                self._towers.append(objective.saved_model())
            self._vision_part = objective.vision_part
            scenes = TrainingScenes.held_out(HELD_OUT_SCENES, workers=1, clips=objective.needs_clips)
            self._batches: Sequence[Any] = scenes.in_order(_SCENES_PER_BATCH)
            self._loss: Callable[[Any, torch.Generator], Tensor] = objective
        elif backbone.family == "vit_mae":
            model: Any = _with_decoder(backbone)
            self.name, self._towers, self._vision_part = "masked-reconstruction", [model], "vit"
            self._batches = [backbone.pixels(part).cpu() for part in windows.split(_WINDOWS_PER_BATCH)]
            n_patches = backbone.layout.grid.n_patches

            def reconstructed(pixels: Tensor, generator: torch.Generator) -> Tensor:
                noise = torch.rand(len(pixels), n_patches, generator=generator)
                loss: Tensor = model(pixels, noise=noise, interpolate_pos_encoding=True).loss
                return loss

            self._loss = reconstructed
        else:
            raise BackboneError(
                f"{backbone.name} keeps no head or decoder beside its encoder, so its pretraining loss cannot be "
                "computed; take an MAE checkpoint with its decoder, or a backbone that comes with bindkit"
            )

    def of_batches(self, layer: int = 0, change: Change | None = None) -> Float[np.ndarray, " batch"]:
        """Loss of every batch, with the same masks and crops at every call; `change` as `Backbone.edited` takes it."""
        generator = torch.Generator().manual_seed(self._seed)
        with torch.inference_mode(), contextlib.ExitStack() as stack:
            for tower in self._towers if change is not None else ():
                blocks = find_blocks(tower.get_submodule(self._vision_part))[1]
                stack.enter_context(edited(blocks, layer, self._n_prefix, cast(Change, change)))
            return np.array([float(self._loss(batch, generator)) for batch in self._batches])


def _with_decoder(backbone: Backbone) -> nn.Module:
    """The whole masked autoencoder of a checkpoint. Raises BackboneError where it has an encoder alone."""
    import transformers

    whole: Any = transformers.ViTMAEForPreTraining
    try:
        with quiet():
            model, report = whole.from_pretrained(
                directory_of(backbone.name),
                revision=backbone.revision,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise BackboneError(f"{backbone.name} cannot be read with its decoder: {error}") from error
    absent = sorted(key for key in report["missing_keys"] if not key.endswith("decoder_pos_embed"))
    if absent:
        raise BackboneError(
            f"the checkpoint {backbone.name} lacks weights of its decoder ({', '.join(absent[:3])}), so that its "
            "reconstruction error would be that of random numbers; take a checkpoint of the whole model"
        )
    found: nn.Module = model.eval().requires_grad_(False)
    return found
