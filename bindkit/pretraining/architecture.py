"""The one architecture that every objective trains, and the files that its Hugging Face directories share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bindkit.backbones.preprocessing import IMAGENET
from bindkit.files import write_json

SIDE = 80
"""Window in pixels."""
PATCH = 8
"""Patch in pixels."""
GRID = SIDE // PATCH
"""Patches down and across."""
WIDTH, LAYERS, HEADS = 112, 6, 4

POSITION_SCALE = 0.05
"""Position embeddings start at this share of the sine-cosine ones: as faint as the usual random ones (standard
deviation 0.02 to 0.04), so that an untrained twin hardly knows where its patches lie, but smooth."""
POSITION_SCALE_LATER, FADE_IN_STEPS = 0.5, 200
"""In the first steps of training they are raised to this share, about as strong as the patches themselves; from there
on they are only learned. Left faint, masked reconstruction took no notice of them in its first 90,000 scenes, nor
common fate in its first 25,000."""

PREPROCESSOR_FILE = "preprocessor_config.json"


def vision_settings() -> dict[str, Any]:
    """Settings of the encoder in the words that all four families share."""
    return {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "patch_size": PATCH,
        "image_size": SIDE,
        "position_embedding_scale": POSITION_SCALE,
    }


def write_preprocessing(directory: Path) -> None:
    """Write ``preprocessor_config.json`` as image processors of the hub do."""
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": SIDE, "width": SIDE},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET.mean),
        "image_std": list(IMAGENET.std),
    }
    write_json(directory / PREPROCESSOR_FILE, settings)
