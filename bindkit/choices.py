"""What a run is asked for by name, checked before it starts: a mistyped probe costs no caching.

>>> check_choices({"probes": "cubic"})
Traceback (most recent call last):
    ...
bindkit.errors.ProbeError: unknown probe 'cubic'; there are ...
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from bindkit.errors import InvalidParameterError


def check_choices(values: Mapping[str, Any]) -> None:
    """Refuse names that no notebook of a run would take.

    Checked are ``backbones`` (as far as that needs no loading: those that come with bindkit, and how ``random-init:``
    is written), ``layers``, ``controls``, ``probes`` and ``tasks``, where they are given. Whether there is a model
    behind a hub id or in a directory, and how many layers it has, shows once it is loaded.

    Parameters
    ----------
    values : mapping
        Parameters of a run, as notebooks write them: names with blanks between, layers with commas.

    Raises
    ------
    BackboneError
        For a name that begins with ``bindkit/`` and is not shipped.
    LayerError
        For layers that are no list of layers, or that a shipped backbone does not have.
    ProbeError
        For an unknown probe or task, and for a probe that goes with none of the tasks.
    InvalidParameterError
        For an unknown control, a ``random-init:`` that cannot be read, for no probe or no task, and for tasks without
        ``pairwise``.
    """
    named = {name: value for name, value in values.items() if isinstance(value, str)}
    _check_backbones(named.get("backbones", ""), named.get("layers", "all"))
    _check_controls(named.get("controls", ""))
    if "probes" in named:
        _check_probes(named["probes"].split(), named.get("tasks", "pairwise").split())


def _check_backbones(names: str, layers: str) -> None:
    from bindkit.backbones.layers import read_layers, resolve_layers
    from bindkit.backbones.random_init import parse_random_init
    from bindkit.backbones.shipped import depth_of, directory_of

    for name in shlex.split(names):
        untrained = parse_random_init(name)
        source = untrained.source if untrained else name
        if directory_of(source) != source:
            resolve_layers(layers, depth_of(source), name)
    read_layers(layers)


def _check_controls(names: str) -> None:
    from bindkit.control_names import parse_control

    for name in names.split():
        parse_control(name)


def _check_probes(probes: list[str], tasks: list[str]) -> None:
    from bindkit.sweeping import fitting_pairs
    from bindkit.tasks import require_pairwise

    if not probes or not tasks:
        raise InvalidParameterError("a run needs at least one probe and one task, such as linear and pairwise")
    fitting_pairs(probes, tasks)
    require_pairwise(tasks)
