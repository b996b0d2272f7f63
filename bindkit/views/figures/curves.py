"""Curves over layers and epochs, drawn from the table of results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from bindkit.arguments import control_title
from bindkit.errors import InvalidParameterError
from bindkit.probes.batches import scenes_of
from bindkit.results.tables import AVERAGED, best_layers, require_one_kind
from bindkit.views.figures.panels import LOWER_LEGEND, panels, subtitle_lines, titled
from bindkit.views.figures.style import FAINT, SILENT, TEMPLATE, Look, colour_of, curve, line_looks, whiskers

METRICS = {
    "accuracy": "accuracy on pairs of patches",
    "balanced_accuracy": "balanced accuracy on pairs",
    "auroc": "AUROC on pairs of patches",
    "average_precision": "average precision, same-object pairs",
    "twins_accuracy": "accuracy on same-class distractors",
    "twins_auroc": "AUROC against same-class distractors",
    "matched_auroc": "AUROC at equal distance",
    "matched_twins_auroc": "AUROC at equal distance, distractors",
}
"""Metrics that can be drawn, with the title of their axis."""

CHANCE = dict.fromkeys(("balanced_accuracy", "auroc", "twins_auroc", "matched_auroc", "matched_twins_auroc"), 0.5)
"""What metrics are without looking, of those that say it by themselves."""

LEAST_SPAN = 0.12
"""An axis shows at least so much, so that small differences look small."""

_QUESTION = "Which layer knows what belongs together?"
_QUESTIONS = {
    "twins_auroc": "Which layer tells apart objects that look alike?",
    "twins_accuracy": "Which layer tells apart objects that look alike?",
    "matched_auroc": "Which layer knows what belongs together, wherever it lies?",
    "matched_twins_auroc": "Which layer tells apart objects that look alike, wherever they lie?",
}

_WHISKER_GAP = 0.013
"""Share of the axis between two whiskers at one layer."""


def layer_curves(results: pd.DataFrame, metric: str = "accuracy", probe: str = "quadratic") -> go.Figure:
    """One line a backbone over its layers; whiskers at the best layer are the 95 % interval of that figure.

    The best layer is chosen as `bindkit.results.tables.best_layers` does, on the validation scenes where there are any,
    so that it need not be where the line is highest. Whiskers of several lines at one layer stand side by side;
    untrained backbones beside trained ones have none.
    Dashed: what one gets without looking, i.e. the majority class (accuracy) or chance. Controls, which have no
    layer, are grey levels with a legend of their own. Figures are averaged over seeds.

    Parameters
    ----------
    results : pandas.DataFrame
        Rows of ``results.csv``.
    metric : str
        One of `METRICS`.
    probe : str
        Which probe's rows to draw.

    Raises
    ------
    InvalidParameterError
        For an unknown metric, if the table has no row of that probe, or rows of several tasks, protocols or splits.
    """
    rows = _rows(results, metric, "probe", probe)
    figure = _curves(rows, metric, line_of="backbone")
    return titled(figure, _QUESTIONS.get(metric, _QUESTION), _subtitle(rows, metric, [f"{probe} probe"]))


def probe_curves(results: pd.DataFrame, backbone: str, metric: str = "accuracy") -> go.Figure:
    """One line a probe over the layers of one backbone; otherwise, also in what it refuses, as `layer_curves`."""
    rows = _rows(results, metric, "backbone", backbone)
    figure = _curves(rows, metric, line_of="probe")
    return titled(
        figure, f"How much must a probe be able to do? {control_title(backbone)}", _subtitle(rows, metric, [])
    )


def training_curves(history: Sequence[Mapping[str, Any]] | pd.DataFrame, title: str = "Training") -> go.Figure:
    """Loss of training and validation, and validation accuracy, over the epochs of one fit.

    `history` is ``fit.history``: epoch, train_loss, validation_loss and validation_accuracy (None without a validation
    split); the title says which fit it is. Raises InvalidParameterError without an epoch or a training loss.
    """
    epochs = pd.DataFrame(history)
    if epochs.empty or "train_loss" not in epochs:
        raise InvalidParameterError("a training history needs at least one epoch with a 'train_loss'; give fit.history")
    # How many were trained: 0 before the first, where a fit was looked at there (its row says -1).
    number = 1 + (epochs["epoch"] if "epoch" in epochs else pd.Series(range(len(epochs))))
    shown = panels(2, 2, gap=(0.12, 0))
    figure = shown.figure
    for colour, (column, panel) in enumerate((("train_loss", 0), ("validation_loss", 0), ("validation_accuracy", 1))):
        if column in epochs and epochs[column].notna().any():
            name = column.replace("train_", "training_").replace("_", " ")
            look = {"name": name, "mode": "lines+markers", "line": Look(colour_of(colour)).line, "marker": {"size": 6}}
            figure.add_trace(go.Scatter(x=number, y=pd.to_numeric(epochs[column]), **look), **shown.place(panel))
    last = float(number.max())
    figure.update_xaxes(title_text="epochs trained", range=[-0.03 * last, 1.03 * last], **whole_ticks(number))
    figure.update_yaxes(tickformat=".2f")
    figure.update_yaxes(title_text="loss (nats a pair)", **shown.place(0))
    figure.update_yaxes(title_text="accuracy on pairs", **shown.place(1))
    titled(figure, title)
    return figure.update_layout(height=400, legend={"orientation": "h", "x": 0, "y": 1.16, "yanchor": "top"})


def require_metric(metric: str) -> None:
    """Raises InvalidParameterError for one that cannot be drawn."""
    if metric not in METRICS:
        raise InvalidParameterError(f"unknown metric {metric!r}; choose one of {', '.join(METRICS)}")


def whole_ticks(numbers: pd.Series) -> dict[str, Any]:
    """Ticks at whole numbers, at most about a dozen."""
    if numbers.empty:
        return {}
    span = int(numbers.max() - numbers.min())
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, max(100, span)) if span / step <= 13)
    return {"tick0": 0, "dtick": step}


def heights(figure: go.Figure) -> list[float]:
    """Every height that a line or point is drawn at, its whiskers' ends too."""
    drawn: list[float] = []
    for trace in figure.data:
        middle = np.asarray(trace.y, dtype=float)
        drawn += list(middle)
        if trace.error_y.array is not None:
            drawn += [*(middle + trace.error_y.array), *(middle - trace.error_y.arrayminus)]
    return [float(value) for value in drawn if not np.isnan(value)]


def axis_range(values: Iterable[float], metric: str, spare: float) -> list[float]:
    """From chance to perfect, so that noise around chance is not stretched into a trend; else values and some room."""
    drawn = list(values)
    if metric in CHANCE:
        return [min([0.45, *(value - 0.03 for value in drawn)]), 1.01]
    low, high = (min(drawn), max(drawn)) if drawn else (0.0, 1.0)
    spare = max(spare, (LEAST_SPAN - high + low) / 2)
    return [low - spare, high + spare]


def _rows(results: pd.DataFrame, metric: str, column: str, value: str) -> pd.DataFrame:
    """Rows that have the metric and the wanted value of a column."""
    require_metric(metric)
    missing = [name for name in (metric, "backbone", "layer", "probe") if name not in results.columns]
    if missing:
        raise InvalidParameterError(f"the table of results lacks the columns {', '.join(missing)}")
    rows = results[results[column] == value]
    if rows.empty:
        there = ", ".join(map(str, results[column].dropna().unique())) or "nothing"
        raise InvalidParameterError(f"the table has no {column} {value!r}; it has {there}")
    rows = rows.assign(layer=pd.to_numeric(rows["layer"]), **{metric: pd.to_numeric(rows[metric])})
    rows = rows[rows[metric].notna()]
    if rows.empty and metric == "accuracy":
        raise InvalidParameterError(
            "the table has no accuracy for these rows; every fit has one, so it is no results table"
        )
    return rows


def _curves(rows: pd.DataFrame, metric: str, line_of: str) -> go.Figure:
    """Lines over layers with whiskers at their best, and levels for rows without a layer."""
    figure = go.Figure()
    looks = line_looks(rows, line_of)
    aside = {"legend": "legend2"} if any(look.is_control for look in looks.values()) else {}
    layers = rows["layer"].dropna()
    first, last = (float(layers.min()), float(layers.max())) if len(layers) else (0.0, 1.0)
    ends = [first, last] if first != last else [first - 0.5, last + 0.5]

    def add_level(level: float, name: str, look: Look, **how: str) -> None:
        figure.add_trace(curve(ends, [level, level], look, name=name, hovertemplate="%{y:.3f}", **how))

    for name, look in looks.items():
        own = rows[rows[line_of] == name]
        require_one_kind(own, f"the line of {name}")
        by_layer = own.groupby("layer")[metric].mean().sort_index()
        if len(by_layer):
            how = {"name": control_title(name), "legendgroup": name, "hovertemplate": "%{y:.3f}"}
            figure.add_trace(curve(by_layer.index, by_layer, look, 5 if look.recedes else 7, **how))
        level = own[own["layer"].isna()][metric].mean()
        if pd.notna(level) and look.is_control:
            add_level(float(level), control_title(name), look, **aside)
        elif pd.notna(level):
            add_level(float(level), control_title(name), Look(look.colour, "dot", 2))
    _add_whiskers(figure, rows, metric, line_of, {name: look for name, look in looks.items() if not look.recedes})
    for name, level in _baselines(rows, metric).items():
        add_level(level, name, Look(FAINT, "dash", 1.5), **aside)
    if aside:  # a figure of many lines grows for both legends
        entries = sum(trace.showlegend is not False for trace in figure.data)
        height = max(TEMPLATE.layout.height, 220 + 20 * entries)
        title = {"text": "without a model", "font": {"size": 13, "color": FAINT}}
        below = {"title": title, "font": {"size": 13}, **LOWER_LEGEND}
        figure.update_layout(legend={"tracegroupgap": 0}, legend2=below, height=height)
    # Levels without a model below those of models, whiskers between: later traces are drawn over earlier ones.
    figure.data = sorted(figure.data, key=lambda trace: (trace.legend != "legend2", trace.mode != "markers"))
    figure.update_xaxes(title_text="layer (transformer block, counted from 0)", **whole_ticks(layers))
    figure.update_yaxes(title_text=METRICS[metric], tickformat=".2f")
    if metric in CHANCE or not rows.empty:
        figure.update_yaxes(range=axis_range(heights(figure), metric, 0.01))
    if rows.empty:
        why = "there are no same-class distractors" if "twins" in metric else "all pairs have one answer"
        figure.add_annotation(text=f"nothing to draw: {why}", x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    return figure


def _add_whiskers(figure: go.Figure, rows: pd.DataFrame, metric: str, line_of: str, looks: Mapping[str, Look]) -> None:
    """The 95 % interval of each line's figure at its best layer, side by side where several are best at one."""
    if not _has_bounds(rows, metric):
        return
    best = best_layers(rows[rows["layer"].notna()]).drop_duplicates(line_of)
    best = best[best[f"{metric}_low"].notna() & best[line_of].isin(list(looks))]
    span = max(float(rows["layer"].max() - rows["layer"].min()), 1.0)
    for layer, here in best.groupby("layer"):
        for number, row in enumerate(here.to_dict("records")):
            colour, aside = looks[row[line_of]].colour, _WHISKER_GAP * span * (number - (len(here) - 1) / 2)
            bars = (whiskers(pd.DataFrame([row]), metric, colour) or {}) | {"thickness": 1.8, "width": 3.5}
            name = f"{control_title(row[line_of])}, 95 % interval"
            how = {"mode": "markers", "marker": {"size": 1, "color": colour}, "name": name, **SILENT}
            trace = go.Scatter(x=[layer + aside], y=[row[metric]], error_y=bars, legendgroup=row[line_of], **how)
            figure.add_trace(trace)


def _has_bounds(rows: pd.DataFrame, metric: str) -> bool:
    """Whether models' figures have intervals, and accuracies to choose a layer by."""
    if f"{metric}_low" not in AVERAGED or not {f"{metric}_low", f"{metric}_high", "accuracy"} <= set(rows):
        return False
    return bool(rows.loc[rows["layer"].notna(), f"{metric}_low"].notna().any())


def _baselines(rows: pd.DataFrame, metric: str) -> dict[str, float]:
    """Levels that looking nowhere reaches, by name: one, or one a backbone where these were judged on other pairs."""
    if metric in CHANCE:
        return {"chance": CHANCE[metric]}
    if metric != "accuracy" or "majority_accuracy" not in rows or rows["majority_accuracy"].isna().all():
        return {}
    # Controls are judged on the pairs of a backbone that is there, so that they add no level of their own.
    judged = rows[rows["layer"].notna()] if rows["layer"].notna().any() else rows
    levels = judged.groupby("backbone", sort=False)["majority_accuracy"].mean().dropna()
    if levels.max() - levels.min() < 0.002:
        return {"majority class": float(levels.mean())}
    return {f"majority class, {control_title(str(backbone))}": float(level) for backbone, level in levels.items()}


def _subtitle(rows: pd.DataFrame, metric: str, parts: list[str]) -> str:
    """The parts, and what was measured on what."""
    protocols, splits = (list(rows[name].dropna().unique()) if name in rows else [] for name in ("protocol", "split"))
    parts += [f"{' and '.join(protocols)} protocol"] if protocols else []
    parts += [f"evaluated on {' and '.join(map(scenes_of, splits))}"] if splits else []
    if _has_bounds(rows, metric):
        chosen = best_layers(rows[rows["layer"].notna()])["chosen_on"].dropna().unique()
        where = f", chosen on the {chosen[0]} scenes" if len(chosen) == 1 else ""
        parts.append(f"whiskers: 95 % intervals over scenes, at the best layer{where}")
    return "<br>".join(subtitle_lines(parts, TEMPLATE.layout.width))
