"""Affinities of one image: every patch against every other, whole images stitched from their windows."""

from bindkit.affinities.scoring import (
    MOST_PATCHES,
    Affinity,
    Picture,
    affinity,
    image_activations,
    image_pixels,
    layer_of,
    pair_logits,
    read_probe,
    window_activations,
)

__all__ = [
    "MOST_PATCHES",
    "Affinity",
    "Picture",
    "affinity",
    "image_activations",
    "image_pixels",
    "layer_of",
    "pair_logits",
    "read_probe",
    "window_activations",
]
