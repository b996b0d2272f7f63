"""Backbones of somebody's own: known by name, checked and measured as any other, and no code run that nobody named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from own_backbones import FACTS, MyViT, mine, trained

import bindkit as bk
from bindkit.backbones import Preprocessing, attention_maps, load_backbone, register_backbone
from bindkit.backbones.attention import attention_weights, require_as_computed
from bindkit.backbones.families import ROTATION
from bindkit.backbones.names import contents_of_backbone, depth_and_patch, module_of
from bindkit.backbones.sources import source_of
from bindkit.errors import BackboneError, ContractError, InvalidParameterError
from bindkit.pipeline.parameters import absolute_backbones

WINDOWS = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["mine", "own_backbones:mine"])
def test_it_is_what_its_function_makes(name: str) -> None:
    backbone = load_backbone(name, device="cpu")
    assert (backbone.name, backbone.family, backbone.objective) == (name, "own", "colours")
    assert (backbone.n_layers, backbone.d_model, backbone.layout.n_prefix, backbone.geometry.window) == (3, 16, 1, 32)
    assert backbone.preprocessing == Preprocessing(FACTS["mean"], FACTS["std"], 1 / 255, "bicubic")
    model = mine()
    with torch.no_grad():
        expected = model(backbone.pixels(WINDOWS))
    torch.testing.assert_close(backbone.activations(WINDOWS, [2])[2], expected[:, 1:])
    wider = load_backbone(name, window=48, device="cpu")
    assert wider.layout.grid.n_patches == 36


def test_queries_keys_and_weights_are_its_own() -> None:
    backbone = load_backbone("mine", device="cpu")
    x, weights = attention_weights(backbone, WINDOWS, 0)
    maps, block = attention_maps(backbone, 0), backbone.tower.blocks[1]
    query, key, value = block.qkv(block.norm1(x)).chunk(3, dim=-1)
    for which, expected in (("query", query), ("key", key), ("value", value)):
        torch.testing.assert_close(maps.read(x, which), expected)
    # Two patches' shares of one row differ by the difference of their products.
    products = torch.stack([maps.products(one) for one in x])
    torch.testing.assert_close(
        weights.log() - weights.log()[..., :1], products - products[..., :1], rtol=1e-4, atol=1e-4
    )


def test_without_heads_queries_and_keys_are_not_told_apart() -> None:
    with pytest.raises(ContractError, match="does not say how many heads"):
        attention_maps(load_backbone("without-heads", device="cpu"), 0)


def test_it_is_known_by_weights_and_code() -> None:
    one, again = (load_backbone("mine", device="cpu") for _ in range(2))
    rewritten = load_backbone("rewritten", device="cpu")
    assert one.weights_digest == again.weights_digest != rewritten.weights_digest
    assert one.tower.weights_digest() == rewritten.tower.weights_digest()


def test_its_untrained_twin_is_another_model_of_the_same_shape() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trained_one = load_backbone("mine", device="cpu")
    twins = [load_backbone(f"random-init:mine,seed={seed}", device="cpu") for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    digests = [one.weights_digest for one in (trained_one, *twins)]
    assert digests[1] == digests[2] and len(set(digests)) == 3
    assert {one.objective for one in twins} == {"random-init"}
    with pytest.raises(BackboneError, match="rewritten makes no untrained twin; give it a keyword untrained=False"):
        load_backbone("random-init:rewritten", device="cpu")


def test_it_is_cached_repaired_and_refused_after_a_change(tmp_path: Path) -> None:
    scenes = bk.open_scenes("synthetic:n=3,seed=0,size=32x48")
    backbone = load_backbone("own_backbones:mine", device="cpu")
    cache = bk.cache_activations(backbone, scenes, tmp_path, layers=[1])
    deviation = bk.compare_with_model(bk.ActivationCache.open(cache.path), backbone, scenes)
    assert deviation.largest <= deviation.allowed
    assert source_of(backbone.describe(), "cpu").describe() == backbone.describe()
    assert contents_of_backbone("own_backbones:mine").keys() == {str(Path(sys.modules["own_backbones"].__file__))}


def test_the_contract_applies() -> None:
    with pytest.raises(ContractError, match="not in row-major patch order"):
        load_backbone("transposed", device="cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_backbones:nothing", "own_backbones registers no backbone 'nothing'"),
        ("no_such_module:mine", r"the module no_such_module cannot be imported .*PYTHONPATH=\."),
        ("no-module", "should give a torch.nn.Module, got int"),
        ("broken", "the function behind broken raised FileNotFoundError: mine.pt"),
    ],
)
def test_what_cannot_be_loaded_is_named(name: str, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        load_backbone(name, device="cpu")


def test_blocks_that_lie_elsewhere_are_named() -> None:
    with pytest.raises(ContractError, match=r"no list of like transformer blocks at 'encoder\.layers'"):
        load_backbone("elsewhere", device="cpu")


@pytest.mark.parametrize("name", ["", "a b", "owner/model", "mod:mine", "vit", "dinov2", 3])
def test_other_kinds_of_names_are_refused(name: object) -> None:
    with pytest.raises((BackboneError, TypeError)):
        register_backbone(name, **FACTS)


def test_a_file_that_names_a_module_does_not_have_it_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a cache's manifest that came from somewhere."""
    trace = tmp_path / "was-here"
    (tmp_path / "planted_module.py").write_text(f"open({str(trace)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    described = load_backbone("mine", device="cpu").describe() | {"name": "planted_module:mine"}
    for name in ("planted_module:mine", "random-init:planted_module:mine"):
        with pytest.raises(BackboneError, match="imports no module that only a file names"):
            source_of(described | {"name": name})
    contents_of_backbone("planted_module:mine")
    assert depth_and_patch("planted_module:mine") == (None, None)
    assert not trace.exists()


def test_names_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module_of("a.b:mine") == "a.b"
    assert [module_of(name) for name in ("timm:mine", "facebook/dinov2", "mine")] == [None] * 3
    monkeypatch.chdir(tmp_path)
    Path("a:b").mkdir()
    Path("vits").mkdir()
    assert module_of("a:b") is None
    assert absolute_backbones("timm:vits timm:vit_tiny mine a:mine", tmp_path) == (
        f"timm:{tmp_path / 'vits'} timm:vit_tiny mine a:mine"
    )


def test_another_process_finds_it_by_its_module(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "bindkit.cli", "check", "own_backbones:mine"]
    places = [str(Path(__file__).parents[1]), os.environ["PYTHONPATH"]]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "own_backbones:mine: passes the contract check" in done.stdout
    script = "import json, own_backbones, bindkit as bk; print(json.dumps(bk.load_backbone('mine').describe()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout) == load_backbone("mine", device="cpu").describe()


def test_the_latest_of_one_name_counts() -> None:
    register_backbone("mine-again", **FACTS)(lambda: trained(MyViT, 1))
    first = load_backbone("mine-again", device="cpu").weights_digest
    register_backbone("mine-again", **FACTS)(lambda: trained(MyViT, 2))
    assert load_backbone("mine-again", device="cpu").weights_digest != first


class Attending(torch.nn.Module):
    """A block; what `how` says is in no weight."""

    def __init__(self, how: str, heads: int) -> None:
        super().__init__()
        self.norm1, self.qkv, self.out = torch.nn.LayerNorm(16), torch.nn.Linear(16, 48), torch.nn.Linear(16, 16)
        self.how, self.heads = how, heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(self.norm1(x)).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.how == "normalised":
            query, key = torch.nn.functional.normalize(query, dim=-1), torch.nn.functional.normalize(key, dim=-1)
        attend = torch.nn.functional.scaled_dot_product_attention
        causal = self.how == "causal"
        if self.how == "positional":
            seen = attend(query, key, value, None, 0.0)
        else:
            seen = attend(query, key, value, is_causal=causal, scale=1.0 if self.how == "scaled" else None)
        return x + self.out(seen.transpose(1, 2).reshape(x.shape))


class Tower(torch.nn.Module):
    def __init__(self, how: str = "", heads: int = 2, shift: float = 0.0) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(3, 16, 8, 8)
        self.blocks = torch.nn.ModuleList(Attending(how, heads) for _ in range(2))
        self.config = {"depth": 2}
        self.register_buffer("shift", torch.tensor(shift), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).mT + self.shift
        for block in self.blocks:
            x = block(x)
        return x


def own(name: str, make, **more):
    facts = {"patch_size": 8, "window": 32, "d_model": 16, "n_prefix": 0, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    register_backbone(name, **facts, n_heads=2, **more)(make)
    return load_backbone(name, device="cpu")


def test_what_no_weight_says_is_part_of_what_it_is() -> None:
    """Heads, buffers that are not saved, where blocks lie, and what its function does besides."""
    made = [own("settled", Tower) for _ in range(2)]
    others = [
        own("settled", lambda: Tower(heads=4)),
        own("settled", lambda: Tower(shift=0.5)),
        own("settled", Tower, blocks="blocks"),
        own("settled", lambda: Tower().requires_grad_(False)),
    ]
    assert len({one.tower.weights_digest() for one in (*made, *others)}) == 1
    assert made[0].weights_digest == made[1].weights_digest
    assert len({one.weights_digest for one in (*made, *others)}) == 5


def test_attention_is_read_however_it_is_called() -> None:
    causal = attention_weights(own("causal", lambda: Tower("causal")), WINDOWS, 0)[1]
    assert causal.triu(1).abs().max() == 0
    torch.testing.assert_close(causal.sum(-1), torch.ones(causal.shape[:-1]))
    named, given = (attention_weights(own("given", partial(Tower, how)), WINDOWS, 0)[1] for how in ("", "positional"))
    assert torch.equal(named, given)


@pytest.mark.parametrize("adds", ["", ROTATION])
def test_maps_of_a_block_that_normalises_its_queries_are_refused(adds: str) -> None:
    """A rotation on top hides vectors, and no lengths."""
    plain, normalised = (own("asked", partial(Tower, how)) for how in ("", "normalised"))
    maps = attention_maps(plain, 0)
    require_as_computed(plain, 0, maps, adds, "block 1")
    normalised.tower.model.load_state_dict(plain.tower.model.state_dict())
    with pytest.raises(ContractError, match="the query map of block 1"):
        require_as_computed(normalised, 0, maps, adds, "block 1")


@pytest.mark.parametrize("how", ["causal", "scaled"])
def test_products_that_a_block_scales_or_masks_otherwise_are_no_queries_and_keys(how: str) -> None:
    """Their softmax would not be its weights, which can be had all the same."""
    backbone = own("otherwise", partial(Tower, how))
    with pytest.raises(ContractError, match="scales or masks the products"):
        attention_maps(backbone, 0)
    assert attention_weights(backbone, WINDOWS, 0)[1].isfinite().all()


def test_a_module_that_is_not_there_and_a_revision_are_named() -> None:
    with pytest.raises(BackboneError, match=r"nosuch\.mod cannot be found \(ModuleNotFoundError"):
        contents_of_backbone("nosuch.mod:x")
    with pytest.raises(InvalidParameterError, match="has no revision to choose, got 'main'"):
        load_backbone("mine", revision="main")
