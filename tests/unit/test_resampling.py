"""Resamples of scenes, against pairs that are really drawn again."""

import math

import numpy as np
import pytest

from bindkit.resampling import interval, resample_scenes


@pytest.fixture
def scene():
    """Thirty scenes, numbered with gaps, of 1 to 39 pairs each."""
    rng = np.random.default_rng(3)
    return np.repeat(np.arange(30) * 7 + 2, rng.integers(1, 40, 30))


def test_a_share_is_that_of_the_pairs_drawn_scene_by_scene(scene):
    rng = np.random.default_rng(4)
    right, here = rng.random(len(scene)) < 0.7, rng.random(len(scene)) < 0.4
    resamples = resample_scenes(scene, n_bootstrap=200)
    draws = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), size=200)
    numbers = np.unique(scene)
    slow = []
    for draw in draws:
        chosen = [(scene == numbers[k]) & here for k in range(30) for _ in range(draw[k])]
        slow.append(np.concatenate([right[pairs] for pairs in chosen]).mean())
    assert resamples.share(right, here) == pytest.approx(np.array(slow))
    assert resamples.share_interval(right, here) == pytest.approx(tuple(np.percentile(slow, [2.5, 97.5])))


def test_what_comes_from_one_scene_has_no_interval(scene):
    resamples = resample_scenes(scene)
    alone = scene == scene[-1]
    assert resamples.counts(alone).tolist() == [0] * 29 + [alone.sum()]
    assert all(map(math.isnan, resamples.share_interval(alone, alone)))
    two = alone | (scene == scene[0])
    assert resamples.share_interval(alone, two) == (0, 1)
    # One resample in e² has neither: they say nothing, and do not count.
    assert np.isnan(resamples.share(alone, two)).mean() == pytest.approx(math.exp(-2), abs=0.04)


def test_the_same_number_of_scenes_is_drawn_alike_whatever_they_are_called(scene):
    assert np.array_equal(resample_scenes(scene).draws, resample_scenes(np.arange(30)[::-1]).draws)
    assert not np.array_equal(resample_scenes(scene).draws, resample_scenes(scene, seed=1).draws)


def test_percentiles_of_nothing_are_unknown():
    assert interval(np.linspace(0, 1, 1001)) == (0.025, 0.975)
    assert all(map(math.isnan, interval(np.array([np.nan, np.inf]))))
