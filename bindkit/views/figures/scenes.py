"""One scene as bindkit sees it: the image, its objects, and the labels of its patches, side by side."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bindkit.scenes import Scene
from bindkit.scenes.labels import PatchLabels
from bindkit.views.figures.painting import object_colour, paint_objects, paint_patches, picture
from bindkit.views.figures.style import INK, titled

_PANEL = 280
"""Width of a panel in the figure's units."""
_LETTERED = 0.004
"""Share of the image that a twin must cover to have its letter written on it."""


def scene_figure(scene: Scene, class_names: Mapping[int, str], labels: PatchLabels) -> go.Figure:
    """Show a scene's image, its objects and its patch labels.

    Objects have one colour in both right panels; unlabelled ground is grey. *Twins*, objects of one class, carry the
    same letter. A patch is the paler the less pure its label is; dotted squares are the windows.

    Parameters
    ----------
    scene : Scene
        What to show.
    class_names : mapping
        Class id -> name, shown when pointing at an object.
    labels : PatchLabels
        Of all its patches, as `bindkit.label_patches` gives them.
    """
    height, width = scene.size
    objects = scene_table(scene, class_names, labels)
    colours = {int(value): object_colour(position) for position, value in enumerate(objects["object"])}
    plan = labels.plan
    windows = f"{plan.n_windows} window{'s' if plan.n_windows > 1 else ''}"
    grid = f"{plan.grid.rows} × {plan.grid.cols} patches"
    titles = ["image", f"{len(objects)} object{'s' if len(objects) != 1 else ''}", f"patch labels: {windows} of {grid}"]
    figure = make_subplots(rows=1, cols=3, horizontal_spacing=0.02, subplot_titles=titles)
    panels = [scene.image, paint_objects(scene, colours), paint_patches(labels, colours)]
    for panel, pixels in enumerate(panels, 1):
        figure.add_trace(picture(pixels, scene.size, lossy=panel == 1), row=1, col=panel)
        # An axis that ends at the picture's border, so that panels of any shape stand flush.
        figure.update_xaxes(range=[-0.5, width - 0.5], visible=False, constrain="domain", row=1, col=panel)
        figure.update_yaxes(range=[height - 0.5, -0.5], visible=False, row=1, col=panel)
    for panel in (2, 3):
        figure.add_trace(_marks(scene, objects), row=1, col=panel)
    _outline_windows(figure, labels)

    twins = "same letter: twins, different objects of one class"
    note = twins if objects["twins"].any() else "no two objects of one class"
    titled(figure, f"Scene {scene.id}", f"{height} × {width} px · {note} · paler patches: mixed pixels")
    figure.update_annotations(font={"size": 14, "color": INK}, yshift=2)
    drawn = round(_PANEL * min(1.6, height / width))
    margin = {"l": 16, "r": 16, "t": 108, "b": 16}
    return figure.update_layout(
        width=3 * _PANEL + 60, height=drawn + 124, margin=margin, showlegend=False, hovermode="closest"
    )


def scene_table(scene: Scene, class_names: Mapping[int, str], labels: PatchLabels) -> pd.DataFrame:
    """Objects of a scene, one a row: the data behind `scene_figure`.

    Returns
    -------
    pandas.DataFrame
        ``object`` (instance id), ``class`` (id), ``name`` (of the class), ``pixels`` of the image, ``patches`` that
        carry its label (of overlapping windows, all), and ``twins``: a letter that all objects of its class share, or
        nothing if it is the only one.
    """
    pixels = np.bincount(scene.instances.ravel())
    patches = np.bincount(labels.instances, minlength=len(pixels))
    objects = [int(instance) for instance in np.flatnonzero(pixels) if instance]
    classes = [int(np.bincount(scene.classes[scene.instances == instance]).argmax()) for instance in objects]
    shared = sorted({value for value in classes if value and classes.count(value) > 1})
    letters = {value: chr(ord("A") + position % 26) for position, value in enumerate(shared)}
    return pd.DataFrame(
        {
            "object": objects,
            "class": classes,
            "name": [class_names.get(value, f"class {value}") if value else "no class" for value in classes],
            "pixels": [int(pixels[instance]) for instance in objects],
            "patches": [int(patches[instance]) for instance in objects],
            "twins": pd.Series([letters.get(value, "") for value in classes], dtype=object),
        }
    )


def _marks(scene: Scene, objects: pd.DataFrame) -> go.Scatter:
    """A point in the middle of every object that tells its class; of large twins also the letter."""
    centres = [_middle(scene.instances == instance) for instance in objects["object"]]
    large = objects["pixels"] >= _LETTERED * scene.instances.size
    letters = objects["twins"].where(large, "")
    said = [f"object {row.object}: {row.name}<br>{row.patches} patches" for row in objects.itertuples(index=False)]
    return go.Scatter(
        name="objects",
        x=[col for _, col in centres],
        y=[row for row, _ in centres],
        mode="markers+text",
        marker={"size": [17 if letter else 4 for letter in letters], "color": "white", "opacity": 0.9},
        text=[f"<b>{letter}</b>" for letter in letters],
        textfont={"size": 12, "color": INK},
        hovertext=said,
        hoverinfo="text",
    )


def _middle(inside: np.ndarray) -> tuple[float, float]:
    """The pixel of an object that lies nearest to its centre of mass, which may itself lie outside: (row, col)."""
    rows, cols = np.nonzero(inside)
    nearest = ((rows - rows.mean()) ** 2 + (cols - cols.mean()) ** 2).argmin()
    return float(rows[nearest]), float(cols[nearest])


def _outline_windows(figure: go.Figure, labels: PatchLabels) -> None:
    """Dotted squares on the image, one a window, where there are several."""
    plan = labels.plan
    if plan.n_windows < 2:
        return
    down, across = plan.original[0] / plan.resized[0], plan.original[1] / plan.resized[1]
    for window in plan.windows:
        box = window.box
        figure.add_shape(
            type="rect",
            x0=box.left * across - 0.5,
            x1=box.right * across - 0.5,
            y0=box.top * down - 0.5,
            y1=box.bottom * down - 0.5,
            line={"color": "white", "width": 1.5, "dash": "dot"},
            row=1,
            col=1,
        )
