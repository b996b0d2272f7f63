"""Each dtype against plain arithmetic, and through a whole cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cache_fakes import D_MODEL, ExactBackbone, ExactScenes, expected_rows

from bindkit.cache import cache_activations, estimate_bytes
from bindkit.cache.encoding import ACTIVATIONS, ENCODINGS, SCALES
from bindkit.errors import NonFiniteActivationsError


def plainly(row: list[float], dtype: str) -> list[float]:
    """One row there and back, number by number."""
    if dtype == "int8":
        scale = np.float32(max(abs(value) for value in row)) / np.float32(127)
        return [float(np.float32(round(np.float32(value) / scale)) * scale) if scale else 0.0 for value in row]
    if dtype == "bfloat16":  # the upper half of a float32, rounded to even
        bits = np.array(row, np.float32).view(np.uint32).astype(np.uint64)
        kept = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
        return kept.astype(np.uint32).view(np.float32).tolist()
    return np.array(row, dtype).astype(np.float32).tolist()


@pytest.mark.parametrize("dtype", ENCODINGS)
def test_numbers_come_back_as_plain_arithmetic_says(dtype: str) -> None:
    encoding = ENCODINGS[dtype]
    rows = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 50)[:, None]
    rows[3], rows[4, :] = 0.0, -5.0
    stored = encoding.encode(rows, rows.abs().amax(dim=1))
    found = encoding.decode(stored)
    expected = torch.tensor([plainly(row, dtype) for row in rows.tolist()])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert (found - rows).abs().max() <= encoding.deviation * rows.abs().max()
    assert sum(values.nbytes for values in stored.values()) == 50 * encoding.bytes_per_row(7)
    assert (stored[ACTIVATIONS].dtype, SCALES in stored) == (encoding.stored, encoding.scaled)


@pytest.mark.parametrize("dtype", ENCODINGS)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_of_each_dtype_gives_the_rows_back(tmp_path: Path, dtype: str, workers: int) -> None:
    scenes, backbone = ExactScenes(9), ExactBackbone()
    cache = cache_activations(backbone, scenes, tmp_path, patches_per_scene=11, dtype=dtype, workers=workers)
    labels = cache.labels("train")
    order = np.random.default_rng(0).permutation(len(labels))
    for layer in cache.layers:
        found = cache.activations("train", layer).take(order).numpy()
        for scene_id, start, end in zip(
            labels.scene_ids, labels.scene_offsets[:-1], labels.scene_offsets[1:], strict=True
        ):
            image = scenes.image(scenes.ids.index(scene_id))
            rows = expected_rows(image, labels.corners[start:end], layer)
            plain = np.array([plainly(row, dtype) for row in rows.tolist()], np.float32).reshape(-1, D_MODEL)
            place = np.argsort(order)[start:end]
            np.testing.assert_allclose(found[place], plain, rtol=1e-6)
    assert cache.verify() == [] and cache.dtype == dtype
    sizes = [record.n_bytes for record in cache.manifest.files().values()]
    assert 0 < sum(sizes) - estimate_bytes(backbone, scenes, "all", 11, dtype) < 700 * len(sizes)


def test_what_each_dtype_holds_is_checked_before_anything_is_written(tmp_path: Path) -> None:
    large = ExactBackbone()
    large.poison = {1: 1e6}
    with pytest.raises(NonFiniteActivationsError, match='cache with dtype="float32" or "bfloat16"'):
        cache_activations(large, ExactScenes(9), tmp_path / "a", dtype="float16")
    for dtype in ("bfloat16", "int8"):
        cache_activations(large, ExactScenes(9), tmp_path / dtype, dtype=dtype)
        bad = ExactBackbone()
        bad.poison = {1: float("inf")}
        with pytest.raises(NonFiniteActivationsError, match="gave inf for scene scene-"):
            cache_activations(bad, ExactScenes(9), tmp_path / f"bad {dtype}", dtype=dtype)
        assert not list((tmp_path / f"bad {dtype}").rglob("*.safetensors"))
