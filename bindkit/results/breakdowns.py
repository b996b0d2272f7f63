"""One probe looked at closely: where it is right, and whether the affinities that it gives are probabilities."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from bindkit.cache import ActivationCache
from bindkit.cache.store import labels_of
from bindkit.errors import InvalidParameterError
from bindkit.probes import Probe, require_probe
from bindkit.probes.batches import PatchBatch
from bindkit.probes.judging import judging
from bindkit.probes.metrics import auroc, leave_out_scenes
from bindkit.probes.protocols import Protocol

_DOUBLING = np.array([0, 2, 4, 8, 16, 32, 64, 128, 256, 512, np.inf])
"""Edges of distances (in patches) and sizes (in patches): each bin twice as wide as the one before."""

_KINDS = {
    "negatives": ("same object", "different objects, same class", "different objects, other class", "class unknown"),
    "window": ("same window", "across windows"),
}
"""Groups that are kinds and not bins, by their numbers."""

_COLDEST, _HOTTEST = 1e-3, 1e3


def breakdown(
    probe: Probe,
    cache: ActivationCache,
    split: str | None = None,
    protocol: str | Protocol | None = None,
    layer: int | None = None,
    device: str = "auto",
    by: Sequence[str] | str | None = None,
) -> pd.DataFrame:
    """Break the judged pairs of a probe down and judge each part.

    ::

        table = bk.breakdown(fit.probe, cache)
        table[table["by"] == "distance"][["group", "accuracy", "majority_accuracy", "n_pairs"]]

    Parameters
    ----------
    probe, cache, split, protocol, layer, device
        As `bindkit.judge_probe` takes them; the pairs are the very same.
    by : str or sequence of str, optional
        Default: all of

        - ``distance``: between the centres of the two patches in the resized scene, in patches;
        - ``object_size``: of the object, in cached patches that show it (any purity); of two objects, the smaller.
          Where the protocol judges unlabelled patches, those of a scene are one object;
        - ``negatives``: pairs on one object, on two of one class (twins), on two of other classes, or on two of which
          a class is unknown; the accuracy is then the share of pairs of that kind that are judged right;
        - ``window``: both patches in one window of the model, or in two.

    Returns
    -------
    pandas.DataFrame
        One row a group that has pairs: ``by``, ``group``, ``low`` and ``high`` (of the bin, the upper one outside;
        NaN for kinds), ``n_pairs``, ``n_scenes`` (that have such pairs), ``share_same``, ``accuracy`` with its 95 %
        interval over scenes (``accuracy_low``, ``accuracy_high``; NaN where too few scenes have such pairs, see
        `bindkit.probes.metrics.interval`), ``majority_accuracy`` and ``auroc`` within the group (NaN where it
        has one kind of pairs). In ``attrs``, what was judged: ``backbone``, ``layer``, ``probe``, ``task``,
        ``protocol``, ``split`` and ``n_scenes``, as far as known.

    Raises
    ------
    InvalidParameterError
        For another `by`.
    BindkitError
        As `bindkit.judge_probe`.
    """
    asked = (by,) if isinstance(by, str) else tuple(_GROUPERS if by is None else by)
    unknown = [name for name in asked if name not in _GROUPERS]
    if unknown or not asked:
        raise InvalidParameterError(
            f"pairs are broken down by {', '.join(_GROUPERS)}; got {', '.join(map(repr, unknown)) or 'nothing'}"
        )
    columns: list[tuple[np.ndarray, ...]] = []
    with judging(probe, cache, split, protocol, layer, device) as judged:
        patches, described = judged.patches, judged.described
        labels = labels_of(cache, patches.scenes)
        sizes: dict[str, Sizes] = {}
        by_scene = np.split(labels.instances, labels.scene_offsets[1:-1])
        for scene_id, instances in zip(labels.scene_ids, by_scene, strict=True):
            shown, counts = np.unique(instances, return_counts=True)
            sizes[scene_id] = dict(zip(shown.tolist(), counts.tolist(), strict=True))
        for batch, logits, said in judged.said():
            counted = batch.counted
            scene, unit = (
                of.to(counted.device)[:, None, None].expand_as(counted)
                for of in (batch.scenes, batch.scenes if batch.groups is None else batch.groups)
            )
            of_scene = [sizes[patches.scene_ids[k]] for k in batch.scenes.tolist()]
            groups = [_GROUPERS[name](batch, of_scene)[counted.cpu()] for name in asked]
            parts = (logits.float(), said == batch.same, batch.same, scene, unit)
            columns.append((*(part[counted].cpu().numpy() for part in parts), *(group.numpy() for group in groups)))
    scores, right, same, scenes, units, *found = (np.concatenate(column) for column in zip(*columns, strict=True))
    left_out = leave_out_scenes(units)
    rows = []
    for name, values in zip(asked, found, strict=True):
        kinds = _KINDS.get(name)
        numbers = values.astype(int) if kinds else np.searchsorted(_DOUBLING, values, side="right") - 1
        for number in np.unique(numbers):
            here = numbers == number
            low, high = (math.nan, math.nan) if kinds else _DOUBLING[number : number + 2]
            accuracy_low, accuracy_high = left_out.share_interval(right, here)
            share = float(same[here].mean())
            rows.append(
                {
                    "by": name,
                    "group": kinds[number] if kinds else f"from {low:g}" if np.isinf(high) else f"{low:g} to {high:g}",
                    "low": low,
                    "high": high,
                    "n_pairs": int(here.sum()),
                    "n_scenes": len(np.unique(scenes[here])),
                    "share_same": share,
                    "accuracy": float(right[here].mean()),
                    "accuracy_low": accuracy_low,
                    "accuracy_high": accuracy_high,
                    "majority_accuracy": max(share, 1 - share),
                    "auroc": auroc(scores[here], same[here]),
                }
            )
    table = pd.DataFrame(rows)
    table.attrs |= described
    return table


Sizes = dict[int, int]
"""Instance -> patches that show it."""


def _distance(batch: PatchBatch, sizes: Sequence[Sizes]) -> Tensor:
    corners = batch.corners.float().cpu() / batch.patch_size
    return (corners[:, :, None] - corners[:, None, :]).square().sum(-1).sqrt()


def _object_size(batch: PatchBatch, sizes: Sequence[Sizes]) -> Tensor:
    of_patch = [[known[k] for k in row] for known, row in zip(sizes, batch.instances.tolist(), strict=True)]
    found = torch.tensor(of_patch, dtype=torch.float32)
    return torch.minimum(found[:, :, None], found[:, None, :])


def _negatives(batch: PatchBatch, sizes: Sequence[Sizes]) -> Tensor:
    classes, same = batch.classes.cpu(), batch.same.cpu()
    known = (classes > 0) & (batch.instances.cpu() > 0)
    both_known = known[:, :, None] & known[:, None, :]
    same_class = classes[:, :, None] == classes[:, None, :]
    return torch.where(same, 0, torch.where(both_known, torch.where(same_class, 1, 2), 3))


def _window(batch: PatchBatch, sizes: Sequence[Sizes]) -> Tensor:
    window = batch.window.cpu()
    return (window[:, :, None] != window[:, None, :]).long()


_GROUPERS: dict[str, Callable[[PatchBatch, Sequence[Sizes]], Tensor]] = {
    "distance": _distance,
    "object_size": _object_size,
    "negatives": _negatives,
    "window": _window,
}
"""What pairs are grouped by: a value ``[scene, patch, patch]``, or the number of a kind."""


def fit_temperature(logits: Float[Tensor, " pair"], same: Bool[Tensor, " pair"]) -> float:
    """Find the temperature with which ``sigmoid(logit / temperature)`` is likeliest; ranks and signs do not change.

    Guo, Pleiss, Sun & Weinberger 2017, arXiv 1706.04599. Looked for between 0.001 and 1000 (logits that are always
    right ask for 0, such that tell nothing for infinity). InvalidParameterError without pairs.
    """
    if not len(logits):
        raise InvalidParameterError("no pair to fit a temperature to; take a split that has pairs")
    scores, answers = logits.double(), same.double()

    def loss(log_temperature: float) -> float:
        return float(binary_cross_entropy_with_logits(scores / math.exp(log_temperature), answers))

    bounds = (math.log(_COLDEST), math.log(_HOTTEST))
    return float(math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x))


def calibrated(
    probe: Probe,
    cache: ActivationCache,
    split: str = "validation",
    protocol: str | Protocol | None = None,
    layer: int | None = None,
    device: str = "auto",
) -> Probe:
    """Make a copy of a probe whose affinities are scaled by the temperature that a split asks for.

    ::

        probe = bk.calibrated(fit.probe, cache)
        probe.temperature, bk.reliability(probe, cache).attrs["calibration_error"]

    Parameters
    ----------
    probe, cache, protocol, layer, device
        As `bindkit.judge_probe` takes them.
    split : str
        On which the temperature is fitted; not the judged one, or the figures would be too good.

    Raises
    ------
    EmptySplitError
        If the split has no usable scene.
    ProbeMismatchError, LayerError
        As `bindkit.judge_probe`.
    """
    require_probe(probe)
    plain = copy.deepcopy(probe)
    plain.temperature = 1.0
    with judging(plain, cache, split, protocol, layer, device) as judged:
        pairs = judged.pairs()
    plain.temperature = fit_temperature(torch.from_numpy(pairs.logits), torch.from_numpy(pairs.same.astype(bool)))
    return plain


def reliability(
    probe: Probe,
    cache: ActivationCache,
    split: str | None = None,
    protocol: str | Protocol | None = None,
    layer: int | None = None,
    device: str = "auto",
    n_bins: int = 10,
) -> pd.DataFrame:
    """How often pairs are on one object, by the affinity that a probe gives them.

    Parameters
    ----------
    probe, cache, split, protocol, layer, device
        As `bindkit.judge_probe` takes them.
    n_bins : int
        Bins of equal width over 0..1.

    Returns
    -------
    pandas.DataFrame
        One row a bin that has pairs: ``low`` and ``high`` edge, ``mean_affinity``, ``share_same`` with its 95 %
        interval over scenes (``share_same_low``, ``share_same_high``; NaN where too few scenes have pairs of the bin,
        see `bindkit.probes.metrics.interval`) and ``n_pairs``. In ``attrs``: ``calibration_error`` (the mean
        distance of the two, weighted by pairs: the expected calibration error), ``loss`` (binary cross-entropy, nats a
        pair) and ``temperature``, and what was judged, as `bindkit.breakdown` says it.

    Raises
    ------
    InvalidParameterError
        For fewer than two bins.
    BindkitError
        As `bindkit.judge_probe`.
    """
    if n_bins < 2:
        raise InvalidParameterError(f"reliability is looked at in at least 2 bins, got {n_bins}")
    with judging(probe, cache, split, protocol, layer, device) as judged:
        pairs, described = judged.pairs(), judged.described
    logits, same = pairs.logits.astype(np.float64), pairs.same.astype(bool)
    affinity = 1 / (1 + np.exp(-np.clip(logits, -700, 700)))
    place = np.minimum((affinity * n_bins).astype(int), n_bins - 1)
    scenes = leave_out_scenes(pairs.unit)
    rows = []
    for number in np.unique(place):
        here = place == number
        edges, bounds = (number / n_bins, (number + 1) / n_bins), scenes.share_interval(same, here)
        rows.append((*edges, affinity[here].mean(), same[here].mean(), *bounds, int(here.sum())))
    columns = ["low", "high", "mean_affinity", "share_same", "share_same_low", "share_same_high", "n_pairs"]
    table = pd.DataFrame(rows, columns=columns)
    distance = (table["mean_affinity"] - table["share_same"]).abs()
    answers = torch.from_numpy(same.astype(np.float64))
    table.attrs |= described | {
        "calibration_error": float((distance * table["n_pairs"]).sum() / table["n_pairs"].sum()),
        "loss": float(binary_cross_entropy_with_logits(torch.from_numpy(logits), answers)),
        "temperature": probe.temperature,
    }
    return table
