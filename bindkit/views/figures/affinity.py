"""One patch's affinity to all others: the scene, and a map for every probe that was asked."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bindkit.affinities.scoring import Affinity
from bindkit.errors import InvalidParameterError
from bindkit.scenes import Scene
from bindkit.views.figures.painting import picture
from bindkit.views.figures.style import INK, titled

_PANEL = 216
_SCALE = "Viridis"
_CLICKED = "#D55E00"


def telling_patch(scene: Scene, view: Affinity) -> int:
    """A patch worth asking about: in the middle of the largest object that has a twin (else of the largest object).

    Raises
    ------
    InvalidParameterError
        For a scene without objects.
    """
    ids, counts = np.unique(scene.instances[scene.instances > 0], return_counts=True)
    if not len(ids):
        raise InvalidParameterError(f"{scene.id} has no labelled object; name a patch")
    class_of = {int(k): int(scene.classes[scene.instances == k][0]) for k in ids}
    twins = [k for k in class_of if list(class_of.values()).count(class_of[k]) > 1]
    size = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    largest = max(twins or class_of, key=lambda k: (size[k], -k))
    rows, cols = np.nonzero(scene.instances == largest)
    nearest = np.argmin((rows - rows.mean()) ** 2 + (cols - cols.mean()) ** 2)
    return view.patch_at(int(rows[nearest]), int(cols[nearest]))


def _short(title: str) -> str:
    """Each line of a title cut at its beginning, where paths have least to say."""
    return "<br>".join(line if len(line) <= 30 else f"…{line[-29:]}" for line in title.split("<br>"))


def affinity_figure(scene: Scene, views: Mapping[str, Affinity], patch: int | None = None) -> go.Figure:
    """The scene with one patch marked, and its affinity to every patch in each view.

    Parameters
    ----------
    scene : Scene
        What the views are of.
    views : mapping of str to Affinity
        Title -> what `bindkit.affinity` gave; one to eleven. ``<br>`` begins a new line.
    patch : int, optional
        Number of the patch in the first view's grid. Default: in the largest object that has a twin.

    Raises
    ------
    InvalidParameterError
        For no view, or more than fit; a scene without objects where no patch is named.
    GeometryError
        For a patch outside the grid.
    """
    if not 1 <= len(views) <= 11:
        raise InvalidParameterError(f"the figure takes 1 to 11 views, got {len(views)}")
    first = next(iter(views.values()))
    patch = telling_patch(scene, first) if patch is None else patch
    middle = _middle(first, patch)
    height, width = scene.size
    n_cols = min(4, len(views) + 1)
    n_rows = -(-(len(views) + 1) // n_cols)
    figure = make_subplots(
        rows=n_rows,
        cols=n_cols,
        subplot_titles=["the scene", *map(_short, views)],
        horizontal_spacing=0.02,
        vertical_spacing=0.12 / n_rows,
    )
    figure.add_trace(picture(scene.image, scene.size, lossy=True), row=1, col=1)
    for number, view in enumerate(views.values(), start=1):
        asked = view.of(view.patch_at(*middle))
        rows, cols = asked.shape
        figure.add_trace(
            go.Heatmap(
                z=asked.round(3),
                x0=width / cols / 2 - 0.5,
                dx=width / cols,
                y0=height / rows / 2 - 0.5,
                dy=height / rows,
                coloraxis="coloraxis",
                hovertemplate="affinity %{z:.2f}<extra></extra>",
            ),
            row=number // n_cols + 1,
            col=number % n_cols + 1,
        )
    for number in range(len(views) + 1):
        place = {"row": number // n_cols + 1, "col": number % n_cols + 1}
        figure.update_xaxes(range=[-0.5, width - 0.5], visible=False, constrain="domain", **place)
        anchor = f"x{number + 1 if number else ''}"
        figure.update_yaxes(range=[height - 0.5, -0.5], visible=False, scaleanchor=anchor, constrain="domain", **place)
        marker = {"symbol": "square-open", "size": 13, "line": {"width": 3}, "color": _CLICKED}
        mark = go.Scatter(x=[middle[1]], y=[middle[0]], mode="markers", marker=marker, hoverinfo="skip")
        figure.add_trace(mark, **place)
    row, col = first.grid.row_col(patch)
    titled(
        figure,
        "Which patches does one patch belong with?",
        f"affinity of the marked patch (row {row}, column {col}) to every patch of {scene.id}",
    )
    figure.update_annotations(font={"size": 12.5, "color": INK})
    return figure.update_layout(
        width=n_cols * _PANEL + 130,
        height=round(n_rows * (_PANEL * min(1.6, height / width) + 48)) + 120,
        margin={"l": 16, "r": 16, "t": 124, "b": 16},
        showlegend=False,
        hovermode="closest",
        coloraxis={"colorscale": _SCALE, "cmin": 0, "cmax": 1, "colorbar": {"title": "affinity", "thickness": 14}},
    )


def _middle(view: Affinity, patch: int) -> tuple[float, float]:
    """Row and column of a patch's middle in pixels of the image: the same place in grids of other patch sizes."""
    box = view.box(patch)
    return (box.top + box.bottom) / 2, (box.left + box.right) / 2


def affinity_table(scene: Scene, views: Mapping[str, Affinity], patch: int | None = None) -> pd.DataFrame:
    """The numbers of `affinity_figure`: one row a patch and view.

    Parameters
    ----------
    scene, views, patch
        As `affinity_figure` takes them.

    Returns
    -------
    pandas.DataFrame
        ``view`` (the title in one line), ``layer``, ``row`` and ``column`` of the patch (from 0), ``affinity`` to the
        marked patch, and ``marked``, which is true for that one.
    """
    first = next(iter(views.values()))
    middle = _middle(first, telling_patch(scene, first) if patch is None else patch)
    parts = []
    for title, view in views.items():
        chosen = view.patch_at(*middle)
        rows, columns = np.indices((view.grid.rows, view.grid.cols))
        columns_of = {"row": rows.ravel(), "column": columns.ravel(), "affinity": view.scores[chosen]}
        part = pd.DataFrame({"view": title.replace("<br>", " · "), "layer": view.layer, **columns_of})
        parts.append(part.assign(marked=np.arange(len(part)) == chosen))
    return pd.concat(parts, ignore_index=True)
