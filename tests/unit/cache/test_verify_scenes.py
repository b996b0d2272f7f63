"""``bindkit verify`` looks at the scene files too: are they still what the cache was made from?"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cache_fakes import ExactBackbone
from changing_scenes import add_scene, break_file, invert, remove, rename_class, touch, write_folder
from test_extraction_changed import as_version_1

import bindkit as bk
from bindkit.cache import ActivationCache
from bindkit.cache.verifying import scene_changes
from bindkit.cli import main
from bindkit.scenes.scene import subset

SINCE = "since this cache was made"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "scenes", 10)


@pytest.fixture
def cache(tmp_path: Path, folder: Path) -> ActivationCache:
    return bk.cache_activations(ExactBackbone(), bk.open_scenes(f"folder:{folder}"), tmp_path / "run" / "cache")


CHANGES = {
    "masks": (invert("instances", *"abc"), f"3 masks have changed {SINCE}: a.png, b.png, c.png"),
    "a picture": (invert("images", "j", keep_times=True), f"1 picture has changed {SINCE}: j.png"),
    "a class mask": (invert("classes", "j"), f"1 class mask has changed {SINCE}: j.png"),
    "a broken mask": (break_file("instances", "e"), f"1 mask has changed {SINCE}: e.png"),
    "one fewer": (remove("d"), f"1 scene has gone {SINCE}: d"),
    "class names": (rename_class, f"names of classes have changed {SINCE}"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_scenes_are_named_and_fail(
    cache: ActivationCache, folder: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    alter, said = CHANGES[change]
    alter(folder)
    assert main(["verify", str(cache.path)]) == 1
    whole, changed = capsys.readouterr().out.splitlines()
    assert whole == f"{cache.path}: whole" and changed == f"{cache.path}: its scenes, not the cache itself: {said}"
    assert cache.verify() == []


@pytest.mark.parametrize("change", [touch, lambda folder: add_scene(folder, "z", 99), lambda folder: None])
def test_what_is_no_change_passes(
    cache: ActivationCache, folder: Path, change: object, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folder)  # type: ignore[operator]
    assert main(["verify", str(cache.path)]) == 0
    assert capsys.readouterr().out == f"{cache.path}: whole\n"


def test_scenes_that_cannot_be_opened_leave_the_cache_judged_alone(
    cache: ActivationCache, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(folder)
    assert main(["verify", str(cache.path)]) == 0
    whole, unseen = capsys.readouterr().out.splitlines()
    assert whole == f"{cache.path}: whole"
    assert unseen.startswith(f"{cache.path}: its scenes could not be looked at ({folder} is not a directory")


def test_a_view_cannot_be_opened_again_which_is_said(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    view = subset(bk.open_scenes(f"folder:{folder}"), range(8))
    cache = bk.cache_activations(ExactBackbone(), view, tmp_path / "of a view")
    assert main(["verify", str(cache.path)]) == 0
    assert "its scenes could not be looked at" in capsys.readouterr().out


def test_a_cache_of_an_earlier_bindkit_is_judged_alone(
    cache: ActivationCache, capsys: pytest.CaptureFixture[str]
) -> None:
    as_version_1(cache)
    assert main(["verify", str(cache.path)]) == 0
    assert "its scenes could not be looked at (contents of the scenes: the cache is of" in capsys.readouterr().out


def test_damage_and_changed_scenes_are_told_apart(
    cache: ActivationCache, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cache.path / "train/layer_00/00000.safetensors").unlink()
    invert("instances", "b")(folder)
    assert main(["verify", str(cache.path)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{cache.path}: train/layer_00/00000.safetensors: missing",
        f"{cache.path}: its scenes, not the cache itself: 1 mask has changed {SINCE}: b.png",
    ]


def test_computed_scenes_have_no_files_that_could_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, scenes = bk.load_backbone("random-init:vit", device="cpu"), bk.open_scenes("synthetic:n=4,seed=0")
    cache = bk.cache_activations(source, scenes, tmp_path, layers=[0], patches_per_scene=9)
    assert scene_changes(cache) == [] and main(["verify", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{cache.path}: whole\n"
