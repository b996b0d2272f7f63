"""Hooks: what they keep, when the forward pass stops, and that they never stay behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bindkit.backbones.tower import EMBEDDING, captured, find_blocks
from bindkit.errors import ContractError


class AddOne(nn.Module):
    """Adds one, and counts how often it ran."""

    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        self.runs, self.in_place = 0, in_place

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return hidden_states.add_(1) if self.in_place else hidden_states + 1


class Chain(nn.Module):
    def __init__(self, *blocks: nn.Module, by_keyword: bool = False) -> None:
        super().__init__()
        self.few, self.layer = nn.ModuleList([nn.Identity()]), nn.ModuleList(blocks)
        self.by_keyword = by_keyword

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for block in self.layer:
            hidden_states = block(hidden_states=hidden_states) if self.by_keyword else block(hidden_states)
        return hidden_states


def hooks_on(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("by_keyword", [False, True])
def test_keeps_block_outputs_and_the_input_of_block_0(by_keyword: bool) -> None:
    model = Chain(AddOne(), AddOne(), AddOne(), by_keyword=by_keyword)
    with captured(model.layer, layers=(EMBEDDING, 0, 2)) as kept:
        model(torch.zeros(1, 2, 3))
    assert {layer: tokens.unique().tolist() for layer, tokens in kept.items()} == {EMBEDDING: [0], 0: [1], 2: [3]}


@pytest.mark.parametrize(
    ("layers", "runs"), [((0,), [1, 0, 0]), ((1, 0), [1, 1, 0]), ((2,), [1, 1, 1]), ((), [0, 0, 0])]
)
def test_stops_behind_the_deepest_block_asked_for(layers: tuple[int, ...], runs: list[int]) -> None:
    model = Chain(AddOne(), AddOne(), AddOne())
    with captured(model.layer, (EMBEDDING, *layers)):
        model(torch.zeros(1, 2, 3))
    assert [block.runs for block in model.layer] == runs
    assert hooks_on(model) == 0


def test_blocks_that_work_in_place_do_not_change_what_was_kept() -> None:
    model = Chain(*[AddOne(in_place=True) for _ in range(3)])
    with captured(model.layer, layers=(EMBEDDING, 0, 1, 2)) as kept:
        model(torch.zeros(1, 2, 3))
    assert [kept[layer].unique().tolist() for layer in (EMBEDDING, 0, 1, 2)] == [[0], [1], [2], [3]]


def test_what_is_kept_can_be_trained_on() -> None:
    model = Chain(AddOne())
    with torch.inference_mode(), captured(model.layer, layers=(EMBEDDING, 0)) as kept:
        model(torch.zeros(1, 2, 3))
    probe = nn.Linear(3, 1)
    probe(kept[0]).sum().backward()
    assert probe.weight.grad is not None
    assert not kept[0].is_inference()


class Breaks(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("the block broke")


def test_hooks_are_removed_and_the_error_passes_when_a_block_breaks() -> None:
    model = Chain(AddOne(), Breaks())
    with pytest.raises(ZeroDivisionError), captured(model.layer, layers=(EMBEDDING, 0, 1)):
        assert hooks_on(model) == 3
        model(torch.zeros(1, 2, 3))
    assert hooks_on(model) == 0


def test_hooks_are_removed_when_they_cannot_all_be_set() -> None:
    model = Chain(AddOne())
    with pytest.raises(IndexError), captured(model.layer, layers=(EMBEDDING, 0, 7)):
        pass
    assert hooks_on(model) == 0


class Flat(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states.flatten(1)


class Words(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"hidden_states": hidden_states}


@pytest.mark.parametrize(("block", "got"), [(Flat(), r"a tensor of shape \(1, 6\)"), (Words(), "got dict")])
def test_outputs_that_are_no_tokens_are_refused(block: nn.Module, got: str) -> None:
    model = Chain(block)
    with pytest.raises(ContractError, match=got), captured(model.layer, layers=(0,)):
        model(torch.zeros(1, 2, 3))
    assert hooks_on(model) == 0


def test_finds_the_longest_list_of_like_blocks() -> None:
    model = Chain(AddOne(), AddOne())
    model.mixed = nn.ModuleList([nn.Identity(), AddOne(), AddOne(), AddOne()])
    name, blocks = find_blocks(model)
    assert name == "layer"
    assert blocks is model.layer


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ContractError, match="no list of like transformer blocks"):
        find_blocks(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))
