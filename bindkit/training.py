"""From a cache to a fitted probe and its figures."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from bindkit.cache import ActivationCache
from bindkit.control_names import is_control
from bindkit.devices import device_of
from bindkit.errors import LayerError, ProbeError
from bindkit.files import without_nan
from bindkit.judging import JUDGED_FIRST, judge_split
from bindkit.patch_batches import PatchBatch, SplitPatches
from bindkit.probes import Probe, make_probe, save_probe
from bindkit.protocols import Protocol
from bindkit.protocols import protocol as protocol_of

logger = logging.getLogger(__name__)

_SMALL_STEP = 100_000_000
"""Multiplications of a training step below which one thread is as fast as two (measured at width 128: 17 million)."""

_IMAGENET_MEAN = [0.485, 0.456, 0.406]

TASKS = ("pairwise",)
"""What a probe can be trained to do: ``pairwise`` judges pairs as *same object* or not."""

RESULT_COLUMNS = (
    *("backbone", "objective", "layer", "probe", "task", "protocol", "split"),
    *("accuracy", "accuracy_low", "accuracy_high", "auroc", "average_precision", "balanced_accuracy"),
    *("twins_accuracy", "twins_auroc", "majority_accuracy", "n_scenes", "n_pairs", "seed", "seconds"),
)
"""Columns of ``results.csv``, one row a fit."""


@dataclass(frozen=True)
class Fit:
    """A fitted probe with its figures.

    Attributes
    ----------
    probe : Probe
        In evaluation mode, on the CPU, in the activations' own units.
    metrics : dict
        The figures of `bindkit.metrics.judge` on the judged split, ``n_pairs``, and in ``n_scenes`` how many scenes
        they come from.
    history : tuple of dict
        One entry an epoch: training loss, validation loss and accuracy (None without a validation split), seconds.
    split : str
        The judged split: "test", or what there is where the scene set is too small to have one.
    seconds : float
        Training time, the judging not counted.
    """

    probe: Probe
    metrics: dict[str, float]
    history: tuple[dict[str, float | None], ...]
    split: str
    seconds: float

    def row(self) -> dict[str, Any]:
        """The fit as one row of ``results.csv``. A control has no layers: its layer is NaN."""
        fitted = self.probe.fitted_on
        known = {**fitted, **self.metrics, "split": self.split, "seconds": self.seconds, "probe": self.probe.kind}
        if is_control(known.get("objective")):
            known["layer"] = math.nan
        return {column: known.get(column) for column in RESULT_COLUMNS}

    def save(self, directory: str | Path) -> Path:
        """Write probe, figures and history; `bindkit.load_probe` reads the probe back. Returns the directory."""
        return save_probe(self.probe, directory)


class LayerPatches:
    """The patches of one layer in all splits, read once and used by every probe that is fitted on them."""

    def __init__(
        self, cache: ActivationCache, layer: int, protocol: str | Protocol = "strict", device: str = "auto"
    ) -> None:
        self.protocol = protocol_of(protocol)
        self.cache, self.layer = cache, int(layer)
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
        self.scale = self.splits["train"].root_mean_square() if self.protocol.precondition else None
        if self.scale is not None:
            for patches in self.splits.values():
                patches.set_scale(self.scale)

    @property
    def judged_split(self) -> str:
        """The split whose figures are reported: the first that has usable scenes of test, validation, train."""
        return next(split for split in JUDGED_FIRST if len(self.splits[split]))


def pair_loss(logits: Float[Tensor, "scene patch patch"], batch: PatchBatch) -> Float[Tensor, ""]:
    """Binary cross-entropy in nats, averaged over the entries that the protocol puts into the loss."""
    weight = batch.in_loss.to(logits.dtype)
    target = batch.same.to(logits.dtype)
    total = binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="sum")
    return total / weight.sum().clamp(min=1)


def _validate(probe: Probe, validation: SplitPatches) -> tuple[float, float]:
    """Loss and accuracy over all counted pairs of the validation scenes."""
    loss = right = n_loss = n_pairs = 0.0
    with torch.inference_mode():
        for batch in validation.judged():
            logits = probe(batch.activations)
            n_entries = float(batch.in_loss.sum())
            loss += float(pair_loss(logits, batch)) * n_entries
            n_loss += n_entries
            right += float((((logits > 0) == batch.same) & batch.counted).sum())
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
        A name in ``bindkit.probes.PROBES``.
    task : str
        ``"pairwise"``.
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
        An unknown probe or task.
    LayerError
        A layer that the cache does not have, or another than that of the LayerPatches given.
    EmptySplitError
        No training scene with two usable patches.

    Examples
    --------
    ::

        cache = bk.ActivationCache.open("workspace/cache/...")
        fit = bk.fit_probe(cache, layer=3, probe="quadratic")
        fit.metrics["auroc"], fit.metrics["auroc_low"], fit.metrics["auroc_high"]
    """
    if task not in TASKS:
        raise ProbeError(f"unknown task {task!r}; there are {', '.join(TASKS)}")
    if not isinstance(cache, LayerPatches):
        if layer is None:
            raise ProbeError(f"say which layer to fit on; the cache has {', '.join(map(str, cache.layers))}")
        cache = LayerPatches(cache, layer, protocol, device)
    elif layer is not None and layer != cache.layer:
        raise LayerError(f"these are the patches of layer {cache.layer}, not of layer {layer}; leave out layer=")
    patches, rules, seed = cache, cache.protocol, int(seed)
    model = make_probe(probe, patches.cache.d_model, seed).to(patches.device)
    with _threads_for(model.d_model**2 * rules.train_patches * rules.scenes_per_step, patches.device):
        started = time.perf_counter()
        history = _train(model, patches, rules, seed)
        seconds = time.perf_counter() - started
        metrics = judge_split(model, patches.splits[patches.judged_split])
    if patches.scale is not None:
        model.fold_scale(patches.scale)
    model = model.cpu().eval().requires_grad_(False)
    described = patches.cache.backbone
    model.fitted_on = {
        "backbone": described["name"],
        "objective": described["objective"],
        "weights_digest": described["weights_digest"],
        "scenes": patches.cache.manifest.identity.scenes_uri,
        "layer": patches.layer,
        "task": task,
        "protocol": rules.name,
        "seed": seed,
        "split": patches.judged_split,
        "seconds": round(seconds, 3),
        "metrics": without_nan(metrics),
        "history": [without_nan(entry) for entry in history],
    }
    return Fit(model, metrics, history, patches.judged_split, seconds)


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


def _train(model: Probe, patches: LayerPatches, rules: Protocol, seed: int) -> tuple[dict[str, float | None], ...]:
    """The protocol's schedule; leaves the kept epoch's weights in the model."""
    train, validation = patches.splits["train"], patches.splits["validation"]
    generator = torch.Generator().manual_seed(seed)
    rate = rules.learning_rate / (model.d_model if rules.divide_by_width else 1)
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, rules.decay_every, rules.decay)
    history: list[dict[str, float | None]] = []
    best, kept = -math.inf, None
    for epoch in range(rules.epochs):
        started = time.perf_counter()
        losses = []
        for scenes in _scene_batches(len(train), rules, generator):
            batch = train.draw(scenes, generator)
            loss = pair_loss(model(batch.activations), batch)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        schedule.step()
        entry: dict[str, float | None] = {"epoch": epoch, "train_loss": float(torch.stack(losses).mean())}
        entry["validation_loss"] = entry["validation_accuracy"] = None
        if len(validation):
            val_loss, val_accuracy = _validate(model, validation)
            entry["validation_loss"], entry["validation_accuracy"] = val_loss, val_accuracy
            score = val_accuracy if rules.keep == "accuracy" else -val_loss
            # Broken weights say "different" to everything, which may well be the best accuracy so far.
            if math.isfinite(val_loss) and score > best:
                best, kept = score, {name: value.clone() for name, value in model.state_dict().items()}
        entry["seconds"] = round(time.perf_counter() - started, 4)
        history.append(entry)
    if kept is not None:
        model.load_state_dict(kept)
    return tuple(history)
