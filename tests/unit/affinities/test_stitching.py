"""One grid over a whole image: weights by overlapping pixels, against plain loops over cells and window patches."""

import numpy as np
import pytest
import torch

from bindkit.affinities.scoring import ImageGrid, cell_weights, landing, stitch
from bindkit.errors import GeometryError
from bindkit.probes import make_probe
from bindkit.scenes import Scene
from bindkit.scenes.geometry import WindowGeometry, label_patches, resize_mask

# (short side, window, patch), (height, width): aligned, overlapping, several rows of windows, cells of uneven size.
CASES = [
    ((16, 16, 8), (16, 32)),
    ((16, 16, 8), (32, 52)),
    ((24, 16, 8), (24, 61)),
    ((37, 16, 4), (50, 41)),
]


def plan_of(sizes, image):
    return WindowGeometry(*sizes).plan(image)


def overlap(a, b):
    """Shared area of two boxes in square pixels."""
    return max(0, min(a.bottom, b.bottom) - max(a.top, b.top)) * max(0, min(a.right, b.right) - max(a.left, b.left))


def weights_by_loops(plan):
    """[cell, window * patch]: area shared by each cell and each patch, in the original image; rows add up to 1."""
    grid = ImageGrid.of_plan(plan)
    shared = np.array(
        [
            [
                overlap(grid.box(cell), plan.original_box(window, patch))
                for window in range(plan.n_windows)
                for patch in range(plan.grid.n_patches)
            ]
            for cell in range(grid.n_patches)
        ]
    )
    return shared / shared.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("sizes", "image"), CASES)
def test_a_cell_is_the_mean_of_what_overlaps_it(sizes, image):
    plan = plan_of(sizes, image)
    assert plan.n_windows > 1
    found = torch.randn(plan.n_windows, plan.grid.n_patches, 3, dtype=torch.float64)
    expected = weights_by_loops(plan) @ found.reshape(-1, 3).numpy()
    assert np.allclose(stitch(found, plan).numpy(), expected)


def test_cells_behind_the_last_window_of_the_references_arithmetic_show_its_last_patch():
    plan = WindowGeometry(8, 8, 4, "reference").plan((8, 79))
    covered = plan.windows[-1].left + 8
    assert (plan.n_windows, plan.resized[1] - covered) == (10, 8), "so that the last cell is in no window"
    found = torch.randn(plan.n_windows, 4, 3, generator=torch.Generator().manual_seed(0))
    cells = stitch(found, plan).reshape(2, -1, 3)
    assert cells.isfinite().all()
    assert torch.allclose(cells[:, -1], found[-1].reshape(2, 2, 3)[:, -1])
    assert torch.allclose(landing(torch.ones(plan.n_windows, 4), plan).sum(), torch.tensor(40.0))


def test_objects_of_cells_come_from_masks_resized_as_the_plan_says():
    mask = np.arange(9 * 23, dtype=np.int32).reshape(9, 23)
    for arithmetic in ("centred", "reference"):
        plan = WindowGeometry(8, 8, 1, arithmetic).plan(mask.shape)
        grid = ImageGrid.of_plan(plan)
        assert grid.majority(mask).tolist() == resize_mask(mask, plan.resized, arithmetic).ravel().tolist()


@pytest.mark.parametrize(("sizes", "image"), CASES)
def test_weights_of_one_cell_and_where_amounts_land(sizes, image):
    plan = plan_of(sizes, image)
    weights = weights_by_loops(plan)
    for cell in (0, len(weights) // 2, len(weights) - 1):
        assert np.allclose(cell_weights(cell, plan).numpy().ravel(), weights[cell], atol=1e-6)
    amounts = torch.rand(plan.n_windows, plan.grid.n_patches, dtype=torch.float64)
    areas = weights > 0
    found = landing(amounts, plan)
    assert float(found.sum()) == pytest.approx(float(amounts.sum()))
    for patch in (0, areas.shape[1] - 1):
        alone = torch.zeros_like(amounts)
        alone.view(-1)[patch] = 1
        assert ((landing(alone, plan) > 0).numpy() == areas[:, patch]).all()
    with pytest.raises(GeometryError, match="outside a grid"):
        cell_weights(len(weights), plan)


def test_one_window_is_left_as_it_is():
    plan = plan_of((16, 16, 8), (40, 40))
    found = torch.randn(1, 4, 5)
    assert torch.equal(stitch(found, plan), found[0])
    grid = ImageGrid.of_plan(plan)
    assert [grid.box(patch) for patch in range(4)] == [plan.original_box(0, patch) for patch in range(4)]


@pytest.mark.parametrize("kind", ["linear", "diag_quadratic", "quadratic"])
def test_averaging_activations_averages_the_logits_of_all_pairs(kind):
    plan = plan_of((24, 16, 8), (24, 61))
    probe = make_probe(kind, d_model=6, seed=4).double().requires_grad_(False)
    found = torch.randn(plan.n_windows, plan.grid.n_patches, 6, dtype=torch.float64)
    weights = torch.from_numpy(weights_by_loops(plan))
    all_pairs = probe(found.reshape(-1, 6))
    assert torch.allclose(probe(stitch(found, plan)), weights @ all_pairs @ weights.T)


@pytest.mark.parametrize(("sizes", "image"), CASES)
def test_cells_tile_the_image_and_are_about_one_patch(sizes, image):
    plan = plan_of(sizes, image)
    grid = ImageGrid.of_plan(plan)
    boxes = [grid.box(patch) for patch in range(grid.n_patches)]
    assert sum((b.bottom - b.top) * (b.right - b.left) for b in boxes) == pytest.approx(image[0] * image[1])
    for patch, box in enumerate(boxes):
        assert grid.patch_at((box.top + box.bottom) / 2, (box.left + box.right) / 2) == patch
    height = (boxes[0].bottom - boxes[0].top) * plan.resized[0] / image[0]
    assert height == pytest.approx(plan.grid.patch_size, rel=0.2)
    assert grid.patch_at(image[0] - 1, image[1] - 1) == grid.n_patches - 1


def test_places_outside_are_refused():
    grid = ImageGrid(2, 3, (10, 30), (16, 48))
    with pytest.raises(GeometryError, match="patch 6 is outside a grid of 2 x 3"):
        grid.box(6)
    with pytest.raises(GeometryError, match=r"pixel \(10, 0\) is outside an image of 10 x 30"):
        grid.patch_at(10, 0)


def test_the_label_of_a_cell_is_the_most_frequent_of_its_pixels():
    rng = np.random.default_rng(0)
    mask = np.kron(rng.integers(0, 5, (9, 13)), np.ones((5, 5), dtype=int)).astype(np.int32)[:40, :61]
    scene = Scene("demo", np.zeros((*mask.shape, 3), np.uint8), mask, mask)
    # Cells of whole pixels, so that a pixel belongs to one cell.
    grid = ImageGrid(5, 6, mask.shape, (40, 60))
    resized = np.asarray([[mask[r, min(60, int((c + 0.5) * 61 / 60))] for c in range(60)] for r in range(40)])
    expected = [
        np.bincount(resized[8 * r : 8 * r + 8, 10 * c : 10 * c + 10].ravel()).argmax()
        for r in range(5)
        for c in range(6)
    ]
    assert grid.majority(mask).tolist() == expected
    square = Scene("square", scene.image[:, :40], mask[:, :40], mask[:, :40])
    labels = label_patches(square, WindowGeometry(16, 16, 4))
    assert np.array_equal(ImageGrid.of_plan(labels.plan).majority(square.instances), labels.instances)
