"""The pipeline runs the real notebooks into a workspace, and a second run finds everything there."""

from __future__ import annotations

import nbformat
import pandas as pd
import papermill
import pytest

from bindkit.cli import main
from bindkit.pipeline.parameters import notebook_parameters
from bindkit.pipeline.running import FIRST_LAB, RUN_DEFAULTS, run_pipeline
from bindkit.pipeline.workspace import open_workspace
from bindkit.probes import load_probe
from bindkit.probes.protocols import protocol, protocol_of_fit
from bindkit.results.tables import format_results

COLUMNS = [
    *("backbone", "objective", "layer", "probe", "task", "protocol", "split"),
    *("accuracy", "accuracy_low", "accuracy_high", "auroc", "average_precision", "balanced_accuracy"),
    *("twins_accuracy", "twins_auroc", "majority_accuracy", "n_scenes", "n_pairs", "seed", "seconds"),
    *("auroc_low", "auroc_high", "twins_auroc_low", "twins_auroc_high", "class_accuracy", "matched_iou"),
    *("matched_auroc", "matched_auroc_low", "matched_auroc_high"),
    *("matched_twins_auroc", "matched_twins_auroc_low", "matched_twins_auroc_high"),
    *("reference_accuracy", "validation_accuracy", "judged_pairs"),
]

SCENES = "synthetic:n=48,seed=0,size=80x80,objects=4-6,twins=1,surface=graded,outlines=any"


def test_the_pipeline_leaves_a_complete_workspace_and_resumes(notebook_paths, tmp_path):
    pipeline = [path for path in notebook_paths if int(path.name[:2]) < FIRST_LAB]
    defaults = {name: value for path in pipeline for name, value in notebook_parameters(path).items()}
    smoke = {name: defaults[name] for name in RUN_DEFAULTS} | {"scenes": SCENES}
    report = run_pipeline(tmp_path / "run", **smoke)
    assert report.executed == tuple(path.stem for path in pipeline)

    workspace = report.workspace
    for run in report.notebooks:
        notebook = nbformat.read(run.path, as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in code)
        assert "widgets" not in notebook.metadata
        assert run.path.stat().st_size < 300_000
    results = pd.read_csv(workspace.results_csv)
    assert list(results.columns) == COLUMNS
    assert set(results["backbone"]) >= set(smoke["backbones"].split())
    assert results["accuracy"].between(0, 1).all()
    assert (results["n_scenes"] > 0).all()
    assert list(workspace.figures.glob("*.html"))
    assert "<title>" in workspace.viewer.read_text(encoding="utf-8")
    assert list(workspace.probes.rglob("*.safetensors"))
    assert list(workspace.cache.rglob("*.safetensors"))
    # Probes of finer maps lie apart, so that they are nobody's rows.
    finer = [load_probe(place.parent) for place in (workspace.root / "finer" / "probes").rglob("probe.json")]
    assert {probe.fitted_on["backbone"] for probe in finer} <= set(smoke["backbones"].split())
    assert {probe.fitted_on["layer"] for probe in finer} == {0, 3, 5}
    assert results["backbone"].iloc[0] in format_results(results)

    before = workspace.results_csv.read_bytes()
    assert run_pipeline(tmp_path / "run", **smoke).executed == ()
    assert workspace.results_csv.read_bytes() == before


def test_a_run_of_other_probes_alone_and_fields_of_a_protocol_goes_through(tmp_path):
    """From the console, as every run may come."""
    text = "paper,scenes_per_step=4,epochs=2"
    given = ["run", "--scenes", "synthetic:n=16,seed=0,size=80x80", "--backbone", "bindkit/scenes-motion"]
    given += ["--layers", "3", "--probes", "linear", "--tasks", "pairwise", "shuffled_labels", "--controls"]
    assert main([*given, "--protocol", "paper, epochs=2, scenes_per_step=4", "--workspace", str(tmp_path / "run")]) == 0
    workspace = open_workspace(tmp_path / "run", protocol=text)
    assert set(pd.read_csv(workspace.results_csv)["protocol"]) == {text}
    for task in ("pairwise", "shuffled_labels"):
        (place,) = workspace.probes.rglob(f"linear-{task}-{text}-seed0")
        fitted_on = load_probe(place).fitted_on
        assert protocol_of_fit(fitted_on) == protocol(text)
        assert len(fitted_on["history"]) == 2
    assert workspace.viewer.exists()
    shown = pd.read_csv(workspace.figures / "05_affinity.csv")
    assert shown["view"].unique().tolist() == ["bindkit/scenes-motion · layer 3"]
    assert shown["affinity"].between(0, 1).all()
    assert len(shown) == 100


def test_a_second_run_with_another_backbone_keeps_the_rows_of_the_first(tmp_path):
    chosen = {"scenes": "synthetic:n=48,seed=0,size=80x80", "probes": "linear", "controls": ""}
    first, second = "bindkit/scenes-motion", "bindkit/scenes-dino"
    run_pipeline(tmp_path / "run", **chosen, backbones=first, layers="0,3")
    workspace = run_pipeline(tmp_path / "run", **chosen, backbones=second, layers="3").workspace
    results = pd.read_csv(workspace.results_csv)
    assert sorted(zip(results["backbone"], results["layer"].fillna(-1), strict=True)) == [
        *((second, 3), (first, 0), (first, 3), ("control:same-class", -1))
    ]
    assert set(pd.read_csv(workspace.root / "best_layers.csv")["backbone"]) == {first, second}
    # Notebooks 06 and 07 need quadratic probes, which this run was not asked for: apart, they are nobody's rows.
    assert not list(workspace.probes.rglob("quadratic-*"))
    assert list((workspace.root / "analysis").rglob("quadratic-*"))
    page = workspace.viewer.read_text(encoding="utf-8")
    assert first in page
    assert second in page

    # Both again beside a workspace of the second alone, which is there once in each.
    run_pipeline(tmp_path / "other", **chosen, backbones=second, layers="3")
    again = run_pipeline(tmp_path / "run", **chosen, backbones=second, layers="3", also=str(tmp_path / "other"))
    assert [name[:2] for name in again.executed] == ["04"]  # the others read nothing of other workspaces
    table = pd.read_csv(workspace.root / "model_table.csv")
    assert sorted(table["backbone"]) == sorted(
        [first, "control:same-class", f"{second} ({workspace.root})", f"{second} ({tmp_path / 'other'})"]
    )
    # Not `gain_low`: probes that call every pair different are as good as the majority class in every scene alike, and
    # what does not vary has no interval.
    assert table.loc[table["kind"] == "trained", "auroc_over_same-class_low"].notna().all()


def test_pointwise_tasks_are_shown_with_the_figures_of_their_own(tmp_path):
    scenes = "synthetic:n=16,seed=0,size=80x80"
    chosen = {"scenes": scenes, "backbones": "bindkit/scenes-motion", "layers": "3", "controls": ""}
    tasks = "pairwise pointwise_class pointwise_identity"
    workspace = run_pipeline(tmp_path / "run", **chosen, probes="linear", tasks=tasks).workspace
    for name, shown in (("03_train_probes", "same-class distractors"), ("04_compare_layers", "pointwise_identity")):
        outputs = nbformat.read(workspace.root / "notebooks" / f"{name}.ipynb", as_version=4).cells
        pages = [
            output["data"].get("text/html", "")
            for cell in outputs
            if cell.cell_type == "code"
            for output in cell.outputs
            if "data" in output
        ]
        (page,) = [page for page in pages if "matched IoU" in page and "<table" in page]
        assert shown in page
        assert "class accuracy" in page


def test_by_hand_a_notebook_without_the_measure_stops_before_it_fits_anything(notebook_paths, tmp_path):
    (path,) = [path for path in notebook_paths if path.name.startswith("03_")]
    parameters = {"tasks": "pointwise_class", "workspace": str(tmp_path / "run")}
    with pytest.raises(papermill.PapermillExecutionError, match=r"InvalidParameterError: the tasks .* lack pairwise"):
        papermill.execute_notebook(path, tmp_path / "out.ipynb", parameters, progress_bar=False)
    assert not (tmp_path / "run").exists()
