"""`cache_activations`: what is missing is computed, and what is there is left alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bindkit.arguments import read_share, whole_number
from bindkit.backbones.loading import Backbone
from bindkit.backbones.sources import ActivationSource, on_gpu, require_source
from bindkit.cache import cluster, sizing, writing
from bindkit.cache.computing import Job, compute_shards
from bindkit.cache.manifest import MANIFEST_NAME, WORK, Identity, Manifest, fetch_manifest
from bindkit.cache.remote import place_of
from bindkit.cache.sizing import SceneSize, scene_sizes
from bindkit.cache.store import ActivationCache
from bindkit.cache.views import NOTE, LiveCache, write_note
from bindkit.errors import CacheMismatchError, EmptySplitError, InvalidParameterError
from bindkit.files import RememberedDigests, differences, progress, readable_seconds, slug
from bindkit.scenes.checking import changed_ids, changes, contents_of, memory_in
from bindkit.scenes.scene import SceneSet, require_scenes
from bindkit.scenes.splits import SPLITS, Split, split_scenes
from bindkit.scenes.synthetic import require_unseen

logger = logging.getLogger(__name__)

WHERE = ("disk", "none")
CHANGED = ("refuse", "recompute")
"""What a call may want where what a cache was made from has changed."""
SINCE = "this cache was made"
NOBODY_LOOKED = "contents of the scenes: the cache is of an earlier bindkit, which did not look at them"

ANEW = (
    'Ask with changed="recompute" (bindkit cache --changed recompute, bindkit run --force) to compute anew what '
    "depends on them"
)
_RECOMPUTE = f"{ANEW}, put back what it was made from"
_FILE_OVERHEAD = 8192
"""Headers and the last block of a file, generously."""


def cache_activations(
    backbone: ActivationSource,
    scenes: SceneSet,
    root: str | Path = "cache",
    layers: str | int | Sequence[int] = "all",
    patches_per_scene: int | str = 512,
    dtype: str = "float16",
    seed: int = 0,
    windows_per_batch: int | None = None,
    workers: int | None = None,
    split: Split | None = None,
    changed: str = "refuse",
    share: tuple[int, int] = (0, 1),
    client: Any = None,
    cache: str = "disk",
) -> ActivationCache:
    """Compute a backbone's activations on a scene set and keep them on disk, or find them there.

    ::

        scenes = bk.open_scenes("synthetic:n=400,seed=0")
        cache = bk.cache_activations(bk.load_backbone("facebook/dinov2-small"), scenes, layers="0,6,11")
        cache.labels("train"), cache.activations("train", layer=6).take([0, 1, 2])

    The cache lies in ``root/SCENES/BACKBONE``. A second call with the same arguments computes nothing; more layers
    are added to what is there; an interrupted run goes on at the first missing shard and ends with the same bytes as
    one that was not interrupted. Several processes that make the same call at once share its shards, and each returns
    when all are there.

    Parameters
    ----------
    backbone : Backbone
        As `load_backbone` gives it.
    scenes : SceneSet
        As `open_scenes` gives it. Scenes that cannot be read are skipped, logged and recorded.
    root : path or URL
        Where caches lie: a directory, or ``s3://bucket/cache`` (``pip install s3fs``; see `bindkit.cache.remote`).
    layers : "all", "0,6,12" or ints
        0-based blocks.
    patches_per_scene : int or "all"
        Patches drawn from each scene, over all its windows as evenly as possible.
    dtype : "float16", "float32", "bfloat16" or "int8"
        Of the activations on disk; int8 with one scale a patch. They are read as float32.
    seed : int
        Of the draw of patches.
    windows_per_batch : int, optional
        Windows per forward. Default: by the backbone's size and device (or as an unfinished cache was begun).
    workers : int, optional
        Threads (of a backbone on a GPU: processes) that read and label scenes ahead of the model; 0 for none. Default:
        2 threads, or a process for each core but one.
    split : Split, optional
        Which scenes train, validate and test, and which belong together. Default: `split_scenes`, without groups.
    changed : "refuse" or "recompute"
        What to do where the cache was made from other files than there are now: refuse and name them, or compute anew
        the shards of changed scenes, and all of them where weights, preprocessing, class names, the list of scenes or
        the version of a library have changed (what other versions made is else read, which is said). What a cache was
        made from is known by content, not by names and times.
    share : (int, int)
        ``(rank, world size)``: compute every so many-th shard only, and return without waiting for those of others.
    client : dask.distributed.Client, optional
        Whose workers compute the shards, each with a backbone of its own; see `bindkit.cache.cluster`.
    cache : "disk" or "none"
        With "none" nothing is kept but a note: activations are computed from the images whenever they are asked for,
        float32; see `bindkit.cache.views`.

    Raises
    ------
    CacheMismatchError
        If a cache of other settings lies there, or of other files; each differing field and file is named.
    DiskSpaceError
        If the disk cannot hold it: before the first byte, or when it fills up on the way.
    EmptySplitError
        If there is no scene, or none of the training scenes can be read.
    NonFiniteActivationsError
        For NaN, infinity, or values that float16 cannot hold.
    WorkspaceBusyError
        If another process is writing to this cache.
    InvalidParameterError, LayerError
        For arguments outside what they take, and for synthetic scenes of a seed that is kept for training.
    """
    backbone = require_source(backbone)
    require_scenes(scenes)
    require_unseen(scenes)
    if windows_per_batch is not None:
        windows_per_batch = whole_number(windows_per_batch, "windows_per_batch", least=1)
    if workers is not None:
        workers = whole_number(workers, "workers", least=0)
    else:
        workers = max(1, (os.cpu_count() or 1) - 1) if on_gpu(backbone) else 2
    root = place_of(root, "root")
    share = read_share(whole_number(share[0], "share"), whole_number(share[1], "share"), {})
    if changed not in CHANGED:
        raise InvalidParameterError(f'changed is "refuse" or "recompute", got {changed!r}')
    if cache not in WHERE:
        raise InvalidParameterError(f'cache is "disk" or "none", got {cache!r}')
    if cache == "none" and (client is not None or share != (0, 1)):
        raise InvalidParameterError('with cache="none" there is nothing to share: leave out share and client')
    if split is None:
        split = split_scenes(scenes)
        for notice in split.notices:
            logger.info("%s", notice)
    positions = {name: split.positions(name) for name in SPLITS}
    identity = Identity(
        backbone=backbone.describe(),
        scenes_uri=scenes.uri,
        scene_ids={name: tuple(scenes.ids[k] for k in chosen) for name, chosen in positions.items()},
        class_names={int(key): str(value) for key, value in scenes.class_names.items()},
        patches_per_scene=patches_per_scene,
        dtype=dtype,
        seed=seed,
        benchmark_classes=getattr(scenes, "benchmark_classes", None) or {},
        groups={scenes.ids[k]: scenes.ids[members[0]] for members in split.groups for k in members},
    )
    if not any(positions.values()):
        raise EmptySplitError(
            f"{scenes.uri} has no scene to cache ({len(scenes.broken)} left out on opening); check the scene set"
        )
    wanted = backbone.resolve_layers(layers)
    digests = RememberedDigests(memory_in(root, scenes.uri))
    every = [position for chosen in positions.values() for position in chosen]
    contents = contents_of(scenes, every, digests, workers, on_gpu(backbone))
    identity = replace(identity, contents=contents, dtype=dtype if cache == "disk" else "float32")
    path = root / slug(scenes.uri) / slug(backbone.name)
    job = Job(path, backbone, scenes, positions, identity, wanted, windows_per_batch, workers, digests, changed, share)
    if cache == "none":
        found = LiveCache(job)
        write_note(found)
        return found
    if (path / NOTE).exists():
        (path / NOTE).unlink()
    fetch_manifest(path)
    if client is not None:
        job = replace(job, elsewhere=cluster.making_there(client, job))
    manifest = _read_matching(job)
    if manifest is not None and changed == "recompute":
        # A shard that is computed anew has all layers that it had.
        job = replace(job, layers=tuple(sorted({*wanted, *Manifest.read(path).layers})))
    if manifest is None or job.missing(job.undamaged(manifest)) or (path / WORK).exists():
        manifest = _complete(job, client)
    else:
        has = ", ".join(map(str, job.layers))
        logger.info("Nothing to compute: %s holds layers %s of %s already.", path, has, backbone.name)
        if others := _other_versions(job, manifest):
            logger.warning("Other versions made it; it is read as it is.\n  %s\n%s", "\n  ".join(others), ANEW + ".")
    return ActivationCache(path, manifest)


def _other_versions(job: Job, manifest: Manifest) -> list[str]:
    """Libraries of which a cache was made with other versions than there are now; one is read all the same."""
    return differences(manifest.making.versions, job.making(manifest).versions)


def _read_matching(job: Job) -> Manifest | None:
    """The manifest at the job's place, less the shards to be computed anew; None where all is to be computed.

    Where what the cache was made from has changed, that depends on ``job.changed``: under ``"recompute"`` the shards
    with changed scenes are left out, or all, where the change is not one of single scenes (but of a library's version,
    for example). Else, and for other settings, raises CacheMismatchError naming every field and file that differs.
    """
    if not (job.path / MANIFEST_NAME).exists():
        return None
    manifest = Manifest.read(job.path)
    if not manifest.files():
        return None
    there, asked = manifest.identity, job.identity
    known, wanted = there.fields(), asked.fields()
    if "backbone.config_digest" not in known:  # of an earlier bindkit, which did not look at it
        wanted.pop("backbone.config_digest", None)
    differing = differences(known, wanted)
    if there.contents is None:
        differing.append(NOBODY_LOOKED)
    before, now = there.contents_by_id, asked.contents_by_id
    is_old = job.changed == "recompute" and bool(_other_versions(job, manifest))
    if not differing and before == now and not is_old:
        return manifest
    # Another choice of these asks for another cache; it is no change of this one.
    chosen = ("patches_per_scene", "dtype", "seed")
    chosen_otherwise = any(getattr(there, name) != getattr(asked, name) for name in chosen)
    if job.changed == "recompute" and not chosen_otherwise:
        # The rest could not stay beside what this call computes otherwise, nor where all patches are kept, since sizes
        # of pictures then decide what a shard holds.
        same_making = manifest.making.fields() == job.making(manifest).fields()
        if differing or not same_making or asked.patches_per_scene == "all":
            return None
        changed = set(changed_ids(before, now))
        for split, shard, _ in manifest.records():
            if changed.intersection(manifest.shard_ids(split, shard)):
                manifest = manifest.with_shard(split, shard, None)
        identity = replace(there, contents=asked.contents)
        return replace(manifest, identity=identity, broken=tuple(job.scenes.broken))
    said = "\n  ".join(differing + changes(before, now, job.scenes, SINCE))
    remedy = "Ask for the settings it was made with" if chosen_otherwise else _RECOMPUTE
    raise CacheMismatchError(
        f"the cache {job.path} was made with other settings or from other files:\n  {said}\n{remedy}, give another "
        "root, or delete that directory to cache afresh."
    )


def _complete(job: Job, client: Any) -> Manifest:
    """Compute what is missing, together with whoever else does, until nothing is; a share alone does not wait."""
    path, backbone, identity = job.path, job.backbone, job.identity
    everything = [position for chosen in job.positions.values() for position in chosen]
    sizes = scene_sizes(
        job.scenes, everything, backbone.geometry, identity.patches_per_scene, job.workers, on_gpu(backbone)
    )
    first = next(name for name in SPLITS if job.positions[name])
    reasons = [sizes[k].reason for k in job.positions[first]]
    if all(reasons):
        raise _nothing_readable(job, first, reasons[0])
    asked = identity.patches_per_scene
    rows = max(size.n_rows for size in sizes.values()) if asked == "all" else int(asked)
    n_scenes = sizing.scenes_per_shard(backbone, identity, rows)
    fresh = Manifest(identity, job.making(None), n_scenes, tuple(job.scenes.broken))

    manifest = _read_matching(job)
    _announce(job, job.undamaged(manifest) if manifest else fresh, sizes)
    with writing.exclusive(path, writing.PATIENCE):
        manifest = _begin(job, fresh)
    rank, world_size = job.share
    mine = {(split, shard) for split, shard, _ in manifest.records()[rank::world_size]}
    total = sum(map(len, job.positions.values()))
    with progress(total, f"caching {backbone.name}", "scenes") as bar:
        bar.update(total - sum(len(task.positions) for task in job.missing(manifest)))
        if client is not None:
            cluster.compute_there(client, job, [task for task in job.missing(manifest) if task.place in mine], bar)
        else:
            compute_shards(job, manifest, mine, bar)
    with writing.exclusive(path, writing.PATIENCE):
        manifest = Manifest.read(path)
        if job.missing(manifest) or not writing.is_idle(path):
            # Whoever else works here ends it.
            return manifest
        if not any(record.rows for record in manifest.shards[first].values()):
            # All broken: forgotten, so that they are tried again.
            left = replace(manifest, shards={**manifest.shards, first: {}})
            writing.seal(path, left)
            writing.remove_strays(path, left)
            raise _nothing_readable(job, first, manifest.skipped[0].reason)
        writing.seal(path, manifest)
        # What processes that were killed meanwhile left behind.
        writing.remove_strays(path, manifest)
    logger.debug("Cached in %s.", path)
    return manifest


def _begin(job: Job, fresh: Manifest) -> Manifest:
    """Bring the directory into the state that this call goes on from; the caller holds it.

    What another process left or changed between the first look and the lock is seen here.
    """
    path, manifest = job.path, _read_matching(job)
    there = Manifest.read(path) if (path / MANIFEST_NAME).exists() else None
    damaged = job.damage(manifest) if manifest else {}
    differing = differences(manifest.making.fields(), job.making(manifest).fields()) if manifest else []
    if manifest and differing and job.missing(manifest.without_files(damaged)):
        raise CacheMismatchError(
            f"the cache {path} can be read, but what is missing in it cannot be added, since that would mix "
            "activations computed in different ways:\n  " + "\n  ".join(differing) + "\nAsk for the layers that it "
            "has, use what it was made with, give another root, or delete that directory to cache afresh."
        )
    if not writing.is_idle(path):
        # Others may go on with the very same, and with nothing else.
        if there in (manifest, fresh) and not damaged:
            return there or fresh
        writing.require_idle(path)
    if there is not None and there != manifest and there.files():
        gone = sum(not (manifest and manifest.record(split, shard)) for split, shard, _ in there.records())
        logger.info("What %s was made from has changed: %d of its shards are computed anew.", path, gone)
        for sentence in changes(there.identity.contents_by_id, job.identity.contents_by_id, job.scenes, SINCE):
            logger.info("%s", sentence)
    for name, reason in damaged.items():
        logger.warning("%s is damaged and is computed again (%s)", path / name, reason)
    manifest = manifest or fresh
    if damaged:
        return writing.remove_damage(path, manifest, damaged)
    if there != manifest or (path / WORK).exists():
        writing.seal(path, manifest)
    writing.remove_strays(path, manifest)
    return manifest


def _announce(job: Job, manifest: Manifest, sizes: dict[int, SceneSize]) -> None:
    """Say how much there is to do; refuse if the disk cannot hold it."""
    tasks, per_row = job.missing(manifest), job.identity.bytes_per_row
    n_bytes = overhead = 0
    for task in tasks:
        rows, n_layers = sum(sizes[k].n_rows for k in task.positions), len(task.layers)
        n_bytes += sizing.bytes_of(len(task.positions), rows, n_layers, per_row, task.needs_labels)
        overhead += _FILE_OVERHEAD * (n_layers + 1)
    free = writing.require_space(job.path, n_bytes + overhead + 2 * len(manifest.to_bytes()))
    layers = sorted({layer for task in tasks for layer in task.layers})
    n_windows = sum(sizes[k].n_windows for task in tasks if task.layers for k in task.positions)
    said = ""
    if layers and job.elsewhere is None and isinstance(job.backbone, Backbone):
        seconds = n_windows * sizing.seconds_per_window(job.backbone, layers, job.making(manifest).windows_per_batch)
        said = f" About {readable_seconds(seconds)} for the model alone, as a first batch took."
    logger.info(
        "Caching %s scenes (%s windows) at %d layers of %s as %s: %s to write into %s, %s free.%s",
        f"{sum(len(task.positions) for task in tasks):,}",
        f"{n_windows:,}",
        len(layers),
        job.backbone.name,
        job.identity.dtype,
        writing.readable_bytes(n_bytes),
        job.path,
        writing.readable_bytes(free),
        said,
    )


def _nothing_readable(job: Job, split: str, reason: str) -> EmptySplitError:
    """The error for a split of which no scene can be read."""
    return EmptySplitError(
        f"none of the {len(job.positions[split])} scenes of the {split} split of {job.scenes.uri} can be read; "
        f"mend or remove them. The first: {reason}"
    )
