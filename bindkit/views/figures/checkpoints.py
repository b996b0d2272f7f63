"""What the figures of checkpoints share: their rows, the levels that training has to beat, legends, scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from bindkit.arguments import control_title, is_control
from bindkit.errors import InvalidParameterError
from bindkit.results.tables import require_one_kind
from bindkit.views.figures.curves import _CHANCE, _LEAST_SPAN, METRICS
from bindkit.views.figures.looks import line_looks
from bindkit.views.figures.style import FAINT

DASH_UNTRAINED = "5px,3px"


def split_table(table: pd.DataFrame, metrics: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of checkpoints and rows of controls, with layers and metrics as numbers."""
    for metric in metrics:
        if metric not in METRICS:
            raise InvalidParameterError(f"unknown metric {metric!r}; choose one of {', '.join(METRICS)}")
    if not metrics:
        raise InvalidParameterError(f"give at least one metric of {', '.join(METRICS)}")
    needed = (*metrics, "backbone", "objective", "layer", "pretraining", "training_seed", "scenes_seen")
    missing = [name for name in needed if name not in table]
    lacking = ", ".join(missing)
    if missing or table["pretraining"].isna().all():
        raise InvalidParameterError(
            f"the table has no checkpoints{f' (it lacks {lacking})' if missing else ''}; give what "
            "bk.measure_checkpoints returned"
        )
    require_one_kind(table, "the table", table="table")
    if "probe" in table and table["probe"].nunique() > 1:
        kinds = table["probe"].unique()
        raise InvalidParameterError(
            f"the table has rows of several probes ({', '.join(kinds)}); draw one of them, for example "
            f"table[table['probe'] == {kinds[0]!r}]"
        )
    rows = table.assign(**{name: pd.to_numeric(table[name]) for name in ("layer", *metrics)})
    aside = np.array([is_control(objective) for objective in rows["objective"]])
    return rows[rows["pretraining"].notna() & ~aside], rows[aside]


def panel_title(label: str) -> str:
    """Name of an objective above its panel; what sets it apart, if anything, in small below.

    >>> panel_title("mae, mask_ratio=0.5")
    '<b>mae</b><br><sub>mask_ratio=0.5</sub>'
    """
    name, comma, rest = label.partition(", ")
    return f"<b>{name}</b>" + (f"<br><sub>{rest}</sub>" if comma else "")


def short_count(seen: float) -> str:
    """Few letters for a number of scenes: 0, 512, 9k, 1.5M."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if seen >= unit:
            return f"{seen / unit:.3g}{letter}"
    return f"{seen:.0f}"


def add_levels(
    figure: go.Figure,
    controls: pd.DataFrame,
    metric: str,
    ends: tuple[float, float],
    where: dict[str, int],
) -> None:
    """Controls, and what one gets without looking, as lines across a panel; each is named once in the legend."""
    looks = line_looks(controls, "backbone") if len(controls) else {}
    for name, look in looks.items():
        level = controls.loc[controls["backbone"] == name, metric].mean()
        if pd.notna(level):
            add_level(figure, float(level), control_title(name), look.line, ends, where)
    if metric in _CHANCE:
        line = {"color": FAINT, "dash": "dash", "width": 1.2}
        add_level(figure, _CHANCE[metric], "chance", line, ends, where)
    elif metric == "accuracy" and "majority_accuracy" in controls and controls["majority_accuracy"].notna().any():
        line = {"color": FAINT, "dash": "dash", "width": 1.2}
        level = float(controls["majority_accuracy"].mean())
        add_level(figure, level, "more frequent answer", line, ends, where)


def add_level(
    figure: go.Figure,
    level: float,
    name: str,
    line: dict[str, Any],
    ends: tuple[float, float],
    where: dict[str, int],
) -> None:
    """One line across a panel."""
    figure.add_trace(
        go.Scatter(
            x=list(ends),
            y=[round(level, 4)] * 2,
            name=name,
            legend="legend2",
            legendgroup=name,
            showlegend=not is_named(figure, name),
            mode="lines",
            line=line,
            hovertemplate="%{y:.3f}",
        ),
        **where,
    )


def is_named(figure: go.Figure, name: str) -> bool:
    """Whether the legend has this name already."""
    return any(trace.name == name and trace.showlegend is not False for trace in figure.data)


def two_legends(top: str = "trained") -> dict[str, Any]:
    """Legends of what was trained, above, and of what was not, below."""
    title = {"font": {"size": 13, "color": FAINT}}
    below = {"x": 1.01, "y": 0, "xanchor": "left", "yanchor": "bottom", "font": {"size": 13}, "tracegroupgap": 0}
    return {
        "legend": {"title": {"text": top, **title}, "tracegroupgap": 0},
        "legend2": {"title": {"text": "without training", **title}, **below},
    }


def limits_of(trained: pd.DataFrame, controls: pd.DataFrame, metric: str) -> list[float]:
    """What all panels show: from just below the least to just above the greatest, chance included."""
    drawn = [*trained[metric].dropna(), *controls[metric].dropna()]
    if metric in _CHANCE:
        drawn.append(_CHANCE[metric])
    elif metric == "accuracy" and "majority_accuracy" in controls:
        drawn += list(controls["majority_accuracy"].dropna())
    if not drawn:
        return [0.0, 1.0]
    low, high = min(drawn), max(drawn)
    spare = max(0.06 * (high - low), (_LEAST_SPAN - high + low) / 2)
    return [low - spare, min(high + spare, 1.02)]


def subtitle_of(trained: pd.DataFrame, bands: bool = True) -> str:
    """What was measured on what, and what bands are."""
    parts = []
    if "probe" in trained:
        parts.append(f"{trained['probe'].iloc[0]} probe")
    for column, words in (("protocol", "{} protocol"), ("split", "judged on the {} scenes")):
        values = list(trained[column].dropna().unique()) if column in trained else []
        if values:
            parts.append(words.format(values[0]))
    n_seeds = trained.groupby("pretraining")["training_seed"].nunique()
    if n_seeds.max() == 1:
        parts.append("one training seed, so no bands" if bands else "one training seed")
    elif bands:
        kinds = {"standard error" if count >= 3 else "range" for count in n_seeds if count > 1}
        counts = " or ".join(map(str, sorted(set(n_seeds))))
        parts.append(f"bands: {' or '.join(sorted(kinds))} over {counts} training seeds")
    else:
        parts.append(f"means over {' or '.join(map(str, sorted(set(n_seeds))))} training seeds")
    return " · ".join(parts)
