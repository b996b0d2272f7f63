"""Checkpoints whose configs say how they were run once, with an attention that is not here, load as they are."""

import json
import logging

import pytest
import torch
from tiny_models import write_checkpoint

from bindkit.backbones import load_backbone
from bindkit.backbones.checkpoint import without_habits
from bindkit.errors import BackboneError

FAMILIES = ("dinov2", "dinov3", "vit", "beit", "mae", "clip", "siglip", "ijepa")

SAYINGS = (
    {"_attn_implementation": "flash_attention_2"},
    {"attn_implementation": "flash_attention_2"},
    {"attn_implementation": "flash_attention_3"},
    {"_attn_implementation": "an attention of tomorrow"},
    {"_attn_implementation_internal": "flash_attention_2"},
    {"attn_implementation": {"vision_config": "flash_attention_2"}},
    {"_attn_implementation_autoset": True, "use_flash_attention_2": True, "_flash_attn_2_enabled": True},
    {"attn_implementation": "sdpa", "output_attentions": True},
    {"output_attentions": True, "output_hidden_states": True},
    {"return_dict": False},
    {"use_return_dict": False},
)


def say(directory, settings, *, of_vision):
    path = directory / "config.json"
    config = json.loads(path.read_text())
    (config["vision_config"] if of_vision else config).update(settings)
    path.write_text(json.dumps(config))


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    """A checkpoint, its own config, and what it gives for two windows."""
    directory = write_checkpoint(request.param, tmp_path_factory.mktemp(request.param))
    own = (directory / "config.json").read_text()
    windows = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    backbone = load_backbone(str(directory), device="cpu")
    return directory, own, windows, backbone.weights_digest, backbone.activations(windows, [2])[2]


@pytest.mark.parametrize("settings", SAYINGS, ids=str)
def test_a_config_that_says_how_a_model_was_run_loads_the_same_model(checkpoint, settings, caplog):
    directory, own, windows, digest, activations = checkpoint
    for of_vision in (False, True) if "vision_config" in json.loads(own) else (False,):
        (directory / "config.json").write_text(own)
        say(directory, settings, of_vision=of_vision)
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="bindkit"):
            backbone = load_backbone(str(directory), device="cpu")
        assert "an attention that is there is taken" in caplog.text
        assert backbone.weights_digest == digest
        assert torch.equal(backbone.activations(windows, [2])[2], activations)
    (directory / "config.json").write_text(own)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_an_attention_that_is_there_is_kept_without_a_word(tmp_path, caplog, attention):
    directory = write_checkpoint("vit", tmp_path)
    say(directory, {"attn_implementation": attention}, of_vision=False)
    with caplog.at_level(logging.INFO, logger="bindkit"):
        backbone = load_backbone(str(directory), device="cpu")
    assert "attention" not in caplog.text
    assert backbone.tower.model.config._attn_implementation == attention


def test_an_untrained_twin_of_such_a_checkpoint_loads_too(tmp_path):
    directory = write_checkpoint("dinov2", tmp_path)
    say(directory, {"_attn_implementation": "flash_attention_2"}, of_vision=False)
    assert load_backbone(f"random-init:{directory}", device="cpu").n_layers == 3


def test_an_unknown_architecture_is_still_refused_as_such(tmp_path):
    directory = write_checkpoint("vit", tmp_path)
    say(directory, {"model_type": "of_tomorrow", "output_attentions": True}, of_vision=False)
    with pytest.raises(BackboneError, match="cannot read the config"):
        load_backbone(str(directory), device="cpu")


def test_what_a_model_is_stays():
    config = {"hidden_size": 3, "vision_config": {"patch_size": 8}, "id2label": {"0": "output_attentions"}}
    assert without_habits(config) == (config, [])
