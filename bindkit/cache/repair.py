"""A cache beside what it was made from: damage mended from the same backbone and scenes, scene files looked at."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bindkit.arguments import is_control
from bindkit.cache.store import ActivationCache
from bindkit.cache.verifying import Damage
from bindkit.errors import BindkitError, CacheError
from bindkit.scenes.geometry import WindowGeometry

if TYPE_CHECKING:
    from bindkit.cache.forward import ActivationSource
    from bindkit.scenes import SceneSet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Repair:
    """What was damaged, and what is still missing.

    Attributes
    ----------
    damage : tuple of Damage
        What was found before.
    obstacle : str
        Why the removed files could not be computed again; empty if they were, or if there was nothing to do.
    """

    damage: tuple[Damage, ...]
    obstacle: str


def repair_cache(path: str | Path) -> Repair:
    """Remove damaged shards of the cache at `path` and compute them again.

    The backbone and the scenes are opened as the manifest names them. Where they cannot be, or are no longer the
    same, the damaged shards are gone all the same, and the obstacle says why they were not replaced.

    Raises
    ------
    CacheError
        If there is no cache, or its manifest cannot be read: then nothing is changed.
    WorkspaceBusyError
        If another process is writing to the cache.
    """
    cache = ActivationCache.open(path)
    records = (record for shards in cache.manifest.shards.values() for record in shards.values())
    layers = sorted({layer for record in records for layer in record.activations})
    damage = tuple(cache.repair())
    if cache.is_complete and cache.layers == tuple(layers):
        return Repair(damage, "")
    try:
        _compute_again(cache, layers)
    except (BindkitError, OSError) as error:
        return Repair(damage, str(error))
    return Repair(damage, "")


def scene_changes(cache: ActivationCache) -> list[str]:
    """Say by name which scenes of a cache are no longer what it was made from; nothing of scenes that are computed.

    Scenes that the set has besides are no change: a cache may be of some scenes only.

    Raises
    ------
    BindkitError
        If the scene set cannot be opened, or the cache is of an earlier bindkit and does not say what it held.
    """
    from bindkit.cache.planning import NOBODY_LOOKED, SINCE
    from bindkit.files import RememberedDigests
    from bindkit.scenes.checking import MEMORY, changes, comings_and_goings, contents_of

    then, names = cache.manifest.identity.contents, cache.class_names
    if then is None:
        raise CacheError(NOBODY_LOOKED)
    if not then.of:
        return []
    scenes, memory = _scenes_of(cache), cache.path.parent / MEMORY
    positions = [position for position, scene_id in enumerate(scenes.ids) if scene_id in then.of]
    now = contents_of(scenes, positions, RememberedDigests(memory if memory.exists() else None)).of
    said = comings_and_goings(then.of, now, SINCE) + changes(then.of, now, scenes, SINCE)
    if names != {int(number): str(name) for number, name in scenes.class_names.items()}:
        said.append(f"names of classes have changed since {SINCE}")
    return said


def _scenes_of(cache: ActivationCache) -> SceneSet:
    """The scene set of a cache, opened as its manifest names it."""
    from bindkit.scenes import open_scenes

    index = cache.path.resolve().parent.parent.parent / "index"
    return open_scenes(cache.manifest.scenes_uri, index_dir=index if index.is_dir() else None)


def _compute_again(cache: ActivationCache, layers: list[int]) -> None:
    """Make the call again that made the cache."""
    from bindkit.backbones import load_backbone
    from bindkit.backbones.controls import control_of
    from bindkit.backbones.preprocessing import IMAGENET
    from bindkit.cache.extraction import cache_activations
    from bindkit.scenes import split_scenes

    identity, making = cache.manifest.identity, cache.manifest.making
    described, scenes = cache.backbone, _scenes_of(cache)
    source: ActivationSource
    if is_control(described.get("objective")):
        source = control_of(described)
    else:
        geometry = WindowGeometry(**described["geometry"])
        source = load_backbone(
            described["name"],
            window=geometry.window,
            short_side=geometry.short_side,
            arithmetic=geometry.arithmetic,
            normalization="imagenet" if described["preprocessing"] == IMAGENET.describe() else "checkpoint",
            revision=described.get("revision"),
            device=making.device,
        )
    logger.info("computing %s again", ", ".join(f"layer {layer}" for layer in layers))
    cache_activations(
        source,
        scenes,
        root=cache.path.resolve().parent.parent,
        layers=layers,
        patches_per_scene=identity.patches_per_scene,
        dtype=identity.dtype,
        seed=identity.seed,
        windows_per_batch=making.windows_per_batch,
        split=split_scenes(scenes, identity.groups),
    )
