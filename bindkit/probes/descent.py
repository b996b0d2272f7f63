"""Descent of a probe of one's own to its end: whatever its parameters are, it reaches what its formula can reach.

Adam's steps are one size for all parameters. Where a score varies little beside its mean (``x.y`` of activations that
share a large mean), slope and offset are nearly one direction: both move together to the loss of an offset alone, and
the way along the valley to the true slope, maybe of the other sign, takes many thousand steps. In units in which all
directions of the parameters move logits alike, it takes a few tens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from bindkit.probes.base import make_probe
from bindkit.probes.batches import PatchBatch, SplitPatches, spread
from bindkit.probes.tasks import Task

Parameters = dict[str, Tensor]

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
    """The pairs that a training's end is looked for on: drawn once, and the same for every parameters tried.

    `loss` and `logits` say of parameters and a batch what a task and a probe say.
    """

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
