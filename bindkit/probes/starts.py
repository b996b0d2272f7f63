"""A good start: units in which all directions of the activations weigh alike, and a first probe in closed form.

In whitened units, the least-squares fit of "same object" on all products of two patches is the mean of these products
over pairs on one object less that over all: no iteration is needed to come near the best quadratic probe, and no
direction is learned late because it is faint.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from bindkit.probes.base import PairMoments
from bindkit.probes.batches import SplitPatches
from bindkit.probes.pair_products import add_symmetric_product, mirrored

RIDGE = 0.1
"""Added to the spectrum before whitening, in units of its mean (each dimension scaled to a mean square of 1): fainter
directions stay faint. Less of it fits noise on a few hundred scenes (default run, `bindkit/scenes-motion`: AUROC 0.958
with 0.001, 0.968 with 0.1), more of it learns late what is faint (the untrained twin: 0.83 with 0.1, 0.75 with 10)."""

_MOMENT_SCENES, _MOMENT_PATCHES = 2048, 65_536
"""Scenes and patches that moments are measured on, about."""

_ROWS_AT_ONCE = 4096
_NEWTON_STEPS = 25
_HALVINGS, _SURE = 60, 20.0
"""Of the search for an offset: how often, and how far beyond the scores it looks, in nats."""


def measure_moments(
    patches: SplitPatches, n_scenes: int = _MOMENT_SCENES, n_patches: int = _MOMENT_PATCHES
) -> PairMoments:
    """Second moments of a split's patches and counted pairs, over evenly spread scenes and about so many patches."""
    chosen = torch.linspace(0, len(patches) - 1, min(n_scenes, len(patches)), dtype=torch.float64).long().unique()
    most = max(32, n_patches // len(chosen))
    width, device = patches.d_model, patches.device
    parts = chosen.split(max(1, _ROWS_AT_ONCE // most))
    # Labels alone first: with the share of pairs on one object known, the signal is a single product.
    generator = torch.Generator().manual_seed(0)
    n_pairs = n_same = 0.0
    for scenes in parts:
        batch = patches.draw(scenes, generator, most, labels_only=True)
        n_pairs, n_same = n_pairs + float(batch.counted.sum()), n_same + float((batch.counted & batch.same).sum())
    share = n_same / max(n_pairs, 1)
    total, signal = (torch.zeros(width, width, device=device) for _ in range(2))
    generator, buffer, n_seen = torch.Generator().manual_seed(0), patches.buffer(len(parts[0]) * most), 0.0
    for scenes in parts:
        batch = patches.draw(scenes, generator, most, into=buffer)
        rows = batch.activations * batch.present[..., None]
        weights = (batch.same.to(rows.dtype) - share) * batch.counted
        weighed = (weights + weights.mT) @ rows
        add_symmetric_product(total, rows.flatten(0, 1), rows.flatten(0, 1))
        add_symmetric_product(signal, rows.flatten(0, 1), weighed.flatten(0, 1))
        n_seen += float(batch.present.sum())
    return PairMoments(mirrored(total) / max(n_seen, 1), mirrored(signal) / max(2 * n_pairs, 1))


def scaling(moments: PairMoments) -> Float[Tensor, " d_model"]:
    """One over the root mean square of each dimension; 1 where a dimension is always 0."""
    square = moments.patches.diagonal()
    return torch.where(square > 0, square, torch.ones_like(square)).rsqrt()


def whitening(moments: PairMoments, ridge: float = RIDGE) -> Float[Tensor, "d_model d_model"]:
    """A matrix `units` such that ``units @ x`` has (all but for the ridge) the identity as second moment."""
    scale = scaling(moments).double()
    scaled = moments.patches.double() * scale[:, None] * scale[None, :]
    values, vectors = torch.linalg.eigh(scaled)
    mean = values.clamp(min=0).mean()
    roots = (values.clamp(min=0) + ridge * mean).rsqrt()
    return ((vectors * roots) @ vectors.T * scale[None, :]).to(moments.patches.dtype)


def offset_of(logits: Float[Tensor, " pair"], same: Float[Tensor, " pair"]) -> float:
    """Offset that makes logits most likely where their scale is given: chances then add up to the answers.

    >>> round(offset_of(torch.tensor([4.0, 6.0]), torch.tensor([0.0, 1.0])), 3)
    -5.0
    """
    scores, share = logits.double(), float(same.double().mean().clamp(1e-6, 1 - 1e-6))
    low, high = -float(scores.max()) - _SURE, -float(scores.min()) + _SURE
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if float((scores + middle).sigmoid().mean()) < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def scale_and_offset(
    logits: Float[Tensor, " pair"], same: Float[Tensor, " pair"], ridge: float = 1e-6
) -> tuple[float, float]:
    """Factor (above 0) and offset that turn a score into the most likely logit: logistic regression by Newton's method.

    >>> logits = torch.tensor([-2.0, -1.0, 1.0, 2.0])
    >>> factor, offset = scale_and_offset(logits, torch.tensor([0.0, 1.0, 0.0, 1.0]))
    >>> round(factor, 3), abs(offset) < 1e-6
    (0.42, True)
    """
    scores, answers = logits.double(), same.double()
    spread = scores.std().clamp(min=1e-12)
    design = torch.stack([scores / spread, torch.ones_like(scores)])
    weights = torch.zeros(2, dtype=torch.float64, device=scores.device)
    loss = binary_cross_entropy_with_logits(weights @ design, answers)
    for _ in range(_NEWTON_STEPS):
        chance = (weights @ design).sigmoid()
        gradient = design @ (chance - answers) / len(answers)
        curvature = (design * (chance * (1 - chance))) @ design.T / len(answers)
        step = torch.linalg.solve(curvature + ridge * torch.eye(2, dtype=torch.float64, device=scores.device), gradient)
        # Halved until it helps: far from the optimum, Newton's full step may overshoot.
        while float(step.abs().max()) > 1e-9:
            tried = weights - step
            new_loss = binary_cross_entropy_with_logits(tried @ design, answers)
            if new_loss <= loss:
                weights, loss = tried, new_loss
                break
            step = step / 2
        else:
            break
    factor = float(weights[0] / spread)
    return (factor if factor > 0 else 1e-3 / float(spread)), float(weights[1])
