"""``synthetic:`` scenes: a seeded generator of textured, partly occluding objects with twins.

>>> from bindkit.scenes import open_scenes
>>> scenes = open_scenes("synthetic:n=3,seed=5")
>>> scenes.uri
'synthetic:n=3,seed=5,size=112x144,objects=3-8,twins=0.5,hidden=0-45,surface=textured,outlines=compact'
>>> scenes[0].size
(112, 144)

Scene k of a seed does not depend on how many scenes there are. Whole numbers only, so every machine draws the same:

1. Draw the *looks*: a shape, a texture, colours, a size and an angle. No two looks of a scene share a shape, so two
   objects have one class exactly when they look the same. Further objects are either new looks or copies (*twins*):
   the same pixels at another place, until occlusion, shadow and grain.
2. Place the objects from front to back; each must stay visible, else it is left out before anything is painted, so
   no sliver without a label remains.
3. Paint the ground, then the objects from back to front, each with a soft shadow; then grain over all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from bindkit import __version__
from bindkit.errors import InvalidParameterError
from bindkit.scenes import looks
from bindkit.scenes.looks import OUTLINES, RADIUS, SHAPES, SUBPIXELS, TURNS, UNIT, Draws, Surface, rotate
from bindkit.scenes.scene import Scene, SceneSequence, SceneSet

TRAINING_SEED = 10**12
"""Seeds from here on are for training backbones on; smaller ones for measuring. No scene has both."""

COVERAGE = 62
"""Area of all objects together before occlusion, in percent of the scene."""
PLACEMENTS = 24
"""Places tried for an object before the best of them is taken."""
LEAST_SHARE = 30
"""An object of which less stays visible (percent) is left out of the scene."""

SURFACES = {
    "textured": "every look has a pattern of two colours",
    "graded": "every look fades from one colour to another, from one end of the object to the other",
    "flat": "every look has one colour",
    "camouflage": "objects wear the ground's own pattern and colours; shading, shadow and broken lines show them",
}
"""What objects can look like."""


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
    """A word, a share, a whole number or two. Raises InvalidParameterError that lists all options."""
    if option in _WORDS and text in _WORDS[option]:
        return text
    # At most four decimals: draws take no finer chances, and a URI has one spelling for one set.
    if option == "twins" and re.fullmatch(r"[01]|[01]?\.[0-9]{1,4}|[01]\.", text) and float(text) <= 1:
        return float(text)
    pattern, low, high = _NUMBERS.get(option, ("(?!)", 0, 0))
    if match := re.fullmatch(pattern, text):
        numbers = tuple(int(found or match[1]) for found in match.groups())
        if low <= min(numbers) and max(numbers) <= high and (option == "size" or list(numbers) == sorted(numbers)):
            return numbers if len(numbers) > 1 else numbers[0]
    raise InvalidParameterError(f"synthetic scenes: {option}={text} is not understood; the options are {_KNOWN}")


@dataclass(frozen=True)
class SyntheticOptions:
    """What a synthetic scene set is made of, each field as `OPTIONS` says; read from a URI and spelled out in one."""

    n: int = 400
    seed: int = 0
    size: tuple[int, int] = (112, 144)
    objects: tuple[int, int] = (3, 8)
    """Now and then an object finds no visible place and one is missing."""
    twins: float = 0.5
    """Above 0, at least one pair is drawn in every scene of three or more objects."""
    hidden: tuple[int, int] = (0, 45)
    """Of the places tried, the first in this range or the nearest to it is taken."""
    surface: str = "textured"
    outlines: str = "compact"

    @classmethod
    def parse(cls, text: str) -> SyntheticOptions:
        """Read ``"n=400,seed=0"``; options left out keep their defaults. Raises InvalidParameterError."""
        given: dict[str, Any] = {}
        for item in filter(None, (part.strip() for part in text.split(","))):
            option, equals, value = (part.strip() for part in item.partition("="))
            if option not in OPTIONS or not equals or option in given:
                fault = "is given twice" if option in given else "is not an option"
                raise InvalidParameterError(f"synthetic scenes: {item!r} {fault}; write NAME=VALUE with {_KNOWN}")
            given[option] = _read(option, value)
        options = cls(**given)
        n_shapes, (fewest, most) = len(OUTLINES[options.outlines]), options.objects
        if options.twins == 0 and most > n_shapes:
            raise InvalidParameterError(
                f"synthetic scenes: without twins a scene takes at most {n_shapes} objects with "
                f"outlines={options.outlines} (each of another shape), got objects={fewest}-{most}; allow "
                "twins, take outlines=any or ask for fewer objects"
            )
        return options

    @property
    def uri(self) -> str:
        """The URI with every option spelled out."""
        (height, width), (fewest, most), (least_hidden, most_hidden) = self.size, self.objects, self.hidden
        return (
            f"synthetic:n={self.n},seed={self.seed},size={height}x{width},objects={fewest}-{most},"
            f"twins={self.twins:g},hidden={least_hidden}-{most_hidden},surface={self.surface},outlines={self.outlines}"
        )


@dataclass(frozen=True)
class Look:
    """Appearance of one or more objects: class id, outline (bool ``[side, side]``) and colours ``[side, side, 3]``."""

    class_id: int
    outline: np.ndarray
    colours: np.ndarray


@dataclass(frozen=True)
class Placed:
    """A look at a place: which pixels of the scene and of the look's square meet."""

    look: Look
    frame: tuple[slice, slice]
    part: tuple[slice, slice]

    @property
    def outline(self) -> np.ndarray:
        """The outline within the scene: bool array over ``frame``."""
        return self.look.outline[self.part]

    def moved(self, down: int, right: int, size: tuple[int, int]) -> Placed:
        """The same look so many pixels further, in a scene of a size."""
        row, col = (place.start - part.start for place, part in zip(self.frame, self.part, strict=True))
        middle = self.look.outline.shape[0] // 2
        return _place(self.look, row + middle + down, col + middle + right, size)


def _draw_look(
    draws: Draws, class_id: int, colour: int, radius: int, unit: int, surface: str, ground: Surface | None
) -> Look:
    """Draw a look of a nominal `radius` in pixels; `unit` is a texture's coarseness in 1/64 pixel."""
    shape = SHAPES[class_id - 1]
    outline = shape.draw_outline(draws)
    outer = max(2, radius * shape.extent * draws.between(88, 116) // 10_000)
    steps = np.arange(-outer - 1, outer + 2, dtype=np.int64)
    turn = draws.below(TURNS)
    x, y = rotate(steps[None, :], steps[:, None], turn)
    texture = draws.choose(looks.OBJECT_TEXTURES)
    scale, salt = unit * draws.between(80, 125) // 100, draws.below(1 << 62)
    base, accent = looks.OBJECT_COLOURS[colour]
    if draws.chance(0.35):
        base, accent = accent, base
    worn = Surface(texture, scale, salt, (base, base if surface == "flat" else accent), turn)
    if ground is not None:
        worn = replace(ground, turn=turn)
    elif surface == "graded":
        worn = replace(worn, texture=looks.fade, scale=outer)
    light = -(steps[None, :] + 2 * steps[:, None]) * 22 // (3 * outer)
    colours = worn.paint(steps[None, :], steps[:, None]) + light[..., None]
    return Look(class_id, outline(x * RADIUS // (outer * UNIT), y * RADIUS // (outer * UNIT)), colours)


def _draw_looks(draws: Draws, options: SyntheticOptions, ground: Surface | None = None) -> list[Look]:
    """One look per object, copies sharing one Look, in a drawn order; camouflage wears the ground."""
    shapes = OUTLINES[options.outlines]
    n_objects = draws.between(*options.objects)
    kinds = [0]
    for _ in range(1, n_objects):
        copies = (draws.chance(options.twins) and max(kinds) > 0) or max(kinds) + 1 == len(shapes)
        kinds.append(draws.below(max(kinds) + 1) if copies else max(kinds) + 1)
    if options.twins > 0 and n_objects > 2 and len(set(kinds)) == n_objects:
        kinds[-1] = draws.below(n_objects - 1)
    area = math.prod(options.size) * COVERAGE // (100 * n_objects)
    radius = min(math.isqrt(area * 100 // 314), min(options.size) * 3 // 10)
    unit = max(2 * SUBPIXELS, SUBPIXELS * min(options.size) // 26)
    class_ids = draws.shuffled(shapes)
    colours = draws.shuffled(range(len(looks.OBJECT_COLOURS)))
    drawn = [
        _draw_look(draws, class_ids[kind], colours[kind], radius, unit, options.surface, ground)
        for kind in range(max(kinds) + 1)
    ]
    return draws.shuffled([drawn[kind] for kind in kinds])


def _place(look: Look, row: int, col: int, size: tuple[int, int]) -> Placed:
    """Put a look's middle at ``(row, col)`` and cut off what lies outside the scene."""
    side = look.outline.shape[0]
    spans = []
    for middle, length in zip((row, col), size, strict=True):
        start = middle - side // 2
        low, high = max(0, start), min(length, start + side)
        spans.append((slice(low, high), slice(low - start, high - start)))
    return Placed(look, (spans[0][0], spans[1][0]), (spans[0][1], spans[1][1]))


def _place_all(draws: Draws, drawn: list[Look], options: SyntheticOptions) -> list[Placed]:
    """Place looks from front to back; leave out those of which too little would be seen."""
    taken = np.zeros(options.size, dtype=bool)
    placed: list[Placed] = []
    for look in drawn:
        whole = int(look.outline.sum())
        margin = min(look.outline.shape[0] // 3, min(options.size) // 2 - 1)
        best, best_seen, best_miss = None, -1, whole * 100 + 1
        for _ in range(PLACEMENTS):
            row, col = (draws.between(margin, length - 1 - margin) for length in options.size)
            candidate = _place(look, row, col, options.size)
            seen = int((candidate.outline & ~taken[candidate.frame]).sum())
            hidden = (whole - seen) * 100
            miss = max(whole * options.hidden[0] - hidden, hidden - whole * options.hidden[1], 0)
            if miss < best_miss:
                best, best_seen, best_miss = candidate, seen, miss
            if miss == 0:
                break
        if best is not None and best_seen > 0 and best_seen * 100 >= whole * LEAST_SHARE:
            taken[best.frame] |= best.outline
            placed.append(best)
    return placed


def _draw_ground(draws: Draws, options: SyntheticOptions) -> Surface:
    turn = draws.choose((0, 0, 3, 6, 21))
    scale = max(2 * SUBPIXELS, SUBPIXELS * min(options.size) * draws.between(90, 130) // 2200)
    texture = draws.choose(looks.GROUND_TEXTURES)
    salt = draws.below(1 << 62)
    return Surface(texture, scale, salt, draws.choose(looks.GROUND_COLOURS), turn)


def compose(scene_id: str, options: SyntheticOptions, draws: Draws) -> Scene:
    """Draw one scene: instances numbered 1..k from back to front, classes as in `SHAPES`, the ground unlabelled."""
    return _paint(scene_id, *_draw(draws, options), options, draws)


def _draw(draws: Draws, options: SyntheticOptions) -> tuple[Surface, list[Placed]]:
    """The ground, and the objects from front to back."""
    ground = _draw_ground(draws, options) if options.surface == "camouflage" else None
    placed = _place_all(draws, _draw_looks(draws, options, ground), options)
    return ground or _draw_ground(draws, options), placed


def _paint(scene_id: str, ground: Surface, placed: list[Placed], options: SyntheticOptions, draws: Draws) -> Scene:
    height, width = options.size
    picture = ground.paint(np.arange(width)[None, :], np.arange(height)[:, None])
    instances, classes = np.zeros((2, height, width), dtype=np.int32)
    reach = max(1, min(height, width) // 40)
    for instance, item in enumerate(reversed(placed), start=1):
        rows, cols = item.frame
        # A shadow to the lower right, within `reach` pixels; half as much at the rim.
        for step in (reach, -(-reach // 2)):
            behind = picture[rows.start + step : rows.stop + step, cols.start + step : cols.stop + step]
            shade = item.outline[: behind.shape[0], : behind.shape[1]]
            behind[shade] = behind[shade] * 13 // 16
        picture[item.frame][item.outline] = item.look.colours[item.part][item.outline]
        instances[item.frame][item.outline] = instance
        classes[item.frame][item.outline] = item.look.class_id
    grain = draws.octets(picture.size).reshape(picture.shape).astype(np.int64)
    image = np.clip(picture + grain // 21 - 6, 0, 255).astype(np.uint8)
    return Scene(scene_id, image, instances, classes)


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
        return compose(self.ids[position], self.options, Draws(self.options.seed, position))

    def size_of(self, position: int) -> tuple[int, int]:
        """``(height, width)`` in pixels."""
        self._position(position)
        return self.options.size

    def clip(
        self, position: int, reach: int
    ) -> tuple[Scene, UInt8[np.ndarray, "row col 3"], Int[np.ndarray, "instance 2"]]:
        """A scene, and what a still camera sees a moment later, with grain of its own.

        Also each instance's motion (down, right) in pixels, up to `reach` each; row 0 is the ground's, which is still.
        """
        position = self._position(position)
        draws, options = Draws(self.options.seed, position), self.options
        ground, placed = _draw(draws, options)
        scene = _paint(self.ids[position], ground, placed, options, draws)
        motions = [(draws.between(-reach, reach), draws.between(-reach, reach)) for _ in placed]
        moved = [item.moved(down, right, options.size) for item, (down, right) in zip(placed, motions, strict=True)]
        later = _paint(scene.id, ground, moved, options, draws)
        return scene, later.image, np.array([(0, 0), *reversed(motions)])


def require_unseen(scenes: SceneSet) -> None:
    """Refuse to measure on synthetic scenes that backbones may have been trained on: seeds from `TRAINING_SEED` on."""
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
