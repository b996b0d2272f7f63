"""Damage is found and named, and repairing computes exactly the damaged files again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cache_fakes import ExactBackbone, ExactScenes, all_bytes, thirds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bindkit.cache import ActivationCache
from bindkit.cache.writing import exclusive
from bindkit.errors import CacheError, WorkspaceBusyError
from bindkit.extraction import cache_activations, sizing
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
