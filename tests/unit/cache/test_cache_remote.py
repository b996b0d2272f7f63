"""Caches on an object store: written, read, resumed, verified and mended like those on a disk, with the same bytes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from cache_fakes import ExactBackbone, ExactScenes, all_bytes, thirds

import bindkit as bk
from bindkit.cache import cache_activations, sizing
from bindkit.cli import main
from bindkit.errors import CacheError
from bindkit.scenes import Split

URL = "memory://bucket/cache"
N = 7


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """An empty store in memory, and a machine that has never seen it."""
    monkeypatch.setattr(sizing, "_LARGEST_SHARD", 2)
    monkeypatch.setenv("BINDKIT_REMOTE_DIR", str(tmp_path / "machine"))
    files = fsspec.filesystem("memory")
    yield files
    if files.exists("/bucket"):
        files.rm("/bucket", recursive=True)


def run(root: Any, **options: Any) -> bk.ActivationCache:
    backbone, split = options.pop("backbone", None) or ExactBackbone(), Split(**vars(thirds(N)))
    return cache_activations(backbone, ExactScenes(N), root, patches_per_scene=11, split=split, **options)


def stored(files: Any) -> dict[str, bytes]:
    root = "/bucket/cache/exact/exact"
    return {name.removeprefix(f"{root}/"): files.cat_file(name) for name in files.find(root)}


def test_the_store_holds_the_bytes_that_a_disk_would(tmp_path: Path, store: Any) -> None:
    whole = run(tmp_path / "whole")
    cache = run(URL)
    assert stored(store) == all_bytes(whole.path)
    assert not list(cache.path.rglob("*.safetensors"))  # sent away, and not read yet
    shutil.rmtree(tmp_path / "machine")
    other = bk.ActivationCache.open(f"{URL}/exact/exact")  # on a machine that has nothing
    for split in other.splits:
        assert (other.labels(split).instances == whole.labels(split).instances).all()
        rows = range(len(other.labels(split)))
        one, two = (found.activations(split, 2).take(rows) for found in (other, whole))
        assert torch.equal(one, two)
    backbone = ExactBackbone()
    run(URL, backbone=backbone)
    assert backbone.batches == [] and other.verify() == []


def test_shares_of_several_machines_make_the_whole(tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = all_bytes(run(tmp_path / "whole").path)
    for rank in (1, 2, 0):
        monkeypatch.setenv("BINDKIT_REMOTE_DIR", str(tmp_path / f"machine-{rank}"))
        cache = run(URL, share=(rank, 3))
    assert cache.is_complete and stored(store) == whole


def test_more_layers_are_added_from_another_machine(
    tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(URL, layers=[0])
    monkeypatch.setenv("BINDKIT_REMOTE_DIR", str(tmp_path / "other"))
    run(URL, layers=[0, 1, 2])
    assert stored(store) == all_bytes(run(tmp_path / "whole").path)


def test_damage_on_the_store_is_named_and_computed_again(store: Any, capsys: pytest.CaptureFixture[str]) -> None:
    cache = run(URL)
    before = stored(store)
    root = "/bucket/cache/exact/exact"
    names = sorted(before)
    layers = [name for name in names if "layer_01" in name]
    store.rm_file(f"{root}/{layers[0]}")
    flipped = bytearray(before[layers[1]])
    flipped[-1] ^= 1
    store.pipe_file(f"{root}/{layers[1]}", bytes(flipped))
    store.pipe_file(f"{root}/notes.txt", b"mine")
    assert {item.path: item.reason.split(":")[0] for item in cache.verify()} == {
        layers[0]: "missing",
        layers[1]: "changed on disk",
        "notes.txt": "foreign",
    }
    assert main(["verify", f"{URL}/exact/exact"]) == 1
    assert layers[1] in capsys.readouterr().out
    cache.repair()
    assert set(stored(store)) == set(names) - set(layers[:2]) | {"notes.txt"}
    run(URL)
    store.rm_file(f"{root}/notes.txt")
    assert stored(store) == before


def test_what_was_computed_anew_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{URL}/exact/exact"
    run(URL)
    old = bk.ActivationCache.open(url).activations("train", 0).take([0, 1])
    with monkeypatch.context() as patch:
        patch.setenv("BINDKIT_REMOTE_DIR", str(tmp_path / "other"))
        other = ExactBackbone(digest="bb")
        other.poison = {0: 1.0}
        run(URL, backbone=other, changed="recompute")
    assert torch.equal(bk.ActivationCache.open(url).activations("train", 0).take([0, 1]), old + 1)


def test_a_store_that_cannot_be_reached_is_named() -> None:
    with pytest.raises(CacheError, match="nowhere://bucket cannot be reached"):
        run("nowhere://bucket")
    with pytest.raises(CacheError, match="no cache at"):
        bk.ActivationCache.open("memory://bucket/nothing")


def test_a_record_that_is_on_its_way_is_not_taken_for_a_stale_one(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest is read again, as for the next shard, just when a record is written here and not yet there."""
    from bindkit.cache import remote
    from bindkit.cache.manifest import Manifest

    honest, seen = remote.Remote.push, []

    def push(self: remote.Remote, name: str, content: bytes) -> None:
        if name.startswith(".work/"):
            Manifest.read(self.path)
            seen.append((self.path / name).exists())
        honest(self, name, content)

    monkeypatch.setattr(remote.Remote, "push", push)
    cache = run(URL)
    assert seen and all(seen) and cache.is_complete
