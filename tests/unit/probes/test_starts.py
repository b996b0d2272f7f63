"""Moments of a split's pairs beside a loop over pairs; units that they give."""

import numpy as np
import pytest
import torch
from planted import PlantedBackbone, PlantedScenes

from bindkit.cache import cache_activations
from bindkit.errors import NonFiniteActivationsError
from bindkit.probes.batches import SplitPatches
from bindkit.probes.fitting import fit_probe
from bindkit.probes.layers import measure_moments, offset_of, scale_and_offset, whitening
from bindkit.probes.protocols import PAPER, STRICT


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    # 44 px wide with windows of 32: the two windows share 20 px, so that some pairs show the same pixels.
    return cache_activations(PlantedBackbone(), PlantedScenes(9, width=44), root=tmp_path_factory.mktemp("planted"))


@pytest.mark.parametrize("rules", [PAPER, STRICT], ids=lambda rules: rules.name)
def test_moments_are_those_of_a_loop_over_pairs(cache, rules):
    patches = SplitPatches(cache, "train", 2, rules, torch.device("cpu"))
    found = measure_moments(patches)
    labels, rows = cache.labels("train"), cache.activations("train", 2)
    total, products, answers = np.zeros((24, 24)), [], []
    n_rows = n_shared = 0
    for start, end in zip(labels.scene_offsets, labels.scene_offsets[1:], strict=False):
        chosen = [
            row
            for row in range(start, end)
            if rules.pairs_with_unlabelled or (labels.instances[row] > 0 and labels.purity[row] > 0.5)
        ]
        x = rows.take(np.array(chosen)).double().numpy()
        total, n_rows = total + x.T @ x, n_rows + len(x)
        for i, first in enumerate(chosen):
            for j, second in enumerate(chosen):
                shared = (np.abs(labels.corners[first] - labels.corners[second]) < labels.patch_size).all()
                n_shared += bool(shared and i < j)
                if i == j or (shared and not rules.overlapping_pairs):
                    continue
                products.append(np.outer(x[i], x[j]))
                answers.append(labels.instances[first] == labels.instances[second])
    assert n_shared > 100
    answers = np.array(answers, dtype=float)
    signal = np.einsum("p,pij->ij", answers - answers.mean(), np.array(products)) / len(answers)
    np.testing.assert_allclose(found.patches, total / n_rows, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.signal, signal, rtol=1e-4, atol=1e-4)


def test_fewer_scenes_and_patches_give_about_the_same(cache):
    patches = SplitPatches(cache, "train", 2, PAPER, torch.device("cpu"))
    every, some = measure_moments(patches), measure_moments(patches, n_patches=len(patches) * 40)
    assert not torch.equal(every.patches, some.patches)
    assert torch.nn.functional.cosine_similarity(every.patches.flatten(), some.patches.flatten(), dim=0) > 0.99


def test_whitened_activations_have_about_the_identity_as_second_moment(cache):
    patches = SplitPatches(cache, "train", 2, PAPER, torch.device("cpu"))
    moments = measure_moments(patches)
    white = moments.in_units(whitening(moments, ridge=1e-6)).patches
    torch.testing.assert_close(white, torch.eye(24), atol=1e-3, rtol=0)


@pytest.mark.parametrize("probe", ["linear", "diag_quadratic", "quadratic"])
def test_activations_whose_products_float32_cannot_hold_are_named(probe, tmp_path):
    large = cache_activations(
        PlantedBackbone(signal=3e19), PlantedScenes(6), root=tmp_path, layers=[2], dtype="float32"
    )
    with pytest.raises(NonFiniteActivationsError, match=r"of layer 2 in the cache .*planted.* too large for float32"):
        fit_probe(large, 2, probe)


def test_scores_become_the_most_likely_logits():
    assert offset_of(torch.tensor([4.0, 6.0]), torch.tensor([0.0, 1.0])) == pytest.approx(-5)
    factor, offset = scale_and_offset(torch.tensor([-2.0, -1.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert (factor, offset) == (pytest.approx(0.42, abs=1e-3), pytest.approx(0, abs=1e-6))
