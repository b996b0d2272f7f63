"""Captions written from a scene: what is there and where, and the few words that they are made of.

>>> caption([("star", 0.1, 0.2), ("ring", 0.9, 0.5)])
'a star at the upper left, a ring at the lower middle'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

_DOWN = ("upper", "central", "lower")
_ACROSS = ("left", "middle", "right")
_SILENT = frozenset({"a", "an", "at", "the"})
PADDING, START, END = 0, 1, 3  # transformers reads an end token of 2 as "take the largest token instead"

Named = Sequence[tuple[str, float, float]]
"""Objects of a scene: class name, and the middle of what is seen of it (down, across) as shares 0..1 of the scene."""


def caption(objects: Named) -> str:
    """Say what is where, object by object in the order given; ``"nothing"`` for an empty scene."""
    phrases = [f"a {name} at the {_DOWN[_third(down)]} {_ACROSS[_third(across)]}" for name, down, across in objects]
    return ", ".join(phrases) or "nothing"


def _third(share: float) -> int:
    return min(2, max(0, int(3 * share)))


@dataclass(frozen=True)
class Vocabulary:
    """Words that captions of a scene set can hold, one token each; articles and prepositions are left out.

    >>> words = Vocabulary.of(["star", "ring"])
    >>> words.encode(["a star at the upper left"], length=6)
    tensor([[1, 4, 6, 9, 3, 0]])
    """

    words: tuple[str, ...]

    @classmethod
    def of(cls, class_names: Sequence[str]) -> Vocabulary:
        """Padding, start, nothing, end; class names in the order of their ids, then the words for places."""
        return cls(("<padding>", "<start>", "nothing", "<end>", *class_names, *_DOWN, *_ACROSS))

    def encode(self, captions: Sequence[str], length: int) -> Int[Tensor, "caption length"]:
        """Tokens of captions, filled up with padding; what does not fit is cut off before the end token."""
        number = {word: token for token, word in enumerate(self.words)}
        tokens = torch.full((len(captions), length), PADDING)
        for row, text in enumerate(captions):
            spoken = [number[word] for word in text.replace(",", "").split() if word not in _SILENT]
            sequence = [START, *spoken[: length - 2], END]
            tokens[row, : len(sequence)] = torch.tensor(sequence)
        return tokens
