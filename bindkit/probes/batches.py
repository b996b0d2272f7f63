"""From a cache's rows to batches of patches and their pairs: which patches take part, which pairs count."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bindkit.arguments import whole_number
from bindkit.cache import ActivationCache
from bindkit.cache.store import CachedLabels, SceneChoice, activations_of, labels_of
from bindkit.errors import (
    ConstantActivationsError,
    EmptySplitError,
    InvalidParameterError,
    NonFiniteActivationsError,
    OneAnswerError,
)
from bindkit.probes.base import check_layer
from bindkit.probes.protocols import Protocol
from bindkit.scenes.splits import in_order

_KEPT_BYTES = 512 * 2**20
"""What batches that are judged again and again may take."""
_SCENES_PER_JUDGED_BATCH = 32

_BY_SCENE = ("activations", "instances", "classes", "corners", "window", "present", "positions", "scenes")


@dataclass(frozen=True)
class PatchBatch:
    """Some patches of some scenes, and which pairs count; scenes of few patches are filled up, see `present`."""

    activations: Float[Tensor, "scene patch d_model"]
    instances: Int[Tensor, "scene patch"]
    classes: Int[Tensor, "scene patch"]
    corners: Int[Tensor, "scene patch 2"]
    """``(top, left)`` in pixels of the resized scene."""
    window: Int[Tensor, "scene patch"]
    """Number of the window in its scene, 0-based."""
    present: Bool[Tensor, "scene patch"]
    positions: Int[Tensor, "scene patch"]
    """Numbers of the patches among those of their split that take part."""
    scenes: Int[Tensor, " scene"]
    patch_size: int
    protocol: Protocol
    groups: Int[Tensor, " scene"] | None = None
    """Numbers of the scenes' groups; None where every scene is alone in its own."""

    def of_scene(self, scene: int) -> PatchBatch:
        """One of its scenes alone."""
        columns = {name: value[scene : scene + 1] for name, value in vars(self).items() if name in _BY_SCENE}
        return replace(self, **columns)

    @cached_property
    def same(self) -> Bool[Tensor, "scene patch patch"]:
        """Whether two patches carry the same instance id (unlabelled counts as one instance here)."""
        return self.instances[:, :, None] == self.instances[:, None, :]

    @cached_property
    def counted(self) -> Bool[Tensor, "scene patch patch"]:
        """Entries that count as judged pairs: i < j, both present, and as the protocol wants."""
        n_patches = self.present.shape[1]
        upper = torch.ones(n_patches, n_patches, dtype=torch.bool, device=self.present.device).triu(1)
        return self._both_present & upper

    @property
    def in_loss(self) -> Bool[Tensor, "scene patch patch"]:
        """Entries that enter the training loss: all N x N under the paper protocol, else the counted pairs."""
        return self._both_present if self.protocol.full_matrix_loss else self.counted

    @cached_property
    def _both_present(self) -> Bool[Tensor, "scene patch patch"]:
        both = self.present[:, :, None] & self.present[:, None, :]
        if not self.protocol.overlapping_pairs:
            # Two squares share pixels where their corners are nearer than their side, down and across.
            top, left = (self.corners[..., axis].float() for axis in (0, 1))
            down = (top[:, :, None] - top[:, None, :]).abs_() < self.patch_size
            across = (left[:, :, None] - left[:, None, :]).abs_() < self.patch_size
            both &= ~(down & across)
        return both

    @cached_property
    def twins_question(self) -> Bool[Tensor, "scene patch patch"]:
        """Pairs of one class of which this batch shows several instances in that scene (labelled patches only)."""
        labelled = self.present & (self.instances > 0) & (self.classes > 0)
        both_labelled = labelled[:, :, None] & labelled[:, None, :]
        same_class = (self.classes[:, :, None] == self.classes[:, None, :]) & both_labelled
        has_twin = (same_class & ~self.same).any(-1)
        return same_class & has_twin[:, :, None] & has_twin[:, None, :]


def spread(n: int, most: int) -> Int[Tensor, " position"]:
    """Positions of at most so many of n things, evenly spread."""
    return torch.linspace(0, n - 1, min(most, n), dtype=torch.float64).long().unique()


def scene_batches(n_scenes: int, protocol: Protocol, generator: torch.Generator) -> Iterator[Tensor]:
    """One epoch: every scene once, in a new order; again and again where the protocol asks for more steps."""
    size = min(protocol.scenes_per_step, n_scenes)
    steps = max(math.ceil(n_scenes / size), math.ceil(protocol.min_steps / protocol.epochs))
    done = 0
    while done < steps:
        for scenes in torch.randperm(n_scenes, generator=generator).split(size):
            if done < steps:
                yield scenes
                done += 1


def who_takes_part(labels: CachedLabels, protocol: Protocol) -> Bool[np.ndarray, " row"]:
    """Which patches a protocol measures."""
    pure = labels.purity > protocol.min_purity
    return pure if protocol.pairs_with_unlabelled else pure & (labels.instances > 0)


class SplitPatches:
    """One split's (or chosen scenes') patches at a layer that take part; in memory if they fit. Raises LayerError."""

    def __init__(
        self,
        cache: ActivationCache,
        split: str | SceneChoice,
        layer: int,
        protocol: Protocol,
        device: torch.device,
        buffer_bytes: int = _KEPT_BYTES,
    ) -> None:
        check_layer(layer, cache.layers, f"the cache {cache.path}")
        labels = labels_of(cache, split)
        takes_part = who_takes_part(labels, protocol)
        rows = np.flatnonzero(takes_part)
        counts = np.add.reduceat(np.append(takes_part, False), labels.scene_offsets[:-1]).astype(np.int64)
        counts[np.diff(labels.scene_offsets) == 0] = 0
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
        usable = np.flatnonzero(counts >= 2)
        self.split, self.layer, self.protocol, self.device = str(split), layer, protocol, device
        self.scenes = split
        self.patch_size = labels.patch_size
        self.n_left_out = len(counts) - len(usable)
        self.scene_ids = tuple(labels.scene_ids[k] for k in usable)
        grouped, first_of = cache.groups, dict[str, int]()
        numbers = [first_of.setdefault(grouped.get(name, name), k) for k, name in enumerate(self.scene_ids)]
        self._groups = torch.tensor(numbers, dtype=torch.int64) if grouped else None
        self._rows = torch.from_numpy(rows)
        self._counts = torch.from_numpy(counts[usable])
        self._starts = torch.from_numpy(starts[usable])
        self._instances, self.classes, self._corners, self._window = (
            torch.from_numpy(column[rows].astype(np.int32)).to(device)
            for column in (labels.instances, labels.classes, labels.corners, labels.window)
        )
        self._cached, self._cached_at = activations_of(cache, split, layer), cache.path
        self._table: Tensor | None = None
        self._judged: list[PatchBatch] = []
        self._other_patch: Tensor | None = None
        self._buffer_bytes = buffer_bytes
        if len(rows) * self._cached.d_model * 4 <= buffer_bytes:
            self._table = self._take(torch.arange(len(rows)))

    def __len__(self) -> int:
        return len(self.scene_ids)

    @property
    def is_in_memory(self) -> bool:
        """Whether batches are taken from memory, not from disk."""
        return self._table is not None

    @property
    def n_patches(self) -> int:
        """Patches that take part."""
        return len(self._rows)

    def require(self) -> SplitPatches:
        """Refuse to go on without a single usable scene. Raises EmptySplitError."""
        if not len(self):
            raise EmptySplitError(
                f"the {self.split} split has no scene with two patches that take part under the {self.protocol.name} "
                f"protocol ({self.n_left_out} scenes looked at; wanted purity above {self.protocol.min_purity:g}"
                f"{'' if self.protocol.pairs_with_unlabelled else ', labelled'}); add scenes, take smaller patches or "
                "more patches per scene"
            )
        return self

    def require_two_answers(self) -> None:
        """Refuse scenes whose pairs all have one answer, or that have none that counts. Raises OneAnswerError."""
        answers = set()
        for batch in self.judged():
            answers |= set(torch.unique(batch.same[batch.counted]).tolist())
            if len(answers) == 2:
                return
        if answers:
            what = "on one object" if answers == {True} else "on two different objects"
            raise OneAnswerError(
                f"every pair of patches of the {self.split} split is {what}, so that there is nothing to learn; give "
                "scenes with several objects of several patches each (one object a scene? patches too large? too few a "
                "scene?)"
            )
        raise OneAnswerError(
            f"no pair of patches of the {self.split} split counts under this protocol (do all show the same pixels?); "
            "take more patches per scene"
        )

    def require_differences(self) -> None:
        """Refuse activations that are the same for 1,024 evenly spread patches. Raises ConstantActivationsError."""
        rows = self._take(spread(self.n_patches, 1024))
        if bool((rows == rows[:1]).all()):
            raise ConstantActivationsError(
                f"every patch of the {self.split} split has the same activation at layer {self.layer}; there is "
                "nothing to read. Look at the backbone and its preprocessing, or leave out this layer"
            )

    @property
    def d_model(self) -> int:
        """Width of the activations."""
        return self._cached.d_model

    def shuffled(self, batch: PatchBatch) -> PatchBatch:
        """A batch of this split with the instances and classes of another scene's patches in random order.

        A control task (Hewitt & Liang 2019, arXiv 1909.03368): scenes as they are, and nothing that an activation could
        tell of them, not even how many objects its scene has. Which scene and order depend on the scenes' ids alone; a
        split of one scene is permuted within it. A scene of fewer patches is gone through again.
        """
        if self._other_patch is None:
            # A ring through all scenes in random order: no scene keeps its own labels.
            ring = sorted(range(len(self)), key=lambda scene: _digest_of(self.scene_ids[scene], "shuffled labels"))
            other = torch.arange(self.n_patches)
            for scene, giver in zip(ring, [*ring[1:], ring[0]], strict=True):
                start, count = int(self._starts[scene]), int(self._counts[scene])
                given = int(self._starts[giver]) + self._order_of(giver, "shuffled labels")
                other[start : start + count] = torch.from_numpy(np.resize(given, count))
            self._other_patch = other.to(self.device)
        other_patches = self._other_patch[batch.positions]
        return replace(batch, instances=self._instances[other_patches], classes=self.classes[other_patches])

    def _take(self, positions: Tensor, into: Tensor | None = None) -> Tensor:
        if self._table is not None:
            wanted = positions.to(self.device)
            if into is None:
                return self._table[wanted]
            return torch.index_select(self._table, 0, wanted, out=into[: len(wanted)])
        taken = self._cached.take(self._rows[positions], into).to(self.device)
        # A sum is finite only if all its terms are, and costs a fraction of looking at each.
        if not bool(taken.sum().isfinite()) and not bool(taken.isfinite().all()):
            raise NonFiniteActivationsError(
                f"the {self.split} split holds NaN or infinite activations at layer {self.layer} of the cache "
                f"{self._cached_at}; `bindkit verify` it, or make it anew with another dtype"
            )
        return taken

    def buffer(self, n_rows: int) -> Tensor | None:
        """Memory for so many rows of activations, to be given to `draw`; None where it would not help."""
        return torch.empty(n_rows, self.d_model) if self.device.type == "cpu" else None

    def draw(
        self,
        scenes: Int[Tensor, " scene"],
        generator: torch.Generator,
        n_patches: int | None = None,
        *,
        into: Float[Tensor, "row d_model"] | None = None,
        labels_only: bool = False,
    ) -> PatchBatch:
        """Draw a training step's patches of some scenes (positions in this split), without repetition.

        At most `n_patches` of each (default: the protocol's), all of a scene's where it has no more. The generator is
        on the CPU, so that draws are the same on every device. With `into`, what `buffer` gave, the batch's activations
        are written over those of the batch before. `labels_only` leaves them out (width 0).
        """
        n_patches = n_patches or self.protocol.train_patches
        counts = self._counts[scenes]
        keys = torch.rand(len(scenes), max(int(counts.max()), n_patches), generator=generator)
        keys[torch.arange(keys.shape[1]) >= counts[:, None]] = 2.0
        # No wider than the richest scene drawn: slots that nothing fills would only cost time.
        widest = min(n_patches, int(counts.max()))
        chosen = keys.topk(widest, dim=1, largest=False, sorted=False).indices
        batch = self._labelled(scenes, chosen, chosen < counts[:, None])
        return batch if labels_only else self._with_activations(batch, into)

    def judged(self) -> Iterator[PatchBatch]:
        """All scenes in order, each with the same patches every time: drawn from the scene's id alone.

        Layers, probes, seeds and runs are so judged on the same pairs. Kept if they fit in the buffer, and 512 MiB.
        """
        if self._judged:
            yield from self._judged
            return
        n_patches = self.protocol.judged_patches
        keep = len(self) * n_patches * (self._cached.d_model * 4 + 4 * n_patches) <= min(
            _KEPT_BYTES, self._buffer_bytes
        )
        given: list[PatchBatch] = []
        for scenes in torch.arange(len(self)).split(_SCENES_PER_JUDGED_BATCH):
            chosen = torch.full((len(scenes), n_patches), torch.iinfo(torch.int64).max)
            for slot, scene in enumerate(scenes.tolist()):
                drawn = np.sort(self._order_of(scene)[:n_patches])
                chosen[slot, : len(drawn)] = torch.from_numpy(drawn)
            present = chosen < self._counts[scenes][:, None]
            widest = int(present.sum(1).max())
            batch = self._with_activations(self._labelled(scenes, chosen[:, :widest], present[:, :widest]))
            if keep:
                given.append(batch)
            yield batch
        # Only now: were a caller to stop half-way (an interrupt), the next one would judge a part of the scenes.
        self._judged = given

    def _order_of(self, scene: int, purpose: str = "") -> np.ndarray:
        """A random order of a scene's patches that depends on the scene's id and the purpose alone."""
        digest = _digest_of(self.scene_ids[scene], purpose)
        # Raw words of a bit generator are stable across NumPy versions, a Generator's methods are not (NEP 19).
        words = np.random.PCG64(int.from_bytes(digest, "big")).random_raw(int(self._counts[scene]))
        return np.argsort(words, kind="stable")

    def _labelled(self, scenes: Tensor, chosen: Tensor, present: Tensor) -> PatchBatch:
        # Slots that are not present repeat the scene's first patch: a finite filler that no loss or figure looks at.
        positions = self._starts[scenes][:, None] + torch.where(present, chosen, torch.zeros_like(chosen))
        on_device = positions.to(self.device)
        return PatchBatch(
            activations=torch.empty(*positions.shape, 0, device=self.device),
            instances=self._instances[on_device],
            classes=self.classes[on_device],
            corners=self._corners[on_device],
            window=self._window[on_device],
            present=present.to(self.device),
            positions=on_device,
            scenes=scenes,
            patch_size=self.patch_size,
            protocol=self.protocol,
            groups=None if self._groups is None else self._groups[scenes],
        )

    def _with_activations(self, batch: PatchBatch, into: Tensor | None = None) -> PatchBatch:
        rows = self._take(batch.positions.reshape(-1).cpu(), into)
        return replace(batch, activations=rows.reshape(*batch.positions.shape, -1))


def _digest_of(scene_id: str, purpose: str) -> bytes:
    return hashlib.sha256(f"{scene_id}{purpose and ' '}{purpose}".encode()).digest()


# --- which scenes train, validate and test ---------------------------------------------------------------------------

JUDGED_FIRST = ("test", "validation", "train")
"""Of these splits the first that has usable scenes is the one whose figures are reported."""

Roles = Mapping[str, str | SceneChoice]
"""Scenes that train, validate and test."""

LEAST_FOLDS = 3
_FOLDS = " folds"
"""What the column ``split`` says behind their number."""


def fold_roles(cache: ActivationCache, n_folds: int) -> list[dict[str, SceneChoice]]:
    """Of each fold of a cross-validation the scenes that train, validate and test its probe.

    All cached scenes, whatever their split, are dealt into folds by groups, by scene ids alone. The probe of fold k is
    trained on the rest less fold k + 1, which validates, and judges fold k. Raises InvalidParameterError for fewer than
    three folds, or more than there are groups.
    """
    folds = _dealt(cache, n_folds)
    return [_roles(cache, k + 1, n_folds, folds[k], folds[(k + 1) % n_folds]) for k in range(n_folds)]


def _roles(
    cache: ActivationCache, number: int, n_folds: int, test: Iterable[str], validation: Iterable[str]
) -> dict[str, SceneChoice]:
    """What each scene of a cache is to the probe of one fold (number from 1 on), by the scenes that it never saw."""
    known = _scene_ids(cache)
    tested, validating = (tuple(scene for scene in chosen if scene in known) for chosen in (test, validation))
    trained = tuple(scene for scene in known if scene not in {*tested, *validating})
    name = f"fold {number} of {n_folds}"
    return {
        "train": SceneChoice(f"training scenes of {name}", trained),
        "validation": SceneChoice(f"validation scenes of {name}", validating),
        "test": SceneChoice(name, tested),
    }


def roles_for(fitted_on: Mapping[str, Any], cache: ActivationCache) -> Roles:
    """What a cache's splits are to a probe: its own where it was fitted on a fold of these scenes, else the cache's."""
    fold = fitted_on.get("fold")
    if fold is None or fitted_on["scenes"] != cache.manifest.identity.scenes_uri:
        return {split: split for split in cache.splits}
    return _roles(cache, fold["number"], fold["of"], fold["test"], fold["validation"])


def judged_scenes(cache: ActivationCache, split: str) -> str | SceneChoice:
    """Scenes that a table's ``split`` speaks of: of ``"5 folds"`` all, fold by fold."""
    if not is_folds(split):
        return split
    return SceneChoice(split, tuple(scene for fold in _dealt(cache, int(split.removesuffix(_FOLDS))) for scene in fold))


def said(n_folds: int) -> str:
    """What stands in the column ``split``."""
    return f"{n_folds}{_FOLDS}"


def is_folds(split: str) -> bool:
    """Whether the column ``split`` speaks of a cross-validation."""
    return split.endswith(_FOLDS)


def scenes_of(split: str, n_scenes: int | None = None) -> str:
    """The judged scenes in words, with their number where it is known: "1 test scene", "all scenes in 5 folds"."""
    if n_scenes is None:
        return f"all scenes in {split}" if is_folds(split) else f"the {split} scenes"
    noun = "scene" if n_scenes == 1 else "scenes"
    return f"{n_scenes} {noun} in {split}" if is_folds(split) else f"{n_scenes} {split} {noun}"


def _scene_ids(cache: ActivationCache) -> dict[str, None]:
    return {scene: None for split in cache.splits for scene in cache.labels(split).scene_ids}


def _dealt(cache: ActivationCache, n_folds: int) -> list[tuple[str, ...]]:
    """Scenes of each fold: large groups first, each to the smallest fold so far."""
    n_folds, scenes = whole_number(n_folds, "folds"), sorted(_scene_ids(cache))
    members: dict[str, list[int]] = {}
    for position, scene in enumerate(scenes):
        members.setdefault(cache.groups.get(scene, scene), []).append(position)
    if not LEAST_FOLDS <= n_folds <= len(members):
        raise InvalidParameterError(
            f"folds is at least {LEAST_FOLDS} (one is judged, one validates, the rest trains) and at most the number "
            f"of scenes or groups of them, {len(members)}; got {n_folds}"
        )
    folds: list[list[int]] = [[] for _ in range(n_folds)]
    for group in in_order(scenes, [tuple(found) for found in members.values()]):
        min(folds, key=len).extend(group)
    return [tuple(scenes[position] for position in sorted(fold)) for fold in folds]
