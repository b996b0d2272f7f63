"""Is every byte of a cache what it was when written? And if not, what to compute again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bindkit.cache.layout import MANIFEST_NAME, activations_file, labels_file
from bindkit.cache.manifest import Manifest
from bindkit.cache.shards import REPAIR, ShardLabels, layer_stamp, map_activations
from bindkit.cache.writing import exclusive, is_ours, remove_strays, walk, write_manifest
from bindkit.errors import CacheDamagedError
from bindkit.files import progress, sha256_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Damage:
    """One file that is not as the manifest says.

    Attributes
    ----------
    path : str
        Relative to the cache, with forward slashes.
    reason : str
    """

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def quick_damage(path: Path, manifest: Manifest) -> list[Damage]:
    """Find missing files and files of another size, without reading any."""
    found = []
    for name, record in manifest.files().items():
        try:
            size = (path / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            found.append(Damage(name, "missing"))
            continue
        if size != record.n_bytes:
            change = "cut short" if size < record.n_bytes else "too long"
            found.append(Damage(name, f"{change}: {size:,} bytes, the manifest says {record.n_bytes:,}"))
    return found


def find_damage(path: Path, manifest: Manifest) -> list[Damage]:
    """Find every file that is missing, cut short, changed, foreign, or not of what the manifest says it is of.

    Reads all of the cache once, its labels twice.
    """
    damage = {item.path: item for item in quick_damage(path, manifest)}
    files = manifest.files()
    with progress(len(files), "verifying", "files") as bar:
        for name, record in files.items():
            if name not in damage:
                try:
                    if sha256_of(path / name) != record.sha256:
                        damage[name] = Damage(name, "changed on disk: its SHA-256 is not the one in the manifest")
                except OSError as error:
                    damage[name] = Damage(name, f"cannot be read: {error.strerror or error}")
            bar.update(1)
    for split, shard in manifest.every_shard():
        for name, contradiction in _contradictions(path, manifest, split, shard):
            damage.setdefault(name, Damage(name, contradiction))
    for name in walk(path):
        if name not in files and name != MANIFEST_NAME:
            origin = "left by an interrupted run" if is_ours(name) else "not written by bindkit"
            damage[name] = Damage(name, f"foreign: not in the manifest ({origin})")
    return sorted(damage.values(), key=lambda item: item.path)


def read_labels(path: Path, manifest: Manifest, split: str, shard: int) -> ShardLabels:
    """Labels of a shard, held against all that the manifest says of them.

    Raises
    ------
    CacheDamagedError
        If they cannot be read or are others.
    """
    file, record = path / labels_file(split, shard), manifest.shards[split][shard]
    labels = ShardLabels.read(file, manifest.stamp(split, shard))
    ids, rows, most = manifest.shard_ids(split, shard), labels.scene_rows.tolist(), manifest.identity.patches_per_scene
    empty = [scene_id for scene_id, count in zip(ids, rows, strict=False) if not count]
    wrong = {
        f"{len(rows)} scenes, the manifest {len(ids)}": len(rows) != len(ids),
        f"{sum(rows)} rows, the manifest {record.rows}": sum(rows) != record.rows,
        f"{max(rows, default=0)} rows of one scene, the manifest at most {most}": most != "all"
        and max(rows, default=0) > int(most),
        f"{len(empty)} scenes without rows, the manifest others": empty != [skipped.id for skipped in record.skipped],
    }
    for said, is_wrong in wrong.items():
        if is_wrong:
            raise CacheDamagedError(f"{file} has {said}; {REPAIR}")
    return labels


def _contradictions(path: Path, manifest: Manifest, split: str, shard: int) -> Iterator[tuple[str, str]]:
    """Files of a shard that cannot be read as what the manifest says they are, each with the reason."""
    record, identity = manifest.record(split, shard), manifest.identity
    if record is None:
        return
    checks: dict[str, Callable[[], object]] = {}
    if record.labels is not None:
        checks[labels_file(split, shard)] = partial(read_labels, path, manifest, split, shard)
    stamp, width = manifest.stamp(split, shard), int(identity.backbone["d_model"])
    for layer, file in record.activations.items():
        name, stamped = activations_file(split, layer, shard), layer_stamp(stamp, layer)
        checks[name] = partial(map_activations, path / name, file, record.rows, width, identity.dtype, stamped)
    for name, check in checks.items():
        try:
            check()
        except CacheDamagedError as error:
            yield name, str(error).removeprefix(f"{path / name} ").removesuffix(f"; {REPAIR}")


def remove_damage(path: Path, manifest: Manifest, damage: Iterable[Damage]) -> Manifest:
    """Take damaged files off the manifest, then off the disk; the caller holds the cache.

    The manifest goes first: a kill in between leaves files that nothing refers to, never a reference without a file.
    """
    names = [item.path for item in damage if item.path in manifest.files()]
    manifest = manifest.without_files(names)
    write_manifest(path, manifest)
    for name in names:
        (path / name).unlink(missing_ok=True)
    remove_strays(path, manifest)
    return manifest


def repair(path: Path) -> list[Damage]:
    """Remove damaged files, from disk and manifest, so that the same `cache_activations` call computes them again.

    Foreign files that bindkit did not name are reported and left alone.

    Returns
    -------
    list of Damage
        What was found.

    Raises
    ------
    WorkspaceBusyError
        If another process is writing to the cache.
    """
    with exclusive(path):
        manifest = Manifest.read(path)
        damage = find_damage(path, manifest)
        if damage:
            remove_damage(path, manifest, damage)
    for item in damage:
        if item.path not in manifest.files() and not is_ours(item.path):
            logger.warning("%s was not written by bindkit and is left alone; move it out of the cache", item.path)
    return damage
