"""From a cache's rows to batches of patches and their pairs: which patches take part, which pairs count."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bindkit.cache import ActivationCache
from bindkit.errors import EmptySplitError
from bindkit.metrics import JudgedPairs
from bindkit.probes import check_layer
from bindkit.protocols import Protocol

_IN_MEMORY_BYTES = 512 * 2**20
_SCENES_PER_JUDGED_BATCH = 32


@dataclass(frozen=True)
class PatchBatch:
    """Some patches of some scenes, and which of their pairs count under a protocol.

    Scenes with fewer patches than the widest are filled up; `present` says which slots count.
    """

    activations: Float[Tensor, "scene patch d_model"]
    instances: Int[Tensor, "scene patch"]
    classes: Int[Tensor, "scene patch"]
    corners: Int[Tensor, "scene patch 2"]
    """``(top, left)`` in pixels of the resized scene."""
    present: Bool[Tensor, "scene patch"]
    scenes: Int[Tensor, " scene"]
    patch_size: int
    protocol: Protocol

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


class SplitPatches:
    """The patches of one split and layer that take part under a protocol, ready to be drawn.

    Parameters
    ----------
    cache : ActivationCache
        Where they lie.
    split : str
        "train", "validation" or "test".
    layer : int
        Which activations.
    protocol : Protocol
        Says which patches take part.
    device : torch.device
        Where batches are put. Activations stay on disk (memory maps) unless all of them fit in 512 MiB.

    Raises
    ------
    LayerError
        If the cache has no such layer.
    """

    def __init__(
        self, cache: ActivationCache, split: str, layer: int, protocol: Protocol, device: torch.device
    ) -> None:
        check_layer(layer, cache.layers, f"the cache {cache.path}")
        labels = cache.labels(split)
        takes_part = labels.purity > protocol.min_purity
        if not protocol.pairs_with_unlabelled:
            takes_part &= labels.instances > 0
        rows = np.flatnonzero(takes_part)
        counts = np.add.reduceat(np.append(takes_part, False), labels.scene_offsets[:-1]).astype(np.int64)
        counts[np.diff(labels.scene_offsets) == 0] = 0
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
        usable = np.flatnonzero(counts >= 2)
        self.split, self.layer, self.protocol, self.device = split, layer, protocol, device
        self.patch_size = labels.patch_size
        self.n_left_out = len(counts) - len(usable)
        self.scene_ids = tuple(labels.scene_ids[k] for k in usable)
        self._rows = torch.from_numpy(rows)
        self._counts = torch.from_numpy(counts[usable])
        self._starts = torch.from_numpy(starts[usable])
        self._instances = torch.from_numpy(labels.instances[rows].astype(np.int32)).to(device)
        self._classes = torch.from_numpy(labels.classes[rows].astype(np.int32)).to(device)
        self._corners = torch.from_numpy(labels.corners[rows].astype(np.int32)).to(device)
        self._cached = cache.activations(split, layer)
        self._table: Tensor | None = None
        self._scale: Tensor | None = None
        self._judged: list[PatchBatch] = []
        if len(rows) * self._cached.d_model * 4 <= _IN_MEMORY_BYTES:
            self._table = self._cached.take(self._rows).to(device)

    def __len__(self) -> int:
        return len(self.scene_ids)

    @property
    def n_patches(self) -> int:
        """Patches that take part."""
        return len(self._rows)

    def require(self) -> SplitPatches:
        """Refuse to go on without a single usable scene.

        Raises
        ------
        EmptySplitError
            Saying how many scenes there were and what they lack.
        """
        if not len(self):
            raise EmptySplitError(
                f"the {self.split} split has no scene with two patches that take part under the {self.protocol.name} "
                f"protocol ({self.n_left_out} scenes looked at; wanted purity above {self.protocol.min_purity:g}"
                f"{'' if self.protocol.pairs_with_unlabelled else ', labelled'}); add scenes, take smaller patches or "
                "more patches per scene"
            )
        return self

    def root_mean_square(self, n_rows: int = 16384) -> Float[Tensor, " d_model"]:
        """Root mean square of each dimension over evenly spread patches; 1 where a dimension is always 0."""
        # In float64: float32 cannot count past 2**24 patches, and would name one beyond the last.
        chosen = torch.linspace(0, self.n_patches - 1, min(n_rows, self.n_patches), dtype=torch.float64).long()
        scale = self._take(chosen).square().mean(0).sqrt()
        return torch.where(scale > 0, scale, torch.ones_like(scale))

    def set_scale(self, scale: Float[Tensor, " d_model"]) -> None:
        """Give activations divided by `scale` from now on."""
        self._scale = scale.to(self.device)
        self._judged.clear()

    def _take(self, positions: Tensor) -> Tensor:
        if self._table is not None:
            return self._table[positions.to(self.device)]
        return self._cached.take(self._rows[positions]).to(self.device)

    def draw(self, scenes: Int[Tensor, " scene"], generator: torch.Generator) -> PatchBatch:
        """Draw a training step's patches of some scenes, without repetition; all of a scene's where it has no more.

        Parameters
        ----------
        scenes : int tensor of shape (scene,)
            Positions of scenes in this split, 0-based.
        generator : torch.Generator
            On the CPU, so that draws are the same on every device.
        """
        n_patches = self.protocol.train_patches
        counts = self._counts[scenes]
        keys = torch.rand(len(scenes), max(int(counts.max()), n_patches), generator=generator)
        keys[torch.arange(keys.shape[1]) >= counts[:, None]] = 2.0
        # No wider than the richest scene drawn: slots that nothing fills would only cost time.
        widest = min(n_patches, int(counts.max()))
        chosen = keys.topk(widest, dim=1, largest=False, sorted=False).indices
        return self._batch(scenes, chosen, chosen < counts[:, None])

    def judged(self) -> Iterator[PatchBatch]:
        """All scenes in order, each with the same patches every time: drawn from the scene's id alone.

        Layers, probes, seeds and runs are so judged on the same pairs. Batches are kept if they fit in 512 MiB.
        """
        if self._judged:
            yield from self._judged
            return
        n_patches = self.protocol.judged_patches
        keep = len(self) * n_patches * (self._cached.d_model * 4 + 4 * n_patches) <= _IN_MEMORY_BYTES
        given: list[PatchBatch] = []
        for scenes in torch.arange(len(self)).split(_SCENES_PER_JUDGED_BATCH):
            chosen = torch.full((len(scenes), n_patches), torch.iinfo(torch.int64).max)
            for slot, scene in enumerate(scenes.tolist()):
                digest = hashlib.sha256(self.scene_ids[scene].encode()).digest()
                # Raw words of a bit generator are stable across NumPy versions, a Generator's methods are not (NEP 19).
                words = np.random.PCG64(int.from_bytes(digest, "big")).random_raw(int(self._counts[scene]))
                drawn = np.sort(np.argsort(words, kind="stable")[:n_patches])
                chosen[slot, : len(drawn)] = torch.from_numpy(drawn)
            present = chosen < self._counts[scenes][:, None]
            widest = int(present.sum(1).max())
            batch = self._batch(scenes, chosen[:, :widest], present[:, :widest])
            if keep:
                given.append(batch)
            yield batch
        # Only now: were a caller to stop half-way (an interrupt), the next one would judge a part of the scenes.
        self._judged = given

    def _batch(self, scenes: Tensor, chosen: Tensor, present: Tensor) -> PatchBatch:
        # Slots that are not present repeat the scene's first patch: a finite filler that no loss or figure looks at.
        positions = self._starts[scenes][:, None] + torch.where(present, chosen, torch.zeros_like(chosen))
        activations = self._take(positions.reshape(-1))
        if self._scale is not None:
            activations = activations / self._scale
        on_device = positions.to(self.device)
        return PatchBatch(
            activations=activations.reshape(*positions.shape, -1),
            instances=self._instances[on_device],
            classes=self._classes[on_device],
            corners=self._corners[on_device],
            present=present.to(self.device),
            scenes=scenes,
            patch_size=self.patch_size,
            protocol=self.protocol,
        )


def flat_pairs(judged: Iterable[tuple[PatchBatch, Tensor]]) -> JudgedPairs:
    """The counted pairs of all batches with their logits ``[scene, patch, patch]``, as one flat list."""
    columns: list[tuple[np.ndarray, ...]] = []
    for batch, logits in judged:
        counted = batch.counted
        scene = batch.scenes.to(counted.device)[:, None, None].expand_as(counted)
        parts = (logits[counted].float(), batch.same[counted], batch.twins_question[counted], scene[counted])
        columns.append(tuple(part.cpu().numpy() for part in parts))
    return JudgedPairs(*(np.concatenate(column) for column in zip(*columns, strict=True)))
