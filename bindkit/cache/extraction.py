"""`cache_activations`: what is missing is computed, shard by shard, and what is there is left alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from bindkit.arguments import read_path, whole_number
from bindkit.cache.forward import ActivationSource, ShardContent, compute_shard, require_source
from bindkit.cache.identity import Identity
from bindkit.cache.layout import MANIFEST_NAME, SPLITS, ShardRecord, activations_file, labels_file
from bindkit.cache.manifest import Manifest
from bindkit.cache.planning import (
    CHANGED,
    SINCE,
    Job,
    Task,
    begin,
    contents_by_id,
    nothing_readable,
    read_matching,
    require_readable,
    require_same_making,
)
from bindkit.cache.sampling import DrawnScene, ahead, draw_scene
from bindkit.cache.shards import activations_to_bytes, layer_stamp
from bindkit.cache.sizing import (
    SceneSize,
    bytes_of,
    scene_sizes,
)
from bindkit.cache.store import ActivationCache
from bindkit.cache.verifying import remove_damage
from bindkit.cache.writing import (
    exclusive,
    readable_bytes,
    remove_strays,
    require_space,
    write_file,
    write_manifest,
)
from bindkit.errors import CacheMismatchError, EmptySplitError, InvalidParameterError
from bindkit.files import RememberedDigests, progress, slug
from bindkit.scenes import Split, split_scenes
from bindkit.scenes.checking import are_files, changes, content_of, contents_of, memory_in
from bindkit.scenes.scene import SceneSet, require_scenes
from bindkit.scenes.synthetic import require_unseen

logger = logging.getLogger(__name__)

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
    workers: int = 2,
    split: Split | None = None,
    changed: str = "refuse",
) -> ActivationCache:
    """Compute a backbone's activations on a scene set and keep them on disk, or find them there.

    ::

        scenes = bk.open_scenes("synthetic:n=400,seed=0")
        cache = bk.cache_activations(bk.load_backbone("facebook/dinov2-small"), scenes, layers="0,6,11")
        cache.labels("train"), cache.activations("train", layer=6).take([0, 1, 2])

    The cache lies in ``root/SCENES/BACKBONE``. A second call with the same arguments computes nothing; more layers
    are added to what is there; an interrupted run goes on at the first missing shard and ends with the same bytes as
    one that was not interrupted.

    Parameters
    ----------
    backbone : Backbone
        As `load_backbone` gives it.
    scenes : SceneSet
        As `open_scenes` gives it. Scenes that cannot be read are skipped, logged and recorded.
    root : path
        Where caches lie.
    layers : "all", "0,6,12" or ints
        0-based blocks.
    patches_per_scene : int or "all"
        Patches drawn from each scene, over all its windows as evenly as possible.
    dtype : "float16" or "float32"
        Of the activations on disk.
    seed : int
        Of the draw of patches.
    windows_per_batch : int, optional
        Windows per forward. Default: by the backbone's size and device (or as an unfinished cache was begun).
    workers : int
        Threads that read and label scenes ahead of the model; 0 for none.
    split : Split, optional
        Which scenes train, validate and test, and which belong together. Default: `split_scenes`, without groups.
    changed : "refuse" or "recompute"
        What to do where the cache was made from other files than there are now: refuse and name them, or compute anew
        the shards of changed scenes, and all of them where weights, preprocessing, class names or the list of scenes
        have changed. What a cache was made from is known by content, not by names and times.

    Returns
    -------
    ActivationCache

    Raises
    ------
    CacheMismatchError
        If a cache of other settings lies there, or of other files; each differing field and file is named.
    DiskSpaceError
        If the disk cannot hold it: before the first byte, or when it fills up on the way.
    EmptySplitError
        If there is no scene, or none of the training scenes can be read.
    LayerError
        For a layer that the backbone does not have.
    NonFiniteActivationsError
        For NaN, infinity, or values that float16 cannot hold.
    WorkspaceBusyError
        If another process is writing to this cache.
    InvalidParameterError
        For arguments outside what they take, and for synthetic scenes of a seed that is kept for training.
    """
    backbone = require_source(backbone)
    require_scenes(scenes)
    require_unseen(scenes)
    if windows_per_batch is not None:
        windows_per_batch = whole_number(windows_per_batch, "windows_per_batch", least=1)
    workers, root = whole_number(workers, "workers", least=0), read_path(root, "root")
    if changed not in CHANGED:
        raise InvalidParameterError(f'changed is "refuse" or "recompute", got {changed!r}')
    if split is None:
        split = split_scenes(scenes)
        for notice in split.notices:
            logger.info("%s", notice)
    positions = {name: tuple(getattr(split, name)) for name in SPLITS}
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
    identity = replace(identity, contents=contents_of(scenes, every, digests, workers))
    job = Job(backbone, scenes, positions, identity, wanted, windows_per_batch, workers, digests, changed)
    path = cache_path(root, scenes.uri, backbone.name)
    manifest = read_matching(path, job)
    if manifest is not None and changed == "recompute":
        # A shard that is computed anew has all layers that it had.
        job = replace(job, layers=tuple(sorted({*wanted, *Manifest.read(path).layers})))
    if manifest is None or job.missing(job.undamaged(path, manifest)):
        manifest = _complete(path, job)
    else:
        logger.info("Nothing to compute: %s holds layers %s of %s already.", path, _list(job.layers), backbone.name)
    return ActivationCache(path, manifest)


def cache_path(root: str | Path, scenes_uri: str, backbone_name: str) -> Path:
    """Where the cache of a backbone on a scene set lies.

    >>> cache_path("cache", "synthetic:n=400,seed=0", "facebook/dinov2-large").as_posix()
    'cache/synthetic-n=400,seed=0/facebook-dinov2-large'
    """
    return Path(root) / slug(scenes_uri) / slug(backbone_name)


def _complete(path: Path, job: Job) -> Manifest:
    """Compute what is missing, under the lock."""
    everything = [position for chosen in job.positions.values() for position in chosen]
    identity = job.identity
    sizes = scene_sizes(job.scenes, everything, job.backbone.geometry, identity.patches_per_scene, job.workers)
    require_readable(job.scenes, job.positions, sizes)
    manifest = read_matching(path, job)
    begun = job.undamaged(path, manifest) if manifest else begin(job, sizes)
    _announce(path, job, begun, sizes)
    with exclusive(path):
        # Another process may have worked here between the first look and the lock.
        manifest = read_matching(path, job)
        if (path / MANIFEST_NAME).exists() and (manifest is None or manifest != Manifest.read(path)):
            _say_what_goes(path, job, manifest)
            write_manifest(path, manifest or begin(job, sizes))
        remove_strays(path, manifest)
        if manifest is None:
            manifest = begin(job, sizes)
        elif job.missing(job.undamaged(path, manifest)):
            require_same_making(path, manifest, job)
            damaged = job.damage(path, manifest)
            for item in damaged:
                logger.warning("%s is damaged and is computed again (%s)", path / item.path, item.reason)
            manifest = remove_damage(path, manifest, damaged) if damaged else manifest
        manifest = _compute(path, job, manifest)
        _require_rows(path, manifest)
    logger.info("Cached in %s.", path)
    return manifest


def _say_what_goes(path: Path, job: Job, left: Manifest | None) -> None:
    there = Manifest.read(path)
    if there.files():
        gone = sum(1 for split, shard in there.every_shard() if left is None or left.record(split, shard) is None)
        logger.info("What %s was made from has changed: %d of its shards are computed anew.", path, gone)
        for sentence in changes(contents_by_id(there.identity), contents_by_id(job.identity), job.scenes, SINCE):
            logger.info("%s", sentence)


def _require_rows(path: Path, manifest: Manifest) -> None:
    """Refuse a cache whose training scenes all turned out to be broken, and forget them so that they are retried."""
    split = next(name for name in SPLITS if manifest.identity.scene_ids[name])
    records = [manifest.shards[split][shard] for shard in range(manifest.n_shards(split))]
    if any(record.rows for record in records):
        return
    reason = next(skipped for record in records for skipped in record.skipped).reason
    n_scenes = len(manifest.identity.scene_ids[split])
    for shard in range(len(records)):
        manifest = manifest.with_shard(split, shard, None)
    write_manifest(path, manifest)
    remove_strays(path, manifest)
    raise nothing_readable(manifest.scenes_uri, split, n_scenes, reason)


def _announce(path: Path, job: Job, manifest: Manifest, sizes: dict[int, SceneSize | str]) -> None:
    """Say how much there is to do; refuse if the disk cannot hold it."""
    identity, d_model = job.identity, job.backbone.d_model
    tasks = job.missing(manifest)
    needed = windows = n_scenes = overhead = 0
    for task in tasks:
        known = [size for k in task.positions if isinstance(size := sizes[k], SceneSize)]
        rows = sum(size.n_rows for size in known)
        n_layers = len(task.layers)
        needed += bytes_of(len(task.positions), rows, n_layers, d_model, identity.itemsize, task.needs_labels)
        overhead += _FILE_OVERHEAD * (n_layers + 1)
        windows += sum(size.n_windows for size in known)
        n_scenes += len(task.positions)
    layers = sorted({layer for task in tasks for layer in task.layers})
    free = require_space(path, needed + overhead + 2 * len(manifest.to_bytes()))
    logger.info(
        "Caching %s scenes (%s windows) at %d layers of %s as %s: %s to write into %s, %s free.",
        f"{n_scenes:,}",
        f"{windows:,}",
        len(layers),
        job.backbone.name,
        identity.dtype,
        readable_bytes(needed),
        path,
        readable_bytes(free),
    )


def _compute(path: Path, job: Job, manifest: Manifest) -> Manifest:
    """Compute the missing shards in order; the files of one are written while the next is computed."""
    tasks = job.missing(manifest)
    identity = job.identity
    read = partial(
        draw_scene,
        job.scenes,
        geometry=job.backbone.geometry,
        preprocessing=job.backbone.preprocessing,
        patches_per_scene=identity.patches_per_scene,
        seed=identity.seed,
    )
    total = sum(len(chosen) for chosen in job.positions.values())
    left = sum(len(task.positions) for task in tasks)
    with (
        progress(total, f"caching {job.backbone.name}", "scenes", initial=total - left) as bar,
        ThreadPoolExecutor(1, thread_name_prefix="bindkit-writer") as writer,
    ):
        drawn = ahead(read, [k for task in tasks for k in task.positions], job.workers)
        writing: Future[Manifest] | None = None
        try:
            for task in tasks:
                content = compute_shard(
                    job.backbone,
                    _warning(islice(drawn, len(task.positions))),
                    task.layers,
                    identity.dtype,
                    manifest.making.windows_per_batch,
                    bar.update,
                )
                _require_unchanged(job, task)
                manifest = writing.result() if writing else manifest
                writing = writer.submit(_write_shard, path, manifest, task, content, job.backbone.d_model)
        finally:
            drawn.close()
        return writing.result() if writing else manifest


def _require_unchanged(job: Job, task: Task) -> None:
    """Refuse a shard whose files changed between the look at them and their reading."""
    if are_files(job.scenes):
        now = {job.scenes.ids[k]: content_of(job.scenes, job.digests, k) for k in task.positions}
        if said := changes(contents_by_id(job.identity), now, job.scenes, "this call began"):
            raise CacheMismatchError(f"{'; '.join(said)}; make the same call again once they stay as they are")


def _warning(drawn: Iterator[DrawnScene]) -> Iterator[DrawnScene]:
    for scene in drawn:
        if scene.reason is not None:
            logger.warning("scene %s is skipped: %s", scene.id, scene.reason)
        yield scene


def _write_shard(path: Path, manifest: Manifest, task: Task, content: ShardContent, d_model: int) -> Manifest:
    """Write a shard's files, then the manifest that lists them."""
    stamp = manifest.stamp(task.split, task.shard)
    labels = content.labels().to_bytes(stamp)
    record = manifest.record(task.split, task.shard)
    if record is None:
        record = ShardRecord(content.n_rows, content.skipped)
    _require_same_labels(path, record, task, content, labels)
    if task.needs_labels:
        record = replace(record, labels=write_file(path, labels_file(task.split, task.shard), labels))
    files = dict(record.activations)
    for layer in task.layers:
        # Popped, so that a layer's memory is free once it is written.
        stamped = layer_stamp(stamp, layer)
        encoded = activations_to_bytes(content.blocks.pop(layer), d_model, manifest.identity.dtype, stamped)
        files[layer] = write_file(path, activations_file(task.split, layer, task.shard), encoded)
    manifest = manifest.with_shard(task.split, task.shard, replace(record, activations=files))
    write_manifest(path, manifest)
    return manifest


def _require_same_labels(path: Path, record: ShardRecord, task: Task, content: ShardContent, labels: bytes) -> None:
    """Refuse to put layers beside labels of other pixels or masks than these."""
    same = record.rows == content.n_rows and tuple(s.id for s in record.skipped) == tuple(s.id for s in content.skipped)
    if record.labels is not None:
        same = same and record.labels == type(record.labels).of(labels)
    if not same:
        raise CacheMismatchError(
            f"scenes of shard {task.shard} of the {task.split} split are not those that the cache {path} was made "
            "from: their images, masks or readability have changed on disk; restore them, give another root, or "
            "delete that directory to cache afresh"
        )


def _list(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))
