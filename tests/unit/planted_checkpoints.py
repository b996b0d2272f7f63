"""Tables of checkpoints whose figures are known."""

import math

import pandas as pd

ALIKE = {"probe": "quadratic", "task": "pairwise", "protocol": "strict", "split": "test", "seed": 0}

START = (0.78, 0.55)


def planted(objectives, n_scenes=40, control=(0.80, 0.60)):
    """Name -> list over training seeds of ((AUROC, twins) untrained, (AUROC, twins) trained) of layer 3.

    Layer 1 is always a little worse.
    """
    rows = []
    for name, seeds in objectives.items():
        for seed, figures in enumerate(seeds):
            for seen, (auroc, twins) in zip((0, 100, 512), (figures[0], figures[0], figures[1]), strict=True):
                for layer, worse in ((1, 0.01), (3, 0.0)):
                    row = {"pretraining": name, "training_seed": seed, "scenes_seen": seen, "layer": layer}
                    row |= {"auroc": auroc - worse, "twins_auroc": twins - worse, "backbone": f"{name}{seed}/{seen}"}
                    rows.append(row | {"objective": name if seen else "random-init", "accuracy": 0.8})
    for name, auroc, twins in (("position", *control), ("raw-pixels", 0.7, 0.5)):
        row = {"pretraining": None, "training_seed": math.nan, "scenes_seen": math.nan, "layer": math.nan}
        row |= {"auroc": auroc, "twins_auroc": twins, "backbone": f"control:{name}", "objective": "control"}
        rows.append(row | {"accuracy": 0.75})
    return pd.DataFrame(rows).assign(n_scenes=n_scenes, n_pairs=999, majority_accuracy=0.7, **ALIKE)
