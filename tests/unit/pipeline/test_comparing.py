"""Several workspaces in one table: rows told apart, compared only with their like, refused by name where not alike."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from planted_runs import BRIEF, run

import bindkit as bk
from bindkit.cli import main
from bindkit.errors import InvalidParameterError, WorkspaceMismatchError, WorkspaceStepMissingError
from bindkit.pipeline.merging import compare_workspaces, told_apart, with_others
from bindkit.results.model_table import model_table, with_gain_intervals
from bindkit.results.tables import verdicts

FIXED = {"scenes": "planted:", "seed": 0, "patches_per_scene": 512, "dtype": "float16"}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("batch")
    run(root / "one", "a", **FIXED)
    run(root / "two", "both", **FIXED)
    return [str(root / "one"), str(root / "two")]


def test_rows_of_both_stand_in_one_table_and_are_told_apart(places):
    table = compare_workspaces(places)
    assert table.columns[0] == "workspace"
    for place in places:
        own = table[(table["workspace"] == place) & (table["probe"] != "oracle")].drop(columns="workspace")
        written = pd.read_csv(f"{place}/results.csv")
        pd.testing.assert_frame_equal(
            own.reset_index(drop=True), written[written["probe"] != "oracle"].reset_index(drop=True)
        )
    assert (table["probe"] == "oracle").sum() == 1, "both oracles say the same of the same pairs"
    models = model_table(table, "linear")
    assert models["backbone"].tolist() == ["vit-a", "vit-a", "vit-b", "control:same-class"]
    assert models["n_seeds"].dropna().max() == 1, "one backbone in two workspaces is not two seeds of one"
    assert (models["auroc_over_same-class"].notna() == (models["kind"] != "oracle")).all()
    names = told_apart(models)["backbone"].tolist()
    assert names == [f"vit-a ({places[0]})", f"vit-a ({places[1]})", "vit-b", "control:same-class"]
    assert len(compare_workspaces([places[0], places[0]])) == len(pd.read_csv(f"{places[0]}/results.csv"))


def test_gains_are_those_of_each_workspace_by_itself(places):
    table, caches, roots = with_others(bk.open_workspace(places[0]), f"'{places[1]}'")
    pd.testing.assert_frame_equal(table, compare_workspaces(places))
    together = with_gain_intervals(model_table(table, "linear"), table, caches, roots, BRIEF)
    for place in places:
        own, *sources = with_others(bk.open_workspace(place))
        assert "workspace" not in own
        alone = with_gain_intervals(model_table(own, "linear"), own, *sources, BRIEF)
        for row in alone[alone["kind"] != "oracle"].to_dict("records"):
            (here,) = together[(together["workspace"] == place) & (together["backbone"] == row["backbone"])].to_dict(
                "records"
            )
            for column in ("gain_low", "gain_high", "auroc_over_same-class_low", "auroc_over_same-class_high"):
                assert np.isclose(here[column], row[column], equal_nan=True), column
    sentences = verdicts(told_apart(together[together["kind"] != "oracle"]))
    assert sum(f"({place})" in sentence for place in places for sentence in sentences) == 2


@pytest.mark.parametrize(("name", "value"), [("seed", 1), ("patches_per_scene", 64), ("scenes", "planted:other")])
def test_other_settings_are_refused_by_name(places, tmp_path, name, value):
    shutil.copytree(places[1], tmp_path / "other")
    record = tmp_path / "other" / "workspace.json"
    content = json.loads(record.read_text())
    content["settings"][name] = value
    record.write_text(json.dumps(content))
    with pytest.raises(WorkspaceMismatchError, match=rf"{name}: {FIXED[name]!r} in .*one, {value!r} in .*other"):
        compare_workspaces([places[0], tmp_path / "other"])


def test_scenes_of_one_name_that_changed_in_between_are_refused(places, tmp_path):
    run(tmp_path / "changed", "b", scene_seed=5, **FIXED)
    with pytest.raises(WorkspaceMismatchError, match="have changed in between"):
        compare_workspaces([places[0], tmp_path / "changed"])


def test_what_is_no_workspace_is_named(places, tmp_path, capsys):
    with pytest.raises(InvalidParameterError, match="nowhere is not there"):
        compare_workspaces([places[0], tmp_path / "nowhere"])
    (tmp_path / "mine").mkdir()
    with pytest.raises(InvalidParameterError, match="mine is no workspace"):
        compare_workspaces([tmp_path / "mine"])
    bk.open_workspace(tmp_path / "new", **FIXED)
    with pytest.raises(WorkspaceStepMissingError, match=r"no results\.csv yet"):
        compare_workspaces([places[0], tmp_path / "new"])
    for wrong in ([], places[0]):
        with pytest.raises(InvalidParameterError, match="in a list"):
            compare_workspaces(wrong)
    assert main(["compare", places[0], str(tmp_path / "nowhere")]) == 2
    assert "nowhere is not there" in capsys.readouterr().err


def test_the_console_prints_the_table_and_writes_it(places, tmp_path, capsys):
    out = tmp_path / "models.csv"
    assert main(["compare", *places, "--probe", "linear", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"vit-a ({places[0]})" in said
    assert "vit-b" in said
    written = pd.read_csv(out)
    assert written["backbone"].tolist() == ["vit-a", "vit-a", "vit-b", "control:same-class"]
    assert set(written["workspace"]) == set(places)
    assert main(["compare", *places, "--probe", "softmax"]) == 2
    assert "no softmax probe" in capsys.readouterr().err
