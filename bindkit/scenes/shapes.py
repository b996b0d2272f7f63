"""Outlines of synthetic objects, decided by whole numbers only: no rounding differs between machines.

A shape is a test on coordinates ``(x, y)`` in which its outer radius is 1024, x to the right and y down. Sizes are
balanced so that all shapes of one nominal radius cover about the same area.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bindkit.scenes.draws import Draws

RADIUS = 1024
TURNS = 24
# round(4096 cos(15 degrees * k)), k = 0..6; written out because libm's cosine may differ in the last bit.
_COSINES = (4096, 3956, 3547, 2896, 2048, 1060, 0)
UNIT = 4096

Outline = Callable[[np.ndarray, np.ndarray], np.ndarray]


def cosine(turn: int) -> int:
    """``4096 cos(15 degrees * turn)`` as a whole number."""
    turn %= TURNS
    if turn > TURNS // 2:
        turn = TURNS - turn
    return _COSINES[turn] if turn <= TURNS // 4 else -_COSINES[TURNS // 2 - turn]


def sine(turn: int) -> int:
    """``4096 sin(15 degrees * turn)`` as a whole number."""
    return cosine(turn - TURNS // 4)


def rotate(right: np.ndarray, down: np.ndarray, turn: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in a frame turned clockwise by ``15 degrees * turn``, times 4096."""
    return right * cosine(turn) + down * sine(turn), down * cosine(turn) - right * sine(turn)


def polygon(vertices: Sequence[tuple[int, int]]) -> Outline:
    """Inside of a polygon by the even-odd rule, exact in whole numbers."""

    def inside(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        odd = np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=bool)
        for (x0, y0), (x1, y1) in zip(vertices, [*vertices[1:], vertices[0]], strict=True):
            if y0 == y1:
                continue
            spans = (y0 > y) != (y1 > y)
            left_of_edge = ((x - x0) * (y1 - y0) < (x1 - x0) * (y - y0)) == (y1 > y0)
            odd ^= spans & left_of_edge
        return odd

    return inside


def _disc_at(x: np.ndarray, y: np.ndarray, right: int, down: int, radius: int) -> np.ndarray:
    return (x - right) ** 2 + (y - down) ** 2 <= radius * radius


def _disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _disc_at(x, y, 0, 0, RADIUS)


def _ellipse(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (4 * x) ** 2 + (7 * y) ** 2 <= (4 * RADIUS) ** 2


def _rectangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (abs(x) <= 860) & (abs(y) <= 556)


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _disc(x, y) & ~_disc_at(x, y, 0, 0, 450)


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return ((abs(x) <= 970) & (abs(y) <= 330)) | ((abs(y) <= 970) & (abs(x) <= 330))


def _crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _disc(x, y) & ~_disc_at(x, y, 560, 0, 680)


def _clover(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _disc_at(x, y, 0, -500, 524) | _disc_at(x, y, 433, 250, 524) | _disc_at(x, y, -433, 250, 524)


def _within(*strokes: tuple[int, int, int, int, int]) -> Outline:
    """Union of strokes ``(x0, y0, x1, y1, half_width)`` with round ends."""

    def inside(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        found = np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=bool)
        for x0, y0, x1, y1, half in strokes:
            across, down = x1 - x0, y1 - y0
            squared = across * across + down * down
            along = np.clip((x - x0) * across + (y - y0) * down, 0, squared)
            # Distance to the nearest point of the stroke, in units of 1/squared so that all stays whole.
            right, below = (x - x0) * squared - along * across, (y - y0) * squared - along * down
            found |= (right // 1024) ** 2 + (below // 1024) ** 2 <= (half * squared // 1024) ** 2
        return found

    return inside


def _bow(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _disc(x, y) & ~_disc_at(x, y, 0, 0, 720) & (y <= 250)


_TRIANGLE = ((0, -1024), (887, 512), (-887, 512))
_STAR = (
    *((0, -1024), (307, -423), (974, -316), (497, 161), (602, 828)),
    *((0, 523), (-602, 828), (-497, 161), (-974, -316), (-307, -423)),
)


@dataclass(frozen=True)
class Shape:
    """A kind of outline: its class name and, in percent, the outer radius that gives it about a disc's area."""

    name: str
    outline: Outline | None
    extent: int

    def draw_outline(self, draws: Draws) -> Outline:
        """The outline; where it is not fixed (the pebble), drawn anew for every look."""
        if self.outline is not None:
            return self.outline
        corners = []
        for corner in range(9):
            turn, reach = (corner * TURNS) // 9, draws.between(720, RADIUS)
            corners.append((reach * cosine(turn) // UNIT, reach * sine(turn) // UNIT))
        return polygon(corners)


# A shape's place in this table, counted from 1, is its class id: append, never reorder.
SHAPES = (
    Shape("disc", _disc, 100),
    Shape("ellipse", _ellipse, 132),
    Shape("rectangle", _rectangle, 124),
    Shape("triangle", polygon(_TRIANGLE), 150),
    Shape("star", polygon(_STAR), 146),
    Shape("ring", _ring, 114),
    Shape("cross", _cross, 124),
    Shape("crescent", _crescent, 128),
    Shape("clover", _clover, 112),
    Shape("pebble", None, 122),
    Shape("bar", _within((-850, 0, 850, 0, 170)), 218),
    Shape("elbow", _within((-610, -610, -610, 610, 155), (-610, 610, 610, 610, 155)), 196),
    Shape("zed", _within((-620, -560, 560, -560, 150), (560, -560, -560, 560, 150), (-560, 560, 620, 560, 150)), 164),
    Shape("tee", _within((-660, -560, 660, -560, 155), (0, -560, 0, 840, 155)), 187),
    Shape("fork", _within((0, 0, 0, 850, 160), (0, 0, -600, -600, 160), (0, 0, 600, -600, 160)), 189),
    Shape("bow", _bow, 180),
)

OUTLINES: dict[str, tuple[int, ...]] = {
    "compact": tuple(range(1, 11)),
    "slender": tuple(range(11, 17)),
    "any": tuple(range(1, 17)),
}
"""Named sets of class ids: compact objects, long thin ones (whose patches lie far apart), or both."""
