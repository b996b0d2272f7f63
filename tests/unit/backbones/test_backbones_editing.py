"""Editing a block's output, and the model's own attention weights: exact in every family, and gone afterwards."""

import pytest
import torch
from tiny_models import FAMILIES, LAYERS, WIDTH, write_checkpoint

import bindkit as bk
from bindkit.backbones import attention_maps, families
from bindkit.backbones.attention import attention_weights
from bindkit.errors import ContractError, InvalidParameterError, LayerError

ALL = list(range(LAYERS))
PLACED = {family.name for family in families.FAMILIES if family.adds}
"""Families that turn or bias queries and keys by position."""


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("editing") / "model"
    return bk.load_backbone(str(write_checkpoint(request.param, place)), device="cpu")


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return bk.load_backbone(str(write_checkpoint("vit", tmp_path_factory.mktemp("vit") / "model")), device="cpu")


def windows_of(backbone, n=2):
    side, generator = backbone.geometry.window, torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, side, side, 3), generator=generator, dtype=torch.uint8)


def tokens_of(backbone, windows):
    """All tokens of all layers, prefix tokens included."""
    return backbone.tower.activations(backbone.pixels(windows), ALL)


def hooks_of(backbone):
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in backbone.tower.model.modules() for kind in kinds)


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[layer], second[layer]) for layer in first)


# --- edits ---------------------------------------------------------------------------------------------------


def test_none_leaves_every_layer_as_it_is_and_shows_the_patches(backbone):
    windows = windows_of(backbone)
    clean, shown = tokens_of(backbone, windows), []
    for layer in ALL:
        with backbone.edited(layer, shown.append):
            assert equal(tokens_of(backbone, windows), clean), layer
    for layer, patches in zip(ALL, shown, strict=True):
        assert patches.dtype == torch.float32
        assert torch.equal(patches, clean[layer][:, backbone.layout.n_prefix :])


@pytest.mark.parametrize("layer", ALL)
def test_a_changed_patch_is_changed_there_and_nowhere_else_and_the_pass_goes_on_with_it(backbone, layer):
    windows, n_prefix, patch = windows_of(backbone), backbone.layout.n_prefix, 2
    clean = tokens_of(backbone, windows)

    def change(patches):
        changed = patches.clone()
        changed[1, patch, ::2] += 1.5  # not all channels alike: layer norms would take that out again
        return changed

    with backbone.edited(layer, change):
        changed, patches = tokens_of(backbone, windows), backbone.activations(windows, ALL)
    for before in range(layer):
        assert torch.equal(changed[before], clean[before])
    expected = clean[layer].clone()
    expected[1, n_prefix + patch, ::2] += 1.5
    assert torch.equal(changed[layer], expected)
    for later in range(layer + 1, LAYERS):
        assert torch.equal(changed[later][0], clean[later][0]), "the other window"
        moved = (changed[later][1] != clean[later][1]).any(-1)
        assert moved.all(), "attention carries it to every token"
    assert all(torch.equal(patches[k], changed[k][:, n_prefix:]) for k in ALL)
    assert hooks_of(backbone) == 0
    assert equal(tokens_of(backbone, windows), clean)


def test_the_pass_goes_on_with_what_was_put_in_as_the_block_itself_computes(backbone):
    """The edited output of block 0 is what block 1 is given, by its own inputs."""
    windows, given = windows_of(backbone), []
    block = backbone.tower.blocks[1]

    def look(_block, args, kwargs):
        given.append((args[0] if args else kwargs["hidden_states"]).clone())

    hook = block.register_forward_pre_hook(look, with_kwargs=True)
    with backbone.edited(0, lambda patches: -0.5 * patches):
        tokens_of(backbone, windows)
    hook.remove()
    expected = tokens_of(backbone, windows)[0]
    expected[:, backbone.layout.n_prefix :] *= -0.5
    assert torch.equal(given[0], expected)


def test_two_edits_at_once_are_both_done(backbone):
    windows = windows_of(backbone)
    with backbone.edited(0, lambda patches: 2 * patches), backbone.edited(0, lambda patches: patches + 1):
        found = backbone.activations(windows, [0])[0]
    assert torch.equal(found, 2 * backbone.activations(windows, [0])[0] + 1)
    assert hooks_of(backbone) == 0


@pytest.mark.parametrize("layer", [0, LAYERS - 1])
def test_the_hook_goes_when_the_change_raises(backbone, layer):
    windows = windows_of(backbone)
    clean = tokens_of(backbone, windows)
    assert hooks_of(backbone) == 0

    def change(_patches):
        raise RuntimeError("of one's own")

    with pytest.raises(RuntimeError, match="of one's own"), backbone.edited(layer, change):
        assert hooks_of(backbone) == 1
        backbone.activations(windows, ALL)
    assert hooks_of(backbone) == 0
    assert equal(tokens_of(backbone, windows), clean)


@pytest.mark.parametrize(
    "change",
    [lambda patches: patches[:, 1:], lambda patches: patches[..., :-1], lambda patches: patches[0]],
    ids=["a patch too few", "a channel too few", "one window"],
)
def test_another_shape_is_named(backbone, change):
    windows = windows_of(backbone)
    n_patches = backbone.layout.grid.n_patches
    message = rf"an edit of layer 1 gives patches of shape \[2, {n_patches}, {WIDTH}\], got \["
    with pytest.raises(InvalidParameterError, match=message), backbone.edited(1, change):
        backbone.activations(windows, [LAYERS - 1])
    assert hooks_of(backbone) == 0


@pytest.mark.parametrize("layer", [LAYERS, -1])
def test_a_layer_that_there_is_not_is_refused_at_once(vit, layer):
    with pytest.raises(LayerError):
        vit.edited(layer, lambda patches: patches)
    assert hooks_of(vit) == 0


# --- the model's own attention weights ---------------------------------------------------------------------------


def by_projections(backbone, windows, layer):
    """Softmax over all tokens of queries times keys, as the textbook has it; from patches to patches."""
    maps, tokens = attention_maps(backbone, layer), tokens_of(backbone, windows)[layer]
    width, n_patches = WIDTH // maps.n_heads, backbone.layout.grid.n_patches
    queries, keys = maps.read(tokens, "query"), maps.read(tokens, "key")
    found = []
    for head in range(maps.n_heads):
        own = slice(head * width, (head + 1) * width)
        weights = (queries[..., own] @ keys[..., own].mT / width**0.5).softmax(-1)
        found.append(weights[:, -n_patches:, -n_patches:])
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("layer", ALL[:-1])
def test_weights_are_the_softmax_over_all_tokens(backbone, layer):
    windows = windows_of(backbone)
    clean = backbone.activations(windows, ALL)
    activations, weights = attention_weights(backbone, windows, layer)
    n_patches = backbone.layout.grid.n_patches
    assert weights.shape == (2, 2, n_patches, n_patches)
    torch.testing.assert_close(activations, clean[layer], rtol=1e-4, atol=1e-5)
    sums = weights.sum(-1)
    if backbone.layout.n_prefix:
        assert (sums < 1).all() and (sums > 0).all()
    else:
        torch.testing.assert_close(sums, torch.ones_like(sums))
    expected = by_projections(backbone, windows, layer)
    if backbone.family in PLACED:
        assert (weights - expected).abs().max() > 0.01, "why the model itself is asked"
    else:
        torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(weights, expected.mT, rtol=1e-2, atol=1e-3), "row i is the patch that looks"


def test_looking_leaves_no_trace(backbone):
    windows = windows_of(backbone)
    clean = tokens_of(backbone, windows)
    model = backbone.tower.model
    configs = [module.config for module in model.modules() if hasattr(module, "config")]
    before = [config._attn_implementation for config in configs]
    assert set(before) != {"eager"}, "else nothing is asked here"
    attention_weights(backbone, windows, 0)
    assert [config._attn_implementation for config in configs] == before
    assert hooks_of(backbone) == 0
    assert equal(tokens_of(backbone, windows), clean)


def test_the_last_layer_is_attended_to_by_nothing(backbone):
    with pytest.raises(LayerError, match=rf"layer {LAYERS - 1} is the last of .*: no further layer attends"):
        attention_weights(backbone, windows_of(backbone), LAYERS - 1)
    assert hooks_of(backbone) == 0


def test_weights_under_an_edit_are_of_the_edited_patches(backbone):
    windows = windows_of(backbone)
    with backbone.edited(0, torch.zeros_like):
        activations, weights = attention_weights(backbone, windows, 0)
    assert not activations.any()
    if backbone.family not in PLACED:
        # All patches are alike, so that each gets as much as another.
        torch.testing.assert_close(weights, weights[..., :1].expand_as(weights))


def test_a_block_that_does_not_say_its_weights_is_named_and_left_as_it_was(tmp_path):
    backbone = bk.load_backbone(str(write_checkpoint("vit", tmp_path / "model")), device="cpu")
    config = backbone.tower.model.config
    before = config._attn_implementation
    backbone.tower.blocks[1].attention.forward = lambda hidden_states, *_, **__: (hidden_states, None)
    with pytest.raises(ContractError, match=r"block 1 of .* does not say its attention weights"):
        attention_weights(backbone, windows_of(backbone), 0)
    assert config._attn_implementation == before
    assert hooks_of(backbone) == 0
