"""Reading a cache: any rows in any order, labels beside them, clear refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cache_fakes import D_MODEL, ExactBackbone, ExactScenes, expected_rows, thirds
from hypothesis import given
from hypothesis import strategies as st

from bindkit.cache import ActivationCache, cache_activations, sizing
from bindkit.errors import CacheDamagedError, InvalidParameterError, LayerError
from bindkit.scenes import Split

N_SCENES = 11


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizing, "_LARGEST_SHARD", 2)
        made = cache_activations(
            ExactBackbone(),
            ExactScenes(N_SCENES),
            root=tmp_path_factory.mktemp("cache"),
            layers=[0, 2],
            patches_per_scene=20,
            split=Split(**vars(thirds(N_SCENES))),
        )
    return ActivationCache.open(made.path)


def direct(cache: ActivationCache, split: str, layer: int) -> np.ndarray:
    """All rows of a split from the closed form, scene by scene."""
    scenes, labels = ExactScenes(N_SCENES), cache.labels(split)
    blocks = []
    for k, scene_id in enumerate(labels.scene_ids):
        corners = labels.corners[labels.scene_offsets[k] : labels.scene_offsets[k + 1]]
        blocks.append(expected_rows(scenes.image(scenes.ids.index(scene_id)), corners, layer))
    return np.concatenate(blocks)


@given(data=st.data(), kind=st.sampled_from(["tensor", "array", "list", "int32"]))
def test_rows_come_in_the_order_asked_for(cache: ActivationCache, data: st.DataObject, kind: str) -> None:
    activations = cache.activations("train", 2)
    rows = data.draw(st.lists(st.integers(0, activations.n_rows - 1), max_size=60))
    wanted = {
        "tensor": torch.tensor(rows, dtype=torch.int64),
        "array": np.array(rows, dtype=np.int64),
        "int32": np.array(rows, dtype=np.int32),
        "list": rows,
    }[kind]
    taken = activations.take(wanted)
    assert taken.dtype == torch.float32 and taken.shape == (len(rows), D_MODEL)
    np.testing.assert_array_equal(taken.numpy(), direct(cache, "train", 2)[rows])
    buffer = torch.full((len(rows) + 2, D_MODEL), torch.nan)
    again = activations.take(wanted, into=buffer)
    assert again.data_ptr() == buffer.data_ptr() or not rows
    assert torch.equal(again, taken) and buffer[len(rows) :].isnan().all()


@pytest.mark.parametrize("at_once", [3, 1024])
def test_long_runs_and_scattered_rows_are_read_alike(
    cache: ActivationCache, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr("bindkit.cache.store._ROWS_AT_ONCE", at_once)
    activations, known = cache.activations("train", 2), direct(cache, "train", 2)
    n = activations.n_rows
    for rows in (np.arange(n), np.arange(n)[::-1], np.arange(n).reshape(-1, 2).T.ravel(), np.arange(n) * 7 % n):
        np.testing.assert_array_equal(activations.take(rows.copy()).numpy(), known[rows])


def test_rows_stay_beside_their_labels_when_shuffled(cache: ActivationCache) -> None:
    labels, activations = cache.labels("train"), cache.activations("train", 0)
    scenes = ExactScenes(N_SCENES)
    scene_of = np.repeat(np.arange(labels.n_scenes), np.diff(labels.scene_offsets))
    order = np.random.default_rng(1).permutation(len(labels))
    for row, found in zip(order, activations.take(order).numpy(), strict=True):
        image = scenes.image(scenes.ids.index(labels.scene_ids[scene_of[row]]))
        top, left = labels.corners[row]
        np.testing.assert_array_equal(found, image[top, left : left + 2].ravel())
        assert labels.instances[row] >= 0 and 0 < labels.purity[row] <= 1


def test_labels_are_whole_and_in_scene_order(cache: ActivationCache) -> None:
    split = thirds(N_SCENES)
    for name in cache.splits:
        labels = cache.labels(name)
        assert labels.scene_ids == tuple(f"scene-{k}" for k in getattr(split, name))
        assert labels.scene_offsets.dtype == np.int64 and labels.scene_offsets[-1] == len(labels)
        assert labels.patch_size == 4
        assert cache.activations(name, 0).n_rows == len(labels)
        assert {getattr(labels, column).dtype for column in ("instances", "classes", "window", "patch", "corners")} == {
            np.dtype(np.int32)
        }
    assert cache.labels("train") is cache.labels("train")


def test_it_says_what_it_holds(cache: ActivationCache) -> None:
    assert cache.layers == (0, 2) and cache.d_model == D_MODEL and cache.dtype == "float16"
    assert cache.backbone["name"] == "exact" and cache.class_names == {1: "disc", 2: "star"}
    assert cache.is_complete and not cache.skipped
    assert cache.manifest.scenes_uri == "exact:"
    summary = cache.summary()
    assert (summary["train_scenes"], summary["validation_scenes"], summary["test_scenes"]) == (9, 1, 1)
    assert summary["patches"] == sum(len(cache.labels(split)) for split in cache.splits)
    assert summary["bytes"] == sum(file.stat().st_size for file in cache.path.rglob("*.safetensors"))
    assert "layers 0, 2" in repr(cache)


@pytest.mark.parametrize("layer", [1, 3, -1])
def test_a_layer_that_is_not_there_is_refused_with_those_that_are(cache: ActivationCache, layer: int) -> None:
    with pytest.raises(LayerError, match=rf"layer {layer} is not in the cache .* it has layers 0, 2; add it with"):
        cache.activations("train", layer)


def test_a_split_that_is_not_there_is_refused(cache: ActivationCache) -> None:
    with pytest.raises(InvalidParameterError, match="unknown split 'val'; a cache has train, validation, test"):
        cache.labels("val")
    with pytest.raises(InvalidParameterError, match="unknown split"):
        cache.activations("val", 0)


def test_rows_that_are_not_there_are_refused(cache: ActivationCache) -> None:
    activations = cache.activations("test", 0)
    for row in (-1, activations.n_rows):
        with pytest.raises(InvalidParameterError, match=f"row {row} is outside the {activations.n_rows} rows"):
            activations.take([0, row])
    with pytest.raises(InvalidParameterError, match="whole numbers"):
        activations.take(np.array([0.5]))
    with pytest.raises(InvalidParameterError, match="whole numbers"):
        activations.take(np.zeros((2, 2), dtype=int))


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    made = cache_activations(ExactBackbone(), ExactScenes(4), tmp_path, split=Split(**vars(thirds(4))))
    (made.path / "train/layer_01/00000.safetensors").unlink()
    (made.path / "test/labels/00000.safetensors").write_bytes(b"")
    with pytest.raises(CacheDamagedError, match=r"train/layer_01/00000\.safetensors .*--repair"):
        made.activations("train", 1).take([0])
    with pytest.raises(CacheDamagedError, match=r"test/labels/00000\.safetensors"):
        made.labels("test")


def test_taking_rows_reads_those_rows_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = cache_activations(ExactBackbone(), ExactScenes(4), tmp_path, split=Split(**vars(thirds(4))))
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail(f"{self} was read as a whole"))
    assert made.activations("train", 1).take([0, 2]).shape == (2, D_MODEL)
