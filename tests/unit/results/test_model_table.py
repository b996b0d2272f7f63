"""The paper's table: every difference by hand."""

import math

import pandas as pd
import pytest

from bindkit.errors import InvalidParameterError
from bindkit.results.model_table import model_table, readable
from bindkit.results.words import BEST_BASELINE, WORDS, in_words

COLUMNS = ["backbone", "objective", "layer", "probe", "task", "accuracy", "auroc", "twins_auroc", "seed", "n_pairs"]
ROWS = [
    ("random-init:vit", "random-init", 0, "quadratic", "pairwise", 0.82, 0.70, 0.55, 0, 1000),
    ("random-init:other", "random-init", 0, "quadratic", "pairwise", 0.83, 0.75, 0.58, 0, 1000),
    ("vit", "dino", 0, "quadratic", "pairwise", 0.85, 0.80, 0.60, 0, 1000),
    ("vit", "dino", 1, "quadratic", "pairwise", 0.90, 0.92, 0.81, 0, 1000),
    ("vit", "dino", 1, "quadratic", "pairwise", 0.92, 0.96, 0.83, 1, 1000),
    ("vit", "dino", 1, "quadratic", "shuffled_labels", 0.80, 0.51, 0.50, 0, 1000),
    ("vit", "dino", 0, "quadratic", "shuffled_labels", 0.80, 0.40, 0.50, 0, 1000),
    ("vit", "dino", 1, "linear", "pointwise_class", 0.99, 0.99, 0.99, 0, 1000),
    ("wide", "mae", 2, "quadratic", "pairwise", 0.84, 0.86, 0.65, 0, 1000),
    ("control:position", "control", math.nan, "quadratic", "pairwise", 0.81, 0.79, 0.66, 0, 1000),
    ("control:raw-pixels", "control", math.nan, "quadratic", "pairwise", 0.80, 0.60, 0.50, 0, 999),
    ("control:same-class", "control", math.nan, "oracle", "pairwise", 0.70, 0.88, 0.50, math.nan, 1000),
]


@pytest.fixture
def results():
    frame = pd.DataFrame(ROWS, columns=COLUMNS)
    return frame.assign(protocol="strict", split="test", n_scenes=80, majority_accuracy=0.8)


def test_every_model_stands_beside_all_that_it_is_compared_with(results):
    table = model_table(results).set_index("backbone")
    assert list(table.index) == [
        *("vit", "wide", "random-init:vit", "random-init:other"),
        *("control:position", "control:raw-pixels", "control:same-class"),
    ]
    vit, wide = table.loc["vit"], table.loc["wide"]
    assert (vit["layer"], vit["n_seeds"]) == (1, 2)
    assert vit["accuracy"] == pytest.approx(0.91)
    assert vit["gain"] == pytest.approx(0.11)
    assert vit["accuracy_over_position"] == pytest.approx(0.91 - 0.81)
    assert vit["accuracy_over_untrained"] == pytest.approx(0.91 - 0.82)
    assert wide["accuracy_over_untrained"] == pytest.approx(0.84 - 0.83)
    assert math.isnan(vit["accuracy_over_raw-pixels"]), "not judged on the same pairs"
    assert "accuracy_over_same-class" not in table, "that oracle ranks pairs, its accuracy is no baseline"
    assert vit["auroc_spread"] == pytest.approx(0.04 / math.sqrt(2))
    assert vit["auroc_over_position"] == pytest.approx(0.94 - 0.79)
    assert vit["twins_auroc_over_position"] == pytest.approx(0.82 - 0.66)
    assert vit["auroc_over_untrained"] == pytest.approx(0.94 - 0.70), "its own twin"
    assert wide["auroc_over_untrained"] == pytest.approx(0.86 - 0.75), "the strongest, having no twin"
    assert vit["auroc_over_same-class"] == pytest.approx(0.94 - 0.88)
    assert vit["twins_auroc_over_same-class"] == pytest.approx(0.32)
    assert vit["selectivity"] == pytest.approx(0.94 - 0.51), "at its own layer"
    assert math.isnan(wide["selectivity"])
    assert math.isnan(vit["auroc_over_raw-pixels"]), "not judged on the same pairs"
    assert table.loc["control:position"].filter(like="_over_").isna().all()
    assert math.isnan(table.loc["random-init:vit", "auroc_over_untrained"])
    assert table.loc["random-init:vit", "auroc_over_position"] == pytest.approx(0.70 - 0.79)
    # The oracle knows what a control does not: it is not counted among the controls.
    assert vit["auroc_over_controls"] == pytest.approx(0.94 - 0.79)
    assert table.loc["wide", "auroc_over_controls"] == pytest.approx(0.86 - 0.79)


def test_tables_without_tasks_oracle_or_controls_do_as_well(results):
    bare = results[results["backbone"].isin(["vit"])].drop(columns=["task", "n_pairs"])[:2]
    table = model_table(bare)
    assert table["backbone"].tolist() == ["vit"]
    assert not [name for name in table if "_over_" in name and not name.endswith("controls")]
    assert table["selectivity"].isna().all()


def test_a_probe_that_was_not_fitted_is_an_error(results):
    with pytest.raises(InvalidParameterError, match=r"no softmax probe of the task pairwise; it has linear \(point"):
        model_table(results, "softmax")


def test_a_twin_of_another_seed_is_still_a_twin(results):
    """Of two twins the strongest, 0.77; the stronger untrained backbone of another name (0.99) does not count."""
    more = results[results["backbone"] == "random-init:vit"]
    again = more.assign(backbone="random-init:vit,seed=3", auroc=0.77)
    other = more.assign(backbone="random-init:vit-huge", auroc=0.99)
    table = model_table(pd.concat([results, again, other])).set_index("backbone")
    assert table.loc["vit", "auroc_over_untrained"] == pytest.approx(0.94 - 0.77)
    assert table.loc["wide", "auroc_over_untrained"] == pytest.approx(0.86 - 0.99)


def test_each_is_compared_with_the_control_of_its_own_geometry(results):
    """`control:position@112/8` was judged on the 1,000 pairs of all models, `@112/16` on the 500 of `coarse`."""
    results["backbone"] = results["backbone"].replace("control:position", "control:position@112/8")
    coarse = results[results["backbone"] == "wide"].assign(backbone="coarse", n_pairs=500, auroc=0.9)
    position = coarse.assign(backbone="control:position@112/16", objective="control", layer=math.nan, auroc=0.4)
    table = model_table(pd.concat([results, coarse, position])).set_index("backbone")
    assert table.loc["vit", "auroc_over_position"] == pytest.approx(0.94 - 0.79)
    assert table.loc["coarse", "auroc_over_position"] == pytest.approx(0.9 - 0.4)
    assert math.isnan(table.loc["coarse", "auroc_over_untrained"])
    assert math.isnan(table.loc["coarse", "auroc_over_same-class"])


def test_equally_many_pairs_are_not_the_same_pairs(results):
    """Where no patch is left out, every geometry gives as many pairs; only their digest tells them apart."""
    fine = results[results["backbone"].isin(["vit", "control:position"])].assign(judged_pairs="a")
    coarse = fine.assign(judged_pairs="b", auroc=fine["auroc"] - 0.3)
    coarse["backbone"] = coarse["backbone"].replace({"vit": "coarse", "control:position": "control:position@112/16"})
    table = model_table(pd.concat([fine, coarse])).set_index("backbone")
    assert table.loc["vit", "auroc_over_position"] == pytest.approx(0.94 - 0.79)
    assert table.loc["coarse", "auroc_over_position"] == pytest.approx(0.94 - 0.79), "less 0.49, not less 0.79"
    assert table.loc["coarse", "auroc_over_controls"] == pytest.approx(0.94 - 0.79)


def test_another_task_has_the_oracle_beside_it_and_no_selectivity(results):
    """The control task is what `pairwise` is held against; less itself it would be 0, less another nonsense."""
    shuffled = model_table(results, task="shuffled_labels").set_index("backbone")
    assert shuffled["selectivity"].isna().all()
    assert shuffled.loc["vit", "auroc_over_same-class"] == pytest.approx(0.40 - 0.88), "of equal accuracy, layer 0"
    pointwise = model_table(results, "linear", "pointwise_class").set_index("backbone")
    assert pointwise.loc["vit", "auroc_over_same-class"] == pytest.approx(0.99 - 0.88)


def test_readers_see_what_is_taken_from_what(results):
    shown = readable(model_table(results)).set_index(("", "model"))
    assert shown.loc["vit", ("", "layer")] == "1"
    assert shown.loc["position", ("", "layer")] == "-"
    assert shown.loc["vit", ("accuracy", "over majority class")] == pytest.approx(0.11)
    assert shown.loc["vit", ("accuracy", "over untrained")] == pytest.approx(0.09)
    assert list(shown["accuracy"]) == ["value", "± over seeds", "over majority class", "over untrained"]
    assert shown.loc["vit", ("AUROC", BEST_BASELINE)] == pytest.approx(0.94 - 0.79)
    assert shown.loc["vit", ("AUROC", "over untrained")] == pytest.approx(0.94 - 0.70)
    assert shown.loc["vit", ("AUROC", "over shuffled labels")] == pytest.approx(0.94 - 0.51)
    distractors = WORDS["twins_auroc"]
    assert shown.loc["vit", (distractors, "± over seeds")] == pytest.approx(0.02 / math.sqrt(2))
    assert shown.loc["vit", (distractors, BEST_BASELINE)] == pytest.approx(0.82 - 0.66)
    assert shown.notna().any().all(), "empty columns are left out"
    assert ("accuracy", "95 % interval") not in shown
    bounded = readable(model_table(results.assign(accuracy_low=0.5, accuracy_high=0.96)))
    assert set(bounded["accuracy", "95 % interval"]) == {"0.500 to 0.960"}


def test_readers_see_how_sure_a_gain_is(results):
    table = model_table(results)
    low = table["auroc_over_controls"] - 0.02
    shown = readable(table.assign(auroc_over_controls_low=low, auroc_over_controls_high=low + 0.03))
    gains = shown.set_index(("", "model"))["AUROC", BEST_BASELINE]
    assert gains["vit"].replace("\u00a0", " ") == "+0.150 (+0.130 to +0.160)"
    assert gains["random-init:vit"].replace("\u00a0", " ") == "−0.090 (−0.110 to −0.080)"
    assert gains["position"] is None
    assert shown["AUROC", "over untrained"].dtype == float, "no interval is known"


def test_a_table_is_read_in_words_without_empty_columns_or_directories():
    rows = {
        "backbone": ["/home/me/runs/mae", "random-init:/home/me/runs/mae", "control:same-class"],
        "layer": [3, 0, None],
    }
    rows |= {"twins_auroc": [0.9, 0.5, 0.5], "fg_ari": [0.5, None, None], "fg_ari_low": [0.4, None, None]}
    table = pd.DataFrame(rows | {"fg_ari_high": [0.61, None, None], "class_accuracy": None})
    page = in_words(table, precision=2).to_html()
    assert list(in_words(table).data) == [
        *("model", "layer", "AUROC, same-class distractors", "foreground ARI", "foreground ARI, 95 % interval")
    ]
    assert in_words(table).data["model"].tolist() == ["runs/mae", "random-init:runs/mae", "class labels"]
    assert "0.40 to 0.61" in page
    assert "/home" not in page
