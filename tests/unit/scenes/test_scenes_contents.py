"""What scenes are made from: digests of files, remembered so that a second look reads none, and changes in words."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from changing_scenes import invert, write_folder

from bindkit import files
from bindkit.errors import BrokenSceneError
from bindkit.files import RememberedDigests
from bindkit.scenes import open_scenes
from bindkit.scenes.checking import changes, comings_and_goings, contents_of, listed, memory_in
from bindkit.scenes.scene import Scene, subset


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose bytes were read."""
    names: list[str] = []
    honest = files.sha256_of
    monkeypatch.setattr(files, "sha256_of", lambda path: names.append(path.name) or honest(path))
    return names


@pytest.fixture
def old_ctimes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files cannot be given an earlier change of status, so the clock is put forward."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 10**10)


def test_contents_are_digests_of_the_bytes_of_every_file(tmp_path: Path) -> None:
    write_folder(tmp_path, 3)
    contents = contents_of(open_scenes(f"folder:{tmp_path}"))
    assert contents.made_by == "" and list(contents.of) == ["a", "b", "c"]
    for name, content in contents.of.items():
        wanted = [sha256(tmp_path / kind / f"{name}.png")[:32] for kind in ("images", "instances", "classes")]
        assert content.split(" ") == wanted


def test_names_and_places_of_files_do_not_count(tmp_path: Path) -> None:
    first, second = write_folder(tmp_path / "one", 2), write_folder(tmp_path / "two", 2)
    contents = [contents_of(open_scenes(f"folder:{root}")).of for root in (first, second)]
    assert contents[0] == contents[1]


def test_a_second_look_reads_no_file_and_a_lost_memory_costs_only_time(
    tmp_path: Path, read: list[str], old_ctimes: None
) -> None:
    scenes = open_scenes(f"folder:{write_folder(tmp_path / 'scenes')}")
    place = memory_in(tmp_path, scenes.uri)
    first = contents_of(scenes, digests=RememberedDigests(place))
    assert len(read) == 24
    read.clear()
    assert contents_of(scenes, digests=RememberedDigests(place)) == first and read == []
    invert("instances", "b")(tmp_path / "scenes")
    changed = contents_of(scenes, digests=RememberedDigests(place))
    assert read == ["b.png"] and changed.of["b"] != first.of["b"]
    for spoilt in ("{", "[]", json.dumps({str(tmp_path / "scenes/images/a.png"): 7}), None):
        read.clear()
        place.unlink() if spoilt is None else place.write_text(spoilt)
        assert contents_of(scenes, digests=RememberedDigests(place)) == changed and len(read) == 24


@pytest.mark.parametrize("keep_times", [True, False])
def test_the_same_size_and_even_the_same_time_hide_no_change(tmp_path: Path, keep_times: bool) -> None:
    scenes = open_scenes(f"folder:{write_folder(tmp_path / 'scenes', 2)}")
    digests = RememberedDigests(tmp_path / "memory.json")
    first = contents_of(scenes, digests=digests)
    invert("images", "a", keep_times=keep_times)(tmp_path / "scenes")
    assert contents_of(scenes, digests=digests).of["a"] != first.of["a"]


def test_a_file_touched_just_now_is_not_remembered(tmp_path: Path, read: list[str]) -> None:
    """A second write within the file system's tick would leave size and time as they are."""
    scenes = open_scenes(f"folder:{write_folder(tmp_path / 'scenes', 2)}")
    digests = RememberedDigests(tmp_path / "memory.json")
    for _ in range(2):
        contents_of(scenes, digests=digests)
    assert len(read) == 12 and not (tmp_path / "memory.json").exists()


def test_a_memory_that_cannot_be_written_is_done_without(tmp_path: Path, old_ctimes: None) -> None:
    scenes = open_scenes(f"folder:{write_folder(tmp_path / 'scenes', 2)}")
    (tmp_path / "file").write_text("")
    contents_of(scenes, digests=RememberedDigests(tmp_path / "file" / "memory.json"))


def test_computed_scenes_are_known_by_what_computes_them() -> None:
    scenes = open_scenes("synthetic:n=4,seed=0")
    contents = contents_of(scenes)
    assert contents.made_by.startswith("bindkit ") and not contents.of
    assert contents_of(subset(scenes, [1, 3])) == contents


def test_a_view_has_the_contents_of_the_scenes_that_it_shows(tmp_path: Path) -> None:
    scenes = open_scenes(f"folder:{write_folder(tmp_path, 4)}")
    whole = contents_of(scenes).of
    assert dict(contents_of(subset(scenes, [3, 1])).of) == {"d": whole["d"], "b": whole["b"]}


class Bare:
    """The least that a set of one's own has."""

    def __init__(self) -> None:
        self.uri, self.ids, self.broken = "bare:", ("x", "y"), ()
        self.official_splits, self.class_names = None, {1: "thing"}
        self.shade = 0

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[Scene]:
        yield self[0]

    def size_of(self, position: int) -> tuple[int, int]:
        return 2, 3

    def __getitem__(self, position: int) -> Scene:
        if position == 1:
            raise BrokenSceneError("scene y: cut")
        mask = np.ones((2, 3), np.int32)
        return Scene("x", np.full((2, 3, 3), self.shade, np.uint8), mask, mask)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_set_without_files_is_known_by_its_pixels(workers: int) -> None:
    bare: Any = Bare()
    first = contents_of(bare, workers=workers).of
    assert first["y"] == "-" and contents_of(bare, workers=workers).of == first
    bare.shade = 1
    second = contents_of(bare, workers=workers).of
    assert [a == b for a, b in zip(first["x"].split(" "), second["x"].split(" "), strict=True)] == [False, True, True]
    assert changes(first, second, bare, "then") == ["1 picture has changed since then: x"]


def test_the_first_few_changes_are_named(tmp_path: Path) -> None:
    scenes = open_scenes(f"folder:{write_folder(tmp_path)}")
    before = contents_of(scenes).of
    invert("classes", *"abcdefg")(tmp_path)
    invert("images", "h")(tmp_path)
    assert changes(before, contents_of(scenes).of, scenes, "yesterday") == [
        "1 picture has changed since yesterday: h.png",
        "7 class masks have changed since yesterday: a.png, b.png, c.png, d.png, e.png and 2 more",
    ]
    (tmp_path / "instances" / "a.png").unlink()
    gone = contents_of(scenes).of
    assert gone["a"].split(" ")[1] == "-"


def test_comings_and_goings_are_told() -> None:
    assert comings_and_goings(["a", "b"], ["b", "c", "d"], "then") == [
        "1 scene has gone since then: a",
        "2 scenes have been added since then: c, d",
    ]
    assert comings_and_goings(["a"], ["a"], "then") == [] and listed(["a"]) == "a"
