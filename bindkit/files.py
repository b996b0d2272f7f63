"""Files that are either whole or absent: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: a reader sees the old content or the new, never a part."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, indented, keys in the order given."""
    write_bytes(path, (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def parse_json(content: str | bytes) -> Any:
    """Parse JSON; ValueError also where it is nested more deeply than Python's stack."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """NaN and infinity, which JSON cannot hold, as None; `with_nan` reads them back (as NaN).

    >>> without_nan({"auroc": float("nan"), "seed": 0}), with_nan({"auroc": None, "seed": 0})
    ({'auroc': None, 'seed': 0}, {'auroc': nan, 'seed': 0})
    """
    broken = {name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)}
    return {name: None if name in broken else value for name, value in row.items()}


def with_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """None, as JSON gives it back, as NaN."""
    return {name: math.nan if value is None else value for name, value in row.items()}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def slug(text: str, longest: int = 80) -> str:
    """Turn a name into one that every file system takes; a digest keeps long ones and other scripts apart.

    >>> slug("facebook/dinov2-large"), slug("synthetic:n=400,seed=0")
    ('facebook-dinov2-large', 'synthetic-n=400,seed=0')
    """
    readable = re.sub(r"[^A-Za-z0-9._=,+-]+", "-", text).strip("-.") or "unnamed"
    if len(readable) <= longest and text.isascii():
        return readable
    return f"{readable[: longest - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
