"""Folds: every scene judged once by a probe that never saw it, and figures that are those of all scenes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import PlantedBackbone, PlantedScenes

from bindkit.cache import cache_activations
from bindkit.errors import InvalidParameterError
from bindkit.probes.batches import SplitPatches, fold_roles, scenes_of
from bindkit.probes.fitting import fit_probe, train_side_by_side
from bindkit.probes.judging import judge_probe, judging
from bindkit.probes.protocols import STRICT, load_folds
from bindkit.results.breakdowns import breakdown
from bindkit.results.model_table import model_table, with_gain_intervals
from bindkit.results.sweeping import probe_directory, sweep
from bindkit.scenes import split_scenes

BRIEF = replace(STRICT, epochs=2, min_steps=8, judged_patches=24)
SCENES = PlantedScenes(22)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return cache_activations(PlantedBackbone(), SCENES, root=tmp_path_factory.mktemp("few"), layers=[0, 2])


@pytest.mark.parametrize("n_folds", [3, 5, 22])
def test_every_scene_is_in_one_fold_and_no_role_shares_one(cache, n_folds):
    folds = fold_roles(cache, n_folds)
    tested = [scene for roles in folds for scene in roles["test"].scene_ids]
    assert sorted(tested) == sorted(SCENES.ids)
    sizes = [len(roles["test"].scene_ids) for roles in folds]
    assert max(sizes) - min(sizes) <= 1
    for number, roles in enumerate(folds):
        together = [scene for choice in roles.values() for scene in choice.scene_ids]
        assert sorted(together) == sorted(SCENES.ids)
        assert roles["validation"].scene_ids
        assert set(roles["validation"].scene_ids) == set(folds[(number + 1) % n_folds]["test"].scene_ids)
    assert fold_roles(cache, n_folds) == folds


def test_groups_stay_in_one_fold(tmp_path):
    groups = [k // 4 for k in range(22)]
    grouped = cache_activations(PlantedBackbone(), SCENES, root=tmp_path, split=split_scenes(SCENES, groups))
    for roles in fold_roles(grouped, 3):
        tested = {SCENES.ids.index(scene) // 4 for scene in roles["test"].scene_ids}
        others = {SCENES.ids.index(s) // 4 for name in ("train", "validation") for s in roles[name].scene_ids}
        assert not tested & others
    with pytest.raises(InvalidParameterError, match="groups of them, 6; got 7"):
        fold_roles(grouped, 7)


@pytest.mark.parametrize("n_folds", [0, 1, 2, 23])
def test_too_few_and_too_many_folds_are_refused(cache, n_folds):
    with pytest.raises(InvalidParameterError, match="folds is at least 3"):
        fit_probe(cache, 2, protocol=BRIEF, folds=n_folds)


def test_chosen_rows_are_those_of_the_cache(cache):
    (roles, *_) = fold_roles(cache, 4)
    chosen = SplitPatches(cache, roles["train"], 2, BRIEF, torch.device("cpu"))
    for split in cache.splits:
        whole = SplitPatches(cache, split, 2, BRIEF, chosen.device)
        for number, scene in enumerate(whole.scene_ids):
            if scene not in chosen.scene_ids:
                continue
            mine = next(batch for batch in chosen.judged())
            theirs = next(batch for batch in whole.judged())
            at = chosen.scene_ids.index(scene)
            n = int(theirs.present[number].sum())
            assert np.array_equal(mine.activations[at][:n].numpy(), theirs.activations[number][:n].numpy())
            assert np.array_equal(mine.instances[at][:n].numpy(), theirs.instances[number][:n].numpy())


def test_no_row_of_a_fold_is_read_before_it_is_judged(cache, monkeypatch):
    """A spy on every read: in training, what is read belongs to the scenes that train or validate."""
    read, trained = [], []
    take = SplitPatches._take

    def spying(self, positions, into=None):
        read.append(self)
        return take(self, positions, into)

    def before_judging(trainings, patches, seed):
        read.clear()
        train_side_by_side(trainings, patches, seed)
        trained.append((patches.splits["test"], list(read)))

    monkeypatch.setattr(SplitPatches, "_take", spying)
    monkeypatch.setattr("bindkit.probes.fitting.train_side_by_side", before_judging)
    fit_probe(cache, 2, "linear", protocol=BRIEF, folds=4)
    assert len(trained) == 4
    for test, readers in trained:
        assert readers
        assert not any(set(reader.scene_ids) & set(test.scene_ids) for reader in readers)


@pytest.mark.parametrize("task", ["pairwise", "shuffled_labels"])
def test_planted_signals_are_found_and_shuffled_labels_give_chance(cache, task):
    rules = replace(STRICT, judged_patches=32)
    fit = fit_probe(cache, 2, "quadratic", task, rules, folds=5)
    assert fit.metrics["n_scenes"] == 22
    assert fit.split == "5 folds"
    if task == "pairwise":
        assert fit.metrics["auroc"] > 0.9
    else:
        assert abs(fit.metrics["auroc"] - 0.5) < 0.05


def test_noise_stays_at_chance(cache):
    assert abs(fit_probe(cache, 0, "quadratic", protocol=STRICT, folds=5).metrics["auroc"] - 0.5) < 0.05


def test_figures_are_those_of_each_folds_probe_on_its_fold(cache, tmp_path):
    fit = fit_probe(cache, 2, "quadratic", protocol=BRIEF, folds=4)
    probes = load_folds(fit.save(tmp_path))
    assert len(probes) == len(fit.folds) == 4
    right = n_pairs = 0
    seen = set()
    for probe in probes:
        with judging(probe, cache, protocol=BRIEF) as judged:
            pairs = judged.pairs()
            assert judged.patches.split == f"fold {probe.fitted_on['fold']['number']} of 4"
            assert set(judged.patches.scene_ids) <= set(probe.fitted_on["fold"]["test"])
            assert not seen & set(judged.patches.scene_ids)
            seen |= set(judged.patches.scene_ids)
        right += (pairs.said_same == pairs.same).sum()
        n_pairs += len(pairs)
    assert seen == set(SCENES.ids)
    assert fit.metrics["n_pairs"] == n_pairs
    assert fit.metrics["accuracy"] == pytest.approx(right / n_pairs)


def test_a_folds_probe_is_never_judged_on_scenes_that_it_saw(cache):
    fit = fit_probe(cache, 2, "quadratic", protocol=BRIEF, folds=4)
    unseen = len(fit.probe.fitted_on["fold"]["test"])
    assert judge_probe(fit.probe, cache, protocol=BRIEF)["n_scenes"] == unseen
    assert judge_probe(fit.probe, cache, "test", BRIEF)["n_scenes"] == unseen
    assert breakdown(fit.probe, cache, protocol=BRIEF).attrs["n_scenes"] == unseen


def test_a_sweep_by_folds_resumes_and_its_gains_have_intervals(tmp_path, monkeypatch):
    models = [
        (PlantedBackbone(name="vit", objective="dino", weights_digest="1" * 64), [2]),
        (PlantedBackbone(name="control:position", objective="control", weights_digest="3" * 64), [0]),
    ]
    caches = [cache_activations(model, SCENES, root=tmp_path / "cache", layers=layers) for model, layers in models]
    asked = dict(probes=["quadratic"], tasks=("pairwise", "shuffled_labels"), protocol=BRIEF, root=tmp_path / "probes")
    table = sweep(caches, "all", oracle=True, folds=4, **asked)
    assert set(table["split"]) == {"4 folds"}
    assert set(table["n_scenes"]) == {22}
    assert table["judged_pairs"].nunique() == 1
    assert table["validation_accuracy"].dropna().between(0, 1).all()
    plain = sweep(caches, "all", **asked)
    assert not set(plain["judged_pairs"]) & set(table["judged_pairs"])
    monkeypatch.setattr("bindkit.results.sweeping.fit_folds", None)
    assert sweep(caches, "all", oracle=True, folds=4, **asked).equals(table)
    place = probe_directory(tmp_path / "probes", table.iloc[0].to_dict())
    assert place.name.endswith("-4-folds")
    assert (place / "fold_4" / "probe.json").exists()
    gains = with_gain_intervals(model_table(table), table, caches, tmp_path / "probes", BRIEF).iloc[0]
    for name in ("gain", "auroc_over_position", "auroc_over_same-class", "selectivity"):
        assert gains[f"{name}_low"] <= gains[name] <= gains[f"{name}_high"], name


def test_pointwise_figures_are_pooled_over_folds(cache):
    fit = fit_probe(cache, 2, "linear", "pointwise_class", BRIEF, folds=3)
    assert 0 <= fit.metrics["class_accuracy"] <= 1


def test_judged_scenes_in_words():
    assert [scenes_of("test"), scenes_of("test", 1)] == ["the test scenes", "1 test scene"]
    assert [scenes_of("5 folds"), scenes_of("5 folds", 22)] == ["all scenes in 5 folds", "22 scenes in 5 folds"]
