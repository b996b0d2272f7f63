"""Models of timm: from disk in timm's layout, held to what timm itself computes, or refused by name."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm_here import import_timm
from tiny_models import MEAN, STD

import bindkit as bk
from bindkit.backbones import Preprocessing, attention_maps, check_backbone, load_backbone
from bindkit.backbones.attention import attention_weights
from bindkit.backbones.families import BIAS, ROTATION, family_of_type
from bindkit.backbones.names import contents_of_backbone
from bindkit.errors import BackboneError, ContractError, GeometryError

PATCH, IMAGE, WIDTH, LAYERS = 8, 32, 32, 3
SIZES = {"img_size": IMAGE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": LAYERS, "num_heads": 2, "num_classes": 5}

KINDS: dict[str, tuple[str, dict[str, Any], str, int]] = {
    "vit": ("vit_tiny_patch16_224", {}, "VisionTransformer", 1),
    "vit-registers": ("vit_small_patch14_reg4_dinov2", {"reg_tokens": 4, "init_values": 0.5}, "VisionTransformer", 5),
    "vit-siglip": ("vit_base_patch16_siglip_224", {"class_token": False}, "VisionTransformer", 0),
    "vit-clip": ("vit_base_patch32_clip_224", {"pre_norm": True}, "VisionTransformer", 1),
    "deit": ("deit_tiny_distilled_patch16_224", {}, "VisionTransformerDistilled", 2),
    "eva": ("eva_giant_patch14_224", {}, "Eva", 1),
    "eva02": ("eva02_tiny_patch14_224", {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True}, "Eva", 1),
    "eva-dinov3": ("vit_small_patch16_dinov3", {}, "Eva", 5),
    "beit": ("beit_base_patch16_224", {}, "Beit", 1),
    "beitv2": ("beitv2_base_patch16_224", {"use_shared_rel_pos_bias": True, "use_rel_pos_bias": False}, "Beit", 1),
}
"""Architecture of timm, what a tiny one of it has besides, its class, its prefix tokens."""
ANY_SIZE = [kind for kind, (_, _, built, _) in KINDS.items() if built != "Beit"]


@pytest.fixture(scope="module")
def timm() -> Any:
    return import_timm()


def made(timm: Any, architecture: str, **settings: Any) -> Any:
    """A model of which every weight is drawn anew, so that zero-initialised parts cannot hide a mistake."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        model = timm.create_model(architecture, **{**SIZES, **settings}).eval()
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = 0.1 * torch.randn(weight.shape, generator=generator)
            weight.copy_(noise + 1 if weight.ndim == 1 and name.endswith("weight") else noise)
    return model


def write(timm: Any, directory: Path, architecture: str, **settings: Any) -> Any:
    """Save a model in the layout of timm's hub; return it."""
    model = made(timm, architecture, **settings)
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": MEAN, "std": STD, "interpolation": "bilinear"}
    model.pretrained_cfg["num_classes"] = 5
    timm.models.save_for_hf(model, directory, model_args={**SIZES, **settings}, safe_serialization=True)
    return model


@pytest.fixture(scope="module")
def saved(timm: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[str, Any]]:
    """The name and the model of a kind."""
    written: dict[str, tuple[str, Any]] = {}

    def get(kind: str) -> tuple[str, Any]:
        if kind not in written:
            architecture, settings, *_ = KINDS[kind]
            directory = tmp_path_factory.mktemp(kind)
            written[kind] = f"timm:{directory}", write(timm, directory, architecture, **settings)
        return written[kind]

    return get


def windows_of(height: int, width: int, n_windows: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (n_windows, height, width, 3), generator=generator, dtype=torch.uint8)


def intermediates(model: Any, pixels: torch.Tensor) -> list[torch.Tensor]:
    """What timm itself gives of every block, un-normed: patches, row-major."""
    with torch.no_grad():
        return model.forward_intermediates(pixels, norm=False, output_fmt="NLC", intermediates_only=True)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_recognised_with_its_own_preprocessing(kind: str, saved: Callable[[str], tuple[str, Any]]) -> None:
    name, model = saved(kind)
    _, _, built, n_prefix = KINDS[kind]
    backbone = load_backbone(name, device="cpu")
    assert (backbone.name, backbone.family, backbone.layout.n_prefix) == (name, f"timm.{built}", n_prefix)
    assert (backbone.n_layers, backbone.d_model, backbone.geometry.window) == (LAYERS, WIDTH, IMAGE)
    assert backbone.preprocessing == Preprocessing(MEAN, STD, 1 / 255, "bilinear")
    digests = sorted(
        hashlib.sha256(f"{weight.dtype} {tuple(weight.shape)}\n".encode() + weight.numpy().tobytes()).hexdigest()
        for weight in model.state_dict().values()
    )
    assert backbone.weights_digest == hashlib.sha256("\n".join(digests).encode()).hexdigest()
    assert not any(weight.requires_grad for weight in backbone.tower.model.parameters())


@pytest.mark.parametrize(
    ("kind", "window"), [(kind, IMAGE) for kind in KINDS] + [(kind, size) for kind in ANY_SIZE for size in (48, 24)]
)
def test_activations_are_those_that_timm_gives(
    kind: str, window: int, saved: Callable[[str], tuple[str, Any]], timm: Any
) -> None:
    """Of other windows, timm's own models made for that size, with the positions that timm resamples to it."""
    name, model = saved(kind)
    backbone = load_backbone(name, window=window, device="cpu")
    windows = windows_of(window, window)
    if window != IMAGE:
        resized = made(timm, KINDS[kind][0], **KINDS[kind][1])
        resized.set_input_size(img_size=(window, window))
        model = resized
    expected = intermediates(model, backbone.pixels(windows))
    found = backbone.activations(windows, range(LAYERS))
    for layer in range(LAYERS):
        torch.testing.assert_close(found[layer], expected[layer], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ANY_SIZE)
def test_non_square_hooks_are_those_that_timm_gives(
    kind: str, saved: Callable[[str], tuple[str, Any]], timm: Any
) -> None:
    backbone = load_backbone(saved(kind)[0], device="cpu")
    pixels = backbone.preprocessing.normalise(windows_of(2 * PATCH, 5 * PATCH))
    model = made(timm, KINDS[kind][0], **KINDS[kind][1])
    model.set_input_size(img_size=(2 * PATCH, 5 * PATCH))
    found = backbone.tower.activations(pixels, range(LAYERS))
    for layer, expected in enumerate(intermediates(model, pixels)):
        torch.testing.assert_close(found[layer][:, KINDS[kind][3] :], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perturbed_patch_moves_exactly_its_own_token(kind: str, saved: Callable[[str], tuple[str, Any]]) -> None:
    report = check_backbone(saved(kind)[0], device="cpu")
    assert not report.failure
    assert ("3 x 5 patches" in str(report)) is (kind in ANY_SIZE)
    assert "4 x 4 patches" in str(report)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ANY_SIZE])
def test_a_window_that_the_family_does_not_take_is_refused(kind: str, saved: Callable[[str], tuple[str, Any]]) -> None:
    with pytest.raises(GeometryError, match=r"timm\.Beit\) takes windows of 32 px alone, got 48"):
        load_backbone(saved(kind)[0], window=48, device="cpu")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", range(LAYERS - 1))
def test_queries_keys_values_and_weights_are_the_blocks_own(
    kind: str, layer: int, saved: Callable[[str], tuple[str, Any]]
) -> None:
    """Weights against timm's plain attention, whose dropout is handed them."""
    name, model = saved(kind)
    backbone = load_backbone(name, device="cpu")
    windows, n_patches = windows_of(IMAGE, IMAGE), 16
    attention, seen = model.blocks[layer + 1].attn, []
    attention.fused_attn = False
    hook = attention.attn_drop.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    activations = intermediates(model, backbone.pixels(windows))[layer]
    hook.remove()
    attention.fused_attn = True
    found, weights = attention_weights(backbone, windows, layer)
    torch.testing.assert_close(found, activations, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights, seen[0][:, :, -n_patches:, -n_patches:], rtol=1e-4, atol=1e-6)
    maps = attention_maps(backbone, layer)
    plain = maps.by_head(found, "query") @ maps.by_head(found, "key").mT / (WIDTH / 2) ** 0.5
    # All tokens are needed for the softmax; ratios of two patches' weights are not.
    ratios = weights.log() - weights.log()[..., :1]
    same = torch.allclose(ratios, (plain - plain[..., :1]).movedim(0, 1), atol=1e-3)
    assert same is (family_of_type(backbone.family).adds == "" or kind == "eva")
    assert family_of_type(backbone.family).adds == {"Eva": ROTATION, "Beit": BIAS}.get(KINDS[kind][2], "")


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [("vit_tiny_patch16_224", {"qk_norm": True}), ("eva_giant_patch14_224", {"use_post_norm": True})],
)
def test_maps_that_are_not_what_the_block_computes_are_refused(
    timm: Any, tmp_path: Path, architecture: str, settings: dict[str, Any]
) -> None:
    write(timm, tmp_path, architecture, **settings)
    report = check_backbone(f"timm:{tmp_path}", device="cpu")
    assert "queries, keys not available: the query map of block 1" in str(report)
    with pytest.raises(ContractError, match=r"the query map of block 1.*do not give"):
        attention_maps(load_backbone(f"timm:{tmp_path}", device="cpu"), 0)


@pytest.mark.parametrize(
    ("architecture", "built"),
    [("convnext_atto", "ConvNeXt"), ("swin_tiny_patch4_window7_224", "SwinTransformer"), ("resnet18", "ResNet")],
)
def test_what_is_no_plain_vit_is_refused_by_name(timm: Any, architecture: str, built: str) -> None:
    with pytest.raises(BackboneError, match=rf"timm:{architecture} is a {built}; of timm bindkit reads plain ViTs"):
        load_backbone(f"random-init:timm:{architecture}", device="cpu")


def test_an_unknown_name_is_refused(timm: Any) -> None:
    with pytest.raises(BackboneError, match=r"timm has no such model; timm\.list_models"):
        load_backbone("timm:vit_of_tomorrow", device="cpu")


def test_an_untrained_twin_depends_on_its_seed_alone(saved: Callable[[str], tuple[str, Any]], tmp_path: Path) -> None:
    name, _ = saved("vit")
    trained = load_backbone(name, device="cpu")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    twin = load_backbone(f"random-init:{name},seed=2", device="cpu")
    assert torch.equal(torch.rand(3), expected)
    assert (twin.geometry, twin.layout, twin.preprocessing) == (trained.geometry, trained.layout, trained.preprocessing)
    assert twin.objective == "random-init"
    assert twin.weights_digest == load_backbone(f"random-init:{name},seed=2", device="cpu").weights_digest
    others = {one: load_backbone(one, device="cpu").weights_digest for one in (name, f"random-init:{name}")}
    assert len({twin.weights_digest, *others.values()}) == 3


def test_a_name_of_timm_needs_no_directory(timm: Any) -> None:
    backbone = load_backbone("random-init:timm:vit_tiny_patch16_224.augreg_in21k", window=32, device="cpu")
    assert (backbone.d_model, backbone.n_layers, backbone.geometry.short_side) == (192, 12, 592)
    assert backbone.preprocessing == Preprocessing((0.5,) * 3, (0.5,) * 3, 1 / 255, "bicubic")


@pytest.mark.parametrize("part", ["blocks.1.attn.qkv.weight", "pos_embed"])
def test_missing_weights_are_refused(timm: Any, tmp_path: Path, part: str) -> None:
    write(timm, tmp_path, "vit_tiny_patch16_224")
    weights = load_file(tmp_path / "model.safetensors")
    del weights[part]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(BackboneError, match="cannot read the model of timm"):
        load_backbone(f"timm:{tmp_path}", device="cpu")


def test_a_model_of_another_number_of_classes_is_refused(timm: Any, tmp_path: Path) -> None:
    """timm would then say nothing of missing weights."""
    write(timm, tmp_path, "vit_tiny_patch16_224")
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"]["num_classes"] = 7
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BackboneError, match="says 5 classes of its weights and 7 of its model"):
        load_backbone(f"timm:{tmp_path}", device="cpu")


class _Touches:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_pickled_weights_are_read_as_weights_alone(timm: Any, tmp_path: Path) -> None:
    model, trace = write(timm, tmp_path, "vit_tiny_patch16_224"), tmp_path / "was-here"
    for file in (*tmp_path.glob("*.safetensors"), *tmp_path.glob("*.bin")):
        file.unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    windows = windows_of(IMAGE, IMAGE)
    backbone = load_backbone(f"timm:{tmp_path}", device="cpu")
    torch.testing.assert_close(backbone.activations(windows, [2])[2], intermediates(model, backbone.pixels(windows))[2])
    torch.save({**model.state_dict(), "extra": _Touches(trace)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="cannot read the model of timm"):
        load_backbone(f"timm:{tmp_path}", device="cpu")
    assert not trace.exists()


def test_it_is_cached_and_known_by_content(saved: Callable[[str], tuple[str, Any]], tmp_path: Path) -> None:
    name, _ = saved("vit")
    backbone = load_backbone(name, device="cpu")
    scenes = bk.open_scenes("synthetic:n=3,seed=0,size=32x48")
    cache = bk.cache_activations(backbone, scenes, tmp_path, layers=[1])
    deviation = bk.compare_with_model(bk.ActivationCache.open(cache.path), backbone, scenes)
    assert deviation.largest <= deviation.allowed
    assert {"config.json", "model.safetensors"} <= set(contents_of_backbone(name))


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(BackboneError, match=r"timm cannot be imported .*pip install 'bindkit\[timm\]'"):
        load_backbone("timm:vit_tiny_patch16_224")
