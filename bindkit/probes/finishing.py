"""Training of a probe of one's own to its end: whatever its parameters are, it reaches what its formula can reach.

Adam's steps are one size for all parameters. Where a score varies little beside its mean (``x.y`` of activations that
share a large mean), slope and offset are nearly one direction: both move together to the loss of an offset alone, and
the way along the valley to the true slope, maybe of the other sign, takes many thousand steps. In units in which all
directions of the parameters move logits alike, it takes a few tens.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from bindkit.probes.batches import PatchBatch
from bindkit.probes.layers import LayerPatches
from bindkit.probes.registry import is_shipped, make_probe
from bindkit.probes.side_by_side import Training, copy_of, look

logger = logging.getLogger(__name__)

_MOST_SCENES, _MOST_BYTES = 2048, 2**28
_SCENES_AT_ONCE = 16
_FEW_PARAMETERS = 512
"""Up to so many, directions are told apart whole; of more, each parameter only has a size of its own."""

_ROUNDS, _ITERATIONS = 40, 10
"""At most so many looks at the validation scenes, each after so many iterations of L-BFGS."""

_MORE_STARTS, _SEEDS_APART = 10, 1_000_003
"""Fresh starts of a formula whose class draws them, and what their seeds are apart."""

_SIZES = (1.0, 10.0, 0.1)
"""What drawn starts are multiplied with: a formula does not say which suits the activations."""

_PATIENCE = 4
"""Looks without a better validation loss after which more training only fits noise."""

_SETTLED = 1e-5
"""Nats by which a round has to lower the training loss, or what is left is not worth another."""

_UNSETTLED = 0.01
"""Share of its training loss that a few iterations may at most take off a fit that counts as settled."""


def finish(training: Training, patches: LayerPatches, seed: int) -> None:
    """Train a probe of one's own on where a protocol trains in good units, and warn if it is not at its end."""
    if is_shipped(type(training.probe)):
        return
    pairs = TrainingPairs(training, patches, seed)
    if patches.protocol.precondition:
        left = _to_its_end(training, patches, pairs, seed)
        remedy = "write its formula with fewer parameters or start it nearer"
    else:
        left = _still_to_gain(training, pairs, seed)
        remedy = f"take the protocol strict, which trains on, or one with more epochs than {patches.protocol.epochs}"
    training.parameters = copy_of(training.parameters)
    where = (training.name, patches.layer, patches.cache.backbone["name"])
    if left:
        logger.warning(
            "the %s probe on layer %d of %s has not settled: a little more training lowers its training loss by %.2g "
            "nats, so that its figures do not say what the probe can do; %s",
            *(*where, left, remedy),
        )
    elif not training.task.shuffled and pairs.loss()[0] > (1 - _UNSETTLED) * pairs.loss_of_one_answer():
        logger.warning(
            "the %s probe on layer %d of %s has learnt next to nothing: its training loss is that of one chance given "
            "to all pairs; start it elsewhere or write its formula otherwise, or layer and formula have nothing to say",
            *where,
        )


def _still_to_gain(training: Training, pairs: TrainingPairs, seed: int) -> float:
    """Nats that the kept parameters are off where they could soon be, 0 for next to nothing; they stay as they are."""
    kept, left = training.parameters, 0.0
    for descent in _descents(training, pairs, [kept], seed):
        before, fell = descent.loss, descent.go()
        left = fell if fell > _UNSETTLED * before else 0.0
    training.parameters = kept
    return left


class TrainingPairs:
    """The pairs that a training's end is looked for on: drawn once, and the same for every parameters tried."""

    def __init__(self, training: Training, patches: LayerPatches, seed: int) -> None:
        train, rules = patches.splits["train"], patches.protocol
        most = max(1, min(_MOST_SCENES, _MOST_BYTES // (4 * rules.train_patches * train.d_model)))
        chosen = torch.linspace(0, len(train) - 1, min(most, len(train)), dtype=torch.float64).long().unique()
        generator = torch.Generator().manual_seed(seed)
        drawn = [train.draw(scenes, generator) for scenes in chosen.split(_SCENES_AT_ONCE)]
        self._batches = [train.shuffled(batch) for batch in drawn] if training.task.shuffled else drawn
        self._training, self._shares = training, [training.task.n_terms(batch) for batch in self._batches]

    def loss(self) -> tuple[float, Tensor]:
        """Mean loss of the present parameters in nats, and its gradient."""
        total, gradient, n_terms = 0.0, torch.zeros(()), max(sum(self._shares), 1)
        for batch, n_here in zip(self._batches, self._shares, strict=True):
            loss = self._training.loss(batch)
            total += float(loss.detach()) * n_here / n_terms
            gradient = gradient + self._slope(loss) * (n_here / n_terms)
        return total, gradient

    def loss_of_one_answer(self) -> float:
        """Mean loss in nats of the likeliest offset alone."""
        same = torch.cat([batch.same[batch.in_loss] for batch in self._batches]).double().mean()
        return float(torch.special.entr(same) + torch.special.entr(1 - same))

    def _slope(self, value: Tensor) -> Tensor:
        """Gradient of a number in all parameters, flat and in double precision."""
        parameters = list(self._training.parameters.values())
        slopes = torch.autograd.grad(value, parameters, allow_unused=True)
        found = [torch.zeros_like(p) if s is None else s for p, s in zip(parameters, slopes, strict=True)]
        return torch.cat([slope.detach().flatten().cpu().double() for slope in found])

    def good_units(self, seed: int) -> Tensor:
        """What steps are multiplied with so that all directions move logits alike, by one a pair on average.

        A matrix for few parameters, else a diagonal. Gradients of randomly signed sums of logits have the covariance
        that is wanted, and cost a fraction of the gradient of every logit.
        """
        generator, device = torch.Generator().manual_seed(seed), self._batches[0].activations.device
        n_parameters = sum(value.numel() for value in self._training.parameters.values())
        few = n_parameters <= _FEW_PARAMETERS
        slopes = []
        for number in range(max(len(self._batches), 3 * n_parameters if few else 0, 32)):
            batch = self._batches[number % len(self._batches)]
            logits = self._logits(batch)
            signs = torch.randint(0, 2, logits.shape, generator=generator).to(device) * 2.0 - 1
            slopes.append(self._slope((logits * signs).sum()) / max(len(logits), 1) ** 0.5)
        sampled = torch.stack(slopes)
        sizes = sampled.square().mean(0).sqrt()
        # What moves no logit here (a unit that is off) takes ordinary steps.
        sizes = torch.where(sizes > 0, sizes.clamp(min=1e-6 * float(sizes.max())), torch.ones_like(sizes)).reciprocal()
        if not few:
            return sizes
        sampled = sampled * sizes
        values, vectors = torch.linalg.eigh(sampled.mT @ sampled / len(sampled))
        return sizes[:, None] * vectors * values.clamp(min=1e-9 * float(values.max())).rsqrt()

    def _logits(self, batch: PatchBatch) -> Tensor:
        return self._training.logits(batch)[batch.in_loss]


class Descent:
    """L-BFGS from the parameters that a training has, in good units."""

    def __init__(self, training: Training, pairs: TrainingPairs, start: dict[str, Tensor], seed: int) -> None:
        self._training, self._pairs, self._parameters = training, pairs, copy_of(start)
        training.parameters = self._parameters
        self._origin = torch.cat([value.detach().flatten().cpu().double() for value in start.values()])
        self._units = pairs.good_units(seed)
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
        sizes = [value.numel() for value in self._parameters.values()]
        for value, part in zip(self._parameters.values(), moved.split(sizes), strict=True):
            value.data.copy_(part.reshape(value.shape))
        loss, gradient = self._pairs.loss()
        self._steps.grad = self._units.mT @ gradient if whole else self._units * gradient
        return loss

    def go(self) -> float:
        """Some iterations on; by how much the loss fell. What led to a loss that is no number is taken back."""
        self._training.parameters = self._parameters
        before, kept = self.loss, self._steps.detach().clone()
        self._optimiser.step(self._look)
        self.loss = self._look()
        if not math.isfinite(self.loss):
            self._steps.data.copy_(kept)
            self.loss = self._look()
        return before - self.loss


def _descents(
    training: Training, pairs: TrainingPairs, starts: Iterable[dict[str, Tensor]], seed: int
) -> Iterator[Descent]:
    """One from every start whose loss has a slope; what training led to no number (with a name of its own) has none."""
    for start in starts:
        training.parameters = copy_of(start)
        loss, slope = pairs.loss()
        if math.isfinite(loss) and bool(slope.isfinite().all()):
            yield Descent(training, pairs, start, seed)


def _to_its_end(training: Training, patches: LayerPatches, pairs: TrainingPairs, seed: int) -> float:
    """Descend until it settles or validation says enough. What the last iterations brought, 0 where it settled."""
    kept = training.parameters
    race = list(_descents(training, pairs, _starts(training, patches, seed), seed))
    if not race:
        training.parameters = kept
        return 0.0
    # The worse half is left behind each time, and the others go twice as far before the next look.
    rounds = 1
    while len(race) > 1:
        for descent in race:
            for _ in range(rounds):
                descent.go()
        race.sort(key=lambda descent: descent.loss)
        race, rounds = race[: len(race) // 2], 2 * rounds
    (best,) = race
    losses: list[float] = []
    fell = math.inf
    while len(losses) < _ROUNDS and fell >= _SETTLED and not (any(losses) and min(losses[-_PATIENCE:]) > min(losses)):
        started = time.perf_counter()
        fell = best.go()
        look(training, patches, {"epoch": patches.protocol.epochs + len(losses), "train_loss": best.loss}, started)
        losses.append(training.history[-1]["validation_loss"] or 0.0)
    settled = len(losses) < _ROUNDS or fell < _SETTLED
    training.parameters = training.kept or training.parameters
    training.settle()
    return 0.0 if settled else fell


def _starts(training: Training, patches: LayerPatches, seed: int) -> list[dict[str, Tensor]]:
    """Where to descend from: Adam's end, the fresh probe, and others that its class makes; each once.

    Adam's end is the better start of some formulas, and of others (a unit that it switched off) a worse one.
    """
    starts = [training.parameters, training.fresh]
    for number in range(1, _MORE_STARTS + 1):
        other = make_probe(training.name, training.probe.d_model, seed + _SEEDS_APART * number).to(patches.device)
        drawn = {name: other.get_parameter(name).detach() for name in training.fresh}
        if any(not torch.equal(drawn[name], training.fresh[name]) for name in drawn):
            starts.append({name: value * _SIZES[number % len(_SIZES)] for name, value in drawn.items()})
    apart: list[dict[str, Tensor]] = []
    for start in starts:
        if not any(all(torch.equal(start[name], known[name]) for name in start) for known in apart):
            apart.append(start)
    return apart
