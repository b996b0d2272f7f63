"""Probes: small modules that give one logit for every pair of patches.

>>> import torch
>>> probe = make_probe("quadratic", d_model=4, seed=0)
>>> probe.pairwise(torch.ones(2, 3, 4), torch.ones(2, 5, 4)).shape
torch.Size([2, 3, 5])

A probe of one's own is a subclass of `Probe` with `register_probe` above it; from then on `fit_probe`, `sweep` and
`load_probe` know it.
"""

from bindkit.backbones.attention import AttentionMaps
from bindkit.probes.base import (
    PROBES,
    PairMoments,
    Probe,
    by_capability,
    check_layer,
    make_probe,
    parse_probe,
    register_probe,
    require_probe,
)
from bindkit.probes.kinds import (
    ClassMap,
    CosineSimilarity,
    DiagonalQuadratic,
    DotProduct,
    IdentityMap,
    Linear,
    PointwiseMap,
    Quadratic,
    QuadraticFixedRank,
    SelfAttention,
    Softmax,
    add_symmetric_product,
    mirrored,
)
from bindkit.probes.protocols import load_probe, save_probe

__all__ = [
    "PROBES",
    "AttentionMaps",
    "ClassMap",
    "CosineSimilarity",
    "DiagonalQuadratic",
    "DotProduct",
    "IdentityMap",
    "Linear",
    "PairMoments",
    "PointwiseMap",
    "Probe",
    "Quadratic",
    "QuadraticFixedRank",
    "SelfAttention",
    "Softmax",
    "add_symmetric_product",
    "by_capability",
    "check_layer",
    "load_probe",
    "make_probe",
    "mirrored",
    "parse_probe",
    "register_probe",
    "require_probe",
    "save_probe",
]
