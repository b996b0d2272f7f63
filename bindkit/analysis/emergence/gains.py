"""What training gained: each objective against its own random init and against the strongest control, in numbers."""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas as pd

from bindkit.arguments import is_control
from bindkit.errors import InvalidParameterError
from bindkit.results.tables import PLAIN, layer_of_best, ranked_by, require_one_kind

FIGURES = {
    "auroc": "AUROC",
    "twins_auroc": "twins AUROC",
    "matched_auroc": "AUROC at equal distance",
    "matched_twins_auroc": "twins AUROC at equal distance",
}
"""What may be compared, with its name in sentences."""

FEW_SEEDS = 3
"""Below this many training seeds there is no interval, only what each seed gave."""


def emergence_gains(table: pd.DataFrame) -> pd.DataFrame:
    """Set every objective at its last checkpoint against its own random init and against the strongest control.

    Parameters
    ----------
    table : pandas.DataFrame
        As `bindkit.measure_checkpoints` gives it, of one probe, task, protocol and split.

    Returns
    -------
    pandas.DataFrame
        One row an objective (``pretraining``) and ``figure`` (of `bindkit.results.tables.ranked_by`): ``scenes_seen``
        at the last checkpoint that all its seeds have; the ``layer`` that is best there, averaged over seeds, and its
        ``value``; the same at 0 scenes in ``untrained_layer`` and ``untrained``; the strongest ``control`` and its
        ``control_value``; ``over_untrained`` and ``over_control``, the mean differences, each with bounds ``_low`` and
        ``_high``; ``value_low`` and ``value_high``, the least and the greatest of a training seed; ``n_seeds`` of
        training and ``n_scenes`` judged. What does not apply is NaN.

    Raises
    ------
    InvalidParameterError
        If the table has no checkpoints, or rows that may not be compared.

    Notes
    -----
    Differences are taken within each training seed. From three seeds on the bounds are a 95 % interval of their mean
    (Student's t); of two seeds they are the two differences; of one there are none. They tell how much training seeds
    differ; that scenes differ too, they do not. The best layer is the one of the tables
    (`bindkit.results.tables.layer_of_best`): on the validation scenes, where the table says how each layer does there.

    Examples
    --------
    >>> same = dict(probe="quadratic", task="pairwise", protocol="strict", split="test", seed=0, n_scenes=40, n_pairs=9)
    >>> rows = [("mae", 0.0, 0, 0.70), ("mae", 0.0, 512, 0.78), ("mae", 1.0, 0, 0.71), ("mae", 1.0, 512, 0.77)]
    >>> table = pd.DataFrame(rows, columns=["pretraining", "training_seed", "scenes_seen", "auroc"])
    >>> table = table.assign(twins_auroc=0.5, layer=3, backbone="", objective="", **same)
    >>> gains = emergence_gains(table).iloc[0]
    >>> [round(float(gains[f"over_untrained{bound}"]), 2) for bound in ("", "_low", "_high")]
    [0.07, 0.06, 0.08]
    """
    _require_comparable(table)
    trained = table[table["pretraining"].notna()]
    controls = table[[is_control(objective) for objective in table["objective"]]]
    rows = []
    for label, own in trained.groupby("pretraining", sort=False):
        n_seeds = own["training_seed"].nunique()
        shared = own.groupby("scenes_seen")["training_seed"].nunique() == n_seeds
        if not shared.any():
            raise InvalidParameterError(f"the runs of {label} have no checkpoint at the same number of scenes seen")
        last = float(shared[shared].index.max())
        for figure in ranked_by(table):
            at_end, at_start = _at_best_layer(own, last, figure), _at_best_layer(own, 0.0, figure)
            control, control_value = _strongest(controls, figure)
            gained = at_end.by_seed - at_start.by_seed.reindex(at_end.by_seed.index)
            rows.append(
                {
                    "pretraining": label,
                    "figure": figure,
                    "scenes_seen": last,
                    "layer": at_end.layer,
                    "value": at_end.by_seed.mean(),
                    "value_low": at_end.by_seed.min(),
                    "value_high": at_end.by_seed.max(),
                    "untrained_layer": at_start.layer,
                    "untrained": at_start.by_seed.mean(),
                    **_bounded("over_untrained", gained),
                    "control": control,
                    "control_value": control_value,
                    **_bounded("over_control", at_end.by_seed - control_value),
                    "n_seeds": n_seeds,
                    "n_scenes": own["n_scenes"].iloc[0],
                }
            )
    return pd.DataFrame(rows)


class _AtBestLayer(NamedTuple):
    """The best layer at one checkpoint, and its figure by training seed."""

    layer: float
    by_seed: pd.Series


def _at_best_layer(own: pd.DataFrame, seen: float, figure: str) -> _AtBestLayer:
    here = own[own["scenes_seen"] == seen].assign(**{figure: pd.to_numeric(own[figure])})
    layer = layer_of_best(here, figure)
    return _AtBestLayer(layer, here[here["layer"] == layer].groupby("training_seed")[figure].mean())


def _strongest(controls: pd.DataFrame, figure: str) -> tuple[str | None, float]:
    levels = controls.assign(**{figure: pd.to_numeric(controls[figure])}).groupby("backbone")[figure].mean().dropna()
    return (str(levels.idxmax()), float(levels.max())) if len(levels) else (None, math.nan)


def _bounded(name: str, differences: pd.Series) -> dict[str, float]:
    """Mean of the differences of training seeds, and bounds: of three and more a 95 % interval, of two the two."""
    values = differences.dropna()
    mean, low, high = values.mean(), math.nan, math.nan
    if len(values) >= FEW_SEEDS:
        from scipy.stats import t

        half = float(t.ppf(0.975, len(values) - 1)) * values.std() / math.sqrt(len(values))
        low, high = mean - half, mean + half
    elif len(values) > 1:
        low, high = values.min(), values.max()
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def _require_comparable(table: pd.DataFrame) -> None:
    needed = ["backbone", "objective", "layer", "pretraining", "training_seed", "scenes_seen", "n_scenes", *PLAIN]
    missing = [name for name in needed if name not in table.columns]
    if missing or table["pretraining"].isna().all():
        raise InvalidParameterError(
            f"this is no table of checkpoints ({', '.join(missing) or 'every pretraining is empty'}"
            f"{' missing' if missing else ''}); give what measure_checkpoints returned"
        )
    require_one_kind(table, "the table", ("probe", "task", "protocol", "split"), "table")
