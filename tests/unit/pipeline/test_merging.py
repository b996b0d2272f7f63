"""Several runs in one workspace: no row is lost, none of something that has changed survives."""

import logging
import shutil
from dataclasses import replace

import pandas as pd
import pytest
from planted import PlantedBackbone, PlantedScenes
from planted_runs import BRIEF, run

from bindkit.cache import cache_activations
from bindkit.errors import InvalidParameterError
from bindkit.pipeline.merging import (
    ROW_KEY,
    compare_workspaces,
    fits_of_every_layer,
    merge_caches,
    merge_results,
    read_caches,
)
from bindkit.pipeline.workspace import open_workspace
from bindkit.results.sweeping import probe_directory, sweep


def rows_of(table):
    """As a set: key and all figures but the time taken."""
    table = table.drop(columns="seconds")
    return {tuple(f"{value:.6g}" if isinstance(value, float) else str(value) for value in row) for row in table.values}


def test_the_order_of_runs_does_not_matter_and_nothing_is_lost(tmp_path):
    for order in (("a", "b"), ("b", "a"), ("a", "b", "a"), ("a", "fewer", "b")):
        space, asked, merged = run(tmp_path / "-".join(order), order[0])
        together = rows_of(asked)
        pd.testing.assert_frame_equal(merged, asked)
        for name in order[1:]:
            space, asked, merged = run(space.root, name)
            together |= rows_of(asked)
        assert rows_of(merged) == together
        assert not merged.duplicated(ROW_KEY).any()
        assert set(zip(merged["backbone"], merged["layer"], merged["probe"], strict=True)) >= {
            *(("vit-a", 0, "linear"), ("vit-a", 2, "linear"), ("vit-b", 1, "linear"), ("vit-b", 1, "diag_quadratic"))
        }
        assert len(merged) == 5
        written = pd.read_csv(space.results_csv)
        assert len(written) == 5
        assert list(written.columns) == list(merged.columns)
        assert {cache.backbone["name"] for cache in read_caches(space)} == {"vit-a", "vit-b"}
        first = {"a": "vit-a", "b": "vit-b"}[order[-1]]
        assert [cache.backbone["name"] for cache in read_caches(space, latest=True)] == [first]


def test_rows_of_a_protocol_with_fields_are_merged_by_what_they_say(tmp_path):
    text = "strict,judged_patches=24,epochs=2,min_steps=4"
    space = open_workspace(tmp_path, protocol=text)
    for name in ("vit-a", "vit-b"):
        merge_caches(space, [cache_activations(PlantedBackbone(name), PlantedScenes(10), root=space.cache)])
        asked = sweep(read_caches(space, latest=True), [2], "linear", protocol=text, root=space.probes, oracle=True)
        merge_results(space, asked)
    table = pd.read_csv(space.results_csv)
    assert list(table["backbone"]) == ["vit-b", "vit-a", "control:same-class"]
    assert set(table["protocol"]) == {text}
    assert compare_workspaces([tmp_path])["protocol"].unique().tolist() == [text]


@pytest.mark.parametrize(
    ("asked", "is_apart"),
    [
        ({"probes": ["diag_quadratic"]}, False),
        ({"probes": ["linear"]}, True),
        ({"probes": ["diag_quadratic"], "layers": [2]}, True),
        ({"probes": ["diag_quadratic"], "seeds": [7]}, True),
        ({"probes": ["diag_quadratic"], "folds": 3}, True),
    ],
)
def test_fits_that_a_run_was_not_asked_for_lie_apart(tmp_path, asked, is_apart):
    text = "strict,judged_patches=24,epochs=2,min_steps=4"
    space = open_workspace(tmp_path, protocol=text, seed=0)
    merge_caches(space, [cache_activations(PlantedBackbone(), PlantedScenes(12), root=space.cache, layers=[1, 2])])
    given = {"layers": "all", "oracle": True, **asked}
    merge_results(space, sweep(read_caches(space), protocol=text, root=space.probes, **given))
    before = {path: path.read_bytes() for path in space.probes.rglob("*") if path.is_file()}
    caches, fits, root = fits_of_every_layer(space, "diag_quadratic")
    assert {path: path.read_bytes() for path in space.probes.rglob("*") if path.is_file()} == before
    assert (root == space.root / "analysis") is is_apart
    assert list(caches) == ["planted"]
    assert list(fits["layer"]) == [1, 2]
    assert all(probe_directory(root, row).exists() for row in fits.to_dict("records"))


def test_two_runs_one_after_the_other_say_what_one_of_both_says(tmp_path):
    _, together, _ = run(tmp_path / "both", "both")
    run(tmp_path / "parts", "a")
    _, _, merged = run(tmp_path / "parts", "b")
    assert rows_of(merged) <= rows_of(together)


def test_a_killed_run_loses_neither_its_own_rows_nor_those_before(tmp_path, monkeypatch):
    run(tmp_path, "a")
    space = open_workspace(tmp_path)
    before = space.results_csv.read_bytes()
    monkeypatch.setattr("bindkit.files.os.fsync", lambda stream: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        run(tmp_path, "b")
    assert space.results_csv.read_bytes() == before
    monkeypatch.undo()
    _, _, merged = run(tmp_path, "b")
    assert len(merged) == 5


@pytest.mark.parametrize("what", ["other scenes", "cache gone", "probe gone", "probe damaged"])
def test_rows_of_what_has_changed_do_not_survive_and_that_is_said(tmp_path, caplog, what):
    space, asked, _ = run(tmp_path, "a")
    (cache,) = read_caches(space)
    place = probe_directory(space.probes, asked[asked["layer"] == 2].iloc[0].to_dict())
    n_gone = 2
    if what == "other scenes":
        shutil.rmtree(cache.path)
        moved = cache_activations(PlantedBackbone("vit-a"), PlantedScenes(11), root=tmp_path / "elsewhere")
        shutil.move(moved.path, cache.path)
    elif what == "cache gone":
        shutil.rmtree(cache.path)
    elif what == "probe gone":
        shutil.rmtree(place)
        n_gone = 1
    else:
        (place / "probe.safetensors").write_bytes(b"")
        n_gone = 1
    with caplog.at_level(logging.WARNING, "bindkit"):
        _, _, merged = run(tmp_path, "b")
    assert (merged["backbone"] == "vit-a").sum() == 2 - n_gone
    assert f"{n_gone} rows of vit-a are left out" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "bindkit"):
        run(tmp_path, "b")
    assert "rows of vit-a" not in caplog.text
    _, _, merged = run(tmp_path, "a", n_scenes=11 if what == "other scenes" else 10)
    assert (merged["backbone"] == "vit-a").sum() == 2


def test_rows_of_another_protocol_are_not_mixed_in(tmp_path):
    space, asked, _ = run(tmp_path, "a")
    other = replace(BRIEF, epochs=1)
    again = sweep(read_caches(space), [0], ["diag_quadratic"], protocol=other, root=space.probes)
    assert len(merge_results(space, again, other)) == 1
    with pytest.raises(InvalidParameterError, match="one protocol"):
        merge_results(space, pd.concat([asked, asked.assign(protocol="paper")]))
    with pytest.raises(InvalidParameterError, match="one protocol"):
        merge_results(space, asked[:0])


def test_caches_of_scenes_that_have_changed_since_are_not_listed_beside_those_of_now(tmp_path, caplog):
    run(tmp_path, "a")
    run(tmp_path, "b")
    shutil.rmtree(next(cache.path for cache in read_caches(open_workspace(tmp_path)) if "vit-b" in str(cache.path)))
    with caplog.at_level(logging.WARNING, "bindkit"):
        space, _, merged = run(tmp_path, "b", n_scenes=11)
    assert set(merged["backbone"]) == {"vit-b", "control:same-class"}
    assert "the cache of vit-a is left out: it is of the scenes as they were before they changed" in caplog.text
    assert [cache.backbone["name"] for cache in read_caches(space)] == ["vit-b"]


def test_fits_on_a_cache_that_was_computed_anew_are_found_no_more(tmp_path, caplog):
    space, asked, _ = run(tmp_path, "a")
    stale = [probe_directory(space.probes, row) for row in asked[asked["probe"] == "linear"].to_dict("records")]
    (cache,) = read_caches(space)
    (other,) = [cache_activations(PlantedBackbone("vit-b"), PlantedScenes(10), root=space.cache)]
    merge_caches(space, [other])
    assert all(place.exists() for place in stale)
    shutil.rmtree(cache.path)
    with caplog.at_level(logging.WARNING, "bindkit"):
        run(tmp_path, "fewer", n_scenes=11)
    assert [place.exists() for place in stale] == [False, True]
    assert "fits of vit-a that are removed, since scenes or weights have changed: 2" in caplog.text
