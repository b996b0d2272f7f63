"""Figures: how they look, what they show, how they are saved.

::

    bk.save_figure(bk.figures.layer_curves(results, "matched_auroc"), "layers", "figures")
"""

from bindkit.views.figures.binding import (
    attention_figure,
    dose_figure,
    rank_figure,
    spectrum_figure,
    subspaces_figure,
    twins_figure,
    twins_scores_figure,
)
from bindkit.views.figures.breakdowns import breakdown_figure, reliability_figure
from bindkit.views.figures.checkpoints import emergence_figure, loss_curves, training_slider
from bindkit.views.figures.curves import layer_curves, probe_curves, training_curves
from bindkit.views.figures.difficulty import difficulty_figure, difficulty_scenes
from bindkit.views.figures.model_table import model_table_figure
from bindkit.views.figures.objects import objects_figure
from bindkit.views.figures.saving import SavedFigure, save_figure
from bindkit.views.figures.scenes import affinity_figure, affinity_table, scene_figure, scene_table, scenes_figure

__all__ = [
    "SavedFigure",
    "affinity_figure",
    "affinity_table",
    "attention_figure",
    "breakdown_figure",
    "difficulty_figure",
    "difficulty_scenes",
    "dose_figure",
    "emergence_figure",
    "layer_curves",
    "loss_curves",
    "model_table_figure",
    "objects_figure",
    "probe_curves",
    "rank_figure",
    "reliability_figure",
    "save_figure",
    "scene_figure",
    "scene_table",
    "scenes_figure",
    "spectrum_figure",
    "subspaces_figure",
    "training_curves",
    "training_slider",
    "twins_figure",
    "twins_scores_figure",
]
