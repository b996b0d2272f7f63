"""What a fit is made by, and what comes of it: measuring choices, and the fitted probe with its figures, on disk too.

Of the bundles of choices, `paper` reproduces the reference implementation and `strict` is ours. Both take other values
of their fields, as text that also names them in rows and places.

>>> protocol("strict, epochs=4, weight_decay=1e-4, keep=loss").name
'strict,epochs=4,weight_decay=0.0001'
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, fields, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from bindkit.arguments import is_control, read_path
from bindkit.errors import InvalidParameterError, ProbeError
from bindkit.files import parse_json, sha256_of, write_bytes, write_json
from bindkit.probes.base import PROBES, Probe, make_probe


@dataclass(frozen=True)
class Protocol:
    """Which patches and pairs are measured and how a probe is trained.

    The values of ``PAPER`` are facts of the reference implementation of Li, Salehi, Ungar & Kording (NeurIPS 2025,
    arXiv 2510.24709).
    """

    name: str
    pairs_with_unlabelled: bool
    """Whether unlabelled patches (id 0) take part and count as one more object; strict leaves them out."""
    min_purity: float
    """A patch takes part if its purity is above this (0 = every patch). Above 0.5, instance and class agree."""
    overlapping_pairs: bool
    """Whether two patches that show the same pixels (overlapping windows) may form a pair."""
    full_matrix_loss: bool
    """Loss over all N x N entries, diagonal and both orders (paper), or over pairs i < j only (strict)."""
    train_patches: int
    """Patches of each scene redrawn every step."""
    judged_patches: int
    """Patches of each scene drawn once, seeded, for validation and test."""
    scenes_per_step: int
    """Scenes in a batch (at most as many as the training split has)."""
    epochs: int
    """Passes over the training scenes."""
    min_steps: int
    """Small scene sets repeat their scenes within an epoch until this many steps are done in all."""
    learning_rate: float
    """Adam's."""
    divide_by_width: bool
    """Whether the learning rate is divided by d_model, so that a step moves logits alike at every width."""
    decay_every: int
    """Epochs after which the learning rate is multiplied by `decay`."""
    decay: float
    precondition: bool
    """Train in whitened units from a start in closed form, where a probe has them; folded back when done."""
    chance_is_logit: bool
    """Whether the softmax probe's chance goes into the loss as if it were a logit, as in the reference."""
    offset_at_both: bool
    """Whether the linear probe adds its offset at both patches, as in the reference, where Adam so moves it twice."""
    attention_normed: bool
    """Whether self_attention reads a layer through the next one's norm, as the model does, or raw (paper)."""
    keep: str
    """The epoch that is kept: best validation ``"accuracy"`` or ``"loss"``."""
    normalization: str
    """Whose mean and deviation backbones are loaded with: ``"imagenet"``'s (paper), or each ``"checkpoint"``'s own."""
    arithmetic: str
    """How sizes, windows and masks are to be rounded: as the ``"reference"`` does (paper), or ``"centred"``."""
    # What came later has the values of before, which both protocols share; `protocol` leaves them out of digests.
    weight_decay: float = 0.0
    """``torch.optim.Adam``'s, of all parameters in training units (whitened where it preconditions), offsets too; what
    trains a probe of one's own on to its end lowers the same sum of loss and squares."""
    n_queries: int = 100
    """Of `pointwise_identity`: what objects of a scene are matched to; those beyond are left out of its loss."""
    class_weight: float = 2.0
    """Of `pointwise_identity`: its loss for object or background, over mask and Dice losses of matched queries."""
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1
    """Of `pointwise_identity`: what background patches weigh in the class loss, objects' weighing 1."""

    def __post_init__(self) -> None:
        for field in fields(self)[1:]:
            _require(field, getattr(self, field.name))

    def options_of(self, kind: str) -> dict[str, bool]:
        """Options that a kind of probe is made with."""
        options = {
            "softmax": {"chance_is_logit": self.chance_is_logit},
            "linear": {"offset_at_both": self.offset_at_both},
            "self_attention": {"normed": self.attention_normed},
        }
        return options.get(kind, {})

    @property
    def is_shipped(self) -> bool:
        """Whether its name alone says all of its fields: a shipped one's, or text."""
        try:
            return protocol(self.name) == self
        except InvalidParameterError:
            return False

    def for_controls(self) -> Protocol:
        """The same name, patches, pairs and loss, trained as under ``strict`` where training is in raw units.

        Controls are ours and no part of the reference, and what they are for is to read all there is without a model:
        raw coordinates hardly move a probe at the reference's learning rate.
        """
        if self.precondition:
            return self
        training = (
            *("scenes_per_step", "epochs", "min_steps", "learning_rate", "divide_by_width", "decay_every", "decay"),
            *("precondition", "chance_is_logit", "offset_at_both", "keep", "weight_decay"),
        )
        return replace(self, **{name: getattr(STRICT, name) for name in training})


_WORDS = dict(keep=("accuracy", "loss"), normalization=("imagenet", "checkpoint"), arithmetic=("reference", "centred"))


def _require(field: Field[Any], value: Any) -> None:
    """Refuse what a field does not take. Raises InvalidParameterError."""
    name, kind = field.name, field.type
    is_number = isinstance(value, int if kind == "int" else int | float) and not isinstance(value, bool)
    if kind == "bool":
        takes, holds = "true or false", isinstance(value, bool)
    elif kind == "str":
        takes, holds = " or ".join(_WORDS[name]), value in _WORDS[name]
    elif kind == "int":
        least = int(name != "min_steps")
        takes, holds = f"a whole number, at least {least}", is_number and value >= least
    elif name == "learning_rate":
        takes, holds = "a number above 0", is_number and 0 < value < math.inf
    else:
        below, words = (1, " and below 1") if name == "min_purity" else (math.inf, "")
        takes, holds = f"a number, at least 0{words}", is_number and 0 <= value < below
    if not holds:
        raise InvalidParameterError(f"a protocol's {name} takes {takes}; got {value!r:.80}")


_PAPER_AND_STRICT: dict[str, tuple[Any, Any]] = {
    "pairs_with_unlabelled": (True, False),
    "min_purity": (0.0, 0.5),
    "overlapping_pairs": (True, False),
    "full_matrix_loss": (True, False),
    "train_patches": (64, 64),
    "judged_patches": (64, 128),
    "scenes_per_step": (256, 16),
    "epochs": (16, 8),
    "min_steps": (0, 320),
    "learning_rate": (1e-3, 1.28),
    "divide_by_width": (False, True),
    "decay_every": (8, 4),
    "decay": (0.2, 0.2),
    "precondition": (False, True),
    "chance_is_logit": (True, False),
    "offset_at_both": (True, False),
    "attention_normed": (False, True),
    "keep": ("accuracy", "loss"),
    "normalization": ("imagenet", "checkpoint"),
    "arithmetic": ("reference", "centred"),
}
PAPER = Protocol("paper", **{name: paper for name, (paper, _) in _PAPER_AND_STRICT.items()})
STRICT = Protocol("strict", **{name: strict for name, (_, strict) in _PAPER_AND_STRICT.items()})
PROTOCOLS = {"paper": PAPER, "strict": STRICT}


def protocol(name: str | Protocol) -> Protocol:
    """Look up a protocol by name, with fields of one's own behind it: ``"strict,epochs=4,weight_decay=0.0001"``.

    Its name is then the shipped one's and those fields alone that differ from it, in their order. A Protocol object of
    one's own gets a digest of its fields into its name, in places and rows.

    Raises InvalidParameterError for a name other than "paper" or "strict", a field that there is not or that is given
    twice, and a value that it does not take.
    """
    if not isinstance(name, Protocol):
        return _read(name)
    if name.is_shipped:
        return name
    own = {f.name: getattr(name, f.name) for f in fields(name)[1:] if getattr(name, f.name) != f.default}
    digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:8]
    # What came from text and was changed since does not say its fields any more.
    stem = re.sub(f"^({'|'.join(PROTOCOLS)}),.*", r"\1", re.sub("-[0-9a-f]{8}$", "", name.name))
    return replace(name, name=f"{stem}-{digest}")


def _read(text: Any) -> Protocol:
    """A protocol from text. Errors as `protocol`."""
    shipped, *items = (part.strip() for part in str(text).split(","))
    if shipped not in PROTOCOLS:
        raise InvalidParameterError(
            f"unknown protocol {text!r}; choose one of {', '.join(sorted(PROTOCOLS))}, with fields as in "
            f"'strict,epochs=4', or give one of your own"
        )
    base, known, given = PROTOCOLS[shipped], {field.name: field for field in fields(Protocol)[1:]}, dict[str, Any]()
    for item in items:
        name, _, written = (part.strip() for part in item.partition("="))
        if name not in known:
            close = "".join(f" (did you mean {one!r}?)" for one in difflib.get_close_matches(name, known, n=1))
            raise InvalidParameterError(f"protocol {text!r}: unknown field {name!r}{close}; fields: {', '.join(known)}")
        if name in given:
            raise InvalidParameterError(f"protocol {text!r}: {name} is given twice")
        given[name] = _value(written, str(known[name].type))
        _require(known[name], given[name])
    told = [f"{name}={given[name]}".lower() for name in known if name in given and given[name] != getattr(base, name)]
    return replace(base, **given, name=",".join([shipped, *told])) if told else base


def _value(written: str, kind: str) -> Any:
    """What is written for a field of a kind; where it is nothing of the kind the text itself, to be refused."""
    if kind == "bool":
        return {"true": True, "false": False}.get(written.lower(), written)
    try:
        return written if kind == "str" else int(written) if kind == "int" else float(written) + 0.0  # no -0.0
    except ValueError:
        return written


def protocol_of_fit(fitted_on: Mapping[str, Any]) -> Protocol:
    """The protocol of a fit, strict where it says nothing. Raises InvalidParameterError for unknown fields."""
    fields = fitted_on.get("protocol_fields")
    if fields is None:
        return protocol(fitted_on.get("protocol", "strict"))
    try:
        return protocol(Protocol(**fields))
    except TypeError as error:
        raise InvalidParameterError(
            f"the probe was fitted under the protocol {fitted_on.get('protocol')!r}, whose fields are not those of "
            f"this bindkit ({error}); say protocol="
        ) from error


def loading_options(name: str | Protocol) -> dict[str, str]:
    """Keywords of `load_backbone` for what a protocol is to measure. Errors as `protocol`."""
    rules = protocol(name)
    return {"normalization": rules.normalization, "arithmetic": rules.arithmetic}


# --- fits ------------------------------------------------------------------------------------------------------------

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
"""Columns of ``results.csv``, one row a fit; some are of pointwise tasks alone (`own_figures` in judging)."""


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
        """Write probe (those of further folds in ``fold_2``, ...), figures and history. Returns the directory."""
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
