"""What is shown of an image besides affinities: a small picture, and its objects where masks exist."""

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
from bindkit.arguments import control_title
from bindkit.errors import InvalidParameterError
from bindkit.scenes import Scene
from bindkit.scenes.labels import object_classes, resize_mask
from bindkit.views.viewer.packing import to_text

_LONGEST_PICTURE, _LONGEST_MASK = 800, 480
"""Pixels that the longer side of a picture, and of the mask whose outlines are drawn, has at most."""
_SMALL = 320
"""Pictures up to so many pixels are stored without loss."""


@dataclass(frozen=True)
class Subject:
    """One image: its name (text, whatever it holds), uint8 [height, width, 3], its masks if any, class id -> name."""

    name: str
    pixels: np.ndarray
    scene: Scene | None
    class_names: Mapping[int, str]

    def objects(self) -> list[dict[str, Any]]:
        """Labelled objects: instance id, name of the class, and which of the list are its twins."""
        if self.scene is None:
            return []
        classes = object_classes(self.scene)
        return [
            {
                "id": instance,
                "name": self.class_names.get(label, f"class {label}") if label else "unnamed object",
                "twins": [
                    k for k, other in enumerate(classes) if classes[other] == label and other != instance and label
                ],
            }
            for instance, label in classes.items()
        ]

    def positions(self, instances: np.ndarray) -> np.ndarray:
        """Position in `objects` of instance ids, -1 of 0."""
        assert self.scene is not None
        return np.searchsorted(np.union1d([0], self.scene.instances), instances) - 1

    def labels(self, grid: ImageGrid) -> list[int]:
        """Position in `objects` of the object that fills most of each patch; -1 where none does."""
        return [] if self.scene is None else self.positions(grid.majority(self.scene.instances)).tolist()

    def describe(self) -> dict[str, Any]:
        """Everything but affinities, as JSON can hold it."""
        height, width = self.pixels.shape[:2]
        mask = None
        if self.scene is not None:
            small = outlined_mask(self.scene.instances)
            # Positions + 1, so that 0 is none.
            content = zlib.compress((self.positions(small) + 1).astype("<u2").tobytes(), 9)
            mask = {"rows": small.shape[0], "cols": small.shape[1], "bytes": len(content), "text": to_text(content)}
        return {
            "name": self.name,
            "height": height,
            "width": width,
            "picture": picture(self.pixels),
            "objects": self.objects(),
            "mask": mask,
        }


def outlined_mask(mask: np.ndarray) -> np.ndarray:
    """A mask with as many pixels as its outlines are drawn from."""
    shrink = max(1.0, max(mask.shape) / _LONGEST_MASK)
    return resize_mask(mask, (max(1, round(mask.shape[0] / shrink)), max(1, round(mask.shape[1] / shrink))))


def backbone_title(name: str) -> str:
    """A backbone's name for people: of a directory the last part."""
    title = control_title(name)
    return Path(title).name if Path(title).is_absolute() else title


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
    """Read whatever counts as an image; `number` names it if nothing else does. Raises as `bindkit.affinity`."""
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
