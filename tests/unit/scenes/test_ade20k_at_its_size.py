"""ADE20K's full release at its real size: 27,574 scenes with an index of its own keys, on sparse files."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bindkit.scenes import check_scenes, open_scenes, subset
from bindkit.scenes.formats.ade20k_writer import RELEASE

N = {"training": 25_574, "validation": 2_000}
N_CLASSES = 3_688
CUT = ("ADE_train_00000007", "ADE_val_00000011")  # a mask that is missing, a picture that is empty

DRIVER = """
import sys, time
from pathlib import Path
from bindkit.scenes import open_scenes
started = time.perf_counter()
scenes = open_scenes(sys.argv[1], index_dir=sys.argv[2])
seconds = time.perf_counter() - started
counts = [scenes.official_splits.count(split) for split in ("training", "validation")]
# Not ru_maxrss: that of a child begins with the size of the process that it was forked from.
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(len(scenes), *counts, len(scenes.class_names), len(scenes.broken), int(peak.split()[1]) * 1024, seconds)
"""


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("ade20k") / RELEASE
    filenames, folders = [], []
    for split, n in N.items():
        for k in range(1, n + 1):
            stem = f"ADE_{'train' if split == 'training' else 'val'}_{k:08d}"
            inner = f"images/ADE/{split}/topic_{k % 20}/scene_{k % 400}"
            filenames.append(f"{stem}.jpg")
            folders.append(f"{RELEASE}/{inner}")
            place = root / inner
            place.mkdir(parents=True, exist_ok=True)
            for ending, size in ((".jpg", 150_000), ("_seg.png", 20_000)):
                if stem != CUT[0] or ending == ".jpg":
                    with (place / f"{stem}{ending}").open("wb") as stream:
                        stream.truncate(0 if stem == CUT[1] and ending == ".jpg" else size)
    n_scenes, none = len(filenames), np.zeros((N_CLASSES, 0))
    index = {
        "filename": filenames,
        "folder": folders,
        "scene": ["/topic/scene"] * n_scenes,
        "description": {"filename": "array of length N with the image file names"},
        "objectIsPart": np.zeros((N_CLASSES, n_scenes), np.uint8),  # of 8 bytes a number in the release
        "objectPresence": none,
        "objectcounts": np.zeros(N_CLASSES),
        "objectnames": [f"object {k}" for k in range(1, N_CLASSES + 1)],
        "proportionClassIsPart": np.zeros(N_CLASSES),
        "wordnet_found": np.zeros(N_CLASSES),
        **dict.fromkeys(("wordnet_level1", "wordnet_synset", "wordnet_hypernym", "wordnet_gloss"), ["x"] * N_CLASSES),
        "wordnet_frequency": np.zeros(N_CLASSES),
    }
    (root / "index_ade20k.pkl").write_bytes(pickle.dumps(index, protocol=4))
    return root


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_it_opens_again_within_seconds_and_little_memory(release, tmp_path):
    command = [sys.executable, "-c", DRIVER, f"ade20k:{release}", str(tmp_path)]
    environment = os.environ | {"BINDKIT_PROGRESS": "off"}
    for round_ in range(4):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        *counts, peak, seconds = map(float, done.stdout.split())
        assert counts == [27_572, 25_573, 1_999, N_CLASSES, 2]
        if round_ and seconds < 3:  # not the first; the best of three, so that a busy machine does not fail it
            break
    assert seconds < 3
    assert peak < 300 * 2**20


def test_what_is_broken_is_named_once_and_the_rest_stays_in_order(release, tmp_path):
    for _ in range(2):
        scenes = open_scenes(f"ade20k:{release}", index_dir=tmp_path)
        assert [scene.id for scene in scenes.broken] == list(CUT)
        assert "missing" in scenes.broken[0].reason and "empty" in scenes.broken[1].reason
        assert list(scenes.ids) == sorted(scenes.ids)
    (kept,) = tmp_path.iterdir()
    assert len(json.loads(kept.read_text())["content"]["files"]) == 27_574
    # Files that turn out to be unreadable are reported once each, and left out of what goes on.
    few = subset(scenes, range(25_570, 25_580))
    report = check_scenes(few)
    assert [scene.id for scene in report.broken] == [*CUT, *few.ids]
    assert len(report.usable_scenes(few)) == 0
    assert len(report.usable_scenes(few).broken) == 12
