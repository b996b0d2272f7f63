"""Objects without labels: planted groups come back, whatever the patches' order; figures equal plain loops."""

import inspect
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from planted import PlantedBackbone, PlantedScenes

import bindkit as bk
from bindkit.affinities.objects import contingency, moved, objects_table
from bindkit.affinities.scoring import Affinity, ImageGrid
from bindkit.errors import InvalidParameterError, LayerError, ProbeError, SceneSetError
from bindkit.probes import make_probe

METHODS = ("correlation", "spectral", "components")
GRID = ImageGrid(5, 8, (43, 61), (40, 64))  # cells of uneven size, neither square nor as high as wide

# Objects 1 and 2 touch, as two of one class may; 0 is the ground, one piece.
TOUCHING = np.array(
    [
        [1, 1, 1, 2, 2, 2, 2, 2],
        [1, 1, 1, 2, 2, 2, 2, 2],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 3, 3, 3, 0],
        [0, 0, 0, 0, 3, 3, 3, 0],
    ]
)
# Object 1 lies left and right of what hides its middle.
IN_TWO_PARTS = np.array(
    [
        [1, 1, 2, 2, 2, 1, 1, 1],
        [1, 1, 2, 2, 2, 1, 1, 1],
        [1, 1, 2, 2, 2, 1, 1, 1],
        [1, 1, 2, 2, 2, 1, 1, 1],
        [1, 1, 2, 2, 2, 1, 1, 1],
    ]
)


def planted(truth, grid=GRID, seed=0, noise=0.6):
    """Scores of about 0.9 within objects and 0.1 between, not symmetric."""
    flat = np.asarray(truth).ravel()
    same = flat[:, None] == flat
    logits = np.where(same, 2.2, -2.2) + np.random.default_rng(seed).normal(0, noise, same.shape)
    return Affinity((1 / (1 + np.exp(-logits))).astype(np.float32), grid, 0)


def same_partition(one, other):
    pairs = set(zip(np.ravel(one).tolist(), np.ravel(other).tolist(), strict=True))
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def scene_of(instances):
    instances = np.asarray(instances, dtype=np.int32)
    return bk.Scene("planted", np.zeros((*instances.shape, 3), np.uint8), instances, np.minimum(instances, 1))


@pytest.mark.parametrize("method", METHODS)
def test_planted_objects_come_back_in_every_pixel(method):
    cells = np.array([[TOUCHING[divmod(GRID.patch_at(row, col), GRID.cols)] for col in range(61)] for row in range(43)])
    found = bk.find_objects(planted(TOUCHING), method)
    assert (found.n, found.labels.dtype, found.method) == (4, np.int32, method)
    judged = bk.judge_objects(found.mask(), scene_of(cells))
    assert judged == {"ari": 1.0, "fg_ari": 1.0, "mean_best_overlap": 1.0, "n_found": 4, "n_true": 3}


@pytest.mark.parametrize("method", METHODS)
def test_objects_are_numbered_by_size_then_by_first_patch(method):
    truth = np.array([[7, 7, 4, 4, 4, 9], [7, 7, 4, 4, 4, 9], [5, 5, 4, 4, 4, 9], [5, 5, 4, 4, 4, 9]])
    found = bk.find_objects(planted(truth, ImageGrid(4, 6, (40, 60), (32, 48)), noise=0.1), method)
    assert found.labels.reshape(4, 6)[[0, 0, 0, 2], [2, 0, 5, 0]].tolist() == [1, 2, 3, 4]
    assert np.bincount(found.labels).tolist() == [0, 12, 4, 4, 4]


def test_an_object_in_two_parts_is_one_for_all_but_components():
    affinity = planted(IN_TWO_PARTS)
    for method in ("correlation", "spectral"):
        assert same_partition(bk.find_objects(affinity, method).labels, IN_TWO_PARTS)
    found = bk.find_objects(affinity, "components")
    assert found.n == 3
    assert same_partition(found.labels, np.where(np.arange(8) > 4, 3, IN_TWO_PARTS))


@pytest.mark.parametrize("method", ["correlation", "spectral"])
def test_the_order_of_the_patches_changes_names_alone(method):
    affinity, order = planted(TOUCHING, noise=1.5), np.random.default_rng(4).permutation(40)
    shuffled = Affinity(affinity.scores[order][:, order], GRID, 0)
    labels, again = (bk.find_objects(one, method).labels for one in (affinity, shuffled))
    assert labels.max() > 2
    assert same_partition(labels[order], again)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_call_gives_the_same_objects(method):
    affinity = planted(TOUCHING, noise=3)
    one, other = (bk.find_objects(affinity, method, seed=3).labels for _ in range(2))
    assert np.array_equal(one, other)


def test_k_means_starts_where_the_seed_says():
    """Of an affinity without objects, whose starts end in many places."""
    affinity = planted(np.arange(40), noise=2)
    one, other = (bk.find_objects(affinity, "spectral", n_objects=8, seed=3).labels for _ in range(2))
    assert np.array_equal(one, other)
    assert any(not np.array_equal(one, bk.find_objects(affinity, "spectral", 8, seed=k).labels) for k in range(4, 9))


@pytest.mark.parametrize("method", METHODS)
def test_both_directions_of_a_pair_count_alike(method):
    affinity = planted(TOUCHING, noise=4)
    turned = Affinity(affinity.scores.T.copy(), GRID, 0)
    assert np.array_equal(bk.find_objects(affinity, method).labels, bk.find_objects(turned, method).labels)


def test_correlation_ends_where_no_patch_would_move_and_linkage_alone_does_not(monkeypatch):
    affinity = planted(TOUCHING, noise=4)
    scores = (affinity.scores.astype(float) + affinity.scores.T) / 2
    weights = np.log(scores / (1 - scores))
    np.fill_diagonal(weights, 0)
    end = bk.find_objects(affinity).labels
    assert same_partition(moved(weights, end - 1), end)
    monkeypatch.setattr("bindkit.affinities.objects._ROUNDS", 0)
    assert within(weights, bk.find_objects(affinity).labels) < within(weights, end) - 0.1


def test_a_given_number_of_objects_is_found_by_the_spectral_method():
    for n in (1, 2, 5):
        assert bk.find_objects(planted(TOUCHING), "spectral", n_objects=n).n == n
    assert bk.find_objects(planted(np.arange(40)), "spectral", n_objects=20).n == 20  # of more than 16 eigenvalues


def test_the_threshold_says_what_is_rather_of_one_object():
    halves = np.repeat([[0, 0, 0, 0, 1, 1, 1, 1]], 5, axis=0)
    scores = np.where(halves.ravel()[:, None] == halves.ravel(), 0.4, 0.2).astype(np.float32)
    for method in ("correlation", "components"):
        for threshold, n in ((0.1, 1), (0.3, 2), (0.5, 40)):
            assert bk.find_objects(Affinity(scores, GRID, 0), method, threshold=threshold).n == n


@pytest.mark.parametrize("method", METHODS)
def test_images_of_one_patch_and_of_sure_or_equal_affinities_are_no_trouble(method):
    one = Affinity(np.ones((1, 1), np.float32), ImageGrid(1, 1, (9, 9), (8, 8)), 0)
    assert bk.find_objects(one, method).labels.tolist() == [1]
    two = Affinity(np.eye(2, dtype=np.float32), ImageGrid(1, 2, (8, 16), (8, 16)), 0)
    assert bk.find_objects(two, method).n == 2
    sure = (TOUCHING.ravel()[:, None] == TOUCHING.ravel()).astype(np.float32)
    assert same_partition(bk.find_objects(Affinity(sure, GRID, 0), method).labels, TOUCHING)
    equal = bk.find_objects(Affinity(np.ones((40, 40), np.float32), GRID, 0), method)
    assert equal.n == 1 or method == "spectral"


def within(weights, labels):
    """What correlation clustering raises, by a loop over pairs."""
    return sum(weights[i, j] for i, j in combinations(range(len(labels)), 2) if labels[i] == labels[j])


@pytest.mark.parametrize("seed", range(4))
def test_moves_never_lower_the_sum_and_end_where_none_raises_it(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 1, (24, 24))
    weights = weights + weights.T
    np.fill_diagonal(weights, 0)
    labels = rng.integers(0, 4, 24)
    end = moved(weights, labels)
    sums = [within(weights, labels)]
    monkeypatch.setattr("bindkit.affinities.objects._ROUNDS", 1)
    for _ in range(30):
        labels = moved(weights, labels)
        sums.append(within(weights, labels))
    assert (np.diff(sums) >= -1e-9).all() and sums[-1] > sums[0] + 1
    assert same_partition(end, labels)
    for patch in range(24):
        for cluster in [*np.unique(end), end.max() + 1]:
            other = np.where(np.arange(24) == patch, cluster, end)
            assert within(weights, other) <= within(weights, end) + 1e-9


def test_patches_that_fit_nowhere_get_clusters_of_their_own():
    weights = np.full((6, 6), -1.0)
    np.fill_diagonal(weights, 0)
    assert len(np.unique(moved(weights, np.zeros(6, dtype=int)))) == 6


@pytest.mark.parametrize("grid", [GRID, ImageGrid(7, 3, (7, 3), (56, 24)), ImageGrid(9, 4, (100, 33), (72, 32))])
def test_a_mask_shows_in_every_pixel_the_object_of_its_patch(grid):
    labels = np.random.default_rng(0).permutation(grid.n_patches).astype(np.int32) + 1
    mask = inspect.getmodule(bk.find_objects).Objects(labels, grid, "planted").mask()
    assert mask.dtype == np.int32 and mask.shape == grid.original
    for row in range(grid.original[0]):
        for col in range(grid.original[1]):
            assert mask[row, col] == labels[grid.patch_at(row, col)]


def rand_by_loops(true, found):
    """Adjusted Rand index over all pairs of pixels, from its definition: (index - expected) / (most - expected)."""
    pairs = list(combinations(range(len(true)), 2))
    a = np.array([true[i] == true[j] for i, j in pairs])
    b = np.array([found[i] == found[j] for i, j in pairs])
    expected = a.sum() * b.sum() / len(pairs)
    return ((a & b).sum() - expected) / ((a.sum() + b.sum()) / 2 - expected)


@pytest.mark.parametrize("seed", range(5))
def test_figures_equal_plain_loops(seed):
    rng = np.random.default_rng(seed)
    true, found = rng.integers(0, 4, (5, 7)).astype(np.int32), rng.integers(-1, 3, (5, 7))
    judged, inside = bk.judge_objects(found, scene_of(true)), true > 0
    assert judged["ari"] == pytest.approx(rand_by_loops(true.ravel(), found.ravel()))
    assert judged["fg_ari"] == pytest.approx(rand_by_loops(true[inside], found[inside]))
    best = [
        max(((true == k) & (found == s)).sum() / ((true == k) | (found == s)).sum() for s in np.unique(found))
        for k in (1, 2, 3)
    ]
    assert judged["mean_best_overlap"] == pytest.approx(np.mean(best))
    assert (judged["n_found"], judged["n_true"]) == (4, 3)


def test_figures_computed_by_hand():
    # scikit-learn's own example: adjusted_rand_score([0, 0, 1, 2], [0, 0, 1, 1]) is 0.571...
    judged = bk.judge_objects(np.array([[5, 5, 9, 9]]), scene_of([[1, 1, 2, 3]]))
    assert judged["ari"] == judged["fg_ari"] == pytest.approx(4 / 7)
    assert judged["mean_best_overlap"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    # Worse than chance: every pair is one for one side alone. adjusted_rand_score([0, 0, 1, 1], [0, 1, 0, 1]) is -0.5.
    assert bk.judge_objects(np.array([[1, 2, 1, 2]]), scene_of([[1, 1, 2, 2]]))["ari"] == pytest.approx(-0.5)


def test_the_ground_counts_for_one_index_and_not_for_the_other():
    true, found = [[0, 0, 0, 1, 1, 2, 2]], np.array([[1, 2, 3, 4, 4, 5, 5]])
    judged = bk.judge_objects(found, scene_of(true))
    assert judged["fg_ari"] == 1 and judged["ari"] < 0.7
    assert judged["mean_best_overlap"] == 1


def test_one_object_is_found_whole_or_not_and_none_has_no_figure():
    assert bk.judge_objects(np.ones((2, 3), int), scene_of(np.ones((2, 3))))["fg_ari"] == 1
    assert bk.judge_objects(np.array([[1, 1, 2]]), scene_of([[1, 1, 1]]))["fg_ari"] == 0
    none = bk.judge_objects(np.array([[1, 1, 2]]), scene_of([[0, 0, 0]]))
    assert np.isnan(none["fg_ari"]) and np.isnan(none["mean_best_overlap"])
    assert (none["ari"], none["n_true"], none["n_found"]) == (0, 0, 2)


def test_a_photographs_pairs_exceed_64_bits():
    true = np.repeat(np.arange(4, dtype=np.int32), 500_000).reshape(1000, 2000)
    assert bk.judge_objects(true.T.copy().reshape(1000, 2000), scene_of(true))["ari"] == pytest.approx(0, abs=1e-2)
    assert bk.judge_objects(true + 1, scene_of(true))["ari"] == 1


def test_shared_pixels_are_counted():
    ids, shared = contingency(np.array([[7, 7, 8]]), scene_of([[0, 3, 3]]))
    assert (ids.tolist(), shared.tolist()) == ([0, 3], [[1, 0], [1, 1]])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "kmeans"}, "unknown method 'kmeans'; choose one of correlation, spectral, components"),
        ({"method": ["correlation"]}, "unknown method"),
        ({"n_objects": 3}, 'finds the number of objects itself; leave out n_objects=3, or take method="spectral"'),
        ({"method": "components", "n_objects": 3}, "leave out n_objects"),
        ({"method": "spectral", "n_objects": 0}, "n_objects is at least 1, got 0"),
        ({"method": "spectral", "n_objects": 2.5}, r"n_objects is a whole number such as 3, got 2\.5"),
        ({"method": "spectral", "n_objects": 41}, "at most the number of patches, 40; got 41"),
        ({"threshold": 1.0}, r"between 0 and 1, such as 0\.5; got 1\.0"),
        ({"threshold": float("nan")}, "got nan"),
        ({"threshold": "0.5"}, "got '0.5'"),
        ({"seed": -1}, "seed is at least 0"),
    ],
)
def test_wrong_wishes_are_refused_by_name(wrong, message):
    with pytest.raises(InvalidParameterError, match=message):
        inspect.unwrap(bk.find_objects)(planted(TOUCHING), **wrong)


def test_what_is_no_affinity_mask_or_table_is_refused_by_name():
    judge, scene = inspect.unwrap(bk.judge_objects), scene_of(TOUCHING)
    with pytest.raises(InvalidParameterError, match=r"an affinity is what bk\.affinity"):
        inspect.unwrap(bk.find_objects)(planted(TOUCHING).scores)
    for mask in (TOUCHING.T, TOUCHING.astype(float), TOUCHING.ravel()):
        with pytest.raises(InvalidParameterError, match=r"whole numbers of shape \[5, 8\].*got (int|float)"):
            judge(mask, scene)
    with pytest.raises(InvalidParameterError, match=r"such as found\.mask\(\)"):
        judge(TOUCHING.tolist(), scene)
    with pytest.raises(InvalidParameterError, match="a scene is what"):
        judge(TOUCHING, TOUCHING)
    with pytest.raises(InvalidParameterError, match="lacks the columns layer, scene, of"):
        objects_table(pd.DataFrame({"backbone": []}))


@pytest.fixture(scope="module")
def told_apart():
    """A probe of planted activations that knows instances: those of layer 2 lie in the last eight directions."""
    probe = make_probe("diag_quadratic", 24)
    with torch.no_grad():
        probe.weight.zero_()
        probe.weight[16:24] = 0.05
        probe.bias.fill_(-10.0)
    return probe.eval()


def test_scenes_are_segmented_row_by_row_as_one_by_one(told_apart):
    class Counting(PlantedBackbone):
        calls = ()

        def activations(self, windows, layers):
            Counting.calls += (tuple(layers),)
            return super().activations(windows, layers)

    scenes, backbone = PlantedScenes(3), Counting(signal=8.0)
    rows = bk.segment_scenes(backbone, told_apart, scenes, layer=2)
    assert Counting.calls == ((2,),) * 3, "each scene goes through the backbone once"
    assert len(rows) == 3 * 3 * 3 and not rows.duplicated(["scene", "of", "method"]).any()
    assert list(rows) == [
        *("backbone", "layer", "scene", "of", "method", "ari", "fg_ari", "mean_best_overlap", "n_found", "n_true")
    ]
    found = bk.find_objects(bk.affinity(backbone, told_apart, scenes[1], layer=2), "spectral")
    (row,) = rows.query("of == 'affinity' and method == 'spectral' and scene == @scenes.ids[1]").to_dict("records")
    assert {key: row[key] for key in ("ari", "fg_ari")} == {
        key: value for key, value in bk.judge_objects(found.mask(), scenes[1]).items() if key in ("ari", "fg_ari")
    }
    position = rows[rows["of"] == "position"].groupby("method")["n_found"].nunique()
    assert (position == 1).all(), "distance alone finds the same in every picture"


def test_wrong_scenes_and_methods_are_refused_before_anything_is_computed(told_apart):
    segment, given = inspect.unwrap(bk.segment_scenes), (PlantedBackbone(), told_apart)
    with pytest.raises(SceneSetError, match=r"bk\.open_scenes"):
        segment(*given, "synthetic:n=4")
    with pytest.raises(InvalidParameterError, match="unknown method 'watershed'"):
        segment(*given, PlantedScenes(1), ["spectral", "watershed"], layer=2)
    with pytest.raises(InvalidParameterError, match="at least one method"):
        segment(*given, PlantedScenes(1), [], layer=2)
    with pytest.raises(ProbeError, match="a probe is"):
        segment(PlantedBackbone(), 3, PlantedScenes(1))
    with pytest.raises(LayerError, match="does not say which layer"):
        segment(*given, PlantedScenes(1))


def rows_of(values, **named):
    keys = {"backbone": "vit", "layer": 3, "of": "affinity", "method": "spectral"} | named
    columns = dict.fromkeys(("ari", "fg_ari", "mean_best_overlap"), values) | {"n_found": np.arange(len(values))}
    return pd.DataFrame({**keys, "scene": [f"s{k}" for k in range(len(values))], **columns, "n_true": 5})


def test_the_table_has_means_with_intervals_over_scenes():
    values = np.random.default_rng(0).uniform(0.3, 0.9, 30)
    table = objects_table(pd.concat([rows_of(values), rows_of(values[:5], method="components")]))
    assert table["method"].tolist() == ["spectral", "components"] and table["n_scenes"].tolist() == [30, 5]
    many, few = table.to_dict("records")
    half = 2.05 * values.std(ddof=1) / np.sqrt(30)
    for name in ("ari", "fg_ari", "mean_best_overlap"):
        assert many[name] == pytest.approx(values.mean())
        assert many[f"{name}_low"] == pytest.approx(values.mean() - half, abs=0.01)
        assert many[f"{name}_high"] == pytest.approx(values.mean() + half, abs=0.01)
        assert np.isnan([few[f"{name}_low"], few[f"{name}_high"]]).all()
    assert (many["n_found"], many["n_true"]) == (14.5, 5)


def test_indices_below_zero_have_intervals_and_scenes_without_one_are_left_out():
    values = np.append(np.linspace(-0.3, 0.1, 20), np.nan)
    (row,) = objects_table(rows_of(values)).to_dict("records")
    assert row["fg_ari"] == pytest.approx(-0.1)
    assert row["fg_ari_low"] < -0.1 < row["fg_ari_high"]
    (none,) = objects_table(rows_of([np.nan])).to_dict("records")
    assert np.isnan(none["fg_ari"])


def test_a_fitted_probe_beats_raw_features_and_position(tmp_path):
    """The whole path on a shipped backbone: scenes of another seed than the probe was fitted on."""
    backbone = bk.load_backbone("bindkit/scenes-motion")
    cache = bk.cache_activations(backbone, bk.open_scenes("synthetic:n=60,seed=1"), root=tmp_path, layers=[3])
    scenes = bk.open_scenes("synthetic:n=24,seed=3")
    rows = bk.segment_scenes(backbone, bk.fit_probe(cache, 3), scenes, ["correlation", "spectral"])
    means = rows.groupby(["method", "of"])["fg_ari"].mean()
    for method in ("correlation", "spectral"):
        assert means[method, "affinity"] > max(means[method, "raw features"], means[method, "position"]) + 0.04
