"""Scenes and a backbone whose activations hold known answers, by layer.

The scenes' colours encode instance and class; the planted backbone reads them from each patch's pixels.

- layer 0: noise alone: nothing to find;
- layer 1: a code of the class: similarity, but twins are indistinguishable;
- layer 2: a code of the instance, in a hidden direction among noise: binding.
"""

from dataclasses import dataclass

import numpy as np
import torch

from bindkit.scenes.geometry import PatchGrid, TokenLayout, WindowGeometry
from bindkit.scenes.scene import Scene

D_MODEL = 24
N_CODES = 8


class PlantedScenes:
    """Scenes of coloured blocks: 6 instances of 3 classes (each class twice) and unlabelled ground."""

    uri = "planted:"
    broken = ()
    official_splits = None

    def __init__(self, n_scenes, seed=0, height=32, width=48):
        self.ids = tuple(f"planted-{k:03d}" for k in range(n_scenes))
        self.seed, self.size = seed, (height, width)
        self.class_names = {1: "one", 2: "two", 3: "three"}

    def __len__(self):
        return len(self.ids)

    def __iter__(self):
        return (self[k] for k in range(len(self)))

    def sources(self, position):
        return ()

    def size_of(self, position):
        return self.size

    def __getitem__(self, position):
        rng = np.random.default_rng((self.seed, position))
        blocks = rng.permutation([1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6, 0, 0, 1, 2, 3, 4, 5, 6, 0, 0, 0, 0]).reshape(4, 6)
        instances = np.kron(blocks, np.ones((self.size[0] // 4, self.size[1] // 6), dtype=int)).astype(np.int32)
        classes = ((instances + 1) // 2).astype(np.int32)
        image = np.stack([instances * 20, classes * 40, rng.integers(0, 256, instances.shape)], axis=-1)
        return Scene(self.ids[position], image.astype(np.uint8), instances, classes)


@dataclass(frozen=True)
class PlantedBackbone:
    """Speaks as `bindkit.backbones.Backbone` does."""

    name: str = "planted"
    revision: str | None = None
    family: str = "planted"
    objective: str = "planted"
    weights_digest: str = "0" * 64
    d_model: int = D_MODEL
    n_layers: int = 3
    signal: float = 2.0
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)

    geometry = WindowGeometry(short_side=32, window=32, patch_size=4)
    layout = TokenLayout(0, PatchGrid(8, 8, 4))
    device = torch.device("cpu")

    @property
    def preprocessing(self):
        from bindkit.backbones.preprocessing import IMAGENET

        return IMAGENET

    def describe(self):
        return {
            "name": self.name,
            "revision": None,
            "family": self.family,
            "objective": self.objective,
            "weights_digest": self.weights_digest,
            "d_model": self.d_model,
            "n_layers": self.n_layers,
            "n_prefix": 0,
            "geometry": self.geometry.describe(),
            "preprocessing": {"mean": list(self.mean)},
        }

    def resolve_layers(self, layers):
        return tuple(range(3)) if layers == "all" else tuple(sorted(int(layer) for layer in layers))

    def activations(self, windows, layers):
        grid = windows.float().reshape(-1, 8, 4, 8, 4, 3).permute(0, 1, 3, 2, 4, 5).reshape(len(windows), 64, 16, 3)
        instance = (grid[..., 0].median(-1).values / 20).round().long()
        label = (grid[..., 1].median(-1).values / 40).round().long()
        codes = torch.randn(N_CODES, 8, generator=torch.Generator().manual_seed(5))
        # Noise from the pixels themselves, so that a window gives the same activations whenever it is shown.
        noise = torch.sin(grid[..., 2].mean(-1, keepdim=True) * torch.arange(1, D_MODEL + 1) * 12.9898 + 78.233)
        hidden = torch.zeros(len(windows), 64, D_MODEL)
        by_layer = {0: hidden, 1: hidden.clone(), 2: hidden.clone()}
        by_layer[1][..., 8:16] = codes[label]
        by_layer[2][..., 8:16] = codes[label]
        by_layer[2][..., 16:24] = codes[instance]
        return {layer: self.signal * by_layer[layer] + noise for layer in layers}
