"""Every family, from a checkpoint on disk: recognised, loaded right, read to the token, at any window size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import FAMILIES, IMAGE, LAYERS, PATCH, WIDTH, make_model, write_checkpoint
from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

from bindkit.backbones import check_backbone, families, load_backbone
from bindkit.backbones.attention import attention_weights

# Before 5.0 some families norm their last hidden state.
UNNORMED = LAYERS if int(transformers.__version__.split(".")[0]) >= 5 else LAYERS - 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    written: dict[str, Path] = {}

    def write(kind: str) -> str:
        if kind not in written:
            written[kind] = write_checkpoint(kind, tmp_path_factory.mktemp(kind))
        return str(written[kind])

    return write


def random_windows(n_windows: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n_windows, height, width, 3), generator=generator, dtype=torch.uint8)


def reported(kind: str, pixels: torch.Tensor, eager: bool = False) -> Any:
    """What transformers itself reports, from a model that never went through a file or through bindkit.

    With the plain attention, `eager`, it says its weights.
    """
    model = make_model(kind)
    if eager and kind.startswith("data2vec"):  # it takes another class then, and knows no switch
        plain = type(model)._from_config(model.config, attn_implementation="eager").eval()
        plain.load_state_dict(model.state_dict())
        model = plain
    elif eager:
        model.set_attn_implementation("eager")
    if hasattr(model, "vision_model"):
        model = model.vision_model
    elif any(part in kind for part in ("classifier", "distilled", "pretraining")):
        model = model.base_model
    arguments: dict[str, Any] = {"output_hidden_states": True, "output_attentions": eager}
    if kind.split("-", maxsplit=1)[0] not in ("dinov2", "dinov3", "beit", "data2vec", "siglip2"):
        arguments["interpolate_pos_encoding"] = True
    if kind.startswith("mae"):
        n_patches = pixels.shape[2] * pixels.shape[3] // PATCH**2
        model.config.mask_ratio = 0.0
        arguments["noise"] = torch.linspace(0.1, 0.9, n_patches).repeat(pixels.shape[0], 1)
    if kind.startswith("siglip2"):
        grid = torch.tensor([[side // PATCH for side in pixels.shape[2:]]] * len(pixels))
        # The processor's own cutting, one window at a time.
        pixels = torch.stack([torch.from_numpy(convert_image_to_patches(one.numpy(), PATCH)) for one in pixels])
        arguments |= {"spatial_shapes": grid, "pixel_attention_mask": torch.ones(pixels.shape[:2], dtype=torch.int32)}
    with torch.no_grad():
        return model(pixels, **arguments)


@pytest.mark.parametrize("kind", FAMILIES)
def test_checkpoint_is_recognised(kind: str, checkpoint: Callable[[str], str]) -> None:
    _, family, n_prefix, objective = FAMILIES[kind]
    backbone = load_backbone(checkpoint(kind), device="cpu")
    assert (backbone.family, backbone.layout.n_prefix, backbone.objective) == (family, n_prefix, objective)
    assert (backbone.n_layers, backbone.d_model) == (LAYERS, WIDTH)
    assert (backbone.geometry.window, backbone.geometry.short_side, backbone.geometry.patch_size) == (
        IMAGE,
        IMAGE,
        PATCH,
    )
    assert not backbone.tower.model.training
    assert {weight.dtype for weight in backbone.tower.model.parameters()} == {torch.float32}
    assert not any(weight.requires_grad for weight in backbone.tower.model.parameters())


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("window", [IMAGE, IMAGE + 2 * PATCH, IMAGE - PATCH])
def test_activations_equal_hidden_states(kind: str, window: int, checkpoint: Callable[[str], str]) -> None:
    backbone = load_backbone(checkpoint(kind), window=window, device="cpu")
    windows = random_windows(2, window, window)
    expected = reported(kind, backbone.preprocessing.normalise(windows)).hidden_states
    n_prefix = FAMILIES[kind][2]
    activations = backbone.activations(windows, range(LAYERS))
    assert sorted(activations) == list(range(LAYERS))
    torch.testing.assert_close(backbone.embedding(windows), expected[0][:, n_prefix:])
    for layer in range(UNNORMED):
        assert activations[layer].shape == (2, (window // PATCH) ** 2, WIDTH)
        torch.testing.assert_close(activations[layer], expected[layer + 1][:, n_prefix:])


@pytest.mark.parametrize("kind", FAMILIES)
def test_non_square_hooks_equal_hidden_states(kind: str, checkpoint: Callable[[str], str]) -> None:
    backbone = load_backbone(checkpoint(kind), device="cpu")
    pixels = backbone.preprocessing.normalise(random_windows(2, 2 * PATCH, 5 * PATCH))
    expected = reported(kind, pixels).hidden_states
    tokens = backbone.tower.activations(pixels, range(LAYERS))
    for layer in range(UNNORMED):
        torch.testing.assert_close(tokens[layer], expected[layer + 1])


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_perturbed_patch_moves_exactly_its_own_token(kind: str, checkpoint: Callable[[str], str]) -> None:
    """All patches of a non-square grid, one pixel each: far less than the contract check perturbs."""
    backbone = load_backbone(checkpoint(kind), device="cpu")
    rows, cols, n_prefix = 3, 5, FAMILIES[kind][2]
    window = random_windows(1, rows * PATCH, cols * PATCH)
    windows = window.repeat(rows * cols, 1, 1, 1)
    for patch in range(rows * cols):
        row, col = patch // cols, patch % cols
        pixel = windows[patch, row * PATCH + patch % PATCH, col * PATCH + PATCH - 1]
        pixel.copy_(255 - pixel)
    normalise = backbone.preprocessing.normalise
    distance = (
        (backbone.tower.embedding(normalise(windows)) - backbone.tower.embedding(normalise(window))).abs().amax(-1)
    )
    moved = [torch.nonzero(tokens > 1e-6).flatten().tolist() for tokens in distance]
    assert moved == [[n_prefix + patch] for patch in range(rows * cols)]


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("window", [IMAGE, IMAGE + PATCH])
def test_attention_weights_are_those_that_the_plain_attention_says(
    kind: str, window: int, checkpoint: Callable[[str], str]
) -> None:
    """Rotations and position biases are in them."""
    backbone = load_backbone(checkpoint(kind), window=window, device="cpu")
    windows, n_patches = random_windows(2, window, window), (window // PATCH) ** 2
    attentions = reported(kind, backbone.pixels(windows), eager=True).attentions
    for layer in range(LAYERS - 1):
        _, weights = attention_weights(backbone, windows, layer)
        expected = attentions[layer + 1][:, :, -n_patches:, -n_patches:]
        torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)


def test_a_checkpoint_whose_attention_is_the_plain_one_says_the_same_weights(tmp_path: Path) -> None:
    directory, windows = write_checkpoint("vit", tmp_path), random_windows(1, IMAGE, IMAGE)
    expected = attention_weights(load_backbone(str(directory), device="cpu"), windows, 0)[1]
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"attn_implementation": "eager"}))
    eager = load_backbone(str(directory), device="cpu")
    assert eager.tower.model.config._attn_implementation == "eager"
    torch.testing.assert_close(attention_weights(eager, windows, 0)[1], expected)
    assert eager.tower.model.config._attn_implementation == "eager"


@pytest.mark.parametrize("window", [IMAGE, IMAGE + PATCH])
def test_mae_equals_the_same_checkpoint_as_a_plain_vit(window: int, checkpoint: Callable[[str], str]) -> None:
    """ViTModel knows no masking, so equality proves that nothing is dropped, shuffled or shifted."""
    directory = checkpoint("mae-pretraining")
    backbone = load_backbone(directory, window=window, device="cpu")
    plain = transformers.ViTModel.from_pretrained(directory, add_pooling_layer=False).eval()
    windows = random_windows(3, window, window)
    with torch.no_grad():
        expected = plain(
            backbone.preprocessing.normalise(windows), interpolate_pos_encoding=True, output_hidden_states=True
        ).hidden_states
    activations = backbone.activations(windows, range(LAYERS))
    torch.testing.assert_close(backbone.embedding(windows), expected[0][:, 1:])
    for layer in range(UNNORMED):
        torch.testing.assert_close(activations[layer], expected[layer + 1][:, 1:])
    again = backbone.activations(windows, [LAYERS - 1])
    assert torch.equal(again[LAYERS - 1], activations[LAYERS - 1])


def test_a_window_alone_equals_the_window_in_a_batch(checkpoint: Callable[[str], str]) -> None:
    backbone = load_backbone(checkpoint("dinov2-registers"), device="cpu")
    windows = random_windows(4, IMAGE, IMAGE)
    together = backbone.activations(windows, [LAYERS - 1])[LAYERS - 1]
    alone = backbone.activations(windows[2:3], [LAYERS - 1])[LAYERS - 1]
    torch.testing.assert_close(alone[0], together[2])


@pytest.mark.parametrize("kind", ["vit", "chinese-clip", "dinov3"])
def test_report_says_what_was_checked(kind: str, checkpoint: Callable[[str], str]) -> None:
    report = check_backbone(checkpoint(kind), device="cpu", window=2 * PATCH)
    text = str(report)
    assert "3 x 5 patches" in text
    assert "2 x 2 patches" in text
    assert f"family        {FAMILIES[kind][1]}" in text
    assert f"prefix tokens {FAMILIES[kind][2]}" in text
    assert report.backbone.tower.n_parameters == sum(
        weight.numel() for weight in load_backbone(checkpoint(kind)).tower.model.parameters()
    )


def test_half_precision_checkpoints_are_read_as_float32(tmp_path: Path) -> None:
    model = make_model("vit").half()
    write_checkpoint("vit", tmp_path)
    model.save_pretrained(tmp_path)
    windows = random_windows(1, IMAGE, IMAGE)
    activations = load_backbone(str(tmp_path), device="cpu").activations(windows, [0])[0]
    assert activations.dtype == torch.float32
    assert activations.isfinite().all()


def test_readmes_table_is_the_table(root: Path) -> None:
    section = (root / "bindkit/README.md").read_text(encoding="utf-8").split("## Families")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert rows == [f"| {' | '.join(family.table_row())} |" for family in families.FAMILIES]


def test_every_row_of_transformers_has_its_tiny_checkpoints() -> None:
    """What the table says of prefix tokens, windows, queries and keys is held to these in the tests of this folder."""
    rows = {family.name: family for family in families.FAMILIES if not family.is_timms}
    assert rows.keys() == {family for _, family, *_ in FAMILIES.values()} - {"vit_msn", "chinese_clip"}
    assert all(family.examples and not family.fixed_window for family in rows.values())
    for kind, (_, name, n_prefix, _) in FAMILIES.items():
        if name in rows:
            registers = {"dinov2-registers": 4, "dinov3": 2, "dinov3-gated": 2}.get(kind, 0)
            assert rows[name].registers is bool(registers)
            assert rows[name].n_prefix == n_prefix - registers
