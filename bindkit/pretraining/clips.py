"""What two frames of a clip tell of motion, from their pixels alone: matched, and kept where it is sure.

Objects move by whole pixels between the frames and the camera is still. That much matching is told (a place without
motion has a small advantage, and stillness is always among the motions), and nothing of any mask. First every
patch looks for its place in the second frame; what several patches are sure of are the motions of the clip. Then each
pixel takes the one of these that explains it best, and a patch that of most of its pixels: rims and faint surfaces,
which tell nothing by themselves, tell which of a few motions they follow.
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

_GRAIN = 25.4
"""Squared gray levels by which a pixel differs from itself in another frame: grain of variance 12.7, twice."""

_BLUR = 5
"""Side of the square that both frames are averaged over to look for places: grain goes, slow fades stay."""
_STILL = 0.5
"""By so much (squared gray levels a pixel) a patch that moved has to match better than one that did not."""
_MARGIN = 0.5
"""By so much anything more than a pixel away has to match worse, a patch as well as a pixel."""
_MOST = 1 + 1.5 * _GRAIN / _BLUR**2
"""A patch that differs by more at its best place is partly hidden, or moves with two things at once."""

_FINE_BLUR, _AROUND = 3, 3
"""Sides of the squares that frames, and then their differences, are averaged over for single pixels."""
_MOST_OF_PIXEL = 1 + 2 * _GRAIN / _FINE_BLUR**2
_SHARE = 0.5
"""Of a patch's pixels, at least, have to follow the motion that it is given."""

_STEPS = range(-REACH, REACH + 1)
_MOTIONS = torch.tensor([(down, right) for down in _STEPS for right in _STEPS])

UNSURE = (2 * REACH + 1) ** 2
"""Number of patches whose motion pixels do not tell."""

Frame = UInt8[Any, "row col 3"]


def number_motions(flow: Float[Tensor, "down across 2"]) -> UInt8[Tensor, "down across"]:
    """The same number for patches of the same motion: 0 where nothing moves, `UNSURE` where flow is NaN."""
    numbers = flow @ torch.tensor([2.0 * REACH + 1, 1.0]) % UNSURE
    return numbers.nan_to_num(UNSURE).to(torch.uint8)


def match_frames(first: Frame, second: Frame, patch: int) -> Float[Tensor, "down across 2"]:
    """How far each patch of the first frame has moved in the second, (down, right) in pixels; NaN where unsure."""
    found = match_patches(first, second, patch).flatten(0, 1)
    motions, n_patches = found[~found.isnan().any(1)].unique(dim=0, return_counts=True)
    several = motions[n_patches > 1]
    return follow_motions(first, second, torch.cat([several, torch.zeros(1, 2)]).unique(dim=0), patch)


def match_patches(first: Frame, second: Frame, patch: int) -> Float[Tensor, "down across 2"]:
    """The place of each patch by itself, where its averaged pixels differ least; a pixel off is no other place."""
    before, after = _blurred(first, _BLUR), _blurred(second, _BLUR)
    # Every other pixel: after averaging, its neighbours say the same.
    costs = functional.avg_pool2d(_differences(before, after, _MOTIONS, every=2), patch // 2)
    n_down, n_across = costs.shape[1:]
    weighed = costs.flatten(1) - _STILL * (_MOTIONS == 0).all(1, keepdim=True)
    best, margin = _best(weighed, _MOTIONS)
    sure = (margin > _MARGIN) & (costs.flatten(1).gather(0, best[None])[0] < _MOST)
    return torch.where(sure[:, None], _MOTIONS[best].float(), math.nan).view(n_down, n_across, 2)


def follow_motions(
    first: Frame, second: Frame, motions: Float[Tensor, "motion 2"], patch: int
) -> Float[Tensor, "down across 2"]:
    """Which of a few motions most pixels of each patch follow; NaN where too few are sure of one."""
    before, after = _blurred(first, _FINE_BLUR), _blurred(second, _FINE_BLUR)
    costs = _averaged(_differences(before, after, motions.long()), _AROUND)
    best, margin = _best(costs.flatten(1), motions)
    sure = (margin > _MARGIN) & (costs.flatten(1).gather(0, best[None])[0] < _MOST_OF_PIXEL)
    votes = functional.one_hot(best, len(motions)) * sure[:, None]
    shares = functional.avg_pool2d(votes.T.float().view(costs.shape), patch)  # [motion, down, across]
    n_down, n_across = shares.shape[1:]
    like = ((motions[:, None] - motions[None]).abs().amax(-1) <= 1).float()
    together = like @ shares.flatten(1)
    leader = together.argmax(0)
    # Of motions a pixel apart, that of most pixels speaks for all.
    chosen = torch.where(like[leader].T.bool(), shares.flatten(1), -1.0).argmax(0)
    sure = together.amax(0) >= _SHARE
    return torch.where(sure[:, None], motions[chosen], math.nan).view(n_down, n_across, 2)


def _differences(before: Tensor, after: Tensor, motions: Tensor, every: int = 1) -> Float[Tensor, "motion row col"]:
    """Squared differences of each pixel and the one that lies a motion away; infinite out of the frame."""
    _, n_rows, n_cols = before.shape
    wide = functional.pad(after, (REACH,) * 4, value=math.inf)
    shifts = ((REACH + down, REACH + right) for down, right in motions.tolist())
    moved = torch.stack([wide[:, row : row + n_rows : every, col : col + n_cols : every] for row, col in shifts])
    return (moved - before[:, ::every, ::every]).square().mean(1)


def _best(costs: Float[Tensor, "motion place"], motions: Tensor) -> tuple[Tensor, Tensor]:
    """The least cost's motion at each place, and by how much all that are more than a pixel away cost more."""
    least, best = costs.min(0)
    elsewhere = (motions[best][None] - motions[:, None]).abs().amax(-1) > 1
    return best, torch.where(elsewhere, costs, math.inf).amin(0) - least


def _blurred(frame: Any, side: int) -> Float[Tensor, "3 row col"]:
    return _averaged(torch.as_tensor(frame).permute(2, 0, 1).float(), side)


def _averaged(images: Tensor, side: int) -> Tensor:
    padded = functional.pad(images[None], (side // 2,) * 4, mode="replicate")
    return functional.avg_pool2d(padded, side, 1)[0]
