"""Counts of pairs against a loop over every pair."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bindkit.scenes.geometry import WindowGeometry
from bindkit.scenes.labels import label_patches, pair_counts
from bindkit.scenes.scene import Scene


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
