"""The console: ``bindkit run``, ``compare``, ``cache``, ``verify``, ``export``, ``pretrain`` and ``check``.

Thin; everything is also Python. Nothing heavy is imported before a command starts, so that
``bindkit --help`` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bindkit
from bindkit.errors import BindkitError, InvalidParameterError, NotebookFailedError

if TYPE_CHECKING:
    pass

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
    options = _parsed(arguments)
    bindkit.show_messages()
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except (BindkitError, OSError) as error:
        print(f"bindkit: {error}", file=sys.stderr)
        return DAMAGED if command is _verify else FAILED
    except KeyboardInterrupt:
        print("bindkit: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return INTERRUPTED


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line; images may stand behind the options, which argparse before 3.13 does not understand."""
    parser = _parser()
    options, behind = parser.parse_known_args(arguments)
    if behind and (not hasattr(options, "images") or any(word.startswith("-") for word in behind)):
        parser.error(f"unrecognized arguments: {' '.join(behind)}")
    if behind:
        options.images = [*options.images, *behind]
    return options


def _parser() -> argparse.ArgumentParser:
    """Every command and option."""
    parser = argparse.ArgumentParser(prog="bindkit", description="Measure object binding in vision transformers.")
    parser.add_argument("--version", action="version", version=f"bindkit {bindkit.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="execute the numbered notebooks into a workspace, or go on where it stopped")
    run.set_defaults(command=_run)
    run.add_argument("--scenes", metavar="URI", help="synthetic:n=400,seed=0 | ade20k:DIR | folder:DIR")
    run.add_argument(
        "--backbone",
        metavar="NAME",
        nargs="+",
        action="extend",
        help="hub ids, local directories, random-init:dinov2, random-init:vit",
    )
    run.add_argument("--layers", metavar="LAYERS", help="all, or numbers such as 0,6,12")
    run.add_argument(
        "--controls",
        metavar="NAME",
        nargs="*",
        help="position raw-pixels position+raw-pixels (the default); without a name, none",
    )
    run.add_argument(
        "--probes", metavar="PROBE", nargs="+", help="linear diag_quadratic quadratic quadratic_fixed_rank ..."
    )
    run.add_argument("--tasks", metavar="TASK", nargs="+", help="pairwise pointwise_class pointwise_identity ...")
    run.add_argument("--groups", metavar="TEXT", help="which scenes belong together: a regular expression or a column")
    run.add_argument("--folds", metavar="N", type=int, help="cross-validate in so many folds, 3 or more")
    run.add_argument("--seeds", metavar="N", type=int, help="how many seeds, counted from --seed on")
    run.add_argument("--protocol", choices=["strict", "paper"])
    run.add_argument("--patches-per-scene", metavar="N", type=int)
    run.add_argument("--window", metavar="PIXELS", type=int, help="side of the windows; 0: the backbone's own")
    run.add_argument("--seed", metavar="N", type=int)
    run.add_argument("--workspace", metavar="DIR", default="workspace", help="directory to fill (default: workspace)")
    run.add_argument("--force", action="store_true", help="execute every notebook, anew for changed scenes or weights")
    run.add_argument(
        "-p",
        "--parameter",
        metavar=("NAME", "VALUE"),
        nargs=2,
        action="append",
        default=[],
        help="any other parameter of the notebooks (repeatable)",
    )

    cache = commands.add_parser("cache", help="compute and keep activations; the last line printed is the cache's path")
    cache.set_defaults(command=_cache)
    cache.add_argument("--scenes", metavar="URI", required=True)
    cache.add_argument("--backbone", metavar="NAME", required=True)
    cache.add_argument("--root", metavar="DIR", required=True, help="directory that holds caches")
    cache.add_argument(
        "--groups", metavar="TEXT", help="which scenes belong together: a regular expression or a column"
    )
    cache.add_argument("--layers", metavar="LAYERS", default="all", help="all (the default), or numbers such as 0,6,12")
    cache.add_argument("--patches-per-scene", metavar="N", type=_count_or_all, default=512, help="a number, or all")
    cache.add_argument("--dtype", choices=["float16", "float32"], default="float16")
    cache.add_argument("--window", metavar="PIXELS", type=int, default=0, help="0 (the default): the backbone's own")
    cache.add_argument(
        "--normalization",
        choices=["checkpoint", "imagenet"],
        default="checkpoint",
        help="whose mean and deviation; the paper protocol takes ImageNet's for every backbone",
    )
    cache.add_argument(
        "--arithmetic",
        choices=["centred", "reference"],
        default="centred",
        help="how sizes, windows and masks are rounded; the paper protocol takes the reference implementation's",
    )
    cache.add_argument("--seed", metavar="N", type=int, default=0)
    told = "of scenes, weights or preprocessing that have changed since: say so (the default), or compute anew"
    cache.add_argument("--changed", choices=["refuse", "recompute"], default="refuse", help=told)

    verify = commands.add_parser("verify", help="check every byte of a cache, and its scenes; exit status 1 if changed")
    verify.set_defaults(command=_verify)
    verify.add_argument("path", metavar="PATH", type=Path, help="a cache, or a directory (a workspace) with several")
    verify.add_argument("--repair", action="store_true", help="remove damaged shards and compute them again")

    compare = commands.add_parser("compare", help="set the models of several workspaces in one table")
    compare.set_defaults(command=_compare)
    compare.add_argument("workspaces", metavar="DIR", nargs="+", help="workspaces of the same scenes and protocol")
    compare.add_argument("--out", metavar="FILE.csv", type=Path, help="write the table, with all its columns")
    compare.add_argument("--probe", metavar="PROBE", help="which kind; default: the most capable that was fitted")

    export = commands.add_parser("export", help="write one page on which a click at a patch shows its affinities")
    export.set_defaults(command=_export)
    export.add_argument("out", metavar="OUT.html", help="the page; it needs no server and no network")
    export.add_argument("images", metavar="IMAGE", nargs="*", help="image files")
    export.add_argument("--backbone", metavar="NAME", nargs="+", action="extend", required=True)
    export.add_argument("--probes", metavar="DIR", required=True, help="fitted probes: a workspace's probes directory")
    export.add_argument("--layers", metavar="LAYERS", default="all", help="all (that have a probe), or such as 0,6,12")
    export.add_argument("--probe", metavar="PROBE", help="which kind; default: the most capable that was fitted")
    export.add_argument("--scenes", metavar="URI", help="show scenes of a set, with their objects")
    export.add_argument("--n", metavar="N", type=int, default=5, help="how many of its scenes (default: 5)")
    export.add_argument("--window", metavar="PIXELS", type=int, default=0, help="as for the cache; 0: the backbone's")
    export.add_argument("--title", metavar="TEXT", help="heading of the page")

    pretrain = commands.add_parser(
        "pretrain", help="train a tiny backbone on synthetic scenes, or go on where it stopped"
    )
    pretrain.set_defaults(command=_pretrain)
    pretrain.add_argument("objective", metavar="OBJECTIVE", help="mae, dino, motion, supervised or clip")
    pretrain.add_argument("directory", metavar="DIR", type=Path, help="where the run and its checkpoints are kept")
    pretrain.add_argument("--scenes", metavar="URI", help="synthetic:... with a training seed, from 1000000000000 on")
    pretrain.add_argument("--scenes-seen", metavar="N", type=int, default=200_000)
    pretrain.add_argument("--scenes-per-step", metavar="N", type=int, default=16)
    pretrain.add_argument("--learning-rate", metavar="RATE", type=float, help="default: the objective's own")
    pretrain.add_argument("--seed", metavar="N", type=int, default=0)
    pretrain.add_argument(
        "--checkpoints",
        metavar="SHARE",
        type=float,
        nargs="+",
        default=[0.2, 0.4, 0.6, 0.8, 1.0],
        help="0..1 of the run",
    )
    pretrain.add_argument(
        "--threads", metavar="N", type=int, default=0, help="CPU threads; 0 (the default): torch's own"
    )

    check = commands.add_parser("check", help="load a model and check that its tokens are its patches")
    check.set_defaults(command=_check)
    check.add_argument("model", metavar="MODEL", help="hub id, local directory, or random-init:NAME")
    return parser


def _run(options: argparse.Namespace) -> int:
    from bindkit.pipeline.parameters import parse_value, unknown_parameters
    from bindkit.pipeline.running import notebooks_directory, pipeline_parameters, run_pipeline

    named = {
        "scenes": options.scenes,
        "backbones": options.backbone,
        "layers": options.layers,
        "controls": None if options.controls is None else " ".join(options.controls),
        "probes": options.probes,
        "tasks": options.tasks,
        "groups": options.groups,
        "folds": options.folds,
        "seeds": options.seeds,
        "protocol": options.protocol,
        "patches_per_scene": options.patches_per_scene,
        "window": options.window,
        "seed": options.seed,
    }
    parameters: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    known = pipeline_parameters(notebooks_directory()) if options.parameter else {}
    for name, text in options.parameter:
        if name not in known:
            entries = [f"{known_name}={value!r}" for known_name, value in known.items()]
            raise unknown_parameters([name], entries, "the notebooks have")
        if name in parameters:
            raise InvalidParameterError(f"parameter {name!r} is given twice")
        parameters[name] = parse_value(name, text, known[name])
    report = run_pipeline(options.workspace, force=options.force, **parameters)
    workspace = report.workspace
    if not workspace.results_csv.exists():
        raise NotebookFailedError(f"the notebooks ran but left no {workspace.results_csv}; run again with --force")

    import pandas as pd

    from bindkit.results.tables import format_results

    print(format_results(pd.read_csv(workspace.results_csv)))
    print()
    for what, place in (
        ("viewer", workspace.viewer),
        ("results", workspace.results_csv),
        ("figures", workspace.figures),
        ("notebooks", workspace.notebooks),
        ("probes", workspace.probes),
        ("cache", workspace.cache),
    ):
        print(f"{what:<10}{place}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from bindkit.files import write_bytes
    from bindkit.pipeline.comparing import compare_workspaces, told_apart
    from bindkit.probes import by_capability
    from bindkit.probes.metrics import below_chance
    from bindkit.results.model_table import model_table
    from bindkit.results.tables import OVER_CONTROLS, ranked_by

    results = compare_workspaces(options.workspaces)
    fitted = results.loc[(results["task"] == "pairwise") & (results["probe"] != "oracle"), "probe"]
    table = model_table(results, options.probe or min(fitted.unique(), key=by_capability, default="quadratic"))
    shown = ["kind", "workspace", "backbone", "layer", "accuracy", "gain", "auroc", "twins_auroc"]
    shown += [name for figure in ranked_by(table) for name in (figure, OVER_CONTROLS[figure])] + ["n_scenes"]
    shown = list(dict.fromkeys(shown))
    print(told_apart(table)[shown].to_string(index=False, float_format="{:.3f}".format, na_rep="-"))
    for sentence in below_chance(results.to_dict("records")):
        print(sentence)
    if options.out is not None:
        write_bytes(options.out, table.to_csv(index=False, float_format="%.6g").encode())
        print(options.out)
    return 0


def _cache(options: argparse.Namespace) -> int:
    scenes = bindkit.open_scenes(options.scenes)
    cache = bindkit.cache_activations(
        bindkit.load_backbone(
            options.backbone,
            window=options.window or None,
            normalization=options.normalization,
            arithmetic=options.arithmetic,
        ),
        scenes,
        root=options.root,
        split=bindkit.split_scenes(scenes, options.groups),
        layers=options.layers,
        patches_per_scene=options.patches_per_scene,
        dtype=options.dtype,
        seed=options.seed,
        changed=options.changed,
    )
    print(cache.path)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from bindkit.cache.verifying import repair_cache, scene_changes

    whole = True
    for path in _caches_in(options.path):
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


def _caches_in(path: Path) -> list[Path]:
    """The cache at `path`, or all in the directories below it."""
    from bindkit.cache.manifest import MANIFEST_NAME

    if (path / MANIFEST_NAME).exists():
        return [path]
    found = sorted(manifest.parent for manifest in path.rglob(MANIFEST_NAME))
    return found or [path]


def _pretrain(options: argparse.Namespace) -> int:
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
    return 0


def _check(options: argparse.Namespace) -> int:
    from bindkit.backbones import check_backbone

    print(check_backbone(options.model))
    return 0


def _export(options: argparse.Namespace) -> int:
    from bindkit.views.viewer import find_probes

    images: list[Any] = []
    class_names: dict[int, str] = {}
    if options.scenes is not None:
        if options.n < 1:
            raise InvalidParameterError(f"--n takes how many scenes to show, at least 1, got {options.n}")
        scenes = bindkit.open_scenes(options.scenes)
        images += [scenes[position] for position in range(min(options.n, len(scenes)))]
        class_names.update(scenes.class_names)
    images += options.images
    if not images:
        raise InvalidParameterError("nothing to show: name image files, or a scene set with --scenes URI")
    shown = {}
    for name in dict.fromkeys(options.backbone):
        backbone = bindkit.load_backbone(name, window=options.window or None)
        layers = None if options.layers == "all" else backbone.resolve_layers(options.layers)
        shown[backbone] = find_probes(options.probes, name, layers, options.probe, backbone.weights_digest)
    titled = {} if options.title is None else {"title": options.title}
    print(bindkit.export_viewer(options.out, shown, images=images, class_names=class_names, **titled))
    return 0


def _count_or_all(text: str) -> int | str:
    """A number of patches, or ``all``."""
    return text if text == "all" else int(text)


if __name__ == "__main__":
    sys.exit(main())
