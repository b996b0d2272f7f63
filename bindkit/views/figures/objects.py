"""Objects that were found without labels, beside the true ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from scipy.optimize import linear_sum_assignment

from bindkit.affinities.objects import Objects, contingency, judge_objects
from bindkit.arguments import control_title, require_kind
from bindkit.errors import InvalidParameterError
from bindkit.scenes import Scene
from bindkit.views.figures.panels import framed, panels, subtitle_lines
from bindkit.views.figures.scenes import Colours, add_picture, colours_of, painted
from bindkit.views.figures.style import GREYS, INK, PALETTE, channels

_SIDE, _GAP, _TITLE = 232, 14, 52
"""Units that a panel is wide, that lie between two, and that a panel's title takes above it."""
_STEP = 4
"""Pixels of the image a side for each place that answers to the pointer in the panel of true objects."""


def objects_figure(scene: Scene, found: Mapping[str, Objects]) -> go.Figure:
    """The picture, its true objects, and the segments of each result over the picture.

    ::

        found = bk.find_objects(bk.affinity(backbone, probe, scene))
        bk.figures.objects_figure(scene, {"probe": found})

    A segment has the colour of the true object that it stands for (pairs of one segment and one object with the
    greatest sum of overlaps), and is uncoloured where it stands for the unlabelled ground. Of segments that are left
    over the largest have what is left of the palette, the others are dark grey; outlines tell all apart.

    Parameters
    ----------
    scene : Scene
        What the objects were found in.
    found : mapping of str to Objects
        Title -> what `bindkit.find_objects` gave; one to ten.

    Raises
    ------
    InvalidParameterError
        For none or more than fit, something else, or objects of an image of another size.
    """
    require_kind(found, Mapping, "found is a mapping of titles to what bk.find_objects gives")
    if not 1 <= len(found) <= 10:
        raise InvalidParameterError(f"the figure takes 1 to 10 results, got {len(found)}")
    for objects in found.values():
        require_kind(objects, Objects, "each of found is what bk.find_objects gives")
    judged = [judge_objects(objects.mask(), scene) for objects in found.values()]
    n_true = judged[0]["n_true"]
    titles = ["the picture", f"{n_true} true object{'s' if n_true != 1 else ''}"]
    for (title, objects), figures in zip(found.items(), judged, strict=True):
        named = title if objects.method in title else f"{title}: {objects.method}"
        figure_of = "no labelled object" if np.isnan(figures["fg_ari"]) else f"fg-ARI {figures['fg_ari']:.2f}"
        named = "<br>".join(map(control_title, named.split("<br>")))
        titles.append(f"{named}<br>{objects.n} segment{'s' if objects.n != 1 else ''} · {figure_of}")
    n_cols = min(4, len(titles))
    high = _SIDE * min(1.6, scene.size[0] / scene.size[1])
    shown = panels(len(titles), n_cols, gap=(_GAP, _TITLE), size=(_SIDE, high), subplot_titles=titles)
    shown.hide_rest()
    add_picture(shown, 0, scene.image, scene.size, lossy=True)

    ids = np.unique(scene.instances)
    colours = colours_of(ids[ids > 0].tolist())
    # Few tones, so that a stored picture of few colours shows small segments in their own.
    tones = np.repeat((scene.image.mean(axis=2, keepdims=True) // 32 * 32).astype(np.uint8), 3, axis=2)
    add_picture(shown, 1, painted(tones, scene.instances, colours), scene.size, lossy=False)
    small = scene.instances[_STEP // 2 :: _STEP, _STEP // 2 :: _STEP]
    said = {int(one): f"object {one}" if one else "unlabelled ground" for one in ids}
    shown.figure.add_trace(_pointed_at(small, said, (_STEP, _STEP)), **shown.place(1))

    for number, objects in enumerate(found.values(), start=2):
        mask = objects.mask()
        painted_segments, said = _matched(mask, objects, scene, colours)
        add_picture(shown, number, painted(tones, mask, painted_segments), scene.size, lossy=False)
        grid = objects.grid
        cells = (scene.size[0] / grid.rows, scene.size[1] / grid.cols)
        patches = objects.labels.reshape(grid.rows, grid.cols)
        shown.figure.add_trace(_pointed_at(patches, said, cells), **shown.place(number))
    shown.figure.update_annotations(font={"size": 12.5, "color": INK}, yshift=2)
    width = shown.inside[0] + 32
    parts = [scene.id, "a segment has the colour of the object it matches", "faded: it matches the ground"]
    lines = subtitle_lines([*parts, "dark grey: small ones left over"], width)
    margin: dict[str, float] = {"l": 16, "r": 16, "t": 98 + 18 * len(lines), "b": 16}
    subtitle = "<br>".join(lines)
    return framed(
        shown.figure,
        "Objects found without labels",
        subtitle,
        width,
        shown.inside[1],
        margin,
        showlegend=False,
        hovermode="closest",
    )


def _matched(mask: np.ndarray, objects: Objects, scene: Scene, colours: Colours) -> tuple[Colours, dict[int, str]]:
    """Colours of the segments, and what each says of itself when it is pointed at."""
    ids, shared = contingency(mask, scene)
    overlap = shared / (shared.sum(axis=1, keepdims=True) + shared.sum(axis=0) - shared)
    segments = np.unique(mask)  # a segment may be too thin to hold a pixel
    pairs = [(row, column) for row, column in zip(*linear_sum_assignment(-overlap), strict=True) if shared[row, column]]
    matches = {int(segments[column]): int(ids[row]) for row, column in pairs}
    free = iter([channels(code) for code in PALETTE[:-1] if channels(code) not in colours.values()])
    coloured = [int(segment) for segment in segments if matches.get(segment) != 0]
    painted_segments = {
        segment: colours[matches[segment]] if segment in matches else next(free, channels(GREYS[0]))
        for segment in coloured
    }
    patches = np.bincount(objects.labels, minlength=objects.n + 1)
    said = {}
    for segment, row in zip(map(int, segments), overlap.argmax(axis=0), strict=True):
        nearest = f"object {ids[row]}" if ids[row] else "the unlabelled ground"
        most = overlap[row, np.searchsorted(segments, segment)]
        n = patches[segment]
        said[segment] = f"segment {segment}: {n} patch{'es' if n != 1 else ''}<br>IoU {most:.2f} with {nearest}"
    return painted_segments, said


def _pointed_at(labels: np.ndarray, said: Mapping[int, str], cell: tuple[float, float]) -> go.Heatmap:
    """What cells (height, width in pixels) say when they are pointed at; itself it cannot be seen."""
    texts = np.array([[said.get(int(label), "") for label in row] for row in labels], dtype=object)
    return go.Heatmap(
        z=labels,
        text=texts,
        x0=cell[1] / 2 - 0.5,
        dx=cell[1],
        y0=cell[0] / 2 - 0.5,
        dy=cell[0],
        opacity=0,
        showscale=False,
        hovertemplate="%{text}<extra></extra>",
    )
