"""What a run is asked for, checked before it starts: a mistyped probe, window or seed costs no caching.

>>> check_choices({"probes": "cubic"})
Traceback (most recent call last):
    ...
bindkit.errors.ProbeError: unknown probe 'cubic'; there are ...
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from bindkit.arguments import read_layers, read_seed, resolve_layers, whole_number
from bindkit.errors import BackboneError, InvalidParameterError

_AT_LEAST = {"patches_per_scene": 1, "seeds": 1, "window": 0, "page_scenes": 1, "page_layers": 1}
"""Counts among the parameters of notebooks, and the least that each takes."""


def check_choices(values: Mapping[str, Any]) -> None:
    """Refuse what no notebook of a run would take, as far as that shows without loading a model.

    Checked are, where they are given, ``scenes`` and ``groups`` (scenes are opened, ADE20K's directory is only looked
    for), ``backbones``, ``layers``, ``window``, ``controls``, ``probes``, ``tasks``, ``protocol``, ``dtype``,
    ``changed``, ``seed``, ``folds`` and counts. Depth and patch of a backbone are known where its config lies on this
    machine.

    Parameters
    ----------
    values : mapping
        Parameters of a run, as notebooks write them: names with blanks between, layers with commas.

    Raises
    ------
    SceneSetError
        For scenes that cannot be opened.
    BackboneError
        For no backbone, an empty name, and a name that begins with ``bindkit/`` and is not shipped.
    LayerError
        For layers that are no list of layers, or that a backbone does not have.
    GeometryError
        For a window that is no multiple of a backbone's patch.
    ProbeError
        For an unknown probe or task, and for a probe that goes with none of the tasks.
    InvalidParameterError
        For a number out of range, an unknown protocol, dtype or control, a ``random-init:`` that cannot be read, for
        no probe or no task, and for tasks without ``pairwise``.
    """
    for name, least in _AT_LEAST.items():
        if name in values:
            whole_number(values[name], name, least)
    if "seed" in values:
        read_seed(values["seed"])
    _check_folds(whole_number(values.get("folds", 0), "folds", 0))
    _check_names(values)
    named = {name: value for name, value in values.items() if isinstance(value, str)}
    _check_controls(named.get("controls", ""))
    if "probes" in named:
        _check_probes(named["probes"].split(), named.get("tasks", "pairwise").split())
    read_layers(named.get("layers", "all"))
    if "backbones" in named:
        _check_backbones(shlex.split(named["backbones"]), named.get("layers", "all"), int(values.get("window", 0)))
    if "scenes" in named:
        _check_scenes(named["scenes"], named.get("groups", ""))


def _check_folds(n_folds: int) -> None:
    from bindkit.probes.judging import LEAST_FOLDS

    if 0 < n_folds < LEAST_FOLDS:
        raise InvalidParameterError(f"folds is 0 for none, or at least {LEAST_FOLDS}; got {n_folds}")


def _check_names(values: Mapping[str, Any]) -> None:
    from bindkit.cache.extraction import CHANGED
    from bindkit.cache.manifest import DTYPES
    from bindkit.probes.protocols import PROTOCOLS

    for name, known in (("protocol", tuple(PROTOCOLS)), ("dtype", DTYPES), ("changed", CHANGED)):
        if name in values and values[name] not in known:
            raise InvalidParameterError(f"unknown {name} {values[name]!r}; choose one of {', '.join(known)}")


def _check_backbones(names: list[str], layers: str, window: int) -> None:
    from bindkit.backbones.names import depth_and_patch, parse_random_init
    from bindkit.scenes.geometry import PatchGrid

    if not names or not all(name.strip() for name in names):
        raise BackboneError(f"backbones are names with blanks between, at least one; got {shlex.join(names)!r}")
    for name in names:
        untrained = parse_random_init(name)
        depth, patch = depth_and_patch(untrained.source if untrained else name)
        if depth is not None:
            resolve_layers(layers, depth, name)
        if patch is not None and window:
            PatchGrid.of_window(window, patch)


def _check_controls(names: str) -> None:
    from bindkit.arguments import parse_control

    for name in names.split():
        parse_control(name)


def _check_probes(probes: list[str], tasks: list[str]) -> None:
    from bindkit.probes.tasks import require_pairwise
    from bindkit.results.sweeping import fitting_pairs

    if not probes or not tasks:
        raise InvalidParameterError("a run needs at least one probe and one task, such as linear and pairwise")
    fitting_pairs(probes, tasks)
    require_pairwise(tasks)


def _check_scenes(uri: str, groups: str) -> None:
    from bindkit.scenes import open_scenes
    from bindkit.scenes.splits import named_groups
    from bindkit.scenes.synthetic import require_unseen

    scheme, _, rest = uri.partition(":")
    if scheme == "ade20k" and rest.strip():
        # Opening it reads a large index, which notebook 01 does once and keeps.
        from pathlib import Path

        from bindkit.scenes.formats.ade20k import find_root
        from bindkit.scenes.reading import ADE20K_OPTIONS, ReadingOptions, split_directory

        directory, options = split_directory(rest)
        ReadingOptions.parse(options, ADE20K_OPTIONS)
        find_root(Path(directory).expanduser())
    else:
        scenes = open_scenes(uri)
        require_unseen(scenes)
        named_groups(scenes, groups)
