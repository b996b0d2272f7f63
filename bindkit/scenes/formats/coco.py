"""``coco:`` scenes: pictures and COCO's JSON files of instances, with polygons and run lengths of either kind.

::

    DIR/annotations/instances_train2017.json  instances_val2017.json
    DIR/train2017/*.jpg  val2017/*.jpg

which are the official splits (other years too, one at a time). ``coco:DIR,annotations=FILE,images=FOLDER``, both in DIR
(by default pictures lie in DIR itself), reads one file of any name, without official splits.

Every annotation is an object, but crowd regions (``iscrowd``), which hold several: what lies in them alone is
unlabelled. Where objects overlap, the one with fewer pixels lies on top, of equal ones the later; numbers of objects
count the annotations of their picture. Class ids are those of ``categories``. Pictures without an object are left out,
by name. The JSON file is parsed whole on opening (450 MB of 2017's training part: about a minute and 2 GB of memory)
and kept packed.

Lin et al.: Microsoft COCO: Common Objects in Context, 2014. Needs ``pip install 'bindkit[coco]'``.
"""

from __future__ import annotations

import marshal
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bindkit.errors import BrokenSceneError, SceneSetError
from bindkit.files import parse_json
from bindkit.scenes.decoding import HIGHEST_ID, Header, StoredPixels
from bindkit.scenes.reading import SPLIT_FILES, Listed, ListedScenes, ReadingOptions, children, leads_out, optional

LIBRARY = "pycocotools.mask"
_PREFIX = "instances_"
_FILE = r"[^,\\:]+"
OWN_OPTIONS = {
    "annotations": (_FILE, "a JSON file of instances, in the directory"),
    "images": (_FILE, "the folder in the directory that its file names start from, default the directory itself"),
}


class CocoScenes(ListedScenes):
    """Scenes of COCO, and of what is annotated like it."""

    scheme, what, inner = "coco", "COCO", (".",)
    layout = "annotations/instances_train2017.json or instances_val2017.json with pictures in train2017/ and val2017/"
    known_options = ("max_pixels", "orientation")
    own_options = OWN_OPTIONS
    may_be_soft = False

    def __init__(self, root: Path, options: ReadingOptions) -> None:
        optional(LIBRARY, self.scheme)
        self.class_names: dict[int, str] = {}
        self._packed: dict[Path, bytes] = {}
        self._as_opened: dict[Path, tuple[int, int]] = {}
        super().__init__(root, options)

    def annotation_files(self) -> Iterator[tuple[Path, Path, str | None]]:
        """JSON file, folder of its pictures, and split."""
        own = self.options.own
        if own:
            if "annotations" not in own:
                raise SceneSetError(f"{self.uri}: images= goes with annotations=FILE, the file of these pictures")
            yield self.root / own["annotations"], self.root / own.get("images", "."), None
            return
        files = [path for path in children(self.root / "annotations") if path.name.startswith(_PREFIX)]
        for split, start in SPLIT_FILES.items():
            found = [path for path in files if path.name.startswith(_PREFIX + start) and path.suffix == ".json"]
            if len(found) > 1:
                names = ", ".join(path.name for path in found)
                raise SceneSetError(
                    f"{self.root} has {names}; choose one: coco:DIR,annotations=annotations/FILE,images=DIR"
                )
            for path in found:
                yield path, self.root / path.stem.removeprefix(_PREFIX), split

    def listed(self) -> Iterator[Listed]:
        """In the order of the file's pictures, training first."""
        for path, folder, split in self.annotation_files():
            if reason := leads_out(path, self.root) or leads_out(folder, self.root):
                raise SceneSetError(reason)
            try:
                self._as_opened[path] = file_state(path)
                content = parse_json(path.read_text(encoding="utf-8-sig"), packed_annotation)
                names = {int(one["id"]): str(one["name"]) for one in content["categories"]}
                images = content["images"]
                of: dict[Any, list[Any]] = {one["id"]: [] for one in images}
                for one in content["annotations"]:
                    of[one["image_id"]].append([one["segmentation"], int(one["category_id"]), bool(one.get("iscrowd"))])
                rows = [(str(one["file_name"]), int(one["height"]), int(one["width"]), one["id"]) for one in images]
            except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
                raise SceneSetError(
                    f"{path} cannot be read as COCO's instances ({type(error).__name__}: {error}); expected JSON with "
                    "images, annotations (of those images, with segmentation) and categories"
                ) from error
            if len(of) != len(images):
                raise SceneSetError(f"{path} has two pictures of one id; number the pictures and annotations anew")
            if not all(0 < class_id <= HIGHEST_ID for class_id in names):
                raise SceneSetError(f"{path}: class ids are 1 to {HIGHEST_ID}, 0 means none; number them anew")
            if any(self.class_names.get(class_id, name) != name for class_id, name in names.items()):
                raise SceneSetError(f"{path}: its categories differ from the other file's; open them one by one")
            self.class_names |= names
            del content, images
            for name, height, width, number in rows:
                objects = of.pop(number)
                scene_id = name.removesuffix(Path(name).suffix)
                if folder != self.root:
                    scene_id = f"{folder.name}/{scene_id}"
                reason = None
                if all(is_crowd for _, _, is_crowd in objects):
                    reason = f"{path}: {name} has no annotated object" + (", only crowd regions" if objects else "")
                else:
                    packed = zlib.compress(marshal.dumps([height, width, objects]), 1)
                    self._packed.setdefault(folder / name, packed)
                yield Listed(scene_id, (folder / name, path), split, reason=reason)

    def _annotations(self, position: int) -> tuple[int, int, list[Any]]:
        """Height, width, and for each annotation its segmentation, class id and whether it is a crowd."""
        picture, path = self.sources(position)
        if file_state(path) != self._as_opened[path]:
            raise SceneSetError(f"{path} has changed since it was opened; open the scenes again")
        height, width, objects = marshal.loads(zlib.decompress(self._packed[picture]))
        most = self.options.max_pixels
        if not (height > 0 and width > 0 and height * width <= most):
            raise BrokenSceneError(f"{path}: a picture of {height} x {width} px; the limit is {most:,}")
        return height, width, objects

    def mask_header(self, position: int) -> Header:
        """As the JSON file says."""
        return Header(self._annotations(position)[:2], 1)

    def read_mask(self, position: int, number: int) -> StoredPixels:
        """Objects drawn over each other, the smallest on top; a crowd is none."""
        coco = optional(LIBRARY, self.scheme)

        path = self.sources(position)[1]
        height, width, objects = self._annotations(position)
        drawn: list[tuple[int, int, Any]] = []
        for k, (segmentation, class_id, is_crowd) in enumerate(objects, start=1):
            if class_id not in self.class_names:
                raise BrokenSceneError(
                    f"{path}: {self.ids[position]} has an object of class {class_id}, which has no name"
                )
            if not is_crowd:
                try:
                    packed = packed_mask(marshal.loads(segmentation), height, width)
                except (ValueError, TypeError, KeyError, OverflowError) as error:
                    raise BrokenSceneError(f"{path}: annotation {k} of {self.ids[position]}: {error}") from error
                drawn.append((-int(coco.area(packed)), k, packed))
        instances = np.zeros((height, width), np.int32)
        for _, k, packed in sorted(drawn, key=lambda one: one[:2]):
            instances[coco.decode(packed).astype(bool)] = k
        return StoredPixels((height, width), 1, instances)

    def labels(self, position: int, values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The class of an object is that of its annotation."""
        class_of = [0, *(class_id for _, class_id, _ in self._annotations(position)[2])]
        return values[0], np.array(class_of, np.int32)[values[0]]


def file_state(path: Path) -> tuple[int, int]:
    """What changes when a file is written."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def packed_annotation(found: dict[str, Any]) -> dict[str, Any]:
    """An object of the JSON file, its outline as bytes: as numbers of Python's, all of them take six gigabytes."""
    if "segmentation" in found:
        found["segmentation"] = marshal.dumps(found["segmentation"])
    return found


def packed_mask(segmentation: Any, height: int, width: int) -> Any:
    """An object's pixels as pycocotools packs them. Raises ValueError and what other content makes Python raise.

    pycocotools trusts what it is given: polygons far outside take all memory, NaN in one ends the process, and run
    lengths that are too few leave the rest of the picture to chance. So all that is looked at first.
    """
    coco = optional(LIBRARY, CocoScenes.scheme)
    if isinstance(segmentation, list):
        most = 2 * max(height, width)
        for polygon in segmentation:
            if len(polygon) < 6 or len(polygon) % 2 or not all(-most <= coordinate <= most for coordinate in polygon):
                raise ValueError("a polygon of fewer than three points, or one that lies far outside its picture")
        if not segmentation:
            raise ValueError("no polygon")
        return coco.merge(coco.frPyObjects(segmentation, height, width))
    counts = segmentation["counts"]
    runs = run_lengths(counts) if isinstance(counts, str) else [int(run) for run in counts]
    if list(segmentation["size"]) != [height, width] or min(runs, default=-1) < 0 or sum(runs) != height * width:
        raise ValueError("run lengths that do not just cover the picture")
    return coco.frPyObjects({"size": [height, width], "counts": runs}, height, width)


def run_lengths(text: str) -> list[int]:
    """COCO's packed run lengths: 5 bits a character, low ones first; from the fourth on, less the one before last."""
    runs: list[int] = []
    value = shift = 0
    for code in text.encode():
        bits = code - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("run lengths with a character or a number that is none of theirs")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs
