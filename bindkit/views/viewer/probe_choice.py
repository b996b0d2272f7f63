"""Which fitted probes are shown: one a layer, found in the directories that `fit.save` and sweeps leave."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bindkit.errors import ProbeError
from bindkit.files import parse_json
from bindkit.probes import Probe, by_capability
from bindkit.probes.protocols import accuracies_of, best_position

Probes = Probe | str | Path | Sequence[Probe | str | Path] | None
"""Fitted probes, directories of fitted probes, or directories that hold such; None for none."""

_OF_ALL_SEEDS = ("backbone", "weights_digest", "scenes", "layer", "probe", "task", "protocol", "split")
"""What fits agree in that differ in their seed alone."""


class _Saved(NamedTuple):
    """A probe's directory, its kind, and what it was fitted on."""

    place: Path
    kind: str
    fitted_on: dict[str, Any]

    @classmethod
    def read(cls, record: Path) -> _Saved:
        """Raises ProbeError for a file that does not say."""
        try:
            content = parse_json(record.read_text(encoding="utf-8"))
            return cls(record.parent, str(content["probe"]), dict(content["fitted_on"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ProbeError(
                f"{record} cannot be read ({error}); remove that directory or fit the probe again"
            ) from error

    @property
    def layer(self) -> Any:
        return self.fitted_on.get("layer")


def find_probes(
    directory: str | Path,
    backbone: str | None = None,
    layers: Sequence[int] | None = None,
    probe: str | None = None,
    weights_digest: str | None = None,
) -> list[Path]:
    """Directories of the probes to show, one a layer, layers ascending.

    ::

        find_probes("workspace/probes", "random-init:vit")
        [PosixPath('workspace/probes/random-init-vit/layer_00/quadratic-pairwise-strict-seed0'), ...]

    `directory` is a probe's own, or holds many at any depth, such as a workspace's ``probes``. Without a kind of
    `probe` one is taken for all layers: the most capable that has as many as any. Of several that read one layer
    `strict` goes before other protocols, then the lowest seed. With `weights_digest` probes of other weights are left
    out, whatever the backbone's name. Raises ProbeError if there is none, or none for a layer asked for, and says what
    there is.
    """
    place = Path(directory).expanduser()
    found = [entry for entry in _probes_of(place, backbone, weights_digest) if layers is None or entry.layer in layers]
    kinds = {entry.kind for entry in found}
    if probe is None and kinds:
        n_layers = {kind: len({entry.layer for entry in found if entry.kind == kind}) for kind in kinds}
        probe = min((kind for kind in kinds if n_layers[kind] == max(n_layers.values())), key=by_capability)
    chosen = _one_a_layer(found, probe)
    missing = sorted(set(layers or ()) - set(chosen))
    if missing or not chosen:
        wanted = f"no {probe} probe" if probe else "no probe"
        where = f" of layer {', '.join(map(str, missing))}" if missing else ""
        raise ProbeError(
            f"{place} holds {wanted}{where}{f' of {backbone}' if backbone else ''}; "
            f"it has {', '.join(sorted(kinds)) or 'none of these layers'}; fit it, or ask for other layers"
        )
    return list(chosen.values())


def probes_by_kind(directory: Path, backbone: str, weights_digest: str | None) -> dict[str, dict[int | None, Path]]:
    """Directories of all probes of a backbone: kind -> layer -> probe, the most capable kind first.

    Of several of one kind and layer the one is taken that `find_probes` takes. Raises ProbeError if there is none.
    """
    found = _probes_of(directory, backbone, weights_digest)
    return {kind: _one_a_layer(found, kind) for kind in sorted({entry.kind for entry in found}, key=by_capability)}


def best_shown(probes: Sequence[Probe | Path]) -> tuple[int, str | None]:
    """Position of the best of a backbone's probes, one a layer in ascending order, and the scenes that say so.

    Chosen as the tables do (`bindkit.probes.protocols.best_position`): of a fit that a sweep kept, all seeds count.
    Where no scenes say which is the best (None), `usual_start`.
    """
    accuracies = [_accuracies(probe) for probe in probes]
    position, validated = best_position([one for one, _, _ in accuracies], [other for _, other, _ in accuracies])
    if position is None:
        return usual_start(len(probes)), None
    return position, "validation" if validated else accuracies[position][2] or "judged"


def best_backbone(shelves: Sequence[Sequence[Probe | Path]]) -> int:
    """Position of the backbone whose best probe tells twins apart best, then all pairs; the first of equals.

    Of each its probes, one a layer in ascending order, as `best_shown` takes them.
    """

    def figures(probes: Sequence[Probe | Path]) -> list[float]:
        metrics = fitted_on(probes[best_shown(probes)[0]]).get("metrics") or {} if probes else {}
        return [-1.0 if (value := metrics.get(name)) is None else value for name in ("twins_auroc", "auroc")]

    ranks = list(map(figures, shelves))
    return ranks.index(max(ranks))


def fitted_on(probe: Probe | Path) -> dict[str, Any]:
    """What a probe, or one in a directory, was fitted on."""
    return probe.fitted_on if isinstance(probe, Probe) else _Saved.read(probe / "probe.json").fitted_on


def is_synthetic(probe: Probe | Path) -> bool:
    """Whether a probe was fitted on scenes that were drawn, and so says little of photos."""
    return str(fitted_on(probe).get("scenes", "")).startswith("synthetic")


def _accuracies(probe: Probe | Path) -> tuple[float, float, str | None]:
    """On the validation and on the judged scenes, averaged over seeds, and which the judged ones are."""
    if isinstance(probe, Probe):
        return *accuracies_of(probe.fitted_on), probe.fitted_on.get("split")
    _, kind, fitted = _Saved.read(probe / "probe.json")
    stem, seeded, _ = probe.name.rpartition("-seed")
    beside = sorted(probe.parent.glob(f"{glob.escape(stem)}-seed*/probe.json")) if seeded else []
    alike = [name for name in fitted if name in _OF_ALL_SEEDS]
    others = [entry.fitted_on for entry in map(_Saved.read, beside) if entry.kind == kind]
    fits = [other for other in others if all(other.get(name) == fitted[name] for name in alike)] or [fitted]
    validated, judged = np.mean([accuracies_of(other) for other in fits], axis=0)
    return float(validated), float(judged), fitted.get("split")


def spread_probes(probes: Sequence[Path], most: int) -> list[Path]:
    """At most so many of a backbone's probes (one a layer, ascending), evenly spread, the best of all among them.

    Raises ProbeError for fewer than one.
    """
    positions = spread(range(len(probes)), most)
    best, chosen_on = best_shown(probes)
    if chosen_on is not None and best not in positions:
        nearest = min(positions, key=lambda position: abs(position - best))
        positions[positions.index(nearest)] = best
    return [probes[position] for position in positions]


def spread(layers: Iterable[float], most: int) -> list[int]:
    """At most so many layers of those given, evenly spread from the first to the last.

    Raises ProbeError for fewer than one.
    """
    if most < 1:
        raise ProbeError(f"a page shows at least one layer, got {most}")
    found = sorted({int(layer) for layer in layers})
    if len(found) <= most:
        return found
    if most == 1:
        return [found[-1]]
    return [found[position * (len(found) - 1) // (most - 1)] for position in range(most)]


def usual_start(n_layers: int) -> int:
    """Position of the layer to begin with where no figures say which is the best: two thirds up."""
    return (n_layers - 1) * 2 // 3


def _probes_of(place: Path, backbone: str | None, digest: str | None) -> list[_Saved]:
    """A backbone's probes, the preferred of one kind and layer first. Raises ProbeError if there is none."""
    records = sorted(place.rglob("probe.json")) if place.is_dir() else []
    if not records:
        raise ProbeError(f"{place} holds no fitted probe; give a directory that fit.save() or a sweep wrote")
    found = list(map(_Saved.read, records))
    if backbone is not None:
        names = sorted({str(entry.fitted_on.get("backbone")) for entry in found})

        def is_own(fitted: dict[str, Any]) -> bool:
            if digest is not None and "weights_digest" in fitted:
                return bool(fitted["weights_digest"] == digest)
            return fitted.get("backbone") == backbone

        # A probe that does not say what it was fitted on is nobody's but the one who points at it.
        own = [entry for entry in found if is_own(entry.fitted_on)]
        found = own or [entry for entry in found if "backbone" not in entry.fitted_on]
        if not found:
            raise ProbeError(f"{place} holds no probe of {backbone}; it has probes of {', '.join(names)}")

    def preference(entry: _Saved) -> tuple[Any, ...]:
        fitted = entry.fitted_on
        seed = fitted.get("seed") or 0
        return fitted.get("task") != "pairwise", fitted.get("protocol") != "strict", seed, entry.place.as_posix()

    # A probe of shuffled labels is there to be compared with, not to be looked at.
    return sorted((entry for entry in found if entry.fitted_on.get("task") != "shuffled_labels"), key=preference)


def _one_a_layer(entries: Sequence[_Saved], kind: str | None) -> dict[Any, Path]:
    """Layer -> the first probe of a kind, layers ascending."""
    chosen: dict[Any, Path] = {}
    for entry in entries:
        if entry.kind == kind:
            chosen.setdefault(entry.layer, entry.place)
    return {layer: chosen[layer] for layer in sorted(chosen, key=lambda value: (value is None, value))}
