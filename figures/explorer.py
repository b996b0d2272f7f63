"""Photograph ``figures/explorer.png``, the README's picture of the explorer, in a real JupyterLab.

bindkit run --workspace workspace && python figures/explorer.py workspace
"""

import os
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

sys.path.append(str(Path(__file__).parents[1] / "tests" / "browser"))

from lab_session import lab_server, open_notebook, write_notebook

CELL = """
import bindkit as bk
scenes = bk.open_scenes({scenes!r})
split = bk.split_scenes(scenes)
images = [scenes[position] for position in split.test[:6]]
backbones = ["bindkit/scenes-motion", "bindkit/scenes-dino"]
explorer = bk.AffinityExplorer(backbones, {probes!r}, images, class_names=scenes.class_names)
explorer.image = {image}
explorer.beside = ["picture", "cosine"]
explorer.lock("layer")
explorer.layer = 0
explorer
"""
IMAGE, WIDTH, SCALE = 0, 1180, 1.5


def main(workspace: str) -> None:
    """Run one cell on a finished run's probes and photograph what it shows."""
    place = Path(workspace).resolve()
    import bindkit as bk

    uri = bk.open_workspace(place).settings["scenes"]
    cell = CELL.format(scenes=uri, probes=str(place / "probes"), image=IMAGE).strip()
    with tempfile.TemporaryDirectory() as directory, lab_server(directory) as server, sync_playwright() as playwright:
        write_notebook(directory, "explorer.ipynb", [cell])
        program = os.environ.get("BROWSER_PATH", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 1130}, device_scale_factor=SCALE)
        open_notebook(page, server, "explorer.ipynb")
        page.wait_for_timeout(3000)
        shot = Path(directory) / "shot.png"
        page.locator(".bindkit-explorer").screenshot(path=str(shot))
        browser.close()
        with Image.open(shot) as image:
            small = image.convert("RGB").quantize(256, kmeans=3)
        small.save(Path(__file__).with_name("explorer.png"), optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
