"""Emergence: what probes read from a backbone at its checkpoints along training, beside controls.

::

    runs = [bk.pretrain("mae", f"runs/mae-{seed}", scenes_seen=50_000, seed=seed).directory for seed in (0, 1)]
    table = bk.measure_checkpoints(runs, "synthetic:n=200,seed=0,size=80x80", root="emergence")
    emergence_verdicts(table)                               # the answer in words
"""

from bindkit.analysis.emergence.gains import emergence_gains
from bindkit.analysis.emergence.measuring import EMERGENCE_COLUMNS, measure_checkpoints
from bindkit.analysis.emergence.runs import TrainingRun, find_runs, read_runs, training_histories
from bindkit.analysis.emergence.verdicts import emergence_verdicts

__all__ = [
    "EMERGENCE_COLUMNS",
    "TrainingRun",
    "emergence_gains",
    "emergence_verdicts",
    "find_runs",
    "measure_checkpoints",
    "read_runs",
    "training_histories",
]
