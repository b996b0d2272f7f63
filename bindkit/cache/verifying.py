"""A cache beside what it was made from: held against its model, its scenes looked at, damage computed again."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bindkit.backbones.sources import ActivationSource, activations_of, require_source, source_of
from bindkit.cache.encoding import ENCODINGS
from bindkit.cache.extraction import NOBODY_LOOKED, SINCE, cache_activations
from bindkit.cache.remote import remote_of
from bindkit.cache.store import ActivationCache, require_cache
from bindkit.cache.writing import Damage
from bindkit.errors import BindkitError, CacheError, CacheMismatchError, EmptySplitError
from bindkit.files import RememberedDigests
from bindkit.scenes.checking import MEMORY, changes, comings_and_goings, contents_of
from bindkit.scenes.geometry import label_patches
from bindkit.scenes.opening import open_scenes
from bindkit.scenes.scene import SceneSet, require_scenes
from bindkit.scenes.splits import split_scenes

logger = logging.getLogger(__name__)

_HALVED = 2e-2
"""What half precision lets another batch size change, as a share of a layer's largest activation."""


@dataclass(frozen=True)
class Deviation:
    """How far cached activations of one scene lie from a direct run."""

    scene_id: str
    n_rows: int
    largest: float
    allowed: float


def compare_with_model(cache: ActivationCache, backbone: ActivationSource, scenes: SceneSet) -> Deviation:
    """Run one scene of a cache through its model again, one window at a time, and compare every cached row.

    ::

        deviation = compare_with_model(cache, backbone, scenes)
        assert deviation.largest <= deviation.allowed

    None of the machinery that filled the cache takes part.

    Parameters
    ----------
    cache : ActivationCache
        Complete.
    backbone : Backbone
        The one that filled it.
    scenes : SceneSet
        The scenes that it was filled from.

    Returns
    -------
    Deviation
        Of scene `scene_id` with `n_rows` cached patches: the `largest` difference in any layer, as a share of that
        layer's largest activation, and what rounding explains of it, `allowed`.

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
    allowed = max(ENCODINGS[cache.dtype].deviation, _HALVED if "precision" in described else 0.0)
    return Deviation(scene.id, len(rows), float(torch.stack(differences).max()), allowed)


def scene_changes(cache: ActivationCache) -> list[str]:
    """Say by name which scenes of a cache are no longer what it was made from; nothing of scenes that are computed.

    Scenes that the set has besides are no change: a cache may be of some scenes only. Raises BindkitError if the scene
    set cannot be opened, or the cache is of an earlier bindkit and does not say what it held.
    """
    then = cache.manifest.identity.contents
    if then is None:
        raise CacheError(NOBODY_LOOKED)
    if not then.of:
        return []
    scenes, memory = _scenes_of(cache), cache.path.parent / MEMORY
    positions = [position for position, scene_id in enumerate(scenes.ids) if scene_id in then.of]
    now = contents_of(scenes, positions, RememberedDigests(memory if memory.exists() else None)).of
    said = comings_and_goings(then.of, now, SINCE) + changes(then.of, now, scenes, SINCE)
    if cache.class_names != {int(number): str(name) for number, name in scenes.class_names.items()}:
        said.append(f"names of classes have changed since {SINCE}")
    return said


def _scenes_of(cache: ActivationCache) -> SceneSet:
    """The scene set of a cache, opened as its manifest names it."""
    index = cache.path.resolve().parent.parent.parent / "index"
    return open_scenes(cache.manifest.scenes_uri, index_dir=index if index.is_dir() else None)


@dataclass(frozen=True)
class Repair:
    """What was damaged, and why the removed files could not be computed again (empty if they were, or none were)."""

    damage: tuple[Damage, ...]
    obstacle: str


def repair_cache(path: str | Path) -> Repair:
    """Remove damaged shards of the cache at `path` and compute them again.

    The backbone and the scenes are opened as the manifest names them. Where they cannot be, or are no longer the
    same, the damaged shards are gone all the same, and the obstacle says why they were not replaced. Raises CacheError
    if there is no cache, or its manifest cannot be read, and WorkspaceBusyError: then nothing is changed.
    """
    cache = ActivationCache.open(path)
    layers = tuple(sorted({layer for _, _, record in cache.manifest.records() for layer in record.layers}))
    damage = tuple(cache.repair())
    if cache.is_complete and cache.layers == layers:
        return Repair(damage, "")
    logger.info("computing %s again", ", ".join(f"layer {layer}" for layer in layers))
    identity, making, described = cache.manifest.identity, cache.manifest.making, cache.backbone
    try:
        scenes = _scenes_of(cache)
        source = source_of(described, making.device)
        cache_activations(
            source,
            scenes,
            root=remote.url_above(2) if (remote := remote_of(cache.path)) else cache.path.resolve().parent.parent,
            layers=layers,
            patches_per_scene=identity.patches_per_scene,
            dtype=identity.dtype,
            seed=identity.seed,
            windows_per_batch=making.windows_per_batch,
            split=split_scenes(scenes, identity.groups),
        )
    except (BindkitError, OSError) as error:
        return Repair(damage, str(error))
    return Repair(damage, "")
