"""bindkit: measure object binding in vision transformers.

Does a ViT's activation at one image patch tell whether it belongs to the same object as another patch
(*IsSameObject*)? The numbered notebooks are the pipeline; this package holds what they call.

>>> import bindkit as bk
>>> scenes = bk.open_scenes("synthetic:n=2,seed=0")
>>> len(scenes)
2

Public names are loaded on first use, so that ``import bindkit`` stays light.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.3.0"

_HOME = {
    "ActivationCache": "bindkit.cache",
    "AffinityExplorer": "bindkit.views.explorer",
    "Affinity": "bindkit.affinities.scoring",
    "Backbone": "bindkit.backbones",
    "BindkitError": "bindkit.errors",
    "Fit": "bindkit.probes.protocols",
    "PatchGrid": "bindkit.scenes.geometry",
    "Probe": "bindkit.probes",
    "Scene": "bindkit.scenes",
    "affinity": "bindkit.affinities.scoring",
    "attention_follows_binding": "bindkit.analysis.attention",
    "binding_spectrum": "bindkit.analysis.subspace",
    "binding_subspace": "bindkit.analysis.subspace",
    "cache_activations": "bindkit.cache",
    "check_parameters": "bindkit.pipeline.parameters",
    "check_scenes": "bindkit.scenes",
    "compare_subspaces": "bindkit.analysis.subspace",
    "compare_workspaces": "bindkit.pipeline.merging",
    "compare_with_model": "bindkit.cache",
    "estimate_bytes": "bindkit.cache",
    "figures": "bindkit.views.figures",
    "export_viewer": "bindkit.views.viewer",
    "fit_probe": "bindkit.probes.fitting",
    "find_objects": "bindkit.affinities.objects",
    "label_patches": "bindkit.scenes.geometry",
    "intervene": "bindkit.analysis.interventions",
    "judge_objects": "bindkit.affinities.objects",
    "judge_probe": "bindkit.probes.judging",
    "breakdown": "bindkit.results.breakdowns",
    "calibrated": "bindkit.results.breakdowns",
    "reliability": "bindkit.results.breakdowns",
    "load_backbone": "bindkit.backbones",
    "load_control": "bindkit.backbones.sources",
    "load_controls": "bindkit.backbones.sources",
    "load_probe": "bindkit.probes",
    "measure_checkpoints": "bindkit.analysis.checkpoints",
    "merge_caches": "bindkit.pipeline.merging",
    "merge_results": "bindkit.pipeline.merging",
    "open_scenes": "bindkit.scenes",
    "open_workspace": "bindkit.pipeline.workspace",
    "pretrain": "bindkit.pretraining",
    "rank_curve": "bindkit.analysis.subspace",
    "read_as": "bindkit.cache.views",
    "read_caches": "bindkit.pipeline.merging",
    "register_backbone": "bindkit.backbones",
    "run_pipeline": "bindkit.pipeline.running",
    "save_figure": "bindkit.views.figures",
    "show_messages": "bindkit.files",
    "segment_scenes": "bindkit.affinities.objects",
    "split_scenes": "bindkit.scenes",
    "sweep": "bindkit.results.sweeping",
    "twin_differences": "bindkit.analysis.twins",
    "twin_scores": "bindkit.analysis.twins",
    "twins_benchmark": "bindkit.analysis.twins",
    "vary_scenes": "bindkit.analysis.difficulty",
    "write_ade20k": "bindkit.scenes",
}

__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bindkit' has no attribute {name!r}; it offers {', '.join(sorted(_HOME))}")
    home = importlib.import_module(_HOME[name])
    return home if _HOME[name].endswith(f".{name}") else getattr(home, name)


def __dir__() -> list[str]:
    return sorted(__all__)
