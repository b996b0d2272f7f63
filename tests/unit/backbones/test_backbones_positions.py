"""Sine-cosine positions: the published formula, where each family keeps them, and untrained twins that have them."""

import math

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model, ViTConfig, ViTMAEConfig, ViTModel

from bindkit.backbones.checkpoint import build_untrained
from bindkit.backbones.untrained import fill_positions, position_embeddings, sine_cosine_positions
from bindkit.errors import BackboneError

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 40, "patch_size": 8}


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
