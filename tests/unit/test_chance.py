"""A fit below chance beyond its interval is said wherever its figures are: log, sweep, sentence, table, console."""

import math

import pandas as pd
import pytest
import torch
from planted import PlantedBackbone, PlantedScenes

from bindkit.chance import below_chance, figures_below_chance
from bindkit.extraction import cache_activations
from bindkit.model_table import format_results, model_table, readable
from bindkit.probes import PROBES, Probe, register_probe
from bindkit.sweeping import sweep
from bindkit.verdicts import verdicts


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
