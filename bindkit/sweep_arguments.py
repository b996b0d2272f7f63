"""What a sweep is asked for, read before it starts: one thing or several, and caches whose rows can be told apart.

>>> read_seeds(range(3)), read_layers_asked(4), each_of("linear", "probes", str)
([0, 1, 2], [4], ['linear'])
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from bindkit.cache import ActivationCache
from bindkit.errors import InvalidParameterError
from bindkit.files import slug
from bindkit.whole_numbers import whole_number

Thing = TypeVar("Thing")


def each_of(given: Any, what: str, kind: type[Thing]) -> list[Thing]:
    """A single thing as a list of one. Raises InvalidParameterError for what is neither a thing nor several."""
    things: list[Any] = [given] if isinstance(given, (kind, str)) or not isinstance(given, Iterable) else list(given)
    for thing in things:
        if not isinstance(thing, kind):
            of_caches = "what bk.cache_activations or bk.ActivationCache.open gives"
            expected = of_caches if kind is ActivationCache else "names"
            raise InvalidParameterError(f"{what} are {expected}, one or several in a list; got {thing!r:.80}")
    return things


def read_seeds(given: Any) -> list[int]:
    """Each once. Raises InvalidParameterError for a number, which may mean one seed or so many."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InvalidParameterError(f"seeds is a sequence such as [0, 1, 2], or range(3); got {given!r}")
    return list(dict.fromkeys(whole_number(seed, "each of seeds") for seed in given))


def read_layers_asked(given: Any) -> list[int] | None:
    """Each once, None for all. Raises InvalidParameterError."""
    if isinstance(given, str):
        if given == "all":
            return None
        raise InvalidParameterError(f'layers is "all", a number, or a sequence such as [0, 3, 5]; got {given!r}')
    several = given if isinstance(given, Iterable) else [given]
    return list(dict.fromkeys(whole_number(layer, "each of layers") for layer in several))


def require_apart(caches: Sequence[ActivationCache], on_disk: bool) -> None:
    """Refuse two caches of one backbone, and on disk of names that are spelled alike there.

    Nothing would tell their rows apart, or one's probes would overwrite the other's.

    Raises
    ------
    InvalidParameterError
    """
    named: dict[str, ActivationCache] = {}
    for cache in caches:
        name = cache.backbone["name"]
        other = named.setdefault(slug(name) if on_disk else name, cache)
        if other is not cache:
            why = "their probes would be kept in one directory" if on_disk else "nothing would tell their rows apart"
            raise InvalidParameterError(
                f"the caches {other.path} and {cache.path} are of the backbones {other.backbone['name']!r} and "
                f"{name!r}: {why}; sweep them one by one, each into its own root"
            )
