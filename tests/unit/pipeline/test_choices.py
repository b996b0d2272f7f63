"""What a run is asked for by name: what is right passes, whatever cannot be known without loading passes too."""

from __future__ import annotations

import re

import pytest
from tiny_models import write_checkpoint

from bindkit.backbones import load_backbone
from bindkit.backbones.names import depth_and_patch, shipped_names
from bindkit.errors import BackboneError, InvalidParameterError
from bindkit.pipeline.parameters import RULES, check_choices
from bindkit.pipeline.running import notebooks_directory, pipeline_parameters


def test_what_a_run_measures_by_default_passes():
    check_choices(pipeline_parameters(notebooks_directory()))


def test_every_rule_is_of_a_parameter_that_a_run_has():
    assert RULES.keys() <= pipeline_parameters(notebooks_directory()).keys()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"backbones": "some/hub-id ./mine 'a directory' random-init:vit,seed=3", "layers": "99"},
        {"backbones": "random-init:bindkit/scenes-mae,seed=3 bindkit/scenes-clip", "layers": "5, 0"},
        {"controls": ""},
        {"probes": "quadratic_fixed_rank@16 linear", "tasks": "pairwise pointwise_class shuffled_labels"},
        {"protocol": "paper, epochs=2, weight_decay=1e-4"},
        {"layers": [0, 3]},  # somebody's own notebooks may mean something else
        {"probes": 3, "tasks": 2, "scenes": 1, "groups": [0]},
    ],
)
def test_what_may_be_right_passes(values, tmp_path, monkeypatch):
    for directory in ("mine", "a directory"):
        (tmp_path / directory).mkdir()
    monkeypatch.chdir(tmp_path)
    check_choices(values)


@pytest.mark.parametrize("tasks", ["shuffled_labels", "pointwise_class pointwise_identity"])
def test_a_run_without_the_task_that_its_notebooks_compare_is_refused(tasks):
    """It would fit everything and then die in notebook 03."""
    with pytest.raises(InvalidParameterError, match=r"lack pairwise, .* add it"):
        check_choices({"probes": "linear", "tasks": tasks})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"folds": 2}, "folds is 0 for none, or at least 3; got 2"),
        ({"folds": -1}, "folds"),
        ({"scenes": "synthetic:n=4", "groups": "video"}, "'video' is found in no scene id"),
        ({"scenes": "synthetic:n=4", "groups": "("}, "is neither"),
    ],
)
def test_groups_and_folds_are_refused_before_anything_runs(values, said):
    with pytest.raises(InvalidParameterError, match=re.escape(said)):
        check_choices(values)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("loose", "unknown protocol 'loose'; choose one of paper, strict"),
        ("strict,epoch=4", "unknown field 'epoch' (did you mean 'epochs'?)"),
        ("strict,epochs=none", "epochs takes a whole number, at least 1; got 'none'"),
    ],
)
def test_a_protocol_that_there_is_not_is_refused_before_anything_runs(text, said):
    with pytest.raises(InvalidParameterError, match=re.escape(said)):
        check_choices({"protocol": text})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("/no/such/directory", "is no directory"),
        ("random-init:./nothing", "is no directory"),
        ("~/no-such-directory", "is no directory"),
        ("a/b/c", "no hub id such as owner/model"),
        ('"two words"', "no hub id such as owner/model"),
        ("owner/model--", "no hub id such as owner/model"),
    ],
)
def test_what_cannot_name_a_backbone_is_refused_before_anything_runs(name, said):
    with pytest.raises(BackboneError, match=said):
        check_choices({"backbones": name})


def test_a_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_checkpoint("vit", tmp_path / "mine")
    check_choices({"backbones": "~/mine", "layers": "0"})
    assert load_backbone("~/mine", device="cpu").n_layers == depth_and_patch("~/mine")[0]


def test_a_directory_of_a_shipped_backbones_kind_of_name_passes(tmp_path, monkeypatch):
    (tmp_path / "bindkit" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    check_choices({"backbones": "bindkit/mine", "layers": "99"})


@pytest.mark.parametrize("name", shipped_names())
def test_the_depth_read_from_the_config_is_that_of_the_loaded_backbone(name):
    backbone = load_backbone(name)
    assert depth_and_patch(name) == (backbone.n_layers, backbone.geometry.patch_size)
