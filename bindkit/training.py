"""From a cache to fitted probes and their figures."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from bindkit.arguments import read_seed, whole_number
from bindkit.cache import ActivationCache, require_cache
from bindkit.errors import LayerError, NonFiniteActivationsError, OneAnswerError, ProbeError
from bindkit.files import without_nan
from bindkit.fits import Fit
from bindkit.judging import judge_split
from bindkit.layer_patches import LayerPatches
from bindkit.probes import parse_probe
from bindkit.protocols import Protocol
from bindkit.side_by_side import Training, prepared, train_side_by_side
from bindkit.tasks import TASKS, require_fitting

_SMALL_STEP = 100_000_000
"""Multiplications of a training step below which one thread is as fast as two (measured at width 128: 17 million)."""


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
    InvalidParameterError
        A layer or seed that is no whole number.

    Examples
    --------
    ::

        cache = bk.ActivationCache.open("workspace/cache/...")
        fit = bk.fit_probe(cache, layer=3, probe="quadratic")
        fit.metrics["auroc"], fit.metrics["auroc_low"], fit.metrics["auroc_high"]
    """
    require_fitting(parse_probe(probe)[0], task)
    seed = read_seed(seed)
    if not isinstance(cache, LayerPatches):
        require_cache(cache)
        if layer is None:
            raise ProbeError(f"say which layer to fit on; the cache has {', '.join(map(str, cache.layers))}")
        cache = LayerPatches(cache, whole_number(layer, "layer"), protocol, device)
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
    rules, seed = patches.protocol, read_seed(seed)
    train = patches.splits["train"]
    _require_two_answers(patches)
    train.require_differences()
    products = train.d_model**2 * rules.train_patches * rules.scenes_per_step
    with _threads_for(products, patches.device):
        started = time.perf_counter()
        trainings = [prepared(name, TASKS[task], patches, seed) for name, task in wanted]
        train_side_by_side(trainings, patches, seed)
        seconds = (time.perf_counter() - started) / len(trainings)
        return [_judged(training, patches, seed, seconds) for training in trainings]


def _judged(training: Training, patches: LayerPatches, seed: int, seconds: float) -> Fit:
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
