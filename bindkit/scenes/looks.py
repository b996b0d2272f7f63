"""What synthetic objects look like: seeded draws, outlines, textures and colours.

Everything is decided by whole numbers, so that no rounding differs between machines. An outline is a test on
coordinates ``(x, y)``, x to the right and y down, in which its outer radius is 1024. A texture maps coordinates on the
surface, in 1/64 pixel, and a scale in the same unit to a mix of two colours, 0 (base) to 255 (accent); `salt` tells one
noise field from another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")
Outline = Callable[[np.ndarray, np.ndarray], np.ndarray]
Colour = tuple[int, ...]
Texture = Callable[[np.ndarray, np.ndarray, int, int], np.ndarray]

RADIUS = 1024
TURNS = 24
# round(4096 cos(15 degrees * k)); written out because libm's cosine may differ in the last bit.
_COSINES = (
    *(4096, 3956, 3547, 2896, 2048, 1060, 0, -1060, -2048, -2896, -3547, -3956),
    *(-4096, -3956, -3547, -2896, -2048, -1060, 0, 1060, 2048, 2896, 3547, 3956),
)
UNIT = 4096
SUBPIXELS = 64


class Draws:
    """A seeded stream of whole numbers, the same on every machine and with every version of numpy.

    numpy promises a stable stream for its bit generators only, not for the methods of ``Generator``, so numbers are
    drawn from PCG64's raw 64-bit words.

    >>> draws = Draws(0, 7)
    >>> [draws.between(1, 6) for _ in range(8)]
    [1, 5, 5, 3, 6, 6, 1, 4]
    """

    def __init__(self, *seed: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(seed))

    def below(self, limit: int) -> int:
        """A number in ``[0, limit)``; its bias is below ``limit / 2**64``."""
        return int(self._bits.random_raw()) * limit >> 64

    def between(self, low: int, high: int) -> int:
        """A number in ``[low, high]``, both ends included."""
        return low + self.below(high - low + 1)

    def chance(self, share: float) -> bool:
        """True with probability `share`, in steps of one in ten thousand."""
        return self.below(10_000) < round(share * 10_000)

    def choose(self, items: Sequence[Item]) -> Item:
        """One of the items."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """All items in a drawn order (Fisher-Yates)."""
        order = list(items)
        for last in range(len(order) - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order

    def octets(self, n_bytes: int) -> np.ndarray:
        """uint8 array of shape (n_bytes,)."""
        words = np.asarray(self._bits.random_raw(-(-n_bytes // 8)), dtype="<u8")
        return words.view(np.uint8)[:n_bytes]


# --- outlines --------------------------------------------------------------------------------------


def cosine(turn: int) -> int:
    """``4096 cos(15 degrees * turn)`` as a whole number."""
    return _COSINES[turn % TURNS]


def sine(turn: int) -> int:
    """``4096 sin(15 degrees * turn)`` as a whole number."""
    return cosine(turn - TURNS // 4)


def rotate(right: np.ndarray, down: np.ndarray, turn: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in a frame turned clockwise by ``15 degrees * turn``, times 4096."""
    return right * cosine(turn) + down * sine(turn), down * cosine(turn) - right * sine(turn)


def polygon(*vertices: tuple[int, int]) -> Outline:
    """Inside of a polygon by the even-odd rule, exact in whole numbers."""

    def inside(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        odd = np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=bool)
        for (x0, y0), (x1, y1) in zip(vertices, [*vertices[1:], vertices[0]], strict=True):
            if y0 != y1:
                spans = (y0 > y) != (y1 > y)
                odd ^= spans & (((x - x0) * (y1 - y0) < (x1 - x0) * (y - y0)) == (y1 > y0))
        return odd

    return inside


def _strokes(*strokes: tuple[int, int, int, int, int]) -> Outline:
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


def _disc(x: np.ndarray, y: np.ndarray, right: int = 0, down: int = 0, radius: int = RADIUS) -> np.ndarray:
    return (x - right) ** 2 + (y - down) ** 2 <= radius * radius


@dataclass(frozen=True)
class Shape:
    """A kind of outline: its class name and, in percent, the outer radius that gives it about a disc's area."""

    name: str
    extent: int
    outline: Outline | None

    def draw_outline(self, draws: Draws) -> Outline:
        """The outline; where it is not fixed (the pebble), drawn anew for every look."""
        if self.outline is not None:
            return self.outline
        corners = []
        for corner in range(9):
            turn, reach = (corner * TURNS) // 9, draws.between(720, RADIUS)
            corners.append((reach * cosine(turn) // UNIT, reach * sine(turn) // UNIT))
        return polygon(*corners)


_STAR = (
    *((0, -1024), (307, -423), (974, -316), (497, 161), (602, 828)),
    *((0, 523), (-602, 828), (-497, 161), (-974, -316), (-307, -423)),
)

# A shape's place in this table, counted from 1, is its class id: append, never reorder.
SHAPES = (
    Shape("disc", 100, _disc),
    Shape("ellipse", 132, lambda x, y: (4 * x) ** 2 + (7 * y) ** 2 <= (4 * RADIUS) ** 2),
    Shape("rectangle", 124, lambda x, y: (abs(x) <= 860) & (abs(y) <= 556)),
    Shape("triangle", 150, polygon((0, -1024), (887, 512), (-887, 512))),
    Shape("star", 146, polygon(*_STAR)),
    Shape("ring", 114, lambda x, y: _disc(x, y) & ~_disc(x, y, radius=450)),
    Shape("cross", 124, lambda x, y: ((abs(x) <= 970) & (abs(y) <= 330)) | ((abs(y) <= 970) & (abs(x) <= 330))),
    Shape("crescent", 128, lambda x, y: _disc(x, y) & ~_disc(x, y, 560, 0, 680)),
    Shape(
        *("clover", 112),
        lambda x, y: _disc(x, y, 0, -500, 524) | _disc(x, y, 433, 250, 524) | _disc(x, y, -433, 250, 524),
    ),
    Shape("pebble", 122, None),
    Shape("bar", 218, _strokes((-850, 0, 850, 0, 170))),
    Shape("elbow", 196, _strokes((-610, -610, -610, 610, 155), (-610, 610, 610, 610, 155))),
    Shape("zed", 164, _strokes((-620, -560, 560, -560, 150), (560, -560, -560, 560, 150), (-560, 560, 620, 560, 150))),
    Shape("tee", 187, _strokes((-660, -560, 660, -560, 155), (0, -560, 0, 840, 155))),
    Shape("fork", 189, _strokes((0, 0, 0, 850, 160), (0, 0, -600, -600, 160), (0, 0, 600, -600, 160))),
    Shape("bow", 180, lambda x, y: _disc(x, y) & ~_disc(x, y, radius=720) & (y <= 250)),
)

OUTLINES: dict[str, tuple[int, ...]] = {
    "compact": tuple(range(1, 11)),
    "slender": tuple(range(11, 17)),
    "any": tuple(range(1, 17)),
}
"""Named sets of class ids: compact objects, long thin ones (whose patches lie far apart), or both."""


# --- textures and colours --------------------------------------------------------------------------


def _hash(x: np.ndarray, y: np.ndarray, salt: int) -> np.ndarray:
    """Scramble pairs of whole numbers to 0..255 (multiply and shift, as in splitmix64)."""
    mixed = x.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + y.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= np.uint64(salt)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed >> np.uint64(56)).astype(np.int64)


def _dots(x: np.ndarray, y: np.ndarray, scale: int, salt: int) -> np.ndarray:
    period = 2 * scale
    row = y // period
    right, down = (x + (row & 1) * scale) % period - scale, y % period - scale
    return (right * right + down * down <= (5 * scale // 8) ** 2) * 255


def _bricks(x: np.ndarray, y: np.ndarray, scale: int, salt: int) -> np.ndarray:
    course = 3 * scale // 2
    mortar = scale // 3
    shifted = x + (y // course & 1) * course
    return ((y % course < mortar) | (shifted % (2 * course) < mortar)) * 255


def _target(x: np.ndarray, y: np.ndarray, scale: int, salt: int) -> np.ndarray:
    edges = (np.arange(1, 64, dtype=np.int64) * scale) ** 2
    return (np.searchsorted(edges, x * x + y * y, side="right") & 1) * 255


def _clouds(x: np.ndarray, y: np.ndarray, scale: int, salt: int) -> np.ndarray:
    """Smooth noise: a lattice of hashed values, interpolated linearly, two octaves."""
    total = np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=np.int64)
    for cell, weight in ((4 * scale, 2), (3 * scale // 2, 1)):
        column, row = x // cell, y // cell
        right, down = x % cell, y % cell
        upper = _hash(column, row, salt) * (cell - right) + _hash(column + 1, row, salt) * right
        lower = _hash(column, row + 1, salt) * (cell - right) + _hash(column + 1, row + 1, salt) * right
        total += weight * ((upper * (cell - down) + lower * down) // (cell * cell))
    return total // 3


def _weave(x: np.ndarray, y: np.ndarray, scale: int, salt: int) -> np.ndarray:
    """Over-and-under threads, as of coarse cloth."""
    across = (x // scale + y // scale) & 1
    thread = np.where(across == 1, x % scale, y % scale)
    return 255 * abs(2 * thread - scale) // scale


def _planks(x: np.ndarray, y: np.ndarray, scale: int, salt: int) -> np.ndarray:
    """Boards of slightly different tone with dark joints."""
    board = 3 * scale
    tone = _hash(y // board, 0 * y, salt) // 2 + _clouds(x // 6, y, scale, salt) // 3
    return np.where(y % board < scale // 4, 255, tone)


def fade(x: np.ndarray, y: np.ndarray, scale: int, salt: int) -> np.ndarray:
    """From one colour to the other, over `scale` whole pixels on each side of the middle."""
    return np.clip((x // SUBPIXELS + scale) * 255 // (2 * scale), 0, 255)


OBJECT_TEXTURES: tuple[Texture, ...] = (
    lambda x, y, scale, salt: (x // scale & 1) * 255 + 0 * y,  # stripes
    lambda x, y, scale, salt: ((x // scale + y // scale) & 1) * 255,  # checks
    _dots,
    lambda x, y, scale, salt: ((x % (2 * scale) < scale // 2) | (y % (2 * scale) < scale // 2)) * 255,  # a grid
    lambda x, y, scale, salt: ((y + abs(x % (4 * scale) - 2 * scale)) // scale & 1) * 255,  # zigzag
    _bricks,
    _target,
    lambda x, y, scale, salt: (_hash(2 * x // scale, 2 * y // scale, salt) > 140) * 255,  # speckle
    _clouds,
)
GROUND_TEXTURES: tuple[Texture, ...] = (_clouds, _weave, _planks)


def _pairs(text: str) -> list[tuple[Colour, ...]]:
    """Base and accent, each written as RGB in hex."""
    return [tuple(tuple(bytes.fromhex(colour)) for colour in pair.split(":")) for pair in text.split()]


# Far enough apart that a pattern shows and that two looks of a scene are told apart.
OBJECT_COLOURS = _pairs(
    "ce3e3a:fad0be ee8430:703414 f5c848:9e6210 74b048:26542c 208870:bcead2 4292ce:103668 424ca2:c6ccf6 "
    "985cb2:481e62 e276a4:761e4e f2ecde:605852 383c46:c4c6cc 8a5a38:e6c498 70ccdc:12586c c0cc54:586416"
)
# Muted, so that the ground stays ground.
GROUND_COLOURS = _pairs(
    "d4cab6:b8ac94 b2c0ac:94a68e b4beca:96a4b6 ccbcbc:b4a0a2 a09484:867a6a 7a8288:626a72 8e9880:748068"
)


@dataclass(frozen=True)
class Surface:
    """A pattern in two colours: how coarse (1/64 pixel), which noise field, how it is turned (times 15 degrees)."""

    texture: Texture
    scale: int
    salt: int
    colours: tuple[Colour, ...]
    turn: int

    def paint(self, right: np.ndarray, down: np.ndarray) -> np.ndarray:
        """int64 ``[height, width, 3]`` at pixel offsets from the pattern's origin."""
        x, y = rotate(right, down, self.turn)
        accent = self.texture(x * SUBPIXELS // UNIT, y * SUBPIXELS // UNIT, self.scale, self.salt)
        low, high = np.array(self.colours, dtype=np.int64)
        return low + (high - low) * accent[..., None] // 255
