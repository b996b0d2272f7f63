"""The paper's table as a picture: every model's figures, and as a bar what they add to what needs no model."""

from __future__ import annotations

import re

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bindkit.arguments import SAME_CLASS, control_title
from bindkit.errors import InvalidParameterError
from bindkit.probes.judging import scenes_of
from bindkit.results.model_table import bounds_text, differences
from bindkit.results.tables import OVER_CONTROLS, ranked_by, require_one_kind
from bindkit.views.figures.looks import line_looks
from bindkit.views.figures.style import FAINT, GRID, INK, subtitle_lines, titled, translucent, whiskers

_PANELS = {"accuracy": ("accuracy", "gain", "the more frequent answer")} | {
    figure: (title, OVER_CONTROLS[figure], "the strongest control")
    for figure, title in (
        ("auroc", "AUROC, all pairs"),
        ("twins_auroc", "AUROC, twins"),
        ("matched_auroc", "AUROC at equal distance"),
        ("matched_twins_auroc", "twins at equal distance"),
    )
}
"""Title of each panel there may be, the column that says what is added, and to what."""

_CHANCE = 0.5
_ROW_HEIGHT, _WIDTH, _NUMBERS = 40, 860, 0.27
"""Pixels of a row and of all; the share of a panel that its column of numbers takes."""
_ROW_HEIGHT_BOUNDED, _WIDTH_BOUNDED = 58, 1020
"""The same where gains have intervals, which stand below them."""
_INTERVAL, _LETTER = 112, 7.2
"""Pixels that the text of an interval takes with some space before it, and a letter of a model's name."""
_SPACING, _RIGHT, _LINE = 0.025, 16, 19
"""Share of the width between two panels; pixels right of the last, and of a line of the subtitle."""

_SYMBOLS = {"trained": "circle", "untrained": "circle-open", "control": "diamond", "oracle": "diamond-open"}


def model_table_figure(table: pd.DataFrame) -> go.Figure:
    """One row a model at its best layer, three panels: accuracy, AUROC on all pairs, AUROC on twins.

    A bar goes from what needs no trained model (the grey line: the more frequent answer, or the strongest control
    judged on the same pairs) to the model's figure, so that its length is what the model adds; the number below the
    figure says the same, with its interval where there is one. Bars are faint where nothing is added, or nothing that
    can be told from chance. Where there is no control, bars start at chance.

    Parameters
    ----------
    table : pandas.DataFrame
        As `bindkit.results.model_table.model_table` or `bindkit.results.model_table.with_gain_intervals` gives it.

    Raises
    ------
    InvalidParameterError
        For an empty table, one without the columns needed, or rows of several protocols or splits.
    """
    panels = {figure: _PANELS[figure] for figure in ("accuracy", *ranked_by(table))}
    missing = [name for name in ("kind", "backbone", "layer", *panels) if name not in table]
    if missing or table.empty:
        raise InvalidParameterError(
            f"nothing to draw: the table has no {', '.join(missing) or 'rows'}; give what model_table() returns"
        )
    require_one_kind(table, "the table", table="table")
    rows = table.reset_index(drop=True)
    looks = line_looks(rows[rows["kind"] != "oracle"], "backbone")
    colours = [looks[name].colour if name in looks else FAINT for name in rows["backbone"]]
    bounded = any(f"{added}_low" in rows and rows[f"{added}_low"].notna().any() for _, added, _ in panels.values())
    labels = [_label(row) for row in rows.to_dict("records")]
    row_height, width, share = _ROW_HEIGHT, _WIDTH, _NUMBERS
    if bounded:
        row_height, width = _ROW_HEIGHT_BOUNDED, _WIDTH_BOUNDED
        share = _share_of_intervals(labels)
    titles = []
    figure = make_subplots(rows=1, cols=3, shared_yaxes=True, horizontal_spacing=_SPACING, column_titles=[*panels])
    for panel, (metric, (title, added, over)) in enumerate(panels.items(), 1):
        start, known = _starts(rows, metric, added)
        titles.append(
            f"{title}<br><span style='color:{FAINT};font-size:12px'>line: {over if known else 'chance'}</span>"
        )
        place = {"row": 1, "col": panel}
        figure.add_trace(_level(rows, start), **place)
        for number, row in enumerate(rows.to_dict("records")):
            if row["kind"] in ("trained", "untrained") and pd.notna(row[metric]) and pd.notna(start[number]):
                figure.add_trace(_bar(row, number, start[number], metric, added, colours[number]), **place)
        figure.add_trace(_points(rows, metric, colours), **place)
        low, high = _span(rows, metric, start)
        # Numbers stand in a column of their own, right of all points.
        edge = high + (high - low) * share / (1 - share)
        figure.add_trace(_numbers(rows, metric, added, start, edge), **place)
        figure.update_xaxes(range=[low, edge], tickvals=_ticks(low, high), tickformat=".1f", **place)
    for annotation, text in zip(figure.layout.annotations, titles, strict=True):
        annotation.update(text=text, font={"size": 14, "color": INK})
    last = len(rows) - 0.4
    figure.update_yaxes(
        range=[last, -0.6], tickvals=[*range(len(rows))], ticktext=labels, showgrid=False, showline=False, ticks=""
    )
    _separate_kinds(figure, rows)
    lines = subtitle_lines(_subtitle(rows), width)
    titled(figure, "What does binding add?", "<br>".join(lines))
    top = 118 + _LINE * (len(lines) - 1)
    height, margin = top + 62 + row_height * len(rows), {"t": top, "l": 20, "r": _RIGHT, "b": 44}
    return figure.update_layout(width=width, height=height, title_y=1 - 18 / height, margin=margin, hovermode="closest")


def _share_of_intervals(labels: list[str]) -> float:
    """The share of a panel that an interval's text takes, so that no point and no line runs through it."""
    letters = max(len(line) for label in labels for line in re.sub("<(?!br).*?>", "", label).split("<br>"))
    panel = (_WIDTH_BOUNDED - _RIGHT - _LETTER * letters) * (1 - 2 * _SPACING) / 3
    return min(0.7, _INTERVAL / panel) if panel > 0 else 0.7


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
        return [_CHANCE] * len(rows), False
    return [float(value) for value in (starts.fillna(known[0]) if len(known) == 1 else starts)], True


def _level(rows: pd.DataFrame, start: list[float]) -> go.Scatter:
    """The line at which bars start, unbroken where neighbours start alike."""
    x = [value for level in start for value in (level, level, None)]
    y = [value for number in range(len(rows)) for value in (number - 0.5, number + 0.5, None)]
    return go.Scatter(
        x=x, y=y, mode="lines", line={"color": FAINT, "width": 1.3}, showlegend=False, hoverinfo="skip", name="start"
    )


def _bar(row: dict, number: int, start: float, metric: str, added: str, colour: str) -> go.Scatter:
    # What falls short of the line, or may do, recedes, as does what was never trained.
    low = row.get(f"{added}_low")
    is_added = row[metric] > start if low is None or pd.isna(low) else low > 0
    opacity = 0.45 if row["kind"] == "trained" and is_added else 0.18
    return go.Scatter(
        x=[start, row[metric]],
        y=[number, number],
        mode="lines",
        line={"color": translucent(colour, opacity), "width": 9},
        showlegend=False,
        hoverinfo="skip",
        name=f"added by {row['backbone']}",
    )


def _points(rows: pd.DataFrame, metric: str, colours: list[str]) -> go.Scatter:
    return go.Scatter(
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
        customdata=[_told(row, metric) for row in rows.to_dict("records")],
        hovertemplate="%{customdata}<extra></extra>",
    )


def _numbers(rows: pd.DataFrame, metric: str, added: str, start: list[float], edge: float) -> go.Scatter:
    """The figure and, of models, what it adds, in digits and with its interval."""
    texts = []
    for row, level in zip(rows.to_dict("records"), start, strict=True):
        value = row[metric]
        text = "" if pd.isna(value) else f"{value:.3f}"
        if text and row["kind"] in ("trained", "untrained") and pd.notna(level):
            lines = [f"{value - level:+.3f}".replace("-", "−"), bounds_text(row, added, "+")]
            text += f"<br><span style='color:{FAINT};font-size:11px'>{'<br>'.join(filter(None, lines))}</span>"
        texts.append(text)
    return go.Scatter(
        x=[edge] * len(rows),
        y=list(rows.index),
        mode="text",
        name=f"{metric} in digits",
        text=texts,
        textposition="middle left",
        textfont={"size": 12.5, "color": INK},
        showlegend=False,
        hoverinfo="skip",
    )


def _span(rows: pd.DataFrame, metric: str, start: list[float]) -> tuple[float, float]:
    """From a little below the lowest thing drawn to a little above the highest."""
    columns = [rows[name] for name in (metric, f"{metric}_low", f"{metric}_high") if name in rows]
    drawn = pd.concat([*columns, pd.Series(start)]).dropna()
    if drawn.empty:
        return 0.4, 1.0
    low, high = float(drawn.min()), float(drawn.max())
    spare = max(0.015, 0.06 * (high - low))
    return low - spare, high + spare


def _ticks(low: float, high: float) -> list[float]:
    """Tenths within the span, of many every second one: more would not fit between three panels."""
    tenths = [tenth / 10 for tenth in range(11) if low <= tenth / 10 <= high]
    return tenths if len(tenths) <= 5 else [tenth for tenth in tenths if round(10 * tenth) % 2 == 0]


def _separate_kinds(figure: go.Figure, rows: pd.DataFrame) -> None:
    """A thin line between models that were trained, those that were not, controls and the oracle."""
    for number in range(1, len(rows)):
        if rows["kind"][number] != rows["kind"][number - 1]:
            figure.add_hline(y=number - 0.5, line={"color": GRID, "width": 1.2}, layer="below")


def _label(row: dict) -> str:
    if row["kind"] == "oracle":
        title = "knows every class" + str(row["backbone"]).removeprefix(SAME_CLASS).replace("@", " at ")
        return _two_lines(title, "oracle: all that similarity tells")
    if row["kind"] == "control":
        return _two_lines(control_title(row["backbone"]), "control")
    objective = row.get("objective")
    what = "untrained" if row["kind"] == "untrained" else objective if isinstance(objective, str) else ""
    return _two_lines(row["backbone"], " · ".join(filter(None, [what, f"layer {row['layer']:.0f}"])))


def _two_lines(name: str, what: str) -> str:
    return f"{name}  <br><span style='color:{FAINT};font-size:11px'>{what}</span>  "


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


def _subtitle(rows: pd.DataFrame) -> list[str]:
    """What was measured on what, in parts."""
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
