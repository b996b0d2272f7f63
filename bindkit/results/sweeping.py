"""Many fits in one call: caches x layers x probes x seeds, one tidy table, resumed where it stopped."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindkit import __version__
from bindkit.arguments import CONTROL, SAME_CLASS, each_of, is_control, read_layers, read_seeds
from bindkit.cache import ActivationCache
from bindkit.cache.store import labels_of
from bindkit.errors import InvalidParameterError, ProbeError
from bindkit.files import parse_json, progress, slug, with_nan, without_nan, write_json
from bindkit.probes import PROBES, check_layer, parse_probe
from bindkit.probes.fitting import fit_folds, fit_probes
from bindkit.probes.judging import is_folds, judge_same_class, judged_scenes, said
from bindkit.probes.layers import LayerPatches
from bindkit.probes.metrics import warn_below_chance
from bindkit.probes.protocols import Protocol
from bindkit.probes.protocols import protocol as protocol_of
from bindkit.probes.registry import is_shipped
from bindkit.probes.saving import RESULT_COLUMNS, Fit, class_digest, load_folds, validation_accuracy
from bindkit.probes.tasks import TASKS, require_fitting, takes
from bindkit.scenes.geometry import WindowGeometry

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

SWEEP_COLUMNS = (*RESULT_COLUMNS, "validation_accuracy", "judged_pairs")
"""Columns of ``results.csv``: those of a fit; accuracy on the validation scenes, by which a layer can be chosen without
looking at the judged ones; and a digest that rows share which are judged on the very same pairs."""

_CACHES_ARE = "caches are what bk.cache_activations or bk.ActivationCache.open gives, one or several in a list"


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
        ``"strict"`` or ``"paper"``.
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
        Whether to add what the knowledge of classes alone would give, see `same_class_rows`.
    folds : int, optional
        Cross-validate over all cached scenes, as `bindkit.fit_probe` does; ``split`` then says ``"5 folds"``,
        ``validation_accuracy`` is the mean over folds, and all probes of a fit are kept.

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
    rules = protocol_of(protocol)
    # What is named twice is fitted once: two rows of one fit would pass for two seeds.
    caches = list({cache.path.resolve(): cache for cache in each_of(caches, ActivationCache, _CACHES_ARE)}.values())
    probes = list(dict.fromkeys(each_of(probes, str, "probes are names, one or several in a list")))
    tasks = list(dict.fromkeys(each_of(tasks, str, "tasks are names, one or several in a list")))
    seeds, asked_layers = read_seeds(seeds), read_layers(layers)
    if not all(len(given) for given in (caches, probes, tasks, seeds)):
        raise InvalidParameterError("a sweep needs at least one cache, probe, task and seed")
    require_apart(caches, on_disk=root is not None)
    pairs = fitting_pairs(probes, tasks)
    wanted = [(cache, layer) for cache in caches for layer in _layers_of(cache, asked_layers)]
    asked = [(cache, layer, pair) for cache, layer in wanted for pair in pairs if _can_be_asked(cache, layer, pair[0])]
    code_of = {name: own_code(name) for name in probes}
    rows: list[dict[str, Any]] = []
    n_read = 0
    with progress(len(asked) * len(seeds), "fit probes", "fit") as bar:
        for cache, layer in wanted:
            patches: LayerPatches | None = None
            made_from = _made_from(cache, layer, rules, None if folds is None else said(folds))
            found: dict[tuple[str, str, int], dict[str, Any]] = {}
            here = [pair for at, number, pair in asked if at is cache and number == layer]
            made = {pair: made_from | code_of[pair[0]] for pair in here}
            for seed in seeds:
                places = {pair: _place(root, cache, layer, pair, rules, seed, folds) for pair in here}
                read = {pair: _kept_row(place, made[pair]) for pair, place in places.items()}
                kept = {pair: row for pair, row in read.items() if row is not None}
                missing = [pair for pair in here if pair not in kept]
                n_read += len(kept)
                # Those that are fitted now say it themselves.
                warn_below_chance(kept.values())
                if missing:
                    if folds is None:
                        patches = patches or LayerPatches(cache, layer, rules, device)
                        fits = fit_probes(patches, missing, seed)
                    else:
                        fits = fit_folds(cache, layer, missing, folds, rules, seed, device)
                    judged_pairs = judged_pairs_digest(cache, rules, fits[0].split)
                    for pair, fit in zip(missing, fits, strict=True):
                        looked = [validation_accuracy(one.history, rules) for one in fit.folds or (fit,)]
                        accuracy = float(np.mean(looked))
                        kept[pair] = fit.row() | {"validation_accuracy": accuracy, "judged_pairs": judged_pairs}
                        _keep(places[pair], fit, kept[pair], made[pair])
                found |= {(*pair, seed): row for pair, row in kept.items()}
                bar.update(len(here))
            rows += [found[*pair, seed] for pair in here for seed in seeds]
    if n_read:
        logger.info("%d of %d fits were already there and were read from %s", n_read, len(rows), root)
    if oracle:
        rows += same_class_rows(caches, rules, None if folds is None else said(folds))
    import pandas as pd

    return pd.DataFrame(rows, columns=SWEEP_COLUMNS)


def same_class_rows(
    caches: Sequence[ActivationCache], protocol: str | Protocol = "strict", split: str | None = None
) -> list[dict[str, Any]]:
    """Judge an oracle that knows the class of every patch and nothing else: it calls pairs of one class *same*.

    What it reads is all that similarity could ever tell: on twins it is at chance. Where no class is known there is no
    such row. One row for each geometry among the
    caches, whose pairs are the ones judged; backbone ``control:same-class``, probe ``oracle``.
    """
    rules = protocol_of(protocol)
    first_of: dict[str, ActivationCache] = {}
    without: dict[str, None] = {}
    for cache in caches:
        if any((cache.labels(name).classes > 0).any() for name in cache.splits):
            first_of.setdefault(json.dumps(cache.backbone["geometry"], sort_keys=True), cache)
        else:
            without[cache.manifest.scenes_uri] = None
    for uri in without:
        logger.info("no class is known in %s: figures of twins and the oracle that knows classes are left out", uri)
    rows = []
    for cache in first_of.values():
        judged_on, figures = judge_same_class(cache, rules, split)
        label = WindowGeometry(**cache.backbone["geometry"]).label
        name = f"{SAME_CLASS}@{label}" if len(first_of) > 1 else SAME_CLASS
        told: dict[str, Any] = {
            "backbone": name,
            "objective": CONTROL,
            "layer": math.nan,
            "probe": "oracle",
            "task": "pairwise",
            "seed": 0,
        }
        told |= {"protocol": rules.name, "split": judged_on}
        told["judged_pairs"] = judged_pairs_digest(cache, rules, judged_on)
        rows.append(told | figures)
    return rows


def require_apart(caches: Sequence[ActivationCache], on_disk: bool) -> None:
    """Refuse two caches of one backbone, and on disk of names that are spelled alike there.

    Nothing would tell their rows apart, or one's probes would overwrite the other's.

    Raises
    ------
    InvalidParameterError
    """
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


def _layers_of(cache: ActivationCache, layers: str | Sequence[int]) -> tuple[int, ...]:
    """Those asked for; of a control its only one. Raises LayerError for one that the cache lacks."""
    if isinstance(layers, str) or is_control(cache.backbone["objective"]):
        return cache.layers
    return tuple(check_layer(layer, cache.layers, f"the cache {cache.path}") for layer in layers)


def fitting_pairs(probes: Sequence[str], tasks: Sequence[str]) -> list[tuple[str, str]]:
    """Every probe with every task that takes it. Raises ProbeError where a name is unknown or one goes with none."""
    kinds = {name: parse_probe(name)[0] for name in probes}
    for task in tasks:
        if task not in TASKS:
            raise ProbeError(f"unknown task {task!r}; there are {', '.join(TASKS)}")
        if not any(takes(task, kind) for kind in kinds.values()):
            require_fitting(kinds[probes[0]], task)
    for kind in kinds.values():
        if not any(takes(task, kind) for task in tasks):
            require_fitting(kind, tasks[0])
    return [(name, task) for name in probes for task in tasks if takes(task, kinds[name])]


def _can_be_asked(cache: ActivationCache, layer: int, probe: str) -> bool:
    """Whether there is a next layer to ask, for the probe that does."""
    if parse_probe(probe)[0] != "self_attention":
        return True
    return not is_control(cache.backbone["objective"]) and layer + 1 < cache.backbone["n_layers"]


def own_code(probe: str) -> dict[str, str | None]:
    """What the record of a fit says of a class that does not come with bindkit, whose version tells of the others.

    ``{"code": None}`` where nobody can say whether it has changed: what was kept is not to be read.
    """
    probe_class = PROBES[parse_probe(probe)[0]]
    return {"code": class_digest(probe_class)} if not is_shipped(probe_class) else {}


def _place(
    root: str | Path | None,
    cache: ActivationCache,
    layer: int,
    pair: tuple[str, str],
    rules: Protocol,
    seed: int,
    folds: int | None,
) -> Path | None:
    if root is None:
        return None
    named = {"probe": pair[0], "task": pair[1], "protocol": rules.name, "seed": seed, "layer": layer}
    if folds is not None:
        named["split"] = said(folds)
    return probe_directory(root, named | {"backbone": cache.backbone["name"]})


def _keep(place: Path | None, fit: Fit, row: dict[str, Any], made_from: dict[str, str | None]) -> None:
    if place is not None:
        # A row that is there belongs to the probe that is about to be replaced.
        (place / "row.json").unlink(missing_ok=True)
        fit.save(place)
        write_json(place / "row.json", {"made_from": made_from, "row": without_nan(row)})


def _made_from(cache: ActivationCache, layer: int, rules: Protocol, folds: str | None) -> dict[str, str | None]:
    """What all fits on a layer are made from; `own_code` adds what is a probe's own."""
    made_from: dict[str, str | None] = {
        "cache": layer_digest(cache, layer),
        "bindkit": __version__,
        "rules": repr(rules),
    }
    return made_from if folds is None else made_from | {"folds": folds}


def kept_rows(
    root: str | Path, caches: Iterable[ActivationCache], protocol: str | Protocol, split: str
) -> list[dict[str, Any]]:
    """Rows of all fits below `root` that are whole and made from one of these caches, as it is now, by this protocol.

    Those that are judged as `split` says: "5 folds" takes rows of as many folds alone, any other none of folds.
    """
    rules = protocol_of(protocol)
    rows = []
    for cache in caches:
        for layer in cache.layers:
            made_from = _made_from(cache, layer, rules, split if is_folds(split) else None)
            for record in sorted((Path(root) / slug(cache.backbone["name"]) / f"layer_{layer:02d}").glob("*/row.json")):
                try:
                    name = parse_json(record.read_text(encoding="utf-8"))["row"]["probe"]
                    row = _kept_row(record.parent, made_from | own_code(name))
                except (OSError, ValueError, KeyError, TypeError, ProbeError):
                    continue  # cut short, or of a probe that is not registered
                rows += [] if row is None else [row]
    return rows


def remove_stale_fits(root: str | Path, cache: ActivationCache) -> int:
    """Remove fits below `root` on a cache as it was before it was computed anew; returns how many.

    Whoever looks for a backbone's probes would find them beside those of now.
    """
    digests = {f"layer_{layer:02d}": layer_digest(cache, layer) for layer in cache.layers}
    n_removed = 0
    for record in sorted((Path(root) / slug(cache.backbone["name"])).glob("layer_*/*/row.json")):
        try:
            made_from = parse_json(record.read_text(encoding="utf-8"))["made_from"]["cache"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # cut short: a sweep will replace it
        if made_from != digests.get(record.parent.parent.name):
            shutil.rmtree(record.parent)
            n_removed += 1
    return n_removed


def probe_directory(root: str | Path, row: Mapping[str, Any]) -> Path:
    """Where a sweep keeps the probe of one row of its table.

    >>> row = dict(backbone="facebook/dinov2-base", layer=3, probe="linear", task="pairwise", protocol="strict", seed=0)
    >>> probe_directory("probes", row).as_posix()
    'probes/facebook-dinov2-base/layer_03/linear-pairwise-strict-seed0'

    Rows of controls, whose layer is NaN, lie in ``layer_00``; of a cross-validation in ``...-seedS-5-folds``.
    """
    layer = 0 if math.isnan(row["layer"]) else int(row["layer"])
    name = f"{row['probe']}-{row['task']}-{row['protocol']}-seed{int(row['seed'])}"
    if is_folds(split := row.get("split", "")):
        name += f"-{split.replace(' ', '-')}"
    return Path(root) / slug(row["backbone"]) / f"layer_{layer:02d}" / name


def layer_digest(cache: ActivationCache, layer: int) -> str:
    """Digest of what a fit on one layer and its row depend on: what the cache is of, labels, that layer's shards."""
    names = ("/labels/", f"/layer_{layer:02d}/")
    digests = {file: digest for file, digest in cache.shard_digests().items() if any(name in file for name in names)}
    content = {"identity": cache.manifest.identity.fields(), "files": digests}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def judged_pairs_digest(cache: ActivationCache, protocol: Protocol, split: str) -> str:
    """Digest of what decides which pairs of a split are judged: patches with their labels and places, and the protocol.

    Two backbones of one geometry share it; equal numbers of scenes and pairs do not mean that the pairs are the same.
    """
    labels = labels_of(cache, judged_scenes(cache, split))
    rules = (protocol.pairs_with_unlabelled, protocol.min_purity, protocol.overlapping_pairs, protocol.judged_patches)
    digest = hashlib.sha256(json.dumps([split, labels.scene_ids, labels.patch_size, rules]).encode())
    for part in (labels.scene_offsets, labels.instances, labels.classes, labels.purity, labels.corners):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:16]


def _kept_row(place: Path | None, made_from: dict[str, str | None]) -> dict[str, Any] | None:
    """The row of a fit that is already there, whole and made from the same things, else None."""
    if place is None:
        return None
    try:
        kept = parse_json((place / "row.json").read_text(encoding="utf-8"))
        if None in made_from.values() or kept["made_from"] != made_from or set(kept["row"]) != set(SWEEP_COLUMNS):
            return None
        load_folds(place)
        return with_nan(kept["row"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ProbeError):
        return None
