"""The page without a browser: what is in it, what may not be, and every refusal."""

import re

import numpy as np
import pytest
import tiny_models
from PIL import Image
from viewer_pages import HOSTILE, Page, photo, probes_of, read_page, scores_of

import bindkit as bk
from bindkit.cli import main
from bindkit.errors import BrokenSceneError, GeometryError, InvalidParameterError, ProbeError, ProbeMismatchError
from bindkit.probes import save_probe
from bindkit.views.viewer.exporting import Subject, picture
from bindkit.views.viewer.packing import TOLERANCE


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    return [bk.load_backbone(str(tiny_models.write_checkpoint(kind, root / kind))) for kind in ("dinov2", "siglip")]


@pytest.fixture(scope="module")
def page(backbones, tmp_path_factory):
    scenes = bk.open_scenes("synthetic:n=2,seed=0")
    probes = {backbones[0]: probes_of(backbones[0], [0, 1, 2]), backbones[1]: probes_of(backbones[1], [2, 1], seed=9)}
    images = [scenes[0], photo(70, 41), scenes[1]]
    path = tmp_path_factory.mktemp("page") / "made" / "viewer.html"
    place = bk.export_viewer(path, probes, images=images, class_names=scenes.class_names)
    assert place == path
    ordered = {backbones[0]: probes[backbones[0]], backbones[1]: probes[backbones[1]][::-1]}
    return Page(path, backbones, ordered, images)


def test_every_affinity_of_the_page_is_pythons(page):
    data, packs = read_page(page.path)
    assert len(packs) == 3 * 3 + 3 * 2
    for (backbone, image, layer), packed in packs.items():
        found = page.affinity(backbone, image, layer)
        grid = data["backbones"][backbone]["grids"][image]
        assert (grid["rows"], grid["cols"]) == (found.grid.rows, found.grid.cols)
        assert data["backbones"][backbone]["layers"][layer]["layer"] == found.layer
        assert np.abs(scores_of(packed) - found.scores).max() < TOLERANCE
        assert found.scores.std() > 0.1, "nothing to tell apart in this test"


def test_objects_twins_and_labels_are_the_scenes(page):
    data, _ = read_page(page.path)
    for image in (0, 2):
        scene, objects = page.images[image], data["images"][image]["objects"]
        assert [entry["id"] for entry in objects] == [v for v in np.unique(scene.instances) if v]
        classes = [np.bincount(scene.classes[scene.instances == entry["id"]]).argmax() for entry in objects]
        for k, entry in enumerate(objects):
            assert entry["twins"] == [j for j in range(len(objects)) if j != k and classes[j] == classes[k]]
        found = page.affinity(0, image, 0).grid.majority(scene.instances)
        labels = data["backbones"][0]["grids"][image]["labels"]
        assert [objects[label]["id"] if label >= 0 else 0 for label in labels] == found.tolist()
    assert any(entry["twins"] for entry in data["images"][2]["objects"] + data["images"][0]["objects"])
    assert data["images"][1]["objects"] == []
    assert data["images"][1]["mask"] is None
    assert [entry["name"] for entry in data["images"]] == ["synthetic-0-000000", "image 2", "synthetic-0-000001"]


def test_the_page_asks_nothing_of_a_network_and_lets_no_other_script_run(page):
    text = page.path.read_text(encoding="utf-8")
    addresses = set(re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}[^\s\"'`]*", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in text
    assert "unsafe" not in text
    assert not re.search(r"<[^>]*\s(on\w+|style|src)=", text), "the policy would block these"
    assert not re.search(r"\{\{\w+\}\}", text)


def test_names_of_users_are_only_ever_text(backbones, tmp_path):
    image = Image.fromarray(photo(32, 48))
    mask = np.ones((32, 48), np.int32)
    scene = bk.Scene(HOSTILE, np.asarray(image), mask, mask)
    (tmp_path / "a&b<i>.png").parent.mkdir(exist_ok=True)
    image.save(tmp_path / "a&b<i>.png")
    probes = probes_of(backbones[0], [1])
    out = bk.export_viewer(
        tmp_path / "v.html",
        backbones[0],
        probes,
        [scene, tmp_path / "a&b<i>.png"],
        class_names={1: HOSTILE},
        title=HOSTILE,
    )
    text = out.read_text(encoding="utf-8")
    data, _ = read_page(out)
    assert [entry["name"] for entry in data["images"]] == [HOSTILE, "a&b<i>.png"]
    assert data["images"][0]["objects"][0]["name"] == HOSTILE
    assert "<b id=stolen" not in text
    assert text.count("<script") == text.count("</script>") == 4  # data, two maps, code
    assert str(tmp_path) not in text, "paths of users stay out of a page that is passed on"
    assert "&lt;/script&gt;&lt;b id=stolen&gt;{{script}}&lt;!--</h1>" in text


def test_equal_calls_write_equal_bytes(backbones, tmp_path):
    probes, images = probes_of(backbones[0], [1]), [photo(40, 40)]
    first = bk.export_viewer(tmp_path / "a.html", backbones[0], probes, images).read_bytes()
    assert bk.export_viewer(tmp_path / "b.html", backbones[0], probes[0], images).read_bytes() == first


def test_a_scene_set_brings_its_class_names_and_a_directory_its_probes(tmp_path):
    backbone = bk.load_backbone("random-init:vit")
    for probe in probes_of(backbone, [0, 3]):
        probe.fitted_on |= {"backbone": backbone.name, "weights_digest": backbone.weights_digest}
        save_probe(probe, tmp_path / "probes" / str(probe.fitted_on["layer"]))
    out = bk.export_viewer(tmp_path / "v.html", "random-init:vit", tmp_path / "probes", bk.open_scenes("synthetic:n=1"))
    data, packs = read_page(out)
    assert [entry["layer"] for entry in data["backbones"][0]["layers"]] == [0, 3]
    assert data["backbones"][0]["objective"] == "random-init"
    assert len(packs) == 2
    assert {entry["name"] for entry in data["images"][0]["objects"]} <= set(
        bk.open_scenes("synthetic:n=1").class_names.values()
    )


def test_refusals_say_what_to_do(backbones, tmp_path):
    backbone, probes, images = backbones[0], probes_of(backbones[0], [1]), [photo(32, 32)]
    out = tmp_path / "v.html"
    for call, error, message in [
        (lambda: bk.export_viewer(out, backbone, probes, []), InvalidParameterError, "at least one image"),
        (lambda: bk.export_viewer(out, backbone, probes, "photo.png"), InvalidParameterError, "images is a list"),
        (lambda: bk.export_viewer(out, backbone, probes, images[0]), InvalidParameterError, "images is a list"),
        (lambda: bk.export_viewer(out, backbone, images=images), InvalidParameterError, "and its probes"),
        (lambda: bk.export_viewer(out, {}, images=images), InvalidParameterError, "which backbone"),
        (lambda: bk.export_viewer(out, {backbone: probes}, probes, images), InvalidParameterError, "leave out probes="),
        (lambda: bk.export_viewer(out, backbone, [], images), ProbeError, "no probe is given"),
        (lambda: bk.export_viewer(out, backbone, probes * 2, images), InvalidParameterError, "two probes of layer 1"),
        (lambda: bk.export_viewer(tmp_path, backbone, probes, images), InvalidParameterError, "is a directory"),
        (lambda: bk.export_viewer(out, backbone, tmp_path, images), ProbeError, "holds no fitted probe"),
        (lambda: bk.export_viewer(out, backbone, probes, ["no.png"]), BrokenSceneError, "no.png: the file is missing"),
        (lambda: bk.export_viewer(out, backbone, probes, [photo(8, 20_000)]), GeometryError, "more than the 6000"),
    ]:
        with pytest.raises(error, match=message):
            call()
    probes[0].fitted_on |= {"backbone": "other", "weights_digest": "0" * 64}
    with pytest.raises(ProbeMismatchError, match="fitted on other"):
        bk.export_viewer(out, backbone, probes, images)
    assert not out.exists()


def test_pictures_are_of_a_sensible_size():
    assert len(picture(photo(3000, 4000))) < 200_000
    mask = np.kron(np.arange(1, 301).reshape(15, 20), np.ones((40, 40), int)).astype(np.int32)
    many = Subject("many objects", photo(600, 800), bk.Scene("s", photo(600, 800), mask, mask), {})
    described = many.describe()
    assert len(described["objects"]) == 300
    assert max(described["mask"]["rows"], described["mask"]["cols"]) <= 480
    assert described["mask"]["bytes"] < 20_000


def test_the_console_writes_the_page(tmp_path, capsys):
    backbone = bk.load_backbone("random-init:vit")
    for probe in probes_of(backbone, [0, 2]):
        probe.fitted_on |= {"backbone": backbone.name, "weights_digest": backbone.weights_digest}
        save_probe(probe, tmp_path / "probes" / str(probe.fitted_on["layer"]))
    image, out = tmp_path / "photo.png", tmp_path / "viewer.html"
    Image.fromarray(photo(60, 90)).save(image)
    options = ["--backbone", "random-init:vit", "--probes", str(tmp_path / "probes")]
    assert main(["export", str(out), *options, "--layers", "2", str(image), str(image)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    data, packs = read_page(out)
    assert [entry["name"] for entry in data["images"]] == ["photo.png"] * 2
    assert sorted(packs) == [(0, 0, 0), (0, 1, 0)]
    scenes = ["--scenes", "synthetic:n=9,seed=0", "--n", "2", "--title", "Mine"]
    assert main(["export", str(out), str(image), *options, *scenes]) == 0
    data, packs = read_page(out)
    assert [len(entry["objects"]) > 0 for entry in data["images"]] == [True, True, False]
    assert len(packs) == 6
    assert "<title>Mine</title>" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere.png"], "nowhere.png: the file is missing"),
        ([], "nothing to show"),
        (["--scenes", "synthetic:n=2", "--n", "0"], "at least 1, got 0"),
        (["--scenes", "synthetic:n=2", "--layers", "99"], "has layers 0 to 5"),
        (["--scenes", "synthetic:n=2"], "holds no fitted probe"),
    ],
)
def test_a_users_mistake_is_one_clean_message(tmp_path, capsys, options, message):
    if "nowhere.png" in options:
        backbone = bk.load_backbone("random-init:vit")
        save_probe(probes_of(backbone, [0])[0], tmp_path / "one")
    arguments = ["export", str(tmp_path / "v.html"), "--backbone", "random-init:vit", "--probes", str(tmp_path)]
    assert main([*arguments, *options]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_unknown_options_are_still_refused(capsys):
    with pytest.raises(SystemExit):
        main(["export", "v.html", "--backbone", "b", "--probes", "p", "--frobnicate"])
    with pytest.raises(SystemExit):
        main(["check", "model", "another"])
    assert "unrecognized arguments: another" in capsys.readouterr().err
