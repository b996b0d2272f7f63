"""What the maps are computed by: each image goes through a backbone when first needed, a click costs one row.

Activations are kept in 16 bits, rows of affinities come from factors (`bindkit.views.explorer.factors`), and one store
holds both up to `MEMORY` bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bindkit.affinities.scoring import MOST_PATCHES, image_activations, window_activations
from bindkit.affinities.stitching import ImageGrid
from bindkit.errors import GeometryError, LayerError, NonFiniteActivationsError, ProbeError
from bindkit.views.explorer.comparisons import AttentionRows, CosineRows, PatchColours
from bindkit.views.explorer.factors import Rows, rows_of
from bindkit.views.explorer.keeping import KeptActivations, Store
from bindkit.views.explorer.sources import ShownBackbone, ShownImage
from bindkit.views.explorer.state import View, patch_of

MEMORY = 150_000_000
"""Bytes of activations and factors that are held, all images and backbones together."""
_A_PASS = 100_000_000
"""Bytes of float32 activations that one pass through a backbone may leave before they are kept in 16 bits."""


@dataclass(frozen=True)
class Map:
    """One map over the patches of an image.

    Attributes
    ----------
    grid : ImageGrid
        Of the image whose patches have the values.
    values : float32 array of shape (rows, cols), or None
        One number a patch; none where there are colours.
    colours : uint8 array of shape (rows, cols, 3), or None
    low, high : float
        What the ends of the colour map stand for.
    patch : (row, col) or None
        The patch that was asked, where it lies in this image.
    note : str
        What the numbers are, beyond the measure's name.
    """

    grid: ImageGrid
    values: np.ndarray | None
    colours: np.ndarray | None
    low: float
    high: float
    patch: tuple[int, int] | None
    note: str = ""


class Engine:
    """Maps of views.

    Parameters
    ----------
    backbones : sequence of ShownBackbone
    images : list of ShownImage
        May grow.
    tell : callable
        Is told in words what takes a while, and "" when it is done.
    limit : int
        Bytes to hold.
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

        Raises
        ------
        BackboneError
            If the backbone cannot be loaded.
        BrokenSceneError, GeometryError
            If the image cannot be read, or has more patches than are scored.
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
        """What a view shows.

        Parameters
        ----------
        view : View
            What is asked of which patch.
        second : int, optional
            Another image, whose patches are compared with the chosen one.
        head : int, optional
            Of attention; without it the mean over heads.

        Raises
        ------
        BindkitError
            If it cannot be shown; the message says what to do.
        """
        own, other = view.image, view.image if second is None else second
        here, there = self.grid(view.backbone, own), self.grid(view.backbone, other)
        row, col = patch_of(view.place, here)
        patch, marked = row * here.cols + col, (row, col) if second is None else None
        shape = (there.rows, there.cols)
        with torch.inference_mode():
            if view.measure == "pca":
                found = self.colours(view.backbone, other, view.layer)
                note = f"{found.explained:.0%} of the variance"
                return Map(there, None, found.colours.reshape(*shape, 3).numpy(), 0, 1, marked, note)
            if view.measure == "attention":
                rows = self.attention(view.backbone, own, view.layer)
                if head is not None and head >= rows.n_heads:
                    raise ProbeError(f"there is no attention head {head}; choose one of 0 to {rows.n_heads - 1}")
                values = rows.shares(patch, head)
                note = f"mean of {rows.n_heads} heads" if head is None else f"head {head} of {rows.n_heads}"
                note += "" if rows.plan.n_windows == 1 else ", window by window"
                return Map(there, _grid_of(values, shape), None, 0, float(values.max()), marked, note)
            if view.measure == "cosine":
                cosine = self.cosine(view.backbone, own, other, view.layer).cosine(patch)
                return Map(there, _grid_of(cosine, shape), None, float(cosine.min()), 1, marked)
            found_rows = self.affinities(view.backbone, own, other, view.layer, view.probe)
            return Map(there, _grid_of(found_rows.affinity(patch), shape), None, 0, 1, marked)

    def activations(self, backbone: int, image: int, layer: int) -> Float[Tensor, "patch d_model"]:
        """Activations of an image at a layer, as exact as 16 bits allow.

        On the way layers around it are kept too, as many as one pass may leave.
        """
        key = ("activations", backbone, self.images[image], layer)
        if key not in self.store:
            self._pass(backbone, image, layer)
        return self.store.get(key, _gone).restored()

    def affinities(self, backbone: int, first: int, second: int, layer: int, kind: str | None) -> Rows:
        """Rows of affinities of one image's patches to another's (or its own).

        Raises
        ------
        ProbeError
            Without a probe.
        """
        if kind is None:
            raise ProbeError("affinity needs a fitted probe; choose one, or look at cosine similarity")
        shelf = self.backbones[backbone].shelf
        key = ("affinity", backbone, self.images[first], self.images[second], layer, kind)

        def make() -> Rows:
            probe = shelf.probe(kind, layer)
            return rows_of(probe, *self._pair(backbone, first, second, layer))

        return self.store.get(key, make)

    def cosine(self, backbone: int, first: int, second: int, layer: int) -> CosineRows:
        """Rows of cosine similarities."""
        key = ("cosine", backbone, self.images[first], self.images[second], layer)
        return self.store.get(key, lambda: CosineRows.of(*self._pair(backbone, first, second, layer)))

    def attention(self, backbone: int, image: int, layer: int) -> AttentionRows:
        """Rows of the next layer's attention.

        Raises
        ------
        ProbeError
            For a backbone that is no model.
        LayerError
            For the last layer.
        ContractError
            If the model's queries and keys cannot be read.
        """
        from bindkit.backbones import Backbone
        from bindkit.backbones.attention import attention_maps

        source = self.backbones[backbone].source
        if not isinstance(source, Backbone):
            raise ProbeError(f"{source.name} is no transformer, so it has no attention to show")
        if layer == source.n_layers - 1:
            raise LayerError(
                f"layer {layer} is the last of {source.name}, so no layer attends to it; choose a lower one"
            )
        maps = attention_maps(source, layer)
        shown = self.images[image]
        plan = source.geometry.plan(shown.size)

        def make() -> AttentionRows:
            if plan.n_windows == 1:
                return AttentionRows.of(maps, self.activations(backbone, image, layer)[None], plan)
            # A block sees window by window; what is kept is stitched.
            with self._telling(backbone, image, (layer,)):
                windows = window_activations(source, shown.pixels, [layer])[layer]
            return AttentionRows.of(maps, windows, plan)

        return self.store.get(("attention", backbone, shown, layer), make)

    def colours(self, backbone: int, image: int, layer: int) -> PatchColours:
        """Three principal components as colours."""
        key = ("pca", backbone, self.images[image], layer)
        return self.store.get(key, lambda: PatchColours.of(self.activations(backbone, image, layer)))

    def _pair(self, backbone: int, first: int, second: int, layer: int) -> tuple[Tensor, Tensor]:
        x = self.activations(backbone, first, layer)
        return x, x if second == first else self.activations(backbone, second, layer)

    def _pass(self, backbone: int, image: int, layer: int) -> None:
        """Keep a layer of an image, and as many others around it as one pass may leave."""
        source, shown = self.backbones[backbone].source, self.images[image]
        n_bytes = 4 * self.grid(backbone, image).n_patches * source.d_model
        # Twice: the windows' own, and stitched. What is kept takes half of that, and should not push itself out.
        room = max(1, min(_A_PASS // (2 * n_bytes), self.store.limit // n_bytes))
        missing = [k for k in range(source.n_layers) if ("activations", backbone, shown, k) not in self.store]
        nearest = sorted(missing, key=lambda candidate: (abs(candidate - layer), -candidate))[:room]
        chosen = source.resolve_layers(sorted({layer, *nearest}))
        with self._telling(backbone, image, chosen):
            _, found = image_activations(source, shown.pixels, chosen)
            for number in (*(k for k in chosen if k != layer), layer):  # the asked one last: it stays
                self.store.put(("activations", backbone, shown, number), KeptActivations.of(found.pop(number)))

    @contextmanager
    def _telling(self, backbone: int, image: int, layers: Sequence[int]) -> Iterator[None]:
        """Say what goes through which backbone, for as long as it does."""
        which = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"
        self._tell(f"{self.images[image].name} goes through {self.backbones[backbone].title}, {which}")
        try:
            yield
        finally:
            self._tell("")


def _grid_of(values: Tensor, shape: tuple[int, int]) -> np.ndarray:
    if values.isnan().any():
        raise NonFiniteActivationsError("this probe gives NaN for some pairs; fit it again")
    return values.float().reshape(shape).numpy()


def _gone() -> KeptActivations:
    raise RuntimeError("activations were forgotten while they were read")
