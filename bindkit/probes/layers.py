"""The patches of one layer of a cache, read once for all probes that are fitted on them."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from bindkit.arguments import is_control, read_device, whole_number
from bindkit.backbones.attention import AttentionMaps
from bindkit.cache import ActivationCache
from bindkit.errors import NonFiniteActivationsError
from bindkit.probes.attention import next_layer_attention
from bindkit.probes.base import PairMoments
from bindkit.probes.batches import SplitPatches
from bindkit.probes.folds import Roles
from bindkit.probes.judging import JUDGED_FIRST
from bindkit.probes.protocols import Protocol
from bindkit.probes.protocols import protocol as protocol_of
from bindkit.probes.starts import measure_moments, scaling, whitening

logger = logging.getLogger(__name__)

_IMAGENET_MEAN = [0.485, 0.456, 0.406]


class LayerPatches:
    """The patches of one layer in all splits, read once and used by every probe that is fitted on them.

    Parameters
    ----------
    cache : ActivationCache
        Where they lie.
    layer : int
        0-based.
    protocol : str or Protocol
        ``"strict"`` or ``"paper"``.
    device : str
        ``"auto"`` takes CUDA where there is one.
    attention : callable, optional
        Gives the maps of the next layer, asked only by ``self_attention``.
    roles : dict, optional
        Scenes that train, validate and test. Default: the cache's splits.
    """

    def __init__(
        self,
        cache: ActivationCache,
        layer: int,
        protocol: str | Protocol = "strict",
        device: str = "auto",
        attention: Callable[[], AttentionMaps] | None = None,
        roles: Roles | None = None,
    ) -> None:
        self.asked_protocol = protocol_of(protocol)
        is_one = is_control(cache.backbone.get("objective"))
        self.protocol = self.asked_protocol.for_controls() if is_one else self.asked_protocol
        self.cache, self.layer, self._attention = cache, whole_number(layer, "layer"), attention
        _say_what_is_otherwise(cache, self.protocol)
        self.device = read_device(device)
        self.splits = {
            split: SplitPatches(cache, split if roles is None else roles[split], self.layer, self.protocol, self.device)
            for split in ("train", "validation", "test")
        }
        self.splits["train"].require()
        self._moments: PairMoments | None = None
        self._units: dict[str, Tensor] = {}

    @property
    def judged_split(self) -> str:
        """The split whose figures are reported: the first that has usable scenes of test, validation, train."""
        return next(split for split in JUDGED_FIRST if len(self.splits[split]))

    @property
    def moments(self) -> PairMoments:
        """Of the training split, in raw units.

        Raises
        ------
        NonFiniteActivationsError
            If activations are finite but their products are not.
        """
        if self._moments is None:
            moments = measure_moments(self.splits["train"])
            if not all(bool(part.isfinite().all()) for part in (moments.patches, moments.signal)):
                raise NonFiniteActivationsError(
                    f"the activations of layer {self.layer} in the cache {self.cache.path} are too large for float32 "
                    f"statistics: sums of their products go beyond {torch.finfo(torch.float32).max:.1e}; look whether "
                    "the backbone is broken at that layer, or take other layers"
                )
            self._moments = moments
        return self._moments

    def units(self, trained_in: str) -> Tensor | None:
        """What activations are multiplied with in training; None where they are taken as they are."""
        if trained_in in ("raw", "normed") or not self.protocol.precondition:
            return None
        if trained_in not in self._units:
            make = {"scaled": scaling, "whitened": whitening}[trained_in]
            self._units[trained_in] = make(self.moments)
        return self._units[trained_in]

    def scale(self, trained_in: str) -> float:
        """What a probe multiplies activations with by itself: one over the root mean square of their lengths, or 1."""
        square = float(self.moments.patches.trace()) if trained_in == "normed" and self.protocol.precondition else 1.0
        return square**-0.5 if square > 0 else 1.0

    def attention(self) -> AttentionMaps:
        """Query and key maps of the next layer.

        Raises
        ------
        ProbeError, LayerError
            If nobody said which, or there is no next layer.
        """
        if self._attention is None:
            return next_layer_attention(self.cache, self.layer)
        return self._attention()


def _say_what_is_otherwise(cache: ActivationCache, protocol: Protocol) -> None:
    """Warn of a cache that was not made as the paper's protocol wants it; ours takes caches as they are."""
    described = cache.backbone
    mean = described.get("preprocessing", {}).get("mean", _IMAGENET_MEAN)
    if protocol.normalization == "imagenet" and list(mean) != _IMAGENET_MEAN:
        logger.warning(
            "%s was cached with its checkpoint's own mean and deviation; the paper normalises every backbone with "
            'ImageNet\'s: load_backbone(..., normalization="imagenet")',
            described["name"],
        )
    if protocol.arithmetic == "reference" != described["geometry"].get("arithmetic", "centred"):
        logger.warning(
            "%s was cached with centred sizes, windows and masks; the paper's figures come from the reference "
            'implementation\'s roundings: load_backbone(..., arithmetic="reference")',
            described["name"],
        )
