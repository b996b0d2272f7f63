"""Tiny backbones, pretrained on synthetic scenes with different objectives: the controlled experiment.

One architecture (a ViT of just under a million parameters), one stream of scenes, several objectives. Backbones that
were trained on as many scenes differ in the objective and nothing else; those that are shipped saw different numbers of
scenes, as their cards say.

>>> sorted(OBJECTIVES)
['clip', 'dino', 'flow', 'mae', 'motion', 'supervised']
"""

from bindkit.pretraining import class_objectives, distillation, patch_objectives  # noqa: F401
from bindkit.pretraining.cards import ship
from bindkit.pretraining.class_objectives import caption
from bindkit.pretraining.loop import PretrainingRun, checkpoints_of, pretrain
from bindkit.pretraining.objectives import OBJECTIVES, Objective, objective_loss, read_objective
from bindkit.pretraining.training_scenes import GRID, PATCH, SIDE, TRAINING_SCENES, TRAINING_SEED, TrainingScenes

__all__ = [
    "GRID",
    "OBJECTIVES",
    "PATCH",
    "SIDE",
    "TRAINING_SCENES",
    "TRAINING_SEED",
    "Objective",
    "PretrainingRun",
    "TrainingScenes",
    "caption",
    "checkpoints_of",
    "objective_loss",
    "pretrain",
    "read_objective",
    "ship",
]
