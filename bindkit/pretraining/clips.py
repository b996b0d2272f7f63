"""What two frames of a clip tell of motion, from their pixels alone: block matching, kept where it is sure.

Objects move by whole pixels between the frames and the ground stays; matching knows neither, nor any mask.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

REACH = 6
"""Pixels that an object moves at most, down and across, between two frames; and as far as matching looks."""

_BLUR = 5
"""Side of the square that both frames are averaged over: grain goes, what surfaces fade through stays."""
_STILL = 0.5
"""By so much (squared gray levels a pixel) a patch that moved has to match better than one that did not."""
_MARGIN = 0.5
"""By so much any place more than a pixel away has to match worse."""
_GRAIN = 2.5
"""A patch that differs by more at its best place is partly hidden, or moves with two things at once. Grain that is
drawn anew (a variance of about 13, twice, over the pixels of a blur) leaves 1.0."""

_STEPS = range(-REACH, REACH + 1)
_MOTIONS = torch.tensor([(down, right) for down in _STEPS for right in _STEPS])


def match_frames(
    first: UInt8[Any, "row col 3"], second: UInt8[Any, "row col 3"], patch: int
) -> Float[Tensor, "down across 2"]:
    """How far each patch of the first frame has moved in the second, (down, right) in pixels; NaN where unsure.

    The place whose pixels differ least, in squared gray levels, after averaging both frames. A place that is a pixel
    off is no other place.
    """
    before, after = (_blurred(frame) for frame in (first, second))
    _, n_rows, n_cols = before.shape
    wide = functional.pad(after, (REACH,) * 4, value=math.inf)
    shifts = ((REACH + down, REACH + right) for down, right in _MOTIONS.tolist())
    # Every other pixel: after averaging, its neighbours say the same.
    moved = torch.stack([wide[:, row : row + n_rows : 2, col : col + n_cols : 2] for row, col in shifts])
    costs = functional.avg_pool2d((moved - before[:, ::2, ::2]).square().mean(1), patch // 2)  # [motion, down, across]
    n_down, n_across = costs.shape[1:]
    costs = costs.flatten(1)
    weighed = costs - _STILL * (_MOTIONS == 0).all(1, keepdim=True)
    least, best = weighed.min(0)
    elsewhere = (_MOTIONS[best][None] - _MOTIONS[:, None]).abs().amax(-1) > 1
    margin = torch.where(elsewhere, weighed, math.inf).amin(0) - least
    sure = (margin > _MARGIN) & (costs.gather(0, best[None])[0] < _GRAIN)
    return torch.where(sure[:, None], _MOTIONS[best].float(), math.nan).view(n_down, n_across, 2)


def _blurred(frame: Any) -> Tensor:
    pixels = torch.as_tensor(frame).permute(2, 0, 1).float()
    return functional.avg_pool2d(functional.pad(pixels, (_BLUR // 2,) * 4, mode="replicate"), _BLUR, 1)
