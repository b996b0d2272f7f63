"""What a call of `cache_activations` has to compute, given what lies there already."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from bindkit import __version__
from bindkit.cache.identity import Identity, Making, differences
from bindkit.cache.layout import MANIFEST_NAME, SPLITS, ShardRecord, Skipped, activations_file, labels_file
from bindkit.cache.manifest import Manifest
from bindkit.cache.verifying import Damage, quick_damage
from bindkit.errors import CacheMismatchError, EmptySplitError
from bindkit.extraction.forward import ActivationSource
from bindkit.extraction.sizing import SceneSize, default_windows_per_batch, scenes_per_shard
from bindkit.scenes.scene import SceneSet

_LIBRARIES = ("numpy", "pillow", "torch", "transformers")


@dataclass(frozen=True)
class Task:
    """What one shard lacks."""

    split: str
    shard: int
    positions: tuple[int, ...]
    layers: tuple[int, ...]
    needs_labels: bool


@dataclass(frozen=True)
class Job:
    """One call's arguments, checked."""

    backbone: ActivationSource
    scenes: SceneSet
    positions: dict[str, tuple[int, ...]]
    identity: Identity
    layers: tuple[int, ...]
    windows_per_batch: int | None
    workers: int

    def missing(self, manifest: Manifest) -> list[Task]:
        """Shards that lack labels or layers, in order."""
        tasks = []
        for split, shard in manifest.every_shard():
            record = manifest.record(split, shard) or ShardRecord(0)
            lacking = tuple(layer for layer in self.layers if layer not in record.activations)
            if lacking or record.labels is None:
                start = shard * manifest.scenes_per_shard
                chosen = self.positions[split][start : start + manifest.scenes_per_shard]
                tasks.append(Task(split, shard, chosen, lacking, record.labels is None))
        return tasks

    def damage(self, path: Path, manifest: Manifest) -> list[Damage]:
        """Files that this call needs and that are missing or of another size."""
        needed = {labels_file(split, shard) for split, shard in manifest.every_shard()}
        for split, shard in manifest.every_shard():
            needed |= {activations_file(split, layer, shard) for layer in self.layers}
        return [item for item in quick_damage(path, manifest) if item.path in needed]

    def undamaged(self, path: Path, manifest: Manifest) -> Manifest:
        """The manifest without these files."""
        return manifest.without_files(item.path for item in self.damage(path, manifest))

    def making(self, manifest: Manifest | None) -> Making:
        """What this call would compute with; an unfinished cache's batch size is kept unless another is asked for."""
        versions = {name: importlib.metadata.version(name) for name in _LIBRARIES} | {"bindkit": __version__}
        windows = self.windows_per_batch or (manifest and manifest.making.windows_per_batch)
        return Making(versions, self.backbone.device.type, windows or default_windows_per_batch(self.backbone))


def read_matching(path: Path, identity: Identity) -> Manifest | None:
    """The manifest at a place, if shards of the same identity lie there.

    Raises
    ------
    CacheMismatchError
        Naming every field that differs.
    """
    if not (path / MANIFEST_NAME).exists():
        return None
    manifest = Manifest.read(path)
    if not manifest.files():
        return None
    differing = differences(manifest.identity.fields(), identity.fields())
    if differing:
        raise CacheMismatchError(
            f"the cache {path} was made with other settings:\n  " + "\n  ".join(differing) + "\nAsk for the settings "
            "it was made with, give another root, or delete that directory to cache afresh."
        )
    return manifest


def require_same_making(path: Path, manifest: Manifest, job: Job) -> None:
    """Refuse to mix activations of different making. Raises CacheMismatchError naming every difference."""
    differing = differences(manifest.making.fields(), job.making(manifest).fields())
    if differing:
        raise CacheMismatchError(
            f"the cache {path} can be read, but what is missing in it cannot be added, since that would mix "
            "activations computed in different ways:\n  " + "\n  ".join(differing) + "\nAsk for the layers that it "
            "has, use what it was made with, give another root, or delete that directory to cache afresh."
        )


def begin(job: Job, sizes: dict[int, SceneSize | str]) -> Manifest:
    """The manifest of a cache without any shard yet."""
    asked = job.identity.patches_per_scene
    largest = max(size.n_rows for size in sizes.values() if isinstance(size, SceneSize))
    return Manifest(
        identity=job.identity,
        making=job.making(None),
        scenes_per_shard=scenes_per_shard(job.backbone, job.identity, largest if asked == "all" else int(asked)),
        broken=tuple(Skipped(scene.id, scene.reason) for scene in job.scenes.broken),
    )


def require_readable(
    scenes: SceneSet, positions: dict[str, tuple[int, ...]], sizes: dict[int, SceneSize | str]
) -> None:
    """Refuse a scene set whose first split (train, where it has scenes) has no readable scene."""
    split = next(name for name in SPLITS if positions[name])
    reasons = [size for k in positions[split] if isinstance(size := sizes[k], str)]
    if len(reasons) == len(positions[split]):
        raise nothing_readable(scenes.uri, split, len(reasons), reasons[0])


def nothing_readable(uri: str, split: str, n_scenes: int, reason: str) -> EmptySplitError:
    """The error for a split of which no scene can be read."""
    return EmptySplitError(
        f"none of the {n_scenes} scenes of the {split} split of {uri} can be read; mend or remove them. The first: "
        f"{reason}"
    )
