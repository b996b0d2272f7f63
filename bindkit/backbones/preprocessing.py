"""From the pixels of a scene to the numbers a model was trained on; settings come from the checkpoint."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from bindkit.errors import BackboneError, InvalidParameterError
from bindkit.files import parse_json

# Pillow's numbers, as image processors write them.
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


@dataclass(frozen=True)
class Preprocessing:
    """Resize with `resample`, multiply by `rescale_factor`, subtract `mean`, divide by `std` (red, green, blue).

    Size and crop rules of checkpoints are not part of it: windows decide what a model sees. Raises BackboneError for
    settings that no image can be normalised with.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale_factor: float = 1 / 255
    resample: str = "bicubic"
    source: str = field(default="", compare=False)
    """Whence these are, in words."""

    def __post_init__(self) -> None:
        for what, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise BackboneError(f"the {what} of a preprocessing needs three numbers (RGB), got {values}")
        if min(self.std) <= 0 or not math.isfinite(self.rescale_factor) or self.rescale_factor <= 0:
            raise BackboneError(
                f"a preprocessing needs a positive std and rescale factor, got {self.std} and {self.rescale_factor}"
            )
        if self.resample not in _RESAMPLE.values():
            raise BackboneError(f"unknown resample {self.resample!r}; choose one of {', '.join(_RESAMPLE.values())}")

    def resize(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Resize a whole scene, uint8 [height, width, 3], to ``(height, width)`` pixels with Pillow, antialiased.

        The image itself where it has that size already. Raises InvalidParameterError for another shape or dtype.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InvalidParameterError(
                f"an image should be uint8 of shape (height, width, 3), got {image.dtype} of shape {image.shape}"
            )
        if image.shape[:2] == tuple(size):
            return np.ascontiguousarray(image)
        resample = Image.Resampling[self.resample.upper()]
        return np.array(Image.fromarray(image).resize((size[1], size[0]), resample))

    def normalise(self, windows: UInt8[Tensor, "window height width 3"]) -> Float[Tensor, "window 3 height width"]:
        """Turn windows of pixels into a model's input, float32 on the device of `windows`."""
        pixels = windows.permute(0, 3, 1, 2).to(torch.float32) * self.rescale_factor
        return (pixels - _by_channel(self.mean, windows.device)) / _by_channel(self.std, windows.device)

    def describe(self) -> dict[str, Any]:
        """Settings as plain values that JSON can hold."""
        said = asdict(self) | {"mean": list(self.mean), "std": list(self.std)}
        del said["source"]
        return said


@lru_cache
def _by_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Kept on the device: sending them anew would wait for all that it has to do."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)


# Mean and standard deviation of ImageNet's training pixels, as the paper (arXiv 2510.24709) uses for every model.
IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), source="ImageNet's")


def read_preprocessing(path: Path) -> Preprocessing:
    """Read a checkpoint's ``preprocessor_config.json``, or a ``processor_config.json`` with one nested in it.

    Raises BackboneError if the file cannot be read or leaves out what it says is applied. Defaults of processor
    classes are never used: they differ from the checkpoints' settings.
    """
    try:
        settings = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(f"{path} cannot be read as JSON ({error}); download the checkpoint again") from error
    if isinstance(settings, dict) and isinstance(settings.get("image_processor"), dict):
        settings = settings["image_processor"]
    if not isinstance(settings, dict):
        raise BackboneError(f"{path} should hold a JSON object of image settings, got {type(settings).__name__}")
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    if settings.get("do_normalize", True):
        missing = [key for key in ("image_mean", "image_std") if settings.get(key) is None]
        if missing:
            raise BackboneError(
                f"{path} normalises images but has no {' and no '.join(missing)}; add what the model was trained with, "
                'or say normalization="imagenet"'
            )
        mean, std = (_three(settings[key], path) for key in ("image_mean", "image_std"))
    if settings.get("rescale_offset"):
        raise BackboneError(f"{path} asks for rescale_offset, which bindkit does not know; use another checkpoint")
    # Files of the first image processors carry no rescale settings: those always divided by 255.
    rescale_factor = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    resample = settings.get("resample", 3)
    try:
        named = _RESAMPLE.get(resample, str(resample).lower())
        return Preprocessing(mean, std, float(rescale_factor), named, f"its {path.name}")
    except (BackboneError, TypeError, ValueError) as error:
        raise BackboneError(f'{path}: {error}; mend the file or say normalization="imagenet"') from error


def _three(values: Any, path: Path) -> tuple[float, ...]:
    """Mean or std per channel; one number stands for all three channels."""
    try:
        return (float(values),) * 3 if isinstance(values, int | float) else tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise BackboneError(f"{path} holds a mean or std that is no list of numbers: {values!r}") from error
