"""``ade20k-instances:`` scenes: the instance masks that go with the scene-parsing benchmark (Places Challenge 2017).

::

    DIR/images/training/NAME.jpg
    DIR/annotations_instance/training/NAME.png    RGB: R is the class, G the object; also validation

as in ``ADEChallengeData2016`` with ``annotations_instance`` beside its ``annotations``. ``training`` and ``validation``
are the official splits. Objects of 100 classes are annotated, walls and sky are not. A number in G is to be one object,
whatever its class; where two classes share one all the same, they are two objects. G = 0 is unlabelled.

Masks and classes: https://github.com/CSAILVision/placeschallenge, ``instancesegmentation``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bindkit.scenes.decoding import of_8_bits
from bindkit.scenes.reading import Listed, ListedScenes, in_both
from bindkit.scenes.scene import OFFICIAL_SPLITS

_NAMES = (
    "bed, windowpane, cabinet, person, door, table, curtain, chair, car, painting, sofa, shelf, mirror, armchair, "
    "seat, fence, desk, wardrobe, lamp, bathtub, railing, cushion, box, column, signboard, chest of drawers, counter, "
    "sink, fireplace, refrigerator, stairs, case, pool table, pillow, screen door, bookcase, coffee table, toilet, "
    "flower, book, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, arcade machine, bus, "
    "towel, light, truck, chandelier, awning, streetlight, booth, television receiver, airplane, apparel, pole, "
    "bannister, ottoman, bottle, van, ship, fountain, washer, plaything, stool, barrel, basket, bag, minibike, oven, "
    "ball, food, step, trade name, microwave, pot, animal, bicycle, dishwasher, screen, sculpture, hood, sconce, "
    "vase, traffic light, tray, ashcan, fan, plate, monitor, bulletin board, radiator, glass, clock, flag"
)
CLASSES = dict(enumerate(_NAMES.split(", "), start=1))


class Ade20kInstanceScenes(ListedScenes):
    """Scenes of the instance release of ADE20K's scene-parsing benchmark."""

    scheme, what = "ade20k-instances", "instance release of ADE20K"
    inner = tuple(f"annotations_instance/{split}" for split in OFFICIAL_SPLITS)
    layout = "images/training/*.jpg with annotations_instance/training/*.png, and validation"
    mask_kinds = (("rgb",),)
    class_names = CLASSES

    def listed(self) -> Iterator[Listed]:
        """By name, training first."""
        for split in OFFICIAL_SPLITS:
            places = [self.root / part / split for part in ("images", "annotations_instance")]
            for name, files in in_both(places[0], ".jpg", places[1], ".png"):
                yield Listed(name, files, split)

    def labels(self, position: int, values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """An object is a number of one class."""
        classes, numbers, _ = of_8_bits(values[0], self.sources(position)[1])
        is_object = numbers > 0
        return (classes * 256 + numbers) * is_object, classes * is_object
