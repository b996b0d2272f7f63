"""What the explorer shows at first sight: where it opens, the picture, scales of their own, thresholds, photos."""

from __future__ import annotations

import numpy as np
import pytest
from test_explorer import backbones, probes, scenes, traces  # noqa: F401
from viewer_pages import photo, probes_of

import bindkit as bk
from bindkit.probes import make_probe, save_probe


def words_of(explorer):
    return [note.text for note in explorer.figure.layout.annotations]


def told(probe, backbone, layer, twins, accuracy, scenes="folder:photos"):  # noqa: F811
    probe.fitted_on |= {"backbone": backbone, "layer": layer, "validation_accuracy": accuracy, "scenes": scenes}
    probe.fitted_on["metrics"] = {"twins_auroc": twins, "auroc": 0.9}
    return probe


def test_it_opens_at_the_best_layer_of_the_backbone_that_tells_twins_apart_best(backbones, scenes, tmp_path):  # noqa: F811
    """From the directory, before any model is loaded; the best layer is that of the validation scenes."""
    figures = {0: [(0, 0.6, 0.8), (1, 0.95, 0.7), (2, 0.5, 0.6)], 1: [(0, 0.4, 0.6), (1, 0.5, 0.7), (2, 0.7, 0.9)]}
    for number, rows in figures.items():
        name = backbones[number].name
        for probe, (layer, twins, accuracy) in zip(probes_of(backbones[number], [0, 1, 2]), rows, strict=True):
            save_probe(told(probe, name, layer, twins, accuracy), tmp_path / str(number) / str(layer))
    explorer = bk.AffinityExplorer([backbone.name for backbone in backbones], tmp_path, [scenes[0]])
    assert (explorer.backbone, explorer.layer) == (explorer._session.backbones[1].title, 2)
    assert "source" not in vars(explorer._session.backbones[0]), "the other one was not loaded for it"
    assert "its object" in explorer.status, "the picture opens at an object"


def test_the_best_backbone_is_judged_by_the_kind_that_is_shown(backbones, scenes, tmp_path):  # noqa: F811
    """The most capable, not the one that was fitted at most layers."""
    shown = {0: ([(1, 0.95)], [(0, 0.5), (1, 0.5), (2, 0.5)]), 1: ([(1, 0.8)], [(0, 0.6), (1, 0.6), (2, 0.6)])}
    for number, rows in shown.items():
        backbone = backbones[number]
        for kind, of_kind in zip(("quadratic", "linear"), rows, strict=True):
            for layer, twins in of_kind:
                probe = told(make_probe(kind, backbone.d_model, seed=0), backbone.name, layer, twins, 0.7)
                save_probe(probe, tmp_path / str(number) / f"{kind}{layer}")
    explorer = bk.AffinityExplorer(list(backbones), tmp_path, [scenes[0]])
    assert (explorer.backbone, explorer.probe) == (explorer._session.backbones[0].title, "quadratic")


def test_what_goes_wrong_is_said_once(backbones, scenes):  # noqa: F811
    """Picture and map look through one model."""
    explorer = bk.AffinityExplorer("no/such-model", images=[scenes[0]])
    assert len(explorer._session.problems) == len(set(explorer._session.problems)) > 0


def test_where_nothing_says_which_is_best_the_first_backbone_opens(backbones, scenes):  # noqa: F811
    explorer = bk.AffinityExplorer(list(backbones), images=[scenes[0]])
    assert explorer.backbone == explorer._session.backbones[0].title


def test_the_clean_picture_stands_beside_the_map_and_is_clicked_as_well(backbones, probes, scenes):  # noqa: F811
    explorer = bk.AffinityExplorer(backbones[0], probes[backbones[0]], [scenes[0]])
    assert list(explorer.maps) == ["main"]
    assert explorer.beside == ("picture",)
    main, clean = [image for image in explorer.figure.layout.images if image.name == "photo"]
    assert (main.xref, clean.xref) == ("x", "x2")
    assert main.source != clean.source, "under colours it is grey, beside them as it is"
    (plain,) = traces(explorer, "picture")
    assert plain.opacity == 0
    assert [trace.xaxis for trace in traces(explorer, "object")] == ["x", "x2"], "the true object is outlined on both"
    rows, cols = explorer.scores.shape
    explorer._pad._handle_custom_msg({"panel": 2, "down": 1.5 / rows, "across": 2.5 / cols}, [])
    assert explorer.patch == (1, 2)
    assert explorer._pad.answers[0]["panels"] == [1, 2]
    marked = [explorer.figure.data[at] for at in explorer._pad.answers[0]["marks"]]
    assert sorted(trace.xaxis for trace in marked) == ["x", "x", "x2", "x2"], "the browser moves the mark on both"
    explorer.beside = []
    assert not traces(explorer, "picture")
    assert len(explorer._pad.answers[0]["marks"]) == 2, "no mark moves on a picture that is not there"


def test_every_map_states_the_range_of_its_own_scale(backbones, probes, scenes):  # noqa: F811
    explorer = bk.AffinityExplorer(backbones[0], probes[backbones[0]], [scenes[0]])
    explorer.beside = ["cosine"]
    low = explorer.maps["cosine"].min()
    assert {"0.00", "1.00"} <= set(words_of(explorer)), "affinity"
    assert {f"{low:.3f}", "1.000"} <= set(words_of(explorer)), "a stretched cosine map"
    bars = [image for image in explorer.figure.layout.images if image.name == "scale"]
    assert [bar.xref for bar in bars] == ["x domain", "x2 domain"]


def test_a_threshold_is_in_the_units_of_the_map_that_it_judges(backbones, probes, scenes):  # noqa: F811
    explorer = bk.AffinityExplorer(backbones[0], probes[backbones[0]], [scenes[0]])
    explorer.measure = "cosine"
    low = float(explorer.scores.min())
    assert explorer.threshold == pytest.approx((low + 1) / 2), "the middle of the map's own scale"
    controls = explorer._screen.controls
    assert controls.limit.value == f"{(low + 1) / 2:.3f}"
    above = explorer.scores >= explorer.threshold
    assert f"{above.sum()} of {above.size} patches at {explorer.threshold:.3f} or more" in explorer.status
    controls.threshold.value = 0.25
    assert explorer.threshold == pytest.approx(low + 0.25 * (1 - low))
    explorer.threshold = 0.5 * low + 0.5
    assert controls.threshold.value == pytest.approx(0.5)
    explorer.threshold = -3
    assert explorer.threshold == pytest.approx(low)
    explorer.measure = "affinity"
    explorer.threshold = 0.4
    assert (controls.threshold.value, controls.limit.value, explorer.threshold) == (0.4, "0.40", 0.4)
    explorer.measure = "pca"
    assert controls.threshold.disabled and controls.limit.value == ""


def test_a_threshold_that_outlines_nearly_all_is_off(backbones, probes, scenes):  # noqa: F811
    explorer = bk.AffinityExplorer(backbones[0], probes[backbones[0]], [scenes[0]])
    n = explorer.scores.size
    in_order = np.sort(explorer.scores.ravel())
    for below, outlined in ((n // 10 + 1, True), (n // 20, False)):
        explorer.threshold = float(np.nextafter(in_order[below - 1], 2)) if below else 0
        assert (explorer.scores >= explorer.threshold).sum() == n - below
        assert bool(traces(explorer, "above the threshold")) == outlined
        assert ("nearly all" in explorer.status) != outlined
        assert ("threshold IoU" in explorer.status) == outlined
        assert any("nearly all" in words for words in words_of(explorer)) != outlined


@pytest.mark.parametrize(("fitted", "warned"), [("synthetic:n=400,seed=0", True), ("folder:photos", False)])
def test_of_a_photo_it_says_what_a_probe_of_synthetic_scenes_is_worth(backbones, scenes, fitted, warned):  # noqa: F811
    given = [
        told(probe, backbones[0].name, k, 0.9, 0.8, fitted) for k, probe in enumerate(probes_of(backbones[0], [0]))
    ]
    explorer = bk.AffinityExplorer(backbones[0], given, [scenes[0], photo(64, 150)])
    note = "a probe fitted on synthetic scenes says little of photos"
    assert note not in explorer.status
    assert "affinity to itself" in explorer.status
    explorer.image = 1
    assert "to itself" not in explorer.status
    assert (note in explorer.status) == warned
    explorer.measure = "cosine"
    assert note not in explorer.status, "no probe is asked"


def test_what_saving_says_stands_beside_its_buttons(backbones, probes, scenes, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    explorer = bk.AffinityExplorer(backbones[0], probes[backbones[0]], [scenes[0]])
    said = []
    explorer._pad.observe(lambda event: said.append((event["new"], explorer._pad.beside)), "busy")
    explorer._screen.controls.save["html"].click()
    assert said == [("saving", "save"), ("", "save")]
    assert (explorer.message, explorer._pad.beside) == ("Saved as view.html", "save")
    (tmp_path / "a.html").mkdir()
    explorer._screen.controls.name.value = "a"
    explorer._screen.controls.save["html"].click()
    assert "is a directory" in explorer.message and explorer._pad.beside == "save"
    explorer.patch = 0, 0
    assert explorer._pad.beside == "", "what comes later stands below the maps"


def test_a_probe_is_chosen_only_where_there_are_several(backbones, probes, scenes):  # noqa: F811
    explorer = bk.AffinityExplorer(backbones[0], probes[backbones[0]], [scenes[0]])
    assert explorer._screen.controls.probe.layout.display == "none"
    both = [*probes[backbones[0]], make_probe("linear", backbones[0].d_model)]
    assert bk.AffinityExplorer(backbones[0], both, [scenes[0]])._screen.controls.probe.layout.display is None


def test_maps_are_as_large_as_the_screen_lets_them_be(backbones, probes, scenes):  # noqa: F811
    explorer = bk.AffinityExplorer(backbones[0], probes[backbones[0]], [scenes[0]])
    sizes = []
    for width, height in ((950, 560), (1420, 740), (600, 380), (360, 380)):
        explorer._pad._handle_custom_msg({"width": width, "height": height}, [])
        layout = explorer.figure.layout
        assert layout.width <= width
        wide = [(axis.domain[1] - axis.domain[0]) * layout.width for axis in (layout.xaxis, layout.xaxis2)]
        assert wide[0] == pytest.approx(wide[1])
        sizes.append(wide[0])
        if width > 360:
            assert layout.height <= height
    assert sizes[0] > 400 and sizes[1] > 600 and sizes[2] > 280
    assert sizes[3] >= 170, "where there is no room at all it is scrolled"
