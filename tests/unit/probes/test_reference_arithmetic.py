"""A backbone loaded for the paper protocol rounds as the reference does, and its caches say so."""

import json

import pytest
import torch

import bindkit as bk
from bindkit.cache import cache_activations, compare_with_model
from bindkit.cache.verifying import repair_cache
from bindkit.errors import CacheMismatchError, GeometryError
from bindkit.probes.protocols import loading_options
from bindkit.scenes.geometry import WindowGeometry, label_patches

SCENES = "synthetic:n=4,seed=0,size=70x103"


@pytest.fixture(scope="module")
def scenes():
    return bk.open_scenes(SCENES)


def load(protocol):
    # Weights are random; only what surrounds them is looked at.
    return bk.load_backbone("bindkit/scenes-mae", short_side=97, device="cpu", **loading_options(protocol))


def test_a_protocols_backbone_has_its_arithmetic_and_says_so():
    paper, strict = load("paper"), load("strict")
    assert paper.geometry == WindowGeometry(97, 80, 8, "reference")
    assert paper.preprocessing.mean == (0.485, 0.456, 0.406)
    assert paper.describe()["geometry"]["arithmetic"] == "reference"
    assert strict.describe()["geometry"] == {"short_side": 97, "window": 80, "patch_size": 8}, "as in older caches"
    with pytest.raises(GeometryError, match="unknown arithmetic 'floor'"):
        bk.load_backbone("random-init:vit", arithmetic="floor")


def test_a_cache_has_the_labels_of_its_arithmetic_is_mended_with_it_and_is_no_other_ones(scenes, tmp_path):
    paper = load("paper")
    cache = cache_activations(paper, scenes, root=tmp_path, layers=[1], patches_per_scene="all")
    labels = cache.labels("train")
    scene = scenes[list(scenes.ids).index(labels.scene_ids[0])]
    n = labels.scene_offsets[1]
    assert labels.instances[:n].tolist() == label_patches(scene, paper.geometry).instances.tolist()
    assert labels.instances[:n].tolist() != label_patches(scene, load("strict").geometry).instances.tolist()
    damaged = next(cache.path.rglob("layer_01/*"))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert repair_cache(cache.path).obstacle == "", "normalised and rounded as it was"
    assert damaged.read_bytes() == whole
    with pytest.raises(
        CacheMismatchError, match=r"geometry\.arithmetic: the cache has 'reference', this call has nothing"
    ):
        cache_activations(load("strict"), scenes, root=tmp_path, layers=[1], patches_per_scene="all")
    again = bk.ActivationCache.open(cache.path)
    found = compare_with_model(again, paper, scenes)
    assert found.largest <= found.allowed
    with pytest.raises(CacheMismatchError, match=r"filled with the geometry .*reference"):
        compare_with_model(again, load("strict"), scenes)


def test_affinities_cover_the_whole_image_with_either_arithmetic(scenes):
    probe = bk.probes.make_probe("quadratic", load("paper").d_model)
    probe.fitted_on = {"layer": 1}
    for protocol in ("paper", "strict"):
        found = bk.affinity(load(protocol), probe, scenes[0])
        assert (found.grid.rows, found.grid.cols) == (12, 18)
        assert torch.from_numpy(found.scores).isfinite().all()


def test_the_geometry_is_plain_values_that_make_it_again():
    for arithmetic in ("centred", "reference"):
        geometry = WindowGeometry(97, 80, 8, arithmetic)
        assert WindowGeometry(**json.loads(json.dumps(geometry.describe()))) == geometry
