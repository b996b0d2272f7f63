"""Untrained backbones: the same on every run, twins of checkpoints, and no trace in the global random state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES, IMAGE, LAYERS, MEAN, STD, WIDTH, write_checkpoint

from bindkit.backbones import Preprocessing, load_backbone
from bindkit.backbones.names import RandomInit, parse_random_init
from bindkit.errors import BackboneError, InvalidParameterError


@pytest.mark.parametrize("architecture", ["dinov2", "vit"])
def test_embedded_architectures_are_small_vits(architecture: str) -> None:
    backbone = load_backbone(f"random-init:{architecture}", device="cpu")
    assert (backbone.family, backbone.objective, backbone.name) == (
        architecture,
        "random-init",
        f"random-init:{architecture}",
    )
    assert (backbone.d_model, backbone.n_layers, backbone.layout.n_prefix) == (128, 6, 1)
    assert (backbone.geometry.short_side, backbone.geometry.window, backbone.geometry.patch_size) == (112, 112, 8)
    assert backbone.preprocessing == Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert backbone.tower.n_parameters < 2_000_000


def test_weights_depend_on_the_seed_and_on_nothing_else() -> None:
    torch.manual_seed(1)
    first = load_backbone("random-init:dinov2", device="cpu")
    torch.manual_seed(2)
    torch.rand(7)
    again = load_backbone("random-init:dinov2,seed=0", device="cpu")
    other = load_backbone("random-init:dinov2,seed=1", device="cpu")
    assert first.weights_digest == again.weights_digest
    assert first.weights_digest != other.weights_digest
    windows = torch.randint(0, 256, (1, 112, 112, 3), dtype=torch.uint8)
    assert torch.equal(first.activations(windows, [5])[5], again.activations(windows, [5])[5])


def test_global_random_state_is_left_alone(tmp_path: Path) -> None:
    directory = write_checkpoint("mae", tmp_path)
    for name in ("random-init:vit", f"random-init:{directory},seed=4", str(directory)):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        backbone = load_backbone(name, device="cpu")
        side = backbone.geometry.window
        backbone.activations(torch.zeros(1, side, side, 3, dtype=torch.uint8), [0])
        assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("kind", FAMILIES)
def test_twin_has_the_checkpoints_shape_and_fresh_weights(kind: str, tmp_path: Path) -> None:
    directory = write_checkpoint(kind, tmp_path)
    trained = load_backbone(str(directory), device="cpu")
    twin = load_backbone(f"random-init:{directory},seed=2", device="cpu")
    again = load_backbone(f"random-init:{directory},seed=2", device="cpu")
    assert (twin.family, twin.layout, twin.geometry) == (trained.family, trained.layout, trained.geometry)
    assert (twin.d_model, twin.n_layers) == (WIDTH, LAYERS)
    assert twin.preprocessing == trained.preprocessing == Preprocessing(MEAN, STD, 1 / 255, "bilinear")
    assert (twin.objective, trained.objective) == ("random-init", FAMILIES[kind][3])
    assert twin.weights_digest == again.weights_digest
    ours, theirs = twin.tower.model.state_dict(), trained.tower.model.state_dict()
    assert {name: weight.shape for name, weight in ours.items()} == {n: w.shape for n, w in theirs.items()}
    matrices = [name for name in ours if ours[name].ndim == 2 and name.endswith("weight")]
    assert matrices
    assert not any(torch.equal(ours[name], theirs[name]) for name in matrices)


def test_a_twin_needs_no_weights(tmp_path: Path) -> None:
    directory = write_checkpoint("clip", tmp_path)
    (directory / "model.safetensors").unlink()
    twin = load_backbone(f"random-init:{directory}", window=IMAGE + 16, device="cpu")
    assert twin.layout.grid.n_patches == 36


def test_a_twin_of_something_that_is_no_vit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="no patch_size"):
        load_backbone(f"random-init:{write_checkpoint('resnet', tmp_path)}", device="cpu")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("random-init:vit", RandomInit("vit", 0)),
        ("random-init:vit,seed=12", RandomInit("vit", 12)),
        ("random-init:facebook/dinov2-small,seed=1", RandomInit("facebook/dinov2-small", 1)),
        ("random-init:dir, with comma", RandomInit("dir, with comma", 0)),
        ("facebook/dinov2-small", None),
    ],
)
def test_names_are_read(name: str, expected: RandomInit | None) -> None:
    assert parse_random_init(name) == expected


@pytest.mark.parametrize(
    "name",
    [
        "random-init:",
        "random-init:,seed=1",
        "random-init:vit,seed=",
        "random-init:vit,seed=-1",
        "random-init:vit,sed=1",
    ],
)
def test_names_that_cannot_be_read_are_refused(name: str) -> None:
    with pytest.raises(InvalidParameterError, match="write random-init:NAME"):
        load_backbone(name)
