"""Scenes and a backbone of exact arithmetic: what a cache must hold is known in closed form.

An activation of layer l at a patch is the first two pixels of the patch (six numbers), times l + 1. So the row that
belongs to the patch with corner (top, left) is ``image[top, left : left + 2].ravel() * (l + 1)``, whatever the windows,
batches and shards were.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bindkit.errors import BrokenSceneError, LayerError
from bindkit.scenes.geometry import WindowGeometry
from bindkit.scenes.scene import BrokenScene, Scene

SIDE, PATCH, D_MODEL = 16, 4, 6


class ExactScenes:
    """Scenes of 16 px height and differing widths (ragged: 1 to 3 windows), in plain integer arithmetic."""

    official_splits = None

    def __init__(
        self, n: int = 7, broken: Sequence[int] = (), headless: Sequence[int] = (), uri: str = "exact:"
    ) -> None:
        self.uri = uri
        self.made_by = "exact arithmetic"
        self.ids = tuple(f"scene-{k}" for k in range(n))
        self.broken: tuple[BrokenScene, ...] = ()
        self.class_names = {1: "disc", 2: "star"}
        self.unreadable, self.headless = set(broken) | set(headless), set(headless)
        self.loaded: list[int] = []
        self.headers_read = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Scene]:
        return (self[k] for k in range(len(self)))

    def sources(self, position: int) -> tuple[()]:
        return ()

    def size_of(self, position: int) -> tuple[int, int]:
        with self._lock:
            self.headers_read += 1
        if position in self.headless:
            raise BrokenSceneError(f"scene {self.ids[position]}: its header cannot be read")
        return SIDE, (16, 25, 40)[position % 3]

    def image(self, position: int) -> np.ndarray:
        width = (16, 25, 40)[position % 3]
        row, col, channel = np.ogrid[:SIDE, :width, :3]
        return ((row * 31 + col * 17 + channel * 101 + position * 59 + row * col) % 256).astype(np.uint8)

    def __getitem__(self, position: int) -> Scene:
        with self._lock:
            self.loaded.append(position)
        if position in self.unreadable:
            raise BrokenSceneError(f"scene {self.ids[position]}: truncated file")
        image = self.image(position)
        row, col = np.ogrid[:SIDE, : image.shape[1]]
        instances = ((row // 6) * 4 + col // 6).astype(np.int32)
        return Scene(self.ids[position], image, instances, (instances % 3).astype(np.int32))


class SameSize:
    """A preprocessing that never has to resize, and says so if it had."""

    def resize(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        if image.shape[:2] != tuple(size):
            raise ValueError(f"{image.shape[:2]} is not {size}")
        return image


class ExactBackbone:
    """The first two pixels of each patch, times the layer's number plus one."""

    def __init__(self, name: str = "exact", n_layers: int = 3, digest: str = "aa") -> None:
        self.name, self.n_layers, self.digest = name, n_layers, digest
        self.d_model = D_MODEL
        self.geometry = WindowGeometry(SIDE, SIDE, PATCH)
        self.preprocessing = SameSize()
        self.device = torch.device("cpu")
        self.batches: list[int] = []
        self.layers_asked: list[tuple[int, ...]] = []
        self.poison: dict[int, float] = {}

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "revision": None,
            "family": "exact",
            "objective": "none",
            "weights_digest": self.digest,
            "d_model": self.d_model,
            "n_layers": self.n_layers,
            "geometry": {"short_side": SIDE, "window": SIDE, "patch_size": PATCH},
            "preprocessing": {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
        }

    def resolve_layers(self, layers: str | int | Sequence[int]) -> tuple[int, ...]:
        wanted = range(self.n_layers) if layers == "all" else [int(k) for k in layers]  # type: ignore[union-attr]
        if not set(wanted) <= set(range(self.n_layers)):
            raise LayerError(f"{self.name} has layers 0 to {self.n_layers - 1}, got {layers}")
        return tuple(sorted(set(wanted)))

    def activations(self, windows: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        self.batches.append(len(windows))
        self.layers_asked.append(tuple(layers))
        cells = windows.reshape(-1, SIDE // PATCH, PATCH, SIDE // PATCH, PATCH, 3)
        found = cells[:, :, 0, :, :2].reshape(len(windows), -1, D_MODEL).float()
        return {layer: found * (layer + 1) + self.poison.get(layer, 0.0) for layer in layers}


def thirds(n: int) -> Any:
    """A split by position, in an order that is not that of the scene set."""
    order = [(3 * k + 1) % n for k in range(n)] if n % 3 else list(range(n))
    return SimpleNamespace(
        train=tuple(order[: n - 2]), validation=tuple(order[n - 2 : n - 1]), test=tuple(order[n - 1 :]), notices=()
    )


def expected_rows(image: np.ndarray, corners: np.ndarray, layer: int) -> np.ndarray:
    """The closed form, one row at a time."""
    rows = [image[top, left : left + 2].astype(np.float32).ravel() * (layer + 1) for top, left in corners]
    return np.array(rows, dtype=np.float32).reshape(-1, D_MODEL)


def all_bytes(path: Any) -> dict[str, bytes]:
    """Every file of a cache but its lock."""
    files = (file for file in path.rglob("*") if file.is_file() and file.name != ".lock")
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}
