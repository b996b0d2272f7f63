"""Extraction beside a bare forward loop over ready batches of the same windows; bytes of each dtype; peak memory.

    python tests/benchmarks/bench_extraction.py                              # DINOv2-S, 24 scenes, two cores
    python tests/benchmarks/bench_extraction.py --model large --scenes 512 --layers 18 --precision bfloat16
    python tests/benchmarks/bench_extraction.py --model tiny --scenes 4 --repeats 1             # a smoke run

Weights are random, of the real configuration; scenes are JPEG photographs of noise and edges, 512 x 683 px (the median
of ADE20K), with PNG masks of 20 objects, in a `folder:`. The bare loop holds normalised batches on the device and calls
the model with nothing captured; it writes nothing. Extraction goes from files to finished shards. They take turns;
ratios are of median times. `--root` says where caches go (``/dev/shm`` takes the disk out of the measurement).
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import bindkit as bk
from bindkit.cache.sizing import default_windows_per_batch

SIZES = {"tiny": (64, 2, 2), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
"""Width, layers and heads of the DINOv2 configurations."""


def write_model(place: Path, size: str) -> str:
    """A checkpoint directory without weights, in the hub's layout: `random-init:` draws them."""
    width, layers, heads = SIZES[size]
    config = {
        **{"model_type": "dinov2", "architectures": ["Dinov2Model"], "hidden_size": width, "patch_size": 14},
        **{"num_hidden_layers": layers, "num_attention_heads": heads, "image_size": 518, "mlp_ratio": 4},
    }
    settings = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3}
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(config))
    (place / "preprocessor_config.json").write_text(
        json.dumps(settings | {"image_processor_type": "BitImageProcessor"})
    )
    return f"random-init:{place}"


def write_scene(place: Path, k: int) -> None:
    down, across = np.mgrid[:512, :683]
    rng = np.random.default_rng(k)
    instances = np.zeros((512, 683), dtype=np.uint8)
    picture = rng.normal(0, 12, (512, 683, 3)) + 60 + 0.1 * across[..., None]
    for number in range(1, 21):
        top, left, height, width = rng.integers([0, 0, 30, 30], [480, 650, 200, 260])
        inside = ((down - top) / height) ** 2 + ((across - left) / width) ** 2 < 1
        instances[inside], picture[inside] = number, rng.normal(rng.uniform(30, 220, 3), 18, (inside.sum(), 3))
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(place / "images" / f"{k:05d}.jpg", quality=92)
    Image.fromarray(instances).save(place / "instances" / f"{k:05d}.png")
    Image.fromarray(instances % 7).save(place / "classes" / f"{k:05d}.png")


def write_scenes(place: Path, n: int) -> str:
    for folder in ("images", "instances", "classes"):
        (place / folder).mkdir(parents=True)
    with ProcessPoolExecutor() as processes:
        list(processes.map(partial(write_scene, place), range(n), chunksize=8))
    return f"folder:{place}"


def bare_seconds(backbone, n_windows: int, windows_per_batch: int) -> float:
    """Seconds of the model alone over so many windows, in ready batches, as the reference calls it."""
    side = backbone.geometry.window
    windows = torch.randint(0, 256, (min(n_windows, windows_per_batch), side, side, 3), dtype=torch.uint8)
    pixels = backbone.pixels(windows)

    def run(count: int) -> None:
        backbone.tower.run(pixels[:count])

    run(len(pixels))  # warm
    synchronise(backbone)
    begun = time.perf_counter()
    for start in range(0, n_windows, windows_per_batch):
        run(min(windows_per_batch, n_windows - start))
    synchronise(backbone)
    return time.perf_counter() - begun


def synchronise(backbone) -> None:
    if backbone.device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="small")
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--layers", nargs="*", default=["all"], help="one or several choices of layers")
    parser.add_argument("--dtypes", nargs="*", default=["float16"])
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="threads of torch on the CPU")
    parser.add_argument("--workers", type=int, nargs="*", default=[None])
    parser.add_argument("--windows-per-batch", type=int, default=None)
    parser.add_argument("--root", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    place = Path(tempfile.mkdtemp(prefix="bindkit-bench-", dir=options.root))
    try:
        scenes = bk.open_scenes(write_scenes(place / "scenes", options.scenes))
        backbone = bk.load_backbone(write_model(place / "model", options.model), precision=options.precision)
        batch = options.windows_per_batch or default_windows_per_batch(backbone)
        n_windows = sum(backbone.geometry.plan(scenes.size_of(k)).n_windows for k in range(len(scenes)))
        print(f"{backbone!r}, {len(scenes)} scenes, {n_windows} windows, batches of {batch}")
        rows = []
        for layers, dtype, workers in product(options.layers, options.dtypes, options.workers):
            wanted = backbone.resolve_layers(layers)
            bare, whole, busy = [], [], []
            for _turn in range(options.repeats + 1):
                bare.append(bare_seconds(backbone, n_windows, batch))
                cpu, begun = time.process_time(), time.perf_counter()
                cache = bk.cache_activations(
                    *(backbone, scenes, place / "cache", wanted),
                    **{"dtype": dtype, "workers": workers, "windows_per_batch": batch},
                )
                whole.append(time.perf_counter() - begun)
                busy.append(time.process_time() - cpu)
                n_bytes = cache.n_bytes
                shutil.rmtree(place / "cache")
            # The first turn warms caches and workers.
            times = [statistics.median(found[1:]) for found in (bare, whole, busy)]
            rows.append(
                {
                    **{"model": options.model, "device": backbone.device.type, "precision": options.precision},
                    **{"dtype": dtype, "workers": workers, "layers": layers, "windows": n_windows},
                    **{"bare_s": times[0], "extraction_s": times[1], "cpu_s": times[2]},
                    **{"scenes_per_second": len(scenes) / times[1], "ratio": times[0] / times[1]},
                    **{"bytes_per_scene": n_bytes / len(scenes), "first_s": whole[0]},
                    **{"peak_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024},
                }
            )
            print({name: round(v, 3) if isinstance(v, float) else v for name, v in rows[-1].items()}, flush=True)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
