"""Query and key maps of the next layer: exactly what the model itself computes there, in every family."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_models import FAMILIES, LAYERS, WIDTH, write_checkpoint

import bindkit as bk
from bindkit.arguments import is_control
from bindkit.backbones import attention_maps
from bindkit.errors import ContractError, LayerError, ProbeError
from bindkit.probes import SelfAttention, load_probe, make_probe
from bindkit.probes.protocols import STRICT


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("layer", range(LAYERS - 1))
def test_the_maps_give_what_the_next_block_computes(kind, layer, tmp_path):
    backbone = bk.load_backbone(str(write_checkpoint(kind, tmp_path / "model")), device="cpu")
    side, n_patches = backbone.geometry.window, backbone.layout.grid.n_patches
    windows = torch.randint(0, 256, (2, side, side, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    block = backbone.tower.blocks[layer + 1]
    given = {}
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: given.__setitem__(name, out))
        for name, module in block.named_modules()
        if name.rpartition(".")[2] in ("q_proj", "query", "k_proj", "key") and isinstance(module, torch.nn.Linear)
    ]
    found = backbone.activations(windows, [layer, layer + 1])[layer]
    for hook in hooks:
        hook.remove()
    maps = attention_maps(backbone, layer)
    assert len(given) == 2
    assert maps.n_heads == 2
    normed = torch.nn.functional.layer_norm(found, (WIDTH,), maps.norm_weight, maps.norm_bias, maps.norm_epsilon)
    for name, out in given.items():
        query = name.rpartition(".")[2] in ("q_proj", "query")
        weight, bias = (maps.query_weight, maps.query_bias) if query else (maps.key_weight, maps.key_bias)
        assert torch.allclose(normed @ weight.T + bias, out[:, -n_patches:], atol=1e-5), name
    probe = SelfAttention(WIDTH, n_heads=maps.n_heads, norm_epsilon=maps.norm_epsilon).take(maps)
    queries, keys = (
        normed @ w.T + b for w, b in ((maps.query_weight, maps.query_bias), (maps.key_weight, maps.key_bias))
    )
    assert torch.allclose(probe(found), queries @ keys.mT / math.sqrt(WIDTH), atol=1e-5)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_bias_that_a_family_does_not_have_is_zero(kind, tmp_path):
    maps = attention_maps(bk.load_backbone(str(write_checkpoint(kind, tmp_path / "model")), device="cpu"), 0)
    without = kind.startswith(("dinov3", "beit", "data2vec")) and kind != "dinov3-gated"
    assert bool(maps.key_bias.any()) is not without
    assert maps.query_bias.any()
    assert maps.norm_bias.any()


def test_the_last_layer_has_no_next_one(tmp_path):
    backbone = bk.load_backbone(str(write_checkpoint("vit", tmp_path / "model")), device="cpu")
    with pytest.raises(LayerError, match=rf"layer {LAYERS - 1} is the last"):
        attention_maps(backbone, LAYERS - 1)
    with pytest.raises(LayerError, match="has layers 0 to"):
        attention_maps(backbone, LAYERS)


def test_a_block_without_such_maps_is_named(tmp_path):
    backbone = bk.load_backbone(str(write_checkpoint("vit", tmp_path / "model")), device="cpu")
    backbone.tower.blocks[1] = torch.nn.Sequential(torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, WIDTH))
    with pytest.raises(ContractError, match=r"block 1 .* called q_proj or query, it has 0"):
        attention_maps(backbone, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # The norm behind the attention is still a LayerNorm: it must not be taken instead.
        (lambda block: setattr(block, "norm1", torch.nn.RMSNorm(WIDTH)), r"called norm1 or .*, got RMSNorm"),
        (lambda block: delattr(block, "norm1"), r"called norm1 or .*, got none"),
        (lambda block: setattr(block.attention, "k_proj", torch.nn.Linear(WIDTH, 8)), "32 dimensions to 8 for its"),
    ],
)
def test_a_block_that_cannot_be_read_exactly_is_refused(change, message, tmp_path):
    backbone = bk.load_backbone(str(write_checkpoint("dinov2", tmp_path / "model")), device="cpu")
    attention_maps(backbone, 0)
    change(backbone.tower.blocks[1])
    with pytest.raises(ContractError, match=f"block 1 of .*{message}"):
        attention_maps(backbone, 0)


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    place = tmp_path_factory.mktemp("attention")
    backbone = bk.load_backbone("random-init:bindkit/scenes-mae")
    scenes = bk.open_scenes("synthetic:n=24,seed=0,size=80x80")
    sources = [backbone, *bk.load_controls([backbone], "position")]
    return [bk.cache_activations(source, scenes, place, layers="all") for source in sources]


def test_the_baseline_finds_its_maps_by_itself_and_is_skipped_where_there_are_none(caches, tmp_path):
    brief = replace(STRICT, epochs=2, min_steps=4)
    table = bk.sweep(
        caches, [4, 5], ["self_attention", "self_attention@3", "cosine_similarity"], protocol=brief, root=tmp_path
    )
    asked = list(zip(table["probe"], table["layer"].fillna(-1), strict=True))
    assert asked == [
        *(("self_attention", 4), ("self_attention@3", 4), ("cosine_similarity", 4), ("cosine_similarity", 5)),
        ("cosine_similarity", -1),
    ]
    probe = load_probe(next(tmp_path.rglob("self_attention@3*/probe.json")).parent)
    backbone = bk.load_backbone("random-init:bindkit/scenes-mae")
    maps = attention_maps(backbone, 4)
    assert torch.equal(probe.query_weight, maps.query_weight)
    assert probe.options["head"] == 3
    x = caches[0].activations("test", 4).take(range(6))
    normed = torch.nn.functional.layer_norm(x, (112,), maps.norm_weight, maps.norm_bias, maps.norm_epsilon)
    width = 112 // maps.n_heads
    rows = slice(3 * width, 4 * width)
    queries = normed @ maps.query_weight[rows].T + maps.query_bias[rows]
    keys = normed @ maps.key_weight[rows].T + maps.key_bias[rows]
    assert torch.allclose(probe(x), queries @ keys.T / math.sqrt(width) + probe.bias, atol=1e-4)
    assert bk.affinity(backbone, probe, next(iter(bk.open_scenes("synthetic:n=1,seed=3,size=80x80")))).scores.shape


def test_controls_and_heads_that_are_not_there_are_named(caches):
    control = next(cache for cache in caches if is_control(cache.backbone["objective"]))
    with pytest.raises(ProbeError, match="control without a model"):
        bk.fit_probe(control, 0, "self_attention")
    with pytest.raises(ProbeError, match=r"no attention head 99; this backbone has heads 0 to"):
        bk.fit_probe(caches[0], 1, "self_attention@99")
    with pytest.raises(LayerError, match="layer 5 is the last"):
        bk.fit_probe(caches[0], 5, "self_attention")
    assert make_probe("self_attention@1", 8, n_heads=2).options["head"] == 1
