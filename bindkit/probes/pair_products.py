"""Logits of all pairs of patches of each scene for the large forms, with their gradients written out.

Autograd alone would keep products as large as the activations and fill fresh memory with them every step. Here scenes
go through a few at a time, nothing but the activations is kept for the way back, and of symmetric products only the
blocks on and above the diagonal are computed. Ordinary autograd differentiates what these functions do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_ROWS_AT_ONCE = 2048
"""Rows of a chunk: 8 MB at width 1024, which the allocator gives again instead of asking the system for new pages."""

_BLOCK = 256
"""Columns of a block of a symmetric product."""


def symmetric_logits(
    x: Float[Tensor, "*scene n d_model"], form: Float[Tensor, "d_model d_model"]
) -> Float[Tensor, "*scene n n"]:
    """``x form x'`` for a symmetric form.

    The gradient is that along symmetric changes of the form, which are the only ones a symmetric form can make.
    """
    if x.requires_grad:
        return (x @ form) @ x.mT
    logits: Tensor = _Symmetric.apply(x.reshape(-1, *x.shape[-2:]), form)
    return logits.reshape(*x.shape[:-1], x.shape[-2])


def diagonal_logits(
    x: Float[Tensor, "*scene n d_model"], weight: Float[Tensor, " d_model"]
) -> Float[Tensor, "*scene n n"]:
    """``x diag(weight) x'``."""
    if x.requires_grad:
        return (x * weight) @ x.mT
    logits: Tensor = _Diagonal.apply(x.reshape(-1, *x.shape[-2:]), weight)
    return logits.reshape(*x.shape[:-1], x.shape[-2])


def add_symmetric_product(
    total: Float[Tensor, "d_model d_model"], left: Float[Tensor, "row d_model"], right: Float[Tensor, "row d_model"]
) -> None:
    """Add ``left' right``, known to be symmetric, to the blocks of `total` on and above the diagonal."""
    for start, end in _blocks(total.shape[0]):
        total[:end, start:end].addmm_(left[:, :end].T, right[:, start:end])


def mirrored(total: Float[Tensor, "d_model d_model"]) -> Float[Tensor, "d_model d_model"]:
    """The symmetric matrix whose upper half this is."""
    return total.triu() + total.triu(1).T


class _Symmetric(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, form: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        # With half of it, upper + upper' is the form: what the lower half would add is the transposed logits.
        upper = form.triu()
        upper.diagonal().div_(2)
        logits = x.new_empty(*x.shape[:2], x.shape[1])
        product = x.new_empty(min(_chunk(x), len(x)) * x.shape[1], x.shape[2])
        for part, out in zip(x.split(_chunk(x)), logits.split(_chunk(x)), strict=True):
            rows = part.flatten(0, 1)
            for start, end in _blocks(form.shape[0]):
                torch.mm(rows[:, :end], upper[:end, start:end], out=product[: len(rows), start:end])
            half = product[: len(rows)].view_as(part) @ part.mT
            torch.add(half, half.mT, out=out)
        return logits

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        (x,) = ctx.saved_tensors
        (gradient,) = gradients
        total = x.new_zeros(x.shape[2], x.shape[2])
        for part, told in zip(x.split(_chunk(x)), gradient.split(_chunk(x)), strict=True):
            weighed = ((told + told.mT) / 2) @ part
            add_symmetric_product(total, part.flatten(0, 1), weighed.flatten(0, 1))
        return None, mirrored(total)


class _Diagonal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        logits = x.new_empty(*x.shape[:2], x.shape[1])
        for part, out in zip(x.split(_chunk(x)), logits.split(_chunk(x)), strict=True):
            torch.bmm(part * weight, part.mT, out=out)
        return logits

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        (x,) = ctx.saved_tensors
        (gradient,) = gradients
        total = x.new_zeros(x.shape[2])
        for part, told in zip(x.split(_chunk(x)), gradient.split(_chunk(x)), strict=True):
            total += (told @ part).mul_(part).sum((0, 1))
        return None, total


def _chunk(x: Tensor) -> int:
    """Scenes that go through at once."""
    return max(1, _ROWS_AT_ONCE // max(1, x.shape[1]))


def _blocks(width: int) -> Iterator[tuple[int, int]]:
    """Columns of each block; narrow forms are one block."""
    step = _BLOCK if width > 2 * _BLOCK else width
    for start in range(0, width, step):
        yield start, min(start + step, width)
