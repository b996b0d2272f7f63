"""Patch labels equal a slow, plain count of each patch's pixels."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bindkit.scenes.geometry import (
    PatchGrid,
    WindowGeometry,
    label_patches,
    majority,
    object_classes,
    pair_counts,
    resize_mask,
)
from bindkit.scenes.scene import Scene


def plain_majority(pixels):
    counts = Counter(int(value) for value in pixels.ravel())
    most = max(counts.values())
    return min(label for label, count in counts.items() if count == most), most / pixels.size


@given(
    rows=st.integers(1, 4),
    cols=st.integers(1, 5),
    patch_size=st.integers(1, 6),
    n_labels=st.integers(1, 5),
    seed=st.integers(0, 999),
)
def test_majority_equals_a_plain_count(rows, cols, patch_size, n_labels, seed):
    rng = np.random.default_rng(seed)
    ids = rng.choice(3000, n_labels, replace=False)
    mask = rng.choice(ids, (rows * patch_size, cols * patch_size)).astype(np.int32)
    labels, shares = majority(mask, PatchGrid(rows, cols, patch_size))
    for patch in range(rows * cols):
        top, left = patch // cols * patch_size, patch % cols * patch_size
        expected = plain_majority(mask[top : top + patch_size, left : left + patch_size])
        assert (labels[patch], shares[patch]) == (expected[0], np.float32(expected[1]))


@given(height=st.integers(9, 60), width=st.integers(9, 60), patches=st.integers(1, 3), seed=st.integers(0, 99))
def test_labels_of_a_scene_equal_a_plain_walk_over_its_windows(height, width, patches, seed):
    rng = np.random.default_rng(seed)
    instances = rng.integers(0, 4, (height // 3 + 1, width // 3 + 1)).repeat(3, 0).repeat(3, 1)[:height, :width]
    scene = Scene(
        "s",
        np.zeros((height, width, 3), dtype=np.uint8),
        instances.astype(np.int32),
        (instances // 2 * 3).astype(np.int32),
    )
    geometry = WindowGeometry(short_side=4 * patches + 2, window=4 * patches, patch_size=4)
    labels = label_patches(scene, geometry)
    resized, classes = (
        np.asarray(Image.fromarray(mask).resize(labels.plan.resized[::-1], Image.Resampling.NEAREST))
        for mask in (scene.instances, scene.classes)
    )
    assert len(labels) == labels.plan.n_patches
    for row in range(len(labels)):
        top, left = labels.corners[row]
        expected = plain_majority(resized[top : top + 4, left : left + 4])
        assert (labels.instances[row], labels.purity[row]) == (expected[0], np.float32(expected[1]))
        assert labels.classes[row] == plain_majority(classes[top : top + 4, left : left + 4])[0]
        if labels.purity[row] > 0.5:
            assert labels.classes[row] == labels.instances[row] // 2 * 3


@given(height=st.integers(1, 40), width=st.integers(1, 40), rows=st.integers(1, 40), cols=st.integers(1, 40))
def test_resizing_a_mask_invents_no_label_and_keeps_large_ids(height, width, rows, cols):
    mask = (np.arange(height * width, dtype=np.int32) * 70001 % 1_000_003).reshape(height, width)
    small = resize_mask(mask, (rows, cols))
    assert small.shape == (rows, cols)
    assert np.isin(small, mask).all()


def test_taking_rows_keeps_them_aligned():
    mask = np.kron(np.arange(6, dtype=np.int32).reshape(2, 3), np.ones((4, 4), dtype=np.int32))
    scene = Scene("s", np.zeros((8, 12, 3), dtype=np.uint8), mask, mask)
    labels = label_patches(scene, WindowGeometry(short_side=8, window=8, patch_size=4))
    taken = labels.take(np.array([5, 0]))
    assert taken.instances.tolist() == [labels.instances[5], labels.instances[0]]
    assert taken.corners.tolist() == [labels.corners[5].tolist(), labels.corners[0].tolist()]
    assert labels.instances.tolist() == [0, 1, 3, 4, 1, 2, 4, 5]


@given(rows=st.integers(1, 300), cols=st.integers(1, 300), to_rows=st.integers(1, 300), to_cols=st.integers(1, 300))
def test_the_references_masks_are_torchs_nearest(rows, cols, to_rows, to_cols):
    mask = np.arange(rows * cols, dtype=np.int32).reshape(rows, cols)
    found = resize_mask(mask, (to_rows, to_cols), "reference")
    wanted = torch.nn.functional.interpolate(torch.from_numpy(mask)[None, None].float(), (to_rows, to_cols))
    assert found.dtype == np.int32
    assert np.array_equal(found, wanted[0, 0].numpy())


def test_the_references_masks_lie_to_the_lower_right_of_the_picture_and_ours_do_not():
    mask = np.arange(12, dtype=np.int32)[None]
    assert resize_mask(mask, (1, 4), "reference").tolist() == [[0, 3, 6, 9]]
    assert resize_mask(mask, (1, 4)).tolist() == [[1, 4, 7, 10]]


def plain_reference_labels(scene, short_side, window, patch):
    """Labels of all windows, pixel by pixel: sizes rounded, whole strides, floor indices."""
    height, width = scene.size
    factor = Fraction(short_side, min(height, width))
    size = round(height * factor), round(width * factor)
    counts = [-(-length // window) for length in size]
    strides = [(length - window) // max(count - 1, 1) for length, count in zip(size, counts, strict=True)]
    found = []
    for down in range(counts[0]):
        for across in range(counts[1]):
            for row in range(0, window, patch):
                for col in range(0, window, patch):
                    ids = []
                    for y in range(down * strides[0] + row, down * strides[0] + row + patch):
                        for x in range(across * strides[1] + col, across * strides[1] + col + patch):
                            ids.append(int(scene.instances[y * height // size[0], x * width // size[1]]))
                    found.append(max(sorted(set(ids)), key=ids.count))
    return found


@pytest.mark.parametrize(("height", "width"), [(37, 52), (40, 101), (64, 48), (23, 23)])
def test_labels_of_the_references_arithmetic_are_those_of_the_plain_loop(height, width):
    ids = np.random.default_rng(height).integers(0, 5, (6, 9)).astype(np.int32)
    mask = np.kron(ids, np.ones((height // 6 + 1, width // 9 + 1), dtype=np.int32))[:height, :width]
    scene = Scene("planted", np.zeros((height, width, 3), dtype=np.uint8), mask, mask)
    ours = label_patches(scene, WindowGeometry(28, 16, 4, "reference")).instances.tolist()
    assert ours == plain_reference_labels(scene, 28, 16, 4)
    if height != width:
        assert ours != label_patches(scene, WindowGeometry(28, 16, 4)).instances.tolist()


@given(seed=st.integers(0, 50), width=st.integers(16, 40))
def test_pair_counts_equal_a_loop_over_all_pairs(seed, width):
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 5, (4, 10)).repeat(4, 0).repeat(4, 1)[:16, :width]
    instances = blocks.astype(np.int32)
    # Instances 1 and 2 have no class, so they are no twins.
    scene = Scene("s", np.zeros((16, width, 3), np.uint8), instances, (instances // 3).astype(np.int32))
    labels = label_patches(scene, WindowGeometry(short_side=16, window=16, patch_size=4))
    taking_part = [k for k in range(len(labels)) if labels.instances[k] > 0 and labels.purity[k] > 0.5]
    same = different = twins = 0
    for position, i in enumerate(taking_part):
        for j in taking_part[position + 1 :]:
            rows = [set(range(labels.corners[k][0], labels.corners[k][0] + 4)) for k in (i, j)]
            cols = [set(range(labels.corners[k][1], labels.corners[k][1] + 4)) for k in (i, j)]
            if rows[0] & rows[1] and cols[0] & cols[1]:
                continue
            if labels.instances[i] == labels.instances[j]:
                same += 1
            else:
                different += 1
                twins += bool(labels.classes[i] == labels.classes[j] > 0)
    row = pair_counts([labels]).iloc[0]
    assert row["patches"] == len(taking_part)
    assert (row["same object"], row["different objects"], row["twins"]) == (same, different, twins)
    assert row["pairs"] == same + different


@given(seed=st.integers(0, 99), scale=st.sampled_from([1, 70_000]))
def test_the_class_of_an_object_is_that_of_most_of_its_pixels(seed, scale):
    """Also where ids are too large for a table of all pairs."""
    rng = np.random.default_rng(seed)
    instances, classes = rng.integers(0, 5, (2, 6, 7)).astype(np.int32) * scale
    found = object_classes(Scene("s", np.zeros((6, 7, 3), dtype=np.uint8), instances, classes))
    wanted = {int(k): plain_majority(classes[instances == k])[0] for k in np.unique(instances) if k}
    assert list(found.items()) == list(wanted.items())
