"""What callers give is read in one way everywhere, and refused by name where it is something else."""

import inspect
import shlex
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from planted import PlantedBackbone, PlantedScenes

import bindkit as bk
from bindkit.arguments import positive_number, read_layers, read_seeds, resolve_layers, whole_number
from bindkit.cache import cache_activations
from bindkit.cli import main
from bindkit.errors import InvalidParameterError, LayerError, ProbeError
from bindkit.probes.fitting import fit_probe, fit_probes
from bindkit.probes.layers import LayerPatches
from bindkit.probes.protocols import RESULT_COLUMNS
from bindkit.results.tables import format_results


@pytest.mark.parametrize("given", [3, 3.0, np.int64(3), np.uint8(3), np.float64(3), np.float32(3), torch.tensor(3)])
def test_a_whole_number_is_read(given):
    assert whole_number(given, "layer") == 3
    assert type(whole_number(given, "layer")) is int


@pytest.mark.parametrize("given", [2.7, np.float32(2.7), float("nan"), float("inf"), "3", "a", None, [3], 3j, True])
def test_anything_else_is_refused(given):
    with pytest.raises(InvalidParameterError, match="layer is a whole number such as 3, got"):
        whole_number(given, "layer")


def test_a_fit_is_asked_for_with_whole_numbers(tmp_path):
    cache = cache_activations(PlantedBackbone(), PlantedScenes(4), root=tmp_path)
    with pytest.raises(InvalidParameterError, match="seed is a whole number such as 3, got 'a'"):
        inspect.unwrap(fit_probe)(cache, layer=2, seed="a")
    with pytest.raises(InvalidParameterError, match=r"seed is a whole number such as 3, got 0\.5"):
        inspect.unwrap(fit_probes)(LayerPatches(cache, 2), [("linear", "pairwise")], seed=0.5)
    with pytest.raises(InvalidParameterError, match=r"layer is a whole number such as 3, got 2\.7"):
        inspect.unwrap(fit_probe)(cache, layer=2.7)
    with pytest.raises(InvalidParameterError, match=r"layer is a whole number such as 3, got 2\.7"):
        inspect.unwrap(LayerPatches.__init__)(LayerPatches.__new__(LayerPatches), cache, 2.7)


LAYERS = [
    ("0, 3", (0, 3)),
    ("3,0", (3, 0)),
    (3, (3,)),
    ("3", (3,)),
    ([0, 3.0, 0], (0, 3)),
    (range(2), (0, 1)),
    (np.int64(2), (2,)),
]


@pytest.mark.parametrize(("given", "wanted"), [*LAYERS, ("all", "all"), (" all ", "all"), (np.array([1, 2]), (1, 2))])
def test_layers_are_read_in_one_way(given, wanted):
    assert read_layers(given) == wanted
    if wanted != "all":
        assert resolve_layers(given, 4, "vit") == tuple(sorted(wanted))


@pytest.mark.parametrize("given", [2.7, [2.7], [True], "0;3", "", "0,,3", "-1", [-1], [], None, ["3"], {}, object()])
def test_what_is_no_list_of_layers_is_refused_by_all_readers_alike(given, tmp_path):
    cache = cache_activations(PlantedBackbone(), PlantedScenes(4), root=tmp_path)
    for read in (
        read_layers,
        lambda layers: resolve_layers(layers, 4, "vit"),
        lambda layers: inspect.unwrap(bk.sweep)(cache, layers),
    ):
        with pytest.raises(LayerError, match="layers"):
            read(given)


def test_the_same_layers_are_cached_swept_and_measured(tmp_path):
    backbone, scenes = PlantedBackbone(), PlantedScenes(8)
    cache = cache_activations(backbone, scenes, root=tmp_path, layers="all")
    text = ", ".join(map(str, cache.layers[:2]))
    assert set(bk.sweep(cache, text, "linear")["layer"]) == set(cache.layers[:2])


@pytest.mark.parametrize("given", [0, -1, float("nan"), float("inf"), "1", None, True, [1]])
def test_a_positive_number_is_above_zero_and_finite(given):
    with pytest.raises(InvalidParameterError, match="learning_rate is a number above 0"):
        positive_number(given, "learning_rate")


@pytest.mark.parametrize("given", [3, "0", [], [0.5], [-1], [2**63]])
def test_seeds_are_a_sequence_of_whole_numbers_from_0_on(given):
    with pytest.raises(InvalidParameterError, match="seeds"):
        read_seeds(given)


WRONG_ARGUMENTS = """
import inspect, logging, sys
import bindkit as bk

logging.disable(logging.CRITICAL)
place = sys.argv[1]
scenes, backbone = bk.open_scenes("synthetic:n=6,seed=0,size=48x48"), bk.load_backbone("random-init:vit")
cache = bk.cache_activations(backbone, scenes, root=place, layers=[0])
probe = bk.fit_probe(cache, 0, "diag_quadratic", protocol="strict,epochs=1").probe
good = {
    **{"backbone": backbone, "backbones": [backbone], "scenes": scenes, "images": [scenes[0]], "scene": scenes[0]},
    **{"cache": cache, "caches": [cache], "probe": probe, "layer": 0},
    **{"probes": [probe], "fitted": {"one": (cache, probe), "two": (cache, probe)}, "rank": 2, "source": "v"},
    **{"geometry": backbone.geometry, "image": scenes[0].image, "base": scenes.uri, "options": {"twins": [0.5]}},
    **{"affinity": bk.affinity(backbone, bk.fit_probe(cache, 0, "linear").probe, scenes[0])},
    **{"labels_mask": scenes[0].instances},
    **{"name": "random-init:vit", "path": place + "/page.html", "directory": place + "/new", "objective": "mae"},
}
functions = "affinity breakdown calibrated reliability cache_activations check_scenes compare_with_model \
estimate_bytes \
find_objects judge_objects segment_scenes \
export_viewer fit_probe label_patches judge_probe load_backbone load_control load_controls load_probe \
measure_checkpoints open_scenes open_workspace pretrain save_figure split_scenes sweep vary_scenes AffinityExplorer \
attention_follows_binding binding_spectrum binding_subspace compare_subspaces intervene rank_curve read_as \
twin_differences twin_scores twins_benchmark"
tried = 0
for function in functions.split():
    public = getattr(bk, function)
    needed = [p.name for p in inspect.signature(public).parameters.values() if p.default is p.empty and p.kind < 2]
    for name in needed:
        for wrong in (2, None, [], object(), 3j):
            if (function, wrong) == ("load_controls", []) or (name, wrong) == ("rank", 2):
                continue  # of no backbone there is no control; 2 is a rank
            tried += 1
            try:
                public(**{other: good.get(other) for other in needed} | {name: wrong})
            except bk.BindkitError:
                continue
            except Exception as error:
                print(f"{function}({name}={wrong!r}): {error!r}")
            else:
                print(f"{function}({name}={wrong!r}) passed")
print(tried, "tried")
"""


def test_every_public_function_names_what_it_was_given_in_place_of_what_it_takes(tmp_path):
    """In a process of its own, without the type checker that tests run under and users do not."""
    command = [sys.executable, "-c", WRONG_ARGUMENTS, str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert done.stdout.splitlines()[:-1] == [], done.stderr
    assert int(done.stdout.split()[-2]) > 150


def test_training_from_a_script_without_a_main_guard_is_explained(tmp_path):
    script = tmp_path / "train.py"
    script.write_text("import bindkit as bk\nbk.pretrain('mae', 'run', scenes_seen=32)\n")
    command = [sys.executable, str(script)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, timeout=600)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("bindkit.errors.InvalidParameterError: ") and "__name__ == '__main__'" in last


NESTED = "[" * 100_000
WRONG_CALLS = {
    "rate nan": "pretrain mae run --learning-rate nan",
    "rate below 0": "pretrain mae run --learning-rate -1",
    "threads": "pretrain mae run --threads -1",
    "seed of a training": "pretrain mae run --seed -1",
    "objective": "pretrain nothing run",
    "seed": "run --seed -1",
    "seeds": "run --seeds 0",
    "window of a shipped backbone": "run --window 13",
    "window": "run --window -8",
    "window of an embedded backbone's twin": "run --backbone random-init:bindkit/scenes-mae --window 20",
    "patches": "run --patches-per-scene 0",
    "no backbone": "run --backbone ''",
    "no probe": "run --probes ''",
    "no task": "run --tasks ''",
    "layers": "run --layers 2.7",
    "scenes": "run --scenes folder:nowhere",
    "no such release": "run --scenes ade20k:nowhere",
    "synthetic": "run --scenes synthetic:n=0",
    "training scenes": "run --scenes synthetic:n=4,seed=1000000000000",
    "page": "run -p page_scenes 0",
    "workspace below a file": "run --workspace a_file/sub",
    "workspace far below a file": "run --workspace a_file/sub/deeper",
    "workspace is a file": "run --workspace a_file",
    "class names nested deeply": "run --scenes folder:nested",
    "a manifest nested deeply": "verify nested",
    "cache": "cache --scenes synthetic:n=2 --backbone random-init:vit --root a_file/sub",
}


@pytest.mark.parametrize("call", WRONG_CALLS.values(), ids=WRONG_CALLS)
def test_a_wrong_console_call_is_refused_before_anything_runs(call, tmp_path, monkeypatch, capsys):
    for folder in ("images", "instances"):
        (tmp_path / "nested" / folder).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "nested" / folder / "a.png")
    for name in ("class_names.json", "manifest.json"):
        (tmp_path / "nested" / name).write_text(NESTED)
    (tmp_path / "a_file").touch()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(call)) in (1, 2)
    told = capsys.readouterr()
    last = (told.err or told.out).strip().splitlines()[-1]
    assert len(last) > 20 and "Error" not in last and "Errno" not in last
    assert ".ipynb" not in last
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("fitted", "shown"), [(["linear", "quadratic_fixed_rank"], "quadratic_fixed_rank")])
def test_the_console_shows_the_most_capable_probe(fitted, shown):
    rows = [{"backbone": "vit", "objective": "mae", "layer": 0, "probe": name, "accuracy": 0.6} for name in fitted]
    assert f"({shown} probe" in format_results(pd.DataFrame(rows).reindex(columns=RESULT_COLUMNS))


def test_scenes_are_varied_with_numbered_probes(tmp_path):
    with pytest.raises(ProbeError, match="linear takes nothing behind an @"):
        bk.vary_scenes([bk.load_backbone("random-init:vit")], "synthetic:n=4,seed=0", {"twins": [0]}, probe="linear@4")
    table = bk.vary_scenes(
        [bk.load_backbone("random-init:vit")],
        "synthetic:n=10,seed=0,size=48x48",
        {"twins": [1]},
        root=tmp_path,
        layers=[0],
        probe="quadratic_fixed_rank@4",
    )
    assert set(table["probe"]) == {"quadratic_fixed_rank@4"}
