"""Probes that map each patch to a distribution: two patches are of one object as far as both fall on one outcome."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import softmax

from bindkit.errors import ProbeError
from bindkit.probes.base import uniform_start
from bindkit.probes.bilinear import RowsProbe
from bindkit.probes.registry import register_probe


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
