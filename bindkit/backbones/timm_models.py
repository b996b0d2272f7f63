"""Models of timm, by the names that timm knows, from its hub or from a directory in its layout.

timm is an extra, ``pip install 'bindkit[timm]'``: it needs a torchvision that fits torch, which bindkit itself never
uses, and one that does not fit keeps transformers from loading as well.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bindkit.backbones.checkpoint import explained, quiet, seeded
from bindkit.backbones.families import FAMILIES, EncoderShape, Opened, family_of_type, frozen, square_side
from bindkit.backbones.names import TIMM
from bindkit.backbones.preprocessing import Preprocessing
from bindkit.errors import BackboneError

_INTERPOLATIONS = {"random": "bilinear"}
"""What timm calls otherwise than Pillow does."""


def open_timm(name: str) -> Opened:
    """Look up ``timm:NAME``: an architecture of timm and its tag, a directory in its layout, or ``hf-hub:OWNER/MODEL``.

    Raises BackboneError if timm is not installed or cannot be imported, does not know the name, or has it built as
    anything but a ViT of the family table.
    """
    asked = name.removeprefix(TIMM)
    directory = Path(asked).expanduser()
    asked = f"local-dir:{directory}" if directory.is_dir() else asked
    try:
        import timm
    except Exception as error:  # also what a torchvision raises that does not fit torch
        raise BackboneError(
            f"timm cannot be imported ({type(error).__name__}: {error}); pip install 'bindkit[timm]', and a "
            "torchvision that fits the installed torch"
        ) from error

    def made(**settings: Any) -> Any:
        # What it logs is checked here: that all weights are there, and fit.
        loud = logging.getLogger("timm")
        level = loud.level
        loud.setLevel(logging.ERROR)
        try:
            with quiet(), explained(name, "model of timm"):
                return timm.create_model(asked, **settings)
        finally:
            loud.setLevel(level)

    with torch.device("meta"):  # sizes alone
        sketch = made()
    family = family_of_type(f"timm.{type(sketch).__name__}")
    if not family.is_known:
        known = ", ".join(one.model_class for one in FAMILIES if one.is_timms)
        raise BackboneError(
            f"{name} is a {type(sketch).__name__}; of timm bindkit reads plain ViTs ({known}): choose one such as "
            "timm:vit_base_patch16_224.augreg_in21k"
        )
    settings = sketch.pretrained_cfg
    if sketch.num_classes != settings["num_classes"]:
        raise BackboneError(
            f"{name} says {settings['num_classes']} classes of its weights and {sketch.num_classes} of its model, and "
            "timm then no longer looks whether all weights are there; mend num_classes in its config.json"
        )
    size = {} if family.fixed_window else {"dynamic_img_size": True}

    def build(seed: int | None) -> nn.Module:
        if seed is None:
            return frozen(made(pretrained=True, **size))
        with seeded(seed):
            return frozen(made(**size))

    def preprocessing() -> Preprocessing:
        resample = _INTERPOLATIONS.get(settings["interpolation"], settings["interpolation"])
        return Preprocessing(
            tuple(settings["mean"]), tuple(settings["std"]), resample=resample, source="timm's pretrained_cfg"
        )

    shape = EncoderShape(
        family=family.name,
        patch_size=square_side(name, sketch.patch_embed, "patch_size"),
        image_size=square_side(name, sketch.patch_embed, "img_size"),
        d_model=sketch.embed_dim,
        n_layers=len(sketch.blocks),
        n_prefix=sketch.num_prefix_tokens,
        n_heads=sketch.blocks[0].attn.num_heads,
        blocks_at="blocks",
    )
    return Opened(shape, family.objective, preprocessing, build)
