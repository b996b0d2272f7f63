"""The binding subspace: the few directions of an activation that a fitted quadratic probe reads.

A quadratic probe is a symmetric form, ``logit = x' S y + b``. Its eigenvalues say how many directions it reads, and by
their signs whether alike (+) or unlike (-) scores speak for one object. Large eigenvalues of S itself may belong to
directions along which activations hardly vary. *Weights* therefore are those of ``C S C`` with C the root of the
activations' covariance: by so much a direction moves the logits of two random patches, and the first k of them are the
best form of rank k for such pairs. Both are given; what follows uses the weighted ones. Everywhere an activation is
taken as a deviation from the mean: what is left out of it is put at its mean, not at zero, which no patch has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from bindkit.arguments import read_seed, whole_number
from bindkit.cache import ActivationCache, require_cache
from bindkit.cache.views import MappedCache
from bindkit.errors import InvalidParameterError, ProbeError
from bindkit.probes import Probe, require_probe
from bindkit.probes.batches import SplitPatches, roles_for
from bindkit.probes.fitting import fit_probes
from bindkit.probes.judging import judge_probe, judging
from bindkit.probes.layers import LayerPatches
from bindkit.probes.protocols import protocol_of_fit

AXES = ("binding", "eigenvalues", "principal", "random")
"""By what k directions are chosen: weights, plain eigenvalues, the activations' variance, or chance."""

SHOWN = ("accuracy", "auroc", "matched_auroc", "twins_auroc", "matched_twins_auroc")
_RANKS = (1, 2, 4, 8, 16, 32, 64)
_FLOOR = 1e-7
"""Directions of a smaller share of the mean variance count as empty."""
_BISECTIONS, _STEEPEST = 60, 40.0


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of the patches that a probe is trained on, float64."""

    mean: Float[Tensor, " d_model"]
    covariance: Float[Tensor, "d_model d_model"]

    @classmethod
    def of(cls, cache: ActivationCache, probe: Probe) -> Moments:
        """Over the judged draw of the training scenes."""
        layer, rules = probe.layer_for(require_cache(cache).backbone), protocol_of_fit(probe.fitted_on)
        total, mean, n = torch.zeros(()), torch.zeros(()), 0
        train = roles_for(probe.fitted_on, cache)["train"]
        for batch in SplitPatches(cache, train, layer, rules, torch.device("cpu")).require().judged():
            rows = batch.activations[batch.present].double()
            total, mean, n = total + rows.T @ rows, mean + rows.sum(0), n + len(rows)
        mean = mean / n
        return cls(mean, total / n - mean[:, None] * mean[None, :])

    def root(self, power: float = 0.5) -> Float[Tensor, "d_model d_model"]:
        """A power of the covariance; what is empty stays so."""
        values, vectors = torch.linalg.eigh(self.covariance)
        kept = values > _FLOOR * values.mean()
        return (vectors[:, kept] * values[kept] ** power) @ vectors[:, kept].T


@dataclass(frozen=True)
class Subspace:
    """k directions of an activation, and the split ``x = part + rest`` that they make.

    Scores are ``readers' (x - mean)`` and the part is ``writers scores``: readers and writers are the same orthonormal
    directions, or for weighted axes those in which the activations' directions weigh alike (an oblique projection).
    """

    readers: Float[Tensor, "d_model k"]
    writers: Float[Tensor, "d_model k"]
    mean: Float[Tensor, " d_model"]

    @property
    def rank(self) -> int:
        """How many directions."""
        return self.readers.shape[1]

    def scores(self, x: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row k"]:
        """Where activations lie along the directions."""
        return (x - self.mean.to(x)) @ self.readers.to(x)

    def part(self, x: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """What of an activation lies in the subspace, as a deviation from the mean."""
        return self.scores(x) @ self.writers.to(x).T

    def rest(self, x: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """An activation without that part."""
        return x - self.part(x)

    def alone(self, x: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """That part alone, everything else at its mean."""
        return self.mean.to(x) + self.part(x)

    def energy(self, moments: Moments) -> float:
        """Mean square of the part."""
        read = self.readers.T @ moments.covariance @ self.readers
        return float((self.writers.T @ self.writers @ read).trace())


def form_of(probe: Probe) -> Float[Tensor, "d_model d_model"]:
    """The symmetric form that a probe is, in the activations' own units, float64. Raises ProbeError if it is none."""
    symmetric = getattr(require_probe(probe), "symmetric", None)
    if symmetric is None:
        raise ProbeError(
            f"the {probe.kind} probe is no quadratic form, so it has no subspace; take quadratic, quadratic_fixed_rank "
            "or diag_quadratic"
        )
    with torch.no_grad():
        return probe.scale**2 / probe.temperature * symmetric().double().cpu()


def spectrum_of(form: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
    """Weights, the largest in size first, and their directions ``[d_model, axis]`` in units where all weigh alike."""
    root = moments.root()
    values, vectors = torch.linalg.eigh(root @ form @ root)
    order = values.abs().argsort(descending=True, stable=True)
    return values[order], vectors[:, order]


def binding_subspace(cache: ActivationCache, probe: Probe, rank: int, axes: str = "binding", seed: int = 0) -> Subspace:
    """The k leading directions of a fitted probe at its layer, or as many others to set beside them.

    ::

        found = bk.binding_subspace(cache, fit.probe, rank=8)
        found.part(activations), found.rest(activations)        # activations = part + rest

    Parameters
    ----------
    cache : ActivationCache
        That the probe was fitted on; gives mean and second moment of its training patches.
    probe : Probe
        ``quadratic``, ``quadratic_fixed_rank`` or ``diag_quadratic``.
    rank : int
        Directions, at most ``d_model``.
    axes : str
        ``"binding"``: by weight, a projection that takes exactly these terms out of the form. ``"eigenvalues"``: of S
        itself, by size, orthonormal. ``"principal"``: the activations' principal components. ``"random"``: a random
        subspace of the same rank in whose part the activations have the same energy as in the binding part.
    seed : int
        Of random directions.

    Raises
    ------
    InvalidParameterError, ProbeError, ProbeMismatchError
        For unknown axes or a rank beyond the width, a probe that is no quadratic form, or of another cache.
    """
    form, moments = form_of(probe), Moments.of(cache, probe)
    return chosen_subspace(form, moments, _rank(rank, len(form)), axes, read_seed(seed))


def chosen_subspace(form: Tensor, moments: Moments, rank: int, axes: str, seed: int = 0) -> Subspace:
    """As `binding_subspace`, of a form and moments."""
    if axes in ("binding", "random"):
        vectors = spectrum_of(form, moments)[1][:, :rank]
        binding = Subspace(moments.root(-0.5) @ vectors, moments.root() @ vectors, moments.mean)
        return binding if axes == "binding" else random_like(binding, moments, seed)
    if axes not in AXES:
        raise InvalidParameterError(f"unknown axes {axes!r}; choose one of {', '.join(AXES)}")
    values, vectors = torch.linalg.eigh(form if axes == "eigenvalues" else moments.covariance)
    chosen = vectors[:, values.abs().argsort(descending=True, stable=True)[:rank]]
    return Subspace(chosen, chosen, moments.mean)


def random_like(of: Subspace, moments: Moments, seed: int) -> Subspace:
    """A random orthonormal subspace of the same rank and energy: tilted to directions of more or of less variance."""
    values, vectors = torch.linalg.eigh(moments.covariance)
    values = values.clamp(min=_FLOOR * float(values.mean()))
    drawn = torch.randn(len(values), of.rank, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    wanted, low, high = of.energy(moments), -_STEEPEST, _STEEPEST
    logs = values.log() - values.log().mean()
    for _ in range(_BISECTIONS):
        tilt = (low + high) / 2
        # Row by row in logarithms, so that steep tilts stay finite.
        basis = torch.linalg.qr(drawn * (tilt * logs - (tilt * logs).max()).exp()[:, None])[0]
        energy = float((basis.square() * values[:, None]).sum())
        low, high = (tilt, high) if energy < wanted else (low, tilt)
    chosen = vectors @ basis
    return Subspace(chosen, chosen, moments.mean)


def binding_spectrum(cache: ActivationCache, probe: Probe) -> pd.DataFrame:
    """How many directions a fitted probe reads, and with which sign.

    One row an axis, the largest weight first: ``axis`` (from 1), ``weight`` (logits, between patches of unit score),
    ``sign`` (+1: alike speaks for one object), ``share`` and ``cumulative`` of the sum of squared weights, i.e. of the
    variance of logits between random patches, and ``eigenvalue``, of S itself by size. In every row stand
    ``effective_rank``, ``(sum w^2)^2 / sum w^4``, the same of eigenvalues (``effective_rank_plain``), backbone, layer
    and probe. Errors as `binding_subspace`.
    """
    form, moments = form_of(probe), Moments.of(cache, probe)
    weights = spectrum_of(form, moments)[0].numpy()
    plain = torch.linalg.eigvalsh(form).numpy()
    plain = plain[np.argsort(-np.abs(plain), kind="stable")]
    shares = weights**2 / (weights**2).sum()
    return pd.DataFrame(
        {
            **described(probe),
            "axis": np.arange(1, len(weights) + 1),
            "weight": weights,
            "sign": np.sign(weights).astype(int),
            "share": shares,
            "cumulative": shares.cumsum(),
            "eigenvalue": plain,
            "effective_rank": effective_rank(weights),
            "effective_rank_plain": effective_rank(plain),
        }
    )


def effective_rank(values: np.ndarray) -> float:
    """``(sum v^2)^2 / sum v^4``: k for k values of one size."""
    squares = np.square(values)
    return float(squares.sum() ** 2 / np.square(squares).sum())


def rank_curve(
    cache: ActivationCache,
    probe: Probe,
    ranks: Sequence[int] = _RANKS,
    n_random: int = 3,
    refit: bool = True,
    seed: int = 0,
) -> pd.DataFrame:
    """How well the probe still binds when it sees but k directions, and when a probe of rank k is fitted anew.

    Parameters
    ----------
    cache, probe
        As `binding_subspace`.
    ranks : sequence of int
        Numbers of directions; those beyond the width are left out.
    n_random : int
        Random subspaces a rank, of the binding part's energy; their figures are averaged.
    refit : bool
        Also fit ``quadratic_fixed_rank@k`` for every k.
    seed : int
        Of random directions and refitted probes.

    Returns
    -------
    pandas.DataFrame
        One row an axes and rank: ``axes`` (of `AXES`; ``"refitted"``; ``"all"``: the probe itself, at the width),
        ``rank``, accuracy, AUROC, matched and twins figures, each but of random ones with ``_low`` and ``_high``.

    Raises
    ------
    InvalidParameterError, ProbeError, ProbeMismatchError
        As `binding_subspace`; no rank; and as `fit_probe`.
    """
    form, moments = form_of(probe), Moments.of(cache, probe)
    chosen = sorted({k for k in (whole_number(k, "ranks", 1) for k in ranks) if k <= len(form)})
    if not chosen:
        raise InvalidParameterError(f"ranks has no number from 1 to {len(form)}, the width of the activations")
    rows = [_figures("all", len(form), [judge_probe(probe, cache)])]
    for axes in AXES:
        for k in chosen:
            seeds = range(seed, seed + whole_number(n_random, "n_random", 0)) if axes == "random" else [seed]
            found = [chosen_subspace(form, moments, k, axes, number) for number in seeds]
            if found:
                rows.append(_figures(axes, k, [judge_probe(probe, seen_through(cache, one.alone)) for one in found]))
    if refit:
        patches = LayerPatches(cache, probe.layer_for(cache.backbone), protocol_of_fit(probe.fitted_on), "cpu")
        fits = fit_probes(patches, [(f"quadratic_fixed_rank@{k}", "pairwise") for k in chosen], seed)
        rows += [_figures("refitted", k, [fit.metrics]) for k, fit in zip(chosen, fits, strict=True)]
    return pd.DataFrame([described(probe) | row for row in rows])


def seen_through(cache: ActivationCache, to: Callable[[Tensor], Tensor]) -> ActivationCache:
    """The same cache with every activation changed; it stays one of the same backbone."""
    return MappedCache(cache, None, cache.d_model, lambda _: to)


def compare_subspaces(
    fitted: Mapping[str, tuple[ActivationCache, Probe]], rank: int, n_random: int = 3, seed: int = 0
) -> pd.DataFrame:
    """How far the binding subspaces of several fits are one: of layers, seeds and models.

    ::

        bk.compare_subspaces({"layer 3": (cache, probe_3), "layer 4": (cache, probe_4)}, rank=8)

    Parameters
    ----------
    fitted : mapping
        Name -> (cache, probe). The caches are of the same scenes and the same windows and patches.
    rank : int
        Directions of each.
    n_random, seed
        Random subspaces that chance is measured with.

    Returns
    -------
    pandas.DataFrame
        One row a pair ``first``, ``second``. ``overlap``: mean squared cosine of the principal angles between the two
        sets of directions read (1: the same subspace), empty for models of different weights, whose coordinates mean
        different things; ``overlap_chance`` is k / d_model. ``agreement``: mean squared canonical correlation of what
        the two say of the same judged patches (1: the same up to a linear map), which can be had of any two; and
        ``agreement_chance``, of the first with random subspaces of the second model.

    Raises
    ------
    InvalidParameterError
        For fewer than two, or caches that share no judged patch; and as `binding_subspace`.
    """
    pairs = fitted.values() if isinstance(fitted, Mapping) else ()
    if len(pairs) < 2 or not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise InvalidParameterError("give at least two fits to compare, as {name: (cache, probe), ...}")
    seen: dict[str, tuple[Subspace, list[Subspace], dict[Any, Tensor], str]] = {}
    for name, (cache, probe) in fitted.items():
        form, moments = form_of(probe), Moments.of(cache, probe)
        k = _rank(rank, len(form))
        own = chosen_subspace(form, moments, k, "binding")
        others = [random_like(own, moments, seed + number) for number in range(whole_number(n_random, "n_random", 0))]
        seen[name] = own, others, _patches(cache, probe), cache.backbone["weights_digest"]
    rows = []
    for one, other in combinations(seen, 2):
        (first, _, rows_1, weights_1), (second, randoms, rows_2, weights_2) = seen[one], seen[other]
        shared = [key for key in rows_1 if key in rows_2]
        if len(shared) <= 2 * rank:
            raise InvalidParameterError(
                f"{one} and {other} share {len(shared)} judged patches, too few to compare {rank} directions on; cache "
                "both on the same scenes, with windows and patches of one size"
            )
        x, y = (torch.stack([rows[key] for key in shared]).double() for rows in (rows_1, rows_2))
        scores, same_model = first.scores(x), weights_1 == weights_2
        by_chance = [_alike(scores, random.scores(y)) for random in randoms]
        rows.append(
            {
                "first": one,
                "second": other,
                "rank": rank,
                "overlap": _alike(first.readers, second.readers, centred=False) if same_model else math.nan,
                "overlap_chance": rank / len(first.mean) if same_model else math.nan,
                "agreement": _alike(scores, second.scores(y)),
                "agreement_chance": float(np.mean(by_chance)) if by_chance else math.nan,
                "n_patches": len(shared),
            }
        )
    return pd.DataFrame(rows)


def _alike(first: Tensor, second: Tensor, centred: bool = True) -> float:
    """Mean squared cosine of the principal angles between two column spaces of one rank."""
    bases = [torch.linalg.qr(part - part.mean(0) if centred else part)[0] for part in (first, second)]
    return float((bases[0].T @ bases[1]).square().sum() / first.shape[1])


def _patches(cache: ActivationCache, probe: Probe) -> dict[Any, Tensor]:
    """Activations of the judged patches, by scene and place."""
    found: dict[Any, Tensor] = {}
    with judging(probe, cache, device="cpu") as judged:
        for batch in judged.batches():
            ids = [judged.patches.scene_ids[scene] for scene in batch.scenes.tolist()]
            for scene, slot in batch.present.nonzero().tolist():
                place = (*batch.corners[scene, slot].tolist(), int(batch.window[scene, slot]))
                found[ids[scene], place] = batch.activations[scene, slot]
    return found


def _rank(rank: Any, d_model: int) -> int:
    if whole_number(rank, "rank", 1) > d_model:
        raise InvalidParameterError(f"rank is at most {d_model}, the width of the activations, got {rank}")
    return int(rank)


def described(probe: Probe) -> dict[str, Any]:
    """What a fitted probe is of: backbone, layer, probe."""
    return {name: probe.fitted_on.get(name) for name in ("backbone", "layer", "probe")}


def _figures(axes: str, rank: int, judged: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Means over draws; bounds where there is one."""
    row: dict[str, Any] = {"axes": axes, "rank": rank}
    for name in SHOWN:
        row[name] = float(np.mean([figures[name] for figures in judged]))
        for end in ("low", "high"):
            row[f"{name}_{end}"] = judged[0][f"{name}_{end}"] if len(judged) == 1 else math.nan
    return row | {"n_scenes": judged[0]["n_scenes"], "n_pairs": judged[0]["n_pairs"]}
