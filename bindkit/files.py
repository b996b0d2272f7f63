"""Files that are either whole or absent: written beside their place, flushed to disk, then renamed.

Also what long work needs: it is done ahead by threads or processes, and said meanwhile by bars and messages.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import logging
import math
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")


def write_bytes(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file atomically, its parts one after the other: a reader sees the old content or the new, whole."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            for part in parts:
                stream.write(part)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON as `write_bytes` does, indented, keys in the order given."""
    write_bytes(path, (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def parse_json(content: str | bytes, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Parse JSON; ValueError also where it is nested more deeply than Python's stack."""
    try:
        return json.loads(content, object_hook=object_hook)
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


def differences(
    cached: Mapping[str, Any], asked: Mapping[str, Any], sides: tuple[str, str] = ("the cache", "this call")
) -> list[str]:
    """Name every field that differs, with both values: ``seed: the cache has 0, this call has 1``."""

    def shown(values: Mapping[str, Any], name: str) -> str:
        text = repr(values[name]) if name in values else "nothing"
        return text if len(text) <= 120 else f"{text[:117]}..."

    lines = []
    for name in dict.fromkeys([*cached, *asked]):
        old, new = cached.get(name), asked.get(name)
        if name in cached and name in asked and old == new:
            continue
        said = f"{sides[0]} has {shown(cached, name)}, {sides[1]} has {shown(asked, name)}"
        if isinstance(old, tuple) and isinstance(new, tuple):
            said = f"the cache has {len(old)} scenes, this call has {len(new)}"
            at = next((k for k, (was, now) in enumerate(zip(old, new, strict=False)) if was != now), None)
            if at is not None:
                said += f"; the first to differ is number {at}, {old[at]!r} in the cache and {new[at]!r} here"
        lines.append(f"{name}: {said}")
    return lines


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


_SETTLED_NS = 2_000_000_000
"""A file touched within so many nanoseconds may be touched again without its time telling (FAT counts in 2 s)."""


class RememberedDigests:
    """SHA-256 of files, remembered by size and times, so that a second look reads no bytes.

    The memory is one JSON file; losing it costs time only. Threads may share one of these.
    """

    def __init__(self, memory: Path | None = None) -> None:
        self._place = memory
        self._known: dict[str, list[Any]] = {}
        self._new: dict[str, list[Any]] = {}
        if memory is not None:
            with contextlib.suppress(OSError, ValueError, TypeError):
                self._known = dict(json.loads(memory.read_text(encoding="utf-8")))

    def of(self, path: Path) -> str:
        """In hex; empty where the file cannot be read, which whoever reads it for its content will explain."""
        try:
            place, state, now = str(path.absolute()), _state(path), time.time_ns()
            known = self._known.get(place)
            if isinstance(known, list) and known[:-1] == state:
                return str(known[-1])
            digest = sha256_of(path)
            if max(state[1:]) < now - _SETTLED_NS and _state(path) == state:
                self.learn({place: [*state, digest]})
            return digest
        except OSError:
            return ""

    def learn(self, found: Mapping[str, list[Any]]) -> None:
        """Take over what another process has found."""
        self._known.update(found)
        self._new.update(found)

    def told(self) -> dict[str, list[Any]]:
        """What was found since this was last asked."""
        found, self._new = self._new, {}
        return found

    def keep(self) -> None:
        """Write the memory, where there is anything new and the disk takes it."""
        if self._place is not None and self._new:
            with contextlib.suppress(OSError):
                self._place.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(self._place, json.dumps(self._known).encode())
                self._new = {}


def _state(path: Path) -> list[int]:
    """Size in bytes, and when its content and when anything of it was last changed, in nanoseconds."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def slug(text: str, longest: int = 80) -> str:
    """Turn a name into one that every file system takes; a digest keeps long ones and other scripts apart.

    >>> slug("facebook/dinov2-large"), slug("synthetic:n=400,seed=0")
    ('facebook-dinov2-large', 'synthetic-n=400,seed=0')
    """
    readable = re.sub(r"[^A-Za-z0-9._=,+-]+", "-", text).strip("-.") or "unnamed"
    if len(readable) <= longest and text.isascii():
        return readable
    return f"{readable[: longest - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def ahead(
    function: Callable[[S], T], items: Iterable[S], workers: int, processes: bool = False, at_once: int = 1
) -> Generator[T, None, None]:
    """Give ``function(item)`` in order, computed by threads (or processes) ahead of the consumer.

    At most ``2 * workers`` wait; of processes ``4 * workers`` times `at_once`, as many as one of them takes at a time,
    and tensors come back through shared memory. With no workers everything happens in the caller's thread.
    """
    if workers == 0:
        yield from map(function, items)
    elif processes:
        from torch.utils.data import DataLoader

        calls: Any = _Calls(function)
        if isinstance(items, list) and at_once > 1:  # light work, for which to start a process takes long
            workers = max(1, min(workers, len(items) // (8 * at_once)))
        options: dict[str, Any] = {"collate_fn": _as_it_is, "num_workers": workers, "prefetch_factor": 4}
        for found in DataLoader(calls, batch_size=None, sampler=_several(items, at_once), **options):
            yield from found
    else:
        remaining = iter(items)
        with ThreadPoolExecutor(workers, thread_name_prefix="bindkit-ahead") as threads:
            try:
                waiting = deque(threads.submit(function, item) for item in islice(remaining, 2 * workers))
                while waiting:
                    yield waiting.popleft().result()
                    waiting.extend(threads.submit(function, item) for item in islice(remaining, 1))
            finally:
                threads.shutdown(wait=False, cancel_futures=True)


class _Calls:
    """What a function gives for items, as the data set of a `torch.utils.data.DataLoader`."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __getitem__(self, items: list[Any]) -> list[Any]:
        return [self.function(item) for item in items]


def _several(items: Iterable[S], at_once: int) -> Iterator[list[S]]:
    remaining = iter(items)
    while chosen := list(islice(remaining, at_once)):
        yield chosen


def _as_it_is(given: Any) -> Any:
    return given


def trim_memory() -> None:
    """Give free memory back to the system where the C library can: else pieces still in use keep it, more and more."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, and of the group of processes that it was put into.

    Two gigabytes where nobody says (Windows, macOS).
    """
    try:
        told = Path("/proc/meminfo").read_text(encoding="ascii")
        free = 1024 * int(told.partition("MemAvailable:")[2].split()[0])
        group = Path("/sys/fs/cgroup")
        with contextlib.suppress(OSError, ValueError):  # no group, or one without a limit
            limit = int((group / "memory.max").read_text(encoding="ascii"))
            free = min(free, limit - int((group / "memory.current").read_text(encoding="ascii")))
        return max(free, 0)
    except (OSError, ValueError, IndexError):
        return 2 * 10**9


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items, of which a thread makes the next while the current one is used."""
    source, nothing = iter(items), object()
    with ThreadPoolExecutor(1, thread_name_prefix="bindkit-ahead") as thread:
        following = thread.submit(next, source, nothing)
        while (item := following.result()) is not nothing:
            following = thread.submit(next, source, nothing)
            yield item  # type: ignore[misc]


def progress(total: int, description: str, unit: str, initial: int = 0) -> Any:
    """Open a tqdm bar over `total` steps of `unit`; use as a context manager and call ``bar.update(n)``.

    In JupyterLab a widget; ``BINDKIT_PROGRESS=text`` keeps widget state out of executed notebooks, ``off`` is silent.
    """
    style = os.environ.get("BINDKIT_PROGRESS", "auto")
    if style == "auto":
        from tqdm.auto import tqdm
    else:
        from tqdm import tqdm
    return tqdm(total=total, desc=description, unit=f" {unit}", initial=initial, disable=style == "off", leave=False)


def readable_seconds(seconds: float) -> str:
    """Time for people.

    >>> readable_seconds(0.4), readable_seconds(75), readable_seconds(5400), readable_seconds(3 * 86400)
    ('1 s', '75 s', '1.5 h', '72.0 h')
    """
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


class _Once(logging.Filter):
    """Lets a warning pass once."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        is_new = record.getMessage() not in self.said
        self.said.add(record.getMessage())
        return is_new


class _Short(logging.Formatter):
    """Says the last part of directories where nothing is wrong with them."""

    def format(self, record: logging.LogRecord) -> str:
        if record.levelno >= logging.WARNING or not isinstance(record.args, tuple):
            return super().format(record)
        args = (Path("…", arg.name) if isinstance(arg, Path) and arg.is_absolute() else arg for arg in record.args)
        return super().format(logging.makeLogRecord({**vars(record), "args": tuple(args)}))


def show_messages(level: int = logging.INFO) -> None:
    """Show what bindkit says of its work (sizes announced, work resumed or skipped) on standard error.

    A warning is shown once; of a directory that work goes into its last part, of one that something is wrong with all.

    >>> show_messages()
    """
    logger = logging.getLogger("bindkit")
    logger.setLevel(level)
    if not any(getattr(handler, "is_bindkit", False) for handler in logger.handlers):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Short("%(message)s"))
        handler.addFilter(_Once())
        handler.is_bindkit = True  # type: ignore[attr-defined]
        logger.addHandler(handler)
