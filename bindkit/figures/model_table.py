"""The paper's table as a picture: accuracy with its interval, and AUROC beside all that needs no trained model."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bindkit.control_names import SAME_CLASS, control_title
from bindkit.errors import InvalidParameterError
from bindkit.figures.style import FAINT, INK, colour_of, titled

_PANELS = {
    "accuracy": "accuracy on pairs, 95 % interval",
    "auroc": "AUROC, all pairs",
    "twins_auroc": "AUROC, twins",
}
_ROW_HEIGHT = 34


def model_table_figure(table: pd.DataFrame) -> go.Figure:
    """One row a model at its best layer, three panels: accuracy, AUROC on all pairs, AUROC on twins.

    The dashed line is what one gets without looking: the more frequent answer, or chance. Models are coloured, and
    what needs no trained model is grey, so that what is to the right of all grey points is what binding adds.

    Parameters
    ----------
    table : pandas.DataFrame
        As `bindkit.model_table.model_table` gives it.

    Raises
    ------
    InvalidParameterError
        For an empty table, or one without the columns needed.
    """
    missing = [name for name in ("kind", "backbone", "layer", *_PANELS) if name not in table]
    if missing or table.empty:
        raise InvalidParameterError(
            f"nothing to draw: the table has no {', '.join(missing) or 'rows'}; give what model_table() returns"
        )
    rows = table.reset_index(drop=True)
    labels = [_label(row) for row in rows.to_dict("records")]
    trained = rows["kind"] == "trained"
    colours = [colour_of(position) if kind else FAINT for position, kind in enumerate(trained)]
    figure = make_subplots(
        rows=1, cols=3, shared_yaxes=True, horizontal_spacing=0.045, column_titles=[*_PANELS.values()]
    )
    for panel, metric in enumerate(_PANELS, 1):
        figure.add_trace(
            go.Scatter(
                x=rows[metric],
                y=labels,
                mode="markers+text",
                text=[f"{value:.3f}" if pd.notna(value) else "" for value in rows[metric]],
                textposition="top center",
                textfont={"size": 12, "color": INK},
                marker={"size": 11, "color": colours, "symbol": ["circle" if kind else "diamond" for kind in trained]},
                error_x=_interval(rows, metric),
                showlegend=False,
                hovertemplate="%{y}: %{x:.3f}<extra></extra>",
            ),
            row=1,
            col=panel,
        )
        level = rows["majority_accuracy"].mean() if metric == "accuracy" else 0.5
        figure.add_vline(x=float(level), line={"color": FAINT, "dash": "dash", "width": 1.5}, row=1, col=panel)
        drawn = pd.concat(
            [rows[metric], rows.get(f"{metric}_low", rows[metric]), rows.get(f"{metric}_high", rows[metric])]
        )
        low, high = min(float(drawn.min()), float(level)), float(drawn.max())
        spare = max(0.02, 0.18 * (high - low))
        figure.update_xaxes(range=[low - spare, high + spare], tickformat=".2f", nticks=5, row=1, col=panel)
    figure.update_yaxes(autorange="reversed", ticksuffix="  ", automargin=True, showgrid=True)
    figure.update_annotations(font={"size": 13.5})
    what = f"{rows['probe'].iloc[0]} probe" if "probe" in rows else ""
    titled(
        figure,
        "What does binding add?",
        " · ".join(filter(None, [what, "each model at its best layer", _judged(rows)])),
    )
    return figure.update_layout(height=190 + _ROW_HEIGHT * len(rows), margin={"t": 130, "l": 40}, hovermode="closest")


def _interval(rows: pd.DataFrame, metric: str) -> dict | None:
    low, high = f"{metric}_low", f"{metric}_high"
    if low not in rows or high not in rows:
        return None
    above, below = rows[high] - rows[metric], rows[metric] - rows[low]
    return {
        "type": "data",
        "symmetric": False,
        "array": above,
        "arrayminus": below,
        "thickness": 1.6,
        "width": 5,
        "color": INK,
    }


def _label(row: dict) -> str:
    if row["kind"] == "oracle":
        return "knows all classes" + str(row["backbone"]).removeprefix(SAME_CLASS)
    if row["kind"] == "control":
        return control_title(row["backbone"])
    return f"{row['backbone']}, layer {row['layer']:.0f}"


def _judged(rows: pd.DataFrame) -> str:
    parts = [f"{value} protocol" for value in rows["protocol"].dropna().unique()] if "protocol" in rows else []
    if "n_scenes" in rows and rows["n_scenes"].notna().any():
        parts.append(f"{int(rows['n_scenes'].max())} scenes")
    return ", ".join(parts)
