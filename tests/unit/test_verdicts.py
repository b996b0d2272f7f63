"""Words follow the numbers."""

import pandas as pd
import pytest

from bindkit.verdicts import verdicts

ROW = {
    "backbone": "m",
    "objective": "supervised",
    "layer": 3,
    "accuracy": 0.8,
    "accuracy_low": 0.78,
    "accuracy_high": 0.82,
    "majority_accuracy": 0.75,
    "auroc": 0.9,
    "twins_auroc": 0.7,
    "n_scenes": 100,
}


@pytest.mark.parametrize(
    ("change", "said", "unsaid"),
    [
        ({}, ", above the 75.0 %", "demonstration"),
        ({}, "tells apart objects that look alike", "control"),
        ({"majority_accuracy": 0.79}, "not distinguishable from the 79.0 %", ", above"),
        ({"majority_accuracy": 0.9}, "not above the 90.0 %", "distinguishable"),
        ({"twins_auroc": 0.52}, "no better than chance", "look alike"),
        ({"twins_auroc": float("nan")}, "no twins to tell apart", "look alike"),
        ({"auroc": float("nan")}, "All pairs have one answer, nothing to rank", "nan"),
        ({"objective": "random-init"}, "never trained, a control", "supervised"),
        ({"accuracy_low": float("nan"), "n_scenes": 1}, "no interval over a single scene", "[nan"),
        ({"n_scenes": 3}, "Judged on 3 scenes: a demonstration, not a measurement", "above the 3"),
    ],
)
def test_the_sentence_says_what_the_numbers_say(change, said, unsaid):
    (sentence,) = verdicts(pd.DataFrame([ROW | change]))
    assert said in sentence
    assert unsaid not in sentence
