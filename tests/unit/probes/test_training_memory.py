"""Ten times the training scenes take no more memory: peaks of whole processes, mapped pages not counted.

Judging is another matter: every judged pair takes about 130 bytes, since ranks are of all pairs together.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = """
import sys, threading, time
from dataclasses import replace
from pathlib import Path
import torch
from planted import PlantedBackbone, PlantedScenes
from bindkit.cache import cache_activations
from bindkit.probes.fitting import fit_probe
from bindkit.probes.protocols import STRICT
from bindkit.scenes import Split

class Wide(PlantedBackbone):
    def activations(self, windows, layers):
        narrow = super().activations(windows, layers)
        return {layer: found.repeat(1, 1, 22)[..., :512] for layer, found in narrow.items()}

torch.set_num_threads(1)
n, buffer_bytes = int(sys.argv[2]), int(sys.argv[3])
backbone, scenes = Wide(d_model=512), PlantedScenes(n)
split = Split(train=tuple(range(12, n)), validation=tuple(range(6)), test=tuple(range(6, 12)), notices=())
cache = cache_activations(backbone, scenes, Path(sys.argv[1]), layers=[2], dtype="float32", split=split)

def anonymous():
    return 1024 * int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0])

peak, done = [0], threading.Event()
def watch():
    while not done.wait(0.005):
        peak[0] = max(peak[0], anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
try:
    fit_probe(cache, 2, "linear", protocol=replace(STRICT, epochs=2, min_steps=20), buffer_bytes=buffer_bytes)
finally:
    done.set()
    watcher.join()
print(cache.n_bytes, peak[0])
"""


def peak_of(place: Path, n: int, buffer_bytes: int) -> tuple[int, int]:
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(place), str(n), str(buffer_bytes)],
        env=os.environ | {"PYTHONPATH": paths, "BINDKIT_PROGRESS": "off"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    n_bytes, peak = map(int, done.stdout.split())
    return n_bytes, peak


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to tell mapped pages from others")
def test_ten_times_the_scenes_take_a_tenth_more_memory_at_most(tmp_path: Path) -> None:
    _, few = peak_of(tmp_path / "few", 60, 0)
    n_bytes, many = peak_of(tmp_path / "many", 600, 0)
    assert many <= 1.1 * few
    _, held = peak_of(tmp_path / "many", 600, 2**40)
    assert held > many + 0.5 * n_bytes  # from memory it would be noticed
