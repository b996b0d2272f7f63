"""Names of the controls: what there is to read from a patch without any model.

>>> parse_control("control:position+raw-pixels@592-224/16")
ControlName(kind='position+raw-pixels', geometry='592-224/16')
>>> control_title("control:position+raw-pixels")
'position + raw pixels'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bindkit.arguments import require_kind
from bindkit.errors import InvalidParameterError

CONTROL = "control"
"""Objective and family of a control, where a backbone has what it was pretrained for."""

PREFIX = "control:"

SAME_CLASS = "control:same-class"
"""Rows of the oracle that knows every patch's class: no source of activations, so not among `KINDS`."""

KINDS = ("position", "raw-pixels", "position+raw-pixels")


@dataclass(frozen=True)
class ControlName:
    """What a control's name says: its kind, and its geometry where it is named (else empty)."""

    kind: str
    geometry: str = ""

    @property
    def full(self) -> str:
        """As it is written in tables."""
        return f"{PREFIX}{self.kind}" + (f"@{self.geometry}" if self.geometry else "")

    @property
    def parts(self) -> tuple[str, ...]:
        """What it reads: ``"position"``, ``"raw-pixels"`` or both."""
        return tuple(self.kind.split("+"))


def parse_control(name: str) -> ControlName:
    """Read ``control:KIND`` or ``KIND``, with ``@GEOMETRY`` behind it or without.

    Raises
    ------
    InvalidParameterError
        For a kind that there is not.
    """
    require_kind(name, str, f"a control is one of {', '.join(KINDS)}")
    kind, _, geometry = name.strip().removeprefix(PREFIX).partition("@")
    if kind not in KINDS or (("@" in name) != bool(geometry)):
        raise InvalidParameterError(f"unknown control {name!r}; there are {', '.join(KINDS)}")
    return ControlName(kind, geometry)


def is_control(objective: Any) -> bool:
    """Whether a row of a table, or a cache, with this objective is of a control."""
    return isinstance(objective, str) and objective == CONTROL


def control_title(name: str) -> str:
    """How figures and sentences call a control; any other name as it is.

    >>> control_title("control:raw-pixels@112/8"), control_title("facebook/dinov2-small")
    ('raw pixels at 112/8', 'facebook/dinov2-small')
    """
    if not name.startswith(PREFIX):
        return name
    kind, _, geometry = name.removeprefix(PREFIX).partition("@")
    return kind.replace("-", " ").replace("+", " + ") + (f" at {geometry}" if geometry else "")
