"""Objects that look alike: what tells them apart is binding, for likeness cannot.

Two measures: how well a probe ranks pairs on one object above twins, beside what cosine similarity does with the same
pairs; and the differences between matching patches of two copies, in which what the copies share has cancelled.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from bindkit.analysis.subspace import Moments, chosen_subspace, described, form_of, spectrum_of
from bindkit.arguments import whole_number
from bindkit.cache import ActivationCache, require_cache
from bindkit.cache.store import activations_of, labels_of
from bindkit.errors import EmptySplitError
from bindkit.probes import Probe, make_probe, require_probe
from bindkit.probes.batches import JUDGED_FIRST, roles_for
from bindkit.probes.judging import judging
from bindkit.probes.metrics import interval, judge, left_out, mean_interval
from bindkit.probes.protocols import protocol_of_fit

TWIN_SCENES = "synthetic:n=120,seed=21,twins=1"
"""Scenes in which every further object is a copy of one already there."""

_FEWEST = 3
"""Matching patches that two copies need to be compared."""


def twins_benchmark(cache: ActivationCache, probe: Probe) -> pd.DataFrame:
    """Say how far a probe's binding goes beyond likeness: one number that separates the two.

    ::

        scenes = bk.open_scenes("synthetic:n=120,seed=21,twins=1")          # or any with two instances of a class
        cache = bk.cache_activations(backbone, scenes)
        pd.concat([bk.twins_benchmark(cache, bk.fit_probe(cache, layer).probe) for layer in cache.layers])

    Parameters
    ----------
    cache : ActivationCache
        Of a backbone, an untrained twin or a control.
    probe : Probe
        Fitted on it.

    Returns
    -------
    pandas.DataFrame
        One row. ``binding``: AUROC of pairs on one object against twins at equal distance, by the probe;
        ``similarity``: the same by cosine similarity, which needs no training; and their difference on the very same
        pairs, ``beyond_similarity``; each with ``_low`` and ``_high`` (95 % over scenes). The same without regard to
        distance: ``binding_plain``, ``similarity_plain``, ``beyond_similarity_plain``. ``n_scenes``, and ``n_twins``,
        judged pairs on two copies. NaN where there are none.

    Raises
    ------
    ProbeError, ProbeMismatchError, LayerError
        For something that is no probe, or one of another cache.
    """
    require_cache(cache)
    likeness = make_probe("cosine_similarity", require_probe(probe).d_model)
    likeness.fitted_on = probe.fitted_on
    with judging(probe, cache, device="cpu") as ours, judging(likeness, cache, device="cpu") as theirs:
        judged = [ours.pairs(), theirs.pairs()]
    exact, resampled = [judge(pairs) for pairs in judged], [left_out(pairs) for pairs in judged]
    row = {name: probe.fitted_on.get(name) for name in ("backbone", "objective", "layer", "probe")}
    for name, end in (("twins_auroc", "_plain"), ("matched_twins_auroc", "")):
        values = [figures.get(name, np.full(1, math.nan)) for figures in resampled]
        of = {"binding": (exact[0][name], values[0]), "similarity": (exact[1][name], values[1])}
        of["beyond_similarity"] = exact[0][name] - exact[1][name], values[0] - values[1]
        for what, (value, rows) in of.items():
            low, high = interval(rows, within_unit=what != "beyond_similarity")
            row |= {f"{what}{end}": value, f"{what}{end}_low": low, f"{what}{end}_high": high}
    twins = judged[0].twins_question & ~judged[0].same.astype(bool)
    return pd.DataFrame([row | {"n_scenes": len(np.unique(judged[0].scene)), "n_twins": int(twins.sum())}])


@dataclass(frozen=True)
class Copies:
    """Two copies of one look in a scene: activations of patches at matching places, and of others as far apart."""

    scene: int
    instances: tuple[int, int]
    first: Float[Tensor, "part d_model"]
    second: Float[Tensor, "part d_model"]
    places: Int[np.ndarray, "part 2"]
    """(top, left) of the first's patches in pixels of the resized scene."""
    elsewhere: Float[Tensor, "pair d_model"]
    """Differences of patches as far apart, neither of which is of that class: of the ground and other objects."""


def copies_of(cache: ActivationCache, probe: Probe) -> Iterator[Copies]:
    """All pairs of instances of one class in the judged scenes, matched by the whole-patch move that fits most."""
    layer, roles = probe.layer_for(cache.backbone), roles_for(probe.fitted_on, cache)
    probe.check_fits(cache.d_model, layer)
    scenes = next(roles[split] for split in JUDGED_FIRST if labels_of(cache, roles[split]).n_scenes)
    labels, activations = labels_of(cache, scenes), activations_of(cache, scenes, layer)
    is_pure = labels.purity > protocol_of_fit(probe.fitted_on).min_purity
    for scene, (start, end) in enumerate(pairwise(labels.scene_offsets.tolist())):
        # Of patches that several windows show, one.
        rows = start + np.unique(labels.corners[start:end], axis=0, return_index=True)[1]
        x = activations.take(rows).double()
        corners = labels.corners[rows].astype(np.int64)
        instances = np.where(is_pure, labels.instances, -1)[rows]
        classes = labels.classes[rows]
        at = {tuple(corner): row for row, corner in enumerate(corners.tolist()) if instances[row] >= 0}
        known = sorted({(int(c), int(i)) for c, i in zip(classes, instances, strict=True) if c > 0 and i > 0})
        for one, other in ((i, k) for (of, i), (as_well, k) in combinations(known, 2) if of == as_well):
            move = _displacement(corners[instances == one], corners[instances == other], labels.patch_size)
            if move is None:
                continue
            moved = [(row, at.get((top + move[0], left + move[1]))) for (top, left), row in at.items()]
            pairs = np.array([(row, to) for row, to in moved if to is not None])
            of = instances[pairs]
            matched = pairs[(of == (one, other)).all(axis=1)]
            apart = pairs[(classes[pairs] != classes[instances == one][0]).all(axis=1)]
            first, second = x[matched[:, 0]], x[matched[:, 1]]
            elsewhere = x[apart[:, 0]] - x[apart[:, 1]]
            yield Copies(scene, (one, other), first, second, corners[matched[:, 0]], elsewhere)


def _displacement(corners: np.ndarray, others: np.ndarray, side: int) -> tuple[int, int] | None:
    """The move (down, across) by whole patches that takes most of an object's patches to another's; None if too few."""
    all_moves = (others[None, :] - corners[:, None]).reshape(-1, 2)
    moves = Counter(map(tuple, all_moves[(all_moves % side == 0).all(axis=1)].tolist()))
    if not moves or max(moves.values()) < _FEWEST:
        return None
    # Of equally good ones the shortest, then the first: the same in every run.
    return min(moves, key=lambda move: (-moves[move], move[0] ** 2 + move[1] ** 2, move))


def twin_differences(
    cache: ActivationCache, probe: Probe, ranks: Sequence[int] = (1, 2, 4, 8, 16), n_random: int = 3, seed: int = 0
) -> pd.DataFrame:
    """Ask where two copies of one look differ: in the binding subspace, or anywhere.

    If an activation is what a patch looks like plus what object it belongs to, the differences of matching patches of
    two copies hold the second alone: they lie in the binding subspace, and are the same at all parts of the object.

    Parameters
    ----------
    cache : ActivationCache
        With two instances of a class in its judged scenes.
    probe : Probe
        A quadratic form of this cache.
    ranks : sequence of int
        Directions.
    n_random, seed
        Random subspaces, averaged.

    Returns
    -------
    pandas.DataFrame
        One row for each ``axes`` ("binding", "principal", "random") and ``rank``. ``share``: of the squared length of
        differences, in units where all directions of the activations weigh alike (chance: ``rank / d_model``);
        ``consistency``: mean cosine of the differences at two parts of one pair of copies, within the subspace. Both
        over pairs of copies, with ``_low`` and ``_high``, and beside them ``share_elsewhere`` and
        ``consistency_elsewhere``: of patches of the ground and of other objects that lie as far apart in the same
        direction, so that what position alone does is in both. ``n_copies``, ``n_scenes``.

    Raises
    ------
    EmptySplitError
        If no judged scene has two instances of one class with three matching patches.
    ProbeError, ProbeMismatchError
        As `bindkit.binding_subspace`.
    """
    form, moments = form_of(probe), Moments.of(cache, probe)
    copies = list(copies_of(cache, probe))
    if not copies:
        raise EmptySplitError(
            f"no judged scene of {cache.path} has two objects of one class with {_FEWEST} matching patches; take "
            f'scenes with copies, such as "{TWIN_SCENES}", or more patches a scene'
        )
    d_model, flat = len(form), moments.root(-0.5)
    variances, components = torch.linalg.eigh(moments.covariance)
    seeded = [torch.Generator().manual_seed(seed + k) for k in range(n_random)]
    draws = [torch.randn(d_model, d_model, dtype=torch.float64, generator=generator) for generator in seeded]
    bases = {
        "binding": [spectrum_of(form, moments)[1]],
        "principal": [components[:, variances.argsort(descending=True)]],
        "random": [torch.linalg.qr(drawn)[0] for drawn in draws],
    }
    rows = []
    for axes, found in bases.items():
        for rank in (k for k in (whole_number(k, "ranks", 1) for k in ranks) if k <= d_model and found):
            told = [_of_copies(copies, flat, basis[:, :rank]) for basis in found]
            row: dict[str, Any] = {"axes": axes, "rank": rank, "chance": rank / d_model}
            for name in told[0]:
                values = pd.DataFrame([one[name] for one in told]).mean()
                by_scene = values.groupby([one.scene for one in copies]).mean().dropna().to_numpy()
                row[name] = float(by_scene.mean()) if len(by_scene) else math.nan
                row[f"{name}_low"], row[f"{name}_high"] = mean_interval(by_scene)
            rows.append(row | {"n_copies": len(copies), "n_scenes": len({one.scene for one in copies})})
    return pd.DataFrame([described(probe) | row for row in rows])


def _of_copies(copies: Sequence[Copies], flat: Tensor, basis: Tensor) -> dict[str, list[float]]:
    """Share and consistency of the differences of every pair of copies, and of what lies as far apart."""
    found: dict[str, list[float]] = defaultdict(list)
    for one in copies:
        for end, differences in (("", one.first - one.second), ("_elsewhere", one.elsewhere)):
            level = differences @ flat
            scores, n = level @ basis, len(differences)
            squares = float(level.square().sum())
            found[f"share{end}"].append(float(scores.square().sum()) / squares if squares > 0 else math.nan)
            unit = normalize(scores, dim=1)
            alike = float(unit.sum(0).square().sum() - n) / (n * (n - 1)) if n > 1 else math.nan
            found[f"consistency{end}"].append(alike)
    return found


def twin_scores(cache: ActivationCache, probe: Probe, n_copies: int = 4) -> pd.DataFrame:
    """The picture in which identical objects come apart: patches of copies on two leading axes.

    One row for each ``axes`` ("binding", "principal"), pair of copies (``copies``, those of most matching patches
    first), ``instance`` (0 or 1) and ``part`` (matching patches have one number): ``first`` and ``second`` score, in
    units of the activations' spread; ``top`` and ``left`` of the first copy's patch. Errors as `twin_differences`.
    """
    form, moments = form_of(probe), Moments.of(cache, probe)
    copies = sorted(copies_of(cache, probe), key=lambda one: -len(one.first))[: whole_number(n_copies, "n_copies", 1)]
    if not copies:
        raise EmptySplitError(f"no judged scene of {cache.path} has two objects of one class; take scenes with copies")
    rows = []
    for axes in ("binding", "principal"):
        found = chosen_subspace(form, moments, 2, axes)
        scale = (found.readers.T @ moments.covariance @ found.readers).diagonal().sqrt()
        for number, one in enumerate(copies):
            for instance, x in enumerate((one.first, one.second)):
                scores = (found.scores(x) / scale).numpy()
                at = {"axes": axes, "copies": number, "scene": one.scene, "instance": instance}
                for part, (score, place) in enumerate(zip(scores, one.places, strict=True)):
                    said = {"part": part, "first": score[0], "second": score[1]}
                    rows.append(at | said | {"top": int(place[0]), "left": int(place[1])})
    return pd.DataFrame(rows)
