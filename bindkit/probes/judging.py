"""A probe judged on the pairs of a split: of its own cache, or of other scenes than it was fitted for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bindkit.arguments import is_control, read_device
from bindkit.cache import ActivationCache, require_cache
from bindkit.probes.base import Probe, require_probe
from bindkit.probes.batches import PatchBatch, SplitPatches, flat_pairs
from bindkit.probes.folds import Roles, judged_scenes, roles_for
from bindkit.probes.metrics import JudgedPairs, judge
from bindkit.probes.protocols import Protocol, protocol_of_fit
from bindkit.probes.protocols import protocol as protocol_of
from bindkit.probes.tasks import TASKS, own_figures

JUDGED_FIRST = ("test", "validation", "train")
"""Of these splits the first that has usable scenes is the one whose figures are reported."""

_SAID_OF_A_FIT = ("backbone", "probe", "task")


@dataclass(frozen=True)
class Judged:
    """A probe and the patches that it is judged on, both on one device; the labels are those of its task.

    ::

        with judging(probe, cache) as judged:
            pairs = judged.pairs()

    Attributes
    ----------
    probe : Probe
    patches : SplitPatches
        At least one scene.
    task : str
        Permuted labels for the control task, else the true ones.
    """

    probe: Probe
    patches: SplitPatches
    task: str = "pairwise"

    @property
    def described(self) -> dict[str, str | int]:
        """What is judged on what: backbone, layer (none of a control), probe, task, protocol, split, n_scenes."""
        fitted = self.probe.fitted_on
        known: dict[str, str | int] = {name: fitted[name] for name in _SAID_OF_A_FIT if name in fitted}
        if not is_control(fitted.get("objective")):
            known["layer"] = self.patches.layer
        return known | {
            "protocol": self.patches.protocol.name,
            "split": self.patches.split,
            "n_scenes": len(self.patches),
        }

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

    def figures(self) -> dict[str, float]:
        """Those of `judge_pairs`, and the task's own."""
        return judge_together([self])


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
    """Figures of a probe on the judged pairs of a split, ``n_scenes``, ``n_pairs`` and the task's own among them.

    Probe and patches are on the same device.
    """
    with torch.inference_mode():
        return Judged(probe, patches, task).figures()


def same_class_pairs(
    cache: ActivationCache, protocol: str | Protocol = "strict", split: str | None = None
) -> tuple[str, JudgedPairs]:
    """The judged split, and what an oracle says of its pairs that calls those of one class *same*.

    Arguments and errors as `judge_same_class`.
    """
    rules, cpu = protocol_of(protocol), torch.device("cpu")
    named = judged_scenes(cache, split) if split is not None else None
    patches = _judged_patches(cache, split, cache.layers[0], rules, cpu, {} if named is None else {str(split): named})
    same_class = ((batch, batch.classes[:, :, None] == batch.classes[:, None, :]) for batch in patches.judged())
    return patches.split, flat_pairs((batch, said.float() - 0.5, said) for batch, said in same_class)


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
        return judged.figures()


def _judged_patches(
    cache: ActivationCache, split: str | None, layer: int, rules: Protocol, device: torch.device, roles: Roles
) -> SplitPatches:
    """Patches of a split; where none is said, of the first that has usable scenes. Raises EmptySplitError."""
    for name in JUDGED_FIRST if split is None else (split,):
        patches = SplitPatches(cache, roles.get(name, name), layer, rules, device)
        if len(patches):
            break
    return patches.require()
