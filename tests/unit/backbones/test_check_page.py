"""The page about a model: what it says is so, also where the model fails."""

from __future__ import annotations

import inspect
import sys
import types
from pathlib import Path

import own_backbones  # noqa: F401  (registers what is checked)
import pytest
from tiny_models import FAMILIES, IMAGE, LAYERS, PATCH, WIDTH, write_checkpoint

import bindkit as bk
from bindkit.backbones import check_backbone, load_backbone
from bindkit.backbones.families import family_of_type
from bindkit.backbones.loading import read_model
from bindkit.cache.sizing import bytes_at_most
from bindkit.cli import main
from bindkit.errors import BackboneError


def test_what_is_checked_is_what_would_be_loaded() -> None:
    """The same options, with the same defaults."""
    checked, loaded = ({**inspect.signature(one).parameters} for one in (read_model, load_backbone))
    assert {name: one.default for name, one in checked.items()} == {name: one.default for name, one in loaded.items()}


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_page_says_what_a_model_is(kind: str, tmp_path: Path) -> None:
    _, family, n_prefix, objective = FAMILIES[kind]
    name = str(write_checkpoint(kind, tmp_path))
    report = check_backbone(name, device="cpu", window=IMAGE + PATCH)
    lines, adds = str(report).splitlines(), family_of_type(family).adds
    n_parameters = sum(weight.numel() for weight in load_backbone(name, device="cpu").tower.model.parameters())
    assert lines[:-4] == [
        f"{name}: passes the contract check",
        f"  family        {family}",
        f"  objective     {objective}",
        "  revision      -",
        f"  layers        {LAYERS} (0 to {LAYERS - 1})",
        f"  width         {WIDTH}",
        f"  parameters    {n_parameters:,}",
        f"  patch         {PATCH} px",
        f"  prefix tokens {n_prefix}",
        "  window        40 px (5 x 5 patches); short side 40 px",
        "  other windows multiples of 8 px; its own is 32 px",
        "  normalisation mean 0.3 0.4 0.5, std 0.2 0.25 0.3, bilinear; its preprocessor_config.json",
        f"  queries, keys available{f', without {adds}' if adds else ''}",
        "  attention     available",
    ]
    assert lines[-4] == "  checked"
    assert len([line for line in lines if line.startswith("  - ")]) == 3


def test_what_a_model_fails_at_is_on_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (str(write_checkpoint("yolos", tmp_path)), "transposed"):
        assert main(["check", name]) == 2
        page = capsys.readouterr().out
        assert page.startswith(f"{name}: fails the contract check\n  family")
        assert f"  window        {IMAGE} px (4 x 4 patches)" in page
        assert "  normalisation mean 0.3 0.4 0.5" in page
        (failed,) = (line for line in page.splitlines() if line.startswith("  failed "))
        assert "perturbing patch" in failed and "row-major" in failed
        assert "available" not in page and "checked" not in page


def test_blocks_that_are_not_those_of_the_config_are_on_the_page_too(tmp_path: Path) -> None:
    report = check_backbone(str(write_checkpoint("swin", tmp_path)), device="cpu")
    assert report.backbone is None
    assert "no plain ViT" in report.failure and report.failure in str(report)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("bindkit/scenes-mae", ["  family        vit", "  objective     masked-reconstruction"]),
        ("random-init:vit,seed=3", ["  objective     random-init", "bicubic; ImageNet's"]),
        ("own_backbones:mine", ["  family        own", "  objective     colours", "register_backbone"]),
        ("without-heads", ["queries, keys not available: block 1 of without-heads does not say how many heads"]),
    ],
)
def test_any_name_has_a_page(name: str, lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", name, "--window", "48"]) == 0
    page = capsys.readouterr().out
    for line in (f"{name}: passes the contract check", "  window        48 px (6 x 6 patches)", *lines):
        assert line in page


def test_a_model_that_cannot_be_read_is_an_error_and_no_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(write_checkpoint("resnet", tmp_path))]) == 2
    shown = capsys.readouterr()
    assert not shown.out and "no patch_size" in shown.err
    assert main(["check", "random-init:vit", "--window", "50"]) == 2
    assert "50" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_the_size_of_a_cache_is_what_one_takes(dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every window of 80 px has 100 patches, so that 60 are drawn of each scene."""
    backbone, scenes = load_backbone("bindkit/scenes-mae", device="cpu"), bk.open_scenes("synthetic:n=4,size=80x80")
    told = bytes_at_most(backbone.d_model, backbone.n_layers, 4, 60, dtype)
    assert told == bk.estimate_bytes(backbone, scenes, patches_per_scene=60, dtype=dtype)
    cache = bk.cache_activations(backbone, scenes, tmp_path, patches_per_scene=60, dtype=dtype)
    on_disk = sum(file.stat().st_size for file in cache.path.rglob("*.safetensors"))
    assert told <= on_disk <= 1.05 * told + 20_000
    assert main(["check", "bindkit/scenes-mae", "--scenes", "4000", "--patches-per-scene", "60", "--dtype", dtype]) == 0
    size = f"at most {1000 * told / 1e9:.3g} GB for 4,000 scenes of 60 patches, {dtype}, all layers"
    assert size in capsys.readouterr().out


def test_a_transformers_that_gives_no_class_says_what_may_be_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a torchvision lies there that does not fit torch: then transformers has no vision model at all."""
    import transformers

    directory = str(write_checkpoint("vit", tmp_path))
    bare = types.ModuleType("transformers")
    for name in ("__version__", "__path__", "CONFIG_MAPPING", "AutoConfig", "PretrainedConfig"):
        setattr(bare, name, getattr(transformers, name))
    monkeypatch.setitem(sys.modules, "transformers", bare)
    with pytest.raises(BackboneError, match=r"gives no ViTModel.*one that fits torch"):
        load_backbone(directory, device="cpu")
