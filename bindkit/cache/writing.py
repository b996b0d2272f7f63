"""A cache's directory: whole files or none, several processes at once, and damage found and taken away.

While a cache is filled, a folder `WORK` in it holds a lock for each shard that some process works on, and a record of
each that is finished; `Manifest.read` takes both records and manifest. Whoever finishes last writes the records into
the manifest and removes the folder (`seal`). A process that dies loses its locks with its life.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bindkit.cache.manifest import MANIFEST_NAME, WORK, FileRecord, Manifest, ShardRecord, record_file, shard_file
from bindkit.cache.remote import fetch, remote_of
from bindkit.cache.shards import REPAIR, read_activations, read_labels
from bindkit.errors import CacheDamagedError, CacheError, DiskSpaceError, WorkspaceBusyError
from bindkit.files import progress, sha256_of, write_bytes

PATIENCE = 60.0
"""Seconds that a process waits for another to write down what it finished."""
_LOCK_NAME = ".lock"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_SHARD = r"(train|validation|test)/(labels|layer_\d{2,})/\d{5,}\.safetensors"
_OURS = re.compile(rf"{_SHARD}|({_SHARD}|manifest\.json)\.\d+\.partial")


@contextlib.contextmanager
def exclusive(path: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold a cache's list of files; makes the directory if there is none.

    Raises WorkspaceBusyError if another process holds it for longer than `patience` seconds, CacheError if nothing can
    be written there.
    """
    lock = FileLock(path / _LOCK_NAME)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=patience)
    except Timeout:
        raise _busy(path) from None
    except OSError as error:
        if error.errno in _FULL:
            raise _disk_full(path, error) from error
        raise CacheError(
            f"cannot write to {path} ({error.strerror or error}); check its permissions or give another root"
        ) from error
    try:
        yield
    finally:
        lock.release()


def claim(path: Path, split: str, shard: int) -> FileLock | None:
    """Take a shard to compute, until the lock is released or this process ends; None where another process has it."""
    # Not bound to a thread: whoever writes a shard gives it back.
    lock = FileLock(path / record_file(split, shard, ".lock"), thread_local=False)
    with exclusive(path, PATIENCE):
        (path / WORK).mkdir(exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
    return lock


def state_of(path: Path) -> Any:
    """What tells whether the manifest was written anew since."""
    status = (path / MANIFEST_NAME).stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def is_idle(path: Path) -> bool:
    """Whether no process works on any shard; whoever asks holds the cache, so that none begins meanwhile."""
    for file in (path / WORK).glob("*.lock"):
        lock = FileLock(file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        lock.release()
    return True


def require_idle(path: Path) -> None:
    """Raise WorkspaceBusyError if a process works on a shard."""
    if not is_idle(path):
        raise _busy(path)


def write_record(path: Path, manifest: Manifest, split: str, shard: int, record: ShardRecord) -> None:
    """Write what is known of a finished shard beside the manifest. Of one that was sent away, nothing stays here."""
    write_file(path, record_file(split, shard), manifest.record_bytes(record))
    if remote_of(path):
        for folder in record.files:
            (path / shard_file(split, folder, shard)).unlink(missing_ok=True)


def seal(path: Path, manifest: Manifest) -> None:
    """Write all that is known into the manifest; whoever calls holds the cache while it is idle."""
    write_manifest(path, manifest)
    if remote := remote_of(path):
        for record in (path / WORK).glob("*.json"):
            remote.remove(f"{WORK}/{record.name}")
    if (path / WORK).exists():
        shutil.rmtree(path / WORK)


def write_file(path: Path, name: str, content: bytes | Sequence[bytes | memoryview]) -> FileRecord:
    """Write one file of the cache at `path`: whole and on disk when this returns, or not at all.

    Its content may come in parts, one after the other. Raises DiskSpaceError if the disk filled up; what was there
    before is still there.
    """
    parts = [content] if isinstance(content, bytes) else content
    file = path / name
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, *parts)
        if os.name != "nt":  # the rename, too, is to last through a power cut, where the system can
            directory = os.open(file.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        if remote := remote_of(path):
            remote.push(name, b"".join(parts))
    except OSError as error:
        if error.errno in _FULL:
            raise _disk_full(file, error) from error
        raise
    return FileRecord.of(*parts)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest, atomically. Raises DiskSpaceError as `write_file`."""
    write_file(path, MANIFEST_NAME, manifest.to_bytes())


def _busy(path: Path) -> WorkspaceBusyError:
    return WorkspaceBusyError(
        f"another process is writing to the cache {path}; wait until it ends, or give this one another root"
    )


def _disk_full(place: Path, error: OSError) -> DiskSpaceError:
    return DiskSpaceError(
        f"the disk is full: {place} could not be written ({error.strerror or error}); every shard finished before is "
        "safe; free some space and make the same call again to go on"
    )


def require_space(path: Path, n_bytes: int) -> int:
    """Refuse to start what the disk cannot hold (DiskSpaceError); returns the free bytes."""
    place = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    if n_bytes > free and not remote_of(path):
        raise DiskSpaceError(
            f"caching into {path} needs {readable_bytes(n_bytes)} more but only {readable_bytes(free)} are free; free "
            "some, give another root, or cache fewer layers, scenes or patches_per_scene"
        )
    return free


def readable_bytes(n_bytes: int) -> str:
    """Bytes for people: ``999 bytes``, ``48.0 MiB``."""
    power = min(4, max(0, n_bytes.bit_length() - 1) // 10)
    return f"{n_bytes / 1024**power:.1f} {'KMGT'[power - 1]}iB" if power else f"{n_bytes} bytes"


def walk(path: Path) -> list[str]:
    """Every file below a cache but those of work in progress, relative to it and with forward slashes, sorted."""
    if remote := remote_of(path):
        found = list(remote.sizes())
    else:
        found = [file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir()]
    return sorted(name for name in found if name != _LOCK_NAME and not name.startswith(f"{WORK}/"))


def _remove(path: Path, name: str) -> None:
    """Delete a file of a cache, here and where else it lies."""
    (path / name).unlink(missing_ok=True)
    if remote := remote_of(path):
        remote.remove(name)


def is_ours(name: str) -> bool:
    """Whether a name, relative to the cache, is one of a shard's file or of a partial file."""
    return _OURS.fullmatch(name) is not None


def remove_strays(path: Path, manifest: Manifest | None) -> None:
    """Delete what an interrupted run left behind: partial files, and shards that the manifest does not list.

    Only files with names that this cache gives are touched.
    """
    listed = manifest.files() if manifest else {}
    for name in walk(path):
        if name not in listed and is_ours(name):
            _remove(path, name)


@dataclass(frozen=True)
class Damage:
    """One file that is not as the manifest says."""

    path: str  # relative to the cache, with forward slashes
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def quick_damage(path: Path, manifest: Manifest) -> dict[str, str]:
    """Name missing files and files of another size, each with the reason, without reading any."""
    found, remote = {}, remote_of(path)
    sizes = remote.sizes() if remote else None
    for name, record in manifest.files().items():
        try:
            size = (path / name).stat().st_size if sizes is None else sizes[name]
        except (FileNotFoundError, NotADirectoryError, KeyError):
            found[name] = "missing"
            continue
        if size != record.n_bytes:
            change = "cut short" if size < record.n_bytes else "too long"
            found[name] = f"{change}: {size:,} bytes, the manifest says {record.n_bytes:,}"
    return found


def find_damage(path: Path, manifest: Manifest) -> list[Damage]:
    """Find every file that is missing, cut short, changed, foreign, or not of what the manifest says it is of.

    Reads all of the cache once, its labels twice.
    """
    damage, files, remote = quick_damage(path, manifest), manifest.files(), remote_of(path)
    with progress(len(files), "verifying", "files") as bar:
        for split, shard, record in manifest.records():
            for folder, file in record.files.items():
                name = shard_file(split, folder, shard)
                try:
                    if remote:
                        (path / name).unlink(missing_ok=True)
                    if name not in damage and sha256_of(fetch(path, name)) != file.sha256:
                        damage[name] = "changed on disk: its SHA-256 is not the one in the manifest"
                    elif name not in damage and folder == "labels":
                        read_labels(path, manifest, split, shard)
                    elif name not in damage:
                        read_activations(path, manifest, split, shard, int(folder.removeprefix("layer_")))
                except OSError as error:
                    damage[name] = f"cannot be read: {error.strerror or error}"
                except CacheDamagedError as error:
                    damage[name] = str(error).removeprefix(f"{path / name} ").removesuffix(f"; {REPAIR}")
                bar.update(1)
    for name in walk(path):
        if name not in files and name != MANIFEST_NAME:
            origin = "left by an interrupted run" if is_ours(name) else "not written by bindkit"
            damage[name] = f"foreign: not in the manifest ({origin})"
    return [Damage(*item) for item in sorted(damage.items())]


def remove_damage(path: Path, manifest: Manifest, damaged: Iterable[str]) -> Manifest:
    """Take damaged files off the manifest, then off the disk; the caller holds the cache.

    The manifest goes first: a kill in between leaves files that nothing refers to, never a reference without a file.
    """
    names = [name for name in damaged if name in manifest.files()]
    manifest = manifest.without_files(names)
    seal(path, manifest)
    for name in names:
        _remove(path, name)
    remove_strays(path, manifest)
    return manifest
