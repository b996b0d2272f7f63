"""What each dtype of a cache costs: bytes a scene, and accuracy and AUROC of a probe less those from float32.

    python tests/benchmarks/bench_dtypes.py                                   # bindkit/scenes-motion, 400 scenes
    python tests/benchmarks/bench_dtypes.py --scenes synthetic:n=24,seed=3 --layers 5     # a smoke run

The same scenes, patches and seed for all. Then once more with one channel a hundred times as large as the others, as
the massive activations of large ViTs are: int8 has one scale a patch, which that channel takes up.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import pandas as pd

import bindkit as bk
from bindkit.cache.encoding import ENCODINGS


class WithMassiveChannel:
    """A backbone with one channel multiplied."""

    def __init__(self, backbone, factor: float) -> None:
        self.backbone, self.factor = backbone, factor
        self.name = f"{backbone.name} with a channel x {factor:g}"

    def __getattr__(self, name):
        return getattr(self.backbone, name)

    def describe(self):
        return self.backbone.describe() | {"name": self.name, "weights_digest": f"x {self.factor}"}

    def activations(self, windows, layers):
        found = self.backbone.activations(windows, layers)
        for activations in found.values():
            activations[..., 0] *= self.factor
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", default="synthetic:n=400,seed=0,size=80x80")
    parser.add_argument("--backbone", default="bindkit/scenes-motion")
    parser.add_argument("--layers", default="3,5")
    parser.add_argument("--probes", nargs="*", default=["linear", "quadratic"])
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    scenes, backbone = bk.open_scenes(options.scenes), bk.load_backbone(options.backbone)
    rows = []
    for source in (backbone, WithMassiveChannel(backbone, 100.0)):
        for layer in backbone.resolve_layers(options.layers):
            plain = {}
            for dtype in ("float32", *(name for name in ENCODINGS if name != "float32")):
                with tempfile.TemporaryDirectory() as root:
                    cache = bk.cache_activations(source, scenes, root, layers=[layer], dtype=dtype)
                    n_bytes = sum(n.n_bytes for name, n in cache.manifest.files().items() if "layer" in name)
                    for probe in options.probes:
                        figures = bk.fit_probe(cache, layer, probe).metrics
                        plain.setdefault(probe, figures)
                        change = {
                            f"{name}_points": 100 * (figures[name] - plain[probe][name])
                            for name in ("accuracy", "auroc")
                        }
                        rows.append(
                            {
                                **{"source": source.name, "layer": layer, "probe": probe, "dtype": dtype},
                                **{"bytes_per_scene_and_layer": n_bytes / len(scenes)},
                                **{"accuracy": figures["accuracy"], **change},
                            }
                        )
    print(pd.DataFrame(rows).round(4).to_string(index=False))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
