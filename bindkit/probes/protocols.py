"""The bundles of measuring choices: `paper` reproduces the reference implementation, `strict` is ours.

Both take other values of their fields, as text that also names them in rows and places.

>>> protocol("strict, epochs=4, weight_decay=1e-4, keep=loss").name
'strict,epochs=4,weight_decay=0.0001'
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields, replace
from typing import Any

from bindkit.errors import InvalidParameterError


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
    """The protocol that a probe was fitted under, by what it keeps of its fit; strict where it says nothing.

    Raises InvalidParameterError for one of another bindkit, which has other fields.
    """
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
