"""Scenes varied one option at a time: the right sets, rows that a fit by hand gives, work done once, honest figures."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from own_probes import probe_mine
from PIL import Image
from planted import PlantedBackbone

import bindkit.analysis.difficulty
from bindkit.analysis.difficulty import vary_scenes
from bindkit.backbones.preprocessing import IMAGENET
from bindkit.backbones.sources import load_control, raw_pixels
from bindkit.cache import cache_activations
from bindkit.errors import (
    BindkitError,
    EmptySplitError,
    InvalidParameterError,
    LayerError,
    ProbeError,
    ProbeMismatchError,
)
from bindkit.pretraining import TRAINING_SEED
from bindkit.probes import load_probe, make_probe
from bindkit.probes.fitting import fit_probe, fit_probes
from bindkit.probes.judging import judge_probe
from bindkit.probes.protocols import RESULT_COLUMNS, STRICT
from bindkit.scenes import open_scenes
from bindkit.scenes.geometry import WindowGeometry
from bindkit.scenes.opening import read_variations, scene_variations
from bindkit.scenes.synthetic import SyntheticOptions
from bindkit.views.figures import difficulty_figure, difficulty_scenes

BRIEF = replace(STRICT, epochs=2, min_steps=4, judged_patches=24)
BASE = "synthetic:n=10,seed=3,size=32x40,objects=3,twins=0.5,surface=flat"
LIKE = SimpleNamespace(geometry=WindowGeometry(32, 32, 4), preprocessing=IMAGENET)


class Layered(PlantedBackbone):
    """Three layers: a patch's first pixels, ever fainter."""

    def resolve_layers(self, layers):
        if 7 in layers:
            raise LayerError("no layer 7")
        return super().resolve_layers(layers)

    def activations(self, windows, layers):
        pixels = raw_pixels(windows, 4)[..., : self.d_model]
        return {layer: pixels / 2**layer for layer in layers}


@pytest.fixture
def controls():
    return [load_control(name, LIKE) for name in ("raw-pixels", "position")]


@pytest.fixture
def fitted(monkeypatch):
    """Every fit that is made, as (scenes, backbone, seed); those read from disk are not among them."""
    made = []

    def counting(patches, wanted, seed):
        identity = patches.cache.manifest.identity
        made.extend((identity.scenes_uri, identity.backbone["name"], seed) for _ in wanted)
        return fit_probes(patches, wanted, seed)

    monkeypatch.setattr("bindkit.results.sweeping.fit_probes", counting)
    return made


@pytest.fixture
def no_work(monkeypatch):
    def refuse(*arguments, **named):
        raise AssertionError("something was computed")

    monkeypatch.setattr(bindkit.analysis.difficulty, "cache_activations", refuse)


def recipe(uri):
    return SyntheticOptions.parse(uri.removeprefix("synthetic:"))


# --- which sets ------------------------------------------------------------------------------------


def test_a_line_of_text_and_a_mapping_name_the_same_sets():
    text = " twins = 0.2 0.5;hidden=0-0 30-60 ;; surface=flat camouflage"
    told = {"twins": ["0.2", "0.5"], "hidden": ["0-0", "30-60"], "surface": ["flat", "camouflage"]}
    assert read_variations(text) == told
    numbers = told | {"twins": [0.2, 0.5]}
    assert scene_variations(BASE, text) == scene_variations(BASE, told) == scene_variations(BASE, numbers)


def test_one_option_differs_from_the_base_and_nothing_else():
    base = recipe(BASE)
    sets = scene_variations(BASE, {"hidden": ["30-60", "0-45"], "objects": [2, "3-3", "3"], "twins": [0.5, 0.5, 1]})
    assert [(entry.option, entry.value, entry.is_base) for entry in sets] == [
        *(("hidden", "30-60", False), ("hidden", "0-45", True)),
        *(("objects", "2", False), ("objects", "3-3", True), ("objects", "3", True)),
        *(("twins", "0.5", True), ("twins", "1", False)),
    ]
    assert recipe(sets[0].uri) == replace(base, hidden=(30, 60))
    assert recipe(sets[2].uri) == replace(base, objects=(2, 2))
    assert recipe(sets[6].uri) == replace(base, twins=1.0)
    assert {entry.uri for entry in sets if entry.is_base} == {base.uri}


@pytest.mark.parametrize(
    ("base", "options", "message"),
    [
        (BASE, {"twin": [0.5]}, "'twin=0.5' is not an option; write NAME=VALUE with n: scenes"),
        (BASE, {"twins": [0.5, 1.5]}, "twins=1.5 is not understood"),
        (BASE, {"twins": ["0.5,n=9"]}, "'n=9' is given twice|hidden"),
        (BASE, {"hidden": ["60-30"]}, "hidden=60-30 is not understood"),
        (BASE, {"objects": [2, 3], "outlines": ["plain"]}, "outlines=plain is not understood"),
        (BASE.replace("objects=3", "objects=11"), {"twins": [0]}, "without twins a scene takes at most 10 objects"),
        (BASE, {}, "give every option a list of values"),
        (BASE, {"twins": []}, "give every option a list of values"),
        (BASE, {"surface": "flat"}, "give every option a list of values"),
        (BASE, "twins", "'twins' is not understood; write OPTION=VALUE"),
        (BASE, "twins=0.5; twins=0.9", "is given twice"),
        (BASE, {"seed": [1, TRAINING_SEED]}, f"seed={TRAINING_SEED} is kept for training"),
        (f"synthetic:n=4,seed={TRAINING_SEED + 5}", {"twins": [0.5]}, "is kept for training"),
        ("planted:", {"twins": [0.5]}, "names no scene set"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_computed(
    controls, no_work, base, options, message, tmp_path
):
    with pytest.raises(BindkitError, match=message):
        vary_scenes(controls, base, options, tmp_path, protocol=BRIEF)
    assert not list(tmp_path.iterdir())


def test_scenes_of_other_formats_are_not_varied(tmp_path, no_work, controls):
    for kind in ("images", "instances"):
        (tmp_path / kind).mkdir()
        Image.fromarray(np.ones((8, 8), np.uint8)).save(tmp_path / kind / "a.png")
    with pytest.raises(InvalidParameterError, match="only synthetic scenes are varied"):
        vary_scenes(controls, f"folder:{tmp_path}", {"twins": [0.5]}, tmp_path / "varied")


def test_what_cannot_be_fitted_is_refused_before_anything_is_computed(controls, no_work, tmp_path):
    given = {"base": BASE, "options": {"twins": [0.5]}, "root": tmp_path}
    with pytest.raises(ProbeError, match="unknown probe 'cubic'"):
        vary_scenes(controls, probe="cubic", **given)
    with pytest.raises(LayerError, match="no layer 7"):
        vary_scenes([*controls, Layered()], layers=[7], **given)
    for wrong in ({"backbones": []}, {"backbones": [controls[0]] * 2}, {"backbones": controls, "seeds": []}):
        with pytest.raises(InvalidParameterError, match=r"at least one (backbone|seed)"):
            vary_scenes(**wrong, **given)
    with pytest.raises(InvalidParameterError, match=r"'dino'.*not among the backbones"):
        vary_scenes(controls, layers={"dino": [0]}, **given)
    assert not list(tmp_path.iterdir())


# --- what is measured --------------------------------------------------------------------------------


def test_camouflage_hides_from_pixels_what_flat_distinct_colours_show(controls, tmp_path):
    """Without twins every object has its own colour; in camouflage all wear the ground's."""
    base = "synthetic:n=24,seed=5,size=48x48,objects=3,twins=0,surface=flat"
    rules = replace(STRICT, epochs=4, min_steps=160)
    table = vary_scenes(controls[:1], base, {"surface": ["flat", "camouflage"]}, tmp_path, protocol=rules)
    flat, camouflage = table["auroc"]
    assert flat > 0.8
    assert camouflage < 0.65
    assert table["twins_auroc"].isna().all()


def test_rows_are_those_of_fits_made_one_by_one(controls, tmp_path):
    options = {"objects": [4, 3], "surface": ["textured"]}
    settings = {"probe": "linear", "protocol": BRIEF, "seeds": [0, 2], "transfer": True}
    table = vary_scenes(controls[:1], BASE, options, tmp_path / "varied", **settings)
    assert tuple(table.columns) == (*RESULT_COLUMNS, "option", "value", "is_base", "scenes", "probe_from")
    wanted = [
        (option, value, origin, "control:raw-pixels", seed)
        for option, value in [("objects", "4"), ("objects", "3"), ("surface", "textured")]
        for origin in ("own", "base")
        for seed in (0, 2)
    ]
    columns = ["option", "value", "probe_from", "backbone", "seed"]
    assert list(table[columns].itertuples(index=False, name=None)) == wanted
    assert list(table["is_base"]) == [value == "3" for value in table["value"]]
    assert table["layer"].isna().all()

    caches = {
        uri: cache_activations(controls[0], open_scenes(uri), tmp_path / "cache") for uri in {BASE, *table["scenes"]}
    }
    fits = {
        (uri, seed): fit_probe(cache, 0, "linear", protocol=BRIEF, seed=seed)
        for uri, cache in caches.items()
        for seed in (0, 2)
    }
    for row in table.to_dict("records"):
        fit = fits[BASE if row["probe_from"] == "base" else row["scenes"], row["seed"]]
        fresh = row["probe_from"] == "own" or row["is_base"]
        figures = fit.metrics if fresh else judge_probe(fit.probe, caches[row["scenes"]], "test", BRIEF)
        for name in set(RESULT_COLUMNS) & set(figures):
            assert row[name] == pytest.approx(figures[name], abs=5e-4, nan_ok=True), name
        assert math.isnan(row["seconds"]) != fresh
    assert table["auroc"].round(9).nunique() == 10  # at the base's own value, both are one fit


def test_layers_are_asked_of_each_backbone_by_name(controls, tmp_path):
    backbones = [Layered(), Layered(name="another"), controls[0]]
    layers = {"planted": [2], "another": [0, 1]}
    table = vary_scenes(backbones, BASE, {"twins": [0.5]}, tmp_path, layers, "linear", protocol=BRIEF)
    found = table.groupby("backbone", sort=False)["layer"].apply(list).to_dict()
    assert found["planted"] == [2] and found["another"] == [0, 1]
    assert np.isnan(found["control:raw-pixels"]).all()


@pytest.fixture
def cache(controls, tmp_path):
    return cache_activations(controls[0], open_scenes(BASE), tmp_path / "cache", dtype="float32")


@pytest.mark.parametrize("kind", ["linear", "quadratic"])
def test_judging_a_fit_on_its_own_scenes_gives_its_figures_again(cache, kind):
    fit = fit_probe(cache, 0, kind, protocol=BRIEF)
    again = judge_probe(fit.probe, cache, protocol=BRIEF)
    assert set(again) == set(fit.metrics)
    for name, value in fit.metrics.items():
        assert again[name] == pytest.approx(value, abs=5e-4, nan_ok=True), name
    other = judge_probe(fit.probe, cache, split="train", protocol=BRIEF)
    assert other["n_scenes"] > again["n_scenes"]


def test_judging_equals_a_plain_loop_over_pairs(cache, controls, tmp_path):
    probe = fit_probe(cache, 0, "quadratic", protocol=BRIEF).probe
    harder = cache_activations(
        controls[0], open_scenes(BASE.replace("flat", "textured")), tmp_path / "cache", dtype="float32"
    )
    weight, bias = probe.weight.double().numpy(), float(probe.bias)
    labels, scores, same, right = harder.labels("test"), [], [], 0
    rows = harder.activations("test", 0).take(range(len(labels))).double().numpy()
    for start, stop in zip(labels.scene_offsets[:-1], labels.scene_offsets[1:], strict=True):
        taken = [k for k in range(start, stop) if labels.purity[k] > 0.5 and labels.instances[k] > 0]
        for place, i in enumerate(taken):
            for j in taken[place + 1 :]:
                if np.abs(labels.corners[i] - labels.corners[j]).max() < labels.patch_size:
                    continue  # two windows show the same pixels
                scores.append(rows[i] @ (weight + weight.T) @ rows[j] / (2 * math.sqrt(probe.d_model)) + bias)
                same.append(labels.instances[i] == labels.instances[j])
                right += (scores[-1] > 0) == same[-1]
    positive, negative = np.array(scores)[same], np.array(scores)[~np.array(same)]
    wins = (positive[:, None] > negative).mean() + (positive[:, None] == negative).mean() / 2
    judged = judge_probe(probe, harder, protocol=replace(BRIEF, judged_patches=10_000))
    assert judged["n_pairs"] == len(scores)
    assert judged["auroc"] == pytest.approx(wins, abs=1e-5)
    assert judged["accuracy"] == pytest.approx(right / len(scores), abs=1e-5)


def test_a_probe_is_not_judged_on_what_it_was_not_fitted_for(cache, controls, tmp_path):
    fit = fit_probe(cache, 0, "linear", protocol=BRIEF)
    other = cache_activations(controls[1], open_scenes(BASE), tmp_path / "cache")
    with pytest.raises(ProbeMismatchError, match=r"fitted on control:raw-pixels .* judge control:position"):
        judge_probe(fit.probe, other)
    with pytest.raises(ProbeMismatchError, match="fitted on layer 0, it is asked to judge layer 3"):
        judge_probe(fit.probe, cache, layer=3)
    fresh = make_probe("linear", cache.d_model)
    with pytest.raises(LayerError, match="does not say which layer"):
        judge_probe(fresh, cache)
    with pytest.raises(ProbeMismatchError, match="width"):
        judge_probe(make_probe("linear", 5), cache, layer=0)
    bare = cache_activations(controls[0], open_scenes(BASE.replace("n=10", "n=1")), tmp_path / "cache")
    with pytest.raises(EmptySplitError, match="test split"):
        judge_probe(fresh, bare, split="test", layer=0)
    assert judge_probe(fresh, bare, layer=0)["n_scenes"] == 1  # of the only split that there is
    assert fit.probe.weight.device == torch.device("cpu")


# --- work done once ------------------------------------------------------------------------------------


def varied(backbones, root, options=None, **settings):
    options = options or {"surface": ["flat", "textured", "camouflage"]}
    return vary_scenes(backbones, BASE, options, root, probe="linear", protocol=BRIEF, **settings)


def test_a_second_call_reads_and_more_values_add_to_what_is_there(controls, fitted, monkeypatch, tmp_path):
    first = varied(controls, tmp_path, {"surface": ["flat", "textured"]})
    assert len(fitted) == 4
    with monkeypatch.context() as patch:
        patch.setattr(bindkit.analysis.difficulty, "cache_activations", None)
        again = varied(controls, tmp_path, {"surface": ["flat", "textured"]})
    pd.testing.assert_frame_equal(first, again)
    more = varied(controls, tmp_path, {"twins": [0.5, 1], "surface": ["flat", "textured", "camouflage"]})
    assert [(uri.split("surface=")[1].split(",")[0], recipe(uri).twins) for uri, _, _ in fitted[4:]] == [
        *(("flat", 1.0), ("camouflage", 0.5)) * 2
    ]
    kept = more[(more["option"] == "surface") & (more["value"] != "camouflage")].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, first)


def test_an_interrupted_call_goes_on_where_it_stopped(controls, fitted, monkeypatch, tmp_path):
    given = {"options": {"surface": ["textured", "flat"]}, "transfer": True}
    whole = varied(controls, tmp_path / "whole", **given)
    n_whole, done = len(fitted), []
    assert n_whole == 4
    really = bindkit.analysis.difficulty.sweep

    def killed(*arguments, **named):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(really(*arguments, **named))
        return done[-1]

    with monkeypatch.context() as patch:
        patch.setattr(bindkit.analysis.difficulty, "sweep", killed)
        with pytest.raises(KeyboardInterrupt):
            varied(controls, tmp_path / "cut", **given)
    assert len(fitted) == n_whole + 2
    table = varied(controls, tmp_path / "cut", **given)
    assert fitted[:n_whole] == fitted[n_whole:]  # each once, in the same order
    pd.testing.assert_frame_equal(table.drop(columns="seconds"), whole.drop(columns="seconds"))


def test_fits_made_before_a_kill_within_a_set_are_not_repeated(controls, fitted, monkeypatch, tmp_path):
    def killed(*arguments, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bindkit.analysis.difficulty, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            varied(controls[:1], tmp_path, {"surface": ["flat"]})
    varied(controls[:1], tmp_path, {"surface": ["flat"]})
    assert len(fitted) == 1


def test_caches_go_once_they_are_judged_unless_they_are_wanted(controls, tmp_path):
    varied(controls, tmp_path / "bare", {"surface": ["flat"]})
    assert not list((tmp_path / "bare").rglob("*manifest*"))
    assert not list((tmp_path / "bare").rglob("cache"))
    fits = [load_probe(record.parent) for record in (tmp_path / "bare").rglob("probe.json")]
    assert [fit.kind for fit in fits] == ["linear", "linear"]
    varied(controls, tmp_path / "kept", {"surface": ["flat"]}, keep_caches=True)
    assert len(list((tmp_path / "kept").rglob("labels"))) >= 2


@pytest.mark.parametrize(
    "changed",
    [
        {"seeds": [0, 1]},
        {"patches_per_scene": 20},
        {"transfer": True},
        {"protocol": replace(BRIEF, learning_rate=0.3)},
        {"probe": "diag_quadratic"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_rows_of_other_settings_are_not_taken_for_these(controls, changed, tmp_path):
    settings = {"probe": "linear", "protocol": BRIEF}
    options = {"surface": ["textured"]}
    before = vary_scenes(controls[:1], BASE, options, tmp_path / "a", **settings)
    after = vary_scenes(controls[:1], BASE, options, tmp_path / "a", **(settings | changed))
    fresh = vary_scenes(controls[:1], BASE, options, tmp_path / "b", **(settings | changed))
    pd.testing.assert_frame_equal(after.drop(columns="seconds"), fresh.drop(columns="seconds"))
    assert not after.drop(columns="seconds").equals(before.drop(columns="seconds"))


def test_rows_of_a_probe_of_ones_own_are_made_again_once_it_computes_something_else(controls, fitted, tmp_path):
    made = []
    with probe_mine() as register:
        for factor in (1, 1, 2):
            register(factor)
            vary_scenes(controls[:1], BASE, {"objects": [3]}, tmp_path, probe="mine", protocol=BRIEF)
            made.append(len(fitted))
    assert made == [1, 1, 2]


@pytest.mark.parametrize("content", ["", "{}", '{"made_from": 3, "rows": []}', "[1]"])
def test_a_damaged_record_is_made_again(controls, fitted, content, tmp_path):
    first = varied(controls[:1], tmp_path, {"surface": ["flat"]})
    (record,) = tmp_path.rglob("rows/*.json")
    record.write_text(content)
    again = varied(controls[:1], tmp_path, {"surface": ["flat"]})
    assert len(fitted) == 1  # the cache is made again, its fit is still there
    pd.testing.assert_frame_equal(first, again)


# --- figures ---------------------------------------------------------------------------------------------

OPTIONS = {"twins": [0.0, 0.5, 1.0], "surface": ["flat", "camouflage"]}
OBJECTIVES = {"a/vit": "self-supervised", "random-init:a/vit": "random-init", "control:position": "control"}


@pytest.fixture
def table():
    """Accuracy 0.9, 0.8, 0.7 along an option's values for the trained backbone, less for the others; two seeds."""
    rows = []
    for number, entry in enumerate(scene_variations(BASE, OPTIONS)):
        step = number if entry.option == "twins" else number - 3
        for place, (backbone, objective) in enumerate(OBJECTIVES.items()):
            for seed in (0, 1):
                for origin in ("own", "base"):
                    accuracy = 0.9 - 0.1 * step - 0.15 * place + 0.02 * seed - 0.05 * (origin == "base")
                    row = dict.fromkeys(RESULT_COLUMNS, "")
                    row |= {"backbone": backbone, "objective": objective, "seed": seed, "probe": "quadratic"}
                    row |= {"task": "pairwise", "protocol": "strict", "split": "test"}
                    row |= {"layer": math.nan if objective == "control" else 4, "accuracy": accuracy}
                    row |= {"accuracy_low": accuracy - 0.04, "accuracy_high": accuracy + 0.03, "auroc": accuracy}
                    row |= {"twins_auroc": math.nan if entry.value == "0.0" else accuracy}
                    row |= {"majority_accuracy": 0.6 + 0.01 * step, "scenes": entry.uri, "probe_from": origin}
                    rows.append(row | {"option": entry.option, "value": entry.value, "is_base": entry.is_base})
    return pd.DataFrame(rows)


def panel(figure, number):
    axis = "y" if number == 0 else f"y{number + 1}"
    return {trace.name: trace for trace in figure.data if (trace.yaxis or "y") == axis}


def test_a_panel_an_option_and_a_line_a_backbone_with_means_over_seeds(table):
    figure = difficulty_figure(table, "accuracy")
    twins, surface = panel(figure, 0), panel(figure, 1)
    names = {"a/vit", "random-init:a/vit", "position", "majority class"}
    assert set(twins) == set(surface) == names
    np.testing.assert_allclose(twins["a/vit"].y, [0.91, 0.81, 0.71])
    np.testing.assert_allclose(surface["position"].y, [0.61, 0.51])
    np.testing.assert_allclose(twins["majority class"].y, [0.6, 0.6, 0.61, 0.62, 0.62])
    assert list(twins["position"].customdata) == ["0.0", "0.5", "1.0"]
    assert list(figure.layout.xaxis.ticktext) == ["0.0", "<b>0.5</b>", "1.0"]
    assert list(figure.layout.xaxis2.ticktext) == ["<b>flat</b>", "camouflage"]
    assert figure.layout.yaxis.range == figure.layout.yaxis2.range
    assert [trace.showlegend for trace in twins.values()] == [True] * 4
    assert [trace.showlegend for trace in surface.values()] == [False] * 4
    words = " ".join(note.text for note in figure.layout.annotations)
    assert "<b>twins</b>" in words and "<b>surface</b>" in words
    assert "fitted anew" in figure.layout.title.subtitle.text


def test_intervals_stand_on_trained_backbones_only_and_inside_the_axes(table):
    figure = difficulty_figure(table, "accuracy")
    lines = panel(figure, 0)
    np.testing.assert_allclose(lines["a/vit"].error_y.array, 0.03)
    np.testing.assert_allclose(lines["a/vit"].error_y.arrayminus, 0.04)
    assert lines["position"].error_y.array is None and lines["random-init:a/vit"].error_y.array is None
    lowest, highest = figure.layout.yaxis.range
    assert lowest < 0.41 and highest > 0.94
    assert panel(difficulty_figure(table, "auroc"), 0)["a/vit"].error_y.array is None


def test_two_trained_backbones_stand_side_by_side_where_they_have_intervals(table):
    second = table[table["backbone"] == "a/vit"].assign(backbone="b/vit")
    lines = panel(difficulty_figure(pd.concat([table, second]), "accuracy"), 0)
    first, other = (np.array(lines[name].x, dtype=float) for name in ("a/vit", "b/vit"))
    assert (other - first > 0.02).all()
    np.testing.assert_allclose((first + other) / 2, [0, 1, 2], atol=1e-9)
    np.testing.assert_allclose(np.array(lines["position"].x, dtype=float), [0, 1, 2])


def test_controls_and_untrained_backbones_recede(table):
    lines = panel(difficulty_figure(table), 0)
    assert lines["a/vit"].line.dash == "solid"
    assert lines["random-init:a/vit"].line.dash != "solid"
    assert lines["random-init:a/vit"].line.color == lines["a/vit"].line.color
    red, green, blue = (int(lines["position"].line.color[start : start + 2], 16) for start in (1, 3, 5))
    assert max(red, green, blue) - min(red, green, blue) < 32
    assert list(lines)[-1] == "a/vit"  # drawn over the others


def test_the_base_is_marked_in_every_panel(table):
    bands = difficulty_figure(table).layout.shapes
    assert [(band.xref, (band.x0 + band.x1) / 2) for band in bands] == [("x", 1), ("x2", 0)]


def test_a_value_without_twins_is_a_gap_that_says_so(table):
    figure = difficulty_figure(table, "twins_auroc")
    line = panel(figure, 0)["a/vit"]
    assert np.isnan(line.y[0]) and not np.isnan(line.y[1:]).any()
    assert not line.connectgaps
    said = [(note.x, note.xref) for note in figure.layout.annotations if note.text == "no distractors"]
    assert said == [(0, "x")]


def test_probes_of_the_base_are_drawn_apart(table):
    figure = difficulty_figure(table, "accuracy", probe_from="base")
    np.testing.assert_allclose(panel(figure, 0)["a/vit"].y, [0.86, 0.76, 0.66])
    assert "base scenes only" in figure.layout.title.subtitle.text
    with pytest.raises(InvalidParameterError, match=r"no rows of probe_from='base', it has own; measure with transfer"):
        difficulty_figure(table[table["probe_from"] == "own"], probe_from="base")


def decoded(source):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).convert("RGB")).astype(float)


def test_below_each_value_stands_a_scene_of_its_own_set(table):
    figure = difficulty_figure(table)
    sets = scene_variations(BASE, OPTIONS)
    assert [(image.xref, image.x) for image in figure.layout.images] == [
        *(("x", 0), ("x", 1), ("x", 2)),
        *(("x2", 0), ("x2", 1)),
    ]
    for image, entry in zip(figure.layout.images, sets, strict=True):
        shown = open_scenes(entry.uri)[0].image.astype(float)
        assert np.abs(decoded(image.source) - shown).mean() < 12  # JPEG
        assert image.y < figure.layout.yaxis.domain[0]
    assert not difficulty_figure(table.drop(columns="scenes"), examples=False).layout.images


@pytest.mark.parametrize("n_options", [1, 2, 3, 4, 5, 7])
def test_any_number_of_options_has_room(table, n_options):
    one = table[table["option"] == "surface"]
    figure = difficulty_figure(pd.concat([one.assign(option=f"o{k}") for k in range(n_options)]), examples=False)
    assert all(len(panel(figure, number)) == 4 for number in range(n_options))
    corners = {(axis.domain, figure.layout[f"yaxis{name[5:]}"].domain) for name, axis in axes(figure)}
    assert len(corners) == len(axes(figure)) >= n_options
    assert figure.layout.width <= 1300


def axes(figure):
    return [(name, figure.layout[name]) for name in figure.to_dict()["layout"] if name.startswith("xaxis")]


@pytest.mark.parametrize(("column", "other"), [("layer", 2), ("probe", "linear"), ("split", "train")])
def test_rows_that_are_not_comparable_are_not_averaged(table, column, other):
    mixed = pd.concat([table, table.assign(**{column: other})])
    with pytest.raises(InvalidParameterError, match=f"of .* (are of|has) several .*{column}"):
        difficulty_figure(mixed)


def test_a_table_of_something_else_is_refused(table):
    with pytest.raises(InvalidParameterError, match="unknown metric 'speed'"):
        difficulty_figure(table, "speed")
    with pytest.raises(InvalidParameterError, match="lacks the columns option, value, probe_from"):
        difficulty_figure(table[list(RESULT_COLUMNS)])


def test_the_gallery_shows_every_value_once_and_names_it():
    figure = difficulty_scenes(BASE, OPTIONS, example=1)
    sets = scene_variations(BASE, OPTIONS)
    assert len(figure.data) == len(sets)
    for trace, entry in zip(figure.data, sets, strict=True):
        assert np.abs(decoded(trace.source) - open_scenes(entry.uri)[1].image).mean() < 12
    words = [note.text for note in figure.layout.annotations]
    assert [text for text in words if "<br>" not in text] == [
        *("0.0", "<b>0.5</b> · base", "1.0"),
        *("<b>flat</b> · base", "camouflage"),
    ]
    assert sum("<br>" in text for text in words) == len(OPTIONS)
    with pytest.raises(InvalidParameterError, match="has the scenes 0 to 9, asked for scene 10"):
        difficulty_scenes(BASE, OPTIONS, example=10)
