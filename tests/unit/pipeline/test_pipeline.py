"""The pipeline executes numbered notebooks, resumes where it stopped, and refuses what would spoil a workspace."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from itertools import islice
from pathlib import Path

import nbformat
import pytest
from filelock import FileLock
from written_notebooks import write_notebook

from bindkit.errors import (
    InvalidParameterError,
    NotebookFailedError,
    UnknownParameterError,
    WorkspaceBusyError,
    WorkspaceMismatchError,
)
from bindkit.pipeline.engine import ThisPythonKernel
from bindkit.pipeline.parameters import absolute_backbones, absolute_scenes
from bindkit.pipeline.running import FIRST_LAB, RUN_DEFAULTS, notebooks_directory, numbered_notebooks, run_pipeline

FIRST = [
    'workspace = "here"\nscenes = "synthetic:n=4,seed=0"\nseed = 0',
    "import bindkit as bk\nbk.check_parameters(In)",
]
SECOND = ['workspace = "here"\nlayers = "all"\nfail = False', "from pathlib import Path"]
WRITE = "from pathlib import Path\nPath(workspace, 'scenes.txt').write_text(f'{scenes} {seed}')"
APPEND = "with Path(workspace, 'results.csv').open('a') as file:\n    file.write(f'{layers}\\n')"


@pytest.fixture
def notebooks(tmp_path):
    directory = tmp_path / "numbered"
    directory.mkdir()
    write_notebook(directory / "01_write_scenes.ipynb", *FIRST, WRITE)
    write_notebook(directory / "02_append_layers.ipynb", *SECOND, APPEND, "assert not fail, 'as asked'")
    return directory


@pytest.fixture
def run(notebooks, tmp_path):
    return lambda **arguments: run_pipeline(tmp_path / "run", notebooks=notebooks, **arguments)


def outputs(path):
    return [output for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", [])]


def test_a_run_resumes_and_reruns_exactly_what_changed(run, notebooks, tmp_path):
    report = run(scenes="synthetic:n=6,seed=1", layers="0,2")
    assert report.executed == ("01_write_scenes", "02_append_layers")
    assert (tmp_path / "run" / "scenes.txt").read_text() == "synthetic:n=6,seed=1 0"
    assert report.workspace.results_csv.read_text() == "0,2\n"

    assert run(scenes="synthetic:n=6,seed=1", layers="0,2").executed == ()
    assert run(scenes="synthetic:n=6,seed=1", layers="0").executed == ("02_append_layers",)
    assert report.workspace.results_csv.read_text() == "0,2\n0\n"

    # A changed early notebook reruns all later ones; a table that was removed is made again.
    write_notebook(notebooks / "01_write_scenes.ipynb", *FIRST, WRITE, "'changed'")
    assert run(scenes="synthetic:n=6,seed=1", layers="0").executed == ("01_write_scenes", "02_append_layers")
    report.workspace.results_csv.unlink()
    assert run(scenes="synthetic:n=6,seed=1", layers="0").executed == ("02_append_layers",)
    assert report.workspace.results_csv.read_text() == "0\n"

    # A partially executed notebook, as a kill leaves it, is no complete one.
    executed = report.workspace.notebooks / "02_append_layers.ipynb"
    whole = executed.read_bytes()
    executed.write_bytes(whole[: len(whole) // 2])
    assert run(scenes="synthetic:n=6,seed=1", layers="0").executed == ("02_append_layers",)

    with pytest.raises(WorkspaceMismatchError, match="scenes: recorded 'synthetic:n=6,seed=1', given 'synthetic:n=400"):
        run()


def test_a_failing_notebook_is_named_and_the_next_run_goes_on_there(run, notebooks, tmp_path):
    with pytest.raises(NotebookFailedError) as caught:
        run(fail=True)
    executed = tmp_path / "run" / "notebooks" / "02_append_layers.ipynb"
    lines = str(caught.value).splitlines()
    where = "02_append_layers stopped in cell [5] (assert not fail, 'as asked')"
    assert lines == [f"{where}; the notebook as far as it came: {executed}", "AssertionError: as asked"]
    assert any(output.output_type == "error" for output in outputs(executed))
    assert run(fail=False).skipped == ("01_write_scenes",)


def test_a_kernel_that_dies_is_named(tmp_path):
    write_notebook(tmp_path / "01_die.ipynb", "seed = 0", "import os\nos._exit(9)")
    with pytest.raises(NotebookFailedError, match=r"01_die stopped in cell \[3\] \(import os\); .*\n.*memory"):
        run_pipeline(tmp_path / "run", notebooks=tmp_path)


def test_kernels_are_of_this_python_and_leave_clean_notebooks(tmp_path, monkeypatch, capfd):
    """Whatever kernel is registered as python3; bars as text, shown while running, settled in the file."""
    impostor = tmp_path / "jupyter" / "kernels" / "python3"
    impostor.mkdir(parents=True)
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "other", "language": "python"}
    (impostor / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.delenv("BINDKIT_PROGRESS")
    directory = tmp_path / "with {braces}"
    directory.mkdir()
    write_notebook(
        directory / "01_look_around.ipynb",
        "scenes = 'synthetic:n=1,seed=0'",
        "import os, sys\nopen('seen', 'w').write(sys.executable + os.environ['BINDKIT_PROGRESS'])",
        "from ipywidgets import IntProgress\nIntProgress()",
        "from bindkit.files import progress\nwith progress(3, 'counting', 'scene') as bar:\n    bar.update(3)",
        "sys.stderr.write('10%\\r20%\\r100%\\nsaid')",
    )
    report = run_pipeline(tmp_path / "run {0}", notebooks=directory)
    executed = report.notebooks[0].path
    assert (executed.parent / "seen").read_text() == sys.executable + "text"
    notebook = nbformat.read(executed, as_version=4)
    assert "widgets" not in notebook.metadata
    texts = [output.text for output in outputs(executed) if output.output_type == "stream"]
    assert texts == ["100%\nsaid"]
    shown = capfd.readouterr().err
    assert "counting" in shown
    assert "encryption" not in shown
    assert "unknown parameter" not in shown
    assert "20%" in shown


def test_papermill_alone_leaves_clean_notebooks_with_the_engine_of_bindkit(tmp_path):
    """By its command line, which finds the engine among the entry points of what is installed."""
    shown = "import plotly.graph_objects as go\ngo.FigureWidget()"
    write_notebook(tmp_path / "01_show.ipynb", "seed = 0", shown, "print('10%\\r100%')")
    command = [sys.executable, "-m", "papermill", "01_show.ipynb", "executed.ipynb", "-p", "seed", "3"]
    subprocess.run([*command, "--engine", "bindkit"], cwd=tmp_path, check=True, capture_output=True)
    notebook = nbformat.read(tmp_path / "executed.ipynb", as_version=4)
    assert "widgets" not in notebook.metadata
    assert (tmp_path / "executed.ipynb").stat().st_size < 20_000
    assert [output.text for output in outputs(tmp_path / "executed.ipynb") if output.output_type == "stream"] == [
        "100%\n"
    ]
    assert notebook.metadata.papermill.parameters == {"seed": 3}


@pytest.mark.parametrize("first", ["papermill", "bindkit.pipeline.engine"])
def test_papermill_and_the_engine_import_each_other_in_any_order(first):
    code = f"import {first}, papermill.engines as e; print(e.papermill_engines.get_engine('bindkit').__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "bindkit.pipeline.engine"


def test_unknown_or_wrong_parameters_stop_it_before_anything_starts(run, tmp_path):
    with pytest.raises(UnknownParameterError) as caught:
        run(layer="0")
    assert "'layer' (did you mean 'layers'?)" in str(caught.value)
    assert f"scenes={RUN_DEFAULTS['scenes']!r}" in str(caught.value)  # a run's default, not the notebook's
    with pytest.raises(InvalidParameterError, match="'seed' takes a whole number"):
        run(seed="0")
    assert not (tmp_path / "run").exists()


def test_a_directory_of_other_things_is_left_alone(notebooks, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(WorkspaceMismatchError, match="not a bindkit workspace"):
        run_pipeline(tmp_path / "mine", notebooks=notebooks)
    assert [entry.name for entry in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("refused", ["the lock", "the directory"])
def test_a_workspace_that_may_not_be_written_into_is_named(run, tmp_path, monkeypatch, refused):
    opened, made = os.open, os.mkdir

    def guarded(call):
        def guard(path, *arguments, **named):
            if Path(os.fsdecode(path)).is_relative_to(tmp_path / "run"):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return call(path, *arguments, **named)

        return guard

    if refused == "the lock":
        (tmp_path / "run").mkdir()
        monkeypatch.setattr(os, "open", guarded(opened))
    else:
        monkeypatch.setattr(os, "mkdir", guarded(made))
    with pytest.raises(InvalidParameterError) as caught:
        run()
    wanted = f"cannot write into {tmp_path / 'run'} (Permission denied); give another --workspace or change its permis"
    assert str(caught.value).startswith(wanted)


def test_two_runs_at_once_are_refused(run, tmp_path):
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(WorkspaceBusyError, match="another run is writing"):
        run()


@pytest.mark.parametrize("beside", [False, True])
def test_an_interrupted_run_resumes(tmp_path, beside):
    write_notebook(tmp_path / "01_first.ipynb", "seed = 0")
    waiting = ["02_wait", "03_wait"] if beside else ["02_wait"]
    for name in waiting:
        write_notebook(
            tmp_path / f"{name}.ipynb",
            "scenes = 'synthetic:n=1,seed=0'",
            "import os, sys, time\nprint(os.getpid(), 'waits', file=sys.stderr, flush=True)",
            "import pathlib\nif not pathlib.Path('go').exists():\n    time.sleep(60)",
            beside=beside,
        )
    code = "import os, sys, bindkit\nos.cpu_count = lambda: 2\nbindkit.run_pipeline(sys.argv[1], notebooks=sys.argv[2])"
    command = [sys.executable, "-c", code, str(tmp_path / "run"), str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    reader = threading.Timer(240, process.kill)  # the test must not wait for ever, nor kill what a busy machine delays
    reader.start()
    said = (int(line.split()[0]) for line in process.stderr if line.endswith("waits\n"))
    kernels = list(islice(said, len(waiting)))
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate()
    reader.cancel()
    assert process.returncode != 0
    assert "KeyboardInterrupt" in rest
    deadline = time.monotonic() + 10
    while any(map(_alive, kernels)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(_alive, kernels))
    (tmp_path / "run" / "notebooks" / "go").write_text("")
    assert run_pipeline(tmp_path / "run", notebooks=tmp_path).executed == tuple(waiting)


@pytest.mark.parametrize("n_failures", [2, 3])
def test_a_kernel_that_does_not_start_is_started_again(tmp_path, monkeypatch, n_failures):
    """As where another process took a port that was free a moment ago."""
    write_notebook(tmp_path / "01_one.ipynb", "seed = 0")
    whole, tries = ThisPythonKernel.kernel_spec.fget, []

    def failing(kernel):
        tries.append(kernel)
        spec = whole(kernel)
        if len(set(map(id, tries))) <= n_failures:
            spec.argv = ["/bin/false", "{connection_file}"]
        return spec

    monkeypatch.setattr(ThisPythonKernel, "kernel_spec", property(failing))
    if n_failures < 3:
        assert run_pipeline(tmp_path / "run", notebooks=tmp_path).executed == ("01_one",)
    else:
        with pytest.raises(NotebookFailedError, match="01_one could not be started: Kernel died"):
            run_pipeline(tmp_path / "run", notebooks=tmp_path)


def meets(other):
    """Cells that end once the other notebook runs too, or fail."""
    wait = f"while not Path('{other}').exists():\n    assert time.monotonic() < end, 'alone'\n    time.sleep(0.05)"
    return "import time\nfrom pathlib import Path", f"end = time.monotonic() + 60\n{wait}"


def test_notebooks_that_say_so_run_beside_each_other(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.delenv("BINDKIT_PROGRESS")
    parameters, here = "seed = 0\nfail = 0", "from pathlib import Path\nPath('{}').touch()"
    bar = "import sys\nsys.stderr.write('10%\\r')\nsys.stderr.write('90%\\rsaid by {}\\n')"
    for name, other in (("02_two", "three"), ("03_three", "two")):
        own = name[3:]
        cells = [here.format(own), *meets(other), bar.format(own), f"assert fail != {name[1]}"]
        write_notebook(tmp_path / f"{name}.ipynb", parameters, *cells, beside=True)
    write_notebook(tmp_path / "01_one.ipynb", "seed = 0")
    write_notebook(tmp_path / "04_four.ipynb", "seed = 0", "from pathlib import Path\nassert Path('two').exists()")
    run = partial(run_pipeline, tmp_path / "run", notebooks=tmp_path)
    assert len(run().executed) == 4
    shown = capfd.readouterr().err
    assert "said by two\n" in shown
    assert "10%" not in shown

    # What changed runs anew, and what comes after all of them; not what ran beside it.
    write_notebook(tmp_path / "02_two.ipynb", parameters, here.format("two"), "'changed'", beside=True)
    assert run().executed == ("02_two", "04_four")
    assert run().executed == ()
    # One that fails takes nothing with it.
    with pytest.raises(NotebookFailedError, match=r"03_three stopped in cell \[7\]"):
        run(fail=3)
    write_notebook(tmp_path / "03_three.ipynb", parameters, "'mended'", beside=True)
    assert run(fail=3).skipped == ("01_one", "02_two")


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_no_numbered_notebooks_is_an_error(tmp_path):
    with pytest.raises(NotebookFailedError, match="no numbered notebooks"):
        run_pipeline(tmp_path / "run", notebooks=tmp_path)


def test_relative_paths_are_meant_from_where_they_were_typed(tmp_path):
    (tmp_path / "data, raw").mkdir()
    (tmp_path / "model").mkdir()
    assert absolute_scenes("folder:data, raw", tmp_path) == f"folder:{tmp_path}/data, raw"
    assert absolute_scenes("coco:images,notes/a.json", tmp_path) == f"coco:{tmp_path}/images,{tmp_path}/notes/a.json"
    assert absolute_scenes("synthetic:n=4,seed=0", tmp_path) == "synthetic:n=4,seed=0"
    assert absolute_scenes("nonsense", tmp_path) == "nonsense"
    names = absolute_backbones("facebook/dinov2-small model random-init:vit '../a b'", tmp_path / "..")
    assert names.split(" ", 1)[0] == "facebook/dinov2-small"
    assert absolute_backbones("model random-init:vit", tmp_path) == f"{tmp_path}/model random-init:vit"


def test_the_numbered_notebooks_are_found(root):
    if not any((root / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        pytest.skip("notebooks/ holds no numbered notebook yet")
    assert notebooks_directory() == root / "notebooks"


def test_laboratories_are_not_part_of_a_run(root, tmp_path):
    for name in ("05_explore_affinity", f"{FIRST_LAB:02d}_some_lab", "08_emergence"):
        (tmp_path / f"{name}.ipynb").write_text("{}")
    assert [path.stem for path in numbered_notebooks(tmp_path)] == ["05_explore_affinity"]
    assert [path.name[:2] for path in numbered_notebooks(root / "notebooks")] == [f"0{k}" for k in range(1, 8)]
