"""One way to run every vision encoder: pixels in, tokens at chosen layers out, read with hooks of our own.

Hooks see what each block itself puts out. ``output_hidden_states`` is no substitute: which of its entries are normed
differs between families and between versions of transformers. Checks happen here once for every family: the number of
tokens, the width, and that the patches come last.

The contract check: one patch's pixels are inverted; at the embedding exactly that patch's token must move. A shuffled
or transposed token order, overlapping patches or mixing before block 0 would put wrong labels on tokens, so such models
are refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bindkit.backbones.families import EncoderShape, family_of_type
from bindkit.errors import ContractError, InvalidParameterError
from bindkit.scenes.geometry import PatchGrid

EMBEDDING = -1
"""Stands among layers for the input of block 0."""

Blocks = nn.ModuleList | nn.Sequential
"""A model's transformer blocks, in order."""

Rows = tuple[Int[Tensor, " row"], Int[Tensor, " row"]]
"""Patches of a batch that are wanted: the window of each, and its number in that window's grid."""


@dataclass(frozen=True, eq=False)
class VisionTower:
    """A frozen vision encoder with all that is needed to call it and to read its tokens."""

    shape: EncoderShape
    model: nn.Module
    blocks: Blocks
    interpolates_on_request: bool
    masks_patches: bool
    takes_patches: bool = False
    precision: torch.dtype = torch.float32

    @classmethod
    def of(cls, shape: EncoderShape, model: nn.Module, precision: torch.dtype = torch.float32) -> VisionTower:
        """Find a loaded encoder's blocks and how it wants to be called.

        Raises ContractError if it has no block list, or not as long a one as its config says.
        """
        blocks_at, blocks = find_blocks(model, shape.blocks_at)
        if shape.n_layers is not None and len(blocks) != shape.n_layers:
            raise ContractError(
                f"{type(model).__name__} should have {shape.n_layers} blocks, but its longest list of like modules "
                f"({blocks_at}) has {len(blocks)}; it is no plain ViT that bindkit can read"
            )
        family = family_of_type(shape.family)
        config: Any = getattr(model, "config", None)
        # Some versions of transformers patch the blocks that we hook for a config that asks for these.
        if hasattr(config, "model_type"):
            config.output_hidden_states = config.output_attentions = False
        if family.masks_patches:
            config.mask_ratio = 0.0
        any_size = family.any_size
        if any_size is None:
            any_size = "interpolate_pos_encoding" not in inspect.signature(model.forward).parameters
        return cls(shape, model, blocks, not any_size, family.masks_patches, family.takes_patches, precision)

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def n_parameters(self) -> int:
        """Number of weights of the encoder."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def run(self, pixels: Float[Tensor, "window 3 height width"]) -> None:
        """One forward pass, for its hooks. Half precision multiplies in it; norms and the residual stay float32."""
        arguments: dict[str, Any] = {}
        if self.interpolates_on_request:
            arguments["interpolate_pos_encoding"] = True
        grid = PatchGrid.of_size(pixels.shape[2], pixels.shape[3], self.shape.patch_size)
        if self.takes_patches:
            arguments["pixel_attention_mask"] = pixels.new_ones(len(pixels), grid.n_patches, dtype=torch.int32)
            arguments["spatial_shapes"] = torch.tensor([[grid.rows, grid.cols]] * len(pixels), device=pixels.device)
            cells = pixels.unflatten(3, (grid.cols, -1)).unflatten(2, (grid.rows, -1))
            pixels = cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # [window, patch, row col channel]
        if self.masks_patches:
            # Rising noise keeps the patches in order; a mask ratio of 0 alone would still shuffle them.
            rising = torch.arange(grid.n_patches, dtype=torch.float32, device=pixels.device)
            arguments["noise"] = rising.expand(pixels.shape[0], -1)
        halved = self.precision != torch.float32
        # Else convolutions on a GPU would round to TF32, three digits, without a word.
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), exact, torch.autocast(pixels.device.type, self.precision, enabled=halved):
            self.model(pixels, **arguments)

    def activations(
        self, pixels: Float[Tensor, "window 3 height width"], layers: Sequence[int], rows: Rows | None = None
    ) -> dict[int, Tensor]:
        """Outputs of some blocks (of `EMBEDDING` the input of block 0), float32.

        All tokens ``[window, token, d_model]``, prefix tokens included; or only the patches asked for, ``[row,
        d_model]``, picked while the pass runs, so that whole layers never pile up. Raises GeometryError if a side is
        no multiple of the patch, ContractError if the encoder gives another number of tokens or another width than it
        should.
        """
        grid = PatchGrid.of_size(pixels.shape[2], pixels.shape[3], self.shape.patch_size)

        def picked(layer: int, tokens: Tensor) -> Tensor:
            n_prefix = self._require_tokens(layer, tokens, grid)
            if rows is None:
                return whole_copy(layer, tokens)
            return tokens[rows[0], n_prefix + rows[1]].to(torch.float32)

        with captured(self.blocks, layers, picked) as kept:
            self.run(pixels)
        for layer in layers:
            if layer not in kept:
                raise ContractError(
                    f"block {max(layer, 0)} did not run, so this model is no plain ViT that bindkit can read"
                )
        return kept

    def _require_tokens(self, layer: int, tokens: Tensor, grid: PatchGrid) -> int:
        """Number of prefix tokens; refuses what is not the patches behind them, of the width that the config says."""
        where = "the embedding" if layer == EMBEDDING else f"layer {layer}"
        n_prefix, wanted = tokens.shape[1] - grid.n_patches, self.shape.n_prefix
        if n_prefix < 0 or (wanted is not None and n_prefix != wanted):
            raise ContractError(
                f"{where} has {tokens.shape[1]} tokens for {grid.rows} x {grid.cols} patches, expected "
                f"{grid.n_patches} patch tokens behind {'some' if wanted is None else wanted} prefix tokens; this "
                "model is no plain ViT, or its patch size is another than its config says"
            )
        if tokens.shape[2] != self.shape.d_model:
            raise ContractError(
                f"{where} has {tokens.shape[2]} channels, expected {self.shape.d_model} as the config says; this "
                "model is no plain ViT"
            )
        return n_prefix

    def embedding(self, pixels: Float[Tensor, "window 3 height width"]) -> Float[Tensor, "window token d_model"]:
        """Input of block 0, prefix tokens included, float32. Raises as `activations` does."""
        return self.activations(pixels, [EMBEDDING])[EMBEDDING]

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


def patch_tokens(
    tokens: Float[Tensor, "window token d_model"], n_patches: int
) -> Float[Tensor, "window patch d_model"]:
    """Patch tokens, row-major. They are taken from the end, so that no prefix token can leak in."""
    return tokens[:, tokens.shape[1] - n_patches :]


def find_blocks(model: nn.Module, at: str | None = None) -> tuple[str, Blocks]:
    """A model's transformer blocks, its longest list of modules of one class: where it lies in the model, and the list.

    `at` says where it lies. Raises ContractError if the model has no such list.
    """
    lists: list[tuple[str, Blocks]] = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len({type(block) for block in module}) == 1
        if name == at or (at is None and isinstance(module, nn.ModuleList))
    ]
    if not lists:
        raise ContractError(
            f"{type(model).__name__} has no list of like transformer blocks{f' at {at!r}' if at else ''}, so it is no "
            "ViT that bindkit can read; choose a plain ViT checkpoint"
        )
    return max(lists, key=lambda found: len(found[1]))


class _DeepestReached(BaseException):
    """Ends the forward pass behind the deepest block asked for; never leaves `captured`."""


def whole_copy(_layer: int, tokens: Tensor) -> Tensor:
    """All tokens as float32; a copy, since a later block may work in place."""
    return tokens.to(torch.float32, copy=True)


@contextlib.contextmanager
def captured(
    blocks: Blocks, layers: Sequence[int], picked: Callable[[int, Tensor], Tensor] = whole_copy
) -> Iterator[dict[int, Tensor]]:
    """Keep of some blocks' outputs [window, token, d_model], before any final norm, what `picked` copies: by layer.

    The forward pass stops behind the deepest, and the hooks go whatever happens.
    """
    kept: dict[int, Tensor] = {}

    def keep(layer: int, value: Any, what: str) -> None:
        if layer in kept:
            raise ContractError(f"block {max(layer, 0)} ran twice in one forward pass, so its output is ambiguous")
        if not isinstance(value, Tensor) or value.ndim != 3:
            got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ContractError(f"{what} should be a tensor of shape [window, token, d_model], got {got}")
        # Outside inference mode, so that callers may train on it.
        with torch.inference_mode(False):
            kept[layer] = picked(layer, value.detach())
        if layer == max(layers):
            raise _DeepestReached

    def keep_input(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(EMBEDDING, args[0] if args else kwargs.get("hidden_states"), "the input of block 0")

    def keep_output(layer: int, _block: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        keep(layer, output[0] if isinstance(output, tuple) else output, f"the output of block {layer}")

    with contextlib.ExitStack() as hooks, contextlib.suppress(_DeepestReached):
        for layer in layers:
            hook = (
                blocks[0].register_forward_pre_hook(keep_input, with_kwargs=True)
                if layer == EMBEDDING
                else blocks[layer].register_forward_hook(partial(keep_output, layer))
            )
            hooks.enter_context(hook)
        yield kept


@contextlib.contextmanager
def edited(blocks: Blocks, layer: int, n_prefix: int, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Let a block put out other patches, with which the forward pass goes on; the hook goes whatever happens.

    `change` is given the patches float32 [window, patch, d_model] behind `n_prefix` tokens, and gives as many, or None
    to leave the output as it is, bit for bit. Raises InvalidParameterError for another shape.
    """

    def put(_block: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        tokens = output[0] if isinstance(output, tuple) else output
        patches = tokens[:, n_prefix:]
        changed = change(patches.float())
        if changed is None:
            return None
        if changed.shape != patches.shape:
            raise InvalidParameterError(
                f"an edit of layer {layer} gives patches of shape {list(patches.shape)}, got {list(changed.shape)}"
            )
        tokens = torch.cat([tokens[:, :n_prefix], changed.to(tokens.dtype)], dim=1)
        return (tokens, *output[1:]) if isinstance(output, tuple) else tokens

    hook = blocks[layer].register_forward_hook(put)
    try:
        yield
    finally:
        hook.remove()


# A token counts as moved above this share of the largest embedding value; rounding stays a thousand times below.
_MOVED = 1e-4
# What other tokens may move, as a share of what the perturbed patch's own token does.
_LEAK = 1e-3
_SMALL_GRID = (3, 5)


def check_contract(
    tower: VisionTower, normalise: Callable[[Tensor], Tensor], window: int
) -> tuple[int, tuple[str, ...]]:
    """Check that a model is a ViT on windows of `window` pixels, which `normalise` turns from uint8 into its input.

    Returns the number of prefix tokens that was seen, and what was checked, in words. Raises ContractError if the model
    does not run, or its tokens are not its patches in row-major order behind its prefix tokens.
    """
    device = next(tower.model.parameters()).device

    def shown(windows: Tensor) -> Tensor:
        return normalise(windows.to(device))

    whole = PatchGrid.of_window(window, tower.shape.patch_size)
    small = PatchGrid(*_SMALL_GRID, tower.shape.patch_size)
    prefixes = {}
    try:
        prefixes[small] = _check_embedding(tower, shown, small)
    except _DoesNotRunError:
        small = whole  # square windows are all that bindkit needs
    prefixes[whole] = _check_embedding(tower, shown, whole)
    if prefixes[small] != prefixes[whole]:
        raise ContractError(
            f"the model has {prefixes[whole]} prefix tokens at {whole.rows} x {whole.cols} patches and "
            f"{prefixes[small]} at {small.rows} x {small.cols}, so which tokens are patches is unknown"
        )
    _check_all_layers(tower, shown, small)
    return prefixes[whole], (
        *(
            f"a perturbed patch moves exactly its own token at the embedding ({grid.rows} x {grid.cols} patches)"
            for grid in prefixes
        ),
        f"all {tower.n_layers} layers give finite, repeatable activations of width {tower.shape.d_model}",
    )


class _DoesNotRunError(ContractError):
    """The model's own forward pass failed."""


def _random_window(grid: PatchGrid) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, grid.height, grid.width, 3), generator=generator, dtype=torch.uint8)


@contextlib.contextmanager
def _running(tower: VisionTower, grid: PatchGrid) -> Iterator[None]:
    try:
        yield
    except (ContractError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a model's own code may raise
        cause = str(error).strip().splitlines()
        raise _DoesNotRunError(
            f"{type(tower.model).__name__} does not run on windows of {grid.height} x {grid.width} px: "
            f"{cause[0] if cause else ''} ({type(error).__name__}); it is no plain ViT, or needs another window"
        ) from error


def _check_embedding(tower: VisionTower, shown: Callable[[Tensor], Tensor], grid: PatchGrid) -> int:
    """Perturb patches one by one and compare the embeddings; returns the number of prefix tokens."""
    # The four corners, where order and overlap show, and two patches in between.
    between = torch.randint(0, grid.n_patches, (2,), generator=torch.Generator().manual_seed(1)).tolist()
    patches = sorted({0, grid.cols - 1, (grid.rows - 1) * grid.cols, grid.n_patches - 1, *between})
    windows = _random_window(grid).repeat(len(patches) + 1, 1, 1, 1)
    for window, patch in enumerate(patches, start=1):
        box = grid.box(patch)
        pixels = windows[window, int(box.top) : int(box.bottom), int(box.left) : int(box.right)]
        pixels.copy_(255 - pixels)
    with _running(tower, grid):
        embedding = tower.embedding(shown(windows))
    if not embedding.isfinite().all():
        raise ContractError("the embedding of a random image holds NaN or infinite values; the weights are damaged")
    n_prefix = embedding.shape[1] - grid.n_patches
    floor = _MOVED * embedding[0].abs().amax().item()
    for window, patch in enumerate(patches, start=1):
        own = n_prefix + patch
        distance = (embedding[window] - embedding[0]).abs().amax(dim=1)
        moved = torch.nonzero(distance > max(floor, _LEAK * distance[own].item())).flatten().tolist()
        if moved != [own]:
            raise ContractError(_what_moved(grid, patch, own, moved))
    return n_prefix


def _what_moved(grid: PatchGrid, patch: int, own: int, moved: list[int]) -> str:
    row, col = grid.row_col(patch)
    shown = ", ".join(map(str, moved[:6])) + (f" and {len(moved) - 6} more" if len(moved) > 6 else "")
    if not moved:
        seen = "moved no token at the embedding: the model does not see it"
    elif own not in moved and len(moved) == 1:
        seen = f"moved token {shown} at the embedding instead: its tokens are not in row-major patch order"
    elif own not in moved:
        seen = f"moved tokens {shown} at the embedding instead: its tokens are shuffled from run to run"
    else:
        seen = f"moved tokens {shown} at the embedding: patches overlap, mix or are shuffled before block 0"
    return (
        f"perturbing patch {patch} (row {row}, col {col} of {grid.rows} x {grid.cols}) should move token {own} alone "
        f"but {seen}. Labels would land on wrong tokens, so the model is refused; choose a plain ViT"
    )


def _check_all_layers(tower: VisionTower, shown: Callable[[Tensor], Tensor], grid: PatchGrid) -> None:
    pixels = shown(_random_window(grid))
    with _running(tower, grid):
        first = tower.activations(pixels, range(tower.n_layers))
        second = tower.activations(pixels, range(tower.n_layers))
    for layer, activations in first.items():
        if not activations.isfinite().all():
            raise ContractError(f"layer {layer} gives NaN or infinite activations; the weights are damaged")
        if (activations - second[layer]).abs().amax() > _MOVED * activations.abs().amax():
            raise ContractError(
                f"layer {layer} gives other activations when the same image is shown again; the model is not "
                "deterministic (dropout or random masking), so nothing that is measured on it could be repeated"
            )
