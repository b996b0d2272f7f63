"""Windows cover every pixel, and geometry leads from a patch to exactly its own pixels and back."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bindkit.errors import GeometryError
from bindkit.scenes.geometry import PatchGrid, TokenLayout, WindowGeometry, resized_size, tile_windows

sides = st.integers(1, 90)


@given(window=sides, more_rows=st.integers(0, 200), more_cols=st.integers(0, 200))
def test_windows_cover_every_pixel_and_nothing_else(window, more_rows, more_cols):
    height, width = window + more_rows, window + more_cols
    seen = np.zeros((height, width), dtype=int)
    for corner in tile_windows((height, width), window):
        assert 0 <= corner.top <= height - window
        assert 0 <= corner.left <= width - window
        seen[corner.top : corner.top + window, corner.left : corner.left + window] += 1
    assert (seen > 0).all()


@given(window=sides, more=st.integers(0, 400))
def test_windows_are_as_few_as_can_be_and_evenly_spaced(window, more):
    length = window + more
    starts = sorted({corner.left for corner in tile_windows((window, length), window)})
    assert len(starts) == -(-length // window)
    assert starts[0] == 0
    assert starts[-1] == length - window
    steps = np.diff(starts)
    assert steps.size == 0 or steps.max() - steps.min() <= 1


@given(rows=st.integers(1, 9), cols=st.integers(1, 9), patch_size=st.integers(1, 17))
def test_every_pixel_of_a_grid_belongs_to_the_patch_whose_box_holds_it(rows, cols, patch_size):
    grid = PatchGrid(rows, cols, patch_size)
    owner = np.full((grid.height, grid.width), -1)
    for patch in range(grid.n_patches):
        box = grid.box(patch)
        inside = owner[int(box.top) : int(box.bottom), int(box.left) : int(box.right)]
        assert (inside == -1).all()
        inside[:] = patch
    assert (owner >= 0).all()
    for row in range(0, grid.height, max(1, patch_size // 2)):
        for col in range(0, grid.width, max(1, patch_size // 2)):
            assert grid.patch_at(row, col) == owner[row, col]


@given(height=st.integers(8, 120), width=st.integers(8, 120), patches=st.integers(1, 4), patch_size=st.integers(1, 9))
def test_a_patch_leads_back_to_its_own_pixels(height, width, patches, patch_size):
    window = patches * patch_size
    geometry = WindowGeometry(short_side=window + 3, window=window, patch_size=patch_size)
    plan = geometry.plan((height, width))
    number = np.arange(plan.resized[0] * plan.resized[1]).reshape(plan.resized)
    windows, numbers = np.divmod(np.arange(plan.n_patches), plan.grid.n_patches)
    corners = plan.corners(windows, numbers)
    for k, corner in enumerate(plan.windows):
        view = number[corner.top : corner.top + window, corner.left : corner.left + window]
        for patch in range(plan.grid.n_patches):
            inner, (top, left) = plan.grid.box(patch), corners[k * plan.grid.n_patches + patch]
            seen = view[int(inner.top) : int(inner.bottom), int(inner.left) : int(inner.right)]
            assert (seen == number[top : top + patch_size, left : left + patch_size]).all()
            original = plan.original_box(k, patch)
            assert original.bottom <= height + 1e-9
            assert original.right <= width + 1e-9
            assert np.isclose(original.top / height, top / plan.resized[0])
            assert np.isclose(original.right / width, (left + patch_size) / plan.resized[1])


@given(height=st.integers(1, 3000), width=st.integers(1, 3000), short_side=st.integers(1, 600))
def test_resizing_hits_the_short_side_and_keeps_the_shape(height, width, short_side):
    rows, cols = resized_size((height, width), short_side)
    assert min(rows, cols) == short_side
    assert abs(max(rows, cols) - short_side * max(height, width) / min(height, width)) < 1


def test_the_papers_sizes():
    assert resized_size((1536, 2048), 518) == (518, 690)
    geometry = WindowGeometry(short_side=592, window=224, patch_size=16)
    plan = geometry.plan((512, 683))
    assert plan.resized == (592, 789)
    assert sorted({w.top for w in plan.windows}) == [0, 184, 368]
    assert sorted({w.left for w in plan.windows}) == [0, 188, 377, 565]


def reference_starts(length, window):
    """A plain count: as few windows as cover the length, one whole stride apart."""
    count = 1
    while count * window < length:
        count += 1
    stride = 0 if count == 1 else (length - window) // (count - 1)
    starts = [0]
    while len(starts) < count:
        starts.append(starts[-1] + stride)
    return starts


def test_the_references_sizes():
    assert resized_size((1467, 2200), 518, "reference") == (518, 777)
    assert resized_size((1467, 2200), 518) == (518, 776)
    plan = WindowGeometry(592, 224, 16, "reference").plan((512, 683))
    assert plan.resized == (592, 790), "rounded up, where the better arithmetic has 789"
    assert sorted({w.left for w in tile_windows((592, 789), 224, "reference")}) == [0, 188, 376, 564]
    assert sorted({w.left for w in tile_windows((592, 789), 224)}) == [0, 188, 377, 565]
    assert sorted({w.top for w in plan.windows}) == [0, 184, 368]


@pytest.mark.parametrize(("size", "long"), [((4, 5), 2), ((4, 7), 4), ((4, 9), 4), ((4, 11), 6), ((4, 13), 6)])
def test_the_references_long_side_is_rounded_half_to_even(size, long):
    assert resized_size(size, 2, "reference") == (2, long)
    assert resized_size(size[::-1], 2, "reference") == (long, 2)


@given(height=st.integers(1, 3000), width=st.integers(1, 3000), short_side=st.integers(1, 600))
def test_the_references_long_side_is_the_nearest_whole_number(height, width, short_side):
    rows, cols = resized_size((height, width), short_side, "reference")
    exact = Fraction(short_side * max(height, width), min(height, width))
    assert min(rows, cols) == short_side
    assert abs(max(rows, cols) - exact) <= Fraction(1, 2)
    assert max(rows, cols) == round(exact)


@given(window=sides, more=st.integers(0, 900))
def test_the_references_windows_are_whole_strides_apart(window, more):
    starts = sorted({corner.left for corner in tile_windows((window, window + more), window, "reference")})
    assert starts == sorted(set(reference_starts(window + more, window)))
    assert 0 <= window + more - (starts[-1] + window) < max(len(starts) - 1, 1), "pixels that no window shows"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PatchGrid.of_window(100, 8), "no multiple of the 8 px patch"),
        (lambda: PatchGrid.of_size(8, 4, 8), "no multiple"),
        (lambda: PatchGrid(0, 1, 8), "at least one row"),
        (lambda: PatchGrid(2, 2, 8).row_col(4), "outside a grid of 2 x 2"),
        (lambda: PatchGrid(2, 2, 8).patch_at(16, 0), "outside a window"),
        (lambda: tile_windows((50, 200), 64), "smaller than one window of 64 px"),
        (lambda: WindowGeometry(short_side=100, window=112, patch_size=8), "at most 96 px"),
        (lambda: WindowGeometry(16, 16, 8, "rounded"), "unknown arithmetic 'rounded'; .* centred, reference"),
        (lambda: TokenLayout(-1, PatchGrid(1, 1, 8)), "-1 prefix"),
        (lambda: resized_size((0, 5), 8), "cannot resize"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_remedy(call, message):
    with pytest.raises(GeometryError, match=message):
        call()
