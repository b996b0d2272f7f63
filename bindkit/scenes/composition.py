"""How one synthetic scene is drawn: looks, places, paint. Whole numbers only, so every machine draws the same.

1. Draw the *looks*: a shape, a texture, colours, a size and an angle. No two looks of a scene share a shape, so two
   objects have one class exactly when they look the same. Further objects are either new looks or copies (*twins*):
   the same pixels at another place, until occlusion, shadow and grain.
2. Place the objects from front to back; each must stay visible, else it is left out before anything is painted, so
   no sliver without a label remains.
3. Paint the ground, then the objects from back to front, each with a soft shadow; then grain over all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from bindkit.scenes.draws import Draws
from bindkit.scenes.scene import Scene
from bindkit.scenes.shapes import OUTLINES, RADIUS, SHAPES, TURNS, UNIT, rotate
from bindkit.scenes.textures import (
    GROUND_COLOURS,
    GROUND_TEXTURES,
    OBJECT_COLOURS,
    OBJECT_TEXTURES,
    SUBPIXELS,
    Colour,
    Texture,
    mix,
)

COVERAGE = 62
"""Area of all objects together before occlusion, in percent of the scene."""
PLACEMENTS = 24
"""Places tried for an object before the best of them is taken."""
LEAST_SHARE = 30
"""An object of which less stays visible (percent) is left out of the scene."""


@dataclass(frozen=True)
class Recipe:
    """What a synthetic scene is made of.

    Parameters
    ----------
    height, width : int
        In pixels.
    fewest, most : int
        Objects in a scene, both ends included; now and then an object finds no visible place and one is missing.
    twins : float
        Chance, 0..1, that a further object is a copy of one already there. Above 0, at least one pair is drawn in
        every scene of three or more objects.
    """

    height: int = 112
    width: int = 144
    fewest: int = 3
    most: int = 8
    twins: float = 0.5
    hidden: tuple[int, int] = (0, 45)
    """Percent of an object that those in front of it hide: of the places tried, the first in this range or nearest."""
    surface: str = "textured"
    """One of `SURFACES`."""
    outlines: str = "compact"
    """One of `bindkit.scenes.shapes.OUTLINES`."""


SURFACES = {
    "textured": "every look has a pattern of two colours",
    "graded": "every look fades from one colour to another, from one end of the object to the other",
    "flat": "every look has one colour",
    "camouflage": "objects wear the ground's own pattern and colours; shading, shadow and broken lines show them",
}
"""What objects can look like."""


@dataclass(frozen=True)
class Surface:
    """A pattern in two colours: how coarse (1/64 pixel), which noise field, how it is turned (times 15 degrees)."""

    texture: Texture
    scale: int
    salt: int
    colours: tuple[Colour, Colour]
    turn: int

    def paint(self, right: np.ndarray, down: np.ndarray) -> np.ndarray:
        """int64 ``[height, width, 3]`` at pixel offsets from the pattern's origin."""
        x, y = rotate(right, down, self.turn)
        mixed = self.texture(x * SUBPIXELS // UNIT, y * SUBPIXELS // UNIT, self.scale, self.salt)
        return mix(*self.colours, mixed)


@dataclass(frozen=True)
class Fade:
    """A fade from one colour to another over `reach` pixels on each side of the middle, along a turned axis."""

    reach: int
    colours: tuple[Colour, Colour]
    turn: int

    def paint(self, right: np.ndarray, down: np.ndarray) -> np.ndarray:
        """int64 ``[height, width, 3]`` at pixel offsets from the object's middle."""
        x, _ = rotate(right, down, self.turn)
        return mix(*self.colours, np.clip((x // UNIT + self.reach) * 255 // (2 * self.reach), 0, 255))


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


Dress = Callable[[Surface, int], Surface | Fade]
"""From the surface drawn for a look, and the look's outer radius in pixels, to the surface that it wears."""


def own_dress(drawn: Surface, outer: int) -> Surface:
    """Wear what was drawn."""
    return drawn


def _dress(recipe: Recipe, ground: Surface | None) -> Dress:
    if ground is not None:
        return lambda drawn, outer: replace(ground, turn=drawn.turn)
    if recipe.surface == "flat":
        return lambda drawn, outer: replace(drawn, colours=(drawn.colours[0], drawn.colours[0]))
    if recipe.surface == "graded":
        return lambda drawn, outer: Fade(outer, drawn.colours, drawn.turn)
    return own_dress


def _draw_look(draws: Draws, class_id: int, colour: int, radius: int, unit: int, dress: Dress) -> Look:
    """Draw a look of a nominal `radius` in pixels; `unit` is a texture's coarseness in 1/64 pixel."""
    shape = SHAPES[class_id - 1]
    outline = shape.draw_outline(draws)
    outer = max(2, radius * shape.extent * draws.between(88, 116) // 10_000)
    steps = np.arange(-outer - 1, outer + 2, dtype=np.int64)
    turn = draws.below(TURNS)
    x, y = rotate(steps[None, :], steps[:, None], turn)
    texture = draws.choose(OBJECT_TEXTURES)
    own = Surface(texture, unit * draws.between(80, 125) // 100, draws.below(1 << 62), OBJECT_COLOURS[colour], turn)
    if draws.chance(0.35):
        own = replace(own, colours=(own.colours[1], own.colours[0]))
    light = -(steps[None, :] + 2 * steps[:, None]) * 22 // (3 * outer)
    colours = dress(own, outer).paint(steps[None, :], steps[:, None]) + light[..., None]
    return Look(class_id, outline(x * RADIUS // (outer * UNIT), y * RADIUS // (outer * UNIT)), colours)


def _draw_looks(draws: Draws, recipe: Recipe, dress: Dress = own_dress) -> list[Look]:
    """One look per object, copies sharing one Look, in a drawn order."""
    shapes = OUTLINES[recipe.outlines]
    n_objects = draws.between(recipe.fewest, recipe.most)
    kinds = [0]
    for _ in range(1, n_objects):
        copies = (draws.chance(recipe.twins) and max(kinds) > 0) or max(kinds) + 1 == len(shapes)
        kinds.append(draws.below(max(kinds) + 1) if copies else max(kinds) + 1)
    if recipe.twins > 0 and n_objects > 2 and len(set(kinds)) == n_objects:
        kinds[-1] = draws.below(n_objects - 1)
    area = recipe.height * recipe.width * COVERAGE // (100 * n_objects)
    radius = min(math.isqrt(area * 100 // 314), min(recipe.height, recipe.width) * 3 // 10)
    unit = max(2 * SUBPIXELS, SUBPIXELS * min(recipe.height, recipe.width) // 26)
    class_ids = draws.shuffled(shapes)
    colours = draws.shuffled(range(len(OBJECT_COLOURS)))
    looks = [_draw_look(draws, class_ids[kind], colours[kind], radius, unit, dress) for kind in range(max(kinds) + 1)]
    return draws.shuffled([looks[kind] for kind in kinds])


def _place(look: Look, row: int, col: int, recipe: Recipe) -> Placed:
    """Put a look's middle at ``(row, col)`` and cut off what lies outside the scene."""
    side = look.outline.shape[0]
    spans = []
    for middle, length in ((row, recipe.height), (col, recipe.width)):
        start = middle - side // 2
        low, high = max(0, start), min(length, start + side)
        spans.append((slice(low, high), slice(low - start, high - start)))
    return Placed(look, (spans[0][0], spans[1][0]), (spans[0][1], spans[1][1]))


def _place_all(draws: Draws, looks: list[Look], recipe: Recipe) -> list[Placed]:
    """Place looks from front to back; leave out those of which too little would be seen."""
    taken = np.zeros((recipe.height, recipe.width), dtype=bool)
    placed: list[Placed] = []
    for look in looks:
        whole = int(look.outline.sum())
        margin = min(look.outline.shape[0] // 3, min(recipe.height, recipe.width) // 2 - 1)
        best, best_seen, best_miss = None, -1, whole * 100 + 1
        for _ in range(PLACEMENTS):
            row = draws.between(margin, recipe.height - 1 - margin)
            col = draws.between(margin, recipe.width - 1 - margin)
            candidate = _place(look, row, col, recipe)
            seen = int((candidate.outline & ~taken[candidate.frame]).sum())
            hidden = (whole - seen) * 100
            miss = max(whole * recipe.hidden[0] - hidden, hidden - whole * recipe.hidden[1], 0)
            if miss < best_miss:
                best, best_seen, best_miss = candidate, seen, miss
            if miss == 0:
                break
        if best is not None and best_seen > 0 and best_seen * 100 >= whole * LEAST_SHARE:
            taken[best.frame] |= best.outline
            placed.append(best)
    return placed


def _draw_ground(draws: Draws, recipe: Recipe) -> Surface:
    turn = draws.choose((0, 0, 3, 6, 21))
    scale = max(2 * SUBPIXELS, SUBPIXELS * min(recipe.height, recipe.width) * draws.between(90, 130) // 2200)
    texture = draws.choose(GROUND_TEXTURES)
    salt = draws.below(1 << 62)
    return Surface(texture, scale, salt, draws.choose(GROUND_COLOURS), turn)


def _cast_shadow(picture: np.ndarray, placed: Placed, reach: int) -> None:
    """Darken what lies to the lower right of an object, within `reach` pixels; half as much at the rim."""
    rows, cols = placed.frame
    for step in (reach, -(-reach // 2)):
        behind = picture[rows.start + step : rows.stop + step, cols.start + step : cols.stop + step]
        shade = placed.outline[: behind.shape[0], : behind.shape[1]]
        behind[shade] = behind[shade] * 13 // 16


def compose(scene_id: str, recipe: Recipe, draws: Draws) -> Scene:
    """Draw one scene.

    Parameters
    ----------
    scene_id : str
        Id that the scene gets.
    recipe : Recipe
        What the scene is made of.
    draws : Draws
        The scene's own stream of draws: the same stream gives the same scene.

    Returns
    -------
    Scene
        Instances are numbered 1..k from back to front, classes as in `SHAPES`; the ground is unlabelled.
    """
    size = (recipe.height, recipe.width)
    ground = _draw_ground(draws, recipe) if recipe.surface == "camouflage" else None
    placed = _place_all(draws, _draw_looks(draws, recipe, _dress(recipe, ground)), recipe)
    ground = ground or _draw_ground(draws, recipe)
    picture = ground.paint(np.arange(recipe.width)[None, :], np.arange(recipe.height)[:, None])
    instances = np.zeros(size, dtype=np.int32)
    classes = np.zeros(size, dtype=np.int32)
    reach = max(1, min(size) // 40)
    for instance, item in enumerate(reversed(placed), start=1):
        _cast_shadow(picture, item, reach)
        picture[item.frame][item.outline] = item.look.colours[item.part][item.outline]
        instances[item.frame][item.outline] = instance
        classes[item.frame][item.outline] = item.look.class_id
    grain = draws.octets(picture.size).reshape(picture.shape).astype(np.int64)
    image = np.clip(picture + grain // 21 - 6, 0, 255).astype(np.uint8)
    return Scene(scene_id, image, instances, classes)
