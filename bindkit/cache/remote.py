"""Caches on an object store (``s3://``, ``gs://``, whatever fsspec reads and writes), behind a local folder.

The folder holds what is being written, until it is whole and sent, and what was read. It lies in the user's cache
directory, or where ``BINDKIT_REMOTE_DIR`` says. There are no locks on an object store: several machines share the work
by `share` or a cluster's client, which give no shard to two of them.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bindkit.arguments import read_path
from bindkit.errors import CacheError
from bindkit.files import slug, write_bytes

_URL = ".remote"
"""Name of the file in the local folder that holds the URL that it stands for."""
_DEPTH = 2
"""Levels of a cache below the root that a URL may be of."""


def place_of(given: Any, name: str) -> Path:
    """A directory from text or a path; of a URL, the local folder that stands for it.

    Raises CacheError for a store that is not installed here.
    """
    if not isinstance(given, str) or "://" not in given:
        return read_path(given, name)
    url = given.rstrip("/")
    _file_system(url)
    base = os.environ.get("BINDKIT_REMOTE_DIR") or Path.home() / ".cache" / "bindkit" / "remote"
    place = Path(base) / slug(url)
    place.mkdir(parents=True, exist_ok=True)
    write_bytes(place / _URL, url.encode())
    return place


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise CacheError(f"{url} cannot be reached: {error}") from error


@dataclass(frozen=True)
class Remote:
    """The store behind a local folder. Names are relative to the cache, with forward slashes."""

    path: Path
    files: Any  # a file system of fsspec
    root: str

    def url_above(self, levels: int) -> str:
        """URL of a directory above."""
        return str(self.files.unstrip_protocol(self.root.rsplit("/", levels)[0]))

    def sizes(self) -> dict[str, int]:
        """Bytes of every file there."""
        found = self.files.find(self.root, detail=True) if self.files.exists(self.root) else {}
        return {name.removeprefix(self.root).strip("/"): entry["size"] for name, entry in found.items()}

    def fetch(self, name: str, anew: bool = False) -> bool:
        """Have a file here, as it is there; whether there is one, and it was not here yet."""
        local = self.path / name
        if local.exists() and not anew:
            return False
        try:
            content = self.files.cat_file(f"{self.root}/{name}")
        except FileNotFoundError:
            local.unlink(missing_ok=True)
            return False
        if local.exists() and local.read_bytes() == content:
            return False
        local.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(local, content)
        return True

    def push(self, name: str, content: bytes) -> None:
        """Write a file there. A store shows whole files only."""
        with contextlib.suppress(FileExistsError):
            self.files.makedirs(f"{self.root}/{name}".rpartition("/")[0], exist_ok=True)
        self.files.pipe_file(f"{self.root}/{name}", content)

    def remove(self, name: str) -> None:
        """Delete a file there."""
        with contextlib.suppress(FileNotFoundError):
            self.files.rm_file(f"{self.root}/{name}")


def remote_of(path: Path) -> Remote | None:
    """The store behind a cache's folder; None where it is only a folder."""
    for place in (path, *list(path.parents)[:_DEPTH]):
        if (place / _URL).exists():
            files, root = _file_system((place / _URL).read_text(encoding="utf-8"))
            below = path.relative_to(place).as_posix()
            return Remote(path, files, root if below == "." else f"{root}/{below}")
    return None


def fetch(path: Path, name: str) -> Path:
    """A file of a cache, here."""
    if remote := remote_of(path):
        remote.fetch(name)
    return path / name
