"""Many fits in one call: caches x layers x probes x tasks x seeds, one tidy table, resumed where it stopped."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from bindkit import __version__
from bindkit.arguments import CONTROL, SAME_CLASS, each_of, is_control, read_layers, read_seeds
from bindkit.backbones.own import code_digest
from bindkit.cache import ActivationCache
from bindkit.cache.store import labels_of
from bindkit.errors import InvalidParameterError, ProbeError
from bindkit.files import parse_json, progress, slug, with_nan, without_nan, write_json
from bindkit.probes import PROBES, check_layer, parse_probe
from bindkit.probes.base import is_shipped
from bindkit.probes.batches import is_folds, judged_scenes, said
from bindkit.probes.fitting import fit_folds, fit_probes
from bindkit.probes.judging import TASKS, flat_pairs, judge_pairs, judged_patches, require_fitting, takes
from bindkit.probes.layers import LayerPatches
from bindkit.probes.metrics import JudgedPairs, warn_below_chance
from bindkit.probes.protocols import RESULT_COLUMNS, Protocol, load_folds, validation_accuracy
from bindkit.probes.protocols import protocol as protocol_of
from bindkit.scenes.geometry import WindowGeometry

logger = logging.getLogger(__name__)

SWEEP_COLUMNS = (*RESULT_COLUMNS, "validation_accuracy", "judged_pairs")
"""Columns of ``results.csv``: those of a fit; accuracy on the validation scenes, by which a layer can be chosen without
looking at the judged ones; and a digest that rows share which are judged on the very same pairs."""


@dataclass(frozen=True, eq=False)
class WantedFit:
    """A fit that a sweep is asked for: which one, what it is made from, and the directory that keeps it, if any."""

    cache: ActivationCache
    layer: int
    pair: tuple[str, str]
    """Probe and task."""
    seed: int
    made_from: Mapping[str, str | None]
    place: Path | None


def sweep(
    caches: ActivationCache | Iterable[ActivationCache],
    layers: str | int | Iterable[int] = "all",
    probes: str | Iterable[str] = ("linear", "diag_quadratic", "quadratic"),
    tasks: str | Iterable[str] = ("pairwise",),
    protocol: str | Protocol = "strict",
    seeds: Iterable[int] = (0,),
    root: str | Path | None = None,
    device: str = "auto",
    oracle: bool = False,
    folds: int | None = None,
    buffer_bytes: int | None = None,
) -> pd.DataFrame:
    """Fit every probe on every layer of every cache, for every task that takes it.

    The patches of a layer are read once; its probes and tasks are trained side by side on the same batches.

    Parameters
    ----------
    caches : ActivationCache or sequence of ActivationCache
        One a backbone or control. A cache that is given twice, or opened twice, is fitted once.
    layers : "all", int or sequence of int
        ``"all"``: every layer that a cache has. Controls always give their only one.
    probes, tasks : str or sequences of str
        A name or names of probes and tasks. Pairs that do not go together (a quadratic probe and a pointwise task) are
        left out, and so is ``self_attention`` at the last layer, after which there is no attention.
    protocol : str or Protocol
        ``"strict"`` or ``"paper"``, with fields where they are to be others: ``"strict,epochs=4"``.
    seeds : sequence of int
        One fit a seed: ``[0, 1, 2]`` or ``range(3)``.
    root : path, optional
        Where fitted probes are kept, ``root/BACKBONE/layer_LL/PROBE-TASK-PROTOCOL-seedS``. A fit that is already
        there and whole, made from the same cache by the same bindkit, is read and not repeated; that of a probe of
        your own also only if its class computes the same as then (always repeated if nobody can say, because it uses
        an object that cannot be compared).
    device : str
        ``"auto"`` takes CUDA where there is one.
    oracle : bool
        Whether to add what the knowledge of classes alone would give (backbone ``control:same-class``, probe
        ``oracle``), where classes are known.
    folds : int, optional
        Cross-validate over all cached scenes, as `bindkit.fit_probe` does; ``split`` then says ``"5 folds"``,
        ``validation_accuracy`` is the mean over folds, and all probes of a fit are kept.
    buffer_bytes : int, optional
        Activations of a layer that are held in memory, as for `bindkit.fit_probe`.

    Returns
    -------
    pandas.DataFrame
        One row a fit with `SWEEP_COLUMNS`; the layer of controls is NaN.

    Raises
    ------
    LayerError, ProbeError, InvalidParameterError
        Before anything is fitted.

    Examples
    --------
    ::

        table = bk.sweep([cache], layers=[0, 3, 5], probes=["linear", "quadratic"], root="probes")
    """
    rules, split = protocol_of(protocol), None if folds is None else said(folds)
    # What is named twice is fitted once: two rows of one fit would pass for two seeds.
    what = "caches are what bk.cache_activations or bk.ActivationCache.open gives, one or several in a list"
    given = each_of(caches, ActivationCache, what)
    # By name too: a cache and what `read_as` makes of it lie in one place.
    caches = list({(cache.path.resolve(), cache.backbone["name"]): cache for cache in given}.values())
    probes = list(dict.fromkeys(each_of(probes, str, "probes are names, one or several in a list")))
    tasks = list(dict.fromkeys(each_of(tasks, str, "tasks are names, one or several in a list")))
    seeds, asked_layers = read_seeds(seeds), read_layers(layers)
    if not all(len(given) for given in (caches, probes, tasks, seeds)):
        raise InvalidParameterError("a sweep needs at least one cache, probe, task and seed")
    _require_apart(caches, on_disk=root is not None)
    pairs, code_of = fitting_pairs(probes, tasks), {name: own_code(name) for name in probes}
    wanted: list[WantedFit] = []
    for cache in caches:
        is_one, what = is_control(cache.backbone["objective"]), f"the cache {cache.path}"
        every = cache.layers if is_one or isinstance(asked_layers, str) else asked_layers
        for layer in (check_layer(layer, cache.layers, what) for layer in every):
            made_from = _made_from(cache, layer, rules, split)
            for probe, task in pairs:
                if parse_probe(probe)[0] == "self_attention" and (is_one or layer + 1 >= cache.backbone["n_layers"]):
                    continue
                named = {"backbone": cache.backbone["name"], "layer": layer, "probe": probe, "task": task}
                named |= {"protocol": rules.name, "split": split or ""}
                for seed in seeds:
                    place = None if root is None else probe_directory(root, named | {"seed": seed})
                    wanted.append(WantedFit(cache, layer, (probe, task), seed, made_from | code_of[probe], place))
    rows = {fit: row for fit in wanted if fit.place and (row := _kept_row(fit.place, fit.made_from)) is not None}
    if rows:
        logger.info("%d of %d fits were already there and were read from %s", len(rows), len(wanted), root)
    # Those that are fitted now say it themselves.
    warn_below_chance(rows.values())
    missing = [fit for fit in wanted if fit not in rows]
    with progress(len(wanted), "fit probes", "fit", initial=len(rows)) as bar:
        for _, of_layer in groupby(missing, key=lambda fit: (fit.cache, fit.layer)):
            for fit, row in _fitted_and_kept(list(of_layer), rules, device, folds, buffer_bytes):
                rows[fit] = row
                bar.update(1)
    table = [rows[fit] for fit in wanted] + (same_class_rows(caches, rules, split) if oracle else [])
    return pd.DataFrame(table, columns=SWEEP_COLUMNS)


def _fitted_and_kept(
    wanted: Sequence[WantedFit], rules: Protocol, device: str, folds: int | None, buffer_bytes: int | None
) -> Iterator[tuple[WantedFit, dict[str, Any]]]:
    """Make fits of one layer of one cache, those of a seed side by side, and give each with its row."""
    cache, layer = wanted[0].cache, wanted[0].layer
    patches: LayerPatches | None = None
    for seed in dict.fromkeys(fit.seed for fit in wanted):
        asked = [fit for fit in wanted if fit.seed == seed]
        pairs = [fit.pair for fit in asked]
        if folds is None:
            patches = patches or LayerPatches(cache, layer, rules, device, buffer_bytes=buffer_bytes)
            fits = fit_probes(patches, pairs, seed)
        else:
            fits = fit_folds(cache, layer, pairs, folds, rules, seed, device, buffer_bytes)
        judged_pairs = judged_pairs_digest(cache, rules, fits[0].split)
        for one, fit in zip(asked, fits, strict=True):
            accuracy = float(np.mean([validation_accuracy(part.history, rules) for part in fit.folds or (fit,)]))
            row = fit.row() | {"validation_accuracy": accuracy, "judged_pairs": judged_pairs}
            if one.place is not None:
                # A row that is there belongs to the probe that is about to be replaced.
                (one.place / "row.json").unlink(missing_ok=True)
                fit.save(one.place)
                write_json(one.place / "row.json", {"made_from": one.made_from, "row": without_nan(row)})
            yield one, row


def same_class_rows(
    caches: Sequence[ActivationCache], protocol: str | Protocol = "strict", split: str | None = None
) -> list[dict[str, Any]]:
    """Judge an oracle that calls pairs of one class *same*: all that similarity could ever tell, on twins at chance.

    One row for each geometry among the caches; none where no class is known.
    """
    rules = protocol_of(protocol)
    known = [cache for cache in caches if any((cache.labels(name).classes > 0).any() for name in cache.splits)]
    first_of: dict[str, ActivationCache] = {}
    for cache in known:
        first_of.setdefault(json.dumps(cache.backbone["geometry"], sort_keys=True), cache)
    for uri in dict.fromkeys(cache.manifest.scenes_uri for cache in caches if cache not in known):
        logger.info("no class is known in %s: figures of twins and the oracle that knows classes are left out", uri)
    rows = []
    for cache in first_of.values():
        judged_on, pairs = same_class_pairs(cache, rules, split)
        label = WindowGeometry(**cache.backbone["geometry"]).label
        told: dict[str, Any] = {"backbone": f"{SAME_CLASS}@{label}" if len(first_of) > 1 else SAME_CLASS}
        told |= {"objective": CONTROL, "layer": math.nan, "probe": "oracle", "task": "pairwise", "seed": 0}
        told |= {"protocol": rules.name, "split": judged_on}
        rows.append(told | {"judged_pairs": judged_pairs_digest(cache, rules, judged_on)} | judge_pairs(pairs))
    return rows


def same_class_pairs(
    cache: ActivationCache, protocol: str | Protocol = "strict", split: str | None = None
) -> tuple[str, JudgedPairs]:
    """The judged split, as probes have it, and what an oracle says of its pairs. Raises EmptySplitError."""
    rules, roles = protocol_of(protocol), {} if split is None else {split: judged_scenes(cache, split)}
    patches = judged_patches(cache, split, cache.layers[0], rules, torch.device("cpu"), roles)
    same_class = ((batch, batch.classes[:, :, None] == batch.classes[:, None, :]) for batch in patches.judged())
    return patches.split, flat_pairs((batch, said.float() - 0.5, said) for batch, said in same_class)


def _require_apart(caches: Sequence[ActivationCache], on_disk: bool) -> None:
    """Refuse caches of one backbone, whose rows nothing would tell apart, or of names that are alike on disk."""
    named: dict[str, ActivationCache] = {}
    for cache in caches:
        name = cache.backbone["name"]
        other = named.setdefault(slug(name) if on_disk else name, cache)
        if other is not cache:
            why = "their probes would be kept in one directory" if on_disk else "nothing would tell their rows apart"
            raise InvalidParameterError(
                f"the caches {other.path} and {cache.path} are of the backbones {other.backbone['name']!r} and "
                f"{name!r}: {why}; sweep them one by one, each into its own root"
            )


def fitting_pairs(probes: Sequence[str], tasks: Sequence[str]) -> list[tuple[str, str]]:
    """Every probe with every task that takes it. Raises ProbeError where a name is unknown or one goes with none."""
    kinds = {name: parse_probe(name)[0] for name in probes}
    for task in tasks:
        if task not in TASKS or not any(takes(task, kind) for kind in kinds.values()):
            require_fitting(kinds[probes[0]], task)
    for kind in kinds.values():
        if not any(takes(task, kind) for task in tasks):
            require_fitting(kind, tasks[0])
    return [(name, task) for name in probes for task in tasks if takes(task, kinds[name])]


# --- what is kept ----------------------------------------------------------------------------------------------------


def probe_directory(root: str | Path, row: Mapping[str, Any]) -> Path:
    """Where a sweep keeps the probe of one row: ``root/BACKBONE/layer_LL/PROBE-TASK-PROTOCOL-seedS``.

    Of controls, whose layer is NaN, in ``layer_00``; of a cross-validation with ``-5-folds`` behind it.
    """
    layer = 0 if math.isnan(row["layer"]) else int(row["layer"])
    name = f"{row['probe']}-{row['task']}-{slug(row['protocol'])}-seed{int(row['seed'])}"
    if is_folds(split := row.get("split", "")):
        name += f"-{split.replace(' ', '-')}"
    return Path(root) / slug(row["backbone"]) / f"layer_{layer:02d}" / name


def own_code(probe: str) -> dict[str, str | None]:
    """What the record of a fit says of a class of one's own; ``{"code": None}`` where nobody can say if it changed."""
    probe_class = PROBES[parse_probe(probe)[0]]
    return {"code": code_digest(probe_class)} if not is_shipped(probe_class) else {}


def _made_from(cache: ActivationCache, layer: int, rules: Protocol, split: str | None) -> dict[str, str | None]:
    """What all fits on a layer are made from, `split` being that of a cross-validation; `own_code` is to be added."""
    folds = {} if split is None else {"folds": split}
    return {"cache": layer_digest(cache, layer), "bindkit": __version__, "rules": repr(rules), **folds}


def _record(place: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a kept fit was made from, and its row; both empty where there is none, or it is cut short."""
    try:
        kept = parse_json((place / "row.json").read_text(encoding="utf-8"))
        return dict(kept["made_from"]), dict(kept["row"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}, {}


def _kept_row(place: Path, made_from: Mapping[str, str | None]) -> dict[str, Any] | None:
    """The row of a fit that is already there, whole and made from the same things, else None."""
    then, row = _record(place)
    if None in made_from.values() or then != made_from or set(row) != set(SWEEP_COLUMNS):
        return None
    try:
        load_folds(place)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ProbeError):
        return None
    return with_nan(row)


def kept_rows(
    root: str | Path, caches: Iterable[ActivationCache], protocol: str | Protocol, split: str
) -> list[dict[str, Any]]:
    """Rows of whole fits below `root`, made from these caches as they are, and judged as `split` ("5 folds") says."""
    rules, rows = protocol_of(protocol), []
    for cache in caches:
        for layer in cache.layers:
            made_from = _made_from(cache, layer, rules, split if is_folds(split) else None)
            for record in sorted((Path(root) / slug(cache.backbone["name"]) / f"layer_{layer:02d}").glob("*/row.json")):
                try:
                    code = own_code(_record(record.parent)[1].get("probe", ""))
                except ProbeError:
                    continue  # of a probe that is not registered
                rows.append(_kept_row(record.parent, made_from | code))
    return [row for row in rows if row is not None]


def remove_stale_fits(root: str | Path, cache: ActivationCache) -> int:
    """Remove fits below `root` on a cache as it was before it was computed anew; returns how many."""
    digests = {f"layer_{layer:02d}": layer_digest(cache, layer) for layer in cache.layers}
    n_removed = 0
    for record in sorted((Path(root) / slug(cache.backbone["name"])).glob("layer_*/*/row.json")):
        made_from = _record(record.parent)[0].get("cache")  # cut short: a sweep will replace it
        if made_from is not None and made_from != digests.get(record.parent.parent.name):
            shutil.rmtree(record.parent)
            n_removed += 1
    return n_removed


def layer_digest(cache: ActivationCache, layer: int) -> str:
    """Digest of what a fit on one layer and its row depend on: what the cache is of, labels, that layer's shards."""
    names = ("/labels/", f"/layer_{layer:02d}/")
    digests = {file: digest for file, digest in cache.shard_digests().items() if any(name in file for name in names)}
    content = {"identity": cache.manifest.identity.fields(), "files": digests}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def judged_pairs_digest(cache: ActivationCache, protocol: Protocol, split: str) -> str:
    """Digest of what decides which pairs of a split are judged; backbones of one geometry share it."""
    labels = labels_of(cache, judged_scenes(cache, split))
    rules = (protocol.pairs_with_unlabelled, protocol.min_purity, protocol.overlapping_pairs, protocol.judged_patches)
    digest = hashlib.sha256(json.dumps([split, labels.scene_ids, labels.patch_size, rules]).encode())
    for part in (labels.scene_offsets, labels.instances, labels.classes, labels.purity, labels.corners):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:16]
