"""A shard's files as bytes, and back: labels as one safetensors file, activations mapped into memory."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy
from torch import Tensor

from bindkit.cache.encoding import ACTIVATIONS, ENCODINGS, SCALES
from bindkit.cache.manifest import FileRecord, Manifest, layer_folder, shard_file
from bindkit.cache.remote import fetch
from bindkit.errors import CacheDamagedError
from bindkit.files import differences, parse_json

Labels = dict[str, np.ndarray]
Stamp = Mapping[str, str] | None

COLUMNS: dict[str, tuple[type, tuple[int, ...]]] = {
    **{name: (np.int32, ()) for name in ("instances", "classes", "window", "patch")},
    "purity": (np.float32, ()),
    "corners": (np.int32, (2,)),
}
"""What is known of each row: dtype, and shape of one entry."""

OF_SCENES: dict[str, tuple[type, tuple[int, ...]]] = {"scene_rows": (np.int64, ()), "scene_digests": (np.uint8, (32,))}
"""Of each scene of a shard in order, skipped ones (0) included: its number of rows, and the SHA-256 of its pixels, so
that layers added later are known to be of the same images."""

BYTES_PER_ROW = sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in COLUMNS.values())
BYTES_PER_SCENE = sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in OF_SCENES.values())

REPAIR = "run `bindkit verify PATH --repair` (or cache.repair()) and the same cache_activations call again"


def stack(name: str, parts: Sequence[np.ndarray]) -> np.ndarray:
    """A column's parts one below the other, in the column's dtype; empty where there are none."""
    dtype, shape = (COLUMNS | OF_SCENES)[name]
    return np.concatenate([np.empty((0, *shape), dtype), *parts], dtype=dtype)


def labels_to_bytes(labels: Labels, stamp: Stamp = None) -> bytes:
    """The content of a labels file, stamped with what its manifest says of it (`Manifest.stamp`)."""
    # safetensors silently corrupts arrays that are not contiguous.
    columns = {name: np.ascontiguousarray(column) for name, column in labels.items()}
    return safetensors_numpy.save(columns, _metadata(stamp))


def labels_from_file(file: Path, stamp: Stamp = None) -> Labels:
    """Read a labels file. Raises CacheDamagedError if it is missing, is none, or carries another stamp."""
    try:
        content = file.read_bytes()
        labels = safetensors_numpy.load(content)
        n_rows, n_scenes = int(labels["scene_rows"].sum()), len(labels["scene_rows"])
        expected = {name: (dtype, (n_rows, *shape)) for name, (dtype, shape) in COLUMNS.items()}
        expected |= {name: (dtype, (n_scenes, *shape)) for name, (dtype, shape) in OF_SCENES.items()}
        if labels.keys() != expected.keys():
            raise ValueError(f"it holds {', '.join(labels)}")
        for name, (dtype, shape) in expected.items():
            array, known = labels[name], f"{np.dtype(dtype)} {list(shape)}"
            if array.dtype != dtype or array.shape != shape:
                raise ValueError(f"{name!r} of a shard must be {known}, got {array.dtype} {list(array.shape)}")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CacheDamagedError(f"{file} cannot be read as patch labels ({error}); {REPAIR}") from error
    _require_stamp(file, json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]), stamp)
    return labels


def read_labels(path: Path, manifest: Manifest, split: str, shard: int) -> Labels:
    """Labels of a shard, held against all that the manifest says of them. Raises CacheDamagedError."""
    file, record = fetch(path, shard_file(split, "labels", shard)), manifest.shards[split][shard]
    labels = labels_from_file(file, manifest.stamp(split, shard))
    ids, most = manifest.shard_ids(split, shard), manifest.identity.patches_per_scene
    rows = labels["scene_rows"].tolist()
    empty = [scene_id for scene_id, count in zip(ids, rows, strict=False) if not count]
    largest = max(rows, default=0)
    wrong = {
        f"{len(rows)} scenes, the manifest {len(ids)}": len(rows) != len(ids),
        f"{sum(rows)} rows, the manifest {record.rows}": sum(rows) != record.rows,
        f"{largest} rows of one scene, the manifest at most {most}": most != "all" and largest > int(most),
        f"{len(empty)} scenes without rows, the manifest others": empty != [scene.id for scene in record.skipped],
    }
    for said, is_wrong in wrong.items():
        if is_wrong:
            raise CacheDamagedError(f"{file} has {said}; {REPAIR}")
    return labels


def layer_stamp(stamp: Stamp, layer: int) -> dict[str, str] | None:
    """What an activations file says of itself: its layer, and the digest of the stamp of the labels beside it."""
    if stamp is None:
        return None
    return {"layer": str(layer), "labels": hashlib.sha256(_text(stamp).encode()).hexdigest()[:8]}


def activations_to_parts(
    blocks: Sequence[Mapping[str, Tensor]], d_model: int, dtype: str, stamp: Stamp = None
) -> list[bytes | memoryview]:
    """The content of an activations file, stamped with its `layer_stamp`, in parts to be written one after the other.

    Each block is what `Encoding.encode` gave of some rows; they lie one below the other. The file is one of
    safetensors (a header in JSON, padded to 8 bytes, then the numbers), made without a copy of them.
    """
    encoding, n_rows = ENCODINGS[dtype], sum(len(block[ACTIVATIONS]) for block in blocks)
    shapes: dict[str, tuple[str, list[int], int]] = {}
    if encoding.scaled:
        shapes[SCALES] = ("F32", [n_rows], 4 * n_rows)
    shapes[ACTIVATIONS] = (encoding.in_file, [n_rows, d_model], n_rows * d_model * encoding.stored.itemsize)
    header: dict[str, Any] = {} if stamp is None else {"__metadata__": _metadata(stamp)}
    start = 0
    for name, (kind, shape, n_bytes) in shapes.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, start + n_bytes]}
        start += n_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    arrays = [block[name].contiguous().reshape(-1).view(torch.uint8).numpy() for name in shapes for block in blocks]
    return [len(text).to_bytes(8, "little") + text, *(array.data for array in arrays if array.size)]


def read_activations(path: Path, manifest: Manifest, split: str, shard: int, layer: int) -> dict[str, Tensor]:
    """Activations of a shard, mapped into memory and held against the manifest. Raises CacheDamagedError."""
    record, identity = manifest.shards[split][shard], manifest.identity
    folder, stamp = layer_folder(layer), layer_stamp(manifest.stamp(split, shard), layer)
    file, known = fetch(path, shard_file(split, folder, shard)), record.files[folder]
    return map_activations(file, known, record.rows, identity.d_model, identity.dtype, stamp)


def map_activations(
    file: Path, record: FileRecord, rows: int, d_model: int, dtype: str, stamp: Stamp = None
) -> dict[str, Tensor]:
    """Map an activations file into memory, by name of its tensors; only rows that are looked at are read from disk.

    The file is opened read-only and no file descriptor stays open, so that thousands of shards can be mapped at once.
    Raises CacheDamagedError if it is missing, cut short, of another shape, dtype or `layer_stamp`. (A changed byte is
    found by `verify` only.)
    """
    encoding = ENCODINGS[dtype]
    wanted = {ACTIVATIONS: (encoding.in_file, [rows, d_model], encoding.stored)}
    if encoding.scaled:
        wanted[SCALES] = ("F32", [rows], torch.float32)
    try:
        size = file.stat().st_size
        if size != record.n_bytes:
            raise CacheDamagedError(f"{file} has {size:,} bytes, the manifest says {record.n_bytes:,}; {REPAIR}")
        with file.open("rb") as stream:
            start = 8 + int.from_bytes(stream.read(8), "little")
            header = parse_json(stream.read(start - 8))
        found = {name: (entry["dtype"], entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
        places = {name: header[name]["data_offsets"] for name in found}
        shape = found[ACTIVATIONS][1]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError) as error:
        raise CacheDamagedError(f"{file} cannot be read as activations ({error!r}); {REPAIR}") from error
    n_bytes = {name: math.prod(shape) * stored.itemsize for name, (_, shape, stored) in wanted.items()}
    lengths = {name: place[1] - place[0] for name, place in places.items()}
    if shape != [rows, d_model] or (lengths.get(ACTIVATIONS), size - start) != (
        n_bytes[ACTIVATIONS],
        sum(lengths.values()),
    ):
        raise CacheDamagedError(
            f"{file} holds activations {shape} but the manifest promises {rows} rows of width {d_model}; {REPAIR}"
        )
    if {name: entry[:2] for name, entry in wanted.items()} != found or lengths != n_bytes:
        kinds = ", ".join(f"{name} {kind}" for name, (kind, _) in found.items())
        raise CacheDamagedError(f"{file} holds {kinds} but the manifest promises {dtype}; {REPAIR}")
    _require_stamp(file, header, stamp)
    storage: Any = torch.UntypedStorage.from_file(str(file), shared=False, nbytes=size)
    content = torch.empty(0, dtype=torch.uint8).set_(storage)
    return {
        name: content[start + places[name][0] : start + places[name][1]].view(stored).reshape(shape)
        for name, (_, shape, stored) in wanted.items()
    }


def _text(stamp: Mapping[str, str]) -> str:
    """Of names and values without blanks: JSON within a header's JSON would double every quote."""
    return " ".join(f"{name}={value}" for name, value in stamp.items())


def _metadata(stamp: Stamp) -> dict[str, str] | None:
    """What a file is of, for its header. One entry only: safetensors keeps several in no particular order."""
    return None if stamp is None else {"of": _text(stamp)}


def _require_stamp(file: Path, header: Mapping[str, Any], stamp: Stamp) -> None:
    """Raise CacheDamagedError, naming what differs, if a file says something else of itself than the manifest does."""
    found = header.get("__metadata__", {}).get("of")
    if found == (None if stamp is None else _text(stamp)):
        return
    differing = "only one of them says what it is of"
    if found is not None and stamp is not None:
        said = dict(part.partition("=")[::2] for part in found.split(" "))
        differing = "; ".join(differences(said, stamp, ("the file", "the manifest")))
    raise CacheDamagedError(
        f"{file} is of something else than the manifest says ({differing}): one of the two was edited or replaced, or "
        f"this cache was opened before it was computed anew (then open it again); {REPAIR}"
    )
