"""Runs over planted scenes into a workspace: what notebooks 02 and 03 do, in a second."""

from dataclasses import replace

from planted import PlantedBackbone, PlantedScenes

from bindkit.cache import cache_activations
from bindkit.pipeline.merging import merge_caches, merge_results, read_caches
from bindkit.pipeline.workspace import open_workspace
from bindkit.probes.protocols import STRICT
from bindkit.results.sweeping import sweep

BRIEF = replace(STRICT, epochs=2, min_steps=4, judged_patches=24)
RUNS = {
    "a": (["vit-a"], [0, 2], ["linear"]),
    "b": (["vit-b"], [1], ["linear", "diag_quadratic"]),
    "fewer": (["vit-a"], [2], ["linear"]),
    "both": (["vit-a", "vit-b"], [0, 1, 2], ["linear", "diag_quadratic"]),
}


def run(place, name, n_scenes=10, scene_seed=0, **settings):
    """From a fresh look at the workspace, as another process has it."""
    backbones, layers, probes = RUNS[name]
    space = open_workspace(place, **({"protocol": "strict"} | settings))
    scenes = PlantedScenes(n_scenes, scene_seed)
    merge_caches(space, [cache_activations(PlantedBackbone(name), scenes, root=space.cache) for name in backbones])
    asked = sweep(read_caches(space, latest=True), layers, probes, protocol=BRIEF, root=space.probes, oracle=True)
    return space, asked, merge_results(space, asked, BRIEF)
