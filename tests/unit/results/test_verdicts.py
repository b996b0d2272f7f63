"""Words follow the numbers."""

import pandas as pd
import pytest

from bindkit.results.tables import verdicts

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
        ({"twins_auroc": float("nan")}, "no same-class distractors", "look alike"),
        ({"auroc": float("nan")}, "All pairs have one answer, nothing to rank", "nan"),
        ({"objective": "random-init"}, "never trained, a baseline", "supervised"),
        ({"accuracy_low": float("nan"), "n_scenes": 7}, "no interval below 8 scenes, so nothing can be said", "nan"),
        ({"accuracy_low": float("nan")}, "no interval where too few scenes differ, so nothing can be said", "nan"),
        ({"accuracy_low": float("nan"), "gain_low": 0.01, "gain_high": 0.1}, "rightly, above the 75.0 %", "nan"),
        ({"gain_low": float("nan"), "gain_high": float("nan")}, "[78.0, 82.0], above the 75.0 %", "nan"),
        ({"n_scenes": 3}, "Evaluated on 3 scenes: a demonstration, not a measurement", "above the 3"),
    ],
)
def test_the_sentence_says_what_the_numbers_say(change, said, unsaid):
    (sentence,) = verdicts(pd.DataFrame([ROW | change]))
    assert said in sentence
    assert unsaid not in sentence


@pytest.mark.parametrize(
    ("bounds", "said"),
    [((0.01, 0.03), ", above the 79.0 %"), ((-0.01, 0.03), "not distinguishable"), ((-0.03, -0.01), ", not above")],
)
def test_the_interval_of_the_gain_decides_where_there_is_one(bounds, said):
    """Beside the interval of the accuracy, 0.78 to 0.82, the 79 % would not be distinguishable."""
    change = {"majority_accuracy": 0.79} | dict(zip(("gain_low", "gain_high"), bounds, strict=True))
    assert said in verdicts(pd.DataFrame([ROW | change]))[0]


MATCHED = {"matched_auroc": 0.8, "matched_twins_auroc": 0.65}


@pytest.mark.parametrize(
    ("change", "said", "unsaid"),
    [
        ({}, "AUROC 0.90; on same-class distractors 0.70, so it tells", "0.90 at any distance"),
        ({}, "no figures at equal distance", "AUROC at equal"),
        (
            MATCHED,
            "AUROC at equal distance 0.80 (0.90 at any distance); on same-class distractors 0.65 (0.70",
            "no figures",
        ),
        (
            MATCHED | {"matched_auroc": float("nan")},
            "Too few pairs at equal distance (0.90 at any distance)",
            "one answer",
        ),
        (
            MATCHED | {"matched_twins_auroc": float("nan")},
            "too few same-class distractors at equal distance (0.70",
            "no same-class",
        ),
        (MATCHED | dict.fromkeys(("matched_auroc", "auroc"), float("nan")), "All pairs have one answer", "Too few"),
    ],
)
def test_figures_at_equal_distance_decide_and_what_is_missing_is_called_missing(change, said, unsaid):
    other = ROW | MATCHED | {"backbone": "other"}  # of a table that has such figures, though this row may lack them
    sentence = verdicts(pd.DataFrame([ROW | change, *([other] if change else [])]))[0]
    assert said in sentence
    assert unsaid not in sentence


def test_the_strongest_control_at_equal_distance_is_the_rival():
    control = ROW | {"backbone": "control:position", "objective": "control", "layer": None, "auroc": 0.95}
    control |= {"matched_auroc": 0.63, "matched_twins_auroc": 0.64}
    sentence, alone = verdicts(pd.DataFrame([ROW | MATCHED, control]))
    assert "0.17 above the best baseline (position); on same-class" in sentence
    assert "distractors 0.65 (0.70 at any distance), 0.01 above" in sentence
    assert "AUROC at equal distance 0.63 (0.95 at any distance); on same-class distractors 0.64 (0.70" in alone


def test_a_gain_without_an_interval_is_called_so_and_nothing_follows_from_it():
    """On twins of few scenes: the table has the columns, and NaN in them."""
    known = {f"{name}_{end}": 0.02 for name in ("auroc_over_controls",) for end in ("low", "high")}
    unknown = {f"twins_auroc_over_controls_{end}": float("nan") for end in ("low", "high")}
    sentence = said_beside({"position": (0.6, 0.6)}, **known, **unknown)[0]
    assert "distractors 0.70, 0.10 above the best baseline (position) [no interval: too few scenes differ]." in sentence
    assert "nan" not in sentence
    assert "by more than that" in said_beside({"position": (0.6, 0.6)})[0], "a table without such columns"


def said_beside(controls, **change):
    """Sentences for the backbone above, changed, and for controls given as name -> (AUROC, twins AUROC)."""
    rows = [ROW | {"backbone": f"control:{name}", "objective": "control", "layer": None} for name in controls]
    for row, (auroc, twins) in zip(rows, controls.values(), strict=True):
        row.update(auroc=auroc, twins_auroc=twins)
    return verdicts(pd.DataFrame([ROW | change, *rows]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "AUROC 0.90, 0.04 above the best baseline (position + raw pixels);"),
        (
            {},
            "distractors 0.70, 0.05 above the best baseline (position), so it tells apart objects that look alike",
        ),
        ({"auroc": 0.81}, "AUROC 0.81, 0.05 below the best baseline (position + raw pixels);"),
        ({"auroc": 0.862}, "AUROC 0.86, no more than the best baseline (position + raw pixels);"),
        ({"auroc": float("nan")}, "All pairs have one answer, nothing to rank;"),
        ({"twins_auroc": 0.6}, "distractors 0.60, no more than a baseline has (position, 0.65)."),
        ({"twins_auroc": 0.652}, "distractors 0.65, no more than a baseline has (position, 0.65)."),
        ({"twins_auroc": 0.52}, "distractors 0.52, no better than chance."),
        (
            {"auroc_over_controls_low": 0.02, "auroc_over_controls_high": 0.06},
            "AUROC 0.90, 0.04 above the best baseline (position + raw pixels) [+0.02, +0.06];",
        ),
        (
            {"auroc_over_controls_low": -0.01, "auroc_over_controls_high": 0.09},
            "AUROC 0.90, not distinguishable from the best baseline (position + raw pixels) [-0.01, +0.09];",
        ),
        (
            {"twins_auroc_over_controls_low": -0.01, "twins_auroc_over_controls_high": 0.11},
            "distractors 0.70, not distinguishable from the best baseline (position) [-0.01, +0.11], which needs no",
        ),
        (
            {"auroc": 0.862, "auroc_over_controls_low": 0.001, "auroc_over_controls_high": 0.003},
            "AUROC 0.86, no more than the best baseline (position + raw pixels) [+0.00, +0.00];",
        ),
        (
            {"twins_auroc_over_controls_low": 0.01, "twins_auroc_over_controls_high": 0.09},
            "distractors 0.70, 0.05 above the best baseline (position) [+0.01, +0.09], so it tells apart objects",
        ),
        ({"n_pairs": 7}, "AUROC 0.90; on same-class distractors 0.70, so it tells apart objects that look alike."),
    ],
)
def test_a_backbone_is_set_against_the_strongest_control(change, said):
    sentence, *_ = said_beside({"position": (0.8, 0.65), "position+raw-pixels": (0.86, 0.6)}, **change)
    assert said in sentence


def test_controls_get_a_short_sentence_of_their_own():
    _, sentence = said_beside({"raw-pixels": (0.8, float("nan"))})
    assert sentence == "baseline (raw pixels), without any model: AUROC 0.80; no same-class distractors."
