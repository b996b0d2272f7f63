"""What a call of `cache_activations` has to compute, given what lies there already."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bindkit import __version__
from bindkit.cache.forward import ActivationSource
from bindkit.cache.identity import Identity, Making, differences
from bindkit.cache.layout import MANIFEST_NAME, SPLITS, ShardRecord, Skipped, activations_file, labels_file
from bindkit.cache.manifest import Manifest
from bindkit.cache.sizing import SceneSize, default_windows_per_batch, scenes_per_shard
from bindkit.cache.verifying import Damage, quick_damage
from bindkit.errors import CacheMismatchError, EmptySplitError
from bindkit.files import RememberedDigests
from bindkit.scenes.checking import changed_ids, changes
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
    digests: RememberedDigests
    changed: str = "refuse"

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


def read_matching(path: Path, job: Job) -> Manifest | None:
    """The manifest at a place, of those shards that are of what is asked for; None where all is to be computed.

    Where what the cache was made from has changed, that depends on ``job.changed``: under ``"recompute"`` the shards
    with changed scenes are left out, or all, where the change is not one of single scenes.

    Raises
    ------
    CacheMismatchError
        Naming every field and file that differs.
    """
    if not (path / MANIFEST_NAME).exists():
        return None
    manifest = Manifest.read(path)
    if not manifest.files():
        return None
    there, asked = manifest.identity, job.identity
    differing = differences(there.fields(), asked.fields())
    if there.contents is None:
        differing = [*differing, NOBODY_LOOKED]
    before, now = contents_by_id(there), contents_by_id(asked)
    if not differing and before == now:
        return manifest
    settings = [name for name in _SETTINGS if getattr(there, name) != getattr(asked, name)]
    if job.changed == "recompute" and not settings:
        return None if differing else _without_changed(manifest, job)
    said = "\n  ".join(differing + changes(before, now, job.scenes, SINCE))
    remedy = "Ask for the settings it was made with" if settings else _RECOMPUTE
    raise CacheMismatchError(
        f"the cache {path} was made with other settings or from other files:\n  {said}\n{remedy}, give another root, "
        "or delete that directory to cache afresh."
    )


SINCE = "this cache was made"
NOBODY_LOOKED = "contents of the scenes: the cache is of an earlier bindkit, which did not look at them"
_RECOMPUTE = (
    'Ask with changed="recompute" (bindkit cache --changed recompute, bindkit run --force) to compute anew what '
    "depends on them, put back what it was made from"
)
CHANGED = ("refuse", "recompute")
"""What a call may want where what a cache was made from has changed."""
_SETTINGS = ("patches_per_scene", "dtype", "seed")
"""Of an identity what a call chooses: another choice asks for another cache, it is no change of this one."""


def contents_by_id(identity: Identity) -> Mapping[str, str]:
    """Scene id -> content; empty for computed scenes, and where nobody looked."""
    return identity.contents.of if identity.contents else {}


def _without_changed(manifest: Manifest, job: Job) -> Manifest | None:
    """The manifest without the shards of changed scenes; None where the rest could not stay beside them.

    That is so where this call computes otherwise than the cache was made, and where all patches are kept, since sizes
    of pictures then decide what a shard holds.
    """
    if manifest.making.fields() != job.making(manifest).fields() or job.identity.patches_per_scene == "all":
        return None
    changed = set(changed_ids(contents_by_id(manifest.identity), contents_by_id(job.identity)))
    for split, shard in list(manifest.every_shard()):
        if changed.intersection(manifest.shard_ids(split, shard)):
            manifest = manifest.with_shard(split, shard, None)
    identity = replace(manifest.identity, contents=job.identity.contents)
    return replace(manifest, identity=identity, broken=_left_out(job.scenes))


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
        broken=_left_out(job.scenes),
    )


def _left_out(scenes: SceneSet) -> tuple[Skipped, ...]:
    """Scenes that the set itself left out on opening."""
    return tuple(Skipped(scene.id, scene.reason) for scene in scenes.broken)


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
