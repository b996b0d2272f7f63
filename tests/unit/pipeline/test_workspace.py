"""A workspace holds one configuration and never overwrites what is not its own."""

from __future__ import annotations

import errno
import json
import os

import pytest

from bindkit.errors import InvalidParameterError, WorkspaceMismatchError
from bindkit.pipeline.workspace import open_workspace, workspace_root, writing_into


def test_directories_and_record_are_made(tmp_path):
    workspace = open_workspace(tmp_path / "new" / "run", scenes="synthetic:n=4,seed=0", seed=0)
    assert workspace.root == tmp_path / "new" / "run"
    for directory in (workspace.notebooks, workspace.cache, workspace.probes, workspace.figures, workspace.index):
        assert directory.is_dir()
        assert directory.parent == workspace.root
    assert not workspace.results_csv.exists()
    recorded = json.loads((workspace.root / "workspace.json").read_text())
    assert recorded["settings"] == {"scenes": "synthetic:n=4,seed=0", "seed": 0}


def test_same_settings_open_again_and_new_ones_are_added(tmp_path):
    open_workspace(tmp_path, seed=0)
    assert open_workspace(tmp_path, seed=0, protocol="strict").settings == {"seed": 0, "protocol": "strict"}
    assert open_workspace(tmp_path).settings == {"seed": 0, "protocol": "strict"}


@pytest.mark.parametrize("made", ["cache/one", "probes/one", "results.csv"])
def test_another_configuration_is_refused_with_both_values_and_changes_nothing(tmp_path, made):
    open_workspace(tmp_path, seed=0, protocol="strict", scenes="a")
    (tmp_path / made).write_text("made with seed 0")
    before = (tmp_path / "workspace.json").read_bytes()
    with pytest.raises(WorkspaceMismatchError) as caught:
        open_workspace(tmp_path, seed=1, protocol="paper", scenes="a", extra=1)
    message = str(caught.value)
    assert "seed: recorded 0, given 1" in message
    assert "protocol: recorded 'strict', given 'paper'" in message
    assert "scenes:" not in message
    assert "another workspace" in message
    assert (tmp_path / "workspace.json").read_bytes() == before


def test_settings_bind_only_once_something_was_made_with_them(tmp_path):
    """A run that stopped on a mistyped scene URI does not spoil its workspace."""
    open_workspace(tmp_path, scenes="ade20k:mistyped")
    assert open_workspace(tmp_path, scenes="ade20k:right").settings == {"scenes": "ade20k:right"}


def test_a_directory_of_other_things_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(WorkspaceMismatchError, match=r"not a bindkit workspace.*thesis\.tex"):
        open_workspace(tmp_path, seed=0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceMismatchError, match="is a file"):
        open_workspace(tmp_path / "file")


def test_a_place_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "below", tmp_path / "file" / "far" / "below"):
        with pytest.raises(WorkspaceMismatchError, match=r"cannot be a directory: .*file is a file"):
            open_workspace(place)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1}', '{"format": 1, "settings": 3}'])
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / "workspace.json").write_text(content)
    with pytest.raises(WorkspaceMismatchError, match=r"workspace\.json cannot be read"):
        open_workspace(tmp_path, seed=0)


def test_a_later_format_is_refused(tmp_path):
    (tmp_path / "workspace.json").write_text('{"format": 99, "settings": {}}')
    with pytest.raises(WorkspaceMismatchError, match="format 99"):
        open_workspace(tmp_path)


def test_settings_must_be_plain(tmp_path):
    with pytest.raises(InvalidParameterError, match="plain values"):
        open_workspace(tmp_path, scenes=object())


def test_hidden_files_of_an_editor_do_not_make_a_directory_foreign(tmp_path):
    (tmp_path / ".DS_Store").write_text("")
    assert open_workspace(tmp_path, seed=0).settings == {"seed": 0}


def refusing(path, number):
    """The system's own error for a place that may not be written to, whoever runs the test."""
    return OSError(number, os.strerror(number), str(path))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_directory_that_may_not_be_written_into_is_named_with_what_to_do(tmp_path, monkeypatch, number):
    def refuse(path, content):
        raise refusing(path, number)

    monkeypatch.setattr("bindkit.pipeline.workspace.write_json", refuse)
    with pytest.raises(InvalidParameterError) as caught:
        open_workspace(tmp_path, seed=0)
    assert str(caught.value) == (
        f"cannot write into {tmp_path} ({os.strerror(number)}); give another --workspace or change its permissions"
    )


def test_other_errors_while_writing_pass_as_they_are(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught, writing_into(tmp_path):
        raise refusing(tmp_path, errno.ENOSPC)
    assert caught.value.errno == errno.ENOSPC


def test_a_protocol_with_fields_is_recorded_by_its_one_name_however_it_was_written(tmp_path):
    settings = {"protocol": "strict,epochs=4,weight_decay=0.0001"}
    assert open_workspace(tmp_path, protocol="strict, weight_decay=1e-4, epochs=4, keep=loss").settings == settings
    (tmp_path / "results.csv").write_text("made with it")
    assert open_workspace(tmp_path, protocol="strict,epochs=4,weight_decay=0.00010").settings == settings
    with pytest.raises(WorkspaceMismatchError, match=r"protocol: recorded 'strict,epochs=4.*given 'strict,epochs=5'"):
        open_workspace(tmp_path, protocol="strict,epochs=5")


def test_a_protocol_with_its_own_fields_spelled_out_is_no_other(tmp_path):
    open_workspace(tmp_path, protocol="paper")
    (tmp_path / "results.csv").write_text("made with it")
    assert open_workspace(tmp_path, protocol="paper,epochs=16").settings == {"protocol": "paper"}


def test_a_mistyped_field_is_refused_before_anything_is_made_and_names_of_ones_own_are_kept(tmp_path):
    with pytest.raises(InvalidParameterError, match=r"unknown field 'epoch' \(did you mean 'epochs'"):
        open_workspace(tmp_path / "new", protocol="strict,epoch=4")
    assert not (tmp_path / "new").exists()
    for name in ("strict-120c0484", "mine,2"):
        assert open_workspace(tmp_path / name, protocol=name).settings == {"protocol": name}


def test_notebooks_share_the_workspace_of_a_run_wherever_they_are_executed(tmp_path, monkeypatch):
    """In their own directory, as JupyterLab does, or in the one above it, as papermill and `bindkit run` do."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert workspace_root("workspace") == tmp_path / "notebooks" / "workspace"  # of somebody's own
    (tmp_path / "notebooks" / "01_data_setup.ipynb").touch()
    assert workspace_root("workspace") == tmp_path / "workspace"
    assert workspace_root(tmp_path / "elsewhere") == tmp_path / "elsewhere"
    monkeypatch.chdir(tmp_path)
    assert workspace_root("workspace") == tmp_path / "workspace"
