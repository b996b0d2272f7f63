"""Figures against definitions written out the slow way, and intervals against their closed form."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bindkit.errors import InvalidParameterError, NonFiniteActivationsError
from bindkit.metrics import FIGURES, JudgedPairs, auroc, average_precision, judge

scored = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=40)


@given(scored)
def test_auroc_is_the_chance_of_a_right_order_with_ties_half(items):
    scores = np.array([float(score) for score, _ in items])
    positive = np.array([label for _, label in items])
    wins = [(p > n) + (p == n) / 2 for p in scores[positive] for n in scores[~positive]]
    got = auroc(scores, positive)
    assert math.isnan(got) if not wins else math.isclose(got, sum(wins) / len(wins))


@given(scored)
def test_average_precision_is_precision_at_every_recall_step(items):
    scores = np.array([float(score) for score, _ in items])
    positive = np.array([label for _, label in items])
    if not positive.any():
        assert math.isnan(average_precision(scores, positive))
        return
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        called = scores >= threshold
        recall = positive[called].sum() / positive.sum()
        total += (recall - recall_before) * positive[called].mean()
        recall_before = recall
    assert math.isclose(average_precision(scores, positive), total)


def judged(seed, n_scenes=40, n_pairs=200, shift=1.0):
    rng = np.random.default_rng(seed)
    same = rng.random(n_scenes * n_pairs) < 0.3
    scene = np.repeat(np.arange(n_scenes), n_pairs)
    logits = rng.normal(size=same.size) + shift * (2 * same - 1) + rng.normal(size=n_scenes)[scene] * 0.5
    return JudgedPairs(logits, same, rng.random(same.size) < 0.5, scene)


def test_figures_by_hand():
    figures = judge(
        JudgedPairs(
            logits=np.array([3.0, -1.0, 2.0, -2.0, -3.0]),
            same=np.array([True, True, False, False, False]),
            twins_question=np.array([True, False, True, True, False]),
            scene=np.zeros(5, dtype=int),
        )
    )
    assert figures["accuracy"] == 3 / 5
    assert figures["majority_accuracy"] == 3 / 5
    assert math.isclose(figures["balanced_accuracy"], (1 / 2 + 2 / 3) / 2)
    assert math.isclose(figures["auroc"], 5 / 6)
    assert math.isclose(figures["average_precision"], (1 + 2 / 3) / 2)
    assert figures["twins_accuracy"] == 1 / 2
    assert figures["twins_auroc"] == 1.0
    assert math.isnan(figures["accuracy_low"]), "one scene has no interval over scenes"


def test_every_figure_lies_within_its_interval_and_binning_does_not_show():
    figures = judge(judged(0))
    for name in FIGURES:
        assert figures[f"{name}_low"] <= figures[name] <= figures[f"{name}_high"], name
        middle = (figures[f"{name}_low"] + figures[f"{name}_high"]) / 2
        assert abs(middle - figures[name]) < 0.01, name


def test_accuracy_interval_agrees_with_the_normal_approximation_over_scenes():
    pairs = judged(1, n_scenes=200, n_pairs=50)
    right = ((pairs.logits > 0) == pairs.same).reshape(200, 50).mean(1)
    half = 1.96 * right.std(ddof=1) / math.sqrt(200)
    figures = judge(pairs, n_bootstrap=4000)
    assert math.isclose(figures["accuracy_high"] - figures["accuracy"], half, rel_tol=0.15)
    assert math.isclose(figures["accuracy"] - figures["accuracy_low"], half, rel_tol=0.15)


def test_auroc_interval_agrees_with_resampling_the_pairs_themselves():
    pairs = judged(2, n_scenes=12, n_pairs=60)
    rng = np.random.default_rng(5)
    drawn = []
    for _ in range(1000):
        chosen = np.concatenate([np.flatnonzero(pairs.scene == k) for k in rng.integers(0, 12, 12)])
        drawn.append(auroc(pairs.logits[chosen], pairs.same[chosen]))
    figures = judge(pairs, n_bootstrap=4000)
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert abs(figures["auroc_low"] - low) < 0.006
    assert abs(figures["auroc_high"] - high) < 0.006


def test_resampling_ignores_the_order_of_scenes_within_the_list_of_pairs():
    pairs = judged(3)
    order = np.random.default_rng(0).permutation(len(pairs))
    shuffled = JudgedPairs(pairs.logits[order], pairs.same[order], pairs.twins_question[order], pairs.scene[order])
    first, second = judge(pairs), judge(shuffled)
    assert all(math.isclose(first[name], second[name], rel_tol=1e-9) for name in first)


def test_a_logit_of_exactly_zero_means_different_in_the_interval_too():
    pairs = JudgedPairs(np.zeros(6), np.array([False] * 6), np.zeros(6, dtype=bool), np.array([0, 0, 1, 1, 2, 2]))
    figures = judge(pairs)
    assert figures["accuracy"] == figures["accuracy_low"] == figures["accuracy_high"] == 1.0
    assert math.isnan(figures["auroc"])
    assert math.isnan(figures["twins_accuracy"])


def test_nothing_to_judge_and_nan_logits_are_named_errors():
    empty = np.array([], dtype=float)
    with pytest.raises(InvalidParameterError, match="no pair to judge"):
        judge(JudgedPairs(empty, empty.astype(bool), empty.astype(bool), empty.astype(int)))
    with pytest.raises(NonFiniteActivationsError, match="NaN or infinite logits"):
        JudgedPairs(np.array([np.nan]), np.array([True]), np.array([True]), np.array([0]))
    with pytest.raises(InvalidParameterError, match="one shape"):
        JudgedPairs(np.zeros(2), np.zeros(3, dtype=bool), np.zeros(2, dtype=bool), np.zeros(2, dtype=int))
