"""Scenes turned into pictures: objects in colours, patches in their object's colour, pixels as a Plotly image."""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from PIL import Image

from bindkit.scenes import Scene
from bindkit.scenes.labels import PatchLabels
from bindkit.views.figures.style import PALETTE

_UNLABELLED = (236, 238, 240)
_LONGEST = 560
"""Pixels that the longer side of an embedded picture has at most."""


def object_colour(position: int) -> tuple[int, int, int]:
    """Colour of the `position`-th object: the palette's, then hues a golden angle apart."""
    if position < len(PALETTE) - 1:  # not black
        code = PALETTE[position]
        return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)
    red, green, blue = colorsys.hls_to_rgb(position * 0.618034 % 1, (0.38, 0.55, 0.7)[position % 3], 0.6)
    return round(red * 255), round(green * 255), round(blue * 255)


def paint_objects(scene: Scene, colours: Mapping[int, tuple[int, int, int]]) -> np.ndarray:
    """Objects in their colours over the faded image, each with a white outline."""
    grey = scene.image.mean(axis=2, keepdims=True)
    painted = np.broadcast_to(255 - (255 - grey) * 0.25, scene.image.shape).copy()
    for instance, colour in colours.items():
        inside = scene.instances == instance
        painted[inside] = 0.72 * np.array(colour) + 0.28 * grey[inside]
    mask = scene.instances
    edge = np.zeros(mask.shape, dtype=bool)
    edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    edge[1:, :] |= mask[1:, :] != mask[:-1, :]
    painted[edge] = 255
    return painted.astype(np.uint8)


def paint_patches(labels: PatchLabels, colours: Mapping[int, tuple[int, int, int]]) -> np.ndarray:
    """Patches in their object's colour, paler where mixed, in pixels of the resized scene."""
    side = labels.plan.grid.patch_size
    gap = 1 if max(labels.plan.grid.rows, labels.plan.grid.cols) <= 24 else 0  # finer lines would only shimmer
    painted = np.full((*labels.plan.resized, 3), 255, dtype=np.uint8)
    for instance, purity, (top, left) in zip(labels.instances, labels.purity, labels.corners, strict=True):
        strength = float(purity) ** 1.5 if instance else 1.0
        colour = np.array(colours.get(int(instance), _UNLABELLED)) * strength + 255 * (1 - strength)
        painted[top : top + side, left : left + side] = 255  # also what an overlapping window left there
        painted[top : top + side - gap, left : left + side - gap] = colour.astype(np.uint8)
    return painted


def picture(pixels: np.ndarray, size: tuple[int, int], lossy: bool) -> go.Image:
    """A picture in the coordinates of the original image; photographs are stored as JPEG."""
    image = Image.fromarray(pixels)
    if lossy and max(image.size) > _LONGEST:
        image.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
    elif max(image.size) > 2 * _LONGEST:
        image.thumbnail((_LONGEST, _LONGEST), Image.Resampling.NEAREST)
    elif not lossy and max(image.size) < _LONGEST // 2:
        image = image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST)
    out = io.BytesIO()
    if lossy:
        image.save(out, format="JPEG", quality=88)
    else:
        image.quantize(128).save(out, format="PNG", optimize=True)
    code = base64.b64encode(out.getvalue()).decode()
    across, down = size[1] / image.width, size[0] / image.height
    return go.Image(
        source=f"data:image/{'jpeg' if lossy else 'png'};base64,{code}",
        x0=across / 2 - 0.5,
        y0=down / 2 - 0.5,
        dx=across,
        dy=down,
        hoverinfo="skip",
    )
