"""A probe judged on the pairs of a split: of its own cache, or of other scenes than it was fitted for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from bindkit.cache import ActivationCache
from bindkit.devices import device_of
from bindkit.metrics import JudgedPairs, judge
from bindkit.patch_batches import PatchBatch, SplitPatches, flat_pairs
from bindkit.probes import Probe
from bindkit.protocols import Protocol
from bindkit.protocols import protocol as protocol_of
from bindkit.tasks import TASKS, own_figures

JUDGED_FIRST = ("test", "validation", "train")
"""Of these splits the first that has usable scenes is the one whose figures are reported."""


def judge_split(probe: Probe, patches: SplitPatches, task: str = "pairwise") -> dict[str, float]:
    """Figures of a probe on the judged pairs of a split, ``n_scenes``, ``n_pairs`` and the task's own among them.

    Probe and patches are on the same device.
    """
    with torch.inference_mode():
        pairs = flat_pairs(_said(probe, batch) for batch in batches_of(patches, task))
        own = own_figures(TASKS[task], probe, batches_of(patches, task))
    return judge(pairs) | {"n_scenes": len(np.unique(pairs.scene)), "n_pairs": len(pairs)} | own


def batches_of(patches: SplitPatches, task: str) -> Iterator[PatchBatch]:
    """The judged batches with the labels that a task is judged by: permuted ones for the control task."""
    return (patches.shuffled(batch) if TASKS[task].shuffled else batch for batch in patches.judged())


def task_of(probe: Probe) -> str:
    """Task that a probe was fitted for."""
    return str(probe.fitted_on.get("task", "pairwise"))


def _said(probe: Probe, batch: PatchBatch) -> tuple[PatchBatch, Tensor, Tensor]:
    logits = probe(batch.activations)
    return batch, logits, probe.says_same(batch.activations, logits)


def judge_same_class(
    cache: ActivationCache, protocol: str | Protocol = "strict", split: str | None = None
) -> tuple[str, dict[str, float]]:
    """Judge the oracle that calls two patches *same* where their classes are, on the pairs that probes are judged on.

    Returns
    -------
    split : str
        The judged one: of test, validation and train the first that has usable scenes, unless one is asked for.
    figures : dict
        As `judge_probe`.

    Raises
    ------
    EmptySplitError
        If there is no usable scene.
    """
    rules = protocol_of(protocol)
    for name in JUDGED_FIRST if split is None else (split,):
        patches = SplitPatches(cache, name, cache.layers[0], rules, torch.device("cpu"))
        if len(patches):
            break
    batches = patches.require().judged()
    same_class = ((batch, batch.classes[:, :, None] == batch.classes[:, None, :]) for batch in batches)
    pairs = flat_pairs((batch, said.float() - 0.5, said) for batch, said in same_class)
    return patches.split, judge(pairs) | {"n_scenes": len(np.unique(pairs.scene)), "n_pairs": len(pairs)}


def judge_probe(
    probe: Probe,
    cache: ActivationCache,
    split: str | None = None,
    protocol: str | Protocol | None = None,
    layer: int | None = None,
    device: str = "auto",
) -> dict[str, float]:
    """Judge a fitted probe on the scenes of a cache, on the very pairs that a probe fitted there is judged on.

    Nothing is fitted. Of another scene set, this asks whether what the probe reads is there too; the split of the
    probe's own cache that it was judged on gives the figures of its fit again.

    Parameters
    ----------
    probe : Probe
        As ``fit.probe`` or `load_probe` gives it.
    cache : ActivationCache
        Of the same backbone.
    split : str, optional
        "train", "validation" or "test". Default: the first of test, validation and train that has usable scenes.
    protocol : str or Protocol, optional
        Which patches and pairs are judged. Default: that of the fit.
    layer : int, optional
        0-based. Default: the layer of the fit.
    device : str
        ``"auto"`` takes CUDA where there is one.

    Returns
    -------
    dict
        The figures of `bindkit.metrics.judge`, ``n_scenes`` and ``n_pairs``.

    Raises
    ------
    ProbeMismatchError
        If the probe was fitted on another backbone, width or layer.
    LayerError
        If the cache lacks the layer, or none is known.
    EmptySplitError
        If the split has no scene with two usable patches.

    Examples
    --------
    ::

        fit = bk.fit_probe(plain_scenes, layer=4)
        bk.judge_probe(fit.probe, harder_scenes)["auroc"]
    """
    where = device_of(device)
    patches = patches_for(probe, cache, split, protocol, layer, where)
    # The activations are as they were cached: a fitted probe takes them in their own units.
    try:
        return judge_split(probe.to(where), patches, task_of(probe))
    finally:
        probe.cpu()


def patches_for(
    probe: Probe,
    cache: ActivationCache,
    split: str | None,
    protocol: str | Protocol | None,
    layer: int | None,
    device: torch.device,
) -> SplitPatches:
    """Patches that a probe is judged on; arguments and errors as `judge_probe`."""
    layer = probe.layer_for(cache.backbone, layer)
    probe.check_fits(cache.d_model, layer)
    rules = protocol_of(probe.fitted_on.get("protocol", "strict") if protocol is None else protocol)
    for name in JUDGED_FIRST if split is None else (split,):
        patches = SplitPatches(cache, name, layer, rules, device)
        if len(patches):
            break
    return patches.require()


def judged_pairs(
    probe: Probe,
    cache: ActivationCache,
    split: str | None,
    protocol: str | Protocol | None,
    layer: int | None,
    device: torch.device,
) -> JudgedPairs:
    """The judged pairs of a probe with their logits; arguments and errors as `judge_probe`."""
    patches = patches_for(probe, cache, split, protocol, layer, device)
    try:
        probe.to(device)
        with torch.inference_mode():
            return flat_pairs(_said(probe, batch) for batch in batches_of(patches, task_of(probe)))
    finally:
        probe.cpu()
