"""Is an affinity a probability? Reliability of a probe's affinities, and a temperature that mends it.

>>> import torch
>>> logits = torch.tensor([-4.0, -4.0, 4.0, 4.0])
>>> same = torch.tensor([False, True, False, True])
>>> round(fit_temperature(torch.cat([logits, logits[2:]]), torch.cat([same, torch.tensor([True, True])])), 2)
5.77
"""

from __future__ import annotations

import copy
import math

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from bindkit.cache import ActivationCache
from bindkit.errors import InvalidParameterError
from bindkit.probes import Probe, require_probe
from bindkit.probes.judging import judging
from bindkit.probes.protocols import Protocol
from bindkit.probes.resampling import leave_out_scenes

_COLDEST, _HOTTEST = 1e-3, 1e3


def fit_temperature(logits: Float[Tensor, " pair"], same: Bool[Tensor, " pair"]) -> float:
    """Find the temperature with which ``sigmoid(logit / temperature)`` is likeliest.

    Guo, Pleiss, Sun & Weinberger 2017, arXiv 1706.04599. Ranks and signs, and so AUROC and accuracy, do not change.
    Looked for between 0.001 and 1000 (logits that are always right ask for 0, such that tell nothing for infinity).

    Raises
    ------
    InvalidParameterError
        Without pairs.
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
    probe : Probe
        Fitted.
    cache : ActivationCache
        Of its backbone.
    split : str
        On which the temperature is fitted; not the judged one, or the figures would be too good.
    protocol, layer, device
        As `bindkit.probes.judging.judge_probe` takes them.

    Raises
    ------
    EmptySplitError
        If the split has no usable scene.
    ProbeMismatchError, LayerError
        As `bindkit.probes.judging.judge_probe`.
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
        As `bindkit.probes.judging.judge_probe` takes them.
    n_bins : int
        Bins of equal width over 0..1.

    Returns
    -------
    pandas.DataFrame
        One row a bin that has pairs: ``low`` and ``high`` edge, ``mean_affinity``, ``share_same`` with its 95 %
        interval over scenes (``share_same_low``, ``share_same_high``; NaN where too few scenes have pairs of the bin,
        see `bindkit.probes.resampling.interval`) and ``n_pairs``. In ``attrs``: ``calibration_error`` (the mean
        distance of the two, weighted by pairs: the expected calibration error), ``loss`` (binary cross-entropy, nats a
        pair) and ``temperature``, and what was judged, as `bindkit.breakdown` says it.

    Raises
    ------
    InvalidParameterError
        For fewer than two bins.
    BindkitError
        As `bindkit.probes.judging.judge_probe`.
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
    table.attrs |= described
    table.attrs["calibration_error"] = float((distance * table["n_pairs"]).sum() / table["n_pairs"].sum())
    answers = torch.from_numpy(same.astype(np.float64))
    table.attrs["loss"] = float(binary_cross_entropy_with_logits(torch.from_numpy(logits), answers))
    table.attrs["temperature"] = probe.temperature
    return table
