"""What callers give, read in one way everywhere: whole numbers, counts, seeds, layers, devices, one thing or several.

>>> read_layers("0, 6,12"), read_layers(3), read_layers([5, 0.0]), read_seeds(range(2))
((0, 6, 12), (3,), (5, 0), [0, 1])
>>> whole_number(2.7, "layer")
Traceback (most recent call last):
bindkit.errors.InvalidParameterError: layer is a whole number such as 3, got 2.7

A control, what there is to read from a patch without any model, is named like a backbone:

>>> parse_control("control:position+raw-pixels@592-224/16")
ControlName(kind='position+raw-pixels', geometry='592-224/16')
>>> control_title("control:raw-pixels@112/8"), control_title("random-init:/home/me/runs/mae")
('raw pixels at 112/8', 'random-init:runs/mae')

Readers raise InvalidParameterError where nothing else is said.
"""

from __future__ import annotations

import math
import operator
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindkit.errors import BindkitError, InvalidParameterError, LayerError

if TYPE_CHECKING:
    import torch

CONTROL = "control"
"""Objective and family of a control, where a backbone has what it was pretrained for."""

CONTROL_PREFIX = "control:"

CONTROL_KINDS = ("position", "raw-pixels", "position+raw-pixels")

SAME_CLASS = "control:same-class"
"""Rows of the oracle that knows every patch's class: no source of activations, so not among `CONTROL_KINDS`."""


def whole_number(given: Any, name: str, least: int | None = None) -> int:
    """Read a whole number, of at least so much; 3.0, as a table's column gives it, is one, "3" and True are not."""
    try:
        if isinstance(given, bool):
            raise TypeError
        # NumPy's numbers, too, say whether they are whole.
        is_whole = not hasattr(given, "__index__") and hasattr(given, "is_integer") and given.is_integer()
        number = int(given) if is_whole else operator.index(given)
    except TypeError:
        raise InvalidParameterError(f"{name} is a whole number such as 3, got {given!r:.80}") from None
    if least is not None and number < least:
        raise InvalidParameterError(f"{name} is at least {least}, got {number}")
    return number


def positive_number(given: Any, name: str) -> float:
    """Read a finite number above 0."""
    try:
        number = math.nan if isinstance(given, str | bool) else float(given)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise InvalidParameterError(f"{name} is a number above 0, got {given!r:.80}")
    return number


def read_seed(given: Any, name: str = "seed") -> int:
    """Read one seed, as torch takes them."""
    seed = whole_number(given, name, least=0)
    if seed >= 2**63:
        raise InvalidParameterError(f"{name} is below 2**63, got {seed}")
    return seed


def read_seeds(given: Any) -> list[int]:
    """Each once; at least one, and no number, which may mean one seed or so many."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InvalidParameterError(f"seeds is a sequence such as [0, 1, 2], or range(3); got {given!r:.80}")
    seeds = list(dict.fromkeys(read_seed(seed, "each of seeds") for seed in given))
    if not seeds:
        raise InvalidParameterError("seeds is a sequence of at least one seed, such as [0]; got none")
    return seeds


def read_layers(given: Any) -> str | tuple[int, ...]:
    """Read ``"all"``, ``"0, 6,12"``, a number or several: ``"all"`` or layers in the order given, each once.

    Whether a backbone has them shows once it is there: `resolve_layers`. Raises LayerError.
    """
    if isinstance(given, str) and given.strip() == "all":
        return "all"
    parts: Any = given
    if isinstance(given, str):
        words = [word.strip() for word in given.split(",")]
        parts = [int(word) if word.isascii() and word.isdigit() else word for word in words]
    try:
        several = parts if isinstance(parts, Iterable) else [parts]
        numbers = tuple(dict.fromkeys(whole_number(layer, "a layer", least=0) for layer in several))
    except InvalidParameterError:
        numbers = ()
    if not numbers:
        raise LayerError(f'layers are "all", a list such as "0,3,5" or whole numbers from 0 on, got {given!r:.80}')
    return numbers


def resolve_layers(given: Any, n_layers: int, name: str) -> tuple[int, ...]:
    """Layers of a backbone called `name` that has `n_layers`, ascending, each once. Raises LayerError."""
    has = f"{name} has layers 0 to {n_layers - 1}"
    try:
        wanted = read_layers(given)
    except LayerError as error:
        raise LayerError(f"{has}; {error}") from None
    if isinstance(wanted, str):
        return tuple(range(n_layers))
    if beyond := [layer for layer in wanted if layer >= n_layers]:
        raise LayerError(
            f'{has}, got {", ".join(map(str, beyond))}; write "all", a list such as "0,6,12", or whole numbers'
        )
    return tuple(sorted(wanted))


def read_device(device: Any) -> torch.device:
    """The device of a name as torch has them; ``"auto"`` takes CUDA where there is one."""
    import torch

    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidParameterError(f'unknown device {device!r:.80}; choose "auto", "cpu" or "cuda"') from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InvalidParameterError(f'device {device!r} asks for a GPU and there is none; choose "auto" or "cpu"')
    return chosen


def require_kind(given: Any, kind: Any, what: str, error: type[BindkitError] = InvalidParameterError) -> None:
    """Refuse a thing of another kind, naming what was given; `what` says what is taken.

    >>> require_kind(3, str, "a probe is a name such as 'linear'")
    Traceback (most recent call last):
    bindkit.errors.InvalidParameterError: a probe is a name such as 'linear'; got 3 (an int)
    """
    if not isinstance(given, kind):
        name = type(given).__name__
        article = "an" if name[0].lower() in "aeiou" else "a"
        raise error(f"{what}; got {given!r:.80} ({article} {name})")


def read_path(given: Any, name: str) -> Path:
    """A path from text or a path, ``~`` understood."""
    require_kind(given, (str, os.PathLike), f"{name} is a path")
    return Path(given).expanduser()


def each_of(given: Any, kind: Any, what: str) -> list[Any]:
    """A single thing as a list of one, or several of its kind; `what` says what is taken."""
    things: list[Any] = [given] if isinstance(given, kind | str) or not isinstance(given, Iterable) else list(given)
    for thing in things:
        require_kind(thing, kind, what)
    return things


@dataclass(frozen=True)
class ControlName:
    """What a control's name says: its kind, and its geometry where it is named (else empty)."""

    kind: str
    geometry: str = ""

    @property
    def full(self) -> str:
        """As it is written in tables."""
        return f"{CONTROL_PREFIX}{self.kind}" + (f"@{self.geometry}" if self.geometry else "")

    @property
    def parts(self) -> tuple[str, ...]:
        """What it reads: ``"position"``, ``"raw-pixels"`` or both."""
        return tuple(self.kind.split("+"))


def parse_control(name: str) -> ControlName:
    """Read ``control:KIND`` or ``KIND``, with ``@GEOMETRY`` behind it or without."""
    require_kind(name, str, f"a control is one of {', '.join(CONTROL_KINDS)}")
    kind, at, geometry = name.strip().removeprefix(CONTROL_PREFIX).partition("@")
    if kind not in CONTROL_KINDS or (at and not geometry):
        raise InvalidParameterError(f"unknown control {name!r}; there are {', '.join(CONTROL_KINDS)}")
    return ControlName(kind, geometry)


def control_title(name: str) -> str:
    """How tables, figures and sentences call a control or a model.

    Of a directory the last two parts, which tell the checkpoints of two runs apart; else its name.
    """
    if not name.startswith(CONTROL_PREFIX):
        return re.sub(r"(^|:)[/~](?:[^:,]*/)?(?=[^/:,]+/[^/:,]+)", r"\1", name)
    kind, _, geometry = name.removeprefix(CONTROL_PREFIX).partition("@")
    kind = kind.replace("same-class", "class labels").replace("-", " ").replace("+", " + ")
    return kind + (f" at {geometry}" if geometry else "")


def is_control(objective: Any) -> bool:
    """Whether a row of a table, or a cache, with this objective is of a control."""
    return isinstance(objective, str) and objective == CONTROL


def read_share(rank: int | None, world_size: int | None, environment: Mapping[str, str]) -> tuple[int, int]:
    """Which of how many calls this one is: as given, else as torchrun or an array of Slurm jobs says.

    >>> read_share(None, None, {"RANK": "1", "WORLD_SIZE": "4"}), read_share(None, None, {})
    ((1, 4), (0, 1))
    >>> read_share(None, None, {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "8"})
    (2, 8)
    """
    if rank is None and world_size is None:
        if "RANK" in environment and "WORLD_SIZE" in environment:
            rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        elif "SLURM_ARRAY_TASK_ID" in environment:
            rank = int(environment["SLURM_ARRAY_TASK_ID"]) - int(environment.get("SLURM_ARRAY_TASK_MIN", "0"))
            world_size = int(environment.get("SLURM_ARRAY_TASK_COUNT", "1"))
        else:
            return 0, 1
    if rank is None or world_size is None:
        raise InvalidParameterError("a rank needs a world size, and a world size a rank: give both or none")
    if not 0 <= rank < world_size:
        raise InvalidParameterError(f"a rank counts from 0 and is below the world size, got {rank} of {world_size}")
    return rank, world_size
