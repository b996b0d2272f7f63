"""The console: ``bindkit run``, ``compare``, ``cache``, ``verify``, ``export``, ``pretrain`` and ``check``.

Thin; everything is also Python. Nothing heavy is imported before a command starts, so that
``bindkit --help`` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bindkit
from bindkit.errors import BindkitError, InvalidParameterError, NotebookFailedError

FAILED = 2
DAMAGED = 1
INTERRUPTED = 130
"""Exit statuses besides 0; 130 is what shells give for Ctrl-C."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status.

    >>> main(["--version"])
    Traceback (most recent call last):
        ...
    SystemExit: 0
    """
    parser = _parser()
    options, behind = parser.parse_known_args(arguments)
    # Images may stand behind the options, which argparse before 3.13 does not understand.
    if behind and (not hasattr(options, "images") or any(word.startswith("-") for word in behind)):
        parser.error(f"unrecognized arguments: {' '.join(behind)}")
    if behind:
        options.images = [*options.images, *behind]
    bindkit.show_messages()
    try:
        return options.command(options) or 0
    except (BindkitError, OSError) as error:
        print(f"bindkit: {error}", file=sys.stderr)
        return DAMAGED if options.command is _verify else FAILED
    except KeyboardInterrupt:
        print("bindkit: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    """Every command and option."""
    parser = argparse.ArgumentParser(prog="bindkit", description="Measure object binding in vision transformers.")
    parser.add_argument("--version", action="version", version=f"bindkit {bindkit.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, does: Callable[[argparse.Namespace], int | None], help: str) -> Callable[..., Any]:
        added = commands.add_parser(name, help=help)
        added.set_defaults(command=does)
        return added.add_argument

    several: dict[str, Any] = {"nargs": "+", "action": "extend"}
    groups = "which scenes belong together: a regular expression or a column"
    kind = "which kind; default: the most capable that was fitted"

    add = command("run", _run, "execute the numbered notebooks into a workspace, or go on where it stopped")
    models = "hub ids, local directories, random-init:dinov2, random-init:vit"
    formats = "ade20k:DIR | ade20k-instances:DIR | coco:DIR | voc:DIR | cityscapes:DIR | davis:DIR | hf:NAME_OR_DIR"
    add("--scenes", metavar="URI", help=f"synthetic:n=400,seed=0 | {formats} | folder:DIR")
    add("--backbone", dest="backbones", metavar="NAME", **several, help=models)
    add("--layers", metavar="LAYERS", help="all, or numbers such as 0,6,12")
    controls = "position raw-pixels position+raw-pixels (the default); without a name, none"
    add("--controls", metavar="NAME", nargs="*", help=controls)
    add("--probes", metavar="PROBE", nargs="+", help="linear diag_quadratic quadratic quadratic_fixed_rank ...")
    add("--tasks", metavar="TASK", nargs="+", help="pairwise pointwise_class pointwise_identity ...")
    add("--groups", metavar="TEXT", help=groups)
    add("--folds", metavar="N", type=int, help="cross-validate in so many folds, 3 or more")
    add("--seeds", metavar="N", type=int, help="how many seeds, counted from --seed on")
    add("--protocol", metavar="TEXT", help="strict or paper; with fields: strict,epochs=4,weight_decay=0.0001")
    add("--patches-per-scene", metavar="N", type=int)
    add("--window", metavar="PIXELS", type=int, help="side of the windows; 0: the backbone's own")
    add("--seed", metavar="N", type=int)
    add("--workspace", metavar="DIR", default="workspace", help="directory to fill (default: workspace)")
    add("--force", action="store_true", help="execute every notebook, anew for changed scenes or weights")
    typed: dict[str, Any] = {"metavar": ("NAME", "VALUE"), "nargs": 2, "action": "append", "default": []}
    add("-p", "--parameter", dest="typed", **typed, help="any other parameter of the notebooks (repeatable)")

    add = command("cache", _cache, "compute and keep activations; the last line printed is the cache's path")
    add("--scenes", metavar="URI", required=True)
    add("--backbone", metavar="NAME", required=True)
    add("--root", metavar="DIR", required=True, help="directory that holds caches")
    add("--groups", metavar="TEXT", help=groups)
    add("--layers", metavar="LAYERS", default="all", help="all (the default), or numbers such as 0,6,12")
    add("--patches-per-scene", metavar="N", type=_count_or_all, default=512, help="a number, or all")
    add("--dtype", choices=["float16", "float32", "bfloat16", "int8"], default="float16")
    add("--window", metavar="PIXELS", type=int, default=0, help="0 (the default): the backbone's own")
    normalised = "whose mean and deviation; the paper protocol takes ImageNet's for every backbone"
    add("--normalization", choices=["checkpoint", "imagenet"], default="checkpoint", help=normalised)
    rounded = "how sizes, windows and masks are rounded; the paper protocol takes the reference implementation's"
    add("--arithmetic", choices=["centred", "reference"], default="centred", help=rounded)
    add("--seed", metavar="N", type=int, default=0)
    add("--precision", choices=["float32", "bfloat16", "float16"], default="float32", help="of the model's products")
    add("--device", metavar="DEVICE", default="auto", help="auto (the default), cpu, cuda:1")
    add("--workers", metavar="N", type=int, help="threads, on a GPU processes, that read scenes ahead")
    shared = "compute every so many-th shard only; default: RANK or SLURM_ARRAY_TASK_ID where that is set"
    add("--rank", metavar="N", type=int, help=shared)
    add("--world-size", metavar="N", type=int, help="how many such calls there are")
    told = "of scenes, weights or preprocessing that have changed since: say so (the default), or compute anew"
    add("--changed", choices=["refuse", "recompute"], default="refuse", help=told)

    add = command("verify", _verify, "check every byte of a cache, and its scenes; exit status 1 if changed")
    add("path", metavar="PATH", help="a cache (or its URL), or a directory (a workspace) with several")
    add("--repair", action="store_true", help="remove damaged shards and compute them again")

    add = command("compare", _compare, "set the models of several workspaces in one table")
    add("workspaces", metavar="DIR", nargs="+", help="workspaces of the same scenes and protocol")
    add("--out", metavar="FILE.csv", type=Path, help="write the table, with all its columns")
    add("--probe", metavar="PROBE", help=kind)

    add = command("export", _export, "write one page on which a click at a patch shows its affinities")
    add("out", metavar="OUT.html", help="the page; it needs no server and no network")
    add("images", metavar="IMAGE", nargs="*", help="image files")
    add("--backbone", metavar="NAME", **several, required=True)
    add("--probes", metavar="DIR", required=True, help="fitted probes: a workspace's probes directory")
    add("--layers", metavar="LAYERS", default="all", help="all (that have a probe), or such as 0,6,12")
    add("--probe", metavar="PROBE", help=kind)
    add("--scenes", metavar="URI", help="show scenes of a set, with their objects")
    add("--n", metavar="N", type=int, default=5, help="how many of its scenes (default: 5)")
    add("--window", metavar="PIXELS", type=int, default=0, help="as for the cache; 0: the backbone's")
    add("--title", metavar="TEXT", help="heading of the page")

    add = command("pretrain", _pretrain, "train a tiny backbone on synthetic scenes, or go on where it stopped")
    add("objective", metavar="OBJECTIVE", help="flow, mae, dino, motion, supervised or clip")
    add("directory", metavar="DIR", type=Path, help="where the run and its checkpoints are kept")
    add("--scenes", metavar="URI", help="synthetic:... with a training seed, from 1000000000000 on")
    add("--scenes-seen", metavar="N", type=int, default=200_000)
    add("--scenes-per-step", metavar="N", type=int, default=16)
    add("--learning-rate", metavar="RATE", type=float, help="default: the objective's own")
    add("--seed", metavar="N", type=int, default=0)
    shares: dict[str, Any] = {"type": float, "nargs": "+", "default": [0.2, 0.4, 0.6, 0.8, 1.0]}
    add("--checkpoints", metavar="SHARE", **shares, help="0..1 of the run")
    add("--threads", metavar="N", type=int, default=0, help="CPU threads; 0 (the default): torch's own")

    add = command("check", _check, "one page about a model, and whether its tokens are its patches; status 2 if not")
    add("model", metavar="MODEL", help="hub id, local directory, timm:NAME, random-init:NAME, your own MODULE:NAME")
    add("--window", metavar="PIXELS", type=int, default=0, help="as for the cache; 0 (the default): the model's own")
    add("--scenes", metavar="N", type=int, default=1000, help="tell the size of a cache of so many (default: 1000)")
    add("--patches-per-scene", metavar="N", type=int, default=512)
    add("--dtype", choices=["float16", "float32", "bfloat16", "int8"], default="float16")
    return parser


def _count_or_all(text: str) -> int | str:
    """A number of patches, or ``all``."""
    return text if text == "all" else int(text)


def _run(options: argparse.Namespace) -> None:
    from bindkit.pipeline.parameters import typed_parameters
    from bindkit.pipeline.running import notebooks_directory, pipeline_parameters, run_pipeline

    own = ("command", "workspace", "force", "typed")
    parameters = {name: value for name, value in vars(options).items() if name not in own and value is not None}
    if "controls" in parameters:
        parameters["controls"] = " ".join(options.controls)
    if options.typed:
        parameters = typed_parameters(options.typed, pipeline_parameters(notebooks_directory()), parameters)
    workspace = run_pipeline(options.workspace, force=options.force, **parameters).workspace
    if not workspace.results_csv.exists():
        raise NotebookFailedError(f"the notebooks ran but left no {workspace.results_csv}; run again with --force")

    import pandas as pd

    from bindkit.results.tables import format_results

    print(format_results(pd.read_csv(workspace.results_csv)))
    print()
    places = {"results": workspace.results_csv}
    for what in ("viewer", "results", "figures", "notebooks", "probes", "cache"):
        print(f"{what:<10}{places.get(what) or getattr(workspace, what)}")


def _compare(options: argparse.Namespace) -> None:
    from bindkit.pipeline.merging import compared_models, write_table

    table, text = compared_models(options.workspaces, options.probe)
    print(text)
    if options.out is not None:
        write_table(options.out, table)
        print(options.out)


def _cache(options: argparse.Namespace) -> None:
    from bindkit.arguments import read_share

    scenes = bindkit.open_scenes(options.scenes)
    backbone = bindkit.load_backbone(
        options.backbone,
        window=options.window or None,
        normalization=options.normalization,
        arithmetic=options.arithmetic,
        precision=options.precision,
        device=options.device,
    )
    cache = bindkit.cache_activations(
        backbone,
        scenes,
        root=options.root,
        split=bindkit.split_scenes(scenes, options.groups),
        layers=options.layers,
        patches_per_scene=options.patches_per_scene,
        dtype=options.dtype,
        seed=options.seed,
        changed=options.changed,
        workers=options.workers,
        share=read_share(options.rank, options.world_size, os.environ),
    )
    print(cache.path)


def _verify(options: argparse.Namespace) -> int:
    from bindkit.cache.manifest import MANIFEST_NAME
    from bindkit.cache.verifying import repair_cache, scene_changes
    from bindkit.cache.views import NOTE

    whole = True
    below = [] if "://" in options.path else list(Path(options.path).rglob(MANIFEST_NAME))
    notes = [] if "://" in options.path else sorted(Path(options.path).rglob(NOTE))
    for note in notes:
        print(f"{note.parent}: nothing is kept there, activations are computed when they are asked for")
    for path in sorted(manifest.parent for manifest in below) or ([] if notes else [options.path]):
        try:
            cache = bindkit.ActivationCache.open(path)
            damage = cache.verify()
        except BindkitError as error:
            print(f"{path}: {error}")
            whole = False
            continue
        for item in damage:
            print(f"{path}: {item}")
        if damage and options.repair:
            obstacle = repair_cache(path).obstacle
            left = bindkit.ActivationCache.open(path).verify()
            mended = not obstacle and not left
            print(f"{path}: repaired" if mended else f"{path}: damaged shards removed; {obstacle or left[0]}")
            whole = whole and mended
        elif damage:
            whole = False
        else:
            print(f"{path}: whole" + ("" if cache.is_complete else ", but not finished: make the same call again"))
        try:
            for sentence in scene_changes(cache):
                print(f"{path}: its scenes, not the cache itself: {sentence}")
                whole = False
        except (BindkitError, OSError) as error:
            print(f"{path}: its scenes could not be looked at ({error})")
    return 0 if whole else DAMAGED


def _export(options: argparse.Namespace) -> None:
    from bindkit.views.viewer import find_probes

    images: list[Any] = list(options.images)
    class_names: dict[int, str] = {}
    if options.scenes is not None:
        if options.n < 1:
            raise InvalidParameterError(f"--n takes how many scenes to show, at least 1, got {options.n}")
        scenes = bindkit.open_scenes(options.scenes)
        images = [*(scenes[position] for position in range(min(options.n, len(scenes)))), *images]
        class_names = dict(scenes.class_names)
    if not images:
        raise InvalidParameterError("nothing to show: name image files, or a scene set with --scenes URI")
    shown = {}
    for name in dict.fromkeys(options.backbone):
        backbone = bindkit.load_backbone(name, window=options.window or None)
        layers = None if options.layers == "all" else backbone.resolve_layers(options.layers)
        shown[backbone] = find_probes(options.probes, name, layers, options.probe, backbone.weights_digest)
    titled = {} if options.title is None else {"title": options.title}
    print(bindkit.export_viewer(options.out, shown, images=images, class_names=class_names, **titled))


def _pretrain(options: argparse.Namespace) -> None:
    import torch

    from bindkit.arguments import whole_number
    from bindkit.pretraining import TRAINING_SCENES, pretrain

    if whole_number(options.threads, "--threads", least=0):
        torch.set_num_threads(options.threads)
    run = pretrain(
        options.objective,
        options.directory,
        scenes=options.scenes or TRAINING_SCENES,
        scenes_seen=options.scenes_seen,
        scenes_per_step=options.scenes_per_step,
        learning_rate=options.learning_rate,
        seed=options.seed,
        checkpoints=options.checkpoints,
    )
    print(run.final)


def _check(options: argparse.Namespace) -> int:
    from bindkit.backbones import check_backbone
    from bindkit.cache.sizing import bytes_at_most

    report = check_backbone(options.model, window=options.window or None)
    print(report)
    if report.n_layers is not None:
        asked = (options.scenes, options.patches_per_scene, options.dtype)
        n_bytes = bytes_at_most(report.model.shape.d_model, report.n_layers, *asked)
        print(
            f"  cache         at most {n_bytes / 1e9:.3g} GB for {options.scenes:,} scenes of "
            f"{options.patches_per_scene} patches, {options.dtype}, all layers"
        )
    return FAILED if report.failure else 0


if __name__ == "__main__":
    sys.exit(main())
