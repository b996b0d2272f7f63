"""Planted answers are recovered through the real cache, chance stays chance, and a fit can be trusted again later."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import PlantedBackbone, PlantedScenes

from bindkit.cache import cache_activations
from bindkit.errors import EmptySplitError, InvalidParameterError, LayerError, ProbeError
from bindkit.probes import load_probe
from bindkit.probes.batches import SplitPatches
from bindkit.probes.fitting import fit_probe
from bindkit.probes.judging import judge_split
from bindkit.probes.layers import LayerPatches
from bindkit.probes.protocols import PAPER, RESULT_COLUMNS, STRICT
from bindkit.scenes.geometry import WindowGeometry
from bindkit.scenes.scene import Scene

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


class Sparse(PlantedScenes):
    """Scenes of which 0, 1, 2, ... patches are labelled; one patch of each is split evenly between two objects."""

    uri = "planted-sparse:"

    def __getitem__(self, position):
        shown = super().__getitem__(position)
        instances = np.zeros((8, 12), dtype=np.int32)
        # In the first columns, which one window shows.
        instances.flat[[0, 1, 2, 12, 13][: position % 6]] = [1, 1, 2, 2, 3][: position % 6]
        instances = np.kron(instances, np.ones((4, 4), dtype=np.int32))
        instances[-4:, :2], instances[-4:, 2:4] = 7, 8
        return Scene(shown.id, shown.image, instances, (instances > 0).astype(np.int32))


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    return cache_activations(PlantedBackbone(), Sparse(40), root=tmp_path_factory.mktemp("sparse"))


def usable_rows(labels, scene):
    """Rows of a scene that take part under the strict protocol."""
    rows = np.arange(labels.scene_offsets[scene], labels.scene_offsets[scene + 1])
    return rows[(labels.instances[rows] > 0) & (labels.purity[rows] > 0.5)]


@pytest.mark.parametrize(
    ("keep", "validated", "kept"),
    [
        ("accuracy", [(0.3, 0.7), (0.4, 0.9), (0.2, 0.8)], 1),
        ("loss", [(0.3, 0.7), (0.4, 0.9), (0.2, 0.8)], 2),
        ("accuracy", [(0.3, 0.8), (0.4, 0.8), (0.5, 0.7)], 0),
        ("accuracy", [(0.3, 0.7), (float("nan"), 0.9), (float("inf"), 0.8)], 0),
        ("loss", [(0.3, 0.7), (float("nan"), 0.9), (float("inf"), 0.8)], 0),
    ],
)
def test_the_kept_epoch_is_the_first_best_of_what_the_protocol_looks_at(
    cache, monkeypatch, tmp_path, keep, validated, kept
):
    weights = []

    def scripted(model, task, validation):
        weights.append(model.weight.detach().clone())
        return validated[len(weights) - 1]

    monkeypatch.setattr("bindkit.probes.fitting.validate", scripted)
    fit = fit_probe(cache, 2, "linear", protocol=replace(PAPER, epochs=3, keep=keep))
    assert torch.equal(fit.probe.weight, weights[kept])
    assert not torch.equal(weights[0], weights[1])
    history = load_probe(fit.save(tmp_path)).fitted_on["history"]
    finite = [loss if np.isfinite(loss) else None for loss, _ in validated]
    assert [entry["validation_loss"] for entry in history] == finite


def test_the_learning_rate_decays_and_is_divided_by_the_width_where_the_protocol_says(cache):
    still = replace(PAPER, epochs=4, decay_every=2, decay=0.0)
    losses = [entry["validation_loss"] for entry in fit_probe(cache, 2, "linear", protocol=still).history]
    assert losses[0] != losses[1] == losses[2] == losses[3]
    divided = replace(still, divide_by_width=True, learning_rate=24 * still.learning_rate)
    one, two = (fit_probe(cache, 2, "linear", protocol=rules).probe.weight for rules in (still, divided))
    assert torch.allclose(one, two)


@pytest.mark.parametrize(
    ("scenes_per_step", "min_steps", "steps"),
    [(256, 0, [24]), (10, 0, [10, 10, 4]), (10, 9, [10, 10, 4, 10, 10])],
)
def test_an_epoch_shows_every_scene_once_and_again_where_more_steps_are_asked_for(
    cache, monkeypatch, scenes_per_step, min_steps, steps
):
    shown, draw = [], SplitPatches.draw

    def recorded(self, scenes, generator, **options):
        shown.append(scenes.tolist())
        return draw(self, scenes, generator, **options)

    monkeypatch.setattr(SplitPatches, "draw", recorded)
    rules = replace(PAPER, epochs=2, scenes_per_step=scenes_per_step, min_steps=min_steps)
    orders = []
    for seed in (0, 1):
        shown.clear()
        fit_probe(cache, 2, "linear", protocol=rules, seed=seed)
        assert [len(scenes) for scenes in shown] == 2 * steps
        epoch = [scene for scenes in shown[: len(steps)] for scene in scenes]
        assert sorted(epoch[:24]) == list(range(24))
        orders.append(epoch)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("kind", ["cache", "sparse"])
def test_draws_hold_every_scene_without_repetition_and_only_its_own_rows(kind, request):
    cache = request.getfixturevalue(kind)
    patches = SplitPatches(cache, "train", 2, replace(STRICT, train_patches=500), CPU)
    labels = cache.labels("train")
    batch = patches.draw(torch.arange(len(patches)), torch.Generator().manual_seed(0))
    for position, scene_id in enumerate(patches.scene_ids):
        rows = usable_rows(labels, labels.scene_ids.index(scene_id))
        present = batch.present[position]
        by_corner = np.lexsort(batch.corners[position][present].numpy().T)
        expected = rows[np.lexsort(labels.corners[rows].T)]
        assert np.array_equal(batch.corners[position][present].numpy()[by_corner], labels.corners[expected])
        assert np.array_equal(batch.instances[position][present].numpy()[by_corner], labels.instances[expected])
        drawn = batch.activations[position][present]
        taken = cache.activations("train", 2).take(rows)
        assert drawn.shape == taken.shape
        assert torch.equal(drawn.sort(0).values, taken.sort(0).values)


def test_a_step_draws_so_many_patches_and_others_the_next_time(cache):
    patches = SplitPatches(cache, "train", 2, replace(STRICT, train_patches=10), CPU)
    generator = torch.Generator().manual_seed(0)
    few, next_time = (patches.draw(torch.tensor([3, 0]), generator) for _ in range(2))
    assert few.present.all()
    assert few.activations.shape == (2, 10, 24)
    assert not torch.equal(few.activations.sort(1).values, next_time.activations.sort(1).values)


@pytest.mark.parametrize("in_memory", [True, False])
def test_drawn_batches_share_a_buffer_where_one_is_given_and_judged_ones_never_do(cache, in_memory):
    patches = SplitPatches(cache, "train", 2, STRICT, CPU, 2**29 if in_memory else 0)
    buffer = patches.buffer(5 * STRICT.train_patches)
    judged = next(patches.judged()).activations.clone()
    for scenes in (torch.tensor([0, 2, 1]), torch.tensor([4, 3])):
        plain = patches.draw(scenes, torch.Generator().manual_seed(1))
        shared = patches.draw(scenes, torch.Generator().manual_seed(1), into=buffer)
        assert torch.equal(plain.activations, shared.activations)
        assert shared.activations.data_ptr() == buffer.data_ptr() != plain.activations.data_ptr()
    assert torch.equal(next(patches.judged()).activations, judged)
    labels = patches.draw(scenes, torch.Generator().manual_seed(1), labels_only=True)
    assert labels.activations.shape[-1] == 0
    assert torch.equal(labels.counted, plain.counted)


def test_scenes_with_fewer_than_two_usable_patches_are_left_out(sparse):
    labels = sparse.labels("train")
    patches = SplitPatches(sparse, "train", 2, STRICT, CPU)
    n_usable = [len(usable_rows(labels, scene)) for scene in range(labels.n_scenes)]
    assert {0, 1, 2} <= set(n_usable)
    assert (labels.purity == 0.5).any()
    assert patches.scene_ids == tuple(labels.scene_ids[k] for k, count in enumerate(n_usable) if count >= 2)
    assert patches.n_left_out == sum(count < 2 for count in n_usable)
    assert patches.n_patches == sum(n_usable)
    fit = fit_probe(sparse, 2, "linear", protocol=replace(QUICK, epochs=2, min_steps=4))
    assert fit.metrics["n_scenes"] == len(SplitPatches(sparse, "test", 2, STRICT, CPU))


def test_judged_patches_depend_on_the_scene_alone(cache, tmp_path):
    """Not on the split it is in, nor on the scenes beside it."""
    other = cache_activations(PlantedBackbone(), PlantedScenes(13), root=tmp_path)
    rules = replace(STRICT, judged_patches=12)
    chosen = []
    for source in (cache, other):
        seen = {}
        for split in ("train", "validation", "test"):
            patches = SplitPatches(source, split, 2, rules, CPU)
            for batch in patches.judged():
                for k, scene in enumerate(batch.scenes.tolist()):
                    seen[patches.scene_ids[scene]] = batch.corners[k].tolist()
        chosen.append(seen)
    assert len(chosen[1]) == 13
    assert all(chosen[0][scene_id] == corners for scene_id, corners in chosen[1].items())
    assert max(top for corners in chosen[1].values() for top, _ in corners) == 28, "from the whole scene"


def test_figures_do_not_depend_on_how_many_scenes_make_a_batch(cache, monkeypatch):
    probe = fit_probe(cache, 1, "linear", protocol=replace(QUICK, epochs=1, min_steps=1)).probe
    figures = []
    for n_scenes in (32, 3):
        monkeypatch.setattr("bindkit.probes.batches._SCENES_PER_JUDGED_BATCH", n_scenes)
        patches = SplitPatches(cache, "train", 1, STRICT, CPU)
        figures.append(judge_split(probe, patches))
    assert figures[0] == pytest.approx(figures[1], abs=1e-6)


def test_a_walk_over_the_judged_scenes_that_is_broken_off_leaves_none_out_of_the_next(cache, monkeypatch):
    monkeypatch.setattr("bindkit.probes.batches._SCENES_PER_JUDGED_BATCH", 5)
    patches = SplitPatches(cache, "train", 2, STRICT, CPU)
    next(patches.judged())
    for _ in range(2):
        assert torch.equal(torch.cat([batch.scenes for batch in patches.judged()]), torch.arange(len(patches)))


def test_a_split_too_large_for_memory_gives_the_same_batches(cache):
    patches = SplitPatches(cache, "train", 2, STRICT, CPU)
    kept = list(patches.judged())
    lazily = SplitPatches(cache, "train", 2, STRICT, CPU, buffer_bytes=0)
    scenes = torch.tensor([4, 1, 1])
    one, two = (p.draw(scenes, torch.Generator().manual_seed(3)) for p in (patches, lazily))
    assert lazily._table is None
    assert torch.equal(one.activations, two.activations)
    assert torch.equal(one.instances, two.instances)
    for one, two in zip(kept, lazily.judged(), strict=True):
        assert torch.equal(one.activations, two.activations)
    assert all(one is again for one, again in zip(kept, patches.judged(), strict=True))
    assert not lazily._judged


@pytest.mark.parametrize("probe", ["linear", "quadratic"])
def test_fits_from_disk_are_those_from_memory_bit_for_bit(cache, probe, monkeypatch):
    from_memory, from_disk = (fit_probe(cache, 2, probe, protocol=QUICK, buffer_bytes=n) for n in (2**29, 0))
    assert from_memory.metrics == from_disk.metrics
    for one, two in zip(from_memory.probe.state_dict().values(), from_disk.probe.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    monkeypatch.setattr("bindkit.probes.layers.free_memory", lambda: 4 * 5000)
    splits = LayerPatches(cache, 2).splits
    held = {name: 4 * part.n_patches * part.d_model for name, part in splits.items() if part.is_in_memory}
    assert sum(held.values()) <= 5000 and "train" not in held  # a quarter of what is free
    with pytest.raises(InvalidParameterError, match="buffer_bytes is at least 0"):
        fit_probe(cache, 2, buffer_bytes=-1)


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
    assert fit.split == fit.probe.fitted_on["split"] == judged
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
    with pytest.raises(LayerError, match="patches of layer 1, not of layer 2"):
        fit_probe(LayerPatches(cache, 1), layer=2)


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


def test_the_paper_protocol_says_when_a_cache_was_normalised_otherwise(tmp_path, caplog):
    other = PlantedBackbone(mean=(0.5, 0.5, 0.5))
    own = cache_activations(other, PlantedScenes(3), root=tmp_path)
    LayerPatches(own, 2, "strict")
    assert "ImageNet" not in caplog.text
    LayerPatches(own, 2, "paper")
    assert "the paper normalises every backbone with ImageNet's" in caplog.text


class Rounded(PlantedBackbone):
    geometry = WindowGeometry(32, 32, 4, "reference")


def test_the_paper_protocol_says_when_a_cache_has_other_roundings_than_the_references(cache, tmp_path, caplog):
    LayerPatches(cache, 2, "strict")
    assert "roundings" not in caplog.text
    LayerPatches(cache, 2, "paper")
    assert 'load_backbone(..., arithmetic="reference")' in caplog.text
    caplog.clear()
    LayerPatches(cache_activations(Rounded(), PlantedScenes(3), root=tmp_path), 2, "paper")
    assert "roundings" not in caplog.text


class Loud(PlantedBackbone):
    """The planted layers as large as those of real ViTs may be, and off centre."""

    def activations(self, windows, layers):
        return {layer: 300 * found + 500 for layer, found in super().activations(windows, layers).items()}


@pytest.fixture(scope="module")
def loud(tmp_path_factory):
    return cache_activations(
        Loud(name="loud"), PlantedScenes(40), root=tmp_path_factory.mktemp("loud"), dtype="float32"
    )


def test_a_baseline_has_its_likeliest_offset_however_large_its_scores(loud):
    fit = fit_probe(loud, 2, "dot_product", protocol=QUICK)
    x, same = [], []
    for batch in SplitPatches(loud, "train", 2, STRICT, CPU).judged():
        x.append((batch.activations @ batch.activations.mT)[batch.counted].double())
        same.append(batch.same[batch.counted].double())
    scores, answers = torch.cat(x), torch.cat(same)
    tried = torch.linspace(float(scores.min()), float(scores.max()), 400, dtype=torch.float64)
    losses = [torch.nn.functional.binary_cross_entropy_with_logits(scores - b, answers) for b in tried]
    mine = torch.nn.functional.binary_cross_entropy_with_logits(scores + float(fit.probe.bias), answers)
    assert mine <= 1.1 * min(losses)
    assert fit.metrics["accuracy"] > 0.6
    assert min(fit.metrics["accuracy"], fit.metrics["balanced_accuracy"]) > 0.5


def test_a_probe_of_ones_own_learns_in_activations_of_common_length(loud, tmp_path):
    """bindkit/README.md's example: the sign and order of its answers do not depend on how large activations are."""
    from bindkit.probes import PROBES, Probe, register_probe

    @register_probe("sum_of_products_for_a_test")
    class SumOfProducts(Probe):
        def __init__(self, d_model):
            super().__init__(d_model)
            self.factor = torch.nn.Parameter(torch.ones(()))
            self.bias = torch.nn.Parameter(torch.zeros(()))

        def pairwise(self, x, y):
            return self.factor * (x @ y.mT) + self.bias

    try:
        own, plain = (
            fit_probe(loud, 2, kind, protocol=QUICK) for kind in ("sum_of_products_for_a_test", "dot_product")
        )
        lengths = loud.activations("train", 2).take(np.arange(len(loud.labels("train")))).square().sum(1)
        assert own.probe.scale == pytest.approx(float(lengths.mean()) ** -0.5, rel=0.1)
        assert own.metrics["auroc"] == pytest.approx(plain.metrics["auroc"], abs=1e-3), "the same order of pairs"
        assert float(own.probe.factor) > 0
        own.save(tmp_path)
        x = torch.randn(5, own.probe.d_model)
        assert torch.equal(load_probe(tmp_path)(x), own.probe(x))
        assert torch.allclose(own.probe(x), own.probe.factor * own.probe.scale**2 * (x @ x.T) + own.probe.bias)
    finally:
        del PROBES["sum_of_products_for_a_test"]


@pytest.mark.parametrize("name", ["epochs", "scenes_per_step", "train_patches", "judged_patches", "decay_every"])
def test_a_protocol_without_steps_is_refused(name):
    with pytest.raises(InvalidParameterError, match=f"{name} takes a whole number, at least 1; got 0"):
        replace(STRICT, **{name: 0})
