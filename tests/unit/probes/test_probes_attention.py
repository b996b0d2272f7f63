"""The attention baseline beside PyTorch's own attention, whose weights are the softmax of its logits."""

import math

import pytest
import torch

from bindkit.errors import ProbeError
from bindkit.probes import AttentionMaps, SelfAttention, load_probe, make_probe, save_probe

D_MODEL, HEADS = 12, 3


@pytest.fixture
def block():
    """A layer norm and PyTorch's multi-head attention, with no weight at its start."""
    generator = torch.Generator().manual_seed(0)
    norm = torch.nn.LayerNorm(D_MODEL, eps=0.01)
    attention = torch.nn.MultiheadAttention(D_MODEL, HEADS, batch_first=True)
    both = torch.nn.ModuleList([norm, attention]).double().requires_grad_(False)
    for weight in both.parameters():
        weight.copy_(torch.randn(weight.shape, dtype=torch.float64, generator=generator))
    return norm, attention


@pytest.fixture
def maps(block):
    norm, attention = block
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    maps = [part for pair in zip(weights, biases, strict=True) for part in pair]
    return AttentionMaps(norm.weight, norm.bias, norm.eps, *maps, HEADS)


def probe_of(maps, head=None):
    probe = SelfAttention(D_MODEL, n_heads=maps.n_heads, norm_epsilon=maps.norm_epsilon, head=head).double()
    assert probe.take(maps) is probe
    return probe


@pytest.fixture
def patches():
    return 3 * torch.randn(2, 5, D_MODEL, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 1


@pytest.mark.parametrize("head", range(HEADS))
def test_the_softmax_of_one_head_is_what_pytorchs_attention_gives(head, block, maps, patches):
    norm, attention = block
    normed = norm(patches)
    _, weights = attention(normed, normed, normed, average_attn_weights=False)
    logits = probe_of(maps, head)(patches)
    assert torch.allclose(logits.softmax(-1), weights[:, head], atol=1e-9)
    assert not torch.allclose(logits.mT.softmax(-1), weights[:, head], atol=0.1), "row i is the patch that looks"


def test_all_heads_together_are_their_sum_in_the_scale_of_the_whole_width(maps, patches):
    heads = torch.stack([probe_of(maps, head)(patches) for head in range(HEADS)])
    assert torch.allclose(probe_of(maps)(patches), heads.sum(0) / math.sqrt(HEADS))
    assert not torch.allclose(heads[0], heads[1], atol=0.1)


def test_the_norm_takes_out_a_patchs_mean_and_scale(maps, patches):
    probe = probe_of(maps)
    probe.options["norm_epsilon"] = 0.0
    assert torch.allclose(probe(patches), probe(7 * patches + 2))


def test_only_the_offset_is_learned_and_the_blocks_weights_stay_its_own(maps, patches):
    probe = probe_of(maps)
    assert [name for name, _ in probe.named_parameters()] == ["bias"]
    before = probe(patches)
    with torch.no_grad():
        probe.bias.add_(2)
    assert torch.allclose(probe(patches), before + 2)
    probe.query_weight.zero_()
    assert maps.query_weight.abs().min() > 0


@pytest.mark.parametrize("head", [None, 2])
def test_the_maps_and_the_head_come_back_from_disk(head, maps, patches, tmp_path):
    probe = probe_of(maps, head).float()
    loaded = load_probe(save_probe(probe, tmp_path), d_model=D_MODEL)
    assert loaded.options == {"n_heads": HEADS, "norm_epsilon": 0.01, "head": head}
    assert torch.equal(loaded(patches.float()), probe(patches.float()))


def test_a_head_that_is_not_there_is_refused():
    assert make_probe("self_attention@2", D_MODEL, n_heads=HEADS).options["head"] == 2
    with pytest.raises(ProbeError, match="no attention head 3; this backbone has heads 0 to 2"):
        make_probe("self_attention@3", D_MODEL, n_heads=HEADS)
    with pytest.raises(ProbeError, match="no attention head -1"):
        SelfAttention(D_MODEL, n_heads=HEADS, head=-1)
