"""The explorer on a laptop: what is needed is on one screen at 1440 x 900, the rest one click away."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from lab_session import change_theme, lab_server, open_notebook, write_notebook
from viewer_pages import probes_of

import bindkit as bk
from bindkit.probes import save_probe

pytestmark = pytest.mark.browser

CELL = """
import bindkit as bk
scenes = bk.open_scenes("synthetic:n=3,seed=0,twins=1,size=128x128")
explorer = bk.AffinityExplorer("random-init:vit", {probes!r}, [scenes[0], scenes[1]], class_names=scenes.class_names)
explorer
"""

FIRST_SIGHT = ("Image", "Backbone", "Layer", "Map", "Threshold")
"""Labels of controls that are there without a click."""

FOLDED = {
    "Side by side": ("picture", "cosine", "attention", "PCA", "objects", "Head", "Lock", "Compare to"),
    "Marks and colours": ("outline the true object", "Mark top", "Skip within", "Opacity", "Colours"),
    "Save": ("File",),
}
"""Button -> labels of what it unfolds."""


@pytest.fixture(scope="module")
def page(tmp_path_factory, chromium):
    from playwright.sync_api import sync_playwright

    root = tmp_path_factory.mktemp("screens")
    for layer, probe in enumerate(probes_of(backbone := bk.load_backbone("random-init:vit"), range(6))):
        probe.fitted_on |= {"backbone": backbone.name, "weights_digest": backbone.weights_digest}
        save_probe(probe, root / "probes" / str(layer))
    with lab_server(root) as server, sync_playwright() as playwright:
        write_notebook(root, "explore.ipynb", [CELL.format(probes=str(root / "probes")).strip()])
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1440, "height": 900})
        opened.set_default_timeout(20_000)
        open_notebook(opened, server, "explore.ipynb")
        yield opened
        browser.close()


def settled(page, width, height):
    """The explorer at the top of a screen of this size, once its maps have the size that they get there."""
    page.set_viewport_size({"width": width, "height": height})
    page.wait_for_timeout(1500)
    page.evaluate("document.querySelector('.bindkit-explorer').scrollIntoView({ block: 'start' })")
    page.wait_for_timeout(300)


def boxes_of(page):
    """Name -> (left, top, right, bottom) of the maps, the controls at first sight, keys, status and legend; and what of
    the window shows the notebook."""
    area = page.locator(".jp-WindowedPanel-outer").bounding_box()
    maps = page.locator(".bindkit-explorer .js-plotly-plot .nsewdrag").all()
    found = {f"map {number}": place for number, place in enumerate(maps, start=1)}
    controls = page.locator(".bindkit-explorer .bindkit-controls")
    found |= {name: controls.locator(".widget-inline-hbox", has_text=name).first for name in FIRST_SIGHT}
    found |= {name: controls.get_by_role("button", name=name) for name in (*FOLDED, "Open a picture of yours")}
    found |= {"keys": page.locator(".bindkit-pad .keys"), "status": page.locator(".bindkit-pad .status")}
    found |= {"legend": page.locator(".bindkit-legend")}

    def corners(box):
        return box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]

    return {name: corners(place.bounding_box()) for name, place in found.items()}, corners(area)


def outside(boxes, area):
    left, top, right, bottom = area
    return {
        name: box
        for name, box in boxes.items()
        if box[0] < left - 1 or box[1] < top - 1 or box[2] > right + 1 or box[3] > bottom + 1
    }


@pytest.mark.parametrize("size", [(1440, 900), (1920, 1080), (1024, 700)])
def test_picture_map_and_controls_are_on_one_screen(page, size):
    settled(page, *size)
    boxes, area = boxes_of(page)
    assert outside(boxes, area) == {}
    (left, top, right, bottom), picture = boxes["map 1"], boxes["map 2"]
    assert picture[0] >= right, "the picture stands beside the map"
    assert abs(picture[1] - top) < 1
    for name in FIRST_SIGHT:
        assert boxes[name][0] >= picture[2], f"{name} stands beside the maps"
        assert boxes[name][1] < bottom, f"{name} stands at the height of the maps"
    # Beyond what the others take, the maps use the height or the width.
    assert 2 * (right - left) > 0.55 * (area[2] - area[0]) or bottom - top > 0.6 * (area[3] - area[1])


@pytest.mark.parametrize("part", FOLDED)
def test_the_rest_is_one_click_away(page, part):
    settled(page, 1440, 900)
    places = [page.get_by_label(name, exact=True).first for name in FOLDED[part]]
    assert not any(place.is_visible() for place in places)
    button = page.locator(".bindkit-fold > button", has_text=part)
    assert button.get_attribute("aria-expanded") == "false"
    button.click()
    for place in places:
        place.wait_for(state="visible")
    page.wait_for_timeout(300)
    boxes, area = boxes_of(page)
    box = page.locator(".bindkit-fold", has=page.locator(".mod-active")).bounding_box()
    assert outside(boxes, area) == {}
    assert box["y"] + box["height"] <= area[3], "what is unfolded is seen too"
    assert button.get_attribute("aria-expanded") == "true"
    if part == "Save":
        page.get_by_role("button", name="Page").click()
        said = page.locator(".bindkit-fold .bindkit-beside-save [role=alert]")
        page.wait_for_function(
            "document.querySelector('.bindkit-beside-save [role=alert]')?.textContent.startsWith('Saved')",
            timeout=60_000,
        )
        assert said.inner_text() == "Saved as view.html"
        assert said.bounding_box()["y"] - (box["y"] + box["height"]) < 20, "beside its buttons"
    button.click()


def test_the_threshold_of_a_cosine_map_stays_where_it_is_on_that_maps_scale(page):
    """Also where another patch has another scale."""
    settled(page, 1440, 900)
    limits = "() => [...document.querySelectorAll('.annotation-text')].map((e) => e.textContent)"
    middles = "(words) => words.filter((w) => w.startsWith('≥')).map((w) => +w.slice(1))"
    page.get_by_label("Map", exact=True).select_option(label="Cosine similarity")
    page.wait_for_timeout(800)
    area = page.locator(".bindkit-explorer .js-plotly-plot .nsewdrag").first
    for share in (0.1, 0.5, 0.85):
        box = area.bounding_box()
        area.click(position={"x": share * box["width"], "y": share * box["height"]})
        page.wait_for_timeout(1200)
        words = page.evaluate(limits)
        low = min(float(word) for word in words if word.replace(".", "").replace("-", "").isdigit())
        (limit,) = page.evaluate(middles, words)
        assert abs(limit - (low + 1) / 2) < 2e-3
    page.get_by_label("Map", exact=True).select_option(label="Affinity")
    page.wait_for_timeout(500)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [(1440, 900), (1920, 1080), (1024, 700)])
def test_screens_to_be_looked_at(page, size, dark):
    """Land in the folder that EXPLORER_SHOTS names; text stands out from its ground in both themes."""
    change_theme(page, dark)
    settled(page, *size)
    ink = page.evaluate("getComputedStyle(document.querySelector('.bindkit-explorer .annotation-text')).fill")
    assert (sum(map(float, ink[ink.index("(") + 1 : -1].split(",")[:3])) > 380) == dark
    if folder := os.environ.get("EXPLORER_SHOTS"):
        name = f"laptop-{size[0]}-{'dark' if dark else 'light'}.png"
        page.screenshot(path=str(Path(folder) / name))
