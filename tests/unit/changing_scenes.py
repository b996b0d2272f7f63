"""A folder of small scenes on disk, and ways to change it under a cache's feet."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 16
_BYTES = 2048
"""Every file has as many, so that a changed one is not told by its size."""


def write_folder(root: Path, n: int = 8) -> Path:
    """Write scenes ``a.png``, ``b.png``, ... with instance and class masks, all files an hour old."""
    for k in range(n):
        add_scene(root, chr(ord("a") + k), k)
    (root / "class_names.json").write_text('{"1": "disc", "2": "star"}', encoding="utf-8")
    for file in root.rglob("*.*"):
        age(file)
    return root


def add_scene(root: Path, name: str, number: int) -> None:
    picture = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    row, col = np.ogrid[:SIDE, :SIDE]
    instances = (1 + (row + number) // 8 * 2 + col // 8).astype(np.uint8)
    for folder, array in (("images", picture), ("instances", instances), ("classes", 1 + instances % 2)):
        write_array(root / folder / f"{name}.png", array)


def write_array(file: Path, array: np.ndarray) -> None:
    stream = io.BytesIO()
    Image.fromarray(array.astype(np.uint8)).save(stream, "PNG")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(stream.getvalue().ljust(_BYTES, b"\0"))


def age(file: Path, seconds: float = 3600) -> None:
    then = time.time() - seconds
    os.utime(file, (then, then))


def invert(folder: str, *names: str, keep_times: bool = False) -> Callable[[Path], None]:
    """Change pixels of some files; their sizes stay, and on demand their modification times as well."""

    def change(root: Path) -> None:
        for name in names:
            file = root / folder / f"{name}.png"
            times = file.stat()
            array = np.asarray(Image.open(file))
            write_array(file, 255 - array if folder == "images" else array.max() + 1 - array.T[::-1])
            if keep_times:
                os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))

    return change


def break_file(folder: str, name: str) -> Callable[[Path], None]:
    return lambda root: (root / folder / f"{name}.png").write_bytes(b"\x89PNG no more".ljust(_BYTES, b"\0")) and None


def rename_class(root: Path) -> None:
    names = json.loads((root / "class_names.json").read_text()) | {"2": "moon"}
    (root / "class_names.json").write_text(json.dumps(names))


def remove(name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for file in root.glob(f"*/{name}.png"):
            file.unlink()

    return change


def touch(root: Path) -> None:
    """Another time, the same bytes: no change."""
    for file in root.rglob("*.png"):
        file.write_bytes(file.read_bytes())


def both(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for one in changes:
            one(root)

    return change
