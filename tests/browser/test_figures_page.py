"""A saved figure's page draws its lines in a real browser, without a network and without complaints."""

from __future__ import annotations

import plotly.graph_objects as go
import pytest

from bindkit.views.figures import save_figure
from bindkit.views.figures.panels import titled

pytestmark = pytest.mark.browser


def test_the_page_draws_every_line(tmp_path, chromium):
    from playwright.sync_api import sync_playwright

    figure = go.Figure([go.Scatter(x=[0, 1, 2], y=[0.7, 0.9, 0.8], name=name) for name in ("one", "two")])
    saved = save_figure(titled(figure, "Two lines"), "two_lines", tmp_path)
    complaints, requests = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(saved.html.as_uri())
        page.wait_for_selector(".scatterlayer .trace path.js-line")
        n_lines = page.locator(".scatterlayer .trace path.js-line").count()
        title, heading = page.title(), page.locator(".gtitle").first.text_content()
        browser.close()
    assert n_lines == 2
    assert title == "two_lines"
    assert heading == "Two lines"
    assert complaints == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requests)
