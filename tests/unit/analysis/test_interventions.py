"""Edits of the binding part: each by a plain loop, nothing at strength 0, nothing left behind; the model's own loss."""

import inspect
import logging
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from tiny_models import LAYERS, WIDTH, write_checkpoint

import bindkit as bk
from bindkit.analysis import interventions
from bindkit.analysis.attention import JudgedWindows
from bindkit.analysis.interventions import EDITS, Edit, Place, _donors, _scores, class_figures, object_figures
from bindkit.analysis.subspace import Subspace
from bindkit.backbones.names import directory_of
from bindkit.errors import BackboneError, InvalidParameterError, ProbeError, ProbeMismatchError
from bindkit.pretraining import objective_loss
from bindkit.pretraining.losses import HELD_OUT_SCENES, PretrainingLoss
from bindkit.probes import make_probe
from bindkit.probes.protocols import STRICT

BRIEF = replace(STRICT, epochs=2, min_steps=20, judged_patches=512)
LAYER, RANK = 0, 4
ALL = list(range(LAYERS))
FIRST = ["edit", "subspace", "draw", "strength", "read_out", "read_layer", "figure"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    place = write_checkpoint("dinov2", tmp_path_factory.mktemp("model") / "model")
    return bk.load_backbone(str(place), device="cpu", short_side=48)


@pytest.fixture(scope="module")
def cache(backbone, tmp_path_factory):
    scenes = bk.open_scenes("synthetic:n=40,seed=0,size=80x100")
    return bk.cache_activations(backbone, scenes, tmp_path_factory.mktemp("cache"), "all", dtype="float32")


@pytest.fixture(scope="module")
def probe(cache):
    """Two times rank 2: four directions and no more."""
    return bk.fit_probe(cache, LAYER, "quadratic_fixed_rank@2", protocol=BRIEF).probe


@pytest.fixture(scope="module")
def later(cache):
    return bk.fit_probe(cache, 1, "quadratic", protocol=BRIEF).probe


@pytest.fixture(scope="module")
def windows(backbone, cache, probe):
    return JudgedWindows.of(backbone, cache, probe, 8)


@pytest.fixture(scope="module")
def table(backbone, cache, probe, later):
    return bk.intervene(backbone, cache, probe, RANK, strengths=[1, 0, 0.5], later=[later], n_scenes=8)


def hooks_of(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def a_subspace(k=3, seed=0):
    """Oblique, as binding ones are."""
    generator = torch.Generator().manual_seed(seed)
    readers = torch.randn(WIDTH, k, dtype=torch.float64, generator=generator)
    writers = torch.linalg.pinv(readers).T + 0.0
    return Subspace(readers, writers, torch.randn(WIDTH, dtype=torch.float64, generator=generator))


# --- each edit by a plain loop ---------------------------------------------------------------------------------


@pytest.fixture
def scores():
    return torch.randn(3, 10, 4, generator=torch.Generator().manual_seed(2))


INSTANCES = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 3, 0, 1], [5] * 10, [0] * 10])


@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_remove_scales_scores_down(scores, strength):
    assert torch.equal(EDITS["remove"](scores, strength, Place([0, 1, 2], 0)), (1 - strength) * scores)


@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_object_mean_is_of_the_windows_patches_of_the_object(scores, strength):
    found = EDITS["object mean"](scores, strength, Place([0, 1, 2], 0, INSTANCES))
    for window in range(3):
        for patch in range(10):
            mine = INSTANCES[window, patch]
            if mine == 0:
                assert torch.equal(found[window, patch], scores[window, patch])
                continue
            own = [scores[window, k] for k in range(10) if INSTANCES[window, k] == mine]
            mean = sum(own) / len(own)
            expected = (1 - strength) * scores[window, patch] + strength * mean
            torch.testing.assert_close(found[window, patch], expected)


@pytest.mark.parametrize(("strength", "n_chosen"), [(0.1, 1), (0.34, 3), (0.5, 5), (1.0, 10)])
def test_shuffle_permutes_that_share_of_each_windows_patches(strength, n_chosen):
    scores = torch.arange(30.0).reshape(3, 10, 1).expand(3, 10, 2).clone()
    n_moved = []
    for seed in range(40):
        found = EDITS["shuffle"](scores, strength, Place([7, 8, 9], seed))
        for window in range(3):
            assert sorted(found[window, :, 0].tolist()) == scores[window, :, 0].tolist(), "the very same scores"
            assert torch.equal(found[window, :, 0], found[window, :, 1]), "whole patches"
            n_moved.append(int((found[window] != scores[window]).any(1).sum()))
    assert max(n_moved) == (n_chosen if n_chosen > 1 else 0)
    # A random permutation leaves one in place on average.
    assert np.mean(n_moved) == pytest.approx(n_chosen - 1, abs=0.4)


def test_a_windows_shuffle_hangs_on_its_number_and_the_seed_alone(scores):
    shuffle = EDITS["shuffle"]
    together = shuffle(scores, 1.0, Place([4, 5, 6], 1))
    for position, number in enumerate((4, 5, 6)):
        alone = shuffle(scores[position : position + 1], 1.0, Place([number], 1))
        assert torch.equal(alone[0], together[position])
    assert not torch.equal(shuffle(scores, 1.0, Place([4, 5, 6], 2)), together)
    assert not torch.equal(shuffle(scores[:1], 1.0, Place([9], 1))[0], together[0])


def test_other_scene_goes_towards_what_it_is_given(scores):
    others = scores.flip(0)
    found = EDITS["other scene"](scores, 0.25, Place([0, 1, 2], 0, None, others))
    torch.testing.assert_close(found, 0.75 * scores + 0.25 * others)


def test_a_donor_is_never_of_the_same_scene(windows):
    donors = _donors(windows)
    assert len(windows) > windows.labels.n_scenes, "several windows a scene"
    assert (windows.scene[donors] != windows.scene).all()
    single = replace(windows, scene=torch.zeros_like(windows.scene))
    with pytest.raises(InvalidParameterError, match="needs two judged scenes or more"):
        _donors(single)


@pytest.mark.parametrize("kind", EDITS)
def test_an_edit_changes_the_part_alone_and_nothing_at_strength_0(kind):
    generator = torch.Generator().manual_seed(1)
    patches, others = (torch.randn(3, 10, width, generator=generator) for width in (WIDTH, 3))
    subspace = a_subspace()
    place = Place([0, 1, 2], 0, INSTANCES, others)
    assert Edit(kind, subspace, 0.0).of(patches, place) is None
    changed = Edit(kind, subspace, 1.0).of(patches, place)
    assert not torch.allclose(changed, patches, atol=0.01)
    torch.testing.assert_close(subspace.rest(changed), subspace.rest(patches), rtol=1e-3, atol=1e-3)
    wanted = EDITS[kind](subspace.scores(patches), 1.0, place)
    torch.testing.assert_close(subspace.scores(changed), wanted, rtol=1e-3, atol=1e-3)
    if kind == "remove":
        torch.testing.assert_close(changed, subspace.rest(patches), rtol=1e-3, atol=1e-3)


def test_edits_of_windows_in_parts_are_those_of_all_at_once(windows, monkeypatch):
    """Windows go through the model some at a time; each has its own instances, donor and shuffle all the same."""
    others = _scores(windows, LAYER, a_subspace())[_donors(windows)]
    found = []
    for at_once in (3, 999):
        monkeypatch.setattr("bindkit.analysis.attention._WINDOWS_AT_ONCE", at_once)
        changes = [partial(Edit(kind, a_subspace(), 0.7).of_windows, windows, others) for kind in EDITS]
        found.append([windows.passed(ALL, LAYER, change) for change in changes])
    for first, second in zip(*found, strict=True):
        for layer in ALL:
            torch.testing.assert_close(first[layer], second[layer], rtol=1e-3, atol=1e-4)


def test_windows_pass_with_rows_edited_as_by_hand(windows):
    subspace = a_subspace()
    edit = Edit("remove", subspace, 1.0)
    clean = windows.passed([LAYER])[LAYER]
    found = windows.passed(ALL, LAYER, partial(edit.of_windows, windows, None))
    torch.testing.assert_close(found[LAYER], subspace.rest(clean), rtol=1e-3, atol=1e-3)
    later = windows.passed([LAYERS - 1])[LAYERS - 1]
    assert not torch.allclose(found[LAYERS - 1], later, atol=1e-2)


# --- the table -------------------------------------------------------------------------------------------------


def test_every_edit_subspace_and_dose_has_every_figure_once(table, cache):
    assert not table.duplicated(FIRST).any()
    assert set(table["n_scenes"]) == {min(8, cache.labels("test").n_scenes)} and set(table["layer"]) == {LAYER}
    doing = table[FIRST[:4]].drop_duplicates()
    assert len(doing) == len(EDITS) * 2 * 3
    assert set(doing["strength"]) == {0.0, 0.5, 1.0} and set(doing["draw"]) == {0}
    of_one = table[(table["edit"] == "remove") & (table["subspace"] == "binding") & (table["strength"] == 1)]
    told = set(zip(of_one["read_out"], of_one["read_layer"], of_one["figure"], strict=True))
    pairs = ("auroc", "matched_auroc", "twins_auroc", "matched_twins_auroc")
    assert told == {
        *(("affinity", layer, name) for layer in (0, 1) for name in pairs),
        *(("classes", LAYERS - 1, name) for name in ("class_accuracy", "class_iou")),
        ("objects", LAYERS - 1, "matched_iou"),
    }
    assert table["value"].notna().mean() > 0.9


def test_strength_0_is_the_unedited_judgement(table, cache, probe, later):
    zero = table[table["strength"] == 0]
    values = zero.groupby(FIRST[4:])["value"]
    assert (values.nunique(dropna=False) == 1).all(), "whatever the edit and the subspace"
    for fitted in (probe, later):
        judged = bk.judge_probe(fitted, cache)
        rows = zero[(zero["read_layer"] == fitted.fitted_on["layer"]) & (zero["read_out"] == "affinity")]
        for name, value in rows.groupby("figure")["value"].first().items():
            assert value == pytest.approx(judged[name], abs=1e-4), name


def test_without_all_its_directions_a_probe_knows_nothing_and_without_random_ones_it_does(table, cache, probe, windows):
    rows = table[(table["read_out"] == "affinity") & (table["read_layer"] == LAYER) & (table["edit"] == "remove")]
    auroc = rows[rows["figure"] == "auroc"].set_index(["subspace", "strength"])["value"]
    assert auroc["binding", 0.0] > 0.55
    assert auroc["random", 1.0] > 0.53
    edit = Edit("remove", bk.binding_subspace(cache, probe, RANK), 1.0)
    change = partial(edit.of_windows, windows, None)
    before, after = (windows.passed([LAYER], LAYER, how)[LAYER][:200] for how in (None, change))
    with torch.inference_mode():
        assert probe(after).std() < 1e-5 * probe(before).std(), "all logits are one"
    # Not exactly 0.5: what is left is rounding, by which logits are ranked.
    assert auroc["binding", 1.0] == pytest.approx(0.5, abs=0.05)


def test_an_affine_map_of_all_scores_leaves_what_is_left_of_them_in_order(table):
    """Half removed, a form has a quarter of its size: the AUROC of the probe's own layer is that of the whole."""
    rows = table[(table["edit"] == "remove") & (table["subspace"] == "binding") & (table["read_layer"] == LAYER)]
    values = rows[rows["figure"] == "auroc"].set_index("strength")["value"]
    assert values[0.5] == pytest.approx(values[0.0], abs=0.05)
    mean = table[(table["edit"] == "object mean") & (table["subspace"] == "binding") & (table["read_layer"] == LAYER)]
    told = mean[mean["figure"] == "auroc"].set_index("strength")["value"]
    assert told[0.0] < told[0.5] < told[1.0], "labels tell the model what belongs together"
    assert told[1.0] > 0.8


def test_nothing_is_left_behind(backbone, cache, probe, windows, monkeypatch):
    shown = windows.pixels[:2]
    clean = backbone.activations(shown, ALL)
    ask = partial(bk.intervene, backbone, cache, probe, 2, strengths=[1.0], n_scenes=2, n_random=0, loss=False)

    def untouched():
        assert hooks_of(backbone.tower.model) == 0
        now = backbone.activations(shown, ALL)
        return all(torch.equal(now[layer], clean[layer]) for layer in ALL)

    ask(edits="remove")
    assert untouched()

    def failing(*_):
        raise RuntimeError("of one's own")

    with monkeypatch.context() as patched:
        patched.setitem(EDITS, "remove", failing)
        with pytest.raises(RuntimeError, match="of one's own"):
            ask(edits=["remove"])
    assert untouched()
    with monkeypatch.context() as patched:
        patched.setattr(interventions, "judge_split", failing)
        with pytest.raises(RuntimeError, match="of one's own"):
            ask(edits=["remove"])
    assert untouched()


def test_what_cannot_be_asked_is_named(backbone, cache, probe, tmp_path):
    ask = inspect.unwrap(bk.intervene)
    for edits in (["remove", "lesion"], []):
        with pytest.raises(InvalidParameterError, match="edits are of remove, shuffle, object mean, other scene"):
            ask(backbone, cache, probe, 2, edits)
    for strengths in ([], [-0.1], [0.5, 1.1], [float("nan")]):
        with pytest.raises(InvalidParameterError, match="strengths are numbers from 0 to 1"):
            ask(backbone, cache, probe, 2, strengths=strengths)
    linear = bk.fit_probe(cache, LAYER, "linear", protocol=BRIEF).probe
    with pytest.raises(ProbeError, match="no quadratic form"):
        ask(backbone, cache, linear, 2)
    with pytest.raises(InvalidParameterError, match="needs two judged scenes"):
        ask(backbone, cache, probe, 2, ["other scene"], n_scenes=1, loss=False)
    with pytest.raises(BackboneError, match="give what bk"):
        inspect.unwrap(JudgedWindows.of.__func__)(JudgedWindows, bk.load_control("position", backbone), cache, probe, 2)
    other = bk.load_backbone(str(write_checkpoint("dinov2", tmp_path / "other", seed=1)), device="cpu", short_side=48)
    with pytest.raises(ProbeMismatchError, match="give the backbone of this cache"):
        ask(other, cache, probe, 2)


def test_one_judged_scene_goes_without_another_and_says_so(backbone, cache, probe, caplog):
    table = bk.intervene(backbone, cache, probe, 2, ["remove", "other scene"], n_scenes=1, loss=False)
    assert set(table["edit"]) == {"remove"}
    assert "'other scene' is left out" in caplog.text


# --- read-outs by plain counting ----------------------------------------------------------------------------------


def test_class_figures_are_those_of_plain_counting(cache, windows):
    fitted = bk.fit_probe(cache, LAYERS - 1, "linear", "pointwise_class", protocol=BRIEF).probe
    labels = windows.labels
    found = class_figures(fitted, windows.judged(windows.passed([LAYERS - 1]), LAYERS - 1))
    x = windows.passed([LAYERS - 1])[LAYERS - 1]
    told = fitted.outcomes(x).argmax(1).tolist()
    listed = {ids: k + 1 for k, (ids,) in enumerate(fitted.options["class_ids"])}
    chosen = [row for row in range(len(labels)) if labels.instances[row] > 0 and labels.purity[row] > 0.5]
    truth = {row: listed.get(int(labels.classes[row]), 0) for row in chosen}
    right = sum(told[row] == truth[row] for row in chosen)
    overlaps = []
    for outcome in sorted(set(truth.values())):
        said, is_one = ({row for row in chosen if of[row] == outcome} for of in (told, truth))
        overlaps.append(len(said & is_one) / len(said | is_one))
    assert found["class_accuracy"][0] == pytest.approx(right / len(chosen), abs=1e-6)
    assert found["class_iou"][0] == pytest.approx(np.mean(overlaps), abs=1e-6)
    judged = bk.judge_probe(fitted, cache)
    if windows.labels.n_scenes == cache.labels("test").n_scenes:
        assert judged["class_accuracy"] == pytest.approx(found["class_accuracy"][0], abs=1e-6)


def test_a_perfect_read_out_tells_all_classes_and_objects(windows):
    """Activations that are the answer itself."""
    labels = windows.labels
    ids = sorted(set(labels.classes.tolist()) - {0})
    truth = torch.nn.functional.one_hot(torch.from_numpy(labels.classes.astype(np.int64)), WIDTH + 1)[:, 1:].float()
    probe = make_probe("class_map", WIDTH, class_ids=[[k] for k in ids]).requires_grad_(False)
    probe.weight.zero_(), probe.bias.zero_()
    for outcome, class_id in enumerate(ids, start=1):
        probe.weight[outcome, class_id - 1] = 1.0
    figures = class_figures(probe, windows.judged({2: truth}, 2))
    assert figures["class_accuracy"][0] == figures["class_iou"][0] == 1
    shown = torch.nn.functional.one_hot(torch.from_numpy(labels.instances.astype(np.int64)), WIDTH).float()
    queries = make_probe("identity_map", WIDTH, n_queries=WIDTH - 1).requires_grad_(False)
    queries.weight.copy_(torch.eye(WIDTH)), queries.bias.zero_()
    assert object_figures(queries, windows.judged({2: shown}, 2))["matched_iou"][0] == 1
    assert object_figures(queries, windows.judged({2: 0 * shown}, 2))["matched_iou"][0] == 0


# --- the pretraining loss ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    return bk.load_backbone("bindkit/scenes-mae", device="cpu")


@pytest.fixture(scope="module")
def shipped_loss(shipped):
    side = shipped.geometry.window
    return PretrainingLoss(shipped, torch.zeros(1, side, side, 3, dtype=torch.uint8), seed=4)


def test_unedited_it_is_the_objectives_own(shipped_loss):
    losses = shipped_loss.of_batches()
    assert shipped_loss.name == "masked-reconstruction" and len(losses) == 8
    expected = objective_loss(directory_of("bindkit/scenes-mae"), HELD_OUT_SCENES, seed=4, scenes_per_batch=16)
    assert losses.mean() == pytest.approx(expected, rel=1e-6)
    np.testing.assert_array_equal(losses, shipped_loss.of_batches())


def test_an_edit_makes_it_worse_and_leaves_no_trace(shipped_loss, shipped):
    clean = shipped_loss.of_batches()
    np.testing.assert_array_equal(shipped_loss.of_batches(2, lambda _: None), clean)
    assert shipped_loss.of_batches(2, torch.zeros_like).mean() > 1.2 * clean.mean()
    n_patches = []

    def change(patches):
        n_patches.append(patches.shape[1])
        raise RuntimeError("of one's own")

    with pytest.raises(RuntimeError, match="of one's own"):
        shipped_loss.of_batches(2, change)
    assert n_patches == [shipped.layout.grid.n_patches // 4], "what masks leave, without the prefix token"
    assert not any(hooks_of(model) for model in shipped_loss._towers)
    np.testing.assert_array_equal(shipped_loss.of_batches(), clean)


def windows_of(backbone, n):
    side, generator = backbone.geometry.window, torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, side, side, 3), generator=generator, dtype=torch.uint8)


def test_a_checkpoint_with_its_decoder_gives_the_loss_that_transformers_computes(tmp_path):
    place = write_checkpoint("mae-pretraining", tmp_path / "model")
    backbone = bk.load_backbone(str(place), device="cpu")
    pixels = windows_of(backbone, 20)
    losses = PretrainingLoss(backbone, pixels, seed=3)
    found = losses.of_batches()
    model = transformers.ViTMAEForPreTraining.from_pretrained(place).eval()
    assert model.config.mask_ratio == 0.75
    generator, expected = torch.Generator().manual_seed(3), []
    for part in (pixels[:16], pixels[16:]):
        noise = torch.rand(len(part), backbone.layout.grid.n_patches, generator=generator)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.3, 0.4, 0.5), (0.2, 0.25, 0.3)))
        shown = (part.permute(0, 3, 1, 2) / 255 - mean) / std
        with torch.no_grad():
            expected.append(float(model(shown, noise=noise).loss))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # The edit reaches the encoder, not the decoder, which has more blocks.
    assert not np.allclose(losses.of_batches(LAYERS - 1, torch.zeros_like), found, rtol=1e-4)
    with pytest.raises(RuntimeError, match="width 32"):
        losses.of_batches(0, width_of)
    np.testing.assert_array_equal(losses.of_batches(), found)


def width_of(patches):
    raise RuntimeError(f"width {patches.shape[2]}")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("mae", "lacks weights of its decoder .* that of random numbers"),
        ("dinov2", "keeps no head or decoder beside its encoder"),
    ],
)
def test_what_keeps_nothing_to_compute_a_loss_with_is_named(tmp_path, kind, message):
    backbone = bk.load_backbone(str(write_checkpoint(kind, tmp_path / "model")), device="cpu")
    with pytest.raises(BackboneError, match=message):
        PretrainingLoss(backbone, windows_of(backbone, 2))


def test_an_untrained_twin_has_no_loss(tmp_path):
    backbone = bk.load_backbone("random-init:bindkit/scenes-mae", device="cpu")
    with pytest.raises(BackboneError, match="cannot be read with its decoder"):
        PretrainingLoss(backbone, windows_of(backbone, 2))


def test_the_loss_stands_in_the_table_under_blind_edits_alone(tmp_path, caplog):
    backbone = bk.load_backbone(
        str(write_checkpoint("mae-pretraining", tmp_path / "model")), device="cpu", short_side=48
    )
    scenes = bk.open_scenes("synthetic:n=12,seed=0,size=80x80")
    cache = bk.cache_activations(backbone, scenes, tmp_path, "all")
    probe = bk.fit_probe(cache, LAYER, protocol="strict,epochs=2,min_steps=4").probe
    table = bk.intervene(backbone, cache, probe, 2, strengths=[0, 1], n_scenes=2, n_random=0)
    losses = table[table["read_out"] == "loss"]
    assert set(losses["edit"]) == {"remove", "shuffle"} and len(losses) == 4
    windows = JudgedWindows.of(backbone, cache, probe, 2)
    own = PretrainingLoss(backbone, windows.pixels, 0)
    clean = losses[losses["strength"] == 0]["value"]
    np.testing.assert_allclose(clean, own.of_batches().mean())
    edit = Edit("remove", bk.binding_subspace(cache, probe, 2), 1.0)
    removed = losses[(losses["strength"] == 1) & (losses["edit"] == "remove")]["value"]
    np.testing.assert_allclose(removed, own.of_batches(LAYER, edit.blind).mean())
    assert removed.item() != clean.iloc[0]
    with caplog.at_level(logging.INFO):
        assert "loss" not in set(bk.intervene(backbone, cache, probe, 2, [*EDITS][:1], [0], loss=False)["read_out"])
