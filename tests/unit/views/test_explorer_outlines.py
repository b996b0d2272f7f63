"""Outlines, coverage and the highest patches, beside plain counting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bindkit.affinities.scoring import ImageGrid
from bindkit.views.explorer.sources import Coverage, joined, loops_around, mask_outline, patch_outline, top_patches


def area(x, y):
    """Of closed loops with gaps between them, by the shoelace formula: holes count as negative."""
    total, x, y = 0.0, np.append(x, np.nan), np.append(y, np.nan)
    start = 0
    for end in np.flatnonzero(np.isnan(x)):
        a, b = x[start:end], y[start:end]
        assert (a[0], b[0]) == (a[-1], b[-1])
        total += 0.5 * float(np.sum(a[:-1] * b[1:] - a[1:] * b[:-1]))
        start = end + 1
    return total


@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 2**31))
def test_the_outline_encloses_just_the_cells(rows, cols, seed):
    inside = np.random.default_rng(seed).random((rows, cols)) < 0.5
    x, y = patch_outline(inside)
    if not inside.any():
        assert len(x) == 0
        return
    assert area(x, y) == pytest.approx(inside.sum())
    # Along cells' borders only: every edge parts an inside from an outside.
    length = np.nansum(np.abs(np.diff(x)) + np.abs(np.diff(y)))
    framed = np.pad(inside, 1)
    assert length == pytest.approx((framed[1:] != framed[:-1]).sum() + (framed[:, 1:] != framed[:, :-1]).sum())


def test_cells_that_touch_in_a_corner_have_loops_of_their_own():
    assert len(loops_around(np.eye(2, dtype=bool))) == 2
    ring = np.ones((3, 3), dtype=bool)
    ring[1, 1] = False
    assert len(loops_around(ring)) == 2


def test_the_outline_of_a_mask_lies_on_its_border():
    rows, cols = np.mgrid[:300, :200]
    disk = (rows - 150) ** 2 + (cols - 90) ** 2 < 60**2
    grid = ImageGrid(15, 10, (300, 200), (30, 20))  # patches of 20 pixels
    x, y = mask_outline(disk, grid)
    radius = np.hypot((x + 0.5) * 20 - 90.5, (y + 0.5) * 20 - 150.5)
    assert np.abs(radius - 60).max() < 2
    assert area(x, y) * 400 == pytest.approx(disk.sum(), rel=0.02)
    assert len(mask_outline(np.zeros((9, 9), dtype=bool), grid)[0]) == 0


def test_large_masks_are_followed_in_fewer_points():
    mask = np.zeros((2000, 1500), dtype=bool)
    mask[500:1500, 300:900] = True
    x, y = mask_outline(mask, ImageGrid(20, 15, (2000, 1500), (200, 150)))
    assert len(x) < 2000
    assert area(x, y) * 10_000 == pytest.approx(mask.sum(), rel=0.02)


def test_iou_counts_pixels_as_a_loop_does():
    rng = np.random.default_rng(0)
    grid = ImageGrid(4, 5, (37, 53), (20, 25))
    mask = rng.integers(0, 3, (37, 53)).astype(np.int32) * 5
    chosen = rng.random(20) < 0.4
    shared = union = 0
    for row in range(37):
        for col in range(53):
            one, other = chosen[grid.patch_at(row, col)], mask[row, col] == 10
            shared, union = shared + (one and other), union + (one or other)
    assert Coverage(mask, grid).iou(chosen, 10) == pytest.approx(shared / union)
    assert Coverage(mask, grid).iou(np.zeros(20, dtype=bool), 10) == 0


def test_top_patches_leave_out_the_neighbourhood():
    values = np.random.default_rng(0).random((6, 8))
    for apart in (0, 1, 3):
        found = top_patches(values, 5, (2, 3), apart)
        allowed = [p for p in np.ndindex(6, 8) if max(abs(p[0] - 2), abs(p[1] - 3)) > apart]
        assert found == sorted(allowed, key=lambda p: -values[p])[:5]
    assert top_patches(np.ones((2, 2)), 3, (0, 0), 0) == [(0, 1), (1, 0), (1, 1)]
    assert top_patches(values, 4, (2, 3), 99) == []
    assert top_patches(values, 2, None, 1)[0] == np.unravel_index(values.argmax(), values.shape)


def test_lines_are_joined_with_a_gap():
    one = (np.array([0, 1], np.float32), np.array([2, 3], np.float32))
    x, y = joined([one, one])
    assert np.array_equal(x, [0, 1, np.nan, 0, 1], equal_nan=True)
    assert np.array_equal(y, [2, 3, np.nan, 2, 3], equal_nan=True)
