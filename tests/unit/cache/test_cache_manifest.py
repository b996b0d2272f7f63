"""The manifest: written and read back, refused when damaged, differences named."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bindkit.cache import ActivationCache
from bindkit.cache.manifest import FileRecord, Identity, Making, Manifest, ShardRecord
from bindkit.errors import CacheError, InvalidParameterError
from bindkit.files import differences
from bindkit.scenes.checking import SceneContents
from bindkit.scenes.scene import BrokenScene

IDENTITY = Identity(
    backbone={"name": "tiny", "d_model": 4, "revision": None, "preprocessing": {"mean": (0.5, 0.25, 0.125)}},
    scenes_uri="folder:/données",
    scene_ids={"train": ("a", "ü", "\udcff"), "validation": (), "test": ("c",)},
    class_names={1: "chat, minou", 2: "chien"},
    patches_per_scene=512,
    dtype="float16",
    seed=0,
)
FILE = FileRecord("ab" * 32, 100)
FILES = {"labels": FILE, "layer_00": FILE, "layer_11": FILE}


def whole() -> Manifest:
    manifest = Manifest(
        IDENTITY, Making({"torch": "2.13"}, "cpu", 8), scenes_per_shard=2, broken=(BrokenScene("z", "no mask"),)
    )
    manifest = manifest.with_shard("train", 0, ShardRecord(9, (BrokenScene("a", "cut"),), FILES))
    manifest = manifest.with_shard("train", 1, ShardRecord(5, (), FILES))
    return manifest.with_shard("test", 0, ShardRecord(5, (), FILES))


def put(path: Path, content: bytes) -> Path:
    (path / "manifest.json").write_bytes(content)
    return path


def test_it_is_read_back_as_written(tmp_path: Path) -> None:
    manifest = whole()
    again = Manifest.read(put(tmp_path, manifest.to_bytes()))
    assert again == manifest and again.to_bytes() == manifest.to_bytes()
    assert again.layers == (0, 11) and again.is_complete
    assert again.skipped == (BrokenScene("a", "cut"),)


def test_the_same_manifest_is_the_same_bytes_whatever_the_order_it_grew_in() -> None:
    manifest, backwards = whole(), Manifest(IDENTITY, whole().making, 2, whole().broken)
    for split, shard, record in reversed(manifest.records()):
        backwards = backwards.with_shard(split, shard, replace(record, files=dict(reversed(FILES.items()))))
    assert backwards.to_bytes() == manifest.to_bytes()


def test_a_manifest_has_these_very_bytes() -> None:
    # If this changes, so has the format: then give it a new FORMAT_VERSION.
    assert hashlib.sha256(whole().to_bytes()).hexdigest()[:16] == "5463f8b6a8578a70"


LOOKED_AT = replace(IDENTITY, contents=SceneContents("", {"a": "1 2", "ü": "3 4", "\udcff": "-", "c": "5 6"}))


def test_contents_are_read_back_as_written(tmp_path: Path) -> None:
    for contents in (LOOKED_AT.contents, SceneContents("bindkit 9")):
        manifest = replace(whole(), identity=replace(IDENTITY, contents=contents))
        again = Manifest.read(put(tmp_path, manifest.to_bytes()))
        assert again == manifest and again.identity.contents == contents


def test_a_manifest_with_contents_has_these_very_bytes_and_stamps() -> None:
    manifest = replace(whole(), identity=LOOKED_AT)
    assert hashlib.sha256(manifest.to_bytes()).hexdigest()[:16] == "00dd15e1e62bf994"
    said = manifest.stamp("train", 1)
    assert said == {
        **{"backbone": "16de0e75", "patches_per_scene": "512", "dtype": "float16", "seed": "0"},
        **{"made_with": "28e2f0df", "scenes": "ac714c8c", "classes": "d4b85683"},
        **{"shard": "train/1", "ids": "c1cb3436", "contents": "6c2899e3"},
    }


@given(st.data())
def test_every_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(whole().to_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CacheError):
        Manifest.read(put(tmp_path_factory.mktemp("flipped"), bytes(content)))


def test_no_cache_there(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"no manifest\.json; give the directory"):
        ActivationCache.open(tmp_path / "nowhere")
    with pytest.raises(CacheError, match=r"delete .* and cache again"):
        ActivationCache.open(put(tmp_path, b"{not json"))
    with pytest.raises(CacheError, match="not the manifest"):
        ActivationCache.open(put(tmp_path, b'{"format": "other"}'))
    with pytest.raises(CacheError, match="not the manifest"):
        ActivationCache.open(put(tmp_path, b"[1]"))


def test_an_unknown_format_version_is_named(tmp_path: Path) -> None:
    payload = json.loads(whole().to_bytes()) | {"format_version": 99}
    with pytest.raises(CacheError, match="format version 99, this bindkit reads 1 and 2"):
        ActivationCache.open(put(tmp_path, json.dumps(payload).encode()))


def test_a_manifest_that_says_too_little(tmp_path: Path) -> None:
    payload = {"format": "bindkit activation cache", "format_version": 1}
    text = json.dumps(payload, indent=1, sort_keys=True) + "\n"
    payload |= {"manifest_sha256": hashlib.sha256(text.encode()).hexdigest()}
    with pytest.raises(CacheError, match="lacks what a manifest must say"):
        ActivationCache.open(put(tmp_path, (json.dumps(payload, indent=1, sort_keys=True) + "\n").encode()))


def test_layers_are_those_of_every_shard() -> None:
    manifest = whole().without_files(["train/layer_11/00001.safetensors"])
    assert manifest.layers == (0,) and manifest.has_all_labels and not manifest.is_complete
    assert len(manifest.files()) == len(whole().files()) - 1
    manifest = whole().without_files(["test/labels/00000.safetensors"])
    assert not manifest.has_all_labels and manifest.layers == (0, 11)
    assert whole().without_files(whole().files()).files() == {}
    assert whole().without_files([]) == whole()


def test_shards_are_counted_by_scenes() -> None:
    manifest = whole()
    assert [(split, shard) for split, shard, _ in manifest.records()] == [("train", 0), ("train", 1), ("test", 0)]
    assert manifest.shard_ids("train", 1) == ("\udcff",)
    assert manifest.n_shards("validation") == 0


def test_differences_name_each_field_with_both_values() -> None:
    other = replace(IDENTITY, seed=4, backbone={**IDENTITY.backbone, "preprocessing": {"mean": (0.5, 0.5, 0.125)}})
    assert differences(IDENTITY.fields(), other.fields()) == [
        "backbone.preprocessing.mean: the cache has [0.5, 0.25, 0.125], this call has [0.5, 0.5, 0.125]",
        "seed: the cache has 0, this call has 4",
    ]
    assert differences(IDENTITY.fields(), replace(IDENTITY).fields()) == []


def test_differences_say_where_scene_ids_part() -> None:
    other = replace(IDENTITY, scene_ids={"train": ("a", "b"), "validation": ("c",), "test": ("c",)})
    lines = differences(IDENTITY.fields(), other.fields())
    assert lines == [
        "scene ids of train: the cache has 3 scenes, this call has 2; the first to differ is number 1, 'ü' in the "
        "cache and 'b' here",
        "scene ids of validation: the cache has 0 scenes, this call has 1",
    ]


def test_differences_name_fields_that_one_side_lacks() -> None:
    assert differences({"a": 1}, {"b": None}) == [
        "a: the cache has 1, this call has nothing",
        "b: the cache has nothing, this call has None",
    ]


@pytest.mark.parametrize("wrong", [{"patches_per_scene": True}, {"dtype": "int4"}, {"seed": -1}])
def test_an_identity_checks_itself(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidParameterError, match=next(iter(wrong))):
        replace(IDENTITY, **wrong)
