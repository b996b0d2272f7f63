"""Scenes per second of probe training: bindkit beside the reference's plain loop, both reading their own files.

    python tests/benchmarks/bench_probing.py                     # d_model 1024, 64 patches x 256 scenes, some minutes
    python tests/benchmarks/bench_probing.py --d-model 64 --scenes 32 --per-step 16          # a smoke run

The plain loop does what the reference implementation does: a file of float32 activations a scene is opened for every
scene of every batch, 64 of its 512 patches are drawn, and the probe goes scene by scene over pairs that are expanded in
memory. bindkit reads its own cache (float16 shards) and trains under the paper protocol, the same algorithm. Both take
Adam steps on the same number of scenes; both have their files in the page cache.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from bindkit.backbones.preprocessing import IMAGENET
from bindkit.extraction import cache_activations
from bindkit.geometry import WindowGeometry
from bindkit.layer_patches import LayerPatches
from bindkit.protocols import PAPER
from bindkit.scenes import Split
from bindkit.scenes.scene import Scene
from bindkit.side_by_side import prepared
from bindkit.tasks import TASKS

PATCHES, DRAWN = 512, 64
MUST = {"linear": 50, "diag_quadratic": 50, "quadratic": 6, "quadratic_fixed_rank": 50}


class Blocks:
    """Scenes of 64 x 128 px: 8 x 16 blocks of 8 instances and unlabelled ground; two windows, 512 patches of 4 px."""

    uri, broken, official_splits, class_names = "blocks:", (), None, {1: "one", 2: "two", 3: "three", 4: "four"}

    def __init__(self, n: int) -> None:
        self.ids = tuple(f"blocks-{k:05d}" for k in range(n))

    def __len__(self) -> int:
        return len(self.ids)

    def size_of(self, position: int) -> tuple[int, int]:
        return 64, 128

    def __getitem__(self, position: int) -> Scene:
        rng = np.random.default_rng(position)
        instances = np.kron(rng.integers(0, 9, (8, 16)), np.ones((8, 8), dtype=int)).astype(np.int32)
        image = np.stack(
            [instances * 20, rng.integers(0, 256, instances.shape), rng.integers(0, 256, instances.shape)], -1
        )
        return Scene(self.ids[position], image.astype(np.uint8), instances, (instances + 1) // 2)


class Coded:
    """Activations of a power-law spectrum with a code of the instance in 32 of the dimensions."""

    name, objective, n_layers, device = "coded", "planted", 1, torch.device("cpu")
    geometry, preprocessing = WindowGeometry(short_side=64, window=64, patch_size=4), IMAGENET

    def __init__(self, d_model: int) -> None:
        self.d_model = d_model
        self.codes = torch.randn(9, 32, generator=torch.Generator().manual_seed(0))
        self.spectrum = torch.arange(1, d_model + 1).float() ** -0.5

    def describe(self) -> dict:
        geometry = {"short_side": 64, "window": 64, "patch_size": 4}
        told = {"name": self.name, "objective": self.objective, "family": "planted", "weights_digest": "0" * 64}
        return told | {"revision": None, "d_model": self.d_model, "n_layers": 1, "n_prefix": 0, "geometry": geometry}

    def resolve_layers(self, layers: object) -> tuple[int, ...]:
        return (0,)

    def activations(self, windows: Tensor, layers: object) -> dict[int, Tensor]:
        instance = (windows[:, 2::4, 2::4, 0].float() / 20).round().long().flatten(1)
        generator = torch.Generator().manual_seed(int(windows.long().sum()) % 2**31)
        found = torch.randn(*instance.shape, self.d_model, generator=generator) * self.spectrum
        found[..., -32:] += 0.1 * self.codes[instance]
        return {0: found}


class PlainProbe(nn.Module):
    """The reference's probes, for the patches of one scene."""

    def __init__(self, kind: str, d: int) -> None:
        super().__init__()
        self.kind = kind
        if kind in ("linear", "diag_quadratic"):
            self.first = nn.Linear(d, 1)
        else:
            width = d if kind == "quadratic" else 100
            self.first, self.second = nn.Linear(d, width), nn.Linear(d, width)

    def forward(self, x: Tensor) -> Tensor:
        n, d = x.shape
        if self.kind in ("linear", "diag_quadratic"):
            first, second = x[:, None].expand(n, n, d), x[None].expand(n, n, d)
            if self.kind == "linear":
                return (self.first(first) + self.first(second)).squeeze(-1)
            return self.first(first * second).squeeze(-1)
        weight = self.first.weight
        if self.kind == "quadratic":
            form = weight + weight.T
        else:
            form = weight.T @ self.second.weight + self.second.weight.T @ weight
        return x @ (form / 2 / math.sqrt(d)) @ x.T + self.first.bias[0]


def plain_step(kind: str, d: int, files: list[Path], labels: list[np.ndarray]) -> Callable[[np.ndarray], None]:
    """One step of the plain loop on the scenes of given numbers."""
    probe = PlainProbe(kind, d)
    optimiser = torch.optim.Adam(probe.parameters(), lr=1e-3)
    rng = np.random.default_rng(0)

    def step(scenes: np.ndarray) -> None:
        logits, targets = [], []
        for scene in scenes:
            drawn = np.sort(rng.choice(PATCHES, DRAWN, replace=False))
            x = torch.from_numpy(np.array(np.load(files[scene], mmap_mode="r")[drawn]))
            mine = torch.from_numpy(labels[scene][drawn])
            logits.append(probe(x))
            targets.append((mine[:, None] == mine[None, :]).float())
        loss = binary_cross_entropy_with_logits(torch.stack(logits), torch.stack(targets))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def bindkit_step(kind: str, patches: LayerPatches) -> Callable[[np.ndarray], None]:
    """One step of bindkit's training under the paper protocol."""
    training = prepared(kind, TASKS["pairwise"], patches, 0)
    generator = torch.Generator().manual_seed(0)

    def step(scenes: np.ndarray) -> None:
        loss = training.loss(patches.splits["train"].draw(torch.from_numpy(scenes), generator))
        assert training.optimiser is not None
        training.optimiser.zero_grad()
        loss.backward()
        training.optimiser.step()

    return step


def speed(step: Callable[[np.ndarray], None], n_scenes: int, per_step: int, seconds: float) -> float:
    """Scenes per second after one step to warm up, over at least two steps and so many seconds."""
    rng = np.random.default_rng(1)
    step(rng.permutation(n_scenes)[:per_step])
    done, started = 0, time.perf_counter()
    while done < 2 * per_step or time.perf_counter() - started < seconds:
        step(rng.permutation(n_scenes)[:per_step])
        done += per_step
    return done / (time.perf_counter() - started)


def product_rate(side: int = 2048) -> float:
    """Floating-point operations per second of a float32 matrix product, the best of five."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    return 2 * side**3 / min(times)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-model", type=int, default=1024)
    parser.add_argument("--scenes", type=int, default=512)
    parser.add_argument("--per-step", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=5.0, help="at least, for each of the eight measurements")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--probes", nargs="+", default=list(MUST), choices=list(MUST))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as directory:
        place, scenes = Path(directory), Blocks(asked.scenes)
        split = Split(train=tuple(range(asked.scenes)), validation=(), test=())
        cache = cache_activations(Coded(asked.d_model), scenes, place / "cache", split=split)
        labels, table = cache.labels("train"), cache.activations("train", 0)
        files, instances = [], []
        for number, (start, end) in enumerate(zip(labels.scene_offsets, labels.scene_offsets[1:], strict=False)):
            files.append(place / f"{number}.npy")
            np.save(files[-1], table.take(np.arange(start, end)).numpy())
            instances.append(labels.instances[start:end])
        patches = LayerPatches(cache, 0, PAPER)
        rate = product_rate()
        # A quadratic step: X W forward and X' (G X) back, 2 n d^2 each, and (X W) X' and G X, 2 N n d each.
        rows = asked.per_step * DRAWN
        work = 4 * rows * asked.d_model**2 + 4 * rows * DRAWN * asked.d_model
        print(f"d_model {asked.d_model}, {DRAWN} patches x {asked.per_step} scenes a step, {asked.threads} threads")
        print(f"matrix products: {rate / 1e9:.0f} GFLOP/s\n")
        print(f"{'probe':<22}{'plain loop':>12}{'bindkit':>10}{'ratio':>8}{'must':>6}   scenes/s")
        for kind in asked.probes:
            plain = speed(
                plain_step(kind, asked.d_model, files, instances), asked.scenes, asked.per_step, asked.seconds
            )
            ours = speed(bindkit_step(kind, patches), asked.scenes, asked.per_step, asked.seconds)
            verdict = "holds" if ours / plain >= MUST[kind] else "does not hold"
            print(f"{kind:<22}{plain:>12.1f}{ours:>10.1f}{ours / plain:>8.1f}{MUST[kind]:>6}   {verdict}", flush=True)
            if kind == "quadratic":
                share = ours / asked.per_step * work / rate
                print(f"{'':<22}that is {share:.0%} of the matrix-product rate")


if __name__ == "__main__":
    main()
