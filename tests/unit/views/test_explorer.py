"""The explorer's widgets by their state: what is clicked, moved, opened, locked and saved, and what goes wrong."""

import io
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from PIL import Image
from viewer_pages import HOSTILE, photo, probes_of

import bindkit as bk
from bindkit.errors import BackboneError, GeometryError, InvalidParameterError, LayerError, ProbeError
from bindkit.probes import make_probe, save_probe


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    return [bk.load_backbone(str(tiny_models.write_checkpoint(kind, root / kind))) for kind in ("dinov2", "siglip")]


@pytest.fixture(scope="module")
def scenes():
    return bk.open_scenes("synthetic:n=3,seed=0,twins=1")


@pytest.fixture(scope="module")
def probes(backbones):
    return {backbone: probes_of(backbone, [0, 1, 2]) for backbone in backbones}


@pytest.fixture
def explorer(backbones, probes, scenes):
    made = bk.AffinityExplorer(probes, images=[scenes[0], photo(64, 150), scenes[1]], class_names=scenes.class_names)
    yield made
    made.close()


def traces(explorer, name="affinity"):
    return [trace for trace in explorer.figure.data if trace.name == name and trace.visible]


def by_python(explorer, probes, image, patch=None, backbone=None):
    backbone = backbone or next(iter(probes))
    found = bk.affinity(backbone, probes[backbone][explorer.layer], image)
    row, col = patch or explorer.patch
    return found.of(row * found.grid.cols + col)


def press(explorer, key):
    explorer._pad._handle_custom_msg({"key": key}, [])


def choose(explorer, row, col):
    rows, cols = explorer._pad.patch[2:] or (1, 1)
    place = {"down": (row + 0.5) / rows, "across": (col + 0.5) / cols}
    explorer._pad._handle_custom_msg({"panel": 1, **place}, [])


def test_it_opens_at_a_telling_patch_of_the_first_scene(explorer, probes, scenes):
    assert explorer.image == scenes[0].id
    assert np.abs(explorer.scores - by_python(explorer, probes, scenes[0])).max() < 1e-3
    assert "object" in explorer.status
    assert f"Patch row {explorer.patch[0]}, column {explorer.patch[1]}" in explorer.status
    assert explorer.message == ""
    assert "2 backbones, 3 images" in repr(explorer)


def test_a_click_on_the_figure_chooses_the_patch(explorer, probes, scenes):
    from plotly.callbacks import InputDeviceState, Points

    heat = traces(explorer)[0]
    explorer.figure._js2py_pointsCallback = {
        "event_type": "plotly_click",
        "points": {"trace_indexes": [0], "point_indexes": [[1, 2]], "xs": [2], "ys": [1]},
        "device_state": {"alt": False, "ctrl": False, "meta": False, "shift": False, "button": 0, "buttons": 1},
        "selector": None,
    }
    assert explorer.patch == (1, 2)
    heat._dispatch_on_click(Points(point_inds=[[3, 4]], xs=[4], ys=[3]), InputDeviceState())
    assert explorer.patch == (3, 4)
    assert np.abs(heat.z - by_python(explorer, probes, scenes[0], (3, 4))).max() < 1e-3
    explorer._pad._handle_custom_msg({"panel": 1, "down": 0.0, "across": 1.5}, [])
    assert explorer.patch == (0, explorer.scores.shape[1] - 1)
    for mark, panel in ((0.25, 1), (0.5, 7)):  # heard, also where nothing is to be done
        explorer._pad._handle_custom_msg({"panel": panel, "down": 0.5, "across": 0.5, "mark": mark}, [])
        assert explorer._pad.heard == mark
    assert explorer._pad.patch == [*explorer.patch, *explorer.scores.shape]


def test_a_click_sends_numbers_and_lines_but_never_the_picture(explorer, monkeypatch):
    sent = []
    monkeypatch.setattr(type(explorer.figure), "_send_update_msg", lambda self, **message: sent.append(message))
    explorer.patch = (0, 0)
    explorer.patch = (1, 4)
    assert len(sent) == 2
    assert all(set(message["restyle_data"]) <= {"x", "y", "z", "visible"} for message in sent)
    assert all(not message["relayout_data"] for message in sent), "the layout stays"
    figure = explorer.figure
    explorer.backbone, explorer.image = 1, 1
    assert explorer.figure is figure


def test_keys_change_the_layer_and_the_image(explorer):
    explorer.layer = 1
    for key, layer in (("[", 0), ("[", 0), ("]", 1), ("]", 2), ("]", 2)):
        press(explorer, key)
        assert explorer.layer == layer
    press(explorer, ".")
    assert explorer.image == "image 2"
    press(explorer, ",")
    press(explorer, ",")
    assert explorer.image.startswith("synthetic")
    press(explorer, "x")


def test_controls_and_state_follow_each_other(explorer, probes, scenes, backbones):
    controls = explorer._screen.controls
    controls.layer.value = 0
    assert explorer.layer == 0
    explorer.layer = 2
    assert controls.layer.value == 2
    controls.image.value = 1
    assert explorer.image == "image 2"
    assert explorer.scores.shape == (4, 9)
    assert "object" not in explorer.status
    controls.backbone.value = 1
    assert explorer.backbone == controls.backbone.label
    expected = by_python(explorer, probes, photo(64, 150), backbone=backbones[1])
    assert np.abs(explorer.scores - expected).max() < 1e-3
    controls.measure.value = "cosine"
    assert explorer.measure == "cosine"
    controls.colours.value = "cividis"
    assert traces(explorer, "cosine")[0].colorscale[0][1].lower() in ("#00224e", "rgb(0,34,78)")
    controls.opacity.value = 0.25
    assert traces(explorer, "cosine")[0].opacity == 0.25
    assert explorer.message == ""


def test_a_backbone_with_another_grid_keeps_the_place(scenes, backbones, probes):
    other = bk.load_backbone("random-init:vit")
    fitted = {backbones[0]: probes[backbones[0]], other: probes_of(other, [0, 3])}
    explorer = bk.AffinityExplorer(fitted, images=[scenes[0]])
    rows, cols = explorer.scores.shape
    row, col = explorer.patch
    explorer.layer = 2
    explorer.backbone = 1
    assert explorer.layer == 3, "the nearest there is a probe for"
    assert explorer._screen.controls.layer.options == (0, 3)
    now_rows, now_cols = explorer.scores.shape
    assert (now_rows, now_cols) != (rows, cols)
    assert explorer.patch == (int((row + 0.5) / rows * now_rows), int((col + 0.5) / cols * now_cols))
    explorer.backbone = 0
    assert explorer.patch == (row, col)


@pytest.mark.parametrize("held", ["view", "patch", "layer", "backbone"])
def test_a_lock_holds_its_part_and_the_rest_follows(explorer, held):
    explorer.layer, explorer.patch = 1, (2, 3)
    before = explorer.scores
    explorer._screen.controls.lock.value = held
    assert np.array_equal(explorer.maps["locked"], before)
    explorer.layer, explorer.patch, explorer.backbone = 2, (0, 1), 1
    wanted = {
        "view": (0, 1, (2, 3)),
        "patch": (1, 2, (2, 3)),
        "layer": (1, 1, (0, 1)),
        "backbone": (0, 1, (0, 1)),
    }[held]
    locked = explorer.maps["locked"]
    explorer.lock("")
    assert "locked" not in explorer.maps
    explorer.backbone, explorer.layer, explorer.patch = wanted[0], wanted[1], wanted[2]
    assert np.array_equal(locked, explorer.scores)


def test_a_click_in_the_panel_of_a_locked_patch_moves_that_patch(explorer):
    explorer.patch = (2, 3)
    explorer.lock("patch")
    explorer._pad._handle_custom_msg({"panel": 3, "down": 0.01, "across": 1.5 / explorer.scores.shape[1]}, [])
    assert explorer.patch == (2, 3)
    locked = explorer.maps["locked"]
    explorer.patch = (0, 1)
    assert np.array_equal(explorer.scores, locked)
    explorer.lock("layer")
    rows, cols = explorer.scores.shape
    explorer._pad._handle_custom_msg({"panel": 3, "down": 1.5 / rows, "across": 1.5 / cols}, [])
    assert explorer.patch == (1, 1)


def test_maps_beside_and_across_images(explorer, backbones, probes, scenes):
    explorer.layer = 0
    for box in explorer._screen.controls.beside.values():
        box.value = True
    explorer._screen.controls.second.value = 2
    assert list(explorer.maps) == ["main", "cosine", "attention", "pca", "objects", "second"]
    explorer.layer = 1
    assert explorer.maps["attention"].sum() == pytest.approx(1, abs=1e-4)
    mean = explorer.maps["attention"]
    heads = []
    for head in (0, 1):
        explorer._screen.controls.head.value = head
        heads.append(explorer.maps["attention"])
    assert np.allclose((heads[0] + heads[1]) / 2, mean, atol=1e-6)
    assert explorer.second == scenes[1].id
    explorer.layer = 2
    assert "last" in explorer.message
    assert "attention" not in explorer.maps
    explorer.beside, explorer.second = (), None
    assert list(explorer.maps) == ["main"]
    assert len(traces(explorer)) == 1
    assert explorer.message == ""


def test_the_threshold_outlines_and_judges(explorer, scenes):
    explorer.threshold = 0.94  # about half of the patches; around nearly all there would be no outline
    above = explorer.scores >= 0.94
    assert 0.2 < above.mean() < 0.8
    scene = scenes[0]
    grid = explorer._session.grid()
    pixels = np.array(
        [[above.ravel()[grid.patch_at(r, c)] for c in range(scene.size[1])] for r in range(scene.size[0])]
    )
    own = scene.instances == grid.majority(scene.instances).reshape(above.shape)[explorer.patch]
    iou = (pixels & own).sum() / (pixels | own).sum()
    assert f"threshold IoU with its object {iou:.2f}" in explorer.status
    assert f"{above.sum()} of {above.size} patches at 0.94 or more" in explorer.status
    assert len(traces(explorer, "above the threshold")) == (1 if above.any() else 0)
    assert len(traces(explorer, "object")) == 2, "on the map and on the picture"
    explorer._screen.controls.outlines.value = False
    assert not traces(explorer, "object")


def test_the_status_line_names_means_without_the_patch_itself(explorer, scenes):
    labels = explorer._session.grid().majority(scenes[0].instances).reshape(explorer.scores.shape)
    others = np.ones(labels.shape, bool)
    others[explorer.patch] = False
    own = (labels == labels[explorer.patch]) & others
    assert f"its object {explorer.scores[own].mean():.2f}" in explorer.status
    assert f"affinity to itself {explorer.scores[explorer.patch]:.2f}" in explorer.status


def test_the_highest_patches_are_numbered(explorer):
    explorer._screen.controls.top.value, explorer._screen.controls.apart.value = 3, 2
    mark = traces(explorer, "highest")[0]
    found = [(int(row), int(col)) for row, col in zip(mark.y, mark.x, strict=True)]
    away = [max(abs(row - explorer.patch[0]), abs(col - explorer.patch[1])) for row, col in found]
    assert len(found) == 3
    assert min(away) > 2
    values = [explorer.scores[place] for place in found]
    assert values == sorted(values, reverse=True)
    assert mark.text == ("1", "2", "3")


def test_hovering_names_the_object_and_names_are_only_text(backbones, probes, scenes):
    hostile = bk.Scene(HOSTILE, scenes[0].image, scenes[0].instances, scenes[0].classes)
    names = dict.fromkeys(range(20), HOSTILE)
    explorer = bk.AffinityExplorer(backbones[0], probes[backbones[0]], [hostile, photo(40, 50)], class_names=names)
    heat = traces(explorer)[0]
    assert heat.text.shape == explorer.scores.shape
    assert not any("<b" in name for name in heat.text.ravel())
    assert "%{text}" in heat.hovertemplate
    explorer.image = 1
    assert "%{text}" not in traces(explorer)[0].hovertemplate


def test_an_opened_picture_is_shown(explorer, probes):
    pixels = photo(60, 90, seed=8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    file = {"name": "mine.png", "type": "image/png", "size": 1, "content": memoryview(content.getvalue())}
    file["last_modified"] = datetime.now(UTC)
    explorer._screen.controls.upload.value = (file,)
    assert explorer.image == "mine.png"
    assert np.abs(explorer.scores - by_python(explorer, probes, pixels)).max() < 1e-3
    assert explorer._screen.controls.upload.value == ()
    explorer._screen.controls.upload.value = ({**file, "name": "broken.png", "content": memoryview(b"no picture")},)
    assert "broken.png" in explorer.message
    assert "damaged" in explorer.message
    assert explorer.image == "mine.png"
    choose(explorer, 0, 0)
    assert explorer.message == ""


def test_without_probes_the_rest_works_and_it_says_so(backbones, scenes):
    explorer = bk.AffinityExplorer(backbones[0], images=[scenes[0]])
    assert "no fitted probe" in explorer.message
    assert "cosine similarity" in explorer.message
    assert explorer.measure == "cosine"
    explorer.beside = ["attention", "pca"]
    explorer.layer = 0
    assert set(explorer.maps) == {"main", "attention", "pca"}
    assert "affinity" not in dict(explorer._screen.controls.measure.options).values()


def test_probes_that_do_not_fit_are_named_and_left_out(backbones, scenes, tmp_path):
    wide, deep = make_probe("quadratic", 7), make_probe("quadratic", backbones[0].d_model)
    wide.fitted_on, deep.fitted_on = {"layer": 1}, {"layer": 9}
    foreign = make_probe("linear", backbones[0].d_model)
    foreign.fitted_on = {"layer": 1, "weights_digest": "f" * 64, "backbone": "another"}
    good = probes_of(backbones[0], [1])[0]
    explorer = bk.AffinityExplorer(backbones[0], [wide, deep, foreign, good, tmp_path], [scenes[0]])
    for words in ("width 7", "layers 0 to 2", "another", "no fitted probe"):
        assert words in explorer.message
    assert explorer.measure == "affinity"
    assert explorer._screen.controls.layer.options == (1,)
    only_wrong = bk.AffinityExplorer(backbones[0], [wide], [scenes[0]])
    assert "width 7" in only_wrong.message
    assert only_wrong.measure == "cosine"


def test_probes_are_found_in_directories_by_kind(backbones, scenes, tmp_path):
    for kind in ("quadratic", "linear"):
        for layer in (0, 2):
            probe = make_probe(kind, backbones[0].d_model, seed=layer)
            probe.fitted_on = {
                "layer": layer,
                "backbone": backbones[0].name,
                "weights_digest": backbones[0].weights_digest,
            }
            save_probe(probe, tmp_path / kind / str(layer))
    explorer = bk.AffinityExplorer(backbones[0], tmp_path, [scenes[0]])
    assert [kind for _, kind in explorer._screen.controls.probe.options] == ["quadratic", "linear"]
    assert explorer._screen.controls.layer.options == (0, 2)
    explorer._screen.controls.probe.value = "linear"
    expected = bk.affinity(backbones[0], tmp_path / "linear" / str(explorer.layer), scenes[0])
    row, col = explorer.patch
    assert np.abs(explorer.scores - expected.of(row * expected.grid.cols + col)).max() < 1e-3
    (tmp_path / "linear" / "0" / "probe.safetensors").write_bytes(b"damaged")
    explorer.layer = 0
    assert explorer.message == "" or "fit the probe again" in explorer.message


@pytest.mark.parametrize("trouble", ["missing", "damaged", "endless", "none"])
def test_images_that_cannot_be_shown_leave_words_and_a_usable_widget(
    backbones, probes, scenes, tmp_path, trouble, monkeypatch
):
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG nothing")
    monkeypatch.chdir(tmp_path)  # a saved page lies where the kernel is
    bad = {
        "missing": [tmp_path / "nowhere.png"],
        "damaged": [tmp_path / "damaged.png"],
        "endless": [np.zeros((4, 60_000, 3), np.uint8)],
        "none": [],
    }[trouble]
    words = {"missing": "missing", "damaged": "damaged", "endless": "crop it", "none": "no image yet"}[trouble]
    explorer = bk.AffinityExplorer(backbones[0], probes[backbones[0]], [*bad, *([scenes[0]] if bad else [])])
    assert words in explorer.message
    with pytest.raises(InvalidParameterError, match=words):
        _ = explorer.scores
    choose(explorer, 0, 0)
    for key in ("]", "[", ",", "."):
        press(explorer, key)
    explorer._screen.controls.top.value = 3
    explorer._screen.controls.save["html"].click()
    assert words in explorer.message or bad
    content = io.BytesIO()
    Image.fromarray(photo(40, 40)).save(content, "PNG")
    explorer.add_image("good.png", content.getvalue())
    assert explorer.message == ""
    assert explorer.scores.shape == (4, 4)


def test_an_image_smaller_than_a_window_is_enlarged(backbones, probes):
    tiny = photo(9, 13)
    explorer = bk.AffinityExplorer(backbones[0], probes[backbones[0]], [tiny])
    assert explorer.message == ""
    assert np.abs(explorer.scores - by_python(explorer, {backbones[0]: probes[backbones[0]]}, tiny)).max() < 1e-3


def test_a_backbone_that_cannot_be_loaded_is_said(backbones, probes, scenes, tmp_path):
    explorer = bk.AffinityExplorer([backbones[0], str(tmp_path / "nothing")], probes[backbones[0]], [scenes[0]])
    assert explorer.message == ""
    explorer._screen.controls.backbone.value = 1
    assert "nothing" in explorer.message
    explorer._screen.controls.backbone.value = 0
    assert explorer.message == ""
    assert explorer.scores.shape[0] > 1


def test_a_fault_of_ours_is_logged_and_said(explorer, monkeypatch, caplog):
    monkeypatch.setattr(explorer._session.engine, "map", lambda *_: 1 / 0)
    choose(explorer, 0, 0)
    assert "ZeroDivisionError" in explorer.message
    assert "Traceback" in caplog.text


def test_what_is_set_in_python_raises(explorer):
    with pytest.raises(GeometryError, match="outside a grid"):
        explorer.patch = (0, 999)
    with pytest.raises(LayerError, match="layer 7"):
        explorer.layer = 7
    with pytest.raises(InvalidParameterError, match="no image 'x'"):
        explorer.image = "x"
    with pytest.raises(InvalidParameterError, match="backbone 5"):
        explorer.backbone = 5
    with pytest.raises(ProbeError, match="no softmax probe"):
        explorer.probe = "softmax"
    with pytest.raises(InvalidParameterError, match="measure 'heat'"):
        explorer.measure = "heat"
    with pytest.raises(InvalidParameterError, match="lock 'door'"):
        explorer.lock("door")
    with pytest.raises(InvalidParameterError, match=r"view\.gif"):
        explorer.save("view.gif")
    with pytest.raises(InvalidParameterError, match="images is a list"):
        bk.AffinityExplorer("random-init:vit", images=photo(8, 8))
    with pytest.raises(InvalidParameterError, match="at least one backbone"):
        bk.AffinityExplorer([])


def test_saving_writes_pictures_and_a_page(explorer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawn = []
    monkeypatch.setattr(
        "bindkit.views.explorer.widget.browser.draw", lambda figure, kind: drawn.append((figure, kind)) or b"drawn"
    )
    explorer.beside = ["pca"]
    assert explorer.save("a/view.svg").read_bytes() == b"drawn"
    figure, kind = drawn[0]
    assert kind == "svg"
    assert figure.data[0].z.shape == explorer.scores.shape
    assert any("Patch row" in note.text for note in figure.layout.annotations)
    explorer._screen.controls.name.value = "mine.html"
    explorer._screen.controls.save["html"].click()
    assert "Saved as mine.html" in explorer.message
    assert explorer._pad.good
    assert "<title>" in (tmp_path / "mine.html").read_text()
    monkeypatch.setattr("bindkit.views.explorer.widget.browser.draw", lambda figure, kind: None)
    explorer._screen.controls.save["png"].click()
    assert "Chromium" in explorer.message
    explorer._screen.controls.name.value = "a"
    Path("a.html").mkdir()
    explorer._screen.controls.save["html"].click()
    assert "is a directory" in explorer.message


def test_in_batch_runs_a_picture_stands_beside_the_widget(explorer, monkeypatch):
    picture = io.BytesIO()
    Image.new("RGB", (40, 30)).save(picture, "PNG")
    monkeypatch.setattr("bindkit.views.explorer.widget.browser.draw", lambda figure, kind: picture.getvalue())
    assert "image/jpeg" in explorer._repr_mimebundle_()
    monkeypatch.setenv("BINDKIT_PROGRESS", "auto")
    assert "image/jpeg" not in explorer._repr_mimebundle_()


def test_closing_frees_what_was_held(backbones, probes, scenes):
    explorer = bk.AffinityExplorer(backbones[0], probes[backbones[0]], [scenes[0]])
    assert explorer.n_bytes > 0
    explorer.close()
    assert explorer.n_bytes == 0
    assert explorer.figure.comm is None


def test_controls_without_a_model_have_no_attention(scenes):
    control = bk.load_control("raw-pixels", like=bk.load_backbone("random-init:vit"))
    explorer = bk.AffinityExplorer(control, images=[scenes[0]])
    explorer.measure = "attention"
    assert "no transformer" in explorer.message
    explorer.measure = "pca"
    assert explorer.scores.dtype == np.uint8


def test_a_page_loaded_anew_is_given_the_figure_as_it_is_now(explorer):
    explorer.patch = (2, 3)
    explorer.beside = ["cosine"]
    state = explorer.figure.get_state()
    heat = [trace for trace in state["_widget_data"] if trace["type"] == "heatmap" and trace["visible"]]
    assert [trace["name"] for trace in heat] == ["affinity", "cosine"]
    assert len(state["_widget_data"]) == len(explorer.figure.data)
    assert state["_widget_layout"]["xaxis2"]["domain"] == list(explorer.figure.layout.xaxis2.domain)
    assert np.abs(np.array(heat[0]["z"], float) - explorer.scores).max() < 1e-4
    assert set(explorer.figure.get_state("_widget_data")) == {"_widget_data"}


def test_where_nothing_can_be_shown_nothing_of_before_is_shown(explorer, backbones, probes, scenes, tmp_path):
    made = bk.AffinityExplorer(backbones[0], probes[backbones[0]], [scenes[0], tmp_path / "nowhere.png"])
    assert traces(made)
    made.image = 1
    assert "missing" in made.message
    assert not [trace for trace in made.figure.data if trace.visible]
    made.image = 0
    assert traces(made)


def test_a_probe_that_fails_leaves_a_usable_widget(backbones, probes, scenes, caplog):
    class Broken(type(probes[backbones[0]][0])):
        def pairwise(self, x, y):
            raise RuntimeError("no such luck")

    broken = Broken(backbones[0].d_model)
    broken.fitted_on = {"layer": 1}
    explorer = bk.AffinityExplorer(backbones[0], [broken, make_probe("linear", backbones[0].d_model)], [scenes[0]])
    assert "no such luck" in explorer.message
    assert "Traceback" in caplog.text
    assert explorer._screen.controls.measure.value == "affinity"
    explorer.probe = "linear"
    assert explorer.message == ""
    assert explorer.scores.ndim == 2


def test_loading_is_told_and_what_cannot_be_loaded_is_tried_once(backbones, probes, scenes, monkeypatch):
    tried, told = [], []

    def load(name):
        tried.append(name)
        raise BackboneError(f"{name} is not to be had")

    monkeypatch.setattr("bindkit.backbones.load_backbone", load)
    explorer = bk.AffinityExplorer([backbones[0], "no/such-model"], probes[backbones[0]], [scenes[0]])
    explorer._pad.observe(lambda event: told.append(event["new"]), "busy")
    explorer._screen.controls.backbone.value = 1
    assert told[:2] == ["loading no/such-model", ""]
    explorer._screen.controls.colours.value = "magma"
    assert "not to be had" in explorer.message
    assert len(tried) == 1
    explorer._screen.controls.backbone.value = 0
    assert explorer.message == ""
    explorer._screen.controls.backbone.value = 1
    assert len(tried) == 2, "chosen anew it is tried again"


def test_the_first_picture_opens_at_the_best_layer(backbones):
    fitted = probes_of(backbones[0], [0, 1, 2])
    for probe, accuracy in zip(fitted, (0.6, 0.9, 0.7), strict=True):
        probe.fitted_on |= {"validation_accuracy": accuracy, "metrics": {"twins_auroc": 0.5}}
    explorer = bk.AffinityExplorer(backbones[0], fitted)
    content = io.BytesIO()
    Image.fromarray(photo(40, 40)).save(content, "PNG")
    press(explorer, ",")
    explorer.add_image("first.png", content.getvalue())
    assert (explorer.image, explorer.layer) == ("first.png", 1)
    explorer.layer = 2
    explorer.add_image("second.png", content.getvalue())
    assert (explorer.image, explorer.layer) == ("second.png", 2)


def test_names_stand_in_hover_as_they_are(backbones, probes, scenes):
    names = dict.fromkeys(scenes.class_names, "a \"b\" & <c> 'd'")
    explorer = bk.AffinityExplorer(backbones[0], probes[backbones[0]], [scenes[0]], class_names=names)
    assert any("a \"b\" &amp; &lt;c&gt; 'd'" in words for words in traces(explorer)[0].text.ravel())


def test_explorers_share_memory(backbones, probes, scenes):
    first = bk.AffinityExplorer(backbones[0], probes[backbones[0]], [scenes[0]])
    before = first.scores
    second = bk.AffinityExplorer(backbones[1], probes[backbones[1]], [scenes[0]], memory=first.n_bytes)
    assert (
        0 < second.n_bytes <= second.n_bytes + first.n_bytes <= max(second.n_bytes, second._session.engine.store.limit)
    )
    assert np.array_equal(first.scores, before)
    first.patch = first.patch[0], (first.patch[1] + 1) % first.scores.shape[1]
    assert first.message == ""


def test_a_picture_too_large_to_be_sent_is_named(explorer):
    explorer._pad._handle_custom_msg({"refused": "huge.png", "bytes": 17_300_000}, [])
    assert "huge.png has 17 MB" in explorer.message
    assert "images=[path]" in explorer.message


def test_a_saved_page_opens_as_the_view_is(explorer, tmp_path):
    explorer.layer, explorer.patch, explorer.threshold = 2, (1, 3), 0.3
    explorer._screen.controls.colours.value = "magma"
    page = explorer.save(tmp_path / "view.html").read_text()
    for words in ('"layer":2', '"patch":"1,3"', '"threshold":0.3', '"colours":"magma"'):
        assert words in page.replace(": ", ":")
    with pytest.raises(InvalidParameterError, match="start says page"):
        bk.export_viewer(tmp_path / "other.html", explorer._session.backbones[0].source, [], start={"page": 1})
