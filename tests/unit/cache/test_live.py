"""Without a cache: the rows, labels and fits of a float32 cache, straight from the images, with nothing on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cache_fakes import ExactBackbone, ExactScenes, thirds
from PIL import Image

import bindkit as bk
from bindkit.cache import cache_activations
from bindkit.cache.views import NOTE, LiveCache, open_cache
from bindkit.cli import main
from bindkit.errors import CacheMismatchError, InvalidParameterError
from bindkit.probes.protocols import STRICT
from bindkit.scenes import Split

QUICK = replace(STRICT, epochs=4, min_steps=60)


def both(root: Path, scenes: Any = None, backbone: Any = None, **options: Any) -> tuple[bk.ActivationCache, LiveCache]:
    scenes, backbone = scenes or ExactScenes(9), backbone or ExactBackbone()
    return tuple(  # type: ignore[return-value]
        cache_activations(backbone, scenes, root / where, dtype="float32", cache=where, **options)
        for where in ("disk", "none")
    )


@pytest.mark.parametrize("broken", [(), (1, 4)])
def test_labels_and_rows_are_those_of_a_float32_cache(tmp_path: Path, broken: tuple[int, ...]) -> None:
    options = {"split": Split(**vars(thirds(9))), "patches_per_scene": 11, "layers": [0, 2]}
    cached, live = both(tmp_path, ExactScenes(9, broken=broken), **options)
    assert (live.layers, live.d_model, live.groups, live.class_names) == (
        *(cached.layers, cached.d_model, cached.groups, cached.class_names),
    )
    assert [scene.id for scene in live.skipped] == [scene.id for scene in cached.skipped]
    for split in cached.splits:
        one, two = cached.labels(split), live.labels(split)
        assert (one.scene_ids, len(one)) == (two.scene_ids, len(two))
        for name in ("instances", "classes", "purity", "window", "patch", "corners", "scene_offsets"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        rows = np.random.default_rng(0).integers(0, max(1, len(one)), 40 if len(one) else 0)
        for layer in (0, 2):
            taken = [cache.activations(split, layer).take(rows) for cache in (cached, live)]
            assert torch.equal(*taken)
    assert [file.name for file in live.path.rglob("*") if file.is_file()] == [NOTE]
    assert live.verify() == live.repair() == [] and live.is_complete
    assert live.summary()["patches"] == cached.summary()["patches"]


@pytest.mark.parametrize("buffer_bytes", [None, 0])
@pytest.mark.parametrize("folds", [None, 3])
def test_fits_are_those_from_a_float32_cache(tmp_path: Path, buffer_bytes: int | None, folds: int | None) -> None:
    backbone = bk.load_backbone("bindkit/scenes-motion", device="cpu")
    scenes = bk.open_scenes("synthetic:n=15,seed=3,size=80x80")
    cached, live = both(tmp_path, scenes, backbone, layers=[3])
    one, two = (
        bk.fit_probe(cache, 3, "quadratic", protocol=QUICK, buffer_bytes=buffer_bytes, folds=folds)
        for cache in (cached, live)
    )
    for name in ("accuracy", "auroc", "matched_auroc", "n_pairs"):
        assert one.metrics[name] == pytest.approx(two.metrics[name], abs=1e-4), name
    for first, second in zip(one.probe.state_dict().values(), two.probe.state_dict().values(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3 * float(first.abs().max()))


def test_a_kept_fit_is_read_again_only_from_the_same_scenes(tmp_path: Path) -> None:
    backbone = bk.load_backbone("random-init:vit", device="cpu", window=32, short_side=32)
    for name in ("images", "instances"):
        (tmp_path / "scenes" / name).mkdir(parents=True)
        for k in range(12):
            pixels = np.random.default_rng(k).integers(0, 256, (40, 48, 3)).astype(np.uint8)
            mask = (np.arange(48)[None, :] // 16 + 1).repeat(40, 0).astype(np.uint8)
            Image.fromarray(pixels if name == "images" else mask).save(tmp_path / "scenes" / name / f"{k}.png")
    options: dict[str, Any] = {"probes": ["linear"], "protocol": QUICK, "root": tmp_path / "probes"}
    scenes = bk.open_scenes(f"folder:{tmp_path / 'scenes'}")
    live = cache_activations(backbone, scenes, tmp_path / "cache", [2], cache="none")
    table = bk.sweep(live, **options)
    again = open_cache(live.path)
    assert isinstance(again, LiveCache) and again.layers == (2,)
    assert bk.sweep(again, **options).equals(table)  # seconds included: it was read
    Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(tmp_path / "scenes" / "images" / "3.png")
    with pytest.raises(CacheMismatchError, match=r"1 picture has changed since labels were read: 3\.png"):
        open_cache(live.path)
    anew = bk.sweep(cache_activations(backbone, scenes, tmp_path / "cache", [2], cache="none"), **options)
    assert not anew.equals(table)


def test_a_cache_takes_the_place_of_a_note_and_back(tmp_path: Path) -> None:
    for where, is_live in (("none", True), ("disk", False), ("none", True)):
        cache = cache_activations(ExactBackbone(), ExactScenes(9), tmp_path, cache=where)
        assert isinstance(cache, LiveCache) == is_live == (cache.path / NOTE).exists()
    assert main(["verify", str(cache.path / "layer_00")]) == 1
    live = cache_activations(ExactBackbone(), ExactScenes(9), tmp_path / "live", cache="none")
    assert main(["verify", str(live.path)]) == 0
    with pytest.raises(InvalidParameterError, match="dtype must be one of"):
        cache_activations(ExactBackbone(), ExactScenes(9), tmp_path, cache="none", dtype="nonsense")
    with pytest.raises(InvalidParameterError, match="leave out share and client"):
        cache_activations(ExactBackbone(), ExactScenes(9), tmp_path, cache="none", share=(1, 2))
    with pytest.raises(InvalidParameterError, match='cache is "disk" or "none"'):
        cache_activations(ExactBackbone(), ExactScenes(9), tmp_path, cache="memory")


class Changing(ExactScenes):
    """Whose pictures change while they are used."""

    shift = 0

    def image(self, position: int) -> np.ndarray:
        return super().image(position) + np.uint8(self.shift)


def test_a_picture_that_changes_meanwhile_gives_no_wrong_row(tmp_path: Path) -> None:
    scenes = Changing(9)
    live = cache_activations(ExactBackbone(), scenes, tmp_path, cache="none")
    activations = live.activations("train", 0)
    activations.take([0, 1])
    scenes.shift = 3
    with pytest.raises(CacheMismatchError, match="have changed since their labels were read"):
        activations.take([0, 1])
