"""``cityscapes:`` scenes: Cityscapes with its fine annotations, as its two archives unpack.

::

    DIR/leftImg8bit/train/CITY/NAME_leftImg8bit.png
    DIR/gtFine/train/CITY/NAME_gtFine_instanceIds.png    16-bit; also val

``train`` and ``val`` are the official splits; the test part has no annotations. A pixel of value 26001 belongs to
the car (class 26) of number 1. Values below 1000 say a class and no object: road or sky, which the data set does not
part into objects, and groups ("cargroup") in which annotators could not. Both are unlabelled here, like COCO's crowds:
an object is what its data set calls one (ADE20K's full release does so of a wall or the sky, which are objects there).
So are values of 1000 and above of classes without instances, which some versions of the annotation tools write.

Cordts, Omran, Ramos, Rehfeld, Enzweiler, Benenson, Franke, Roth, Schiele: The Cityscapes Dataset for Semantic Urban
Scene Understanding, 2016. Classes: ``cityscapesscripts/helpers/labels.py``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bindkit.scenes.reading import SPLIT_FILES, Listed, ListedScenes, children, in_both

PER_CLASS = 1000
FIRST, LAST = 24, 33
_NAMES = ("person", "rider", "car", "truck", "bus", "caravan", "trailer", "train", "motorcycle", "bicycle")
CLASSES = dict(enumerate(_NAMES, start=FIRST))


class CityscapesScenes(ListedScenes):
    """Scenes of Cityscapes."""

    scheme, what, inner = "cityscapes", "Cityscapes", ("gtFine/train", "gtFine/val")
    layout = "leftImg8bit/train/CITY/*_leftImg8bit.png with gtFine/train/CITY/*_gtFine_instanceIds.png, and val"
    mask_kinds = (("gray",),)
    class_names = CLASSES

    def listed(self) -> Iterator[Listed]:
        """By city and name, training first."""
        for split, folder in SPLIT_FILES.items():
            places = [self.root / part / folder for part in ("leftImg8bit", "gtFine")]
            for city in sorted({path.name for place in places for path in children(place)}):
                ends = ("_leftImg8bit.png", "_gtFine_instanceIds.png")
                for name, files in in_both(places[0] / city, ends[0], places[1] / city, ends[1]):
                    yield Listed(name, files, split)

    def labels(self, position: int, values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Objects alone; an object's id is the value of its pixels."""
        ids = values[0].astype(np.int32)
        classes = ids // PER_CLASS
        is_object = (classes >= FIRST) & (classes <= LAST)
        return ids * is_object, classes * is_object
