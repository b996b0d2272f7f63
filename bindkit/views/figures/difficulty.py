"""What each difficulty of a scene costs, and what every value of every option does to the scenes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from bindkit.arguments import control_title
from bindkit.errors import InvalidParameterError
from bindkit.results.tables import require_one_kind
from bindkit.scenes import Scene, open_scenes
from bindkit.scenes.opening import Variation, scene_variations
from bindkit.views.figures.curves import CHANCE, METRICS, axis_range, heights, require_metric
from bindkit.views.figures.panels import framed, panels, show_whole, write_on
from bindkit.views.figures.scenes import picture
from bindkit.views.figures.style import FAINT, Look, curve, line_looks, whiskers

_MEANINGS = {
    "objects": "how many in a scene",
    "twins": "chance that a further object is a copy",
    "hidden": "percent of an object that others hide",
    "surface": "what objects wear",
    "outlines": "which shapes",
    "size": "height × width in pixels",
    "n": "scenes in the set",
    "seed": "another draw of scenes",
}
"""Options in words, below or beside their names."""

_PANEL, _ACROSS = (290, 210), 30
"""Width and height of a panel, and space between two, in the figure's units."""
_NAME, _TICKS, _THUMB = 46, 30, 62
"""Heights: of a panel's name above it, of the values below it, and of the scenes below those."""
_LEFT, _TOP, _LEGEND = 72, 68, 250
_DODGE = 0.07
"""Values between two lines that carry intervals, so that these do not cover each other."""

_TITLES = {"own": "What makes objects hard to tell apart?", "base": "Does what a probe reads carry over?"}
_FITTED = {"own": "fitted anew on every set", "base": "fitted on the base scenes only"}


def difficulty_figure(
    table: pd.DataFrame, metric: str = "auroc", probe_from: str = "own", examples: bool = True
) -> go.Figure:
    """Draw one panel an option with one line a backbone over the option's values, in the order of the table.

    ::

        table = bk.vary_scenes([backbone], "synthetic:n=200,seed=0", {"twins": [0.2, 0.5, 0.9]})
        difficulty_figure(table, "twins_auroc")

    The grey band is the value that the base scenes have. Below each value stands the first scene of its set. Controls
    and untrained backbones are thin and dashed or grey, as in `layer_curves`; trained backbones have 95 % intervals
    where the metric is the accuracy. Dashed: chance, or always answering with the majority class. Figures are averaged
    over seeds. Lines join values for the eye; nothing was measured between them.

    Parameters
    ----------
    table : pandas.DataFrame
        As `bindkit.vary_scenes` gives it, of one layer a backbone.
    metric : str
        One of `bindkit.views.figures.curves.METRICS`.
    probe_from : str
        ``"own"``: fitted anew on every set. ``"base"``: fitted on the base scenes, where they were measured
        with ``transfer=True``.
    examples : bool
        Whether to show scenes below the values.

    Raises
    ------
    InvalidParameterError
        For an unknown metric, a table without such rows, or rows that may not be averaged: of several layers, probes,
        tasks, protocols or splits.
    """
    rows = _rows(table, metric, probe_from)
    by_option = {option: rows[rows["option"] == option] for option in dict.fromkeys(rows["option"])}
    n_cols = {1: 1, 2: 2, 4: 2}.get(len(by_option), 3)
    below = _TICKS + (_THUMB + 8 if examples else 0)
    shown = panels(len(by_option), n_cols, gap=(_ACROSS, below + _NAME), size=_PANEL)
    figure = shown.figure
    looks = line_looks(rows)
    for number, (option, own) in enumerate(by_option.items()):
        _draw_panel(figure, own, metric, looks, shown.place(number))
        shown.add_name(number, option, _MEANINGS.get(option, ""), above=4)
        if not examples:
            continue
        axes = figure.get_subplot(**shown.place(number))
        for at, uri in enumerate(own.drop_duplicates("value")["scenes"]):
            scene = _example_scene(uri, 0)
            figure.add_layout_image(
                source=picture(scene.image, scene.size, lossy=True).source,
                xref=axes.xaxis.plotly_name.replace("axis", ""),
                yref="paper",
                x=at,
                y=axes.yaxis.domain[0] - _TICKS / shown.inside[1],
                sizex=0.92,
                sizey=_THUMB / shown.inside[1],
                xanchor="center",
                yanchor="top",
                sizing="contain",
            )
    shown.hide_rest()
    drawn = rows[metric].dropna() if metric in CHANCE else heights(figure)
    figure.update_yaxes(range=axis_range(drawn, metric, 0.015))
    figure.update_yaxes(title_text=METRICS[metric], col=1, title_font_size=13.5)
    # The legend stands in a place that no panel takes, or else at the right.
    free = shown.n_rows * n_cols > shown.n
    left, top = shown.corner(shown.n_rows * n_cols - 1 if free else n_cols - 1)
    right = 24 if free else _LEGEND
    return framed(
        figure,
        _TITLES[probe_from],
        _subtitle(rows, metric, probe_from),
        width=max(760, _LEFT + shown.inside[0] + right),
        inside=shown.inside[1],
        margin={"l": _LEFT, "r": right, "t": _TOP + _NAME, "b": below + 16},
        hovermode="closest",
        legend={"x": left + 0.01 if free else 1.015, "y": top, "xanchor": "left", "yanchor": "top", "tracegroupgap": 0},
    )


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
        As `bindkit.scenes.opening.scene_variations`; for a scene that the sets do not have.
    """
    by_option: dict[str, list[Variation]] = {}
    for varied in scene_variations(base, options):
        by_option.setdefault(varied.option, []).append(varied)
    n_cols, side, gap, above, name = max(map(len, by_option.values())), 100, 10, 22, 150
    rows, cols = _example_scene(base, example).size
    tall = round(side * min(1.6, rows / cols))
    shown = panels(len(by_option) * n_cols, n_cols, gap=(gap, above + gap), size=(side, tall))
    figure, across = shown.figure, shown.inside[0]
    figure.update_xaxes(visible=False, constrain="domain").update_yaxes(visible=False)
    for row, (option, values) in enumerate(by_option.items()):
        for number, varied in enumerate(values, row * n_cols):
            scene = _example_scene(varied.uri, example)
            # Smoothed, since scenes are small: their pixels would look like a pattern of the surface.
            pixels = picture(scene.image, scene.size, lossy=True).update(zsmooth="fast")
            figure.add_trace(pixels, **shown.place(number))
            show_whole(figure, scene.size, shown.place(number))
            said = f"<b>{varied.value}</b> · base" if varied.is_base else varied.value
            middle = sum(figure.get_subplot(**shown.place(number)).xaxis.domain) / 2
            write_on(figure, said, middle, shown.corner(number)[1], xanchor="center", yanchor="bottom")
        meaning = "<br>".join(textwrap.wrap(_MEANINGS.get(option, ""), 20))
        words, top = f"<b>{option}</b><br><span style='color:{FAINT}'>{meaning}</span>", shown.corner(row * n_cols)[1]
        write_on(figure, words, -12 / across, top, xanchor="right", yanchor="top", align="right")
    title, subtitle = "One option at a time", "a scene for each value; all else as in the base scenes"
    width = max(520, name + across + 28)
    margin = {"l": name, "r": width - name - across, "t": 84 + above, "b": 20}
    return framed(figure, title, subtitle, width, shown.inside[1], margin, showlegend=False)


def _rows(table: pd.DataFrame, metric: str, probe_from: str) -> pd.DataFrame:
    """Rows to draw, or a named error."""
    require_metric(metric)
    if missing := [name for name in (metric, "backbone", "option", "value", "probe_from") if name not in table]:
        raise InvalidParameterError(
            f"the table lacks the columns {', '.join(missing)}; give one that bk.vary_scenes made"
        )
    rows = table[table["probe_from"] == probe_from]
    if rows.empty:
        there = ", ".join(map(str, table["probe_from"].unique())) or "nothing"
        raise InvalidParameterError(
            f"the table has no rows of probe_from={probe_from!r}, it has {there}; measure with transfer=True for "
            "probes of the base scenes"
        )
    for name, own in rows.groupby("backbone"):
        require_one_kind(own, f"the line of {name}", ("task", "protocol", "split", "layer", "probe"), table="table")
    return rows.assign(value=rows["value"].astype(str), **{metric: pd.to_numeric(rows[metric])})


def _draw_panel(
    figure: go.Figure, rows: pd.DataFrame, metric: str, looks: Mapping[str, Look], where: dict[str, int]
) -> None:
    """Lines of one option, receding ones first so that the others are drawn over them."""
    values = list(dict.fromkeys(rows["value"]))
    positions = np.arange(len(values))
    is_first = where == {"row": 1, "col": 1}
    marked = [at for at, value in enumerate(values) if rows.loc[rows["value"] == value, "is_base"].any()]
    for at in marked:
        band = {"fillcolor": "#eef1f4", "line_width": 0, "layer": "below", "exclude_empty_subplots": False}
        half = min(0.46, 0.14 * len(values))
        figure.add_vrect(at - half, at + half, **band, **where)
    baseline, levels = "", []
    if metric in CHANCE:
        baseline, levels = "chance", [CHANCE[metric]] * len(values)
    elif metric == "accuracy" and "majority_accuracy" in rows:
        baseline = "majority class"
        levels = list(rows.groupby("value")["majority_accuracy"].mean().reindex(values))
    if baseline:
        ends = [-0.5, *range(len(values)), len(values) - 0.5]
        how = {"name": baseline, "legendgroup": baseline, "legendrank": 1004, "showlegend": is_first}
        trace = curve(ends, [levels[0], *levels, levels[-1]], Look(FAINT, "dash", 1.3), hoverinfo="skip", **how)
        figure.add_trace(trace, **where)
    solid = [name for name, look in looks.items() if not look.recedes]
    bounds = ["accuracy_low", "accuracy_high"] if metric == "accuracy" else []
    with_bars = bool(bounds) and set(bounds) <= set(rows)
    for name in sorted(looks, key=lambda name: not looks[name].recedes):
        look, own = looks[name], rows[rows["backbone"] == name]
        drawn = own.groupby("value")[[metric, *(bounds if with_bars else ())]].mean().reindex(values)
        bars: dict[str, Any] = {}
        shift = 0.0
        if with_bars and not look.recedes:
            shift = _DODGE * (solid.index(name) - (len(solid) - 1) / 2)
            bars["error_y"] = whiskers(drawn, metric, look.colour)
        trace = curve(
            positions + shift,
            drawn[metric],
            look,
            size=5 if look.recedes else 8,
            name=control_title(name),
            legendgroup=name,
            legendrank=1000 + 2 * look.is_control + look.recedes,
            showlegend=is_first,
            customdata=values,
            hovertemplate="%{customdata}: %{y:.3f}",
            **bars,
        )
        figure.add_trace(trace, **where)
    for at, value in enumerate(values):
        if rows.loc[rows["value"] == value, metric].isna().all():
            why = "no distractors" if "twins" in metric else "undefined"
            how = {"showarrow": False, "textangle": -90, "font": {"size": 12, "color": FAINT}}
            figure.add_annotation(x=at, y=0.5, yref="y domain", text=why, **how, **where)
    ticks = [f"<b>{value}</b>" if at in marked else value for at, value in enumerate(values)]
    figure.update_xaxes(
        tickvals=positions, ticktext=ticks, range=[-0.5, len(values) - 0.5], showgrid=False, ticks="", **where
    )
    figure.update_xaxes(tickfont_size=12, tickangle=0, automargin=False, **where)
    figure.update_yaxes(showticklabels=where["col"] == 1, automargin=False, tickformat=".2f", **where)


def _subtitle(rows: pd.DataFrame, metric: str, probe_from: str) -> str:
    """How it was measured, in one line."""
    probes = " and ".join(dict.fromkeys(rows["probe"]))
    layers = rows["layer"].dropna().astype(int).unique()
    at = f" at layer {layers[0]}" if len(layers) == 1 else ""
    bars = " · bars: 95 % intervals over scenes" if metric == "accuracy" else ""
    return f"{probes} probe{at}, {_FITTED[probe_from]} · grey band: the base scenes{bars}"


def _example_scene(uri: str, position: int) -> Scene:
    """One scene of a set. Raises InvalidParameterError where it has not so many."""
    scenes = open_scenes(uri)
    if not 0 <= position < len(scenes.ids):
        raise InvalidParameterError(f"{uri} has the scenes 0 to {len(scenes.ids) - 1}, asked for scene {position}")
    return scenes[position]
