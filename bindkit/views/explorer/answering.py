"""What a browser needs to answer a press by itself: the factors of every affinity map on the screen.

A press then redraws without a way to the kernel and back, which takes several times as long as the drawing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bindkit.affinities.stitching import ImageGrid
from bindkit.views.explorer.drawing import Panel
from bindkit.views.explorer.factors import Factors, Rows
from bindkit.views.explorer.outlines import INSET
from bindkit.views.explorer.state import State, View

MOST_BYTES = 4_000_000
"""Of the factors of one map; larger ones stay with the kernel, which then answers alone."""

_ELSEWHERE = (-1.0, -1.0)


@dataclass(frozen=True, eq=False)
class Answer:
    """One affinity map that the browser may redraw.

    Attributes
    ----------
    panels : tuple of int
        Numbers, from 1, of the panels where a press moves this map's patch.
    factors : Factors
        Of its affinities.
    own, shown : ImageGrid
        Of the image whose patch is chosen, and of the one whose patches have the values.
    traces : dict
        Number of the trace of each role in the figure.
    threshold : float
        From which on a patch is outlined.
    """

    panels: tuple[int, ...]
    factors: Factors
    own: ImageGrid
    shown: ImageGrid
    traces: Mapping[str, int]
    threshold: float

    def is_same(self, other: Answer) -> bool:
        """Whether the browser would answer alike."""
        return self.factors is other.factors and self._rest() == other._rest()

    def _rest(self) -> tuple[Any, ...]:
        return self.panels, self.own, self.shown, dict(self.traces), self.threshold

    def packed(self) -> dict[str, Any]:
        """As `answers.js` reads it; numbers as little-endian float32."""
        parts = {name: getattr(self.factors, name).numpy() for name in ("left", "right", "left_offset", "right_offset")}
        return {
            **{name: np.ascontiguousarray(part, "<f4").tobytes() for name, part in parts.items()},
            "rank": self.factors.rank,
            "scale": self.factors.scale,
            "own": [self.own.rows, self.own.cols],
            "shown": [self.shown.rows, self.shown.cols],
            "panels": list(self.panels),
            "heat": self.traces["heat"],
            "guess": self.traces["guess"],
            "marks": [self.traces[role] for role in ("mark casing", "mark") if role in self.traces],
            "inset": INSET,
            "threshold": self.threshold,
        }


def answers_of(
    state: State,
    panels: Sequence[Panel],
    rows_of: Callable[[str, View], Rows],
    grid_of: Callable[[View], ImageGrid],
    traces_of: Callable[[str], Mapping[str, int]],
) -> list[Answer]:
    """Answers for the panels that show affinity by factors.

    Parameters
    ----------
    state : State
        Of the explorer.
    panels : sequence of Panel
        In the order in which they stand.
    rows_of : callable
        Gives the rows of affinities of a panel's view.
    grid_of : callable
        Gives the patch grid of a view's own image.
    traces_of : callable
        Gives the number of each role's trace of a panel.
    """
    views = dict(state.panels())
    movers = {panel.name: dict(state.clicking(panel.name, _ELSEWHERE).panels()) for panel in panels}
    found = []
    for panel in panels:
        if panel.found is None or panel.measure != "affinity":
            continue
        rows, traces = rows_of(panel.name, views[panel.name]), dict(traces_of(panel.name))
        if not isinstance(rows, Factors) or rows.n_bytes > MOST_BYTES:
            continue
        moved = [
            number
            for number, mover in enumerate(panels, start=1)
            if panel.name in movers[mover.name] and movers[mover.name][panel.name].place == _ELSEWHERE
        ]
        if panel.found.patch is None:  # the chosen patch lies in another image
            traces = {role: number for role, number in traces.items() if not role.startswith("mark")}
        own = grid_of(views[panel.name])
        found.append(Answer(tuple(moved), rows, own, panel.found.grid, traces, state.threshold))
    return found
