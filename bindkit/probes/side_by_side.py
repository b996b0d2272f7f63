"""Probes in training side by side: every batch is read once and shown to all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from bindkit.probes.attention import SelfAttention
from bindkit.probes.base import Probe
from bindkit.probes.batches import PatchBatch, SplitPatches
from bindkit.probes.layers import LayerPatches
from bindkit.probes.protocols import Protocol
from bindkit.probes.registry import parse_probe
from bindkit.probes.starts import offset_of, scale_and_offset
from bindkit.probes.tasks import Task, pair_loss

_START_SCENES = 256
"""Scenes whose pairs set scale and offset of a start in closed form."""


@dataclass
class Training:
    """One probe in training; its parameters are in its units, those of the probe itself in the activations'."""

    name: str
    task: Task
    probe: Probe
    units: Tensor | None
    parameters: dict[str, Tensor]
    optimiser: torch.optim.Optimizer | None
    schedule: torch.optim.lr_scheduler.LRScheduler | None
    fresh: dict[str, Tensor]
    """Parameters before any step: as the probe was made, an offset alone at its likeliest."""
    best: float = -math.inf
    kept: dict[str, Tensor] | None = None
    losses: list[Tensor] = field(default_factory=list)
    history: list[dict[str, float | None]] = field(default_factory=list)

    def raw(self) -> dict[str, Tensor]:
        """Parameters for activations as they are."""
        return self.parameters if self.units is None else self.probe.folded(self.parameters, self.units)

    def logits(self, batch: PatchBatch) -> Tensor:
        """What the probe says of every pair with the present parameters."""
        return functional_call(self.probe, self.raw(), (batch.activations,))

    def loss(self, batch: PatchBatch) -> Tensor:
        """What the task says of the present parameters, in nats."""
        # The task sees an ordinary probe, whose parameters are these for the length of the call.
        return functional_call(_Told(self.probe, self.task), {f"probe.{k}": v for k, v in self.raw().items()}, (batch,))

    @torch.no_grad()
    def settle(self) -> Probe:
        """Put the present parameters into the probe, in raw units."""
        for name, value in self.raw().items():
            self.probe.get_parameter(name).copy_(value)
        return self.probe


class _Told(torch.nn.Module):
    """A probe with its task, as one module that gives the loss of a batch."""

    def __init__(self, probe: Probe, task: Task) -> None:
        super().__init__()
        self.probe, self._task = probe, task

    def forward(self, batch: PatchBatch) -> Tensor:
        return self._task.loss(self.probe, batch)


def prepared(name: str, task: Task, patches: LayerPatches, seed: int) -> Training:
    """A fresh probe of that name for the task, in its units and with its start in closed form, where it has one."""
    rules, cache = patches.protocol, patches.cache
    train = patches.splits["train"]
    options: dict[str, Any] = {}
    if parse_probe(name)[0] == "self_attention":
        maps = patches.attention()
        options = {"n_heads": maps.n_heads, "norm_epsilon": maps.norm_epsilon}
    probe = task.make_probe(name, train, seed, cache.class_names, cache.benchmark_classes, **options)
    if isinstance(probe, SelfAttention):
        probe.take(maps)
    probe = probe.to(patches.device)
    units = patches.units(probe.trained_in)
    if task.kind is None:
        probe.scale = patches.scale(probe.trained_in)
    start = None
    if units is not None and task.kind is None and not task.shuffled:
        start = probe.closed_form(patches.moments.in_units(units))
    parameters = {key: value.detach().clone() for key, value in probe.named_parameters() if value.requires_grad}
    training = Training(name, task, probe, units, parameters, None, None, fresh=parameters)
    if start is not None:
        training.parameters = {key: start[key].detach().clone() for key in parameters}
        _set_scale_and_offset(training, train)
    elif rules.precondition and task.kind is None and {k: v.numel() for k, v in parameters.items()} == {"bias": 1}:
        training.parameters["bias"].fill_(_likeliest_offset(training, train))
        start = training.parameters
    training.parameters = copy_of(training.parameters)
    rate = rules.learning_rate / (probe.d_model if rules.divide_by_width else 1)
    training.optimiser = torch.optim.Adam(list(training.parameters.values()), lr=rate)
    training.schedule = torch.optim.lr_scheduler.StepLR(training.optimiser, rules.decay_every, rules.decay)
    if start is not None:
        look(training, patches, {"epoch": -1, "train_loss": None}, time.perf_counter())
    return training


def copy_of(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameters to be moved, of their own."""
    return {name: value.detach().clone().requires_grad_(True) for name, value in parameters.items()}


def _likeliest_offset(training: Training, train: SplitPatches) -> float:
    """Offset of a baseline, which has no other parameter and whose scores may be of any size."""
    logits, same = _first_look(training, train)
    return float(training.parameters["bias"]) + offset_of(logits, same)


@torch.no_grad()
def _first_look(training: Training, train: SplitPatches) -> tuple[Tensor, Tensor]:
    """Logits of the counted pairs of evenly spread scenes, and whether they are of one object."""
    chosen = torch.linspace(0, len(train) - 1, min(_START_SCENES, len(train)), dtype=torch.float64).long().unique()
    batch = train.draw(chosen, torch.Generator().manual_seed(0))
    if training.task.shuffled:
        batch = train.shuffled(batch)
    logits = training.settle()(batch.activations)
    return logits[batch.counted], batch.same[batch.counted].float()


@torch.no_grad()
def _set_scale_and_offset(training: Training, train: SplitPatches) -> None:
    """Make the start's scores logits: its direction is known in closed form, its scale and offset are not."""
    factor, offset = scale_and_offset(*_first_look(training, train))
    for name, value in training.parameters.items():
        degree = training.probe.degrees.get(name)
        if degree is None:
            value.fill_(offset)
        else:
            value.mul_(factor**degree)


def train_side_by_side(trainings: Sequence[Training], patches: LayerPatches, seed: int) -> None:
    """The protocol's schedule; leaves the kept epoch's weights in each probe, in raw units."""
    rules, train = patches.protocol, patches.splits["train"]
    generator = torch.Generator().manual_seed(seed)
    buffer = train.buffer(rules.scenes_per_step * rules.train_patches)
    for epoch in range(rules.epochs):
        started, n_scenes = time.perf_counter(), 0
        for training in trainings:
            training.losses = []
        for scenes in _scene_batches(len(train), rules, generator):
            plain = train.draw(scenes, generator, into=buffer)
            n_scenes += len(scenes)
            shuffled = train.shuffled(plain) if any(training.task.shuffled for training in trainings) else plain
            for training in trainings:
                loss = training.loss(shuffled if training.task.shuffled else plain)
                assert training.optimiser is not None
                training.optimiser.zero_grad()
                loss.backward()
                training.optimiser.step()
                training.losses.append(loss.detach())
        speed = n_scenes / (time.perf_counter() - started)
        for training in trainings:
            assert training.schedule is not None
            training.schedule.step()
            entry: dict[str, float | None] = {"epoch": epoch, "train_loss": float(torch.stack(training.losses).mean())}
            entry["scenes_per_second"] = round(speed, 1)
            look(training, patches, entry, started)
    for training in trainings:
        if training.kept is not None:
            training.parameters = training.kept
        training.settle()


def look(training: Training, patches: LayerPatches, entry: dict[str, float | None], started: float) -> None:
    """Note loss and accuracy on the validation scenes, and keep the weights if they are the best so far."""
    validation, rules = patches.splits["validation"], patches.protocol
    entry["validation_loss"] = entry["validation_accuracy"] = None
    if len(validation):
        val_loss, val_accuracy = validate(training.settle(), training.task, validation)
        entry["validation_loss"], entry["validation_accuracy"] = val_loss, val_accuracy
        # A pointwise loss and a pair's accuracy are not of one kind; the protocol says which it looks at.
        score = val_accuracy if rules.keep == "accuracy" else -val_loss
        # Broken weights say "different" to everything, which may well be the best accuracy so far.
        if math.isfinite(val_loss) and score > training.best:
            training.best = score
            training.kept = {name: value.detach().clone() for name, value in training.parameters.items()}
    entry["seconds"] = round(time.perf_counter() - started, 4)
    training.history.append(entry)


def validate(probe: Probe, task: Task, validation: SplitPatches) -> tuple[float, float]:
    """Loss over the validation scenes, as the task counts it, and accuracy over all their counted pairs."""
    loss = right = n_loss = n_pairs = 0.0
    with torch.inference_mode():
        for plain in validation.judged():
            batch = validation.shuffled(plain) if task.shuffled else plain
            n_terms = task.n_terms(batch)
            logits = probe(batch.activations)
            told = task.loss(probe, batch) if task.kind else pair_loss(logits, batch)
            loss, n_loss = loss + float(told) * n_terms, n_loss + n_terms
            said_same = probe.says_same(batch.activations, logits)
            right += float(((said_same == batch.same) & batch.counted).sum())
            n_pairs += float(batch.counted.sum())
    return loss / max(n_loss, 1), right / max(n_pairs, 1)


def _scene_batches(n_scenes: int, protocol: Protocol, generator: torch.Generator) -> Iterator[Tensor]:
    """One epoch: every scene once, in a new order; again and again where the protocol asks for more steps."""
    size = min(protocol.scenes_per_step, n_scenes)
    steps = max(math.ceil(n_scenes / size), math.ceil(protocol.min_steps / protocol.epochs))
    done = 0
    while done < steps:
        for scenes in torch.randperm(n_scenes, generator=generator).split(size):
            if done < steps:
                yield scenes
                done += 1
