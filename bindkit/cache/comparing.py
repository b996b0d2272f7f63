"""A cache held against its model: one scene, window by window, without any of the machinery that filled the cache."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bindkit.cache.forward import ActivationSource, activations_of, require_source
from bindkit.cache.store import ActivationCache, require_cache
from bindkit.errors import CacheMismatchError, EmptySplitError
from bindkit.scenes.labels import label_patches
from bindkit.scenes.scene import SceneSet, require_scenes

# float16 rounds to 2**-11 of a value; what is left is for other batch sizes, which change the last bits in float32.
_ALLOWED = {"float16": 1e-3, "float32": 1e-4}


@dataclass(frozen=True)
class Deviation:
    """How far cached activations lie from a direct run.

    Attributes
    ----------
    scene_id : str
        Which scene was run again.
    n_rows : int
        Its cached patches.
    largest : float
        Largest difference in any layer, as a share of that layer's largest activation.
    allowed : float
        What rounding explains.
    """

    scene_id: str
    n_rows: int
    largest: float
    allowed: float


def compare_with_model(cache: ActivationCache, backbone: ActivationSource, scenes: SceneSet) -> Deviation:
    """Run one scene of a cache through its model again, one window at a time, and compare every cached row.

    ::

        deviation = compare_with_model(cache, backbone, scenes)
        assert deviation.largest <= deviation.allowed

    Parameters
    ----------
    cache : ActivationCache
        Complete.
    backbone : Backbone
        The one that filled it.
    scenes : SceneSet
        The scenes that it was filled from.

    Raises
    ------
    CacheMismatchError
        If the backbone is another one, or the scene's patches are labelled otherwise now.
    EmptySplitError
        If the cache holds no scene.
    """
    require_cache(cache)
    require_scenes(scenes)
    described = require_source(backbone).describe()
    if described["weights_digest"] != cache.backbone["weights_digest"]:
        raise CacheMismatchError(
            f"the cache {cache.path} was filled by {cache.backbone['name']} with other weights than "
            f"{backbone.name} has; load the backbone that filled it"
        )
    if described["geometry"] != cache.backbone["geometry"]:
        raise CacheMismatchError(
            f"the cache {cache.path} was filled with the geometry {cache.backbone['geometry']}, and {backbone.name} "
            f"has {described['geometry']} now; load it as it was loaded for the cache"
        )
    split = next((name for name in cache.splits if cache.labels(name).n_scenes), None)
    if split is None:
        raise EmptySplitError(f"the cache {cache.path} holds no scene to compare")
    cached = cache.labels(split)
    scene = scenes[list(scenes.ids).index(cached.scene_ids[0])]
    rows = np.arange(cached.scene_offsets[0], cached.scene_offsets[1])
    labels = label_patches(scene, backbone.geometry)
    resized = backbone.preprocessing.resize(scene.image, labels.plan.resized)
    at = cached.window[rows] * labels.plan.grid.n_patches + cached.patch[rows]
    if not np.array_equal(labels.instances[at], cached.instances[rows]):
        raise CacheMismatchError(
            f"scene {scene.id} is labelled otherwise now than in the cache {cache.path}; its masks have changed, so "
            'compute anew what they change: cache_activations(..., changed="recompute")'
        )
    differences = [torch.zeros(())]
    for layer in cache.layers:
        stored = cache.activations(split, layer).take(rows)
        direct = torch.empty_like(stored)
        for number, window in enumerate(labels.plan.windows):
            crop = resized[window.top : window.top + window.side, window.left : window.left + window.side]
            corner, size = torch.tensor([[window.top, window.left]]), torch.tensor([labels.plan.resized])
            found = activations_of(backbone, torch.from_numpy(crop.copy())[None], corner, size, [layer])
            seen = found[layer][0].cpu()
            here = cached.window[rows] == number
            direct[torch.from_numpy(here)] = seen[torch.from_numpy(cached.patch[rows][here]).long()]
        differences.append((stored - direct).abs().max() / direct.abs().max().clamp(min=1e-12))
    # Torch's maximum of NaN is NaN, which is within nothing; Python's max would pass over it.
    return Deviation(scene.id, len(rows), float(torch.stack(differences).max()), _ALLOWED[cache.dtype])
