"""Scenes as pictures: their objects, the labels of their patches, and what one patch's affinity to all others is."""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image

from bindkit.affinities.scoring import Affinity
from bindkit.arguments import control_title
from bindkit.errors import InvalidParameterError
from bindkit.scenes import Scene
from bindkit.scenes.geometry import PatchLabels, object_classes
from bindkit.views.figures.panels import Panels, panels, show_whole, titled
from bindkit.views.figures.style import INK, PALETTE, channels

_UNLABELLED = (236, 238, 240)
_LONGEST = 560
"""Pixels that the longer side of an embedded picture has at most."""
_LETTERED = 0.004
"""Share of the image that a twin must cover to have its letter written on it."""
_MARK = ((6, "#000000"), (2.5, "#ffffff"))
"""Width and colour of the outlines of a marked patch, one upon the other."""

Colours = Mapping[int, tuple[int, int, int]]
"""Instance id -> red, green, blue."""


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
    colours = colours_of(objects["object"])
    plan = labels.plan
    windows = f"{plan.n_windows} window{'s' if plan.n_windows > 1 else ''}"
    grid = f"{plan.grid.rows} × {plan.grid.cols}"
    titles = ["image", f"{len(objects)} object{'s' if len(objects) != 1 else ''}", f"patch labels: {windows} of {grid}"]
    shown = panels(3, 3, gap=(0.02, 0), subplot_titles=titles)
    figure = shown.figure
    objects_shown = painted(scene.image, scene.instances, colours)
    for number, pixels in enumerate([scene.image, objects_shown, _painted_patches(labels, colours)]):
        add_picture(shown, number, pixels, scene.size, lossy=number == 0)
    for number in (1, 2):
        figure.add_trace(_marks(scene, objects), **shown.place(number))
    if plan.n_windows > 1:
        down, across = plan.original[0] / plan.resized[0], plan.original[1] / plan.resized[1]
        for box in (window.box for window in plan.windows):
            left, right, top, bottom = box.left * across, box.right * across, box.top * down, box.bottom * down
            line = {"color": "white", "width": 1.5, "dash": "dot"}
            ends = {"x0": left - 0.5, "x1": right - 0.5, "y0": top - 0.5, "y1": bottom - 0.5}
            figure.add_shape(type="rect", **ends, line=line, **shown.place(0))

    twins = "same letter: objects of one class"
    note = twins if objects["twins"].any() else "no two objects of one class"
    titled(figure, f"Scene {scene.id}", f"{height} × {width} px · {note} · paler patches: mixed pixels")
    figure.update_annotations(font={"size": 14, "color": INK}, yshift=2)
    return _sized(figure, 3 * 280 + 60, 280 * min(1.6, height / width), 124, hovermode="closest")


def scene_table(scene: Scene, class_names: Mapping[int, str], labels: PatchLabels) -> pd.DataFrame:
    """Objects of a scene, one a row: the data behind `scene_figure`.

    ``object`` (instance id), ``class`` (id), ``name`` (of the class), ``pixels`` of the image, ``patches`` that carry
    its label (of overlapping windows, all), and ``twins``: a letter that all objects of its class share, or nothing if
    it is the only one.
    """
    objects = _objects(scene)
    patches = np.bincount(labels.instances, minlength=objects["object"].max() + 1 if len(objects) else 0)
    shared = sorted(objects["class"][objects["has_twin"]].unique())
    letters = {value: chr(ord("A") + position % 26) for position, value in enumerate(shared)}
    names = [class_names.get(value, f"class {value}") if value else "no class" for value in objects["class"]]
    return pd.DataFrame(
        {
            "object": objects["object"],
            "class": objects["class"],
            "name": names,
            "pixels": objects["pixels"],
            "patches": patches[objects["object"]],
            "twins": pd.Series([letters.get(value, "") for value in objects["class"]], dtype=object),
        }
    )


def scenes_figure(scenes: Sequence[Scene]) -> go.Figure:
    """Show one to six scenes, one a column: the image, and below it the objects in colours (grey: unlabelled).

    Raises InvalidParameterError for none, or for more than fit side by side.
    """
    if not 1 <= len(scenes) <= 6:
        raise InvalidParameterError(f"a gallery shows 1 to 6 scenes, got {len(scenes)}")
    found = [_objects(scene)["object"] for scene in scenes]
    titles = [f"{scene.id}: {len(objects)} objects" for scene, objects in zip(scenes, found, strict=True)]
    shown = panels(2 * len(scenes), len(scenes), gap=(0.015, 0.03), subplot_titles=titles)
    for number, (scene, objects) in enumerate(zip(scenes, found, strict=True)):
        for row, pixels in enumerate((scene.image, painted(scene.image, scene.instances, colours_of(objects)))):
            add_picture(shown, number + row * len(scenes), pixels, scene.size, lossy=row == 0)
    titled(shown.figure, "What the scenes show", "above: image · below: its objects, unlabelled ground in grey")
    shown.figure.update_annotations(font={"size": 13, "color": INK}, yshift=2)
    tallest = max(min(1.6, scene.size[0] / scene.size[1]) for scene in scenes)
    return _sized(shown.figure, len(scenes) * 240 + 40, 2 * 240 * tallest, 140, top=112)


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
    row, col = _middle_of_patch(first, patch)
    height, width = scene.size
    # Lines of titles are cut at their beginning, where paths have least to say.
    titles = [
        "<br>".join(line if len(line) <= 30 else f"…{line[-29:]}" for line in map(control_title, title.split("<br>")))
        for title in views
    ]
    n_cols = min(4, len(views) + 1)
    n_rows = -(-(len(views) + 1) // n_cols)
    shown = panels(len(views) + 1, n_cols, gap=(0.02, 0.12 / n_rows), subplot_titles=["the scene", *titles])
    figure = shown.figure
    figure.add_trace(picture(scene.image, scene.size, lossy=True), **shown.place(0))
    for number, view in enumerate(views.values(), start=1):
        asked = view.of(view.patch_at(row, col))
        rows, cols = asked.shape
        heatmap = go.Heatmap(
            z=asked.round(3),
            x0=width / cols / 2 - 0.5,
            dx=width / cols,
            y0=height / rows / 2 - 0.5,
            dy=height / rows,
            coloraxis="coloraxis",
            hovertemplate="affinity %{z:.2f}<extra></extra>",
        )
        figure.add_trace(heatmap, **shown.place(number))
    # Light within dark: one of the two stands out from any colour.
    marks = [
        {"symbol": "square-open", "size": 13, "line": {"width": width}, "color": colour} for width, colour in _MARK
    ]
    for number in range(shown.n):
        where = shown.place(number)
        show_whole(figure, scene.size, where)
        figure.update_yaxes(scaleanchor=f"x{number + 1 if number else ''}", constrain="domain", **where)
        for marker in marks:
            figure.add_trace(go.Scatter(x=[col], y=[row], mode="markers", marker=marker, hoverinfo="skip"), **where)
    at = first.grid.row_col(patch)
    asked_of = f"affinity of the marked patch (row {at[0]}, column {at[1]}) to every patch of {scene.id}"
    titled(figure, "Which patches does one patch belong with?", asked_of)
    figure.update_annotations(font={"size": 12.5, "color": INK})
    bar = {"title": "affinity", "thickness": 14}
    colours = {"colorscale": "Viridis", "cmin": 0, "cmax": 1, "colorbar": bar}
    inside = n_rows * (216 * min(1.6, height / width) + 48)
    return _sized(figure, n_cols * 216 + 130, inside, 120, top=124, hovermode="closest", coloraxis=colours)


def affinity_table(scene: Scene, views: Mapping[str, Affinity], patch: int | None = None) -> pd.DataFrame:
    """The numbers of `affinity_figure`, which takes the same: one row a patch and view.

    ``view`` (the title in one line), ``layer``, ``row`` and ``column`` of the patch (from 0), ``affinity`` to the
    marked patch, and ``marked``, which is true for that one.
    """
    first = next(iter(views.values()))
    middle = _middle_of_patch(first, telling_patch(scene, first) if patch is None else patch)
    parts = []
    for title, view in views.items():
        chosen = view.patch_at(*middle)
        rows, columns = np.indices((view.grid.rows, view.grid.cols))
        columns_of = {"row": rows.ravel(), "column": columns.ravel(), "affinity": view.scores[chosen]}
        part = pd.DataFrame({"view": title.replace("<br>", " · "), "layer": view.layer, **columns_of})
        parts.append(part.assign(marked=np.arange(len(part)) == chosen))
    return pd.concat(parts, ignore_index=True)


def telling_patch(scene: Scene, view: Affinity) -> int:
    """A patch worth asking about: in the middle of the largest object that has a twin (else of the largest object).

    Raises InvalidParameterError for a scene without objects.
    """
    objects = _objects(scene)
    if objects.empty:
        raise InvalidParameterError(f"{scene.id} has no labelled object; name a patch")
    largest = objects.sort_values(["has_twin", "pixels"], ascending=False, kind="stable")["object"].iloc[0]
    return view.patch_at(*map(int, _middle(scene.instances == largest)))


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
        image.save(out, format="JPEG", quality=90, subsampling=0)  # colours as sharp as lightness
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
        # Shown smaller than it is, a photograph would be jagged; a small scene is shown pixel by pixel.
        zsmooth="fast" if lossy and max(image.size) >= _LONGEST // 2 else False,
    )


def add_picture(shown: Panels, number: int, pixels: np.ndarray, size: tuple[int, int], lossy: bool) -> None:
    """Show a picture in a panel, to the image's border."""
    shown.figure.add_trace(picture(pixels, size, lossy), **shown.place(number))
    show_whole(shown.figure, size, shown.place(number))


def _sized(figure: go.Figure, width: int, inside: float, around: int, top: int = 108, **layout: Any) -> go.Figure:
    """With the size of pictures that are `inside` units high, narrow margins and no legend."""
    margin = {"l": 16, "r": 16, "t": top, "b": 16}
    return figure.update_layout(width=width, height=round(inside) + around, margin=margin, showlegend=False, **layout)


def _objects(scene: Scene) -> pd.DataFrame:
    """``object`` (instance id), ``class`` of most of its pixels, ``pixels``, and whether another has a twin's class."""
    ids, pixels = np.unique(scene.instances[scene.instances > 0], return_counts=True)
    classes = list(object_classes(scene).values())
    found = pd.DataFrame({"object": ids, "class": classes, "pixels": pixels}, dtype=np.int64)
    return found.assign(has_twin=found["class"].duplicated(keep=False) & (found["class"] > 0))


def colours_of(objects: pd.Series | list[int]) -> Colours:
    """The palette's colours without black, then hues a golden angle apart."""
    colours = [channels(code) for code in PALETTE[:-1]]
    for position in range(len(colours), len(objects)):
        red, green, blue = colorsys.hls_to_rgb(position * 0.618034 % 1, (0.38, 0.55, 0.7)[position % 3], 0.6)
        colours.append((round(red * 255), round(green * 255), round(blue * 255)))
    return dict(zip(map(int, objects), colours, strict=False))


def painted(image: np.ndarray, mask: np.ndarray, colours: Colours) -> np.ndarray:
    """Objects of a mask in their colours over the faded image, each with a white outline."""
    grey = image.mean(axis=2, keepdims=True)
    faded = np.broadcast_to(255 - (255 - grey) * 0.25, image.shape).copy()
    for instance, colour in colours.items():
        inside = mask == instance
        faded[inside] = 0.72 * np.array(colour) + 0.28 * grey[inside]
    faded[:, 1:][mask[:, 1:] != mask[:, :-1]] = 255
    faded[1:, :][mask[1:, :] != mask[:-1, :]] = 255
    return faded.astype(np.uint8)


def _painted_patches(labels: PatchLabels, colours: Colours) -> np.ndarray:
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


def _marks(scene: Scene, objects: pd.DataFrame) -> go.Scatter:
    """A point in the middle of every object that tells its class; of large twins also the letter."""
    centres = [_middle(scene.instances == instance) for instance in objects["object"]]
    letters = objects["twins"].where(objects["pixels"] >= _LETTERED * scene.instances.size, "")
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


def _middle_of_patch(view: Affinity, patch: int) -> tuple[float, float]:
    """Row and column in pixels of the image: the same place in grids of other patch sizes."""
    box = view.box(patch)
    return (box.top + box.bottom) / 2, (box.left + box.right) / 2
