"""What a cache is of, and what its last bits depend on; where two differ, each field is named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bindkit.cache.layout import SPLITS
from bindkit.errors import InvalidParameterError
from bindkit.scenes.checking import SceneContents

DTYPES = ("float16", "float32")


@dataclass(frozen=True)
class Identity:
    """What a cache is of. Two caches with equal identities hold the same rows.

    Attributes
    ----------
    backbone : dict
        As `Backbone.describe` gives it: name, weights digest, preprocessing, geometry, ...
    scenes_uri : str
    scene_ids : dict
        Split -> scene ids in order, skipped ones included.
    class_names : dict
        Class id -> name.
    benchmark_classes : dict
        Class id -> number in the data set's benchmark, 0 for all others; empty where there is none.
    contents : SceneContents or None
        What the scenes were made from; None where nobody looked (caches of format version 1).
    patches_per_scene : int or "all"
    dtype : "float16" or "float32"
    seed : int
        Of the draw of patches.
    groups : dict
        Scene id -> first scene id of its group, for scenes that belong together; empty where none do.
    """

    backbone: Mapping[str, Any]
    scenes_uri: str
    scene_ids: Mapping[str, tuple[str, ...]]
    class_names: Mapping[int, str]
    patches_per_scene: int | str
    dtype: str
    seed: int
    benchmark_classes: Mapping[int, int] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    contents: SceneContents | None = None

    def __post_init__(self) -> None:
        count = self.patches_per_scene
        if count != "all" and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise InvalidParameterError(f'patches_per_scene must be a positive integer or "all", got {count!r}')
        if self.dtype not in DTYPES:
            raise InvalidParameterError(f'dtype must be "float16" or "float32", got {self.dtype!r}')
        object.__setattr__(self, "backbone", json.loads(json.dumps(dict(self.backbone))))
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise InvalidParameterError(f"seed must be a non-negative integer, got {self.seed!r}")

    @property
    def itemsize(self) -> int:
        """Bytes per stored number."""
        return 2 if self.dtype == "float16" else 4

    def fields(self) -> dict[str, Any]:
        """Flat names and values for comparison.

        The revision is left out: the weights digest says it better. Contents of single scenes are compared apart.
        """
        flat: dict[str, Any] = {}
        _flatten("backbone", {key: value for key, value in self.backbone.items() if key != "revision"}, flat)
        flat["scenes"] = self.scenes_uri
        if self.contents is not None and self.contents.made_by:
            flat["scenes computed by"] = self.contents.made_by
        for split in SPLITS:
            flat[f"scene ids of {split}"] = tuple(self.scene_ids.get(split, ()))
        flat["class_names"] = {int(key): value for key, value in self.class_names.items()}
        if self.benchmark_classes:
            flat["benchmark_classes"] = dict(self.benchmark_classes)
        if self.groups:
            flat["groups"] = dict(sorted(self.groups.items()))
        flat |= {"patches_per_scene": self.patches_per_scene, "dtype": self.dtype, "seed": self.seed}
        return flat


@dataclass(frozen=True)
class Making:
    """What the last bits of activations depend on besides the identity: library versions, device, batch size.

    A cache is read whatever these are, but shards of different making are never mixed in one cache.
    """

    versions: Mapping[str, str]
    device: str
    windows_per_batch: int

    def fields(self) -> dict[str, Any]:
        """Flat names and values for comparison."""
        flat: dict[str, Any] = {}
        _flatten("versions", dict(self.versions), flat)
        return flat | {"device": self.device, "windows_per_batch": self.windows_per_batch}


def differences(
    cached: Mapping[str, Any], asked: Mapping[str, Any], sides: tuple[str, str] = ("the cache", "this call")
) -> list[str]:
    """Name every field that differs, with both values.

    >>> differences({"seed": 0, "dtype": "float16"}, {"seed": 1, "dtype": "float16"})
    ['seed: the cache has 0, this call has 1']
    """
    lines = []
    for name in [*cached, *(name for name in asked if name not in cached)]:
        old, new = cached.get(name, _ABSENT), asked.get(name, _ABSENT)
        if old != new:
            if isinstance(old, tuple) and isinstance(new, tuple):
                lines.append(f"{name}: {_first_difference(old, new)}")
            else:
                lines.append(f"{name}: {sides[0]} has {_short(old)}, {sides[1]} has {_short(new)}")
    return lines


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


_ABSENT = _Absent()


def _first_difference(old: tuple[str, ...], new: tuple[str, ...]) -> str:
    text = f"the cache has {len(old)} scenes, this call has {len(new)}"
    for position, (was, now) in enumerate(zip(old, new, strict=False)):
        if was != now:
            return f"{text}; the first to differ is number {position}, {was!r} in the cache and {now!r} here"
    return text


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _flatten(name: str, value: Any, flat: dict[str, Any]) -> None:
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            _flatten(f"{name}.{key}", value[key], flat)
    else:
        flat[name] = value
