"""Products with gradients by hand beside what autograd makes of the plain formulas."""

import pytest
import torch

from bindkit.probes import add_symmetric_product, make_probe, mirrored
from bindkit.probes.kinds import diagonal_logits, symmetric_logits


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# 700 is three blocks, the last one narrower; 50 scenes of 64 patches are two chunks, 3,000 patches one of their own.
SHAPES = [(1, 1, 3), (5, 7, 24), (50, 64, 12), (2, 2100, 6), (3, 20, 700)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("symmetric_told", [True, False])
def test_logits_and_gradients_are_those_of_the_plain_formulas(shape, symmetric_told):
    x, told = random(*shape), random(shape[0], shape[1], shape[1], seed=1)
    if symmetric_told:
        told = told + told.mT
    for make, width in ((_quadratic, (shape[2], shape[2])), (_diagonal, (shape[2],))):
        weight = random(*width, seed=2).requires_grad_()
        plain, ours = make(x, weight)
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-9)
        (expected,) = torch.autograd.grad(plain, weight, told)
        (found,) = torch.autograd.grad(ours, weight, told)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-8)


def _quadratic(x, weight):
    form = weight + weight.T
    return torch.stack([scene @ form @ scene.T for scene in x]), symmetric_logits(x, form)


def _diagonal(x, weight):
    return torch.stack([(scene[:, None] * scene[None] * weight).sum(-1) for scene in x.split(1)[0]] if len(x) == 1 else
                       [scene @ torch.diag(weight) @ scene.T for scene in x]), diagonal_logits(x, weight)  # fmt: skip


def test_activations_that_want_gradients_get_them():
    x = random(2, 5, 4).requires_grad_()
    for product, weight in ((symmetric_logits, torch.eye(4, dtype=x.dtype)), (diagonal_logits, random(4))):
        (found,) = torch.autograd.grad(product(x, weight).sum(), x)
        assert found.abs().sum() > 0
        plain = (x @ (torch.diag(weight) if weight.ndim == 1 else weight)) @ x.mT
        torch.testing.assert_close(found, torch.autograd.grad(plain.sum(), x)[0])


@pytest.mark.parametrize("kind", ["linear", "diag_quadratic", "quadratic", "quadratic_fixed_rank"])
@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_patches_beside_themselves_get_the_logits_of_patches_beside_others(kind, leading):
    probe = make_probe(kind, 24).double()
    x = random(*leading, 9, 24)
    torch.testing.assert_close(probe(x), probe.pairwise(x, x.clone()))
    assert torch.equal(probe(x), probe(x).mT) or kind == "diag_quadratic"


@pytest.mark.parametrize("width", [5, 700])
def test_symmetric_sums_come_from_their_upper_blocks(width):
    rows, weights = random(40, width), random(40, 40, seed=3)
    total = torch.zeros(width, width, dtype=torch.float64)
    weights = weights + weights.T
    for part in range(2):
        add_symmetric_product(total, rows * (part + 1), weights @ rows)
    torch.testing.assert_close(mirrored(total), 3 * rows.T @ weights @ rows)
