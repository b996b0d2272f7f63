"""From a cache to fitted probes: the whole of training, in the order in which it happens.

`fit_probe` or `fit_probes` -> `Training.begin` (a probe in good units, at its start in closed form) -> a `step` for
each batch -> a `look` at the validation scenes after each epoch -> `finish` for probes of one's own -> judged -> `Fit`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import cycle
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from bindkit.arguments import read_seed, whole_number
from bindkit.cache import ActivationCache, require_cache
from bindkit.errors import InvalidParameterError, LayerError, NonFiniteActivationsError, ProbeError
from bindkit.files import one_ahead, without_nan
from bindkit.probes.base import Probe, is_shipped, parse_probe
from bindkit.probes.batches import PatchBatch, fold_roles, said, scene_batches, spread
from bindkit.probes.judging import TASKS, Judged, Task, judge_split, judge_together, require_fitting, validate
from bindkit.probes.kinds import SelfAttention
from bindkit.probes.layers import (
    LayerPatches,
    Parameters,
    TrainingPairs,
    copy_of,
    drawn_starts,
    offset_of,
    scale_and_offset,
)
from bindkit.probes.metrics import warn_below_chance
from bindkit.probes.protocols import Fit, Protocol, validation_accuracy

logger = logging.getLogger(__name__)

_START_SCENES = 256
"""Scenes whose pairs set scale and offset of a start in closed form."""

_ROUNDS, _PATIENCE = 40, 4
"""Looks at the validation scenes on the way of a probe of one's own to its end: at most, and without a better loss,
after which more training only fits noise."""

_SETTLED, _UNSETTLED = 1e-5, 0.01
"""Nats by which a round has to lower the training loss, or what is left is not worth another; and the share of it that
a few iterations may at most take off a fit that counts as settled."""


def fit_probe(
    cache: ActivationCache | LayerPatches,
    layer: int | None = None,
    probe: str = "quadratic",
    task: str = "pairwise",
    protocol: str | Protocol = "strict",
    seed: int = 0,
    device: str = "auto",
    folds: int | None = None,
    buffer_bytes: int | None = None,
) -> Fit:
    """Fit one probe on one layer of a cache and judge it on the test split, or all scenes fold by fold.

    Parameters
    ----------
    cache : ActivationCache or LayerPatches
        Cached activations; or one layer of them, already read, which saves reading it again for the next probe.
    layer : int
        0-based. Not needed with LayerPatches, which carry theirs.
    probe : str
        A name in ``bindkit.probes.PROBES``, where it takes one with its number: ``quadratic_fixed_rank@16``,
        ``self_attention@3`` (a head).
    task : str
        A name in ``bindkit.probes.judging.TASKS``: ``pairwise``, ``pointwise_class``, ``pointwise_identity``, or the
        control ``shuffled_labels``.
    protocol : str or Protocol
        ``"strict"`` or ``"paper"``, with fields: ``"strict,epochs=4"``. Not looked at with LayerPatches,
        which carry theirs.
    seed : int
        Of the weights, the order of scenes and the patches drawn. The judged pairs do not depend on it.
    device : str
        ``"auto"`` takes CUDA where there is one. Not looked at with LayerPatches.
    folds : int, optional
        Cross-validate instead, where scenes are few: all scenes, whatever their split, are dealt into so many folds (at
        least 3, by groups), and each fold is judged by a probe trained on the others, of which one validates. The
        figures are of all scenes. Not with LayerPatches.
    buffer_bytes : int, optional
        Of activations in memory, default a quarter of what is free; more are read batch by batch, to the same figures.

    Returns
    -------
    Fit
        ``fit.metrics``, ``fit.history``, ``fit.probe``, ``fit.save(directory)``.

    Raises
    ------
    ProbeError
        An unknown probe or task, or a probe that the task does not take.
    LayerError, InvalidParameterError
        A layer that the cache (or the LayerPatches) does not have; a layer or seed that is no whole number.
    EmptySplitError, OneAnswerError
        No training scene with two usable patches; every training pair has one answer, or no patch a class where asked.
    ConstantActivationsError, NonFiniteActivationsError
        Every patch has the same activation; NaN or infinity among the activations, or in the loss.

    Examples
    --------
    ::

        cache = bk.ActivationCache.open("workspace/cache/...")
        fit = bk.fit_probe(cache, layer=3, probe="quadratic")
        fit.metrics["auroc"], fit.metrics["auroc_low"], fit.metrics["auroc_high"]
    """
    require_fitting(parse_probe(probe)[0], task)
    seed = read_seed(seed)
    if isinstance(cache, LayerPatches):
        if folds is not None:
            raise InvalidParameterError("folds are dealt from a whole cache; give the ActivationCache and layer=")
        if layer is not None and layer != cache.layer:
            raise LayerError(f"these are the patches of layer {cache.layer}, not of layer {layer}; leave out layer=")
        return fit_probes(cache, [(probe, task)], seed)[0]
    require_cache(cache)
    if layer is None:
        raise ProbeError(f"say which layer to fit on; the cache has {', '.join(map(str, cache.layers))}")
    layer = whole_number(layer, "layer")
    if folds is not None:
        return fit_folds(cache, layer, [(probe, task)], folds, protocol, seed, device, buffer_bytes)[0]
    return fit_probes(LayerPatches(cache, layer, protocol, device, buffer_bytes=buffer_bytes), [(probe, task)], seed)[0]


def fit_probes(patches: LayerPatches, wanted: Sequence[tuple[str, str]], seed: int = 0) -> list[Fit]:
    """Fit several (probe, task) on the same batches; each gets exactly what `fit_probe` would give it. Its errors."""
    seed = read_seed(seed)
    split, fits = patches.judged_split, []
    with patches.few_threads():
        for training in trained(patches, wanted, seed):
            metrics = judge_split(training.settled(), patches.splits[split], training.task.name)
            fits.append(training.finished(metrics, split))
    warn_below_chance(fit.row() for fit in fits)
    return fits


def fit_folds(
    cache: ActivationCache,
    layer: int,
    wanted: Sequence[tuple[str, str]],
    folds: int,
    protocol: str | Protocol = "strict",
    seed: int = 0,
    device: str = "auto",
    buffer_bytes: int | None = None,
) -> list[Fit]:
    """Fit several (probe, task) in a cross-validation over all cached scenes; every scene is judged once.

    A fold without usable scenes is left out. Raises InvalidParameterError for fewer folds than 3 or more than there
    are scenes or groups of them, and what `fit_probe` raises.
    """
    seed, parts = read_seed(seed), []
    for number, roles in enumerate(fold_roles(cache, folds), 1):
        patches = LayerPatches(cache, layer, protocol, device, roles=roles, buffer_bytes=buffer_bytes)
        if not len(patches.splits["test"]):
            continue
        with patches.few_threads():
            trainings = trained(patches, wanted, seed)
        fold = {"number": number, "of": folds, **{name: list(roles[name].scene_ids) for name in ("test", "validation")}}
        judged = [Judged(one.settled(), patches.splits["test"], one.task.name) for one in trainings]
        parts.append((fold, trainings, judged))
    saved = [fold["number"] for fold, *_ in parts]
    fits = []
    for which in range(len(wanted)):
        with torch.inference_mode():
            metrics = judge_together([judged[which] for *_, judged in parts])
        ones = [
            trainings[which].finished(metrics, said(folds), fold | {"saved": saved}) for fold, trainings, _ in parts
        ]
        fits.append(replace(ones[0], seconds=sum(one.seconds for one in ones), folds=tuple(ones)))
    warn_below_chance(fit.row() for fit in fits)
    return fits


def trained(patches: LayerPatches, wanted: Sequence[tuple[str, str]], seed: int) -> list[Training]:
    """Each (probe, task) from its start to its end, with an equal share of the seconds that all took."""
    patches.splits["train"].require_two_answers()
    patches.splits["train"].require_differences()
    started = time.perf_counter()
    trainings = [Training.begin(name, TASKS[task], patches, seed) for name, task in wanted]
    train_side_by_side(trainings, patches, seed)
    for training in trainings:
        finish(training)
    seconds = (time.perf_counter() - started) / len(trainings)
    for training in trainings:
        training.seconds = seconds
    return trainings


def train_side_by_side(trainings: Sequence[Training], patches: LayerPatches, seed: int) -> None:
    """The protocol's schedule; leaves the kept epoch's weights in each probe, in raw units."""
    rules, train = patches.protocol, patches.splits["train"]
    generator = torch.Generator().manual_seed(seed)
    n_rows = rules.scenes_per_step * rules.train_patches
    # Two, since from disk the next batch is read while the current one is computed.
    buffers = cycle([train.buffer(n_rows) for _ in range(1 if train.is_in_memory else 2)])
    for epoch in range(rules.epochs):
        started, n_scenes = time.perf_counter(), 0
        drawn = (
            train.draw(scenes, generator, into=next(buffers)) for scenes in scene_batches(len(train), rules, generator)
        )
        for plain in drawn if train.is_in_memory else one_ahead(drawn):
            n_scenes += len(plain.scenes)
            shuffled = train.shuffled(plain) if any(training.task.shuffled for training in trainings) else plain
            for training in trainings:
                training.step(shuffled if training.task.shuffled else plain)
        speed = round(n_scenes / (time.perf_counter() - started), 1)
        for training in trainings:
            training.schedule.step()
            mean_loss = float(torch.stack(training.losses).mean())
            training.losses.clear()
            training.look({"epoch": epoch, "train_loss": mean_loss, "scenes_per_second": speed}, started)
    for training in trainings:
        training.take_kept()


@dataclass
class Training:
    """One probe in training; its parameters are in its units, those of the probe itself in the activations'."""

    name: str
    task: Task
    patches: LayerPatches
    seed: int
    probe: Probe
    units: Tensor | None
    fresh: Parameters
    """Before any step: as the probe was made, an offset alone at its likeliest."""
    parameters: Parameters
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    best: float = -math.inf
    kept: Parameters | None = None
    losses: list[Tensor] = field(default_factory=list)
    history: list[dict[str, float | None]] = field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def begin(cls, name: str, task: Task, patches: LayerPatches, seed: int) -> Training:
        """A fresh probe of that name for the task, in its units and at its start in closed form, where it has one."""
        rules, cache, train = patches.protocol, patches.cache, patches.splits["train"]
        options: dict[str, Any] = {}
        if parse_probe(name)[0] == "self_attention":
            maps = patches.attention()
            options = {"n_heads": maps.n_heads, "norm_epsilon": maps.norm_epsilon}
        probe = task.make_probe(name, train, seed, cache.class_names, cache.benchmark_classes, **options)
        if isinstance(probe, SelfAttention):
            probe.take(maps)
        probe = probe.to(patches.device)
        units, start = patches.units(probe.trained_in), None
        if task.kind is None:
            probe.scale = patches.scale(probe.trained_in)
            if units is not None and not task.shuffled:
                start = probe.closed_form(patches.moments.in_units(units))
        fresh = {key: value.detach().clone() for key, value in probe.named_parameters() if value.requires_grad}
        parameters = copy_of(fresh if start is None else {key: start[key] for key in fresh})
        rate = rules.learning_rate / (probe.d_model if rules.divide_by_width else 1)
        optimiser = torch.optim.Adam(list(parameters.values()), lr=rate, weight_decay=rules.weight_decay)
        schedule = torch.optim.lr_scheduler.StepLR(optimiser, rules.decay_every, rules.decay)
        training = cls(name, task, patches, seed, probe, units, fresh, parameters, optimiser, schedule)
        has_offset_alone = {key: value.numel() for key, value in fresh.items()} == {"bias": 1}
        if start is not None or (has_offset_alone and task.kind is None and rules.precondition):
            training._set_scale_and_offset(start is None)
            training.look({"epoch": -1, "train_loss": None}, time.perf_counter())
        return training

    @torch.no_grad()
    def _set_scale_and_offset(self, offset_alone: bool) -> None:
        """Make the start's scores logits; of a baseline, which has nothing but an offset, scores are of any size."""
        train = self.patches.splits["train"]
        batch = train.draw(spread(len(train), _START_SCENES), torch.Generator().manual_seed(0))
        if self.task.shuffled:
            batch = train.shuffled(batch)
        logits, same = self.settle()(batch.activations)[batch.counted], batch.same[batch.counted].float()
        if offset_alone:
            offset = float(self.parameters["bias"]) + offset_of(logits, same)
            self.parameters["bias"].fill_(offset)
            self.fresh["bias"].fill_(offset)
            return
        factor, offset = scale_and_offset(logits, same)
        for name, value in self.parameters.items():
            degree = self.probe.degrees.get(name)
            if degree is None:
                value.fill_(offset)
            else:
                value.mul_(factor**degree)

    def raw(self, parameters: Parameters) -> Parameters:
        """Parameters for activations as they are."""
        return parameters if self.units is None else self.probe.folded(parameters, self.units)

    def logits(self, parameters: Parameters, batch: PatchBatch) -> Tensor:
        """What the probe says of every pair."""
        return functional_call(self.probe, self.raw(parameters), (batch.activations,))

    def loss(self, parameters: Parameters, batch: PatchBatch) -> Tensor:
        """What the task says of the parameters, in nats."""
        # The task sees an ordinary probe, whose parameters are these for the length of the call.
        named = {f"probe.{name}": value for name, value in self.raw(parameters).items()}
        return functional_call(_Told(self.probe, self.task), named, (batch,))

    def step(self, batch: PatchBatch) -> None:
        """One step of Adam; `losses` are those of the epoch so far."""
        loss = self.loss(self.parameters, batch)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.losses.append(loss.detach())

    def look(self, entry: dict[str, float | None], started: float) -> None:
        """Note loss and accuracy on the validation scenes, and keep the weights if they are the best so far."""
        validation = self.patches.splits["validation"]
        entry["validation_loss"] = entry["validation_accuracy"] = None
        if len(validation):
            loss, accuracy = validate(self.settle(), self.task, validation)
            entry["validation_loss"], entry["validation_accuracy"] = loss, accuracy
            # A pointwise loss and a pair's accuracy are not of one kind; the protocol says which it looks at.
            score = accuracy if self.patches.protocol.keep == "accuracy" else -loss
            # Broken weights say "different" to everything, which may well be the best accuracy so far.
            if math.isfinite(loss) and score > self.best:
                self.best = score
                self.kept = {name: value.detach().clone() for name, value in self.parameters.items()}
        entry["seconds"] = round(time.perf_counter() - started, 4)
        self.history.append(entry)

    @torch.no_grad()
    def settle(self) -> Probe:
        """Put the present parameters into the probe, in raw units."""
        for name, value in self.raw(self.parameters).items():
            self.probe.get_parameter(name).copy_(value)
        return self.probe

    def take_kept(self) -> None:
        """Go back to the best weights so far, where there were validation scenes to say which."""
        self.parameters = self.kept or self.parameters
        self.settle()

    def settled(self) -> Probe:
        """The trained probe, in evaluation mode. Raises NonFiniteActivationsError where training went astray."""
        last = self.history[-1]["train_loss"]
        if last is None or not math.isfinite(last):
            raise NonFiniteActivationsError(
                f"the training loss of the {self.name} probe on layer {self.patches.layer} became {last}; look at the "
                "activations (cache.verify()) or take a lower learning rate"
            )
        return self.probe.requires_grad_(False).eval()

    def finished(self, metrics: dict[str, float], split: str, fold: dict[str, Any] | None = None) -> Fit:
        """The probe with the figures that it was judged by, on the CPU; it says what it was fitted on."""
        patches, asked, described = self.patches, self.patches.asked_protocol, self.patches.cache.backbone
        self.probe.fitted_on = {
            "backbone": described["name"],
            "objective": described["objective"],
            "weights_digest": described["weights_digest"],
            "scenes": patches.cache.manifest.identity.scenes_uri,
            "layer": patches.layer,
            "probe": self.name,
            "task": self.task.name,
            "protocol": asked.name,
            **({} if asked.is_shipped else {"protocol_fields": asdict(asked)}),
            "seed": self.seed,
            "split": split,
            "seconds": round(self.seconds, 3),
            "metrics": without_nan(metrics),
            **without_nan({"validation_accuracy": validation_accuracy(self.history, patches.protocol)}),
            "history": [without_nan(entry) for entry in self.history],
            **({} if fold is None else {"fold": fold}),
        }
        return Fit(self.probe.cpu(), metrics, tuple(self.history), split, self.seconds)


class _Told(torch.nn.Module):
    """A probe with its task, as one module that gives the loss of a batch."""

    def __init__(self, probe: Probe, task: Task) -> None:
        super().__init__()
        self.probe, self._task = probe, task

    def forward(self, batch: PatchBatch) -> Tensor:
        return self._task.loss(self.probe, batch)


def finish(training: Training) -> None:
    """Train a probe of one's own on where a protocol trains in good units, and warn if it is not at its end."""
    if is_shipped(type(training.probe)):
        return
    patches, rules = training.patches, training.patches.protocol
    pairs = TrainingPairs(patches.splits["train"], training.task, training.seed, training.loss, training.logits)
    if rules.precondition:
        left, remedy = _to_its_end(training, pairs), "write its formula with fewer parameters or start it nearer"
    else:
        left, remedy = 0.0, f"take the protocol strict, which trains on, or one with more epochs than {rules.epochs}"
        # The parameters stay as they are; tried is whether they could soon be better.
        for descent in pairs.descents([training.parameters], training.seed):
            before, fell = descent.loss, descent.go()
            left = fell if fell > _UNSETTLED * before else 0.0
    where = (training.name, patches.layer, patches.cache.backbone["name"])
    if left:
        logger.warning(
            "the %s probe on layer %d of %s has not settled: a little more training lowers its training loss by %.2g "
            "nats, so that its figures do not say what the probe can do; %s",
            *(*where, left, remedy),
        )
        return
    if training.task.shuffled:
        return
    loss, _ = pairs.loss(copy_of(training.parameters))
    if loss > (1 - _UNSETTLED) * pairs.loss_of_one_answer():
        logger.warning(
            "the %s probe on layer %d of %s has learnt next to nothing: its training loss is that of one chance given "
            "to all pairs; start it elsewhere or write its formula otherwise, or layer and formula have nothing to say",
            *where,
        )


def _to_its_end(training: Training, pairs: TrainingPairs) -> float:
    """Descend until it settles or validation says enough. What the last iterations brought, 0 where it settled."""
    # Adam's end is the better start of some formulas, and of others (a unit that it switched off) a worse one.
    others = drawn_starts(training.name, training.probe.d_model, training.seed, training.fresh)
    best = pairs.best_descent([training.parameters, training.fresh, *others], training.seed)
    if best is None:
        return 0.0
    training.parameters = best.parameters
    losses: list[float] = []
    fell = math.inf
    while len(losses) < _ROUNDS and fell >= _SETTLED and not (any(losses) and min(losses[-_PATIENCE:]) > min(losses)):
        started = time.perf_counter()
        fell = best.go()
        training.look({"epoch": training.patches.protocol.epochs + len(losses), "train_loss": best.loss}, started)
        losses.append(training.history[-1]["validation_loss"] or 0.0)
    training.take_kept()
    return 0.0 if len(losses) < _ROUNDS or fell < _SETTLED else fell
