"""README's worked example, from photos and polygons to a table: its very words, on small made-up photos."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import bindkit as bk
from bindkit.cli import main

COLOURS = {"cup": (230, 60, 40), "book": (40, 70, 220)}


@pytest.fixture
def example(root):
    """The code block and the command of the section."""
    section = (root / "README.md").read_text(encoding="utf-8").split("## Your images")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (command,) = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    return code, shlex.split(command), set(re.findall(r"`(matched_\w+)`", section))


def make_photos(n):
    """Photos of two cups before two books, one of them stored on its side, and what each pixel shows upright."""
    draw, outlines, shown = np.random.default_rng(0), {}, {}
    for k in range(n):
        pixels = draw.integers(90, 140, (96, 128, 3), dtype=np.uint8)
        instances, classes, name = np.zeros((96, 128), int), np.zeros((96, 128), int), f"{k}.png"
        outlines[name] = []
        for number, kind in enumerate(("book", "book", "cup", "cup"), start=1):
            top, left = int(draw.integers(2, 40)), 60 * (number % 2) + int(draw.integers(2, 20))
            bottom, right = top + 45, left + 40
            outlines[name].append([kind, [[left, top], [right, top], [right, bottom], [left, bottom]]])
            inside = np.s_[top : bottom + 1, left : right + 1]
            pixels[inside] = COLOURS[kind]
            instances[inside], classes[inside] = number, ("book", "cup").index(kind) + 1
        shown[name] = pixels, instances, classes
        stored = Image.fromarray(np.rot90(pixels) if k == 0 else pixels)
        exif = Image.Exif()
        exif[0x0112] = 6 if k == 0 else 1  # turned clockwise, it is upright
        stored.save(f"photos/{name}", exif=exif)
    Path("outlines.json").write_text(json.dumps(outlines))
    return shown


def test_from_photos_and_polygons_to_the_table(example, tmp_path, monkeypatch):
    code, command, columns = example
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    shown = make_photos(10)
    exec(code, {})
    uri = command[command.index("--scenes") + 1]
    scenes = bk.open_scenes(uri)
    assert list(scenes.ids) == sorted(shown)
    for scene in scenes:
        pixels, instances, classes = shown[scene.id]
        assert np.array_equal(scene.image, pixels)
        assert np.array_equal(scene.instances, instances)
        assert np.array_equal(scene.classes, classes)

    # One photo shows a thin strip of class 1 between classes 0 and 2, which is no smoothing.
    assert (command[0], uri, len(bk.check_scenes(scenes).usable)) == ("bindkit", "folder:mine,soft=allow", len(shown))
    command[command.index("--backbone") + 1] = "bindkit/scenes-dino"  # no network here
    assert main([*command[1:], "--layers", "2", "--probes", "quadratic", "--controls", "position"]) == 0
    place = tmp_path / command[command.index("--workspace") + 1]
    row = pd.read_csv(place / "model_table.csv").set_index("backbone").loc["bindkit/scenes-dino"]
    assert (row["split"], row["n_scenes"]) == ("5 folds", len(shown))
    assert columns == {"matched_auroc_over_controls_low"}
    assert row["matched_auroc_over_controls_low"] < row["matched_auroc_over_controls"]
    assert row["twins_auroc"] > 0.5
    assert (place / "viewer.html").exists()
