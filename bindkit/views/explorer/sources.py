"""What an explorer is given: backbones with their probes, and images; each read when it is first shown.

Of an image also the lines around its patches and objects, and how well patches cover an object.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bindkit.affinities.scoring import ImageGrid, Picture, image_pixels, layer_of
from bindkit.arguments import control_title, each_of, require_kind
from bindkit.backbones.sources import ActivationSource
from bindkit.errors import BindkitError, InvalidParameterError, LayerError, ProbeError
from bindkit.probes import Probe, load_probe
from bindkit.scenes.decoding import read_image
from bindkit.scenes.scene import SceneSet
from bindkit.views.viewer.exporting import Subject, check_list, outlined_mask, subject_name, subject_of
from bindkit.views.viewer.probe_choice import (
    Probes,
    best_shown,
    is_synthetic,
    probes_by_kind,
    usual_start,
)

MOST_IMAGES = 500
"""Images that the picker offers."""

_BACKBONES_ARE = "a backbone is what bk.load_backbone gives, or a name"

_REACH = 2
"""Points before and after that a border's point is averaged with, so that slanted borders are no staircases."""

INSET = 0.07
"""Of a patch's side, between the patch and the line that marks it."""

Line = tuple[np.ndarray, np.ndarray]
"""x and y of a line as float32 in patches, the centre of the first one at 0; NaN where it is interrupted."""

NOTHING: Line = (np.zeros(0, np.float32), np.zeros(0, np.float32))

Found = TypeVar("Found")


def probes_given(
    entry: Probe | str | Path, backbone: str, weights_digest: str | None = None
) -> list[tuple[str, int | None, Probe | Path]]:
    """Kind, layer and probe of what is given: a probe, its directory, or a directory with many of a backbone."""
    if isinstance(entry, Probe):
        return [(entry.kind, entry.fitted_on.get("layer"), entry)]
    place = Path(entry).expanduser()
    if (place / "probe.json").exists():
        return probes_given(load_probe(place), backbone)
    kinds = probes_by_kind(place, backbone, weights_digest)
    return [(kind, layer, where) for kind, by_layer in kinds.items() for layer, where in by_layer.items()]


class Shelf:
    """Probes of one backbone by kind and layer; weights are read when a probe is first asked.

    `problems` says why probes that were given are not here.
    """

    def __init__(self, backbone: ActivationSource, given: Probes) -> None:
        self._backbone = backbone
        self._by_kind: dict[str, dict[int, Probe | Path]] = {}
        self.problems: list[str] = []
        for entry in [given] if isinstance(given, Probe | str | Path) else given or ():
            try:
                for found in probes_given(entry, backbone.name, backbone.describe().get("weights_digest")):
                    self._put(*found)
            except BindkitError as error:
                self.problems.append(str(error))

    def _put(self, kind: str, layer: int | None, probe: Probe | Path) -> None:
        """A probe that does not say which layer it was fitted on is offered at all of them."""
        everywhere = range(self._backbone.n_layers)
        if layer is not None and layer not in everywhere:
            raise ProbeError(
                f"a {kind} probe of layer {layer} is given, but {self._backbone.name} has layers 0 to "
                f"{everywhere[-1]}; it was fitted on another backbone, so leave it out"
            )
        for reads in everywhere if layer is None else (layer,):
            if isinstance(probe, Probe):
                layer_of(probe, self._backbone, reads)
            if self._by_kind.setdefault(kind, {}).setdefault(reads, probe) is not probe:
                raise ProbeError(f"several {kind} probes of layer {reads} are given; the first of them is shown")

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of probe, those given first or most capable first."""
        return tuple(kind for kind, by_layer in self._by_kind.items() if by_layer)

    def layers(self, kind: str | None) -> tuple[int, ...]:
        """Layers that probes of a kind read; without a kind all layers of the backbone."""
        if kind is None:
            return tuple(range(self._backbone.n_layers))
        return tuple(sorted(self._by_kind.get(kind, {})))

    def best_layer(self, kind: str | None) -> int:
        """Where a kind does best by the rule of the tables (`best_shown`); without a kind `usual_start`."""
        layers = self.layers(kind)
        if kind is None:
            return layers[usual_start(len(layers))]
        return layers[best_shown([self._by_kind[kind][layer] for layer in layers])[0]]

    def is_synthetic(self, kind: str | None, layer: int) -> bool:
        """Whether a probe was fitted on scenes that were drawn."""
        found = self._by_kind.get(str(kind), {}).get(layer)
        return found is not None and is_synthetic(found)

    def probe(self, kind: str, layer: int) -> Probe:
        """The probe of a kind that reads a layer.

        Raises LayerError if there is none, and says where there are some; ProbeError or ProbeMismatchError if it cannot
        be read, or is of another backbone.
        """
        found = self._by_kind.get(kind, {}).get(layer)
        if found is None:
            there = ", ".join(map(str, self.layers(kind))) or "no layer"
            raise LayerError(f"there is no {kind} probe of layer {layer}, only of {there}; choose one of these")
        if isinstance(found, Probe):
            return found
        probe = load_probe(found)
        layer_of(probe, self._backbone, layer)
        return probe


class ShownBackbone:
    """A backbone of the picker; a name is loaded when it is first shown, which `tell` is told in words."""

    def __init__(
        self, given: ActivationSource | str, probes: Probes, tell: Callable[[str], None] = lambda words: None
    ) -> None:
        self.given = given
        self.title = control_title(given if isinstance(given, str) else given.name)
        self._probes = probes
        self._tell = tell
        self._failure: Exception | None = None

    @cached_property
    def source(self) -> ActivationSource:
        """The backbone itself. Raises BackboneError and what else `bindkit.load_backbone` raises."""
        if not isinstance(self.given, str):
            return self.given
        if self._failure is not None:
            raise self._failure
        from bindkit.backbones import load_backbone

        self._tell(f"loading {self.title}")
        try:
            return load_backbone(self.given)
        except (BindkitError, OSError) as error:
            self._failure = error
            raise
        finally:
            self._tell("")

    @property
    def candidates(self) -> list[Probe | Path]:
        """Probes of the kind that its shelf shows first, one a layer; found without loading the backbone."""
        given = [self._probes] if isinstance(self._probes, Probe | str | Path) else self._probes or ()
        name = self.given if isinstance(self.given, str) else self.given.name
        by_kind: dict[str, dict[int, Probe | Path]] = {}
        for entry in given:
            with suppress(BindkitError):  # said when it is shown
                for kind, layer, probe in probes_given(entry, name):
                    if layer is not None:
                        by_kind.setdefault(kind, {}).setdefault(layer, probe)
        first = next(iter(by_kind.values()), {})
        return [first[layer] for layer in sorted(first)]

    def try_again(self) -> None:
        """Forget that it could not be loaded; until then that is not tried again, which may take long."""
        self._failure = None

    @cached_property
    def shelf(self) -> Shelf:
        """Its probes. Raises as `source`."""
        return Shelf(self.source, self._probes)


def shown_backbones(
    backbone: ActivationSource | str | Sequence[ActivationSource | str] | Mapping[Any, Probes],
    probes: Probes,
    tell: Callable[[str], None] = lambda words: None,
) -> list[ShownBackbone]:
    """One entry for each backbone. Raises InvalidParameterError for none, or something that is no backbone."""
    if isinstance(backbone, Mapping):
        if probes is not None:
            raise InvalidParameterError("several backbones bring their probes with them: leave out probes=")
        pairs = list(backbone.items())
    else:
        pairs = [(entry, probes) for entry in each_of(backbone, ActivationSource | str, _BACKBONES_ARE)]
    if not pairs:
        raise InvalidParameterError("give at least one backbone, such as bk.load_backbone(...) or its name")
    for entry, _ in pairs:
        require_kind(entry, ActivationSource | str, _BACKBONES_ARE)
    return [ShownBackbone(*pair, tell) for pair in pairs]


class ShownImage:
    """An image of the picker by its name for people; `read` gives its `Subject` when it is first shown."""

    def __init__(self, name: str, read: Callable[[], Subject]) -> None:
        self.name = name
        self._read = read
        self._found: dict[Hashable, Any] = {}

    @cached_property
    def subject(self) -> Subject:
        """Pixels and masks. Raises BrokenSceneError, InvalidParameterError, GeometryError."""
        return self._read()

    @property
    def is_read(self) -> bool:
        """Whether it was shown before and could be read."""
        return "subject" in vars(self)

    @property
    def pixels(self) -> np.ndarray:
        """The image, uint8 [height, width, 3]. Raises as `subject`."""
        return self.subject.pixels

    @property
    def size(self) -> tuple[int, int]:
        """``(height, width)`` in pixels. Raises as `subject`."""
        return int(self.pixels.shape[0]), int(self.pixels.shape[1])

    @cached_property
    def objects(self) -> list[dict[str, Any]]:
        """Objects as `Subject.objects` gives them; none where there are no masks."""
        return self.subject.objects()

    def _once(self, what: Hashable, make: Callable[[], Found]) -> Found:
        if what not in self._found:
            self._found[what] = make()
        found: Found = self._found[what]
        return found

    def labels(self, grid: ImageGrid) -> np.ndarray:
        """Position in `objects` of the object that fills most of each patch, -1 where none does, int [rows, cols]."""
        return self._once(
            ("labels", grid),
            lambda: np.reshape(self.subject.labels(grid) or np.full(grid.n_patches, -1), (grid.rows, grid.cols)),
        )

    def names(self, grid: ImageGrid) -> np.ndarray | None:
        """Name of every patch's object, [rows, cols], safe inside a figure; None for an image without masks.

        It is always the same array, so that a figure can tell that it has it already.
        """
        if not self.objects:
            return None

        def make() -> np.ndarray:
            words = [html.escape(self.object_name(k), quote=False) for k in range(-1, len(self.objects))]
            return np.array(words, dtype=object)[self.labels(grid) + 1]

        return self._once(("names", grid), make)

    def iou(self, chosen: np.ndarray, grid: ImageGrid, position: int) -> float:
        """Intersection over union of patches, bool [rows, cols], with an object, in pixels of the image."""
        coverage = self._once(("coverage", grid), lambda: Coverage(self._instances(), grid))
        return coverage.iou(chosen.ravel(), self.objects[position]["id"])

    def outline(self, position: int, grid: ImageGrid) -> Line:
        """Outline of an object, in patches of a grid."""
        instance = self.objects[position]["id"]
        return self._once(("outline", position, grid), lambda: mask_outline(self._instances() == instance, grid))

    def _instances(self) -> np.ndarray:
        scene = self.subject.scene
        assert scene is not None
        return scene.instances

    def object_name(self, position: int) -> str:
        """``cat (object 3)``; "unlabelled" where there is none, nothing for an image without masks."""
        if position < 0:
            return "unlabelled" if self.objects else ""
        return f"{self.objects[position]['name']} (object {self.objects[position]['id']})"


def shown_images(
    images: SceneSet | Iterable[Picture], class_names: Mapping[int, str] | None
) -> tuple[list[ShownImage], list[str]]:
    """One entry for each image, none of them read yet, and what is to be said of them.

    Raises InvalidParameterError for one image where a list belongs.
    """
    check_list(images)
    names = dict(getattr(images, "class_names", {}) if class_names is None else class_names)
    given = images if isinstance(images, SceneSet) else list(images)
    if isinstance(given, SceneSet):
        titles = list(given.ids[:MOST_IMAGES])
    else:
        titles = [subject_name(image, number) for number, image in enumerate(given[:MOST_IMAGES], start=1)]

    found = [
        ShownImage(title, lambda position=position: subject_of(given[position], position + 1, names))  # type: ignore[misc]
        for position, title in enumerate(titles)
    ]
    if len(given) <= MOST_IMAGES:
        return found, []
    return found, [f"{len(given)} images are given, the first {MOST_IMAGES} are offered; give others with images=[...]"]


def uploaded_image(name: str, content: bytes) -> ShownImage:
    """An image that was sent as the bytes of a file; read at once. Raises BrokenSceneError, GeometryError."""
    subject = Subject(name, image_pixels(read_image(Path(name), content=content)), None, {})
    shown = ShownImage(name, lambda: subject)
    _ = shown.subject
    return shown


def loops_around(inside: np.ndarray) -> list[np.ndarray]:
    """Closed loops along the edges of the cells that are inside, bool [rows, cols].

    Each is an int array [point, 2] of ``(x, y)`` in cells, with a point at every cell's corner. Cells that touch in a
    corner only belong to two loops.
    """
    framed = np.pad(inside.astype(bool), 1)
    middle = framed[1:-1, 1:-1]
    after: dict[tuple[int, int], list[tuple[int, int]]] = {}
    # Edges run clockwise, the inside at their right: from a corner of the cell, by a step along x and y.
    sides = (
        (framed[:-2, 1:-1], (0, 0), (1, 0)),
        (framed[1:-1, 2:], (1, 0), (0, 1)),
        (framed[2:, 1:-1], (1, 1), (-1, 0)),
        (framed[1:-1, :-2], (0, 1), (0, -1)),
    )
    for neighbour, (across, down), (dx, dy) in sides:
        for row, col in np.argwhere(middle & ~neighbour).tolist():
            start = (col + across, row + down)
            after.setdefault(start, []).append((start[0] + dx, start[1] + dy))
    loops = []
    for first, ways_on in after.items():
        while ways_on:
            points: list[tuple[int, int]] = []
            now, came = first, (0, 0)
            while not points or now != first:
                points.append(now)
                ways = after[now]
                # Where two cells touch in a corner, turn right, so that each keeps a loop of its own.
                right = (now[0] - came[1], now[1] + came[0])
                going = ways.pop(ways.index(right) if right in ways else -1)
                came, now = (going[0] - now[0], going[1] - now[1]), going
            loops.append(np.array(points))
    return loops


def line_through(loops: Sequence[np.ndarray], scale: tuple[float, float] = (1, 1)) -> Line:
    """Loops of ``(x, y)`` in some unit as one line, closed, with gaps between them; `scale` is in patches per unit."""
    gap = np.full((1, 2), np.nan)
    pieces = [piece for loop in loops for piece in (loop, loop[:1], gap)]
    points = np.concatenate(pieces[:-1]) if pieces else np.zeros((0, 2))
    x, y = (points * scale - 0.5).astype(np.float32).T
    return np.ascontiguousarray(x), np.ascontiguousarray(y)


def joined(lines: Sequence[Line]) -> Line:
    """Several lines as one, with a gap between them."""
    if not lines:
        return NOTHING
    gap = np.full((2, 1), np.nan, np.float32)
    x, y = np.concatenate([part for line in lines for part in (np.stack(line), gap)][:-1], axis=1)
    return x, y


def patch_outline(inside: np.ndarray) -> Line:
    """Outline of a set of patches, bool [rows, cols]; a straight run is one edge."""
    loops = []
    for loop in loops_around(inside):
        along, onward = loop - np.roll(loop, 1, axis=0), np.roll(loop, -1, axis=0) - loop
        loops.append(loop[(along != onward).any(axis=1)])
    return line_through(loops)


def mask_outline(mask: np.ndarray, grid: ImageGrid) -> Line:
    """Smooth outline of the pixels of an object, bool [height, width], in patches of a grid over that image."""
    small = outlined_mask(mask) > 0
    shifts = range(-_REACH, _REACH + 1)
    loops = [
        np.mean([np.roll(loop, shift, axis=0) for shift in shifts], axis=0) if len(loop) > 4 * len(shifts) else loop
        for loop in loops_around(small)
    ]
    return line_through(loops, (grid.cols / small.shape[1], grid.rows / small.shape[0]))


def square(row: int, col: int) -> Line:
    """Outline of one patch, a little inside it, so that it shows at the image's border too."""
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * (1 - 2 * INSET) + INSET
    return line_through([corners + np.array([col, row])])


class Coverage:
    """How many pixels of every object of a mask lie in every patch of a grid: what an IoU needs, counted once."""

    def __init__(self, mask: np.ndarray, grid: ImageGrid) -> None:
        height, width = mask.shape
        row_of, col_of = np.arange(height) * grid.rows // height, np.arange(width) * grid.cols // width
        patch_of = (row_of[:, None] * grid.cols + col_of).ravel()
        self.ids, compact = np.unique(mask, return_inverse=True)
        slots = patch_of * len(self.ids) + compact.ravel()
        counts = np.bincount(slots, minlength=grid.n_patches * len(self.ids))
        self.pixels = counts.reshape(grid.n_patches, len(self.ids))

    def iou(self, chosen: np.ndarray, instance: int) -> float:
        """Pixels that the chosen patches, bool [n_patches], share with an object, over those of both, in [0, 1]."""
        column = int(np.searchsorted(self.ids, instance))
        shared = int(self.pixels[chosen, column].sum())
        both = int(self.pixels[chosen].sum()) + int(self.pixels[:, column].sum()) - shared
        return shared / both if both else 0.0


def top_patches(values: np.ndarray, how_many: int, around: tuple[int, int] | None, apart: int) -> list[tuple[int, int]]:
    """Row and column of the highest values, the highest first, of equal ones the first in reading order.

    Those at most `apart` rows and columns away from the patch `around` are left out; 0 leaves out the patch itself.
    """
    rows, cols = values.shape
    counts = np.ones(values.shape, dtype=bool)
    if around is not None:
        down, across = np.ogrid[:rows, :cols]
        counts = np.maximum(np.abs(down - around[0]), np.abs(across - around[1])) > apart
    candidates = np.flatnonzero(counts)
    order = np.argsort(-values.ravel()[candidates], kind="stable")[:how_many]
    return [(int(patch) // cols, int(patch) % cols) for patch in candidates[order]]
