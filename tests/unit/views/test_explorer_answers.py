"""What the browser is given to redraw maps by itself: which maps a press moves, and factors that say what is shown."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_explorer import backbones, probes, scenes  # noqa: F401

import bindkit as bk
from bindkit.views.explorer import session


def said(packed, patch):
    """Affinities of a patch from what is sent, by the arithmetic that the page uses, in double precision."""
    parts = {name: np.frombuffer(packed[name], "<f4").astype(float) for name in ("left", "right")}
    left, right = (parts[name].reshape(-1, packed["rank"]) for name in ("left", "right"))
    offsets = [np.frombuffer(packed[name], "<f4").astype(float) for name in ("left_offset", "right_offset")]
    logits = right @ left[patch] + offsets[0][patch] + offsets[1]
    return (1 / (1 + np.exp(-logits * packed["scale"]))).reshape(packed["shown"])


def test_factors_that_are_sent_say_what_python_says(backbones, probes, scenes):  # noqa: F811
    explorer = bk.AffinityExplorer(backbones[0], probes[backbones[0]], [scenes[0], scenes[1]])
    explorer.second = 1
    main, second = explorer._pad.answers
    rows, cols = main["own"]
    for row, col in ((0, 0), (rows - 1, 2)):
        explorer.patch = (row, col)
        for packed, name in ((main, "main"), (second, "second")):
            np.testing.assert_allclose(said(packed, row * cols + col), explorer.maps[name], atol=1e-5)
    figure = explorer.figure
    assert figure.data[main["heat"]].type == "heatmap" and figure.data[main["heat"]].meta == "main"
    assert figure.data[main["guess"]].name == "above the threshold"
    assert figure.data[main["marks"][-1]].name == "chosen patch"
    assert second["marks"] == [], "the chosen patch lies in the other image"
    assert explorer._pad.figure == figure.model_id


@pytest.mark.parametrize(
    ("lock", "panels"),
    [("", [[1, 2]]), ("patch", [[1, 2], [3]]), ("layer", [[1, 2, 3], [1, 2, 3]]), ("view", [[1, 2], [3]])],
)
def test_a_press_moves_the_maps_that_follow_it(backbones, probes, scenes, lock, panels):  # noqa: F811
    """The map is the first panel, the picture the second, what is locked the third."""
    explorer = bk.AffinityExplorer(backbones[0], probes[backbones[0]], [scenes[0]])
    if lock:
        explorer.lock(lock)
    assert [packed["panels"] for packed in explorer._pad.answers] == panels


def test_factors_are_sent_once_and_again_only_when_they_are_others(backbones, probes, scenes):  # noqa: F811
    explorer = bk.AffinityExplorer(backbones[0], probes[backbones[0]], [scenes[0]])
    first = explorer._pad.answers
    explorer.patch = (1, 1)
    assert explorer._pad.answers is first
    explorer.threshold = 0.7
    assert explorer._pad.answers[0]["threshold"] == 0.7
    before = explorer._pad.answers
    explorer.layer = next(
        layer for layer in probes[backbones[0]] and explorer._session.layers() if layer != explorer.layer
    )
    assert explorer._pad.answers[0]["left"] != before[0]["left"]
    explorer.measure = "cosine"
    assert explorer._pad.answers == []


def test_large_factors_stay_with_the_kernel(backbones, probes, scenes, monkeypatch):  # noqa: F811
    monkeypatch.setattr(session, "MOST_BYTES", 100)
    explorer = bk.AffinityExplorer(backbones[0], probes[backbones[0]], [scenes[0]])
    assert explorer._pad.answers == []
    explorer.patch = (2, 2)
    assert torch.isfinite(torch.from_numpy(explorer.scores)).all()
