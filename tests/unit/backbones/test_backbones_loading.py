"""Loading: geometry, layers, identity, and every way in which a checkpoint can be wrong."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import IMAGE, LAYERS, PATCH, make_model, write_checkpoint

from bindkit.backbones import Backbone, load_backbone
from bindkit.errors import BackboneError, GeometryError, InvalidParameterError, LayerError


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint("vit-classifier", tmp_path_factory.mktemp("vit")))


@pytest.fixture(scope="module")
def backbone(vit: str) -> Backbone:
    return load_backbone(vit, device="cpu")


def change_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- geometry ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [IMAGE + 1, PATCH - 1, 0, -PATCH])
def test_a_window_that_is_no_multiple_of_the_patch_is_refused(vit: str, window: int) -> None:
    with pytest.raises(GeometryError):
        load_backbone(vit, window=window, device="cpu")


def test_a_window_larger_than_the_short_side_is_refused(vit: str) -> None:
    with pytest.raises(GeometryError, match="does not fit"):
        load_backbone(vit, window=IMAGE, short_side=IMAGE - PATCH, device="cpu")
    assert load_backbone(vit, window=IMAGE, short_side=IMAGE + 3, device="cpu").geometry.short_side == IMAGE + 3


@pytest.mark.parametrize(
    ("patch_size", "image_size", "window", "expected"),
    [
        (14, 28, None, (518, 28)),
        (16, 32, None, (592, 32)),
        (16, 32, 608, (608, 608)),
        (8, 32, None, (32, 32)),
        (14, 30, None, (518, 28)),  # the native size is no multiple of the patch: models crop it
        ([16, 16], [32, 32], None, (592, 32)),
    ],
)
def test_default_geometry_is_the_papers(
    patch_size: int, image_size: int, window: int | None, expected: tuple[int, int], tmp_path: Path
) -> None:
    write_checkpoint("vit", tmp_path)
    change_config(tmp_path, patch_size=patch_size, image_size=image_size)
    backbone = load_backbone(f"random-init:{tmp_path}", window=window, device="cpu")
    assert (backbone.geometry.short_side, backbone.geometry.window) == expected
    side = expected[1]
    tokens = backbone.activations(torch.zeros(1, side, side, 3, dtype=torch.uint8), [0])[0]
    assert tokens.shape[1] == backbone.layout.grid.n_patches == (side // backbone.geometry.patch_size) ** 2


def test_windows_of_another_size_or_type_are_refused(backbone: Backbone) -> None:
    with pytest.raises(GeometryError, match=r"shape \[window, 32, 32, 3\], got \[1, 32, 40, 3\]"):
        backbone.activations(torch.zeros(1, IMAGE, IMAGE + PATCH, 3, dtype=torch.uint8), [0])
    # Under test the type checker sees it first, elsewhere bindkit's own error does.
    with pytest.raises((InvalidParameterError, TypeError)):
        backbone.embedding(torch.zeros(1, IMAGE, IMAGE, 3))
    with pytest.raises(InvalidParameterError, match="uint8"):
        backbone.pixels(torch.zeros(1, IMAGE, IMAGE, 3))


# --- layers -----------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, LAYERS - 1), min_size=1, max_size=6))
def test_layers_come_back_ascending_and_once(backbone: Backbone, layers: list[int]) -> None:
    expected = tuple(layer for layer in range(LAYERS) if layer in layers)
    assert backbone.resolve_layers(layers) == expected
    assert backbone.resolve_layers(", ".join(map(str, layers))) == expected


def test_all_layers_and_one_layer(backbone: Backbone) -> None:
    assert backbone.resolve_layers("all") == tuple(range(LAYERS))
    assert backbone.resolve_layers(1) == (1,)


@pytest.mark.parametrize("layers", ["", "first", "0,,1", "-1", "0,3", "1.5", [-1], [LAYERS], [], [True], 7])
def test_layers_that_do_not_exist_are_refused(backbone: Backbone, layers: object) -> None:
    with pytest.raises(LayerError, match="layers 0 to 2"):
        backbone.resolve_layers(layers)


def test_activations_refuse_a_layer_that_does_not_exist(backbone: Backbone) -> None:
    with pytest.raises(LayerError, match="got 3"):
        backbone.activations(torch.zeros(1, IMAGE, IMAGE, 3, dtype=torch.uint8), [0, LAYERS])


# --- identity ---------------------------------------------------------------------------------------


def test_digest_names_the_weights(vit: str, backbone: Backbone, tmp_path: Path) -> None:
    digests = [
        hashlib.sha256(f"{weight.dtype} {tuple(weight.shape)}\n".encode() + weight.numpy().tobytes()).hexdigest()
        for weight in backbone.tower.model.state_dict().values()
    ]
    assert backbone.weights_digest == hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()
    assert load_backbone(str(write_checkpoint("vit-classifier", tmp_path / "a")), device="cpu").weights_digest == (
        backbone.weights_digest
    )
    other = write_checkpoint("vit-classifier", tmp_path / "b", seed=1)
    assert load_backbone(str(other), device="cpu").weights_digest != backbone.weights_digest


def test_description_is_json_and_names_what_was_loaded(vit: str, backbone: Backbone) -> None:
    description = json.loads(json.dumps(backbone.describe()))
    assert description == backbone.describe()
    assert description["name"] == vit
    assert description["revision"] is None
    assert description["geometry"] == {"short_side": IMAGE, "window": IMAGE, "patch_size": PATCH}
    assert (description["d_model"], description["n_layers"], description["n_prefix"]) == (32, LAYERS, 1)


def test_objective_can_be_said(vit: str) -> None:
    assert load_backbone(vit, device="cpu").objective == "supervised"
    assert load_backbone(vit, device="cpu", objective="weakly-supervised").objective == "weakly-supervised"


def test_a_device_that_does_not_exist_is_refused(vit: str) -> None:
    with pytest.raises(InvalidParameterError, match="unknown device 'abacus'"):
        load_backbone(vit, device="abacus")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused(vit: str) -> None:
    with pytest.raises(InvalidParameterError, match="there is none"):
        load_backbone(vit, device="cuda")


# --- wrong checkpoints ------------------------------------------------------------------------------


def edit_weights(directory: Path, edit) -> None:
    weights = load_file(directory / "model.safetensors")
    edit(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("kind", ["vit-classifier", "dinov2", "clip", "mae-pretraining", "chinese-clip", "beit"])
def test_missing_weights_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    """transformers would fill the hole with random numbers and only warn."""
    write_checkpoint(kind, tmp_path)

    def drop(weights: dict[str, torch.Tensor]) -> None:
        block_1 = [name for name in sorted(weights) if ".1." in name and name.endswith("weight")]
        key = next(name for name in block_1 if "text" not in name and "decoder" not in name)
        del weights[key]

    edit_weights(tmp_path, drop)
    with pytest.raises(BackboneError, match=r"lacks 1 weights of its vision encoder.*\.1\."):
        load_backbone(str(tmp_path), device="cpu")


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    write_checkpoint("vit", tmp_path)

    def rename(weights: dict[str, torch.Tensor]) -> None:
        for name in list(weights):
            weights[f"student.{name}"] = weights.pop(name)

    edit_weights(tmp_path, rename)
    with pytest.raises(BackboneError, match=r"and \d+ more"):
        load_backbone(str(tmp_path), device="cpu")


@pytest.mark.parametrize(("kind", "part"), [("dinov2", "mask_token"), ("vit", "pooler"), ("siglip-vision", "head")])
def test_parts_that_are_never_used_may_be_missing(kind: str, part: str, tmp_path: Path) -> None:
    write_checkpoint(kind, tmp_path)
    dropped = []

    def drop(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if part in name]:
            dropped.append(name)
            del weights[name]

    edit_weights(tmp_path, drop)
    assert dropped
    load_backbone(str(tmp_path), device="cpu")


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    write_checkpoint("vit", tmp_path)
    change_config(tmp_path, hidden_size=48)
    with pytest.raises(BackboneError, match=str(tmp_path)):
        load_backbone(str(tmp_path), device="cpu")


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    path = write_checkpoint("vit", tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BackboneError, match="damaged or cut short"):
        load_backbone(str(tmp_path), device="cpu")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_missing_files_are_named(file: str, tmp_path: Path) -> None:
    (write_checkpoint("vit", tmp_path) / file).unlink()
    with pytest.raises(BackboneError, match=r"should hold config.json, model.safetensors and preprocessor_config.json"):
        load_backbone(str(tmp_path), device="cpu")


def test_a_config_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (write_checkpoint("vit", tmp_path) / "config.json").write_text("{")
    with pytest.raises(BackboneError, match="cannot read the config"):
        load_backbone(str(tmp_path), device="cpu")


@pytest.mark.parametrize("name", ["./no/such/directory", "/no/such/directory", "~/no-such-directory"])
def test_a_directory_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(BackboneError, match="is no directory"):
        load_backbone(name)


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(BackboneError, match="needs a name"):
        load_backbone(" ")


@pytest.mark.skipif("HF_HUB_OFFLINE" not in os.environ, reason="hub tests run online")
def test_a_hub_that_cannot_be_reached_is_explained() -> None:
    with pytest.raises(BackboneError, match="cannot be reached: go online, point HF_HOME"):
        load_backbone("bindkit-tests/no-such-model")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError("You are trying to access a gated repo."), "huggingface-cli login"),
        (OSError("x is not a local folder and is not a valid model identifier"), "Check the spelling"),
        (ValueError("loading this needs trust_remote_code=True"), "which bindkit never runs"),
        (KeyError("mystery"), "vision transformer that the installed transformers knows"),
    ],
)
def test_what_the_hub_says_is_turned_into_a_remedy(
    error: Exception, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(transformers.PretrainedConfig, "get_config_dict", refuse)
    with pytest.raises(BackboneError, match=remedy) as raised:
        load_backbone("somebody/something")
    assert raised.value.__cause__ is error


def test_code_of_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    write_checkpoint("vit", tmp_path)
    trace = tmp_path / "was-here"
    (tmp_path / "evil.py").write_text(f"open({str(trace)!r}, 'w')\nclass EvilConfig: ...\nclass EvilModel: ...\n")
    change_config(
        tmp_path, model_type="evil", auto_map={"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"}
    )
    with pytest.raises(BackboneError, match="never runs"):
        load_backbone(str(tmp_path), device="cpu")
    assert not trace.exists()


AUTO_MAP = {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"}


def test_a_known_family_that_names_code_of_its_own_is_loaded_without_it(tmp_path: Path) -> None:
    expected = load_backbone(str(write_checkpoint("vit", tmp_path)), device="cpu").weights_digest
    trace = tmp_path / "was-here"
    (tmp_path / "evil.py").write_text(f"open({str(trace)!r}, 'w')\nclass EvilConfig: ...\nclass EvilModel: ...\n")
    change_config(tmp_path, auto_map=AUTO_MAP)
    for name in (str(tmp_path), f"random-init:{tmp_path}"):
        assert (load_backbone(name, device="cpu").weights_digest == expected) is (name == str(tmp_path))
    assert not trace.exists()


def test_weights_that_the_code_of_a_checkpoint_would_use_are_not_left_out_without_a_word(tmp_path: Path) -> None:
    """As histai/hibou-b: DINOv2 by its config, with registers by its own code. Without them all activations differ."""
    write_checkpoint("dinov2-registers", tmp_path)
    change_config(tmp_path, model_type="dinov2", architectures=["Dinov2ModelWithRegisters"], auto_map=AUTO_MAP)
    with pytest.raises(BackboneError, match=r"has no place for: embeddings\.register_tokens.*another architecture"):
        load_backbone(str(tmp_path), device="cpu")


class _Touches:
    """Pickled, it asks whoever reads it to open a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_pickled_weights_are_read_as_weights_alone(tmp_path: Path) -> None:
    expected = load_backbone(str(write_checkpoint("vit", tmp_path)), device="cpu").weights_digest
    weights, trace = load_file(tmp_path / "model.safetensors"), tmp_path / "was-here"
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    assert load_backbone(str(tmp_path), device="cpu").weights_digest == expected
    torch.save(weights | {"extra": _Touches(trace)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="cannot read the weights"):
        load_backbone(str(tmp_path), device="cpu")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": [32, 48]}, r"image_size \(32, 48\)"),
        ({"patch_size": [8, 4]}, r"patch_size \(8, 4\)"),
        ({"num_channels": 1}, "takes 1 channels"),
    ],
)
def test_shapes_that_square_rgb_windows_do_not_fit_are_refused(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    write_checkpoint("vit", tmp_path)
    change_config(tmp_path, **changes)
    with pytest.raises(BackboneError, match=message):
        load_backbone(str(tmp_path), device="cpu")


# --- side effects -----------------------------------------------------------------------------------


def test_loading_is_quiet_and_leaves_settings_alone(
    vit: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    with caplog.at_level(logging.INFO), warnings.catch_warnings():
        warnings.simplefilter("error")
        load_backbone(vit, device="cpu")
        load_backbone(f"random-init:{vit}", device="cpu")
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert transformers_logging.get_verbosity() == verbosity
    assert transformers_logging.is_progress_bar_enabled() == bars


def test_no_hooks_stay_on_the_model(backbone: Backbone) -> None:
    backbone.activations(torch.zeros(1, IMAGE, IMAGE, 3, dtype=torch.uint8), [0, 1])
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in backbone.tower.blocks)


def test_a_config_that_asks_for_hidden_states_changes_nothing(vit: str, backbone: Backbone, tmp_path: Path) -> None:
    write_checkpoint("vit-classifier", tmp_path)
    change_config(tmp_path, output_hidden_states=True, output_attentions=True)
    windows = torch.full((1, IMAGE, IMAGE, 3), 90, dtype=torch.uint8)
    other = load_backbone(str(tmp_path), device="cpu")
    assert torch.equal(other.activations(windows, [1])[1], backbone.activations(windows, [1])[1])
    assert make_model("vit-classifier").config.output_hidden_states is False


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_lies_close_is_float32_and_says_so(precision):
    plain, halved = (load_backbone("random-init:vit", device="cpu", precision=name) for name in ("float32", precision))
    windows = torch.randint(0, 256, (2, 112, 112, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    one, two = (backbone.activations(windows, [0, 5]) for backbone in (plain, halved))
    for layer in (0, 5):
        assert two[layer].dtype == torch.float32
        difference = (one[layer] - two[layer]).abs().max() / one[layer].abs().max()
        assert 1e-5 < difference < 2e-2
    assert "precision" not in plain.describe() and halved.describe()["precision"] == precision
    assert halved.describe()["weights_digest"] == plain.describe()["weights_digest"]


def test_rows_are_those_of_the_whole_layers():
    backbone = load_backbone("random-init:vit", device="cpu")
    windows = torch.randint(0, 256, (3, 112, 112, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    window, patch = torch.tensor([0, 0, 2, 1, 2]), torch.tensor([0, 195, 7, 7, 100])
    whole, rows = backbone.activations(windows, [1, 4]), backbone.activations(windows, [1, 4], (window, patch))
    for layer in (1, 4):
        assert torch.equal(rows[layer], whole[layer][window, patch])


def test_an_unknown_precision_is_refused():
    with pytest.raises(InvalidParameterError, match="unknown precision 'int8'; choose one of float32, bfloat16"):
        load_backbone("random-init:vit", precision="int8")
