"""Tables of a scene set: how it is split, and how often two of its patches share an object."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from bindkit.scenes.labels import PatchLabels
from bindkit.scenes.splits import SPLITS, Split


def split_table(split: Split) -> pd.DataFrame:
    """Scenes in each split and what it is for.

    >>> from bindkit.scenes import Split
    >>> split_table(Split(train=(0, 1), validation=(2,), test=())).loc["test", "scenes"]
    np.int64(0)
    """
    uses = ("fits the probes", "picks the epoch that is kept", "gives the reported figures")
    counts = [len(split.positions(name)) for name in SPLITS]
    return pd.DataFrame({"scenes": counts, "what for": uses}, index=pd.Index(SPLITS, name="split"))


def pair_counts(labelled: Iterable[PatchLabels], min_purity: float = 0.5) -> pd.DataFrame:
    """Count pairs of labelled patches of each scene: on one object, on two, and among these the twins.

    Parameters
    ----------
    labelled : iterable of PatchLabels
        One a scene.
    min_purity : float
        Patches take part if they are labelled and their purity is above this, as in the strict protocol.

    Returns
    -------
    pandas.DataFrame
        One row a scene: ``patches`` that take part, ``pairs`` of them that do not show the same pixels, of these
        those on the ``same object``, on ``different objects``, and of the latter the ``twins`` (of one class); and
        ``majority``, the share of the more frequent answer.

    Examples
    --------
    >>> import numpy as np
    >>> from bindkit import Scene, label_patches
    >>> from bindkit.scenes.geometry import WindowGeometry
    >>> instances = np.repeat([[1, 1, 2, 3]], 2, axis=0).repeat(4, 0).repeat(8, 1).astype(np.int32)
    >>> classes = np.where(instances == 3, 2, 1).astype(np.int32)
    >>> scene = Scene("demo", np.zeros((8, 32, 3), np.uint8), instances, classes)
    >>> table = pair_counts([label_patches(scene, WindowGeometry(short_side=8, window=8, patch_size=8))])
    >>> table.iloc[0][["pairs", "same object", "different objects", "twins"]].tolist()
    [6.0, 1.0, 5.0, 2.0]
    """
    rows = []
    for labels in labelled:
        taking_part = np.flatnonzero((labels.instances > 0) & (labels.purity > min_purity))
        instances, classes, corners = (
            column[taking_part] for column in (labels.instances, labels.classes, labels.corners)
        )
        first, second = np.triu_indices(len(taking_part), 1)
        apart = np.abs(corners[first] - corners[second]).max(axis=1, initial=0) >= labels.plan.grid.patch_size
        first, second = first[apart], second[apart]
        same = instances[first] == instances[second]
        twins = ~same & (classes[first] == classes[second]) & (classes[first] > 0)
        share = max(same.mean(), 1 - same.mean()) if len(same) else float("nan")
        counts = (len(taking_part), len(same), int(same.sum()), int((~same).sum()), int(twins.sum()), round(share, 3))
        rows.append(counts)
    columns = ["patches", "pairs", "same object", "different objects", "twins", "majority"]
    return pd.DataFrame(rows, columns=columns)
