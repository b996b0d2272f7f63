"""What the maps are computed by: each image goes through a backbone when first needed, a click costs one row.

Activations are kept in 16 bits, rows of affinities come from factors (`bindkit.views.explorer.rows`), and one store
holds both up to `MEMORY` bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar
from weakref import WeakSet

import numpy as np
import torch
from jaxtyping import Float, Int16
from torch import Tensor

from bindkit.affinities import MOST_PATCHES, image_activations, window_activations
from bindkit.affinities.stitching import ImageGrid
from bindkit.backbones.attention import attention_maps
from bindkit.backbones.backbone import Backbone
from bindkit.errors import GeometryError, LayerError, NonFiniteActivationsError, ProbeError
from bindkit.views.explorer.rows import AttentionRows, CosineRows, PatchColours, Rows, rows_of
from bindkit.views.explorer.sources import ShownBackbone, ShownImage
from bindkit.views.explorer.state import View, patch_of

MEMORY = 150_000_000
"""Bytes of activations and factors that are held, all images and backbones together."""
_A_PASS = 100_000_000
"""Bytes of float32 activations that one pass through a backbone may leave before they are kept in 16 bits."""
_STEPS = 65_535
"""Steps between the least and the greatest value of a dimension."""


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
    return sum(
        part.nbytes for part in {id(part): part for part in vars(record).values()}.values() if torch.is_tensor(part)
    )


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
        self.n_bytes = 0
        self._all.add(self)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._held

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What is held under a key, made now if it is not held."""
        if key not in self._held:
            self.put(key, make())
        _, found = self._held.pop(key)
        self._held[key] = next(self._clock), found
        return found

    def put(self, key: Hashable, record: Any) -> None:
        """Hold a record, and forget others, of any store, until all fit."""
        self._drop(key)
        self._held[key] = next(self._clock), record
        self.n_bytes += bytes_of(record)
        while sum(store.n_bytes for store in self._all) > self.limit:
            oldest = min(
                (store for store in self._all if store._held), key=lambda store: next(iter(store._held.values()))[0]
            )
            if oldest is self and len(self._held) == 1:
                break
            oldest._drop(next(iter(oldest._held)))

    def _drop(self, key: Hashable) -> None:
        if key in self._held:
            self.n_bytes -= bytes_of(self._held.pop(key)[1])

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()
        self.n_bytes = 0


@dataclass(frozen=True)
class Map:
    """One map over the patches of an image.

    Either values, float32 [rows, cols], or colours, uint8 [rows, cols, 3]; `low` and `high` are what the ends of the
    colour map stand for, `patch` the row and column that were asked, where they lie in this image, and `note` what the
    numbers are beyond the measure's name.
    """

    grid: ImageGrid
    values: np.ndarray | None
    colours: np.ndarray | None
    low: float
    high: float
    patch: tuple[int, int] | None
    note: str = ""


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

    def map(self, view: View, second: int | None = None, head: int | None = None) -> Map:
        """What a view shows, of another image's patches if there is a `second`; without a head attention's mean.

        Raises BindkitError if it cannot be shown; the message says what to do.
        """
        own, other = view.image, view.image if second is None else second
        here, there = self.grid(view.backbone, own), self.grid(view.backbone, other)
        row, col = patch_of(view.place, here)
        patch, marked = row * here.cols + col, (row, col) if second is None else None
        low: float = 0
        high: float = 1
        note = ""
        with torch.inference_mode():
            if view.measure == "pca":
                found = self.colours(view.backbone, other, view.layer)
                shades = found.colours.reshape(there.rows, there.cols, 3).numpy()
                return Map(there, None, shades, low, high, marked, f"{found.explained:.0%} of the variance")
            if view.measure == "attention":
                rows = self.attention(view.backbone, own, view.layer)
                n_heads = len(rows.queries)
                if head is not None and head >= n_heads:
                    raise ProbeError(f"there is no attention head {head}; choose one of 0 to {n_heads - 1}")
                values = rows.shares(patch, head)
                high = float(values.max())
                note = f"mean of {n_heads} heads" if head is None else f"head {head} of {n_heads}"
                note += "" if rows.plan.n_windows == 1 else ", window by window"
            elif view.measure == "cosine":
                values = self.cosine(view.backbone, own, other, view.layer).cosine(patch)
                low = float(values.min())
            else:
                values = self.affinities(view.backbone, own, other, view.layer, view.probe).affinity(patch)
        if values.isnan().any():
            raise NonFiniteActivationsError("this probe gives NaN for some pairs; fit it again")
        return Map(there, values.float().reshape(there.rows, there.cols).numpy(), None, low, high, marked, note)

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

        kept: KeptActivations = self.store.get(("activations", backbone, shown, layer), passed)
        return kept.restored()

    def affinities(self, backbone: int, first: int, second: int, layer: int, kind: str | None) -> Rows:
        """Rows of affinities of one image's patches to another's (or its own). Raises ProbeError without a probe."""
        if kind is None:
            raise ProbeError("affinity needs a fitted probe; choose one, or look at cosine similarity")
        shelf = self.backbones[backbone].shelf
        key = ("affinity", backbone, self.images[first], self.images[second], layer, kind)
        found: Rows = self.store.get(
            key, lambda: rows_of(shelf.probe(kind, layer), *self._pair(backbone, first, second, layer))
        )
        return found

    def cosine(self, backbone: int, first: int, second: int, layer: int) -> CosineRows:
        """Rows of cosine similarities."""
        key = ("cosine", backbone, self.images[first], self.images[second], layer)
        found: CosineRows = self.store.get(key, lambda: CosineRows.of(*self._pair(backbone, first, second, layer)))
        return found

    def attention(self, backbone: int, image: int, layer: int) -> AttentionRows:
        """Rows of the next layer's attention.

        Raises ProbeError for a backbone that is no model, LayerError for the last layer, and ContractError if the
        model's queries and keys cannot be read.
        """
        source, shown = self.backbones[backbone].source, self.images[image]
        if not isinstance(source, Backbone):
            raise ProbeError(f"{source.name} is no transformer, so it has no attention to show")
        if layer == source.n_layers - 1:
            raise LayerError(
                f"layer {layer} is the last of {source.name}, so no layer attends to it; choose a lower one"
            )
        maps, plan = attention_maps(source, layer), source.geometry.plan(shown.size)

        def make() -> AttentionRows:
            if plan.n_windows == 1:
                return AttentionRows.of(maps, self.activations(backbone, image, layer)[None], plan)
            # A block sees window by window; what is kept is stitched.
            with self._telling(backbone, image, (layer,)):
                windows = window_activations(source, shown.pixels, [layer])[layer]
            return AttentionRows.of(maps, windows, plan)

        found: AttentionRows = self.store.get(("attention", backbone, shown, layer), make)
        return found

    def colours(self, backbone: int, image: int, layer: int) -> PatchColours:
        """Three principal components as colours."""
        key = ("pca", backbone, self.images[image], layer)
        found: PatchColours = self.store.get(key, lambda: PatchColours.of(self.activations(backbone, image, layer)))
        return found

    def _pair(self, backbone: int, first: int, second: int, layer: int) -> tuple[Tensor, Tensor]:
        x = self.activations(backbone, first, layer)
        return x, x if second == first else self.activations(backbone, second, layer)

    @contextmanager
    def _telling(self, backbone: int, image: int, layers: Sequence[int]) -> Iterator[None]:
        """Say what goes through which backbone, for as long as it does."""
        which = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"
        self._tell(f"{self.images[image].name} goes through {self.backbones[backbone].title}, {which}")
        try:
            yield
        finally:
            self._tell("")
