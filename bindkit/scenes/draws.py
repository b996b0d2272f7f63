"""Random draws that are the same on every machine and with every version of numpy.

numpy promises a stable stream for its bit generators only, not for the methods of ``Generator``, so whole numbers
are drawn here from PCG64's raw 64-bit words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


class Draws:
    """A seeded stream of whole numbers.

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
        """uint8 array of shape (n_bytes,), each 0..255."""
        words = np.asarray(self._bits.random_raw(-(-n_bytes // 8)), dtype="<u8")
        return words.view(np.uint8)[:n_bytes]
