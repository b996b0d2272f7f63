"""Untrained backbones: the same on every run, twins of checkpoints, where positions start, no trace in random state."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES, IMAGE, LAYERS, MEAN, STD, WIDTH, write_checkpoint
from transformers import CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model, ViTConfig, ViTMAEConfig, ViTModel

from bindkit.backbones import Preprocessing, load_backbone
from bindkit.backbones.checkpoint import build_untrained, fill_positions, position_embeddings, sine_cosine_positions
from bindkit.backbones.names import RandomInit, contents_of_backbone, parse_random_init
from bindkit.errors import BackboneError, InvalidParameterError

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 40, "patch_size": 8}


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
    assert contents_of_backbone(backbone.name) == {}


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


# --- positions ---


def test_they_are_the_formula_of_the_paper():
    """MAE's published code: the first half codes the column, the second the row; sines before cosines."""
    found = sine_cosine_positions(3, 4, 16)
    for patch in range(12):
        row, col = divmod(patch, 4)
        for half, place in enumerate((col, row)):
            for k in range(4):
                angle = place / 10000 ** (k / 4)
                assert math.isclose(found[patch, 8 * half + k], math.sin(angle), abs_tol=1e-6)
                assert math.isclose(found[patch, 8 * half + 4 + k], math.cos(angle), abs_tol=1e-6)


def test_they_are_the_same_bits_in_every_process():
    """torch's own sine differs in its last bit between processes: the digest of an untrained twin did, too."""
    found = sine_cosine_positions(10, 10, 112)
    column = torch.arange(10).repeat(10).tolist()
    for k in range(28):
        exactly = torch.tensor([math.sin(place * (1.0 / 10000 ** (k / 28.0))) for place in column], dtype=torch.float32)
        assert torch.equal(found[:, k], exactly)


def test_a_width_that_cannot_be_quartered_is_refused():
    with pytest.raises(BackboneError, match="multiple of four, got 18"):
        sine_cosine_positions(2, 2, 18)


@pytest.mark.parametrize(
    "model",
    [
        ViTModel(ViTConfig(**SMALL, intermediate_size=32), add_pooling_layer=False),
        Dinov2Model(Dinov2Config(**SMALL, mlp_ratio=2)),
        CLIPVisionModel(CLIPVisionConfig(**SMALL, intermediate_size=32)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_filling_changes_the_parameter_itself_in_every_family(model):
    fill_positions(model, 0.5)
    filled = position_embeddings(model).data.reshape(-1, 16)
    assert len(filled) == 26
    assert (filled[0] == 0).all()
    torch.testing.assert_close(filled[1:], 0.5 * sine_cosine_positions(5, 5, 16))


def test_a_model_that_keeps_them_elsewhere_is_named():
    with pytest.raises(BackboneError, match="Linear keeps its position embeddings in none of"):
        fill_positions(torch.nn.Linear(2, 2), 1.0)


def test_an_untrained_mae_knows_where_its_patches_lie():
    """transformers 5.23 leaves the positions of a new MAE at zero: a twin without them would be too weak a control."""
    twin = build_untrained("twin", ViTMAEConfig(**SMALL, intermediate_size=32), seed=0)
    torch.testing.assert_close(position_embeddings(twin).data[0, 1:], sine_cosine_positions(5, 5, 16))


def test_a_config_may_say_how_strong_they_start():
    config = ViTConfig(**SMALL, intermediate_size=32, position_embedding_scale=0.05)
    twin = build_untrained("twin", config, seed=0)
    torch.testing.assert_close(position_embeddings(twin).data[0, 1:], 0.05 * sine_cosine_positions(5, 5, 16))
    plain = build_untrained("twin", ViTConfig(**SMALL, intermediate_size=32), seed=0)
    assert 0.01 < position_embeddings(plain).data[0, 1:].std() < 0.03
