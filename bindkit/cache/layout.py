"""Where a cache's files lie and what is recorded of each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

MANIFEST_NAME = "manifest.json"
LOCK_NAME = ".lock"
SPLITS = ("train", "validation", "test")


def labels_file(split: str, shard: int) -> str:
    """Place of a shard's labels, relative to the cache."""
    return f"{split}/labels/{shard:05d}.safetensors"


def activations_file(split: str, layer: int, shard: int) -> str:
    """Place of a shard's activations at a layer, relative to the cache."""
    return f"{split}/layer_{layer:02d}/{shard:05d}.safetensors"


@dataclass(frozen=True)
class Skipped:
    """A scene without rows, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class FileRecord:
    """What a file must be: its SHA-256 in hex and its size in bytes."""

    sha256: str
    n_bytes: int

    @classmethod
    def of(cls, content: bytes) -> FileRecord:
        """Record of a file with this content."""
        return cls(hashlib.sha256(content).hexdigest(), len(content))


@dataclass(frozen=True)
class ShardRecord:
    """One shard's files. A file that is to be computed (again) has no record."""

    rows: int
    skipped: tuple[Skipped, ...] = ()
    labels: FileRecord | None = None
    activations: Mapping[int, FileRecord] = field(default_factory=dict)
