"""How much faster probes are trained than by the plain loop of the reference, and how much sooner they are as good.

    python tests/benchmarks/bench_probing.py                                  # about 6 minutes, 5 GB of disk
    python tests/benchmarks/bench_probing.py --scenes 64 --d-model 64 --seconds 0.2     # smoke run

Two threads, batches of 256 scenes with 64 patches each, both sides read from their own files in the same run. Each
step of ours is a step of the paper protocol (`tests/unit/test_paper_protocol.py` holds it to the plain loop's figures).
Measured by hand, never a gate. What must hold: 6 times the plain loop's scenes a second for the quadratic probe, 50
times for the others, and the plain loop's final validation accuracy after a twentieth of its time.
"""

import argparse
import math
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from bindkit import training
from bindkit.extraction import cache_activations
from bindkit.geometry import PatchGrid, TokenLayout, WindowGeometry
from bindkit.patch_batches import SplitPatches
from bindkit.probes import make_probe
from bindkit.protocols import PAPER, STRICT
from bindkit.scenes.scene import Scene
from bindkit.scenes.splits import Split
from bindkit.tasks import TASKS
from bindkit.training import LayerPatches

try:
    import h5py
except ImportError:
    h5py = None

MUST_HOLD = {"linear": 50, "diag_quadratic": 50, "quadratic": 6, "quadratic_fixed_rank": 50}
MOST_OF_THE_TIME = 1 / 20
CPU = torch.device("cpu")
BATCH, SHOWN, PATCHES = PAPER.scenes_per_step, PAPER.train_patches, 512
CODE_WIDTH, N_CODES = 32, 4096


class PlantedScenes:
    """Scenes of 32 blocks: 6 instances of 3 classes and unlabelled ground; the picture says which scene it is."""

    uri = "planted-for-timing:"
    broken = ()
    official_splits = None

    def __init__(self, n_scenes):
        self.class_names = {1: "one", 2: "two", 3: "three"}
        self.ids = tuple(f"timed-{k:05d}" for k in range(n_scenes))

    def __len__(self):
        return len(self.ids)

    def __iter__(self):
        return (self[k] for k in range(len(self)))

    def size_of(self, position):
        return 64, 128

    def __getitem__(self, position):
        blocks = np.random.default_rng(position).permutation(np.repeat([0, 0, 1, 2, 3, 4, 5, 6], 4)).reshape(4, 8)
        instances = np.kron(blocks, np.ones((16, 16), dtype=int)).astype(np.int32)
        number = np.full_like(instances, position)
        image = np.stack([instances, number % 256, number // 256], axis=-1).astype(np.uint8)
        return Scene(self.ids[position], image, instances, ((instances + 1) // 2).astype(np.int32))


@dataclass(frozen=True)
class PlantedBackbone:
    """A code of the object in 32 faint directions, among noise whose variance falls as one over its rank."""

    d_model: int

    name, revision, family, objective, weights_digest = "timed", None, "planted", "planted", "0" * 64
    n_layers = 1
    geometry = WindowGeometry(short_side=64, window=64, patch_size=4)
    layout = TokenLayout(0, PatchGrid(16, 16, 4))
    device = CPU

    @property
    def preprocessing(self):
        from bindkit.backbones.preprocessing import IMAGENET

        return IMAGENET

    def describe(self):
        known = {name: getattr(self, name) for name in ("name", "revision", "family", "objective", "weights_digest")}
        geometry = {"short_side": 64, "window": 64, "patch_size": 4}
        mean = {"mean": [0.485, 0.456, 0.406]}
        widths = {"d_model": self.d_model, "n_layers": 1, "n_prefix": 0}
        return {**known, **widths, "geometry": geometry, "preprocessing": mean}

    def resolve_layers(self, layers):
        return (0,)

    def activations(self, windows, layers):
        fixed = torch.Generator().manual_seed(1)
        rotation = torch.linalg.qr(torch.randn(self.d_model, self.d_model, generator=fixed)).Q
        variance = 1 / torch.arange(1, self.d_model + 1)
        variance *= self.d_model / variance.sum()
        codes = torch.randn(N_CODES, CODE_WIDTH, generator=fixed)
        middle = windows[:, 2::4, 2::4].long().flatten(1, 2)
        which = (middle[..., 1] + 256 * middle[..., 2]) * 7 + middle[..., 0]
        noise = torch.Generator().manual_seed(int(which.sum()))
        given = torch.randn(len(windows), 256, self.d_model, generator=noise) * variance.sqrt()
        # Directions of the middle of the spectrum, with a third of the noise's own deviation on top.
        first = self.d_model // 8
        faint = slice(first, first + CODE_WIDTH)
        given[..., faint] += codes[which * 2654435761 % N_CODES] * variance[faint].sqrt()
        return {0: given @ rotation}


class ReferenceFiles:
    """One float32 array ``[scene, patch, d_model]`` a split, opened anew for every scene as the reference does."""

    def __init__(self, directory, cache):
        self.kind = "HDF5" if h5py else ".npy memory map (h5py is not installed)"
        self._files, self._instances = {}, {}
        for split in ("train", "validation"):
            labels, read = cache.labels(split), cache.activations(split, 0)
            shape = (labels.n_scenes, PATCHES, cache.d_model)
            self._instances[split] = torch.from_numpy(labels.instances.reshape(shape[:2]).astype(np.int64))
            self._files[split] = path = Path(directory) / f"{split}.{'h5' if h5py else 'npy'}"
            if h5py:
                file = h5py.File(path, "w")
                target = file.create_dataset("activations", shape, "f4")
            else:
                file = target = np.lib.format.open_memmap(path, "w+", np.float32, shape)
            for scene in range(shape[0]):
                target[scene] = read.take(np.arange(scene * PATCHES, (scene + 1) * PATCHES)).numpy()
            file.close() if h5py else file.flush()

    def scene(self, split, number):
        """64 patches drawn from one scene, and their instances."""
        if h5py:
            with h5py.File(self._files[split], "r") as file:
                rows = file["activations"][number]
        else:
            rows = np.array(np.load(self._files[split], mmap_mode="r")[number])
        chosen = torch.randperm(PATCHES)[:SHOWN]
        return torch.from_numpy(rows)[chosen], self._instances[split][number][chosen]


def plain_logits(probe, x):
    """All pairs of one scene as the reference writes them: pairs expanded, the form built anew for every scene."""
    n, d = x.shape
    if probe.kind in ("linear", "diag_quadratic"):
        first, second = x[:, None, :].expand(n, n, d), x[None, :, :].expand(n, n, d)
        if probe.kind == "linear":
            return first @ probe.weight + second @ probe.weight + probe.bias
        return (first * second) @ probe.weight + probe.bias
    weight = probe.weight if probe.kind == "quadratic" else probe.first.T @ probe.second
    return x @ ((weight + weight.T) / 2) @ x.T / math.sqrt(d) + probe.bias


def time_plain(name, files, n_scenes, d_model, seconds):
    """Scenes a second of the plain loop, its reading included, and the share of the time that is reading.

    The graph is run backwards scene by scene: for all scenes of a batch at once it would hold 8 GB.
    """
    probe = make_probe(name, d_model)
    optimiser = torch.optim.Adam(probe.parameters(), lr=PAPER.learning_rate)
    reading, learning = [], []
    started, scene = time.perf_counter(), 0
    while time.perf_counter() - started < seconds or len(learning) < 6:
        begun = time.perf_counter()
        x, instances = files.scene("train", scene % n_scenes)
        read = time.perf_counter()
        same = (instances[:, None] == instances[None, :]).float()
        (binary_cross_entropy_with_logits(plain_logits(probe, x), same) / BATCH).backward()
        reading.append(read - begun)
        learning.append(time.perf_counter() - read)
        scene += 1
    steps = []
    for _ in range(3):
        begun = time.perf_counter()
        optimiser.step()
        steps.append(time.perf_counter() - begun)
    # Of a few scenes, the first are slow for reasons of their own; the middle one is what most of them take.
    read, learned = statistics.median(reading[1:]), statistics.median(learning[1:])
    a_batch = BATCH * (read + learned) + statistics.median(steps)
    return BATCH / a_batch, BATCH * read / a_batch


def time_ours(name, patches, seconds):
    """Scenes a second of a step of the paper protocol, its reading included, and the seconds of each part of it."""
    train = patches.splits["train"]
    trained = training._prepared(name, TASKS["pairwise"], patches, 0)
    generator = torch.Generator().manual_seed(0)
    parts = defaultdict(list)
    started = time.perf_counter()
    while time.perf_counter() - started < seconds or len(parts["loss"]) < 4:
        for scenes in training._scene_batches(len(train), patches.protocol, generator):
            marks = [time.perf_counter()]
            batch = train.draw(scenes, generator)
            marks.append(time.perf_counter())
            loss = trained.loss(batch)
            marks.append(time.perf_counter())
            trained.optimiser.zero_grad()
            loss.backward()
            marks.append(time.perf_counter())
            trained.optimiser.step()
            marks.append(time.perf_counter())
            for part, begun, ended in zip(("read", "loss", "backward", "adam"), marks, marks[1:], strict=False):
                parts[part].append(ended - begun)
    medians = {part: statistics.median(times[1:]) for part, times in parts.items()}
    return min(BATCH, len(train)) / sum(medians.values()), medians


def matrix_rate(side=2048, n_times=5):
    """Operations a second in a product of two float32 matrices, a multiplication and an addition counted as two."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    times = []
    for _ in range(n_times):
        begun = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - begun)
    return 2 * side**3 / min(times)


def quadratic_operations(n_scenes, d_model):
    """Operations of a step that no way of writing it avoids: ``X S`` and ``(X S) X'`` once there, once back.

    Forward: 2 N d^2 for all N = scenes x patches rows, and 2 n^2 d a scene; backward the same again for the gradients
    of S and of X S (none is needed of X). At 256 scenes, 64 patches and width 1024: 73.0 billion.
    """
    rows = n_scenes * SHOWN
    return 2 * (2 * rows * d_model**2 + 2 * rows * SHOWN * d_model)


def reference_accuracy(cache):
    """Best validation accuracy of the reference's whole schedule, and the seconds that ours takes for it."""
    begun = time.perf_counter()
    patches = LayerPatches(cache, 0, PAPER, "cpu")
    trained = training._prepared("quadratic", TASKS["pairwise"], patches, 0)
    training._train([trained], patches, 0)
    accuracies = [entry["validation_accuracy"] for entry in trained.history]
    return max(accuracies), accuracies, time.perf_counter() - begun


def time_to(accuracy, cache, longest):
    """Seconds until the strict path's accuracy on the paper's validation pairs is as good, its judging not counted.

    Yields after the start in closed form and after each epoch: which, seconds so far, accuracy.
    """
    judged = SplitPatches(cache, "validation", 0, PAPER, CPU)
    list(judged.judged())
    spent, begun = 0.0, time.perf_counter()
    patches = LayerPatches(cache, 0, STRICT, "cpu")
    training._require_two_answers(patches)
    patches.splits["train"].require_differences()
    moments = patches.moments
    spent += time.perf_counter() - begun
    yield f"second moments of {patches.splits['train'].n_patches:,} patches", spent, math.nan
    begun = time.perf_counter()
    patches.units("whitened")
    spent += time.perf_counter() - begun
    yield "whitening", spent, math.nan
    begun = time.perf_counter()
    trained = training._prepared("quadratic", TASKS["pairwise"], patches, 0)
    assert moments is patches.moments
    spent += time.perf_counter() - begun
    reached = training._validate(trained.settle(), trained.task, judged)[1]
    yield "start in closed form", spent, reached
    generator, train = torch.Generator().manual_seed(0), patches.splits["train"]
    for epoch in range(STRICT.epochs):
        if reached >= accuracy or spent > longest:
            return
        begun = time.perf_counter()
        for scenes in training._scene_batches(len(train), patches.protocol, generator):
            loss = trained.loss(train.draw(scenes, generator))
            trained.optimiser.zero_grad()
            loss.backward()
            trained.optimiser.step()
        trained.schedule.step()
        spent += time.perf_counter() - begun
        reached = training._validate(trained.settle(), trained.task, judged)[1]
        yield f"epoch {epoch}", spent, reached


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--scenes", type=int, default=1024, help="training scenes; a quarter as many validate")
    asked.add_argument("--d-model", type=int, default=1024, help="width of the activations (at least 64)")
    asked.add_argument("--seconds", type=float, default=8.0, help="how long each side is timed for each probe")
    asked.add_argument("--directory", help="where the data are made (default: a temporary directory)")
    asked.add_argument("--skip-accuracy", action="store_true", help="leave out time to accuracy")
    options = asked.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        measure(options, Path(directory))


def measure(options, directory) -> None:
    n_train, n_validation = options.scenes, max(options.scenes // 4, 1)
    split = Split(tuple(range(n_train)), tuple(range(n_train, n_train + n_validation)), ())
    scenes = PlantedScenes(n_train + n_validation)
    begun = time.perf_counter()
    cache = cache_activations(PlantedBackbone(options.d_model), scenes, directory, split=split, windows_per_batch=32)
    files = ReferenceFiles(directory, cache)
    print(
        f"{n_train} + {n_validation} scenes of {PATCHES} patches, width {options.d_model}, made in "
        f"{time.perf_counter() - begun:.0f} s; the reference side reads float32 {files.kind}, ours {cache.dtype}"
    )
    patches = LayerPatches(cache, 0, PAPER, "cpu")
    plain_speed = {}
    print(
        f"\n{'probe':<22}{'plain/s':>9}{'ours/s':>9}{'ratio':>8}{'must':>6}  holds  plain reading; ours in ms a batch"
    )
    for name, wanted in MUST_HOLD.items():
        plain, reading = time_plain(name, files, n_train, options.d_model, options.seconds)
        ours, parts = time_ours(name, patches, options.seconds)
        plain_speed[name] = plain
        where = ", ".join(f"{part} {1000 * seconds:.0f}" for part, seconds in parts.items())
        holds = "yes" if ours / plain >= wanted else "no"
        print(
            f"{name:<22}{plain:>9.1f}{ours:>9.1f}{ours / plain:>8.1f}{wanted:>6}  {holds:<6} {reading:.0%}; {where}",
            flush=True,
        )
        if name == "quadratic":
            quadratic_parts = parts
    rate, size = matrix_rate(), min(BATCH, n_train)
    operations = quadratic_operations(size, options.d_model)
    step = sum(quadratic_parts.values())
    print(
        f"\nmatrix products: {rate / 1e9:.0f} GFLOP/s; a quadratic step of {size} scenes needs "
        f"{operations / 1e9:.1f} GFLOP and takes {step:.2f} s: {operations / step / rate:.0%} of that rate "
        f"({operations / (step - quadratic_parts['read']) / rate:.0%} without reading)",
        flush=True,
    )
    if options.skip_accuracy:
        return
    accuracy, by_epoch, seconds = reference_accuracy(cache)
    reference = PAPER.epochs * n_train / plain_speed["quadratic"]
    print(
        f"\nthe reference's schedule ends at accuracy {accuracy:.4f} (by epoch: "
        f"{' '.join(f'{value:.3f}' for value in by_epoch)}); found by the paper protocol in {seconds:.0f} s "
        f"({reference / seconds:.1f} times as fast). Its {PAPER.epochs} x {n_train} scenes take the plain loop "
        f"{reference:.0f} s at the speed measured above"
    )
    reached, spent = 0.0, math.inf
    for stage, spent, reached in time_to(accuracy, cache, reference):
        said = "" if math.isnan(reached) else f"  accuracy {reached:.4f} on the paper's pairs"
        print(f"  {stage:<42}{spent:>7.1f} s{said}", flush=True)
    if reached < accuracy:
        print(f"strict never gets there: no ({reached:.4f} of {accuracy:.4f})")
        return
    holds = "yes" if spent <= MOST_OF_THE_TIME * reference else "no"
    print(f"as good after 1/{reference / spent:.0f} of the plain loop's time; must be 1/20 at most: {holds}")


if __name__ == "__main__":
    main()
