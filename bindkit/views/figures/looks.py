"""How the lines of a figure look: trained backbones have colours, what was never trained or has no model recedes."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from bindkit.arguments import CONTROL_PREFIX, is_control, parse_control
from bindkit.views.figures.style import FAINT, colour_of

_UNTRAINED = "random-init:"
_PATTERNS = {"position": "2px,3px", "raw-pixels": "8px,3px,2px,3px", "position+raw-pixels": "10px,3px"}
"""Dashes of the controls, by what they read."""
_GREYS = ("#3d444d", "#8c959f", "#59636e")
"""Of the controls, one for every geometry."""


@dataclass(frozen=True)
class Look:
    """Colour, dash and width (pixels) of one line, and whether it is a control's.

    >>> Look("#0072B2").line
    {'color': '#0072B2', 'dash': 'solid', 'width': 2.5}
    """

    colour: str
    dash: str = "solid"
    width: float = 2.5
    is_control: bool = False

    @property
    def line(self) -> dict[str, str | float]:
        """As Plotly takes it."""
        return {"color": self.colour, "dash": self.dash, "width": self.width}

    @property
    def recedes(self) -> bool:
        """Whether it is thin and without whiskers."""
        return self.width < 2.5


def line_looks(rows: pd.DataFrame, line_of: str) -> dict[str, Look]:
    """Look of every line, by name in order of appearance.

    Controls are grey, told apart by their dashes. Beside trained backbones, untrained ones are thin and dashed, in the
    colour of their twin where it is drawn (``random-init:NAME`` beside ``NAME``), else in grey; among themselves they
    have colours of their own.

    Parameters
    ----------
    rows : pandas.DataFrame
        Rows of ``results.csv``.
    line_of : str
        The column that names the lines, "backbone" or "probe".
    """
    names = [str(name) for name in rows[line_of].unique()]
    if line_of != "backbone":
        return {name: Look(colour_of(position)) for position, name in enumerate(names)}
    objective = rows.groupby("backbone")["objective"].first() if "objective" in rows else pd.Series(dtype=object)
    controls = [name for name in names if is_control(objective.get(name)) and name.startswith(CONTROL_PREFIX)]
    models = [name for name in names if name not in controls]
    trained = [name for name in models if objective.get(name) != "random-init"]
    looks = {name: Look(colour_of(position)) for position, name in enumerate(trained or models)}
    for name in models:
        twin = looks.get(name.removeprefix(_UNTRAINED).partition(",seed=")[0], Look(FAINT))
        looks.setdefault(name, Look(twin.colour, "4px,3px", 1.6))
    geometries = list(dict.fromkeys(parse_control(name).geometry for name in controls))
    for name in controls:
        control = parse_control(name)
        grey = _GREYS[geometries.index(control.geometry) % len(_GREYS)]
        looks[name] = Look(grey, _PATTERNS[control.kind], 1.6, is_control=True)
    return {name: looks[name] for name in names}
