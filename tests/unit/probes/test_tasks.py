"""Tasks: pointwise ones read planted codes, shuffled labels end at chance, and what cannot be measured is refused."""

import itertools
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
import torch
from planted import PlantedBackbone, PlantedScenes

from bindkit.cache import ActivationCache, cache_activations
from bindkit.errors import (
    CacheMismatchError,
    ConstantActivationsError,
    InvalidParameterError,
    NonFiniteActivationsError,
    OneAnswerError,
    ProbeError,
)
from bindkit.probes import make_probe
from bindkit.probes.batches import SplitPatches
from bindkit.probes.fitting import fit_probe, fit_probes
from bindkit.probes.judging import TASKS, judge_pairs, match, object_masks, require_pairwise, told_apart, validate
from bindkit.probes.layers import LayerPatches
from bindkit.probes.protocols import PAPER, STRICT
from bindkit.results.sweeping import same_class_pairs, sweep
from bindkit.scenes import subset
from bindkit.scenes.scene import Scene

CPU = torch.device("cpu")
QUICK = replace(STRICT, epochs=6, min_steps=240)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return cache_activations(PlantedBackbone(), PlantedScenes(40), root=tmp_path_factory.mktemp("planted"))


def test_probes_side_by_side_get_exactly_what_each_gets_alone(cache):
    rules = replace(STRICT, epochs=2, min_steps=8)
    wanted = [
        *[(probe, "pairwise") for probe in ("linear", "diag_quadratic", "quadratic", "cosine_similarity", "softmax")],
        *[("linear", task) for task in ("pointwise_class", "pointwise_identity")],
        ("quadratic", "shuffled_labels"),
    ]
    for protocol in (rules, replace(PAPER, epochs=2)):
        together = fit_probes(LayerPatches(cache, 2, protocol), wanted, seed=3)
        for (probe, task), fit in zip(wanted, together, strict=True):
            alone = fit_probe(cache, 2, probe, task, protocol, seed=3)
            for name, weight in alone.probe.state_dict().items():
                assert torch.equal(weight, fit.probe.state_dict()[name]), (probe, task, name)
            assert fit.metrics == pytest.approx(alone.metrics, nan_ok=True)


def test_a_class_code_is_read_patch_by_patch_and_never_tells_twins(cache):
    figures = fit_probe(cache, 1, "linear", "pointwise_class", QUICK).metrics
    assert figures["class_accuracy"] > 0.97
    assert figures["twins_accuracy"] < 0.1, "twins are of one class, so that they are called the same"
    assert figures["auroc"] > 0.75


def test_an_instance_code_is_matched_to_queries(cache):
    longer = replace(STRICT, epochs=12, min_steps=960)
    figures = fit_probe(cache, 2, "linear", "pointwise_identity", longer).metrics
    assert figures["matched_iou"] > 0.8
    assert figures["auroc"] > 0.95
    assert figures["twins_auroc"] > 0.9
    noise = fit_probe(cache, 0, "linear", "pointwise_identity", QUICK).metrics
    assert noise["matched_iou"] < 0.4


def test_the_control_task_keeps_the_shares_and_ends_at_chance(cache):
    plain, shuffled = (fit_probe(cache, 2, "quadratic", task, QUICK) for task in ("pairwise", "shuffled_labels"))
    assert plain.metrics["twins_auroc"] > 0.95
    assert shuffled.metrics["auroc_low"] - 0.02 < 0.5 < shuffled.metrics["auroc_high"] + 0.02
    assert shuffled.metrics["n_pairs"] == plain.metrics["n_pairs"]


def test_the_same_class_oracle_is_perfect_on_classes_and_blind_to_twins(cache):
    split, pairs = same_class_pairs(cache, STRICT)
    figures = judge_pairs(pairs)
    fit = fit_probe(cache, 1, "linear", protocol=replace(QUICK, epochs=1, min_steps=1))
    assert (split, figures["n_pairs"]) == (fit.split, fit.metrics["n_pairs"])
    assert figures["twins_auroc"] == 0.5
    assert figures["twins_accuracy"] == 0
    # Only twins are judged wrong.
    n_twins = sum(int((b.twins_question & ~b.same & b.counted).sum()) for b in _judged(cache))
    assert figures["accuracy"] == pytest.approx(1 - n_twins / figures["n_pairs"])


def _judged(cache):
    return SplitPatches(cache, "test", 1, STRICT, CPU).judged()


def test_a_sweep_takes_what_goes_together_and_adds_the_oracle(cache, tmp_path):
    brief = replace(STRICT, epochs=1, min_steps=2)
    asked = (["linear", "quadratic"], ["pairwise", "pointwise_class", "shuffled_labels"])
    table = sweep([cache], [2], *asked, protocol=brief, root=tmp_path, oracle=True)
    assert list(zip(table["probe"], table["task"], strict=True)) == [
        *(("linear", "pairwise"), ("linear", "pointwise_class"), ("linear", "shuffled_labels")),
        *(("quadratic", "pairwise"), ("quadratic", "shuffled_labels"), ("oracle", "pairwise")),
    ]
    assert table["n_pairs"].nunique() == 1
    assert table["backbone"].iloc[-1] == "control:same-class"
    assert table["seed"].dtype == int
    assert table["class_accuracy"].notna().tolist() == [False, True, False, False, False, False]
    again = sweep([cache], [2], *asked, protocol=brief, root=tmp_path, oracle=True)
    assert again.equals(table)


@pytest.mark.parametrize(
    ("probes", "tasks", "message"),
    [
        (["cubic"], ["pairwise"], "unknown probe 'cubic'"),
        (["linear"], ["segment"], "unknown task 'segment'"),
        (["quadratic"], ["pointwise_class"], "pointwise_class takes the linear probe"),
        (["class_map"], ["pairwise"], "pairwise takes probes that judge pairs; got class_map"),
        (["linear", "class_map"], ["pairwise"], "got class_map"),
        (["linear@3"], ["pairwise"], "takes nothing behind an @"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_fitted(cache, probes, tasks, message):
    with pytest.raises(ProbeError, match=message):
        sweep([cache], [2], probes, tasks, protocol=QUICK)


def test_objects_are_where_they_are_seen_and_queries_are_assigned_for_the_least_cost(cache):
    patches = SplitPatches(cache, "train", 2, PAPER, CPU)
    batch = patches.draw(torch.arange(4), torch.Generator().manual_seed(0), n_patches=9)
    masks, is_object = object_masks(batch)
    for scene in range(4):
        ids = [k for k in dict.fromkeys(batch.instances[scene].tolist()) if k]
        found = {tuple(mask.bool().tolist()) for mask in masks[scene][is_object[scene]]}
        assert found == {tuple((batch.instances[scene] == k).tolist()) for k in ids}
    queries = torch.randn(4, 5, 9, generator=torch.Generator().manual_seed(1))
    masks, is_object = masks[:, :3], is_object[:, :3]
    chosen, objects, scenes = match(queries, masks, is_object, batch.present.float(), 5.0, 5.0)

    def cost(scene, query, number):
        total, said = 0.0, queries[scene, query].double().sigmoid()
        wanted = masks[scene, number].double()
        total += 5 * float(torch.nn.functional.binary_cross_entropy(said, wanted))
        return total + 5 * float(1 - (2 * (said * wanted).sum() + 1) / (said.sum() + wanted.sum() + 1))

    for scene in range(4):
        count = int(is_object[scene].sum())
        orders = itertools.permutations(range(5), count)
        best = min(sum(cost(scene, query, k) for k, query in enumerate(order)) for order in orders)
        mine = scenes == scene
        got = sum(cost(scene, int(q), int(k)) for q, k in zip(chosen[mine], objects[mine], strict=True))
        assert int(mine.sum()) == count
        assert got == pytest.approx(best, abs=1e-5)


class OneObject(PlantedScenes):
    """Every scene is one object."""

    uri = "planted-one:"

    def __getitem__(self, position):
        shown = super().__getitem__(position)
        ones = np.ones(self.size, dtype=np.int32)
        return Scene(shown.id, shown.image, ones, ones)


class NoClasses(PlantedScenes):
    """Instances without classes."""

    uri = "planted-classless:"

    def __getitem__(self, position):
        shown = super().__getitem__(position)
        return Scene(shown.id, shown.image, shown.instances, np.zeros_like(shown.instances))


class Constant(PlantedBackbone):
    """The same activation everywhere."""

    def activations(self, windows, layers):
        return {layer: torch.full((len(windows), 64, self.d_model), 3.25) for layer in layers}


def test_one_object_a_scene_is_refused(tmp_path):
    lonely = cache_activations(PlantedBackbone(), OneObject(12), root=tmp_path, layers=[2])
    with pytest.raises(OneAnswerError, match="every pair of patches of the train split is on one object"):
        fit_probe(lonely, 2)


def test_scenes_without_classes_have_no_class_to_predict(tmp_path):
    bare = cache_activations(PlantedBackbone(), NoClasses(12), root=tmp_path, layers=[2])
    with pytest.raises(OneAnswerError, match="no training patch carries a class label"):
        fit_probe(bare, 2, "linear", "pointwise_class")
    assert fit_probe(bare, 2, protocol=QUICK).metrics["auroc"] > 0.9


def test_constant_activations_are_refused(tmp_path):
    same = cache_activations(Constant(), PlantedScenes(12), root=tmp_path, layers=[2])
    for protocol in ("strict", "paper"):
        with pytest.raises(ConstantActivationsError, match="same activation at layer 2"):
            fit_probe(same, 2, protocol=protocol)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("in_memory", [True, False])
def test_nan_and_infinity_in_a_cache_are_named(cache, monkeypatch, value, in_memory):
    from bindkit.cache.store import CachedActivations

    take = CachedActivations.take

    def poisoned(self, rows, into=None):
        taken = take(self, rows, into).clone()
        taken[len(taken) // 2, 3] = value
        return taken

    monkeypatch.setattr(CachedActivations, "take", poisoned)
    monkeypatch.setattr("bindkit.probes.layers.free_memory", lambda: 2**31 if in_memory else 0)
    with pytest.raises(NonFiniteActivationsError, match="NaN or infinite activations at layer 2"):
        fit_probe(cache, 2, protocol=replace(STRICT, epochs=1, min_steps=1))


def test_of_very_many_classes_the_most_frequent_are_told_apart(cache):
    patches = SplitPatches(cache, "train", 2, STRICT, CPU)
    assert told_apart(patches, {1: "one", 2: "two", 3: "three"}) == [[1], [2], [3]]
    patches.classes = torch.arange(patches.n_patches) % 200 + 1
    patches.classes[:50] = 7
    named = told_apart(patches, range(1, 3000))
    assert len(named) == 150
    assert [7] in named


class Benchmarked(PlantedScenes):
    """Classes 1 and 3 are number 2 of a benchmark of two, class 2 is none of its."""

    benchmark_classes = MappingProxyType({1: 2, 2: 0, 3: 2})


def test_a_benchmark_says_which_classes_are_told_apart(tmp_path):
    made = cache_activations(PlantedBackbone(), Benchmarked(20), root=tmp_path, layers=[2])
    again = ActivationCache.open(made.path)
    assert again.benchmark_classes == {1: 2, 2: 0, 3: 2}
    fit = fit_probe(again, 2, "linear", task="pointwise_class", protocol=replace(PAPER, epochs=1))
    assert fit.probe.options["class_ids"] == [[], [1, 3]]
    assert fit.probe.targets(torch.tensor([0, 1, 2, 3, 4, 1])).tolist() == [0, 2, 0, 2, 0, 2]
    plain = cache_activations(PlantedBackbone(), PlantedScenes(20), root=tmp_path / "plain", layers=[2])
    assert plain.benchmark_classes == {}
    assert b"benchmark" not in (plain.path / "manifest.json").read_bytes(), "older caches stay what they are"
    with pytest.raises(CacheMismatchError, match="benchmark_classes: the cache has nothing, this call has"):
        cache_activations(PlantedBackbone(), Benchmarked(20), root=tmp_path / "plain", layers=[2])


def test_a_view_of_scenes_has_the_benchmark_of_the_whole():
    whole = Benchmarked(4)
    assert subset(whole, [2, 0]).benchmark_classes == whole.benchmark_classes
    assert subset(PlantedScenes(4), [2, 0]).benchmark_classes is None


def test_batches_weigh_in_validation_as_many_terms_as_their_loss_is_a_mean_of(cache, monkeypatch):
    # The second batch has one scene; one big batch has all scenes, so that its loss is the mean to compare with.
    patches = SplitPatches(cache, "validation", 2, replace(STRICT, judged_patches=40), CPU)
    n_scenes = len(patches)
    probe = TASKS["pointwise_class"].make_probe("linear", patches, 0, [1, 2, 3])
    other = SplitPatches(cache, "validation", 2, patches.protocol, CPU)
    monkeypatch.setattr("bindkit.probes.batches._SCENES_PER_JUDGED_BATCH", n_scenes - 1)
    assert [len(batch.scenes) for batch in other.judged()] == [n_scenes - 1, 1]
    monkeypatch.setattr("bindkit.probes.batches._SCENES_PER_JUDGED_BATCH", n_scenes)
    for task, told in (("pointwise_class", probe), ("pairwise", make_probe("quadratic", 24))):
        whole, parts = validate(told, TASKS[task], patches), validate(told, TASKS[task], other)
        assert parts == pytest.approx(whole, abs=1e-6)


def test_there_are_the_tasks_of_the_design():
    assert set(TASKS) == {"pairwise", "pointwise_class", "pointwise_identity", "shuffled_labels"}


class FewOrMany(PlantedScenes):
    """Scenes of one class with 2 or 6 objects, by turns; colours tell which."""

    uri = "planted-few-or-many:"

    def __getitem__(self, position):
        rng, many = np.random.default_rng((9, position)), position % 2
        blocks = rng.integers(1, 7 if many else 3, (8, 12))
        instances = np.kron(blocks, np.ones((4, 4), dtype=int)).astype(np.int32)
        colours = [instances * 20, np.full(instances.shape, 40 * (1 + many)), rng.integers(0, 256, instances.shape)]
        return Scene(self.ids[position], np.stack(colours, -1).astype(np.uint8), instances, np.ones_like(instances))


@pytest.mark.parametrize("probe", ["linear", "softmax"])
def test_shuffled_labels_say_nothing_of_how_many_objects_a_scene_has(tmp_path, probe):
    """Layer 1 has the class's code: here, of a scene of few objects or many. Real labels can be guessed from it."""
    cache = cache_activations(PlantedBackbone(), FewOrMany(100), root=tmp_path)
    plain, shuffled = (fit_probe(cache, 1, probe, task, QUICK) for task in ("pairwise", "shuffled_labels"))
    assert plain.metrics["auroc_low"] > 0.55
    assert shuffled.metrics["auroc_low"] - 0.02 < 0.5 < shuffled.metrics["auroc_high"] + 0.02


def test_every_scene_has_the_labels_of_another_one_in_random_order(tmp_path):
    cache = cache_activations(PlantedBackbone(), FewOrMany(40), root=tmp_path)
    patches = SplitPatches(cache, "train", 1, replace(STRICT, judged_patches=512), CPU)
    before, after = [], []
    for batch in patches.judged():
        other = patches.shuffled(batch)
        assert torch.equal(other.instances, patches.shuffled(batch).instances), "the same whenever it is asked for"
        assert torch.equal(other.present, batch.present)
        before += batch.instances.tolist()
        after += other.instances.tolist()
    ordered = [list(map(sorted, labels)) for labels in (before, after)]
    assert sorted(ordered[0]) == sorted(ordered[1])
    assert all(own != got for own, got in zip(*ordered, strict=True)), "no scene keeps its own"
    assert all(got not in before for got in after), "nor another one's order"


def test_a_single_scene_is_permuted_within_it(tmp_path):
    cache = cache_activations(PlantedBackbone(), PlantedScenes(3), root=tmp_path)
    patches = SplitPatches(cache, "test", 1, replace(STRICT, judged_patches=512), CPU)
    (batch,) = patches.judged()
    other = patches.shuffled(batch)
    assert len(patches) == 1
    assert other.instances[0].tolist() != batch.instances[0].tolist()
    assert sorted(other.instances[0].tolist()) == sorted(batch.instances[0].tolist())


def test_tasks_without_the_measure_are_refused():
    require_pairwise(["shuffled_labels", "pairwise"])
    with pytest.raises(InvalidParameterError, match=r"\(pointwise_class\) lack .* 'pairwise pointwise_class'"):
        require_pairwise(["pointwise_class"])
    with pytest.raises(InvalidParameterError, match=r"\(none\) lack"):
        require_pairwise([])
