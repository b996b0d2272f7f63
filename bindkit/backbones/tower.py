"""One way to run every vision encoder: pixels in, tokens at chosen layers out, read with hooks of our own.

Hooks see what each block itself puts out. ``output_hidden_states`` is no substitute: which of its entries are normed
differs between families and between versions of transformers. Checks happen here once for every family: the number of
tokens, the width, and that the patches come last.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bindkit.backbones.families import FAMILIES, EncoderShape
from bindkit.errors import ContractError
from bindkit.scenes.geometry import PatchGrid


@dataclass(frozen=True, eq=False)
class VisionTower:
    """A frozen vision encoder with all that is needed to call it and to read its tokens."""

    shape: EncoderShape
    model: nn.Module
    blocks: nn.ModuleList
    interpolates_on_request: bool
    masks_patches: bool

    @classmethod
    def of(cls, shape: EncoderShape, model: nn.Module) -> VisionTower:
        """Find a loaded encoder's blocks and how it wants to be called.

        Raises ContractError if it has no block list, or not as long a one as its config says.
        """
        blocks_at, blocks = find_blocks(model)
        if shape.n_layers is not None and len(blocks) != shape.n_layers:
            raise ContractError(
                f"{type(model).__name__} should have {shape.n_layers} blocks, but its longest list of like modules "
                f"({blocks_at}) has {len(blocks)}; it is no plain ViT that bindkit can read"
            )
        config: Any = model.config
        # A config that asks for these makes some versions of transformers patch the blocks that we hook.
        config.output_hidden_states = config.output_attentions = False
        family = FAMILIES.get(shape.family)
        if family is None:
            interpolates = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
            return cls(shape, model, blocks, interpolates, masks_patches=False)
        if family.masks_patches:
            config.mask_ratio = 0.0
        return cls(shape, model, blocks, family.interpolates_on_request, family.masks_patches)

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def n_parameters(self) -> int:
        """Number of weights of the encoder."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def activations(
        self, pixels: Float[Tensor, "window 3 height width"], layers: Sequence[int]
    ) -> dict[int, Float[Tensor, "window token d_model"]]:
        """Outputs of some blocks, prefix tokens included, float32.

        Raises GeometryError if a side is no multiple of the patch, ContractError if the encoder gives another number
        of tokens or another width than it should.
        """
        return self._run(pixels, layers, embedding=False).activations

    def embedding(self, pixels: Float[Tensor, "window 3 height width"]) -> Float[Tensor, "window token d_model"]:
        """Input of block 0, prefix tokens included, float32. Raises as `activations` does."""
        embedding = self._run(pixels, (), embedding=True).embedding
        if embedding is None:
            raise ContractError("block 0 did not run, so this model is no plain ViT that bindkit can read")
        return embedding

    def weights_digest(self) -> str:
        """Sha256 of all weights with their types and shapes, as 64 hexadecimal digits.

        Tensors are digested one by one and their digests sorted, since transformers renames weights between versions.
        """
        digests = []
        for weight in self.model.state_dict().values():
            digest = hashlib.sha256(f"{weight.dtype} {tuple(weight.shape)}\n".encode())
            digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
            digests.append(digest.hexdigest())
        return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()

    def _run(self, pixels: Tensor, layers: Sequence[int], embedding: bool) -> Captured:
        grid = PatchGrid.of_size(pixels.shape[2], pixels.shape[3], self.shape.patch_size)
        arguments: dict[str, Any] = {}
        if self.interpolates_on_request:
            arguments["interpolate_pos_encoding"] = True
        if self.masks_patches:
            # Rising noise keeps the patches in order; a mask ratio of 0 alone would still shuffle them.
            rising = torch.arange(grid.n_patches, dtype=torch.float32, device=pixels.device)
            arguments["noise"] = rising.expand(pixels.shape[0], -1)
        with torch.inference_mode(), captured(self.blocks, layers, embedding) as kept:
            self.model(pixels, **arguments)
        for layer in layers:
            if layer not in kept.activations:
                raise ContractError(f"block {layer} did not run, so this model is no plain ViT that bindkit can read")
            self._require_tokens(kept.activations[layer], f"layer {layer}", grid)
        if kept.embedding is not None:
            self._require_tokens(kept.embedding, "the embedding", grid)
        return kept

    def _require_tokens(self, tokens: Tensor, where: str, grid: PatchGrid) -> None:
        n_prefix, wanted = tokens.shape[1] - grid.n_patches, self.shape.n_prefix
        if n_prefix < 0 or (wanted is not None and n_prefix != wanted):
            raise ContractError(
                f"{where} has {tokens.shape[1]} tokens for {grid.rows} x {grid.cols} patches, expected "
                f"{grid.n_patches} patch tokens behind {'some' if wanted is None else wanted} prefix tokens; this "
                "model is no plain ViT, or its patch size is another than its config says"
            )
        if tokens.shape[2] != self.shape.d_model:
            raise ContractError(
                f"{where} has {tokens.shape[2]} channels, expected {self.shape.d_model} as the config says; this model "
                "is no plain ViT"
            )


def patch_tokens(
    tokens: Float[Tensor, "window token d_model"], n_patches: int
) -> Float[Tensor, "window patch d_model"]:
    """Patch tokens, row-major. They are taken from the end, so that no prefix token can leak in."""
    return tokens[:, tokens.shape[1] - n_patches :]


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """A model's transformer blocks, its longest list of modules of one class: where it lies in the model, and the list.

    Raises ContractError if the model has no such list.
    """
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1
    ]
    if not lists:
        raise ContractError(
            f"{type(model).__name__} has no list of like transformer blocks, so it is no ViT that bindkit can read; "
            "choose a plain ViT checkpoint"
        )
    return max(lists, key=lambda found: len(found[1]))


class _DeepestReached(BaseException):
    """Ends the forward pass behind the deepest block asked for; never leaves `captured`."""


@dataclass
class Captured:
    """All tokens at layers, before any final norm, and at the input of block 0: float32 [window, token, d_model]."""

    activations: dict[int, Tensor] = field(default_factory=dict)
    embedding: Tensor | None = None


@contextlib.contextmanager
def captured(blocks: nn.ModuleList, layers: Sequence[int], embedding: bool = False) -> Iterator[Captured]:
    """Keep what some blocks put out; the forward pass stops behind the deepest, and hooks go whatever happens."""
    kept = Captured()

    def keep_input(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept.embedding = _tokens(args[0] if args else kwargs.get("hidden_states"), "the input of block 0")
        if not layers:
            raise _DeepestReached

    def keeper(layer: int) -> Callable[..., None]:
        def keep(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            if layer in kept.activations:
                raise ContractError(f"block {layer} ran twice in one forward pass, so its output is ambiguous")
            found = output[0] if isinstance(output, tuple) else output
            kept.activations[layer] = _tokens(found, f"the output of block {layer}")
            if layer == max(layers):
                raise _DeepestReached

        return keep

    with contextlib.ExitStack() as hooks, contextlib.suppress(_DeepestReached):
        if embedding:
            hooks.enter_context(blocks[0].register_forward_pre_hook(keep_input, with_kwargs=True))
        for layer in layers:
            hooks.enter_context(blocks[layer].register_forward_hook(keeper(layer)))
        yield kept


def _tokens(value: Any, what: str) -> Tensor:
    """Copy of a block's input or output, checked to be a token sequence.

    A copy, since a later block may work in place; outside inference mode, so that callers may train on it.
    """
    if not isinstance(value, Tensor) or value.ndim != 3:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ContractError(f"{what} should be a tensor of shape [window, token, d_model], got {got}")
    with torch.inference_mode(False):
        return value.detach().to(torch.float32, copy=True)
