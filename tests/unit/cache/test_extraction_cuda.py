"""On a CUDA device: worker processes, copies beside the computation and half precision change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cache_fakes import all_bytes

import bindkit as bk
from bindkit.cache import sizing
from bindkit.errors import NonFiniteActivationsError

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def cached(root: Path, device: str = "cuda", **options: Any) -> bk.ActivationCache:
    loading = {name: options.pop(name) for name in ("precision",) if name in options}
    backbone = bk.load_backbone("random-init:vit", device=device, **loading)
    return bk.cache_activations(backbone, bk.open_scenes("synthetic:n=12,seed=5"), root, **options)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "_LARGEST_SHARD", 2)


def largest_difference(one: bk.ActivationCache, other: bk.ActivationCache) -> float:
    """Of any layer, as a share of its largest activation."""
    found = []
    for layer in one.layers:
        pair = [cache.activations("train", layer).take(range(len(cache.labels("train")))) for cache in (one, other)]
        found.append(float((pair[0] - pair[1]).abs().max() / pair[0].abs().max()))
    return max(found)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_processes_and_no_workers_give_the_same_bytes(tmp_path: Path, dtype: str) -> None:
    one = cached(tmp_path / "a", workers=3, dtype=dtype)
    assert all_bytes(one.path) == all_bytes(cached(tmp_path / "b", workers=0, dtype=dtype).path)
    assert one.verify() == []


def test_rows_are_those_of_the_processor(tmp_path: Path) -> None:
    on_gpu = cached(tmp_path / "a", dtype="float32", workers=2)
    assert largest_difference(on_gpu, cached(tmp_path / "b", "cpu", dtype="float32")) < 1e-4


def test_half_precision_lies_close_and_is_another_cache(tmp_path: Path) -> None:
    halved = cached(tmp_path / "a", precision="bfloat16", dtype="float32", workers=2)
    assert halved.backbone["precision"] == "bfloat16"
    difference = largest_difference(cached(tmp_path / "b", "cpu", dtype="float32"), halved)
    assert 1e-5 < difference < 2e-2
    backbone = bk.load_backbone("random-init:vit", precision="bfloat16")
    deviation = bk.compare_with_model(halved, backbone, bk.open_scenes("synthetic:n=12,seed=5"))
    assert deviation.largest <= deviation.allowed


def test_what_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    backbone = bk.load_backbone("random-init:vit")
    with torch.no_grad():
        next(backbone.tower.blocks[3].parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteActivationsError, match=r"gave nan for scene .* at layer 3"):
        bk.cache_activations(backbone, bk.open_scenes("synthetic:n=12,seed=5"), tmp_path, workers=2)
