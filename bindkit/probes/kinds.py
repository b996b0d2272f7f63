"""The probes that come with bindkit, and the similarities and baselines that stand beside them.

First the logits of all pairs of a scene for the large forms, with their gradients written out: autograd alone would
keep products as large as the activations and fill fresh memory with them every step. Scenes go through a few at a time,
and of symmetric products only the blocks on and above the diagonal are computed.

Then the probes whose logit is linear in each of the two patches; those that map each patch to a distribution, where two
patches are of one object as far as both fall on one outcome; and the baseline that asks the model itself: how much the
next layer's query of one patch meets the key of another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import layer_norm, softmax

from bindkit.backbones.attention import AttentionMaps
from bindkit.errors import ProbeError
from bindkit.probes.base import PairMoments, Probe, register_probe, uniform_start

_ROWS_AT_ONCE = 2048
"""Rows of a chunk: 8 MB at width 1024, which the allocator gives again instead of asking the system for new pages."""

_BLOCK = 256
"""Columns of a block of a symmetric product."""


def symmetric_logits(
    x: Float[Tensor, "*scene n d_model"], form: Float[Tensor, "d_model d_model"]
) -> Float[Tensor, "*scene n n"]:
    """``x form x'`` for a symmetric form; the gradient is that along symmetric changes of it, the only ones."""
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
        (x,), (gradient,) = ctx.saved_tensors, gradients
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
        (x,), (gradient,) = ctx.saved_tensors, gradients
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


def times_units(weight: Float[Tensor, "*rows d_model"], units: Tensor) -> Float[Tensor, "*rows d_model"]:
    """Rows that give for ``x`` what the rows of `weight` give for ``units @ x``."""
    return weight * units if units.ndim == 1 else weight @ units


class RowsProbe(Probe):
    """A probe in whose formula every parameter but the offset multiplies one patch."""

    trained_in = "whitened"

    def folded(self, parameters: Mapping[str, Tensor], units: Tensor) -> dict[str, Tensor]:  # noqa: D102
        return {name: value if name == "bias" else times_units(value, units) for name, value in parameters.items()}


@register_probe("linear")
class Linear(RowsProbe):
    """``w.x + w.y + b``: whether each patch by itself looks like part of an object that fills the view.

    The reference implementation adds the output of one ``nn.Linear`` at both patches, ``w.x + w.y + 2b``: the same
    functions, but Adam moves that offset twice as far a step. The paper protocol does so: ``offset_at_both``.
    """

    def __init__(self, d_model: int, offset_at_both: bool = False) -> None:
        # Named only where it is so: saved probes without it keep their bytes.
        super().__init__(d_model, **({"offset_at_both": True} if offset_at_both else {}))
        self.weight = uniform_start(d_model, fan_in=d_model)
        self.bias = uniform_start(fan_in=d_model)

    def pairwise(self, x: Float[Tensor, "*scene n d_model"], y: Float[Tensor, "*scene m d_model"]) -> Tensor:  # noqa: D102
        left = x @ self.weight
        right = left if y is x else y @ self.weight
        return left[..., :, None] + right[..., None, :] + self.offset()

    def offset(self) -> Tensor:
        """What a logit has beside the two patches' scores."""
        return 2 * self.bias if self.options.get("offset_at_both") else self.bias


@register_probe("diag_quadratic")
class DiagonalQuadratic(Probe):
    """``sum_k w_k x_k y_k + b``: a weighted similarity."""

    trained_in = "scaled"

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.weight = uniform_start(d_model, fan_in=d_model)
        self.bias = uniform_start(fan_in=d_model)

    def symmetric(self) -> Float[Tensor, "d_model d_model"]:
        """The form itself, a diagonal."""
        return self.weight.diag()

    def pairwise(self, x: Float[Tensor, "*scene n d_model"], y: Float[Tensor, "*scene m d_model"]) -> Tensor:  # noqa: D102
        if y is x:
            return diagonal_logits(x, self.weight) + self.bias
        return (x * self.weight) @ y.mT + self.bias

    def folded(self, parameters: Mapping[str, Tensor], units: Tensor) -> dict[str, Tensor]:  # noqa: D102
        return {"weight": parameters["weight"] * units**2, "bias": parameters["bias"]}

    def closed_form(self, moments: PairMoments) -> dict[str, Tensor]:
        """Least squares of the answer on the products ``x_k y_k``, as if patches of a pair were independent."""
        products = moments.patches.double() ** 2
        ridge = 1e-3 * products.diagonal().mean() * torch.eye(self.d_model, dtype=torch.float64, device=products.device)
        weight = torch.linalg.solve(products + ridge, moments.signal.diagonal().double())
        return {"weight": weight.to(moments.signal.dtype), "bias": torch.zeros_like(self.bias)}


@register_probe("quadratic")
class Quadratic(Probe):
    """``x' (W + W') y / (2 sqrt(d)) + b``: any symmetric bilinear form."""

    trained_in = "whitened"

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.weight = uniform_start(d_model, d_model, fan_in=d_model)
        self.bias = uniform_start(fan_in=d_model)

    def symmetric(self) -> Float[Tensor, "d_model d_model"]:
        """The form itself, ``(W + W') / (2 sqrt(d))``."""
        return (self.weight + self.weight.T) / (2 * math.sqrt(self.d_model))

    def pairwise(self, x: Float[Tensor, "*scene n d_model"], y: Float[Tensor, "*scene m d_model"]) -> Tensor:  # noqa: D102
        if y is x:
            return symmetric_logits(x, self.symmetric()) + self.bias
        return (x @ self.symmetric()) @ y.mT + self.bias

    def folded(self, parameters: Mapping[str, Tensor], units: Tensor) -> dict[str, Tensor]:  # noqa: D102
        columns = times_units(parameters["weight"], units)
        return {"weight": times_units(columns.mT, units).mT, "bias": parameters["bias"]}

    def closed_form(self, moments: PairMoments) -> dict[str, Tensor]:
        """Least squares of the answer on all products ``x_i y_j``: in whitened units, that is the signal itself."""
        return {"weight": moments.signal * math.sqrt(self.d_model), "bias": torch.zeros_like(self.bias)}


@register_probe("quadratic_fixed_rank")
class QuadraticFixedRank(RowsProbe):
    """The quadratic probe with ``W = W1' W2`` of rank 100, as in the reference, or as the name says (``...@16``)."""

    numbered = "rank"
    degrees: ClassVar[Mapping[str, float]] = {"first": 0.5, "second": 0.5}

    def __init__(self, d_model: int, rank: int = 100) -> None:
        if rank < 1:
            raise ProbeError(f"a quadratic_fixed_rank probe of rank {rank} says nothing; give a rank of 1 or more")
        super().__init__(d_model, rank=rank)
        self.first = uniform_start(rank, d_model, fan_in=d_model)
        self.second = uniform_start(rank, d_model, fan_in=d_model)
        self.bias = uniform_start(fan_in=d_model)

    def symmetric(self) -> Float[Tensor, "d_model d_model"]:
        """The form itself, of at most twice the rank."""
        product = self.first.T @ self.second
        return (product + product.T) / (2 * math.sqrt(self.d_model))

    def pairwise(self, x: Float[Tensor, "*scene n d_model"], y: Float[Tensor, "*scene m d_model"]) -> Tensor:  # noqa: D102
        # x (W + W') y = (W1 x).(W2 y) + (W2 x).(W1 y): d x d is never formed.
        scale = 1 / (2 * math.sqrt(self.d_model))
        first, second = (x @ torch.cat([self.first, self.second]).T).chunk(2, dim=-1)
        if y is x:
            half = first @ (scale * second).mT
            return half + half.mT + self.bias
        left, right = torch.cat([first, second], dim=-1), y @ torch.cat([self.second, self.first]).T
        return left @ (scale * right).mT + self.bias

    def closed_form(self, moments: PairMoments) -> dict[str, Tensor]:
        """The strongest eigenvectors of the quadratic probe's start."""
        values, vectors = torch.linalg.eigh(moments.signal * math.sqrt(self.d_model))
        rank = self.first.shape[0]
        chosen = values.abs().topk(min(rank, self.d_model)).indices
        roots = vectors[:, chosen].T * values[chosen].abs().sqrt()[:, None]
        first, second = torch.zeros_like(self.first), torch.zeros_like(self.second)
        first[: len(chosen)], second[: len(chosen)] = roots, roots * values[chosen].sign()[:, None]
        return {"first": first, "second": second, "bias": torch.zeros_like(self.bias)}


@register_probe("cosine_similarity")
class CosineSimilarity(Probe):
    """``cos(x, y) + b``: only an offset is learned."""

    trained_in = "raw"

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.bias = uniform_start(fan_in=d_model)

    def pairwise(self, x: Float[Tensor, "*scene n d_model"], y: Float[Tensor, "*scene m d_model"]) -> Tensor:  # noqa: D102
        # Two norms count for at least 1e-8, as in the reference implementation.
        norms = x.norm(dim=-1)[..., :, None] * y.norm(dim=-1)[..., None, :]
        return x @ y.mT / norms.clamp(min=1e-8) + self.bias


@register_probe("dot_product")
class DotProduct(CosineSimilarity):
    """``x.y + b``: only an offset is learned."""

    def pairwise(self, x: Float[Tensor, "*scene n d_model"], y: Float[Tensor, "*scene m d_model"]) -> Tensor:  # noqa: D102
        return x @ y.mT + self.bias


class Map(RowsProbe):
    """A linear map of each patch to outcomes, and the log odds that two patches fall on the same one."""

    def __init__(self, d_model: int, width: int, **options: object) -> None:
        super().__init__(d_model, **options)
        self.weight = uniform_start(width, d_model, fan_in=d_model)
        self.bias = uniform_start(width, fan_in=d_model)

    def outcomes(self, x: Float[Tensor, "*scene n d_model"]) -> Float[Tensor, "*scene n outcome"]:
        """Logits of the outcomes of each patch."""
        return x @ self.weight.T + self.bias

    def pairwise(self, x: Float[Tensor, "*scene n d_model"], y: Float[Tensor, "*scene m d_model"]) -> Tensor:
        """``log(p / (1 - p))`` with ``p = softmax(Wx).softmax(Wy)``."""
        first, second = softmax(self.outcomes(x), -1), softmax(self.outcomes(y), -1)
        # 1 - p is added up from what is unlikely, so that nothing cancels where p is nearly 1.
        likeliest = second.argmax(-1, keepdim=True)
        unlikely = second.scatter(-1, likeliest, 0.0).sum(-1, keepdim=True)
        same, other = first @ second.mT, first @ (1 - second).scatter(-1, likeliest, unlikely).mT
        tiny = torch.finfo(same.dtype).tiny
        return same.clamp(min=tiny).log() - other.clamp(min=tiny).log()


@register_probe("softmax")
class Softmax(Map):
    """``softmax(Wx).softmax(Wy)``, the chance that two patches fall on one of 151 outcomes, as log odds.

    As many as in the reference implementation: the 150 classes of ADE20K's benchmark and other.
    The reference implementation gives that chance, which is never below 0, to the loss as if it were a logit, so that
    it calls every pair *same*. The paper protocol does so too: ``chance_is_logit``.
    """

    numbered = "n_outcomes"

    def __init__(self, d_model: int, n_outcomes: int = 151, chance_is_logit: bool = False) -> None:
        if n_outcomes < 2:
            raise ProbeError(f"a softmax probe of {n_outcomes} outcomes tells no patches apart; give 2 or more")
        super().__init__(d_model, n_outcomes, n_outcomes=n_outcomes, chance_is_logit=chance_is_logit)

    def pairwise(self, x: Float[Tensor, "*scene n d_model"], y: Float[Tensor, "*scene m d_model"]) -> Tensor:  # noqa: D102
        if not self.options["chance_is_logit"]:
            return super().pairwise(x, y)
        return softmax(self.outcomes(x), -1) @ softmax(self.outcomes(y), -1).mT


class PointwiseMap(Map):
    """A map that is trained and judged patch by patch: pairs are called *same* where the likeliest outcome is."""

    def says_same(
        self, activations: Float[Tensor, "*scene patch d_model"], logits: Float[Tensor, "*scene patch patch"]
    ) -> Bool[Tensor, "*scene patch patch"]:
        """Pairs of patches whose likeliest outcome is the same."""
        likeliest = self.outcomes(activations).argmax(-1)
        return likeliest[..., :, None] == likeliest[..., None, :]


@register_probe("class_map")
class ClassMap(PointwiseMap):
    """A linear map to classes: what `linear` is in the task ``pointwise_class``.

    Outcome 0 is every class that is not listed; outcome k is ``class_ids[k - 1]``, a class id or several.
    """

    pointwise_task = "pointwise_class"
    outcome_of: Tensor

    def __init__(self, d_model: int, class_ids: Sequence[int | Sequence[int]] = ()) -> None:
        listed = [[int(k) for k in ids] if isinstance(ids, Sequence) else [int(ids)] for ids in class_ids]
        super().__init__(d_model, len(listed) + 1, class_ids=listed)
        outcome_of = torch.zeros(max((max(ids, default=0) for ids in listed), default=0) + 1, dtype=torch.int64)
        for outcome, ids in enumerate(listed, start=1):
            outcome_of[ids] = outcome
        self.register_buffer("outcome_of", outcome_of, persistent=False)

    def targets(self, classes: Int[Tensor, "*scene patch"]) -> Int[Tensor, "*scene patch"]:
        """Outcomes of class ids."""
        known = self.outcome_of.to(classes.device)
        return torch.where(classes < len(known), known[classes.long().clamp(max=len(known) - 1)], 0)


@register_probe("identity_map")
class IdentityMap(PointwiseMap):
    """A linear map to queries (100 as the reference's) and background: `linear` in the task ``pointwise_identity``.

    Outcome 0 is background, the others stand for objects that a scene's matching assigns to them.
    """

    pointwise_task = "pointwise_identity"

    def __init__(self, d_model: int, n_queries: int = 100) -> None:
        super().__init__(d_model, n_queries + 1, n_queries=n_queries)


@register_probe("self_attention")
class SelfAttention(Probe):
    """``(Wq n(x)).(Wk n(y)) / sqrt(d) + b`` with the *next* layer's norm n and maps; only ``b`` is learned.

    That is the sum over heads, as in the reference implementation; it ranks pairs as their mean does.
    ``self_attention@3`` is head 3 alone, over the root of its own width. Not symmetric: row i is the patch that looks.
    Rotations and biases that some models add to queries and keys by position (DINOv3, BEiT) are left out.

    The reference implementation feeds the maps with the raw block output, without the norm that the model has there.
    The paper protocol does so too: ``normed=False``.
    """

    trained_in = "raw"
    numbered = "head"

    norm_weight: Tensor
    norm_bias: Tensor
    query_weight: Tensor
    query_bias: Tensor
    key_weight: Tensor
    key_bias: Tensor

    def __init__(
        self,
        d_model: int,
        n_heads: int = 1,
        norm_epsilon: float = 1e-6,
        head: int | None = None,
        normed: bool = True,
    ) -> None:
        if head is not None and not 0 <= head < n_heads:
            raise ProbeError(f"there is no attention head {head}; this backbone has heads 0 to {n_heads - 1}")
        # Named only where it is not so: saved probes with the norm keep their bytes.
        raw = {} if normed else {"normed": False}
        super().__init__(d_model, n_heads=n_heads, norm_epsilon=norm_epsilon, head=head, **raw)
        self.bias = nn.Parameter(torch.zeros(()))
        for name in ("norm_weight", "norm_bias", "query_bias", "key_bias"):
            self.register_buffer(name, torch.zeros(d_model))
        for name in ("query_weight", "key_weight"):
            self.register_buffer(name, torch.zeros(d_model, d_model))

    def take(self, maps: AttentionMaps) -> SelfAttention:
        """Take the weights of a block; returns itself."""
        for name in ("norm_weight", "norm_bias", "query_weight", "query_bias", "key_weight", "key_bias"):
            getattr(self, name).copy_(getattr(maps, name))
        return self

    def pairwise(self, x: Float[Tensor, "*scene n d_model"], y: Float[Tensor, "*scene m d_model"]) -> Tensor:  # noqa: D102
        queries, keys = self.queries_and_keys(x, y)
        return queries @ keys.mT / math.sqrt(queries.shape[-1]) + self.bias

    def queries_and_keys(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Queries of `x` and keys of `y`, of all heads side by side or of the one that the probe has."""
        head, width = self.options["head"], self.d_model // self.options["n_heads"]
        rows = slice(None) if head is None else slice(head * width, (head + 1) * width)
        if self.options.get("normed", True):
            norm = self.norm_weight, self.norm_bias, self.options["norm_epsilon"]
            x, y = (layer_norm(part, (self.d_model,), *norm) for part in (x, y))
        queries = x @ self.query_weight[rows].T + self.query_bias[rows]
        return queries, y @ self.key_weight[rows].T + self.key_bias[rows]
