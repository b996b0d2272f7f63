"""`open_scenes`: schemes, directories and what it says when there is nothing to open."""

import re
import subprocess
import sys

import pytest

from bindkit.errors import InvalidParameterError, SceneSetError
from bindkit.scenes import FORMATS, SceneSet, open_scenes, subset, write_ade20k


@pytest.mark.parametrize(
    "uri", ["", "coco2:images,annotations.json", "synthetics:n=2", "ade20k", "http://x/y", ":", "x"]
)
def test_unknown_schemes_list_the_known_ones(uri: str):
    with pytest.raises(SceneSetError, match="names no scene set") as caught:
        open_scenes(uri)
    assert all(f"{scheme}:" in str(caught.value) for scheme in FORMATS)


def test_a_bare_directory_is_told_to_name_its_format(tmp_path):
    with pytest.raises(SceneSetError, match=re.escape(f'"folder:{tmp_path}"')):
        open_scenes(str(tmp_path))


@pytest.mark.parametrize("scheme", ["ade20k", "folder"])
def test_directories_that_do_not_exist_or_hold_nothing_say_what_was_looked_for(tmp_path, scheme: str):
    with pytest.raises(SceneSetError, match="names no directory"):
        open_scenes(f"{scheme}:")
    with pytest.raises(SceneSetError, match="is not a directory"):
        open_scenes(f"{scheme}:{tmp_path / 'absent'}")
    (tmp_path / "file").write_text("x")
    with pytest.raises(SceneSetError, match="is not a directory"):
        open_scenes(f"{scheme}:{tmp_path / 'file'}")
    with pytest.raises(SceneSetError, match=r"looked for .*images"):
        open_scenes(f"{scheme}:{tmp_path}")


def test_help_names_every_format():
    """In the docstring from the table; at the console, which imports no NumPy, by hand."""
    done = subprocess.run(
        [sys.executable, "-m", "bindkit.cli", "run", "--help"], capture_output=True, text=True, check=True
    )
    for scheme, known in FORMATS.items():
        assert f"{scheme}:" in done.stdout
        assert f"- ``{known.form}``: {known.help}" in open_scenes.__doc__


def test_a_relative_directory_becomes_a_full_one(tmp_path, monkeypatch):
    write_ade20k(open_scenes("synthetic:n=1,seed=0,size=32x32"), tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert open_scenes("ade20k:data").uri == open_scenes("ade20k:./data/../data").uri == f"ade20k:{tmp_path}/data"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_scenes("ade20k:~/data").uri == f"ade20k:{tmp_path}/data"


def test_a_subset_is_a_scene_set_with_an_identity_of_its_own():
    scenes = open_scenes("synthetic:n=5,seed=0,size=32x40")
    view = subset(scenes, [4, 1])
    assert isinstance(view, SceneSet)
    assert list(view.ids) == [scenes.ids[4], scenes.ids[1]]
    assert (view[1].image == scenes[1].image).all()
    assert view.size_of(0) == (32, 40)
    assert view.class_names == scenes.class_names
    uris = {subset(scenes, chosen).uri for chosen in ([4, 1], [1, 4], [1], [])}
    assert len(uris) == 4
    assert all(uri.startswith(f"{scenes.uri}#subset=") for uri in uris)
    assert subset(scenes, range(5)) is scenes
    with pytest.raises(IndexError):
        view[2]


@pytest.mark.parametrize(("positions", "message"), [([0, 0], "twice"), ([2], "outside"), ([-1], "outside")])
def test_subsets_refuse_positions_that_are_not_there(positions: list[int], message: str):
    with pytest.raises(InvalidParameterError, match=message):
        subset(open_scenes("synthetic:n=2,seed=0"), positions)
