"""The patches of one layer of a cache, read once for all probes that are fitted on them, and good starts on them.

A good start: units in which all directions of the activations weigh alike, and a first probe in closed form. In
whitened units, the least-squares fit of "same object" on all products of two patches is the mean of these products
over pairs on one object less that over all: no iteration is needed to come near the best quadratic probe, and no
direction is learned late because it is faint.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from bindkit.arguments import is_control, read_device, whole_number
from bindkit.backbones.attention import AttentionMaps
from bindkit.cache import ActivationCache
from bindkit.cache.views import next_layer_attention
from bindkit.errors import NonFiniteActivationsError
from bindkit.files import free_memory
from bindkit.probes.base import PairMoments
from bindkit.probes.batches import SplitPatches, spread
from bindkit.probes.judging import JUDGED_FIRST, Roles
from bindkit.probes.kinds import add_symmetric_product, mirrored
from bindkit.probes.protocols import Protocol
from bindkit.probes.protocols import protocol as protocol_of

logger = logging.getLogger(__name__)

_IMAGENET_MEAN = [0.485, 0.456, 0.406]

_SMALL_STEP = 100_000_000
"""Multiplications of a training step below which one thread is as fast as two (measured at width 128: 17 million)."""

RIDGE = 0.1
"""Added to the spectrum before whitening, in units of its mean (each dimension scaled to a mean square of 1): fainter
directions stay faint. Less of it fits noise on a few hundred scenes (default run, `bindkit/scenes-motion`: AUROC 0.958
with 0.001, 0.968 with 0.1), more of it learns late what is faint (the untrained twin: 0.83 with 0.1, 0.75 with 10)."""

_MOMENT_SCENES, _MOMENT_PATCHES = 2048, 65_536
"""Scenes and patches that moments are measured on, about."""

_ROWS_AT_ONCE = 4096
_NEWTON_STEPS = 25
_HALVINGS, _SURE = 60, 20.0
"""Of the search for an offset: how often, and how far beyond the scores it looks, in nats."""


class LayerPatches:
    """The patches of one layer in all splits, read once and used by every probe that is fitted on them.

    `attention` gives the maps of the next layer, asked only by ``self_attention`` (default: of the cache's backbone);
    `roles` says which scenes train, validate and test (default: the cache's splits). Splits that fit into
    `buffer_bytes` together are held in memory as float32 (default: a quarter of what is free), training scenes first;
    the others are read batch by batch, the next while the current one is computed, to the same figures.
    """

    def __init__(
        self,
        cache: ActivationCache,
        layer: int,
        protocol: str | Protocol = "strict",
        device: str = "auto",
        attention: Callable[[], AttentionMaps] | None = None,
        roles: Roles | None = None,
        buffer_bytes: int | None = None,
    ) -> None:
        self.asked_protocol = protocol_of(protocol)
        is_one = is_control(cache.backbone.get("objective"))
        self.protocol = self.asked_protocol.for_controls() if is_one else self.asked_protocol
        self.cache, self.layer, self._attention = cache, whole_number(layer, "layer"), attention
        _say_what_is_otherwise(cache, self.protocol)
        self.device = read_device(device)
        left = _free_memory(self.device) // 4 if buffer_bytes is None else whole_number(buffer_bytes, "buffer_bytes", 0)
        self.splits: dict[str, SplitPatches] = {}
        for split in ("train", "validation", "test"):
            chosen = split if roles is None else roles[split]
            patches = SplitPatches(cache, chosen, self.layer, self.protocol, self.device, left)
            left -= 4 * patches.n_patches * patches.d_model * patches.is_in_memory
            self.splits[split] = patches
        self.splits["train"].require()
        self._units: dict[str, Tensor] = {}

    @property
    def judged_split(self) -> str:
        """The split whose figures are reported: the first that has usable scenes of test, validation, train."""
        return next(split for split in JUDGED_FIRST if len(self.splits[split]))

    @cached_property
    def moments(self) -> PairMoments:
        """Of the training split, in raw units.

        Raises NonFiniteActivationsError if activations are finite but their products are not.
        """
        moments = measure_moments(self.splits["train"])
        if not all(bool(part.isfinite().all()) for part in (moments.patches, moments.signal)):
            raise NonFiniteActivationsError(
                f"the activations of layer {self.layer} in the cache {self.cache.path} are too large for float32 "
                f"statistics: sums of their products go beyond {torch.finfo(torch.float32).max:.1e}; look whether "
                "the backbone is broken at that layer, or take other layers"
            )
        return moments

    def units(self, trained_in: str) -> Tensor | None:
        """What activations are multiplied with in training; None where they are taken as they are."""
        if trained_in in ("raw", "normed") or not self.protocol.precondition:
            return None
        if trained_in not in self._units:
            make = {"scaled": scaling, "whitened": whitening}[trained_in]
            self._units[trained_in] = make(self.moments)
        return self._units[trained_in]

    def scale(self, trained_in: str) -> float:
        """What a probe multiplies activations with by itself: one over the root mean square of their lengths, or 1."""
        square = float(self.moments.patches.trace()) if trained_in == "normed" and self.protocol.precondition else 1.0
        return square**-0.5 if square > 0 else 1.0

    def attention(self) -> AttentionMaps:
        """Query and key maps of the next layer. Errors as `next_layer_attention`."""
        return self._attention() if self._attention else next_layer_attention(self.cache, self.layer)

    @contextmanager
    def few_threads(self) -> Iterator[None]:
        """One thread for steps so small that threads cost more to wake than they save; the rest as it was set.

        Beside one other busy process, two threads took 12 s for a fit that one thread does in 3 s.
        """
        before, rules = torch.get_num_threads(), self.protocol
        products_per_step = self.splits["train"].d_model ** 2 * rules.train_patches * rules.scenes_per_step
        if self.device.type == "cpu" and products_per_step < _SMALL_STEP:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _free_memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()


def _say_what_is_otherwise(cache: ActivationCache, protocol: Protocol) -> None:
    """Warn of a cache that was not made as the paper's protocol wants it; ours takes caches as they are."""
    described = cache.backbone
    mean = described.get("preprocessing", {}).get("mean", _IMAGENET_MEAN)
    if protocol.normalization == "imagenet" and list(mean) != _IMAGENET_MEAN:
        logger.warning(
            "%s was cached with its checkpoint's own mean and deviation; the paper normalises every backbone with "
            'ImageNet\'s: load_backbone(..., normalization="imagenet")',
            described["name"],
        )
    if protocol.arithmetic == "reference" != described["geometry"].get("arithmetic", "centred"):
        logger.warning(
            "%s was cached with centred sizes, windows and masks; the paper's figures come from the reference "
            'implementation\'s roundings: load_backbone(..., arithmetic="reference")',
            described["name"],
        )


def measure_moments(
    patches: SplitPatches, n_scenes: int = _MOMENT_SCENES, n_patches: int = _MOMENT_PATCHES
) -> PairMoments:
    """Second moments of a split's patches and counted pairs, over evenly spread scenes and about so many patches."""
    chosen = spread(len(patches), n_scenes)
    most = max(32, n_patches // len(chosen))
    width, device = patches.d_model, patches.device
    parts = chosen.split(max(1, _ROWS_AT_ONCE // most))
    # Labels alone first: with the share of pairs on one object known, the signal is a single product.
    generator = torch.Generator().manual_seed(0)
    n_pairs = n_same = 0.0
    for scenes in parts:
        batch = patches.draw(scenes, generator, most, labels_only=True)
        n_pairs, n_same = n_pairs + float(batch.counted.sum()), n_same + float((batch.counted & batch.same).sum())
    share = n_same / max(n_pairs, 1)
    total, signal = (torch.zeros(width, width, device=device) for _ in range(2))
    generator, buffer, n_seen = torch.Generator().manual_seed(0), patches.buffer(len(parts[0]) * most), 0.0
    for scenes in parts:
        batch = patches.draw(scenes, generator, most, into=buffer)
        rows = batch.activations * batch.present[..., None]
        weights = (batch.same.to(rows.dtype) - share) * batch.counted
        weighed = (weights + weights.mT) @ rows
        add_symmetric_product(total, rows.flatten(0, 1), rows.flatten(0, 1))
        add_symmetric_product(signal, rows.flatten(0, 1), weighed.flatten(0, 1))
        n_seen += float(batch.present.sum())
    return PairMoments(mirrored(total) / max(n_seen, 1), mirrored(signal) / max(2 * n_pairs, 1))


def scaling(moments: PairMoments) -> Float[Tensor, " d_model"]:
    """One over the root mean square of each dimension; 1 where a dimension is always 0."""
    square = moments.patches.diagonal()
    return torch.where(square > 0, square, torch.ones_like(square)).rsqrt()


def whitening(moments: PairMoments, ridge: float = RIDGE) -> Float[Tensor, "d_model d_model"]:
    """A matrix `units` such that ``units @ x`` has (all but for the ridge) the identity as second moment."""
    scale = scaling(moments).double()
    scaled = moments.patches.double() * scale[:, None] * scale[None, :]
    values, vectors = torch.linalg.eigh(scaled)
    mean = values.clamp(min=0).mean()
    roots = (values.clamp(min=0) + ridge * mean).rsqrt()
    return ((vectors * roots) @ vectors.T * scale[None, :]).to(moments.patches.dtype)


def offset_of(logits: Float[Tensor, " pair"], same: Float[Tensor, " pair"]) -> float:
    """Offset that makes logits most likely where their scale is given: chances then add up to the answers."""
    scores, share = logits.double(), float(same.double().mean().clamp(1e-6, 1 - 1e-6))
    low, high = -float(scores.max()) - _SURE, -float(scores.min()) + _SURE
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if float((scores + middle).sigmoid().mean()) < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def scale_and_offset(logits: Float[Tensor, " pair"], same: Float[Tensor, " pair"]) -> tuple[float, float]:
    """Factor (above 0) and offset that make a score the most likely logit: logistic regression by Newton's method."""
    scores, answers = logits.double(), same.double()
    deviation = scores.std().clamp(min=1e-12)
    design = torch.stack([scores / deviation, torch.ones_like(scores)])
    weights = torch.zeros(2, dtype=torch.float64, device=scores.device)
    loss = binary_cross_entropy_with_logits(weights @ design, answers)
    for _ in range(_NEWTON_STEPS):
        chance = (weights @ design).sigmoid()
        gradient = design @ (chance - answers) / len(answers)
        curvature = (design * (chance * (1 - chance))) @ design.T / len(answers)
        step = torch.linalg.solve(curvature + 1e-6 * torch.eye(2, dtype=torch.float64, device=scores.device), gradient)
        # Halved until it helps: far from the optimum, Newton's full step may overshoot.
        while float(step.abs().max()) > 1e-9:
            tried = weights - step
            new_loss = binary_cross_entropy_with_logits(tried @ design, answers)
            if new_loss <= loss:
                weights, loss = tried, new_loss
                break
            step = step / 2
        else:
            break
    factor = float(weights[0] / deviation)
    return (factor if factor > 0 else 1e-3 / float(deviation)), float(weights[1])
