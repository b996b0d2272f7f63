"""Scenes that are varied one option at a time, side by side: what every value of every option does to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bindkit.errors import InvalidParameterError
from bindkit.scenes import Scene, open_scenes
from bindkit.scenes.variations import Variation, scene_variations
from bindkit.views.figures.painting import picture
from bindkit.views.figures.style import FAINT, INK, titled

MEANINGS = {
    "objects": "how many in a scene",
    "twins": "chance that a further object is a copy",
    "hidden": "percent of an object that others hide",
    "surface": "what objects wear",
    "outlines": "which shapes",
    "size": "height × width in pixels",
    "n": "scenes in the set",
    "seed": "another draw of scenes",
}
"""Options in words, below their names."""


def difficulty_scenes(base: str, options: Mapping[str, Sequence[Any]] | str, example: int = 0) -> go.Figure:
    """Show what each value of each option does to a scene: a row an option, a picture a value.

    ::

        difficulty_scenes("synthetic:n=60,seed=0", {"surface": ["textured", "flat", "camouflage"]})

    Parameters
    ----------
    base : str
        A ``synthetic:`` URI.
    options : mapping or str
        As `bindkit.vary_scenes` takes them.
    example : int
        Which scene of every set to show, 0-based.

    Raises
    ------
    InvalidParameterError, SceneSetError
        As `bindkit.scenes.variations.scene_variations`; for a scene that the sets do not have.
    """
    by_option: dict[str, list[Variation]] = {}
    for varied in scene_variations(base, options):
        by_option.setdefault(varied.option, []).append(varied)
    n_cols, side, gap, above, name = max(map(len, by_option.values())), 100, 10, 22, 150
    rows, cols = example_scene(base, example).size
    tall = round(side * min(1.6, rows / cols))
    inside = (n_cols * (side + gap) - gap, len(by_option) * (tall + above + gap) - above - gap)
    figure = make_subplots(
        rows=len(by_option),
        cols=n_cols,
        horizontal_spacing=gap / inside[0],
        vertical_spacing=(above + gap) / inside[1] if len(by_option) > 1 else 0,
    )
    figure.update_xaxes(visible=False, constrain="domain").update_yaxes(visible=False)
    for row, (option, values) in enumerate(by_option.items(), 1):
        for col, varied in enumerate(values, 1):
            scene = example_scene(varied.uri, example)
            # Smoothed, since scenes are small: their pixels would look like a pattern of the surface.
            shown = picture(scene.image, scene.size, lossy=True).update(zsmooth="fast")
            figure.add_trace(shown, row=row, col=col)
            figure.update_xaxes(range=[-0.5, scene.size[1] - 0.5], row=row, col=col)
            figure.update_yaxes(range=[scene.size[0] - 0.5, -0.5], row=row, col=col)
            axis = figure.get_subplot(row, col)
            said = f"<b>{varied.value}</b> · base" if varied.is_base else varied.value
            middle = sum(axis.xaxis.domain) / 2
            write_on(figure, said, middle, axis.yaxis.domain[1], xanchor="center", yanchor="bottom")
        axis = figure.get_subplot(row, 1)
        words = f"<b>{option}</b><br><span style='color:{FAINT}'>{_wrapped(MEANINGS.get(option, ''))}</span>"
        write_on(figure, words, -12 / inside[0], axis.yaxis.domain[1], xanchor="right", yanchor="top", align="right")
    titled(figure, "One option at a time", "a scene for each value; all else as in the base scenes")
    width, height = max(520, name + inside[0] + 28), inside[1] + 84 + above + 20
    margin = {"l": name, "r": width - name - inside[0], "t": 84 + above, "b": 20}
    return figure.update_layout(width=width, height=height, margin=margin, title_y=1 - 18 / height, showlegend=False)


def example_scene(uri: str, position: int) -> Scene:
    """One scene of a set. Raises InvalidParameterError where it has not so many."""
    scenes = open_scenes(uri)
    if not 0 <= position < len(scenes.ids):
        raise InvalidParameterError(f"{uri} has the scenes 0 to {len(scenes.ids) - 1}, asked for scene {position}")
    return scenes[position]


def write_on(figure: go.Figure, text: str, x: float, y: float, **how: Any) -> None:
    """Write beside the panels, at shares of the plot's width and height."""
    font = {"size": 13, "color": INK}
    figure.add_annotation(text=text, x=x, y=y, xref="paper", yref="paper", showarrow=False, font=font, **how)


def _wrapped(words: str, longest: int = 20) -> str:
    """Words in lines of at most so many letters."""
    lines = [""]
    for word in words.split():
        if len(lines[-1]) + len(word) >= longest:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "<br>".join(lines)
