"""Affinities of a whole image: the probe's own numbers where one window shows it, any kind of image, clear refusals."""

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image
from planted import PlantedBackbone, PlantedScenes

import bindkit as bk
from bindkit.affinities.scoring import image_activations, image_pixels, read_probe
from bindkit.backbones.sources import require_source
from bindkit.errors import (
    BackboneError,
    BrokenSceneError,
    GeometryError,
    InvalidParameterError,
    LayerError,
    NonFiniteActivationsError,
    ProbeError,
    ProbeMismatchError,
)
from bindkit.probes import PROBES, make_probe, save_probe
from bindkit.probes.protocols import Fit

WIDTH = tiny_models.WIDTH


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return bk.load_backbone(str(tiny_models.write_checkpoint("dinov2", tmp_path_factory.mktemp("tiny"))))


def probe_of(kind="quadratic", layer=1, **fitted_on):
    probe = make_probe(kind, WIDTH, seed=2)
    probe.fitted_on = {"layer": layer, **fitted_on}
    return probe.eval()


def photo(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", PROBES)
def test_one_window_gets_the_probes_own_affinities(backbone, kind):
    pixels, probe = photo(32, 32), probe_of(kind)
    found = bk.affinity(backbone, probe, pixels)
    assert (found.grid.rows, found.grid.cols, found.layer) == (4, 4, 1)
    assert found.scores.dtype == np.float32
    activations = backbone.activations(torch.from_numpy(pixels[None]), [1])[1][0]
    for i in range(16):
        for j in range(16):
            logit = probe.double().pairwise(activations[[i]].double(), activations[[j]].double())
        assert found.scores[i, j] == pytest.approx(1 / (1 + np.exp(-logit.item())), abs=1e-5)
    with torch.inference_mode():
        assert np.array_equal(found.scores, probe.float()(activations).sigmoid().numpy())


def test_a_large_image_is_covered_by_windows_and_maps_lead_back_to_its_pixels(backbone):
    found = bk.affinity(backbone, probe_of(), photo(64, 150))
    assert found.grid.resized == (32, 75)
    assert (found.grid.rows, found.grid.cols) == (4, 9)
    assert found.scores.shape == (36, 36)
    assert np.allclose(found.scores, found.scores.T, atol=1e-6)
    patch = found.patch_at(row=63, col=149)
    assert patch == 35
    assert found.box(patch).bottom == pytest.approx(64)
    assert np.array_equal(found.of(patch), found.scores[35].reshape(4, 9))
    with pytest.raises(GeometryError, match="patch 36"):
        found.of(36)


def test_objects_that_cross_windows_hang_together():
    """Activations planted by instance: a patch's own object outranks the others, across window borders too."""
    scene = PlantedScenes(1)[0]
    probe = make_probe("diag_quadratic", 24)
    with torch.no_grad():
        probe.weight.zero_()
        probe.weight[16:24] = 0.005
        probe.bias.zero_()
    found = bk.affinity(PlantedBackbone(signal=8.0), probe, scene, layer=2)
    labels = found.grid.majority(scene.instances)
    assert (found.grid.rows, found.grid.cols) == (8, 12)
    cols = np.arange(96) % 12
    apart = (cols < 4)[:, None] & (cols >= 8)[None]  # seen by the first window only, by the second only
    same = labels[:, None] == labels[None]
    assert (apart & same).sum() > 50
    assert found.scores[apart & same].mean() > found.scores[apart & ~same].mean() + 0.2


def test_every_kind_of_image_gives_the_same(backbone, tmp_path):
    pixels, probe = photo(40, 56), probe_of()
    expected = bk.affinity(backbone, probe, pixels).scores
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    nothing = np.zeros(pixels.shape[:2], np.int32)
    scene = bk.Scene("scene", pixels, nothing, nothing)
    for image in (Image.fromarray(pixels), tmp_path / "photo.png", str(tmp_path / "photo.png"), scene):
        assert np.array_equal(bk.affinity(backbone, probe, image).scores, expected)
    place = save_probe(probe, tmp_path / "probe")
    assert np.array_equal(bk.affinity(backbone, place, pixels).scores, expected)


def test_files_are_read_upright_and_as_rgb(tmp_path):
    pixels = photo(20, 30)
    turned = Image.fromarray(np.rot90(pixels).copy())  # taken with the camera on its side
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(image_pixels(tmp_path / "turned.png"), pixels)
    grey = Image.fromarray(pixels[..., 0])
    assert np.array_equal(image_pixels(grey), np.repeat(pixels[..., :1], 3, axis=2))
    assert image_pixels(Image.new("RGBA", (3, 2))).shape == (2, 3, 3)


def test_several_layers_take_one_forward_and_sources_learn_where_windows_lie():
    class Counting(PlantedBackbone):
        calls = ()

        def activations_at(self, windows, corners, scene_sizes, layers):
            Counting.calls += ((corners.tolist(), scene_sizes.tolist(), tuple(layers)),)
            return self.activations(windows, layers)

    grid, activations = image_activations(Counting(), np.zeros((32, 80, 3), np.uint8), [0, 2])
    assert Counting.calls == (([[0, 0], [0, 24], [0, 48]], [[32, 80]] * 3, (0, 2)),)
    assert {layer: found.shape for layer, found in activations.items()} == {0: (160, 24), 2: (160, 24)}
    assert grid.n_patches == 160


def test_a_probe_of_something_else_is_refused(backbone):
    with pytest.raises(ProbeMismatchError, match="width 8, got width 32"):
        bk.affinity(backbone, make_probe("linear", 8), photo(32, 32), layer=1)
    with pytest.raises(ProbeMismatchError, match="fitted on layer 1, it is asked to judge layer 2"):
        bk.affinity(backbone, probe_of(), photo(32, 32), layer=2)
    with pytest.raises(ProbeMismatchError, match=r"fitted on other/model \(weights ffffffff\), it is asked to judge"):
        bk.affinity(backbone, probe_of(backbone="other/model", weights_digest="f" * 64), photo(32, 32))
    with pytest.raises(LayerError, match="does not say which layer"):
        bk.affinity(backbone, make_probe("linear", WIDTH), photo(32, 32))
    with pytest.raises(LayerError, match="has layers 0 to 2"):
        bk.affinity(backbone, probe_of(layer=7), photo(32, 32))
    with pytest.raises(ProbeError, match="no readable"):
        bk.affinity(backbone, "nowhere", photo(32, 32))


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        ("missing.png", BrokenSceneError, "missing.png: the file is missing"),
        (np.zeros((32, 32, 3)), InvalidParameterError, r"uint8 \[height, width, 3\].*got float64"),
        (np.zeros((32, 32), np.uint8), InvalidParameterError, r"got uint8 \[32, 32\]"),
        (np.zeros((0, 32, 3), np.uint8), GeometryError, "no pixels"),
        (Image.new("I;16", (8, 8)), InvalidParameterError, "mode I;16; expected 8 bits"),
        (np.zeros((4, 20_000, 3), np.uint8), GeometryError, "4 x 20000 patches.*crop it"),
    ],
)
def test_what_is_no_image_is_refused_by_name(backbone, image, error, message):
    with pytest.raises(error, match=message):
        bk.affinity(backbone, probe_of(), image)


def test_what_is_no_probe_and_no_backbone_is_refused_by_name():
    for given in (7, None, {"probe": 1}):
        with pytest.raises(ProbeError, match=r"a probe is what bk\.load_probe gives, a directory that fit\.save"):
            read_probe(given)
    for given in ("random-init:vit", None):
        with pytest.raises(BackboneError, match=r"a backbone is what bk\.load_backbone"):
            require_source(given)


def test_a_fit_stands_for_its_probe(backbone):
    probe = make_probe("quadratic", backbone.d_model).eval()
    assert read_probe(Fit(probe, {}, (), "test", 0.0)) is probe


def test_what_is_no_picture_at_all_is_refused():
    with pytest.raises(InvalidParameterError, match="a path, a PIL image, a uint8 array or a Scene, got int"):
        image_pixels(7)


def test_damaged_files_are_named(backbone, tmp_path):
    whole = tmp_path / "whole.jpg"
    Image.fromarray(photo(64, 64)).save(whole)
    for name, content in (("cut.jpg", whole.read_bytes()[:900]), ("text.jpg", b"not an image"), ("empty.jpg", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BrokenSceneError, match=rf"{name}: (cannot be read|the file is empty)"):
            bk.affinity(backbone, probe_of(), tmp_path / name)


def test_numbers_that_are_none_are_refused(backbone):
    probe = probe_of()
    with torch.no_grad():
        probe.bias.fill_(torch.nan)
    with pytest.raises(NonFiniteActivationsError, match="probe gives NaN"):
        bk.affinity(backbone, probe, photo(32, 32))

    class Broken(PlantedBackbone):
        def activations(self, windows, layers):
            return {layer: found * torch.inf for layer, found in super().activations(windows, layers).items()}

    with pytest.raises(NonFiniteActivationsError, match="planted gave NaN or infinity at layer 2"):
        bk.affinity(Broken(), make_probe("linear", 24), np.zeros((32, 32, 3), np.uint8), layer=2)
