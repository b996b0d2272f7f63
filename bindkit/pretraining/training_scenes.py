"""Scenes to train on: a pool of synthetic scenes in memory, turned, mirrored and recoloured anew for every batch.

Training seeds begin at `TRAINING_SEED`, measuring sets have smaller ones: `TrainingScenes.open` holds training to its
side, `cache_activations` holds measuring to the other.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from bindkit.backbones.preprocessing import IMAGENET
from bindkit.errors import InvalidParameterError
from bindkit.files import progress
from bindkit.pretraining.clips import REACH, match_frames, number_motions
from bindkit.scenes import open_scenes
from bindkit.scenes.geometry import WindowGeometry, label_patches
from bindkit.scenes.synthetic import TRAINING_SEED, SyntheticScenes, require_unseen

SIDE, PATCH = 80, 8
"""Window and patch in pixels."""
GRID = SIDE // PATCH
"""Patches down and across."""

TRAINING_SCENES = (
    f"synthetic:n=20000,seed={TRAINING_SEED},size={SIDE}x{SIDE},objects=3-5,twins=0.8,surface=graded,outlines=any"
)
"""What the shipped backbones were trained on."""

_MOST = 12
_GEOMETRY = WindowGeometry(short_side=SIDE, window=SIDE, patch_size=PATCH)
_CHUNK = 64


@dataclass(frozen=True)
class SceneBatch:
    """Scenes as a model sees them (ImageNet's mean and deviation taken off), and what is known of them."""

    images: Float[Tensor, "scene 3 side side"]
    classes: Int[Tensor, "scene object"]
    """Class id of each object, 0 where there is no further one."""
    middles: Float[Tensor, "scene object 2"]
    """Middle (down, across) of what is seen of each object, as shares 0..1 of the scene."""
    instances: Int[Tensor, "scene row col"]
    """Most frequent instance id of each patch (0 = ground)."""
    class_names: tuple[str, ...]
    """Class 1 first."""
    moving: Int[Tensor, "scene row col"] | None = None
    """Of clips: the same number for patches that move alike (`clips.number_motions`), `UNSURE` where not told."""

    def present(self) -> Float[Tensor, "scene class"]:
        """1 where a class is in the scene."""
        marks = torch.zeros(len(self.classes), len(self.class_names) + 1)
        return marks.scatter_(1, self.classes, 1.0)[:, 1:]

    def named_objects(self) -> list[list[tuple[str, float, float]]]:
        """Class name and middle of every scene's objects, ordered from upper left to lower right as one reads."""
        scenes = []
        for classes, middles in zip(self.classes.tolist(), self.middles.tolist(), strict=True):
            objects = [(self.class_names[k - 1], *where) for k, where in zip(classes, middles, strict=True) if k]
            scenes.append(sorted(objects, key=lambda named: (int(3 * named[1]), named[2], named[0])))
        return scenes


@dataclass(frozen=True, eq=False)
class TrainingScenes:
    """A pool of scenes in memory, its columns as a `SceneBatch` has them; made by `open` or `held_out`."""

    uri: str
    images: UInt8[Tensor, "scene 3 side side"]
    classes: Int[Tensor, "scene object"]
    middles: Float[Tensor, "scene object 2"]
    instances: UInt8[Tensor, "scene row col"]
    class_names: tuple[str, ...]
    moving: UInt8[Tensor, "scene row col"] | None = None

    @classmethod
    def open(cls, uri: str, workers: int | None = None, clips: bool = False) -> TrainingScenes:
        """Draw a synthetic set of a training seed into memory (about 3 ms a scene and core).

        With `clips` every scene has a second frame, in which its objects have moved, and what matching
        the two finds to move alike (some 20 ms more).
        """
        scenes = _synthetic(uri)
        if scenes.options.seed < TRAINING_SEED:
            raise InvalidParameterError(
                f"seed={scenes.options.seed} is kept for measuring, so that no backbone is measured on scenes that it "
                f"was trained on; train with a seed from {TRAINING_SEED} on"
            )
        return cls._drawn(scenes, workers, clips)

    @classmethod
    def held_out(cls, uri: str, workers: int | None = None, clips: bool = False) -> TrainingScenes:
        """Scenes for computing an objective's own loss: as `open`, but of seeds below `TRAINING_SEED` alone."""
        scenes = _synthetic(uri)
        require_unseen(scenes)
        return cls._drawn(scenes, workers, clips)

    @classmethod
    def _drawn(cls, scenes: SyntheticScenes, workers: int | None, clips: bool) -> TrainingScenes:
        if scenes.size_of(0) != (SIDE, SIDE):
            raise InvalidParameterError(
                f"the tiny backbones see {SIDE} x {SIDE} px, these scenes are {scenes.size_of(0)}; add "
                f"size={SIDE}x{SIDE}"
            )
        spans = [(scenes.uri, at, min(len(scenes), at + _CHUNK), clips) for at in range(0, len(scenes), _CHUNK)]
        workers = (os.cpu_count() or 1) if workers is None else workers
        draw: Callable[..., Iterable[tuple[np.ndarray, ...]]] = map
        parts = []
        try:
            with progress(len(scenes), "draw training scenes", "scene") as bar, contextlib.ExitStack() as processes:
                if workers > 1 and len(spans) > 8:
                    # "spawn": a forked copy of a process whose torch threads run can hang.
                    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_end_with_parent)
                    draw = processes.enter_context(pool).map
                for part in draw(_draw_span, spans):
                    parts.append(part)
                    bar.update(len(part[0]))
        except BrokenProcessPool as error:
            raise InvalidParameterError(
                "the processes that draw training scenes ended at once. A script that trains must stand behind "
                "`if __name__ == '__main__':`, since each of them reads the script again; or draw in this "
                "process: TrainingScenes.open(uri, workers=1). (Was the memory full?)"
            ) from error
        images, classes, middles, instances, *moving = (
            torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True)
        )
        return cls(scenes.uri, images, classes, middles, instances, tuple(scenes.class_names.values()), *moving)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, n_scenes: int, generator: torch.Generator) -> SceneBatch:
        """Scenes drawn with replacement; mirrored, transposed, colour channels swapped at random for all of them."""
        chosen = torch.randint(len(self), (n_scenes,), generator=generator)
        mirror_down, mirror_across, transpose = (torch.rand(3, generator=generator) < 0.5).tolist()
        channels = torch.randperm(3, generator=generator)
        return self._prepared(chosen, mirror_down, mirror_across, transpose, channels)

    def in_order(self, n_scenes: int) -> Sequence[SceneBatch]:
        """All scenes once, as they are, in batches of at most `n_scenes`."""
        plain = torch.arange(3)
        return [self._prepared(part, False, False, False, plain) for part in torch.arange(len(self)).split(n_scenes)]

    def _prepared(self, chosen: Tensor, down: bool, across: bool, transpose: bool, channels: Tensor) -> SceneBatch:
        images, middles = self.images[chosen].float() / 255, self.middles[chosen].clone()
        # What is known of patches, one map for each kind.
        maps = torch.stack([known[chosen].long() for known in (self.instances, self.moving) if known is not None])
        if down:
            images, maps, middles[..., 0] = images.flip(2), maps.flip(2), 1 - middles[..., 0]
        if across:
            images, maps, middles[..., 1] = images.flip(3), maps.flip(3), 1 - middles[..., 1]
        if transpose:
            images, maps, middles = images.transpose(2, 3), maps.transpose(2, 3), middles.flip(2)
        # Not IMAGENET.normalise, which multiplies by 1 / 255: the last bits are part of a run's weights.
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))
        images = (images[:, channels] - mean) / std
        instances, *moving = maps
        return SceneBatch(images, self.classes[chosen], middles, instances, self.class_names, *moving)


def _synthetic(uri: str) -> SyntheticScenes:
    scenes = open_scenes(uri) if uri.startswith("synthetic") else None
    if not isinstance(scenes, SyntheticScenes):
        raise InvalidParameterError(f"pretraining draws synthetic scenes, got {uri!r}; write synthetic:n=...,seed=...")
    return scenes


def _end_with_parent() -> None:
    """End this worker when its parent does: of a killed one, workers would wait for more to do for ever.

    Each takes one thread, since there is one for each core.
    """
    torch.set_num_threads(1)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _draw_span(span: tuple[str, int, int, bool]) -> tuple[np.ndarray, ...]:
    """Of scenes from one position up to another: images, objects' classes and middles, patches' instances, `moving`."""
    uri, start, stop, clips = span
    pool = _synthetic(uri)
    if clips:
        drawn = [pool.clip(position, REACH)[:2] for position in range(start, stop)]
        scenes = [scene for scene, _ in drawn]
        moving = [number_motions(match_frames(scene.image, later, PATCH)) for scene, later in drawn]
    else:
        scenes, moving = [pool[position] for position in range(start, stop)], []
    images = np.stack([scene.image.transpose(2, 0, 1) for scene in scenes])
    instances = np.stack([label_patches(scene, _GEOMETRY).instances.reshape(GRID, GRID) for scene in scenes])
    classes = np.zeros((len(scenes), _MOST), dtype=np.int64)
    middles = np.zeros((len(scenes), _MOST, 2), dtype=np.float32)
    for slot, scene in enumerate(scenes):
        for number in range(int(scene.instances.max())):
            rows, cols = np.nonzero(scene.instances == number + 1)
            classes[slot, number] = scene.classes[rows[0], cols[0]]
            middles[slot, number] = (rows.mean() + 0.5) / SIDE, (cols.mean() + 0.5) / SIDE
    columns = images, classes, middles, instances.astype(np.uint8)
    return (*columns, torch.stack(moving).numpy()) if clips else columns
