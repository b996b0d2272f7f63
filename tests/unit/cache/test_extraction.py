"""`cache_activations`: what is in a cache is what the model gives, computed once, skipped or refused by name."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cache_fakes import D_MODEL, ExactBackbone, ExactScenes, all_bytes, expected_rows, thirds

import bindkit as bk
from bindkit.cache import cache_activations, estimate_bytes, sizing
from bindkit.cache.computing import compute_shard
from bindkit.cache.sizing import DrawnScene, draw_scene
from bindkit.cli import main
from bindkit.errors import (
    BackboneError,
    CacheMismatchError,
    DiskSpaceError,
    EmptySplitError,
    InvalidParameterError,
    LayerError,
    NonFiniteActivationsError,
)
from bindkit.scenes import Split
from bindkit.scenes.scene import subset
from bindkit.scenes.synthetic import TRAINING_SEED


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "_LARGEST_SHARD", 2)


def split_of(n: int) -> Split:
    return Split(**vars(thirds(n)))


def make(tmp_path: Path, scenes: Any = None, backbone: Any = None, **options: Any) -> bk.ActivationCache:
    scenes = scenes or ExactScenes()
    options = {"patches_per_scene": 11, "split": split_of(len(scenes)), **options}
    return cache_activations(backbone or ExactBackbone(), scenes, root=tmp_path, **options)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("windows_per_batch", [1, 3, 64])
def test_every_row_is_the_pixel_that_its_label_points_at(tmp_path: Path, dtype: str, windows_per_batch: int) -> None:
    scenes = ExactScenes()
    cache = make(tmp_path, scenes, dtype=dtype, windows_per_batch=windows_per_batch)
    n_rows = 0
    for split in cache.splits:
        labels = cache.labels(split)
        shuffled = np.random.default_rng(0).permutation(len(labels))
        for layer in cache.layers:
            taken = cache.activations(split, layer).take(torch.from_numpy(shuffled))
            assert taken.dtype == torch.float32
            back = np.empty_like(taken.numpy())
            back[shuffled] = taken.numpy()
            for k, scene_id in enumerate(labels.scene_ids):
                rows = slice(labels.scene_offsets[k], labels.scene_offsets[k + 1])
                image = scenes.image(scenes.ids.index(scene_id))
                np.testing.assert_array_equal(back[rows], expected_rows(image, labels.corners[rows], layer))
        n_rows += len(labels)
    assert n_rows == 7 * 11


def test_cached_equals_a_direct_run_of_a_real_backbone_bit_for_bit(tmp_path: Path) -> None:
    scenes = bk.open_scenes("synthetic:n=3,seed=1,size=112x144")
    backbone = bk.load_backbone("random-init:vit", device="cpu")
    split = Split(train=(2, 0), validation=(), test=(1,), notices=())
    cache = cache_activations(
        backbone, scenes, root=tmp_path, layers=[0, 5], patches_per_scene="all", windows_per_batch=2, split=split
    )
    labels = cache.labels("train")
    for k, position in enumerate(split.train):
        scene = scenes[position]
        direct_labels = bk.label_patches(scene, backbone.geometry)
        plan = direct_labels.plan
        assert plan.n_windows == 2  # so that this scene is exactly one batch
        resized = backbone.preprocessing.resize(scene.image, plan.resized)
        crops = [resized[w.top : w.top + w.side, w.left : w.left + w.side] for w in plan.windows]
        direct = backbone.activations(torch.from_numpy(np.stack(crops)), [0, 5])
        rows = np.arange(labels.scene_offsets[k], labels.scene_offsets[k + 1])
        np.testing.assert_array_equal(labels.instances[rows], direct_labels.instances)
        np.testing.assert_array_equal(labels.purity[rows], direct_labels.purity)
        np.testing.assert_array_equal(labels.classes[rows], direct_labels.classes)
        for layer in (0, 5):
            stored = cache.activations("train", layer).take(rows)
            assert torch.equal(stored, direct[layer].flatten(0, 1).half().float())


def test_scenes_with_fewer_patches_have_fewer_rows_and_no_padding(tmp_path: Path) -> None:
    cache = make(tmp_path, patches_per_scene=40)
    labels = cache.labels("train")
    counts = dict(zip(labels.scene_ids, np.diff(labels.scene_offsets), strict=True))
    # 16 patches a window; one, two or three windows by width.
    assert counts == {scene_id: min(40, 16 * (1 + int(scene_id[-1]) % 3)) for scene_id in counts}
    assert cache.activations("train", 0).n_rows == len(labels) == sum(counts.values())


def test_all_patches_in_window_and_patch_order(tmp_path: Path) -> None:
    labels = make(tmp_path, patches_per_scene="all").labels("train")
    for start, stop in zip(labels.scene_offsets[:-1], labels.scene_offsets[1:], strict=True):
        pairs = list(zip(labels.window[start:stop], labels.patch[start:stop], strict=True))
        assert pairs == [(w, p) for w in range(len(pairs) // 16) for p in range(16)]


def test_windows_without_a_drawn_patch_are_not_run(tmp_path: Path) -> None:
    backbone = ExactBackbone()
    make(tmp_path, backbone=backbone, patches_per_scene=1)
    assert sum(backbone.batches) == 7


def test_batches_hold_windows_of_several_scenes_but_never_cross_shards(tmp_path: Path) -> None:
    backbone = ExactBackbone()
    make(tmp_path, backbone=backbone, patches_per_scene="all", windows_per_batch=4)
    windows = [1 + k % 3 for k in range(7)]
    split = split_of(7)
    expected = []
    for positions in (split.train, split.validation, split.test):
        for start in range(0, len(positions), 2):
            total = sum(windows[k] for k in positions[start : start + 2])
            expected += [4] * (total // 4) + [total % 4] * bool(total % 4)
    assert backbone.batches == expected
    assert 4 in backbone.batches


@pytest.mark.parametrize("layers", [[0], []])
def test_pixels_are_let_go_while_a_shard_is_computed(layers: list[int]) -> None:
    """A shard has up to 128 scenes; their pixels must not add up."""
    backbone, scenes = ExactBackbone(), ExactScenes()
    held: list[weakref.ref[np.ndarray]] = []
    alive = []

    def drawn() -> Iterator[DrawnScene]:
        for position in range(len(scenes)):
            scene = draw_scene(scenes, position, backbone, 8, 0)
            pixels = scene.windows.numpy().copy()
            held.append(weakref.ref(pixels))
            yield dataclasses.replace(scene, windows=torch.from_numpy(pixels))
            del pixels, scene
            alive.append(sum(array() is not None for array in held))

    content = compute_shard(backbone, drawn(), layers, "float32", windows_per_batch=2)
    assert len(content.labels["scene_rows"]) == len(scenes) == len(alive)
    assert max(alive) <= 3


def test_a_second_run_computes_nothing_loads_nothing_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = make(tmp_path)
    before = all_bytes(first.path)
    scenes, backbone = ExactScenes(), ExactBackbone()
    with caplog.at_level(logging.INFO, logger="bindkit"):
        again = make(tmp_path, scenes, backbone)
    assert not scenes.loaded and not scenes.headers_read and not backbone.batches
    assert "Nothing to compute" in caplog.text
    assert again.path == first.path and all_bytes(first.path) == before


def test_layers_added_later_leave_the_others_alone(tmp_path: Path) -> None:
    first = make(tmp_path / "a", layers=[1])
    before = all_bytes(first.path)
    stamps = {name: (first.path / name).stat().st_mtime_ns for name in before if name != "manifest.json"}
    backbone = ExactBackbone()
    second = make(tmp_path / "a", backbone=backbone, layers=[0, 1, 2])
    assert set(backbone.layers_asked) == {(0, 2)}
    assert second.layers == (0, 1, 2)
    assert stamps == {name: (first.path / name).stat().st_mtime_ns for name in stamps}
    # The same bytes as all at once, manifest included.
    assert all_bytes(second.path) == all_bytes(make(tmp_path / "b", layers="all").path)
    fewer = ExactBackbone()
    assert make(tmp_path / "a", backbone=fewer, layers=[2]).layers == (0, 1, 2)
    assert not fewer.batches


def test_layers_are_not_added_beside_labels_of_other_pixels(tmp_path: Path) -> None:
    make(tmp_path, layers=[0])
    changed = ExactScenes()
    changed.image = lambda position: 255 - ExactScenes.image(changed, position)  # type: ignore[method-assign]
    with pytest.raises(CacheMismatchError, match="images, masks or readability have changed"):
        make(tmp_path, changed, layers=[0, 1])
    assert make(tmp_path, layers=[0]).verify() == []


def test_the_last_and_default_arguments(tmp_path: Path) -> None:
    cache = cache_activations(ExactBackbone(), ExactScenes(9), root=tmp_path)
    assert cache.layers == (0, 1, 2)
    assert cache.manifest.identity.patches_per_scene == 512
    assert cache.dtype == "float16"
    assert {scene_id for split in cache.splits for scene_id in cache.labels(split).scene_ids} == set(ExactScenes(9).ids)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"patches_per_scene": 12}, "patches_per_scene: the cache has 11, this call has 12"),
        ({"seed": 3}, "seed: the cache has 0, this call has 3"),
        ({"dtype": "float32"}, "dtype: the cache has 'float16', this call has 'float32'"),
        ({"backbone": ExactBackbone(digest="bb")}, "backbone.weights_digest: the cache has 'aa', this call has 'bb'"),
        ({"scenes": ExactScenes(8)}, "scene ids of train: the cache has 5 scenes, this call has 6"),
    ],
)
def test_a_mismatch_names_what_differs_and_loses_nothing(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    cache = make(tmp_path)
    before = all_bytes(cache.path)
    with pytest.raises(CacheMismatchError) as error:
        make(tmp_path, **change)
    assert named in str(error.value)
    assert "give another root" in str(error.value)
    assert all_bytes(cache.path) == before


def test_a_mismatch_names_every_field(tmp_path: Path) -> None:
    make(tmp_path)
    backbone = ExactBackbone(digest="bb")
    plain = backbone.describe()
    plain["preprocessing"]["mean"] = (0.5, 0.5, 0.5)
    plain["geometry"]["short_side"] = 32
    backbone.describe = lambda: plain  # type: ignore[method-assign]
    with pytest.raises(CacheMismatchError) as error:
        make(tmp_path, backbone=backbone, seed=1)
    for field in ("weights_digest", "preprocessing.mean", "geometry.short_side", "seed"):
        assert field in str(error.value)
    assert "dtype" not in str(error.value)


def test_a_revision_alone_is_no_mismatch(tmp_path: Path) -> None:
    make(tmp_path)
    backbone = ExactBackbone()
    plain = backbone.describe() | {"revision": "abc123"}
    backbone.describe = lambda: plain  # type: ignore[method-assign]
    make(tmp_path, backbone=backbone)
    assert not backbone.batches


def test_other_library_versions_may_read_but_not_add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, layers=[0])
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9" if name == "torch" else real(name))
    assert make(tmp_path, layers=[0]).layers == (0,)
    with pytest.raises(CacheMismatchError, match=r"versions\.torch: .* this call has '9\.9'"):
        make(tmp_path, layers=[0, 1])
    with pytest.raises(CacheMismatchError, match="would mix"):
        make(tmp_path, layers=[0, 1], windows_per_batch=5)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_broken_scenes_are_skipped_recorded_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    scenes = ExactScenes(broken=[1], headless=[4])
    with caplog.at_level(logging.WARNING, logger="bindkit"):
        cache = make(tmp_path, scenes, workers=workers)
    assert {item.id: item.reason for item in cache.skipped} == {
        "scene-1": "scene scene-1: truncated file",
        "scene-4": "scene scene-4: truncated file",
    }
    assert "scene-1 is skipped" in caplog.text and "scene-4 is skipped" in caplog.text
    there = [scene_id for split in cache.splits for scene_id in cache.labels(split).scene_ids]
    assert sorted(there) == [f"scene-{k}" for k in (0, 2, 3, 5, 6)]
    assert cache.summary()["skipped"] == 2
    # The rows of the others are what they are without the broken ones.
    whole = make(tmp_path / "whole")
    for split in cache.splits:
        mine, theirs = cache.labels(split), whole.labels(split)
        for k, scene_id in enumerate(mine.scene_ids):
            j = theirs.scene_ids.index(scene_id)
            rows = np.arange(mine.scene_offsets[k], mine.scene_offsets[k + 1])
            others = np.arange(theirs.scene_offsets[j], theirs.scene_offsets[j + 1])
            np.testing.assert_array_equal(mine.corners[rows], theirs.corners[others])
            assert torch.equal(cache.activations(split, 2).take(rows), whole.activations(split, 2).take(others))


def test_a_shard_of_broken_scenes_only_is_whole_and_empty(tmp_path: Path) -> None:
    split = Split(train=(0, 1, 2, 3), validation=(4,), test=(5,), notices=())
    cache = make(tmp_path, ExactScenes(6, broken=[2, 3, 4]), split=split)
    assert cache.verify() == [] and cache.is_complete
    assert cache.labels("train").scene_ids == ("scene-0", "scene-1")
    assert len(cache.labels("validation")) == 0
    assert cache.activations("validation", 1).take([]).shape == (0, D_MODEL)


def test_a_split_without_scenes(tmp_path: Path) -> None:
    split = Split(train=(0, 1, 2), validation=(), test=(), notices=())
    cache = make(tmp_path, ExactScenes(3), split=split)
    labels = cache.labels("validation")
    assert (len(labels), labels.n_scenes, labels.scene_ids) == (0, 0, ())
    assert labels.scene_offsets.tolist() == [0] and labels.corners.shape == (0, 2)
    assert cache.activations("test", 0).n_rows == 0
    assert cache.summary()["test_scenes"] == 0


def test_scenes_that_backbones_were_trained_on_are_not_measured_nor_any_part_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"synthetic:n=6,seed={TRAINING_SEED + 7},size=32x32"
    seen = bk.open_scenes(uri)
    for scenes in (seen, subset(seen, [4, 1])):
        with pytest.raises(InvalidParameterError, match="kept for training"):
            cache_activations(ExactBackbone(), scenes, root=tmp_path / "cache")
    asked = ["cache", "--scenes", uri, "--backbone", "random-init:vit", "--root", str(tmp_path / "cache")]
    assert main(asked) == 2
    assert "measure with a seed below" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_nothing_to_cache_is_an_error(tmp_path: Path) -> None:
    none = Split(train=(), validation=(), test=(), notices=())
    with pytest.raises(EmptySplitError, match="no scene to cache"):
        make(tmp_path, ExactScenes(0), split=none)


@pytest.mark.parametrize("how", ["broken", "headless"])
def test_a_training_split_that_cannot_be_read_is_an_error_and_is_tried_again(tmp_path: Path, how: str) -> None:
    split = split_of(7)
    with pytest.raises(EmptySplitError, match=r"none of the 5 scenes of the train split .* cannot be read|can be read"):
        make(tmp_path, ExactScenes(**{how: split.train}))
    mended = make(tmp_path)
    assert len(mended.labels("train").scene_ids) == 5 and mended.verify() == []


def test_nan_and_infinity_are_refused_by_scene_and_layer(tmp_path: Path) -> None:
    for poison in (float("nan"), float("inf"), float("-inf")):
        backbone = ExactBackbone()
        backbone.poison = {1: poison}
        with pytest.raises(NonFiniteActivationsError, match=r"scene scene-\d at layer 1; .* finite"):
            make(tmp_path, backbone=backbone)
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("*.partial"))


def test_a_backbone_of_another_width_than_it_says_is_refused(tmp_path: Path) -> None:
    wrong = ExactBackbone()
    wrong.d_model = 7
    with pytest.raises(BackboneError, match="exact gave 6 numbers a patch at layer 0, and says that its width is 7"):
        make(tmp_path, backbone=wrong)


def test_what_float16_cannot_hold_is_refused_with_the_remedy(tmp_path: Path) -> None:
    backbone = ExactBackbone()
    backbone.poison = {2: 70000.0}
    with pytest.raises(NonFiniteActivationsError, match=r'at layer 2, beyond .* dtype="float32"'):
        make(tmp_path, backbone=backbone)
    cache = make(tmp_path, backbone=backbone, dtype="float32")
    assert cache.activations("train", 2).take([0]).min() >= 70000


def test_the_scene_with_the_bad_value_is_named(tmp_path: Path) -> None:
    scenes = ExactScenes()
    marked = scenes.image(3).copy()
    marked[:] = 255
    scenes.image = lambda position: marked if position == 3 else ExactScenes.image(scenes, position) // 2  # type: ignore[method-assign]
    backbone = ExactBackbone()
    honest = backbone.activations
    backbone.activations = lambda windows, layers: {  # type: ignore[method-assign]
        layer: torch.where(found >= 255, torch.nan, found) for layer, found in honest(windows, layers).items()
    }
    with pytest.raises(NonFiniteActivationsError, match="scene scene-3 at layer 0"):
        make(tmp_path, scenes, backbone, layers=[0])


def test_a_layer_that_the_backbone_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(LayerError, match="layers 0 to 2"):
        make(tmp_path, layers=[7])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        {"patches_per_scene": 0},
        {"patches_per_scene": "some"},
        {"dtype": "int4"},
        {"seed": -1},
        {"windows_per_batch": 0},
        {"workers": -1},
    ],
)
def test_arguments_outside_what_they_take(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=next(iter(options))):
        make(tmp_path, **options)
    assert not any(tmp_path.iterdir())


def test_the_estimate_is_the_real_size(tmp_path: Path) -> None:
    scenes = bk.open_scenes("synthetic:n=6,seed=0")
    backbone = bk.load_backbone("random-init:dinov2", device="cpu")
    for patches, dtype, layers in ((100, "float16", [1]), ("all", "float32", [0, 2])):
        cache = cache_activations(
            backbone, scenes, tmp_path / dtype, layers=layers, patches_per_scene=patches, dtype=dtype
        )
        files = [file for file in cache.path.rglob("*.safetensors")]
        real = sum(file.stat().st_size for file in files)
        estimated = estimate_bytes(backbone, scenes, layers, patches, dtype)
        headers = sum(8 + int.from_bytes(file.read_bytes()[:8], "little") for file in files)
        assert estimated == real - headers
        assert abs(estimated - real) <= 0.02 * real
        assert cache.n_bytes == real


def test_the_size_is_announced_before_work_starts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="bindkit"):
        make(tmp_path, patches_per_scene="all")
    announced = next(record.getMessage() for record in caplog.records if record.getMessage().startswith("Caching"))
    assert announced.startswith("Caching 7 scenes (13 windows) at 3 layers of exact as float16: ")
    assert "free" in announced


def test_too_little_disk_is_an_error_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    backbone = ExactBackbone()
    with pytest.raises(DiskSpaceError, match=r"needs .* KiB more but only 1000 bytes are free"):
        make(tmp_path / "new", backbone=backbone)
    assert not (tmp_path / "new").exists() and not backbone.batches


def test_only_what_is_missing_needs_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=0))
    make(tmp_path)


def test_the_path_is_readable_and_made_of_both_names(tmp_path: Path) -> None:
    cache = make(tmp_path, ExactScenes(uri="folder:/data/some images"), ExactBackbone("facebook/dinov2-large"))
    assert cache.path.relative_to(tmp_path).as_posix() == "folder-data-some-images/facebook-dinov2-large"


def test_scenes_per_shard_keep_all_layers_within_a_gibibyte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    identity = make_identity(512, "float16")
    large = ExactBackbone(n_layers=24)
    large.d_model = 1024
    count = sizing.scenes_per_shard(large, identity, 512)
    assert count == 32 and count * 512 * 24 * 1024 * 2 <= 2**30 < 2 * count * 512 * 24 * 1024 * 2
    assert sizing.scenes_per_shard(ExactBackbone(), identity, 512) == 128
    large.d_model = 10**7
    assert sizing.scenes_per_shard(large, identity, 512) == 1


def make_identity(patches: int, dtype: str) -> Any:
    from bindkit.cache.manifest import Identity

    return Identity({}, "", {}, {}, patches, dtype, 0)


def test_a_damaged_file_is_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = make(tmp_path)
    before = all_bytes(cache.path)
    (cache.path / "train/layer_01/00001.safetensors").unlink()
    short = cache.path / "train/labels/00002.safetensors"
    short.write_bytes(short.read_bytes()[:-1])
    backbone = ExactBackbone()
    make(tmp_path, backbone=backbone)
    assert set(backbone.layers_asked) == {(1,)}
    assert "train/layer_01/00001.safetensors" in caplog.text and "train/labels/00002.safetensors" in caplog.text
    assert all_bytes(cache.path) == before


def test_broken_scenes_left_out_on_opening_are_kept_in_the_manifest(tmp_path: Path) -> None:
    scenes = ExactScenes()
    scenes.broken = (bk.scenes.BrokenScene("gone", "no image"),)
    cache = make(tmp_path, scenes)
    assert [dataclasses.astuple(item) for item in cache.skipped] == [("gone", "no image")]


def test_about_how_long_the_model_will_take_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backbone = bk.load_backbone("random-init:vit", device="cpu")
    honest, slow = sizing.seconds_per_window(backbone, [0], 4), 7200.0
    assert 0 < honest < 10
    with caplog.at_level("INFO"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizing, "seconds_per_window", lambda *_: slow)
        make(tmp_path, bk.open_scenes("synthetic:n=3,seed=0,size=112x112"), backbone, split=split_of(3), layers=[0])
    assert any("(3 windows)" in line and "About 6.0 h for the model alone" in line for line in caplog.messages)
