"""Real checkpoints from the hub: run with ``BINDKIT_HUB_TESTS=1 pytest tests/hub`` (about 1.5 GB of downloads)."""

from __future__ import annotations

import pytest
import torch

from bindkit.backbones import load_backbone

pytestmark = pytest.mark.hub

CHECKPOINTS = {
    # name: family, objective, layers, width, patch, native window, short side, mean (red)
    "facebook/dinov2-small": ("dinov2", "self-distillation", 12, 384, 14, 518, 518, 0.485),
    "facebook/vit-mae-base": ("vit_mae", "masked-reconstruction", 12, 768, 16, 224, 592, 0.485),
    "openai/clip-vit-base-patch16": ("clip_vision_model", "contrastive", 12, 768, 16, 224, 592, 0.48145466),
    "google/vit-base-patch16-224": ("vit", "supervised", 12, 768, 16, 224, 592, 0.5),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint_loads_as_expected(name: str) -> None:
    family, objective, n_layers, d_model, patch_size, window, short_side, red = CHECKPOINTS[name]
    backbone = load_backbone(name)
    assert (backbone.family, backbone.objective) == (family, objective)
    assert (backbone.n_layers, backbone.d_model, backbone.layout.n_prefix) == (n_layers, d_model, 1)
    geometry = backbone.geometry
    assert (geometry.patch_size, geometry.window, geometry.short_side) == (patch_size, window, short_side)
    assert backbone.preprocessing.mean[0] == pytest.approx(red)
    assert backbone.revision is not None
    assert len(backbone.revision) == 40
    windows = torch.randint(0, 256, (1, window, window, 3), dtype=torch.uint8)
    activations = backbone.activations(windows, [0, n_layers - 1])
    assert activations[n_layers - 1].shape == (1, (window // patch_size) ** 2, d_model)
    assert activations[0].std() > 0


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint_takes_larger_windows(name: str) -> None:
    patch_size = CHECKPOINTS[name][4]
    backbone = load_backbone(name, window=40 * patch_size)
    windows = torch.zeros(1, 40 * patch_size, 40 * patch_size, 3, dtype=torch.uint8)
    assert backbone.activations(windows, [1])[1].shape[1] == 1600
