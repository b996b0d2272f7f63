"""A sweep's table is what its fits say, and a fit is read again only if nothing that it depends on has changed."""

import inspect
import json
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
from own_probes import Odd, probe_mine
from planted import PlantedBackbone, PlantedScenes

from bindkit.cache import ActivationCache, cache_activations
from bindkit.errors import InvalidParameterError, LayerError, ProbeError
from bindkit.probes import load_probe
from bindkit.probes.fitting import fit_probe, fit_probes
from bindkit.probes.judging import judge_probe
from bindkit.probes.protocols import PAPER, RESULT_COLUMNS, STRICT, protocol, protocol_of_fit
from bindkit.results.sweeping import SWEEP_COLUMNS, judged_pairs_digest, layer_digest, probe_directory, sweep
from bindkit.scenes.scene import Scene

BRIEF = replace(STRICT, epochs=2, min_steps=4, judged_patches=24)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return cache_activations(PlantedBackbone(), PlantedScenes(10), root=tmp_path_factory.mktemp("planted"))


@pytest.fixture
def fitted(monkeypatch):
    """Every fit that is made, as (layer, probe, seed); those read from disk are not among them."""
    made = []

    def counting(patches, wanted, seed):
        made.extend((patches.layer, probe, seed) for probe, _ in wanted)
        return fit_probes(patches, wanted, seed)

    monkeypatch.setattr("bindkit.results.sweeping.fit_probes", counting)
    return made


def test_every_combination_is_fitted_once_and_its_row_is_the_fits(cache):
    table = sweep([cache], [2, 0], ["linear", "quadratic"], protocol=BRIEF, seeds=[0, 3])
    assert tuple(table.columns) == SWEEP_COLUMNS
    wanted = [(layer, kind, seed) for layer in (2, 0) for kind in ("linear", "quadratic") for seed in (0, 3)]
    assert list(zip(table["layer"], table["probe"], table["seed"], strict=True)) == wanted
    assert set(sweep([cache], "all", ["linear"], protocol=BRIEF)["layer"]) == {0, 1, 2}
    for row in table[table["seed"] == 3].to_dict("records"):
        fit = fit_probe(cache, row["layer"], row["probe"], protocol=BRIEF, seed=row["seed"])
        expected = fit.row()
        for name in set(RESULT_COLUMNS) - {"seconds"}:
            assert row[name] == pytest.approx(expected[name], nan_ok=True), name
    assert table["accuracy"].nunique() > 4


def test_fits_that_are_there_are_read_and_the_table_stays_the_same(cache, fitted, tmp_path):
    first = sweep([cache], [1, 2], ["linear"], protocol=BRIEF, root=tmp_path)
    assert len(fitted) == 2
    again = sweep([cache], [1, 2], ["linear"], protocol=BRIEF, root=tmp_path)
    assert len(fitted) == 2
    pd.testing.assert_frame_equal(first, again)
    more = sweep([cache], [1, 2], ["linear"], protocol=BRIEF, root=tmp_path, seeds=[0, 1])
    assert fitted[2:] == [(1, "linear", 1), (2, "linear", 1)]
    pd.testing.assert_frame_equal(more[more["seed"] == 0].reset_index(drop=True), first)


@pytest.mark.parametrize("rules", [BRIEF, replace(BRIEF, keep="accuracy", epochs=4, learning_rate=20.0)])
def test_the_validation_accuracy_is_that_of_the_weights_that_were_kept(cache, rules):
    """Judged again by the slow way: the saved probe on the validation scenes."""
    row = sweep([cache], [2], ["linear"], protocol=rules).iloc[0]
    fit = fit_probe(cache, 2, "linear", protocol=rules)
    assert row["split"] == "test"
    judged = judge_probe(fit.probe, cache, split="validation", protocol=rules)
    assert row["validation_accuracy"] == pytest.approx(judged["accuracy"], abs=1e-6)


def test_rows_share_a_digest_if_and_only_if_their_pairs_are_the_same(cache, tmp_path):
    twin = cache_activations(PlantedBackbone(name="twin", signal=0.1), PlantedScenes(10), root=tmp_path / "twin")
    other = cache_activations(PlantedBackbone(), OtherMasks(10), root=tmp_path / "other")
    fewer = cache_activations(PlantedBackbone(), PlantedScenes(10), root=tmp_path / "fewer", patches_per_scene=64)
    mine = judged_pairs_digest(cache, BRIEF, "test")
    assert judged_pairs_digest(twin, BRIEF, "test") == mine
    # The number of pairs may well be the same; the pairs are not.
    assert judged_pairs_digest(other, BRIEF, "test") != mine
    assert judged_pairs_digest(fewer, BRIEF, "test") != mine
    assert judged_pairs_digest(cache, BRIEF, "validation") != mine
    assert judged_pairs_digest(cache, replace(BRIEF, judged_patches=25), "test") != mine
    assert judged_pairs_digest(cache, replace(BRIEF, learning_rate=9.0), "test") == mine
    assert set(sweep([cache], [2], ["linear"], protocol=BRIEF, oracle=True)["judged_pairs"]) == {mine}


def test_what_is_named_twice_is_fitted_once(cache, fitted):
    """Two rows of one fit would pass for two seeds that agree."""
    table = sweep([cache], [2, 2], ["linear", "linear"], ["pairwise"] * 2, BRIEF, seeds=[0, 0])
    assert len(table) == len(fitted) == 1


def test_a_cache_that_is_given_or_opened_twice_is_fitted_once(cache, fitted, monkeypatch):
    """Each of two had the rows of both."""
    monkeypatch.chdir(cache.path.parent)
    twice = [cache, cache, ActivationCache.open(cache.path), ActivationCache.open(cache.path.name)]
    table = sweep(twice, [1, 2], ["linear"], protocol=BRIEF, oracle=True)
    assert fitted == [(1, "linear", 0), (2, "linear", 0)]
    assert list(table["probe"]) == ["linear", "linear", "oracle"]


def test_figures_that_are_undefined_come_back_as_such(fitted, tmp_path):
    """Two scenes: one is judged, so that nothing has an interval."""
    tiny = cache_activations(PlantedBackbone(), PlantedScenes(2), root=tmp_path / "cache")
    first, again = (sweep([tiny], [2], ["linear"], protocol=BRIEF, root=tmp_path / "probes") for _ in range(2))
    assert len(fitted) == 1
    assert first["accuracy_low"].isna().all()
    pd.testing.assert_frame_equal(first, again)


@pytest.mark.parametrize(
    "rules",
    [replace(BRIEF, learning_rate=0.5), replace(BRIEF, min_purity=0.75), replace(PAPER, epochs=2, name="strict")],
)
def test_other_rules_under_the_same_name_have_a_place_and_rows_of_their_own(cache, fitted, rules, tmp_path):
    first = sweep([cache], [2], ["linear"], protocol=BRIEF, root=tmp_path)
    table = sweep([cache], [2], ["linear"], protocol=rules, root=tmp_path)
    assert len(fitted) == 2
    assert table["accuracy"][0] == fit_probe(cache, 2, "linear", protocol=rules).metrics["accuracy"]
    assert first["protocol"][0] != table["protocol"][0] != "strict"
    # Neither fit took the other's place.
    for asked, rows in ((BRIEF, first), (rules, table)):
        pd.testing.assert_frame_equal(sweep([cache], [2], ["linear"], protocol=asked, root=tmp_path), rows)
        assert len(fitted) == 2
        probe = load_probe(probe_directory(tmp_path, rows.iloc[0].to_dict()))
        # Judged again, without being told under which rules.
        assert judge_probe(probe, cache)["accuracy"] == rows["accuracy"][0]
        assert judge_probe(probe, cache)["n_pairs"] == rows["n_pairs"][0]


BRIEF_TEXT = "strict,judged_patches=24,epochs=2,min_steps=4"


def test_a_protocol_with_fields_names_its_rows_and_places_which_give_it_back(cache, fitted, tmp_path):
    texts = [BRIEF_TEXT, f"{BRIEF_TEXT},weight_decay=0.5", "paper,epochs=2"]
    tables = [sweep([cache], [2], ["linear"], protocol=text, root=tmp_path) for text in texts]
    assert len(fitted) == 3
    assert [table["protocol"][0] for table in tables] == texts
    assert {place.parent.name for place in tmp_path.rglob("probe.json")} == {
        f"linear-pairwise-{text}-seed0" for text in texts
    }
    for text, table in zip(texts, tables, strict=True):
        table.to_csv(tmp_path / "table.csv", index=False)
        row = pd.read_csv(tmp_path / "table.csv").iloc[0]
        place = probe_directory(tmp_path, row.to_dict())
        probe = load_probe(place)
        assert probe.fitted_on["protocol"] == text
        assert "protocol_fields" not in probe.fitted_on
        assert protocol_of_fit(probe.fitted_on) == protocol(row["protocol"]) == protocol(text)
        assert judge_probe(probe, cache)["accuracy"] == table["accuracy"][0]
        # Written otherwise it is the same, and read.
        head, *fields = text.split(",")
        again = sweep([cache], [2], ["linear"], protocol=", ".join([head, *reversed(fields)]), root=tmp_path)
        pd.testing.assert_frame_equal(again, table)
    assert len(fitted) == 3
    # As one of one's own that has the same fields.
    own = sweep([cache], [2], ["linear"], protocol=BRIEF).drop(columns=["protocol", "seconds"])
    pd.testing.assert_frame_equal(own, tables[0].drop(columns=["protocol", "seconds"]))


def test_a_probe_saved_before_there_were_further_fields_is_judged_as_it_was(cache, tmp_path):
    fit = fit_probe(cache, 2, "linear", protocol=BRIEF)
    record = fit.save(tmp_path) / "probe.json"
    kept = json.loads(record.read_text())
    for name in ("weight_decay", "n_queries", "class_weight", "mask_weight", "dice_weight", "no_object_weight"):
        del kept["fitted_on"]["protocol_fields"][name]
    record.write_text(json.dumps(kept))
    probe = load_probe(tmp_path)
    assert protocol_of_fit(probe.fitted_on) == protocol(BRIEF)
    assert protocol_of_fit(probe.fitted_on).name == fit.row()["protocol"]
    assert judge_probe(probe, cache)["accuracy"] == fit.metrics["accuracy"]


def test_places_of_many_fields_are_short_and_apart(tmp_path):
    """A file system takes 255 bytes; all fields together are 600."""
    changed = [f"{name}={value / 3}" for name, value in asdict(STRICT).items() if type(value) is float and value]
    row = {"backbone": "vit", "layer": 0, "probe": "linear", "task": "pairwise", "seed": 0}
    texts = [protocol(",".join(["strict", *changed, f"epochs={epochs}"])).name for epochs in (3, 4)]
    assert min(map(len, texts)) > 80
    names = {probe_directory(tmp_path, row | {"protocol": text}).name for text in texts}
    assert len(names) == 2
    for name in names:
        assert len(name) < 120
        (tmp_path / name).mkdir()


class OtherMasks(PlantedScenes):
    """The same pictures, each labelled as the next one is."""

    def __getitem__(self, position):
        shown, other = super().__getitem__(position), super().__getitem__((position + 1) % len(self))
        return Scene(shown.id, shown.image, other.instances, other.classes)


class OtherPictures(PlantedScenes):
    """The same masks on brighter pictures."""

    def __getitem__(self, position):
        shown = super().__getitem__(position)
        return Scene(shown.id, shown.image + np.array([0, 0, 1], dtype=np.uint8), shown.instances, shown.classes)


class OtherPlace(PlantedScenes):
    """The same scenes from elsewhere."""

    uri = "planted-elsewhere:"


@pytest.mark.parametrize(
    "other",
    [
        (PlantedBackbone(signal=1.0), PlantedScenes(10)),
        (PlantedBackbone(objective="something else"), PlantedScenes(10)),
        (PlantedBackbone(), OtherMasks(10)),
        (PlantedBackbone(), OtherPictures(10)),
        (PlantedBackbone(), OtherPlace(10)),
    ],
    ids=["activations", "objective", "masks", "pictures", "place"],
)
def test_another_cache_is_fitted_again(cache, fitted, other, tmp_path):
    sweep([cache], [2], ["linear"], protocol=BRIEF, root=tmp_path / "probes")
    changed = cache_activations(*other, root=tmp_path / "cache")
    table = sweep([changed], [2], ["linear"], protocol=BRIEF, root=tmp_path / "probes")
    assert len(fitted) == 2
    assert table["objective"][0] == changed.backbone["objective"]


def test_layers_added_to_a_cache_leave_the_fits_of_the_others_alone(fitted, tmp_path):
    given = (PlantedBackbone(), PlantedScenes(10), tmp_path / "cache")
    before = cache_activations(*given, layers=[2])
    sweep([before], [2], ["linear"], protocol=BRIEF, root=tmp_path / "probes")
    after = cache_activations(*given, layers=[0, 2])
    assert layer_digest(after, 2) == layer_digest(before, 2) != layer_digest(after, 0)
    sweep([after], "all", ["linear"], protocol=BRIEF, root=tmp_path / "probes")
    assert fitted == [(2, "linear", 0), (0, "linear", 0)]


@pytest.fixture
def registered():
    with probe_mine() as register:
        yield register


def test_a_probe_of_ones_own_is_fitted_again_once_its_class_computes_something_else(
    cache, fitted, registered, tmp_path
):
    registered(0.1)
    first = sweep([cache], [2], ["mine", "linear"], protocol=BRIEF, root=tmp_path)
    registered(0.1)
    pd.testing.assert_frame_equal(sweep([cache], [2], ["mine", "linear"], protocol=BRIEF, root=tmp_path), first)
    assert fitted == [(2, "mine", 0), (2, "linear", 0)]
    registered(-0.1)
    table = sweep([cache], [2], ["mine", "linear"], protocol=BRIEF, root=tmp_path)
    assert fitted[2:] == [(2, "mine", 0)]
    assert table["auroc"][0] == pytest.approx(1 - first["auroc"][0], abs=1e-6)


def test_a_probe_of_which_nobody_can_say_whether_it_has_changed_is_fitted_again(cache, fitted, registered, tmp_path):
    registered(Odd())
    for _ in range(2):
        sweep([cache], [2], ["mine"], protocol=BRIEF, root=tmp_path)
    assert fitted == [(2, "mine", 0)] * 2


def test_the_record_of_a_shipped_probe_names_cache_bindkit_and_rules_alone(cache, tmp_path):
    """Those that were written before are still read."""
    table = sweep([cache], [2], ["linear"], protocol=BRIEF, root=tmp_path)
    record = json.loads((probe_directory(tmp_path, table.iloc[0].to_dict()) / "row.json").read_text())
    assert set(record["made_from"]) == {"cache", "bindkit", "rules"}


@pytest.mark.parametrize("damaged", ["probe.safetensors", "probe.json", "row.json"])
def test_a_damaged_fit_is_fitted_again(cache, fitted, damaged, tmp_path):
    table = sweep([cache], [2], ["linear"], protocol=BRIEF, root=tmp_path)
    place = probe_directory(tmp_path, table.iloc[0].to_dict())
    weight = load_probe(place).weight
    (place / damaged).write_bytes(b"{}")
    again = sweep([cache], [2], ["linear"], protocol=BRIEF, root=tmp_path)
    assert len(fitted) == 2
    assert torch.equal(load_probe(place).weight, weight)
    pd.testing.assert_frame_equal(table.drop(columns="seconds"), again.drop(columns="seconds"))


def test_a_kill_between_probe_and_row_leaves_no_row_of_another_probe(cache, monkeypatch, tmp_path):
    other = replace(BRIEF, learning_rate=0.5)
    table = sweep([cache], [2], ["linear"], protocol=BRIEF, root=tmp_path)
    weight = load_probe(probe_directory(tmp_path, table.iloc[0].to_dict())).weight

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bindkit.results.sweeping.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            sweep([cache], [2], ["linear"], protocol=other, root=tmp_path)
    again = sweep([cache], [2], ["linear"], protocol=BRIEF, root=tmp_path)
    assert torch.equal(load_probe(probe_directory(tmp_path, again.iloc[0].to_dict())).weight, weight)


@pytest.mark.parametrize("with_root", [True, False])
def test_two_caches_of_one_backbone_are_refused(cache, fitted, with_root, tmp_path):
    other = cache_activations(PlantedBackbone(), OtherPlace(10), root=tmp_path / "cache")
    root = tmp_path / "probes" if with_root else None
    with pytest.raises(InvalidParameterError, match=r"backbones 'planted' and 'planted'.*one by one"):
        sweep([cache, other], [2], ["linear"], protocol=BRIEF, root=root)
    assert not fitted


def test_caches_whose_probes_would_overwrite_one_another_are_refused(cache, fitted, tmp_path):
    slash, dash = (
        cache_activations(PlantedBackbone(name=name), PlantedScenes(10), root=tmp_path / str(k))
        for k, name in enumerate(["a/b", "a-b"])
    )
    with pytest.raises(InvalidParameterError, match="would be kept in one directory"):
        sweep([slash, dash], [2], ["linear"], protocol=BRIEF, root=tmp_path / "probes")
    assert not fitted
    assert list(sweep([slash, dash], [2], ["linear"], protocol=BRIEF)["backbone"]) == ["a/b", "a-b"]


def test_a_task_can_be_fitted_without_pairwise(cache):
    assert list(sweep([cache], [2], ["linear"], ["shuffled_labels"], BRIEF)["task"]) == ["shuffled_labels"]


def test_one_cache_layer_probe_or_task_needs_no_list(cache):
    one = sweep(cache, 2, "linear", "pairwise", BRIEF)
    pd.testing.assert_frame_equal(
        one.drop(columns="seconds"),
        sweep([cache], [2], ["linear"], ["pairwise"], BRIEF).drop(columns="seconds"),
    )


def test_whatever_can_be_gone_through_will_do(cache, fitted):
    sweep(iter([cache]), iter([1, 2.0]), iter(["linear"]), {"pairwise": 1}, BRIEF, seeds=range(2))
    assert fitted == [(1, "linear", 0), (1, "linear", 1), (2, "linear", 0), (2, "linear", 1)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seeds": 3}, r"seeds is a sequence such as \[0, 1, 2\], or range\(3\); got 3"),
        ({"seeds": "012"}, r"seeds is a sequence such as \[0, 1, 2\], or range\(3\); got '012'"),
        ({"seeds": [0, 1.5]}, "each of seeds is a whole number such as 3, got 1.5"),
        ({"layers": 2.7}, "layers are .* got 2.7"),
        ({"layers": ["a"]}, r"layers are .* got \['a'\]"),
        ({"layers": "0;3"}, "layers are .* got '0;3'"),
        ({"layers": None}, "layers are .* got None"),
        ({"probes": 3}, "probes are names, one or several in a list; got 3"),
        ({"tasks": [None]}, "tasks are names, one or several in a list; got None"),
        ({"caches": "cache/planted"}, "bk.ActivationCache.open gives, one or several in a list; got 'cache/planted'"),
        ({"caches": []}, "at least one cache"),
    ],
)
def test_an_argument_of_another_kind_is_named(cache, fitted, given, message):
    with pytest.raises((InvalidParameterError, LayerError), match=message):
        # Without the types that are checked under pytest alone.
        inspect.unwrap(sweep)(**{"caches": [cache], "probes": ["linear"], "protocol": BRIEF} | given)
    assert not fitted


def test_what_cannot_be_fitted_is_refused_before_anything_is(cache, fitted, tmp_path):
    with pytest.raises(LayerError, match="no layer 7"):
        sweep([cache], [2, 7], ["linear"], protocol=BRIEF)
    with pytest.raises(ProbeError, match="unknown probe 'cubic'"):
        sweep([cache], [2], ["linear", "cubic"], protocol=BRIEF)
    with pytest.raises(ProbeError, match="unknown task 'count'"):
        sweep([cache], [2], ["linear"], ["pairwise", "count"], protocol=BRIEF)
    with pytest.raises(InvalidParameterError, match="at least one cache"):
        sweep([], protocol=BRIEF)
    assert not fitted
