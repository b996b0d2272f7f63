"""Models that are not what they seem are refused, and the message says what was seen."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_models import NOT_A_VIT, PATCH, write_checkpoint
from torch import nn

from bindkit.backbones import load_backbone
from bindkit.backbones.families import EncoderShape
from bindkit.backbones.preprocessing import IMAGENET
from bindkit.backbones.tower import VisionTower, check_contract
from bindkit.errors import BackboneError, ContractError

SHAPE = EncoderShape(family="planted", patch_size=4, image_size=16, d_model=8, n_layers=2, n_prefix=None)


class Block(nn.Module):
    def __init__(self, returns_tuple: bool = False, dropout: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.returns_tuple, self.dropout = returns_tuple, dropout

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, None]:
        output = hidden_states + self.linear(hidden_states) + hidden_states.mean(dim=1, keepdim=True)
        if self.dropout:
            output = nn.functional.dropout(output, training=True)
        return (output, None) if self.returns_tuple else output


class PlantedViT(nn.Module):
    """A minimal right ViT with a CLS token; subclasses plant one fault each."""

    kernel, padding = 4, 0

    def __init__(self, **block: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace()
        self.stem = nn.Conv2d(3, 8, self.kernel, stride=4, padding=self.padding)
        self.layer = nn.ModuleList([Block(**block) for _ in range(2)])

    def order(self, grid: torch.Tensor) -> torch.Tensor:
        """[window, d_model, row, col] to [window, patch, d_model]."""
        return grid.flatten(2).transpose(1, 2)

    def sequence(self, patches: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.ones_like(patches[:, :1]), patches], dim=1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        hidden_states = self.sequence(self.order(self.stem(pixel_values)))
        for block in self.layer:
            output = block(hidden_states)
            hidden_states = output[0] if isinstance(output, tuple) else output
        return hidden_states


class Shuffles(PlantedViT):
    def order(self, grid: torch.Tensor) -> torch.Tensor:
        patches = super().order(grid)
        return torch.stack([window[torch.randperm(len(window))] for window in patches])


class ShufflesTheSameWay(PlantedViT):
    def order(self, grid: torch.Tensor) -> torch.Tensor:
        return super().order(grid).roll(1, dims=1)


class SwapsRowsAndCols(PlantedViT):
    def order(self, grid: torch.Tensor) -> torch.Tensor:
        return super().order(grid.transpose(2, 3))


class Mixes(PlantedViT):
    def order(self, grid: torch.Tensor) -> torch.Tensor:
        patches = super().order(grid)
        return patches + 0.05 * patches.mean(dim=1, keepdim=True)


class PrefixLooksAtPatches(PlantedViT):
    def sequence(self, patches: torch.Tensor) -> torch.Tensor:
        return torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1)


class OverlappingStem(PlantedViT):
    kernel, padding = 6, 1


class PrefixAtTheEnd(PlantedViT):
    def sequence(self, patches: torch.Tensor) -> torch.Tensor:
        return super().sequence(patches).roll(-1, dims=1)


class BlindToTheLastPatch(PlantedViT):
    def order(self, grid: torch.Tensor) -> torch.Tensor:
        patches = super().order(grid).clone()
        patches[:, -1] = 0
        return patches


class DropsPatches(PlantedViT):
    def sequence(self, patches: torch.Tensor) -> torch.Tensor:
        return super().sequence(patches)[:, : patches.shape[1] // 2]


class Explodes(PlantedViT):
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return super().forward(pixel_values[:, :, None])


class TakesSquaresOnly(PlantedViT):
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if pixel_values.shape[2] != pixel_values.shape[3]:
            raise ValueError("squares only")
        return super().forward(pixel_values)


class SharesItsBlock(PlantedViT):
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        hidden_states = self.sequence(self.order(self.stem(pixel_values)))
        return self.layer[0](self.layer[0](hidden_states))


class SkipsItsLastBlock(PlantedViT):
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.layer[0](self.sequence(self.order(self.stem(pixel_values))))


def check(model: nn.Module, shape: EncoderShape = SHAPE) -> tuple[int, tuple[str, ...]]:
    return check_contract(VisionTower.of(shape, model.eval()), IMAGENET.normalise, window=16)


@pytest.mark.parametrize("returns_tuple", [False, True])
def test_a_right_model_passes(returns_tuple: bool) -> None:
    n_prefix, checks = check(PlantedViT(returns_tuple=returns_tuple))
    assert n_prefix == 1
    assert len(checks) == 3


@pytest.mark.parametrize(
    ("model", "seen"),
    [
        (Shuffles, "shuffled"),
        (ShufflesTheSameWay, "not in row-major patch order"),
        (SwapsRowsAndCols, "not in row-major patch order"),
        (Mixes, "overlap, mix or are shuffled"),
        (PrefixLooksAtPatches, "moved tokens 0, 1 at the embedding"),
        (OverlappingStem, "overlap, mix or are shuffled"),
        (PrefixAtTheEnd, "not in row-major patch order"),
        (BlindToTheLastPatch, "does not see it"),
        (DropsPatches, "tokens for 3 x 5 patches"),
        (Explodes, "does not run on windows of 16 x 16 px"),
        (SharesItsBlock, "ran twice"),
        (SkipsItsLastBlock, "block 1 did not run"),
    ],
)
def test_a_planted_fault_is_refused(model: type[PlantedViT], seen: str) -> None:
    with pytest.raises(ContractError, match=seen):
        check(model())


def test_a_model_that_changes_its_answer_is_refused() -> None:
    with pytest.raises(ContractError, match="not deterministic"):
        check(PlantedViT(dropout=True))


@pytest.mark.parametrize("where", ["stem", "layer.1.linear"])
def test_weights_that_are_not_finite_are_refused(where: str) -> None:
    model = PlantedViT()
    model.get_submodule(where).bias.data[0] = float("nan")
    with pytest.raises(ContractError, match="NaN or infinite"):
        check(model)


def test_rows_and_cols_that_are_swapped_show_on_squares_alone() -> None:
    class Both(TakesSquaresOnly, SwapsRowsAndCols):
        pass

    with pytest.raises(ContractError, match="4 x 4"):
        check(Both())


def test_a_model_for_squares_alone_passes_and_the_report_says_so() -> None:
    _, checks = check(TakesSquaresOnly())
    assert len(checks) == 2
    assert not any("3 x 5" in line for line in checks)


def test_a_known_family_with_other_prefix_tokens_is_refused() -> None:
    with pytest.raises(ContractError, match="behind 2 prefix tokens"):
        check(PlantedViT(), dataclasses.replace(SHAPE, n_prefix=2))


def test_a_width_other_than_the_configs_is_refused() -> None:
    with pytest.raises(ContractError, match="8 channels, expected 16"):
        check(PlantedViT(), dataclasses.replace(SHAPE, d_model=16))


def test_another_number_of_blocks_than_the_configs_is_refused() -> None:
    with pytest.raises(ContractError, match="should have 3 blocks"):
        check(PlantedViT(), dataclasses.replace(SHAPE, n_layers=3))


def test_mae_as_it_comes_out_of_the_box_is_refused(tmp_path: Path) -> None:
    """The reference implementation's fault: default masking, tokens in shuffled order."""
    tower = load_backbone(str(write_checkpoint("mae", tmp_path)), device="cpu").tower
    shuffled = dataclasses.replace(tower, masks_patches=False)
    with pytest.raises(ContractError, match="are shuffled"):
        check_contract(shuffled, IMAGENET.normalise, window=4 * PATCH)
    tower.model.config.mask_ratio = 0.75
    with pytest.raises(ContractError, match="tokens for 3 x 5 patches"):
        check_contract(tower, IMAGENET.normalise, window=4 * PATCH)


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("yolos", ContractError, "row-major"),
        ("swin", ContractError, "no plain ViT"),
        ("resnet", BackboneError, "no patch_size.*choose a vision transformer"),
        ("bert", BackboneError, "no patch_size.*choose a vision transformer"),
    ],
)
def test_real_architectures_that_are_no_vits_are_refused(
    kind: str, error: type[BackboneError], message: str, tmp_path: Path
) -> None:
    assert kind in NOT_A_VIT
    with pytest.raises(error, match=message):
        load_backbone(str(write_checkpoint(kind, tmp_path)), device="cpu")
