"""What a cache is of, what it was made with and which files it has: all that `manifest.json` says.

It holds no times and no places on this machine, so that two runs with the same inputs write the same bytes, and it
carries its own digest, so that a flipped byte in it is found as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from bindkit.cache.encoding import ENCODINGS, Encoding
from bindkit.cache.remote import remote_of
from bindkit.errors import CacheError, InvalidParameterError
from bindkit.files import parse_json
from bindkit.scenes.checking import SceneContents
from bindkit.scenes.scene import BrokenScene
from bindkit.scenes.splits import SPLITS

MANIFEST_NAME = "manifest.json"
WORK = ".work"
"""Folder of a cache that is being filled: records of finished shards, and locks of those in work."""
FORMAT = "bindkit activation cache"
FORMAT_VERSION = 2
"""Version 1 did not say what the scenes held, nor its shards what they are of. It is read, and written when mended."""


def layer_folder(layer: int) -> str:
    """Where a layer's files lie in a split: ``layer_00``; labels lie in ``labels``."""
    return f"layer_{layer:02d}"


def shard_file(split: str, folder: str, shard: int) -> str:
    """Place of a shard's file, relative to the cache."""
    return f"{split}/{folder}/{shard:05d}.safetensors"


def fetch_manifest(path: Path) -> None:
    """Have the manifest of a cache on an object store here, and the records; shards of another manifest go."""
    if (remote := remote_of(path)) is None:
        return
    if remote.fetch(MANIFEST_NAME, anew=True):
        # Not otherwise: what is here alone may be on its way there.
        for file in (*path.glob("*/*/*.safetensors"), *(path / WORK).glob("*.json")):
            file.unlink(missing_ok=True)
    for name in remote.sizes():
        if name.startswith(f"{WORK}/"):
            remote.fetch(name, anew=True)


def record_file(split: str, shard: int, suffix: str = ".json") -> str:
    """Place of a shard's record while the cache is filled."""
    return f"{WORK}/{split}-{shard:05d}{suffix}"


@dataclass(frozen=True)
class Identity:
    """What a cache is of. Two caches with equal identities hold the same rows."""

    backbone: Mapping[str, Any]  # as `Backbone.describe` gives it
    scenes_uri: str
    scene_ids: Mapping[str, tuple[str, ...]]  # by split, in order, skipped ones included
    class_names: Mapping[int, str]
    patches_per_scene: int | str  # or "all"
    dtype: str
    seed: int  # of the draw of patches
    benchmark_classes: Mapping[int, int] = field(default_factory=dict)  # 0 for classes that the benchmark lacks
    groups: Mapping[str, str] = field(default_factory=dict)  # scene id -> first id of its group, where it has one
    contents: SceneContents | None = None  # None where nobody looked (caches of format version 1)

    def __post_init__(self) -> None:
        count = self.patches_per_scene
        if count != "all" and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise InvalidParameterError(f'patches_per_scene must be a positive integer or "all", got {count!r}')
        if self.dtype not in ENCODINGS:
            raise InvalidParameterError(f"dtype must be one of {', '.join(ENCODINGS)}, got {self.dtype!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise InvalidParameterError(f"seed must be a non-negative integer, got {self.seed!r}")
        object.__setattr__(self, "backbone", json.loads(json.dumps(dict(self.backbone))))

    @property
    def d_model(self) -> int:
        """Width of an activation."""
        return int(self.backbone["d_model"])

    @property
    def encoding(self) -> Encoding:
        """How activations are stored."""
        return ENCODINGS[self.dtype]

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one patch's activations at one layer."""
        return self.encoding.bytes_per_row(self.d_model)

    @property
    def contents_by_id(self) -> Mapping[str, str]:
        """Scene id -> content; empty for computed scenes, and where nobody looked."""
        return self.contents.of if self.contents else {}

    def fields(self) -> dict[str, Any]:
        """Flat names and values for comparison.

        The revision is left out: the weights digest says it better. Contents of single scenes are compared apart.
        """
        flat = _flat("backbone", {key: value for key, value in self.backbone.items() if key != "revision"})
        flat["scenes"] = self.scenes_uri
        if self.contents is not None and self.contents.made_by:
            flat["scenes computed by"] = self.contents.made_by
        flat |= {f"scene ids of {split}": tuple(self.scene_ids.get(split, ())) for split in SPLITS}
        flat["class_names"] = {int(key): value for key, value in self.class_names.items()}
        if self.benchmark_classes:
            flat["benchmark_classes"] = dict(self.benchmark_classes)
        if self.groups:
            flat["groups"] = dict(sorted(self.groups.items()))
        return flat | {"patches_per_scene": self.patches_per_scene, "dtype": self.dtype, "seed": self.seed}


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
        return _flat("versions", self.versions) | {"device": self.device, "windows_per_batch": self.windows_per_batch}


def _flat(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: value}
    parts = (_flat(f"{name}.{key}", value[key]) for key in sorted(value, key=str))
    return {key: found for part in parts for key, found in part.items()}


class FileRecord(NamedTuple):
    """What a file must be: its SHA-256 in hex and its size in bytes."""

    sha256: str
    n_bytes: int

    @classmethod
    def of(cls, *parts: bytes | memoryview) -> FileRecord:
        """Record of a file with this content, in one part or several."""
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        return cls(digest.hexdigest(), sum(map(len, parts)))


@dataclass(frozen=True)
class ShardRecord:
    """One shard's files. A file that is to be computed (again) has no record."""

    rows: int
    skipped: tuple[BrokenScene, ...] = ()
    files: Mapping[str, FileRecord] = field(default_factory=dict)  # by folder

    @property
    def layers(self) -> set[int]:
        """Layers that are there."""
        return {int(folder.removeprefix("layer_")) for folder in self.files if folder != "labels"}


@dataclass(frozen=True)
class Manifest:
    """Everything `manifest.json` says. Frozen; `with_shard` gives the next one."""

    identity: Identity
    making: Making
    scenes_per_shard: int
    broken: tuple[BrokenScene, ...] = ()  # left out by the scene set itself on opening
    shards: Mapping[str, Mapping[int, ShardRecord]] = field(default_factory=dict)  # by split and number

    @property
    def scenes_uri(self) -> str:
        """The URI of the scene set."""
        return self.identity.scenes_uri

    def n_shards(self, split: str) -> int:
        """Shards that the split has when complete."""
        return -(-len(self.identity.scene_ids.get(split, ())) // self.scenes_per_shard)

    def shard_ids(self, split: str, shard: int) -> tuple[str, ...]:
        """Scene ids of a shard in order, skipped ones included."""
        start = shard * self.scenes_per_shard
        return tuple(self.identity.scene_ids[split][start : start + self.scenes_per_shard])

    def record(self, split: str, shard: int) -> ShardRecord | None:
        """What is known of a shard, if anything."""
        return self.shards.get(split, {}).get(shard)

    def records(self) -> list[tuple[str, int, ShardRecord]]:
        """Every shard of the complete cache, in order; one of which nothing is known has an empty record."""
        places = [(split, shard) for split in SPLITS for shard in range(self.n_shards(split))]
        return [(split, shard, self.record(split, shard) or ShardRecord(0)) for split, shard in places]

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that every shard of every split has."""
        found = [record.layers for _, _, record in self.records()]
        return tuple(sorted(set.intersection(*found))) if found else ()

    @property
    def has_all_labels(self) -> bool:
        """Whether every shard's labels are there."""
        return all("labels" in record.files for _, _, record in self.records())

    @property
    def is_complete(self) -> bool:
        """Whether every shard has its labels and every layer that any shard has."""
        folders = [set(record.files) for _, _, record in self.records()]
        return self.has_all_labels and all(there == folders[0] for there in folders)

    @property
    def skipped(self) -> tuple[BrokenScene, ...]:
        """Scenes that were met and could not be read, in order."""
        return tuple(scene for _, _, record in self.records() for scene in record.skipped)

    def files(self) -> dict[str, FileRecord]:
        """Every recorded file: path relative to the cache, with forward slashes."""
        return {
            shard_file(split, folder, shard): file
            for split, shard, record in self.records()
            for folder, file in sorted(record.files.items())
        }

    def with_shard(self, split: str, shard: int, record: ShardRecord | None) -> Manifest:
        """The manifest with one shard's record put in place, or removed."""
        shards = {name: dict(records) for name, records in self.shards.items()}
        if record is None:
            shards.get(split, {}).pop(shard, None)
        else:
            shards.setdefault(split, {})[shard] = record
        return replace(self, shards=shards)

    def without_files(self, names: Iterable[str]) -> Manifest:
        """The manifest with the records of some files (as `files` names them) removed."""
        gone, manifest = set(names), self
        for split, shard, record in self.records():
            kept = {
                folder: file for folder, file in record.files.items() if shard_file(split, folder, shard) not in gone
            }
            if len(kept) < len(record.files):
                manifest = manifest.with_shard(split, shard, replace(record, files=kept) if kept else None)
        return manifest

    def stamp(self, split: str, shard: int) -> dict[str, str] | None:
        """What the files of a shard say of themselves: all that the manifest says of them, long things by digests.

        None in a cache of format version 1.
        """
        if self.identity.contents is None:
            return None
        ids, of, groups = self.shard_ids(split, shard), self.identity.contents.of, self.identity.groups
        contents = [of[scene_id] for scene_id in ids] if of else []
        named = [[scene_id, groups[scene_id]] if scene_id in groups else [scene_id] for scene_id in ids]
        own = {"shard": f"{split}/{shard}", "ids": _short(named), "contents": _short(contents)}
        return {**self._common_stamp, **own}

    @cached_property
    def _common_stamp(self) -> dict[str, str]:
        identity = self.identity
        scenes = [identity.scenes_uri, identity.contents.made_by if identity.contents else ""]
        classes = [sorted(names.items()) for names in (identity.class_names, identity.benchmark_classes)]
        known = {**self._settings(), "scenes": scenes, "classes": classes}
        # Where it matters to a shard, its ids tell.
        del known["scenes_per_shard"]
        return {name: _short(value) if isinstance(value, dict | list) else str(value) for name, value in known.items()}

    def _settings(self) -> dict[str, Any]:
        known = {name: getattr(self.identity, name) for name in ("backbone", "patches_per_scene", "dtype", "seed")}
        return known | {"scenes_per_shard": self.scenes_per_shard, "made_with": asdict(self.making)}

    def record_bytes(self, record: ShardRecord) -> bytes:
        """The content of a finished shard's record, which says of which manifest it is."""
        payload = {"of": self._own_digest, **_record_to_json(record)}
        return _canonical(payload | {"sha256": _digest(payload)})

    def with_records(self, path: Path, places: Iterable[tuple[str, int]] | None = None) -> Manifest:
        """The manifest with the records of shards (all, or at some places) that were finished since it was written.

        One that cannot be read, or is of another manifest, says nothing: its shard is computed again.
        """
        manifest = self
        every = [(split, shard) for split, shard, _ in self.records()] if places is None else places
        for split, shard in every if (path / WORK).is_dir() else ():
            try:
                payload = parse_json((path / record_file(split, shard)).read_bytes())
                digest = payload.pop("sha256")
                if digest == _digest(payload) and payload.pop("of") == self._own_digest:
                    manifest = manifest.with_shard(split, shard, _record_from_json(payload))
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue
        return manifest

    @cached_property
    def _own_digest(self) -> str:
        """Of all but the shards."""
        return hashlib.sha256(replace(self, shards={}).to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """The content of `manifest.json`, its own digest included."""
        identity, contents = self.identity, self.identity.contents
        ids = {split: list(identity.scene_ids.get(split, ())) for split in SPLITS}
        names = {str(key): value for key, value in identity.class_names.items()}
        broken = [astuple(scene) for scene in self.broken]
        scenes: dict[str, Any] = {"uri": identity.scenes_uri, "ids": ids, "class_names": names, "broken": broken}
        if identity.benchmark_classes:
            scenes["benchmark_classes"] = {str(key): number for key, number in identity.benchmark_classes.items()}
        if identity.groups:
            scenes["groups"] = dict(identity.groups)
        if contents is not None:
            scenes["made_by"] = contents.made_by
            of = {split: [contents.of[scene_id] for scene_id in ids[split]] for split in SPLITS} if contents.of else {}
            scenes["contents"] = of
        shards: dict[str, dict[str, Any]] = {}
        for split, records in self.shards.items():
            for shard, record in records.items():
                shards.setdefault(split, {})[f"{shard:05d}"] = _record_to_json(record)
        version = 1 if contents is None else FORMAT_VERSION
        payload = {"format": FORMAT, "format_version": version, **self._settings()}
        payload |= {"scenes": scenes, "layers": self.layers, "shards": shards}
        return _canonical(payload | {"manifest_sha256": _digest(payload)})

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read ``path/manifest.json``, and the records of shards finished since it was written.

        Raises CacheError if there is none, it is not JSON, was damaged, or has an unknown format version.
        """
        fetch_manifest(path)
        file = path / MANIFEST_NAME
        try:
            content = file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise CacheError(
                f"no cache at {path}: it has no {MANIFEST_NAME}; give the directory that cache_activations returned "
                f"as cache.path (ROOT/SCENES/BACKBONE), or make one with cache_activations"
            ) from None
        except OSError as error:
            raise CacheError(f"cannot read {file}: {error.strerror or error}; check its permissions") from error
        return cls.of_bytes(content, file).with_records(path)

    @classmethod
    def of_bytes(cls, content: bytes, file: Path) -> Manifest:
        """A manifest of the content of its file. Raises CacheError."""
        again = f"delete {file.parent} and cache again"
        try:
            payload = parse_json(content)
        except ValueError as error:
            raise CacheError(f"{file} is not JSON ({error}); {again}") from None
        if not isinstance(payload, dict) or payload.get("format") != FORMAT:
            raise CacheError(f"{file} is not the manifest of a bindkit activation cache; {again}")
        if payload.get("format_version") not in (1, FORMAT_VERSION):
            raise CacheError(
                f"{file} has format version {payload.get('format_version')!r}, this bindkit reads 1 and "
                f"{FORMAT_VERSION}; use the bindkit that wrote it, or {again}"
            )
        digest = payload.pop("manifest_sha256", None)
        try:
            whole = content == _canonical(payload | {"manifest_sha256": digest}) and digest == _digest(payload)
        except ValueError:
            whole = False
        if not whole:
            raise CacheError(f"{file} was changed after it was written (its digest does not match); {again}")
        try:
            manifest = cls._from_json(payload)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CacheError(f"{file} lacks what a manifest must say ({error!r}); {again}") from error
        if manifest.to_bytes() != content:
            raise CacheError(f"{file} says things that do not belong together (was it edited?); {again}")
        return manifest

    @classmethod
    def _from_json(cls, payload: dict[str, Any]) -> Manifest:
        scenes = payload["scenes"]
        if int(payload["backbone"]["d_model"]) < 1 or payload["scenes_per_shard"] < 1:
            raise ValueError("d_model and scenes_per_shard are at least 1")
        contents = None
        if payload["format_version"] != 1:
            pairs = (zip(scenes["ids"][split], scenes["contents"][split], strict=True) for split in scenes["contents"])
            contents = SceneContents(scenes["made_by"], {scene_id: of for split in pairs for scene_id, of in split})
        identity = Identity(
            backbone=payload["backbone"],
            scenes_uri=scenes["uri"],
            scene_ids={split: tuple(scenes["ids"][split]) for split in SPLITS},
            class_names={int(key): value for key, value in scenes["class_names"].items()},
            patches_per_scene=payload["patches_per_scene"],
            dtype=payload["dtype"],
            seed=payload["seed"],
            benchmark_classes={int(key): int(number) for key, number in scenes.get("benchmark_classes", {}).items()},
            groups=scenes.get("groups", {}),
            contents=contents,
        )
        shards: dict[str, dict[int, ShardRecord]] = {}
        for split, records in payload["shards"].items():
            for shard, record in records.items():
                shards.setdefault(split, {})[int(shard)] = _record_from_json(record)
        broken = tuple(BrokenScene(*pair) for pair in scenes["broken"])
        return cls(identity, Making(**payload["made_with"]), payload["scenes_per_shard"], broken, shards)


def _record_to_json(record: ShardRecord) -> dict[str, Any]:
    return {
        "rows": record.rows,
        "skipped": [astuple(scene) for scene in record.skipped],
        "labels": record.files.get("labels"),
        "activations": {f"{layer:02d}": record.files[layer_folder(layer)] for layer in record.layers},
    }


def _record_from_json(record: Mapping[str, Any]) -> ShardRecord:
    files = {layer_folder(int(layer)): FileRecord(*file) for layer, file in record["activations"].items()}
    if record["labels"]:
        files["labels"] = FileRecord(*record["labels"])
    return ShardRecord(int(record["rows"]), tuple(BrokenScene(*pair) for pair in record["skipped"]), files)


def _canonical(payload: dict[str, Any]) -> bytes:
    return (json.dumps(payload, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _digest(payload: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(payload)).hexdigest()


def _short(value: Any) -> str:
    """A digest that keeps a stamp small beside the labels of a shard."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
