"""A shard's files as bytes, and back: labels as one safetensors file, activations mapped into memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy
from torch import Tensor

from bindkit.cache.identity import differences
from bindkit.cache.layout import FileRecord
from bindkit.errors import CacheDamagedError, InvalidParameterError
from bindkit.files import parse_json

BYTES_PER_ROW = 4 * 4 + 4 + 2 * 4
"""Labels of one row: instance, class, purity, window, patch and a corner."""
BYTES_PER_SCENE = 8 + 32
"""A scene's number of rows and the digest of its image."""

STAMP = "of"
"""Under this name a file's header says what it is of."""

_TORCH_DTYPES = {"F16": torch.float16, "F32": torch.float32}
REPAIR = "run `bindkit verify PATH --repair` (or cache.repair()) and the same cache_activations call again"


@dataclass(frozen=True)
class ShardLabels:
    """Labels of the rows of one shard.

    Attributes
    ----------
    instances, classes, window, patch : int32 arrays of shape (rows,)
    purity : float32 array of shape (rows,)
    corners : int32 array of shape (rows, 2)
        ``(top, left)`` in pixels of the resized scene.
    scene_rows : int64 array of shape (scenes,)
        Rows of each scene of the shard, in order; 0 for a skipped one.
    scene_digests : uint8 array of shape (scenes, 32)
        SHA-256 of each scene's pixels, so that layers added later are known to be of the same images; 0 if skipped.
    """

    instances: np.ndarray
    classes: np.ndarray
    purity: np.ndarray
    window: np.ndarray
    patch: np.ndarray
    corners: np.ndarray
    scene_rows: np.ndarray
    scene_digests: np.ndarray

    def __post_init__(self) -> None:
        n_rows, n_scenes = int(self.scene_rows.sum()), len(self.scene_rows)
        for name, (dtype, shape) in _expected(n_rows, n_scenes).items():
            array = getattr(self, name)
            if array.dtype != dtype or array.shape != shape:
                raise InvalidParameterError(
                    f"labels {name!r} of a shard must be {np.dtype(dtype)} {list(shape)}, got {array.dtype} "
                    f"{list(array.shape)}"
                )

    def to_bytes(self, stamp: Mapping[str, str] | None = None) -> bytes:
        """The content of a labels file, stamped with what its manifest says of it (`Manifest.stamp`)."""
        # safetensors silently corrupts arrays that are not contiguous.
        columns = {f.name: np.ascontiguousarray(getattr(self, f.name)) for f in fields(self)}
        return safetensors_numpy.save(columns, _metadata(stamp))

    @classmethod
    def read(cls, file: Path, stamp: Mapping[str, str] | None = None) -> ShardLabels:
        """Read a labels file, and hold it against the stamp that it should carry, if any.

        Raises
        ------
        CacheDamagedError
            If it is missing, is no labels file, or carries another stamp.
        """
        try:
            content = file.read_bytes()
            labels = cls(**safetensors_numpy.load(content))
        except (OSError, SafetensorError, TypeError, KeyError, InvalidParameterError) as error:
            raise CacheDamagedError(f"{file} cannot be read as patch labels ({error}); {REPAIR}") from error
        _require_stamp(file, json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]), stamp)
        return labels


def _expected(n_rows: int, n_scenes: int) -> dict[str, tuple[type, tuple[int, ...]]]:
    return {
        "instances": (np.int32, (n_rows,)),
        "classes": (np.int32, (n_rows,)),
        "purity": (np.float32, (n_rows,)),
        "window": (np.int32, (n_rows,)),
        "patch": (np.int32, (n_rows,)),
        "corners": (np.int32, (n_rows, 2)),
        "scene_rows": (np.int64, (n_scenes,)),
        "scene_digests": (np.uint8, (n_scenes, 32)),
    }


def layer_stamp(stamp: Mapping[str, str] | None, layer: int) -> dict[str, str] | None:
    """What an activations file says of itself: its layer, and the digest of the stamp of the labels beside it."""
    if stamp is None:
        return None
    return {"layer": str(layer), "labels": hashlib.sha256(_text(stamp).encode()).hexdigest()[:8]}


def activations_to_bytes(
    blocks: list[np.ndarray], d_model: int, dtype: str, stamp: Mapping[str, str] | None = None
) -> bytes:
    """The content of an activations file: the blocks ``[rows, d_model]`` one below the other, and its `layer_stamp`."""
    rows = np.concatenate(blocks) if blocks else np.empty((0, d_model), dtype)
    return safetensors_numpy.save({"activations": np.ascontiguousarray(rows)}, _metadata(stamp))


def map_activations(
    file: Path, record: FileRecord, rows: int, d_model: int, dtype: str, stamp: Mapping[str, str] | None = None
) -> Float[Tensor, "row d_model"]:
    """Map an activations file into memory; only the rows that are looked at are read from disk.

    The file is opened read-only and no file descriptor stays open, so that thousands of shards can be mapped at once.

    Parameters
    ----------
    file : Path
        To be mapped.
    record : FileRecord
        What the manifest says of it.
    rows, d_model : int
        The shape that the manifest promises.
    dtype : "float16" or "float32"
        Likewise.
    stamp : mapping, optional
        The `layer_stamp` that the file should carry.

    Raises
    ------
    CacheDamagedError
        If the file is missing, cut short, of another shape or dtype, or of other scenes or settings. (A changed byte
            is found by `verify` only.)
    """
    try:
        size = file.stat().st_size
        if size != record.n_bytes:
            raise CacheDamagedError(f"{file} has {size:,} bytes, the manifest says {record.n_bytes:,}; {REPAIR}")
        with file.open("rb") as stream:
            start = 8 + int.from_bytes(stream.read(8), "little")
            header = parse_json(stream.read(start - 8))
        stored, shape = _TORCH_DTYPES[header["activations"]["dtype"]], tuple(header["activations"]["shape"])
    except (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError) as error:
        raise CacheDamagedError(f"{file} cannot be read as activations ({error!r}); {REPAIR}") from error
    if shape != (rows, d_model) or start + rows * d_model * stored.itemsize != size:
        raise CacheDamagedError(
            f"{file} holds activations {list(shape)} but the manifest promises {rows} rows of width {d_model}; {REPAIR}"
        )
    if stored != getattr(torch, dtype):
        raise CacheDamagedError(f"{file} holds {stored} but the manifest promises {dtype}; {REPAIR}")
    _require_stamp(file, header, stamp)
    storage: Any = torch.UntypedStorage.from_file(str(file), shared=False, nbytes=size)
    content = torch.empty(0, dtype=torch.uint8).set_(storage)
    return content[start:].view(stored).reshape(rows, d_model)


def _text(stamp: Mapping[str, str]) -> str:
    """Of names and values without blanks: JSON within a header's JSON would double every quote."""
    return " ".join(f"{name}={value}" for name, value in stamp.items())


def _metadata(stamp: Mapping[str, str] | None) -> dict[str, str] | None:
    """One entry only: safetensors keeps several in no particular order."""
    return None if stamp is None else {STAMP: _text(stamp)}


def _require_stamp(file: Path, header: Mapping[str, Any], stamp: Mapping[str, str] | None) -> None:
    """Raise CacheDamagedError, naming what differs, if a file says something else of itself than the manifest does."""
    found = header.get("__metadata__", {}).get(STAMP)
    if found == (None if stamp is None else _text(stamp)):
        return
    if found is None or stamp is None:
        differing = "only one of them says what it is of"
    else:
        said = dict(part.partition("=")[::2] for part in found.split(" "))
        differing = "; ".join(differences(said, stamp, ("the file", "the manifest")))
    raise CacheDamagedError(
        f"{file} is of something else than the manifest says ({differing}): one of the two was edited or replaced, or "
        f"this cache was opened before it was computed anew (then open it again); {REPAIR}"
    )
