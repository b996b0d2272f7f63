"""What a table of results says: the best layer of every backbone, and how sure that is."""

from __future__ import annotations

import pandas as pd

from bindkit.errors import InvalidParameterError

COMPARED = ["backbone", "objective", "probe", "task", "protocol", "split"]
"""Columns that tell rows apart which may not be compared across layers."""

AVERAGED = [
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "auroc",
    "twins_auroc",
    "majority_accuracy",
    "n_scenes",
]
"""Columns that are averaged over seeds; of the interval, each bound."""


def best_layers(results: pd.DataFrame) -> pd.DataFrame:
    """Pick the layer of highest accuracy for each backbone, objective, probe, task, protocol and split.

    >>> rows = [("vit", layer, "linear", accuracy) for layer, accuracy in [(0, 0.7), (1, 0.9), (2, 0.9)]]
    >>> results = pd.DataFrame(rows, columns=["backbone", "layer", "probe", "accuracy"])
    >>> best_layers(results)[["backbone", "probe", "layer", "accuracy"]].to_dict("records")
    [{'backbone': 'vit', 'probe': 'linear', 'layer': 1, 'accuracy': 0.9}]

    Parameters
    ----------
    results : pandas.DataFrame
        Rows of ``results.csv``, one a fit. Columns that are missing count as empty.

    Returns
    -------
    pandas.DataFrame
        One row a group in order of first appearance, with the layer, the figures averaged over seeds (of the 95 %
        interval each bound; missing values left out), ``gain`` (accuracy above always saying the more frequent
        answer) and ``n_seeds``. Of layers of equal accuracy, the lowest.

    Notes
    -----
    The layer is picked by the same figures that are reported, so the best of many layers looks a little better than
    it is; the interval tells how much may be chance.

    Raises
    ------
    InvalidParameterError
        If the table has no backbone, layer or accuracy.
    """
    missing = [name for name in ("backbone", "layer", "accuracy") if name not in results.columns]
    if missing:
        raise InvalidParameterError(
            f"a table of results needs the columns backbone, layer and accuracy; {', '.join(missing)} missing from "
            f"{', '.join(map(str, results.columns)) or 'an empty table'}"
        )
    rows = results.reindex(columns=[*COMPARED, "layer", *AVERAGED, "seed"])
    rows[AVERAGED] = rows[AVERAGED].apply(pd.to_numeric)
    rows = rows[rows["accuracy"].notna()]
    by_layer = rows.groupby([*COMPARED, "layer"], dropna=False, sort=False)
    layers = by_layer[AVERAGED].mean().assign(n_seeds=by_layer.size()).reset_index()
    # Rounded, so that layers that differ only in the last bits of a mean count as equal.
    layers = layers.assign(rank=-layers["accuracy"].round(9)).sort_values(["rank", "layer"], kind="stable")
    best = layers.groupby(COMPARED, dropna=False, sort=False).head(1)
    order = rows[COMPARED].drop_duplicates().reset_index(drop=True)
    best = order.merge(best.drop(columns="rank"), on=COMPARED, how="left")
    best["n_scenes"] = best["n_scenes"].round().astype("Int64")
    best["gain"] = best["accuracy"] - best["majority_accuracy"]
    return best[[*COMPARED, "layer", *AVERAGED, "gain", "n_seeds"]]
