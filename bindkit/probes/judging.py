"""Tasks: what a probe is trained to say; and how it is judged on a split's pairs, of its own cache or of others.

- ``pairwise``: of two patches, whether they are of one object. The measure.
- ``shuffled_labels``: the same on labels of another scene in random order; a control task, which ends at chance.
- ``pointwise_class``: of each patch, its class. Pairs are called *same* where the classes are.
- ``pointwise_identity``: of each patch, one of some queries or background; which query stands for which object is
  matched scene by scene. Pairs are called *same* where the queries are.

All are judged on the same pairs; the pointwise ones take the ``linear`` probe, a linear map of each patch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, softplus

from bindkit.arguments import is_control, read_device
from bindkit.cache import ActivationCache, require_cache
from bindkit.errors import InvalidParameterError, OneAnswerError, ProbeError
from bindkit.probes.base import PROBES, Probe, make_probe, parse_probe, require_probe
from bindkit.probes.batches import JUDGED_FIRST, PatchBatch, Roles, SplitPatches, roles_for
from bindkit.probes.kinds import ClassMap, IdentityMap
from bindkit.probes.metrics import JudgedPairs, distance_strata, judge
from bindkit.probes.protocols import Protocol, protocol_of_fit
from bindkit.probes.protocols import protocol as protocol_of

_MOST_CLASSES = 150
"""Where a scene set has more classes and names no benchmark, the most frequent ones of the training patches are told
apart, the rest is *other*; as many as ADE20K's benchmark has."""

_SURE = 1.0
"""What a Dice term adds above and below the line (Mask2Former's smoothing)."""


@dataclass(frozen=True)
class Task:
    """What to train for."""

    name: str
    loss: Callable[[Any, PatchBatch], Float[Tensor, ""]]
    """Of a probe and a batch, to be minimised, in nats."""
    n_terms: Callable[[PatchBatch], int]
    """Of a batch: how many terms that loss is a mean of; what batches weigh when their losses are averaged."""
    kind: str | None = None
    """Of the map that a pointwise task trains; None where any probe that judges pairs will do."""
    shuffled: bool = False
    """Whether every scene is given the labels of another one, in random order."""

    def make_probe(
        self,
        name: str,
        patches: SplitPatches,
        seed: int,
        class_names: Iterable[int],
        benchmark: Mapping[int, int] | None = None,
        **options: Any,
    ) -> Probe:
        """A fresh probe of this task for the training patches given. Raises ProbeError, OneAnswerError."""
        kind, d_model = parse_probe(name)[0], patches.d_model
        require_fitting(kind, self.name)
        if self.kind is None:
            return make_probe(name, d_model, seed, **options, **patches.protocol.options_of(kind))
        if self.kind == "class_map":
            return make_probe("class_map", d_model, seed, class_ids=told_apart(patches, class_names, benchmark))
        return make_probe(self.kind, d_model, seed, n_queries=patches.protocol.n_queries)


def require_fitting(kind: str, task: str) -> None:
    """Refuse a probe that a task does not take. Raises ProbeError."""
    if task not in TASKS:
        raise ProbeError(f"unknown task {task!r}; there are {', '.join(TASKS)}")
    if not takes(task, kind):
        takes_what = "the linear probe, a linear map of each patch" if TASKS[task].kind else "probes that judge pairs"
        raise ProbeError(f"the task {task} takes {takes_what}; got {kind}")


def require_pairwise(tasks: Iterable[str]) -> None:
    """Refuse tasks without ``pairwise``, which tables and figures of the notebooks are of: InvalidParameterError."""
    asked = list(tasks)
    if "pairwise" not in asked:
        raise InvalidParameterError(
            f"the tasks ({', '.join(asked) or 'none'}) lack pairwise, the measure that others stand beside; add it, "
            f"as in tasks = '{' '.join(['pairwise', *asked])}', or fit others alone with bk.sweep"
        )


def takes(task: str, kind: str) -> bool:
    """Whether a task can be trained with a kind of probe."""
    return kind == "linear" if TASKS[task].kind else PROBES[kind].pointwise_task is None


def told_apart(
    patches: SplitPatches, class_names: Iterable[int], benchmark: Mapping[int, int] | None = None
) -> list[list[int]]:
    """Class ids of each outcome of a class map: by benchmark number, or one by one. Raises OneAnswerError."""
    present, counts = torch.unique(patches.classes[patches.classes > 0], return_counts=True)
    if not len(present):
        raise OneAnswerError(
            "no training patch carries a class label, so that there is nothing to tell apart in the task "
            "pointwise_class; give scenes with classes, or take the task pairwise"
        )
    if benchmark:
        groups: list[list[int]] = [[] for _ in range(max(benchmark.values()))]
        for class_id, number in sorted(benchmark.items()):
            if number:
                groups[number - 1].append(class_id)
        return groups
    named = sorted(class_names)
    if not 0 < len(named) <= _MOST_CLASSES:
        named = sorted(present[counts.argsort(descending=True, stable=True)[:_MOST_CLASSES]].tolist())
    return [[class_id] for class_id in named]


def pair_loss(logits: Float[Tensor, "scene patch patch"], batch: PatchBatch) -> Float[Tensor, ""]:
    """Binary cross-entropy in nats, averaged over the entries that the protocol puts into the loss."""
    target = batch.same.to(logits.dtype)
    if batch.protocol.full_matrix_loss and bool(batch.present.all()):
        return binary_cross_entropy_with_logits(logits, target)
    weight = batch.in_loss.to(logits.dtype)
    total = binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="sum")
    return total / weight.sum().clamp(min=1)


def _pairwise_loss(probe: Probe, batch: PatchBatch) -> Float[Tensor, ""]:
    return pair_loss(probe(batch.activations), batch)


def _class_loss(probe: ClassMap, batch: PatchBatch) -> Float[Tensor, ""]:
    """Cross-entropy in nats, averaged over patches."""
    outcomes = probe.outcomes(batch.activations)
    return cross_entropy(outcomes[batch.present], probe.targets(batch.classes)[batch.present])


def _identity_loss(probe: IdentityMap, batch: PatchBatch) -> Float[Tensor, ""]:
    """Mask and Dice losses of matched queries, averaged over objects, and that of the background over scenes.

    As Mask2Former's, on patches in the place of pixels. Outcome 0 says *background*; the reference's says *object*,
    which makes no difference to the loss but would to the likeliest outcome.
    """
    rules, outcomes = batch.protocol, probe.outcomes(batch.activations).mT
    (masks, is_object), present = object_masks(batch), batch.present.to(outcomes.dtype)
    ground, queries, counts = outcomes[:, 0], outcomes[:, 1:], present.sum(1).clamp(min=1)
    chosen, objects, scenes = match(queries.detach(), masks, is_object, present, rules.mask_weight, rules.dice_weight)
    said, wanted, shown = queries[scenes, chosen], masks[scenes, objects], present[scenes]
    mask = ((softplus(said) - said * wanted) * shown).sum(1) / counts[scenes]
    overlap = said.sigmoid() * shown
    dice = 1 - (2 * (overlap * wanted).sum(1) + _SURE) / (overlap.sum(1) + wanted.sum(1) + _SURE)
    is_ground = ((batch.instances == 0) & batch.present).to(outcomes.dtype)
    terms = rules.no_object_weight * is_ground * softplus(-ground) + (present - is_ground) * softplus(ground)
    background = (terms.sum(1) / counts).mean()
    matched = rules.mask_weight * mask.sum() + rules.dice_weight * dice.sum()
    return rules.class_weight * background + matched / max(len(scenes), 1)


def object_masks(batch: PatchBatch) -> tuple[Float[Tensor, "scene object patch"], Bool[Tensor, "scene object"]]:
    """Which present patches each object of a scene has; and which rows are objects at all (scenes have few or many)."""
    labelled = batch.present & (batch.instances > 0)
    same = batch.same & labelled[:, None, :] & labelled[:, :, None]
    # An object is where it is seen first.
    is_first = labelled & ~same.tril(-1).any(-1)
    most = max(int(is_first.sum(1).max()), 1)
    rows = is_first.to(torch.uint8).topk(most, dim=1, sorted=True)
    masks = same.gather(1, rows.indices[:, :, None].expand(-1, -1, same.shape[2]))
    is_object = rows.values.bool()
    return (masks & is_object[:, :, None]).to(batch.activations.dtype), is_object


def match(
    queries: Float[Tensor, "scene query patch"],
    masks: Float[Tensor, "scene object patch"],
    is_object: Bool[Tensor, "scene object"],
    present: Float[Tensor, "scene patch"],
    mask_weight: float,
    dice_weight: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, objects and scenes, pair by pair, so that weighted mask and Dice losses are least (Hungarian)."""
    counts = present.sum(1).clamp(min=1)[:, None, None]
    shown = present[:, None, :]
    mask_cost = ((softplus(queries) * shown).sum(2, keepdim=True) - queries @ masks.mT) / counts
    overlap = queries.sigmoid() * shown
    sizes = overlap.sum(2)[:, :, None] + masks.sum(2)[:, None, :]
    dice_cost = 1 - (2 * overlap @ masks.mT + _SURE) / (sizes + _SURE)
    cost = (mask_weight * mask_cost + dice_weight * dice_cost).cpu().double().numpy()
    found = []
    for scene, count in enumerate(is_object.sum(1).tolist()):
        chosen, objects = linear_sum_assignment(cost[scene, :, :count])
        found.append((chosen, objects, np.full(len(chosen), scene)))
    columns = [torch.from_numpy(np.concatenate(column)).to(queries.device) for column in zip(*found, strict=True)]
    return columns[0], columns[1], columns[2]


def own_figures(task: Task, judged: Iterable[tuple[Any, PatchBatch]]) -> dict[str, float]:
    """Figures that only pointwise tasks have: ``class_accuracy`` or ``matched_iou``, and ``reference_accuracy``.

    ``class_accuracy`` is the share of patches whose class is told.

    ``reference_accuracy`` is what the reference implementation reports, to be set beside the paper's table: over all
    N x N entries of a scene's judged patches, diagonal and both orders, how often "the same outcome" agrees with "the
    same class" (``pointwise_class``, where the accuracy of all tasks asks for the same object) or "the same object".

    ``matched_iou`` is the mean over objects of the intersection over union, counted in judged patches, with the mask of
    the query that a Hungarian matching for the largest overlap gives it; 0 for an object without a query.
    """
    if task.kind is None:
        return {}
    told = patches = agreed = entries = 0
    overlaps: list[float] = []
    for probe, batch in judged:
        likeliest, truth, present = probe.outcomes(batch.activations).argmax(-1), batch.instances, batch.present
        if task.kind == "class_map":
            truth = probe.targets(batch.classes)
            told, patches = told + int((likeliest == truth)[present].sum()), patches + int(present.sum())
        else:
            masks, is_object = object_masks(batch)
            for scene in range(len(masks)):
                overlaps += _matched_overlaps(
                    likeliest[scene][present[scene]].cpu().numpy(),
                    masks[scene][is_object[scene]][:, present[scene]].cpu().numpy() > 0,
                )
        both = present[:, :, None] & present[:, None, :]
        agree = (likeliest[:, :, None] == likeliest[:, None, :]) == (truth[:, :, None] == truth[:, None, :])
        agreed, entries = agreed + int((agree & both).sum()), entries + int(both.sum())
    if task.kind == "class_map":
        own = {"class_accuracy": told / max(patches, 1)}
    else:
        own = {"matched_iou": float(np.mean(overlaps)) if overlaps else float("nan")}
    return own | {"reference_accuracy": agreed / max(entries, 1)}


def _matched_overlaps(likeliest: np.ndarray, masks: np.ndarray) -> list[float]:
    """Intersection over union of every object of a scene with its query's mask."""
    queries = np.unique(likeliest[likeliest > 0])
    said = likeliest[None, :] == queries[:, None]
    both = said.astype(float) @ masks.T.astype(float)
    iou = both / np.maximum(said.sum(1)[:, None] + masks.sum(1)[None, :] - both, 1)
    chosen, objects = linear_sum_assignment(-iou)
    found = np.zeros(len(masks))
    found[objects] = iou[chosen, objects]
    return found.tolist()


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("pairwise", _pairwise_loss, lambda batch: int(batch.in_loss.sum())),
        Task("pointwise_class", _class_loss, lambda batch: int(batch.present.sum()), kind="class_map"),
        Task("pointwise_identity", _identity_loss, lambda batch: len(batch.scenes), kind="identity_map"),
        Task("shuffled_labels", _pairwise_loss, lambda batch: int(batch.in_loss.sum()), shuffled=True),
    )
}
"""Task name -> task."""


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
    patches = judged_patches(cache, split, layer, rules, where, roles_for(fitted, cache))
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


def judged_patches(
    cache: ActivationCache, split: str | None, layer: int, rules: Protocol, device: torch.device, roles: Roles
) -> SplitPatches:
    """Patches of a split; where none is said, of the first that has usable scenes. Raises EmptySplitError."""
    for name in JUDGED_FIRST if split is None else (split,):
        patches = SplitPatches(cache, roles.get(name, name), layer, rules, device)
        if len(patches):
            break
    return patches.require()


def flat_pairs(judged: Iterable[tuple[PatchBatch, Tensor, Tensor]]) -> JudgedPairs:
    """The counted pairs of batches, their logits and which are called *same*, both ``[scene, patch, patch]``."""
    columns: dict[str, list[np.ndarray]] = defaultdict(list)
    for batch, logits, said_same in judged:
        number, first, second = batch.counted.nonzero(as_tuple=True)
        corners, others = (batch.corners[number, place].cpu().numpy() for place in (first, second))
        columns["stratum"].append(distance_strata(corners, others, batch.patch_size))
        found = {"logits": logits.float(), "same": batch.same, "twins_question": batch.twins_question}
        found["said"] = said_same
        for name, values in found.items():
            columns[name].append(values[number, first, second].cpu().numpy())
        for name, of in (("scene", batch.scenes), ("group", batch.groups)):
            if of is not None:
                columns[name].append(of.to(number.device)[number].cpu().numpy())
    return JudgedPairs(**{name: np.concatenate(parts) for name, parts in columns.items()})
