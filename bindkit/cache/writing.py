"""Writing into a cache: one writer at a time, whole files or none, a full disk named as such."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from bindkit.cache.layout import LOCK_NAME, MANIFEST_NAME, FileRecord
from bindkit.cache.manifest import Manifest
from bindkit.errors import CacheError, DiskSpaceError, WorkspaceBusyError
from bindkit.files import write_bytes

_FULL = {errno.ENOSPC, errno.EDQUOT}
_OURS = re.compile(r"(train|validation|test)/(labels|layer_\d{2,})/\d{5,}\.safetensors")
_PARTIAL = re.compile(
    r"(((train|validation|test)/(labels|layer_\d{2,})/\d{5,}\.safetensors)|manifest\.json)\.\d+\.partial"
)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a cache for writing; makes the directory if there is none.

    Raises
    ------
    WorkspaceBusyError
        At once, if another process holds it.
    CacheError
        If nothing can be written there.
    """
    lock = FileLock(path / LOCK_NAME)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise WorkspaceBusyError(
            f"another process is writing to the cache {path}; wait until it ends, or give this one another root"
        ) from None
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


def write_file(path: Path, name: str, content: bytes) -> FileRecord:
    """Write one file of a cache: whole and on disk when this returns, or not at all.

    Parameters
    ----------
    path : Path
        The cache.
    name : str
        Place in it, with forward slashes.
    content : bytes
        All of the file.

    Raises
    ------
    DiskSpaceError
        If the disk filled up. What was there before is still there.
    """
    file = path / name
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, content)
        _sync_directory(file.parent)
    except OSError as error:
        if error.errno in _FULL:
            raise _disk_full(file, error) from error
        raise
    return FileRecord.of(content)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest, atomically. Raises DiskSpaceError as `write_file`."""
    write_file(path, MANIFEST_NAME, manifest.to_bytes())


def remove_strays(path: Path, manifest: Manifest | None) -> list[str]:
    """Delete what an interrupted run left behind: partial files, and shards that the manifest does not list.

    Only files with names that this cache gives are touched. Returns their names.
    """
    listed = manifest.files() if manifest else {}
    strays = [name for name in walk(path) if name not in listed and is_ours(name)]
    for name in strays:
        (path / name).unlink()
    return strays


def is_ours(name: str) -> bool:
    """Whether a name, relative to the cache, is one of a shard's file or of a partial file."""
    return bool(_OURS.fullmatch(name) or _PARTIAL.fullmatch(name))


def walk(path: Path) -> list[str]:
    """Every file below a cache but its lock, relative to it and with forward slashes, sorted."""
    found = [file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir()]
    return sorted(name for name in found if name != LOCK_NAME)


def require_space(path: Path, n_bytes: int) -> int:
    """Refuse to start what the disk cannot hold; returns the free bytes.

    Raises
    ------
    DiskSpaceError
        With the bytes needed and free.
    """
    place = path.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if n_bytes > free:
        raise DiskSpaceError(
            f"caching into {path} needs {readable_bytes(n_bytes)} more but only {readable_bytes(free)} are free; free "
            "some, give another root, or cache fewer layers, scenes or patches_per_scene"
        )
    return free


def readable_bytes(n_bytes: int) -> str:
    """Bytes for people.

    >>> readable_bytes(999), readable_bytes(50_331_648)
    ('999 bytes', '48.0 MiB')
    """
    if n_bytes < 1024:
        return f"{n_bytes} bytes"
    size = float(n_bytes)
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"


def _disk_full(place: Path, error: OSError) -> DiskSpaceError:
    return DiskSpaceError(
        f"the disk is full: {place} could not be written ({error.strerror or error}); every shard finished before is "
        "safe; free some space and make the same call again to go on"
    )


def _sync_directory(directory: Path) -> None:
    """Make a rename last through a power cut, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
