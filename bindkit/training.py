"""From a cache to fitted probes and their figures: many probes side by side on the same batches."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from bindkit.cache import ActivationCache
from bindkit.control_names import is_control
from bindkit.devices import device_of
from bindkit.errors import LayerError, NonFiniteActivationsError, OneAnswerError, ProbeError
from bindkit.files import without_nan
from bindkit.judging import JUDGED_FIRST, judge_split
from bindkit.patch_batches import PatchBatch, SplitPatches
from bindkit.probes import AttentionMaps, PairMoments, Probe, SelfAttention, parse_probe, save_probe
from bindkit.protocols import Protocol
from bindkit.protocols import protocol as protocol_of
from bindkit.starts import scale_and_offset, scaling, whitening
from bindkit.tasks import TASKS, Task, require_fitting

logger = logging.getLogger(__name__)

_SMALL_STEP = 100_000_000
"""Multiplications of a training step below which one thread is as fast as two (measured at width 128: 17 million)."""

_IMAGENET_MEAN = [0.485, 0.456, 0.406]

_START_SCENES = 256
"""Scenes whose pairs set scale and offset of a start in closed form."""

RESULT_COLUMNS = (
    *("backbone", "objective", "layer", "probe", "task", "protocol", "split"),
    *("accuracy", "accuracy_low", "accuracy_high", "auroc", "average_precision", "balanced_accuracy"),
    *("twins_accuracy", "twins_auroc", "majority_accuracy", "n_scenes", "n_pairs", "seed", "seconds"),
    *("auroc_low", "auroc_high", "twins_auroc_low", "twins_auroc_high", "class_accuracy", "matched_iou"),
)
"""Columns of ``results.csv``, one row a fit; the last two for the pointwise tasks that have them."""


@dataclass(frozen=True)
class Fit:
    """A fitted probe with its figures.

    Attributes
    ----------
    probe : Probe
        In evaluation mode, on the CPU, in the activations' own units.
    metrics : dict
        The figures of `bindkit.metrics.judge` on the judged split, ``n_pairs``, and in ``n_scenes`` how many scenes
        they come from; with a pointwise task, its own figure.
    history : tuple of dict
        One entry an epoch: training loss, validation loss and accuracy (None without a validation split), seconds
        (shared with the probes that were trained beside it) and scenes per second. Where there is a start in closed
        form, it comes first as epoch -1, without a training loss.
    split : str
        The judged split: "test", or what there is where the scene set is too small to have one.
    seconds : float
        Training time, the judging not counted; of the probes trained side by side, an equal share each.
    """

    probe: Probe
    metrics: dict[str, float]
    history: tuple[dict[str, float | None], ...]
    split: str
    seconds: float

    def row(self) -> dict[str, Any]:
        """The fit as one row of ``results.csv``. A control has no layers: its layer is NaN."""
        fitted = self.probe.fitted_on
        known = {**fitted, **self.metrics, "split": self.split, "seconds": self.seconds}
        if is_control(known.get("objective")):
            known["layer"] = math.nan
        return {column: known.get(column, math.nan) for column in RESULT_COLUMNS}

    def save(self, directory: str | Path) -> Path:
        """Write probe, figures and history; `bindkit.load_probe` reads the probe back. Returns the directory."""
        return save_probe(self.probe, directory)


class LayerPatches:
    """The patches of one layer in all splits, read once and used by every probe that is fitted on them.

    Parameters
    ----------
    cache : ActivationCache
        Where they lie.
    layer : int
        0-based.
    protocol : str or Protocol
        ``"strict"`` or ``"paper"``.
    device : str
        ``"auto"`` takes CUDA where there is one.
    attention : callable, optional
        Gives the maps of the next layer, asked only by ``self_attention``.
    """

    def __init__(
        self,
        cache: ActivationCache,
        layer: int,
        protocol: str | Protocol = "strict",
        device: str = "auto",
        attention: Callable[[], AttentionMaps] | None = None,
    ) -> None:
        self.protocol = protocol_of(protocol)
        self.cache, self.layer, self._attention = cache, int(layer), attention
        mean = cache.backbone.get("preprocessing", {}).get("mean", _IMAGENET_MEAN)
        if self.protocol.name == "paper" and list(mean) != _IMAGENET_MEAN:
            logger.warning(
                "%s was cached with its checkpoint's own mean and deviation; the paper normalises every backbone with "
                'ImageNet\'s: load_backbone(..., normalization="imagenet")',
                cache.backbone["name"],
            )
        self.device = device_of(device)
        self.splits = {
            split: SplitPatches(cache, split, self.layer, self.protocol, self.device)
            for split in ("train", "validation", "test")
        }
        self.splits["train"].require()
        self._moments: PairMoments | None = None
        self._units: dict[str, Tensor] = {}

    @property
    def judged_split(self) -> str:
        """The split whose figures are reported: the first that has usable scenes of test, validation, train."""
        return next(split for split in JUDGED_FIRST if len(self.splits[split]))

    @property
    def moments(self) -> PairMoments:
        """Of the training split, in raw units."""
        if self._moments is None:
            self._moments = self.splits["train"].moments()
        return self._moments

    def units(self, trained_in: str) -> Tensor | None:
        """What activations are multiplied with in training; None where they are taken as they are."""
        if trained_in == "raw" or not self.protocol.precondition:
            return None
        if trained_in not in self._units:
            make = {"scaled": scaling, "whitened": whitening}[trained_in]
            self._units[trained_in] = make(self.moments)
        return self._units[trained_in]

    def attention(self) -> AttentionMaps:
        """Query and key maps of the next layer.

        Raises
        ------
        ProbeError, LayerError
            If nobody said which, or there is no next layer.
        """
        if self._attention is None:
            from bindkit.attention_source import next_layer_attention

            return next_layer_attention(self.cache, self.layer)
        return self._attention()


@dataclass
class _Training:
    """One probe in training, in its units."""

    name: str
    task: Task
    probe: Probe
    units: Tensor | None
    parameters: dict[str, Tensor]
    optimiser: torch.optim.Optimizer | None
    schedule: torch.optim.lr_scheduler.LRScheduler | None
    best: float = -math.inf
    kept: dict[str, Tensor] | None = None
    losses: list[Tensor] = field(default_factory=list)
    history: list[dict[str, float | None]] = field(default_factory=list)

    def raw(self) -> dict[str, Tensor]:
        """Parameters for activations as they are."""
        return self.parameters if self.units is None else self.probe.folded(self.parameters, self.units)

    def loss(self, batch: PatchBatch) -> Tensor:
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


def fit_probe(
    cache: ActivationCache | LayerPatches,
    layer: int | None = None,
    probe: str = "quadratic",
    task: str = "pairwise",
    protocol: str | Protocol = "strict",
    seed: int = 0,
    device: str = "auto",
) -> Fit:
    """Fit one probe on one layer of a cache and judge it on the test split.

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
        A name in ``bindkit.tasks.TASKS``: ``pairwise``, ``pointwise_class``, ``pointwise_identity``, or the control
        ``shuffled_labels``.
    protocol : str or Protocol
        ``"strict"`` or ``"paper"``. Not looked at with LayerPatches, which carry theirs.
    seed : int
        Of the weights, the order of scenes and the patches drawn. The judged pairs do not depend on it.
    device : str
        ``"auto"`` takes CUDA where there is one. Not looked at with LayerPatches.

    Returns
    -------
    Fit
        ``fit.metrics``, ``fit.history``, ``fit.probe``, ``fit.save(directory)``.

    Raises
    ------
    ProbeError
        An unknown probe or task, or a probe that the task does not take.
    LayerError
        A layer that the cache does not have, or another than that of the LayerPatches given.
    EmptySplitError
        No training scene with two usable patches.
    OneAnswerError
        Every training pair has the same answer, or no patch has a class where classes are asked for.
    ConstantActivationsError
        Every patch has the same activation.
    NonFiniteActivationsError
        NaN or infinity among the activations, or in the loss.

    Examples
    --------
    ::

        cache = bk.ActivationCache.open("workspace/cache/...")
        fit = bk.fit_probe(cache, layer=3, probe="quadratic")
        fit.metrics["auroc"], fit.metrics["auroc_low"], fit.metrics["auroc_high"]
    """
    require_fitting(parse_probe(probe)[0], task)
    if not isinstance(cache, LayerPatches):
        if layer is None:
            raise ProbeError(f"say which layer to fit on; the cache has {', '.join(map(str, cache.layers))}")
        cache = LayerPatches(cache, layer, protocol, device)
    elif layer is not None and layer != cache.layer:
        raise LayerError(f"these are the patches of layer {cache.layer}, not of layer {layer}; leave out layer=")
    (fit,) = fit_probes(cache, [(probe, task)], seed)
    return fit


def fit_probes(patches: LayerPatches, wanted: Sequence[tuple[str, str]], seed: int = 0) -> list[Fit]:
    """Fit several probes side by side: every batch is read once and shown to all of them.

    Each gets exactly what `fit_probe` would give it: batches depend on the seed, not on who looks at them.

    ::

        patches = LayerPatches(cache, layer=3)
        linear, quadratic = fit_probes(patches, [("linear", "pairwise"), ("quadratic", "pairwise")])

    Parameters
    ----------
    patches : LayerPatches
        One layer of a cache.
    wanted : sequence of (probe, task)
        As `fit_probe` takes them.
    seed : int
        Of weights, order of scenes and patches drawn.

    Raises
    ------
    BindkitError
        As `fit_probe`.
    """
    rules, seed = patches.protocol, int(seed)
    train = patches.splits["train"]
    _require_two_answers(patches)
    train.require_differences()
    products = train.d_model**2 * rules.train_patches * rules.scenes_per_step
    with _threads_for(products, patches.device):
        started = time.perf_counter()
        trainings = [_prepared(name, TASKS[task], patches, seed) for name, task in wanted]
        _train(trainings, patches, seed)
        seconds = (time.perf_counter() - started) / len(trainings)
        return [_judged(training, patches, seed, seconds) for training in trainings]


def _prepared(name: str, task: Task, patches: LayerPatches, seed: int) -> _Training:
    """A fresh probe, in its units and with its start."""
    rules = patches.protocol
    train = patches.splits["train"]
    options: dict[str, Any] = {}
    if parse_probe(name)[0] == "self_attention":
        maps = patches.attention()
        options = {"n_heads": maps.n_heads, "norm_epsilon": maps.norm_epsilon}
    probe = task.make_probe(name, train, seed, patches.cache.class_names, **options)
    if isinstance(probe, SelfAttention):
        probe.take(maps)
    probe = probe.to(patches.device)
    units = patches.units(probe.trained_in)
    start = None
    if units is not None and task.kind is None and not task.shuffled:
        start = probe.closed_form(patches.moments.in_units(units))
    parameters = {key: value.detach().clone() for key, value in probe.named_parameters() if value.requires_grad}
    training = _Training(name, task, probe, units, parameters, None, None)
    if start is not None:
        training.parameters = {key: start[key].detach().clone() for key in parameters}
        _set_scale_and_offset(training, train)
    for value in training.parameters.values():
        value.requires_grad_(True)
    rate = rules.learning_rate / (probe.d_model if rules.divide_by_width else 1)
    training.optimiser = torch.optim.Adam(list(training.parameters.values()), lr=rate)
    training.schedule = torch.optim.lr_scheduler.StepLR(training.optimiser, rules.decay_every, rules.decay)
    if start is not None:
        _look(training, patches, {"epoch": -1, "train_loss": None}, time.perf_counter())
    return training


@torch.no_grad()
def _set_scale_and_offset(training: _Training, train: SplitPatches) -> None:
    """Make the start's scores logits: its direction is known in closed form, its scale and offset are not."""
    chosen = torch.linspace(0, len(train) - 1, min(_START_SCENES, len(train)), dtype=torch.float64).long().unique()
    batch = train.draw(chosen, torch.Generator().manual_seed(0))
    logits = training.settle()(batch.activations)
    factor, offset = scale_and_offset(logits[batch.counted], batch.same[batch.counted].float())
    for name, value in training.parameters.items():
        degree = training.probe.degrees.get(name)
        if degree is None:
            value.fill_(offset)
        else:
            value.mul_(factor**degree)


def _train(trainings: Sequence[_Training], patches: LayerPatches, seed: int) -> None:
    """The protocol's schedule; leaves the kept epoch's weights in each probe, in raw units."""
    rules, train = patches.protocol, patches.splits["train"]
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(rules.epochs):
        started, n_scenes = time.perf_counter(), 0
        for training in trainings:
            training.losses = []
        for scenes in _scene_batches(len(train), rules, generator):
            plain = train.draw(scenes, generator)
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
            _look(training, patches, entry, started)
    for training in trainings:
        if training.kept is not None:
            training.parameters = training.kept
        training.settle()


def _look(training: _Training, patches: LayerPatches, entry: dict[str, float | None], started: float) -> None:
    """Note loss and accuracy on the validation scenes, and keep the weights if they are the best so far."""
    validation, rules = patches.splits["validation"], patches.protocol
    entry["validation_loss"] = entry["validation_accuracy"] = None
    if len(validation):
        val_loss, val_accuracy = _validate(training.settle(), training.task, validation)
        entry["validation_loss"], entry["validation_accuracy"] = val_loss, val_accuracy
        # A pointwise loss and a pair's accuracy are not of one kind; the protocol says which it looks at.
        score = val_accuracy if rules.keep == "accuracy" else -val_loss
        # Broken weights say "different" to everything, which may well be the best accuracy so far.
        if math.isfinite(val_loss) and score > training.best:
            training.best = score
            training.kept = {name: value.detach().clone() for name, value in training.parameters.items()}
    entry["seconds"] = round(time.perf_counter() - started, 4)
    training.history.append(entry)


def _validate(probe: Probe, task: Task, validation: SplitPatches) -> tuple[float, float]:
    """Loss and accuracy over all counted pairs of the validation scenes."""
    loss = right = n_loss = n_pairs = 0.0
    with torch.inference_mode():
        for plain in validation.judged():
            batch = validation.shuffled(plain) if task.shuffled else plain
            n_entries = float(batch.in_loss.sum())
            loss += float(task.loss(probe, batch)) * n_entries
            n_loss += n_entries
            said_same = probe.says_same(batch.activations, probe(batch.activations))
            right += float(((said_same == batch.same) & batch.counted).sum())
            n_pairs += float(batch.counted.sum())
    return loss / max(n_loss, 1), right / max(n_pairs, 1)


def _judged(training: _Training, patches: LayerPatches, seed: int, seconds: float) -> Fit:
    """Figures of a trained probe, and what it was fitted on."""
    probe, split = training.probe.requires_grad_(False).eval(), patches.judged_split
    last = training.history[-1]["train_loss"]
    if last is None or not math.isfinite(last):
        raise NonFiniteActivationsError(
            f"the training loss of the {training.name} probe on layer {patches.layer} became {last}; look at the "
            "activations (cache.verify()) or take a lower learning rate"
        )
    metrics = judge_split(probe, patches.splits[split], training.task.name)
    probe = probe.cpu()
    described = patches.cache.backbone
    probe.fitted_on = {
        "backbone": described["name"],
        "objective": described["objective"],
        "weights_digest": described["weights_digest"],
        "scenes": patches.cache.manifest.identity.scenes_uri,
        "layer": patches.layer,
        "probe": training.name,
        "task": training.task.name,
        "protocol": patches.protocol.name,
        "seed": seed,
        "split": split,
        "seconds": round(seconds, 3),
        "metrics": without_nan(metrics),
        "history": [without_nan(entry) for entry in training.history],
    }
    return Fit(probe, metrics, tuple(training.history), split, seconds)


def _require_two_answers(patches: LayerPatches) -> None:
    """Refuse scenes whose pairs all have one answer: whatever a probe said of them would be a number about nothing."""
    train = patches.splits["train"]
    answers = set()
    for batch in train.judged():
        answers |= set(torch.unique(batch.same[batch.counted]).tolist())
        if len(answers) == 2:
            return
    if answers:
        what = "on one object" if answers == {True} else "on two different objects"
        raise OneAnswerError(
            f"every pair of patches of the train split is {what}, so that there is nothing to learn; give scenes with "
            "several objects of several patches each (one object a scene? patches too large? too few a scene?)"
        )
    raise OneAnswerError(
        "no pair of patches of the train split counts under this protocol (do all show the same pixels?); take more "
        "patches per scene"
    )


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


@contextmanager
def _threads_for(products_per_step: int, device: torch.device) -> Iterator[None]:
    """One thread for steps so small that threads cost more to wake than they save; the rest as it was set.

    Beside one other busy process, two threads took 12 s for a fit that one thread does in 3 s.
    """
    before = torch.get_num_threads()
    if device.type == "cpu" and products_per_step < _SMALL_STEP:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
