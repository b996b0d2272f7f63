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
    "AffinityExplorer": "bindkit.explorer",
    "Affinity": "bindkit.affinities",
    "Backbone": "bindkit.backbones",
    "BindkitError": "bindkit.errors",
    "Fit": "bindkit.fits",
    "PatchGrid": "bindkit.geometry",
    "Probe": "bindkit.probes",
    "Scene": "bindkit.scenes",
    "affinity": "bindkit.affinities",
    "cache_activations": "bindkit.extraction",
    "check_parameters": "bindkit.pipeline",
    "check_scenes": "bindkit.scenes",
    "compare_workspaces": "bindkit.comparing",
    "compare_with_model": "bindkit.extraction",
    "estimate_bytes": "bindkit.extraction",
    "export_viewer": "bindkit.viewer",
    "fit_probe": "bindkit.training",
    "label_patches": "bindkit.labels",
    "judge_probe": "bindkit.judging",
    "breakdown": "bindkit.breakdowns",
    "calibrated": "bindkit.calibration",
    "reliability": "bindkit.calibration",
    "load_backbone": "bindkit.backbones",
    "load_control": "bindkit.controls",
    "load_controls": "bindkit.controls",
    "load_probe": "bindkit.probes",
    "measure_checkpoints": "bindkit.emergence",
    "merge_caches": "bindkit.merging",
    "merge_results": "bindkit.merging",
    "open_scenes": "bindkit.scenes",
    "open_workspace": "bindkit.workspace",
    "pretrain": "bindkit.pretraining",
    "read_caches": "bindkit.merging",
    "run_pipeline": "bindkit.pipeline",
    "save_figure": "bindkit.figures",
    "show_messages": "bindkit.progress",
    "split_scenes": "bindkit.scenes",
    "sweep": "bindkit.sweeping",
    "vary_scenes": "bindkit.difficulty",
    "write_ade20k": "bindkit.scenes",
}

__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bindkit' has no attribute {name!r}; it offers {', '.join(sorted(_HOME))}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
