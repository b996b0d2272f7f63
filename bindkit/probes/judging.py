"""A probe judged on the pairs of a split or, fold by fold, of all scenes: of its own cache, or of others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bindkit.arguments import is_control, read_device, whole_number
from bindkit.cache import ActivationCache, require_cache
from bindkit.cache.store import SceneChoice
from bindkit.errors import InvalidParameterError
from bindkit.probes.base import Probe, require_probe
from bindkit.probes.batches import PatchBatch, SplitPatches, flat_pairs
from bindkit.probes.metrics import JudgedPairs, judge
from bindkit.probes.protocols import Protocol, protocol_of_fit
from bindkit.probes.protocols import protocol as protocol_of
from bindkit.probes.tasks import TASKS, Task, own_figures, pair_loss
from bindkit.scenes.splits import in_order

JUDGED_FIRST = ("test", "validation", "train")
"""Of these splits the first that has usable scenes is the one whose figures are reported."""

Roles = Mapping[str, str | SceneChoice]
"""Scenes that train, validate and test."""

LEAST_FOLDS = 3
_FOLDS = " folds"
"""What the column ``split`` says behind their number."""


@dataclass(frozen=True)
class Judged:
    """A probe and the patches that it is judged on, both on one device; the labels are those of its task."""

    probe: Probe
    patches: SplitPatches
    task: str = "pairwise"

    @property
    def described(self) -> dict[str, str | int]:
        """What is judged on what: backbone, layer (none of a control), probe, task, protocol, split, n_scenes."""
        fitted = self.probe.fitted_on
        known: dict[str, str | int] = {name: fitted[name] for name in ("backbone", "probe", "task") if name in fitted}
        if not is_control(fitted.get("objective")):
            known["layer"] = self.patches.layer
        protocol, split = self.patches.protocol.name, self.patches.split
        return known | {"protocol": protocol, "split": split, "n_scenes": len(self.patches)}

    def batches(self) -> Iterator[PatchBatch]:
        """The judged batches."""
        shuffled = TASKS[self.task].shuffled
        return (self.patches.shuffled(batch) if shuffled else batch for batch in self.patches.judged())

    def said(self) -> Iterator[tuple[PatchBatch, Tensor, Tensor]]:
        """With each batch its logits and which pairs are called *same*, both ``[scene, patch, patch]``."""
        for batch in self.batches():
            logits = self.probe(batch.activations)
            yield batch, logits, self.probe.says_same(batch.activations, logits)

    def pairs(self) -> JudgedPairs:
        """All judged pairs."""
        return flat_pairs(self.said())


@contextmanager
def judging(
    probe: Probe,
    cache: ActivationCache,
    split: str | None = None,
    protocol: str | Protocol | None = None,
    layer: int | None = None,
    device: str = "auto",
) -> Iterator[Judged]:
    """Have a probe and what it is judged on side by side, without gradients; arguments and errors as `judge_probe`.

    The probe is back on the CPU afterwards. Of a probe that was fitted on a fold of these scenes, "train", "validation"
    and "test" are its own: it is judged on scenes that it never saw.
    """
    where = read_device(device)
    require_probe(probe)
    require_cache(cache)
    layer = probe.layer_for(cache.backbone, layer)
    probe.check_fits(cache.d_model, layer)
    fitted = probe.fitted_on
    rules = protocol_of_fit(fitted) if protocol is None else protocol_of(protocol)
    patches = _judged_patches(cache, split, layer, rules, where, roles_for(fitted, cache))
    # The activations are as they were cached: a fitted probe takes them in their own units.
    try:
        with torch.inference_mode():
            yield Judged(probe.to(where), patches, str(fitted.get("task", "pairwise")))
    finally:
        probe.cpu()


def judge_pairs(pairs: JudgedPairs) -> dict[str, float]:
    """The figures of `bindkit.probes.metrics.judge`, ``n_scenes`` and ``n_pairs``."""
    return judge(pairs) | {"n_scenes": len(np.unique(pairs.scene)), "n_pairs": len(pairs)}


def judge_together(parts: Sequence[Judged]) -> dict[str, float]:
    """Figures of all parts' pairs as one list, and the task's own; each part has scenes and a probe of its own."""
    pairs = JudgedPairs.together([part.pairs() for part in parts])
    told = ((part.probe, batch) for part in parts for batch in part.batches())
    return judge_pairs(pairs) | own_figures(TASKS[parts[0].task], told)


def judge_split(probe: Probe, patches: SplitPatches, task: str = "pairwise") -> dict[str, float]:
    """Figures of a probe on the judged pairs of a split, ``n_scenes``, ``n_pairs`` and the task's own among them."""
    with torch.inference_mode():
        return judge_together([Judged(probe, patches, task)])


def validate(probe: Probe, task: Task, validation: SplitPatches) -> tuple[float, float]:
    """Loss over the validation scenes, as the task counts it, and accuracy over all their counted pairs."""
    loss = right = n_loss = n_pairs = 0.0
    with torch.inference_mode():
        for batch, logits, said_same in Judged(probe, validation, task.name).said():
            n_terms = task.n_terms(batch)
            told = task.loss(probe, batch) if task.kind else pair_loss(logits, batch)
            loss, n_loss = loss + float(told) * n_terms, n_loss + n_terms
            right += float(((said_same == batch.same) & batch.counted).sum())
            n_pairs += float(batch.counted.sum())
    return loss / max(n_loss, 1), right / max(n_pairs, 1)


def same_class_pairs(
    cache: ActivationCache, protocol: str | Protocol = "strict", split: str | None = None
) -> tuple[str, JudgedPairs]:
    """The judged split, and what an oracle says of its pairs that calls those of one class *same*.

    Arguments and errors as `judge_same_class`.
    """
    rules, roles = protocol_of(protocol), {} if split is None else {split: judged_scenes(cache, split)}
    patches = _judged_patches(cache, split, cache.layers[0], rules, torch.device("cpu"), roles)
    same_class = ((batch, batch.classes[:, :, None] == batch.classes[:, None, :]) for batch in patches.judged())
    return patches.split, flat_pairs((batch, said.float() - 0.5, said) for batch, said in same_class)


def judge_same_class(
    cache: ActivationCache, protocol: str | Protocol = "strict", split: str | None = None
) -> tuple[str, dict[str, float]]:
    """The judged split, and the figures there of an oracle that calls two patches *same* where their classes are.

    On the pairs that probes are judged on: of test, validation and train the first that has usable scenes, unless one
    is asked for. Raises EmptySplitError if there is none.
    """
    judged_on, pairs = same_class_pairs(cache, protocol, split)
    return judged_on, judge_pairs(pairs)


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
        The figures of `bindkit.probes.metrics.judge`, ``n_scenes`` and ``n_pairs``.

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
    with judging(probe, cache, split, protocol, layer, device) as judged:
        return judge_together([judged])


def _judged_patches(
    cache: ActivationCache, split: str | None, layer: int, rules: Protocol, device: torch.device, roles: Roles
) -> SplitPatches:
    """Patches of a split; where none is said, of the first that has usable scenes. Raises EmptySplitError."""
    for name in JUDGED_FIRST if split is None else (split,):
        patches = SplitPatches(cache, roles.get(name, name), layer, rules, device)
        if len(patches):
            break
    return patches.require()


def fold_roles(cache: ActivationCache, n_folds: int) -> list[dict[str, SceneChoice]]:
    """Of each fold of a cross-validation the scenes that train, validate and test its probe.

    All cached scenes, whatever their split, are dealt into folds by groups, by scene ids alone. The probe of fold k is
    trained on the rest less fold k + 1, which validates, and judges fold k. Raises InvalidParameterError for fewer than
    three folds, or more than there are groups.
    """
    folds = _dealt(cache, n_folds)
    return [_roles(cache, k + 1, n_folds, folds[k], folds[(k + 1) % n_folds]) for k in range(n_folds)]


def _roles(
    cache: ActivationCache, number: int, n_folds: int, test: Iterable[str], validation: Iterable[str]
) -> dict[str, SceneChoice]:
    """What each scene of a cache is to the probe of one fold (number from 1 on), by the scenes that it never saw."""
    known = _scene_ids(cache)
    tested, validating = (tuple(scene for scene in chosen if scene in known) for chosen in (test, validation))
    trained = tuple(scene for scene in known if scene not in {*tested, *validating})
    name = f"fold {number} of {n_folds}"
    return {
        "train": SceneChoice(f"training scenes of {name}", trained),
        "validation": SceneChoice(f"validation scenes of {name}", validating),
        "test": SceneChoice(name, tested),
    }


def roles_for(fitted_on: Mapping[str, Any], cache: ActivationCache) -> Roles:
    """What a cache's splits are to a probe: its own where it was fitted on a fold of these scenes, else the cache's."""
    fold = fitted_on.get("fold")
    if fold is None or fitted_on["scenes"] != cache.manifest.identity.scenes_uri:
        return {split: split for split in cache.splits}
    return _roles(cache, fold["number"], fold["of"], fold["test"], fold["validation"])


def judged_scenes(cache: ActivationCache, split: str) -> str | SceneChoice:
    """Scenes that a table's ``split`` speaks of: of ``"5 folds"`` all, fold by fold."""
    if not is_folds(split):
        return split
    return SceneChoice(split, tuple(scene for fold in _dealt(cache, int(split.removesuffix(_FOLDS))) for scene in fold))


def said(n_folds: int) -> str:
    """What stands in the column ``split``."""
    return f"{n_folds}{_FOLDS}"


def is_folds(split: str) -> bool:
    """Whether the column ``split`` speaks of a cross-validation."""
    return split.endswith(_FOLDS)


def scenes_of(split: str, n_scenes: int | None = None) -> str:
    """The judged scenes in words, with their number where it is known: "1 test scene", "all scenes in 5 folds"."""
    if n_scenes is None:
        return f"all scenes in {split}" if is_folds(split) else f"the {split} scenes"
    noun = "scene" if n_scenes == 1 else "scenes"
    return f"{n_scenes} {noun} in {split}" if is_folds(split) else f"{n_scenes} {split} {noun}"


def _scene_ids(cache: ActivationCache) -> dict[str, None]:
    return {scene: None for split in cache.splits for scene in cache.labels(split).scene_ids}


def _dealt(cache: ActivationCache, n_folds: int) -> list[tuple[str, ...]]:
    """Scenes of each fold: large groups first, each to the smallest fold so far."""
    n_folds, scenes = whole_number(n_folds, "folds"), sorted(_scene_ids(cache))
    members: dict[str, list[int]] = {}
    for position, scene in enumerate(scenes):
        members.setdefault(cache.groups.get(scene, scene), []).append(position)
    if not LEAST_FOLDS <= n_folds <= len(members):
        raise InvalidParameterError(
            f"folds is at least {LEAST_FOLDS} (one is judged, one validates, the rest trains) and at most the number "
            f"of scenes or groups of them, {len(members)}; got {n_folds}"
        )
    folds: list[list[int]] = [[] for _ in range(n_folds)]
    for group in in_order(scenes, [tuple(found) for found in members.values()]):
        min(folds, key=len).extend(group)
    return [tuple(scenes[position] for position in sorted(fold)) for fold in folds]
