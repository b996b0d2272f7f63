"""Clicks in the explorer, from the mouse to the redrawn map in a real JupyterLab, and the memory of a large image.

    python tests/benchmarks/bench_explorer.py            # both
    python tests/benchmarks/bench_explorer.py clicks     # 37 x 37 patches, 9 layers, in Chromium
    python tests/benchmarks/bench_explorer.py memory     # 24 layers of width 1024 and 1,369 patches

Run by hand; never a gate on time. What it printed last is in notebook 05.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "browser"))

CLICKS, WARM_UP = 120, 10

NOTEBOOK = """
import sys; sys.path.append({place!r})
from bench_explorer import large_source, made_probes, photo
import bindkit as bk
source = large_source({width}, {layers})
explorer = bk.AffinityExplorer(source, made_probes(source), [photo()])
explorer
"""

TIMER = """() => {
  const plot = document.querySelector(".bindkit-explorer .js-plotly-plot");
  window.took = []; window.last = plot.data[0].z;
  window.addEventListener("pointerdown", () => { window.began = performance.now(); }, true);
  plot.on("plotly_afterplot", () => {
    if (plot.data[0].z === window.last || window.began === undefined) return;
    const began = window.began;
    window.last = plot.data[0].z;
    window.began = undefined;
    // The map is on the screen once a frame that began after the drawing is over.
    requestAnimationFrame(() => setTimeout(() => window.took.push(performance.now() - began)));
  });
}"""


def large_source(width, layers, patches=37):
    """A stand-in for a backbone of any width: smooth noise, 37 x 37 patches of 14 pixels."""
    import torch

    from bindkit.backbones.preprocessing import IMAGENET
    from bindkit.scenes.geometry import WindowGeometry

    class Source:
        name, d_model, n_layers = f"noise of width {width}", width, layers
        geometry = WindowGeometry(14 * patches, 14 * patches, 14)
        device, preprocessing = torch.device("cpu"), IMAGENET

        def resolve_layers(self, wanted):
            return tuple(range(layers)) if wanted == "all" else tuple(sorted(int(layer) for layer in wanted))

        def describe(self):
            return {"name": self.name, "weights_digest": None}

        def activations(self, windows, wanted):
            found = {}
            for layer in wanted:
                generator = torch.Generator().manual_seed(layer)
                coarse = torch.randn(len(windows), 40, 6, 6, generator=generator)
                smooth = torch.nn.functional.interpolate(coarse, (patches, patches), mode="bicubic")
                spread = torch.randn(40, width, generator=generator) / 6
                noise = 0.05 * torch.randn(len(windows), patches**2, width, generator=generator)
                found[layer] = smooth.flatten(2).mT @ spread + noise
            return found

    return Source()


def made_probes(source):
    """Quadratic probes, one a layer, whose logits lie along forty directions and some noise."""
    import torch

    from bindkit.probes import make_probe

    probes = []
    for layer in range(source.n_layers):
        probe = make_probe("quadratic", source.d_model, layer).requires_grad_(False)
        directions = torch.linalg.qr(torch.randn(source.d_model, 40, generator=torch.Generator().manual_seed(layer))).Q
        probe.weight *= 0.02
        probe.weight += directions @ directions.T
        probe.fitted_on = {"layer": layer}
        probes.append(probe.eval())
    return probes


def photo():
    """A picture of smooth blobs."""
    from PIL import Image

    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((800, 800), Image.Resampling.BICUBIC)


def clicks(width=384, layers=9):
    """Print how long a click takes: with the picture beside one map, and beside three."""
    import os

    from lab_session import lab_server, open_notebook, write_notebook
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as directory, lab_server(directory) as server, sync_playwright() as playwright:
        cell = NOTEBOOK.format(place=str(Path(__file__).parent), width=width, layers=layers).strip()
        write_notebook(directory, "bench.ipynb", [cell])
        program = os.environ.get("BROWSER_PATH", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 950})
        open_notebook(page, server, "bench.ipynb")
        page.wait_for_timeout(2000)
        page.evaluate(TIMER)
        page.locator(".bindkit-fold > button").first.click()
        for words, boxes in (("a map and the picture", ()), ("three maps and the picture", (1, 3))):
            for box in boxes:
                page.locator(".bindkit-checks input").nth(box).check()
                page.wait_for_timeout(2500)
            took = one_round(page)
            p50, p95 = np.percentile(took, [50, 95])
            print(
                f"{words}, 37 x 37 patches, {layers} layers, width {width}: {len(took)} clicks, from the press "
                f"to the frame p50 {p50:.0f} ms, p95 {p95:.0f} ms, worst {max(took):.0f} ms"
            )
        browser.close()


def one_round(page):
    """Milliseconds of clicks at random patches, the layer changed now and then."""
    rng = np.random.default_rng(0)
    box = page.locator(".bindkit-explorer .js-plotly-plot .nsewdrag").first.bounding_box()
    page.evaluate("() => { window.took.length = 0; window.began = undefined; }")
    for number in range(CLICKS + WARM_UP):
        x, y = (rng.random(2) * 0.98 + 0.01) * [box["width"], box["height"]]
        if number == WARM_UP:
            page.evaluate("() => { window.took.length = 0; }")
        if number % 13 == 12:
            page.keyboard.press("[" if number % 2 else "]")  # the bar below has the focus after a click
            page.wait_for_timeout(700)
        before = page.evaluate("window.took.length")
        page.mouse.move(box["x"] + x, box["y"] + y)
        page.wait_for_timeout(60)
        page.mouse.down()
        page.mouse.up()
        try:
            page.wait_for_function(f"window.took.length > {before}", timeout=3000, polling=20)
        except Exception:  # the same patch again: nothing to redraw
            page.evaluate("() => { window.began = undefined; }")
        page.wait_for_timeout(40)
    return np.array(page.evaluate("window.took"))


def memory():
    """Print the bytes that an image with 24 layers holds, and how much the process grew meanwhile."""
    import bindkit as bk

    source = large_source(1024, 24)
    probes = made_probes(source)
    for _ in range(2):  # what libraries keep for themselves is there before it counts
        bk.AffinityExplorer(large_source(64, 2), None, [photo()]).close()
    before, peak, done = resident(), [0], threading.Event()
    watcher = threading.Thread(target=lambda: watch(peak, done))
    watcher.start()
    started = time.perf_counter()
    explorer = bk.AffinityExplorer(source, probes, [photo()])
    for layer in range(24):
        explorer.layer = layer
        explorer.patch = (layer, 36 - layer)
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    print(
        f"24 layers, width 1024, 1,369 patches, all shown: {explorer.n_bytes / 1e6:.0f} MB held, the process grew by "
        f"{(resident() - before) / 1e6:.0f} MB, at the most {(peak[0] - before) / 1e6:.0f} MB, in {seconds:.1f} s"
    )


def resident():
    """Bytes of memory that this process has (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def watch(peak, done):
    """Follow the most that it ever has."""
    while not done.wait(0.005):
        peak[0] = max(peak[0], resident())


if __name__ == "__main__":
    for name in sys.argv[1:] or ["clicks", "memory"]:
        {"clicks": clicks, "memory": memory}[name]()
