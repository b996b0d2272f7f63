"""Write any scene set in the folder layout of ADE20K's full release, with masks, JSON files and index."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bindkit.errors import InvalidParameterError
from bindkit.scenes.formats.ade20k import BENCHMARK_NAME, INDEX_NAME, benchmark_name
from bindkit.scenes.geometry import object_classes
from bindkit.scenes.scene import OFFICIAL_SPLITS, Scene, SceneSet

RELEASE = "ADE20K_2021_17_01"
HIGHEST_CLASS = 25 * 256 + 255
JPEG_QUALITY = 95


def encode_masks(scene: Scene) -> np.ndarray:
    """Encode both masks as ``_seg.png`` does: R = class // 256 * 10, G = class % 256, B = instance value.

    Instance values are unique within the image and spread over 1..255 as the release spreads them: of k instances
    the j-th gets ``255 j / k``, rounded.
    """
    instances = np.setdiff1d(scene.instances, [0])
    if len(instances) > 255 or scene.classes.max(initial=0) > HIGHEST_CLASS:
        raise InvalidParameterError(
            f"scene {scene.id} has {len(instances)} instances and class ids up to {scene.classes.max(initial=0)}; "
            f"ADE20K's masks hold at most 255 instances and class ids up to {HIGHEST_CLASS}"
        )
    k = len(instances)
    blue = np.array([(510 * j + k) // (2 * k) for j in range(1, k + 1)], dtype=np.int64)
    encoded = np.zeros((*scene.size, 3), dtype=np.uint8)
    encoded[..., 0] = scene.classes // 256 * 10
    encoded[..., 1] = scene.classes % 256
    encoded[..., 2] = np.append(0, blue)[np.searchsorted(np.append(0, instances), scene.instances)]
    return encoded


def _annotation(scene: Scene, filename: str, folder: str, names: dict[int, str]) -> dict[str, Any]:
    """What the release's JSON file beside an image says; of an object's outline, its box."""
    objects = []
    for number, (instance, class_id) in enumerate(object_classes(scene).items()):
        inside = scene.instances == instance
        rows, cols = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        top, bottom, left, right = (int(edge) for edge in (rows[0], rows[-1], cols[0], cols[-1]))
        name = names.get(class_id, "-")
        objects.append(
            {
                "id": number,
                "name": name,
                "name_ndx": class_id,
                "hypernym": [name],
                "raw_name": name,
                "attributes": [],
                "depth_ordering_rank": number + 1,
                "occluded": [],
                "crop": "0",
                "parts": {"hasparts": [], "ispartof": [], "part_level": 0},
                "polygon": {"x": [left, right, right, left], "y": [top, top, bottom, bottom], "click_date": []},
            }
        )
    return {
        "annotation": {
            "filename": filename,
            "folder": folder,
            "imsize": [*scene.size, 3],
            "source": {"folder": "", "filename": scene.id, "origin": "written by bindkit"},
            "scene": folder.split("/")[-2:],
            "object": objects,
        }
    }


def write_ade20k(
    scenes: SceneSet,
    directory: str | Path,
    split: str | Sequence[str] | None = None,
    *,
    index: bool = False,
    benchmark: bool = False,
    quality: int = JPEG_QUALITY,
) -> Path:
    """Write scenes in ADE20K's layout: ``images/ADE/<split>/<topic>/<scene>/ADE_train_00000001.jpg`` and the rest.

    Gives the directory.

    >>> import tempfile
    >>> from bindkit.scenes import open_scenes
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     root = write_ade20k(open_scenes("synthetic:n=2,seed=0"), directory)
    ...     scenes = open_scenes(f"ade20k:{root}")
    >>> list(scenes.ids)
    ['ADE_train_00000001', 'ADE_train_00000002']

    Parameters
    ----------
    scenes : SceneSet
        Every scene must be readable.
    directory : str or Path
        Becomes the release's directory; made if missing. Files of the same names are overwritten.
    split : {"training", "validation"}, sequence of them, optional
        For all scenes or for each. If not given: the scenes' official splits, else all ``"training"``.
    index, benchmark : bool
        Also write ``index_ade20k.pkl``, and ``objectInfo150.csv`` with the scenes' own classes (at most 150).
    quality : int
        Of the JPEG, 1..100, without chroma subsampling. Masks are lossless PNG.

    Raises
    ------
    InvalidParameterError
        For another split, or a scene that the format cannot hold.
    BrokenSceneError
        If a scene cannot be read.
    """
    root = Path(directory)
    names = dict(scenes.class_names)
    asked = (scenes.official_splits or OFFICIAL_SPLITS[0]) if split is None else split
    splits = [asked] * len(scenes) if isinstance(asked, str) else list(asked)
    if set(splits) - set(OFFICIAL_SPLITS) or len(splits) != len(scenes):
        raise InvalidParameterError(
            f"split must be one of {', '.join(OFFICIAL_SPLITS)}, or one of them for each of the {len(scenes)} scenes, "
            f"got {asked!r:.80}"
        )
    numbers = dict.fromkeys(OFFICIAL_SPLITS, 0)
    written: list[dict[str, Any]] = []
    for position, wanted in enumerate(splits):
        scene = scenes[position]
        numbers[wanted] += 1
        stem = f"ADE_{'train' if wanted == OFFICIAL_SPLITS[0] else 'val'}_{numbers[wanted]:08d}"
        n_objects = len(np.unique(scene.instances[scene.instances > 0]))
        inner = f"images/ADE/{wanted}/bindkit/objects_{n_objects}"
        place = root / inner
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image).save(place / f"{stem}.jpg", quality=quality, subsampling=0)
        Image.fromarray(encode_masks(scene)).save(place / f"{stem}_seg.png")
        annotation = _annotation(scene, f"{stem}.jpg", f"{RELEASE}/{inner}", names)
        (place / f"{stem}.json").write_text(json.dumps(annotation, ensure_ascii=False), encoding="utf-8")
        written.append(annotation["annotation"])
    if index:
        class_ids = [[item["name_ndx"] for item in one["object"]] for one in written]
        n_classes = max([0, *names, *chain.from_iterable(class_ids)])
        presence = np.zeros((n_classes, len(written)), dtype=np.uint16)
        for column, present in enumerate(class_ids):
            np.add.at(presence[:, column], np.array(present, dtype=np.int64) - 1, 1)
        content = {
            "filename": [one["filename"] for one in written],
            "folder": [one["folder"] for one in written],
            "scene": ["/".join(one["scene"]) for one in written],
            "objectnames": [names.get(class_id, "-") for class_id in range(1, n_classes + 1)],
            "objectPresence": presence,
        }
        (root / INDEX_NAME).write_bytes(pickle.dumps(content, protocol=4))
    if benchmark:
        with (root / BENCHMARK_NAME).open("w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream)
            table.writerow(["Idx", "Ratio", "Train", "Val", "Stuff", "Name"])
            for number, class_id in enumerate(sorted(names)[:150], start=1):
                table.writerow([number, 0, 0, 0, 0, benchmark_name(names[class_id])])
    return root
