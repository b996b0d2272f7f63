"""The paper's table as a picture: every model's figures, and as a bar what they add to what needs no model."""

from __future__ import annotations

import re

import pandas as pd
import plotly.graph_objects as go

from bindkit.arguments import control_title
from bindkit.errors import InvalidParameterError
from bindkit.probes.batches import scenes_of
from bindkit.results.model_table import bounds_text, differences
from bindkit.results.tables import OVER_CONTROLS, ranked_by, require_one_kind
from bindkit.views.figures.panels import framed, panels, small, subtitle_lines
from bindkit.views.figures.style import FAINT, GRID, INK, SILENT, Look, curve, line_looks, translucent, whiskers

_PANELS = {"accuracy": ("accuracy", "gain", "majority class")} | {
    figure: (title, OVER_CONTROLS[figure], "best baseline")
    for figure, title in (
        ("auroc", "AUROC, all pairs"),
        ("twins_auroc", "AUROC, same-class distractors"),
        ("matched_auroc", "AUROC at equal distance"),
        ("matched_twins_auroc", "same-class distractors"),
    )
}
"""Title of each panel there may be, the column that says what is added, and to what."""

_INTERVAL, _LETTER = 112, 7.2
"""Pixels that the text of an interval takes with some space before it, and a letter of a model's name."""
_SPACING, _RIGHT, _LINE = 0.025, 16, 19
"""Share of the width between two panels; pixels right of the last, and of a line of the subtitle."""

_SYMBOLS = {"trained": "circle", "untrained": "circle-open", "control": "diamond", "oracle": "diamond-open"}


def model_table_figure(table: pd.DataFrame) -> go.Figure:
    """One row a model at its best layer, three panels: accuracy, AUROC on all pairs, AUROC on twins.

    A bar goes from what needs no trained model (the grey line: the majority class, or the best baseline on
    the same pairs) to the model's figure, so that its length is what the model adds; the number below the
    figure says the same, with its interval where there is one. Bars are faint where nothing is added, or nothing that
    can be told from chance. Where there is no baseline, bars start at chance.

    The table is one of `model_table` or `with_gain_intervals` of `bindkit.results.model_table`. Raises
    InvalidParameterError for an empty one, one without the columns needed, or rows of several protocols or splits.
    """
    metrics = ("accuracy", *ranked_by(table))
    missing = [name for name in ("kind", "backbone", "layer", *metrics) if name not in table]
    if missing or table.empty:
        raise InvalidParameterError(
            f"nothing to draw: the table has no {', '.join(missing) or 'rows'}; give what model_table() returns"
        )
    require_one_kind(table, "the table", table="table")
    rows = table.reset_index(drop=True)
    records = rows.to_dict("records")
    looks = line_looks(rows[rows["kind"] != "oracle"])
    colours = [looks[name].colour if name in looks else FAINT for name in rows["backbone"]]
    labels = [_label(row) for row in records]
    bounds = [f"{_PANELS[metric][1]}_low" for metric in metrics]
    row_height, width, share = 40, 860, 0.27  # share of a panel that its column of numbers takes
    if any(low in rows and rows[low].notna().any() for low in bounds):  # intervals stand below the numbers
        row_height, width = 58, 1020
        letters = max(len(line) for label in labels for line in re.sub("<(?!br).*?>", "", label).split("<br>"))
        panel = (width - _RIGHT - _LETTER * letters) * (1 - 2 * _SPACING) / 3
        share = min(0.7, _INTERVAL / panel) if panel > 0 else 0.7

    titles = [f"{title}<br>" for title, *_ in (_PANELS[metric] for metric in metrics)]
    shown = panels(3, 3, gap=(_SPACING, 0), shared_yaxes=True, column_titles=titles)
    figure = shown.figure
    for number, metric in enumerate(metrics):
        where, (_, added, over) = shown.place(number), _PANELS[metric]
        start, is_known = _starts(rows, metric, added)
        titles[number] += small(f"line: {over if is_known else 'chance'}")
        # The line at which bars start, unbroken where neighbours start alike.
        x = [value for level in start for value in (level, level, None)]
        y = [value for position in range(len(rows)) for value in (position - 0.5, position + 0.5, None)]
        figure.add_trace(curve(x, y, Look(FAINT, None, 1.3), name="start", **SILENT), **where)
        for position, row in enumerate(records):
            if row["kind"] in ("trained", "untrained") and pd.notna(row[metric]) and pd.notna(start[position]):
                # What falls short of the line, or may do, recedes, as does what was never trained.
                low = row.get(f"{added}_low")
                is_added = row[metric] > start[position] if low is None or pd.isna(low) else low > 0
                opacity = 0.45 if row["kind"] == "trained" and is_added else 0.18
                look, name = (
                    Look(translucent(colours[position], opacity), None, 9),
                    f"added by {control_title(row['backbone'])}",
                )
                bar = curve([start[position], row[metric]], [position] * 2, look, name=name, **SILENT)
                figure.add_trace(bar, **where)
        points = go.Scatter(
            x=rows[metric],
            y=list(rows.index),
            mode="markers",
            name=metric,
            marker={
                "size": 8,
                "color": colours,
                "symbol": [_SYMBOLS[kind] for kind in rows["kind"]],
                "line": {"color": colours, "width": 1.6},
            },
            error_x=whiskers(rows, metric, INK),
            showlegend=False,
            customdata=[_told(row, metric) for row in records],
            hovertemplate="%{customdata}<extra></extra>",
        )
        figure.add_trace(points, **where)
        low, high = _span(rows, metric, start)
        edge = high + (high - low) * share / (1 - share)  # numbers stand in a column of their own, right of all points
        digits = go.Scatter(
            x=[edge] * len(rows),
            y=list(rows.index),
            mode="text",
            name=f"{metric} in digits",
            text=[_digits(row, metric, added, level) for row, level in zip(records, start, strict=True)],
            textposition="middle left",
            textfont={"size": 12.5, "color": INK},
            **SILENT,
        )
        figure.add_trace(digits, **where)
        # Tenths, of many every second one: more would not fit between three panels.
        ticks = [tenth / 10 for tenth in range(11) if low <= tenth / 10 <= high]
        ticks = ticks if len(ticks) <= 5 else [tenth for tenth in ticks if round(10 * tenth) % 2 == 0]
        figure.update_xaxes(range=[low, edge], tickvals=ticks, tickformat=".1f", **where)
    for annotation, text in zip(figure.layout.annotations, titles, strict=True):
        annotation.update(text=text, font={"size": 14, "color": INK})
    last = len(rows) - 0.4
    figure.update_yaxes(
        range=[last, -0.6], tickvals=[*range(len(rows))], ticktext=labels, showgrid=False, showline=False, ticks=""
    )
    # A thin line between models that were trained, those that were not, controls and the oracle.
    for number in range(1, len(rows)):
        if rows["kind"][number] != rows["kind"][number - 1]:
            figure.add_hline(y=number - 0.5, line={"color": GRID, "width": 1.2}, layer="below")
    lines = subtitle_lines(_measured(rows), width)
    title, subtitle, inside = "What does binding add?", "<br>".join(lines), 18 + row_height * len(rows)
    margin: dict[str, float] = {"t": 118 + _LINE * (len(lines) - 1), "l": 20, "r": _RIGHT, "b": 44}
    return framed(figure, title, subtitle, width, inside, margin, hovermode="closest")


def _starts(rows: pd.DataFrame, metric: str, added: str) -> tuple[list[float], bool]:
    """Where each row's bar starts, and whether that is what the panel names (else chance).

    Rows that are compared with nothing (controls, the oracle) have the start of all others if these have one only.
    """
    if metric == "accuracy":
        column = rows.get("majority_accuracy", pd.Series(dtype=float)).reindex(rows.index)
        return [float(value) for value in column], True
    starts = (rows[metric] - rows[added]) if added in rows else pd.Series(float("nan"), rows.index)
    known = starts.dropna().round(9).unique()
    if len(known) == 0:
        return [0.5] * len(rows), False
    return [float(value) for value in (starts.fillna(known[0]) if len(known) == 1 else starts)], True


def _digits(row: dict, metric: str, added: str, start: float) -> str:
    """The figure and, of models, what it adds, with its interval."""
    if pd.isna(row[metric]):
        return ""
    text = f"{row[metric]:.3f}"
    if row["kind"] in ("trained", "untrained") and pd.notna(start):
        lines = [f"{row[metric] - start:+.3f}".replace("-", "−"), bounds_text(row, added, "+")]
        text += f"<br>{small('<br>'.join(filter(None, lines)), 11)}"
    return text


def _span(rows: pd.DataFrame, metric: str, start: list[float]) -> tuple[float, float]:
    """From a little below the lowest thing drawn to a little above the highest."""
    columns = [rows[name] for name in (metric, f"{metric}_low", f"{metric}_high") if name in rows]
    drawn = pd.concat([*columns, pd.Series(start)]).dropna()
    if drawn.empty:
        return 0.4, 1.0
    low, high = float(drawn.min()), float(drawn.max())
    spare = max(0.015, 0.06 * (high - low))
    return low - spare, high + spare


def _label(row: dict) -> str:
    """A row's name, and below it what it is."""
    name, objective = control_title(row["backbone"]), row.get("objective")
    if row["kind"] == "oracle":
        what = "baseline: knows every class"
    elif row["kind"] == "control":
        what = "baseline without a model"
    else:
        what = "untrained" if row["kind"] == "untrained" else objective if isinstance(objective, str) else ""
        what = " · ".join(filter(None, [what, f"layer {row['layer']:.0f}"]))
    return f"{name}  <br>{small(what, 11)}  "


def _told(row: dict, metric: str) -> str:
    """What a reader sees on pointing at a figure: the interval, the spread over seeds, every difference."""
    lines = [f"<b>{control_title(row['backbone'])}</b>: {row[metric]:.3f}"]
    low, high, spread = (row.get(f"{metric}_{name}") for name in ("low", "high", "spread"))
    if pd.notna(low) and pd.notna(high):
        lines[0] += f" [{low:.3f}, {high:.3f}]"
    if pd.notna(spread):
        lines.append(f"standard deviation over {row['n_seeds']:.0f} seeds {spread:.3f}")
    for name in differences(pd.DataFrame(columns=[*row]), metric):
        if pd.notna(row[name]):
            bounds = bounds_text(row, name, "+")
            lines.append(
                f"{row[name]:+.3f} over {name.removeprefix(f'{metric}_over_')}{f' ({bounds})' if bounds else ''}"
            )
    return "<br>".join(lines)


def _measured(rows: pd.DataFrame) -> list[str]:
    """What was measured on what: parts of a subtitle."""
    probes = rows.loc[rows["kind"] != "oracle", "probe"].dropna() if "probe" in rows else pd.Series(dtype=object)
    parts = [f"{probes.iloc[0]} probe"] if len(probes) else []
    models = rows[rows["layer"].notna()]
    chosen_on = models["chosen_on"].dropna().unique() if "chosen_on" in rows else []
    where = f", chosen on the {chosen_on[0]} scenes" if len(chosen_on) == 1 else ""
    parts.append(f"each model at its best layer{where}")
    parts += [f"{value} protocol" for value in rows["protocol"].dropna().unique()] if "protocol" in rows else []
    if "n_scenes" in rows and rows["n_scenes"].notna().any():
        n_scenes, splits = int(rows["n_scenes"].max()), rows["split"].dropna().unique() if "split" in rows else []
        parts.append(scenes_of(splits[0] if len(splits) == 1 else "judged", n_scenes))
    if "accuracy_low" in rows and rows["accuracy_low"].notna().any():
        parts.append("intervals: 95 % over scenes")
    return parts
