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
from dataclasses import dataclass, replace

import numpy as np

from bindkit.scenes import looks
from bindkit.scenes.looks import OUTLINES, RADIUS, SHAPES, SUBPIXELS, TURNS, UNIT, Draws, Surface, rotate
from bindkit.scenes.scene import Scene

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


@dataclass(frozen=True)
class Recipe:
    """What a synthetic scene is made of; the fields are described in `bindkit.scenes.synthetic.OPTIONS`."""

    height: int = 112
    width: int = 144
    fewest: int = 3
    most: int = 8
    """Now and then an object finds no visible place and one is missing."""
    twins: float = 0.5
    """Above 0, at least one pair is drawn in every scene of three or more objects."""
    hidden: tuple[int, int] = (0, 45)
    """Of the places tried, the first in this range or the nearest to it is taken."""
    surface: str = "textured"
    outlines: str = "compact"


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


def _draw_looks(draws: Draws, recipe: Recipe, ground: Surface | None = None) -> list[Look]:
    """One look per object, copies sharing one Look, in a drawn order; camouflage wears the ground."""
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
    colours = draws.shuffled(range(len(looks.OBJECT_COLOURS)))
    drawn = [
        _draw_look(draws, class_ids[kind], colours[kind], radius, unit, recipe.surface, ground)
        for kind in range(max(kinds) + 1)
    ]
    return draws.shuffled([drawn[kind] for kind in kinds])


def _place(look: Look, row: int, col: int, recipe: Recipe) -> Placed:
    """Put a look's middle at ``(row, col)`` and cut off what lies outside the scene."""
    side = look.outline.shape[0]
    spans = []
    for middle, length in ((row, recipe.height), (col, recipe.width)):
        start = middle - side // 2
        low, high = max(0, start), min(length, start + side)
        spans.append((slice(low, high), slice(low - start, high - start)))
    return Placed(look, (spans[0][0], spans[1][0]), (spans[0][1], spans[1][1]))


def _place_all(draws: Draws, drawn: list[Look], recipe: Recipe) -> list[Placed]:
    """Place looks from front to back; leave out those of which too little would be seen."""
    taken = np.zeros((recipe.height, recipe.width), dtype=bool)
    placed: list[Placed] = []
    for look in drawn:
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
    texture = draws.choose(looks.GROUND_TEXTURES)
    salt = draws.below(1 << 62)
    return Surface(texture, scale, salt, draws.choose(looks.GROUND_COLOURS), turn)


def compose(scene_id: str, recipe: Recipe, draws: Draws) -> Scene:
    """Draw one scene from its own stream of draws: the same stream gives the same scene.

    Instances are numbered 1..k from back to front, classes as in `SHAPES`; the ground is unlabelled.
    """
    size = (recipe.height, recipe.width)
    ground = _draw_ground(draws, recipe) if recipe.surface == "camouflage" else None
    placed = _place_all(draws, _draw_looks(draws, recipe, ground), recipe)
    ground = ground or _draw_ground(draws, recipe)
    picture = ground.paint(np.arange(recipe.width)[None, :], np.arange(recipe.height)[:, None])
    instances = np.zeros(size, dtype=np.int32)
    classes = np.zeros(size, dtype=np.int32)
    reach = max(1, min(size) // 40)
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
