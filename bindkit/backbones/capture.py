"""Read activations from a model's blocks with hooks of our own.

>>> import torch
>>> from torch import nn
>>> blocks = nn.ModuleList([nn.Identity(), nn.Linear(4, 4), nn.Linear(4, 4)])
>>> with BlockCapture(blocks, layers=(0,), embedding=True) as capture:
...     blocks[1](blocks[0](torch.ones(2, 3, 4)))  # stops behind block 0
>>> capture.activations[0].shape, torch.equal(capture.activations[0], capture.embedding)
(torch.Size([2, 3, 4]), True)

Hooks see what each block itself puts out. ``output_hidden_states`` is no substitute: which of its entries are
normed differs between families and between versions of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from bindkit.errors import ContractError


class _DeepestReached(BaseException):
    """Ends the forward pass behind the deepest block asked for; never leaves `BlockCapture`."""


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Find a model's transformer blocks: its longest list of modules that are all of one class.

    Returns
    -------
    (name, blocks)
        Where the list lies in the model, such as ``"encoder.layer"``, and the list.

    Raises
    ------
    ContractError
        If the model has no such list.
    """
    found: tuple[str, nn.ModuleList] | None = None
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len({type(block) for block in module}) != 1:
            continue
        if found is None or len(module) > len(found[1]):
            found = (name, module)
    if found is None:
        raise ContractError(
            f"{type(model).__name__} has no list of like transformer blocks, so it is no ViT that bindkit can read; "
            "choose a plain ViT checkpoint"
        )
    return found


class BlockCapture:
    """Hooks on some blocks, removed on exit whatever happens; the forward pass stops behind the deepest block.

    Parameters
    ----------
    blocks : nn.ModuleList
        The model's transformer blocks, in order.
    layers : sequence of int
        Blocks whose outputs are kept, as they are before any final norm.
    embedding : bool
        Whether to keep the input of block 0 as well.

    Attributes
    ----------
    activations : dict of int to Tensor
        All tokens at each layer, float32 copies of shape ``[window, token, d_model]``.
    embedding : Tensor or None
        The same for the input of block 0.
    """

    def __init__(self, blocks: nn.ModuleList, layers: Sequence[int], embedding: bool = False) -> None:
        self.blocks = blocks
        self.activations: dict[int, Tensor] = {}
        self.embedding: Tensor | None = None
        self._layers = tuple(layers)
        self._wants_embedding = embedding
        self._handles: list[Any] = []

    def __enter__(self) -> BlockCapture:
        try:
            if self._wants_embedding:
                self._handles.append(self.blocks[0].register_forward_pre_hook(self._keep_input, with_kwargs=True))
            for layer in self._layers:
                self._handles.append(self.blocks[layer].register_forward_hook(self._keeper(layer)))
        except BaseException:
            self._remove_hooks()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._remove_hooks()
        return isinstance(error, _DeepestReached)

    def _remove_hooks(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _keep_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.embedding = _tokens(args[0] if args else kwargs.get("hidden_states"), "the input of block 0")
        if not self._layers:
            raise _DeepestReached

    def _keeper(self, layer: int) -> Any:
        deepest = max(self._layers)

        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if layer in self.activations:
                raise ContractError(f"block {layer} ran twice in one forward pass, so its output is ambiguous")
            self.activations[layer] = _tokens(
                output[0] if isinstance(output, tuple) else output, f"the output of block {layer}"
            )
            if layer == deepest:
                raise _DeepestReached

        return keep


def _tokens(value: Any, what: str) -> Tensor:
    """Copy a block's input or output, checked to be a token sequence.

    A copy, since a later block may work in place; outside inference mode, so that callers may train on it.
    """
    if not isinstance(value, Tensor) or value.ndim != 3:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ContractError(f"{what} should be a tensor of shape [window, token, d_model], got {got}")
    with torch.inference_mode(False):
        return value.detach().to(torch.float32, copy=True)
