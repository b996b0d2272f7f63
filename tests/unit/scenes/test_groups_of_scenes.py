"""Groups of scenes from the split through the cache to the intervals: whole groups are left out, never their scenes."""

from dataclasses import replace

import numpy as np
import pytest
from planted import PlantedBackbone, PlantedScenes

from bindkit.cache import ActivationCache, cache_activations
from bindkit.errors import CacheMismatchError
from bindkit.probes.fitting import fit_probe
from bindkit.probes.judging import judging
from bindkit.probes.metrics import JudgedPairs, judge
from bindkit.probes.protocols import STRICT
from bindkit.results.breakdowns import breakdown
from bindkit.scenes import split_scenes

BRIEF = replace(STRICT, epochs=2, min_steps=4, judged_patches=24)
SCENES = PlantedScenes(40)
GROUPS = [k // 4 for k in range(40)]


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    root = tmp_path_factory.mktemp("grouped")
    return cache_activations(PlantedBackbone(), SCENES, root=root, split=split_scenes(SCENES, GROUPS))


def test_a_cache_knows_its_groups_and_one_without_has_none(grouped, tmp_path):
    first_of = {scene_id: SCENES.ids[4 * (k // 4)] for k, scene_id in enumerate(SCENES.ids)}
    assert ActivationCache.open(grouped.path).groups == first_of
    plain = cache_activations(PlantedBackbone(), SCENES, root=tmp_path)
    assert plain.groups == {}
    assert b"groups" not in (plain.path / "manifest.json").read_bytes()
    with pytest.raises(CacheMismatchError, match="groups"):
        cache_activations(PlantedBackbone(), SCENES, root=tmp_path, split=split_scenes(SCENES, GROUPS))


def test_pairs_carry_their_group_and_scenes_are_still_counted_as_scenes(grouped):
    fit = fit_probe(grouped, 2, "linear", protocol=BRIEF)
    with judging(fit.probe, grouped, protocol=BRIEF) as judged:
        pairs = judged.pairs()
    assert fit.metrics["n_scenes"] == len(np.unique(pairs.scene)) == 8
    assert len(np.unique(pairs.unit)) == 2
    parts = breakdown(fit.probe, grouped, protocol=BRIEF, by="window")
    assert parts["n_scenes"].max() == 8


def test_whole_groups_are_left_out():
    """Eight copies of a scene say no more than one: the interval is that of the scenes without their copies."""
    rng = np.random.default_rng(0)
    n_scenes, n_pairs = 12, 50
    same = rng.random((n_scenes, n_pairs)) < 0.4
    logits = rng.normal(size=same.shape) + same + rng.normal(size=(n_scenes, 1))
    once = JudgedPairs(logits.ravel(), same.ravel(), same.ravel() & False, np.repeat(np.arange(n_scenes), n_pairs))
    repeated = {name: np.concatenate([getattr(once, name)] * 8) for name in ("logits", "same", "twins_question")}
    copies = np.concatenate([once.scene + n_scenes * copy for copy in range(8)])
    known = judge(JudgedPairs(**repeated, scene=copies, group=copies % n_scenes))
    unknown = judge(JudgedPairs(**repeated, scene=copies))
    alone = judge(once)
    for end in ("low", "high"):
        assert known[f"accuracy_{end}"] == pytest.approx(alone[f"accuracy_{end}"])
        assert known[f"auroc_{end}"] == pytest.approx(alone[f"auroc_{end}"], abs=2e-3)
    assert unknown["accuracy_high"] - unknown["accuracy_low"] < 0.6 * (known["accuracy_high"] - known["accuracy_low"])


def test_scenes_without_groups_are_left_out_as_ever(tmp_path):
    plain = cache_activations(PlantedBackbone(), PlantedScenes(10), root=tmp_path)
    fit = fit_probe(plain, 2, "linear", protocol=BRIEF)
    with judging(fit.probe, plain, protocol=BRIEF) as judged:
        pairs = judged.pairs()
        assert next(judged.batches()).groups is None
    assert np.array_equal(pairs.unit, pairs.scene)
