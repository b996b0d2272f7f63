"""``davis:`` scenes: frames of DAVIS 2017, as its archive (480p) unpacks.

::

    DIR/JPEGImages/480p/VIDEO/00000.jpg
    DIR/Annotations/480p/VIDEO/00000.png      palette: number of the object, 0 elsewhere; 255 is unlabelled
    DIR/ImageSets/2017/train.txt val.txt      a video a line: the official splits

Frames of one video are nearly the same picture: they are one group, and never lie on both sides of a split, whatever
else is asked for. ``davis:DIR,every=10`` takes every tenth frame of each video, from its first. DAVIS names no classes:
there are no twins and no figures of them.

Pont-Tuset, Perazzi, Caelles, Arbelaez, Sorkine-Hornung, Van Gool: The 2017 DAVIS Challenge on Video Object
Segmentation.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bindkit.scenes.reading import SPLIT_FILES, Listed, ListedScenes, in_both, leads_out, lines_in

VOID = 255
CLASSES: dict[int, str] = {}
OWN_OPTIONS = {"every": ("[1-9][0-9]{0,5}", "take every so many-th frame of a video, default 1")}


class DavisScenes(ListedScenes):
    """Frames of DAVIS 2017."""

    scheme, what, inner = "davis", "DAVIS 2017", ("ImageSets/2017",)
    layout = "JPEGImages/480p/VIDEO/*.jpg, Annotations/480p/VIDEO/*.png and ImageSets/2017/train.txt or val.txt"
    mask_kinds = (("gray",),)
    own_options = OWN_OPTIONS
    class_names = CLASSES

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
