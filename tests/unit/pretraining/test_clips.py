"""Clips: the second frame is what it says, matching finds motion from pixels alone, and `flow` is told nothing else."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import bindkit as bk
from bindkit.errors import InvalidParameterError
from bindkit.pretraining import GRID, SIDE, TRAINING_SCENES, TrainingScenes, objective_loss
from bindkit.pretraining.clips import REACH, UNSURE, follow_motions, match_frames, match_patches, number_motions
from bindkit.pretraining.objectives import make_objective
from bindkit.pretraining.patch_objectives import draw_hints
from bindkit.scenes.geometry import WindowGeometry, label_patches
from bindkit.scenes.synthetic import TRAINING_SEED

SMALL = TRAINING_SCENES.replace("n=20000", "n=24")
UNSEEN = SMALL.replace(f"seed={TRAINING_SEED}", "seed=3")
PATCH = SIDE // GRID


@pytest.fixture(scope="module")
def pool():
    return TrainingScenes.open(SMALL, workers=1, clips=True)


def test_the_first_frame_is_the_scene_and_in_the_second_every_object_has_moved():
    scenes = bk.open_scenes(UNSEEN)
    for position in range(6):
        scene, later, motions = scenes.clip(position, REACH)
        assert np.array_equal(scene.image, scenes[position].image)
        assert np.array_equal(scene.instances, scenes[position].instances)
        assert abs(motions).max() <= REACH
        assert not motions[0].any()
        foremost = int(scene.instances.max())  # nothing hides it
        rows, cols = np.nonzero(scene.instances == foremost)
        there = rows + motions[foremost][0], cols + motions[foremost][1]
        inside = (np.minimum(*there) >= 0) & (np.maximum(*there) < SIDE)
        moved = later[there[0][inside], there[1][inside]].astype(int)
        assert abs(moved - scene.image[rows, cols][inside]).max() <= 12, "more than the grain of both frames"
    assert len({tuple(map(tuple, scenes.clip(k, REACH)[2].tolist())) for k in range(6)}) == 6


def averaged(image, side):
    """The mean over a square around each pixel, what lies outside as the rim."""
    wide = np.pad(image, [(side // 2,) * 2] * 2 + [(0, 0)] * (image.ndim - 2), mode="edge")
    return sum(wide[r : r + SIDE, c : c + SIDE] for r in range(side) for c in range(side)) / side**2


def least(costs, margin, most):
    """The cheapest motion, or None where another, over a pixel away, is nearly as cheap, or it costs too much."""
    best = min(costs, key=costs.get)
    others = [cost for motion, cost in costs.items() if max(abs(np.subtract(motion, best))) > 1]
    still = 0.5 if best == (0, 0) and len(costs) > 20 else 0.0
    return best if min(others, default=np.inf) - costs[best] > margin and costs[best] + still < most else None


def slowly_matched(first, second, row, col):
    """The place of a patch by the plain sum over its averaged pixels, every other one of them."""
    before, after = (averaged(frame.astype(float), 5) for frame in (first, second))
    top, left = row * PATCH, col * PATCH
    costs = {}
    for down in range(-REACH, REACH + 1):
        for right in range(-REACH, REACH + 1):
            if 0 <= top + down <= SIDE - PATCH and 0 <= left + right <= SIDE - PATCH:
                own = before[top : top + PATCH : 2, left : left + PATCH : 2]
                other = after[top + down : top + down + PATCH : 2, left + right : left + right + PATCH : 2]
                costs[down, right] = ((own - other) ** 2).mean() - 0.5 * (down == right == 0)
    return least(costs, 0.5, 1 + 1.5 * 25.4 / 25) or (np.nan, np.nan)


def slowly_followed(first, second, motions):
    """Motions of all patches by the votes of their pixels, one after another."""
    before, after = (averaged(frame.astype(float), 3) for frame in (first, second))
    costs = {}
    for down, right in motions:
        moved = np.full(before.shape, np.inf)
        inside = [slice(max(0, -step), SIDE - max(0, step)) for step in (down, right)]
        moved[tuple(inside)] = np.roll(after, (-down, -right), (0, 1))[tuple(inside)]
        costs[down, right] = averaged(((moved - before) ** 2).mean(2), 3)
    found = np.full((GRID, GRID, 2), np.nan)
    for row, col in np.ndindex(GRID, GRID):
        votes = dict.fromkeys(motions, 0)
        for r, c in np.ndindex(PATCH, PATCH):
            pixel = {motion: cost[row * PATCH + r, col * PATCH + c] for motion, cost in costs.items()}
            if chosen := least(pixel, 0.5, 1 + 2 * 25.4 / 9):
                votes[chosen] += 1
        like = {m: [n for n in motions if max(abs(np.subtract(m, n))) <= 1] for m in motions}
        leader = max(motions, key=lambda m: sum(votes[n] for n in like[m]))
        if sum(votes[n] for n in like[leader]) >= PATCH * PATCH / 2:
            found[row, col] = max(like[leader], key=votes.get)
    return found


def test_matching_is_the_least_sum_of_squares():
    scenes = bk.open_scenes(UNSEEN)
    scene, later, _ = scenes.clip(0, REACH)
    plain = [[slowly_matched(scene.image, later, row, col) for col in range(GRID)] for row in range(GRID)]
    found = match_patches(scene.image, later, PATCH).numpy()
    assert 10 < np.isfinite(found[..., 0]).sum() < GRID * GRID
    np.testing.assert_array_equal(found, np.array(plain))


def test_a_patch_follows_the_motion_of_most_of_its_pixels():
    scenes = bk.open_scenes(UNSEEN)
    scene, later, _ = scenes.clip(1, REACH)
    sure = match_patches(scene.image, later, PATCH).flatten(0, 1)
    motions, n_patches = sure[sure.isfinite().all(1)].unique(dim=0, return_counts=True)
    chosen = sorted({(0, 0), *(tuple(map(int, motion)) for motion in motions[n_patches > 1].tolist())})
    assert len(chosen) > 3
    found = follow_motions(scene.image, later, torch.tensor(chosen).float(), PATCH)
    np.testing.assert_array_equal(found.numpy(), slowly_followed(scene.image, later, chosen))
    assert torch.equal(match_frames(scene.image, later, PATCH).nan_to_num(99), found.nan_to_num(99))
    assert found[..., 0].isfinite().sum() > sure[:, 0].isfinite().sum()


def test_a_picture_that_moves_as_a_whole_is_found_and_one_without_marks_is_not():
    generator = np.random.default_rng(0)
    rough = generator.integers(0, 256, (SIDE + 2 * REACH, SIDE + 2 * REACH, 3)).astype(np.uint8)
    down, right = 3, -5
    first = rough[REACH : REACH + SIDE, REACH : REACH + SIDE]
    second = rough[REACH - down : REACH - down + SIDE, REACH - right : REACH - right + SIDE]
    found = match_frames(first, second, PATCH)
    # Those at the rim leave the second frame, or are averaged with what is not in both.
    assert (found[1:-1, 1:-1] == torch.tensor([down, right])).all()
    assert match_frames(first, first, PATCH)[2, 2].tolist() == [0, 0]
    grain = generator.integers(-6, 7, (2, SIDE, SIDE, 3))
    flat = (128 + grain).astype(np.uint8)
    assert match_patches(flat[0], flat[1], PATCH).isnan().float().mean() > 0.8


def test_most_patches_of_objects_that_are_kept_are_right():
    """By the generator's own motion, which matching never sees: those within an object, and those at its rim."""
    scenes, right, kept = bk.open_scenes(UNSEEN.replace("n=24", "n=60")), [[], []], [[], []]
    for position in range(60):
        scene, later, motions = scenes.clip(position, REACH)
        found = match_frames(scene.image, later, PATCH).numpy()
        patches = label_patches(scene, WindowGeometry(SIDE, SIDE, PATCH))
        instances, purity = (column.reshape(GRID, GRID) for column in (patches.instances, patches.purity))
        known, right_here = np.isfinite(found[..., 0]), abs(found - motions[instances]).max(-1) <= 1
        for one, whole in zip((0, 1), ((instances > 0) & (purity < 1), (instances > 0) & (purity == 1)), strict=True):
            right[one] += list(right_here[whole & known])
            kept[one] += list(known[whole])
    assert min(map(np.mean, right)) > 0.94
    assert [round(float(np.mean(share)), 1) for share in kept] == [0.5, 0.8]


def test_patches_have_one_number_where_they_move_alike():
    steps = torch.arange(-REACH, REACH + 1.0)
    every = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1)
    numbers = number_motions(torch.cat([every, every]))
    assert len(numbers.unique()) == len(every) ** 2
    assert torch.equal(*numbers.chunk(2))
    assert numbers[REACH, REACH] == 0
    assert numbers.max() < UNSURE
    assert number_motions(torch.full((2, 3, 2), math.nan)).unique().tolist() == [UNSURE]


def test_what_moves_alike_turns_with_its_scene(pool):
    """However a batch was mirrored and transposed, its two maps of patches still lie on one another."""
    marked = dataclasses.replace(pool, moving=100 - pool.instances)
    turned = marked.batch(12, torch.Generator().manual_seed(0))
    assert torch.equal(turned.moving, 100 - turned.instances)
    assert len(turned.instances.unique()) > 3
    plain, batch = pool.in_order(24)[0], pool.batch(24, torch.Generator().manual_seed(3))
    assert not torch.equal(plain.moving, batch.moving)
    assert (pool.moving == UNSURE).any() and pool.moving.unique().numel() > 20


def test_draws_of_hints_are_one_random_patch_of_each_number():
    together = torch.tensor([[0, 0, 5, 5, 5, 2]]).expand(4000, 6)
    shown = draw_hints(together, 0.8, torch.Generator().manual_seed(0)).float()
    for own in ([0, 1], [2, 3, 4], [5]):
        assert shown[:, own].sum(1).max() == 1
        shares = shown[:, own].mean(0)
        assert (shares - 0.8 / len(own)).abs().max() < 4 * (0.8 * 0.2 / 4000) ** 0.5 + 0.01


def test_the_loss_asks_what_matching_knows_and_nothing_of_masks(pool, monkeypatch):
    objective, batch = make_objective("flow").eval(), pool.in_order(16)[0]
    asked = {}

    def answers(batch, motion, shown):
        asked.update(motion=motion, shown=shown)
        return torch.zeros_like(motion)

    monkeypatch.setattr(objective, "_answers", answers)
    loss = objective(batch, torch.Generator().manual_seed(1))
    known = batch.moving.flatten(1) != UNSURE
    assert (known | ~asked["shown"]).all(), "a hint where pixels do not tell"
    total, count = 0.0, 0
    for moving, motion, shown in zip(batch.moving.flatten(1), asked["motion"], asked["shown"], strict=True):
        for number in set(moving.tolist()) - {UNSURE}:
            own = motion[moving == number]
            assert (own == own[0]).all(), "what moves alike moves alike"
            assert (own[0] == 0).all() == (number == 0), "the ground stays"
            assert shown[moving == number].sum() <= 1
            total, count = total + float((own**2).sum()), count + own.numel()
    assert math.isclose(loss, total / count, rel_tol=1e-5)
    monkeypatch.undo()
    with torch.inference_mode():
        masked = dataclasses.replace(batch, instances=batch.instances * 0, classes=batch.classes * 0)
        first, second = (objective(one, torch.Generator().manual_seed(1)) for one in (batch, masked))
    assert torch.equal(first, second)


def test_scenes_without_a_second_frame_are_refused(tmp_path):
    plain = TrainingScenes.open(SMALL.replace("n=24", "n=4"), workers=1)
    assert plain.moving is None
    with pytest.raises(InvalidParameterError, match="flow needs clips"):
        bk.pretrain("flow", tmp_path / "run", plain, scenes_seen=16)
    place = make_objective("flow").write(tmp_path / "flow")
    with pytest.raises(InvalidParameterError, match="flow needs clips"):
        objective_loss(place, TrainingScenes.held_out(UNSEEN.replace("n=24", "n=4"), workers=1))
    assert objective_loss(place, UNSEEN.replace("n=24", "n=4")) > 0
