"""The explorer in a real JupyterLab: after clicks, keys, sliders and uploads it shows what Python computes."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bindkit as bk

sys.path.append(str(Path(__file__).parent))

import tiny_models
from lab_session import change_theme, lab_server, open_notebook, write_notebook
from viewer_pages import photo, probes_of

from bindkit.probes import save_probe

pytestmark = pytest.mark.browser

SHOWN = 1e-3
"""The explorer's tolerance, and the rounding of what a figure is sent."""

CELL = """
import bindkit as bk
scenes = bk.open_scenes("synthetic:n=3,seed=0,twins=1")
explorer = bk.AffinityExplorer({backbones!r}, {probes!r}, [scenes[0], scenes[1]], class_names=scenes.class_names)
explorer.beside = []  # the picture: see test_explorer_screens.py
explorer
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two backbones with probes on disk, and the scenes that the notebook opens too."""
    root = tmp_path_factory.mktemp("explorer")
    names = ["random-init:vit", str(tiny_models.write_checkpoint("dinov2", root / "tiny"))]
    backbones = [bk.load_backbone(name) for name in names]
    probes = []
    for backbone, layers in zip(backbones, ([0, 2, 5], [0, 1, 2]), strict=True):
        probes.append(dict(zip(layers, probes_of(backbone, layers), strict=True)))
        for layer, probe in probes[-1].items():
            probe.fitted_on |= {"backbone": backbone.name, "weights_digest": backbone.weights_digest}
            save_probe(probe, root / "probes" / Path(backbone.name).name.replace(":", "-") / str(layer))
    return root, names, backbones, probes, bk.open_scenes("synthetic:n=3,seed=0,twins=1")


@pytest.fixture(scope="module")
def page(made, chromium):
    from playwright.sync_api import sync_playwright

    root, names, *_ = made
    with lab_server(root) as server, sync_playwright() as playwright:
        write_notebook(
            root, "explore.ipynb", [CELL.format(backbones=names, probes=str(root / "probes")).strip(), "7 * 6"]
        )
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1360, "height": 1000})
        opened.set_default_timeout(20_000)
        open_notebook(opened, server, "explore.ipynb")
        for part in opened.locator(".bindkit-fold > button").all():
            part.click()
        yield opened
        browser.close()


def values(page, panel=1):
    """Numbers of a map as the page holds them."""
    return np.array(
        page.evaluate(
            "(axis) => document.querySelector('.bindkit-explorer .js-plotly-plot').data"
            ".find((t) => t.type === 'heatmap' && t.visible && (t.xaxis ?? 'x') === axis).z",
            "x" if panel == 1 else f"x{panel}",
        )
    )


def until_said(page, words):
    """Wait until the status line holds these words."""
    line = "document.querySelector('.bindkit-pad .status').textContent"
    page.wait_for_function(f"(words) => {line}.includes(words)", arg=words)


def until(page, expected, panel=1):
    """Wait until a map holds these numbers, and say how far it is from them at the end."""
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        found = values(page, panel)
        if found.shape == expected.shape and np.abs(found - expected).max() < SHOWN:
            return
        page.wait_for_timeout(50)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < SHOWN


def until_maps(page, how_many):
    """Wait until so many maps can be clicked, and say which there are at the end."""
    seen = """() => {
        const plot = document.querySelector('.bindkit-explorer .js-plotly-plot');
        const areas = [...plot.querySelectorAll('.nsewdrag')].filter((area) => area.checkVisibility());
        return [areas.map((area) => area.dataset.subplot), plot.data.filter((t) => t.type === 'heatmap' && t.visible)
            .map((t) => t.name), document.querySelector('.bindkit-pad').innerText];
    }"""
    ends = time.monotonic() + 20
    while len((found := page.evaluate(seen))[0]) != how_many and time.monotonic() < ends:
        page.wait_for_timeout(50)
    assert len(found[0]) == how_many, found


def control(page, name):
    """A control by the label that stands beside it."""
    return page.get_by_label(name, exact=True)


def choose(page, name, words):
    control(page, name).select_option(label=words)


def click_patch(page, row, col, shape, panel=0):
    area = page.locator(".bindkit-explorer .js-plotly-plot .nsewdrag").nth(panel)
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    place = {"x": box["width"] * (col + 0.5) / shape[1], "y": box["height"] * (row + 0.5) / shape[0]}
    area.click(position=place)


def test_clicks_at_random_patches_layers_backbones_and_images(page, made):
    _, names, backbones, probes, scenes = made
    rng = np.random.default_rng(0)
    for _ in range(6):
        backbone, image = int(rng.integers(2)), int(rng.integers(2))
        # Of a directory its last two parts: checkpoints of two runs often have the same base name.
        title = "/".join(Path(names[backbone]).parts[-2:])
        choose(page, "Backbone", title)
        choose(page, "Image", scenes[image].id)
        layer = list(probes[backbone])[int(rng.integers(3))]
        slider = page.get_by_role("slider", name="Layer")
        slider.focus()
        page.keyboard.press("Home")
        for _ in range(list(probes[backbone]).index(layer)):
            page.keyboard.press("ArrowRight")
        expected = bk.affinity(backbones[backbone], probes[backbone][layer], scenes[image])
        shape = (expected.grid.rows, expected.grid.cols)
        row, col = int(rng.integers(shape[0])), int(rng.integers(shape[1]))
        page.wait_for_function(
            "(words) => document.querySelector('.annotation-text').textContent.includes(words)",
            arg=f"layer {layer} · quadratic probe · {title}",
        )
        page.wait_for_timeout(300)
        click_patch(page, row, col, shape)
        until(page, expected.of(row * shape[1] + col))
        until_said(page, f"Patch row {row}, column {col}")


KERNEL = "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel"


def traces(page, axis):
    """Points of the lines of a map, by name."""
    found = page.evaluate(
        "(axis) => document.querySelector('.bindkit-explorer .js-plotly-plot').data"
        ".filter((t) => t.mode === 'lines' && t.visible && (t.xaxis ?? 'x') === axis)"
        ".map((t) => [t.name || 'casing', [...t.x], [...t.y]])",
        axis,
    )
    return {name: np.array([x, y], float) for name, x, y in found}


def area_inside(line):
    """Area within closed loops that are apart by NaN (shoelace formula); loops around holes count against it."""
    pieces = np.split(line, np.flatnonzero(np.isnan(line[0])), axis=1)
    return abs(sum(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2 for x, y in (p[:, np.isfinite(p[0])] for p in pieces)))


def test_the_map_answers_a_press_while_the_kernel_is_busy(page, made):
    _, names, backbones, probes, scenes = made
    choose(page, "Backbone", names[0])
    choose(page, "Image", scenes[0].id)
    choose(page, "Compare to", scenes[1].id)
    until_maps(page, 2)
    page.wait_for_timeout(500)
    layer = int(page.get_by_role("slider", name="Layer").get_attribute("aria-valuetext"))
    own = bk.affinity(backbones[0], probes[0][layer], scenes[0])
    from bindkit.affinities.scoring import image_activations

    x, y = (image_activations(backbones[0], scenes[k].image, [layer])[1][layer] for k in (0, 1))
    before = page.locator(".bindkit-pad .status").inner_text()
    # C's own sleep, called so that no thread of Python goes on: Jupyter hears widgets in a thread of their own.
    code = "import ctypes, time; time.sleep(0.5); ctypes.PyDLL(None).sleep(8)"
    page.evaluate(f"(code) => {{ {KERNEL}.requestExecute({{ code }}); }}", code)
    page.wait_for_timeout(1000)
    for row, col in ((9, 1), (3, 11)):
        patch = row * own.grid.cols + col
        click_patch(page, row, col, (own.grid.rows, own.grid.cols))
        until(page, own.of(patch))
        across = probes[0][layer].pairwise(x[patch : patch + 1], y)[0].sigmoid().numpy()
        until(page, across.reshape(values(page, 2).shape), panel=2)
        lines = traces(page, "x")
        inside = values(page) >= 0.5
        assert area_inside(lines["above the threshold"]) == pytest.approx(inside.sum(), abs=1e-4)
        np.testing.assert_allclose(np.nanmean(lines["chosen patch"][:, :4], axis=1), (col, row), atol=1e-6)
        assert page.locator(".bindkit-pad .status").inner_text() == before, "the kernel has not spoken yet"
    page.wait_for_function("document.activeElement.className === 'keys'")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("ArrowDown")
    row, col = row + 1, col + 5
    patch = row * own.grid.cols + col
    until(page, own.of(patch))
    assert f"row {row}, column {col}" in page.get_by_role("application").get_attribute("aria-label")
    inside = values(page) >= 0.5
    assert page.locator(".bindkit-pad .status").inner_text() == before, "nor of keys"
    until_said(page, f"Patch row {row}, column {col}")
    page.wait_for_timeout(300)
    until(page, own.of(patch))
    settled = traces(page, "x")
    assert area_inside(settled["above the threshold"]) == pytest.approx(inside.sum(), abs=1e-4)
    choose(page, "Compare to", "nothing")
    until_maps(page, 1)


def test_arrow_keys_move_the_patch_and_leave_the_notebook_alone(page, made):
    _, names, backbones, probes, scenes = made
    choose(page, "Backbone", names[0])
    choose(page, "Image", scenes[0].id)
    control(page, "Image").focus()
    page.wait_for_timeout(300)
    layer = int(page.get_by_role("slider", name="Layer").get_attribute("aria-valuetext"))
    expected = bk.affinity(backbones[0], probes[0][layer], scenes[0])
    shape = (expected.grid.rows, expected.grid.cols)
    click_patch(page, 2, 3, shape)
    until(page, expected.of(2 * shape[1] + 3))
    keys = page.get_by_role("application")
    page.wait_for_function("document.activeElement.className === 'keys'")
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowUp", "ArrowUp"):
        page.keyboard.press(key)
    until(page, expected.of(1 * shape[1] + 5))
    assert "row 1, column 5" in keys.get_attribute("aria-label")
    until_said(page, "Patch row 1, column 5")
    # A map that only the kernel knows follows one patch at a time, and ends where the keys did.
    choose(page, "Map", "Cosine similarity")
    page.wait_for_timeout(300)
    keys.focus()
    for key in ("ArrowDown",) * 3 + ("ArrowLeft",) * 4 + ("ArrowRight", "ArrowUp", "ArrowUp"):
        page.keyboard.press(key)
    until_said(page, "Patch row 2, column 2")
    from bindkit.affinities.scoring import image_activations

    x = image_activations(backbones[0], scenes[0].image, [layer])[1][layer]
    until(page, torch_cosine(x[2 * shape[1] + 2], x).reshape(shape))
    choose(page, "Map", "Affinity")
    keys.focus()
    for key in ("ArrowUp",) + ("ArrowRight",) * 3:
        page.keyboard.press(key)
    until(page, expected.of(1 * shape[1] + 5))
    until_said(page, "Patch row 1, column 5")
    page.keyboard.press("d")
    page.keyboard.press("d")  # would delete the cell
    page.keyboard.press("a")  # would make another
    assert page.locator(".jp-Notebook .jp-CodeCell").count() == 2
    assert page.evaluate("window.jupyterapp.shell.currentWidget.content.activeCellIndex") == 0


def test_hovering_shows_row_column_affinity_and_object(page, made):
    _, _, backbones, probes, scenes = made
    layer = int(page.get_by_role("slider", name="Layer").get_attribute("aria-valuetext"))
    expected = bk.affinity(backbones[0], probes[0][layer], scenes[0])
    grid = expected.grid
    labels = grid.majority(scenes[0].instances)
    patch = int(np.flatnonzero(labels)[7])
    row, col = grid.row_col(patch)
    chosen = 1 * grid.cols + 5
    box = page.locator(".bindkit-explorer .js-plotly-plot .nsewdrag").first.bounding_box()
    page.mouse.move(
        box["x"] + box["width"] * (col + 0.5) / grid.cols, box["y"] + box["height"] * (row + 0.5) / grid.rows
    )
    # The label of where the mouse was before may still stand there.
    words = page.locator(".hoverlayer .hovertext", has_text=f"row {row} · column {col}")
    words.wait_for()
    text = words.text_content()
    assert f"affinity {expected.scores[chosen, patch]:.2f}" in text
    assert f"(object {labels[patch]})" in text


def test_maps_side_by_side_and_another_image(page, made):
    _, _, backbones, probes, scenes = made
    layer = int(page.get_by_role("slider", name="Layer").get_attribute("aria-valuetext"))
    own = bk.affinity(backbones[0], probes[0][layer], scenes[0])
    control(page, "cosine").check()
    choose(page, "Compare to", scenes[1].id)
    until_maps(page, 3)
    from bindkit.affinities.scoring import image_activations

    x, y = (image_activations(backbones[0], scenes[k].image, [layer])[1][layer] for k in (0, 1))
    patch = 1 * own.grid.cols + 5
    cosine = torch_cosine(x[patch], x).reshape(own.grid.rows, own.grid.cols)
    across = probes[0][layer].pairwise(x[patch : patch + 1], y)[0].sigmoid().numpy()
    until(page, cosine, panel=2)
    until(page, across.reshape(values(page, 3).shape), panel=3)
    choose(page, "Compare to", "nothing")
    control(page, "cosine").uncheck()
    choose(page, "Lock", "its patch")
    until_maps(page, 2)
    page.wait_for_timeout(300)
    click_patch(page, 4, 2, (own.grid.rows, own.grid.cols))
    until(page, own.of(4 * own.grid.cols + 2))
    until(page, own.of(patch), panel=2)
    choose(page, "Lock", "nothing")
    until_maps(page, 1)
    page.wait_for_timeout(300)
    click_patch(page, 5, 5, (own.grid.rows, own.grid.cols))
    until(page, own.of(5 * own.grid.cols + 5))


def test_dragging_shows_every_patch_it_comes_by_and_ends_where_it_ends(page, made):
    _, names, backbones, probes, scenes = made
    choose(page, "Backbone", names[0])
    choose(page, "Image", scenes[0].id)
    page.wait_for_timeout(500)
    layer = int(page.get_by_role("slider", name="Layer").get_attribute("aria-valuetext"))
    own = bk.affinity(backbones[0], probes[0][layer], scenes[0])
    rows, cols = own.grid.rows, own.grid.cols
    area = page.locator(".bindkit-explorer .js-plotly-plot .nsewdrag").first
    area.scroll_into_view_if_needed()
    box = area.bounding_box()

    def at(row, col):
        return box["x"] + box["width"] * (col + 0.5) / cols, box["y"] + box["height"] * (row + 0.5) / rows

    page.mouse.move(*at(5, 0))
    page.mouse.down()
    for col in range(1, 9):
        page.mouse.move(*at(5, col))
    until(page, own.of(5 * cols + 8))
    page.mouse.move(*at(7, 9))
    page.mouse.move(box["x"] + 3 * box["width"], box["y"] - 40)  # beyond the upper right corner
    page.mouse.up()
    until_said(page, f"Patch row 0, column {cols - 1}")
    until(page, own.of(cols - 1))
    page.mouse.move(*at(3, 3))
    page.wait_for_timeout(300)
    until(page, own.of(cols - 1))


def torch_cosine(one, many):
    import torch

    return torch.nn.functional.cosine_similarity(one[None].double(), many.double()).numpy()


def test_a_picture_of_ones_own_is_opened(page, made, tmp_path):
    _, _, backbones, probes, _ = made
    pixels = photo(90, 130, seed=5)
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Open a picture of yours").click()
    chooser.value.set_files(tmp_path / "mine.png")
    until_said(page, "all others")
    layer = int(page.get_by_role("slider", name="Layer").get_attribute("aria-valuetext"))
    expected = bk.affinity(backbones[0], probes[0][layer], pixels)
    rows, cols = expected.grid.rows, expected.grid.cols
    until(page, expected.of(rows // 2 * cols + cols // 2))
    page.wait_for_timeout(300)
    click_patch(page, rows - 1, cols - 1, (rows, cols))
    until(page, expected.of(rows * cols - 1))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Open a picture of yours").click()
    chooser.value.set_files(tmp_path / "broken.png")
    alert = page.locator(".bindkit-beside-open [role=alert]")
    page.wait_for_function(
        "document.querySelector('.bindkit-beside-open [role=alert]')?.textContent.includes('broken.png')"
    )
    assert "damaged" in alert.inner_text()
    choose(page, "Image", "mine.png")
    (tmp_path / "huge.png").write_bytes(bytes(11_000_000))
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Open a picture of yours").click()
    chooser.value.set_files(tmp_path / "huge.png")
    said = "document.querySelector('.bindkit-beside-open [role=alert]')?.textContent"
    page.wait_for_function(f"{said}?.includes('huge.png has 11 MB')")
    choose(page, "Image", made[-1][0].id)
    until_said(page, "object")


def test_every_control_is_named_and_within_reach_of_the_keyboard(page):
    nameless = page.evaluate(
        '[...document.querySelectorAll(\'.bindkit-explorer :is(input, select, button, .noUi-handle, [tabindex="0"],'
        " [contenteditable=true])')]"
        ".filter((e) => e.checkVisibility() && e.type !== 'file')"
        ".filter((e) => !(e.labels?.length || e.textContent.trim() || e.getAttribute('aria-label')))"
        ".map((e) => e.outerHTML.slice(0, 200))"
    )
    assert nameless == []
    page.locator(".bindkit-pad .keys").focus()
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "(() => { const e = document.activeElement; return e.getAttribute('aria-label') || "
                "e.labels?.[0]?.textContent.trim() || e.textContent.trim(); })()"
            )
        )
    wanted = {"Backbone", "Layer", "Map", "Image", "cosine", "attention", "PCA", "Lock", "Compare to"}
    wanted |= {"Threshold", "Mark top", "Skip within", "Opacity", "Colours", "File", "PNG", "SVG", "Page"}
    assert wanted <= reached, wanted - reached


@pytest.mark.parametrize("width", [560, 1360])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_at_any_width_and_theme(page, width, dark):
    """Screenshots land in the folder that EXPLORER_SHOTS names, to be looked at."""
    page.set_viewport_size({"width": width, "height": 1000})
    change_theme(page, dark)
    page.wait_for_timeout(700)
    outer = page.locator(".bindkit-explorer").bounding_box()
    inner = page.locator(".bindkit-explorer .js-plotly-plot").bounding_box()
    assert inner["x"] >= outer["x"] - 1
    assert inner["x"] + inner["width"] <= outer["x"] + outer["width"] + 1
    assert inner["width"] > 0.5 * outer["width"]
    cut = page.evaluate(
        "[...document.querySelectorAll('.bindkit-explorer, .bindkit-explorer .bindkit-card, .bindkit-card > *')]"
        ".filter((e) => e.checkVisibility() && e.scrollWidth > e.clientWidth + 1).map((e) => e.className)"
    )
    assert cut == []
    right = outer["x"] + outer["width"] + 1
    for control in page.locator(".bindkit-explorer .bindkit-card :is(select, button, .widget-readout)").all():
        if control.is_visible():
            box = control.bounding_box()
            assert box["x"] + box["width"] <= right, control.evaluate("(e) => e.outerHTML.slice(0, 150)")
    ink = page.evaluate("getComputedStyle(document.querySelector('.bindkit-pad .status')).color")
    assert (sum(map(float, ink[ink.index("(") + 1 : -1].split(",")[:3])) > 380) == dark
    if folder := os.environ.get("EXPLORER_SHOTS"):
        name = f"explorer-{width}-{'dark' if dark else 'light'}.png"
        page.screenshot(path=str(Path(folder) / name))


def test_a_page_loaded_anew_shows_the_explorer_as_it_is(page, made):
    """Last, since it loads the page that the others use. The kernel lives on."""
    _, names, backbones, probes, scenes = made
    change_theme(page, dark=False)
    choose(page, "Backbone", names[0])
    choose(page, "Image", scenes[1].id)
    control(page, "cosine").check()
    until_maps(page, 2)
    layer = int(page.get_by_role("slider", name="Layer").get_attribute("aria-valuetext"))
    own = bk.affinity(backbones[0], probes[0][layer], scenes[1])
    shape = (own.grid.rows, own.grid.cols)
    click_patch(page, 2, 3, shape)
    until_said(page, "Patch row 2, column 3")
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_timeout(500)
    page.reload()
    page.wait_for_selector(".bindkit-explorer .js-plotly-plot .heatmaplayer image", timeout=60_000)
    until_maps(page, 2)
    until(page, own.of(2 * shape[1] + 3))
    assert "row 2, column 3" in page.get_by_role("application").get_attribute("aria-label")
    page.wait_for_timeout(700)
    click_patch(page, 6, 1, shape)
    until(page, own.of(6 * shape[1] + 1))
    until_said(page, "Patch row 6, column 1")
