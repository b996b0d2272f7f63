"""Which fitted probes a page shows: one a layer, found in the directories that `fit.save` and sweeps leave."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bindkit.errors import ProbeError
from bindkit.files import parse_json
from bindkit.probes import Probe, by_capability
from bindkit.probes.saving import accuracies_of, best_position


def find_probes(
    directory: str | Path,
    backbone: str | None = None,
    layers: Sequence[int] | None = None,
    probe: str | None = None,
    weights_digest: str | None = None,
) -> list[Path]:
    """Directories of the probes to show, one a layer, layers ascending.

    Of several that read one layer the most capable kind is taken, `strict` before other protocols, the lowest seed.

    Parameters
    ----------
    directory : path
        A probe's own directory, or one that holds many at any depth, such as a workspace's ``probes``.
    backbone : str, optional
        Name of the backbone that they were fitted on.
    layers : sequence of int, optional
        Which layers; all there are if not given.
    probe : str, optional
        Which kind of probe; else one kind for all layers: the most capable that has as many layers as any.
    weights_digest : str, optional
        Of the backbone: probes that were fitted on other weights are left out, whatever its name.

    Returns
    -------
    list of Path

    Raises
    ------
    ProbeError
        If there is none, or none for a layer asked for; says what there is.

    Examples
    --------
    ::

        find_probes("workspace/probes", "random-init:vit")
        [PosixPath('workspace/probes/random-init-vit/layer_00/quadratic-pairwise-strict-seed0'), ...]
    """
    place = Path(directory).expanduser()
    found = _probes_of(place, backbone, weights_digest)
    if layers is not None:
        found = [entry for entry in found if entry[2].get("layer") in set(layers)]
    kinds = {kind for _, kind, _ in found}
    if probe is None and kinds:
        n_layers = {kind: len({fitted.get("layer") for _, k, fitted in found if k == kind}) for kind in kinds}
        probe = min((kind for kind in kinds if n_layers[kind] == max(n_layers.values())), key=by_capability)
    chosen = _one_a_layer(entry for entry in found if entry[1] == probe)
    missing = sorted(set(layers or ()) - set(chosen))
    if missing or not chosen:
        wanted = f"no {probe or ''} probe".replace("  ", " ")
        where = f" of layer {', '.join(map(str, missing))}" if missing else ""
        raise ProbeError(
            f"{place} holds {wanted}{where}{f' of {backbone}' if backbone else ''}; "
            f"it has {', '.join(sorted(kinds)) or 'none of these layers'}; fit it, or ask for other layers"
        )
    return [entry[0] for entry in chosen.values()]


def probes_by_kind(
    directory: str | Path, backbone: str | None = None, weights_digest: str | None = None
) -> dict[str, dict[int | None, Path]]:
    """Directories of all probes of a backbone: kind -> layer -> probe, the most capable kind first.

    Of several of one kind and layer the one is taken that `find_probes` takes.

    Raises
    ------
    ProbeError
        If there is none; says what there is.
    """
    found = _probes_of(Path(directory).expanduser(), backbone, weights_digest)
    by_kind = {}
    for kind in sorted({kind for _, kind, _ in found}, key=by_capability):
        by_kind[kind] = {layer: entry[0] for layer, entry in _one_a_layer(e for e in found if e[1] == kind).items()}
    return by_kind


def best_shown(probes: Sequence[Probe | Path]) -> tuple[int | None, str | None]:
    """Position of the best of a backbone's probes, one a layer in ascending order, and the scenes that say so.

    Chosen as the tables do (`bindkit.probes.saving.best_position`): of a fit that a sweep kept, all seeds count.
    """
    accuracies = [_accuracies(probe) for probe in probes]
    position, validated = best_position([one for one, _, _ in accuracies], [other for _, other, _ in accuracies])
    if position is None:
        return None, None
    return position, "validation" if validated else accuracies[position][2] or "judged"


def spread_probes(probes: Sequence[Path], most: int) -> list[Path]:
    """At most so many of a backbone's probes (one a layer, ascending), evenly spread, the best of all among them.

    Raises
    ------
    ProbeError
        For fewer than one.
    """
    positions = spread(range(len(probes)), most)
    best = best_shown(probes)[0]
    if best is not None and best not in positions:
        nearest = min(positions, key=lambda position: abs(position - best))
        positions[positions.index(nearest)] = best
    return [probes[position] for position in positions]


def usual_start(layers: Sequence[int]) -> int:
    """Position of the layer to begin with where no figures say which is the best: two thirds up."""
    return (len(layers) - 1) * 2 // 3


def _accuracies(probe: Probe | Path) -> tuple[float, float, str | None]:
    """On the validation and on the judged scenes, averaged over seeds, and which the judged ones are."""
    if isinstance(probe, Probe):
        return *accuracies_of(probe.fitted_on), probe.fitted_on.get("split")
    kind, fitted = _described(probe / "probe.json")
    stem, seeded, _ = probe.name.rpartition("-seed")
    beside = sorted(probe.parent.glob(f"{glob.escape(stem)}-seed*/probe.json")) if seeded else []
    own = [name for name in fitted if name in _OF_ALL_SEEDS]
    fits = [other for of_kind, other in map(_described, beside) if of_kind == kind]
    fits = [other for other in fits if all(other.get(name) == fitted[name] for name in own)] or [fitted]
    validated, judged = np.mean([accuracies_of(other) for other in fits], axis=0)
    return float(validated), float(judged), fitted.get("split")


_OF_ALL_SEEDS = ("backbone", "weights_digest", "scenes", "layer", "probe", "task", "protocol", "split")
"""What fits agree in that differ in their seed alone."""


def spread(layers: Iterable[float], most: int) -> list[int]:
    """At most so many layers of those given, evenly spread from the first to the last.

    >>> spread([0, 1, 2, 3, 4, 5], 3), spread([2, 2, 0], 9)
    ([0, 2, 5], [0, 2])

    Raises
    ------
    ProbeError
        For fewer than one.
    """
    if most < 1:
        raise ProbeError(f"a page shows at least one layer, got {most}")
    found = sorted({int(layer) for layer in layers})
    if len(found) <= most:
        return found
    if most == 1:
        return [found[-1]]
    return [found[position * (len(found) - 1) // (most - 1)] for position in range(most)]


def _probes_of(place: Path, backbone: str | None, digest: str | None) -> list[tuple[Path, str, dict[str, Any]]]:
    """Directory, kind and origin of a backbone's probes. Raises ProbeError if there is none."""
    records = sorted(place.rglob("probe.json")) if place.is_dir() else []
    if not records:
        raise ProbeError(f"{place} holds no fitted probe; give a directory that fit.save() or a sweep wrote")
    found = [(path.parent, *_described(path)) for path in records]
    names = sorted({str(fitted.get("backbone")) for _, _, fitted in found})
    if backbone is not None:
        mine = [entry for entry in found if _is_of(entry[2], backbone, digest)]
        # A probe that does not say what it was fitted on is nobody's but the one who points at it.
        found = mine or [entry for entry in found if "backbone" not in entry[2]]
        if not found:
            raise ProbeError(f"{place} holds no probe of {backbone}; it has probes of {', '.join(names)}")
    # A probe of shuffled labels is there to be compared with, not to be looked at.
    return [entry for entry in found if entry[2].get("task") != "shuffled_labels"]


def _one_a_layer(entries: Iterable[tuple[Path, str, dict[str, Any]]]) -> dict[Any, tuple[Path, str, dict[str, Any]]]:
    """Layer -> the preferred of its probes, layers ascending."""
    chosen: dict[Any, tuple[Path, str, dict[str, Any]]] = {}
    for entry in sorted(entries, key=_preference):
        chosen.setdefault(entry[2].get("layer"), entry)
    return {layer: chosen[layer] for layer in sorted(chosen, key=lambda value: (value is None, value))}


def _described(record: Path) -> tuple[str, dict[str, Any]]:
    """Kind of a saved probe and what it was fitted on. Raises ProbeError for a file that does not say."""
    try:
        content = parse_json(record.read_text(encoding="utf-8"))
        return str(content["probe"]), dict(content["fitted_on"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProbeError(f"{record} cannot be read ({error}); remove that directory or fit the probe again") from error


def _is_of(fitted: dict[str, Any], backbone: str, digest: str | None) -> bool:
    if digest is not None and "weights_digest" in fitted:
        return bool(fitted["weights_digest"] == digest)
    return fitted.get("backbone") == backbone


def _preference(entry: tuple[Path, str, dict[str, Any]]) -> tuple[Any, ...]:
    place, _, fitted = entry
    return (
        fitted.get("task") != "pairwise",
        fitted.get("protocol") != "strict",
        fitted.get("seed") or 0,
        place.as_posix(),
    )
