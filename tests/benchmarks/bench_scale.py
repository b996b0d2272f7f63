"""From rates measured here, hours and bytes for all of ADE20K x DINOv2-L x 24 layers; read rates of a cache; memory.

    python tests/benchmarks/bench_scale.py                                  # DINOv2-L on this machine: some minutes
    python tests/benchmarks/bench_scale.py --model tiny --scenes 8          # a smoke run

Rates: the model alone (random weights of the real configuration, one batch at a time), extraction as a share of that
(`bench_extraction.py`), rows of a cache read in order and at random (from the page cache), and training steps of the
quadratic probe at the model's width. A scene of ADE20K has two windows (512 x 683 px is its median) and 512 patches.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from bench_extraction import SIZES, bare_seconds, write_model, write_scenes

import bindkit as bk
from bindkit.cache.encoding import ENCODINGS
from bindkit.cache.sizing import default_windows_per_batch
from bindkit.files import readable_seconds
from bindkit.probes.layers import LayerPatches
from bindkit.probes.protocols import STRICT

ADE20K_SCENES, WINDOWS, PATCHES = 27_574, 2, 512


def read_rates(cache, layer: int) -> dict[str, float]:
    """Megabytes a second of float32 rows, in order and at random."""
    activations = cache.activations("train", layer)
    in_order, found = np.arange(len(activations)), {}
    for name, order in {"in_order": in_order, "at_random": np.random.default_rng(0).permutation(in_order)}.items():
        activations.take(order)
        started = time.perf_counter()
        activations.take(order)
        found[f"read_{name}_MB_s"] = 4 * len(order) * cache.d_model / 1e6 / (time.perf_counter() - started)
    return found


def seconds_per_step(cache, layer: int, buffer_bytes: int | None) -> float:
    """Of the quadratic probe under the strict protocol; less what comes before and after the steps."""
    times = []
    for steps in (10, 60):
        patches = LayerPatches(cache, layer, replace(STRICT, epochs=1, min_steps=steps), buffer_bytes=buffer_bytes)
        assert patches.moments is not None
        started = time.perf_counter()
        bk.fit_probe(patches, probe="quadratic")
        times.append(time.perf_counter() - started)
    return (times[1] - times[0]) / 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="large")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    place = Path(tempfile.mkdtemp(prefix="bindkit-bench-"))
    try:
        backbone = bk.load_backbone(write_model(place / "model", options.model), precision=options.precision)
        scenes, layer = bk.open_scenes(write_scenes(place / "scenes", options.scenes)), backbone.n_layers // 2
        batch = min(default_windows_per_batch(backbone), 2 * options.scenes)
        rate = 2 * batch / bare_seconds(backbone, 2 * batch, batch)
        started = time.perf_counter()
        cache = bk.cache_activations(backbone, scenes, place / "cache", [layer])
        figures = {
            **{"model": options.model, "device": backbone.device.type, "precision": options.precision},
            **{"windows_per_second": rate, "extraction_s": time.perf_counter() - started},
            **read_rates(cache, layer),
            "step_from_memory_s": seconds_per_step(cache, layer, None),
            "step_from_disk_s": seconds_per_step(cache, layer, 0),
            "peak_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        hours = ADE20K_SCENES * WINDOWS / rate / 3600
        steps = max(STRICT.min_steps, STRICT.epochs * ADE20K_SCENES * 0.8 / STRICT.scenes_per_step)
        rows = ADE20K_SCENES * PATCHES * backbone.n_layers
        figures |= {
            "ade20k_model_hours": hours,
            "ade20k_probe_hours_per_layer": steps * figures["step_from_disk_s"] / 3600,
            **{f"ade20k_{name}_TB": rows * of.bytes_per_row(backbone.d_model) / 1e12 for name, of in ENCODINGS.items()},
        }
        for name, value in figures.items():
            print(f"{name:32} {value if isinstance(value, str) else format(value, ',.4g')}")
        print(f"all of ADE20K through {backbone.name.rpartition('/')[2]}: about {readable_seconds(3600 * hours)}")
        if options.json:
            options.json.write_text(json.dumps(figures, indent=1))
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
