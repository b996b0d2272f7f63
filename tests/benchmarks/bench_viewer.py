"""A large viewer page: its size, and how long Chromium takes to open it and to answer clicks. Run by hand.

    python tests/benchmarks/bench_viewer.py

Five images of 1,369 patches at nine layers, of a probe as fitted ones are and of a random one of full rank. Measured on
two busy cores, Chromium 156: 13.4 and 29.2 MB, ready after 0.7 to 1.3 s, a click drawn after 6 to 12 ms (worst 30 ms).
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "unit"))

from viewer_pages import full_rank, like_a_fitted_probe, photo

from bindkit.views.viewer.exporting import Subject, page_of
from bindkit.views.viewer.packing import pack, to_text

CLICKS = """async () => {
  const stage = document.getElementById("stage"), took = [];
  const { left, top, width, height } = document.getElementById("heat").getBoundingClientRect();
  for (let i = 1; i < 40; i++) {
    const before = stage.dataset.shown, started = performance.now();
    const place = { clientX: left + width * (i * 37 % 97) / 97, clientY: top + height * (i * 53 % 89) / 89 };
    stage.dispatchEvent(new MouseEvent("click", { ...place, bubbles: true }));
    for (let turn = 0; turn < 200 && stage.dataset.shown === before; turn++) await Promise.resolve();
    took.push(performance.now() - started);
    await new Promise((resume) => setTimeout(resume, 20));
  }
  return took;
}"""


def page_with(logits, n_images=5, n_layers=9):
    """The same map for all images and layers: only sizes and times count here."""
    packed = pack(logits)
    text = f"{to_text(packed.factors)} {to_text(packed.residuals)}"
    about = {"rank": packed.rank, "symmetric": packed.symmetric, "bytes": [len(packed.factors), len(packed.residuals)]}
    layers = [
        {"layer": 2 * k, "probe": "quadratic", "protocol": "strict", "split": None, "metrics": {}}
        for k in range(n_layers)
    ]
    grids = [{"rows": 37, "cols": 37, "labels": []}] * n_images
    backbone = {"name": "large", "objective": "none", "depth": 24, "layers": layers, "grids": grids}
    data = {
        "version": "benchmark",
        "images": [Subject(f"image {k}", photo(900, 900, k), None, {}).describe() for k in range(n_images)],
        "backbones": [backbone | {"packs": [[about] * n_layers] * n_images}],
    }
    payloads = {f"pack-0-{image}-{layer}": text for image in range(n_images) for layer in range(n_layers)}
    return page_of("Benchmark", data, payloads)


def main():
    """Print one line a probe."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as directory:
        program = os.environ.get("BROWSER_PATH", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for name, logits in (("as fitted", like_a_fitted_probe()), ("full rank", full_rank())):
            path = Path(directory) / "page.html"
            path.write_text(page_with(logits), encoding="utf-8")
            page = browser.new_page(viewport={"width": 1360, "height": 900})
            page.goto(path.as_uri(), wait_until="commit")
            page.wait_for_selector("html[data-ready]")
            ready = page.evaluate("performance.now()") / 1000
            page.wait_for_selector("#strip[data-shown]")
            took = np.array(page.evaluate(CLICKS))
            print(
                f"{name}: {path.stat().st_size / 1e6:.1f} MB, ready after {ready:.2f} s, "
                f"click {np.median(took):.1f} ms, worst {took.max():.1f} ms"
            )
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
