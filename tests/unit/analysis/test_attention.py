"""Attention beside a probe's logits: every figure again by plain loops, and by a regression with dummy variables."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, rankdata, spearmanr
from tiny_models import FAMILIES, LAYERS, WIDTH, write_checkpoint

import bindkit as bk
from bindkit.analysis.attention import FIGURES, OF, PAIRS, JudgedWindows, mean_interval
from bindkit.backbones.attention import attention_maps
from bindkit.backbones.families import family_of_type
from bindkit.errors import BackboneError, InvalidParameterError, LayerError, ProbeError, ProbeMismatchError
from bindkit.probes import SelfAttention
from bindkit.probes.protocols import STRICT

BRIEF = replace(STRICT, epochs=2, min_steps=8, judged_patches=24)
LAYER, HEADS, N_SCENES = 0, 2, 3
KEYS = ["head", "pairs", "of"]


def loaded(kind, root):
    return bk.load_backbone(str(write_checkpoint(kind, root / kind)), device="cpu", short_side=48)


@pytest.fixture(scope="module")
def scenes():
    return bk.open_scenes("synthetic:n=20,seed=0,size=80x100")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("caches")


@pytest.fixture(scope="module")
def of_kind(scenes, places):
    made = {}

    def make(kind):
        if kind not in made:
            backbone = loaded(kind, places[0])
            cache = bk.cache_activations(backbone, scenes, places[1] / kind, "all", dtype="float32")
            made[kind] = backbone, cache
        return made[kind]

    return make


@pytest.fixture(scope="module")
def measured(of_kind):
    """A quadratic probe beside the weights of the next block, by head: (backbone, cache, probe, table)."""
    backbone, cache = of_kind("dinov2")
    probe = bk.fit_probe(cache, LAYER, protocol=BRIEF).probe
    return backbone, cache, probe, bk.attention_follows_binding(backbone, cache, probe, n_scenes=N_SCENES)


def cosine(x, y):
    return np.float32(torch.cosine_similarity(x.double(), y.double(), 0))


def pairs_by_loops(backbone, cache, probe, scenes, n_scenes, measure="weight"):
    """Of each scene its ordered pairs, one at a time, straight from the pictures and the cache's labels."""
    labels = cache.labels("test")
    found = []
    for number in range(n_scenes):
        shown = scenes[scenes.ids.index(labels.scene_ids[number])]
        plan = bk.label_patches(shown, backbone.geometry).plan
        picture = backbone.preprocessing.resize(shown.image, plan.resized)
        rows = range(*labels.scene_offsets[number : number + 2])
        columns = {name: [] for name in ("attention", *OF, "same", "stratum")}
        for window, at in enumerate(plan.windows):
            pixels = picture[at.top : at.top + at.side, at.left : at.left + at.side]
            tokens = backbone.tower.activations(backbone.pixels(torch.from_numpy(pixels.copy())[None]), [LAYER])[LAYER]
            maps, n_patches = attention_maps(backbone, LAYER), backbone.layout.grid.n_patches
            width = WIDTH // HEADS
            queries, keys = maps.read(tokens[0], "query"), maps.read(tokens[0], "key")
            attended = []
            for head in range(HEADS):
                own = slice(head * width, (head + 1) * width)
                products = queries[:, own] @ keys[:, own].T / width**0.5
                attended.append(products.softmax(1) if measure == "weight" else products)
            weights = torch.stack(attended)[:, -n_patches:, -n_patches:]
            judged = [
                row
                for row in rows
                if labels.window[row] == window and labels.instances[row] > 0 and labels.purity[row] > 0.5
            ]
            x = tokens[0, -n_patches:][labels.patch[judged]]
            logits = probe(x).detach()
            for a, i in enumerate(judged):
                for b, j in enumerate(judged):
                    if i == j:
                        continue
                    offset = labels.corners[i] - labels.corners[j]
                    columns["attention"].append(weights[:, labels.patch[i], labels.patch[j]].numpy())
                    columns["affinity"].append(float(logits[a, b]))
                    columns["cosine similarity"].append(cosine(x[a], x[b]))
                    columns["nearness"].append(-float(np.hypot(*offset)))
                    columns["same"].append(bool(labels.instances[i] == labels.instances[j]))
                    columns["stratum"].append(int((offset**2).sum()))
        found.append({name: np.array(values) for name, values in columns.items()})
    return found


def chosen_of(columns, pairs):
    same = columns["same"]
    return {"all": np.ones_like(same), "same object": same, "different objects": ~same}[pairs]


def attention_of(columns, head):
    return columns["attention"].mean(1) if head == "mean" else columns["attention"][:, int(head)]


def residuals(values, *regressors):
    """What least squares on these columns leaves over."""
    design = np.column_stack(regressors)
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


@pytest.mark.parametrize("measure", ["weight", "logit"])
def test_figures_are_those_of_plain_loops(measured, scenes, measure):
    backbone, cache, probe, table = measured
    if measure == "logit":
        table = bk.attention_follows_binding(backbone, cache, [probe], measure, N_SCENES)
    assert set(table["measure"]) == {measure} and set(table["layer"]) == {LAYER}
    rows = table.set_index(KEYS)
    assert len(rows) == len(table) == len(PAIRS) * len(OF) * (HEADS + 1)
    by_scene = pairs_by_loops(backbone, cache, probe, scenes, N_SCENES, measure)
    for head, pairs, of in rows.index:
        expected = {name: [] for name in FIGURES}
        n_pairs = 0
        for columns in by_scene:
            chosen = chosen_of(columns, pairs)
            own, other, like = (
                values[chosen] for values in (attention_of(columns, head), columns[of], columns["cosine similarity"])
            )
            n_pairs += len(own)
            expected["pearson"].append(pearsonr(own, other)[0])
            expected["spearman"].append(spearmanr(own, other)[0])
            dummies = np.equal.outer(columns["stratum"][chosen], np.unique(columns["stratum"][chosen])).astype(float)
            if of == "nearness":
                continue
            ranks = [rankdata(values) for values in (own, other, like)]
            within = [residuals(values, dummies) for values in ranks[:2]]
            expected["at_distance"].append(pearsonr(*within)[0])
            if of == "affinity":
                left = [residuals(values, dummies, ranks[2]) for values in ranks[:2]]
                expected["partial"].append(pearsonr(*left)[0])
        row = rows.loc[(head, pairs, of)]
        assert row["n_pairs"] == n_pairs and row["n_scenes"] == N_SCENES
        for name, values in expected.items():
            wanted = np.mean(values) if values else np.nan
            assert row[name] == pytest.approx(wanted, abs=1e-4, nan_ok=True), (head, pairs, of, name)


def test_nearness_says_nothing_at_equal_distance_and_likeness_nothing_beside_itself(measured):
    table = measured[3]
    near = table[table["of"] == "nearness"]
    assert near["at_distance"].isna().all() and near["partial"].isna().all()
    assert near["spearman"].notna().all()
    like = table[table["of"] == "cosine similarity"]
    assert like["partial"].isna().all() and like["at_distance"].notna().all()
    assert table[table["of"] == "affinity"][list(FIGURES)].notna().all(axis=None)


@pytest.mark.parametrize("kind", ["dinov2", "vit", "ijepa"])
def test_the_probe_that_asks_a_head_goes_along_with_that_head(of_kind, kind):
    """Queries times keys of one head, learned offset aside: the very thing that it is set beside."""
    backbone, cache = of_kind(kind)
    maps = attention_maps(backbone, LAYER)
    for head in (*range(HEADS), None):
        probe = SelfAttention(WIDTH, n_heads=HEADS, norm_epsilon=maps.norm_epsilon, head=head).take(maps)
        probe.fitted_on = {"layer": LAYER, "weights_digest": backbone.weights_digest, "probe": "self_attention"}
        table = bk.attention_follows_binding(backbone, cache, probe, "logit", n_scenes=2)
        rows = table[table["of"] == "affinity"].set_index(["head", "pairs"])
        own = "mean" if head is None else str(head)
        for pairs in PAIRS:
            for name in FIGURES:
                assert rows[name][own, pairs] > 0.999, (own, pairs, name)
            assert rows["pearson"][own, pairs] > 0.9999 and rows["spearman"][own, pairs] > 0.9999
        assert rows["pearson"]["0" if own == "1" else "1", "all"] < 0.99


def test_a_fitted_self_attention_probe_does_so_too(of_kind):
    backbone, cache = of_kind("dinov2")
    probe = bk.fit_probe(cache, 1, "self_attention@1", protocol=BRIEF).probe
    table = bk.attention_follows_binding(backbone, cache, [probe], "logit", n_scenes=2)
    row = table[(table["of"] == "affinity") & (table["head"] == "1") & (table["pairs"] == "all")].iloc[0]
    assert (row["layer"], row["probe"]) == (1, "self_attention@1")
    assert row["pearson"] > 0.9999 and row["spearman"] > 0.9999


@pytest.mark.parametrize("kind", [name for name, row in FAMILIES.items() if family_of_type(row[1]).adds])
def test_families_that_turn_or_bias_by_position_are_asked_for_weights_alone(of_kind, kind):
    backbone, cache = of_kind(kind)
    probe = bk.fit_probe(cache, LAYER, protocol=BRIEF).probe
    with pytest.raises(ProbeError, match=r'adds a (rotation|position bias) to .* take measure="weight"'):
        bk.attention_follows_binding(backbone, cache, probe, "logit", n_scenes=2)
    table = bk.attention_follows_binding(backbone, cache, probe, n_scenes=2)
    assert len(table) == len(PAIRS) * len(OF) * (HEADS + 1)
    assert table["spearman"].abs().max() <= 1 and table["spearman"].notna().all()


def test_several_probes_are_a_row_each_and_their_order_is_kept(of_kind, measured):
    backbone, cache = of_kind("dinov2")
    probes = [bk.fit_probe(cache, layer, "linear", protocol=BRIEF).probe for layer in (1, 0)]
    table = bk.attention_follows_binding(backbone, cache, [*probes, measured[2]], n_scenes=N_SCENES)
    assert list(dict.fromkeys(zip(table["layer"], table["probe"], strict=True))) == [
        *((1, "linear"), (0, "linear"), (0, "quadratic")),
    ]
    own = table[table["probe"] == "quadratic"].reset_index(drop=True)
    for name in FIGURES:
        np.testing.assert_allclose(own[name], measured[3][name], atol=1e-9)


def test_rows_of_the_windows_are_the_caches_own(measured, scenes):
    """Their activations, their instances and their places, window by window."""
    backbone, cache, probe, _ = measured
    windows = JudgedWindows.of(backbone, cache, probe, 99)
    labels = cache.labels("test")
    assert windows.split == "test" and windows.labels.scene_ids == labels.scene_ids
    assert len(windows) > labels.n_scenes, "several windows a scene"
    np.testing.assert_array_equal(windows.instances[windows.row_window, windows.row_patch], labels.instances)
    found = windows.passed([0, 2])
    for layer, rows in found.items():
        cached = cache.activations("test", layer).take(range(len(labels)))
        torch.testing.assert_close(rows, cached, rtol=1e-4, atol=1e-5)
    scene_of_row = np.repeat(range(labels.n_scenes), np.diff(labels.scene_offsets))
    np.testing.assert_array_equal(windows.scene[windows.row_window], scene_of_row)
    few = JudgedWindows.of(backbone, cache, probe, 1, scenes)
    assert few.labels.scene_ids == labels.scene_ids[:1]
    assert torch.equal(few.pixels, windows.pixels[: len(few)])


def test_the_mean_over_scenes_has_a_students_interval():
    values = np.random.default_rng(0).normal(0.3, 0.1, 12)
    low, high = mean_interval(values)
    half = 2.2009851600916384 * values.std(ddof=1) / 12**0.5  # Student's t of 11 degrees of freedom, 97.5 %
    assert low < values.mean() - 0.9 * half and values.mean() + 0.9 * half < high
    assert (low + high) / 2 == pytest.approx(values.mean())
    assert all(np.isnan(mean_interval(values[:n])).all() for n in (0, 1, 7))


def test_what_cannot_be_asked_is_named(of_kind, measured):
    backbone, cache, probe, _ = measured
    ask = bk.attention_follows_binding
    last = bk.fit_probe(cache, LAYERS - 1, protocol=BRIEF).probe
    for measure in ("weight", "logit"):
        with pytest.raises(LayerError, match=f"layer {LAYERS - 1} is the last"):
            ask(backbone, cache, last, measure)
    other, of_other = of_kind("vit")
    with pytest.raises(ProbeMismatchError, match="give the backbone of this cache"):
        ask(other, cache, probe)
    with pytest.raises(ProbeMismatchError, match="was fitted on"):
        ask(other, of_other, probe)
    with pytest.raises(ProbeMismatchError, match=r":v .*than the cache|give the backbone of this cache"):
        ask(backbone, bk.read_as(cache, "v"), probe)
    with pytest.raises(InvalidParameterError, match=r"a measure of weight, logit; got 'entropy'"):
        ask(backbone, cache, probe, "entropy")
    with pytest.raises(InvalidParameterError, match="give at least one probe"):
        ask(backbone, cache, [])
    control = bk.load_control("position", like=backbone)
    with pytest.raises((BackboneError, InvalidParameterError), match="a backbone is what"):
        ask.__wrapped__(control, cache, probe)
