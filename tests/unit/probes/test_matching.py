"""AUROC at equal distance: by hand, beside a slow plain version, and for a probe that knows nothing but distance."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import PlantedBackbone, PlantedScenes

import bindkit as bk
from bindkit.cache import cache_activations
from bindkit.probes.judging import flat_pairs, judging
from bindkit.probes.metrics import LEAST, JudgedPairs, Strata, auroc, distance_strata, judge, leave_out_scenes, left_out


def plainly(scores, same, stratum, weight=None, least=LEAST):
    """Pair by pair within each stratum; strata are chosen on all pairs, weights (0: left out) count afterwards."""
    weight = np.ones(len(scores)) if weight is None else weight
    total = norm = 0.0
    for number in np.unique(stratum):
        here = stratum == number
        yes, no = np.flatnonzero(here & same), np.flatnonzero(here & ~same)
        if min(len(yes), len(no)) < least:
            continue
        won = (scores[yes][:, None] > scores[no][None]) + 0.5 * (scores[yes][:, None] == scores[no][None])
        n_yes, n_no = weight[yes].sum(), weight[no].sum()
        if n_yes and n_no:
            ranked = (won * weight[yes][:, None] * weight[no][None]).sum() / (n_yes * n_no)
            total, norm = total + ranked * n_yes * n_no / (n_yes + n_no), norm + n_yes * n_no / (n_yes + n_no)
    return total / norm if norm else np.nan


def plainly_left_out(scores, same, stratum, scenes):
    weights = [np.ones(len(scores)), *(1.0 * (scenes.scene != scene) for scene in range(scenes.n_scenes))]
    return [plainly(scores, same, stratum, weight) for weight in weights]


def test_two_strata_by_hand():
    """Stratum 1: 2 x 2 pairs, 3 of 4 ranked right. Stratum 2: 1 x 2, one tie and one wrong. Weights 1 and 2/3."""
    scores = np.array([3.0, 1.0, 2.0, 0.0, 5.0, 5.0, 6.0])
    same = np.array([True, True, False, False, True, False, False])
    stratum = np.array([1, 1, 1, 1, 2, 2, 2])
    found = Strata.of(scores, same, stratum, least=1).auroc()
    assert found == pytest.approx((0.75 * 1 + 0.25 * 2 / 3) / (1 + 2 / 3))


def test_strata_with_fewer_than_five_of_either_kind_are_left_out():
    scores = np.arange(19.0)
    stratum = np.repeat([0, 1], [10, 9])
    same = np.tile([True, False], 10)[:19]  # 5 and 5, then 5 and 4
    assert Strata.of(scores, same, stratum).n_strata == 1
    assert np.isnan(Strata.of(scores[10:], same[10:], stratum[10:]).auroc())
    assert np.isnan(Strata.of(scores[:0], same[:0], stratum[:0]).auroc())


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_it_is_the_plain_version(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 120))
    scores, same = rng.integers(0, rng.integers(2, 40), n).astype(float), rng.random(n) < rng.random()
    stratum = rng.integers(0, 4, n)
    strata = Strata.of(scores, same, stratum)
    assert strata.auroc() == pytest.approx(plainly(scores, same, stratum), nan_ok=True)
    scenes = leave_out_scenes(rng.integers(0, 5, n))
    # With at most 64 different scores a stratum, its bins are exact.
    if n <= 64:
        np.testing.assert_allclose(strata.left_out(scenes), plainly_left_out(scores, same, stratum, scenes), atol=1e-12)


def test_leaving_scenes_out_of_large_strata_is_exact_to_a_hundredth_and_parts_do_not_matter(monkeypatch):
    rng = np.random.default_rng(0)
    n = 6_000
    stratum, scene, same = rng.integers(0, 5, n), rng.integers(0, 12, n), rng.random(n) < 0.4
    scores = rng.normal(same + 0.3 * stratum)
    scenes = leave_out_scenes(scene)
    strata = Strata.of(scores, same, stratum)
    found, wanted = strata.left_out(scenes), np.array(plainly_left_out(scores, same, stratum, scenes))
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    # An interval is made of the differences to the first row.
    np.testing.assert_allclose(found - found[0], wanted - wanted[0], atol=2e-4)
    monkeypatch.setattr("bindkit.probes.metrics._CELLS_AT_ONCE", 1)
    np.testing.assert_allclose(strata.left_out(scenes), found, atol=1e-12)


def test_what_depends_on_distance_alone_changes_nothing():
    rng = np.random.default_rng(1)
    stratum, same = rng.integers(0, 6, 500), rng.random(500) < 0.5
    scores = rng.normal(same)
    found = Strata.of(scores, same, stratum).auroc()
    assert Strata.of(scores - 7.0 * stratum, same, stratum).auroc() == found
    assert Strata.of(scores**3 * (1 + stratum), same, stratum).auroc() == found
    assert Strata.of(-scores, same, stratum).auroc() == pytest.approx(1 - found)


def test_a_probe_that_knows_only_distance_is_at_chance_on_grids_and_across_windows():
    rng = np.random.default_rng(2)
    for shift in (0, 5):
        columns = []
        for scene in range(24):
            corners = rng.integers(0, 12, (60, 2)) * 8 + shift * rng.integers(0, 2, (60, 1))
            objects = (corners // 32 * [1, 4]).sum(1) + rng.integers(0, 2, 60) * 100
            first, second = np.triu_indices(60, 1)
            distance = np.hypot(*(corners[first] - corners[second]).T)
            strata = distance_strata(corners[first], corners[second], patch_size=8)
            columns.append((-distance, objects[first] == objects[second], strata, np.full(len(first), scene)))
        logits, same, stratum, scene = (np.concatenate(column) for column in zip(*columns, strict=True))
        asked = np.zeros_like(same)
        figures = judge(JudgedPairs(logits, same, asked, scene, stratum=stratum))
        assert figures["auroc"] > 0.8
        assert abs(figures["matched_auroc"] - 0.5) < (1e-12 if shift == 0 else 0.02)
        if shift == 0:
            assert np.isnan(figures["matched_auroc_low"]), "it is 0.5 whatever scenes are left out"
        vague = judge(JudgedPairs(logits + rng.normal(size=len(logits)), same, asked, scene, stratum=stratum))
        assert 0.45 < vague["matched_auroc_low"] <= 0.5 <= vague["matched_auroc_high"] < 0.55


def test_distances_are_exact_on_a_grid_and_rounded_to_a_quarter_of_a_patch_elsewhere():
    here = np.zeros((4, 2), int)
    there = np.array([[14, 0], [0, -28], [14, 14], [3, 0]])
    np.testing.assert_array_equal(distance_strata(here, there, 14), [16, 64, 32, 1])


def test_twins_are_matched_among_twinned_classes_and_without_distances_there_is_nothing():
    rng = np.random.default_rng(3)
    n = 400
    same, asked, scene, stratum = rng.random(n) < 0.4, rng.random(n) < 0.5, rng.integers(0, 8, n), rng.integers(0, 3, n)
    logits = rng.normal(same)
    pairs = JudgedPairs(logits, same, asked, scene, stratum=stratum)
    figures = judge(pairs)
    assert figures["matched_twins_auroc"] == pytest.approx(plainly(logits[asked], same[asked], stratum[asked]))
    one = JudgedPairs(logits, same, asked, scene, stratum=np.zeros(n, int))
    assert judge(one)["matched_auroc"] == pytest.approx(auroc(logits, same))
    without = JudgedPairs(logits, same, asked, scene)
    assert np.isnan(judge(without)["matched_auroc"])
    assert np.isnan(left_out(without)["matched_auroc"]).all()


@pytest.mark.parametrize("width", [48, 42], ids=["windows side by side on the grid", "windows off the grid"])
def test_on_a_cache_distance_alone_is_at_chance_and_a_fitted_probe_gains_nothing_by_it(tmp_path, width):
    """Two overlapping windows a scene: 48 px give offsets of whole patches, 42 px of half ones."""
    cache = cache_activations(PlantedBackbone(signal=0.3), PlantedScenes(40, width=width), root=tmp_path)
    fit = bk.fit_probe(cache, 2)
    with judging(fit.probe, cache) as judged:
        said = list(judged.said())
        nearness = []
        for batch, *_ in said:
            corners = batch.corners.float()
            nearness.append(-torch.cdist(corners, corners) / batch.patch_size)
            assert width == 48 or (batch.corners % batch.patch_size).any()
        alone = judge(flat_pairs((batch, near, same) for (batch, _, same), near in zip(said, nearness, strict=True)))
        added = judge(
            flat_pairs(
                (batch, logits + 9 * near, same) for (batch, logits, same), near in zip(said, nearness, strict=True)
            )
        )
    assert alone["auroc"] > 0.6
    for name in ("matched_auroc", "matched_twins_auroc"):
        assert alone[name] == pytest.approx(0.5, abs=1e-9)
        assert np.isnan(alone[f"{name}_low"]), "it is 0.5 whatever scenes are left out"
        assert added[name] == pytest.approx(fit.metrics[name], abs=1e-3)
    assert added["auroc"] != pytest.approx(fit.metrics["auroc"], abs=1e-3)


def test_where_no_class_is_known_figures_of_twins_are_empty_and_there_is_no_oracle(tmp_path):
    class Unclassed(PlantedScenes):
        uri = "unclassed:"

        def __getitem__(self, position):
            scene = super().__getitem__(position)
            return bk.Scene(scene.id, scene.image, scene.instances, np.zeros_like(scene.classes))

    cache = cache_activations(PlantedBackbone(), Unclassed(40), root=tmp_path)
    table = bk.sweep([cache], [2], ["linear"], oracle=True)
    assert list(table["probe"]) == ["linear"]
    assert np.isfinite(table[["auroc", "matched_auroc", "matched_auroc_low"]].to_numpy(float)).all()
    assert (
        table[["twins_accuracy", "twins_auroc", "matched_twins_auroc", "matched_twins_auroc_low"]].isna().all(axis=None)
    )
