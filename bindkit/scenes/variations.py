"""Synthetic scenes varied one option at a time, all else as in a base set.

>>> sets = scene_variations("synthetic:n=60,seed=0,objects=4", {"twins": [0, 0.5], "surface": ["flat"]})
>>> [(entry.option, entry.value, entry.is_base) for entry in sets]
[('twins', '0', False), ('twins', '0.5', True), ('surface', 'flat', False)]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bindkit.arguments import require_kind
from bindkit.errors import InvalidParameterError
from bindkit.scenes.opening import open_scenes
from bindkit.scenes.synthetic import SyntheticOptions, SyntheticScenes


@dataclass(frozen=True)
class Variation:
    """A scene set that differs from the base in one option; its `uri` spells every option out."""

    option: str
    value: str
    uri: str
    is_base: bool
    """Whether the value is the base's own."""


def read_variations(text: str) -> dict[str, list[str]]:
    """Options and their values from one line: ``"twins=0 0.5 0.9; surface=flat camouflage"``.

    Raises InvalidParameterError where an option has no value, or is given twice.
    """
    options: dict[str, list[str]] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        option, equals, values = (piece.strip() for piece in part.partition("="))
        if not option or not equals or not values or option in options:
            fault = "is given twice" if option in options else "is not understood"
            raise InvalidParameterError(
                f"{part!r} {fault}; write OPTION=VALUE VALUE ... with semicolons between options, for example "
                '"twins=0 0.5 0.9; surface=flat camouflage"'
            )
        options[option] = values.split()
    return options


def scene_variations(base: str, options: Mapping[str, Sequence[Any]] | str) -> list[Variation]:
    """Every option of a ``synthetic:`` set varied by itself, all else as in the base.

    `options` gives each its values, from easy to hard; or is one line as `read_variations` takes it. A value that is
    given twice counts once. Raises InvalidParameterError for scenes that are not synthetic, no option, an option
    without values, and whatever the scenes themselves refuse; SceneSetError for a URI that names no scene set.
    """
    scenes = open_scenes(base)
    if not isinstance(scenes, SyntheticScenes):
        raise InvalidParameterError(f'only synthetic scenes are varied, got {base!r}; write "synthetic:n=...,seed=..."')
    require_kind(options, (str, Mapping), "options are a mapping such as {'twins': [0, 0.5]}")
    values_of = read_variations(options) if isinstance(options, str) else options
    empty = [option for option, values in values_of.items() if isinstance(values, str) or not len(values)]
    if empty or not values_of:
        raise InvalidParameterError(
            f"give every option a list of values, for example {{'twins': [0, 0.5, 0.9]}}, got {dict(values_of)!r}"
        )
    told = dict(part.split("=", 1) for part in scenes.uri.removeprefix("synthetic:").split(","))
    found: list[Variation] = []
    for option, values in values_of.items():
        for value in dict.fromkeys(str(value).strip() for value in values):
            text = ",".join(f"{name}={given}" for name, given in {**told, option: value}.items())
            uri = SyntheticOptions.parse(text).uri
            found.append(Variation(option, value, uri, uri == scenes.uri))
    return found
