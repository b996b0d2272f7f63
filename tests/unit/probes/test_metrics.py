"""Figures against definitions written out the slow way, and intervals against their closed form."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bindkit.errors import InvalidParameterError, NonFiniteActivationsError
from bindkit.probes.metrics import FIGURES, JudgedPairs, auroc, average_precision, judge, left_out

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
    stratum = np.arange(same.size) % 5
    return JudgedPairs(logits, same, rng.random(same.size) < 0.5, scene, stratum=stratum)


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


def enough(pairs, asked_only):
    """Strata of equal distance with 5 pairs on one object and 5 on two."""
    listed = zip(pairs.stratum, pairs.same, pairs.twins_question, strict=True)
    kinds = [(stratum, bool(same)) for stratum, same, asked in listed if asked or not asked_only]
    return {stratum for stratum, _ in kinds if min(kinds.count((stratum, same)) for same in (True, False)) >= 5}


def by_definition(pairs, whole=None):
    """Every figure as the docstring of `judge` words it, pair by pair; `whole` decides which strata count."""
    right, twins_right = [], []
    by_kind = {True: [], False: []}
    ranked = {(same, asked): [] for same in (True, False) for asked in (True, False)}
    for logit, same, asked in zip(pairs.logits, pairs.same, pairs.twins_question, strict=True):
        correct = (logit > 0) == same
        right.append(correct)
        by_kind[bool(same)].append(correct)
        ranked[bool(same), bool(asked)].append(logit)
        if asked and not same:
            twins_right.append(correct)

    def mean(values):
        return sum(values) / len(values) if values else math.nan

    def order(positive, negative):
        return mean([(p > n) + (p == n) / 2 for p in positive for n in negative])

    def at_equal_distance(asked_only):
        weights, orders = [], []
        for stratum in enough(whole or pairs, asked_only):
            here = (pairs.stratum == stratum) & (pairs.twins_question | (not asked_only))
            positive, negative = pairs.logits[here & pairs.same], pairs.logits[here & ~pairs.same]
            if len(positive) and len(negative):
                weights.append(len(positive) * len(negative) / (len(positive) + len(negative)))
                orders.append(order(positive, negative))
        return np.average(orders, weights=weights)

    return {
        "matched_auroc": at_equal_distance(asked_only=False),
        "matched_twins_auroc": at_equal_distance(asked_only=True),
        "accuracy": mean(right),
        "majority_accuracy": max(len(by_kind[True]), len(by_kind[False])) / len(right),
        "balanced_accuracy": (mean(by_kind[True]) + mean(by_kind[False])) / 2,
        "auroc": order(ranked[True, True] + ranked[True, False], ranked[False, True] + ranked[False, False]),
        "average_precision": average_precision(pairs.logits, pairs.same),
        "twins_accuracy": mean(twins_right),
        "twins_auroc": order(ranked[True, True], ranked[False, True]),
    }


def lopsided(seed, n_scenes=6, n_pairs=30, share=0.7):
    """Pairs whose figures all differ: twins are harder, logits are biased and tied (some at 0), scenes differ."""
    rng = np.random.default_rng(seed)
    scene = np.repeat(np.arange(n_scenes), n_pairs)
    same = rng.random(scene.size) < share
    twins_question = rng.random(scene.size) < np.where(same, 0.6, 0.3)
    logits = (
        rng.normal(size=scene.size) + 0.8 * same + 0.9 * (twins_question & ~same) + rng.normal(size=n_scenes)[scene]
    )
    stratum = np.where(rng.random(scene.size) < 0.05, 2, np.arange(scene.size) % 2)  # the last is too thin to count
    return JudgedPairs(logits.round(1), same, twins_question, scene, stratum=stratum)


@pytest.mark.parametrize("share", [0.7, 0.2])
def test_every_figure_equals_its_definition(share):
    pairs = lopsided(4, share=share)
    figures, expected = judge(pairs), by_definition(pairs)
    assert {name: figures[name] for name in FIGURES} == pytest.approx({name: expected[name] for name in FIGURES})
    assert len({round(expected[name], 3) for name in FIGURES}) == len(FIGURES), "figures must differ to be told apart"


@pytest.mark.parametrize("share", [0.7, 0.2])
def test_every_figure_without_a_scene_equals_judging_the_others_by_definition(share, monkeypatch):
    """With fewer pairs than bins no two logits share one, so that the histograms must give the very same figures."""
    monkeypatch.setattr("bindkit.probes.metrics._STRATUM_BINS", 256)
    pairs = lopsided(5, share=share)
    slow = []
    for scene in (None, *range(6)):
        columns = (pairs.logits, pairs.same, pairs.twins_question, pairs.scene, pairs.said_same, pairs.stratum)
        rest = JudgedPairs(*(column[pairs.scene != scene] for column in columns))
        slow.append(by_definition(rest, whole=pairs))
    found = left_out(pairs)
    assert set(found) == set(FIGURES)
    for name in FIGURES:
        assert found[name] == pytest.approx([figures[name] for figures in slow]), name


def test_bins_are_taken_from_a_sample_where_there_are_very_many_pairs(monkeypatch):
    pairs = judged(6)
    whole = judge(pairs)
    monkeypatch.setattr("bindkit.probes.metrics._SAMPLED", 4000)
    sampled = judge(pairs)
    assert all(math.isclose(whole[name], sampled[name], abs_tol=0.01) for name in whole)


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
    figures = judge(pairs)
    assert math.isclose(figures["accuracy_high"] - figures["accuracy"], half, rel_tol=0.05)
    assert math.isclose(figures["accuracy"] - figures["accuracy_low"], half, rel_tol=0.05)


def test_auroc_interval_agrees_with_resampling_the_pairs_themselves():
    """With many scenes it does not matter how an interval is made."""
    pairs = judged(2, n_scenes=100, n_pairs=60)
    rng = np.random.default_rng(5)
    drawn = []
    for _ in range(1000):
        chosen = np.concatenate([np.flatnonzero(pairs.scene == k) for k in rng.integers(0, 100, 100)])
        drawn.append(auroc(pairs.logits[chosen], pairs.same[chosen]))
    figures = judge(pairs)
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert figures["auroc_low"] == pytest.approx(low, abs=0.1 * (high - low))
    assert figures["auroc_high"] == pytest.approx(high, abs=0.1 * (high - low))


def test_auroc_interval_is_mirrored_with_the_answers():
    pairs = judged(7, n_scenes=12)
    there, back = judge(pairs), judge(JudgedPairs(pairs.logits, ~pairs.same, pairs.twins_question, pairs.scene))
    mirrored = [1 - back[name] for name in ("auroc_high", "auroc", "auroc_low")]
    assert mirrored == pytest.approx([there[name] for name in ("auroc_low", "auroc", "auroc_high")], abs=2e-3)


def test_resampling_ignores_the_order_of_scenes_within_the_list_of_pairs():
    pairs = judged(3)
    order = np.random.default_rng(0).permutation(len(pairs))
    columns = (pairs.logits, pairs.same, pairs.twins_question, pairs.scene, pairs.said_same, pairs.stratum)
    shuffled = JudgedPairs(*(column[order] for column in columns))
    first, second = judge(pairs), judge(shuffled)
    assert all(math.isclose(first[name], second[name], rel_tol=1e-9) for name in first)


def test_a_logit_of_exactly_zero_means_different_without_a_scene_too():
    pairs = JudgedPairs(np.zeros(6), np.array([False] * 6), np.zeros(6, dtype=bool), np.array([0, 0, 1, 1, 2, 2]))
    figures = judge(pairs)
    assert figures["accuracy"] == 1.0
    assert left_out(pairs)["accuracy"].tolist() == [1.0] * 4
    assert math.isnan(figures["accuracy_low"]), "all right in three scenes is not all right in every scene"
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


def test_twins_of_few_scenes_have_no_interval():
    """However many scenes have other pairs: twins of few scenes would look like certainty."""
    rng = np.random.default_rng(0)
    scene = np.repeat(np.arange(20), 30)
    same, logits = rng.random(600) < 0.4, rng.standard_normal(600)
    for n_scenes in (1, 7, 8):
        figures = judge(JudgedPairs(logits, same, scene < n_scenes, scene))
        assert not math.isnan(figures["twins_auroc"])
        assert not math.isnan(figures["auroc_low"])
        for name in ("accuracy", "auroc"):
            assert (
                math.isnan(figures[f"twins_{name}_low"]) == math.isnan(figures[f"twins_{name}_high"]) == (n_scenes < 8)
            )


def test_rare_pairs_keep_their_ranks_in_the_intervals():
    """One pair in a thousand on one object: the point lies in its interval, whose middle is near it."""
    rng = np.random.default_rng(0)
    n_scenes, per_scene = 60, 2000
    same = rng.random(n_scenes * per_scene) < 1e-3
    logits = (rng.standard_normal(len(same)) + 4 * same).astype(np.float32)
    scene = np.repeat(np.arange(n_scenes), per_scene)
    pairs = JudgedPairs(logits, same, np.ones_like(same), scene, logits > 0)
    figures = judge(pairs)
    for name in ("average_precision", "auroc", "twins_auroc"):
        low, high = figures[f"{name}_low"], figures[f"{name}_high"]
        assert low < figures[name] < high
        assert abs((low + high) / 2 - figures[name]) < 0.35 * (high - low)
