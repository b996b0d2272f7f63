"""A cache read as something else: the model's own maps by hand, on the very same rows and labels."""

import inspect
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import LAYERS, WIDTH, write_checkpoint

import bindkit as bk
from bindkit.backbones import attention_maps
from bindkit.cache.views import HeldCache
from bindkit.errors import (
    CacheError,
    InvalidParameterError,
    LayerError,
    ProbeError,
    ProbeMismatchError,
)
from bindkit.probes.fitting import fit_probes
from bindkit.probes.protocols import STRICT, load_probe, save_probe

BRIEF = replace(STRICT, epochs=2, min_steps=4, judged_patches=24)
SCENES = "synthetic:n=12,seed=0,size=80x80"
HEADS, HEAD_WIDTH = 2, WIDTH // 2
PARTS = {"q": "query", "k": "key", "v": "value"}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    place = write_checkpoint("dinov2", tmp_path_factory.mktemp("views") / "model")
    return bk.load_backbone(str(place), device="cpu", short_side=64)


@pytest.fixture(scope="module")
def scenes():
    return bk.open_scenes(SCENES)


@pytest.fixture(scope="module")
def cache(backbone, scenes, tmp_path_factory):
    root = tmp_path_factory.mktemp("cache")
    return bk.cache_activations(backbone, scenes, root, layers="all", dtype="float32")


@pytest.fixture(scope="module")
def dictionary():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(WIDTH, 48), torch.nn.ReLU())


def by_hand(backbone, layer, source, rows):
    """The norm and the map of the block after a layer, from its own modules' weights, in float64."""
    block = backbone.tower.blocks[layer + 1]
    (module,) = (m for name, m in block.named_modules() if name.rpartition(".")[2] in (PARTS[source], f"{source}_proj"))
    x, norm = rows.double(), block.norm1
    deviation = x - x.mean(1, keepdim=True)
    normed = deviation / (deviation.square().mean(1, keepdim=True) + norm.eps).sqrt()
    normed = normed * norm.weight.double() + norm.bias.double()
    return normed @ module.weight.double().T + module.bias.double()


@pytest.mark.parametrize("source", ["q", "k", "v"])
def test_rows_are_what_the_next_block_computes(backbone, cache, source):
    whole, heads = bk.read_as(cache, source), [bk.read_as(cache, source, head) for head in range(HEADS)]
    assert whole.d_model == WIDTH and [view.d_model for view in heads] == [HEAD_WIDTH] * HEADS
    for split in ("train", "test"):
        rows = np.random.default_rng(0).integers(0, len(cache.labels(split)), 50)
        for layer in range(LAYERS - 1):
            expected = by_hand(backbone, layer, source, cache.activations(split, layer).take(rows))
            taken = whole.activations(split, layer).take(rows)
            assert taken.dtype == torch.float32
            torch.testing.assert_close(taken, expected.float(), rtol=1e-4, atol=1e-5)
            maps = attention_maps(backbone, layer)
            own = maps.read(cache.activations(split, layer).take(rows), PARTS[source])
            assert torch.equal(taken, own)
            for head, view in enumerate(heads):
                part = view.activations(split, layer).take(rows)
                assert torch.equal(part, taken[:, head * HEAD_WIDTH : (head + 1) * HEAD_WIDTH])


def test_the_three_sources_differ(cache):
    found = [bk.read_as(cache, source).activations("test", 0).take([0, 1, 2]) for source in PARTS]
    assert not any(torch.allclose(found[a], found[b], atol=0.1) for a, b in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize(("source", "options"), [("v", {}), ("k", {"head": 1})])
def test_rows_go_where_they_are_asked_to_and_nowhere_else(cache, source, options):
    activations = bk.read_as(cache, source, **options).activations("train", 1)
    into = torch.full((9, activations.d_model), 7.0)
    taken = activations.take([5, 0, 5], into)
    assert taken.data_ptr() == into.data_ptr() and taken.shape == (3, activations.d_model)
    assert torch.equal(taken, activations.take([5, 0, 5]))
    assert (into[3:] == 7).all()
    assert len(activations) == activations.n_rows == len(cache.labels("train"))
    assert not activations.take([1]).is_inference(), "callers may train on it"


def test_a_view_has_the_labels_splits_and_scenes_of_its_cache(cache):
    view = bk.read_as(cache, "v", head=1)
    for split in cache.splits:
        assert view.labels(split) is cache.labels(split)
    assert (view.groups, view.class_names, view.path) == (cache.groups, cache.class_names, cache.path)
    assert bk.read_as(cache, "residual") is cache


def test_names_digests_and_widths_tell_sources_apart(cache, dictionary):
    views = {name: bk.read_as(cache, name) for name in PARTS}
    views |= {f"v@{head}": bk.read_as(cache, "v", head) for head in range(HEADS)}
    views["mine"] = bk.read_as(cache, "mine", encode=dictionary)
    for name, view in views.items():
        assert view.backbone["name"] == f"{cache.backbone['name']}:{name}"
        assert view.backbone["d_model"] == view.d_model
    every = [cache, *views.values()]
    assert len({view.backbone["weights_digest"] for view in every}) == len(every)
    digests = [tuple(sorted(view.shard_digests().items())) for view in every]
    assert len(set(digests)) == len(every)
    again = bk.read_as(bk.ActivationCache.open(cache.path), "v", 0)
    assert again.backbone == views["v@0"].backbone
    assert again.shard_digests() == views["v@0"].shard_digests()
    assert cache.backbone["name"].endswith("model"), "the cache itself is as it was"


def test_the_last_layer_is_read_by_nothing(cache, dictionary):
    view = bk.read_as(cache, "q")
    assert view.layers == tuple(range(LAYERS - 1))
    with pytest.raises(LayerError, match=rf"layer {LAYERS - 1} is not in the cache"):
        view.activations("train", LAYERS - 1)
    with pytest.raises(LayerError, match=f"has no layer {LAYERS - 1}"):
        bk.fit_probe(view, LAYERS - 1, "linear", protocol=BRIEF)
    assert bk.read_as(cache, "mine", encode=dictionary).layers == cache.layers


def test_a_dictionary_of_ones_own(cache, dictionary):
    view = bk.read_as(cache, "mine", encode=dictionary)
    rows = np.random.default_rng(1).integers(0, len(cache.labels("train")), 40)
    x = cache.activations("train", LAYERS - 1).take(rows)
    linear = dictionary[0]
    expected = (x.double() @ linear.weight.double().T + linear.bias.double()).clamp(min=0).detach()
    taken = view.activations("train", LAYERS - 1).take(rows)
    torch.testing.assert_close(taken, expected.float(), rtol=1e-4, atol=1e-5)
    assert view.d_model == 48 and not taken.requires_grad
    fit = bk.fit_probe(view, LAYERS - 1, "quadratic", protocol=BRIEF)
    assert fit.probe.d_model == 48 and fit.probe.fitted_on["backbone"] == view.backbone["name"]
    plain = bk.fit_probe(cache, LAYERS - 1, "quadratic", protocol=BRIEF)
    assert fit.metrics["n_pairs"] == plain.metrics["n_pairs"]


def test_views_of_views_are_read_one_after_the_other(cache):
    doubled = bk.read_as(bk.read_as(cache, "v", 1), "doubled", encode=lambda rows: 2 * rows)
    values = bk.read_as(cache, "v", 1).activations("test", 0).take([3, 4])
    assert torch.equal(doubled.activations("test", 0).take([3, 4]), 2 * values)
    assert doubled.layers == tuple(range(LAYERS - 1)) and doubled.d_model == HEAD_WIDTH
    assert doubled.backbone["name"].endswith(":v@1:doubled")
    with pytest.raises(ProbeError, match="is not what the next block reads"):
        bk.read_as(doubled, "q")
    with pytest.raises(ProbeError, match="is not what the next block reads"):
        bk.fit_probe(doubled, 0, "self_attention", protocol=BRIEF)


def test_a_probe_of_a_view_is_none_of_the_backbone(backbone, scenes, cache, tmp_path):
    view, other = bk.read_as(cache, "v"), bk.read_as(cache, "k")
    fit = bk.fit_probe(view, 1, "quadratic", protocol=BRIEF)
    loaded = load_probe(save_probe(fit.probe, tmp_path), d_model=WIDTH, layer=1)
    for probe in (fit.probe, loaded):
        with pytest.raises(ProbeMismatchError, match=r"was fitted on .*:v .*asked to judge"):
            bk.affinity(backbone, probe, scenes[0])
        for wrong in (cache, other):
            with pytest.raises(ProbeMismatchError, match=r"was fitted on .*:v "):
                bk.judge_probe(probe, wrong)
        again = bk.judge_probe(probe, view)
        assert again == pytest.approx({name: fit.metrics[name] for name in again}, nan_ok=True)


def test_held_rows_stand_in_for_the_caches_own(cache):
    """A probe judges rows that are held as it judges the same ones on disk."""
    probe = bk.fit_probe(cache, 1, protocol=BRIEF).probe
    for split in ("validation", "test"):
        labels, other = cache.labels(split), "train"
        rows = cache.activations(split, 1).take(range(len(labels)))
        held = HeldCache(cache, split, labels, {1: rows})
        into = torch.zeros(4, WIDTH)
        assert torch.equal(held.activations(split, 1).take([7, 0, 7], into), rows[[7, 0, 7]])
        assert torch.equal(into[:3], rows[[7, 0, 7]]) and not into[3:].any()
        assert held.layers == (1,) and held.labels(split) is labels
        with pytest.raises(InvalidParameterError, match=f"only rows of the {split} split are held here, got {other}"):
            held.labels(other)
        with pytest.raises(LayerError):
            held.activations(split, 0)
        assert bk.judge_probe(probe, held, split) == pytest.approx(bk.judge_probe(probe, cache, split), nan_ok=True)
        assert bk.judge_probe(probe, HeldCache(cache, split, labels, {1: 0 * rows}), split)["auroc"] == 0.5


@pytest.mark.parametrize("source", ["v", "k"])
def test_a_view_that_is_read_batch_by_batch_gives_the_same_fit(cache, source):
    view = bk.read_as(cache, source, 0)
    in_memory, from_disk = (bk.fit_probe(view, 1, protocol=BRIEF, buffer_bytes=size) for size in (None, 0))
    assert in_memory.metrics["auroc"] == pytest.approx(from_disk.metrics["auroc"], abs=1e-4)


@pytest.fixture
def fitted(monkeypatch):
    """Every fit that is made, as (backbone, layer, probe); those read from disk are not among them."""
    made = []

    def counting(patches, wanted, seed):
        made.extend((patches.cache.backbone["name"].rpartition(":")[2], patches.layer, probe) for probe, _ in wanted)
        return fit_probes(patches, wanted, seed)

    monkeypatch.setattr("bindkit.results.sweeping.fit_probes", counting)
    return made


def test_a_sweep_over_views_resumes(cache, fitted, tmp_path):
    views = [bk.read_as(cache, "v", head) for head in range(HEADS)]
    options = {"probes": ["linear", "diag_quadratic"], "protocol": BRIEF, "root": tmp_path}
    first = bk.sweep(views[0], **options)
    assert fitted == [("v@0", layer, probe) for layer in (0, 1) for probe in ("linear", "diag_quadratic")]
    again = bk.sweep(bk.read_as(cache, "v", 0), **options)
    assert len(fitted) == 4
    pd.testing.assert_frame_equal(first, again)
    bk.sweep(views[1], **options)
    assert len(fitted) == 8, "another head is another source"


def test_a_cache_and_its_views_are_swept_side_by_side(cache, fitted, tmp_path):
    every = [cache, bk.read_as(cache, "v"), bk.read_as(cache, "k"), bk.read_as(cache, "v")]
    table = bk.sweep(every, [0, 1], ["linear"], protocol=BRIEF, root=tmp_path)
    names = [cache.backbone["name"] + end for end in ("", ":v", ":k")]
    assert list(table["backbone"]) == [name for name in names for _ in (0, 1)]
    assert len(fitted) == 6
    assert table["judged_pairs"].nunique() == 1 and table["n_pairs"].nunique() == 1


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("x", {}, "unknown source 'x'; take residual"),
        ("residual", {"head": 0}, "unknown source 'residual'; take residual \\(no head\\)"),
        ("v", {"head": HEADS}, f"no attention head {HEADS}; this backbone has 0 to {HEADS - 1}"),
        ("v", {"head": -1}, "no attention head -1"),
        ("v", {"head": 0.5}, "head is a whole number"),
        (3, {}, "a source is 'residual'"),
        ("mine", {"encode": "no function"}, "encode= is a function of rows"),
        ("mine", {"encode": lambda rows: rows, "head": 0}, "no head"),
        ("v", {"encode": lambda rows: rows}, "a source name of its own"),
        ("v@0", {"encode": lambda rows: rows}, "a source name of its own"),
        ("residual", {"encode": lambda rows: rows}, "a source name of its own"),
    ],
)
def test_what_cannot_be_read_is_named(cache, source, options, message):
    with pytest.raises(InvalidParameterError, match=message):
        inspect.unwrap(bk.read_as)(cache, source, **options)


def test_controls_and_what_is_no_cache_are_named(backbone, scenes, cache, tmp_path):
    control = bk.cache_activations(bk.load_control("position", like=backbone), scenes, tmp_path)
    with pytest.raises(ProbeError, match="control without a model"):
        bk.read_as(control, "v")
    squared = bk.read_as(control, "squared", encode=torch.square)
    for given in (backbone, str(cache.path), None):
        with pytest.raises(CacheError, match="a cache is what"):
            inspect.unwrap(bk.read_as)(given, "v")
    rows = control.activations("test", 0).take([1])
    assert torch.equal(squared.activations("test", 0).take([1]), rows.square())


def test_other_weights_under_the_same_name_are_named(scenes, tmp_path):
    place = write_checkpoint("vit", tmp_path / "model")
    cache = bk.cache_activations(bk.load_backbone(str(place), device="cpu", short_side=64), scenes, tmp_path, [0])
    write_checkpoint("vit", place, seed=1)
    with pytest.raises(ProbeMismatchError, match=r"was made with weights .* has weights .* now; cache it anew"):
        bk.read_as(cache, "v")


def test_rows_are_a_data_set_for_torch(cache):
    rows = cache.activations("train", cache.layers[0])
    loader = torch.utils.data.DataLoader(rows, batch_size=7, shuffle=False)
    assert torch.equal(torch.cat(list(loader)), rows.take(range(len(rows))))
    assert torch.equal(rows[-1], rows.take([len(rows) - 1])[0])
    assert len(list(rows)) == len(rows)  # iteration ends
    with pytest.raises(IndexError):
        rows[len(rows)]
