"""A shard's files as bytes, and back: labels as one safetensors file, activations mapped into memory."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy
from torch import Tensor

from bindkit.cache.layout import FileRecord
from bindkit.errors import CacheDamagedError, InvalidParameterError
from bindkit.files import parse_json

BYTES_PER_ROW = 4 * 4 + 4 + 2 * 4
"""Labels of one row: instance, class, purity, window, patch and a corner."""
BYTES_PER_SCENE = 8 + 32
"""A scene's number of rows and the digest of its image."""

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

    def to_bytes(self) -> bytes:
        """The content of a labels file."""
        # safetensors silently corrupts arrays that are not contiguous.
        return safetensors_numpy.save({f.name: np.ascontiguousarray(getattr(self, f.name)) for f in fields(self)})

    @classmethod
    def read(cls, file: Path) -> ShardLabels:
        """Read a labels file.

        Raises
        ------
        CacheDamagedError
            If it is missing or is no labels file.
        """
        try:
            return cls(**safetensors_numpy.load(file.read_bytes()))
        except (OSError, SafetensorError, TypeError, KeyError, InvalidParameterError) as error:
            raise CacheDamagedError(f"{file} cannot be read as patch labels ({error}); {REPAIR}") from error


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


def activations_to_bytes(blocks: list[np.ndarray], d_model: int, dtype: str) -> bytes:
    """The content of an activations file: the blocks ``[rows, d_model]`` one below the other."""
    rows = np.concatenate(blocks) if blocks else np.empty((0, d_model), dtype)
    return safetensors_numpy.save({"activations": np.ascontiguousarray(rows)})


def map_activations(file: Path, record: FileRecord, rows: int, d_model: int) -> Float[Tensor, "row d_model"]:
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

    Raises
    ------
    CacheDamagedError
        If the file is missing, cut short, or of another shape or dtype. (A changed byte is found by `verify` only.)
    """
    try:
        size = file.stat().st_size
        if size != record.n_bytes:
            raise CacheDamagedError(f"{file} has {size:,} bytes, the manifest says {record.n_bytes:,}; {REPAIR}")
        with file.open("rb") as stream:
            start = 8 + int.from_bytes(stream.read(8), "little")
            described = parse_json(stream.read(start - 8))["activations"]
        dtype, shape = _TORCH_DTYPES[described["dtype"]], tuple(described["shape"])
    except (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError) as error:
        raise CacheDamagedError(f"{file} cannot be read as activations ({error!r}); {REPAIR}") from error
    if shape != (rows, d_model) or start + rows * d_model * dtype.itemsize != size:
        raise CacheDamagedError(
            f"{file} holds activations {list(shape)} but the manifest promises {rows} rows of width {d_model}; {REPAIR}"
        )
    storage: Any = torch.UntypedStorage.from_file(str(file), shared=False, nbytes=size)
    content = torch.empty(0, dtype=torch.uint8).set_(storage)
    return content[start:].view(dtype).reshape(rows, d_model)
