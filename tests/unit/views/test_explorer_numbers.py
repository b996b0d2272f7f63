"""Every map of the explorer beside a plainly computed one: affinity, cosine, attention, PCA, across images."""

import numpy as np
import pytest
import tiny_models
import torch
from viewer_pages import photo, probes_of

import bindkit as bk
from bindkit.affinities.scoring import ImageGrid, image_activations
from bindkit.errors import GeometryError, LayerError, NonFiniteActivationsError, ProbeError
from bindkit.probes import PROBES, make_probe
from bindkit.probes.kinds import Map
from bindkit.probes.protocols import protocol
from bindkit.scenes.geometry import WindowGeometry
from bindkit.views.explorer.engine import Engine, KeptActivations, Store, bytes_of
from bindkit.views.explorer.rows import TOLERANCE, AttentionRows, Factors, PatchColours, rows_of
from bindkit.views.explorer.sources import shown_backbones, shown_images
from bindkit.views.explorer.state import View, place_of

EXACT = 1e-3


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return bk.load_backbone(str(tiny_models.write_checkpoint("dinov2", tmp_path_factory.mktemp("tiny"))))


def engine_of(backbone, probes=None, images=None, **options):
    found, _ = shown_images(images or [photo(64, 150), photo(50, 40, seed=3)], None)
    return Engine(shown_backbones(backbone, probes), found, **options)


def everywhere(engine, view, head=None):
    """Maps of all patches, one below the other."""
    grid = engine.grid(view.backbone, view.image)
    places = [place_of(row, col, grid) for row in range(grid.rows) for col in range(grid.cols)]
    maps = [engine.map(View(**{**vars(view), "place": place}), head) for place in places]
    return np.stack([found.values.ravel() for found in maps])


def spread_out(probe, activations):
    """The probe with logits that reach far to both sides, so that errors show."""
    with torch.no_grad():
        if isinstance(probe, Map):
            probe.weight *= 30
            probe.bias *= 0
        logits = probe(activations)
        probe.temperature = float(logits.std() / 4) or 1.0
        if "bias" in dict(probe.named_parameters()) and probe.bias.ndim == 0:
            probe.bias -= logits.mean()
    return probe.requires_grad_(False).eval()


@pytest.mark.parametrize(
    ("kind", "rules"), [(kind, "strict") for kind in PROBES] + [("linear", "paper"), ("self_attention", "paper")]
)
def test_affinity_of_every_patch_is_bk_affinity(backbone, kind, rules):
    """For every kind of probe, with a temperature, on an image of several windows."""
    pixels = photo(64, 150)
    _, activations = image_activations(backbone, pixels, [1])
    options = {"self_attention": {"n_heads": 2}, "class_map": {"class_ids": [1, 2, 3, 4, 5]}}.get(kind, {})
    probe = make_probe(kind, backbone.d_model, seed=4, **options, **protocol(rules).options_of(kind))
    if kind == "self_attention":
        probe.take(bk.backbones.attention.attention_maps(backbone, 1))
    probe = spread_out(probe, activations[1])
    probe.fitted_on = {"layer": 1}
    expected = bk.affinity(backbone, probe, pixels)
    found = everywhere(engine_of(backbone, probe), View(probe=kind, layer=1))
    assert expected.scores.std() > 0.05
    assert np.abs(found - expected.scores).max() < EXACT


def test_cut_factors_keep_every_affinity_and_are_thin_where_logits_are():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(300, 128, generator=generator) + 40 * torch.randn(128, generator=generator)
    probe = make_probe("quadratic", 128, seed=1).requires_grad_(False)
    directions = torch.linalg.qr(torch.randn(128, 6, generator=generator)).Q
    probe.weight.copy_(3 * directions @ directions.T)
    logits = probe(x)
    probe.bias.fill_(-float(logits.mean()))
    rows = rows_of(probe, x, x)
    assert isinstance(rows, Factors)
    assert rows.rank <= 16
    found = torch.stack([rows.affinity(patch) for patch in range(300)])
    x = x.double()
    expected = (x @ probe.symmetric().double() @ x.T + probe.bias).sigmoid()
    assert (found - expected).abs().max() < 2 * TOLERANCE


def test_factors_of_a_probe_without_structure_stay_whole():
    x = torch.randn(300, 128, generator=torch.Generator().manual_seed(1))
    probe = make_probe("quadratic", 128, seed=1).requires_grad_(False)
    probe.weight *= 30
    rows = rows_of(probe, x, x)
    assert rows.rank == 128
    found = torch.stack([rows.affinity(patch) for patch in range(300)])
    assert (found - probe(x).sigmoid()).abs().max() < 1e-5


def test_a_subclass_is_asked_itself():
    class Twice(type(make_probe("quadratic", 4))):
        def pairwise(self, x, y):
            return 2 * super().pairwise(x, y)

    x, probe = torch.randn(5, 4), Twice(4)
    with torch.no_grad():
        assert torch.allclose(rows_of(probe, x, x).affinity(2), probe(x)[2].sigmoid(), atol=1e-6)


def test_affinity_across_images_is_the_probes_own(backbone):
    first, second = photo(64, 150), photo(50, 40, seed=3)
    probe = probes_of(backbone, [2])[0]
    probe.temperature = 1.7
    x, y = (image_activations(backbone, pixels, [2])[1][2] for pixels in (first, second))
    engine = engine_of(backbone, probe)
    found = engine.map(View(probe="quadratic", layer=2, place=place_of(2, 5, engine.grid(0, 0)), second=1))
    patch = 2 * 9 + 5
    expected = (probe.pairwise(x[patch : patch + 1], y)[0] / 1.7).sigmoid().numpy()
    assert found.values.shape == (engine.grid(0, 1).rows, engine.grid(0, 1).cols)
    assert np.abs(found.values.ravel() - expected).max() < EXACT
    assert found.patch is None


def test_cosine_is_the_angle_between_activations(backbone):
    _, activations = image_activations(backbone, photo(64, 150), [0])
    x = activations[0].double().numpy()
    found = everywhere(engine_of(backbone), View(layer=0, measure="cosine"))
    for i, j in [(0, 0), (3, 20), (35, 1)]:
        plain = sum(x[i] * x[j]) / np.sqrt(sum(x[i] ** 2) * sum(x[j] ** 2))
        assert found[i, j] == pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize("kind", ["dinov2", "vit", "clip", "siglip"])
def test_attention_is_what_the_next_block_computes(tmp_path, kind):
    """Beside transformers' own attention weights, prefix tokens left out."""
    loaded = bk.load_backbone(str(tiny_models.write_checkpoint(kind, tmp_path)))
    pixels = photo(32, 32)
    engine = engine_of(loaded, images=[pixels])
    model = loaded.tower.model
    model.set_attn_implementation("eager")
    inputs = loaded.preprocessing.normalise(torch.from_numpy(pixels.copy())[None])
    with torch.inference_mode():
        weights = model(inputs, output_attentions=True).attentions[2][0]
    n_prefix = weights.shape[-1] - 16
    shares = weights[:, n_prefix:, n_prefix:]
    shares = (shares / shares.sum(-1, keepdim=True)).numpy()
    for head in (None, 0, 1):
        found = everywhere(engine, View(layer=1, measure="attention"), head=head)
        assert found.sum(1) == pytest.approx(np.ones(16), abs=1e-5)
        assert np.abs(found - (shares.mean(0) if head is None else shares[head])).max() < 1e-4
    with pytest.raises(ProbeError, match="head 2"):
        engine.map(View(layer=1, measure="attention"), head=2)
    with pytest.raises(LayerError, match="last"):
        engine.map(View(layer=2, measure="attention"))


@pytest.mark.parametrize("shape", [(64, 150), (90, 61)])
def test_attention_stays_within_the_windows_that_the_block_sees(tmp_path, shape):
    """Beside transformers' own weights in every window, put together by areas that cells and patches share."""
    loaded = bk.load_backbone(str(tiny_models.write_checkpoint("vit", tmp_path)))
    pixels = photo(*shape)
    plan = loaded.geometry.plan(shape)
    grid, n_patches = ImageGrid.of_plan(plan), plan.grid.n_patches
    assert plan.n_windows > 1
    model = loaded.tower.model
    model.set_attn_implementation("eager")
    resized = loaded.preprocessing.resize(pixels, plan.resized)
    crops = np.stack([resized[w.top : w.top + w.side, w.left : w.left + w.side] for w in plan.windows])
    with torch.inference_mode():
        inputs = loaded.preprocessing.normalise(torch.from_numpy(crops))
        weights = model(inputs, output_attentions=True).attentions[2][:, 1, -n_patches:, -n_patches:].double()
    weights = (weights / weights.sum(-1, keepdim=True)).numpy()
    shared = np.zeros((grid.n_patches, plan.n_windows, n_patches))
    for cell, window, patch in np.ndindex(*shared.shape):
        a, b = grid.box(cell), plan.original_box(window, patch)
        down, across = min(a.bottom, b.bottom) - max(a.top, b.top), min(a.right, b.right) - max(a.left, b.left)
        shared[cell, window, patch] = max(0, down) * max(0, across)
    pays = shared / shared.sum((1, 2), keepdims=True)
    lands = shared / shared.sum(0)
    expected = sum(pays[:, w] @ weights[w] @ lands[:, w].T for w in range(plan.n_windows))
    found = everywhere(engine_of(loaded, images=[pixels]), View(layer=1, measure="attention"), head=1)
    assert found.sum(1) == pytest.approx(np.ones(grid.n_patches), abs=1e-5)
    assert np.abs(found - expected).max() < 1e-4
    assert (expected == 0).any(), "cells that no window shows together"


def test_pca_colours_are_the_three_strongest_directions(backbone):
    _, activations = image_activations(backbone, photo(64, 150), [2])
    x = activations[2].double().numpy()
    centred = x - x.mean(0)
    _, values, vectors = np.linalg.svd(centred, full_matrices=False)
    expected = np.zeros((36, 3))
    for k in range(3):
        direction = vectors[k] * (1 if vectors[k][np.abs(vectors[k]).argmax()] > 0 else -1)
        scores = centred @ direction
        low, high = np.percentile(scores, [1, 99])
        expected[:, k] = np.clip((scores - low) / (high - low), 0, 1) * 255
    found = engine_of(backbone).map(View(layer=2, measure="pca"))
    assert found.is_coloured
    assert np.abs(found.values.reshape(36, 3).astype(float) - expected).max() <= 1
    assert f"{(values[:3] ** 2).sum() / (values**2).sum():.0%}" in found.note


@pytest.mark.parametrize("shape", [(40, 8), (8, 40), (3, 2), (1, 5)])
def test_pca_takes_any_shape_and_no_variance(shape):
    assert PatchColours.of(torch.randn(*shape)).colours.shape == (shape[0], 3)
    assert PatchColours.of(torch.ones(*shape)).explained == 1


def test_kept_activations_are_exact_far_from_zero_too():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * 2 + torch.tensor([0, 1, -5, 300, 3000, 0.0])
    x[:, 5] = 7.5
    kept = KeptActivations.of(x)
    steps = (x.amax(0) - x.amin(0)) / 65_535
    assert ((kept.restored() - x).abs() <= 0.5 * steps + 3e-4 * torch.tensor([0, 0, 0, 0.1, 1, 0]) + 1e-6).all()
    assert (x.half().float() - x).abs().max() > 100 * (kept.restored() - x).abs().max(), "float16 would do"
    assert bytes_of(kept) == 50 * 6 * 2 + 2 * 6 * 4


def test_the_store_forgets_what_was_used_longest_ago():
    store = Store(limit=3 * 2 * 8)
    entries = {
        name: KeptActivations(torch.zeros(0, 2, dtype=torch.int16), torch.zeros(2), torch.zeros(2)) for name in "abcd"
    }
    for name in "abc":
        store.put(name, entries[name])
    assert store.get("a", lambda: pytest.fail("is held")) is entries["a"]
    store.put("d", entries["d"])
    assert "b" not in store
    assert ("a" in store, "c" in store, "d" in store) == (True, True, True)
    assert store.n_bytes == 48
    store.clear()
    assert (len(store), store.n_bytes) == (0, 0)


def test_each_image_goes_through_once_and_a_small_store_still_answers(backbone):
    told = []
    engine = engine_of(backbone, tell=told.append)
    for layer in (2, 0, 1):
        engine.map(View(layer=layer, measure="cosine"))
    assert len([words for words in told if "goes through" in words]) == 1
    tight = engine_of(backbone, limit=4000)
    for layer in (2, 0, 1, 2):
        found = tight.map(View(layer=layer, measure="cosine"))
        assert np.array_equal(found.values, engine.map(View(layer=layer, measure="cosine")).values)
        assert tight.store.n_bytes < 12_000


def test_what_cannot_be_shown_says_why(backbone):
    engine = engine_of(backbone)
    with pytest.raises(ProbeError, match="needs a fitted probe"):
        engine.map(View(layer=1))
    with pytest.raises(GeometryError, match=r"long\.png|image 1 of 4 x 60000"):
        engine_of(backbone, images=[np.zeros((4, 60_000, 3), np.uint8)]).map(View(layer=1, measure="cosine"))
    probe = make_probe("quadratic", backbone.d_model).requires_grad_(False)
    probe.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteActivationsError, match="NaN"):
        engine_of(backbone, probe).map(View(layer=1, probe="quadratic"))


def test_attention_rows_of_one_patch():
    plan = WindowGeometry(8, 8, 8).plan((8, 8))
    rows = AttentionRows(torch.zeros(2, 1, 1, 4), torch.zeros(2, 1, 1, 4), plan)
    assert rows.shares(0).tolist() == [1.0]


def test_objects_are_coloured_as_they_are_found(backbone):
    _, activations = image_activations(backbone, photo(64, 150), [2])
    probe = spread_out(make_probe("quadratic", backbone.d_model, seed=4), activations[2])
    probe.fitted_on = {"layer": 2}
    found = bk.find_objects(bk.affinity(backbone, probe, photo(64, 150)))
    shown = engine_of(backbone, probe).map(View(probe="quadratic", layer=2, measure="objects"))
    assert shown.is_coloured and shown.note == f"{found.n} found"
    assert found.n > 1
    colours = shown.values.reshape(36, 3)
    for first in range(36):
        same = found.labels % 7 == found.labels[first] % 7
        assert np.array_equal((colours == colours[first]).all(axis=1), same)
    with pytest.raises(ProbeError, match="objects needs a fitted probe"):
        engine_of(backbone).map(View(layer=2, measure="objects"))
