"""What the page shows of an image besides affinities: a small picture, and its objects where masks exist."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bindkit.affinities.scoring import Picture, image_pixels
from bindkit.affinities.stitching import ImageGrid
from bindkit.errors import InvalidParameterError
from bindkit.scenes import Scene
from bindkit.scenes.labels import resize_mask
from bindkit.views.viewer.text_bytes import to_text

_LONGEST_PICTURE, _LONGEST_MASK = 800, 480
"""Pixels that the longer side of a picture, and of the mask whose outlines are drawn, has at most."""
_SMALL = 320
"""Pictures up to so many pixels are stored without loss."""


@dataclass(frozen=True)
class Subject:
    """One image of the page.

    Attributes
    ----------
    name : str
        Shown under it; text, whatever it holds.
    pixels : uint8 array [height, width, 3]
    scene : Scene or None
        With masks, where there are any.
    class_names : mapping
        Class id -> name.
    """

    name: str
    pixels: np.ndarray
    scene: Scene | None
    class_names: Mapping[int, str]

    def objects(self) -> list[dict[str, Any]]:
        """Labelled objects: instance id, name of the class, and which of the list are its twins."""
        if self.scene is None:
            return []
        ids = [int(value) for value in np.unique(self.scene.instances) if value]
        classes = [int(np.bincount(self.scene.classes[self.scene.instances == value]).argmax()) for value in ids]
        return [
            {
                "id": instance,
                "name": self.class_names.get(label, f"class {label}") if label else "unnamed object",
                "twins": [k for k, other in enumerate(classes) if other == label and ids[k] != instance and label],
            }
            for instance, label in zip(ids, classes, strict=True)
        ]

    def describe(self) -> dict[str, Any]:
        """Everything but affinities, as JSON can hold it."""
        height, width = self.pixels.shape[:2]
        return {
            "name": self.name,
            "height": height,
            "width": width,
            "picture": picture(self.pixels),
            "objects": self.objects(),
            "mask": self._mask(),
        }

    def labels(self, grid: ImageGrid) -> list[int]:
        """Position in `objects` of the object that fills most of each patch; -1 where none does."""
        if self.scene is None:
            return []
        return (np.searchsorted(self._ids(), grid.majority(self.scene.instances)) - 1).tolist()

    def _ids(self) -> np.ndarray:
        """Instance ids with 0 in front."""
        assert self.scene is not None
        return np.union1d([0], self.scene.instances)

    def _mask(self) -> dict[str, Any] | None:
        """Positions of objects + 1 (0: none) per pixel of a smaller mask, deflated."""
        if self.scene is None:
            return None
        height, width = self.scene.size
        shrink = max(1.0, max(height, width) / _LONGEST_MASK)
        small = resize_mask(self.scene.instances, (max(1, round(height / shrink)), max(1, round(width / shrink))))
        numbers = np.searchsorted(self._ids(), small).astype("<u2")
        content = zlib.compress(numbers.tobytes(), 9)
        return {"rows": small.shape[0], "cols": small.shape[1], "bytes": len(content), "text": to_text(content)}


def check_list(images: Any) -> None:
    """Refuse one image where a list of them belongs. Raises InvalidParameterError."""
    if isinstance(images, str | Path | Scene) or hasattr(images, "shape") or hasattr(images, "getexif"):
        raise InvalidParameterError("images is a list, also where it is one image: images=[...]")


def subject_name(image: Picture, number: int) -> str:
    """A scene's id, a file's name, or the image's number in the list."""
    if isinstance(image, Scene):
        return image.id
    return Path(image).name if isinstance(image, str | Path) else f"image {number}"


def subject_of(image: Picture, number: int, class_names: Mapping[int, str]) -> Subject:
    """Read whatever counts as an image; `number` names it if nothing else does.

    Raises
    ------
    BrokenSceneError, InvalidParameterError, GeometryError
        As `bindkit.affinity` of that image.
    """
    # A scene without any label is just an image.
    labelled = image if isinstance(image, Scene) and image.instances.any() else None
    return Subject(subject_name(image, number), image_pixels(image), labelled, class_names)


def picture(pixels: np.ndarray) -> str:
    """A picture as a data URL: WebP, small ones without loss."""
    image = Image.fromarray(pixels)
    image.thumbnail((_LONGEST_PICTURE, _LONGEST_PICTURE), Image.Resampling.LANCZOS)
    lossless = max(image.size) <= _SMALL
    out = io.BytesIO()
    image.save(out, "WEBP", lossless=lossless, quality=90 if lossless else 82, method=4)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
