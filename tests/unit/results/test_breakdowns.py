"""Breakdowns recombine to the whole and equal a plain loop; reliability and temperature, against planted answers."""

import hashlib
import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from planted import PlantedBackbone, PlantedScenes
from torch.nn.functional import binary_cross_entropy_with_logits as bce

import bindkit as bk
from bindkit.cache import cache_activations
from bindkit.errors import EmptySplitError, InvalidParameterError
from bindkit.probes.batches import SplitPatches
from bindkit.probes.fitting import fit_probe
from bindkit.probes.metrics import interval
from bindkit.probes.protocols import STRICT
from bindkit.results.breakdowns import fit_temperature
from bindkit.views.figures import breakdown_figure, reliability_figure

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return cache_activations(PlantedBackbone(signal=0.7), PlantedScenes(40), root=tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def fit(cache):
    return fit_probe(cache, 2)


@pytest.fixture(scope="module")
def table(fit, cache):
    return bk.breakdown(fit.probe, cache)


def every_pair(fit, cache):
    """(distance, smaller object, kind, across windows, right) of each judged pair, by plain loops."""
    labels = cache.labels("test")
    patches = SplitPatches(cache, "test", 2, STRICT, CPU)
    for batch in patches.judged():
        logits = fit.probe(batch.activations)
        for s, scene in enumerate(batch.scenes.tolist()):
            at = labels.scene_ids.index(patches.scene_ids[scene])
            shown = labels.instances[labels.scene_offsets[at] : labels.scene_offsets[at + 1]]
            present = [k for k in range(batch.present.shape[1]) if batch.present[s, k]]
            for i in present:
                for j in present:
                    down, across = (batch.corners[s, i] - batch.corners[s, j]).abs().tolist()
                    if j <= i or (down < 4 and across < 4):
                        continue
                    same = bool(batch.instances[s, i] == batch.instances[s, j])
                    sizes = [(shown == int(batch.instances[s, k])).sum() for k in (i, j)]
                    twin = bool(batch.classes[s, i] == batch.classes[s, j])
                    kind = "same object" if same else f"different objects, {'same' if twin else 'other'} class"
                    window = "same window" if batch.window[s, i] == batch.window[s, j] else "across windows"
                    right = bool((logits[s, i, j] > 0) == same)
                    yield math.hypot(down, across) / 4, min(sizes), kind, window, right


def test_every_group_is_what_a_plain_loop_finds(fit, cache, table):
    pairs = list(every_pair(fit, cache))
    for row in table.to_dict("records"):
        if row["by"] in ("distance", "object_size"):
            value = 0 if row["by"] == "distance" else 1
            mine = [pair[4] for pair in pairs if row["low"] <= pair[value] < row["high"]]
        else:
            value = 2 if row["by"] == "negatives" else 3
            mine = [pair[4] for pair in pairs if pair[value] == row["group"]]
        assert row["n_pairs"] == len(mine) > 0
        assert row["accuracy"] == pytest.approx(np.mean(mine))
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]


def pairs_from_the_scenes_themselves(fit, cache, n_patches):
    """The same for the paper protocol, from the scenes' masks, the cached rows and the probe's formula alone."""
    labels, scenes = cache.labels("test"), {scene.id: scene for scene in PlantedScenes(40)}
    rows = cache.activations("test", 2).take(torch.arange(len(labels.instances))).double()
    weight, bias = (value.detach().double() for value in (fit.probe.weight, fit.probe.bias))
    for number, scene_id in enumerate(labels.scene_ids):
        start, stop = labels.scene_offsets[number : number + 2]
        digest = hashlib.sha256(scene_id.encode()).digest()
        words = np.random.PCG64(int.from_bytes(digest, "big")).random_raw(int(stop - start))
        drawn = start + np.sort(np.argsort(words, kind="stable")[:n_patches])
        corners = labels.corners[drawn]
        instances = scenes[scene_id].instances[corners[:, 0] + 1, corners[:, 1] + 1]
        classes = scenes[scene_id].classes[corners[:, 0] + 1, corners[:, 1] + 1]
        shown = labels.corners[start:stop]
        all_shown = scenes[scene_id].instances[shown[:, 0] + 1, shown[:, 1] + 1].tolist()
        x = rows[drawn]
        logits = x @ (weight + weight.T) @ x.T / (2 * math.sqrt(x.shape[1])) + bias
        for i, j in itertools.combinations(range(len(drawn)), 2):
            same = bool(instances[i] == instances[j])
            known = instances[i] > 0 and instances[j] > 0
            kind = f"different objects, {'same' if classes[i] == classes[j] else 'other'} class"
            kind = "same object" if same else kind if known else "class unknown"
            window = "same window" if labels.window[drawn[i]] == labels.window[drawn[j]] else "across windows"
            size = min(all_shown.count(instances[k]) for k in (i, j))
            right = (float(logits[i, j]) > 0) == same
            yield math.dist(corners[i], corners[j]) / 4, size, kind, window, right, number, same


def test_every_group_of_the_paper_protocol_is_what_the_scenes_themselves_say(cache):
    """Unlabelled ground takes part, and so do pairs of two windows that show the same pixels (distance 0)."""
    fit = fit_probe(cache, 2, protocol="paper")
    pairs = pd.DataFrame(
        pairs_from_the_scenes_themselves(fit, cache, 64),
        columns=["distance", "object_size", "negatives", "window", "right", "scene", "same"],
    )
    table = bk.breakdown(fit.probe, cache)
    assert (pairs["distance"] == 0).any()
    assert "class unknown" in set(table["group"])
    assert "across windows" in set(table["group"])
    for row in table.to_dict("records"):
        values = pairs[row["by"]]
        mine = pairs[
            values.between(row["low"], row["high"], inclusive="left") if row["low"] >= 0 else values == row["group"]
        ]
        assert row["n_pairs"] == len(mine) > 0
        assert row["n_scenes"] == mine["scene"].nunique()
        assert row["share_same"] == pytest.approx(mine["same"].mean())
        # A logit within the last bits of 0 may fall on either side.
        assert row["accuracy"] == pytest.approx(mine["right"].mean(), abs=1.5 / len(mine))
        # Each scene left out, those too that have no such pair.
        shares = [mine["right"].mean(), *(mine[mine["scene"] != k]["right"].mean() for k in pairs["scene"].unique())]
        slow = interval(np.array(shares))
        assert [row["accuracy_low"], row["accuracy_high"]] == pytest.approx(slow, abs=5 / len(mine), nan_ok=True)


def test_the_temperature_is_the_likeliest_of_the_validation_pairs_and_of_no_others(fit, cache):
    best = {}
    for split in ("validation", "test"):
        logits, same = [], []
        for batch in SplitPatches(cache, split, 2, STRICT, CPU).judged():
            logits.append(fit.probe(batch.activations)[batch.counted])
            same.append(batch.same[batch.counted].float())
        grid = torch.linspace(0.3, 3, 2701)
        losses = [float(bce(torch.cat(logits) / temperature, torch.cat(same))) for temperature in grid]
        best[split] = float(grid[int(np.argmin(losses))])
    assert bk.calibrated(fit.probe, cache).temperature == pytest.approx(best["validation"], abs=2e-3)
    assert best["test"] != pytest.approx(best["validation"], abs=0.01)


def test_groups_recombine_to_the_whole(fit, cache, table):
    whole = bk.judge_probe(fit.probe, cache)
    assert set(table["by"]) == {"distance", "object_size", "negatives", "window"}
    for _, part in table.groupby("by"):
        assert part["n_pairs"].sum() == whole["n_pairs"]
        assert (part["n_pairs"] * part["accuracy"]).sum() / whole["n_pairs"] == pytest.approx(whole["accuracy"])
        assert part["n_scenes"].max() == whole["n_scenes"]
    twins = table[table["group"] == "different objects, same class"].iloc[0]
    assert twins["accuracy"] == pytest.approx(whole["twins_accuracy"])
    assert math.isnan(twins["auroc"])


@pytest.mark.parametrize(
    ("protocol", "task", "probe"),
    [
        ("paper", "pairwise", "quadratic"),
        ("strict", "shuffled_labels", "quadratic"),
        ("paper", "shuffled_labels", "linear"),
        ("strict", "pointwise_class", "linear"),
        ("strict", "pointwise_identity", "linear"),
    ],
)
def test_every_protocol_and_task_recombines_to_what_its_fit_is_judged_by(cache, protocol, task, probe):
    fitted = fit_probe(cache, 2, probe=probe, task=task, protocol=protocol).probe
    whole, curve = bk.judge_probe(fitted, cache), bk.reliability(fitted, cache)
    for _, part in bk.breakdown(fitted, cache).groupby("by"):
        assert (part["n_pairs"] * part["accuracy"]).sum() / whole["n_pairs"] == pytest.approx(whole["accuracy"])
    same = (curve["share_same"] * curve["n_pairs"]).sum() / curve["n_pairs"].sum()
    assert max(same, 1 - same) == pytest.approx(whole["majority_accuracy"])


def test_the_control_task_is_judged_on_permuted_labels(cache):
    fitted = fit_probe(cache, 2, task="shuffled_labels").probe
    patches = SplitPatches(cache, "test", 2, STRICT, CPU)
    right, plain = [], []
    for batch in patches.judged():
        said = fitted(batch.activations) > 0
        right += (said == patches.shuffled(batch).same)[batch.counted].tolist()
        plain += (said == batch.same)[batch.counted].tolist()
    part = bk.breakdown(fitted, cache, by="window")
    assert (part["n_pairs"] * part["accuracy"]).sum() / part["n_pairs"].sum() == pytest.approx(np.mean(right))
    assert np.mean(right) != pytest.approx(np.mean(plain))


def test_an_unknown_way_to_break_down_is_refused(fit, cache):
    with pytest.raises(InvalidParameterError, match=r"by distance, object_size, negatives, window; got 'colour'"):
        bk.breakdown(fit.probe, cache, by="colour")
    assert set(bk.breakdown(fit.probe, cache, by="window")["by"]) == {"window"}


@pytest.mark.parametrize("planted", [0.4, 1.0, 3.0])
def test_a_planted_temperature_is_found(planted):
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(200_000, dtype=torch.float64, generator=generator) * 2
    same = torch.rand(200_000, dtype=torch.float64, generator=generator) < true.sigmoid()
    found = fit_temperature(true * planted, same)
    assert found == pytest.approx(planted, rel=0.03)
    inverse = torch.tensor(1 / found, dtype=torch.float64, requires_grad=True)
    bce(true * planted * inverse, same.double()).backward()
    assert abs(float(inverse.grad)) < 1e-4, "the loss is flat there"


def test_the_temperature_of_one_size_of_logits_is_that_of_the_share_that_is_right():
    """Four of six signs are right: sigmoid(4 / T) = 4 / 6."""
    logits = torch.tensor([-4.0, -4.0, 4.0, 4.0, 4.0, 4.0])
    same = torch.tensor([False, True, False, True, True, True])
    assert fit_temperature(logits, same) == pytest.approx(4 / math.log(2), rel=1e-5)


def test_reliability_counts_pairs_by_affinity_and_temperature_mends_it(fit, cache):
    sharp = bk.calibrated(fit.probe, cache)
    sharp.temperature = fit.probe.temperature / 8
    before, after = bk.reliability(sharp, cache), bk.reliability(bk.calibrated(sharp, cache), cache)
    assert after.attrs["calibration_error"] < before.attrs["calibration_error"] / 2
    assert after.attrs["loss"] < before.attrs["loss"]
    assert after.attrs["temperature"] == pytest.approx(bk.calibrated(fit.probe, cache).temperature)
    mended, plain = bk.judge_probe(bk.calibrated(sharp, cache), cache), bk.judge_probe(fit.probe, cache)
    assert mended["accuracy"] == plain["accuracy"]
    assert mended["auroc"] == pytest.approx(plain["auroc"], abs=1e-6)
    scores, answers = [], []
    for batch in SplitPatches(cache, "test", 2, STRICT, CPU).judged():
        scores += fit.probe(batch.activations).sigmoid()[batch.counted].tolist()
        answers += batch.same[batch.counted].tolist()
    table = bk.reliability(fit.probe, cache, n_bins=4)
    error = 0.0
    for row in table.to_dict("records"):
        mine = [k for k, score in enumerate(scores) if row["low"] <= score < row["high"]]
        assert row["n_pairs"] == len(mine)
        assert row["share_same"] == pytest.approx(np.mean([answers[k] for k in mine]))
        assert row["share_same_low"] <= row["share_same"] <= row["share_same_high"]
        error += abs(row["share_same"] - np.mean([scores[k] for k in mine])) * len(mine) / len(scores)
    assert table.attrs["calibration_error"] == pytest.approx(error, abs=1e-6)


def test_what_cannot_be_looked_at_is_named(fit, cache, tmp_path):
    with pytest.raises(InvalidParameterError, match="at least 2 bins"):
        bk.reliability(fit.probe, cache, n_bins=1)
    with pytest.raises(InvalidParameterError, match="no pair"):
        fit_temperature(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    small = cache_activations(PlantedBackbone(signal=0.7), PlantedScenes(2), root=tmp_path)
    with pytest.raises(EmptySplitError, match="validation"):
        bk.calibrated(fit.probe, small)


def test_tables_say_what_was_measured_on_what(fit, cache, table):
    said = {"backbone": cache.backbone["name"], "layer": 2, "probe": "quadratic", "task": "pairwise"}
    said |= {"protocol": "strict", "split": "test", "n_scenes": fit.metrics["n_scenes"]}
    assert table.attrs == said
    curve = bk.reliability(fit.probe, cache, "validation")
    assert curve.attrs | {"n_scenes": 0} == curve.attrs | said | {"split": "validation", "n_scenes": 0}
    assert "test scenes" in breakdown_figure(table).layout.title.subtitle.text
    assert "validation scenes" in reliability_figure(curve).layout.title.subtitle.text


def test_figures_show_every_group_and_every_bin(fit, cache, table):
    figure = breakdown_figure({"a": table, "b": table})
    drawn = [trace for trace in figure.data if trace.name in ("a", "b") and trace.mode == "markers"]
    assert sum(len(trace.x) for trace in drawn) == 2 * len(table)
    own = [value for trace in drawn if trace.name == "a" for value in trace.y]
    assert sorted(own) == sorted(table["accuracy"])
    curve = bk.reliability(fit.probe, cache)
    shown = reliability_figure(curve)
    assert list(shown.data[1].y) == list(curve["share_same"])
    assert f"ECE {curve.attrs['calibration_error']:.3f}" in shown.data[1].name
    for draw in (breakdown_figure, reliability_figure):
        with pytest.raises(InvalidParameterError, match="nothing to draw"):
            draw(table[:0])
