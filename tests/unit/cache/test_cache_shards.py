"""A shard's files: bytes that never change by accident, and files that are refused when they are not what they were."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_fakes import D_MODEL, ExactBackbone, ExactScenes, all_bytes, thirds
from safetensors.numpy import load

from bindkit.cache import cache_activations, computing
from bindkit.cache.encoding import ACTIVATIONS, ENCODINGS
from bindkit.cache.manifest import FileRecord
from bindkit.cache.shards import (
    BYTES_PER_ROW,
    BYTES_PER_SCENE,
    Labels,
    activations_to_parts,
    labels_from_file,
    labels_to_bytes,
    map_activations,
)
from bindkit.errors import CacheDamagedError
from bindkit.scenes import Split


def activations_to_bytes(blocks: list[np.ndarray], d_model: int, dtype: str) -> bytes:
    """What the parts of an activations file make together."""
    encoding = ENCODINGS[dtype]
    rows = [torch.from_numpy(block) for block in blocks]
    encoded = [encoding.encode(block) for block in rows]
    return b"".join(activations_to_parts(encoded, d_model, dtype))


def labels(n_rows: int = 3, scene_rows: tuple[int, ...] = (2, 0, 1)) -> Labels:
    rows = np.arange(n_rows, dtype=np.int32)
    return dict(
        instances=rows,
        classes=rows + 1,
        purity=rows.astype(np.float32) / 4,
        window=rows * 0,
        patch=rows,
        corners=np.stack([rows, rows * 2], axis=1),
        scene_rows=np.array(scene_rows, dtype=np.int64),
        scene_digests=np.zeros((len(scene_rows), 32), np.uint8),
    )


def written(path: Path, content: bytes) -> tuple[Path, FileRecord]:
    path.write_bytes(content)
    return path, FileRecord.of(content)


def test_activations_have_these_very_bytes() -> None:
    content = activations_to_bytes(
        [np.array([[0, 1], [2, 3]], np.float16), np.array([[4, -5]], np.float16)], 2, "float16"
    )
    header = b'{"activations":{"dtype":"F16","shape":[3,2],"data_offsets":[0,12]}}     '
    assert content == len(header).to_bytes(8, "little") + header + bytes.fromhex("0000003c 00400042 004400c5")


def test_a_tiny_cache_has_these_very_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every file says by which versions it was made.
    monkeypatch.setattr(computing, "_LIBRARIES", ())
    monkeypatch.setattr(computing, "__version__", "0")
    split = Split(train=(2, 0), validation=(), test=(1,), notices=())
    cache = cache_activations(
        ExactBackbone(), ExactScenes(3), tmp_path, layers=[0, 2], patches_per_scene=5, split=split
    )
    digests = {name: digest[:16] for name, digest in cache.shard_digests().items()}
    # If these change, so has the format: then give it a new FORMAT_VERSION.
    assert digests == GOLDEN


GOLDEN = {
    "test/labels/00000.safetensors": "b53dcfcb854aa3f0",
    "test/layer_00/00000.safetensors": "2e9fa2f914630e7e",
    "test/layer_02/00000.safetensors": "a3b87eecff255ef2",
    "train/labels/00000.safetensors": "509405cf9462a3bb",
    "train/layer_00/00000.safetensors": "72fd0e517221379d",
    "train/layer_02/00000.safetensors": "38d2652cd7ae329f",
}


def test_labels_are_read_back_as_written(tmp_path: Path) -> None:
    file, _ = written(tmp_path / "labels", labels_to_bytes(labels()))
    again = labels_from_file(file)
    for name, column in labels().items():
        np.testing.assert_array_equal(again[name], column)
        assert again[name].dtype == column.dtype


def test_labels_take_the_bytes_that_the_estimate_counts() -> None:
    content = labels_to_bytes(labels())
    assert len(content) - 8 - int.from_bytes(content[:8], "little") == 3 * BYTES_PER_ROW + 3 * BYTES_PER_SCENE


def test_arrays_that_are_not_contiguous_are_written_right() -> None:
    columns = np.arange(12, dtype=np.float16).reshape(2, 6)[:, ::2]
    stored = load(activations_to_bytes([columns.T.copy().T], 3, "float16"))["activations"]
    np.testing.assert_array_equal(stored, columns)


def test_labels_of_wrong_shape_dtype_or_name_are_refused(tmp_path: Path) -> None:
    short, wide, less = labels(scene_rows=(2, 2)), labels(), labels()
    wide["purity"], less["more"] = wide["purity"].astype(np.float64), less.pop("purity")
    wrong = {
        r"'instances' of a shard must be int32 \[4\], got int32 \[3\]": short,
        r"'purity' of a shard must be float32 \[3\], got float64 \[3\]": wide,
        "cannot be read as patch labels .it holds": less,
    }
    for said, columns in wrong.items():
        file, _ = written(tmp_path / "labels", labels_to_bytes(columns))
        with pytest.raises(CacheDamagedError, match=said):
            labels_from_file(file)


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64, activations_to_bytes([], 2, "float16")])
def test_files_that_are_no_labels_are_refused(tmp_path: Path, content: bytes) -> None:
    file, _ = written(tmp_path / "x.safetensors", content)
    with pytest.raises(CacheDamagedError, match=r"x\.safetensors cannot be read as patch labels .*--repair"):
        labels_from_file(file)
    with pytest.raises(CacheDamagedError, match="cannot be read as patch labels"):
        labels_from_file(tmp_path / "missing")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_mapped_activations_are_those_written(tmp_path: Path, dtype: str) -> None:
    content = np.random.default_rng(0).normal(size=(7, 5)).astype(dtype)
    file, record = written(tmp_path / "a", activations_to_bytes([content], 5, dtype))
    mapped = map_activations(file, record, 7, 5, dtype)[ACTIVATIONS]
    np.testing.assert_array_equal(mapped.numpy(), content)
    empty, record = written(tmp_path / "b", activations_to_bytes([], 5, dtype))
    assert map_activations(empty, record, 0, 5, dtype)[ACTIVATIONS].shape == (0, 5)


def test_a_wrong_width_is_refused_by_name(tmp_path: Path) -> None:
    file, record = written(tmp_path / "a", activations_to_bytes([np.zeros((3, 4), np.float16)], 4, "float16"))
    with pytest.raises(
        CacheDamagedError, match=r"holds activations \[3, 4\] but the manifest promises 3 rows of width 8"
    ):
        map_activations(file, record, 3, 8, "float16")
    with pytest.raises(CacheDamagedError, match="promises 2 rows of width 4"):
        map_activations(file, record, 2, 4, "float16")


def test_cut_missing_and_senseless_files_are_refused(tmp_path: Path) -> None:
    whole = activations_to_bytes([np.zeros((3, 4), np.float16)], 4, "float16")
    file, record = written(tmp_path / "a", whole)
    file.write_bytes(whole[:-1])
    with pytest.raises(CacheDamagedError, match=f"has {len(whole) - 1} bytes, the manifest says {len(whole)}"):
        map_activations(file, record, 3, 4, "float16")
    file.write_bytes(b"\xff" * len(whole))
    with pytest.raises(CacheDamagedError, match="cannot be read as activations"):
        map_activations(file, record, 3, 4, "float16")
    file.write_bytes(whole.replace(b"F16", b"F99"))
    with pytest.raises(CacheDamagedError, match="holds activations F99 but the manifest promises float16"):
        map_activations(file, record, 3, 4, "float16")
    file.unlink()
    with pytest.raises(CacheDamagedError, match="cannot be read as activations"):
        map_activations(file, record, 3, 4, "float16")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc/self/fd to count open files")
def test_maps_hold_no_file_open(tmp_path: Path) -> None:
    file, record = written(tmp_path / "a", activations_to_bytes([np.zeros((3, 4), np.float16)], 4, "float16"))
    before = len(list(Path("/proc/self/fd").iterdir()))
    maps = [map_activations(file, record, 3, 4, "float16") for _ in range(50)]
    assert len(maps) == 50 and len(list(Path("/proc/self/fd").iterdir())) < before + 50


def test_a_read_only_cache_can_be_mapped_and_writing_to_a_map_does_not_reach_the_file(tmp_path: Path) -> None:
    content = activations_to_bytes([np.ones((3, 4), np.float16)], 4, "float16")
    file, record = written(tmp_path / "a", content)
    file.chmod(0o400)
    mapped = map_activations(file, record, 3, 4, "float16")[ACTIVATIONS]
    mapped += 1
    assert torch.equal(mapped, torch.full((3, 4), 2.0, dtype=torch.float16))
    assert file.read_bytes() == content


def test_files_are_plain_safetensors(tmp_path: Path) -> None:
    split = Split(**vars(thirds(4)))
    cache = cache_activations(ExactBackbone(), ExactScenes(4), tmp_path, patches_per_scene=5, split=split)
    for name, content in all_bytes(cache.path).items():
        if name == "manifest.json":
            assert json.loads(content)["format_version"] == 2
        elif "layer" in name:
            assert load(content)["activations"].shape[1] == D_MODEL
        else:
            assert set(load(content)) == set(labels())
