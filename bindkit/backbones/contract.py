"""The contract check: a ViT's last tokens are its patches, row by row, and each sees its own patch alone.

One patch's pixels are inverted; at the embedding exactly that patch's token must move. A shuffled or transposed
token order, overlapping patches or mixing before block 0 would put wrong labels on tokens, so such models are refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bindkit.backbones.tower import VisionTower
from bindkit.errors import ContractError
from bindkit.scenes.geometry import PatchGrid

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
