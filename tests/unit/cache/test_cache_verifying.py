"""Damage is found and named, and repairing computes exactly the damaged files again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cache_fakes import ExactBackbone, ExactScenes, all_bytes, thirds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bindkit.cache import ActivationCache, cache_activations, sizing
from bindkit.cache.manifest import _digest as manifest_digest
from bindkit.cache.writing import exclusive
from bindkit.cli import main
from bindkit.errors import CacheDamagedError, CacheError, WorkspaceBusyError
from bindkit.scenes import Split


def run(root: Path, backbone: ExactBackbone | None = None) -> ActivationCache:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizing, "_LARGEST_SHARD", 2)
        return cache_activations(
            backbone or ExactBackbone(), ExactScenes(), root, patches_per_scene=11, split=Split(**vars(thirds(7)))
        )


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("pristine")).path


@pytest.fixture
def cache(pristine: Path, tmp_path: Path) -> ActivationCache:
    shutil.copytree(pristine, tmp_path / "exact" / "exact")
    return ActivationCache.open(tmp_path / "exact" / "exact")


def found(cache: ActivationCache) -> dict[str, str]:
    return {item.path: item.reason for item in cache.verify()}


def test_a_whole_cache_has_no_damage(cache: ActivationCache) -> None:
    assert cache.verify() == [] and cache.repair() == []


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_flipped_bit_anywhere_is_found_and_mended(cache: ActivationCache, data: st.DataObject) -> None:
    before = all_bytes(cache.path)
    name = data.draw(st.sampled_from(sorted(set(before) - {"manifest.json"})))
    content = bytearray(before[name])
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (cache.path / name).write_bytes(bytes(content))
    assert found(cache) == {name: "changed on disk: its SHA-256 is not the one in the manifest"}
    assert [item.path for item in cache.repair()] == [name]
    assert not (cache.path / name).exists() and not cache.is_complete and cache.verify() == []
    assert all_bytes(run(cache.path.parents[1]).path) == before
    cache.manifest = ActivationCache.open(cache.path).manifest


def test_a_flipped_bit_in_the_manifest_is_found_on_opening(cache: ActivationCache) -> None:
    file = cache.path / "manifest.json"
    file.write_bytes(file.read_bytes().replace(b'"seed": 0', b'"seed": 1'))
    with pytest.raises(CacheError, match="was changed after it was written"):
        ActivationCache.open(cache.path)


def test_missing_cut_and_foreign_files_are_named(cache: ActivationCache) -> None:
    (cache.path / "train/layer_00/00000.safetensors").unlink()
    cut = cache.path / "test/layer_02/00000.safetensors"
    size = cut.stat().st_size
    cut.write_bytes(cut.read_bytes()[:-3])
    long = cache.path / "train/labels/00001.safetensors"
    long.write_bytes(long.read_bytes() + b"x")
    (cache.path / "notes.txt").write_text("mine")
    (cache.path / "train/layer_00/00009.safetensors").write_bytes(b"left")
    (cache.path / "train/layer_00/00000.safetensors.123.partial").write_bytes(b"left")
    assert found(cache) == {
        "train/layer_00/00000.safetensors": "missing",
        "test/layer_02/00000.safetensors": f"cut short: {size - 3:,} bytes, the manifest says {size:,}",
        "train/labels/00001.safetensors": f"too long: {long.stat().st_size:,} bytes, the manifest says "
        f"{long.stat().st_size - 1:,}",
        "notes.txt": "foreign: not in the manifest (not written by bindkit)",
        "train/layer_00/00009.safetensors": "foreign: not in the manifest (left by an interrupted run)",
        "train/layer_00/00000.safetensors.123.partial": "foreign: not in the manifest (left by an interrupted run)",
    }
    assert str(cache.verify()[0]).startswith("notes.txt: foreign")


def test_repair_computes_exactly_the_damaged_files_again(
    cache: ActivationCache, pristine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (cache.path / "train/layer_02/00001.safetensors").write_bytes(b"nonsense")
    (cache.path / "train/labels/00000.safetensors").unlink()
    (cache.path / "notes.txt").write_text("mine")
    (cache.path / "train/layer_00/00009.safetensors").write_bytes(b"left")
    untouched = {
        name: (cache.path / name).stat().st_mtime_ns
        for name in all_bytes(cache.path)
        if name not in ("manifest.json", "train/layer_02/00001.safetensors", "train/layer_00/00009.safetensors")
    }
    assert len(cache.repair()) == 4
    assert "notes.txt was not written by bindkit" in caplog.text
    assert cache.layers == (0, 1) and not cache.is_complete
    backbone = ExactBackbone()
    mended = run(cache.path.parents[1], backbone)
    assert set(backbone.layers_asked) == {(2,)}
    assert untouched == {name: (cache.path / name).stat().st_mtime_ns for name in untouched}
    (cache.path / "notes.txt").unlink()
    assert all_bytes(mended.path) == all_bytes(pristine)
    assert mended.verify() == []


def test_every_file_damaged_is_a_fresh_start(cache: ActivationCache, pristine: Path) -> None:
    for file in cache.path.rglob("*.safetensors"):
        file.write_bytes(b"")
    cache.repair()
    assert not list(cache.path.rglob("*.safetensors")) and cache.layers == ()
    assert all_bytes(run(cache.path.parents[1]).path) == all_bytes(pristine)


def test_repair_does_not_touch_a_cache_that_is_being_written(cache: ActivationCache) -> None:
    with exclusive(cache.path), pytest.raises(WorkspaceBusyError, match="another process is writing"):
        cache.repair()


def swapped_scenes(payload: dict[str, Any]) -> None:
    ids = payload["scenes"]["ids"]
    ids["train"][-1], ids["test"][0] = ids["test"][0], ids["train"][-1]


def swapped_splits(payload: dict[str, Any]) -> None:
    for of_split in (payload["scenes"]["ids"], payload["shards"]):
        of_split["validation"], of_split["test"] = of_split["test"], of_split["validation"]


def one_scene_more(payload: dict[str, Any]) -> None:
    payload["scenes"]["ids"]["train"].append("scene-9")


def one_scene_less(payload: dict[str, Any]) -> None:
    payload["scenes"]["ids"]["train"].pop()


def one_shard_less(payload: dict[str, Any]) -> None:
    payload["scenes"]["ids"]["train"] = payload["scenes"]["ids"]["train"][:4]
    del payload["shards"]["train"]["00002"]


def swapped_layers(payload: dict[str, Any]) -> None:
    for shards in payload["shards"].values():
        for record in shards.values():
            layers = record["activations"]
            layers["00"], layers["02"] = layers["02"], layers["00"]


def of_version_1(payload: dict[str, Any]) -> None:
    payload["format_version"] = 1
    del payload["scenes"]["contents"], payload["scenes"]["made_by"]


def put_in(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(payload: dict[str, Any]) -> None:
        for name in path[:-1]:
            payload = payload[name]
        assert path[-1] in payload and payload[path[-1]] != value
        payload[path[-1]] = value

    return edit


EDITS: dict[str, Callable[[dict[str, Any]], None]] = {
    "fewer patches a scene": put_in("patches_per_scene", value=5),
    "more patches a scene": put_in("patches_per_scene", value=12),
    "all patches": put_in("patches_per_scene", value="all"),
    "dtype": put_in("dtype", value="float32"),
    "seed": put_in("seed", value=1),
    "backbone": put_in("backbone", "name", value="another"),
    "objective": put_in("backbone", "objective", value="dino"),
    "weights": put_in("backbone", "weights_digest", value="bb"),
    "revision": put_in("backbone", "revision", value="main"),
    "width": put_in("backbone", "d_model", value=3),
    "depth": put_in("backbone", "n_layers", value=9),
    "window": put_in("backbone", "geometry", "window", value=32),
    "patch": put_in("backbone", "geometry", "patch_size", value=8),
    "mean": put_in("backbone", "preprocessing", "mean", value=[0.5, 0.5, 0.5]),
    "scene set": put_in("scenes", "uri", value="folder:/elsewhere"),
    "maker of the scenes": put_in("scenes", "made_by", value="somebody else"),
    "class names": put_in("scenes", "class_names", "2", value="moon"),
    "scenes a shard": put_in("scenes_per_shard", value=3),
    "device": put_in("made_with", "device", value="cuda"),
    "batch": put_in("made_with", "windows_per_batch", value=77),
    "a version": put_in("made_with", "versions", "torch", value="1.0"),
    "layers": put_in("layers", value=[0, 1]),
    "rows": put_in("shards", "train", "00000", "rows", value=21),
    "skipped": put_in("shards", "train", "00000", "skipped", value=[["scene-1", "cut"]]),
    "size of a file": put_in("shards", "test", "00000", "labels", value=["ab" * 32, 7]),
    "name of a scene": put_in("scenes", "ids", "validation", value=["scene-9"]),
    "order of scenes": lambda payload: payload["scenes"]["ids"]["train"].reverse(),
    "scenes of two splits": swapped_scenes,
    "two splits": swapped_splits,
    "one scene more": one_scene_more,
    "one scene less": one_scene_less,
    "one shard less": one_shard_less,
    "two layers": swapped_layers,
    "format version": of_version_1,
}


def edit_manifest(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change what a manifest says and put its digest right again, as somebody would who knows how."""
    payload = json.loads((path / "manifest.json").read_text())
    del payload["manifest_sha256"]
    edit(payload)
    payload["manifest_sha256"] = manifest_digest(payload)
    (path / "manifest.json").write_text(json.dumps(payload, indent=1, sort_keys=True) + "\n")


@pytest.mark.parametrize("edited", EDITS)
def test_a_manifest_that_was_edited_with_its_digest_is_found(
    cache: ActivationCache, edited: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_manifest(cache.path, EDITS[edited])
    assert main(["verify", str(cache.path)]) == 1
    assert str(cache.path) in capsys.readouterr().out


def test_a_manifest_whose_digest_alone_was_computed_anew_is_whole(cache: ActivationCache) -> None:
    edit_manifest(cache.path, lambda payload: None)
    assert ActivationCache.open(cache.path).verify() == []


def test_what_was_edited_is_named(cache: ActivationCache) -> None:
    edit_manifest(cache.path, EDITS["fewer patches a scene"])
    damage = ActivationCache.open(cache.path).verify()
    assert {item.path for item in damage} == set(cache.manifest.files())
    labels = [item.reason for item in damage if "/labels/" in item.path]
    assert all("patches_per_scene: the file has '11', the manifest has '5'" in reason for reason in labels)
    with pytest.raises(CacheDamagedError, match="patches_per_scene: the file has '11'"):
        ActivationCache.open(cache.path).labels("train")
    with pytest.raises(CacheDamagedError, match="is of something else than the manifest says"):
        ActivationCache.open(cache.path).activations("train", 0).take([0])


def test_shards_of_another_cache_in_place_of_its_own_are_found(cache: ActivationCache, tmp_path: Path) -> None:
    other = run(tmp_path / "b", ExactBackbone(digest="bb"))
    for name in ("train/labels/00000.safetensors", "train/layer_01/00000.safetensors"):
        shutil.copy(other.path / name, cache.path / name)
        record = other.manifest.files()[name]
        split, kind, shard = name.removesuffix(".safetensors").split("/")

        def put(payload: dict[str, Any], split=split, kind=kind, shard=shard, record=record) -> None:
            place = payload["shards"][split][shard]
            if kind == "labels":
                place["labels"] = [record.sha256, record.n_bytes]
            else:
                place["activations"][kind.removeprefix("layer_")] = [record.sha256, record.n_bytes]

        edit_manifest(cache.path, put)
    damage = ActivationCache.open(cache.path).verify()
    assert [item.path for item in damage] == ["train/labels/00000.safetensors", "train/layer_01/00000.safetensors"]
    assert "backbone: the file has" in damage[0].reason
