"""How often 95 % intervals over scenes hold the truth: methods beside each other, by number of scenes.

    python tests/benchmarks/bench_intervals.py                    # 400 data sets a cell, some minutes
    python tests/benchmarks/bench_intervals.py --sets 40 --scenes 8

Scenes differ in how hard they are, in their bias, in their share of pairs on one object and in how many pairs they
have (log-normal); about half of them have twins. A figure is a function of how often each scene is taken, so that
resamples, leaving out and derivatives are all calls of it. The truth is the figure of 4,000 scenes.

Methods: percentiles of the bootstrap; BCa (Efron 1987); bootstrap-t with a standard error by infinitesimal jackknife
in each resample, plain and on the logit scale; Student's t with the
jackknife's standard error and as many degrees of freedom as scenes less one, plain and logit; and what the package
gives ("bindkit"): the same with fewer degrees of freedom where few scenes make the error, and no interval where fewer
than 8 scenes move the figure ("without": how often there is none).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm, rankdata, t

from bindkit.probes.metrics import interval

N_RESAMPLES = 399
_STEP = 1e-4

Taken = np.ndarray
"""How often each scene is taken, [..., scene]."""

Figure = Callable[[Taken], np.ndarray]


@dataclass
class Pairs:
    """Simulated pairs: two probes' scores of the same pairs, one of them better."""

    scene: np.ndarray
    same: np.ndarray
    asked: np.ndarray
    stratum: np.ndarray
    scores: np.ndarray
    rival: np.ndarray


def simulated(rng: np.random.Generator, n_scenes: int, separation: float) -> Pairs:
    sizes = np.maximum(rng.lognormal(np.log(60), 0.5, n_scenes).astype(int), 8)
    scene = np.repeat(np.arange(n_scenes), sizes)
    same = rng.random(len(scene)) < rng.beta(3, 6, n_scenes)[scene]
    has_twins = rng.random(n_scenes) < 0.5
    asked = has_twins[scene] & (rng.random(len(scene)) < 0.5)
    stratum = rng.integers(0, 3, len(scene))
    ease = rng.normal(separation, 0.4 * separation + 0.2, n_scenes)[scene] - 0.3 * (stratum - 1)
    bias, luck = rng.normal(0, 0.3, n_scenes)[scene], rng.normal(size=len(scene))
    side = same - 0.5
    rival = 0.7 * ease * side + bias + 0.7 * luck + 0.7 * rng.normal(size=len(scene))
    return Pairs(scene, same, asked, stratum, ease * side + bias + luck, rival)


def accuracy(pairs: Pairs) -> Figure:
    right, counts = (
        np.bincount(pairs.scene, weights=part, minlength=pairs.scene[-1] + 1)
        for part in ((pairs.scores > 0) == pairs.same, np.ones(len(pairs.scene)))
    )
    return lambda taken: (taken @ right) / (taken @ counts)


def wins(scores: np.ndarray, pairs: Pairs, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Won comparisons of each scene's same pairs with each scene's different ones, and how many of either."""
    n_scenes = pairs.scene[-1] + 1
    up, down = chosen & pairs.same, chosen & ~pairs.same
    order = np.argsort(scores[down])
    indicator = np.zeros((down.sum() + 1, n_scenes))
    indicator[np.arange(1, down.sum() + 1), pairs.scene[down][order]] = 1
    below = np.cumsum(indicator, axis=0)[np.searchsorted(scores[down][order], scores[up])]
    won = np.zeros((n_scenes, n_scenes))
    np.add.at(won, pairs.scene[up], below)
    return won, *(np.bincount(pairs.scene[kind], minlength=n_scenes).astype(float) for kind in (up, down))


def auroc(pairs: Pairs, scores: np.ndarray, chosen: np.ndarray) -> Figure:
    won, up, down = wins(scores, pairs, chosen)
    return lambda taken: ((taken @ won) * taken).sum(-1) / ((taken @ up) * (taken @ down))


def matched(pairs: Pairs) -> Figure:
    strata = [pairs.stratum == k for k in range(3)]
    parts = [(auroc(pairs, pairs.scores, here), *wins(pairs.scores, pairs, here)[1:]) for here in strata]

    def figure(taken: Taken) -> np.ndarray:
        weights = [(taken @ up) * (taken @ down) / (taken @ (up + down)) for _, up, down in parts]
        return sum(w * part[0](taken) for w, part in zip(weights, parts, strict=True)) / sum(weights)

    return figure


def figures(pairs: Pairs) -> dict[str, tuple[Figure, bool]]:
    """By name, the figure and whether it lies within 0..1."""
    everything = np.ones_like(pairs.same)
    mine, theirs = (auroc(pairs, scores, everything) for scores in (pairs.scores, pairs.rival))
    return {
        "accuracy": (accuracy(pairs), True),
        "auroc": (mine, True),
        "matched": (matched(pairs), True),
        "twins": (auroc(pairs, pairs.scores, pairs.asked), True),
        "gain": (lambda taken: mine(taken) - theirs(taken), False),
    }


def true_figures(separation: float) -> dict[str, float]:
    pairs = simulated(np.random.default_rng(99), 4000, separation)

    def ranked(scores: np.ndarray, chosen: np.ndarray) -> float:
        ranks, up = rankdata(scores[chosen]), pairs.same[chosen]
        n_up, n_down = up.sum(), (~up).sum()
        return float((ranks[up].sum() - n_up * (n_up + 1) / 2) / (n_up * n_down))

    everything, strata = np.ones_like(pairs.same), [pairs.stratum == k for k in range(3)]
    weights = [1 / (1 / (here & pairs.same).sum() + 1 / (here & ~pairs.same).sum()) for here in strata]
    mine = ranked(pairs.scores, everything)
    return {
        "accuracy": float(((pairs.scores > 0) == pairs.same).mean()),
        "auroc": mine,
        "matched": float(np.average([ranked(pairs.scores, here) for here in strata], weights=weights)),
        "twins": ranked(pairs.scores, pairs.asked),
        "gain": mine - ranked(pairs.rival, everything),
    }


def slopes(figure: Figure, taken: Taken) -> np.ndarray:
    """Derivative by the weight of each scene, times that weight, [..., scene]."""
    nudged = figure(taken[..., None, :] + _STEP * np.eye(taken.shape[-1])) - figure(taken)[..., None]
    return nudged / _STEP * np.sqrt(taken)


def bounds_by_method(figure: Figure, n_scenes: int, bounded: bool, draws: np.ndarray) -> dict[str, tuple[float, float]]:
    ones = np.ones(n_scenes)
    rows = figure(np.vstack([ones, 1 - np.eye(n_scenes)]))
    estimate, left_out, drawn = rows[0], rows[1:], figure(draws)
    found = {"percentile": tuple(np.nanpercentile(drawn, [2.5, 97.5]))}

    skew = left_out.mean() - left_out
    acceleration = (skew**3).sum() / (6 * (skew**2).sum() ** 1.5)
    shift = norm.ppf(np.clip(np.nanmean(drawn < estimate), 1e-3, 1 - 1e-3))
    z = shift + norm.ppf([0.025, 0.975])
    found["BCa"] = tuple(np.nanquantile(drawn, np.nan_to_num(norm.cdf(shift + z / (1 - acceleration * z)), nan=0.5)))

    error, errors = (np.sqrt((slopes(figure, taken) ** 2).sum(-1)) for taken in (ones, draws))
    with np.errstate(all="ignore"):
        far = np.nanquantile((drawn - estimate) / errors, [0.975, 0.025])
        found["bootstrap-t"] = tuple(estimate - far * error)
        if bounded:
            scale = error / (estimate * (1 - estimate))
            moved = (logit(drawn) - logit(estimate)) / (errors / (drawn * (1 - drawn)))
            found["bootstrap-t, logit"] = tuple(expit(logit(estimate) - np.nanquantile(moved, [0.975, 0.025]) * scale))
    moving = (left_out != estimate).sum()
    half = t.ppf(0.975, moving - 1) * np.sqrt((moving - 1) / moving * ((left_out - estimate) ** 2).sum())
    found["jackknife t"] = (estimate - half, estimate + half)
    if bounded:
        half /= estimate * (1 - estimate)
        found["jackknife t, logit"] = (expit(logit(estimate) - half), expit(logit(estimate) + half))
    found["bindkit"] = interval(rows, within_unit=bounded)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=400)
    parser.add_argument("--scenes", type=int, nargs="+", default=[5, 8, 12, 16, 30])
    parser.add_argument("--separations", type=float, nargs="+", default=[0.5, 1.0, 2.0, 3.5])
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    print("separation scenes  figure     truth  method               coverage  width  without")
    for separation in asked.separations:
        truths = true_figures(separation)
        for n_scenes in asked.scenes:
            rng, found = np.random.default_rng(asked.seed), {}
            for _ in range(asked.sets):
                pairs = simulated(rng, n_scenes, separation)
                draws = rng.multinomial(n_scenes, np.full(n_scenes, 1 / n_scenes), size=N_RESAMPLES).astype(float)
                for name, (figure, bounded) in figures(pairs).items():
                    with np.errstate(all="ignore"):
                        for method, bounds in bounds_by_method(figure, n_scenes, bounded, draws).items():
                            found.setdefault((name, method), []).append(bounds)
            for (name, method), listed in found.items():
                low, high = np.array(listed).T
                known = np.isfinite(low) & np.isfinite(high)
                held = ((low <= truths[name]) & (truths[name] <= high))[known]
                said = f"{held.mean():8.3f}  {(high - low)[known].mean():5.3f}" if known.any() else "       -      -"
                print(
                    f"{separation:10.1f} {n_scenes:6d}  {name:9s} {truths[name]:6.3f}  {method:20s} {said}"
                    f"  {1 - known.mean():7.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
