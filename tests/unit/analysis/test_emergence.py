"""Emergence: checkpoints are measured as any backbone is, resumed where it stopped, and words follow the numbers."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from own_probes import Odd, probe_mine
from PIL import Image
from planted_checkpoints import START, planted

import bindkit as bk
from bindkit.analysis.checkpoints import (
    EMERGENCE_COLUMNS,
    find_runs,
    measure_checkpoints,
    read_runs,
    training_histories,
)
from bindkit.analysis.emergence import emergence_gains, emergence_verdicts
from bindkit.errors import BackboneError, InvalidParameterError, LayerError
from bindkit.pretraining import TRAINING_SEED, TrainingScenes, checkpoints_of, pretrain
from bindkit.probes.fitting import fit_probe, fit_probes
from bindkit.probes.protocols import STRICT
from bindkit.views.figures import emergence_figure

RECIPE = "size=80x80,objects=3-5,twins=1"
UNSEEN = f"synthetic:n=6,seed=3,{RECIPE}"
BRIEF = replace(STRICT, epochs=2, min_steps=4, judged_patches=24)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two steps, with checkpoints at 0 and 32 scenes."""
    pool = TrainingScenes.open(f"synthetic:n=64,seed={TRAINING_SEED},{RECIPE}", workers=1)
    return pretrain("mae", tmp_path_factory.mktemp("runs") / "mae", pool, scenes_seen=32, checkpoints=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("measured")


@pytest.fixture(scope="module")
def table(run, root):
    return measure_checkpoints([run.directory], UNSEEN, root, layers=[1], protocol=BRIEF)


@pytest.fixture
def fitted(monkeypatch):
    """Every fit that is made, as (backbone, layer, seed)."""
    made = []

    def counting(patches, wanted, seed):
        made.extend((patches.cache.backbone["name"], patches.layer, seed) for _ in wanted)
        return fit_probes(patches, wanted, seed)

    monkeypatch.setattr("bindkit.results.sweeping.fit_probes", counting)
    return made


def test_a_checkpoint_is_measured_as_any_backbone_is(run, table, tmp_path):
    assert tuple(table.columns) == EMERGENCE_COLUMNS
    assert table["objective"].tolist() == ["random-init", "masked-reconstruction", *["control"] * 3]
    assert table["scenes_seen"].tolist()[:2] == [0, 32]
    assert table["scenes_seen"][2:].isna().all()
    assert table["pretraining"].tolist()[:2] == ["mae", "mae"]
    assert table["pretraining"][2:].isna().all()
    for row, name in ((table.iloc[1], str(run.final)), (table.iloc[4], "control:position+raw-pixels")):
        assert row["backbone"] == name
        like = bk.load_backbone(str(run.final))
        source = bk.load_control(name, like) if name.startswith("control") else like
        cache = bk.cache_activations(source, bk.open_scenes(UNSEEN), root=tmp_path, layers=source.resolve_layers([1]))
        expected = fit_probe(cache, cache.layers[0], protocol=BRIEF).row()
        for figure in ("accuracy", "auroc", "twins_auroc", "n_pairs"):
            assert row[figure] == pytest.approx(expected[figure], nan_ok=True), figure


def test_what_was_measured_is_read_and_the_caches_are_gone(run, table, root, fitted):
    assert len(list(root.glob("*.csv"))) == 5
    assert not list(root.rglob("*.safetensors"))
    again = measure_checkpoints([run.directory], UNSEEN, root, layers="1", protocol=BRIEF)
    assert fitted == []
    pd.testing.assert_frame_equal(again, table)


def test_only_what_is_missing_is_fitted(run, table, root, tmp_path, fitted):
    copy = shutil.copytree(root, tmp_path / "measured")
    more = measure_checkpoints(
        [run.directory], UNSEEN, copy, layers=[1, 2], protocol=BRIEF, checkpoints=[32], keep_caches=True
    )
    assert fitted == [(str(run.final), 2, 0)]
    assert more["layer"].tolist()[:2] == [1, 2]
    pd.testing.assert_series_equal(more.iloc[0], table.iloc[1], check_names=False)
    assert list(copy.rglob("*.safetensors"))


def test_a_probe_of_ones_own_is_measured_again_once_it_computes_something_else(run, tmp_path, fitted):
    asked = {"layers": [1], "protocol": BRIEF, "checkpoints": [32], "probe": "mine"}
    made = []
    with probe_mine() as register:
        for factor in (1, 1, 2, Odd(), Odd()):
            register(factor)
            measure_checkpoints([run.directory], UNSEEN, tmp_path, **asked)
            made.append([name for name, *_ in fitted].count(str(run.final)))
    assert made == [1, 1, 2, 3, 4]


def test_a_call_that_was_stopped_goes_on_where_it_was(run, table, tmp_path, monkeypatch, fitted):
    def stopping(patches, wanted, seed):
        if len(fitted) == 1:
            raise KeyboardInterrupt
        fitted.append("before")
        return fit_probes(patches, wanted, seed)

    with monkeypatch.context() as stopped:
        stopped.setattr("bindkit.results.sweeping.fit_probes", stopping)
        with pytest.raises(KeyboardInterrupt):
            measure_checkpoints([run.directory], UNSEEN, tmp_path, layers=[1, 2], protocol=BRIEF, checkpoints=[32])
    whole = measure_checkpoints([run.directory], UNSEEN, tmp_path, layers=[1, 2], protocol=BRIEF, checkpoints=[32])
    assert fitted[1][1:] == (2, 0), "layer 1 was fitted before"
    assert whole["auroc"].iloc[0] == table["auroc"].iloc[1]


def test_other_weights_in_its_place_are_measured_anew(run, table, root, tmp_path, fitted):
    moved = shutil.copytree(run.directory, tmp_path / "run")
    untrained, trained = checkpoints_of(moved).values()
    shutil.copy(untrained / "model.safetensors", trained)
    measured = shutil.copytree(root, tmp_path / "measured")
    swapped = measure_checkpoints([moved], UNSEEN, measured, layers=[1], protocol=BRIEF, checkpoints=[32])
    assert swapped["auroc"].iloc[0] == pytest.approx(table["auroc"].iloc[0])
    assert swapped["auroc"].iloc[0] != table["auroc"].iloc[1]


def test_scenes_that_changed_on_disk_are_measured_anew(run, tmp_path, fitted):
    folder = tmp_path / "scenes"
    for scene in bk.open_scenes(UNSEEN):
        for kind, array in (("images", scene.image), ("instances", scene.instances.astype(np.uint8))):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / kind / f"{scene.id}.png")
    asked = {"layers": [1], "protocol": BRIEF, "checkpoints": [32]}
    made = []
    for change in (False, False, True):
        if change:
            for mask in (folder / "instances").iterdir():
                Image.fromarray(np.asarray(Image.open(mask))[::-1]).save(mask)
        measure_checkpoints([run.directory], f"folder:{folder}", tmp_path / "measured", **asked)
        made.append([name for name, *_ in fitted].count(str(run.final)))
    assert made == [1, 1, 2]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"scenes": f"synthetic:n=6,seed={TRAINING_SEED},{RECIPE}"}, InvalidParameterError, "kept for training"),
        ({"checkpoints": [16]}, InvalidParameterError, r"at 0, 32 scenes; choose among them, got \[16\]"),
        ({"layers": "one"}, LayerError, "'one'"),
        ({"layers": [9]}, LayerError, "layers 0 to 5"),
        ({"seeds": ()}, InvalidParameterError, "at least one seed"),
        ({"runs": []}, InvalidParameterError, "at least one directory"),
    ],
)
def test_what_cannot_be_measured_is_refused(run, tmp_path, change, error, said):
    given = {"runs": [run.directory], "scenes": UNSEEN, "root": tmp_path, "layers": [1], "protocol": BRIEF}
    with pytest.raises(error, match=said):
        measure_checkpoints(**{**given, **change})


def test_scenes_that_were_opened_already_are_held_to_the_same_rule(run, tmp_path):
    seen = bk.open_scenes(f"synthetic:n=6,seed={TRAINING_SEED + 5},{RECIPE}")
    with pytest.raises(InvalidParameterError, match="kept for training"):
        measure_checkpoints([run.directory], seen, tmp_path)


def test_histories_are_what_the_runs_kept(run):
    history = training_histories([run.directory])
    assert history["loss"].tolist() == [entry["loss"] for entry in run.history]
    assert set(history["pretraining"]) == {"mae"}


# --- runs without weights --------------------------------------------------------------------------


def write_run(directory, objective="mae", seed=0, scenes_seen=512, **settings):
    (directory / "scenes_000000000").mkdir(parents=True)
    (directory / "scenes_000000000" / "config.json").write_text("{}")
    plan = {"objective": objective, "settings": settings, "scenes_seen": scenes_seen, "seed": seed, "checkpoints": [0]}
    (directory / "pretraining.json").write_text(json.dumps({"plan": plan}))
    return directory


def test_runs_of_one_training_share_a_label_and_others_say_what_differs(tmp_path):
    runs = [
        write_run(tmp_path / "a", seed=0, mask_ratio=0.75),
        write_run(tmp_path / "b", seed=1, mask_ratio=0.75),
        write_run(tmp_path / "c", seed=0, mask_ratio=0.5),
        write_run(tmp_path / "d", "dino", seed=4, scenes_seen=99),
    ]
    labels = [found.label for found in read_runs(runs)]
    assert labels == ["mae, mask_ratio=0.75", "mae, mask_ratio=0.75", "mae, mask_ratio=0.5", "dino"]
    assert [found.label for found in read_runs(runs[:2])] == ["mae", "mae"]


def test_the_same_training_twice_is_refused(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("a", "b")]
    with pytest.raises(InvalidParameterError, match=r"a and .*b hold the same training \(mae, seed 0\)"):
        read_runs(runs)


def test_runs_are_found_in_a_directory_of_several(tmp_path):
    inside = [write_run(tmp_path / "runs" / name, seed=k) for k, name in enumerate(("a", "b"))]
    alone = write_run(tmp_path / "alone", "dino")
    assert find_runs([tmp_path / "runs", alone]) == [*inside, alone]
    (tmp_path / "empty").mkdir()
    with pytest.raises(BackboneError, match="is no run of pretrain"):
        find_runs([tmp_path / "empty"])
    with pytest.raises(BackboneError, match=r"no readable pretraining\.json"):
        read_runs([tmp_path / "empty"])


# --- planted tables --------------------------------------------------------------------------------


def verdict(*seeds, **options):
    return emergence_verdicts(planted({"mae": list(seeds)}, **options))


def test_gains_are_means_of_paired_differences_with_students_interval():
    ends = [(0.88, 0.70), (0.90, 0.70), (0.95, 0.70)]
    starts = [(0.78, 0.55), (0.79, 0.55), (0.77, 0.55)]
    gains = emergence_gains(planted({"mae": list(zip(starts, ends, strict=True))}))
    pairs = gains.iloc[0]
    differences = np.array([0.10, 0.11, 0.18])
    half = 4.302653 * differences.std(ddof=1) / math.sqrt(3)  # the 97.5 % point of t with 2 degrees of freedom
    assert (pairs["layer"], pairs["untrained_layer"], pairs["scenes_seen"], pairs["n_seeds"]) == (3, 3, 512, 3)
    assert pairs["over_untrained"] == pytest.approx(0.13)
    assert pairs["over_untrained_low"] == pytest.approx(0.13 - half, abs=1e-6)
    assert pairs["over_untrained_high"] == pytest.approx(0.13 + half, abs=1e-6)
    assert (pairs["control"], pairs["control_value"]) == ("control:position", 0.80)
    assert pairs["over_control"] == pytest.approx(0.11)
    two = emergence_gains(planted({"mae": list(zip(starts[:2], ends[:2], strict=True))})).iloc[0]
    assert (two["over_untrained_low"], two["over_untrained_high"]) == pytest.approx((0.10, 0.11))
    one = emergence_gains(planted({"mae": [(starts[0], ends[0])]})).iloc[0]
    assert math.isnan(one["over_untrained_low"])


def test_the_best_layer_is_chosen_on_the_validation_scenes_as_in_the_tables():
    table = planted({"mae": [(START, (0.9, 0.7))]})
    chosen = emergence_gains(table.assign(validation_accuracy=1 - table["layer"] / 10)).iloc[0]
    assert (chosen["layer"], chosen["untrained_layer"], chosen["value"]) == (1, 1, pytest.approx(0.89))
    figure = emergence_figure(table.assign(validation_accuracy=1 - table["layer"] / 10), "auroc")
    (level,) = (trace for trace in figure.data if trace.name == "random init, best layer")
    assert list(level.y) == pytest.approx([START[0] - 0.01] * 2)


def test_the_last_checkpoint_is_one_that_all_seeds_have():
    table = planted({"mae": [(START, (0.9, 0.7)), (START, (0.9, 0.7))]})
    unfinished = table[~((table["training_seed"] == 1) & (table["scenes_seen"] == 512))]
    assert set(emergence_gains(unfinished)["scenes_seen"]) == {100}


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ([(0.90, 0.75), (0.91, 0.76)], "Yes: binding emerged in training"),
        ([(0.90, 0.75)], "Yes: binding emerged in training.*in the one seed that was trained"),
        ([(0.79, 0.75), (0.79, 0.75)], "No: AUROC is not above the best baseline"),
        ([(0.90, 0.59), (0.90, 0.58)], "No: AUROC against same-class distractors is not above the best baseline"),
        (
            [(0.78, 0.55), (0.78, 0.55)],
            "No: AUROC is not above its random init nor above the best baseline; "
            "AUROC against same-class distractors is not above",
        ),
        ([(0.90, 0.75), (0.90, 0.50)], "No: AUROC against same-class distractors is not above its random init"),
        ([(0.71, 0.52), (0.71, 0.53)], r"AUROC 0\.71 at layer 3, 0\.07 below its random init \(0\.78\)"),
        ([(0.70, 0.52), (0.71, 0.53)], "same-class distractors are told apart no better than by chance"),
        ([(0.90, math.nan), (0.90, math.nan)], "No: there is no AUROC against same-class distractors"),
    ],
)
def test_the_verdict_says_what_the_numbers_say(ends, said):
    sentence, *_ = verdict(*((START, end) for end in ends))
    assert pd.Series([sentence]).str.contains(said).item(), sentence
    assert ("Yes" in sentence) == said.startswith("Yes")


def test_seeds_that_disagree_are_no_yes():
    ends = [(0.90, 0.72), (0.90, 0.56), (0.90, 0.70)]
    sentence = verdict(*((START, end) for end in ends))[0]
    assert (
        "No: AUROC against same-class distractors is not above its random init nor above the best baseline." in sentence
    )
    assert "not told apart from its random init (0.55) [-" in sentence


def test_an_objective_that_is_told_of_objects_is_no_emergence():
    table = planted({"motion": [(START, (0.9, 0.8)), (START, (0.9, 0.8))]})
    sentence = emergence_verdicts(table)[0]
    assert "as its loss asks for" in sentence
    assert "emerged" not in sentence


@pytest.mark.parametrize(
    ("objectives", "said"),
    [
        ({"mae": [(0.9, 0.8), (0.9, 0.81)], "dino": [(0.9, 0.7), (0.9, 0.71)]}, "mae binds best.*0.10 above dino"),
        ({"mae": [(0.9, 0.8), (0.9, 0.66)], "dino": [(0.9, 0.7), (0.9, 0.71)]}, "overlap, so which binds best is open"),
        ({"mae": [(0.9, 0.8)], "dino": [(0.9, 0.7)]}, "mae binds best.*chance may decide"),
        ({"mae": [(0.9, 0.8)], "dino": [(0.9, 0.8)]}, "as high as dino: which of the two"),
        ({"mae": [(0.7, 0.58)], "dino": [(0.7, 0.55)]}, "No objective binds by this measure; mae has the highest"),
        ({"mae": [(0.7, 0.9)], "dino": [(0.9, 0.7)]}, "does not pass as binding; of those that do, dino"),
        ({"mae": [(0.9, 0.8)]}, "no other objective"),
        ({"mae": [(0.9, math.nan)]}, "there were no same-class distractors"),
    ],
)
def test_which_binds_best_is_said_as_surely_as_seeds_allow(objectives, said):
    table = planted({name: [(START, end) for end in ends] for name, ends in objectives.items()})
    ranking = emergence_verdicts(table)[-2]
    assert pd.Series([ranking]).str.contains(said).item(), ranking


def test_what_the_numbers_cannot_say_is_said():
    few = verdict((START, (0.9, 0.7)), n_scenes=8)[-1]
    assert "Evaluated on 8 scenes: a demonstration, not a measurement" in few
    assert "One training seed" in few
    table = planted({"mae": [(START, (0.9, 0.7))] * 3, "dino": [(START, (0.9, 0.7))] * 3})
    shorter = table[~((table["pretraining"] == "dino") & (table["scenes_seen"] == 512))]
    assert "different numbers of scenes (100 and 512)" in emergence_verdicts(shorter)[-1]
    assert "not over scenes" in emergence_verdicts(shorter)[-1]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda table: table.drop(columns="scenes_seen"), "scenes_seen missing"),
        (lambda table: table[table["pretraining"].isna()], "every pretraining is empty"),
        (lambda table: pd.concat([table, table.assign(probe="linear")]), "several kinds of probe"),
    ],
)
def test_tables_that_may_not_be_compared_are_refused(spoil, said):
    with pytest.raises(InvalidParameterError, match=said):
        emergence_gains(spoil(planted({"mae": [(START, (0.9, 0.7))]})))
