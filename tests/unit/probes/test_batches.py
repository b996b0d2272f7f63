"""Which pairs count, held against loops over every pair."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bindkit.probes.batches import PatchBatch
from bindkit.probes.judging import pair_loss
from bindkit.probes.protocols import PAPER, STRICT


def random_batch(seed, protocol=STRICT, n_scenes=3, n_patches=9, patch_size=4):
    generator = torch.Generator().manual_seed(seed)
    instances = torch.randint(0, 9, (n_scenes, n_patches), generator=generator)
    return PatchBatch(
        activations=torch.randn(n_scenes, n_patches, 5, generator=generator),
        instances=instances,
        classes=instances // 3,  # instances 1 and 2 have none
        corners=torch.randint(0, 12, (n_scenes, n_patches, 2), generator=generator),
        present=torch.rand(n_scenes, n_patches, generator=generator) < 0.8,
        window=torch.zeros(n_scenes, n_patches, dtype=torch.int32),
        positions=torch.arange(n_scenes * n_patches).reshape(n_scenes, n_patches),
        scenes=torch.arange(n_scenes),
        patch_size=patch_size,
        protocol=protocol,
    )


def shares_pixels(a, b, side):
    """Whether two squares share a pixel: list the pixels."""
    pixels = [{(top + r, left + c) for r in range(side) for c in range(side)} for top, left in (a, b)]
    return bool(pixels[0] & pixels[1])


@given(seed=st.integers(0, 200))
def test_counted_pairs_equal_a_loop_over_all_pairs(seed):
    for protocol in (STRICT, PAPER):
        batch = random_batch(seed, protocol)
        counted, in_loss = batch.counted, batch.in_loss
        for scene in range(3):
            for i in range(9):
                for j in range(9):
                    here = bool(batch.present[scene, i] and batch.present[scene, j])
                    corners = [tuple(batch.corners[scene, k].tolist()) for k in (i, j)]
                    apart = not shares_pixels(*corners, 4)
                    allowed = here and (apart or protocol is PAPER)
                    assert counted[scene, i, j] == (allowed and i < j)
                    assert in_loss[scene, i, j] == (allowed if protocol is PAPER else allowed and i < j)


@given(seed=st.integers(0, 200))
def test_the_twins_question_equals_a_loop_over_all_pairs(seed):
    batch = random_batch(seed)
    asked = batch.twins_question
    for scene in range(3):
        shown = {
            (int(batch.classes[scene, k]), int(batch.instances[scene, k]))
            for k in range(9)
            if batch.present[scene, k] and batch.instances[scene, k] > 0 and batch.classes[scene, k] > 0
        }
        for i in range(9):
            for j in range(9):
                label = int(batch.classes[scene, i])
                expected = (
                    bool(batch.present[scene, i] and batch.present[scene, j])
                    and int(batch.instances[scene, i]) > 0
                    and int(batch.instances[scene, j]) > 0
                    and label == int(batch.classes[scene, j])
                    and sum(one == label for one, _ in shown) >= 2
                )
                assert asked[scene, i, j] == expected


@pytest.mark.parametrize("protocol", [STRICT, PAPER, replace(STRICT, full_matrix_loss=True)], ids=lambda p: p.name)
def test_the_loss_is_the_mean_cross_entropy_of_the_entries_that_enter_it(protocol):
    batch = random_batch(3, protocol)
    logits = torch.randn(3, 9, 9, generator=torch.Generator().manual_seed(1)).double()
    entering, terms = batch.in_loss, []
    for scene in range(3):
        for i in range(9):
            for j in range(9):
                if entering[scene, i, j]:
                    same = batch.instances[scene, i] == batch.instances[scene, j]
                    said = torch.sigmoid(logits[scene, i, j])
                    terms.append(-torch.log(said if same else 1 - said))
    assert torch.allclose(pair_loss(logits, batch), torch.stack(terms).mean())
