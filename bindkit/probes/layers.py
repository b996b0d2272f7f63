"""The patches of one layer of a cache, read once for all probes that are fitted on them: good starts, and good ends.

A good start: units in which all directions of the activations weigh alike, and a first probe in closed form. In
whitened units, the least-squares fit of "same object" on all products of two patches is the mean of these products
over pairs on one object less that over all: no iteration is needed to come near the best quadratic probe, and no
direction is learned late because it is faint.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
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
from bindkit.probes.base import PairMoments, make_probe
from bindkit.probes.batches import JUDGED_FIRST, PatchBatch, Roles, SplitPatches, spread
from bindkit.probes.judging import Task
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
        if buffer_bytes is None:
            free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else free_memory()
            left = free // 4
        else:
            left = whole_number(buffer_bytes, "buffer_bytes", 0)
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
        """Of the training split, in raw units. Raises NonFiniteActivationsError if products are not finite."""
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
        """One thread for small steps: beside one busy process, two took 12 s for a fit that one does in 3 s."""
        before, rules = torch.get_num_threads(), self.protocol
        products_per_step = self.splits["train"].d_model ** 2 * rules.train_patches * rules.scenes_per_step
        if self.device.type == "cpu" and products_per_step < _SMALL_STEP:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


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


Parameters = dict[str, Tensor]

# --- to the end ------------------------------------------------------------------------------------------------------
# Whatever the parameters of a probe of one's own are, it is to reach what its formula can reach. Adam's steps are one
# size for all parameters. Where a score varies little beside its mean (``x.y`` of activations that share a large mean),
# slope and offset are nearly one direction: both move together to the loss of an offset alone, and the way along the
# valley to the true slope, maybe of the other sign, takes many thousand steps. In units in which all directions of the
# parameters move logits alike, it takes a few tens.

_MOST_SCENES, _MOST_BYTES = 2048, 2**28
_SCENES_AT_ONCE = 16
_FEW_PARAMETERS = 512
"""Up to so many, directions are told apart whole; of more, each parameter only has a size of its own."""

_ITERATIONS = 10
"""Of L-BFGS between two looks at the validation scenes."""

_MORE_STARTS, _SEEDS_APART = 10, 1_000_003
"""Fresh starts of a formula whose class draws them, and what their seeds are apart."""

_SIZES = (1.0, 10.0, 0.1)
"""What drawn starts are multiplied with: a formula does not say which suits the activations."""


def copy_of(parameters: Parameters) -> Parameters:
    """Parameters to be moved, of their own."""
    return {name: value.detach().clone().requires_grad_(True) for name, value in parameters.items()}


def drawn_starts(name: str, d_model: int, seed: int, fresh: Parameters) -> Iterator[Parameters]:
    """Other starts that a probe's class draws; none where it always starts as `fresh`."""
    for number in range(1, _MORE_STARTS + 1):
        other = make_probe(name, d_model, seed + _SEEDS_APART * number)
        drawn = {key: other.get_parameter(key).detach().to(value.device) for key, value in fresh.items()}
        if any(not torch.equal(value, fresh[key]) for key, value in drawn.items()):
            yield {key: value * _SIZES[number % len(_SIZES)] for key, value in drawn.items()}


class TrainingPairs:
    """The pairs that a training's end is looked for on: drawn once, and the same for every parameters tried."""

    def __init__(
        self,
        train: SplitPatches,
        task: Task,
        seed: int,
        loss: Callable[[Parameters, PatchBatch], Tensor],
        logits: Callable[[Parameters, PatchBatch], Tensor],
    ) -> None:
        most = max(1, min(_MOST_SCENES, _MOST_BYTES // (4 * train.protocol.train_patches * train.d_model)))
        generator = torch.Generator().manual_seed(seed)
        drawn = [train.draw(scenes, generator) for scenes in spread(len(train), most).split(_SCENES_AT_ONCE)]
        self._batches = [train.shuffled(batch) for batch in drawn] if task.shuffled else drawn
        self._shares = [task.n_terms(batch) for batch in self._batches]
        self._loss, self._logits, self._decay = loss, logits, train.protocol.weight_decay

    def loss(self, parameters: Parameters) -> tuple[float, Tensor]:
        """Mean loss in nats, with what Adam's weight decay adds to it, and its gradient."""
        total, gradient, n_terms = 0.0, torch.zeros(()), max(sum(self._shares), 1)
        for batch, n_here in zip(self._batches, self._shares, strict=True):
            loss = self._loss(parameters, batch)
            total += float(loss.detach()) * n_here / n_terms
            gradient = gradient + _slope(loss, parameters) * (n_here / n_terms)
        if self._decay:
            flat = torch.cat([value.detach().flatten().cpu().double() for value in parameters.values()])
            total, gradient = total + self._decay / 2 * float(flat @ flat), gradient + self._decay * flat
        return total, gradient

    def loss_of_one_answer(self) -> float:
        """Mean loss in nats of the likeliest offset alone."""
        same = torch.cat([batch.same[batch.in_loss] for batch in self._batches]).double().mean()
        return float(torch.special.entr(same) + torch.special.entr(1 - same))

    def good_units(self, parameters: Parameters, seed: int) -> Tensor:
        """What steps are multiplied with so that all directions move logits alike, by one a pair on average.

        A matrix for few parameters, else a diagonal. Gradients of randomly signed sums of logits have the covariance
        that is wanted, and cost a fraction of the gradient of every logit.
        """
        generator, device = torch.Generator().manual_seed(seed), self._batches[0].activations.device
        n_parameters = sum(value.numel() for value in parameters.values())
        few = n_parameters <= _FEW_PARAMETERS
        slopes = []
        for number in range(max(len(self._batches), 3 * n_parameters if few else 0, 32)):
            batch = self._batches[number % len(self._batches)]
            logits = self._logits(parameters, batch)[batch.in_loss]
            signs = torch.randint(0, 2, logits.shape, generator=generator).to(device) * 2.0 - 1
            slopes.append(_slope((logits * signs).sum(), parameters) / max(len(logits), 1) ** 0.5)
        sampled = torch.stack(slopes)
        sizes = sampled.square().mean(0).sqrt()
        # What moves no logit here (a unit that is off) takes ordinary steps.
        sizes = torch.where(sizes > 0, sizes.clamp(min=1e-6 * float(sizes.max())), torch.ones_like(sizes)).reciprocal()
        if not few:
            return sizes
        sampled = sampled * sizes
        values, vectors = torch.linalg.eigh(sampled.mT @ sampled / len(sampled))
        return sizes[:, None] * vectors * values.clamp(min=1e-9 * float(values.max())).rsqrt()

    def best_descent(self, starts: Iterable[Parameters], seed: int) -> Descent | None:
        """The one that gets lowest, each start tried once; None where no loss has a slope."""
        apart: list[Parameters] = []
        for start in starts:
            if not any(all(torch.equal(start[name], known[name]) for name in start) for known in apart):
                apart.append(start)
        race = list(self.descents(apart, seed))
        # The worse half is left behind each time, and the others go twice as far before the next look.
        rounds = 1
        while len(race) > 1:
            for descent in race:
                for _ in range(rounds):
                    descent.go()
            race.sort(key=lambda descent: descent.loss)
            race, rounds = race[: len(race) // 2], 2 * rounds
        return race[0] if race else None

    def descents(self, starts: Iterable[Parameters], seed: int) -> Iterator[Descent]:
        """One from every start whose loss has a slope; none from one where training came to no number."""
        for start in starts:
            loss, slope = self.loss(copy_of(start))
            if math.isfinite(loss) and bool(slope.isfinite().all()):
                yield Descent(self, start, seed)


def _slope(value: Tensor, parameters: Parameters) -> Tensor:
    """Gradient of a number in all parameters, flat and in double precision."""
    moved = list(parameters.values())
    slopes = torch.autograd.grad(value, moved, allow_unused=True)
    found = [torch.zeros_like(p) if s is None else s for p, s in zip(moved, slopes, strict=True)]
    return torch.cat([slope.detach().flatten().cpu().double() for slope in found])


class Descent:
    """L-BFGS from a start, in good units; `parameters` are where it is, `loss` is theirs."""

    def __init__(self, pairs: TrainingPairs, start: Parameters, seed: int) -> None:
        self._pairs, self.parameters = pairs, copy_of(start)
        self._origin = torch.cat([value.detach().flatten().cpu().double() for value in start.values()])
        self._units = pairs.good_units(self.parameters, seed)
        self._steps = torch.zeros(self._units.shape[-1], dtype=torch.float64, requires_grad=True)
        self._optimiser = torch.optim.LBFGS(
            [self._steps],
            max_iter=_ITERATIONS,
            history_size=30,
            tolerance_grad=1e-9,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )
        self.loss = self._look()

    def _look(self) -> float:
        """Loss where the steps lead, and its gradient in them."""
        steps, whole = self._steps.detach(), self._units.ndim == 2
        moved = self._origin + (self._units @ steps if whole else self._units * steps)
        sizes = [value.numel() for value in self.parameters.values()]
        for value, part in zip(self.parameters.values(), moved.split(sizes), strict=True):
            value.data.copy_(part.reshape(value.shape))
        loss, gradient = self._pairs.loss(self.parameters)
        self._steps.grad = self._units.mT @ gradient if whole else self._units * gradient
        return loss

    def go(self) -> float:
        """Some iterations on; by how much the loss fell. What led to a loss that is no number is taken back."""
        before, kept = self.loss, self._steps.detach().clone()
        self._optimiser.step(self._look)
        self.loss = self._look()
        if not math.isfinite(self.loss):
            self._steps.data.copy_(kept)
            self.loss = self._look()
        return before - self.loss
