"""Planted answers are recovered through the real cache, chance stays chance, and a fit can be trusted again later."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import PlantedBackbone, PlantedScenes

from bindkit.errors import EmptySplitError, LayerError, ProbeError
from bindkit.extraction import cache_activations
from bindkit.patch_batches import SplitPatches
from bindkit.probes import load_probe
from bindkit.protocols import PAPER, STRICT
from bindkit.scenes.scene import Scene
from bindkit.training import RESULT_COLUMNS, LayerPatches, fit_probe

QUICK = replace(STRICT, epochs=6, min_steps=240)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return cache_activations(PlantedBackbone(), PlantedScenes(40), root=tmp_path_factory.mktemp("planted"))


class ShuffledMasks(PlantedScenes):
    """The same pictures with masks that say nothing of them: every patch's label drawn at random."""

    uri = "planted-shuffled:"

    def __getitem__(self, position):
        shown = super().__getitem__(position)
        drawn = np.random.default_rng(1000 + position).integers(0, 7, (8, 12))
        instances = np.kron(drawn, np.ones((4, 4), dtype=int)).astype(np.int32)
        return Scene(shown.id, shown.image, instances, ((instances + 1) // 2).astype(np.int32))


def test_a_planted_binding_code_is_found_and_twins_are_told_apart(cache):
    figures = fit_probe(cache, 2, "quadratic", protocol=QUICK).metrics
    assert figures["auroc"] > 0.99
    assert figures["twins_auroc"] > 0.95
    assert figures["accuracy"] > figures["majority_accuracy"] + 0.05


def test_similarity_of_class_ranks_pairs_but_never_twins(cache):
    figures = fit_probe(cache, 1, "quadratic", protocol=QUICK).metrics
    assert figures["auroc"] > 0.8
    assert figures["twins_auroc_low"] < 0.5 + 0.03
    assert abs(figures["twins_auroc"] - 0.5) < 0.05


def test_a_linear_probe_cannot_compare(cache):
    figures = fit_probe(cache, 2, "linear", protocol=QUICK).metrics
    assert figures["auroc"] < 0.65


def test_noise_ends_at_chance_within_the_interval(cache):
    figures = fit_probe(cache, 0, "quadratic", protocol=QUICK).metrics
    assert figures["auroc_low"] - 0.02 < 0.5 < figures["auroc_high"] + 0.02


def test_shuffled_labels_end_at_chance_whatever_the_activations_hold(tmp_path):
    shuffled = cache_activations(PlantedBackbone(), ShuffledMasks(40), root=tmp_path)
    figures = fit_probe(shuffled, 2, "quadratic", protocol=QUICK).metrics
    assert abs(figures["auroc"] - 0.5) < 0.05
    assert abs(figures["twins_auroc"] - 0.5) < 0.05


def test_the_paper_protocol_learns_too_and_counts_unlabelled_as_one_object(cache):
    fit = fit_probe(cache, 2, "quadratic", protocol=replace(PAPER, epochs=60, scenes_per_step=8, learning_rate=1e-2))
    assert fit.metrics["auroc"] > 0.95
    strict, paper = (SplitPatches(cache, "train", 2, rules, CPU) for rules in (STRICT, PAPER))
    labels = cache.labels("train")
    assert paper.n_patches == len(labels)
    assert strict.n_patches == int(((labels.instances > 0) & (labels.purity > 0.5)).sum()) < paper.n_patches


def test_judging_by_hand_gives_the_same_accuracy(cache):
    """The saved probe, its formula and plain loops over the cached rows, against the reported figure."""
    fit = fit_probe(cache, 2, "quadratic", protocol=replace(QUICK, judged_patches=512))
    labels, activations = cache.labels("test"), cache.activations("test", 2)
    weight = fit.probe.weight.double()
    form, bias = (weight + weight.T) / (2 * 24**0.5), float(fit.probe.bias)
    right = total = 0
    for k in range(len(labels.scene_ids)):
        rows = np.arange(labels.scene_offsets[k], labels.scene_offsets[k + 1])
        rows = rows[(labels.instances[rows] > 0) & (labels.purity[rows] > 0.5)]
        x = activations.take(rows).double()
        logits = (x @ form @ x.T + bias).numpy()
        for a, i in enumerate(rows):
            for b in range(a + 1, len(rows)):
                j = rows[b]
                down, across = np.abs(labels.corners[i] - labels.corners[j])
                if down >= 4 or across >= 4:
                    right += (logits[a, b] > 0) == (labels.instances[i] == labels.instances[j])
                    total += 1
    assert fit.metrics["n_pairs"] == total
    assert abs(fit.metrics["accuracy"] - right / total) < 1e-4


def test_the_same_seed_gives_the_same_fit_and_another_seed_is_judged_on_the_same_pairs(cache):
    short = replace(QUICK, epochs=2, min_steps=20)
    first, again, other = (fit_probe(cache, 2, protocol=short, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.probe.weight, again.probe.weight)
    assert first.metrics["accuracy"] == again.metrics["accuracy"]
    assert not torch.equal(first.probe.weight, other.probe.weight)
    assert first.metrics["majority_accuracy"] == other.metrics["majority_accuracy"]
    assert first.metrics["n_pairs"] == other.metrics["n_pairs"]


def test_the_kept_epoch_is_the_best_on_validation(cache):
    rules = replace(PAPER, epochs=5, scenes_per_step=8, learning_rate=0.5)
    patches = LayerPatches(cache, 2, rules)
    fit = fit_probe(patches)
    best = max(entry["validation_accuracy"] for entry in fit.history)
    right = total = 0
    for batch in patches.splits["validation"].judged():
        right += int((((fit.probe(batch.activations) > 0) == batch.same) & batch.counted).sum())
        total += int(batch.counted.sum())
    assert abs(right / total - best) < 1e-6


def test_draws_hold_every_scene_without_repetition_and_only_its_own_rows(cache):
    patches = SplitPatches(cache, "train", 2, replace(STRICT, train_patches=500), CPU)
    labels = cache.labels("train")
    batch = patches.draw(torch.arange(len(patches)), torch.Generator().manual_seed(0))
    for position, scene_id in enumerate(patches.scene_ids):
        k = labels.scene_ids.index(scene_id)
        rows = np.arange(labels.scene_offsets[k], labels.scene_offsets[k + 1])
        rows = rows[(labels.instances[rows] > 0) & (labels.purity[rows] > 0.5)]
        expected = cache.activations("train", 2).take(rows)
        drawn = batch.activations[position][batch.present[position]]
        assert drawn.shape == expected.shape
        assert torch.equal(drawn.sort(0).values, expected.sort(0).values)
    patches = SplitPatches(cache, "train", 2, replace(STRICT, train_patches=10), CPU)
    few = patches.draw(torch.tensor([3, 0]), torch.Generator().manual_seed(0))
    assert few.present.all()
    assert few.activations.shape == (2, 10, 24)


def test_a_split_too_large_for_memory_gives_the_same_batches(cache, monkeypatch):
    patches = SplitPatches(cache, "train", 2, STRICT, CPU)
    monkeypatch.setattr("bindkit.patch_batches._IN_MEMORY_BYTES", 0)
    lazily = SplitPatches(cache, "train", 2, STRICT, CPU)
    scenes = torch.tensor([4, 1, 1])
    one, two = (p.draw(scenes, torch.Generator().manual_seed(3)) for p in (patches, lazily))
    assert lazily._table is None
    assert torch.equal(one.activations, two.activations)
    assert torch.equal(one.instances, two.instances)
    for one, two in zip(patches.judged(), lazily.judged(), strict=True):
        assert torch.equal(one.activations, two.activations)
    assert patches._judged
    assert not lazily._judged


def test_a_fit_is_saved_with_what_it_was_fitted_on(cache, tmp_path):
    fit = fit_probe(cache, 1, "linear", protocol=replace(QUICK, epochs=2, min_steps=10), seed=4)
    probe = load_probe(fit.save(tmp_path / "probe"), d_model=24, layer=1)
    assert probe.fitted_on["backbone"] == "planted"
    assert probe.fitted_on["seed"] == 4
    assert probe.fitted_on["scenes"] == "planted:"
    assert len(probe.fitted_on["history"]) == 2
    x = cache.activations("test", 1).take([0, 1, 2])
    assert torch.equal(probe(x), fit.probe(x))
    assert tuple(fit.row()) == RESULT_COLUMNS


@pytest.mark.parametrize(("n_scenes", "judged"), [(1, "train"), (2, "test"), (3, "test")])
def test_tiny_scene_sets_are_measured_and_say_on_what(n_scenes, judged, tmp_path):
    tiny = cache_activations(PlantedBackbone(), PlantedScenes(n_scenes), root=tmp_path)
    fit = fit_probe(tiny, 2, protocol=replace(QUICK, epochs=2, min_steps=10))
    assert fit.split == judged
    assert fit.metrics["n_scenes"] == 1
    assert np.isnan(fit.metrics["accuracy_low"]), "no interval over a single scene"
    assert (fit.history[0]["validation_loss"] is None) == (n_scenes < 3)


def test_what_cannot_be_fitted_is_a_named_error(cache, tmp_path):
    with pytest.raises(LayerError, match="no layer 7"):
        fit_probe(cache, 7)
    with pytest.raises(ProbeError, match="say which layer"):
        fit_probe(cache)
    with pytest.raises(ProbeError, match="unknown probe 'cubic'"):
        fit_probe(cache, 2, "cubic")
    with pytest.raises(ProbeError, match="unknown task 'count'"):
        fit_probe(cache, 2, task="count")


class Unlabelled(PlantedScenes):
    """Pictures of which nothing is labelled."""

    uri = "planted-unlabelled:"

    def __getitem__(self, position):
        shown = super().__getitem__(position)
        return Scene(shown.id, shown.image, np.zeros_like(shown.instances), np.zeros_like(shown.classes))


def test_scenes_without_a_label_are_an_error_that_says_what_is_missing(tmp_path):
    blank = cache_activations(PlantedBackbone(), Unlabelled(5), root=tmp_path)
    with pytest.raises(EmptySplitError, match=r"train split has no scene with two patches .* strict protocol"):
        fit_probe(blank, 2)
