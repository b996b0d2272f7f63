"""A fit below chance beyond its interval is said wherever its figures are: log, sweep, sentence, table, console."""

import math

import pandas as pd
import pytest
import torch
from planted import PlantedBackbone, PlantedScenes

from bindkit.cache import cache_activations
from bindkit.probes import PROBES, Probe, register_probe
from bindkit.probes.metrics import figures_below_chance, warn_below_chance
from bindkit.results.model_table import model_table, readable
from bindkit.results.sweeping import sweep
from bindkit.results.tables import below_chance, chance_remark, format_results, verdicts


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return cache_activations(PlantedBackbone(), PlantedScenes(40), root=tmp_path_factory.mktemp("planted"))


@pytest.fixture
def upside_down():
    """Far apart is one object: only an offset is learnt, so that no training can turn it."""

    @register_probe("upside_down")
    class UpsideDown(Probe):
        def __init__(self, d_model):
            super().__init__(d_model)
            self.bias = torch.nn.Parameter(torch.zeros(()))

        def pairwise(self, x, y):
            return self.bias - x @ y.mT

    yield "upside_down"
    del PROBES["upside_down"]


@pytest.mark.parametrize("figure", ["auroc", "matched_auroc"])
@pytest.mark.parametrize(
    ("high", "below"), [(0.499, True), (0.5, False), (0.51, False), (math.nan, False), (None, False)]
)
def test_the_whole_interval_decides(high, below, figure):
    assert figures_below_chance({figure: 0.3, f"{figure}_high": high}) == ([figure] if below else [])
    assert not figures_below_chance({figure: 0.3})


def test_it_is_said_everywhere(cache, upside_down, caplog, tmp_path):
    results = sweep(cache, [1], [upside_down], root=tmp_path)
    assert results["auroc_high"].iloc[0] < 0.5
    said = below_chance(results.to_dict("records"))
    assert len(said) == 1
    assert said[0].startswith("BELOW CHANCE: upside_down (pairwise) on planted, layer 1: AUROC 0.")
    assert caplog.text.count("BELOW CHANCE") == 1
    caplog.clear()
    sweep(cache, [1], [upside_down], root=tmp_path)
    assert caplog.text.count("BELOW CHANCE") == 1, "a fit that is read says it again"
    table = model_table(results, upside_down)
    assert readable(table)["", "model"].tolist() == ["planted (BELOW CHANCE)"]
    assert "BELOW CHANCE" in verdicts(table)[0]
    assert said[0] in format_results(results)


def test_nothing_is_said_of_a_fit_above_chance(cache, caplog):
    results = sweep(cache, [1], ["dot_product"])
    table = model_table(results, "dot_product")
    told = [format_results(results), *verdicts(table), *readable(table)["", "model"], caplog.text]
    assert not any("BELOW CHANCE" in text for text in told)


def test_a_table_without_intervals_is_said_nothing_of():
    assert below_chance(pd.DataFrame({"backbone": ["vit"], "auroc": [0.3]}).to_dict("records")) == []


def test_fits_below_chance_at_equal_distance_alone_share_a_sentence_for_each_probe(caplog):
    row = {"backbone": "vit", "task": "pairwise", "auroc": 0.7, "auroc_low": 0.68, "auroc_high": 0.72}
    rows = [
        row | {"probe": probe, "layer": layer, "matched_auroc": auroc, "matched_auroc_low": auroc - 0.02}
        | {"matched_auroc_high": auroc + 0.02}
        for probe, layer, auroc in [("linear", 1, 0.46), ("linear", 4, 0.43), ("quadratic", 2, 0.47), ("dot", 2, 0.49)]
    ]  # fmt: skip
    linear, quadratic = below_chance(rows)
    assert "linear (pairwise) in 2 fits, the lowest on vit, layer 4: AUROC among pairs at equal" in linear
    assert "quadratic (pairwise) in 1 fit, the lowest on vit, layer 2: " in quadratic
    warn_below_chance(rows)
    assert not caplog.text, "over all pairs none is below chance"
    assert [chance_remark(each).partition(":")[0] for each in rows] == ["BELOW CHANCE AT EQUAL DISTANCE"] * 3 + [""]
