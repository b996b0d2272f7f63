"""What the maps are computed by: each image goes through a backbone when first needed, a click costs one row.

Activations are kept in 16 bits, rows of affinities come from factors (`bindkit.views.explorer.rows`), and one store
holds both up to `MEMORY` bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar, TypeVar
from weakref import WeakSet

import numpy as np
import torch
from jaxtyping import Float, Int16
from torch import Tensor

from bindkit.affinities.scoring import MOST_PATCHES, ImageGrid, image_activations, window_activations
from bindkit.backbones.attention import attention_maps
from bindkit.backbones.loading import Backbone
from bindkit.errors import GeometryError, LayerError, NonFiniteActivationsError, ProbeError
from bindkit.views.explorer.rows import AttentionRows, CosineRows, ObjectColours, PatchColours, Rows, rows_of
from bindkit.views.explorer.sources import ShownBackbone, ShownImage
from bindkit.views.explorer.state import BY_PROBE, View, patch_of

MEMORY = 150_000_000
"""Bytes of activations and factors that are held, all images and backbones together."""
_A_PASS = 100_000_000
"""Bytes of float32 activations that one pass through a backbone may leave before they are kept in 16 bits."""
_STEPS = 65_535
"""Steps between the least and the greatest value of a dimension."""

Held = TypeVar("Held")


@dataclass(frozen=True)
class KeptActivations:
    """Activations of one image and layer, each dimension in 65,535 steps between its extremes over the patches.

    Half the bytes of float32, and unlike float16 no worse where a dimension is far from zero, as the massive
    activations of large ViTs are: an entry is off by half a step at most. A value is ``middle + step * code``.
    """

    codes: Int16[Tensor, "patch d_model"]
    middle: Float[Tensor, " d_model"]
    step: Float[Tensor, " d_model"]

    @classmethod
    def of(cls, activations: Float[Tensor, "patch d_model"]) -> KeptActivations:
        """Keep finite activations."""
        low, high = activations.amin(0).double(), activations.amax(0).double()
        middle, step = (low + high) / 2, (high - low) / _STEPS
        codes = (activations - middle.float()) / step.clamp(min=torch.finfo(torch.float32).tiny).float()
        return cls(codes.round().clamp(-32_768, 32_767).to(torch.int16), middle.float(), step.float())

    def restored(self) -> Float[Tensor, "patch d_model"]:
        """The activations as float32."""
        return self.codes.float() * self.step + self.middle


def bytes_of(record: Any) -> int:
    """Memory of a record's tensors; one that has two names counts once."""
    tensors = {id(part): part for part in vars(record).values() if torch.is_tensor(part)}
    return sum(part.nbytes for part in tensors.values())


class Store:
    """Holds what was computed up to a number of bytes; what was used longest ago is forgotten first.

    All stores of a process share that memory: ipywidgets keeps every explorer that was ever made, and the one in use
    may take from those that are not. What was put in last stays even if it alone is larger.
    """

    _all: ClassVar[WeakSet[Store]] = WeakSet()
    _clock: ClassVar[Iterator[int]] = count()

    def __init__(self, limit: int) -> None:
        self.limit = limit
        # Key -> when it was last used, and the record; in the order of use.
        self._held: dict[Hashable, tuple[int, Any]] = {}
        self._all.add(self)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._held

    def __len__(self) -> int:
        return len(self._held)

    @property
    def n_bytes(self) -> int:
        """Of all that is held."""
        return sum(bytes_of(record) for _, record in self._held.values())

    def get(self, key: Hashable, make: Callable[[], Held]) -> Held:
        """What is held under a key, made now if it is not held."""
        if key not in self._held:
            self.put(key, make())
        found: Held = self._held.pop(key)[1]
        self._held[key] = next(self._clock), found
        return found

    def put(self, key: Hashable, record: Any) -> None:
        """Hold a record, and forget others, of any store, until all fit."""
        self._held.pop(key, None)
        self._held[key] = next(self._clock), record
        while sum(store.n_bytes for store in self._all) > self.limit:
            oldest = min(filter(len, self._all), key=lambda store: next(iter(store._held.values()))[0])
            if oldest is self and len(self._held) == 1:
                break
            del oldest._held[next(iter(oldest._held))]

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()


@dataclass(frozen=True)
class Map:
    """One map over the patches of an image: float32 [rows, cols], or uint8 [rows, cols, 3] for colours.

    `low` and `high` are what the ends of the colour map stand for, `patch` the row and column that were asked, where
    they lie in this image, and `note` what the numbers are beyond the measure's name.
    """

    grid: ImageGrid
    values: np.ndarray
    low: float
    high: float
    patch: tuple[int, int] | None
    note: str = ""

    @property
    def is_coloured(self) -> bool:
        """Whether it has colours in the place of numbers."""
        return self.values.ndim == 3


class Engine:
    """Maps of views, of images whose list may grow; the limit is in bytes.

    `tell` is told in words what takes a while, and "" when it is done.
    """

    def __init__(
        self,
        backbones: Sequence[ShownBackbone],
        images: list[ShownImage],
        tell: Callable[[str], None] = lambda words: None,
        limit: int = MEMORY,
    ) -> None:
        self.backbones = backbones
        self.images = images
        self.store = Store(limit)
        self._tell = tell

    def grid(self, backbone: int, image: int) -> ImageGrid:
        """Patch grid of an image.

        Raises BackboneError if the backbone cannot be loaded, BrokenSceneError or GeometryError if the image cannot be
        read or has more patches than are scored.
        """
        size = self.images[image].size
        source = self.backbones[backbone].source
        grid = ImageGrid.of_plan(source.geometry.plan(size))
        if grid.n_patches > MOST_PATCHES:
            raise GeometryError(
                f"{self.images[image].name} of {size[0]} x {size[1]} px becomes {grid.rows} x {grid.cols} patches of "
                f"{source.name}, more than the {MOST_PATCHES} that are scored; crop it to a shape nearer a square"
            )
        return grid

    def map(self, view: View, head: int | None = None) -> Map:
        """What a view shows; without a head attention's mean over heads.

        Raises BindkitError if it cannot be shown; the message says what to do.
        """
        here, there = self.grid(view.backbone, view.image), self.grid(view.backbone, view.shown)
        row, col = patch_of(view.place, here)
        patch, marked = row * here.cols + col, (row, col) if view.second is None else None
        if view.measure == "picture":
            return Map(there, np.zeros((there.rows, there.cols, 3), np.uint8), 0, 1, marked)
        low: float = 0
        high: float = 1
        note = ""
        values: Tensor
        with torch.inference_mode():
            rows = self.rows(view)
            if isinstance(rows, PatchColours):
                values, note = rows.colours, f"{rows.explained:.0%} of the variance"
            elif isinstance(rows, ObjectColours):
                values, note = rows.colours, f"{rows.n} found"
            elif isinstance(rows, AttentionRows):
                n_heads = len(rows.queries)
                if head is not None and head >= n_heads:
                    raise ProbeError(f"there is no attention head {head}; choose one of 0 to {n_heads - 1}")
                values = rows.shares(patch, head)
                high = float(values.max())
                note = f"mean of {n_heads} heads" if head is None else f"head {head} of {n_heads}"
                note += "" if rows.plan.n_windows == 1 else ", window by window"
                note += f", without {rows.adds}" if rows.adds else ""
            elif isinstance(rows, CosineRows):
                values = rows.cosine(patch)
                low = float(values.min())
            else:
                values = rows.affinity(patch)
        if values.isnan().any():
            raise NonFiniteActivationsError("this probe gives NaN for some pairs; fit it again")
        return Map(there, values.reshape(there.rows, there.cols, *values.shape[1:]).numpy(), low, high, marked, note)

    def rows(self, view: View) -> Rows:
        """What the maps of a view's measure are read from.

        Raises ProbeError without a probe for affinity; for attention also of a backbone that is no model, LayerError of
        the last layer, and ContractError if the model's queries and keys cannot be read.
        """
        images = self.images[view.image], self.images[view.shown]
        kind = view.probe if view.measure in BY_PROBE else None

        def made() -> Rows:
            if view.measure == "attention":
                return self._attention(view)
            if view.measure == "pca":
                return PatchColours.of(self.activations(view.backbone, view.shown, view.layer))
            if view.measure in BY_PROBE and kind is None:
                raise ProbeError(f"{view.measure} needs a fitted probe; choose one, or look at cosine similarity")
            probe = None if kind is None else self.backbones[view.backbone].shelf.probe(kind, view.layer)
            first = self.activations(view.backbone, view.image, view.layer)
            if probe is not None and view.measure == "objects":
                return ObjectColours.of(probe, first, self.grid(view.backbone, view.image), view.layer)
            second = first if view.shown == view.image else self.activations(view.backbone, view.shown, view.layer)
            return CosineRows.of(first, second) if probe is None else rows_of(probe, first, second)

        return self.store.get((view.measure, view.backbone, images, view.layer, kind), made)

    def _attention(self, view: View) -> AttentionRows:
        source, shown = self.backbones[view.backbone].source, self.images[view.image]
        if not isinstance(source, Backbone):
            raise ProbeError(f"{source.name} is no transformer, so it has no attention to show")
        if view.layer == source.n_layers - 1:
            raise LayerError(
                f"layer {view.layer} is the last of {source.name}, so no layer attends to it; choose a lower one"
            )
        maps, plan = attention_maps(source, view.layer), source.geometry.plan(shown.size)
        if plan.n_windows == 1:
            return AttentionRows.of(maps, self.activations(view.backbone, view.image, view.layer)[None], plan)
        # A block sees window by window; what is kept is stitched.
        with self._telling(view.backbone, view.image, (view.layer,)):
            windows = window_activations(source, shown.pixels, [view.layer])[view.layer]
        return AttentionRows.of(maps, windows, plan)

    def activations(self, backbone: int, image: int, layer: int) -> Float[Tensor, "patch d_model"]:
        """Activations of an image at a layer, as exact as 16 bits allow.

        On the way layers around it are kept too, as many as one pass may leave.
        """
        source, shown = self.backbones[backbone].source, self.images[image]

        def passed() -> KeptActivations:
            n_bytes = 4 * self.grid(backbone, image).n_patches * source.d_model
            # Twice: the windows' own, and stitched. What is kept takes half of that, and should not push itself out.
            room = max(1, min(_A_PASS // (2 * n_bytes), self.store.limit // n_bytes))
            missing = [k for k in range(source.n_layers) if ("activations", backbone, shown, k) not in self.store]
            nearest = sorted(missing, key=lambda candidate: (abs(candidate - layer), -candidate))[:room]
            chosen = source.resolve_layers(sorted({layer, *nearest}))
            with self._telling(backbone, image, chosen):
                _, found = image_activations(source, shown.pixels, chosen)
                for number in (k for k in chosen if k != layer):
                    self.store.put(("activations", backbone, shown, number), KeptActivations.of(found.pop(number)))
                return KeptActivations.of(found[layer])  # the asked one is put in last: it stays

        return self.store.get(("activations", backbone, shown, layer), passed).restored()

    @contextmanager
    def _telling(self, backbone: int, image: int, layers: Sequence[int]) -> Iterator[None]:
        """Say what goes through which backbone, for as long as it does."""
        which = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"
        self._tell(f"{self.images[image].name} goes through {self.backbones[backbone].title}, {which}")
        try:
            yield
        finally:
            self._tell("")
