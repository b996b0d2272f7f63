"""Fitted probes with their figures, on disk as weights (safetensors) and JSON that says what they are."""

from __future__ import annotations

import dis
import hashlib
import logging
import math
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from bindkit.arguments import is_control, read_path
from bindkit.errors import ProbeError
from bindkit.files import parse_json, sha256_of, write_bytes, write_json
from bindkit.probes.base import Probe
from bindkit.probes.protocols import PROTOCOLS, Protocol
from bindkit.probes.registry import PROBES, make_probe

FORMAT = 3
"""Version of a saved probe's directory. Version 1 had neither options nor temperature, version 2 no scale."""

RESULT_COLUMNS = (
    *("backbone", "objective", "layer", "probe", "task", "protocol", "split"),
    *("accuracy", "accuracy_low", "accuracy_high", "auroc", "average_precision", "balanced_accuracy"),
    *("twins_accuracy", "twins_auroc", "majority_accuracy", "n_scenes", "n_pairs", "seed", "seconds"),
    *("auroc_low", "auroc_high", "twins_auroc_low", "twins_auroc_high", "class_accuracy", "matched_iou"),
    *("matched_auroc", "matched_auroc_low", "matched_auroc_high"),
    *("matched_twins_auroc", "matched_twins_auroc_low", "matched_twins_auroc_high"),
    "reference_accuracy",
)
"""Columns of ``results.csv``, one row a fit; some are of pointwise tasks alone (`bindkit.probes.tasks.own_figures`)."""


@dataclass(frozen=True)
class Fit:
    """A fitted probe with its figures.

    Attributes
    ----------
    probe : Probe
        In evaluation mode, on the CPU, in the activations' own units.
    metrics : dict
        The figures of `bindkit.probes.metrics.judge` on the judged split, ``n_pairs``, and in ``n_scenes`` how many
        scenes they come from; with a pointwise task, its own figure.
    history : tuple of dict
        One entry an epoch: training loss, validation loss and accuracy (None without a validation split), seconds
        (shared with the probes that were trained beside it) and scenes per second. Where there is a start in closed
        form, it comes first as epoch -1, without a training loss; behind the protocol's epochs comes what a probe of
        one's own is trained on to its end.
    split : str
        The judged split: "test", or what there is where the scene set is too small to have one.
    seconds : float
        Training time, the judging not counted; of the probes trained side by side, an equal share each.
    folds : tuple of Fit
        Of a cross-validation one fit a fold, with its probe and history; probe and history above are the first one's,
        the figures those of all. ``probe.fitted_on["fold"]`` says which scenes a probe never saw.
    """

    probe: Probe
    metrics: dict[str, float]
    history: tuple[dict[str, float | None], ...]
    split: str
    seconds: float
    folds: tuple[Fit, ...] = ()

    def row(self) -> dict[str, Any]:
        """The fit as one row of ``results.csv``. A control has no layers: its layer is NaN."""
        known = {**self.probe.fitted_on, **self.metrics, "split": self.split, "seconds": self.seconds}
        if is_control(known.get("objective")):
            known["layer"] = math.nan
        return {column: known.get(column, math.nan) for column in RESULT_COLUMNS}

    def save(self, directory: str | Path) -> Path:
        """Write probe, figures and history; `bindkit.load_probe` reads the probe back. Returns the directory.

        The probes of further folds go into ``fold_2``, ``fold_3``, ... of the directory.
        """
        for fit in self.folds[1:]:
            save_probe(fit.probe, Path(directory) / f"fold_{fit.probe.fitted_on['fold']['number']}")
        return save_probe(self.probe, directory)


def save_probe(probe: Probe, directory: str | Path) -> Path:
    """Write ``probe.safetensors`` and ``probe.json`` (what it was fitted on); the JSON comes last and seals both."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    record = directory / "probe.json"
    record.unlink(missing_ok=True)
    weights = directory / "probe.safetensors"
    write_bytes(weights, save({name: value.detach().cpu().contiguous() for name, value in probe.state_dict().items()}))
    shape = {"probe": probe.kind, "d_model": probe.d_model, "options": probe.options}
    shape |= {"scale": probe.scale, "temperature": probe.temperature}
    write_json(record, {"format": FORMAT, **shape, "sha256": sha256_of(weights), "fitted_on": probe.fitted_on})
    return directory


def load_probe(directory: str | Path, d_model: int | None = None, layer: int | None = None) -> Probe:
    """Read a fitted probe.

    Parameters
    ----------
    directory : path
        As written by ``fit.save(directory)``.
    d_model, layer : int, optional
        Width and layer that the probe will be asked to judge; checked against what it was fitted on.

    Returns
    -------
    Probe
        In evaluation mode, on the CPU, with ``fitted_on`` filled.

    Raises
    ------
    ProbeError
        No probe there, an unknown kind or format, or weights that are not those that were saved.
    ProbeMismatchError
        Another width or layer.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     _ = save_probe(make_probe("linear", d_model=4), directory)
    ...     load_probe(directory, d_model=4).kind
    'linear'
    """
    directory = read_path(directory, "a probe's directory")
    try:
        description = parse_json((directory / "probe.json").read_text(encoding="utf-8"))
        kind, width, digest = description["probe"], description["d_model"], description["sha256"]
        version, fitted_on = description["format"], description["fitted_on"]
        options = description.get("options", {})
        scale, temperature = (float(description.get(name, 1)) for name in ("scale", "temperature"))
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise ProbeError(
            f"{directory} holds no readable probe.json ({cause}); give a directory that fit.save() wrote"
        ) from cause
    if version not in range(1, FORMAT + 1):
        raise ProbeError(f"{directory} has probe format {version}, this bindkit reads {FORMAT}; fit it again or update")
    if kind not in PROBES:
        raise ProbeError(f"{directory} holds a {kind!r} probe, which is not registered; there are {', '.join(PROBES)}")
    weights = directory / "probe.safetensors"
    try:
        probe = make_probe(kind, width, **options)
        if sha256_of(weights) != digest:
            raise ProbeError(f"{weights} is not the file that was saved (its digest differs); fit the probe again")
        probe.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError, TypeError) as cause:
        raise ProbeError(f"{weights} cannot be read ({cause}); fit the probe again") from cause
    probe.fitted_on, probe.scale, probe.temperature = fitted_on, scale, temperature
    probe.check_fits(probe.d_model if d_model is None else d_model, layer)
    return probe.eval()


def load_folds(directory: str | Path) -> list[Probe]:
    """All probes of a saved fit: one, or one a fold. Raises ProbeError as `bindkit.load_probe`."""
    first = load_probe(directory)
    numbers = first.fitted_on.get("fold", {}).get("saved", [1])
    return [first, *(load_probe(Path(directory) / f"fold_{number}") for number in numbers[1:])]


def validation_accuracy(history: Sequence[Mapping[str, Any]], protocol: Protocol) -> float:
    """Accuracy on the validation scenes of the epoch whose weights were kept; NaN where there were no such scenes."""
    looked = [entry for entry in history if entry["validation_accuracy"] is not None]
    looked = [entry for entry in looked if math.isfinite(entry["validation_loss"])]
    if not looked:
        return math.nan
    # Of equal epochs the first is kept.
    if protocol.keep == "accuracy":
        return float(max(entry["validation_accuracy"] for entry in looked))
    return float(min(looked, key=lambda entry: entry["validation_loss"])["validation_accuracy"])


def accuracies_of(fitted_on: Mapping[str, Any]) -> tuple[float, float]:
    """Accuracy on the validation and on the judged scenes, by what a saved probe says of itself; NaN the unknown."""
    judged = (fitted_on.get("metrics") or {}).get("accuracy")
    validated = fitted_on.get("validation_accuracy")
    if validated is None and fitted_on.get("history") and fitted_on.get("protocol") in PROTOCOLS:
        # Older probes have their history alone.
        validated = validation_accuracy(fitted_on["history"], PROTOCOLS[fitted_on["protocol"]])
    return math.nan if validated is None else float(validated), math.nan if judged is None else float(judged)


def best_position(validated: Sequence[float], judged: Sequence[float]) -> tuple[int | None, bool]:
    """Where the best of several layers stands, and whether the *validation* scenes say so: one rule for all views.

    They decide where every layer has an accuracy on them; else accuracies on the judged scenes do, so that the best of
    many layers looks a little better than it is. Of equal layers the first; None where nothing was judged.
    """
    by_validation = bool(validated) and not any(map(math.isnan, validated))
    # Rounded to the digits of results.csv: layers that differ only in the last bits of a mean count as equal.
    scores = [-math.inf if math.isnan(score) else round(score, 6) for score in (validated if by_validation else judged)]
    best = max(scores, default=-math.inf)
    return (None if best == -math.inf else scores.index(best)), by_validation


_NOT_COMPUTED = {
    *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__firstlineno__"),
    *("__static_attributes__", "__abstractmethods__", "__parameters__", "__orig_bases__", "_abc_impl", "kind"),
}
"""Attributes of a class that are not what it computes, or that Python makes from those that are."""

_PLAIN = (bool, int, float, complex, str, bytes, range, type(None), type(...), torch.dtype, torch.device, np.generic)


class _CannotSayError(Exception):
    """A value of which nobody can say whether it is the same in the next run."""


def class_digest(described: type) -> str | None:
    """Digest of what a class of one's own computes, so that a fit is not taken for one of a class since rewritten.

    What counts is the code that runs, not its text (a cell that was changed but not run has changed nothing, comments
    never do): of functions, base classes, closures, and of what the code reads as globals. Of modules, and of what is
    Python's, bindkit's or another installed package's, the name counts. None where it depends on a value that cannot
    be compared across runs, such as an object of a class of one's own. Another version of Python may give another one.
    """
    try:
        parts = "\n".join(_told(described, _package(described.__module__), []))
    except _CannotSayError:
        return None
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def _package(module: str | None) -> str:
    return (module or "builtins").partition(".")[0]


@cache
def is_own(module: str | None) -> bool:
    """Whether a module is somebody's own code: not Python's, not an installed package's, not bindkit's."""
    package = _package(module)
    if package == "__main__":
        return True
    if package == "bindkit" or package in sys.builtin_module_names or package in sys.stdlib_module_names:
        return False
    file = getattr(sys.modules.get(package), "__file__", None)
    return file is None or not {"site-packages", "dist-packages"} & set(Path(file).resolve().parts)


def _told(value: Any, home: str, seen: list[Any]) -> Iterator[str]:
    """Lines that say what a value is, the same in every run; what is neither `home`'s nor somebody's own is named."""

    def each(*values: Any) -> Iterator[str]:
        for one in values:
            yield from _told(one, home, seen)

    def looked_into(module: str | None) -> bool:
        return is_own(module) or _package(module) == home

    module = getattr(value, "__module__", None)
    if isinstance(value, _PLAIN):
        yield f"{type(value).__name__} {value!r}"
    elif isinstance(value, types.ModuleType):
        yield f"module {value.__name__}"
    elif isinstance(value, logging.Logger):
        yield f"logger {value.name}"
    elif isinstance(value, (frozenset, set)):
        yield f"set {sorted(' '.join(each(item)) for item in value)}"
    elif isinstance(value, torch.Tensor):
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        yield f"tensor {value.dtype} {tuple(value.shape)} {hashlib.sha256(content.tobytes()).hexdigest()}"
    elif isinstance(value, np.ndarray) and value.dtype != object:
        yield f"array {value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    elif isinstance(value, tuple):
        # Not among those seen: whether equal ones are one object is up to the interpreter.
        yield f"tuple {len(value)}"
        yield from each(*value)
    elif any(value is one for one in seen):
        yield f"again {next(number for number, one in enumerate(seen) if one is value)}"
    else:
        seen.append(value)
        if isinstance(value, type):
            yield f"class {value.__qualname__}"
            if not looked_into(module):
                yield str(module)
                return
            yield from each(value.__bases__)
            for name, attribute in sorted(vars(value).items()):
                if name not in _NOT_COMPUTED:
                    yield name
                    yield from each(attribute)
        elif isinstance(value, types.CodeType):
            yield f"code {value.co_code.hex()} {value.co_names} {value.co_varnames} {value.co_freevars}"
            yield f"{value.co_argcount} {value.co_posonlyargcount} {value.co_kwonlyargcount} {value.co_flags}"
            yield from each(value.co_consts)
        elif isinstance(value, types.FunctionType):
            names = value.__globals__
            if not looked_into(names.get("__name__")):
                # What another package wraps around one's own function.
                yield f"{names.get('__name__')} {value.__code__.co_qualname}"
                if hasattr(value, "__wrapped__"):
                    yield from each(value.__wrapped__)
                return
            yield "function"
            yield from each(value.__code__, (value.__defaults__, value.__kwdefaults__))
            for cell in value.__closure__ or ():
                try:
                    yield from each(cell.cell_contents)
                except ValueError:
                    yield "empty"
            for name in sorted(_globals_read(value.__code__)):
                if name in names:
                    yield name
                    yield from each(names[name])
        elif isinstance(value, list):
            yield f"list {len(value)}"
            yield from each(*value)
        elif isinstance(value, Mapping):
            yield f"mapping {len(value)}"
            yield from each(*chain.from_iterable(value.items()))
        elif isinstance(value, (staticmethod, classmethod, property)):
            yield type(value).__name__
            yield from each((value.fget, value.fset, value.fdel) if isinstance(value, property) else value.__func__)
        elif callable(value) and hasattr(value, "__qualname__") and not looked_into(module):
            # A builtin, a compiled function, a type hint: its name describes it.
            yield f"{module} {value.__qualname__}"
        else:
            raise _CannotSayError


def _globals_read(code: types.CodeType) -> set[str]:
    """Names that a function and those inside it read as globals."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(_globals_read(inner) for inner in code.co_consts if isinstance(inner, types.CodeType)))
