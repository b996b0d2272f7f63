"""What a run was made from is known by content: changed scenes or weights are refused by name before anything runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from changing_scenes import add_scene, invert, remove, rename_class, touch, write_folder
from safetensors.torch import load_file, save_file
from written_notebooks import write_notebook

import bindkit as bk
from bindkit.backbones.names import contents_of_backbone, directory_of
from bindkit.cli import main
from bindkit.errors import NotebookFailedError, WorkspaceMismatchError
from bindkit.pipeline.running import run_pipeline
from bindkit.pipeline.workspace import Inputs

SINCE = "since the run in this workspace"
CACHE = """
import shlex
import bindkit as bk
space = bk.open_workspace(workspace)
scene_set = bk.open_scenes(scenes)
caches = []
for name in shlex.split(backbones):
    model = bk.load_backbone(name, short_side=48, window=48)
    options = dict(root=space.cache, layers=[0], changed=changed)
    caches.append(bk.cache_activations(model, scene_set, **options))
"""
FIT = """
import bindkit as bk
space = bk.open_workspace(workspace)
caches = [bk.ActivationCache.open(path.parent) for path in sorted(space.cache.glob('*/*/manifest.json'))]
assert not fail
table = bk.sweep(caches, 0, ['linear'], root=space.probes)
table.drop(columns='seconds').to_csv(space.results_csv, index=False)
"""


@pytest.fixture
def notebooks(tmp_path):
    directory = tmp_path / "numbered"
    directory.mkdir()
    parameters = 'workspace = "here"\nscenes = "synthetic:"\nbackbones = "x"\nchanged = "refuse"'
    write_notebook(directory / "01_cache.ipynb", parameters, CACHE)
    write_notebook(directory / "02_fit.ipynb", 'workspace = "here"\nfail = False', FIT)
    return directory


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "scenes", 10)


@pytest.fixture
def model(tmp_path):
    return shutil.copytree(directory_of("bindkit/scenes-mae"), tmp_path / "model")


@pytest.fixture
def run(notebooks, folder, model, tmp_path):
    def runs(place="run", **options):
        asked = {"scenes": f"folder:{folder}", "backbones": str(model)} | options
        return run_pipeline(tmp_path / place, notebooks=notebooks, **asked)

    return runs


def retrain(model: Path) -> None:
    file = model / "model.safetensors"
    save_file({name: weights * 1.1 for name, weights in load_file(file).items()}, file, {"format": "pt"})


def normalise_otherwise(model: Path) -> None:
    file = model / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_mean": [0.1, 0.2, 0.3]}))


CHANGES = {
    "masks": ("folder", invert("instances", *"abc"), f"3 masks have changed {SINCE}: a.png, b.png, c.png"),
    "a picture": ("folder", invert("images", "j"), f"1 picture has changed {SINCE}: j.png"),
    "a class mask": ("folder", invert("classes", "j"), f"1 class mask has changed {SINCE}: j.png"),
    "class names": ("folder", rename_class, f"names or numbers of classes have changed {SINCE}"),
    "one more": ("folder", lambda root: add_scene(root, "z", 77), f"1 scene has been added {SINCE}: z"),
    "one fewer": ("folder", remove("d"), f"1 scene has gone {SINCE}: d"),
    "weights": ("model", retrain, f"model has changed {SINCE}: model.safetensors"),
    "preprocessing": ("model", normalise_otherwise, f"model has changed {SINCE}: preprocessor_config.json"),
}


def test_changed_masks_and_weights_are_refused_by_name_and_force_gives_what_a_fresh_workspace_gives(
    run, notebooks, folder, model, tmp_path, monkeypatch, capsys
):
    first = run()
    figures = first.workspace.results_csv.read_bytes()
    assert run().executed == ()

    touch(folder)
    assert run().executed == ()

    invert("instances", *"abcdefghij")(folder)
    retrain(model)
    executed = {path.name: path.read_bytes() for path in first.workspace.notebooks.iterdir()}
    with pytest.raises(WorkspaceMismatchError) as refused:
        run()
    said = str(refused.value)
    assert f"10 masks have changed {SINCE}: a.png, b.png, c.png, d.png, e.png and 5 more" in said
    assert f"the backbone {model} has changed {SINCE}: model.safetensors" in said and "--force" in said
    assert executed == {path.name: path.read_bytes() for path in first.workspace.notebooks.iterdir()}
    assert first.workspace.results_csv.read_bytes() == figures

    monkeypatch.setattr("bindkit.pipeline.running.notebooks_directory", lambda: notebooks)
    command = ["run", "--workspace", str(tmp_path / "run"), "--scenes", f"folder:{folder}", "--backbone", str(model)]
    assert main(command) == 2
    assert f"bindkit: {refused.value}" in capsys.readouterr().err

    forced = run(force=True)
    assert forced.executed == ("01_cache", "02_fit")
    fresh = run("fresh")
    anew = forced.workspace.results_csv.read_bytes()
    assert anew == fresh.workspace.results_csv.read_bytes() != figures
    assert pd.read_csv(forced.workspace.results_csv)["accuracy"].notna().all()
    assert run().executed == () and run("fresh").executed == ()

    # What was computed anew is found by the caches' own account as well.
    cache = bk.ActivationCache.open(next(forced.workspace.cache.glob("*/*/manifest.json")).parent)
    assert cache.verify() == []


def test_what_changed_is_computed_anew_once_and_never_answered_from_before(run, folder):
    report = run()
    assert run(changed="recompute").executed == ()
    invert("instances", "a")(folder)
    assert run(changed="recompute").executed == ("01_cache", "02_fit")

    # An interrupted recomputation goes on without another word.
    invert("instances", "b")(folder)
    with pytest.raises(NotebookFailedError):
        run(force=True, fail=True)
    assert run().executed == ("02_fit",)

    # Without the memory of inputs the caches themselves refuse.
    invert("instances", "c")(folder)
    report.workspace.inputs.unlink()
    with pytest.raises(NotebookFailedError, match=r"1 mask has changed since this cache was made: c\.png"):
        run()


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_is_named(folder, model, tmp_path, change):
    asked = {"scenes": f"folder:{folder}", "backbones": f"'{model}' random-init:vit"}
    before = Inputs.look(asked, tmp_path, tmp_path)
    before.write(tmp_path / "inputs.json")
    kept = Inputs.read(tmp_path / "inputs.json")
    assert kept == before
    touch(folder)
    assert Inputs.look(asked, tmp_path, tmp_path).changes_since(kept, "then") == []
    what, alter, said = CHANGES[change]
    alter({"folder": folder, "model": model}[what])
    after = Inputs.look(asked, tmp_path, tmp_path)
    (sentence,) = after.changes_since(kept, "the run in this workspace")
    assert sentence.endswith(said)
    changed = {name for name, digest in after.of(asked).items() if before.of(asked)[name] != digest}
    assert changed == {"scenes" if what == "folder" else f"backbone {model}"}


def test_a_table_of_groups_counts_where_it_is_asked_for(folder, tmp_path):
    asked = {"scenes": f"folder:{folder}", "groups": "video"}
    looks = []
    for rows in ("id,video\na,1\n", "id,video\na,1\nb,1\n"):
        (folder / "scenes.csv").write_text(rows)
        looks.append([Inputs.look(asked | {"groups": groups}, tmp_path, tmp_path) for groups in ("video", "")])
    said = looks[1][0].changes_since(looks[0][0], "then")
    assert said == ["the table of scenes and their groups has changed since then"]
    assert looks[1][0].of(asked) != looks[0][0].of(asked)
    assert looks[1][1].changes_since(looks[0][1], "then") == []


def test_only_what_a_notebook_reads_is_in_its_record(folder, model, tmp_path):
    inputs = Inputs.look({"scenes": f"folder:{folder}", "backbones": str(model)}, tmp_path, tmp_path)
    assert set(inputs.of({"scenes": ""})) == {"scenes"} and inputs.of({"seed": 0}) == {}


def test_another_backbone_beside_the_first_is_no_change(folder, model, tmp_path):
    first = Inputs.look({"scenes": f"folder:{folder}", "backbones": str(model)}, tmp_path, tmp_path)
    second = Inputs.look({"scenes": f"folder:{folder}", "backbones": "bindkit/scenes-clip"}, tmp_path, tmp_path)
    assert second.changes_since(first, "then") == []
    assert set(second.also_of(first).backbones) == {str(model), "bindkit/scenes-clip"}


@pytest.mark.parametrize("spoilt", ["", "[]", '{"scenes": 3, "backbones": {}}', '{"scenes": {}}'])
def test_a_spoilt_memory_of_inputs_is_none(tmp_path, spoilt):
    (tmp_path / "inputs.json").write_text(spoilt)
    assert Inputs.read(tmp_path / "inputs.json") is None


def test_an_untrained_twin_reads_no_weights(model):
    assert set(contents_of_backbone(f"random-init:{model},seed=3")) == {"config.json", "preprocessor_config.json"}


def test_a_hub_model_is_known_by_its_revision_where_it_lies_here(tmp_path, monkeypatch):
    import huggingface_hub

    assert contents_of_backbone("nobody/nothing-of-that-name") == {}
    assert contents_of_backbone("no name of a hub") == {}
    place = tmp_path / "hub" / "models--nobody--model" / "snapshots" / "abc123"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: str(place / file))
    assert contents_of_backbone("nobody/model") == {"revision": "abc123"}
    assert contents_of_backbone("random-init:nobody/model") == {"revision": "abc123"}


def test_a_hub_model_that_came_meanwhile_is_no_change(folder, tmp_path, monkeypatch):
    asked = {"scenes": f"folder:{folder}", "backbones": "nobody/model"}
    before = Inputs.look(asked, tmp_path, tmp_path)
    monkeypatch.setattr("bindkit.backbones.names._revision_here", lambda name: "abc")
    after = Inputs.look(asked, tmp_path, tmp_path)
    assert after.changes_since(before, "then") == [] and after == before.also_of(None)
    monkeypatch.setattr("bindkit.backbones.names._revision_here", lambda name: "def")
    (said,) = Inputs.look(asked, tmp_path, tmp_path).changes_since(after, "then")
    assert said == "the backbone nobody/model has changed since then: revision"
