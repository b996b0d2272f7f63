"""The windows of judged scenes, with the labels of all their patches, and the cached rows among them.

What edits a model, or looks into its attention, needs whole windows; what judges needs the rows of a cache. This joins
the two, so that figures after an edit are of the very pairs that figures before it are of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from bindkit.arguments import whole_number
from bindkit.backbones import Backbone
from bindkit.cache import ActivationCache
from bindkit.cache.store import CachedLabels, SceneChoice, labels_of
from bindkit.cache.views import HeldCache
from bindkit.errors import BackboneError, EmptySplitError, ProbeMismatchError
from bindkit.probes import Probe
from bindkit.probes.batches import SplitPatches
from bindkit.probes.judging import JUDGED_FIRST, roles_for
from bindkit.probes.protocols import Protocol, protocol_of_fit
from bindkit.scenes import open_scenes
from bindkit.scenes.geometry import label_patches
from bindkit.scenes.scene import SceneSet

_WINDOWS_AT_ONCE = 16


@dataclass(frozen=True)
class JudgedWindows:
    """Windows of some judged scenes of a cache; rows are those of the cache's labels of these scenes, in order."""

    backbone: Backbone
    cache: ActivationCache
    split: str
    labels: CachedLabels
    pixels: UInt8[Tensor, "window height width 3"]
    instances: Int[Tensor, "window patch"]
    """0: unlabelled."""
    scene: Int[Tensor, " window"]
    row_window: Int[Tensor, " row"]
    row_patch: Int[Tensor, " row"]
    protocol: Protocol

    @classmethod
    def of(
        cls, backbone: Backbone, cache: ActivationCache, probe: Probe, n_scenes: int, scenes: SceneSet | None = None
    ) -> JudgedWindows:
        """Of the first scenes that the probe is judged on (never one that it was trained on, but for want of others).

        Raises BackboneError for what is no model, ProbeMismatchError for another one than the cache's, EmptySplitError.
        """
        if not isinstance(backbone, Backbone):
            raise BackboneError(f"this looks into a model; give what bk.load_backbone gives, got {backbone!r:.80}")
        if backbone.weights_digest != cache.backbone["weights_digest"]:
            raise ProbeMismatchError(
                f"{backbone.name} has other weights ({backbone.weights_digest[:8]}) than the cache {cache.path} was "
                f"made with ({cache.backbone['weights_digest'][:8]}); give the backbone of this cache"
            )
        roles, most = roles_for(probe.fitted_on, cache), whole_number(n_scenes, "n_scenes", 1)
        for split in JUDGED_FIRST:
            chosen = labels_of(cache, roles[split])
            if chosen.n_scenes:
                break
        else:
            raise EmptySplitError(f"the cache {cache.path} has no scene with patches")
        labels = labels_of(cache, SceneChoice(split, chosen.scene_ids[:most]))
        opened = open_scenes(cache.manifest.identity.scenes_uri) if scenes is None else scenes
        place = {name: position for position, name in enumerate(opened.ids)}
        pixels, instances, scene, row_window, n_windows = [], [], [], [], 0
        for number, name in enumerate(labels.scene_ids):
            shown = opened[place[name]]
            found = label_patches(shown, backbone.geometry)
            resized = backbone.preprocessing.resize(shown.image, found.plan.resized)
            pixels += [resized[at.top : at.top + at.side, at.left : at.left + at.side] for at in found.plan.windows]
            instances.append(found.instances.reshape(found.plan.n_windows, -1))
            scene += [number] * found.plan.n_windows
            rows = slice(*labels.scene_offsets[number : number + 2])
            row_window.append(labels.window[rows].astype(np.int64) + n_windows)
            n_windows += found.plan.n_windows
        return cls(
            backbone,
            cache,
            split,
            labels,
            torch.from_numpy(np.stack(pixels)),
            torch.from_numpy(np.concatenate(instances)),
            torch.tensor(scene),
            torch.from_numpy(np.concatenate(row_window)),
            torch.from_numpy(labels.patch.astype(np.int64)),
            protocol_of_fit(probe.fitted_on),
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def parts(self) -> Iterator[Int[Tensor, " window"]]:
        """Numbers of the windows that go through the model together."""
        return iter(torch.arange(len(self)).split(_WINDOWS_AT_ONCE))

    def passed(
        self,
        layers: Sequence[int],
        layer: int | None = None,
        change: Callable[[Tensor, Tensor], Tensor | None] | None = None,
    ) -> dict[int, Float[Tensor, "row d_model"]]:
        """Activations of all rows at some layers; with `change`, after a layer's patches were changed.

        `change` is given the numbers of some windows, and their patches [window, patch, d_model].
        """
        found = {k: torch.empty(len(self.row_window), self.backbone.d_model) for k in layers}
        for part in self.parts():
            rows = torch.isin(self.row_window, part).nonzero()[:, 0]
            device = self.backbone.device
            picked = (self.row_window[rows] - part[0]).to(device), self.row_patch[rows].to(device)
            editing: AbstractContextManager[None] = nullcontext()
            if change is not None and layer is not None:
                editing = self.backbone.edited(layer, partial(change, part))
            with editing:
                kept = self.backbone.activations(self.pixels[part], list(layers), picked)
            for k in layers:
                found[k][rows] = kept[k].cpu()
        return found

    def judged(self, rows: dict[int, Float[Tensor, "row d_model"]], layer: int) -> SplitPatches:
        """The patches that are judged at a layer, with these activations."""
        held = HeldCache(self.cache, self.split, self.labels, rows)
        return SplitPatches(held, self.split, layer, self.protocol, torch.device("cpu"))
