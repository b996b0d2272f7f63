"""Photograph the explorer in a real JupyterLab: README's pictures, ``figures/explorer.png`` and ``explorer.gif``.

bindkit run --workspace workspace && python figures/explorer.py workspace

Further words are backbones of that workspace to show in place of `BACKBONES`, the one that is clicked first. That one
gets maps twice as fine, as in notebook 05, of probes at all layers (in the workspace's ``finer/``).
"""

import io
import os
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw
from playwright.sync_api import sync_playwright

sys.path.append(str(Path(__file__).parents[1] / "tests" / "browser"))

from lab_session import lab_server, open_notebook, write_notebook

BACKBONES = ("bindkit/scenes-flow", "bindkit/scenes-dino")
IMAGE = 0
CELL = """
import bindkit as bk
scenes = bk.open_scenes({scenes!r})
split = bk.split_scenes(scenes)
images = [scenes[position] for position in split.test[:6]]
shown = {{bk.load_backbone({first!r}, window={window}): {finer!r}, **dict.fromkeys({others!r}, {probes!r})}}
explorer = bk.AffinityExplorer(shown, images=images, class_names=scenes.class_names)
explorer.image = {image}
explorer.beside = ["picture", "cosine"]
"""
LOCKED = 'explorer.lock("layer")\nexplorer'
STILL = {"viewport": {"width": 1180, "height": 1130}, "device_scale_factor": 1.5}
MOVING = {"viewport": {"width": 1500, "height": 900}, "device_scale_factor": 1.25}

CLICKS = ((0.25, 0.46), (0.15, 0.36), (0.63, 0.24), (0.75, 0.36), (0.55, 0.76), (0.15, 0.66), (0.25, 0.46))
"""Where the picture is clicked, down and across, as shares of its sides: three crosses, a crescent, the first cross."""
KEYS = "[[[]]]]]["
"""Then the layer is changed: down to 0, up to 5, and back to 4."""
MOVE, LOOK = 350, 1100
"""Milliseconds that the mouse on its way, and an answer, are shown."""


def settled(page, clip):
    """What the page shows once two looks at it are alike."""
    before = None
    while (now := page.screenshot(clip=clip)) != before:
        before = now
        page.wait_for_timeout(400)
    return Image.open(io.BytesIO(now)).convert("RGB")


def pointed(shot, x, y, scale):
    """The same with the mouse at a place of the page, which screenshots leave out."""
    arrow = ((0, 0), (0, 17), (4, 13), (7, 19), (10, 18), (7, 12), (12, 12))
    ImageDraw.Draw(shot).polygon([((x + dx) * scale, (y + dy) * scale) for dx, dy in arrow], "white", "black", 1)
    return shot


def clicked_through(page):
    """Frames and their milliseconds: the mouse comes, clicks, and the maps answer; then the layers pass by."""
    page.wait_for_timeout(2000)
    whole = page.locator(".bindkit-explorer").bounding_box()
    picture = page.locator(".bindkit-explorer .nsewdrag[data-subplot=x2y2]").bounding_box()
    clip = {**whole, "width": page.locator(".bindkit-pad").bounding_box()["width"] + 4}
    scale, frames = MOVING["device_scale_factor"], []
    for down, across in CLICKS:
        x, y = picture["x"] + across * picture["width"], picture["y"] + down * picture["height"]
        page.mouse.move(x, y)
        frames.append((pointed(settled(page, clip), x - clip["x"], y - clip["y"], scale), MOVE))
        page.mouse.click(x, y)
        frames.append((pointed(settled(page, clip), x - clip["x"], y - clip["y"], scale), LOOK))
    for key in KEYS:
        page.keyboard.press(key)
        frames.append((settled(page, clip), LOOK))
    return zip(*frames, strict=True)


def main(workspace: str, *backbones: str) -> None:
    """Run one cell on a finished run's probes, photograph what it shows, and click through it."""
    import bindkit as bk

    place, here = Path(workspace).resolve(), Path(__file__)
    uri, finer, (first, *others) = bk.open_workspace(place).settings["scenes"], place / "finer", backbones or BACKBONES
    window, scenes = 2 * bk.load_backbone(first).geometry.window, bk.open_scenes(uri)
    enlarged = bk.load_backbone(first, window=window)
    cache = bk.cache_activations(enlarged, scenes, finer / "cache", split=bk.split_scenes(scenes))
    bk.sweep(cache, probes="quadratic", root=finer / "pictured")
    chosen = {"scenes": uri, "first": first, "window": window, "others": others, "image": IMAGE}
    cell = CELL.format(**chosen, finer=str(finer / "pictured"), probes=str(place / "probes")).strip()
    with tempfile.TemporaryDirectory() as directory, lab_server(directory) as server, sync_playwright() as playwright:
        write_notebook(directory, "still.ipynb", [f"{cell}\n{LOCKED}"])
        write_notebook(directory, "moving.ipynb", [f"{cell}\nexplorer"])
        program = os.environ.get("BROWSER_PATH", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(**STILL)
        open_notebook(page, server, "still.ipynb")
        page.locator(".bindkit-pad .keys").focus()
        for _ in range(6):  # to layer 0
            page.keyboard.press("[")
            page.wait_for_timeout(500)
        page.wait_for_timeout(3000)
        shot = Image.open(io.BytesIO(page.locator(".bindkit-explorer").screenshot())).convert("RGB")
        shot.quantize(256, kmeans=3).save(here.with_name("explorer.png"), optimize=True)
        page.close()
        page = browser.new_page(**MOVING)
        open_notebook(page, server, "moving.ipynb")
        frames, milliseconds = clicked_through(page)
        browser.close()
    palette = frames[1].quantize(256, kmeans=3)
    first, *later = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    first.save(here.with_name("explorer.gif"), save_all=True, append_images=later, duration=milliseconds, loop=0)


if __name__ == "__main__":
    main(*sys.argv[1:])
