"""Writing into a cache: names, sizes for people, free space and full disks."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from bindkit.cache.manifest import FileRecord
from bindkit.cache.writing import (
    exclusive,
    is_ours,
    readable_bytes,
    remove_strays,
    require_space,
    walk,
    write_file,
)
from bindkit.errors import CacheError, DiskSpaceError, WorkspaceBusyError


def test_a_written_file_is_recorded(tmp_path: Path) -> None:
    record = write_file(tmp_path, "train/labels/00000.safetensors", b"abc")
    assert record == FileRecord("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", 3)
    assert walk(tmp_path) == ["train/labels/00000.safetensors"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    write_file(tmp_path, "a", b"old")

    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskSpaceError, match=r"the disk is full: .*a could not be written"):
        write_file(tmp_path, "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old" and walk(tmp_path) == ["a"]


def test_other_failures_are_not_called_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "i/o")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="i/o") as error:
        write_file(tmp_path, "a", b"new")
    assert not isinstance(error.value, DiskSpaceError)


def test_free_space_is_asked_of_the_nearest_directory_that_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def usage(place: Path) -> SimpleNamespace:
        asked.append(place)
        return SimpleNamespace(free=2**30)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert require_space(tmp_path / "a" / "b", 2**30) == 2**30
    assert asked == [tmp_path]
    with pytest.raises(DiskSpaceError, match=r"needs 1\.5 GiB more but only 1\.0 GiB are free"):
        require_space(tmp_path / "a" / "b", 3 * 2**29)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("train/labels/00000.safetensors", True),
        ("validation/layer_00/00012.safetensors", True),
        ("test/layer_123/123456.safetensors", True),
        ("train/layer_00/00000.safetensors.17.partial", True),
        ("manifest.json.17.partial", True),
        ("manifest.json", False),
        ("train/layer_00/mine.safetensors", False),
        ("train/00000.safetensors", False),
        ("notes.txt", False),
        ("deep/train/labels/00000.safetensors", False),
    ],
)
def test_only_names_that_a_cache_gives_are_its_own(name: str, ours: bool) -> None:
    assert is_ours(name) is ours


def test_strays_are_removed_and_others_left(tmp_path: Path) -> None:
    for name in ("train/labels/00000.safetensors", "manifest.json.17.partial", "notes.txt", "train/mine"):
        write_file(tmp_path, name, b"x")
    remove_strays(tmp_path, None)
    assert walk(tmp_path) == ["notes.txt", "train/mine"]


def test_a_cache_is_held_by_one_writer(tmp_path: Path) -> None:
    with exclusive(tmp_path / "new"):
        assert walk(tmp_path / "new") == []
        with pytest.raises(WorkspaceBusyError, match="wait until it ends"), exclusive(tmp_path / "new"):
            pass
    with exclusive(tmp_path / "new"):
        pass


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(CacheError, match=r"cannot write to .*file/cache .*give another root"),
        exclusive(tmp_path / "file" / "cache"),
    ):
        pass


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (2**30, "1.0 GiB"), (2**50, "1024.0 TiB")],
)
def test_sizes_for_people(n_bytes: int, text: str) -> None:
    assert readable_bytes(n_bytes) == text
