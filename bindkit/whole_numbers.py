"""Whole numbers that a caller gives: a layer, a seed.

>>> whole_number(3.0, "layer"), whole_number(2.7, "layer")
Traceback (most recent call last):
    ...
bindkit.errors.InvalidParameterError: layer is a whole number such as 3, got 2.7
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from bindkit.errors import InvalidParameterError


def whole_number(given: Any, name: str) -> int:
    """Read what a caller gave as a whole number; 3.0, as a table's column gives it, is one, and 2.7 is not cut short.

    Raises
    ------
    InvalidParameterError
        For anything else, a text of digits included.
    """
    try:
        is_whole = isinstance(given, (float, np.floating)) and float(given).is_integer()
        return int(given) if is_whole else operator.index(given)
    except TypeError:
        raise InvalidParameterError(f"{name} is a whole number such as 3, got {given!r}") from None
