"""Controls read position and pixels as a plain loop does, and go through cache, probes and tables as backbones do."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from planted import PlantedBackbone, PlantedScenes

import bindkit as bk
from bindkit.arguments import CONTROL_KINDS, control_title, parse_control
from bindkit.backbones.preprocessing import IMAGENET, Preprocessing
from bindkit.backbones.sources import FREQUENCIES, control_of, load_control, load_controls
from bindkit.cache import cache_activations, compare_with_model
from bindkit.cache.verifying import repair_cache
from bindkit.errors import CacheMismatchError, GeometryError, InvalidParameterError
from bindkit.probes.protocols import PAPER, STRICT
from bindkit.results.sweeping import probe_directory, sweep
from bindkit.results.tables import best_layers
from bindkit.scenes import Split
from bindkit.scenes.geometry import WindowGeometry, label_patches
from bindkit.scenes.scene import Scene

BRIEF = replace(STRICT, epochs=2, min_steps=4, judged_patches=24)


def like(short_side=112, window=112, patch_size=8, preprocessing=IMAGENET):
    return SimpleNamespace(geometry=WindowGeometry(short_side, window, patch_size), preprocessing=preprocessing)


def plain_position(top, left, size, patch_size):
    """The code of one patch, wave by wave."""
    row, col = (top + patch_size / 2) / size[0], (left + patch_size / 2) / size[1]
    return [math.cos(math.pi * k * row) * math.cos(math.pi * m * col) for k, m in FREQUENCIES]


@pytest.fixture(scope="module")
def scenes():
    """Scenes of 112 x 144 px: two windows that overlap."""
    return bk.open_scenes("synthetic:n=6,seed=1,size=112x144")


@pytest.mark.parametrize("geometry", [(112, 112, 8), (120, 96, 16), (48, 48, 4)])
@pytest.mark.parametrize("windows_per_batch", [1, 3, 64])
@pytest.mark.parametrize("patches", [1, 37, "all"])
def test_cached_rows_equal_a_plain_loop(tmp_path, scenes, geometry, windows_per_batch, patches):
    backbone = like(*geometry)
    side = backbone.geometry.patch_size
    control = load_control("position+raw-pixels", backbone)
    cache = cache_activations(
        control,
        scenes,
        tmp_path,
        layers="0,3,5",
        dtype="float32",
        patches_per_scene=patches,
        windows_per_batch=windows_per_batch,
        split=Split(train=(2, 0, 5), validation=(1,), test=(4, 3), notices=()),
    )
    assert cache.layers == (0,)
    n_windows = set()
    for split in cache.splits:
        labels = cache.labels(split)
        rows = cache.activations(split, 0).take(range(len(labels))).numpy()
        for k, scene_id in enumerate(labels.scene_ids):
            scene = scenes[scenes.ids.index(scene_id)]
            plan = label_patches(scene, backbone.geometry).plan
            resized = IMAGENET.resize(scene.image, plan.resized)
            n_windows.add(plan.n_windows)
            for at in range(labels.scene_offsets[k], labels.scene_offsets[k + 1], 1 if patches != "all" else 7):
                top, left = (int(number) for number in labels.corners[at])
                crop = resized[top : top + side, left : left + side].astype(np.float64)
                expected = [*plain_position(top, left, plan.resized, side), *(crop / 255 - 0.5).ravel()]
                np.testing.assert_allclose(rows[at], expected, atol=2e-6)
    assert min(n_windows) >= 2


def test_scenes_of_differing_sizes_share_a_batch(tmp_path):
    """Each window's place is measured against its own scene."""

    class Ragged(PlantedScenes):
        sizes = ((32, 48), (64, 48), (32, 96))

        def size_of(self, position):
            return self.sizes[position % 3]

        def __getitem__(self, position):
            self.size = self.size_of(position)
            return super().__getitem__(position)

    scenes = Ragged(6)
    control = load_control("position", PlantedBackbone())
    cache = cache_activations(control, scenes, tmp_path, patches_per_scene=50, windows_per_batch=4, workers=0)
    for split in cache.splits:
        labels = cache.labels(split)
        rows = cache.activations(split, 0).take(range(len(labels))).numpy()
        for k, scene_id in enumerate(labels.scene_ids):
            size = PlantedBackbone.geometry.plan(scenes.size_of(scenes.ids.index(scene_id))).resized
            for at in range(labels.scene_offsets[k], labels.scene_offsets[k + 1]):
                expected = plain_position(*labels.corners[at].tolist(), size, 4)
                np.testing.assert_allclose(rows[at], expected, atol=6e-4)


def test_one_patch_of_two_overlapping_windows_has_one_position_and_one_look():
    control = load_control("position+raw-pixels", like(16, 16, 8))
    image = torch.randint(0, 256, (16, 24, 3), dtype=torch.uint8)
    windows = torch.stack([image[:, :16], image[:, 8:]])
    sizes = torch.tensor([[16, 24], [16, 24]])
    found = control.activations_at(windows, torch.tensor([[0, 0], [0, 8]]), sizes, [0])[0]
    torch.testing.assert_close(found[0, 1], found[1, 0])
    assert not torch.allclose(found[0, 0], found[1, 0])


def test_large_patches_are_averaged_down_and_small_ones_kept():
    windows = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    control = load_control("raw-pixels", like(64, 64, 32))
    found = control.activations(windows, [0])[0]
    assert found.shape == (2, 4, 768) and control.d_model == 768
    for row, col, channel in [(0, 0, 0), (3, 15, 2), (15, 8, 1)]:
        # Patch 1 lies at the top right; each value stands for 2 x 2 of its pixels.
        block = windows[1, 2 * row : 2 * row + 2, 32 + 2 * col : 34 + 2 * col, channel].double()
        assert found[1, 1, (row * 16 + col) * 3 + channel] == pytest.approx(float(block.mean()) / 255 - 0.5, abs=1e-6)
    assert load_control("raw-pixels", like(70, 70, 14)).d_model == 3 * 14 * 14


def test_positions_are_not_guessed_from_pixels_alone():
    windows = torch.zeros(1, 112, 112, 3, dtype=torch.uint8)
    for kind in ("position", "position+raw-pixels"):
        with pytest.raises(InvalidParameterError, match="where in its scene"):
            load_control(kind, like()).activations(windows, [0])
    with pytest.raises(GeometryError, match=r"\[window, 112, 112, 3\], got uint8 of \[1, 96, 96, 3\]"):
        load_control("raw-pixels", like()).activations(windows[:, :96, :96], [0])


def test_it_is_on_the_rows_of_its_backbone_and_equals_a_direct_run(tmp_path, scenes):
    backbone = bk.load_backbone("random-init:vit", device="cpu")
    theirs = cache_activations(backbone, scenes, tmp_path, layers=[0], patches_per_scene=90)
    for control in load_controls([backbone]):
        mine = cache_activations(control, scenes, tmp_path, patches_per_scene=90)
        for split in mine.splits:
            for column in ("instances", "classes", "window", "patch", "corners", "scene_offsets"):
                same = getattr(mine.labels(split), column) == getattr(theirs.labels(split), column)
                assert same.all(), column
        deviation = compare_with_model(mine, control, scenes)
        assert deviation.n_rows == 90
        assert deviation.largest <= deviation.allowed


def test_a_place_told_wrongly_is_seen(tmp_path, scenes, monkeypatch):
    control = load_control("position", like())
    cache = cache_activations(control, scenes, tmp_path)
    honest = type(control).activations_at

    def elsewhere(self, windows, corners, scene_sizes, layers):
        return honest(self, windows, corners + 4, scene_sizes, layers)

    monkeypatch.setattr(type(control), "activations_at", elsewhere)
    deviation = compare_with_model(cache, control, scenes)
    assert deviation.largest > deviation.allowed


def test_identity_tells_geometry_and_definition(tmp_path, scenes):
    first, other = load_control("position", like()), load_control("position", like(96, 96, 8))
    assert first.describe()["objective"] == first.describe()["family"] == "control"
    digests = {load_control(kind, like()).describe()["weights_digest"] for kind in CONTROL_KINDS}
    assert len(digests) == 3
    cache_activations(first, scenes, tmp_path)
    with pytest.raises(CacheMismatchError, match=r"geometry.short_side: the cache has 112, this call has 96"):
        cache_activations(other, scenes, tmp_path)


def test_names_say_the_geometry_only_where_there_are_several():
    same = [like(), like(preprocessing=Preprocessing((0.5,) * 3, (0.5,) * 3, resample="bilinear"))]
    assert [control.name for control in load_controls(same)] == [f"control:{kind}" for kind in CONTROL_KINDS]
    several = [like(), like(592, 224, 16), like()]
    names = [control.name for control in load_controls(several, "position raw-pixels position")]
    assert names == [
        "control:position@112/8",
        "control:raw-pixels@112/8",
        "control:position@592-224/16",
        "control:raw-pixels@592-224/16",
    ]
    assert load_controls(several, "") == [] == load_controls([], "position")
    assert [control_title(name) for name in names[1:3]] == ["raw pixels at 112/8", "position at 592-224/16"]


@pytest.mark.parametrize("name", ["pixels", "control:", "control:position@", "raw-pixels+position", "random-init:vit"])
def test_an_unknown_control_is_named(name):
    with pytest.raises(InvalidParameterError, match="there are position, raw-pixels, position"):
        parse_control(name)


def test_a_name_of_another_geometry_is_refused():
    assert load_control("control:position@112/8", like()).name == "control:position@112/8"
    with pytest.raises(InvalidParameterError, match="another geometry than the backbone has, which is 112/8"):
        load_control("position@96/8", like())


class Halves:
    """Scenes whose left and right halves are two objects of one class and one constant colour."""

    uri, broken, official_splits, class_names = "halves:", (), None, {1: "half"}

    def __init__(self, n_scenes):
        self.ids = tuple(f"half-{k:03d}" for k in range(n_scenes))

    def __len__(self):
        return len(self.ids)

    def __iter__(self):
        return (self[k] for k in range(len(self)))

    def sources(self, position):
        return ()

    def size_of(self, position):
        return 32, 64

    def __getitem__(self, position):
        instances = np.ones((32, 64), np.int32)
        instances[:, 32:] = 2
        shade = np.random.default_rng(position).integers(0, 256, 3)
        image = np.broadcast_to(shade, (32, 64, 3)).astype(np.uint8)
        return Scene(self.ids[position], image, instances, np.ones_like(instances))


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    root = tmp_path_factory.mktemp("halves")
    caches = [cache_activations(control, Halves(40), root) for control in load_controls([PlantedBackbone()])]
    return sweep(caches, probes=["quadratic"]).set_index("backbone")


def test_position_tells_halves_apart_and_constant_pixels_do_not(halves):
    assert halves.loc["control:position", "auroc"] > 0.99
    assert halves.loc["control:position", "twins_auroc"] > 0.99
    assert halves.loc["control:position+raw-pixels", "auroc"] > 0.98
    assert halves.loc["control:raw-pixels", "auroc"] == pytest.approx(0.5, abs=0.02)
    assert halves.loc["control:raw-pixels", "twins_auroc"] == pytest.approx(0.5, abs=0.02)
    assert halves["n_pairs"].nunique() == 1


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    root, scenes, backbone = tmp_path_factory.mktemp("planted"), PlantedScenes(10), PlantedBackbone()
    return [cache_activations(source, scenes, root) for source in (backbone, *load_controls([backbone]))]


def test_rows_of_controls_have_no_layer_and_are_read_back(caches, tmp_path, monkeypatch):
    first = sweep(caches, [1, 2], ["linear"], protocol=BRIEF, root=tmp_path)
    assert first["layer"].isna().tolist() == [False, False, True, True, True]
    assert set(first["objective"][2:]) == {"control"}
    assert first["n_pairs"].nunique() == first["majority_accuracy"].nunique() == 1
    monkeypatch.setattr("bindkit.results.sweeping.fit_probes", None)  # a fit now would be an error
    pd.testing.assert_frame_equal(sweep(caches, [1, 2], ["linear"], protocol=BRIEF, root=tmp_path), first)
    for row in first.to_dict("records"):
        probe = bk.load_probe(probe_directory(tmp_path, row))
        assert probe.fitted_on["backbone"] == row["backbone"]
        assert probe.fitted_on["layer"] == (0 if math.isnan(row["layer"]) else row["layer"])
    written = tmp_path / "results.csv"
    first.to_csv(written, index=False)
    pd.testing.assert_frame_equal(pd.read_csv(written)[["backbone", "layer"]], first[["backbone", "layer"]])


def test_a_table_of_controls_alone_has_a_column_of_numbers_for_the_layer(caches, tmp_path):
    fitted, read = (sweep(caches[1:2], [7], ["linear"], protocol=BRIEF, root=tmp_path) for _ in range(2))
    assert fitted["layer"].dtype == read["layer"].dtype == float
    pd.testing.assert_frame_equal(fitted, read)


def test_the_paper_protocol_says_nothing_about_a_controls_normalisation(caches, caplog):
    sweep(caches[1:2], probes=["linear"], protocol=replace(PAPER, epochs=1))
    assert "normalise" not in caplog.text


def test_gains_over_controls_are_differences_to_the_strongest_on_the_same_pairs():
    names = ["backbone", "objective", "layer", "accuracy", "auroc", "twins_auroc", "n_pairs", "seed"]
    rows = [
        ("vit", "dino", 0, 0.7, 0.80, 0.60, 99, 0),
        ("vit", "dino", 1, 0.9, 0.94, 0.75, 99, 0),
        ("vit", "dino", 1, 0.9, 0.96, 0.77, 99, 1),
        ("twin", "random-init", 1, 0.9, 0.70, np.nan, 99, 0),
        ("control:position", "control", np.nan, 0.8, 0.85, 0.70, 99, 0),
        ("control:position", "control", np.nan, 0.8, 0.87, 0.72, 99, 1),
        ("control:raw-pixels", "control", np.nan, 0.9, 0.80, 0.74, 99, 0),
        ("other", "dino", 1, 0.9, 0.90, 0.70, 55, 0),  # of another geometry: no control saw its pairs
    ]
    results = pd.DataFrame(rows, columns=names).assign(probe="quadratic")
    best = best_layers(results).set_index("backbone")
    over, twins = best["auroc_over_controls"], best["twins_auroc_over_controls"]
    assert over["vit"] == pytest.approx(0.95 - 0.86)
    assert twins["vit"] == pytest.approx(0.76 - 0.74)
    assert over["twin"] == pytest.approx(0.70 - 0.86)
    assert np.isnan(twins["twin"])
    assert over[["other", "control:position", "control:raw-pixels"]].isna().all()
    linear = results.assign(probe=["linear"] * 4 + ["quadratic"] * 4)
    assert best_layers(linear)["auroc_over_controls"].isna().all()
    assert best_layers(results[results["objective"] != "control"])["auroc_over_controls"].isna().all()


@pytest.mark.parametrize("kind", CONTROL_KINDS)
def test_a_damaged_control_is_mended(tmp_path, scenes, kind):
    control = load_control(kind, like())
    cache = cache_activations(control, bk.open_scenes(scenes.uri), tmp_path / "cache", patches_per_scene=20)
    assert control_of(cache.backbone).describe() == control.describe()
    damaged = next(cache.path.rglob("layer_00/*"))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert repair_cache(cache.path).obstacle == ""
    assert damaged.read_bytes() == whole
    assert bk.ActivationCache.open(cache.path).verify() == []


class Places(PlantedBackbone):
    """A backbone that knows where its patches lie and nothing else: sines and cosines of the place."""

    def activations(self, windows, layers):
        at = torch.arange(8)[:, None] / 8 * torch.pi * torch.arange(1, 7)
        waves = torch.cat([at.sin(), at.cos()], 1)
        code = torch.cat([waves[:, None].expand(8, 8, 12), waves[None].expand(8, 8, 12)], -1).reshape(1, 64, 24)
        return {layer: 8 * code.expand(len(windows), 64, 24) for layer in layers}


class OneWindow(PlantedScenes):
    """Objects that fill a quarter each, by turns; a patch's place says much."""

    uri = "planted-quarters:"

    def __getitem__(self, position):
        shown, quarter = super().__getitem__(position), np.kron([[1, 2], [3, 4]], np.ones((16, 16), dtype=int))
        instances = np.roll(quarter, 4 * (position % 3), axis=1).astype(np.int32)
        return Scene(shown.id, shown.image[:, :32], instances, (instances + 1) // 2)

    def size_of(self, position):
        return 32, 32


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_what_sees_position_alone_is_no_better_than_the_position_control(tmp_path, protocol):
    """Under both protocols: the control is trained so that it reads all that places tell."""
    from bindkit.probes.fitting import fit_probe

    scenes = OneWindow(60)
    backbone = Places(name="places")
    control = load_control("position", backbone)
    caches = [cache_activations(each, scenes, tmp_path) for each in (backbone, control)]
    source, place = (fit_probe(cache, cache.layers[0], "quadratic", protocol=protocol) for cache in caches)
    assert place.metrics["auroc"] > 0.9
    assert source.metrics["auroc"] < place.metrics["auroc"] + 0.01
    assert source.metrics["n_pairs"] == place.metrics["n_pairs"]
    assert place.probe.fitted_on["protocol"] == protocol


def test_controls_of_two_arithmetics_have_two_names_and_come_back_from_their_description():
    likes = [like(32, 32, 4), SimpleNamespace(geometry=WindowGeometry(32, 32, 4, "reference"), preprocessing=IMAGENET)]
    controls = load_controls(likes, "position")
    assert [control.name for control in controls] == ["control:position@32/4", "control:position@32/4-reference"]
    for control, known in zip(controls, likes, strict=True):
        assert control_of(control.describe()).geometry == known.geometry


def test_a_directory_is_called_by_what_tells_it_from_another_runs():
    paths = ["/home/me/runs/mae/scenes_170000", "/home/me/runs/dino/scenes_170000", "/a/b", "facebook/dinov2-small"]
    titles = [control_title(path) for path in paths]
    assert titles == ["mae/scenes_170000", "dino/scenes_170000", "a/b", "facebook/dinov2-small"]
