"""A whole number is one in whatever type it comes; nothing else is made into one."""

import inspect

import numpy as np
import pytest
import torch
from planted import PlantedBackbone, PlantedScenes

from bindkit.errors import InvalidParameterError
from bindkit.extraction import cache_activations
from bindkit.layer_patches import LayerPatches
from bindkit.training import fit_probe, fit_probes
from bindkit.whole_numbers import whole_number


@pytest.mark.parametrize("given", [3, 3.0, np.int64(3), np.uint8(3), np.float64(3), np.float32(3), torch.tensor(3)])
def test_a_whole_number_is_read(given):
    assert whole_number(given, "layer") == 3
    assert type(whole_number(given, "layer")) is int


@pytest.mark.parametrize("given", [2.7, np.float32(2.7), float("nan"), float("inf"), "3", "a", None, [3], 3j])
def test_anything_else_is_refused(given):
    with pytest.raises(InvalidParameterError, match="layer is a whole number such as 3, got"):
        whole_number(given, "layer")


def test_a_fit_is_asked_for_with_whole_numbers(tmp_path):
    cache = cache_activations(PlantedBackbone(), PlantedScenes(4), root=tmp_path)
    with pytest.raises(InvalidParameterError, match="seed is a whole number such as 3, got 'a'"):
        inspect.unwrap(fit_probe)(cache, layer=2, seed="a")
    with pytest.raises(InvalidParameterError, match=r"seed is a whole number such as 3, got 0\.5"):
        inspect.unwrap(fit_probes)(LayerPatches(cache, 2), [("linear", "pairwise")], seed=0.5)
    with pytest.raises(InvalidParameterError, match=r"layer is a whole number such as 3, got 2\.7"):
        inspect.unwrap(fit_probe)(cache, layer=2.7)
    with pytest.raises(InvalidParameterError, match=r"layer is a whole number such as 3, got 2\.7"):
        inspect.unwrap(LayerPatches.__init__)(LayerPatches.__new__(LayerPatches), cache, 2.7)
