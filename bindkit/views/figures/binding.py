"""The binding subspace, the attention that follows it, and what editing it does: each beside its control."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from bindkit.arguments import control_title
from bindkit.errors import InvalidParameterError
from bindkit.views.figures.curves import METRICS, whole_ticks
from bindkit.views.figures.panels import Panels, framed, panels, small
from bindkit.views.figures.style import FAINT, PALETTE, SILENT, Look, colour_of, curve, translucent, whiskers

_AXES = {
    "all": ("the whole probe", Look("#1f2328", "dash", 1.5)),
    "binding": ("binding axes, by weight", Look(PALETTE[0])),
    "refitted": ("a probe of that rank, fitted anew", Look(PALETTE[2])),
    "eigenvalues": ("eigenvalues of the form alone", Look(PALETTE[4], "4px,3px")),
    "principal": ("principal components", Look(PALETTE[1])),
    "random": ("random, of the same energy", Look(FAINT, "2px,3px")),
}
"""By what directions are chosen -> how it is said and drawn."""

_OF = {
    "affinity": ("the probe's affinity", PALETTE[0]),
    "cosine similarity": ("cosine similarity", PALETTE[1]),
    "nearness": ("nearness", FAINT),
}

_CORRELATIONS = {
    "spearman": "as it is",
    "at_distance": "among pairs at equal distance",
    "partial": "at equal distance and similarity",
}

_READ_OUTS = {
    ("affinity", "matched_auroc"): ("affinity", "AUROC at equal distance"),
    ("affinity", "matched_twins_auroc"): ("affinity, same class", "AUROC at equal distance"),
    ("classes", "class_iou"): ("class segmentation", "mean overlap (IoU)"),
    ("objects", "matched_iou"): ("object identity", "mean overlap (IoU)"),
    ("loss", "loss"): ("pretraining loss", "as in training"),
}
_SUBSPACES = {"binding": Look(PALETTE[0]), "random": Look(FAINT, "4px,3px", 2)}

_MARGIN = {"t": 112, "b": 62, "l": 70, "r": 30}


def spectrum_figure(spectrum: pd.DataFrame, most: int = 40) -> go.Figure:
    """Draw the weights of a binding subspace by axis, and how much of the logits' variance the first k hold.

    `spectrum` is what `bindkit.binding_spectrum` gives, of one probe; of its axes the first `most` are drawn. Raises
    InvalidParameterError for another table.
    """
    _require(spectrum, ("axis", "weight", "sign", "cumulative", "effective_rank"), "binding_spectrum")
    rows, shown = spectrum.head(most), panels(2, 2, gap=(86, 0), size=(350, 270))
    for sign, name, colour in ((1, "alike speaks for one object", PALETTE[0]), (-1, "unlike does", PALETTE[1])):
        own = rows[rows["sign"] == sign]
        if len(own):
            hover = "axis %{x}: %{y:.3f}"
            bars = go.Bar(x=own["axis"], y=own["weight"], name=name, marker_color=colour, hovertemplate=hover)
            shown.figure.add_trace(bars, **shown.place(0))
    look = {"name": "share", "showlegend": False, "hovertemplate": "first %{x} axes: %{y:.1%}"}
    shown.figure.add_trace(curve(rows["axis"], rows["cumulative"], Look(PALETTE[2]), 6, **look), **shown.place(1))
    shown.figure.update_xaxes(title_text="axis, by size", **whole_ticks(rows["axis"]))
    shown.figure.update_yaxes(title_text="weight (logits at unit scores)", **shown.place(0))
    shown.figure.update_yaxes(title_text="share of the logits' variance", tickformat=".0%", **shown.place(1))
    shown.figure.update_yaxes(range=[0, 1.03], **shown.place(1))
    rank = f"effective rank {spectrum['effective_rank'].iloc[0]:.1f} of {len(spectrum)}"
    title = "How many directions does binding take?"
    return _framed(shown, title, f"{_which(spectrum)} · {rank}", hovermode="closest", bargap=0.15)


def rank_figure(table: pd.DataFrame, metrics: Sequence[str] = ("accuracy", "matched_auroc")) -> go.Figure:
    """Draw figures against the number of directions that the probe sees, one panel a metric.

    `table` is what `bindkit.rank_curve` gives. Bands are 95 % intervals over scenes of the binding axes. Raises
    InvalidParameterError for another table or a metric that it lacks.
    """
    _require(table, ("axes", "rank", *metrics), "rank_curve")
    shown = panels(len(metrics), len(metrics), gap=(86, 0), size=(350, 290))
    ranks = table.loc[table["axes"] != "all", "rank"]
    for number, metric in enumerate(metrics):
        for axes, (name, look) in _AXES.items():
            own = table[table["axes"] == axes].sort_values("rank")
            if own.empty:
                continue
            how = {"name": name, "legendgroup": name, "showlegend": number == 0, "hovertemplate": "%{y:.3f}"}
            if axes == "all":
                ends = [ranks.min(), ranks.max()]
                line = curve(ends, [own[metric].iloc[0]] * 2, look, **how)
            else:
                line = curve(own["rank"], own[metric], look, 6, **how)
            if axes == "binding":
                _band(shown, number, own["rank"], own[f"{metric}_low"], own[f"{metric}_high"], look.colour)
            shown.figure.add_trace(line, **shown.place(number))
        shown.figure.update_yaxes(title_text=METRICS[metric], title_font_size=13.5, **shown.place(number))
    ticks = sorted(ranks.unique())
    shown.figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{k:g}" for k in ticks], title_text="directions")
    said = f"{_which(table)} · {int(table['n_scenes'].iloc[0])} scenes · band: 95 % interval"
    return _framed(shown, "How few directions does binding need?", said, below=96)


def subspaces_figure(table: pd.DataFrame) -> go.Figure:
    """Draw how far binding subspaces are one, a square a pair: from chance (white) to the same (dark).

    `table` is what `bindkit.compare_subspaces` gives; agreement is drawn, and in every square stand agreement and, of
    one model, overlap of directions. Raises InvalidParameterError for another table.
    """
    _require(table, ("first", "second", "agreement", "agreement_chance", "overlap"), "compare_subspaces")
    names = list(dict.fromkeys([*table["first"], *table["second"]]))
    values, text = np.full((len(names),) * 2, np.nan), np.full((len(names),) * 2, "", dtype=object)
    for row in table.to_dict("records"):
        place = names.index(row["second"]), names.index(row["first"])
        values[place] = row["agreement"]
        overlap = "" if pd.isna(row["overlap"]) else f"<br>{row['overlap']:.2f}"
        text[place] = f"<b>{row['agreement']:.2f}</b>{overlap}"
    chance = float(table["agreement_chance"].mean())
    shown = panels(1, 1, gap=(0, 0), size=(78 * len(names), 62 * len(names)))
    # Light enough everywhere for dark numbers.
    scale = [[0, "#ffffff"], [1, "#7db6e8"]]
    squares = go.Heatmap(
        z=values,
        x=names,
        y=names,
        text=text,
        texttemplate="%{text}",
        zmin=min(chance, 0.9),
        zmax=1,
        colorscale=scale,
        xgap=2,
        ygap=2,
        hovertemplate="%{x} and %{y}: agreement %{z:.3f}<extra></extra>",
        colorbar={"title": {"text": "agreement", "side": "right"}, "thickness": 12, "tickformat": ".2f"},
    )
    shown.figure.add_trace(squares)
    shown.figure.update_yaxes(autorange="reversed", showgrid=False)
    shown.figure.update_xaxes(showgrid=False, tickangle=-30)
    said = f"rank {table['rank'].iloc[0]} · bold: agreement on the same patches (chance {chance:.2f}), below it overlap"
    figure = _framed(shown, "Is it one subspace?", said, hovermode="closest")
    return figure.update_layout(width=max(620, 78 * len(names) + 300))


def twins_scores_figure(scores: pd.DataFrame) -> go.Figure:
    """Draw the patches of identical objects on two axes, where the copies come apart or do not.

    `scores` is what `bindkit.twin_scores` gives. A row a pair of copies, on the binding axes at the left and on
    principal components at the right; lines join matching patches. Raises InvalidParameterError for another table.
    """
    _require(scores, ("axes", "copies", "instance", "part", "first", "second"), "twin_scores")
    pairs = list(scores["copies"].unique())
    shown = panels(2 * len(pairs), 2, gap=(70, 56), size=(330, 210))
    for row, pair in enumerate(pairs):
        for col, axes in enumerate(("binding", "principal")):
            number, own = 2 * row + col, scores[(scores["copies"] == pair) & (scores["axes"] == axes)]
            one, other = (own[own["instance"] == k].sort_values("part") for k in (0, 1))
            gap = np.full(len(one), np.nan)
            x, y = (np.stack([one[name], other[name], gap], axis=1).ravel() for name in ("first", "second"))
            lines = curve(x, y, Look(translucent(FAINT, 0.35), None, 1), **SILENT)
            shown.figure.add_trace(lines, **shown.place(number))
            for name, copy, colour in (("one object", one, PALETTE[0]), ("its copy", other, PALETTE[1])):
                marks = {"size": 9, "color": colour, "line": {"color": "white", "width": 1}}
                how = {"name": name, "legendgroup": name, "showlegend": number == 0, "mode": "markers"}
                hover = "part %{customdata}: %{x:.2f}, %{y:.2f}"
                dots = go.Scatter(x=copy["first"], y=copy["second"], marker=marks, customdata=copy["part"], **how)
                shown.figure.add_trace(dots.update(hovertemplate=hover), **shown.place(number))
            words = "two leading axes" if axes == "binding" else "two leading ones"
            shown.add_name(number, "binding" if col == 0 else "principal components", words, 6)
    shown.figure.update_xaxes(zeroline=True)
    return _framed(
        shown,
        "Where do identical objects come apart?",
        "scores in units of their spread; lines join the same part of both copies",
        hovermode="closest",
        below=70,
    )


def twins_figure(table: pd.DataFrame) -> go.Figure:
    """Draw how far binding goes beyond likeness, by layer, one colour a backbone; whiskers are 95 % over scenes.

    `table` is what `bindkit.twins_benchmark` gives. Left: binding (full) and cosine similarity (dashed); right: their
    difference on the same pairs, 0 where a probe knows no more than likeness. Raises InvalidParameterError otherwise.
    """
    _require(table, ("backbone", "layer", "binding", "similarity", "beyond_similarity"), "twins_benchmark")
    shown = panels(2, 2, gap=(86, 0), size=(350, 290))
    kinds = {"binding": ("", "solid", 0), "similarity": (", cosine similarity", "4px,3px", 0)}
    kinds["beyond_similarity"] = ("", "solid", 1)
    for place, (name, own) in enumerate(table.groupby("backbone", sort=False)):
        colour, rows = colour_of(place), own.sort_values("layer")
        how = {"legendgroup": name, "hovertemplate": "%{y:.3f}"}
        for value, (words, dash, number) in kinds.items():
            look = Look(colour, dash, 2.5 if dash == "solid" else 1.6)
            how |= {"name": f"{control_title(name)}{words}", "showlegend": number == 0}
            line = curve(rows["layer"], rows[value], look, 7, **how)
            if value == "beyond_similarity":
                line.error_y = whiskers(rows, value, colour)
            shown.figure.add_trace(line, **shown.place(number))
    shown.figure.update_xaxes(title_text="layer", **whole_ticks(table["layer"]))
    shown.figure.update_yaxes(title_text=METRICS["matched_twins_auroc"], title_font_size=13.5, **shown.place(0))
    shown.figure.update_yaxes(title_text="binding − cosine similarity", title_font_size=13.5, **shown.place(1))
    for number, level in ((0, 0.5), (1, 0.0)):
        shown.figure.add_hline(y=level, line={"color": FAINT, "width": 1, "dash": "dot"}, **shown.place(number))
    said = f"{int(table['n_twins'].min()):,} pairs of same-class distractors · dots: chance"
    return _framed(shown, "What goes beyond similarity?", said, below=60 + 22 * table["backbone"].nunique())


def attention_figure(table: pd.DataFrame, pairs: str = "all") -> go.Figure:
    """Draw the rank correlation of attention with affinity, likeness and nearness: a panel each way of controlling.

    `table` is what `bindkit.attention_follows_binding` gives. Over layers where there are several (heads' mean, heads
    as faint dots), over heads where there is one. Whiskers are 95 % over scenes. Raises InvalidParameterError for
    another table or pairs that it lacks.
    """
    _require(table, ("layer", "head", "pairs", "of", *_CORRELATIONS), "attention_follows_binding")
    rows = table[table["pairs"] == pairs]
    if rows.empty:
        raise InvalidParameterError(f"the table has no pairs {pairs!r}; it has {', '.join(table['pairs'].unique())}")
    over_layers = rows["layer"].nunique() > 1
    shown = panels(len(_CORRELATIONS), len(_CORRELATIONS), gap=(46, 0), size=(270, 270))
    for number, (figure, words) in enumerate(_CORRELATIONS.items()):
        for of, (name, colour) in _OF.items():
            own = rows[(rows["of"] == of) & rows[figure].notna()]
            if own.empty:
                continue
            how = {"name": name, "legendgroup": name, "showlegend": number == 0, "hovertemplate": "%{y:.3f}"}
            if over_layers:
                heads, own = own[own["head"] != "mean"], own[own["head"] == "mean"].sort_values("layer")
                marks = {"size": 5, "color": translucent(colour, 0.3)}
                dots = go.Scatter(x=heads["layer"], y=heads[figure], mode="markers", marker=marks, **SILENT)
                shown.figure.add_trace(dots, **shown.place(number))
            line = curve(own["layer"] if over_layers else own["head"], own[figure], Look(colour), 8, **how)
            line.error_y = whiskers(own, figure, colour)
            if not over_layers:
                line.mode = "markers"
            shown.figure.add_trace(line, **shown.place(number))
        shown.add_name(number, words, "", 6)
        shown.figure.update_yaxes(showticklabels=number == 0, **shown.place(number))
    seen = rows[list(_CORRELATIONS)].to_numpy(dtype=float)
    span = [min(-0.1, float(np.nanmin(seen)) - 0.08), max(0.5, float(np.nanmax(seen)) + 0.1)]
    shown.figure.update_yaxes(range=span, zeroline=True, zerolinecolor=FAINT)
    shown.figure.update_yaxes(title_text="Spearman's correlation", title_font_size=13.5, **shown.place(0))
    ticks = whole_ticks(rows["layer"]) if over_layers else {"type": "category"}
    shown.figure.update_xaxes(title_text="layer that is read" if over_layers else "head", **ticks)
    said = f"{_which(table, over_layers)} · attention {table['measure'].iloc[0]} of the next block · {pairs} pairs"
    n_scenes = f"{int(rows['n_scenes'].max())} scenes" + (" · dots: heads, line: their mean" if over_layers else "")
    return _framed(shown, "Does attention follow binding?", f"{said} · {n_scenes}", below=90)


def dose_figure(table: pd.DataFrame) -> go.Figure:
    """Draw what is left after an edit against its strength: a column an edit, a row a read-out.

    `table` is what `bindkit.intervene` gives. Of affinity the deepest layer is drawn. Full: the binding part is edited;
    dashed: a random part of the same rank and energy. Bands are 95 % intervals. Raises InvalidParameterError for
    another table.
    """
    _require(table, ("edit", "subspace", "strength", "read_out", "figure", "value", "low", "high"), "intervene")
    edits = list(dict.fromkeys(table["edit"]))
    own = {key: table[(table["read_out"] == key[0]) & (table["figure"] == key[1])] for key in _READ_OUTS}
    own = {key: rows for key, rows in own.items() if rows["value"].notna().any()}
    shown = panels(len(own) * len(edits), len(edits), gap=(30, 46), size=(190, 130))
    for row, (key, rows) in enumerate(own.items()):
        deepest = rows[rows["read_layer"] == rows["read_layer"].max()] if rows["read_layer"].notna().any() else rows
        ends = deepest[["value", "low", "high"]].to_numpy(dtype=float)
        room = 0.06 * (np.nanmax(ends) - np.nanmin(ends)) + 1e-3
        for col, edit in enumerate(edits):
            number = row * len(edits) + col
            for subspace, look in _SUBSPACES.items():
                part = deepest[(deepest["edit"] == edit) & (deepest["subspace"] == subspace)]
                part = part.groupby("strength")[["value", "low", "high"]].mean().reset_index()
                if part.empty:
                    continue
                name = f"{subspace} part is edited"
                how = {"name": name, "legendgroup": name, "showlegend": number == 0, "hovertemplate": "%{y:.3f}"}
                _band(shown, number, part["strength"], part["low"], part["high"], look.colour)
                line = curve(part["strength"], part["value"], look, 6, **how)
                shown.figure.add_trace(line, **shown.place(number))
            if row == 0:
                shown.add_name(number, edit, "", 6)
            last = row == len(own) - 1
            shown.figure.update_xaxes(range=[-0.04, 1.04], showticklabels=last, **shown.place(number))
            if last:
                shown.figure.update_xaxes(title_text="strength", title_font_size=13, **shown.place(number))
            span = [np.nanmin(ends) - room, np.nanmax(ends) + room]
            shown.figure.update_yaxes(range=span, showticklabels=col == 0, nticks=4, **shown.place(number))
        name, meaning = _READ_OUTS[key]
        title = f"{name}<br>{small(meaning, 11)}"
        shown.figure.update_yaxes(title_text=title, title_font_size=12.5, **shown.place(row * len(edits)))
    first = table.iloc[0]
    said = f"{control_title(first['backbone'])}, edited at layer {int(first['layer'])}, rank {int(first['rank'])}"
    title = "What is lost without binding?"
    figure = _framed(shown, title, f"{said} · {int(first['n_scenes'])} scenes · bands: 95 % intervals", below=86)
    return figure.update_layout(margin_l=96, hovermode="closest")


def _require(table: pd.DataFrame, columns: Sequence[str], maker: str) -> None:
    missing = [name for name in columns if name not in getattr(table, "columns", ())]
    if missing or not len(table):
        why = f"{', '.join(missing)} missing" if missing else "no rows"
        raise InvalidParameterError(f"nothing to draw ({why}); give what bk.{maker}() returns")


def _which(table: pd.DataFrame, several_layers: bool = False) -> str:
    first = table.iloc[0]
    where = "" if several_layers or pd.isna(first["layer"]) else f", layer {int(first['layer'])}"
    return f"{control_title(first['backbone'])}{where}, {first['probe']} probe"


def _band(shown: Panels, number: int, x: Any, low: Any, high: Any, colour: str) -> None:
    """Between two bounds, behind what follows; nothing where there are none."""
    x, low, high = (np.asarray(values, dtype=float) for values in (x, low, high))
    known = np.isfinite(low) & np.isfinite(high)
    if known.any():
        around = np.concatenate([x[known], x[known][::-1]]), np.concatenate([high[known], low[known][::-1]])
        fill = {"fill": "toself", "fillcolor": translucent(colour, 0.13), "line": {"width": 0}, "mode": "lines"}
        shown.figure.add_trace(go.Scatter(x=around[0], y=around[1], **fill, **SILENT), **shown.place(number))


def _framed(shown: Panels, title: str, subtitle: str, below: float = 40, **layout: Any) -> go.Figure:
    """Title above, legend below all panels."""
    shown.hide_rest()
    margin = _MARGIN | {"b": 62 + below}
    legend = {"orientation": "h", "x": 0, "y": -62 / shown.inside[1], "yanchor": "top", "traceorder": "normal"}
    width = shown.inside[0] + margin["l"] + margin["r"]
    return framed(shown.figure, title, subtitle, width, shown.inside[1], margin, legend=legend, **layout)
