"""Figures show what the table says, and are saved whole, small and readable without a network."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from PIL import Image

from bindkit.errors import InvalidParameterError
from bindkit.scenes import Scene
from bindkit.scenes.geometry import WindowGeometry, label_patches
from bindkit.views.figures import layer_curves, probe_curves, save_figure, scene_figure, scene_table, training_curves
from bindkit.views.figures import saving as saving_module
from bindkit.views.figures.saving import INLINE_PICTURE_BYTES, compact
from bindkit.views.figures.style import PALETTE


class DrawnElsewhere:
    """In place of Chromium: a picture made by Pillow."""

    def draw(self, figure, kind="png"):
        noise = 80 * np.random.default_rng(0).integers(0, 4, (920, 1720, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(noise).save(out, "PNG")
        return out.getvalue()


@pytest.fixture
def picture(monkeypatch):
    monkeypatch.setattr(saving_module, "browser", DrawnElsewhere())


@pytest.fixture
def no_browser(monkeypatch):
    monkeypatch.setattr(saving_module, "browser", type("None", (), {"draw": lambda self, figure, kind="png": None})())


@pytest.fixture
def results():
    rows = []
    for backbone, probe, layer, seed, accuracy in [
        ("vit", "quadratic", 0, 0, 0.70),
        ("vit", "quadratic", 0, 1, 0.80),
        ("vit", "quadratic", 3, 0, 0.90),
        ("vit", "linear", 0, 0, 0.60),
        ("dino", "quadratic", 0, 0, 0.50),
        ("control:raw-pixels", "quadratic", None, 0, 0.66),
    ]:
        low, high = accuracy - 0.1, accuracy + 0.05
        rows.append((backbone, probe, layer, seed, accuracy, low, high, accuracy - 0.2, 0.65, "strict", "test"))
    names = ["backbone", "probe", "layer", "seed", "accuracy", "accuracy_low", "accuracy_high", "twins_auroc"]
    table = pd.DataFrame(rows, columns=[*names, "majority_accuracy", "protocol", "split"])
    objectives = {"vit": "supervised", "dino": "self-supervised", "control:raw-pixels": "control"}
    return table.assign(objective=table["backbone"].map(objectives))


def line(figure, name):
    return next(trace for trace in figure.data if trace.name == name)


def ends(figure, name):
    """Where the whiskers of a line stand: layer, lower end, middle, upper end."""
    (bars,) = [trace for trace in figure.data if trace.name == f"{name}, 95 % interval"]
    (x,), (y,) = bars.x, bars.y
    return x, y - bars.error_y.arrayminus[0], y, y + bars.error_y.array[0]


@pytest.mark.parametrize(("column", "other"), [("protocol", "paper"), ("split", "train")])
def test_figures_that_are_not_comparable_are_not_averaged(results, column, other):
    mixed = pd.concat([results, results.assign(**{column: other})])
    with pytest.raises(InvalidParameterError, match=f"line of vit has several kinds of {column}"):
        layer_curves(mixed)
    with pytest.raises(InvalidParameterError, match=f"line of quadratic has several kinds of {column}"):
        probe_curves(mixed, "vit")


def test_layer_curves_draw_means_over_seeds_with_whiskers_and_baseline(results):
    figure = layer_curves(results)
    vit = line(figure, "vit")
    assert list(vit.x) == [0, 3]
    np.testing.assert_allclose(vit.y, [0.75, 0.90])
    assert ends(figure, "vit") == pytest.approx((3, 0.80, 0.90, 0.95))
    assert set(line(figure, "majority class").y) == {0.65}
    assert line(figure, "majority class").line.dash == "dash"
    assert set(line(figure, "raw pixels").y) == {0.66}
    assert line(figure, "raw pixels").line.dash not in ("solid", "dash")
    assert "strict protocol" in figure.layout.title.subtitle.text
    assert "layer" in figure.layout.xaxis.title.text


def test_lines_without_a_model_recede_and_have_a_legend_of_their_own(results):
    more = [("position", 0.64), ("position+raw-pixels", 0.68)]
    rows = [results.iloc[[5]].assign(backbone=f"control:{kind}", accuracy=accuracy) for kind, accuracy in more]
    twins = results.iloc[:3].assign(objective="random-init")
    rows += [twins.assign(backbone="random-init:vit"), twins.assign(backbone="random-init:deit")]
    figure = layer_curves(pd.concat([results, *rows]))
    aside = [trace for trace in figure.data if trace.legend == "legend2"]
    assert [trace.name for trace in aside] == [
        "raw pixels",
        "position",
        "position + raw pixels",
        "majority class",
    ]
    assert len({trace.line.dash for trace in aside}) == 4
    greys = {trace.line.color for trace in aside} | {line(figure, "random-init:deit").line.color}
    assert not greys & set(PALETTE)
    assert line(figure, "random-init:vit").line.color == line(figure, "vit").line.color
    assert line(figure, "random-init:vit").line.dash != line(figure, "vit").line.dash == "solid"
    assert not any("random-init" in trace.name for trace in figure.data if "interval" in trace.name)
    # Models are drawn over them, whiskers between.
    order = [["lines", "markers", "lines+markers"].index(trace.mode) for trace in figure.data]
    assert order == sorted(order)
    assert set(order) == {0, 1, 2}


def test_untrained_backbones_have_colours_where_they_are_all_there_is(results):
    untrained = results[results["layer"].notna()].assign(objective="random-init")
    figure = layer_curves(untrained)
    assert [line(figure, name).line.color for name in ("vit", "dino")] == list(PALETTE[:2])
    assert all(trace.legend is None for trace in figure.data)


def test_controls_of_two_geometries_are_told_apart(results):
    kinds = [f"control:position@{geometry}" for geometry in ("112/8", "592-224/16")]
    figure = layer_curves(pd.concat([results, *(results.iloc[[5]].assign(backbone=kind) for kind in kinds)]))
    first, second = (line(figure, f"position at {geometry}").line for geometry in ("112/8", "592-224/16"))
    assert (first.color, first.dash) != (second.color, second.dash)


def test_a_controls_own_probes_are_levels(results):
    figure = probe_curves(results, "control:raw-pixels")
    assert set(line(figure, "quadratic").y) == {0.66}


@pytest.mark.parametrize("metric", ["accuracy", "auroc", "twins_auroc"])
def test_whiskers_are_the_metrics_own_at_the_layer_that_validation_chose(results, metric):
    """Of dino and vit, both best at layer 0 on the validation scenes, vit's line being highest at layer 3."""
    validated = results.assign(validation_accuracy=[0.9, 0.9, 0.8, 0.9, 0.9, 0.9], auroc=0.8, twins_auroc=0.7)
    bounds = {f"{metric}_{end}": validated[metric] + by for end, by in (("low", -0.04), ("high", 0.02))}
    figure = layer_curves(validated.assign(**bounds), metric)
    mean = validated[metric][:2].mean()
    x, *shown = ends(figure, "vit")
    assert shown == pytest.approx([mean - 0.04, mean, mean + 0.02])
    other, *_ = ends(figure, "dino")
    assert x != other, "side by side"
    assert max(abs(x), abs(other)) < 0.1
    assert figure.layout.yaxis.range[0] < validated[metric][4] - 0.04
    assert "at the best layer, chosen on the validation scenes" in figure.layout.title.subtitle.text
    assert not any("interval" in trace.name for trace in layer_curves(validated, "auroc").data)
    assert ends(probe_curves(validated.assign(**bounds), "vit", metric), "linear")[0] == pytest.approx(0, abs=0.1)


def test_other_metrics_have_their_own_baseline_and_no_interval_of_the_accuracy(results):
    figure = layer_curves(results, metric="twins_auroc")
    assert set(line(figure, "chance").y) == {0.5}
    assert not any("interval" in (trace.name or "") for trace in figure.data)


def test_backbones_with_different_baselines_get_each_their_own(results):
    results.loc[results["backbone"] == "dino", "majority_accuracy"] = 0.8
    names = [trace.name for trace in layer_curves(results).data]
    assert "majority class, vit" in names
    assert "majority class, dino" in names


def test_probe_curves_draw_the_probes_of_one_backbone(results):
    figure = probe_curves(results, "vit")
    np.testing.assert_allclose(line(figure, "linear").y, [0.60])
    assert [trace.name for trace in figure.data if trace.mode != "markers"][-1] == "majority class", "named last"
    assert "dino" not in [trace.name for trace in figure.data]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda table: layer_curves(table, metric="accurcy"), "unknown metric 'accurcy'"),
        (lambda table: layer_curves(table, probe="cubic"), "no probe 'cubic'; it has quadratic, linear"),
        (lambda table: probe_curves(table, "clip"), "no backbone 'clip'; it has vit"),
        (lambda table: layer_curves(table.drop(columns="layer")), "lacks the columns layer"),
        (lambda table: layer_curves(table.assign(accuracy=np.nan)), "no accuracy"),
        (lambda table: training_curves([]), "at least one epoch"),
    ],
)
def test_what_cannot_be_drawn_is_named(results, call, message):
    with pytest.raises(InvalidParameterError, match=message):
        call(results)


def test_training_curves_leave_out_what_was_not_measured():
    history = [
        {"epoch": epoch, "train_loss": 1 / (epoch + 1), "validation_loss": None, "validation_accuracy": None}
        for epoch in range(3)
    ]
    figure = training_curves(history)
    assert [trace.name for trace in figure.data] == ["training loss"]
    np.testing.assert_allclose(figure.data[0].y, [1, 1 / 2, 1 / 3])


def test_training_curves_begin_at_no_epoch():
    """A fit from a closed-form initialisation was looked at before the first, which its history calls -1."""
    rows = [{"epoch": k, "train_loss": None if k < 0 else 0.5, "validation_accuracy": 0.8} for k in range(-1, 3)]
    figure = training_curves(rows)
    assert [list(trace.x) for trace in figure.data] == [[0, 1, 2, 3]] * 2
    assert figure.layout.xaxis.range[0] == pytest.approx(0, abs=0.1)


def test_figures_call_models_of_directories_by_their_last_parts(results):
    figure = layer_curves(results.replace("vit", "/home/me/runs/vit"))
    assert "runs/vit" in {trace.name for trace in figure.data}
    assert "/home" not in figure.to_json().replace('"legendgroup":"/home', "")


@pytest.fixture
def scene():
    instances = np.zeros((16, 24), np.int32)
    instances[0:8, 0:8], instances[8:16, 8:16], instances[0:8, 16:20] = 3, 5, 9
    classes = np.where(instances == 9, 2, np.where(instances > 0, 7, 0)).astype(np.int32)
    return Scene("one", np.full((16, 24, 3), 128, np.uint8), instances, classes)


def test_scene_table_counts_pixels_patches_and_twins(scene):
    labels = label_patches(scene, WindowGeometry(16, 16, 8))  # two windows that overlap by 8 pixels
    table = scene_table(scene, {7: "cup"}, labels)
    assert table["object"].tolist() == [3, 5, 9]
    assert table["name"].tolist() == ["cup", "cup", "class 2"]
    assert table["twins"].tolist() == ["A", "A", ""]
    assert table["pixels"].tolist() == [64, 64, 32]
    assert table["patches"].tolist()[:2] == [1, 2]  # the middle column lies in both windows


def test_scene_figure_paints_each_patch_in_its_objects_colour(scene):
    labels = label_patches(scene, WindowGeometry(16, 16, 8))
    figure = scene_figure(scene, {7: "cup"}, labels)
    pictures = [trace for trace in figure.data if trace.type == "image"]
    painted = Image.open(io.BytesIO(base64.b64decode(pictures[2].source.split(",")[1]))).convert("RGB")
    scale = painted.width / 24

    def at(row, col):
        return painted.getpixel((int(col * scale), int(row * scale)))

    colours = [tuple(int(code[start : start + 2], 16) for start in (1, 3, 5)) for code in PALETTE]
    assert at(3, 3) == colours[0]
    assert at(11, 11) == colours[1]
    assert at(11, 3) == (236, 238, 240)  # unlabelled
    # the panel's corners are the image's corners, whatever the picture's own size
    assert pictures[2].x0 - pictures[2].dx / 2 == pytest.approx(-0.5)
    assert painted.width * pictures[2].dx == pytest.approx(24)
    marks = [trace for trace in figure.data if trace.type == "scatter"]
    assert list(marks[0].text) == ["<b>A</b>", "<b>A</b>", "<b></b>"]
    assert "object 3: cup" in marks[0].hovertext[0]


def test_a_scene_without_objects_is_drawn(scene):
    empty = Scene("empty", scene.image, np.zeros_like(scene.instances), np.zeros_like(scene.classes))
    figure = scene_figure(empty, {}, label_patches(empty, WindowGeometry(16, 16, 8)))
    assert "no two objects" in figure.layout.title.subtitle.text


def test_a_figure_is_saved_as_page_table_and_picture(tmp_path, results, picture):
    saved = save_figure(layer_curves(results), "accuracy_by_layer", tmp_path / "figures")
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "accuracy_by_layer.csv",
        "accuracy_by_layer.html",
        "accuracy_by_layer.png",
        "plotly.min.js",
    ]
    page = saved.html.read_text()
    assert '<script charset="utf-8" src="plotly.min.js"></script>' in page or 'src="plotly.min.js"' in page
    assert "https://cdn" not in page
    assert len(page) < 100_000
    table = pd.read_csv(saved.csv)
    np.testing.assert_allclose(table[table["trace"] == "vit"]["y"], [0.75, 0.90])
    assert not table["trace"].str.contains("interval").any()


def test_a_given_table_is_saved_as_it_is_and_pages_are_reproducible(tmp_path, results, picture):
    first = save_figure(layer_curves(results), "one", tmp_path, data=results)
    page = first.html.read_bytes()
    pd.testing.assert_frame_equal(pd.read_csv(first.csv), results)
    assert save_figure(layer_curves(results), "one", tmp_path, data=results).html.read_bytes() == page


def test_an_outdated_library_is_replaced(tmp_path, results, picture):
    (tmp_path / "plotly.min.js").write_text("of long ago")
    save_figure(layer_curves(results), "one", tmp_path)
    assert (tmp_path / "plotly.min.js").stat().st_size > 1_000_000


def test_without_a_browser_everything_but_the_picture_is_saved(tmp_path, results, no_browser):
    (tmp_path / "one.png").write_bytes(b"an earlier one")
    saved = save_figure(layer_curves(results), "one", tmp_path)
    assert saved.png is None
    assert not (tmp_path / "one.png").exists()
    assert saved.html.exists()
    assert "application/vnd.plotly.v1+json" in saved._repr_mimebundle_()[0]


def test_a_missing_browser_is_said_once_and_never_raises(monkeypatch, caplog):
    from bindkit.views.figures.saving import PictureBrowser

    monkeypatch.setenv("BROWSER_PATH", "/nonexistent/chromium")
    caplog.set_level("INFO", logger="bindkit")
    browser = PictureBrowser()
    assert browser.draw(go.Figure()) is None
    assert browser.draw(go.Figure()) is None
    said = [record.getMessage() for record in caplog.records if record.name.startswith("bindkit")]
    assert len(said) == 1
    assert "BROWSER_PATH" in said[0]


def test_a_notebook_shows_a_small_picture_and_small_figures_alive(tmp_path, results, picture):
    bundle = save_figure(layer_curves(results), "one", tmp_path)._repr_mimebundle_()[0]
    shown = Image.open(io.BytesIO(base64.b64decode(bundle["image/jpeg"])))
    assert shown.size == (860, 460)  # the noise does not fit in full size
    assert len(json.dumps(bundle["application/vnd.plotly.v1+json"])) < 60_000
    large = go.Figure(go.Scatter(x=list(range(20_000)), y=list(range(20_000))))
    assert "application/vnd.plotly.v1+json" not in save_figure(large, "two", tmp_path)._repr_mimebundle_()[0]


@pytest.mark.parametrize("name", ["", "a/b", "../up", "a b"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path, name):
    with pytest.raises(InvalidParameterError, match="file name"):
        save_figure(go.Figure(), name, tmp_path)


@pytest.mark.browser
def test_chromium_draws_pictures(tmp_path, results, chromium, monkeypatch):
    from bindkit.views.figures.saving import PictureBrowser

    monkeypatch.setenv("BROWSER_PATH", chromium)
    browser = PictureBrowser()
    try:
        picture = Image.open(io.BytesIO(browser.draw(layer_curves(results))))
    finally:
        browser.close()
    assert picture.size == (2 * 860, 2 * 460)
    blue = tuple(int(PALETTE[0][start : start + 2], 16) for start in (1, 3, 5))
    assert blue in {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}


@pytest.mark.browser
def test_a_figure_is_saved_as_pdf_on_white(tmp_path, results, chromium, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", chromium)
    monkeypatch.setattr(saving_module, "browser", browser := saving_module.PictureBrowser())
    try:
        saved = save_figure(layer_curves(results), "one", tmp_path)
        assert saved.save(tmp_path / "one.pdf").read_bytes().startswith(b"%PDF")
        assert "rgb(243, 244, 246)" not in saved.save(tmp_path / "one.svg").read_text()
    finally:
        browser.close()


def test_what_a_figure_cannot_be_saved_as_is_named(tmp_path, results, no_browser):
    saved = save_figure(layer_curves(results), "one", tmp_path)
    with pytest.raises(InvalidParameterError, match=r"saved as \.pdf, \.svg or \.png, got 'one\.docx'"):
        saved.save(tmp_path / "one.docx")
    with pytest.raises(InvalidParameterError, match="without Chromium"):
        saved.save(tmp_path / "one.pdf")


@pytest.mark.parametrize(("metric", "said"), [("twins_auroc", "no same-class distractors"), ("auroc", "one answer")])
def test_a_table_without_a_figure_gives_a_panel_that_says_why(results, metric, said):
    figure = layer_curves(results.assign(**{metric: float("nan")}), metric)
    (note,) = figure.layout.annotations
    assert "nothing to draw" in note.text
    assert said in note.text


def test_a_picture_of_much_small_print_is_drawn_coarser_for_a_notebook():
    """As large as the table of six models and five others: nothing may make a notebook of five pictures too large."""
    rng = np.random.default_rng(0)
    page = np.full((1100, 2040, 3), 255, dtype=np.uint8)
    for _ in range(1500):
        row, col = rng.integers(0, 1080), rng.integers(0, 2000)
        page[row : row + 14, col : col + 2] = rng.integers(0, 200, 3)
    out = io.BytesIO()
    Image.fromarray(page).save(out, "PNG")
    half, plain = io.BytesIO(), Image.fromarray(page).resize((1020, 550), Image.Resampling.LANCZOS)
    plain.save(half, "JPEG", quality=76, optimize=True, progressive=True)
    assert len(half.getvalue()) > INLINE_PICTURE_BYTES
    small = compact(out.getvalue())
    assert len(small) < 0.88 * len(half.getvalue())
    assert Image.open(io.BytesIO(small)).size == (1020, 550)
