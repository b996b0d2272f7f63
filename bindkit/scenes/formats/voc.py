"""``voc:`` scenes: the segmentation part of PASCAL VOC (VOC2012), as its archive unpacks.

::

    DIR/JPEGImages/NAME.jpg
    DIR/SegmentationObject/NAME.png               palette: number of the object, 255 at borders
    DIR/SegmentationClass/NAME.png                palette: class, 255 at borders
    DIR/ImageSets/Segmentation/train.txt val.txt  a name a line: the official splits

or all that in ``DIR/VOC2012`` (so give ``VOCdevkit``, or ``VOCdevkit/VOC2012``). Palette indices count, colours do not.
What is 255 in either mask (borders, and objects hard to tell) is unlabelled in both.

Everingham, Van Gool, Williams, Winn, Zisserman: The PASCAL Visual Object Classes Challenge, 2010.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bindkit.scenes.reading import SPLIT_FILES, Listed, ListedScenes, lines_in

VOID = 255
_NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
CLASSES = dict(enumerate(_NAMES, start=1))


class VocScenes(ListedScenes):
    """Scenes of PASCAL VOC."""

    scheme, what, inner = "voc", "PASCAL VOC", ("ImageSets/Segmentation",)
    layout = "JPEGImages, SegmentationObject, SegmentationClass and ImageSets/Segmentation/train.txt or val.txt"
    mask_kinds = (("gray",), ("gray",))
    class_names = CLASSES

    def listed(self) -> Iterator[Listed]:
        """In the order of the lists, training first."""
        folders = {"JPEGImages": "jpg", "SegmentationObject": "png", "SegmentationClass": "png"}
        for split, file in SPLIT_FILES.items():
            for name in lines_in(self.root / "ImageSets" / "Segmentation" / f"{file}.txt"):
                files = tuple(self.root / folder / f"{name}.{ending}" for folder, ending in folders.items())
                yield Listed(name, files, split)

    def labels(self, position: int, values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Both masks, with what is void in either left out of both."""
        void = (values[0] == VOID) | (values[1] == VOID)
        instances, classes = (np.where(void, 0, mask).astype(np.int32) for mask in values)
        return instances, classes
