"""Many fits in one call: caches x layers x probes x seeds, one tidy table, resumed where it stopped."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindkit import __version__
from bindkit.cache import ActivationCache
from bindkit.control_names import is_control
from bindkit.errors import InvalidParameterError, ProbeError
from bindkit.files import slug, with_nan, without_nan, write_json
from bindkit.probes import PROBES, check_layer, load_probe
from bindkit.progress import progress
from bindkit.protocols import Protocol
from bindkit.protocols import protocol as protocol_of
from bindkit.training import RESULT_COLUMNS, TASKS, LayerPatches, fit_probe

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)


def sweep(
    caches: Sequence[ActivationCache],
    layers: str | Sequence[int] = "all",
    probes: Sequence[str] = ("linear", "diag_quadratic", "quadratic"),
    tasks: Sequence[str] = ("pairwise",),
    protocol: str | Protocol = "strict",
    seeds: Sequence[int] = (0,),
    root: str | Path | None = None,
    device: str = "auto",
) -> pd.DataFrame:
    """Fit every probe on every layer of every cache.

    Parameters
    ----------
    caches : sequence of ActivationCache
        One a backbone or control.
    layers : "all" or sequence of int
        ``"all"``: every layer that a cache has. Controls always give their only one.
    probes, tasks : sequences of str
        Names of probes and tasks.
    protocol : str or Protocol
        ``"strict"`` or ``"paper"``.
    seeds : sequence of int
        One fit a seed.
    root : path, optional
        Where fitted probes are kept, ``root/BACKBONE/layer_LL/PROBE-TASK-PROTOCOL-seedS``. A fit that is already
        there and whole, made from the same cache by the same bindkit, is read and not repeated.
    device : str
        ``"auto"`` takes CUDA where there is one.

    Returns
    -------
    pandas.DataFrame
        One row a fit with the columns of ``results.csv``; the layer of controls is NaN.

    Raises
    ------
    LayerError, ProbeError, InvalidParameterError
        Before anything is fitted.

    Examples
    --------
    ::

        table = bk.sweep([cache], layers=[0, 3, 5], probes=["linear", "quadratic"], root="probes")
    """
    rules = protocol_of(protocol)
    if not all(len(given) for given in (caches, probes, tasks, seeds)):
        raise InvalidParameterError("a sweep needs at least one cache, probe, task and seed")
    if root is not None:
        _require_places_apart(caches)
    for kind in probes:
        if kind not in PROBES:
            raise ProbeError(f"unknown probe {kind!r}; there are {', '.join(PROBES)}")
    for task in tasks:
        if task not in TASKS:
            raise ProbeError(f"unknown task {task!r}; there are {', '.join(TASKS)}")
    wanted = [
        (cache, check_layer(int(layer), cache.layers, f"the cache {cache.path}"))
        for cache in caches
        for layer in (cache.layers if layers == "all" or is_control(cache.backbone["objective"]) else layers)
    ]
    fits = list(product(probes, tasks, map(int, seeds)))
    rows: list[dict[str, Any]] = []
    n_read = 0
    with progress(len(wanted) * len(fits), "fit probes", "fit") as bar:
        for cache, layer in wanted:
            patches: LayerPatches | None = None
            made_from = {"cache": layer_digest(cache, layer), "bindkit": __version__, "rules": repr(rules)}
            for kind, task, seed in fits:
                named = {"probe": kind, "task": task, "protocol": rules.name, "seed": seed, "layer": layer}
                place = probe_directory(root, named | {"backbone": cache.backbone["name"]}) if root else None
                row = _kept_row(place, made_from)
                if row is None:
                    patches = patches or LayerPatches(cache, layer, rules, device)
                    fit = fit_probe(patches, probe=kind, task=task, seed=seed)
                    row = fit.row()
                    if place:
                        # A row that is there belongs to the probe that is about to be replaced.
                        (place / "row.json").unlink(missing_ok=True)
                        fit.save(place)
                        write_json(place / "row.json", {"made_from": made_from, "row": without_nan(row)})
                else:
                    n_read += 1
                rows.append(row)
                bar.update(1)
    if n_read:
        logger.info("%d of %d fits were already there and were read from %s", n_read, len(rows), root)
    import pandas as pd

    return pd.DataFrame(rows, columns=RESULT_COLUMNS)


def probe_directory(root: str | Path, row: Mapping[str, Any]) -> Path:
    """Where a sweep keeps the probe of one row of its table.

    >>> row = dict(backbone="facebook/dinov2-base", layer=3, probe="linear", task="pairwise", protocol="strict", seed=0)
    >>> probe_directory("probes", row).as_posix()
    'probes/facebook-dinov2-base/layer_03/linear-pairwise-strict-seed0'

    Rows of controls, whose layer is NaN, lie in ``layer_00``.
    """
    layer = 0 if math.isnan(row["layer"]) else int(row["layer"])
    name = f"{row['probe']}-{row['task']}-{row['protocol']}-seed{row['seed']}"
    return Path(root) / slug(row["backbone"]) / f"layer_{layer:02d}" / name


def _require_places_apart(caches: Sequence[ActivationCache]) -> None:
    """Refuse caches whose probes would overwrite one another. Raises InvalidParameterError."""
    places: dict[str, ActivationCache] = {}
    for cache in caches:
        other = places.setdefault(slug(cache.backbone["name"]), cache)
        if other is not cache:
            raise InvalidParameterError(
                f"the caches {other.path} and {cache.path} would keep their probes in one directory, and the backbone "
                f"{cache.backbone['name']!r} would name the rows of both; sweep them one by one, each into its own root"
            )


def layer_digest(cache: ActivationCache, layer: int) -> str:
    """Digest of what a fit on one layer and its row depend on: what the cache is of, labels, that layer's shards."""
    names = ("/labels/", f"/layer_{layer:02d}/")
    digests = {file: digest for file, digest in cache.shard_digests().items() if any(name in file for name in names)}
    content = {"identity": cache.manifest.identity.fields(), "files": digests}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _kept_row(place: Path | None, made_from: dict[str, Any]) -> dict[str, Any] | None:
    """The row of a fit that is already there, whole and made from the same things, else None."""
    if place is None:
        return None
    try:
        kept = json.loads((place / "row.json").read_text(encoding="utf-8"))
        if kept["made_from"] != made_from:
            return None
        load_probe(place)
        return with_nan(kept["row"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ProbeError):
        return None
