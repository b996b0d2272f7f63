"""Small data sets with a planted answer, one writer a format, each by hand and not by bindkit."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco

SIZES = {"a": (64, 96), "b": (96, 64), "c": (64, 80), "d": (72, 80)}
SPLIT_OF = {"a": "training", "b": "training", "c": "training", "d": "validation"}


def instances_of(name: str) -> np.ndarray:
    """Four objects: two rectangles, a disc and a corner; 0 around them."""
    height, width = SIZES[name]
    rows, cols = np.mgrid[:height, :width]
    shift = ord(name) % 5
    mask = np.zeros((height, width), np.uint8)
    mask[4 + shift : 20, 5:25] = 1
    mask[4 + shift : 20, 25:40] = 2
    mask[(rows - 40) ** 2 + (cols - 20) ** 2 < (10 + shift) ** 2] = 3
    mask[40:, 40:50] = 4
    mask[50:, 45:60] = 4
    return mask


def image_of(name: str) -> np.ndarray:
    """Smooth, so that JPEG hardly changes it, and different in every scene."""
    height, width = SIZES[name]
    rows, cols = np.mgrid[:height, :width]
    return np.stack([2 * rows, 2 * cols, 40 * (ord(name) % 5) + rows + 0 * cols], -1).astype(np.uint8)


def encode(image: np.ndarray, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **({"quality": 98, "subsampling": 0} if kind == "JPEG" else {}))
    return stream.getvalue()


def palette(mask: np.ndarray) -> bytes:
    """A palette PNG whose colours are not its indices."""
    image = Image.fromarray(mask.astype(np.uint8)).convert("P")
    image.putdata(mask.ravel().tolist())
    image.putpalette([(37 * k + 91) % 256 for k in range(768)])
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@dataclass
class Plan:
    """What is written: class ids of objects 1 to 4 (1 and 2 are twins), and masks and pictures that a test changes."""

    class_ids: tuple[int, ...]
    encode: Callable[[np.ndarray, str], bytes] = encode
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    names: tuple[str, ...] = tuple(SIZES)

    def mask(self, name: str) -> np.ndarray:
        return self.masks.get(name, instances_of(name))

    def classes(self, name: str) -> np.ndarray:
        return np.array([0, *self.class_ids], np.int32)[self.mask(name)]

    def split(self, name: str) -> str:
        return {"training": "train", "validation": "val"}[SPLIT_OF[name]]


def write_voc(root: Path, plan: Plan) -> str:
    for name in plan.names:
        put(root / "VOC2012" / "JPEGImages" / f"{name}.jpg", plan.encode(image_of(name), "JPEG"))
        put(root / "VOC2012" / "SegmentationObject" / f"{name}.png", palette(plan.mask(name)))
        put(root / "VOC2012" / "SegmentationClass" / f"{name}.png", palette(plan.classes(name)))
    write_lists(root / "VOC2012" / "ImageSets" / "Segmentation", plan)
    return f"voc:{root}"


def write_lists(folder: Path, plan: Plan) -> None:
    for split in ("train", "val"):
        put(folder / f"{split}.txt", "".join(f"{name}\n" for name in plan.names if plan.split(name) == split))


def write_davis(root: Path, plan: Plan) -> str:
    for name in plan.names:
        put(root / "JPEGImages" / "480p" / name / "00000.jpg", plan.encode(image_of(name), "JPEG"))
        put(root / "Annotations" / "480p" / name / "00000.png", palette(plan.mask(name)))
    write_lists(root / "ImageSets" / "2017", plan)
    return f"davis:{root}"


def write_cityscapes(root: Path, plan: Plan) -> str:
    for name in plan.names:
        inner = Path(plan.split(name), "ulm")
        put(root / "leftImg8bit" / inner / f"{name}_leftImg8bit.png", plan.encode(image_of(name), "PNG"))
        ids = np.where(plan.mask(name) > 0, 1000 * plan.classes(name) + plan.mask(name), 11)  # 11: building
        put(root / "gtFine" / inner / f"{name}_gtFine_instanceIds.png", encode(ids.astype(np.uint16), "PNG"))
    return f"cityscapes:{root}"


def write_ade20k_instances(root: Path, plan: Plan) -> str:
    for name in plan.names:
        put(root / "images" / SPLIT_OF[name] / f"{name}.jpg", plan.encode(image_of(name), "JPEG"))
        colours = np.stack([plan.classes(name), plan.mask(name), 0 * plan.mask(name)], -1).astype(np.uint8)
        put(root / "annotations_instance" / SPLIT_OF[name] / f"{name}.png", encode(colours, "PNG"))
    return f"ade20k-instances:{root}"


def write_ade20k(root: Path, plan: Plan) -> str:
    for name in plan.names:
        place = root / "images" / "ADE" / SPLIT_OF[name] / "street"
        put(place / f"{name}.jpg", plan.encode(image_of(name), "JPEG"))
        classes = plan.classes(name)
        colours = np.stack([classes // 256 * 10, classes % 256, 60 * plan.mask(name)], -1).astype(np.uint8)
        put(place / f"{name}_seg.png", encode(colours, "PNG"))
        objects = [{"name": f"class {class_id}", "name_ndx": class_id} for class_id in set(plan.class_ids)]
        put(place / f"{name}.json", json.dumps({"annotation": {"object": objects}}))
    return f"ade20k:{root}"


def write_folder(root: Path, plan: Plan) -> str:
    for name in plan.names:
        place = root / SPLIT_OF[name]
        put(place / "images" / f"{name}.jpg", plan.encode(image_of(name), "JPEG"))
        put(place / "instances" / f"{name}.png", encode(plan.mask(name).astype(np.uint16) * 300, "PNG"))
        put(place / "classes" / f"{name}.png", palette(plan.classes(name)))
    put(root / "class_names.json", json.dumps({str(class_id): "x" for class_id in plan.class_ids}))
    return f"folder:{root}"


def runs_of(mask: np.ndarray) -> list[int]:
    """Run lengths down the columns, zeros first; the slow plain way."""
    runs, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if bool(pixel) is not value:
            runs.append(0)
            value = not value
        runs[-1] += 1
    return runs


def segmentation_of(mask: np.ndarray, number: int) -> object:
    """Rectangles as polygons, the disc as packed run lengths, the corner as plain ones."""
    if number <= 2:
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(cols[0]), int(cols[-1]) + 1
        if mask[top:bottom, left:right].all():
            return [[left, top, right, top, right, bottom, left, bottom]]
    if number == 3:
        packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"size": list(mask.shape), "counts": packed["counts"].decode()}
    return {"size": list(mask.shape), "counts": runs_of(mask)}


def coco_content(plan: Plan, names: tuple[str, ...]) -> dict[str, list]:
    images, annotations = [], []
    for k, name in enumerate(names):
        mask = plan.mask(name)
        images.append({"id": 500 + k, "file_name": f"{name}.jpg", "height": mask.shape[0], "width": mask.shape[1]})
        for number in np.setdiff1d(mask, 0).tolist():
            content = {"image_id": 500 + k, "category_id": plan.class_ids[number - 1], "iscrowd": 0}
            annotations.append(
                {"id": 9 * 10**11 + number, "segmentation": segmentation_of(mask == number, number)} | content
            )
    categories = [{"id": class_id, "name": f"thing {class_id}"} for class_id in sorted(set(plan.class_ids))]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(root: Path, plan: Plan) -> str:
    for split in ("train", "val"):
        names = tuple(name for name in plan.names if plan.split(name) == split)
        for name in names:
            put(root / f"{split}2017" / f"{name}.jpg", plan.encode(image_of(name), "JPEG"))
        if names:
            put(root / "annotations" / f"instances_{split}2017.json", json.dumps(coco_content(plan, names)))
    return f"coco:{root}"


def write_hf(root: Path, plan: Plan) -> str:
    import datasets

    parts = {}
    for split, name_of_split in (("training", "train"), ("validation", "validation")):
        names = [name for name in plan.names if SPLIT_OF[name] == split]
        columns = {
            "image": [{"bytes": plan.encode(image_of(name), "JPEG"), "path": None} for name in names],
            "mask": [{"bytes": palette(plan.mask(name)), "path": None} for name in names],
            "classes": [plan.classes(name).tolist() for name in names],
        }
        features = {"image": datasets.Image(), "mask": datasets.Image()}
        features["classes"] = datasets.Sequence(datasets.Sequence(datasets.Value("int32")))
        parts[name_of_split] = datasets.Dataset.from_dict(columns, datasets.Features(features))
    datasets.DatasetDict({split: part for split, part in parts.items() if len(part)}).save_to_disk(str(root))
    return f"hf:{root},classes=classes"


@dataclass(frozen=True)
class Row:
    write: Callable[[Path, Plan], str]
    class_ids: tuple[int, ...]
    ids: str
    """Of scene ``{name}`` in ``{split}``."""
    picture: str = ""
    mask: str = ""
    """Files of a scene, from the data set's root; empty where it has none of its own."""
    named: bool = True


ROWS = {
    "ade20k": Row(write_ade20k, (300, 300, 2, 3687), "{name}", "**/{name}.jpg", "**/{name}_seg.png"),
    "ade20k-instances": Row(write_ade20k_instances, (4, 4, 100, 9), "{name}", "**/{name}.jpg", "**/{name}.png"),
    "coco": Row(write_coco, (18, 18, 90, 1), "{short}2017/{name}", "**/{name}.jpg"),
    "voc": Row(write_voc, (15, 15, 1, 20), "{name}", "**/{name}.jpg", "**/SegmentationObject/{name}.png"),
    "cityscapes": Row(write_cityscapes, (26, 26, 24, 33), "{name}", "**/{name}_left*.png", "**/{name}_gtFine*.png"),
    "davis": Row(write_davis, (0, 0, 0, 0), "{name}/00000", "**/{name}/*.jpg", "**/{name}/*.png", named=False),
    "hf": Row(write_hf, (7, 7, 70000, 1), "{long}/", named=False),
    "folder": Row(write_folder, (5, 5, 200, 1), "{split}/{name}", "**/{name}.jpg", "**/instances/{name}.png"),
}
