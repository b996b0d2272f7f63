"""Figures: how they look, what they show, how they are saved. Only they and the explorer import Plotly."""

from bindkit.figures.affinity import affinity_figure, affinity_table
from bindkit.figures.breakdowns import breakdown_figure, reliability_figure
from bindkit.figures.curves import layer_curves, probe_curves, training_curves
from bindkit.figures.difficulty import difficulty_figure
from bindkit.figures.emergence import emergence_figure
from bindkit.figures.gallery import scenes_figure
from bindkit.figures.model_table import model_table_figure
from bindkit.figures.saving import SavedFigure, save_figure
from bindkit.figures.scenes import scene_figure, scene_table
from bindkit.figures.training import loss_curves, training_slider
from bindkit.figures.variations import difficulty_scenes

__all__ = [
    "SavedFigure",
    "affinity_figure",
    "affinity_table",
    "breakdown_figure",
    "difficulty_figure",
    "difficulty_scenes",
    "emergence_figure",
    "layer_curves",
    "loss_curves",
    "model_table_figure",
    "probe_curves",
    "reliability_figure",
    "save_figure",
    "scene_figure",
    "scene_table",
    "scenes_figure",
    "training_curves",
    "training_slider",
]
