"""Scenes: images with instance and class masks, from a generator, published data sets or plain folders."""

from bindkit.scenes.checking import SceneReport, SceneStatistics, check_scenes
from bindkit.scenes.formats.ade20k_writer import write_ade20k
from bindkit.scenes.opening import FORMATS, open_scenes
from bindkit.scenes.scene import BrokenScene, Scene, SceneSet, subset
from bindkit.scenes.splits import Split, split_scenes

__all__ = [
    "FORMATS",
    "BrokenScene",
    "Scene",
    "SceneReport",
    "SceneSet",
    "SceneStatistics",
    "Split",
    "check_scenes",
    "open_scenes",
    "split_scenes",
    "subset",
    "write_ade20k",
]
