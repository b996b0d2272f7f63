"""Several scenes at a glance: their images above, their objects below."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bindkit.errors import InvalidParameterError
from bindkit.scenes import Scene
from bindkit.views.figures.painting import object_colour, paint_objects, picture
from bindkit.views.figures.style import INK, titled

_PANEL = 240
"""Width of a panel in the figure's units."""


def scenes_figure(scenes: Sequence[Scene]) -> go.Figure:
    """Show a few scenes, one a column: the image, and below it the objects in colours (grey: unlabelled).

    Parameters
    ----------
    scenes : sequence of Scene
        One to six.

    Raises
    ------
    InvalidParameterError
        For none, or for more than fit side by side.
    """
    if not 1 <= len(scenes) <= 6:
        raise InvalidParameterError(f"a gallery shows 1 to 6 scenes, got {len(scenes)}")
    objects = [[int(value) for value in np.unique(scene.instances) if value] for scene in scenes]
    titles = [f"{scene.id}: {len(found)} objects" for scene, found in zip(scenes, objects, strict=True)]
    figure = make_subplots(
        rows=2, cols=len(scenes), horizontal_spacing=0.015, vertical_spacing=0.03, subplot_titles=titles
    )
    for column, (scene, found) in enumerate(zip(scenes, objects, strict=True), 1):
        colours = {value: object_colour(position) for position, value in enumerate(found)}
        for row, pixels in enumerate((scene.image, paint_objects(scene, colours)), 1):
            figure.add_trace(picture(pixels, scene.size, lossy=row == 1), row=row, col=column)
            height, width = scene.size
            figure.update_xaxes(range=[-0.5, width - 0.5], visible=False, constrain="domain", row=row, col=column)
            figure.update_yaxes(range=[height - 0.5, -0.5], visible=False, row=row, col=column)
    titled(figure, "What the scenes show", "above: image · below: its objects, unlabelled ground in grey")
    figure.update_annotations(font={"size": 13, "color": INK}, yshift=2)
    tallest = max(min(1.6, scene.size[0] / scene.size[1]) for scene in scenes)
    return figure.update_layout(
        width=len(scenes) * _PANEL + 40,
        height=round(2 * _PANEL * tallest) + 140,
        margin={"l": 16, "r": 16, "t": 112, "b": 16},
        showlegend=False,
    )
