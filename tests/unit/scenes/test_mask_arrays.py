"""NumPy's and MATLAB's arrays as masks of a folder: what is read, what is refused, and that nothing is run."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image
from written_formats import SIZES, Plan, encode, image_of, instances_of, put

from bindkit.errors import BrokenSceneError, SceneSetError
from bindkit.scenes import open_scenes
from bindkit.scenes.decoding import MAX_PIXELS, read_array

MASK, PLAN = instances_of("a"), Plan((1, 1, 2, 3))


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "data"


def folder_with(root: Path, write, suffix: str, options: str = ""):
    put(root / "images" / "a.png", encode(image_of("a"), "PNG"))
    (root / "instances").mkdir(parents=True)
    write(root / "instances" / f"a{suffix}")
    return open_scenes(f"folder:{root}{options}")


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint16", "int32", "int64", "uint64", ">i4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_masks_are_read(root, dtype: str, order: str):
    mask = np.array(MASK, dtype=dtype, order=order)
    scenes = folder_with(root, lambda path: np.save(path, mask), ".npy")
    assert (scenes[0].instances == mask).all()
    assert scenes[0].instances.dtype == np.int32
    assert scenes.size_of(0) == SIZES["a"]


def test_large_ids_of_npy_masks_are_numbered_anew(root):
    scenes = folder_with(root, lambda path: np.save(path, MASK.astype(np.int64) * 2**33), ".npy")
    assert (scenes[0].instances == MASK).all()


class Attack:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_npy_masks_execute_nothing(root, tmp_path):
    import pickle

    marker = tmp_path / "ran"
    objects = np.array([[Attack(marker)]], dtype=object)
    scenes = folder_with(root, lambda path: np.save(path, objects, allow_pickle=True), ".npy")
    with pytest.raises(BrokenSceneError, match="cannot be read"):
        scenes[0]
    for content in (pickle.dumps(objects), b"PK\x03\x04" + bytes(50), b""):
        put(root / "instances" / "a.npy", content)
        with pytest.raises(BrokenSceneError):
            scenes[0]
    assert not marker.exists()


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (MASK.astype(float), "float64"),
        (MASK[None], r"\[1, 64, 96\]"),
        (MASK[:0], "cannot be read|expected whole numbers"),
        (-MASK.astype(int), "ids below 0"),
        (np.full(SIZES["a"], 2**63, np.uint64), "ids below 0 or above"),
        (MASK[:9], "both must have the same size"),
        (np.array([["a"]]), "expected whole numbers"),
    ],
)
def test_npy_arrays_that_are_no_masks_are_refused(root, array: np.ndarray, said: str):
    scenes = folder_with(root, lambda path: np.save(path, array), ".npy")
    with pytest.raises(BrokenSceneError, match=said):
        scenes[0]


def test_an_npy_header_that_promises_more_than_there_is_costs_nothing(root):
    def write(path: Path) -> None:
        stream = io.BytesIO()
        np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6)})
        put(path, stream.getvalue())

    with pytest.raises(BrokenSceneError, match="cannot be read"):
        folder_with(root, write, ".npy")[0]
    sparse = root / "instances" / "a.npy"
    with sparse.open("r+b") as stream:
        stream.truncate(2 * 10**12)
    with pytest.raises(BrokenSceneError, match=r"\[1000000, 1000000\]; expected whole numbers .* 300,000,000"):
        open_scenes(f"folder:{root}")[0]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float64", "bool"])
def test_mat_masks_are_read(root, packed: bool, dtype: str):
    mask = (MASK > 0) if dtype == "bool" else MASK.astype(dtype)
    content = {"mask": mask, "name": "text"}
    scenes = folder_with(root, lambda path: scipy.io.savemat(path, content, do_compression=packed), ".mat")
    assert (scenes[0].instances == mask).all()
    assert scenes.size_of(0) == SIZES["a"]


def test_of_several_matrices_one_must_be_named(root):
    content = {"mask": MASK, "other": MASK * 2}
    scenes = folder_with(root, lambda path: scipy.io.savemat(path, content), ".mat")
    with pytest.raises(BrokenSceneError, match=r"single variable .* mask \(uint8 \[64, 96\]\), other .*variable=NAME"):
        scenes[0]
    assert (open_scenes(f"folder:{root},variable=other")[0].instances == 2 * MASK).all()
    with pytest.raises(BrokenSceneError, match=r"expected the variable 'third'"):
        open_scenes(f"folder:{root},variable=third")[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"mask": MASK / 2.0}, "expected whole numbers"),
        ({"mask": np.full((64, 96), np.nan)}, "expected whole numbers"),
        ({"mask": {"inner": MASK}}, r"mask \(struct"),
        ({"mask": np.array([[MASK, MASK]], dtype=object)}, r"mask \((cell|object)"),
        ({"mask": MASK[None]}, r"mask \(uint8 \[1, 64, 96\]\)"),
        ({}, "it has none"),
    ],
)
def test_mat_variables_that_are_no_masks_are_refused(root, content: dict, said: str):
    scenes = folder_with(root, lambda path: scipy.io.savemat(path, content), ".mat")
    with pytest.raises(BrokenSceneError, match=said):
        scenes[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512) + b"\x89HDF",
            "a MATLAB file of version 7.3; save it with -v7",
        ),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "version 7.3"),
        (b"garbage", "cannot be read"),
        (bytes(300), "cannot be read"),
    ],
)
def test_other_mat_files_are_refused_by_name(root, content: bytes, said: str):
    scenes = folder_with(root, lambda path: put(path, content), ".mat")
    with pytest.raises(BrokenSceneError, match=said):
        scenes[0]


def test_a_mat_file_that_unpacks_to_much_more_is_refused(root):
    """A packed part of some kilobytes that unpacks to 64 MB."""
    stream = io.BytesIO()
    scipy.io.savemat(stream, {"mask": MASK})
    packed = zlib.compress(bytes(64 * 2**20), 9)
    bomb = stream.getvalue()[:128] + (15).to_bytes(4, "little") + len(packed).to_bytes(4, "little") + packed
    assert len(bomb) < 100_000
    scenes = folder_with(root, lambda path: put(path, bomb), ".mat", ",max_pixels=1000000")
    with pytest.raises(BrokenSceneError, match="unpacks to more than"):
        scenes[0]
    assert (read_array_of(root, {"mask": MASK}) == MASK).all()


def read_array_of(root: Path, content: dict) -> np.ndarray:
    scipy.io.savemat(root / "b.mat", content, do_compression=True)
    return read_array(root / "b.mat", MAX_PIXELS).pixels


def test_class_masks_may_be_arrays_too(root):
    folder_with(root, lambda path: np.save(path, MASK), ".npy")
    (root / "classes").mkdir()
    scipy.io.savemat(root / "classes" / "a.mat", {"classes": PLAN.classes("a")})
    scene = open_scenes(f"folder:{root}")[0]
    assert (scene.classes == PLAN.classes("a")).all()
    Image.fromarray(MASK).save(root / "instances" / "a.png")
    assert "a second mask of this name" in open_scenes_reason(root)


def open_scenes_reason(root: Path) -> str:
    with pytest.raises(SceneSetError) as caught:
        open_scenes(f"folder:{root}")
    return str(caught.value)
