"""From a cache to fitted probes and their figures."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch

from bindkit.arguments import read_seed, whole_number
from bindkit.cache import ActivationCache, require_cache
from bindkit.errors import InvalidParameterError, LayerError, NonFiniteActivationsError, OneAnswerError, ProbeError
from bindkit.files import without_nan
from bindkit.probes.base import Probe
from bindkit.probes.chance import warn_below_chance
from bindkit.probes.finishing import finish
from bindkit.probes.folds import fold_roles, said
from bindkit.probes.judging import Judged, judge_split, judge_together
from bindkit.probes.layers import LayerPatches
from bindkit.probes.protocols import Protocol
from bindkit.probes.registry import parse_probe
from bindkit.probes.saving import Fit, validation_accuracy
from bindkit.probes.side_by_side import Training, prepared, train_side_by_side
from bindkit.probes.tasks import TASKS, require_fitting

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
    folds: int | None = None,
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
        A name in ``bindkit.probes.tasks.TASKS``: ``pairwise``, ``pointwise_class``, ``pointwise_identity``, or the
        control ``shuffled_labels``.
    protocol : str or Protocol
        ``"strict"`` or ``"paper"``. Not looked at with LayerPatches, which carry theirs.
    seed : int
        Of the weights, the order of scenes and the patches drawn. The judged pairs do not depend on it.
    device : str
        ``"auto"`` takes CUDA where there is one. Not looked at with LayerPatches.
    folds : int, optional
        Cross-validate instead, where scenes are few: all scenes, whatever their split, are dealt into so many folds (at
        least 3, by groups), and each fold is judged by a probe trained on the others, of which one validates. The
        figures are of all scenes. Not with LayerPatches.

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
    if folds is not None and isinstance(cache, LayerPatches):
        raise InvalidParameterError("folds are dealt from a whole cache; give the ActivationCache and layer=")
    if not isinstance(cache, LayerPatches):
        require_cache(cache)
        if layer is None:
            raise ProbeError(f"say which layer to fit on; the cache has {', '.join(map(str, cache.layers))}")
        layer = whole_number(layer, "layer")
        if folds is not None:
            return fit_folds(cache, layer, [(probe, task)], folds, protocol, seed, device)[0]
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
    seed = read_seed(seed)
    split, fits = patches.judged_split, []
    with _threads_for(patches):
        trainings, seconds = _trained(patches, wanted, seed)
        for training in trainings:
            probe = _settled(training, patches)
            metrics = judge_split(probe, patches.splits[split], training.task.name)
            probe.fitted_on = _fitted_on(training, patches, seed, split, seconds, metrics)
            fits.append(Fit(probe.cpu(), metrics, tuple(training.history), split, seconds))
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
) -> list[Fit]:
    """Fit several probes in a cross-validation over all cached scenes; every scene is judged once.

    Parameters
    ----------
    cache, layer, protocol, device
        As `fit_probe` takes them.
    wanted, seed
        As `fit_probes` takes them.
    folds : int
        At least 3, at most the number of scenes or groups of them. A fold without usable scenes is left out.

    Raises
    ------
    InvalidParameterError
        For fewer or more folds.
    BindkitError
        As `fit_probe`.
    """
    seed, parts = read_seed(seed), []
    for number, roles in enumerate(fold_roles(cache, folds), 1):
        patches = LayerPatches(cache, layer, protocol, device, roles=roles)
        if not len(patches.splits["test"]):
            continue
        with _threads_for(patches):
            trainings, seconds = _trained(patches, wanted, seed)
        unseen = {name: list(roles[name].scene_ids) for name in ("test", "validation")}
        fold = {"number": number, "of": folds, **unseen}
        judged = [Judged(_settled(one, patches), patches.splits["test"], one.task.name) for one in trainings]
        parts.append((fold, trainings, judged, seconds, patches))
    saved = [fold["number"] for fold, *_ in parts]
    fits = []
    for which in range(len(wanted)):
        with torch.inference_mode():
            metrics = judge_together([judged[which] for _, _, judged, _, _ in parts])
        ones = []
        for fold, trainings, judged, seconds, patches in parts:
            probe, history = judged[which].probe, tuple(trainings[which].history)
            probe.fitted_on = _fitted_on(trainings[which], patches, seed, said(folds), seconds, metrics)
            probe.fitted_on["fold"] = fold | {"saved": saved}
            ones.append(Fit(probe.cpu(), metrics, history, said(folds), seconds))
        fits.append(replace(ones[0], seconds=sum(one.seconds for one in ones), folds=tuple(ones)))
    warn_below_chance(fit.row() for fit in fits)
    return fits


def _trained(patches: LayerPatches, wanted: Sequence[tuple[str, str]], seed: int) -> tuple[list[Training], float]:
    """Trained side by side, and the seconds that each took of it."""
    _require_two_answers(patches)
    patches.splits["train"].require_differences()
    started = time.perf_counter()
    trainings = [prepared(name, TASKS[task], patches, seed) for name, task in wanted]
    train_side_by_side(trainings, patches, seed)
    for training in trainings:
        finish(training, patches, seed)
    return trainings, (time.perf_counter() - started) / len(trainings)


def _settled(training: Training, patches: LayerPatches) -> Probe:
    """The trained probe, in evaluation mode. Raises NonFiniteActivationsError where training went astray."""
    last = training.history[-1]["train_loss"]
    if last is None or not math.isfinite(last):
        raise NonFiniteActivationsError(
            f"the training loss of the {training.name} probe on layer {patches.layer} became {last}; look at the "
            "activations (cache.verify()) or take a lower learning rate"
        )
    return training.probe.requires_grad_(False).eval()


def _fitted_on(
    training: Training,
    patches: LayerPatches,
    seed: int,
    split: str,
    seconds: float,
    metrics: dict[str, float],
) -> dict[str, Any]:
    described, asked = patches.cache.backbone, patches.asked_protocol
    return {
        "backbone": described["name"],
        "objective": described["objective"],
        "weights_digest": described["weights_digest"],
        "scenes": patches.cache.manifest.identity.scenes_uri,
        "layer": patches.layer,
        "probe": training.name,
        "task": training.task.name,
        "protocol": asked.name,
        **({} if asked.is_shipped else {"protocol_fields": asdict(asked)}),
        "seed": seed,
        "split": split,
        "seconds": round(seconds, 3),
        "metrics": without_nan(metrics),
        **without_nan({"validation_accuracy": validation_accuracy(training.history, patches.protocol)}),
        "history": [without_nan(entry) for entry in training.history],
    }


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
def _threads_for(patches: LayerPatches) -> Iterator[None]:
    """One thread for steps so small that threads cost more to wake than they save; the rest as it was set.

    Beside one other busy process, two threads took 12 s for a fit that one thread does in 3 s.
    """
    before, rules = torch.get_num_threads(), patches.protocol
    products_per_step = patches.splits["train"].d_model ** 2 * rules.train_patches * rules.scenes_per_step
    if patches.device.type == "cpu" and products_per_step < _SMALL_STEP:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
