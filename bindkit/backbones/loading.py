"""Load a backbone: find its checkpoint, read it, check that it behaves as a ViT, freeze it."""

from __future__ import annotations

from typing import Any

import torch

from bindkit.arguments import read_device, require_kind
from bindkit.backbones.backbone import Backbone
from bindkit.backbones.checkpoint import find_preprocessing, load_weights, read_config
from bindkit.backbones.contract import ContractReport, check_contract
from bindkit.backbones.families import family_of_type, objective_of
from bindkit.backbones.preprocessing import IMAGENET
from bindkit.backbones.random_init import build_seeded, embedded_config, parse_random_init
from bindkit.backbones.shape import EncoderShape
from bindkit.backbones.shipped import directory_of
from bindkit.backbones.tower import VisionTower
from bindkit.errors import BackboneError, InvalidParameterError
from bindkit.scenes.geometry import TokenLayout, WindowGeometry

NORMALIZATIONS = ("checkpoint", "imagenet")

# The paper resizes to 518 px for patches of 14 px and to 592 px for patches of 16 px: 37 patches each.
_PAPER_PATCHES_PER_SIDE = {14: 37, 16: 37}


def load_backbone(
    name: str,
    *,
    window: int | None = None,
    short_side: int | None = None,
    normalization: str = "checkpoint",
    arithmetic: str = "centred",
    revision: str | None = None,
    device: str | torch.device = "auto",
    objective: str | None = None,
) -> Backbone:
    """Load a ViT from a hub or a directory, check that it behaves as one, and freeze it.

    ``load_backbone("facebook/dinov2-small")`` needs a network once; ``load_backbone("random-init:dinov2")`` never.

    Parameters
    ----------
    name : str
        A hub id, a local directory, one that comes with bindkit (``bindkit/scenes-mae``, see `shipped_names`), or
        ``random-init:NAME[,seed=0]`` with untrained weights, where NAME is ``dinov2``, ``vit`` (small, embedded) or
        any of the others.
    window : int, optional
        Side of the windows in pixels, a multiple of the patch. Default: the size that the model was trained on.
    short_side : int, optional
        Short side that scenes are resized to, in pixels. Default: 37 patches for patches of 14 and 16 px, as in the
        paper, but at least the window; else the window.
    normalization : {"checkpoint", "imagenet"}
        Whose mean and std to use; "imagenet" also resizes bicubically, which together is the paper's choice.
    arithmetic : {"centred", "reference"}
        How sizes, windows and masks are rounded; "reference" as in the paper's reference implementation, whose masks
        lie up to a pixel beside the picture. ``bindkit.probes.protocols.loading_options`` gives what a protocol takes.
    revision : str, optional
        Branch, tag or commit of a hub model.
    device : str or torch.device
        "auto" takes the GPU where there is one; else as torch names devices ("cpu", "cuda:1").
    objective : str, optional
        What the model was pretrained for, where bindkit cannot tell.

    Returns
    -------
    Backbone

    Raises
    ------
    BackboneError
        If the checkpoint cannot be found or read, lacks weights or preprocessing, or is no vision transformer.
    ContractError
        If the model loads but its tokens are not its patches; see `bindkit.backbones.contract`.
    GeometryError
        If the window is no multiple of the patch or larger than the short side, or for an unknown arithmetic.
    InvalidParameterError
        For options that do not exist.
    """
    # From cheap to costly: whatever is wrong should show before any weights are downloaded.
    target = read_device(device)
    if normalization not in NORMALIZATIONS:
        raise InvalidParameterError(f"unknown normalization {normalization!r}; choose one of {NORMALIZATIONS}")
    require_kind(name, str, "a backbone is named by a hub id or a directory's path as text", BackboneError)
    random_init = parse_random_init(name)
    source = name if random_init is None else random_init.source
    embedded = random_init is not None and random_init.is_embedded
    source = source if embedded else directory_of(source)
    config = embedded_config(source) if embedded else read_config(source, revision)
    shape = EncoderShape.of_config(source, config)
    geometry = _geometry(shape, window, short_side, arithmetic)
    if embedded or normalization == "imagenet":
        preprocessing = IMAGENET
    else:
        preprocessing = find_preprocessing(source, config, revision)
    if random_init is None:
        model = load_weights(source, config, revision)
        known_objective = objective_of(family_of_type(config.model_type), config)
    else:
        model = build_seeded(source, config, random_init.seed)
        known_objective = "random-init"
    tower = VisionTower.of(shape, model)
    digest = tower.weights_digest()
    tower.model.to(target)
    n_prefix, checks = check_contract(tower, preprocessing.normalise, geometry.window)
    return Backbone(
        name=name,
        revision=getattr(config, "_commit_hash", None),
        family=shape.family,
        objective=objective or known_objective,
        weights_digest=digest,
        geometry=geometry,
        layout=TokenLayout(n_prefix, geometry.grid),
        preprocessing=preprocessing,
        device=target,
        tower=tower,
        checks=checks,
    )


def check_backbone(name: str, **options: Any) -> ContractReport:
    """Load a backbone with the options of `load_backbone` and report what it is and what was checked.

    Raises
    ------
    BackboneError
        As `load_backbone` does; likewise its other errors.
    """
    backbone = load_backbone(name, **options)
    return ContractReport(
        name=backbone.name,
        family=backbone.family,
        objective=backbone.objective,
        n_layers=backbone.n_layers,
        d_model=backbone.d_model,
        patch_size=backbone.geometry.patch_size,
        n_prefix=backbone.layout.n_prefix,
        window=backbone.geometry.window,
        short_side=backbone.geometry.short_side,
        n_parameters=backbone.tower.n_parameters,
        checks=backbone.checks,
        revision=backbone.revision,
    )


def _geometry(shape: EncoderShape, window: int | None, short_side: int | None, arithmetic: str) -> WindowGeometry:
    patch_size = shape.patch_size
    if window is None:
        # Models crop a native size that is no multiple of their patch (384 px, patches of 14 px) in just this way.
        window = shape.image_size // patch_size * patch_size
    if short_side is None:
        short_side = max(window, _PAPER_PATCHES_PER_SIDE.get(patch_size, 0) * patch_size)
    return WindowGeometry(short_side, window, patch_size, arithmetic)
