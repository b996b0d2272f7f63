"""The viewer's page in a real browser: what it shows is what Python computes, from disk, without a network."""

from __future__ import annotations

import time

import numpy as np
import pytest
import tiny_models
from PIL import Image
from viewer_pages import HOSTILE, Page, photo, probes_of

import bindkit as bk
from bindkit.views.viewer.packing import TOLERANCE

pytestmark = pytest.mark.browser

SHOWN = TOLERANCE + 0.005
"""What the page writes with two digits may be off by that rounding too."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two backbones of four and three layers; a scene with twins, a photo of another shape, a hostile name."""
    root = tmp_path_factory.mktemp("viewer")
    small = bk.load_backbone(str(tiny_models.write_checkpoint("dinov2", root / "tiny")))
    backbones = [bk.load_backbone("random-init:vit"), small]
    probes = {backbones[0]: probes_of(backbones[0], [0, 2, 3, 5]), small: probes_of(small, [0, 1, 2])}
    scenes = bk.open_scenes("synthetic:n=3,seed=0,twins=1")
    hostile = bk.Scene(HOSTILE, scenes[1].image, scenes[1].instances, scenes[1].classes)
    images = [scenes[0], photo(90, 41), hostile]
    names = dict(scenes.class_names) | {int(scenes[1].classes.max()): HOSTILE}
    path = bk.export_viewer(root / "viewer.html", probes, images=images, class_names=names, title=f"Test {HOSTILE}")
    return Page(path, backbones, probes, images)


@pytest.fixture(scope="module")
def browser(chromium):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser, made):
    """Open the page at a fragment; at the end there was no complaint and no request."""
    complaints, requests, contexts = [], [], []

    def open_page(fragment="", **options):
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}))
        page = contexts[-1].new_page()
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(made.path.as_uri() + fragment)
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert all(url.startswith((made.path.as_uri(), "data:")) for url in requests)


def shown(page):
    return page.evaluate("bindkit.state()")


def wait_for(page, **wanted):
    """Until the image shows this state."""
    state = shown(page) | wanted
    numbers = "-".join(str(state[name]) for name in ("backbone", "image", "layer", "patch"))
    page.wait_for_selector(f'#stage[data-shown="{numbers}"]')
    return state


def wait_until(page, condition):
    """Until an expression holds. Not `wait_for_function`, which the page's own policy forbids to ask again."""
    deadline = time.monotonic() + 30
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)


def click_patch(page, made, patch):
    state = shown(page)
    grid = made.affinity(state["backbone"], state["image"], 0).grid
    box = page.locator("#heat").bounding_box()
    row, col = divmod(patch, grid.cols)
    position = {"x": box["width"] * (col + 0.5) / grid.cols, "y": box["height"] * (row + 0.5) / grid.rows}
    page.locator("#stage").click(position=position)
    return wait_for(page, patch=patch)


def by_python(made, state):
    layer_probes = made.affinity(state["backbone"], state["image"], state["layer"])
    return layer_probes.scores[state["patch"]], layer_probes.grid


def test_clicks_at_random_places_show_what_python_computes(opened, made):
    page, rng = opened(), np.random.default_rng(0)
    for _ in range(12):
        backbone, image = int(rng.integers(2)), int(rng.integers(3))
        page.locator("#backbones input").nth(backbone).check()
        page.locator("#thumbs button").nth(image).click()
        state = wait_for(page, backbone=backbone, image=image)
        layer = int(rng.integers(len(made.probes[made.backbones[backbone]])))
        page.locator("#layer").fill(str(layer))
        wait_for(page, layer=layer)
        n = made.affinity(backbone, image, 0).grid.n_patches
        state = click_patch(page, made, int(rng.integers(n)))
        expected, _ = by_python(made, state)
        assert np.abs(np.array(page.evaluate("bindkit.affinities()")) - expected).max() < TOLERANCE
        page.mouse.move(0, 0)


def test_every_map_is_within_the_tolerance(opened, made):
    """Thirty rows of each; that Python's reading of the same bytes is right everywhere is tested without a browser."""
    page, rng = opened(), np.random.default_rng(1)
    for backbone, chosen in enumerate(made.backbones):
        for image, layer in np.ndindex(3, len(made.probes[chosen])):
            expected = made.affinity(backbone, image, layer).scores
            patches = rng.permutation(len(expected))[:30]
            rows = page.evaluate(
                "async ([b, i, l, patches]) => Promise.all(patches.map((p) => bindkit.scores(b, i, l, p)))",
                [backbone, image, layer, patches.tolist()],
            )
            assert np.abs(np.array(rows) - expected[patches]).max() < TOLERANCE


def test_the_colours_are_those_of_the_affinities(opened, made):
    page = opened()
    state = shown(page)
    expected, grid = by_python(made, state)
    pixels = page.evaluate(
        "() => { const c = document.getElementById('heat'); "
        "return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]; }"
    )
    pixels = np.array(pixels).reshape(grid.n_patches, 4)[:, :3]
    assert (pixels[expected.argmax()] > [200, 200, 0]).all() or expected.max() < 0.95
    green = pixels[:, 1].astype(float)  # viridis: rises with the affinity all the way
    assert np.corrcoef(green, expected)[0, 1] > 0.98


def test_hovering_tells_row_column_affinity_and_object(opened, made):
    page = opened("#image=1&backbone=random-init:vit&layer=3&patch=2,3")
    state = shown(page)
    assert (state["layer"], state["patch"]) == (2, 2 * 18 + 3)
    expected, grid = by_python(made, state)
    scene, box = made.images[0], page.locator("#heat").bounding_box()
    labels = grid.majority(scene.instances)
    for patch in (int(np.flatnonzero(labels)[5]), int(np.flatnonzero(labels == 0)[0]), grid.n_patches - 1):
        row, col = grid.row_col(patch)
        x, y = box["x"] + box["width"] * (col + 0.5) / grid.cols, box["y"] + box["height"] * (row + 0.5) / grid.rows
        page.mouse.move(x, y)
        words = page.locator("#tip").inner_text()
        assert f"row {row} · column {col}" in words
        assert abs(float(words.split("\n")[0].removeprefix("affinity ")) - expected[patch]) < SHOWN
        assert (f"(object {labels[patch]})" if labels[patch] else "unlabelled") in words
    page.mouse.move(0, 0)
    assert page.locator("#tip").is_hidden()


def test_mean_affinities_to_objects_are_those_of_their_patches(opened, made):
    page = opened("#image=1&backbone=random-init:vit&layer=5")
    found = made.affinity(0, 0, 3)
    labels = found.grid.majority(made.images[0].instances)
    assert labels[shown(page)["patch"]], "the page starts on an object"
    # Where it matters most that a patch itself does not count as one of its object's.
    counted = [found.scores[p, labels == labels[p]].mean() if labels[p] else -1 for p in range(len(labels))]
    apart = [found.scores[p, (labels == labels[p]) & (np.arange(len(labels)) != p)].mean() for p in range(len(labels))]
    patch = int(np.abs(np.subtract(counted, apart) * (labels > 0)).argmax())
    assert abs(counted[patch] - apart[patch]) > 2 * SHOWN
    expected, grid = by_python(made, click_patch(page, made, patch))
    page.mouse.move(0, 0)
    own, others = labels[patch], np.arange(grid.n_patches) != patch
    lines = page.locator("#means li").all_inner_texts()
    assert len(lines) == len(np.unique(labels))
    assert "this object" in lines[0]
    assert abs(float(lines[0].split()[-1]) - expected[(labels == own) & others].mean()) < SHOWN
    assert "same class" in lines[1]


def test_ground_truth_and_twins_are_outlined_where_there_are_masks(opened, made):
    page = opened("#image=1")
    assert page.locator("#truth").get_attribute("d").startswith("M")
    assert page.locator("#twins").get_attribute("d").startswith("M")
    scene = made.images[0]
    grid = made.affinity(0, 0, 0).grid
    instance = grid.majority(scene.instances)[shown(page)["patch"]]
    rows, cols = np.nonzero(scene.instances == instance)
    box = page.evaluate(
        "(() => { const b = document.getElementById('truth').getBBox(); return [b.x, b.y, b.width, b.height]; })()"
    )
    expected = [cols.min(), rows.min(), np.ptp(cols) + 1, np.ptp(rows) + 1]
    assert np.allclose(box, expected, atol=2.5)
    page.locator("#outlines").uncheck()
    page.wait_for_selector("#truth[d='']", state="attached")
    page.locator("#thumbs button").nth(1).click()
    wait_for(page, image=1)
    assert page.locator("#outline-row").is_hidden()
    assert page.locator("#truth").get_attribute("d") == ""


def test_the_threshold_outlines_the_patches_above_it(opened, made):
    page = opened("#image=1&backbone=random-init:vit&layer=2&patch=4,4")
    expected, _ = by_python(made, shown(page))
    for limit in ("0.3", "0.8"):
        page.locator("#threshold").fill(limit)
        area = area_of(page, "guess")
        assert (expected >= float(limit) + TOLERANCE).sum() <= area <= (expected >= float(limit) - TOLERANCE).sum()
        assert page.locator("#legend-threshold").inner_text() == f"{float(limit):.2f}"


def area_of(page, outline):
    """Of closed loops, by the shoelace formula; holes count as negative."""
    return page.evaluate(
        "(id) => document.getElementById(id).getAttribute('d').split('Z').filter(Boolean).map((loop) => {"
        "const p = loop.slice(1).split('L').map((xy) => xy.split(' ').map(Number)); let a = 0;"
        "p.forEach(([x, y], i) => { const [u, v] = p[(i + 1) % p.length]; a += x * v - u * y; }); return a / 2; })"
        ".reduce((sum, a) => sum + a, 0)",
        outline,
    )


def test_two_maps_stand_side_by_side_each_with_its_own_outline(opened, made):
    page = opened("#image=1&backbone=random-init:vit&layer=2&patch=4,4")
    other = page.locator("#beside option").nth(3).inner_text()
    page.locator("#beside").select_option(label=other)
    wait_until(page, "!document.getElementById('beside-map').hidden && bindkit.beside().length")
    assert page.locator("#caption").inner_text() == "random-init:vit, layer 2"
    assert page.locator("#beside-caption").inner_text() == other
    layer = int(other.split()[-1])
    seen = []
    for patch in (made.affinity(0, 0, 0).grid.cols * 5 + 3, 30):
        state = click_patch(page, made, patch)
        grid, theirs = made.affinity(0, 0, 0).grid, made.affinity(1, 0, layer)
        row, col = (place + 0.5 for place in divmod(patch, grid.cols))
        place = int(row / grid.rows * theirs.grid.rows), int(col / grid.cols * theirs.grid.cols)
        expected = [made.affinity(0, 0, 1).scores[patch], theirs.scores[place[0] * theirs.grid.cols + place[1]]]
        found = [np.array(page.evaluate(f"bindkit.{name}()")) for name in ("affinities", "beside")]
        # The last lies where one of them has nearly all patches above, and the other has not.
        for limit in (0.3, 0.6, round(sum(float(np.quantile(one, 0.05)) for one in found) / 2, 2)):
            page.locator("#threshold").fill(str(limit))
            off = []
            for prefix, shown_there, asked in zip(("", "beside-"), found, expected, strict=True):
                assert np.abs(shown_there - asked).max() < TOLERANCE
                n = (shown_there >= limit).sum()
                off.append(10 * n > 9 * len(asked))
                assert area_of(page, f"{prefix}guess") == (0 if off[-1] else n)
                assert page.locator(f"#{prefix}off").is_visible() == off[-1], "each map says it of itself"
        seen.append(off)
    assert any(len(set(off)) == 2 for off in seen), "one map has an outline, the other has none"
    again = opened(page.url[page.url.index("#") :])
    assert shown(again) == shown(page) == state | {"beside": f"1.{layer}"}
    box = page.locator("#beside-stage").bounding_box()
    assert box["x"] >= (left := page.locator("#stage").bounding_box())["x"] + left["width"]
    assert box["y"] == left["y"]
    page.locator("#beside-stage").click(position={"x": 2, "y": 2})
    wait_for(page, patch=0)


def test_a_map_is_kept_while_the_other_goes_on_and_the_picture_stands_alone(opened, made):
    page = opened("#image=1&backbone=random-init:vit&layer=3&patch=4,4")
    before = page.evaluate("bindkit.affinities()")
    page.locator("#beside").select_option("keep")
    page.locator("#layer").fill("0")
    wait_for(page, layer=0)
    assert page.evaluate("bindkit.beside()") == before != page.evaluate("bindkit.affinities()")
    page.locator("#beside").select_option("picture")
    page.wait_for_selector("#beside-heat", state="hidden")
    assert page.evaluate("bindkit.beside()") == []
    assert page.locator("#beside-guess").get_attribute("d") == ""
    assert page.locator("#beside-truth").get_attribute("d").startswith("M")
    assert page.evaluate("document.getElementById('beside-picture').style.filter") == "saturate(1)"
    page.locator("#beside").select_option("")
    page.wait_for_selector("#beside-map", state="hidden")


def test_the_outline_is_off_where_it_would_frame_low_values(opened):
    page = opened("#image=1&backbone=random-init:vit&layer=2&patch=4,4")
    values = np.sort(page.evaluate("bindkit.affinities()"))
    for share, outlined in ((0.15, True), (0.05, False)):
        limit = np.ceil(100 * values[int(share * len(values))]) / 100
        page.locator("#threshold").fill(f"{limit:.2f}")
        assert (values >= limit).mean() > 0.6
        assert bool(page.locator("#guess").get_attribute("d")) == ((values >= limit).mean() <= 0.9) == outlined
        assert page.locator("#legend-off").is_visible() != outlined


def test_arrow_keys_move_the_patch_after_a_click_on_a_backbone(opened, made):
    page = opened("#image=1&backbone=random-init:vit&layer=2&patch=4,4")
    page.locator("#backbones label").nth(1).click()
    patch = wait_for(page, backbone=1, layer=2, patch=shown(page)["patch"])["patch"]
    wait_until(page, "document.activeElement.id === 'stage'")
    page.keyboard.press("ArrowRight")
    wait_for(page, backbone=1, patch=patch + 1)
    page.locator("#backbones input").nth(1).focus()
    page.keyboard.press("ArrowUp")  # who comes by keys moves along the backbones
    wait_until(page, "bindkit.state().backbone === 0")
    assert page.evaluate("document.activeElement.type") == "radio"


def test_a_picture_of_what_is_shown_is_saved(opened, made, tmp_path):
    page = opened("#image=1&backbone=random-init:vit&layer=2&patch=4,4")
    page.locator("#opacity").fill("1")
    page.locator("#threshold").fill("1")
    page.locator("#beside").select_option("picture")
    page.wait_for_selector("#beside-heat", state="hidden")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save picture").click()
    name = f"{made.images[0].id}-random-init-vit-layer2-row4-column4.png"
    assert download.value.suggested_filename == name
    assert page.locator("#saved").inner_text() == f"Saved as {name}"
    download.value.save_as(tmp_path / name)
    pixels = np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int)
    grid, values = made.affinity(0, 0, 0).grid, np.array(page.evaluate("bindkit.affinities()"))
    wide, tall = 720, 720 * made.images[0].size[0] / made.images[0].size[1]
    colours = "([w, h]) => [...document.getElementById('heat').getContext('2d').getImageData(0, 0, w, h).data]"
    table = np.array(page.evaluate(colours, [grid.cols, grid.rows])).reshape(grid.n_patches, 4)[:, :3]
    labels = grid.majority(made.images[0].instances)
    right, clean = [], np.asarray(made.images[0].image)
    for patch in np.flatnonzero(labels == 0):  # away from most lines
        row, col = divmod(int(patch), grid.cols)
        y, x = int(38 + (row + 0.5) * tall / grid.rows), int(18 + (col + 0.5) * wide / grid.cols)
        right.append(np.abs(pixels[y, x] - table[patch]).max() < 6)
    assert np.mean(right) > 0.9
    assert np.ptp(values) > 0.3, "so that colours differ"
    scale = clean.shape[1] / wide
    places = [(r, c) for r in range(100, 500, 40) for c in range(60, 700, 40)]
    apart = [np.abs(pixels[38 + r, 36 + wide + c] - clean[int(r * scale), int(c * scale)]).max() for r, c in places]
    assert np.median(apart) < 12, "beside it the picture as it is"


def test_the_address_follows_and_leads(opened, made):
    page = opened()
    page.locator("#thumbs button").nth(2).click()
    page.locator("#backbones input").nth(1).check()
    wait_for(page, image=2, backbone=1)
    state = click_patch(page, made, 7)
    _, grid = by_python(made, state)
    address = page.url
    assert address.endswith(f"&layer={state['layer']}&patch={7 // grid.cols},{7 % grid.cols}")
    assert "#image=3&backbone=" in address
    again = opened(address[address.index("#") :])
    assert shown(again) == state
    again.evaluate("location.hash = '#image=2&backbone=random-init:vit&layer=5&patch=1,2'")
    wait_for(again, image=1, backbone=0, layer=3, patch=1 * made.affinity(0, 1, 0).grid.cols + 2)
    for nonsense in ("#image=99&layer=banana&patch=-1,700&backbone=%00", "#patch=1.5,x", "#&&==", "#image=-3"):
        page = opened(nonsense)
        assert page.locator("#means li").count() > 0


def test_keys_move_the_patch_and_the_layer(opened, made):
    page = opened("#image=1&backbone=random-init:vit&layer=2&patch=0,0")
    state, cols = shown(page), made.affinity(0, 0, 0).grid.cols
    page.keyboard.press("ArrowUp")  # already at the border
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    wait_for(page, patch=cols + 1)
    assert "Row 1, column 1" in page.locator("#said").inner_text()
    for key, layer in (("]", 2), ("+", 3), ("]", 3), ("[", 2), ("-", 1)):
        page.keyboard.press(key)
        wait_for(page, layer=layer)
    page.keyboard.press(".")
    wait_for(page, image=1)
    page.keyboard.press(",")
    wait_for(page, image=0)
    page.locator("#layer").focus()
    page.keyboard.press("ArrowRight")  # the slider's own key
    assert wait_for(page, layer=2)["patch"] == shown(page)["patch"]
    assert state["backbone"] == shown(page)["backbone"]


def test_every_control_is_labelled_and_within_reach_of_the_keyboard(opened):
    page = opened()
    wanted = page.evaluate(
        "[...document.querySelectorAll('input, select, button, summary, #stage')].filter((e) => e.checkVisibility())"
        ".map((e) => e.labels?.length || e.textContent.trim() || e.getAttribute('aria-label') ? '' : e.outerHTML)"
    )
    assert [entry for entry in wanted if entry] == []
    reached = set()
    page.locator("body").focus()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"stage", "layer", "threshold", "opacity", "colours", "outlines", "BUTTON", "INPUT", "SUMMARY"} <= reached


def test_maps_of_all_layers_are_drawn_and_lead_to_theirs(opened, made):
    page = opened("#image=1&backbone=random-init:vit&layer=0&patch=3,3")
    page.wait_for_selector(f'#strip[data-shown="{page.locator("#stage").get_attribute("data-shown")}"]')
    assert page.locator("#strip button").count() == 4
    drawn = "k => [...document.querySelectorAll('#strip canvas')[k].getContext('2d').getImageData(0, 0, 18, 14).data]"
    pictures = [tuple(page.evaluate(drawn, k)) for k in range(4)]
    assert len(set(pictures)) == 4
    page.locator("#strip button").nth(3).click()
    wait_for(page, layer=3)
    heat = "() => [...document.getElementById('heat').getContext('2d').getImageData(0, 0, 18, 14).data]"
    assert tuple(page.evaluate(heat)) == pictures[3]


def test_names_of_users_do_nothing(opened):
    page = opened("#image=3")
    assert page.locator("#stolen").count() == 0
    assert page.title() == f"Test {HOSTILE}"
    assert page.locator("h1").inner_text() == f"Test {HOSTILE}"
    assert page.locator("#image-name").inner_text() == HOSTILE
    assert page.locator("#thumbs button").nth(2).get_attribute("title") == HOSTILE
    page.locator("#backbones input").nth(1).check()
    rows = "() => [...document.querySelectorAll('#means .name')].map((e) => e.textContent)"
    assert any(HOSTILE in name for name in page.evaluate(rows))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1600])
def test_nothing_sticks_out_at_any_width_or_theme(opened, width, scheme):
    page = opened("", viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == (scheme == "dark")
    stage = page.locator("#stage").bounding_box()
    assert stage["width"] / stage["height"] == pytest.approx(144 / 112, rel=0.01)
