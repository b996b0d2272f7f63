"""The interval of every gain, against scenes that are really drawn again, and against planted answers."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from planted import PlantedBackbone, PlantedScenes

from bindkit.cache import cache_activations
from bindkit.errors import InvalidParameterError
from bindkit.probes import load_probe
from bindkit.probes.judging import judging
from bindkit.probes.metrics import JudgedPairs, auroc, interval, left_out
from bindkit.probes.protocols import PAPER, STRICT, protocol
from bindkit.results.model_table import model_table, with_gain_intervals
from bindkit.results.sweeping import probe_directory, same_class_pairs, sweep

BRIEF = replace(STRICT, epochs=2, min_steps=12, judged_patches=32)
SCENES = PlantedScenes(60)
NAMES = {"vit": "dino", "random-init:vit": "random-init", "control:position": "control"}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Caches, probes and results of a model (binding planted), a weak twin (less of it) and a control (noise)."""
    place = tmp_path_factory.mktemp("swept")
    backbones = [
        (PlantedBackbone(name="vit", objective="dino", weights_digest="1" * 64, signal=0.6), [2]),
        (PlantedBackbone(name="random-init:vit", objective="random-init", weights_digest="2" * 64, signal=0.4), [2]),
        (PlantedBackbone(name="control:position", objective="control", weights_digest="3" * 64), [0]),
    ]
    caches = [cache_activations(model, SCENES, root=place / "cache", layers=layers) for model, layers in backbones]
    tasks, root = ("pairwise", "shuffled_labels"), place / "probes"
    results = sweep(caches, "all", ["quadratic"], tasks, BRIEF, seeds=(0, 1), root=root, oracle=True)
    return caches, root, results


@pytest.fixture(scope="module")
def table(swept):
    caches, root, results = swept
    return with_gain_intervals(model_table(results), results, caches, root, BRIEF).set_index("backbone")


@pytest.mark.filterwarnings("error::pandas.errors.PerformanceWarning")
def test_a_wide_table_gets_its_intervals_without_a_warning(swept, table):
    """A run of six models with all controls has more columns than pandas takes one by one without complaint."""
    caches, root, results = swept
    wide = model_table(results)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.PerformanceWarning)
        for number in range(101):
            wide[f"column {number}"] = 0
    given = with_gain_intervals(wide, results, caches, root, BRIEF)
    again = with_gain_intervals(given, results, caches, root, BRIEF)
    for one in (given, again):
        assert one.columns.is_unique
        pd.testing.assert_frame_equal(one.set_index("backbone")[list(table)], table)


def pairs_of(swept, name, seed, task="pairwise"):
    caches, root, _ = swept
    layer = math.nan if name.startswith("control") else 2
    row = {
        "backbone": name,
        "layer": layer,
        "probe": "quadratic",
        "task": task,
        "protocol": protocol(BRIEF).name,
        "seed": seed,
    }
    cache = next(cache for cache in caches if cache.backbone["name"] == name)
    with judging(load_probe(probe_directory(root, row)), cache, "test", BRIEF) as judged:
        return judged.pairs()


BY_DEFINITION = {
    "accuracy": lambda pairs: (pairs.said_same == pairs.same).mean(),
    "majority_accuracy": lambda pairs: max(pairs.same.mean(), 1 - pairs.same.mean()),
    "auroc": lambda pairs: auroc(pairs.logits, pairs.same),
    "twins_auroc": lambda pairs: auroc(pairs.logits[pairs.twins_question], pairs.same[pairs.twins_question]),
}


def without_each(pairs, figure):
    """Figures of all pairs, then of those of all scenes but each."""
    columns = (pairs.logits, pairs.same, pairs.twins_question, pairs.scene, pairs.said_same)
    chosen = [np.ones(len(pairs), dtype=bool), *(pairs.scene != scene for scene in np.unique(pairs.scene))]
    return np.array([BY_DEFINITION[figure](JudgedPairs(*(column[here] for column in columns))) for here in chosen])


@pytest.mark.parametrize(
    ("column", "figure", "rival", "task"),
    [
        ("accuracy_over_position", "accuracy", "control:position", "pairwise"),
        ("accuracy_over_untrained", "accuracy", "random-init:vit", "pairwise"),
        ("auroc_over_position", "auroc", "control:position", "pairwise"),
        ("twins_auroc_over_untrained", "twins_auroc", "random-init:vit", "pairwise"),
        ("selectivity", "auroc", "vit", "shuffled_labels"),
    ],
)
def test_intervals_are_those_of_differences_without_each_scene(swept, table, column, figure, rival, task):
    found = table.loc["vit"]
    mine = np.mean([without_each(pairs_of(swept, "vit", seed), figure) for seed in (0, 1)], axis=0)
    theirs = np.mean([without_each(pairs_of(swept, rival, seed, task), figure) for seed in (0, 1)], axis=0)
    slow = interval(mine - theirs, within_unit=False)
    assert [found[f"{column}_low"], found[f"{column}_high"]] == pytest.approx(slow, abs=2e-3)
    assert found[f"{column}_low"] < found[column] < found[f"{column}_high"]
    assert slow[1] - slow[0] > 0.01


def test_the_gain_over_the_majority_moves_with_the_scenes_shares(swept, table):
    mine = np.mean([without_each(pairs_of(swept, "vit", seed), "accuracy") for seed in (0, 1)], axis=0)
    majority = without_each(pairs_of(swept, "vit", 0), "majority_accuracy")
    bounds = table.loc["vit", ["gain_low", "gain_high"]].tolist()
    assert bounds == pytest.approx(interval(mine - majority, within_unit=False), abs=1e-9)


def test_gains_of_accuracy_are_of_the_answers_pair_by_pair(swept, table):
    """Model less control, counted pair by pair: right where the other is wrong, less the other way round."""
    for name, rival in (("position", "control:position"), ("untrained", "random-init:vit")):
        gains = []
        for seed in (0, 1):
            mine, theirs = pairs_of(swept, "vit", seed), pairs_of(swept, rival, seed)
            assert (mine.same == theirs.same).all()
            right, theirs_right = mine.said_same == mine.same, theirs.said_same == theirs.same
            gains.append(((right & ~theirs_right).sum() - (theirs_right & ~right).sum()) / len(mine))
        assert table.loc["vit", f"accuracy_over_{name}"] == pytest.approx(np.mean(gains), abs=1e-9)
        assert np.mean(gains) > 0
        assert table.loc["vit", f"accuracy_over_{name}_low"] > 0, "binding was planted"


def test_the_oracle_is_resampled_with_the_model(swept, table):
    caches, _, _ = swept
    split, pairs = same_class_pairs(caches[0], BRIEF)
    assert split == "test"
    mine = np.mean([without_each(pairs_of(swept, "vit", seed), "auroc") for seed in (0, 1)], axis=0)
    slow = interval(mine - without_each(pairs, "auroc"), within_unit=False)
    bounds = table.loc["vit", ["auroc_over_same-class_low", "auroc_over_same-class_high"]].tolist()
    assert bounds == pytest.approx(slow, abs=2e-3)


def test_what_is_compared_with_nothing_has_no_interval(table):
    one, all_controls = (table.loc["vit", [f"auroc_over_{name}_low"]].item() for name in ("position", "controls"))
    assert one == all_controls, "the only control is the strongest"
    assert table.loc["control:position"].filter(regex="_over_.*_(low|high)").isna().all()
    assert table.loc["vit", ["gain_low", "gain_high"]].notna().all()
    control = table.loc["control:position"]
    assert (control["gain"] == 0) == pd.isna(control["gain_low"]) == pd.isna(control["gain_high"]), (
        "never another answer"
    )
    assert math.isnan(table.loc["random-init:vit", "auroc_over_untrained_low"])
    for name in [name for name in table if name.endswith("_low") and name.removesuffix("_low") in table]:
        known = table[table[name].notna()]
        assert (known[name] <= known[name.removesuffix("_low")]).all(), name
        assert (known[name.removesuffix("_low")] <= known[f"{name.removesuffix('_low')}_high"]).all(), name


def test_a_pair_of_probes_that_err_on_the_same_scenes_is_told_apart_where_two_intervals_overlap():
    """Scenes differ much in how hard they are, the second probe is right on 2 % more pairs of every one of them."""
    rng = np.random.default_rng(0)
    scene = np.repeat(np.arange(60), 200)
    ease, luck = np.repeat(rng.uniform(0.5, 0.9, 60), 200), rng.random(len(scene))
    same = rng.random(len(scene)) < 0.5
    lists = [
        JudgedPairs(np.where((luck < ease + more) == same, 1.0, -1.0), same, np.zeros_like(same), scene)
        for more in (0.0, 0.02)
    ]
    worse, better = (left_out(pairs)["accuracy"] for pairs in lists)
    by_itself = interval(worse)
    assert by_itself[1] > interval(better)[0] + 0.02, "the intervals overlap widely"
    low, high = interval(better - worse, within_unit=False)
    assert 0.015 < low < 0.02 < high < 0.025
    assert high - low < (by_itself[1] - by_itself[0]) / 8


def test_probes_of_another_run_and_missing_caches_are_named(swept):
    caches, root, results = swept
    stale = results.assign(accuracy=results["accuracy"] - 0.01)
    with pytest.raises(InvalidParameterError, match="the table and the probes of one run"):
        with_gain_intervals(model_table(stale), stale, caches, root, BRIEF)
    with pytest.raises(InvalidParameterError, match="the table has random-init:vit, whose cache is not"):
        with_gain_intervals(model_table(results), results, [caches[0], caches[2]], root, BRIEF)


def test_figures_on_other_pairs_have_no_interval(tmp_path):
    """Other scenes, as many pairs: a table without digests takes them for alike, the pairs themselves are not."""
    rules = replace(PAPER, epochs=1, judged_patches=16)
    model, control = PlantedBackbone(name="vit"), PlantedBackbone(name="control:position", objective="control")
    caches = [
        cache_activations(model, PlantedScenes(60), root=tmp_path / "cache", layers=[0]),
        cache_activations(control, PlantedScenes(60, seed=1), root=tmp_path / "other", layers=[0]),
    ]
    results = sweep(caches, "all", ["quadratic"], protocol=rules, root=tmp_path / "probes")
    assert results["n_pairs"].nunique() == 1
    for rows, has_difference in ((results, False), (results.drop(columns="judged_pairs"), True)):
        table = with_gain_intervals(model_table(rows), rows, caches, tmp_path / "probes", rules)
        assert bool(pd.notna(table["auroc_over_position"].iloc[0])) == has_difference
        assert math.isnan(table["auroc_over_position_low"].iloc[0])
        assert math.isfinite(table["gain_low"].iloc[0])
