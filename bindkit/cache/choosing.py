"""Scenes chosen from a cache, whatever split they lie in: what a fold of a cross-validation is."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from bindkit.cache.layout import SPLITS
from bindkit.cache.store import ActivationCache, CachedActivations, CachedLabels


@dataclass(frozen=True)
class SceneChoice:
    """Scenes of a cache in an order of one's own, with a name for messages and tables."""

    name: str
    scene_ids: tuple[str, ...]

    def __str__(self) -> str:
        return self.name


def labels_of(cache: ActivationCache, scenes: str | SceneChoice) -> CachedLabels:
    """Labels of a split, or of chosen scenes. Errors as `ActivationCache.labels`."""
    if isinstance(scenes, str):
        return cache.labels(scenes)
    parts = [cache.labels(split) for split in SPLITS]
    rows, offsets = _rows_of(cache, scenes)

    def of(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])[rows]

    columns = {name: of(name) for name in ("instances", "classes", "purity", "window", "patch", "corners")}
    return CachedLabels(
        **columns, patch_size=parts[0].patch_size, scene_offsets=offsets, scene_ids=tuple(scenes.scene_ids)
    )


def activations_of(
    cache: ActivationCache, scenes: str | SceneChoice, layer: int
) -> CachedActivations | ChosenActivations:
    """Activations of a split, or of chosen scenes. Errors as `ActivationCache.activations`."""
    return cache.activations(scenes, layer) if isinstance(scenes, str) else ChosenActivations(cache, scenes, layer)


class ChosenActivations:
    """Activations of chosen scenes at one layer, left on disk until rows are taken; rows as in their labels."""

    def __init__(self, cache: ActivationCache, scenes: SceneChoice, layer: int) -> None:
        self.d_model = cache.d_model
        self._parts = [cache.activations(split, layer) for split in SPLITS]
        self._starts = np.array([0, *accumulate(len(part) for part in self._parts)])
        self._rows, _ = _rows_of(cache, scenes)

    def take(self, rows: Tensor, into: Tensor | None = None) -> Tensor:
        """Read rows in any order, as `CachedActivations.take`."""
        wanted = self._rows[rows.cpu().numpy()]
        taken = torch.empty(len(wanted), self.d_model) if into is None else into[: len(wanted)]
        split_of = np.searchsorted(self._starts, wanted, side="right") - 1
        for split in np.unique(split_of):
            here = np.flatnonzero(split_of == split)
            taken[torch.from_numpy(here)] = self._parts[split].take(wanted[here] - self._starts[split])
        return taken


def _rows_of(cache: ActivationCache, scenes: SceneChoice) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the scenes, numbered through all splits, and where each scene begins."""
    place, start = {}, 0
    for split in SPLITS:
        labels = cache.labels(split)
        for number, scene_id in enumerate(labels.scene_ids):
            place[scene_id] = np.arange(*labels.scene_offsets[number : number + 2]) + start
        start += len(labels)
    rows = [place[scene_id] for scene_id in scenes.scene_ids]
    offsets = np.array([0, *accumulate(map(len, rows))], dtype=np.int64)
    return np.concatenate([np.zeros(0, dtype=np.int64), *rows]), offsets
