"""Intervals over scenes: by hand, in what must not matter, and how often they hold a planted truth."""

import math

import numpy as np
import pytest
from scipy.stats import t

from bindkit.probes.metrics import MIN_SCENES, JudgedPairs, auroc, interval, judge, leave_out_scenes


@pytest.fixture
def scene():
    """Thirty scenes, numbered with gaps, of 1 to 39 pairs each."""
    rng = np.random.default_rng(3)
    return np.repeat(np.arange(30) * 7 + 2, rng.integers(1, 40, 30))


def test_a_share_is_that_of_the_pairs_of_all_other_scenes(scene):
    rng = np.random.default_rng(4)
    right, here = rng.random(len(scene)) < 0.7, rng.random(len(scene)) < 0.4
    slow = [right[here].mean(), *(right[here & (scene != number)].mean() for number in np.unique(scene))]
    assert leave_out_scenes(scene).share(right, here) == pytest.approx(slow)


def test_bounds_of_a_mean_of_scenes_are_those_of_students_t():
    """Of a mean, the jackknife's error is the standard error; no freedom is lost where scenes move it alike."""
    scenes = np.tile([0.2, 0.6], 10)
    left_out = [scenes.mean(), *((scenes.sum() - own) / 19 for own in scenes)]
    by_hand = t.interval(0.95, 19, scenes.mean(), scenes.std(ddof=1) / math.sqrt(20))
    assert interval(np.array(left_out), within_unit=False) == pytest.approx(by_hand)


def test_one_scene_that_makes_the_error_costs_freedom():
    """With 29 scenes alike but for a last bit and one apart, there is little more to know than of one scene."""
    scenes = np.append(0.5 + 1e-6 * np.arange(29), 0.9)
    left_out = np.array([scenes.mean(), *((scenes.sum() - own) / 29 for own in scenes)])
    low, high = interval(left_out, within_unit=False)
    error = scenes.std(ddof=1) / math.sqrt(30)
    assert (high - low) / 2 > 3 * error


def test_what_too_few_scenes_have_has_no_interval(scene):
    weights, numbers = leave_out_scenes(scene), np.unique(scene)
    right = np.random.default_rng(5).random(len(scene)) < 0.6
    for n_scenes in (1, 3, MIN_SCENES - 1, MIN_SCENES, 20):
        low, high = weights.share_interval(right, np.isin(scene, numbers[-n_scenes:]))
        assert math.isnan(low) == math.isnan(high) == (n_scenes < MIN_SCENES), n_scenes


def test_what_never_differs_or_hinges_on_a_scene_has_no_interval():
    alike = np.full(31, 0.75)
    assert all(map(math.isnan, interval(alike))), "all scenes alike tell nothing of others"
    assert all(map(math.isnan, interval(np.ones(31))))
    moved = 0.5 + np.linspace(-0.1, 0.1, 31)
    moved[0] = 0.5
    assert all(map(math.isfinite, interval(moved)))
    moved[7] = math.nan
    assert all(map(math.isnan, interval(moved))), "without scene 6 there is no such figure"


@pytest.mark.parametrize("estimate", [0.01, 0.5, 0.99])
def test_bounds_of_a_share_hold_it_and_lie_inside(estimate):
    moves = np.random.default_rng(0).normal(0, 0.02, 12)
    low, high = interval(np.append(estimate, estimate + moves))
    assert 0 < low < estimate < high < 1
    mirrored = interval(1 - np.append(estimate, estimate + moves))
    assert mirrored == pytest.approx((1 - high, 1 - low))


def simulated(rng, n_scenes):
    """Scenes that differ in size, difficulty, bias and share of pairs on one object; scores of pairs."""
    scene = np.repeat(np.arange(n_scenes), np.maximum(rng.lognormal(3.7, 0.5, n_scenes).astype(int), 8))
    same = rng.random(len(scene)) < rng.beta(3, 6, n_scenes)[scene]
    ease, bias = rng.normal(2, 0.8, n_scenes)[scene], rng.normal(0, 0.3, n_scenes)[scene]
    return JudgedPairs(ease * (same - 0.5) + bias + rng.normal(size=len(scene)), same, np.zeros_like(same), scene)


@pytest.mark.parametrize("n_scenes", [8, 16])
def test_simulated_intervals_hold_the_truth(n_scenes):
    """Of 300 data sets; the share that hold it has a standard error of 1.3 points at 95 %, 1.7 at 90 %."""
    many, rng = simulated(np.random.default_rng(1), 3000), np.random.default_rng(2)
    truth = {"accuracy": (many.said_same == many.same).mean(), "auroc": auroc(many.logits, many.same)}
    held = {"accuracy": 0, "auroc": 0}
    for _ in range(300):
        figures = judge(simulated(rng, n_scenes))
        for name in held:
            held[name] += figures[f"{name}_low"] <= truth[name] <= figures[f"{name}_high"]
    assert all(count / 300 >= 0.92 for count in held.values()), held
    assert all(count < 300 for count in held.values()), "so wide that they say nothing"
