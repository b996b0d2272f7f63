"""Recipes for something of one's own: each block is read out of bindkit/README.md and does what it says."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from planted import PlantedBackbone, PlantedScenes
from planted_runs import BRIEF
from tiny_models import write_checkpoint

import bindkit as bk
from bindkit.backbones import families
from bindkit.pretraining import OBJECTIVES, TrainingScenes, objective_loss
from bindkit.probes import PROBES
from bindkit.scenes.opening import FORMATS


@pytest.fixture
def recipe(root):
    """The code block of a recipe, by the words that it begins with; what it registers is forgotten afterwards."""
    section = (root / "bindkit/README.md").read_text(encoding="utf-8").split("## Something of your own")[1]
    before = [(table, dict(table)) for table in (PROBES, OBJECTIVES, FORMATS)]

    def code(begins):
        (block,) = re.findall(rf"\*\*{begins}\*\*.*?```python\n(.*?)```", section, re.DOTALL)
        return block

    yield code
    for table, entries in before:
        table.clear()
        table.update(entries)


def test_a_probe(recipe, tmp_path):
    exec(recipe("A probe"), {})
    cache = bk.cache_activations(PlantedBackbone(), PlantedScenes(10), root=tmp_path / "cache")
    fit = bk.fit_probe(cache, layer=2, probe="sum_of_products", protocol=BRIEF)
    assert fit.metrics["auroc"] > 0.6
    fit.save(tmp_path / "mine")
    x = torch.randn(2, 3, cache.d_model)
    assert torch.equal(bk.load_probe(tmp_path / "mine")(x), fit.probe(x))


def test_a_scene_format(recipe, tmp_path, monkeypatch):
    exec(recipe("A scene format"), {})
    made = [*bk.open_scenes("synthetic:n=5,seed=0,size=80x80")]
    monkeypatch.chdir(tmp_path)
    np.savez("mine.npz", images=[scene.image for scene in made], instances=[scene.instances for scene in made])
    scenes = bk.open_scenes("arrays:mine.npz")
    assert len(scenes) == len([*scenes]) == 5
    assert np.array_equal(scenes[3].image, made[3].image) and np.array_equal(scenes[-1].instances, made[-1].instances)
    cache = bk.cache_activations(bk.load_backbone("bindkit/scenes-mae"), scenes, root="cache", layers=[0])
    assert cache.is_complete
    with pytest.raises(bk.BindkitError, match=r'"arrays:FILE\.npz"'):
        bk.open_scenes("arrays:")


def test_a_vit_family(recipe, tmp_path, monkeypatch):
    directory = str(write_checkpoint("vit-msn", tmp_path))
    assert bk.load_backbone(directory).objective == "unknown"
    row = eval(recipe("A ViT family"), {"Family": families.Family})
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, row))
    monkeypatch.setitem(families._BY_TYPE, row.name, row)
    backbone = bk.load_backbone(directory)
    assert (backbone.family, backbone.objective, backbone.layout.n_prefix) == (row.name, row.objective, row.n_prefix)


def test_a_vit_of_ones_own(recipe, tmp_path):
    with torch.random.fork_rng():
        exec(recipe("A ViT that is neither in transformers nor in timm"), {"__name__": "my_models"})
    backbone = bk.load_backbone("mine", device="cpu")
    assert (backbone.n_layers, backbone.layout.grid.n_patches, backbone.layout.n_prefix) == (4, 64, 0)
    scenes = bk.open_scenes("synthetic:n=12,seed=0,size=64x64")
    cache = bk.cache_activations(backbone, scenes, root=tmp_path)
    assert bk.fit_probe(cache, layer=3, protocol=BRIEF).metrics["n_pairs"] > 0
    deviation = bk.compare_with_model(cache, backbone, scenes)
    assert deviation.largest <= deviation.allowed


def test_a_pretraining_objective(recipe, tmp_path):
    exec(recipe("A pretraining objective"), {})
    few = TrainingScenes.open("synthetic:n=16,seed=1000000000000,size=80x80", workers=1)
    run = bk.pretrain("colours", tmp_path / "run", few, scenes_seen=32, scenes_per_step=16, device="cpu")
    assert [entry["scenes_seen"] for entry in run.history] == [16, 32]
    assert all(math.isfinite(entry["loss"]) for entry in run.history)
    assert bk.load_backbone(str(run.final)).objective == "mean-colours"
    assert objective_loss(run.final, "synthetic:n=4,seed=0,size=80x80") > 0
