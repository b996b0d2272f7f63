"""Tasks: what a probe is trained to say, and the figures of its own that it is judged by.

- ``pairwise``: of two patches, whether they are of one object. The measure.
- ``shuffled_labels``: the same on labels of another scene in random order; a control task, which ends at chance.
- ``pointwise_class``: of each patch, its class. Pairs are called *same* where the classes are.
- ``pointwise_identity``: of each patch, one of some queries or background; which query stands for which object is
  matched scene by scene. Pairs are called *same* where the queries are.

All are judged on the same pairs; the pointwise ones take the ``linear`` probe, a linear map of each patch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, softplus

from bindkit.errors import InvalidParameterError, OneAnswerError, ProbeError
from bindkit.probes.base import PROBES, Probe, make_probe, parse_probe
from bindkit.probes.batches import PatchBatch, SplitPatches
from bindkit.probes.kinds import ClassMap, IdentityMap

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
        """A fresh probe of this task for the training patches given.

        Raises ProbeError for a probe that the task does not take, OneAnswerError without classes to tell apart.
        """
        kind, _ = parse_probe(name)
        require_fitting(kind, self.name)
        d_model = patches.d_model
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
    """Class ids of each outcome that a class map tells apart: of each number of the benchmark, or one by one.

    Raises OneAnswerError if the training patches carry no class.
    """
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
    masks, is_object = object_masks(batch)
    present = batch.present.to(outcomes.dtype)
    counts = present.sum(1).clamp(min=1)
    queries = outcomes[:, 1:]
    chosen, objects, scenes = match(queries.detach(), masks, is_object, present, rules.mask_weight, rules.dice_weight)
    said, wanted, shown = queries[scenes, chosen], masks[scenes, objects], present[scenes]
    mask = ((softplus(said) - said * wanted) * shown).sum(1) / counts[scenes]
    overlap = said.sigmoid() * shown
    dice = 1 - (2 * (overlap * wanted).sum(1) + _SURE) / (overlap.sum(1) + wanted.sum(1) + _SURE)
    ground = outcomes[:, 0]
    is_ground = ((batch.instances == 0) & batch.present).to(outcomes.dtype)
    terms = rules.no_object_weight * is_ground * softplus(-ground) + (present - is_ground) * softplus(ground)
    background = (terms.sum(1) / counts).mean()
    n_objects = max(len(scenes), 1)
    matched = rules.mask_weight * mask.sum() + rules.dice_weight * dice.sum()
    return rules.class_weight * background + matched / n_objects


def object_masks(
    batch: PatchBatch,
) -> tuple[Float[Tensor, "scene object patch"], Bool[Tensor, "scene object"]]:
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
    """Assign a query to each object of each scene so that weighted mask and Dice losses are least (Hungarian).

    Gives queries, objects and scenes, pair by pair. All costs are computed at once; only the assignment itself goes
    scene by scene.
    """
    counts = present.sum(1).clamp(min=1)[:, None, None]
    shown = present[:, None, :]
    mask_cost = ((softplus(queries) * shown).sum(2, keepdim=True) - queries @ masks.mT) / counts
    overlap = queries.sigmoid() * shown
    sizes = overlap.sum(2)[:, :, None] + masks.sum(2)[:, None, :]
    dice_cost = 1 - (2 * overlap @ masks.mT + _SURE) / (sizes + _SURE)
    cost = (mask_weight * mask_cost + dice_weight * dice_cost).cpu().double().numpy()
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
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
