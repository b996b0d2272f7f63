"""What is shown, in words: titles of maps and the line that says what is seen."""

from __future__ import annotations

import numpy as np

from bindkit.views.explorer.engine import Map
from bindkit.views.explorer.sources import ShownImage
from bindkit.views.explorer.state import LOCKS, MEASURES, State, View

_NUMBERS = {"affinity": "{:.2f}", "cosine": "{:.2f}", "attention": "{:.2%}"}


def number(measure: str, value: float) -> str:
    """A value of a measure: ``0.71``, of attention ``0.32%``."""
    return _NUMBERS[measure].format(value)


def title_of(panel: str, view: View, state: State, image: str) -> str:
    """First line above a map."""
    name = MEASURES[view.measure]
    if panel == "second":
        return f"{name} across images · {image}"
    if panel == "locked":
        return f"Locked: {name.lower()}" if state.lock == "view" else f"Locked {LOCKS[state.lock][4:]}: {name.lower()}"
    return name


def note_of(view: View, backbone: str, found: Map, of_patch: bool = False) -> str:
    """Second line above a map: of what it is."""
    parts = [f"layer {view.layer}"]
    if view.measure == "affinity":
        parts.append(f"{str(view.probe).replace('_', ' ')} probe")
    if found.note:
        parts.append(found.note)
    if view.measure in ("attention", "cosine"):
        parts.append(f"{number(view.measure, found.low)} to {number(view.measure, found.high)}")
    if of_patch and found.patch is not None:
        parts.append(f"patch {found.patch[0]}, {found.patch[1]}")
    return " · ".join([*parts, backbone])


def status_of(view: View, found: Map, image: ShownImage, threshold: float) -> str:
    """What is seen in the main map, in one line.

    Means are over patches other than the chosen one. An image without masks has no objects to speak of.
    """
    assert found.patch is not None
    row, col = found.patch
    parts = [f"Patch row {row}, column {col}"]
    labels = image.labels(found.grid)
    own = int(labels[row, col])
    if name := image.object_name(own):
        parts.append(name)
    if found.values is None:
        return " · ".join(
            [*parts, f"three principal components of layer {view.layer}: alike colours, alike activations"]
        )
    values, measure = found.values, view.measure
    word = {"affinity": "affinity", "cosine": "cosine", "attention": "attention"}[measure]
    parts.append(f"{word} to itself {number(measure, float(values[row, col]))}")
    others = np.ones(values.shape, dtype=bool)
    others[row, col] = False
    if own >= 0:
        twins = np.isin(labels, image.objects[own]["twins"])
        groups = [("its object", (labels == own) & others), ("its twins", twins & others)]
        groups.append(("the rest", (labels != own) & ~twins & others))
        means = [f"{what} {number(measure, float(values[which].mean()))}" for what, which in groups if which.any()]
        parts.append(f"mean to {', '.join(means)}")
    else:
        parts.append(f"mean to all others {number(measure, float(values[others].mean()))}" if others.any() else "")
    if measure != "attention":
        above = values >= threshold
        parts.append(f"{int(above.sum())} of {values.size} patches at {threshold:.2f} or more")
        if own >= 0:
            parts.append(f"threshold IoU with its object {image.iou(above, found.grid, own):.2f}")
    return " · ".join(filter(None, parts))
