"""``synthetic:`` scenes: a seeded generator of textured, partly occluding objects with twins.

>>> from bindkit.scenes import open_scenes
>>> scenes = open_scenes("synthetic:n=3,seed=5")
>>> scenes.uri
'synthetic:n=3,seed=5,size=112x144,objects=3-8,twins=0.5,hidden=0-45,surface=textured,outlines=compact'
>>> scenes[0].size
(112, 144)

Scene k of a seed is the same on every machine and does not depend on how many scenes there are.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bindkit import __version__
from bindkit.errors import InvalidParameterError
from bindkit.scenes.composition import SURFACES, Recipe, compose
from bindkit.scenes.looks import OUTLINES, SHAPES, Draws
from bindkit.scenes.scene import Scene, SceneSequence, SceneSet

TRAINING_SEED = 10**12
"""Seeds from here on are for training backbones on; smaller ones for measuring. No scene has both."""

OPTIONS = {
    "n": "scenes in the set, 1..1000000, default 400",
    "seed": "a whole number from 0 on, default 0",
    "size": "HEIGHTxWIDTH in pixels, 32..1024 each, default 112x144",
    "objects": "objects a scene, FEWEST-MOST or one number, 1..12, default 3-8",
    "twins": "chance that a further object copies one already there, 0..1, default 0.5",
    "hidden": "LEAST-MOST percent of an object that others in front of it hide, 0..70, default 0-45 (0-0: apart)",
    "surface": f"{' | '.join(SURFACES)}, default textured",
    "outlines": f"{' | '.join(OUTLINES)}, default compact",
}
_KNOWN = "; ".join(f"{name}: {meaning}" for name, meaning in OPTIONS.items())
_WORDS: dict[str, Collection[str]] = {"surface": SURFACES, "outlines": OUTLINES}
_WHOLE = "([0-9]{1,19})"
# How they are written, the lowest and the highest that they may be.
_NUMBERS = {
    "n": (_WHOLE, 1, 1_000_000),
    "seed": (_WHOLE, 0, 10**18),
    "size": (f"{_WHOLE}x{_WHOLE}", 32, 1024),
    "objects": (f"{_WHOLE}(?:-{_WHOLE})?", 1, 12),
    "hidden": (f"{_WHOLE}(?:-{_WHOLE})?", 0, 70),
}


def _read(option: str, text: str) -> Any:
    """A word, a share or a tuple of whole numbers. Raises InvalidParameterError that lists all options."""
    if option in _WORDS and text in _WORDS[option]:
        return text
    # At most four decimals: draws take no finer chances, and a URI has one spelling for one set.
    if option == "twins" and re.fullmatch(r"[01]|[01]?\.[0-9]{1,4}|[01]\.", text) and float(text) <= 1:
        return float(text)
    pattern, low, high = _NUMBERS.get(option, ("(?!)", 0, 0))
    if match := re.fullmatch(pattern, text):
        numbers = tuple(int(found or match[1]) for found in match.groups())
        if low <= min(numbers) and max(numbers) <= high and (option == "size" or list(numbers) == sorted(numbers)):
            return numbers
    raise InvalidParameterError(f"synthetic scenes: {option}={text} is not understood; the options are {_KNOWN}")


@dataclass(frozen=True)
class SyntheticOptions:
    """Options of a synthetic scene set; `parse` reads them from a URI, `uri` spells them all out."""

    n: int = 400
    seed: int = 0
    recipe: Recipe = field(default_factory=Recipe)

    @classmethod
    def parse(cls, text: str) -> SyntheticOptions:
        """Read ``"n=400,seed=0"``; options left out keep their defaults.

        Raises InvalidParameterError for an option that is unknown, malformed, out of range or given twice.
        """
        given: dict[str, Any] = {}
        for item in filter(None, (part.strip() for part in text.split(","))):
            option, equals, value = (part.strip() for part in item.partition("="))
            if option not in OPTIONS or not equals or option in given:
                fault = "is given twice" if option in given else "is not an option"
                raise InvalidParameterError(f"synthetic scenes: {item!r} {fault}; write NAME=VALUE with {_KNOWN}")
            given[option] = _read(option, value)
        recipe = Recipe(
            *given.get("size", (Recipe.height, Recipe.width)),
            *given.get("objects", (Recipe.fewest, Recipe.most)),
            **{name: given[name] for name in ("twins", "hidden", "surface", "outlines") if name in given},
        )
        n_shapes = len(OUTLINES[recipe.outlines])
        if recipe.twins == 0 and recipe.most > n_shapes:
            raise InvalidParameterError(
                f"synthetic scenes: without twins a scene takes at most {n_shapes} objects with "
                f"outlines={recipe.outlines} (each of another shape), got objects={recipe.fewest}-{recipe.most}; allow "
                "twins, take outlines=any or ask for fewer objects"
            )
        (n,), (seed,) = given.get("n", (cls.n,)), given.get("seed", (cls.seed,))
        return cls(n, seed, recipe)

    @property
    def uri(self) -> str:
        """The URI with every option spelled out."""
        recipe = self.recipe
        return (
            f"synthetic:n={self.n},seed={self.seed},size={recipe.height}x{recipe.width},"
            f"objects={recipe.fewest}-{recipe.most},twins={recipe.twins:g},"
            f"hidden={recipe.hidden[0]}-{recipe.hidden[1]},surface={recipe.surface},outlines={recipe.outlines}"
        )


class SyntheticScenes(SceneSequence):
    """A set of generated scenes; nothing is stored, each scene is drawn when asked for (about 5 ms)."""

    def __init__(self, options: SyntheticOptions) -> None:
        self.options = options
        self.uri = options.uri
        self.ids = tuple(f"synthetic-{options.seed}-{position:06d}" for position in range(options.n))
        self.made_by = f"bindkit {__version__}"
        self.class_names = {number: shape.name for number, shape in enumerate(SHAPES, start=1)}

    def __getitem__(self, position: int) -> Scene:
        position = self._position(position)
        return compose(self.ids[position], self.options.recipe, Draws(self.options.seed, position))

    def size_of(self, position: int) -> tuple[int, int]:
        """``(height, width)`` in pixels."""
        self._position(position)
        return self.options.recipe.height, self.options.recipe.width


def require_unseen(scenes: SceneSet) -> None:
    """Refuse to measure on synthetic scenes that backbones may have been trained on; other scenes pass.

    Raises InvalidParameterError for a seed from `TRAINING_SEED` on.
    """
    # By the URI, which a subset of a set carries on.
    found = re.match(r"synthetic:.*?\bseed=([0-9]+)", scenes.uri)
    if found and int(found[1]) >= TRAINING_SEED:
        raise InvalidParameterError(
            f"seed={found[1]} is kept for training, so that no backbone is measured on scenes that it was "
            f"trained on; measure with a seed below {TRAINING_SEED}"
        )


def open_synthetic(options: str, index_dir: Path | None = None) -> SyntheticScenes:
    """Open ``synthetic:OPTIONS``; `index_dir` is not needed here."""
    return SyntheticScenes(SyntheticOptions.parse(options))
