"""Ten times the scenes take no more memory: peaks of whole processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = """
import sys
from pathlib import Path
import numpy as np, torch
from cache_fakes import SameSize
from bindkit.cache import cache_activations, sizing
from bindkit.scenes.geometry import WindowGeometry
from bindkit.scenes.scene import Scene

class Scenes:
    uri, made_by, broken, official_splits, class_names = "many:", "arithmetic", (), None, {1: "one"}
    def __init__(self, n): self.ids = tuple(f"scene-{k:05d}" for k in range(n))
    def __len__(self): return len(self.ids)
    def __iter__(self): return (self[k] for k in range(len(self)))
    def sources(self, position): return ()
    def size_of(self, position): return 256, 256
    def __getitem__(self, position):
        mask = np.full((256, 256), 1, dtype=np.int32); mask[:, position % 200 + 10:] = 2
        picture = np.random.default_rng(position).integers(0, 256, (256, 256, 3)).astype(np.uint8)
        return Scene(self.ids[position], picture, mask, mask * 0 + 1)

class Wide:
    name, n_layers, d_model, device = "wide", 3, 512, torch.device("cpu")
    geometry, preprocessing = WindowGeometry(256, 256, 16), SameSize()
    def describe(self):
        return {"name": "wide", "revision": None, "weights_digest": "aa", "d_model": 512, "n_layers": 3,
                "geometry": self.geometry.describe(), "preprocessing": {}}
    def resolve_layers(self, layers): return (0, 1, 2)
    def activations(self, windows, layers):
        return {layer: windows[:, ::16, ::16].reshape(len(windows), 256, 3).float().repeat(1, 1, 171)[..., :512] + layer
                for layer in layers}

sizing._LARGEST_SHARD = 8
torch.set_num_threads(1)
cache = cache_activations(Wide(), Scenes(int(sys.argv[2])), Path(sys.argv[1]), windows_per_batch=4, dtype=sys.argv[3])
# Not ru_maxrss: that of a child begins with the size of the process that it was forked from.
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(cache.n_bytes, int(peak.split()[1]) * 1024)
"""


def peak_of(place: Path, n: int, dtype: str) -> tuple[int, int]:
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(place), str(n), dtype],
        env=os.environ | {"PYTHONPATH": paths, "BINDKIT_PROGRESS": "off"},
        capture_output=True,
        text=True,
        check=True,
    )
    n_bytes, peak = map(int, done.stdout.split())
    return n_bytes, peak


@pytest.mark.skipif(sys.platform != "linux", reason="counts kibibytes, as Linux does")
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_ten_times_the_scenes_take_a_tenth_more_memory_at_most(tmp_path: Path, dtype: str) -> None:
    _, few = peak_of(tmp_path / "few", 40, dtype)
    n_bytes, many = peak_of(tmp_path / "many", 400, dtype)
    assert many <= 1.1 * few
    # Were the other nine tenths of the activations kept, it would be noticed.
    assert 0.9 * n_bytes > 0.1 * few
