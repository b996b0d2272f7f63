"""Where a probe is right: by distance, by size of the object, by kind of negative, within windows and across them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch

from bindkit.cache import ActivationCache
from bindkit.cache.store import labels_of
from bindkit.errors import InvalidParameterError
from bindkit.probes import Probe
from bindkit.probes.batches import PatchBatch
from bindkit.probes.judging import judging
from bindkit.probes.metrics import auroc
from bindkit.probes.protocols import Protocol
from bindkit.probes.resampling import LeftOutScenes, leave_out_scenes

_DOUBLING = np.array([0, 2, 4, 8, 16, 32, 64, 128, 256, 512, np.inf])
"""Edges of distances (in patches) and sizes (in patches): each bin twice as wide as the one before."""

_NEGATIVES = ("same object", "different objects, same class", "different objects, other class", "class unknown")
_WINDOWS = ("same window", "across windows")


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
        As `bindkit.probes.judging.judge_probe` takes them; the pairs are the very same.
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
        `bindkit.probes.resampling.interval`), ``majority_accuracy`` and ``auroc`` within the group (NaN where it
        has one kind of pairs). In ``attrs``, what was judged: ``backbone``, ``layer``, ``probe``, ``task``,
        ``protocol``, ``split`` and ``n_scenes``, as far as known.

    Raises
    ------
    InvalidParameterError
        For another `by`.
    BindkitError
        As `bindkit.probes.judging.judge_probe`.
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
        sizes = dict(_sizes_by_scene(labels.scene_ids, labels.scene_offsets, labels.instances))
        for batch, logits, said in judged.said():
            counted = batch.counted
            scene, unit = (
                of.to(counted.device)[:, None, None].expand_as(counted)
                for of in (batch.scenes, batch.scenes if batch.groups is None else batch.groups)
            )
            shown = [sizes[patches.scene_ids[k]] for k in batch.scenes.tolist()]
            groups = [_GROUPERS[name](batch, shown)[counted.cpu()] for name in asked]
            parts = (logits.float(), said == batch.same, batch.same, scene, unit)
            columns.append((*(part[counted].cpu().numpy() for part in parts), *(group.numpy() for group in groups)))
    logits_, right, same, scene_, unit_, *found = (np.concatenate(column) for column in zip(*columns, strict=True))
    units = leave_out_scenes(unit_)
    rows = []
    for name, values in zip(asked, found, strict=True):
        edges = name in ("distance", "object_size")
        groups_ = np.searchsorted(_DOUBLING, values, side="right") - 1 if edges else values.astype(int)
        for group in np.unique(groups_):
            figures = _figures(groups_ == group, logits_, right, same, scene_, units)
            rows.append({"by": name, **_named(name, int(group)), **figures})
    table = pd.DataFrame(rows)
    table.attrs |= described
    return table


def _named(name: str, group: int) -> dict[str, object]:
    if name == "negatives":
        return {"group": _NEGATIVES[group], "low": np.nan, "high": np.nan}
    if name == "window":
        return {"group": _WINDOWS[group], "low": np.nan, "high": np.nan}
    low, high = _DOUBLING[group], _DOUBLING[group + 1]
    text = f"from {low:g}" if np.isinf(high) else f"{low:g} to {high:g}"
    return {"group": text, "low": low, "high": high}


def _figures(
    here: np.ndarray,
    logits: np.ndarray,
    right: np.ndarray,
    same: np.ndarray,
    scene: np.ndarray,
    units: LeftOutScenes,
) -> dict[str, float]:
    """Figures of the pairs that are here, all given as arrays of shape (pair,)."""
    low, high = units.share_interval(right, here)
    share = float(same[here].mean())
    return {
        "n_pairs": int(here.sum()),
        "n_scenes": len(np.unique(scene[here])),
        "share_same": share,
        "accuracy": float(right[here].mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "majority_accuracy": max(share, 1 - share),
        "auroc": auroc(logits[here], same[here]),
    }


Sizes = dict[int, int]
"""Instance -> patches that show it."""


def _sizes_by_scene(ids: Sequence[str], offsets: np.ndarray, instances: np.ndarray) -> list[tuple[str, Sizes]]:
    counted = []
    for number, scene_id in enumerate(ids):
        found, counts = np.unique(instances[offsets[number] : offsets[number + 1]], return_counts=True)
        counted.append((scene_id, dict(zip(found.tolist(), counts.tolist(), strict=True))))
    return counted


def _distance(batch: PatchBatch, sizes: Sequence[Sizes]) -> torch.Tensor:
    corners = batch.corners.float().cpu() / batch.patch_size
    return (corners[:, :, None] - corners[:, None, :]).square().sum(-1).sqrt()


def _object_size(batch: PatchBatch, sizes: Sequence[Sizes]) -> torch.Tensor:
    of_patch = [[known[k] for k in row] for known, row in zip(sizes, batch.instances.tolist(), strict=True)]
    found = torch.tensor(of_patch, dtype=torch.float32)
    return torch.minimum(found[:, :, None], found[:, None, :])


def _negatives(batch: PatchBatch, sizes: Sequence[Sizes]) -> torch.Tensor:
    classes, same = batch.classes.cpu(), batch.same.cpu()
    known = (classes > 0) & (batch.instances.cpu() > 0)
    both_known = known[:, :, None] & known[:, None, :]
    same_class = classes[:, :, None] == classes[:, None, :]
    kinds = torch.where(both_known, torch.where(same_class, 1, 2), 3)
    return torch.where(same, 0, kinds)


def _window(batch: PatchBatch, sizes: Sequence[Sizes]) -> torch.Tensor:
    window = batch.window.cpu()
    return (window[:, :, None] != window[:, None, :]).long()


_GROUPERS: dict[str, Callable[[PatchBatch, Sequence[Sizes]], torch.Tensor]] = {
    "distance": _distance,
    "object_size": _object_size,
    "negatives": _negatives,
    "window": _window,
}
