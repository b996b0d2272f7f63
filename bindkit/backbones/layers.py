"""Layers as a user writes them: ``"all"``, ``"0,6,12"``, a number or a sequence of numbers.

>>> read_layers("0,6,12"), read_layers("all")
((0, 6, 12), 'all')
>>> resolve_layers("all", 3, "vit")
(0, 1, 2)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bindkit.errors import LayerError


def read_layers(layers: str | Sequence[int]) -> str | tuple[int, ...]:
    """``"all"``, or layers ascending, each once; whether a backbone has them shows once it is loaded.

    Raises
    ------
    LayerError
        For anything that is no such list.
    """
    if isinstance(layers, str) and layers == "all":
        return layers
    try:
        numbers = tuple(sorted({int(layer) for layer in (_split(layers) if isinstance(layers, str) else layers)}))
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or numbers[0] < 0:
        raise LayerError(f'layers are "all", a list such as "0,3,5" or whole numbers from 0 on, got {layers!r}')
    return numbers


def resolve_layers(layers: str | int | Sequence[int], n_layers: int, name: str) -> tuple[int, ...]:
    """Layers of a backbone called `name` that has `n_layers`, ascending, each once.

    Raises
    ------
    LayerError
        For anything that is no such list, for no layer at all, and for layers that the backbone does not have.
    """
    if isinstance(layers, str) and layers == "all":
        return tuple(range(n_layers))
    if isinstance(layers, str):
        layers = _split(layers)
    wanted: list[Any] = list(layers) if isinstance(layers, Sequence) else [layers]
    wrong = [layer for layer in wanted if not _is_layer(layer, n_layers)]
    if wrong or not wanted:
        raise LayerError(
            f"{name} has layers 0 to {n_layers - 1}, got {', '.join(map(repr, wrong)) or 'none'}; write "
            '"all", a list such as "0,6,12", or whole numbers'
        )
    return tuple(sorted({int(layer) for layer in wanted}))


def _split(text: str) -> list[Any]:
    """The numbers in a list with commas; what is no number stays text."""
    parts = text.split(",")
    return [int(part) if part.strip().isascii() and part.strip().isdigit() else part for part in parts]


def _is_layer(layer: Any, n_layers: int) -> bool:
    if isinstance(layer, bool | str):
        return False
    try:
        return int(layer) == layer and 0 <= layer < n_layers
    except (TypeError, ValueError):
        return False
