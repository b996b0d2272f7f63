"""What a run reads from outside, by content, kept in its workspace so that a later run knows what has changed.

>>> import tempfile
>>> place = Path(tempfile.mkdtemp())
>>> inputs = Inputs.look({"scenes": "synthetic:n=2,seed=0", "backbones": "random-init:vit"}, place, place)
>>> inputs.write(place / "inputs.json")
>>> inputs.changes_since(Inputs.read(place / "inputs.json"), "then")
[]
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bindkit.backbones.names import contents_of_backbone
from bindkit.files import RememberedDigests, parse_json, write_json
from bindkit.scenes import SceneSet, open_scenes
from bindkit.scenes.checking import SceneContents, changes, comings_and_goings, contents_of, listed, memory_in


@dataclass(frozen=True)
class Inputs:
    """Scenes and backbones of a run.

    Attributes
    ----------
    contents : SceneContents
    classes : str
        Digest of the names and numbers of classes.
    backbones : dict
        Name -> as `contents_of_backbone` gives it.
    groups : str
        SHA-256 of the table that may say which scenes belong together; empty without one, and where nobody asks.
    scenes : SceneSet or None
        To call changed files by their names; None where it was read from a file.
    """

    contents: SceneContents
    classes: str
    backbones: Mapping[str, Mapping[str, str]]
    groups: str
    scenes: SceneSet | None = field(default=None, compare=False, repr=False)

    @classmethod
    def look(cls, parameters: Mapping[str, Any], cache: Path, index: Path) -> Inputs:
        """Look what the scenes and backbones among the parameters of notebooks are made from now.

        `cache` and `index` are the workspace's: what was read of files is remembered there.

        Raises
        ------
        SceneSetError, BackboneError, InvalidParameterError
            For scenes that cannot be opened and backbones that cannot be named.
        """
        digests = RememberedDigests(index / "backbones.json")
        names = shlex.split(parameters.get("backbones", ""))
        backbones = {name: contents_of_backbone(name, digests) for name in names}
        if "scenes" not in parameters:
            return cls(SceneContents(), "", backbones, "")
        scenes = open_scenes(parameters["scenes"], index_dir=index)
        contents = contents_of(scenes, digests=RememberedDigests(memory_in(cache, scenes.uri)))
        benchmark = getattr(scenes, "benchmark_classes", None) or {}
        classes = _digest([sorted(scenes.class_names.items()), sorted(benchmark.items())])
        table: Path | None = getattr(scenes, "scenes_csv", None)
        groups = digests.of(table) if table is not None and parameters.get("groups") else ""
        return cls(contents, classes, backbones, groups, scenes)

    def of(self, parameters: Mapping[str, Any]) -> dict[str, str]:
        """Digests of those inputs that a notebook with these parameters reads; without what is not known here."""
        found = {}
        if "scenes" in parameters:
            contents = [self.contents.made_by, list(self.contents.of.items())]
            found["scenes"] = _digest([*contents, self.classes, self.groups])
        if "backbones" in parameters:
            found |= {f"backbone {name}": _digest(dict(files)) for name, files in self.backbones.items() if files}
        return found

    def changes_since(self, before: Inputs, since: str) -> list[str]:
        """Say what has changed, by name; `since` ends each sentence. Backbones of one look only are no change."""
        then, now = before.contents, self.contents
        said = comings_and_goings(then.of, now.of, since)
        if self.scenes is not None:
            said += changes(then.of, now.of, self.scenes, since)
        if then.made_by != now.made_by:
            said.append(f"scenes are computed by {now.made_by or 'nothing'}, not by {then.made_by or 'nothing'}")
        if before.classes != self.classes:
            said.append(f"names or numbers of classes have changed since {since}")
        if before.groups != self.groups:
            said.append(f"the table of scenes and their groups has changed since {since}")
        for name, files in self.backbones.items():
            old = before.backbones.get(name)
            if old and files and dict(old) != dict(files):
                differing = [file for file in {**old, **files} if old.get(file) != files.get(file)]
                said.append(f"the backbone {name} has changed since {since}: {listed(differing)}")
        return said

    def also_of(self, before: Inputs | None) -> Inputs:
        """These, and backbones that only an earlier look saw; of hub models that have come meanwhile the revision."""
        backbones = {name: files or contents_of_backbone(name) for name, files in self.backbones.items()}
        return replace(self, backbones={**(before.backbones if before else {}), **backbones})

    def write(self, file: Path) -> None:
        """Keep them as JSON."""
        scenes: dict[str, Any] = {"made_by": self.contents.made_by, "classes": self.classes, "groups": self.groups}
        scenes["of"] = dict(self.contents.of)
        backbones = {name: dict(files) for name, files in self.backbones.items()}
        write_json(file, {"scenes": scenes, "backbones": backbones})

    @classmethod
    def read(cls, file: Path) -> Inputs | None:
        """Those that were kept; None if there are none that can be read."""
        try:
            kept = parse_json(file.read_text(encoding="utf-8"))
            scenes, backbones = kept["scenes"], kept["backbones"]
            contents = SceneContents(scenes["made_by"], dict(scenes["of"]))
            files_of = {name: dict(files) for name, files in backbones.items()}
            return cls(contents, scenes["classes"], files_of, scenes["groups"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
