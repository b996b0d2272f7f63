"""Published data sets of a picture and its masks for each scene: PASCAL VOC, Cityscapes, DAVIS, ADE20K's instances."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from bindkit.scenes.decoding import of_8_bits
from bindkit.scenes.reading import SPLIT_FILES, Listed, ListedScenes, children, in_both, leads_out, lines_in
from bindkit.scenes.scene import OFFICIAL_SPLITS

VOID = 255
"""In masks of VOC and DAVIS."""

_VOC_NAMES = (
    "aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, motorbike, person, "
    "pottedplant, sheep, sofa, train, tvmonitor"
)
VOC_CLASSES = dict(enumerate(_VOC_NAMES.split(", "), start=1))


class VocScenes(ListedScenes):
    """``voc:`` scenes: the segmentation part of PASCAL VOC (VOC2012), as its archive unpacks.

    ::

        DIR/JPEGImages/NAME.jpg
        DIR/SegmentationObject/NAME.png               palette: number of the object, 255 at borders
        DIR/SegmentationClass/NAME.png                palette: class, 255 at borders
        DIR/ImageSets/Segmentation/train.txt val.txt  a name a line: the official splits

    or all that in ``DIR/VOC2012`` (so give ``VOCdevkit``, or ``VOCdevkit/VOC2012``). Palette indices count, colours do
    not. What is 255 in either mask (borders, and objects hard to tell) is unlabelled in both.

    Everingham, Van Gool, Williams, Winn, Zisserman: The PASCAL Visual Object Classes Challenge, 2010.
    """

    scheme, what, inner = "voc", "PASCAL VOC", ("ImageSets/Segmentation",)
    layout = "JPEGImages, SegmentationObject, SegmentationClass and ImageSets/Segmentation/train.txt or val.txt"
    mask_kinds = (("gray",), ("gray",))
    class_names = VOC_CLASSES

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


_CITYSCAPES_NAMES = "person, rider, car, truck, bus, caravan, trailer, train, motorcycle, bicycle"
CITYSCAPES_CLASSES = dict(enumerate(_CITYSCAPES_NAMES.split(", "), start=24))


class CityscapesScenes(ListedScenes):
    """``cityscapes:`` scenes: Cityscapes with its fine annotations, as its two archives unpack.

    ::

        DIR/leftImg8bit/train/CITY/NAME_leftImg8bit.png
        DIR/gtFine/train/CITY/NAME_gtFine_instanceIds.png    16-bit; also val

    ``train`` and ``val`` are the official splits; the test part has no annotations. A pixel of value 26001 belongs to
    the car (class 26) of number 1. Values below 1000 say a class and no object: road or sky, which the data set does
    not part into objects, and groups ("cargroup") in which annotators could not. Both are unlabelled here, like COCO's
    crowds: an object is what its data set calls one (ADE20K's full release does so of a wall or the sky, which are
    objects there). So are values of 1000 and above of classes without instances, which some versions of the annotation
    tools write.

    Cordts, Omran, Ramos, Rehfeld, Enzweiler, Benenson, Franke, Roth, Schiele: The Cityscapes Dataset for Semantic Urban
    Scene Understanding, 2016. Classes: ``cityscapesscripts/helpers/labels.py``.
    """

    scheme, what, inner = "cityscapes", "Cityscapes", ("gtFine/train", "gtFine/val")
    layout = "leftImg8bit/train/CITY/*_leftImg8bit.png with gtFine/train/CITY/*_gtFine_instanceIds.png, and val"
    mask_kinds = (("gray",),)
    class_names = CITYSCAPES_CLASSES

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
        classes = ids // 1000
        is_object = np.isin(classes, list(CITYSCAPES_CLASSES))
        return ids * is_object, classes * is_object


DAVIS_CLASSES: dict[int, str] = {}


class DavisScenes(ListedScenes):
    """``davis:`` scenes: frames of DAVIS 2017, as its archive (480p) unpacks.

    ::

        DIR/JPEGImages/480p/VIDEO/00000.jpg
        DIR/Annotations/480p/VIDEO/00000.png      palette: number of the object, 0 elsewhere; 255 is unlabelled
        DIR/ImageSets/2017/train.txt val.txt      a video a line: the official splits

    Frames of one video are nearly the same picture: they are one group, and never lie on both sides of a split,
    whatever else is asked for. ``davis:DIR,every=10`` takes every tenth frame of each video, from its first. DAVIS
    names no classes: there are no twins and no figures of them.

    Pont-Tuset, Perazzi, Caelles, Arbelaez, Sorkine-Hornung, Van Gool: The 2017 DAVIS Challenge on Video Object
    Segmentation.
    """

    scheme, what, inner = "davis", "DAVIS 2017", ("ImageSets/2017",)
    layout = "JPEGImages/480p/VIDEO/*.jpg, Annotations/480p/VIDEO/*.png and ImageSets/2017/train.txt or val.txt"
    mask_kinds = (("gray",),)
    own_options: ClassVar = {"every": ("[1-9][0-9]{0,5}", "take every so many-th frame of a video, default 1")}
    class_names = DAVIS_CLASSES

    def listed(self) -> Iterator[Listed]:
        """Videos in the order of the lists, training first; frames by name."""
        every = int(self.options.own.get("every", 1))
        for split, file in SPLIT_FILES.items():
            for video in lines_in(self.root / "ImageSets" / "2017" / f"{file}.txt"):
                pictures, masks = (self.root / part / "480p" / video for part in ("JPEGImages", "Annotations"))
                frames = [] if leads_out(pictures, self.root) else [*in_both(pictures, ".jpg", masks, ".png")][::every]
                for frame, files in frames:
                    yield Listed(f"{video}/{frame}", files, split, group=video)
                if not frames:
                    yield Listed(video, (pictures / "00000.jpg",), split)

    def labels(self, position: int, values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """No pixel has a class."""
        instances = np.where(values[0] == VOID, 0, values[0]).astype(np.int32)
        return instances, np.zeros_like(instances)


_ADE20K_NAMES = (
    "bed, windowpane, cabinet, person, door, table, curtain, chair, car, painting, sofa, shelf, mirror, armchair, "
    "seat, fence, desk, wardrobe, lamp, bathtub, railing, cushion, box, column, signboard, chest of drawers, counter, "
    "sink, fireplace, refrigerator, stairs, case, pool table, pillow, screen door, bookcase, coffee table, toilet, "
    "flower, book, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, arcade machine, bus, "
    "towel, light, truck, chandelier, awning, streetlight, booth, television receiver, airplane, apparel, pole, "
    "bannister, ottoman, bottle, van, ship, fountain, washer, plaything, stool, barrel, basket, bag, minibike, oven, "
    "ball, food, step, trade name, microwave, pot, animal, bicycle, dishwasher, screen, sculpture, hood, sconce, "
    "vase, traffic light, tray, ashcan, fan, plate, monitor, bulletin board, radiator, glass, clock, flag"
)
ADE20K_CLASSES = dict(enumerate(_ADE20K_NAMES.split(", "), start=1))


class Ade20kInstanceScenes(ListedScenes):
    """``ade20k-instances:`` scenes: the instance masks of the scene-parsing benchmark (Places Challenge 2017).

    ::

        DIR/images/training/NAME.jpg
        DIR/annotations_instance/training/NAME.png    RGB: R is the class, G the object; also validation

    as in ``ADEChallengeData2016`` with ``annotations_instance`` beside its ``annotations``. ``training`` and
    ``validation`` are the official splits. Objects of 100 classes are annotated, walls and sky are not. A number in G
    is to be one object, whatever its class; where two classes share one all the same, they are two objects. G = 0 is
    unlabelled.

    Masks and classes: https://github.com/CSAILVision/placeschallenge, ``instancesegmentation``.
    """

    scheme, what = "ade20k-instances", "instance release of ADE20K"
    inner = tuple(f"annotations_instance/{split}" for split in OFFICIAL_SPLITS)
    layout = "images/training/*.jpg with annotations_instance/training/*.png, and validation"
    mask_kinds = (("rgb",),)
    class_names = ADE20K_CLASSES

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
