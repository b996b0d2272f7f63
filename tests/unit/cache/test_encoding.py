"""Each dtype against plain arithmetic, and through a whole cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cache_fakes import D_MODEL, ExactBackbone, ExactScenes, expected_rows

from bindkit.cache import cache_activations, estimate_bytes
from bindkit.cache.encoding import ACTIVATIONS, ENCODINGS, SCALES, turning
from bindkit.errors import NonFiniteActivationsError


def walsh(row: int, col: int) -> int:
    """An entry of Hadamard's matrix."""
    return -1 if (row & col).bit_count() % 2 else 1


def plainly(row: list[float], dtype: str) -> list[float]:
    """One row there and back, number by number."""
    if dtype == "int8":
        size = 1
        while len(row) % (2 * size) == 0 and size < 128:
            size *= 2
        signs, found = turning(len(row), torch.device("cpu"))[0].tolist(), []
        turned = [
            sum(walsh(j, k % size) * signs[k - k % size + j] * row[k - k % size + j] for j in range(size))
            for k in range(len(row))
        ]
        scale = max(abs(value) for value in turned) / 127
        whole = [round(value / scale) if scale else 0 for value in turned]
        for k in range(len(row)):
            there = sum(walsh(j, k % size) * whole[k - k % size + j] for j in range(size))
            found.append(signs[k] * there * scale / size)
        return found
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
    stored = encoding.encode(rows)
    found = encoding.decode(stored)
    expected = torch.tensor([plainly(row, dtype) for row in rows.tolist()])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
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
            np.testing.assert_allclose(found[place], plain, rtol=1e-5, atol=1e-3)
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


@pytest.mark.parametrize("d_model", [384, 1024, 97])
def test_a_massive_channel_does_not_take_up_the_scale(d_model: int) -> None:
    """As large ViTs have them. Without turning, an error of half of 100 / 127 would be left in all other channels."""
    rows = torch.randn(200, d_model, generator=torch.Generator().manual_seed(1))
    rows[:, 5] = 100.0
    encoding = ENCODINGS["int8"]
    found = encoding.decode(encoding.encode(rows))
    error = float((found - rows)[:, 6:].square().mean().sqrt())
    assert error < (0.05 if d_model % 128 == 0 else 0.4)


def test_turning_back_is_exact_however_many_rows_are_read_at_once() -> None:
    stored = {ACTIVATIONS: torch.randint(-127, 128, (1000, 384), dtype=torch.int8), SCALES: torch.rand(1000)}
    encoding = ENCODINGS["int8"]
    one_by_one = [encoding.decode({name: values[k : k + 1] for name, values in stored.items()}) for k in range(1000)]
    assert torch.equal(encoding.decode(stored), torch.cat(one_by_one))
