"""A cache held against its model: what differs in any layer or row is seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cache_fakes import ExactBackbone, ExactScenes

from bindkit.cache import cache_activations, compare_with_model
from bindkit.cache.sizing import DrawnScene
from bindkit.errors import CacheMismatchError
from bindkit.scenes.scene import Scene


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_cache_equals_the_model_that_filled_it(tmp_path: Path, dtype: str) -> None:
    cache = cache_activations(ExactBackbone(), ExactScenes(), tmp_path, patches_per_scene=12, dtype=dtype)
    deviation = compare_with_model(cache, ExactBackbone(), ExactScenes())
    assert deviation.scene_id == cache.labels("train").scene_ids[0]
    assert deviation.n_rows == 12
    assert deviation.largest <= deviation.allowed < 0.002


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("poison", [40.0, float("nan"), float("inf")])
def test_another_activation_in_any_layer_is_seen(tmp_path: Path, layer: int, poison: float) -> None:
    cache = cache_activations(ExactBackbone(), ExactScenes(), tmp_path, patches_per_scene=12)
    other = ExactBackbone()
    other.poison = {layer: poison}
    deviation = compare_with_model(cache, other, ExactScenes())
    assert not deviation.largest <= deviation.allowed


def test_rows_in_another_order_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a forward pass had returned its patches shuffled."""
    whole = DrawnScene.__init__

    def reversed_patches(self: DrawnScene, id, labels, windows, patches, digest, **more) -> None:
        whole(self, id, labels, windows, tuple(patch[::-1].copy() for patch in patches), digest, **more)

    monkeypatch.setattr(DrawnScene, "__init__", reversed_patches)
    cache = cache_activations(ExactBackbone(), ExactScenes(), tmp_path, patches_per_scene=12)
    deviation = compare_with_model(cache, ExactBackbone(), ExactScenes())
    assert deviation.largest > deviation.allowed


class OtherMasks(ExactScenes):
    """The same pictures, labelled otherwise."""

    def __getitem__(self, position: int) -> Scene:
        shown = super().__getitem__(position)
        return Scene(shown.id, shown.image, (shown.instances + np.int32(1)), shown.classes)


def test_other_weights_and_other_masks_are_named(tmp_path: Path) -> None:
    cache = cache_activations(ExactBackbone(), ExactScenes(), tmp_path)
    with pytest.raises(CacheMismatchError, match="with other weights"):
        compare_with_model(cache, ExactBackbone(digest="bb"), ExactScenes())
    with pytest.raises(CacheMismatchError, match="labelled otherwise now"):
        compare_with_model(cache, ExactBackbone(), OtherMasks())
