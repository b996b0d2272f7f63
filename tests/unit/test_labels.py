"""Patch labels equal a slow, plain count of each patch's pixels."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bindkit.geometry import PatchGrid, WindowGeometry
from bindkit.labels import label_patches, majority, resize_mask
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
