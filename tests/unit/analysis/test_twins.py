"""Twins: matching patches of two copies, what their differences hold, and what goes beyond likeness."""

import numpy as np
import pytest
import torch
from planted import D_MODEL, PlantedBackbone, PlantedScenes

import bindkit as bk
from bindkit.analysis.twins import copies_of
from bindkit.errors import EmptySplitError, ProbeError, ProbeMismatchError
from bindkit.probes.metrics import auroc

PART = 3
"""Directions that hold which object a patch is of; as many others say which part of the look it shows."""


class Shifted(PlantedBackbone):
    """A patch is what it looks like plus which object it is of: ``h = f + b``, b in the first directions."""

    def activations(self, windows, layers):
        cells = windows.float().unflatten(1, (8, 4)).unflatten(3, (8, 4)).mean((2, 4)).flatten(1, 2)
        instance, class_id = (cells[..., 0] / 20).round(), (cells[..., 1] / 40).round()
        codes = torch.randn(32, PART, generator=torch.Generator().manual_seed(0))
        looks = 3 * torch.randn(32, D_MODEL - PART, generator=torch.Generator().manual_seed(1))
        look = looks[class_id.long()] + 0.01 * cells[..., 2:]
        bound = torch.cat([3 * codes[instance.long()], look], dim=2)
        alone = torch.cat([0.01 * cells[..., 2:].expand(-1, -1, PART), look], dim=2)
        return {layer: alone if layer == 0 else bound for layer in layers}


@pytest.fixture(scope="module")
def backbone():
    return Shifted()


@pytest.fixture(scope="module")
def cache(backbone, tmp_path_factory):
    root = tmp_path_factory.mktemp("cache")
    return bk.cache_activations(backbone, PlantedScenes(60), root, layers=[0, 1], dtype="float32")


@pytest.fixture(scope="module")
def fits(cache):
    return {layer: bk.fit_probe(cache, layer) for layer in (0, 1)}


def test_copies_match_patch_by_patch_at_one_displacement(cache, fits):
    labels = cache.labels("test")
    for one in copies_of(cache, fits[1].probe):
        rows = slice(*labels.scene_offsets[one.scene : one.scene + 2])
        first, second = (
            {
                tuple(corner)
                for corner, instance, purity in zip(
                    labels.corners[rows].tolist(), labels.instances[rows], labels.purity[rows], strict=True
                )
                if instance == which and purity > 0.5
            }
            for which in one.instances
        )
        assert labels.classes[rows][labels.instances[rows] == one.instances[0]][0] == (one.instances[0] + 1) // 2
        # No other move by whole patches takes more patches of the one to patches of the other.
        moves = {(b[0] - a[0], b[1] - a[1]) for a in first for b in second}
        best = max(sum((a[0] + m[0], a[1] + m[1]) in second for a in first) for m in moves)
        assert len(one.first) == len(one.second) == best >= 3
        assert {tuple(place) for place in one.places.tolist()} <= first


def test_what_copies_share_cancels_in_the_binding_part_alone(cache, fits):
    # The probe reads codes and looks: no more than six directions, of which copies differ in the codes alone.
    table = bk.twin_differences(cache, fits[1].probe, [6], n_random=2)
    rows = table.set_index("axes")
    assert rows.loc["binding", "share"] > 0.7 > 2 * rows.loc["random", "share"]
    assert rows.loc["binding", "consistency"] > 0.8
    assert rows.loc["binding", "chance"] == 6 / D_MODEL
    assert rows.loc["binding", "share_elsewhere"] < rows.loc["binding", "share"]


def test_without_binding_there_is_nothing_that_is_the_same_all_over_an_object(cache, fits):
    rows = bk.twin_differences(cache, fits[0].probe, [6], n_random=2).set_index("axes")
    assert abs(rows.loc["binding", "consistency"]) < 0.5


def test_scores_of_copies_come_apart_where_there_is_binding(cache, fits):
    scores = bk.twin_scores(cache, fits[1].probe, n_copies=2)
    assert set(scores["axes"]) == {"binding", "principal"}
    for _, own in scores[scores["axes"] == "binding"].groupby("copies"):
        one, other = (own[own["instance"] == k][["first", "second"]].to_numpy() for k in (0, 1))
        within = max(one.std(0).max(), other.std(0).max())
        assert np.linalg.norm(one.mean(0) - other.mean(0)) > 5 * within


def test_binding_beyond_likeness_is_the_difference_on_the_same_pairs(cache, fits):
    (row,) = bk.twins_benchmark(cache, fits[1].probe).to_dict("records")
    own = fits[1].metrics
    assert row["binding"] == pytest.approx(own["matched_twins_auroc"])
    assert row["binding_plain_low"] == pytest.approx(own["twins_auroc_low"], nan_ok=True)
    likeness = bk.fit_probe(cache, 1, "cosine_similarity").metrics
    assert row["similarity"] == pytest.approx(likeness["matched_twins_auroc"])
    assert row["beyond_similarity"] == pytest.approx(row["binding"] - row["similarity"])
    assert row["beyond_similarity_low"] < row["beyond_similarity"] < row["beyond_similarity_high"]
    (without,) = bk.twins_benchmark(cache, fits[0].probe).to_dict("records")
    assert row["binding_plain"] > 0.99 > 0.6 > without["binding_plain"]
    assert row["n_twins"] > 0 and row["n_scenes"] == own["n_scenes"]


def test_likeness_is_the_cosine_of_a_plain_loop(cache, fits):
    labels, rows = cache.labels("test"), cache.activations("test", 1)
    counted = (labels.instances > 0) & (labels.purity > 0.5)
    scores, same = [], []
    for start, end in zip(labels.scene_offsets[:-1], labels.scene_offsets[1:], strict=True):
        chosen = np.flatnonzero(counted[start:end]) + start
        x = torch.nn.functional.normalize(rows.take(chosen).double(), dim=1).numpy()
        for a in range(len(chosen)):
            for b in range(a + 1, len(chosen)):
                i, j = chosen[a], chosen[b]
                if labels.classes[i] == labels.classes[j] and np.abs(labels.corners[i] - labels.corners[j]).max() >= 4:
                    scores.append(x[a] @ x[b])
                    same.append(labels.instances[i] == labels.instances[j])
    (row,) = bk.twins_benchmark(cache, fits[1].probe).to_dict("records")
    # Every class has two instances in these scenes, and fewer patches a scene than are judged.
    assert row["similarity_plain"] == pytest.approx(auroc(np.round(scores, 6), np.array(same)), abs=2e-3)


def test_scenes_without_copies_are_named(tmp_path):
    class Alone(PlantedScenes):
        uri = "alone:"

        def __getitem__(self, position):
            scene = super().__getitem__(position)
            return bk.Scene(scene.id, scene.image, scene.instances, scene.instances)

    cache = bk.cache_activations(Shifted(), Alone(30), tmp_path, layers=[1], dtype="float32")
    probe = bk.fit_probe(cache, 1).probe
    for call in (bk.twin_differences, bk.twin_scores):
        with pytest.raises(EmptySplitError, match="two objects of one class"):
            call(cache, probe)
    assert np.isnan(bk.twins_benchmark(cache, probe)["binding"].iloc[0])


def test_another_probe_is_refused(cache, tmp_path):
    fit = bk.fit_probe(cache, 1, "linear")
    linear = fit.probe
    with pytest.raises(ProbeError, match="no quadratic form"):
        bk.twin_differences(cache, linear)
    other = bk.cache_activations(
        Shifted(weights_digest="1" * 64, name="other"), PlantedScenes(20), tmp_path, layers=[1], dtype="float32"
    )
    with pytest.raises(ProbeMismatchError):
        bk.twins_benchmark(other, linear)
    found = bk.twins_benchmark(cache, linear)["binding"].iloc[0]  # for which a probe need be no form
    assert found == pytest.approx(fit.metrics["matched_twins_auroc"])
