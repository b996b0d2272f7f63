"""The bundles of measuring choices: `paper` reproduces the reference implementation, `strict` is ours."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
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

    def __post_init__(self) -> None:
        for name in ("train_patches", "judged_patches", "scenes_per_step", "epochs", "decay_every"):
            if getattr(self, name) < 1:
                raise InvalidParameterError(f"a protocol's {name} is at least 1, got {getattr(self, name)}")

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
        """Whether its name alone says all of its fields."""
        return PROTOCOLS.get(self.name) == self

    def for_controls(self) -> Protocol:
        """The same name, patches, pairs and loss, trained as under ``strict`` where training is in raw units.

        Controls are ours and no part of the reference, and what they are for is to read all there is without a model:
        raw coordinates hardly move a probe at the reference's learning rate.
        """
        if self.precondition:
            return self
        training = (
            *("scenes_per_step", "epochs", "min_steps", "learning_rate", "divide_by_width", "decay_every", "decay"),
            *("precondition", "chance_is_logit", "offset_at_both", "keep"),
        )
        return replace(self, **{name: getattr(STRICT, name) for name in training})


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
    """Look up a protocol by name; one of one's own gets a digest of its fields into its name, in places and rows.

    Raises InvalidParameterError for a name that is neither "paper" nor "strict".
    """
    if not isinstance(name, Protocol):
        if name not in PROTOCOLS:
            raise InvalidParameterError(
                f"unknown protocol {name!r}; choose one of {', '.join(sorted(PROTOCOLS))}, or give one of your own"
            )
        return PROTOCOLS[name]
    if name.is_shipped:
        return name
    fields = {field: value for field, value in asdict(name).items() if field != "name"}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]
    return replace(name, name=f"{re.sub('-[0-9a-f]{8}$', '', name.name)}-{digest}")


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
