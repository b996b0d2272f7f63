"""The manifest: what a cache was made from, which shards it has and what each file's digest is.

It holds no times and no places on this machine, so that two runs with the same inputs write the same bytes, and it
carries its own digest, so that a flipped byte in it is found as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bindkit.cache.identity import Identity, Making
from bindkit.cache.layout import (
    MANIFEST_NAME,
    SPLITS,
    FileRecord,
    ShardRecord,
    Skipped,
    activations_file,
    labels_file,
)
from bindkit.errors import CacheError
from bindkit.files import parse_json
from bindkit.scenes.checking import SceneContents

FORMAT = "bindkit activation cache"
FORMAT_VERSION = 2
"""Version 1 did not say what the scenes held, nor its shards what they are of. It is read, and written when mended."""


@dataclass(frozen=True)
class Manifest:
    """Everything `manifest.json` says. Frozen; `with_shard` gives the next one.

    Attributes
    ----------
    identity, making : Identity, Making
    scenes_per_shard : int
    broken : tuple of Skipped
        Scenes that the scene set itself left out on opening.
    shards : dict
        Split -> shard number -> ShardRecord.
    """

    identity: Identity
    making: Making
    scenes_per_shard: int
    broken: tuple[Skipped, ...] = ()
    shards: Mapping[str, Mapping[int, ShardRecord]] = field(default_factory=dict)

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

    def every_shard(self) -> Iterator[tuple[str, int]]:
        """Split and number of every shard of the complete cache, in order."""
        for split in SPLITS:
            for shard in range(self.n_shards(split)):
                yield split, shard

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that every shard of every split has."""
        common: set[int] | None = None
        for split, shard in self.every_shard():
            record = self.record(split, shard)
            found = set(record.activations) if record else set()
            common = found if common is None else common & found
        return tuple(sorted(common or ()))

    @property
    def has_all_labels(self) -> bool:
        """Whether every shard's labels are there."""
        records = [self.record(split, shard) for split, shard in self.every_shard()]
        return all(record is not None and record.labels is not None for record in records)

    @property
    def is_complete(self) -> bool:
        """Whether every shard has its labels and every layer that any shard has."""
        present = {layer for split in self.shards.values() for record in split.values() for layer in record.activations}
        return self.has_all_labels and present == set(self.layers)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Scenes that were met and could not be read, in order."""
        records = [self.record(split, shard) for split, shard in self.every_shard()]
        return tuple(skipped for record in records if record for skipped in record.skipped)

    def files(self) -> dict[str, FileRecord]:
        """Every recorded file: path relative to the cache, with forward slashes."""
        found: dict[str, FileRecord] = {}
        for split, shard in self.every_shard():
            record = self.record(split, shard)
            if record and record.labels:
                found[labels_file(split, shard)] = record.labels
            for layer, content in sorted(record.activations.items()) if record else ():
                found[activations_file(split, layer, shard)] = content
        return found

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
        for split, shard in self.every_shard():
            record = self.record(split, shard)
            if record is None:
                continue
            labels = None if labels_file(split, shard) in gone else record.labels
            kept = {
                layer: content
                for layer, content in record.activations.items()
                if activations_file(split, layer, shard) not in gone
            }
            if labels != record.labels or len(kept) < len(record.activations):
                left = replace(record, labels=labels, activations=kept) if labels or kept else None
                manifest = manifest.with_shard(split, shard, left)
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

    # --- JSON ---------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """The content of `manifest.json`, its own digest included."""
        payload = self._to_json()
        return _canonical(payload | {"manifest_sha256": _digest(payload)})

    def _to_json(self) -> dict[str, Any]:
        identity, contents = self.identity, self.identity.contents
        benchmark = {str(key): number for key, number in identity.benchmark_classes.items()}
        return {
            "format": FORMAT,
            "format_version": 1 if contents is None else FORMAT_VERSION,
            **self._settings(),
            "scenes": {
                "uri": identity.scenes_uri,
                "ids": {split: list(identity.scene_ids.get(split, ())) for split in SPLITS},
                "class_names": {str(key): value for key, value in identity.class_names.items()},
                "broken": [[skipped.id, skipped.reason] for skipped in self.broken],
                **({"benchmark_classes": benchmark} if benchmark else {}),
                **({"groups": dict(identity.groups)} if identity.groups else {}),
                **(_contents_to_json(contents, identity) if contents else {}),
            },
            "layers": list(self.layers),
            "shards": {
                split: {f"{shard:05d}": _record_to_json(record) for shard, record in records.items()}
                for split, records in self.shards.items()
                if records
            },
        }

    def _settings(self) -> dict[str, Any]:
        return {
            "backbone": dict(self.identity.backbone),
            "patches_per_scene": self.identity.patches_per_scene,
            "dtype": self.identity.dtype,
            "seed": self.identity.seed,
            "scenes_per_shard": self.scenes_per_shard,
            "made_with": {
                "versions": dict(self.making.versions),
                "device": self.making.device,
                "windows_per_batch": self.making.windows_per_batch,
            },
        }

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read ``path/manifest.json``.

        Raises
        ------
        CacheError
            If there is none, it is not JSON, was damaged, or has a format version that this bindkit does not know.
        """
        file = path / MANIFEST_NAME
        again = f"delete {path} and cache again"
        try:
            content = file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise CacheError(
                f"no cache at {path}: it has no {MANIFEST_NAME}; give the directory that cache_activations returned "
                f"as cache.path (ROOT/SCENES/BACKBONE), or make one with cache_activations"
            ) from None
        except OSError as error:
            raise CacheError(f"cannot read {file}: {error.strerror or error}; check its permissions") from error
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
            rewritten, expected = _canonical(payload | {"manifest_sha256": digest}), _digest(payload)
        except ValueError:
            rewritten, expected = b"", ""
        if content != rewritten or digest != expected:
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
        scenes, made = payload["scenes"], payload["made_with"]
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
        return cls(
            identity=identity,
            making=Making(made["versions"], made["device"], made["windows_per_batch"]),
            scenes_per_shard=payload["scenes_per_shard"],
            broken=tuple(Skipped(*pair) for pair in scenes["broken"]),
            shards={
                split: {int(shard): _record_from_json(record) for shard, record in records.items()}
                for split, records in payload["shards"].items()
            },
        )


def _contents_to_json(contents: SceneContents, identity: Identity) -> dict[str, Any]:
    of = {
        split: [contents.of[scene_id] for scene_id in identity.scene_ids.get(split, ())]
        for split in SPLITS
        if contents.of
    }
    return {"made_by": contents.made_by, "contents": of}


def _canonical(payload: dict[str, Any]) -> bytes:
    text = json.dumps(payload, indent=1, sort_keys=True, allow_nan=False)
    return (text + "\n").encode()


def _digest(payload: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(payload)).hexdigest()


def _short(value: Any) -> str:
    """A digest that keeps a stamp small beside the labels of a shard."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _record_to_json(record: ShardRecord) -> dict[str, Any]:
    return {
        "rows": record.rows,
        "skipped": [[skipped.id, skipped.reason] for skipped in record.skipped],
        "labels": [record.labels.sha256, record.labels.n_bytes] if record.labels else None,
        "activations": {f"{layer:02d}": [file.sha256, file.n_bytes] for layer, file in record.activations.items()},
    }


def _record_from_json(payload: dict[str, Any]) -> ShardRecord:
    return ShardRecord(
        rows=int(payload["rows"]),
        skipped=tuple(Skipped(*pair) for pair in payload["skipped"]),
        labels=FileRecord(*payload["labels"]) if payload["labels"] else None,
        activations={int(layer): FileRecord(*file) for layer, file in payload["activations"].items()},
    )
