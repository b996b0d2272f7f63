"""The console: thin, with clean messages and honest exit statuses."""

from __future__ import annotations

import re
import subprocess
import sys

import pandas as pd
import pytest
from written_notebooks import write_notebook

import bindkit
from bindkit.cli import main
from bindkit.errors import BackboneError
from bindkit.pipeline import running as pipeline
from bindkit.results.tables import format_results

PARAMETERS = (
    'workspace = "w"\nscenes = "synthetic:n=4,seed=0"\nbackbones = "random-init:vit"\nlayers = "all"\n'
    'probes = "linear"\nprotocol = "strict"\nseed = 0\npatches_per_scene = 8\nwindow = 0\nrate = 0.5'
)
WRITE = """import pandas as pd
accuracies = {"vit": 0.91, "dino": 0.74}
rows = [dict(backbone=name, layer=layer, probe="quadratic", protocol=protocol, split="test",
             accuracy=accuracy - layer / 100, accuracy_low=0.7, accuracy_high=0.95, majority_accuracy=0.7)
        for name, accuracy in accuracies.items() for layer in (0, 1)]
pd.DataFrame(rows).to_csv(f"{workspace}/results.csv", index=False)"""


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    directory = tmp_path / "numbered"
    directory.mkdir()
    write_notebook(directory / "01_write_table.ipynb", PARAMETERS, WRITE)
    monkeypatch.setattr(pipeline, "notebooks_directory", lambda: directory)
    return directory


def test_run_ends_with_the_table_and_where_everything_lies(notebooks, tmp_path, capsys):
    assert main(["run", "--workspace", str(tmp_path / "run"), "--protocol", "paper", "-p", "rate", "1"]) == 0
    out = capsys.readouterr().out
    assert "quadratic probe, paper protocol, evaluated on the test scenes" in out
    vit = next(line for line in out.splitlines() if line.strip().startswith("vit"))
    assert vit.split()[1:] == ["-", "0", "0.910", "0.700", "to", "0.950", "0.700", "+0.210", "-", "-"]
    for name in ("results.csv", "figures", "notebooks", "probes", "cache"):
        assert str(tmp_path / "run" / name) in out


@pytest.mark.parametrize("given", [["--protocol"], ["-p", "protocol"]])
def test_run_takes_fields_of_a_protocol_and_says_them(notebooks, tmp_path, capsys, given):
    """However they are written: the second call finds the run there."""
    where = ["run", "--workspace", str(tmp_path / "run")]
    assert main([*where, *given, "strict, epochs=2, keep=loss"]) == 0
    assert "quadratic probe, strict,epochs=2 protocol, evaluated on" in capsys.readouterr().out
    before = (tmp_path / "run" / "notebooks" / "01_write_table.ipynb").stat().st_mtime_ns
    assert main([*where, *given, "strict,epochs=2"]) == 0
    assert (tmp_path / "run" / "notebooks" / "01_write_table.ipynb").stat().st_mtime_ns == before
    assert main([*where, *given, "strict,epochs=3"]) == 2
    assert "protocol: recorded 'strict,epochs=2', given 'strict,epochs=3'" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["--protocol"], ["-p", "protocol"]])
def test_run_refuses_a_protocol_that_there_is_not_before_anything_starts(notebooks, tmp_path, capsys, given):
    for text, said in (("loose", "unknown protocol 'loose'"), ("strict,epoch=4", "did you mean 'epochs'?")):
        assert main(["run", "--workspace", str(tmp_path / "run"), *given, text]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_run_passes_every_option_on(notebooks, tmp_path, monkeypatch):
    seen = {}

    def stop(workspace, force, **parameters):
        seen.update(parameters, workspace=workspace, force=force)
        raise BackboneError("seen")

    monkeypatch.setattr(pipeline, "run_pipeline", stop)
    options = ["--scenes", "ade20k:d", "--backbone", "a", "b c", "--backbone", "d", "--layers", "0,6"]
    options += [
        "--probes",
        "linear",
        "quadratic",
        "--protocol",
        "paper",
        "--patches-per-scene",
        "64",
        "--window",
        "112",
    ]
    options += ["--seed", "3", "--workspace", "w", "--force", "-p", "rate", "0.25"]
    options += ["--controls", "position", "raw-pixels"]
    assert main(["run", *options]) == 2
    assert seen == {
        "scenes": "ade20k:d",
        "backbones": ["a", "b c", "d"],
        "layers": "0,6",
        "controls": "position raw-pixels",
        "probes": ["linear", "quadratic"],
        "protocol": "paper",
        "patches_per_scene": 64,
        "window": 112,
        "seed": 3,
        "workspace": "w",
        "force": True,
        "rate": 0.25,
    }


def test_no_controls_can_be_asked_for(notebooks, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(pipeline, "run_pipeline", lambda workspace, force, **given: seen.update(given) or 1 / 0)
    for options, expected in ((["--controls"], {"controls": ""}), ([], {})):
        with pytest.raises(ZeroDivisionError):
            main(["run", *options])
        assert seen == expected
        seen.clear()


def test_the_table_says_how_far_backbones_are_above_the_controls():
    names = ["backbone", "objective", "layer", "accuracy", "auroc", "twins_auroc", "accuracy_low", "accuracy_high"]
    rows = [
        ("pretrained/self-supervised-dino", "self-supervised", 11, 0.9, 0.95, 0.7, 0.885, 0.915),
        ("control:position+raw-pixels", "control", None, 0.8, 0.91, 0.66, 0.785, 0.815),
        ("control:position", "control", None, 0.7, 0.86, 0.72, 0.685, 0.715),
    ]
    results = pd.DataFrame(rows, columns=names).assign(probe="quadratic", majority_accuracy=0.7, n_scenes=80)
    lines = format_results(results).splitlines()
    assert max(map(len, lines)) <= 140
    cells = {line.split()[0]: line.split()[1:] for line in lines if "/" in line or " control " in line}
    assert cells["pretrained/self-supervised-dino"][-4:] == ["0.950", "+0.040", "0.700", "-0.020"]
    assert cells["position"] == [
        *("control", "-", "0.700", "0.685", "to", "0.715", "0.700", "+0.000"),
        *("0.860", "-", "0.720", "-"),
    ]
    assert "over baseline" in lines[-1]
    assert "over baseline" not in format_results(results[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-p", "laers", "0"], "unknown parameter 'laers' (did you mean 'layers'?)"),
        (["-p", "seed", "many"], "'seed' takes a whole number"),
        (["--seed", "1", "-p", "seed", "2"], "'seed' is given twice"),
        (["--workspace", "FILE"], "is a file"),
    ],
)
def test_a_users_mistake_is_one_clean_message(notebooks, tmp_path, capsys, options, message):
    (tmp_path / "file").write_text("")
    options = [str(tmp_path / "file") if option == "FILE" else option for option in options]
    assert main(["run", "--workspace", str(tmp_path / "run"), *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("bindkit: ")
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backbone", "bindkit/scenes-moton"], "bindkit comes with no backbone 'bindkit/scenes-moton'; it has"),
        (["--backbone", "random-init:bindkit/scenes-moton"], "bindkit comes with no backbone 'bindkit/scenes-moton'"),
        (["--backbone", "random-init:vit,sed=1"], "cannot read 'random-init:vit,sed=1'"),
        (["--layers", "0-3"], "got '0-3'"),
        (["--backbone", "any/hub-id", "--layers", "0-3"], "got '0-3'"),
        (["--layers", "99"], "bindkit/scenes-flow has layers 0 to 5, got 99"),
        (["--controls", "pixels"], "unknown control 'pixels'; there are position, raw-pixels, position+raw-pixels"),
        (["--probes", "cubic"], "unknown probe 'cubic'; there are linear, diag_quadratic"),
        (["--probes", "linear@3"], "unknown probe 'linear@3'"),
        (["--tasks", "pairwize"], "unknown task 'pairwize'; there are pairwise"),
        (["--probes", "linear", "--tasks", "pointwise_class"], "the tasks (pointwise_class) lack pairwise"),
        (["--probes", "quadratic", "--tasks", "pointwise_class"], "the task pointwise_class takes the linear probe"),
        (["-p", "probes", ""], "at least one probe and one task"),
    ],
)
def test_a_name_that_there_is_not_stops_a_run_before_anything_is_made(tmp_path, capsys, options, message):
    """With the shipped notebooks, which would find it only after minutes of caching."""
    assert main(["run", "--workspace", str(tmp_path / "run"), *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("bindkit: ")
    assert message in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_says_how_to_go_on(notebooks, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run_pipeline", interrupt)
    assert main(["run"]) == 130
    assert "goes on where this one stopped" in capsys.readouterr().err


def test_cache_prints_the_path_last_and_verify_finds_and_mends_a_flipped_byte(tmp_path, capsys):
    options = ["--scenes", "synthetic:n=4,seed=0", "--backbone", "random-init:vit", "--root", str(tmp_path / "cache")]
    assert main(["cache", *options, "--layers", "0,1", "--patches-per-scene", "16"]) == 0
    path = capsys.readouterr().out.splitlines()[-1]
    cache = bindkit.ActivationCache.open(path)
    assert cache.layers == (0, 1)
    assert main(["verify", path]) == 0
    assert main(["verify", str(tmp_path)]) == 0  # a directory above finds it too
    assert capsys.readouterr().out.count(f"{path}: whole") == 2

    name = next(name for name in cache.shard_digests() if "layer_01" in name)
    shard = cache.path / name
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert main(["verify", path]) == 1
    assert name in capsys.readouterr().out
    assert main(["verify", path, "--repair"]) == 0
    assert f"{path}: repaired" in capsys.readouterr().out
    assert shard.read_bytes() == whole
    assert main(["verify", path]) == 0


def test_verify_repair_says_so_when_the_scenes_are_gone(tmp_path, capsys):
    images, instances = tmp_path / "set" / "images", tmp_path / "set" / "instances"
    for position, scene in enumerate(bindkit.open_scenes("synthetic:n=3,seed=0")):
        from PIL import Image

        for directory, pixels in ((images, scene.image), (instances, scene.instances.astype("uint16"))):
            directory.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(directory / f"{position}.png")
    options = ["--scenes", f"folder:{tmp_path / 'set'}", "--backbone", "random-init:vit", "--layers", "0"]
    assert main(["cache", *options, "--patches-per-scene", "8", "--root", str(tmp_path / "cache")]) == 0
    path = capsys.readouterr().out.splitlines()[-1]
    cache = bindkit.ActivationCache.open(path)
    damaged = next(name for name in cache.shard_digests() if "layer_00" in name)
    (cache.path / damaged).unlink()
    (tmp_path / "set").rename(tmp_path / "elsewhere")
    assert main(["verify", path, "--repair"]) == 1
    assert "damaged shards removed; " in capsys.readouterr().out


@pytest.mark.parametrize("place", ["nowhere", "."])
def test_verify_of_no_cache_is_a_failure(tmp_path, capsys, place):
    assert main(["verify", str(tmp_path / place)]) == 1
    assert "no cache at" in capsys.readouterr().out


def test_check_reports_a_model_or_names_what_is_wrong(tmp_path, capsys):
    assert main(["check", "random-init:vit"]) == 0
    assert "passes the contract check" in capsys.readouterr().out
    assert main(["check", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("bindkit: ")


def test_usage_and_version():
    run = [sys.executable, "-m", "bindkit.cli"]
    version = subprocess.run([*run, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.strip() == f"bindkit {bindkit.__version__}"
    assert subprocess.run([*run, "frobnicate"], capture_output=True, check=False).returncode == 2
    assert subprocess.run(run, capture_output=True, check=False).returncode == 2


def test_the_table_says_so_when_there_is_nothing_to_compare():
    from bindkit.results.tables import format_results

    assert "No fit" in format_results(pd.DataFrame(columns=["backbone", "layer", "probe", "accuracy"]))


def test_the_console_names_every_objective_and_its_docstring_every_command(capsys):
    from bindkit import cli
    from bindkit.pretraining import OBJECTIVES

    with pytest.raises(SystemExit):
        main(["pretrain", "--help"])
    (named,) = re.findall(r"^ *OBJECTIVE {2,}(.*)$", capsys.readouterr().out, re.MULTILINE)
    assert set(re.findall(r"[a-z]+", named)) - {"or"} == set(OBJECTIVES)

    with pytest.raises(SystemExit):
        main(["--help"])
    commands = re.findall(r"^ {4}([a-z]+)  ", capsys.readouterr().out, re.MULTILINE)
    assert len(commands) >= 6
    for command in commands:
        assert re.search(rf"``(bindkit )?{command}``", cli.__doc__), command


def test_cache_takes_its_share_by_hand_and_from_slurm(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bindkit.cache.sizing._LARGEST_SHARD", 1)
    options = ["--scenes", "synthetic:n=6,seed=0", "--backbone", "random-init:vit", "--root", str(tmp_path / "cache")]
    options += ["--layers", "0", "--patches-per-scene", "8", "--dtype", "int8", "--precision", "bfloat16"]
    assert main(["cache", *options, "--rank", "1", "--world-size", "2"]) == 0
    path = capsys.readouterr().out.splitlines()[-1]
    first = bindkit.ActivationCache.open(path)
    assert not first.is_complete and len(first.shard_digests()) == 6
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "3")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    assert main(["cache", *options]) == 0
    whole = bindkit.ActivationCache.open(path)
    assert whole.is_complete and (whole.dtype, whole.backbone["precision"]) == ("int8", "bfloat16")
    assert main(["cache", *options, "--rank", "2"]) == 2
    assert "a rank needs a world size" in capsys.readouterr().err
