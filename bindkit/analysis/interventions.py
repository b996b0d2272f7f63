"""What the model does with binding: a layer's binding part is edited, and what follows is measured.

An activation is split into the part in the binding subspace and the rest (`bindkit.analysis.subspace`); the part's
scores are changed, the rest stays, and the forward pass goes on. The paper's *uninformed* edit is ``shuffle`` (its
ratio is the strength), its *informed* one ``object mean`` (its alpha). Whatever is done to the binding part is done to
random subspaces of the same rank and energy too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bindkit.analysis.attention import JudgedWindows
from bindkit.analysis.subspace import Moments, Subspace, chosen_subspace, form_of, random_like
from bindkit.arguments import each_of, read_seed, whole_number
from bindkit.backbones import Backbone
from bindkit.cache import ActivationCache, require_cache
from bindkit.errors import BackboneError, InvalidParameterError, OneAnswerError
from bindkit.pretraining.losses import PretrainingLoss
from bindkit.probes import Probe, require_probe
from bindkit.probes.batches import SplitPatches
from bindkit.probes.fitting import fit_probes
from bindkit.probes.judging import TASKS, Judged, judge_split, own_figures
from bindkit.probes.layers import LayerPatches
from bindkit.probes.metrics import interval, mean_interval
from bindkit.probes.protocols import protocol_of_fit
from bindkit.scenes.scene import SceneSet

logger = logging.getLogger(__name__)

Scores = Float[Tensor, "window patch k"]


@dataclass(frozen=True)
class Place:
    """What an edit may know of the windows that it is shown."""

    numbers: Sequence[int]
    """Of the windows, which their randomness hangs on."""
    seed: int
    instances: Int[Tensor, "window patch"] | None = None
    others: Float[Tensor, "window patch k"] | None = None
    """Scores at the same places of another scene."""


def _removed(scores: Scores, strength: float, _place: Place) -> Scores:
    return (1 - strength) * scores


def _shuffled(scores: Scores, strength: float, place: Place) -> Scores:
    """Scores of a share of each window's patches, chosen at random, in random order among themselves."""
    changed, n_patches = scores.clone(), scores.shape[1]
    for position, number in enumerate(place.numbers):
        generator = torch.Generator().manual_seed(place.seed * 1_000_003 + int(number))
        chosen = torch.randperm(n_patches, generator=generator)[: round(strength * n_patches)].to(scores.device)
        order = torch.randperm(len(chosen), generator=generator).to(scores.device)
        changed[position, chosen] = scores[position, chosen[order]]
    return changed


def _averaged(scores: Scores, strength: float, place: Place) -> Scores:
    """Towards the mean over the window's patches of the object; unlabelled patches stay."""
    assert place.instances is not None
    instances = place.instances.to(scores.device)
    same = (instances[:, :, None] == instances[:, None, :]).to(scores.dtype)
    means = same @ scores / same.sum(2, keepdim=True)
    return torch.where(instances[..., None] > 0, (1 - strength) * scores + strength * means, scores)


def _replaced(scores: Scores, strength: float, place: Place) -> Scores:
    assert place.others is not None
    return (1 - strength) * scores + strength * place.others.to(scores)


EDITS: Mapping[str, Callable[[Scores, float, Place], Scores]] = {
    "remove": _removed,
    "shuffle": _shuffled,
    "object mean": _averaged,
    "other scene": _replaced,
}
"""What may be done to the scores: towards their mean; a share of patches shuffled within each window; towards their
object's mean (by the labels, which tell the model what belongs together); towards another scene's at that place."""

_BLIND = ("remove", "shuffle")
"""Edits that need no labels and no other scene: those that a pretraining loss is measured under, too."""

_OF_PAIRS = ("auroc", "matched_auroc", "twins_auroc", "matched_twins_auroc")


@dataclass(frozen=True)
class Edit:
    """One of `EDITS` of a subspace's scores, with a strength from 0 (nothing at all) to 1."""

    kind: str
    subspace: Subspace
    strength: float
    seed: int = 0

    def of(self, patches: Float[Tensor, "window patch d_model"], place: Place) -> Tensor | None:
        """Patches with edited scores; None, to leave them bit for bit, at strength 0."""
        if self.strength == 0:
            return None
        scores = self.subspace.scores(patches)
        changed = EDITS[self.kind](scores, self.strength, place)
        return patches + (changed - scores) @ self.subspace.writers.to(patches).T

    def of_windows(
        self, windows: JudgedWindows, others: Tensor | None, part: Int[Tensor, " window"], patches: Tensor
    ) -> Tensor | None:
        """As `JudgedWindows.passed` asks."""
        there = None if others is None else others[part]
        return self.of(patches, Place(part.tolist(), self.seed, windows.instances[part], there))

    def blind(self, patches: Float[Tensor, "window patch d_model"]) -> Tensor | None:
        """Of any patches, without labels."""
        return self.of(patches, Place(range(len(patches)), self.seed))


def intervene(
    backbone: Backbone,
    cache: ActivationCache,
    probe: Probe,
    rank: int = 8,
    edits: Sequence[str] = tuple(EDITS),
    strengths: Sequence[float] = (0.0, 0.25, 0.5, 1.0),
    later: Sequence[Probe] = (),
    n_scenes: int = 40,
    n_random: int = 1,
    loss: bool = True,
    seed: int = 0,
    scenes: SceneSet | None = None,
) -> pd.DataFrame:
    """Edit the binding part at a probe's layer, let the model go on, and measure what is left.

    ::

        table = bk.intervene(backbone, cache, bk.load_probe(place), rank=8)
        bk.figures.dose_figure(table)

    Parameters
    ----------
    backbone : Backbone
        Of the cache.
    cache : ActivationCache
        With the probe's layer and a later one; its judged scenes are edited, class and object probes are fitted on the
        deepest cached layer as it is.
    probe : Probe
        A quadratic form, fitted on the layer that is edited.
    rank : int
        Directions of the binding part.
    edits : sequence of str
        Names of `EDITS`.
    strengths : sequence of float
        0 (nothing) to 1.
    later : sequence of Probe
        Fitted at later layers: their affinity is measured besides the probe's own.
    n_scenes : int
        At most so many of the judged scenes.
    n_random : int
        Random subspaces of the same rank and energy.
    loss : bool
        Also the pretraining loss, where it can be computed (`bindkit.pretraining.losses`), under the edits that need no
        labels.
    seed : int
        Of shuffles, random subspaces, fits and masks.
    scenes : SceneSet, optional
        Default: opened by the cache's URI.

    Returns
    -------
    pandas.DataFrame
        One row for each ``edit``, ``subspace`` ("binding" or "random"), ``draw`` (of random ones), ``strength``,
        ``read_out`` ("affinity", "classes", "objects", "loss"), ``read_layer`` and ``figure`` (AUROCs as
        `bindkit.probes.metrics.judge`; class_accuracy, class_iou (mean over classes); matched_iou; loss), with
        ``value``, ``low``, ``high`` (95 % intervals over scenes; of the loss over batches).

    Raises
    ------
    InvalidParameterError
        For unknown edits, strengths outside 0..1, and where all that is asked for is to take from another scene, and
        there is one alone; among other edits that one is left out with a warning.
    ProbeError, ProbeMismatchError, BackboneError
        A probe that is no quadratic form, of another cache, or what is no model.
    """
    edits, strengths = _read(edits, strengths)
    seed, layer = read_seed(seed), require_probe(probe).layer_for(require_cache(cache).backbone)
    windows = JudgedWindows.of(backbone, cache, probe, n_scenes, scenes)
    form, moments = form_of(probe), Moments.of(cache, probe)
    binding = chosen_subspace(form, moments, whole_number(rank, "rank", 1), "binding")
    subspaces = [("binding", 0, binding)]
    for draw in range(whole_number(n_random, "n_random", 0)):
        subspaces.append(("random", draw, random_like(binding, moments, seed + draw)))
    behind = each_of(later, Probe, "later is probes")
    if not all(one.layer_for(cache.backbone) > layer for one in behind):
        raise InvalidParameterError(f"later probes are of layers behind {layer}, the one that is edited")
    read_outs = _ReadOuts(cache, [probe, *behind], seed)
    losses = None
    if loss:
        try:
            losses = PretrainingLoss(backbone, windows.pixels, seed)
        except BackboneError as error:
            logger.info("without a pretraining loss: %s", error)
    if windows.labels.n_scenes < 2 and len(edits) > 1 and "other scene" in edits:
        logger.warning("one judged scene has no other to take from: the edit 'other scene' is left out")
        edits.remove("other scene")
    donors = _donors(windows) if "other scene" in edits else None
    clean = [*read_outs.rows(windows, windows.passed(read_outs.layers))]
    clean_loss = np.zeros(0) if losses is None else losses.of_batches()
    described = {"backbone": backbone.name, "layer": layer, "rank": rank, "n_scenes": windows.labels.n_scenes}
    table: list[dict[str, Any]] = []
    for name, draw, subspace in subspaces:
        others = None if donors is None else _scores(windows, layer, subspace)[donors]
        for edit in (Edit(kind, subspace, strength, seed) for kind in edits for strength in strengths):
            rows = clean
            if edit.strength:
                change = partial(edit.of_windows, windows, others)
                rows = [*read_outs.rows(windows, windows.passed(read_outs.layers, layer, change))]
            if losses is not None and edit.kind in _BLIND:
                found = losses.of_batches(layer, edit.blind) if edit.strength else clean_loss
                bounds = dict(zip(("low", "high"), mean_interval(found), strict=True))
                rows = [*rows, {"read_out": "loss", "figure": "loss", "value": float(found.mean()), **bounds}]
            doing = {"edit": edit.kind, "subspace": name, "draw": draw, "strength": edit.strength}
            table += [described | doing | row for row in rows]
    return pd.DataFrame(table)


def _read(edits: Sequence[str], strengths: Sequence[float]) -> tuple[list[str], list[float]]:
    chosen = [edits] if isinstance(edits, str) else list(edits)
    if not chosen or (unknown := [edit for edit in chosen if edit not in EDITS]):
        raise InvalidParameterError(
            f"edits are of {', '.join(EDITS)}, at least one; got {unknown if chosen else chosen}"
        )
    doses = sorted({float(strength) for strength in strengths})
    if not doses or not 0 <= doses[0] <= doses[-1] <= 1:
        raise InvalidParameterError(f"strengths are numbers from 0 to 1, at least one; got {list(strengths)}")
    return chosen, doses


def _donors(windows: JudgedWindows) -> Int[Tensor, " window"]:
    """Of each window one of another scene: the next that is. Raises InvalidParameterError where there is none."""
    scene, n = windows.scene.tolist(), len(windows)
    if len(set(scene)) < 2:
        raise InvalidParameterError(
            "the edit 'other scene' needs two judged scenes or more; leave it out or add scenes"
        )
    return torch.tensor([next(k % n for k in range(w + 1, w + n) if scene[k % n] != scene[w]) for w in range(n)])


def _scores(windows: JudgedWindows, layer: int, subspace: Subspace) -> Float[Tensor, "window patch k"]:
    """Of all patches of all windows, as they are."""
    shown = (windows.backbone.activations(windows.pixels[part], [layer])[layer] for part in windows.parts())
    return torch.cat([subspace.scores(patches).cpu() for patches in shown])


class _ReadOuts:
    """Probes at the edited layer and later ones, and what is fitted on the deepest one to tell classes and objects."""

    def __init__(self, cache: ActivationCache, probes: Sequence[Probe], seed: int) -> None:
        self._probes = {probe.layer_for(cache.backbone): probe for probe in probes}
        self._deepest = max(cache.layers)
        self.layers = sorted({*self._probes, self._deepest})
        patches = LayerPatches(cache, self._deepest, protocol_of_fit(probes[0].fitted_on), "cpu")
        self._pointwise: dict[str, Any] = {}
        for read_out, task in (("classes", "pointwise_class"), ("objects", "pointwise_identity")):
            try:
                self._pointwise[read_out] = task, fit_probes(patches, [("linear", task)], seed)[0].probe
            except OneAnswerError as error:
                logger.info("without the read-out %s: %s", read_out, error)

    def rows(self, windows: JudgedWindows, found: dict[int, Tensor]) -> Iterator[dict[str, Any]]:
        """One row a figure, of the judged patches with these activations."""
        for layer, probe in self._probes.items():
            figures = judge_split(probe, windows.judged(found, layer))
            for name in _OF_PAIRS:
                bounds = {"low": figures[f"{name}_low"], "high": figures[f"{name}_high"]}
                yield {"read_out": "affinity", "read_layer": layer, "figure": name, "value": figures[name], **bounds}
        for read_out, (task, probe) in self._pointwise.items():
            patches = windows.judged(found, self._deepest)
            told = class_figures if read_out == "classes" else object_figures
            for name, figure in told(probe, patches, task).items():
                bounded = dict(zip(("value", "low", "high"), figure, strict=True))
                yield {"read_out": read_out, "read_layer": self._deepest, "figure": name, **bounded}


Figure = tuple[float, float, float]
"""A value and the bounds of its interval."""


@torch.inference_mode()
def class_figures(probe: Any, patches: SplitPatches, task: str = "pointwise_class") -> dict[str, Figure]:
    """Share of patches whose class is told, and intersection over union averaged over the classes that are there."""
    n_classes = probe.weight.shape[0]
    confusion = []
    for batch in Judged(probe, patches, task).batches():
        told, truth = probe.outcomes(batch.activations).argmax(-1), probe.targets(batch.classes)
        for scene, present in enumerate(batch.present):
            pairs = truth[scene, present] * n_classes + told[scene, present]
            confusion.append(torch.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes).numpy())
    counts = np.stack(confusion).astype(np.float64)
    everything = counts.sum(0, keepdims=True)
    rows = np.concatenate([everything, everything - counts])
    hits, truths, said = np.einsum("rkk->rk", rows), rows.sum(2), rows.sum(1)
    there, union = truths[0] > 0, truths + said - hits
    overlap = np.divide(hits, union, out=np.zeros_like(hits), where=union > 0)[:, there]
    with np.errstate(invalid="ignore"):  # of no scene, where there is but one
        iou = overlap.sum(1) / (union[:, there] > 0).sum(1)
        shares = {"class_accuracy": hits.sum(1) / truths.sum(1), "class_iou": iou}
    return {name: (float(values[0]), *interval(values)) for name, values in shares.items()}


@torch.inference_mode()
def object_figures(probe: Any, patches: SplitPatches, task: str = "pointwise_identity") -> dict[str, Figure]:
    """Overlap of objects with their matched queries: averaged over a scene's objects, then over scenes."""
    found = []
    for batch in Judged(probe, patches, task).batches():
        for scene in range(len(batch.scenes)):
            found.append(own_figures(TASKS[task], [(probe, batch.of_scene(scene))])["matched_iou"])
    values = np.array(found)[np.isfinite(found)]
    return {"matched_iou": (float(values.mean()), *mean_interval(values))}
