"""Scenes made harder one option at a time, and what each option costs a backbone."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bindkit import __version__
from bindkit.arguments import each_of, read_seeds
from bindkit.backbones.sources import ActivationSource
from bindkit.cache import ActivationCache, cache_activations
from bindkit.errors import InvalidParameterError
from bindkit.files import parse_json, progress, slug, with_nan, without_nan, write_json
from bindkit.probes import load_probe, parse_probe
from bindkit.probes.judging import judge_probe
from bindkit.probes.protocols import RESULT_COLUMNS, Protocol
from bindkit.probes.protocols import protocol as protocol_of
from bindkit.results.sweeping import own_code, probe_directory, sweep
from bindkit.scenes import open_scenes, split_scenes
from bindkit.scenes.opening import scene_variations
from bindkit.scenes.synthetic import require_unseen

logger = logging.getLogger(__name__)

PROBES_FROM = ("own", "base")
"""Where the judged probe comes from: fitted anew on each set's own training scenes, or once on those of the base."""

VARIED_COLUMNS = ("option", "value", "is_base", "scenes", "probe_from")
"""Columns of the table of `vary_scenes` behind those of ``results.csv``."""

Layers = str | int | Sequence[int]
"""As backbones take them: "all", "0,6" or whole numbers, 0-based."""

BASE = "base"  # directory of what belongs to the base set


def vary_scenes(
    backbones: Sequence[ActivationSource],
    base: str,
    options: Mapping[str, Sequence[Any]] | str,
    root: str | Path = "varied",
    layers: Layers | Mapping[str, Layers] = "all",
    probe: str = "quadratic",
    protocol: str | Protocol = "strict",
    seeds: Sequence[int] = (0,),
    transfer: bool = False,
    patches_per_scene: int | str = 512,
    keep_caches: bool = False,
    device: str = "auto",
) -> pd.DataFrame:
    """Measure backbones on synthetic scenes that are varied one option at a time.

    ::

        table = bk.vary_scenes([backbone, *bk.load_controls([backbone])], "synthetic:n=200,seed=0",
            {"twins": [0.2, 0.5, 0.9], "surface": ["textured", "flat", "camouflage"]}, layers=[8])
        table.pivot_table("auroc", ["option", "value"], "backbone", sort=False)

    On every set the probe is fitted anew on that set's own training scenes, so that its figures say what *can* be
    read there. With `transfer`, the probe that was fitted on the base set is judged on each of the others too: does
    the subspace that it found carry over? Both are judged on the same pairs.

    Parameters
    ----------
    backbones : sequence of Backbone
        And of controls, as `load_controls` gives them; every name once.
    base : str
        A ``synthetic:`` URI with a seed for measuring. All but the varied option is as in here.
    options : mapping or str
        Option -> values, see `bindkit.scenes.synthetic.OPTIONS`; or one line,
        ``"twins=0 0.5 0.9; surface=flat camouflage"``.
    root : path
        What is done lies in ``root/BASE/OPTION=VALUE``: rows and fitted probes, and the caches while they are needed.
        A call that was interrupted goes on where it stopped; more values, backbones or seeds add to what is there.
    layers : "all", ints, or a mapping from a backbone's name to either
        0-based; controls have one. A backbone that a mapping leaves out is measured at all its layers.
    probe : str
        A name in ``bindkit.probes.PROBES``.
    protocol : str or Protocol
        ``"strict"`` or ``"paper"``, with fields where they are to be others: ``"strict,epochs=4"``.
    seeds : sequence of int
        One fit a seed.
    transfer : bool
        Also judge the base's probe on every set.
    patches_per_scene : int or "all"
        As `cache_activations` takes it.
    keep_caches : bool
        Keep the activations; by default they are deleted as soon as they were judged.
    device : str
        For the probes; ``"auto"`` takes CUDA where there is one.

    Returns
    -------
    pandas.DataFrame
        The columns of ``results.csv`` and ``option``, ``value`` (text), ``is_base`` (whether the value is the base's
        own), ``scenes`` (URI) and ``probe_from`` ("own" or "base"), ordered by option and value as given. A probe
        from the base took no time of its own: its ``seconds`` are NaN. Where the value is the base's own, both kinds
        of rows tell of one fit.

    Raises
    ------
    InvalidParameterError, SceneSetError
        As `scene_variations`; for a scene seed that is kept for training, no backbone or seed, or two backbones of
        one name. Before anything is computed.
    LayerError, ProbeError
        For a layer or probe that there is not. Before anything is computed.
    """
    variations, rules = scene_variations(base, options), protocol_of(protocol)
    for varied in variations:
        require_unseen(open_scenes(varied.uri))
    backbones = each_of(backbones, ActivationSource, "backbones are what bk.load_backbone(name) gives")
    parse_probe(probe)
    measuring = _Measuring(probe, rules, tuple(read_seeds(seeds)), patches_per_scene, device, keep_caches)
    names = [backbone.name for backbone in backbones]
    if not names or len(set(map(slug, names))) < len(names):
        raise InvalidParameterError(f"give at least one backbone, every name once, got {names}")
    layers_of = layers if isinstance(layers, Mapping) else dict.fromkeys(names, layers)
    if strange := [name for name in layers_of if name not in names]:
        raise InvalidParameterError(f"layers names {strange}, which are not among the backbones {names}")
    wanted = [(backbone, backbone.resolve_layers(layers_of.get(backbone.name, "all"))) for backbone in backbones]
    base_scenes = open_scenes(base)
    place = Path(root) / slug(base_scenes.uri)
    # Two values may well name one set ("2" and "2-2"): it is measured once.
    places = {base_scenes.uri: place / BASE} if transfer else {}
    for varied in variations:
        places.setdefault(varied.uri, place / (BASE if varied.is_base else slug(f"{varied.option}={varied.value}")))
    for notice in split_scenes(base_scenes).notices:
        logger.info("of the base scenes: %s", notice)
    measured: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    with progress(len(places) * len(backbones), "vary scenes", "set") as bar:
        for backbone, its_layers in wanted:
            for uri, directory in places.items():
                rows = measuring.rows_of(backbone, its_layers, uri, directory, place / BASE if transfer else None)
                measured[uri, backbone.name] = rows
                bar.update(1)
    table = [
        row | dict(zip(VARIED_COLUMNS, (varied.option, varied.value, varied.is_base, varied.uri, origin), strict=True))
        for varied in variations
        for origin in (PROBES_FROM if transfer else ("own",))
        for name in names
        for row in measured[varied.uri, name][origin]
    ]
    return pd.DataFrame(table, columns=[*RESULT_COLUMNS, *VARIED_COLUMNS])


@dataclass(frozen=True)
class _Measuring:
    """What every set is measured with, for every backbone."""

    probe: str
    rules: Protocol
    seeds: tuple[int, ...]
    patches_per_scene: int | str
    device: str
    keep_caches: bool

    def rows_of(
        self, backbone: ActivationSource, layers: tuple[int, ...], uri: str, place: Path, base: Path | None
    ) -> dict[str, list[dict[str, Any]]]:
        """Rows of one set by where their probe comes from ("base" only if its place is given); read if there."""
        record = place / "rows" / f"{slug(backbone.name)}.json"
        content = {
            "scenes": uri,
            "backbone": {name: value for name, value in backbone.describe().items() if name != "revision"},
            "layers": layers,
            "probe": self.probe,
            "rules": repr(self.rules),
            "seeds": self.seeds,
            "patches_per_scene": self.patches_per_scene,
            "transfer": base is not None,
            "bindkit": __version__,
            **own_code(self.probe),
        }
        made_from = json.loads(json.dumps(content))  # as JSON gives it back
        rows = None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            kept = parse_json(record.read_text(encoding="utf-8"))
            # Of code without a digest nobody can say whether it is what it was.
            rows = kept["rows"] if kept["made_from"] == made_from and content.get("code", "") is not None else None
        if rows is None:
            scenes = open_scenes(uri)
            cache = cache_activations(
                backbone,
                scenes,
                root=place / "cache",
                layers=layers,
                patches_per_scene=self.patches_per_scene,
                split=split_scenes(scenes),  # given, so that its notices are not said for every set and backbone
            )
            own = sweep(
                [cache],
                layers,
                [self.probe],
                protocol=self.rules,
                seeds=self.seeds,
                root=place / "probes",
                device=self.device,
            ).to_dict("records")
            rows = {"own": own}
            if base is not None:
                rows["base"] = own if base == place else [self._carried(row, base, cache) for row in own]
            record.parent.mkdir(parents=True, exist_ok=True)
            plain = {origin: [without_nan(row) for row in found] for origin, found in rows.items()}
            write_json(record, {"made_from": made_from, "rows": plain})
            if not self.keep_caches:
                shutil.rmtree(cache.path)
                with contextlib.suppress(OSError):  # other backbones' caches may lie there still
                    cache.path.parent.rmdir()
                    cache.path.parent.parent.rmdir()
        return {origin: [with_nan(row) for row in found] for origin, found in rows.items()}

    def _carried(self, row: dict[str, Any], base: Path, cache: ActivationCache) -> dict[str, Any]:
        """The row of the base's probe of the same layer and seed, judged on this cache."""
        probe = load_probe(probe_directory(base / "probes", row))
        judged = judge_probe(probe, cache, row["split"], self.rules, device=self.device)
        return {**row, **{name: judged[name] for name in RESULT_COLUMNS if name in judged}, "seconds": math.nan}
