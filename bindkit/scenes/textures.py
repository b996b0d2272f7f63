"""Surface patterns and colours of synthetic scenes, in whole numbers only.

A texture maps coordinates ``(x, y)`` on the surface, in 1/64 pixel, and a scale in the same unit to a mix of
two colours, 0 (base) to 255 (accent). `salt` tells one noise field from another.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SUBPIXELS = 64

Colour = tuple[int, int, int]
Texture = Callable[[np.ndarray, np.ndarray, int, int], np.ndarray]


def _hash(x: np.ndarray, y: np.ndarray, salt: int) -> np.ndarray:
    """Scramble pairs of whole numbers to 0..255 (multiply and shift, as in splitmix64)."""
    mixed = x.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + y.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= np.uint64(salt)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed >> np.uint64(56)).astype(np.int64)


def stripes(x: np.ndarray, y: np.ndarray, scale: int, salt: int) -> np.ndarray:
    """Straight bands of two colours."""
    return (x // scale & 1) * 255 + 0 * y


def checks(x: np.ndarray, y: np.ndarray, scale: int, salt: int) -> np.ndarray:
    """A chequerboard."""
    return ((x // scale + y // scale) & 1) * 255


def dots(x: np.ndarray, y: np.ndarray, scale: int, salt: int) -> np.ndarray:
    """Round dots in staggered rows."""
    period = 2 * scale
    row = y // period
    right, down = (x + (row & 1) * scale) % period - scale, y % period - scale
    return (right * right + down * down <= (5 * scale // 8) ** 2) * 255


def grid(x: np.ndarray, y: np.ndarray, scale: int, salt: int) -> np.ndarray:
    """Thin crossing lines."""
    period = 2 * scale
    return ((x % period < period // 4) | (y % period < period // 4)) * 255


def zigzag(x: np.ndarray, y: np.ndarray, scale: int, salt: int) -> np.ndarray:
    """Chevron bands."""
    period = 4 * scale
    return ((y + abs(x % period - period // 2)) // scale & 1) * 255


def bricks(x: np.ndarray, y: np.ndarray, scale: int, salt: int) -> np.ndarray:
    """Courses of bricks with mortar."""
    course = 3 * scale // 2
    mortar = scale // 3
    shifted = x + (y // course & 1) * course
    return ((y % course < mortar) | (shifted % (2 * course) < mortar)) * 255


def target(x: np.ndarray, y: np.ndarray, scale: int, salt: int) -> np.ndarray:
    """Concentric bands around the object's middle."""
    edges = (np.arange(1, 64, dtype=np.int64) * scale) ** 2
    return (np.searchsorted(edges, x * x + y * y, side="right") & 1) * 255


def speckle(x: np.ndarray, y: np.ndarray, scale: int, salt: int) -> np.ndarray:
    """Square grains, some light, some dark."""
    return (_hash(2 * x // scale, 2 * y // scale, salt) > 140) * 255


def clouds(x: np.ndarray, y: np.ndarray, scale: int, salt: int) -> np.ndarray:
    """Smooth noise: a lattice of hashed values, interpolated linearly, two octaves."""
    total = np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=np.int64)
    for cell, weight in ((4 * scale, 2), (3 * scale // 2, 1)):
        column, row = x // cell, y // cell
        right, down = x % cell, y % cell
        upper = _hash(column, row, salt) * (cell - right) + _hash(column + 1, row, salt) * right
        lower = _hash(column, row + 1, salt) * (cell - right) + _hash(column + 1, row + 1, salt) * right
        total += weight * ((upper * (cell - down) + lower * down) // (cell * cell))
    return total // 3


def weave(x: np.ndarray, y: np.ndarray, scale: int, salt: int) -> np.ndarray:
    """Over-and-under threads, as of coarse cloth."""
    across = (x // scale + y // scale) & 1
    thread = np.where(across == 1, x % scale, y % scale)
    return 255 * abs(2 * thread - scale) // scale


def planks(x: np.ndarray, y: np.ndarray, scale: int, salt: int) -> np.ndarray:
    """Boards of slightly different tone with dark joints."""
    board = 3 * scale
    tone = _hash(y // board, 0 * y, salt) // 2 + clouds(x // 6, y, scale, salt) // 3
    return np.where(y % board < scale // 4, 255, tone)


OBJECT_TEXTURES: tuple[Texture, ...] = (stripes, checks, dots, grid, zigzag, bricks, target, speckle, clouds)
GROUND_TEXTURES: tuple[Texture, ...] = (clouds, weave, planks)

# Base and accent, far enough apart that a pattern shows and that two looks of a scene are told apart.
OBJECT_COLOURS: tuple[tuple[Colour, Colour], ...] = (
    ((206, 62, 58), (250, 208, 190)),
    ((238, 132, 48), (112, 52, 20)),
    ((245, 200, 72), (158, 98, 16)),
    ((116, 176, 72), (38, 84, 44)),
    ((32, 136, 112), (188, 234, 210)),
    ((66, 146, 206), (16, 54, 104)),
    ((66, 76, 162), (198, 204, 246)),
    ((152, 92, 178), (72, 30, 98)),
    ((226, 118, 164), (118, 30, 78)),
    ((242, 236, 222), (96, 88, 82)),
    ((56, 60, 70), (196, 198, 204)),
    ((138, 90, 56), (230, 196, 152)),
    ((112, 204, 220), (18, 88, 108)),
    ((192, 204, 84), (88, 100, 22)),
)
# Muted, so that the ground stays ground.
GROUND_COLOURS: tuple[tuple[Colour, Colour], ...] = (
    ((212, 202, 182), (184, 172, 148)),
    ((178, 192, 172), (148, 166, 142)),
    ((180, 190, 202), (150, 164, 182)),
    ((204, 188, 188), (180, 160, 162)),
    ((160, 148, 132), (134, 122, 106)),
    ((122, 130, 136), (98, 106, 114)),
    ((142, 152, 128), (116, 128, 104)),
)


def mix(base: Colour, accent: Colour, share: np.ndarray) -> np.ndarray:
    """Colours between two: int64 array of shape (height, width, 3) from shares 0..255 of the accent."""
    low, high = np.array(base, dtype=np.int64), np.array(accent, dtype=np.int64)
    return low + (high - low) * share[..., None] // 255
